"""Pictures of a training, one after the other, in bounded memory, and the GIF that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

_DURATION = 5000  # of the film in milliseconds, as far as frames are not too short or too long to watch
_SHORTEST, _LONGEST = 60, 400  # of a frame
_HOLD = 2000  # of the last frame


class Filmstrip:
    """Frames of a film, at most ``max_frames``, none larger than ``max_side``.

    Where there are too many, one goes that the others miss least: so they stay about evenly spaced in steps, and the
    first and the newest are always there.

    Args:
        max_frames: at least 3.
        max_side: of a frame, in pixels; larger ones are made smaller.
        min_side: of a frame in the GIF, in pixels; smaller ones are enlarged there by a whole factor, pixel by pixel.
    """

    def __init__(self, max_frames: int = 64, max_side: int = 512, min_side: int = 256) -> None:
        self.max_frames = max_frames
        self.max_side = max_side
        self.min_side = min_side
        self.frames: list[tuple[int, npt.NDArray[np.uint8]]] = []

    def add(self, step: int, picture: npt.NDArray[np.uint8]) -> None:
        """Add a frame.

        Args:
            step: when it was taken; not before the last one.
            picture: uint8 [height, width, 3].
        """
        from PIL import Image  # late: for those who film

        if max(picture.shape[:2]) > self.max_side:
            image = Image.fromarray(picture)
            image.thumbnail((self.max_side, self.max_side), Image.Resampling.BOX)
            picture = np.asarray(image)
        self.frames.append((step, picture))
        if len(self.frames) > self.max_frames:
            gaps = [self.frames[i + 1][0] - self.frames[i - 1][0] for i in range(1, len(self.frames) - 1)]
            del self.frames[1 + int(np.argmin(gaps))]

    def cut_after(self, step: int) -> None:
        """Forget the frames taken later than at a step.

        Args:
            step: where a run goes on; -1 forgets all.
        """
        self.frames = [frame for frame in self.frames if frame[0] <= step]

    def write(self, path: Path) -> None:
        """Write the GIF; it runs in a loop and holds its last frame.

        Args:
            path: of the file. Its folder is made, if need be.
        """
        from PIL import Image

        images = [Image.fromarray(picture) for _, picture in self.frames]
        width, height = images[0].size
        factor = -(-self.min_side // max(width, height))
        if factor > 1:
            images = [image.resize((factor * width, factor * height), Image.Resampling.NEAREST) for image in images]
        each = min(max(_DURATION // len(images), _SHORTEST), _LONGEST)
        path.parent.mkdir(parents=True, exist_ok=True)
        durations = [each] * (len(images) - 1) + [_HOLD]
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)

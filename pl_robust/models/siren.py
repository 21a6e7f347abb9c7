"""SIREN: sine activations, for signals as functions of their coordinates.

Sitzmann, Martel, Bergman, Lindell, Wetzstein, "Implicit neural representations with periodic activation functions",
NeurIPS 2020, https://arxiv.org/abs/2006.09661; in the two forms of Yüce, Ortiz-Jimenez, Besbinar, Frossard,
"A structured dictionary perspective on implicit neural representations", CVPR 2022, https://arxiv.org/abs/2112.01917.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pl_robust._number import check_count, check_finite, check_positive
from pl_robust.models._inr import check_coordinates, precise_linear

_BIAS_INITS = ("uniform", "zeros")
# What NumPy and the readers of zip files beneath it raise for a file that is none, or is damaged.
_NO_ARCHIVE = (
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
_SETTINGS = {"w0": 30.0, "hidden_w0": 30.0, "output_offset": 0.5}  # of the released meta-learned weights


class SIREN(nn.Module):
    r"""Layers :math:`\sin(\omega (W x + b))` and a linear one at the end.

    The first layer has :math:`\omega` = ``w0``, which sets the frequencies that the network sees first, the other
    hidden ones ``hidden_w0``. Weights are uniform: ±1 / fan_in in the first layer, ±sqrt(6 / fan_in) / hidden_w0 in all
    others, the last included. So the arguments of the sines start with a variance of about 1 at any depth, and the
    output with a standard deviation of about 1 / hidden_w0.

    The defaults are the flax version of Yüce et al.; ``bias_init="zeros", output_offset=0.5`` is their haiku version,
    whose meta-learned weights ``load_siren`` reads. (The code of Sitzmann et al. draws biases as PyTorch does,
    ±1 / sqrt(fan_in).)

    The first and the last layer work in the precision of their parameters, also under autocast. :math:`\omega` is
    multiplied into the weights, which are fewer than the activations; therefore hooks on the linear layers are not
    called.

    Args:
        in_features: dimension of the coordinates.
        out_features: values at each point.
        hidden_features: width of the hidden layers.
        num_layers: number of linear layers, the last one included: the papers' depth. At least 2.
        w0: of the first layer, in radians per unit of coordinate.
        hidden_w0: of the other hidden layers.
        bias_init: ``"uniform"``, in the range of the layer's weights, or ``"zeros"``.
        output_offset: added to the output; 0.5 starts in the middle of images in [0, 1].

    Raises:
        TypeError: if an argument is not of its type; on calling, if coordinates are not floating point.
        ValueError: if a number is not positive, ``num_layers`` less than 2, or ``bias_init`` not among those; on
            calling, if coordinates have another dimension.
    """

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        hidden_features: int = 256,
        num_layers: int = 5,
        w0: float = 30.0,
        hidden_w0: float = 30.0,
        bias_init: Literal["uniform", "zeros"] = "uniform",
        output_offset: float = 0.0,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(out_features, "out_features")
        check_count(hidden_features, "hidden_features")
        check_count(num_layers, "num_layers")
        if num_layers < 2:
            raise ValueError(f"`num_layers` must be at least 2, sines and a linear layer on them, got {num_layers}")
        if bias_init not in _BIAS_INITS:
            raise ValueError(f"`bias_init` must be one of {_BIAS_INITS}, got {bias_init!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.w0 = check_positive(w0, "w0")
        self.hidden_w0 = check_positive(hidden_w0, "hidden_w0")
        self.bias_init = bias_init
        self.output_offset = check_finite(output_offset, "output_offset")
        widths = (in_features, *[hidden_features] * (num_layers - 1), out_features)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, from torch's global generator."""
        for index, layer in enumerate(self._linear_layers()):
            fan_in = layer.in_features
            bound = math.sqrt(6 / fan_in) / self.hidden_w0 if index else 1 / fan_in
            nn.init.uniform_(layer.weight, -bound, bound)
            if self.bias_init == "uniform":
                nn.init.uniform_(layer.bias, -bound, bound)
            else:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map coordinates, float [..., in_features] in [-1, 1] or [0, 1], to values [..., out_features]."""
        check_coordinates(x, self.in_features, "SIREN")
        first, *hidden, last = self._linear_layers()
        out = precise_linear(x, self.w0 * first.weight, self.w0 * first.bias).sin()
        for layer in hidden:
            out = F.linear(out, self.hidden_w0 * layer.weight, self.hidden_w0 * layer.bias).sin()
        out = precise_linear(out, last.weight, last.bias)
        return out + self.output_offset if self.output_offset else out

    def _linear_layers(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"w0={self.w0:g}, hidden_w0={self.hidden_w0:g}, output_offset={self.output_offset:g}"


def save_siren(net: SIREN, path: str | Path) -> None:
    """Write a SIREN to an npz file, from which ``load_siren`` makes the same one again.

    The arrays are ``layer{i}.weight`` [out, in] and ``layer{i}.bias`` [out], as in the file of the meta-learned SIREN,
    and the numbers that the weights do not tell: ``w0``, ``hidden_w0``, ``output_offset``, ``bias_init``.

    Args:
        net: the network, on any device.
        path: the file; one that exists is replaced.

    Raises:
        TypeError: if ``net`` is no SIREN, or has parameters of a type that NumPy does not know.
    """
    if not isinstance(net, SIREN):
        raise TypeError(f"`net` must be a SIREN, got {type(net).__name__}")
    arrays: dict[str, Any] = {name: np.asarray(getattr(net, name)) for name in (*_SETTINGS, "bias_init")}
    for index, layer in enumerate(net.layers):
        for name in ("weight", "bias"):
            parameter = getattr(layer, name).detach()
            if parameter.dtype == torch.bfloat16:
                raise TypeError("NumPy knows no bfloat16: save net.float()")
            arrays[f"layer{index}.{name}"] = parameter.cpu().numpy()
    with Path(path).open("wb") as file:  # given a name, np.savez would add a suffix to it
        np.savez(file, **arrays)


def load_siren(
    path: str | Path,
    *,
    w0: float | None = None,
    hidden_w0: float | None = None,
    output_offset: float | None = None,
) -> SIREN:
    """Read a SIREN from an npz file: one of ``save_siren``, or the meta-learned one of Yüce et al.

    Their ``maml_celebA_5000.pickle`` as an npz holds weights and biases alone. What a file does not say is what holds
    for theirs: w0 = hidden_w0 = 30, output + 0.5, zero biases at initialization. Their coordinates are in [0, 1], rows
    before columns; at other places that network is no better than a new one.

    Args:
        path: the file. It is read without unpickling anything.
        w0: of the first layer, for a file that does not say it.
        hidden_w0: of the other hidden layers, for a file that does not say it.
        output_offset: added to the output, for a file that does not say it.

    Returns:
        The network on the CPU, in the precision of the file. No random number is drawn.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if the weights are not all of one floating point type.
        ValueError: if it is no npz file, arrays are missing, unknown, not finite or do not fit each other, or an
            argument contradicts the file.
    """
    arrays = _read(path)
    wanted = zip(_SETTINGS, (w0, hidden_w0, output_offset), strict=True)
    settings = {name: _setting(arrays, path, name, given) for name, given in wanted}
    bias_init: Any = str(arrays.pop("bias_init", "zeros"))
    shapes = _check_layers(arrays, path)
    with torch.device("meta"):  # neither time nor random numbers for weights that are replaced
        net = SIREN(shapes[0][1], shapes[-1][0], shapes[0][0], len(shapes), bias_init=bias_init, **settings)
    state = {f"layers.{name.removeprefix('layer')}": torch.from_numpy(array) for name, array in arrays.items()}
    net.load_state_dict(state, assign=True)
    return net


def _read(path: str | Path) -> dict[str, np.ndarray[Any, Any]]:
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except _NO_ARCHIVE as error:
            raise ValueError(f"`path` must be an npz file of plain arrays, got {str(path)!r} ({error})") from error


def _setting(arrays: dict[str, np.ndarray[Any, Any]], path: str | Path, name: str, given: float | None) -> float:
    """Take a number out of the file's arrays, else as given, else as published."""
    if name not in arrays:
        return _SETTINGS[name] if given is None else given
    stored = arrays.pop(name)
    if stored.ndim or stored.dtype.kind not in "fiu":
        raise ValueError(
            f"`{name}` in {str(path)!r} must be one number, got {stored.dtype} of shape {list(stored.shape)}"
        )
    if given is not None and given != stored:
        raise ValueError(f"`{name}`={given!r} contradicts {str(path)!r}, which says {float(stored)!r}: leave it out")
    return float(stored)


def _check_layers(arrays: dict[str, np.ndarray[Any, Any]], path: str | Path) -> list[tuple[int, ...]]:
    """Give the shapes [out, in] of the layers, after a look at everything."""
    indices = {match[1] for name in arrays if (match := re.fullmatch(r"layer(\d+)\.(?:weight|bias)", name))}
    count = max(2, len(indices))
    expected = [f"layer{index}.{name}" for index in range(count) for name in ("weight", "bias")]
    missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"{str(path)!r} must hold layer0.weight, layer0.bias, layer1.weight, ... and nothing else but "
            f"{', '.join((*_SETTINGS, 'bias_init'))}; missing: {missing}, unknown: {unknown}"
        )
    types = sorted({str(array.dtype) for array in arrays.values()})
    if len(types) > 1 or types[0] not in ("float16", "float32", "float64"):
        raise TypeError(f"the layers in {str(path)!r} must be of one floating point type, got {types}")
    broken = [name for name in expected if not np.isfinite(arrays[name]).all()]
    if broken:
        raise ValueError(f"the layers in {str(path)!r} must be finite, got NaN or infinity in {broken}")
    first, last = arrays["layer0.weight"].shape, arrays[f"layer{count - 1}.weight"].shape
    if len(first) != 2 or len(last) != 2:
        raise ValueError(f"weights in {str(path)!r} must be [out, in], got {list(first)} and {list(last)}")
    width = first[0]
    shapes = [first, *[(width, width)] * (count - 2), (last[0], width)]
    for index, shape in enumerate(shapes):
        for name, needed in (("weight", shape), ("bias", shape[:1])):
            got = arrays[f"layer{index}.{name}"].shape
            if got != needed:
                raise ValueError(
                    f"layer{index}.{name} in {str(path)!r} must have shape {list(needed)}, because hidden layers have "
                    f"one width, here {width}, got {list(got)}"
                )
    return shapes

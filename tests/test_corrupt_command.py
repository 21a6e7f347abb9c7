from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import LightningDataModule
from pl_robust.cli import main
from pl_robust.datamodules import CorruptedImageDataModule, ImageDataModule, _write_corruptions
from pl_robust.datamodules._write_corruptions import write_corruptions
from pl_robust.transforms.corruption import corrupt
from tests._processes import run_and_kill

pytestmark = pytest.mark.lightning

CHOICE = ["gaussian_noise", "fog", "jpeg_compression"]


def write_images(root: Path) -> Path:
    """An imagefolder of 23 test images of 3 classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 23)):
        for index in range(count):
            folder = root / split / ("ant", "bee", "cow")[index % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 32, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    return root


def folder_module(root: Path, size: int = 64) -> ImageDataModule:
    return ImageDataModule("imagefolder", data_dir=root, eval_batch_size=size)


def arguments(root: Path, out: str = "out", names: str = "[gaussian_noise,fog,jpeg_compression]") -> list[str]:
    data = ["--data=ImageDataModule", "--data.name=imagefolder", f"--data.data_dir={root}"]
    return ["corrupt", *data, f"--out_dir={out}", f"--corruptions={names}"]


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def suites(*modules: CorruptedImageDataModule) -> list[dict[str, Any]]:
    found = []
    for data in modules:
        data.setup("test")
        sets = data.test_dataloader()
        names = [*["clean"] * data.clean, *(f"{name}/{s}" for name in data.corruptions for s in data.severities)]
        found.append(sets if isinstance(sets, dict) else dict(zip(names, sets, strict=True)))
    return found


# the files


def test_what_is_written_is_read_back_as_it_is_generated_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_images(tmp_path / "images")
    main(arguments(root))
    assert "out is complete; CorruptedImageDataModule(data_dir='out') reads it" in capsys.readouterr().out
    stored = CorruptedImageDataModule(folder_module(root), "out", CHOICE, batch_size=11)
    made = CorruptedImageDataModule(folder_module(root, size=7), None, CHOICE)
    assert stored.num_classes == made.num_classes == 3
    read, generated = suites(stored, made)
    assert list(read) == list(generated)
    assert len(read) == 16
    for name in read:
        for left, right in zip(zip(*read[name], strict=True), zip(*generated[name], strict=True), strict=True):
            assert torch.equal(torch.cat(left), torch.cat(right))


@pytest.mark.slow  # all 19 of them, in two ways
def test_every_corruption_is_read_back_as_it_is_generated(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    main(arguments(root, names="all"))
    stored = CorruptedImageDataModule(data_dir="out", corruptions="all")
    read, made = suites(stored, CorruptedImageDataModule(folder_module(root, size=7), corruptions="all", clean=False))
    assert len(read) == 95
    for name in read:
        assert torch.equal(*(torch.cat([x for x, _ in loader]) for loader in (read[name], made[name]))), name


def test_the_layout_is_that_of_the_published_files(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    main(arguments(root, names="[gaussian_noise,contrast]"))
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "contrast.npy",
        "corruptions.json",
        "gaussian_noise.npy",
        "labels.npy",
    ]
    data = folder_module(root)
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    labels = np.load("out/labels.npy", allow_pickle=False)
    assert labels.dtype == np.int64
    assert labels.tolist() == y.tolist() * 5
    for name in ("gaussian_noise", "contrast"):
        pixels = np.load(f"out/{name}.npy", allow_pickle=False)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (5 * 23, 20, 32, 3)
        for severity in range(1, 6):
            wanted = corrupt(x, name, severity, table="cifar", seeds=torch.arange(23))
            part = torch.from_numpy(pixels[23 * (severity - 1) : 23 * severity]).permute(0, 3, 1, 2)
            assert torch.equal(part.float() / 255, wanted)


def test_the_manifest_says_how_they_were_made(tmp_path: Path) -> None:
    main([*arguments(write_images(tmp_path / "images"), names="[fog]"), "--table=imagenet"])
    manifest = json.loads(Path("out/corruptions.json").read_text())
    assert manifest["table"] == "imagenet"
    assert manifest["device"] == "cpu"
    assert (manifest["source"]["datamodule"], manifest["source"]["arguments"]["name"]) == (
        "ImageDataModule",
        "imagefolder",
    )
    assert (manifest["source"]["images"], manifest["source"]["shape"]) == (23, [3, 20, 32])
    CorruptedImageDataModule(data_dir="out", corruptions=["fog"], table="imagenet").setup("test")
    with pytest.raises(ValueError, match=r"`data_dir`='out' holds corruptions of `table`='imagenet', got 'cifar'"):
        CorruptedImageDataModule(data_dir="out", corruptions=["fog"], table="cifar").setup("test")
    there = files(Path("out"))
    assert manifest["files"] == {name: there[name] for name in ("labels.npy", "fog.npy")}


def test_the_digits_and_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        """
        data: {class_path: ImageDataModule, init_args: {name: digits, image_size: 16}}
        out_dir: first
        corruptions: [contrast]
        """
    )
    main(["corrupt", "--config", "c.yaml"])
    main(["corrupt", "--config", "c.yaml", "--out_dir=second", "--data.eval_batch_size=100"])
    first, second = files(Path("first")), files(Path("second"))
    assert {name: first[name] for name in ("contrast.npy", "labels.npy")} == {
        name: second[name] for name in ("contrast.npy", "labels.npy")
    }
    assert np.load("first/contrast.npy").shape == (5 * 497, 16, 16, 1)
    data = CorruptedImageDataModule(data_dir="second", corruptions=["contrast"])
    data.setup("test")
    assert (data.num_classes, data.image_shape) == (10, (1, 16, 16))


class Dicts(LightningDataModule):
    """Images in a dict, shuffled by the loader, made by hooks."""

    def test_dataloader(self) -> Any:
        images = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))

        def collate(samples: Any) -> dict[str, Any]:
            x, y = zip(*samples, strict=True)
            return {"image": torch.stack(x) * 255, "label": torch.stack(y)}

        return DataLoader(TensorDataset(images, torch.arange(9)), 4, shuffle=True, collate_fn=collate)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": batch["image"] / 255}


def test_any_datamodule_in_the_order_of_its_data_set(tmp_path: Path) -> None:
    write_corruptions(Dicts(), "out", "cifar", ["fog"], input_key="image", label_key="label")
    assert np.load("out/labels.npy").tolist() == list(range(9)) * 5
    x = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255 / 255
    wanted = corrupt(x, "fog", 1, table="cifar", seeds=torch.arange(9))
    written = torch.from_numpy(np.load("out/fog.npy")[:9]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(written, wanted)


# killed and resumed


def write_slowly(root: Path, out: str, at: str, marker: str) -> None:
    """Write, and halt where a test wants it to be killed: in the middle of a file, or around its listing."""
    step, _, name = at.partition(" ")
    writing: Any = _write_corruptions
    halted = {"left": 2}

    def halt() -> None:
        Path(marker).touch()
        time.sleep(60)

    if step == "in":
        pixels = writing._corrupted

        def corrupted(data: Any, loader: Any, steps: Any, *rest: Any) -> Any:
            for part in pixels(data, loader, steps, *rest):
                yield part
                halted["left"] -= steps[0].name == name
                if not halted["left"]:
                    halt()

        writing._corrupted = corrupted
    else:
        listing = writing.write_manifest

        def write_manifest(folder: Path, content: Any) -> None:
            is_now = f"{name}.npy" in content["files"] or name == "nothing"
            if is_now and step == "before":
                halt()
            listing(folder, content)
            if is_now and step == "after":
                halt()

        writing.write_manifest = write_manifest
    write_corruptions(folder_module(root, size=4), out, corruptions=list(CHOICE))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    write_corruptions(folder_module(images, size=4), str(folder), corruptions=list(CHOICE))
    return files(folder)


@pytest.mark.parametrize(
    "at", ["before nothing", "after nothing", "in gaussian_noise", "before fog", "after fog", "in jpeg_compression"]
)
def test_killed_anywhere_and_resumed_it_ends_with_the_same_bytes(
    at: str, images: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    marker, out = tmp_path / "marker", tmp_path / "out"
    assert run_and_kill(write_slowly, marker.exists, images, str(out), at, str(marker)) == -signal.SIGKILL
    left = files(out) if out.exists() else {}
    complete = {name for name in left if name.endswith(".npy")}
    # Whatever has its name is complete.
    assert all(left[name] == whole[name] for name in complete)
    expected = {"before fog": 2, "after fog": 2, "in jpeg_compression": 3}
    assert len(complete) == expected.get(at, 0 if "nothing" in at else 1)
    times = {name: (out / name).stat().st_mtime_ns for name in complete}
    write_corruptions(folder_module(images, size=4), str(out), corruptions=list(CHOICE))
    assert files(out) == whole
    assert times == {name: (out / name).stat().st_mtime_ns for name in complete}  # not written twice


def test_an_interrupted_suite_is_not_read_as_a_whole_one(images: Path, tmp_path: Path) -> None:
    write_corruptions(folder_module(images), "out", corruptions=["fog"])
    data = CorruptedImageDataModule(data_dir="out", corruptions=["fog", "snow"])
    with pytest.raises(FileNotFoundError, match=r"out/snow.npy is missing.*`pl-robust corrupt` writes such files"):
        data.setup("test")
    write_corruptions(folder_module(images), "out", corruptions=["contrast"])  # adds to it
    assert list(json.loads(Path("out/corruptions.json").read_text())["files"]) == [
        "labels.npy",
        "fog.npy",
        "contrast.npy",
    ]


def test_an_error_leaves_no_half_file(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        yield torch.zeros(1, 20, 32, 3, dtype=torch.uint8)
        raise OSError("No space left on device")

    monkeypatch.setattr(_write_corruptions, "_corrupted", full)
    with pytest.raises(OSError, match="No space left"):
        write_corruptions(folder_module(images), "out", corruptions=["fog"])
    assert sorted(files(Path("out"))) == ["corruptions.json", "labels.npy"]


# what was changed behind its back


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _edit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("fog.npy", _edit, r"out/fog.npy is damaged: its SHA-256 is not the one in corruptions.json"),
        ("labels.npy", _edit, r"out/labels.npy (is damaged|must hold)"),
        ("fog.npy", _truncate, r"out/fog.npy is no complete .npy file"),
    ],
)
def test_a_damaged_file_is_refused_and_written_anew(
    name: str, damage: Callable[[Path], None], message: str, images: Path
) -> None:
    write_corruptions(folder_module(images), "out", corruptions=["fog", "contrast"])
    before = files(Path("out"))
    damage(Path("out") / name)
    with pytest.raises(ValueError, match=message):
        CorruptedImageDataModule(data_dir="out", corruptions=["fog"]).setup("test")
    if name == "fog.npy":  # what is not asked for is not looked at
        CorruptedImageDataModule(data_dir="out", corruptions=["contrast"]).setup("test")
    write_corruptions(folder_module(images), "out", corruptions=["fog", "contrast"])
    assert files(Path("out")) == before


def test_a_file_of_somebody_else_is_refused(images: Path) -> None:
    write_corruptions(folder_module(images), "out", corruptions=["fog"])
    np.save("out/snow.npy", np.load("out/fog.npy"))
    with pytest.raises(ValueError, match=r"out/snow.npy is not among the files that corruptions.json lists"):
        CorruptedImageDataModule(data_dir="out", corruptions=["snow"]).setup("test")
    with pytest.raises(ValueError, match=r"out/snow.npy would be overwritten, and corruptions.json does not list it"):
        write_corruptions(folder_module(images), "out", corruptions=["snow"])
    Path("published").mkdir()
    np.save("published/fog.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"published/fog.npy would be overwritten"):
        write_corruptions(folder_module(images), "published", corruptions=["fog"])
    assert sorted(files(Path("published"))) == ["fog.npy"]


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is no JSON"), ("[]", 'must have "format"'), ("{}", "and has not")]
)
def test_a_manifest_that_is_none_is_refused(content: str, message: str, images: Path) -> None:
    write_corruptions(folder_module(images), "out", corruptions=["fog"])
    Path("out/corruptions.json").write_text(content)
    match = rf"out/corruptions.json .*{message}"
    with pytest.raises(ValueError, match=match):
        write_corruptions(folder_module(images), "out", corruptions=["fog"])
    with pytest.raises(ValueError, match=match):
        CorruptedImageDataModule(data_dir="out", corruptions=["fog"]).setup("test")


def test_does_not_mix_tables_sources_or_versions(images: Path, tmp_path: Path) -> None:
    write_corruptions(folder_module(images), "out", "cifar", ["fog"])
    before = files(Path("out"))
    with pytest.raises(ValueError, match=r"`out_dir`='out' holds corruptions of table 'cifar', not 'imagenet'"):
        write_corruptions(folder_module(images), "out", "imagenet", ["contrast"])
    other = write_images(tmp_path / "other")
    Image.fromarray(np.zeros((20, 32, 3), dtype=np.uint8)).save(other / "test" / "ant" / "00.png")
    with pytest.raises(
        ValueError, match=r"holds corruptions of other images: 23 of shape \[3, 20, 32\] from ImageData"
    ):
        write_corruptions(folder_module(other), "out", "cifar", ["contrast"])
    assert files(Path("out")) == before
    manifest = json.loads(Path("out/corruptions.json").read_text())
    Path("out/corruptions.json").write_text(json.dumps({**manifest, "version": "0.0.1"}))
    with pytest.raises(ValueError, match=r"holds corruptions of version '0.0.1', not '"):
        write_corruptions(folder_module(images), "out", "cifar", ["fog"])


# what it refuses


def _module(x: torch.Tensor, y: torch.Tensor, loaders: int = 1) -> LightningDataModule:
    data: Any = LightningDataModule()
    data.test_dataloader = lambda: [DataLoader(TensorDataset(x, y), 4)] * loaders
    return data  # type: ignore[no-any-return]


X, Y = torch.rand(5, 3, 32, 32), torch.arange(5)


@pytest.mark.parametrize(
    ("data", "changed", "message"),
    [
        (_module(X * 2, Y), {}, r"`data` must give images in \[0, 1\], got values from .* to (1.9|2)"),
        (_module(X.byte(), Y), {}, r"`data` must give float images \[B, C, H, W\] .* got torch.uint8"),
        (_module(X, Y.float()), {}, r"and integer labels \[B\], got .* and torch.float32 \[4\]"),
        (_module(X, Y, 2), {}, "`data` must have one test loader, LightningDataModule gives 2"),
        (_module(X[:0], Y[:0]), {}, "`data` must have test images, LightningDataModule has none"),
        (_module(X, Y), {"device": "abacus"}, "`device`='abacus' cannot be used"),
        (_module(X, Y), {"table": "cifar10"}, "`table` must be one of cifar, tiny_imagenet, imagenet or null"),
        (_module(X, Y), {"corruptions": ["fogg"]}, r"got 'fogg' \(did you mean 'fog'\?\)"),
    ],
)
def test_refuses_data_and_arguments(data: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_corruptions(data, "out", **changed)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tabel=cifar"], "pl-robust corrupt has no argument 'tabel'; did you mean 'table'? There are: corruptions"),
        (["--table=cifra"], "table: expected one of 'cifar', 'tiny_imagenet', 'imagenet', null, got cifra"),
        (["--data=ImageDatamodule"], "there is no class 'ImageDatamodule'; did you mean 'ImageDataModule'?"),
        (["--data.nam=digits"], "ImageDataModule has no argument 'nam'; did you mean 'name'?"),
        (["--data.data_dir=nowhere"], "found no class folder there"),
        (["--corruptions=[fogg]"], "got 'fogg' (did you mean 'fog'?)"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--input_key=image"], "`input_key`='image' is not in the batch, which has [0, 1]"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    extra: list[str], message: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments(images, names="[contrast]"), *extra])
    said = capsys.readouterr().err.strip().splitlines()[-1].rpartition("\r")[2]
    assert said.lstrip().startswith("pl-robust: error: ")
    assert message in said


def test_says_what_is_needed_and_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["corrupt"])
    assert capsys.readouterr().err == "pl-robust: error: the following arguments are required: data, out_dir\n"
    with pytest.raises(SystemExit, match="0"):
        main(["corrupt", "--help"])
    told = capsys.readouterr().out
    assert all(f"--{name}" in told for name in ("config", "data", "out_dir", "table", "corruptions", "device"))
    main(["--help"])
    assert "corrupt " in capsys.readouterr().out
    (Path("c.yaml")).write_text("trainer: {max_epochs: 1}")
    with pytest.raises(SystemExit, match="2"):
        main(["corrupt", "--config=c.yaml"])
    assert "of a configuration of `fit` it takes `data` alone, not 'trainer.max_epochs'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["corrupt", "--tabel=cifar"])
    assert "pl-robust corrupt has no argument 'tabel'; did you mean 'table'?" in capsys.readouterr().err


def test_images_that_cannot_be_corrupted_leave_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["corrupt", "--data=ImageDataModule", "--data.name=digits", f"--out_dir={tmp_path / 'c'}"]
    with pytest.raises(SystemExit, match="2"):
        main([*call, "--corruptions=[contrast]"])
    assert "at least 16 pixels" in capsys.readouterr().err
    main([*call, "--corruptions=[contrast]", "--data.image_size=16"])
    assert (tmp_path / "c" / "contrast.npy").exists()


def test_data_without_test_images_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["corrupt", "--data=LightningDataModule", f"--out_dir={tmp_path / 'c'}"])
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("pl-robust: error: ")

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms.functional import to_tensor
from torchvision.transforms.v2 import functional as vision

from pl_robust._lightning import LightningModule, Trainer
from pl_robust.datamodules import ImageDataModule
from pl_robust.datamodules._image_dataset import ImageDataset, collate_images, crop_and_flip
from pl_robust.datamodules._luminance import luminance
from tests.toys import quiet_trainer

pytestmark = pytest.mark.lightning
random = np.random.default_rng(0)


def _cat(loader: Any) -> tuple[Tensor, Tensor]:
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def _write_mnist(root: Path, folder: str) -> None:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        _write_idx(raw / f"{prefix}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        _write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _write_cifar(root: Path, kind: Any, patch: pytest.MonkeyPatch) -> None:
    """Write batches in CIFAR's format; the checksums torchvision expects become those of the fake files."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if kind is datasets.CIFAR10 else "fine_labels"

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, _md5(folder / name)]

    def batch(count: int) -> dict[str, Any]:
        return {"data": random.integers(0, 256, (count, 3072), dtype=np.uint8), key: [i % 10 for i in range(count)]}

    patch.setattr(kind, "train_list", [write(name, batch(10)) for name, _ in kind.train_list])
    patch.setattr(kind, "test_list", [write(name, batch(5)) for name, _ in kind.test_list])
    _, md5 = write(kind.meta["filename"], {kind.meta["key"]: [str(i) for i in range(10)]})
    patch.setattr(kind, "meta", {**kind.meta, "md5": md5})


def _write_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True)
    lists = {}
    for split, count in (("train", 20), ("test", 10)):
        url, name, _ = datasets.SVHN.split_list[split]
        labels = (np.arange(count) % 10) + 1  # SVHN's files call the digit zero 10
        savemat(root / name, {"X": random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels[:, None]})
        lists[split] = [url, name, _md5(root / name)]
    patch.setattr(datasets.SVHN, "split_list", lists)


def _write_celeba(root: Path, patch: pytest.MonkeyPatch) -> list[int]:
    """Write tables and photos in CelebA's format, 12 to train, 5 to validate, 7 to test; return who smiles."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{index:06d}.jpg" for index in range(1, 25)]
    smiles = [int(smile) for smile in random.integers(0, 2, len(names))]
    for name in names:
        Image.fromarray(random.integers(0, 256, (218, 178, 3), dtype=np.uint8)).save(folder / "img_align_celeba" / name)

    def table(file: str, columns: str | None, rows: list[str]) -> tuple[str, str, str]:
        head = "" if columns is None else f"{len(names)}\n{columns}\n"
        lines = (f"{name} {row}" for name, row in zip(names, rows, strict=True))
        (folder / file).write_text(head + "\n".join(lines) + "\n")
        return ("", _md5(folder / file), file)

    parts = [0] * 12 + [1] * 5 + [2] * 7
    files = [
        table("list_attr_celeba.txt", "Bald Smiling Young ", [f"-1 {2 * smile - 1}  1" for smile in smiles]),
        table("identity_CelebA.txt", None, ["7"] * len(names)),
        table("list_bbox_celeba.txt", "image_id x_1 y_1 width height", ["95  71 226 313"] * len(names)),
        table("list_landmarks_align_celeba.txt", "lefteye_x lefteye_y", ["69  109"] * len(names)),
        table("list_eval_partition.txt", None, [str(part) for part in parts]),
    ]
    patch.setattr(datasets.CelebA, "file_list", files)
    return smiles


def _write(name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    if name == "svhn":
        _write_svhn(root, patch)
    elif name.startswith("cifar"):
        _write_cifar(root, datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100, patch)
    else:
        _write_mnist(root, "MNIST" if name == "mnist" else "FashionMNIST")


def _write_folder(root: Path, sizes: tuple[tuple[int, int], ...] = ((12, 10),), splits: tuple[str, ...] = ()) -> None:
    for split in ("train", "test", *splits):
        for label, name in enumerate(("ant", "bee", "cow")):
            (root / split / name).mkdir(parents=True)
            for index in range(6):
                width, height = sizes[index % len(sizes)]
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                pixels[0, 0] = 100 * label  # PNG keeps it, so an image tells its class
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")


class _Net(LightningModule):
    """Counts the batches of each loop."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 10)
        self.seen: dict[str, int] = {}

    def _count(self, loop: str, batch: Any) -> Tensor:
        x, y = batch
        self.seen[loop] = self.seen.get(loop, 0) + len(y)
        return nn.functional.cross_entropy(self.net(x.flatten(1)), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._count("fit", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._count("validate", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._count("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self._count("predict", batch)
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _trainer(**arguments: Any) -> Trainer:
    return quiet_trainer(max_epochs=1, **arguments)


# digits


def test_digits_are_sixteenths_and_split_1300_to_497_whatever_the_seed() -> None:
    digits = load_digits()
    tests = []
    for seed in (0, 1):
        data = ImageDataModule("digits", seed=seed, val_fraction=0.1)
        data.setup()
        parts = [_cat(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
        assert [len(y) for _, y in parts] == [1170, 130, 497]
        everything = torch.cat([x for x, _ in parts]) * 16
        assert torch.equal(everything, everything.round())
        # Together the three parts are the whole set, each image once.
        ours = torch.unique(everything.flatten(1), dim=0, return_counts=True)
        whole = torch.unique(torch.from_numpy(digits.images).float().flatten(1), dim=0, return_counts=True)
        assert torch.equal(ours[0], whole[0])
        assert torch.equal(ours[1], whole[1])
        tests.append(parts[2])
    assert torch.equal(tests[0][0], tests[1][0])
    # Stratified: each class's share of the test set is its share of the whole, to one image.
    shares = np.bincount(digits.target) * 497 / 1797
    assert np.abs(np.bincount(tests[0][1].numpy()) - shares).max() < 1


def test_labels_belong_to_their_images() -> None:
    digits = load_digits()
    known = {image.tobytes(): label for image, label in zip(digits.images, digits.target, strict=True)}
    data = ImageDataModule("digits", batch_size=64)
    data.setup("fit")
    x, y = _cat(data.train_dataloader())
    assert [known[(image[0].double() * 16).numpy().tobytes()] for image in x] == y.tolist()


def test_validation_split_follows_the_seed_alone() -> None:
    def validation(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        data = ImageDataModule("digits", seed=seed)
        data.setup("validate")
        return _cat(data.val_dataloader())[0]

    assert torch.equal(validation(3, 0), validation(3, 1))
    assert not torch.equal(validation(3, 0), validation(4, 0))


def test_setup_and_loaders_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    data = ImageDataModule("digits")
    data.setup()
    data.train_dataloader()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_shuffles_and_evaluation_does_not() -> None:
    data = ImageDataModule("digits", batch_size=100)
    data.setup()
    first, second = _cat(data.train_dataloader())[1], _cat(data.train_dataloader())[1]
    assert not torch.equal(first, second)
    assert torch.equal(first.bincount(), second.bincount())
    assert torch.equal(_cat(data.test_dataloader())[0], _cat(data.test_dataloader())[0])
    assert [len(y) for _, y in data.train_dataloader()][-1] == 70  # the last batch is kept


# the Trainer's loops


def test_every_loop_runs_over_its_own_images() -> None:
    data, net = ImageDataModule("digits"), _Net()
    trainer = _trainer(num_sanity_val_steps=0)
    trainer.fit(net, datamodule=data)
    assert net.seen == {"fit": 1170, "validate": 130}
    for run in (trainer.validate, trainer.test):
        net.seen.clear()
        run(net, datamodule=ImageDataModule("digits"), verbose=False)
        assert list(net.seen.values()) == [130 if run == trainer.validate else 497]
    labels = torch.cat(trainer.predict(net, datamodule=data))  # type: ignore[arg-type]
    assert torch.equal(labels, _cat(data.test_dataloader())[1])


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
def test_no_validation_loader_without_a_fraction() -> None:
    data, net = ImageDataModule("digits", val_fraction=0), _Net()
    _trainer().fit(net, datamodule=data)
    assert net.seen == {"fit": 1300}


def test_hyperparameters_are_plain_and_come_back(tmp_path: Path) -> None:
    data = ImageDataModule("digits", data_dir=tmp_path, batch_size=7)
    trainer = _trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(_Net(), datamodule=data)
    trainer.save_checkpoint("last.ckpt")
    checkpoint = torch.load("last.ckpt", weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"]["data_dir"] == str(tmp_path)
    again = ImageDataModule.load_from_checkpoint("last.ckpt")
    assert (again.dataset, again.batch_size) == ("digits", 7)


# torchvision's sets, from files in their real formats


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"])
def test_torchvision_sets_equal_torchvisions_own_reading(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(name, tmp_path / "data", monkeypatch)
    data = ImageDataModule(name, data_dir="data", val_fraction=0.25, download=False)
    data.prepare_data()
    data.setup()
    x, y = _cat(data.test_dataloader())
    kinds = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "svhn": "SVHN"}
    kind = getattr(datasets, kinds.get(name, name.upper()))
    split = {"split": "test"} if name == "svhn" else {"train": False}
    reference = list(kind("data", **split))
    expected = torch.stack([to_tensor(image) for image, _ in reference])
    assert torch.equal(x, expected)
    assert y.dtype == torch.int64
    assert y.tolist() == [int(label) for _, label in reference]
    assert x.shape[1:] == data.image_shape
    assert data.num_classes == (100 if name == "cifar100" else 10)
    train, held_out = len(data.train_dataloader().dataset), len(data.val_dataloader().dataset)  # type: ignore[arg-type, union-attr]
    assert held_out == round(0.25 * (train + held_out)) > 0


def test_prepare_data_fetches_nothing_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    data = ImageDataModule("mnist", data_dir=tmp_path / "data")
    with pytest.raises(AssertionError, match="a download was started"):
        data.prepare_data()
    _write("mnist", tmp_path / "data" / "again", monkeypatch)
    ImageDataModule("mnist", data_dir=tmp_path / "data" / "again").prepare_data()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_missing_data_names_the_folder_and_the_way_out(name: Any) -> None:
    data = ImageDataModule(name, data_dir="nowhere", download=False)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match=f"`data_dir`='nowhere' holds no complete {name} data.*download=True"):
        data.setup("fit")


def test_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write("cifar10", tmp_path / "data", monkeypatch)
    (tmp_path / "data" / "cifar-10-batches-py" / "test_batch").write_bytes(b"spoilt")
    with pytest.raises(FileNotFoundError, match="corrupted"):
        ImageDataModule("cifar10", download=False).setup("test")


# folders of images


@pytest.mark.parametrize("in_memory", [None, False])
def test_imagefolder_equals_torchvisions(in_memory: bool | None, tmp_path: Path) -> None:
    _write_folder(tmp_path)
    data = ImageDataModule("imagefolder", data_dir=tmp_path, in_memory=in_memory, eval_batch_size=5)
    assert (data.num_classes, data.image_shape) == (3, (3, 10, 12))
    data.setup()
    x, y = _cat(data.test_dataloader())
    reference = list(datasets.ImageFolder(str(tmp_path / "test")))
    expected = torch.stack([to_tensor(image) for image, _ in reference])
    assert torch.equal(x, expected)
    assert y.tolist() == [label for _, label in reference]


def test_imagefolder_uses_its_own_validation_images(tmp_path: Path) -> None:
    _write_folder(tmp_path, splits=("val",))
    data = ImageDataModule("imagefolder", data_dir=tmp_path)
    data.setup("fit")
    assert len(_cat(data.train_dataloader())[1]) == len(_cat(data.val_dataloader())[1]) == 18
    only = ImageDataModule("imagefolder", data_dir=tmp_path)
    only.setup("validate")
    with pytest.raises(RuntimeError, match="the train images have not been read: call setup"):
        only.train_dataloader()


# faces


def test_lfw_is_scikit_images_subset_and_split_150_to_50_whatever_the_seed() -> None:
    from skimage.data import lfw_subset

    levels: np.ndarray[Any, Any] = (lfw_subset() * 255).round().astype(np.uint8)  # type: ignore[no-untyped-call]
    known = {image.tobytes(): int(index < 100) for index, image in enumerate(levels)}
    tests = []
    for seed in (0, 1):
        data = ImageDataModule("lfw", seed=seed, val_fraction=0.2)
        assert (data.num_classes, data.image_shape) == (2, (1, 25, 25))
        data.prepare_data()
        data.setup()
        parts = [_cat(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
        assert [len(y) for _, y in parts] == [120, 30, 50]
        assert parts[2][1].sum() == 25
        seen = []
        for x, y in parts:
            images = [(image[0] * 255).round().byte().numpy().tobytes() for image in x]
            assert [known[image] for image in images] == y.tolist()
            seen += images
        assert len(known) == 200
        assert sorted(seen) == sorted(known)
        tests.append(parts[2][0])
    assert torch.equal(tests[0], tests[1])


def test_faces_of_another_size_are_interpolated() -> None:
    data, plain = ImageDataModule("lfw", image_size=32), ImageDataModule("lfw")
    assert data.image_shape == (1, 32, 32)
    for each in (data, plain):
        each.setup("test")
    x, before = _cat(data.test_dataloader())[0], _cat(plain.test_dataloader())[0]
    expected = torch.nn.functional.interpolate(before, size=32, mode="bilinear", antialias=True)
    assert (x - expected).abs().max() <= 0.501 / 255


def test_lfw_without_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"lfw_subset ships with scikit-image: `pip install \"pl_robust\[inr\]\"`"):
        ImageDataModule("lfw").setup("fit")


@pytest.mark.parametrize("in_memory", [None, False])
@pytest.mark.parametrize("gray", [False, True])
def test_celeba_is_cropped_and_resized_as_published(
    gray: bool, in_memory: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smiles = _write_celeba(tmp_path, monkeypatch)
    data = ImageDataModule("celeba", data_dir=tmp_path, image_size=64, gray=gray, in_memory=in_memory)
    assert (data.num_classes, data.image_shape) == (2, (1 if gray else 3, 64, 64))
    data.prepare_data()  # finds everything there
    data.setup()
    parts = [_cat(loader)[1] for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert [len(y) for y in parts] == [12, 5, 7]
    assert parts[1].tolist() + parts[2].tolist() == smiles[12:]
    assert parts[0].sum() == sum(smiles[:12])
    x, _ = _cat(data.test_dataloader())
    with Image.open(tmp_path / "celeba" / "img_align_celeba" / "000018.jpg") as opened:
        image = opened.convert("L" if gray else "RGB")
    square = image.crop((0, 20, 178, 198)).resize((64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(x[0], to_tensor(square))


def test_celeba_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_celeba(tmp_path, monkeypatch)
    data = ImageDataModule("celeba", data_dir=tmp_path)
    assert data.image_shape == (3, 218, 178)
    data.setup("test")
    x, y = _cat(data.test_dataloader())
    reference = list(datasets.CelebA(str(tmp_path), split="test"))
    assert torch.equal(x, torch.stack([to_tensor(image) for image, _ in reference]))
    assert y.tolist() == [int(attributes[1]) for _, attributes in reference]


def test_missing_celeba_names_the_folder_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"`data_dir`='nowhere' holds no complete celeba data.*download=True"):
        ImageDataModule("celeba", data_dir="nowhere").setup("fit")

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", no_network)
    with pytest.raises(AssertionError, match="a download was started"):
        ImageDataModule("celeba", data_dir=tmp_path).prepare_data()
    ImageDataModule("celeba", data_dir=tmp_path, download=False).prepare_data()


def test_gray_is_the_luminance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write("cifar10", tmp_path / "data", monkeypatch)
    _write_folder(tmp_path / "folder")
    for name, root in (("cifar10", "data"), ("imagefolder", "folder")):
        pair = [ImageDataModule(name, data_dir=tmp_path / root, gray=gray, download=False) for gray in (False, True)]  # type: ignore[arg-type]
        for data in pair:
            data.setup("test")
        colours, gray = (_cat(data.test_dataloader())[0] for data in pair)
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        assert pair[1].image_shape == tuple(gray.shape[1:]) == (1, *colours.shape[2:])
        assert (gray - (colours * weights).sum(1, keepdim=True)).abs().max() <= 0.51 / 255
    white = luminance(torch.full((2, 3, 4, 5), 255, dtype=torch.uint8))
    assert torch.equal(white, torch.full((2, 1, 4, 5), 255, dtype=torch.uint8))
    data = ImageDataModule("digits", gray=True)
    assert data.image_shape == (1, 8, 8)
    data.setup("test")
    assert data.test_dataloader().dataset[0][0].shape == (1, 8, 8)


# sizes


@pytest.mark.parametrize("size", [4, 8, 16, 25])
def test_digits_of_another_size_are_interpolated(size: int) -> None:
    data = ImageDataModule("digits", image_size=size)
    assert data.image_shape == (1, size, size)
    data.setup("test")
    x, y = _cat(data.test_dataloader())
    small = ImageDataModule("digits")
    small.setup("test")
    before, labels = _cat(small.test_dataloader())
    assert torch.equal(y, labels)
    assert x.shape == (497, 1, size, size)
    torch.testing.assert_close(x * 255, (x * 255).round(), atol=1e-4, rtol=0)  # levels of 8 bits
    expected = torch.nn.functional.interpolate(before, size=size, mode="bilinear", antialias=True)
    assert (x - expected).abs().max() <= 0.501 / 255
    if size == 8:
        assert (x - before).abs().max() <= 0.501 / 255


def test_larger_digits_are_shifted_further() -> None:
    for size, furthest in ((None, 1), (16, 2), (32, 4)):
        data = ImageDataModule("digits", image_size=size, augment=True)
        data.setup("fit")
        plain = ImageDataModule("digits", image_size=size)
        plain.setup("fit")
        still = plain.train_dataloader().dataset
        shifted = data.train_dataloader().dataset
        shifts = set()
        for index in range(60):
            x, y = still[index][0][0], shifted[index][0][0]
            padded = torch.nn.functional.pad(x, (furthest,) * 4)
            side = len(x)
            found = [
                (row, column)
                for row in range(2 * furthest + 1)
                for column in range(2 * furthest + 1)
                if torch.equal(padded[row : row + side, column : column + side], y)
            ]
            assert found
            shifts.update(found if len(found) == 1 else [])
        assert {row for row, _ in shifts} == set(range(2 * furthest + 1))


def test_images_of_other_sizes_need_image_size(tmp_path: Path) -> None:
    _write_folder(tmp_path, sizes=((12, 10), (20, 30)))
    with pytest.raises(ValueError, match=r"size of the first, \(10, 12\).*has \(30, 20\); give `image_size=`"):
        ImageDataModule("imagefolder", data_dir=tmp_path).setup("fit")
    data = ImageDataModule("imagefolder", data_dir=tmp_path, image_size=8)
    data.setup("test")
    x, _ = _cat(data.test_dataloader())
    with Image.open(tmp_path / "test" / "ant" / "1.png") as image:
        expected = vision.center_crop(vision.resize(image, [8]), [8])
    assert data.image_shape == (3, 8, 8)
    assert torch.equal(x[1], to_tensor(expected))


def test_test_images_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    # Class numbers by position in each folder would silently shift all labels behind it.
    _write_folder(tmp_path)
    (tmp_path / "test" / "bat").mkdir()
    with pytest.raises(ValueError, match=r"classes that .*train has not: \['bat'\]"):
        ImageDataModule("imagefolder", data_dir=tmp_path).setup("test")


def test_a_class_without_test_images_keeps_the_other_labels(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    for file in (tmp_path / "test" / "ant").iterdir():
        file.unlink()
    (tmp_path / "test" / "ant").rmdir()
    data = ImageDataModule("imagefolder", data_dir=tmp_path)
    data.setup("test")
    assert _cat(data.test_dataloader())[1].tolist() == [1] * 6 + [2] * 6


def test_missing_folders_are_named(tmp_path: Path) -> None:
    data = ImageDataModule("imagefolder", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="found no class folder there; `data_dir`"):
        _ = data.num_classes
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no image in its class folders"):
        data.setup("fit")
    with pytest.raises(FileNotFoundError, match=r"keeps its test images in .*which does not exist"):
        data.setup("test")


# augmentation and the batched data set


def test_crop_and_flip_is_torchvisions_for_the_same_draws() -> None:
    images = torch.randint(0, 256, (32, 3, 8, 10), dtype=torch.uint8)
    out = crop_and_flip(images, 2, True, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    top, left = (torch.randint(5, (32, 1), generator=generator) for _ in range(2))
    flip = torch.rand((32, 1), generator=generator) < 0.5
    assert 0 < flip.sum() < 32
    for index, image in enumerate(images):
        crop = vision.crop(vision.pad(image, [2]), int(top[index]), int(left[index]), 8, 10)
        assert torch.equal(out[index], vision.horizontal_flip(crop) if flip[index] else crop)


@pytest.mark.parametrize(("flip", "expected"), [(True, {0, 1}), (False, {0})])
def test_shifts_are_uniform_and_flips_optional(flip: bool, expected: set[int]) -> None:
    images = torch.zeros(4000, 1, 5, 5)
    images[:, 0, 2, 1:3] = torch.tensor([1.0, 2.0])  # which of the two is on the left tells the flip
    out = crop_and_flip(images, 1, flip)[:, 0]
    rows = out.sum(2).argmax(1)
    assert torch.allclose(rows.bincount(minlength=5)[1:4] / 4000, torch.full((3,), 1 / 3), atol=0.04)
    flipped = out.argmax(2).amax(1) < (out == 1).float().argmax(2).amax(1)
    assert set(flipped.long().tolist()) == expected


def test_only_training_images_are_augmented() -> None:
    data = ImageDataModule("digits", augment=True)
    data.setup()
    plain = ImageDataModule("digits")
    plain.setup()
    assert torch.equal(_cat(data.val_dataloader())[0], _cat(plain.val_dataloader())[0])
    assert torch.equal(_cat(data.test_dataloader())[0], _cat(plain.test_dataloader())[0])
    stock = {image.numpy().tobytes() for image in _cat(plain.train_dataloader())[0]}
    drawn = [image.numpy().tobytes() in stock for image in _cat(data.train_dataloader())[0]]
    assert 0.05 < sum(drawn) / len(drawn) < 0.5  # a shift of (0, 0) has probability 1/9; a few images have wide margins


@pytest.mark.slow  # once a Trainer has run, torch takes its full five seconds to give each worker up
def test_augmentation_in_workers_differs_between_epochs() -> None:
    data = ImageDataModule("digits", augment=True, num_workers=1, batch_size=1300, val_fraction=0)
    data.setup("fit")
    loader = data.train_dataloader()
    sums = [x.sum() for _ in range(2) for x, _ in loader]
    assert sums[0] != sums[1]


def test_batches_are_fetched_at_once_and_samples_agree() -> None:
    images, labels = torch.randint(0, 256, (9, 1, 4, 4), dtype=torch.uint8), torch.arange(9)
    dataset = ImageDataset(images, labels)
    x, y = dataset.__getitems__([7, 2])
    assert torch.equal(x, images[[7, 2]].float() / 255)
    assert y.tolist() == [7, 2]
    assert torch.equal(dataset[2][0], x[1])
    assert dataset[2][1].shape == ()
    calls = []
    dataset.__getitems__ = lambda indices: calls.append(len(indices)) or (x, y)  # type: ignore[method-assign, func-returns-value]
    list(DataLoader(Subset(dataset, range(8)), batch_size=4, collate_fn=collate_images))
    assert calls == [4, 4]


def test_a_data_set_around_ours_still_collates() -> None:
    class WithIndex(Dataset[Any]):
        def __init__(self, inner: ImageDataset) -> None:
            self.inner = inner

        def __len__(self) -> int:
            return len(self.inner)

        def __getitem__(self, index: int) -> Any:
            return (*self.inner[index], index)

    images, labels = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6)
    loader = DataLoader(WithIndex(ImageDataset(images, labels)), batch_size=6, collate_fn=collate_images)
    x, y, index = next(iter(loader))
    assert torch.equal(x, images.float() / 255)
    assert torch.equal(y, index)


# arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "imagenet"}, ValueError, "`name` must be one of digits, .*, got 'imagenet'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "`batch_size` must be an integer, got 2.5"),
        ({"eval_batch_size": -1}, ValueError, "`eval_batch_size` must be at least 1, got -1"),
        ({"val_fraction": 1.0}, ValueError, r"`val_fraction` must be in \[0, 1\), got 1.0; 0 switches validation off"),
        ({"val_fraction": -1}, ValueError, r"`val_fraction` must be in \[0, 1\), got -1; 0 switches"),
        ({"val_fraction": "10%"}, TypeError, "`val_fraction` must be a number, got '10%'"),
        ({"num_workers": -1}, ValueError, "`num_workers` must be at least 0, got -1"),
        ({"num_workers": 1.5}, TypeError, "`num_workers` must be an integer, got 1.5"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        (
            {"name": "mnist", "image_size": 16},
            ValueError,
            "is for celeba, imagefolder, digits, lfw, got 16 for 'mnist'",
        ),
        ({"name": "lfw", "image_size": 0}, ValueError, "`image_size` must be at least 1, got 0"),
        ({"image_size": 8.5}, TypeError, "`image_size` must be an integer, got 8.5"),
        ({"name": "imagefolder", "image_size": -2}, ValueError, "`image_size` must be at least 1, got -2"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageDataModule(**{"name": "digits", **arguments})


def test_refuses_a_fraction_that_leaves_no_image_and_a_wrong_stage() -> None:
    data = ImageDataModule("digits", val_fraction=0.0001)
    with pytest.raises(ValueError, match="of 1300 training images is 0 images"):
        data.setup("fit")
    with pytest.raises(ValueError, match="`stage` must be fit, validate, test, predict or None, got 'train'"):
        data.setup("train")

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from pl_robust.transforms import DCTLowPass, dct_low_pass

SIZES: list[tuple[tuple[int, ...], Any]] = [
    ((4, 3, 32, 32), 16),
    ((2, 3, 32, 28), (16, 5)),
    ((5, 9, 20), (2, 20)),
    ((7, 1), 1),
    ((2, 2, 3, 8, 6), 3),
    ((1, 1, 8, 8), 7),
]


def _by_scipy(x: Tensor, bandwidth: int | tuple[int, int]) -> Tensor:
    rows, columns = (bandwidth, bandwidth) if isinstance(bandwidth, int) else bandwidth
    coefficients = dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")
    coefficients[..., rows:, :] = 0
    coefficients[..., :, columns:] = 0
    return torch.from_numpy(np.asarray(idctn(coefficients, axes=(-2, -1), norm="ortho")))


def _energy(x: Tensor) -> Tensor:
    """Share of each coefficient in the energy: [H, W]."""
    squares = torch.from_numpy(np.square(dctn(x.double().numpy(), axes=(-2, -1), norm="ortho")))
    return squares.flatten(0, -3).sum(0) / squares.sum()


# the filter


@pytest.mark.parametrize(("shape", "bandwidth"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_is_scipys_dct_with_a_mask(
    shape: tuple[int, ...], bandwidth: int | tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.rand(shape, dtype=dtype)
    filtered = dct_low_pass(x, bandwidth)
    assert filtered.dtype == dtype
    assert filtered.shape == x.shape
    torch.testing.assert_close(filtered.double(), _by_scipy(x, bandwidth), atol=tolerance, rtol=0)


def test_cuts_rows_and_columns() -> None:
    # The released mask cuts channels and rows, and leaves half of white noise's energy at columns >= 16.
    energy = _energy(dct_low_pass(torch.randn(8, 3, 32, 32), 16))
    assert energy[16:, :].sum() < 1e-12
    assert energy[:, 16:].sum() < 1e-12
    assert (energy[:16, :16] > 1e-5).all()


def test_height_and_width_are_not_swapped() -> None:
    energy = _energy(dct_low_pass(torch.randn(8, 3, 32, 32), (4, 20)))
    assert energy[4:, :].sum() < 1e-12
    assert energy[:, 20:].sum() < 1e-12
    assert (energy[:4, :20] > 1e-5).all()


@pytest.mark.parametrize("size", [(32, 32), (8, 6), (1, 5)])
def test_a_bandwidth_of_the_size_changes_nothing(size: tuple[int, int]) -> None:
    x = torch.rand(3, 2, *size)
    torch.testing.assert_close(dct_low_pass(x, size), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "bandwidth"), SIZES)
def test_a_second_time_changes_nothing(shape: tuple[int, ...], bandwidth: int | tuple[int, int]) -> None:
    once = dct_low_pass(torch.rand(shape), bandwidth)
    torch.testing.assert_close(dct_low_pass(once, bandwidth), once, atol=1e-6, rtol=0)


def test_is_linear_and_self_adjoint() -> None:
    x, z = torch.randn(2, 3, 9, 12, dtype=torch.float64), torch.randn(2, 3, 9, 12, dtype=torch.float64)
    filtered = dct_low_pass(x, (4, 5))
    torch.testing.assert_close(dct_low_pass(2 * x - z, (4, 5)), 2 * filtered - dct_low_pass(z, (4, 5)))
    torch.testing.assert_close((filtered * z).sum(), (x * dct_low_pass(z, (4, 5))).sum())


def test_bandwidth_one_is_the_mean_of_each_channel() -> None:
    x = torch.rand(4, 3, 8, 6)
    torch.testing.assert_close(dct_low_pass(x, 1), x.mean((-2, -1), keepdim=True).expand_as(x), atol=1e-6, rtol=0)


def test_overshoots_at_an_edge_and_is_not_clipped() -> None:
    x = torch.zeros(1, 1, 32, 32)
    x[..., 16:] = 1
    filtered = dct_low_pass(x, 8)
    assert filtered.max() > 1.05
    assert filtered.min() < -0.05


# the tensors it takes


def test_images_do_not_see_each_other() -> None:
    x = torch.rand(5, 3, 8, 8)
    together = dct_low_pass(x, 3)
    alone = torch.stack([dct_low_pass(image, 3) for image in x])
    assert dct_low_pass(x[:1], 3).shape == (1, 3, 8, 8)  # the released code gives [3, 8, 8]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert dct_low_pass(x[:0], 3).shape == (0, 3, 8, 8)


def test_the_input_stays_as_it_is() -> None:
    for x in (torch.rand(2, 3, 8, 8), torch.rand(8, 8), torch.rand(2, 8, 8, 3).permute(0, 3, 1, 2)):
        before = x.clone()
        filtered = dct_low_pass(x, 8)
        assert torch.equal(x, before)
        assert filtered.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, 32, 32).to(dtype)
    assert torch.equal(dct_low_pass(x, 16), dct_low_pass(x.float(), 16).to(dtype))


def test_autocast_does_not_change_a_bit() -> None:
    x = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x[0, 0] @ x[0, 0]).dtype == torch.bfloat16
        filtered = dct_low_pass(x, 16)
    assert torch.equal(filtered, dct_low_pass(x, 16))


def test_gradient_is_the_filtered_gradient() -> None:
    x = torch.rand(2, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((dct_low_pass(x, (3, 2)) * weight).sum(), x)
    torch.testing.assert_close(gradient, dct_low_pass(weight, (3, 2)))


def test_a_first_call_in_inference_mode_spoils_no_later_gradient() -> None:
    x = torch.rand(2, 1, 19, 17)  # a size of this test alone
    with torch.inference_mode():
        dct_low_pass(x, 5)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(dct_low_pass(x, 5).square().sum(), x)
    torch.testing.assert_close(gradient, 2 * dct_low_pass(x, 5).detach(), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_a_break_or_a_warning(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # the compiler would set it for good
        compiled = torch.compile(DCTLowPass(3), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), dct_low_pass(x, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gives_the_same_on_a_gpu() -> None:
    x = torch.rand(2, 3, 32, 28)
    filtered = dct_low_pass(x.cuda(), (16, 5))
    assert filtered.is_cuda
    torch.testing.assert_close(filtered.cpu(), dct_low_pass(x, (16, 5)), atol=1e-6, rtol=0)


# the layer


def test_layer_stands_before_a_network() -> None:
    x = torch.rand(2, 3, 8, 8)
    layer, head = DCTLowPass((3, 4)), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    assert torch.equal(nn.Sequential(layer, head)(x), head(dct_low_pass(x, (3, 4))))
    assert list(layer.state_dict()) == list(layer.parameters()) == []
    assert repr(layer) == "DCTLowPass(bandwidth=(3, 4))"
    assert repr(DCTLowPass(16)) == "DCTLowPass(bandwidth=16)"


# what it refuses


@pytest.mark.parametrize(
    ("bandwidth", "error", "message"),
    [
        (0, ValueError, "`bandwidth` must be at least 1, got 0"),
        ((16, -1), ValueError, "`bandwidth` must be at least 1, got -1"),
        (2.0, TypeError, "`bandwidth` must be an integer, got 2.0"),
        (True, TypeError, "`bandwidth` must be an integer, got True"),
        ("16", TypeError, "`bandwidth` must be an integer, got '16'"),
        ((8, 8, 8), ValueError, r"an integer or two of them \(height, width\), got \(8, 8, 8\)"),
    ],
)
def test_refuses_a_bandwidth_at_once(bandwidth: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DCTLowPass(bandwidth)
    with pytest.raises(error, match=message):
        dct_low_pass(torch.rand(1, 1, 32, 32), bandwidth)


@pytest.mark.parametrize(
    ("x", "bandwidth", "error", "message"),
    [
        (torch.rand(2, 3, 8, 8), 9, ValueError, "at most the size of the images, 8x8, got 9; one as large as the size"),
        (torch.rand(2, 3, 8, 6), (8, 7), ValueError, r"the size of the images, 8x6, got \(8, 7\)"),
        (torch.rand(2, 3, 6, 8), (7, 8), ValueError, r"the size of the images, 6x8, got \(7, 8\)"),
        (torch.zeros(1, 8, 8).byte(), 4, TypeError, r"`x` must be float \[..., H, W\], got torch.uint8"),
        (torch.rand(8), 4, ValueError, r"`x` must be float \[..., H, W\], got shape \[8\]"),
    ],
)
def test_refuses_images(x: Tensor, bandwidth: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DCTLowPass(bandwidth)(x)

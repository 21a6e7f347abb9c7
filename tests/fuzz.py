"""What the fuzz tests share: properties in two tiers, hostile tensors, and when an error speaks."""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pl_robust

T = TypeVar("T")

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided", "sliced", "expanded")
CONTEXTS = ("grad", "no_grad", "inference")
SEEDS = st.integers(0, 2**32 - 1)
NOT_NUMBERS: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, "", "eight", "8/0", 1j, [], "nan", float("nan"), float("inf"), -1.0, "-1/2"]
)
"""What no length, weight or temperature can be."""

_CAME = ("got", "holds", "cannot take", "fails for", "in training mode", "has no values")
"""Words that say what came."""

counts: dict[str, int] = {}
"""How many examples each property is tried on in the slow tier."""

# More examples, on seeds that differ from run to run: PL_ROBUST_FUZZ=10 pytest -m slow -k fuzz
_TIMES = int(os.environ.get("PL_ROBUST_FUZZ", "0"))


def fuzz(many: int, few: int = 3, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Make a test of a property: on a few examples, and on many in the slow tier; always the same ones."""

    def make(holds: Callable[..., None]) -> Any:
        name = f"{holds.__module__}.{holds.__qualname__}"
        counts[name] = many

        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            ran = 0

            def counted(**drawn: Any) -> None:
                nonlocal ran
                holds(**drawn)
                ran += 1

            counted.__qualname__ = counted.__name__ = holds.__name__
            examples *= max(1, _TIMES)
            how = settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=not _TIMES,
                suppress_health_check=list(HealthCheck),
            )
            how(given(**strategies)(counted))()
            assert ran >= examples or _TIMES, f"only {ran} examples of {name} were worth a try"

        test.__name__, test.__qualname__ = holds.__name__, holds.__qualname__
        test.__module__, test.__doc__ = holds.__module__, holds.__doc__
        return test

    return make


def speaks(error: BaseException, *names: str) -> bool:
    """Tell whether an error is one of ours that helps: raised on purpose, names the argument, says what came.

    Args:
        error: as it was caught.
        names: of which one must be told.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or type(error) not in (TypeError, ValueError):
        return False
    file = trace.tb_frame.f_code.co_filename
    is_ours = Path(file).is_relative_to(Path(pl_robust.__file__).parent)
    is_raised = linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise")
    text = str(error)
    return is_ours and is_raised and any(name in text for name in names) and any(said in text for said in _CAME)


def outcome(call: Callable[[], T], *names: str) -> T | None:
    """What a call gives, or None where it refuses with an error that speaks; any other error goes on."""
    try:
        return call()
    except Exception as error:
        if not speaks(error, *names):
            raise
        return None


def noise(seed: int, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), float64."""
    return torch.rand(shape, generator=source(seed), dtype=torch.float64)


def source(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values another way in memory; "expanded" repeats the first sample, which changes the others' values."""
    if layout == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([x, 1 - x], -1).flatten(-2)[..., ::2]
    if layout == "sliced":
        return torch.cat([1 - x, x, 1 - x])[len(x) : 2 * len(x)]
    return x[:1].expand_as(x) if layout == "expanded" and len(x) else x


@st.composite
def batches(
    draw: st.DrawFn,
    *,
    channels: st.SearchStrategy[int] = st.integers(1, 4),  # noqa: B008  # strategies are constants
    sides: st.SearchStrategy[int] = st.integers(1, 7),  # noqa: B008
    least: int = 0,
    most: int = 4,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
) -> Tensor:
    """Images [B, C, H, W] in [0, 1], some of whose values are at the ends; of any float dtype and layout."""
    shape = draw(st.integers(least, most)), draw(channels), draw(sides), draw(sides)
    x = noise(draw(SEEDS), *shape)
    if draw(st.booleans()):
        x = (x * 3 - 1).clamp(0, 1)
    return lay_out(x.to(draw(st.sampled_from(dtypes))), draw(st.sampled_from(LAYOUTS)))


def inside(context: str) -> Any:
    """A context of ``CONTEXTS``."""
    return {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}[context]()


def made_inside(context: str, x: Tensor) -> Tensor:
    """A tensor as that context has it: one with grad, one without, or an inference tensor; its layout kept."""
    if context == "inference":
        with torch.inference_mode():
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) if _is_dense(x) else x.clone()
    return x.detach().requires_grad_(context == "grad" and x.is_floating_point())


def _is_dense(x: Tensor) -> bool:
    return not any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))


@contextmanager
def untouched(*tensors: Tensor, net: nn.Module | None = None, buffers: bool = True) -> Iterator[None]:
    """Fail if a tensor, a net's parameters, gradients, flags or buffers, or the global generator change inside."""

    def state() -> list[Any]:
        parameters = [] if net is None else [*net.parameters()]
        kept = [*tensors, *parameters, *(p.grad for p in parameters if p.grad is not None), torch.get_rng_state()]
        kept += [*net.buffers()] if net is not None and buffers else []
        flags = (
            [] if net is None else [(part.training, getattr(part, "track_running_stats", 0)) for part in net.modules()]
        )
        return [flags, *(tensor.detach().clone() for tensor in kept)]

    before = state()
    yield
    after = state()
    assert before[0] == after[0]
    for one, other in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from pl_robust.attacks import FGSM, NFGSM, PGD, Attack, fgsm, nfgsm, pgd
from tests.fuzz import (
    CONTEXTS,
    FLOATS,
    LAYOUTS,
    NOT_NUMBERS,
    SEEDS,
    batches,
    fuzz,
    inside,
    lay_out,
    made_inside,
    noise,
    outcome,
    source,
    untouched,
)

CLASSES = 3
KINDS = ("fgsm", "rs-fgsm", "nfgsm", "pgd", "restarts", "early-stop")
RADII = st.one_of(
    st.sampled_from([0, 0.0, 1e-12, "8/255", "1e-3", 1 / 3, 1, torch.tensor(0.1)]),
    st.floats(0, 1, allow_subnormal=False),
)
WIDE = st.one_of(RADII, st.sampled_from([1e6, 30.0, "7"]))


class Net(nn.Module):
    """Smooth, with batch-norm, for images of any size; in float64, whatever it is given."""

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, CLASSES)
            for parameter in self.parameters():
                nn.init.normal_(parameter)
        self.double()
        for parameter in self.parameters():
            parameter.grad = torch.ones_like(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.softplus(self.norm(self.conv(x.double())))
        # Not the plain mean, whose gradient is the same for all pixels.
        weights = torch.linspace(0.5, 2, x.shape[2] * x.shape[3], dtype=x.dtype).reshape(x.shape[2:])
        logits: Tensor = self.head((x * weights).mean((2, 3)))
        return logits


def make(kind: str, eps: Any, **arguments: Any) -> Attack:
    if kind in ("fgsm", "rs-fgsm"):
        return FGSM(eps, random_start=kind == "rs-fgsm", **arguments)
    if kind == "nfgsm":
        return NFGSM(eps, k=1.5, **arguments)
    return PGD(eps, steps=2, restarts=2 if kind == "restarts" else 1, early_stop=kind == "early-stop", **arguments)


def run(kind: str, *batch: Any, eps: Any, **arguments: Any) -> Tensor:
    """The same by the functions."""
    if kind in ("fgsm", "rs-fgsm"):
        return fgsm(*batch, eps=eps, random_start=kind == "rs-fgsm", **arguments)
    if kind == "nfgsm":
        return nfgsm(*batch, eps=eps, k=1.5, **arguments)
    restarts = 2 if kind == "restarts" else 1
    return pgd(*batch, eps=eps, steps=2, restarts=restarts, early_stop=kind == "early-stop", **arguments)


def labels(seed: int, count: int) -> Tensor:
    return (noise(seed, count) * CLASSES).long()


def number(eps: Any) -> float:
    parts = str(eps).split("/") if isinstance(eps, str) else [eps]
    return float(parts[0]) / (float(parts[1]) if len(parts) == 2 else 1)


def sizes(delta: Tensor, norm: str) -> Tensor:
    flat = delta.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@fuzz(
    1200,
    6,
    x=batches(),
    seed=SEEDS,
    kind=st.sampled_from(KINDS),
    norm=st.sampled_from(["linf", "l2"]),
    eps=WIDE,
    bounds=st.sampled_from([(0.0, 1.0), (-0.5, 2), None]),
    normalized=st.booleans(),
    batch_norm=st.sampled_from(["train", "eval", "batch_stats"]),
    training=st.booleans(),
    context=st.sampled_from(CONTEXTS),
)
def test_x_adv_is_in_the_ball_and_the_box_and_nothing_else_moves(
    x: Tensor,
    seed: int,
    kind: str,
    norm: str,
    eps: Any,
    bounds: tuple[float, float] | None,
    normalized: bool,
    batch_norm: Any,
    training: bool,
    context: str,
) -> None:
    radius = number(eps)
    assume(norm == "l2" or bounds is None or radius <= bounds[1] - bounds[0])
    assume(bounds is not None or x.dtype != torch.float16 or radius < 1e4)  # beyond they are refused: test_fgsm.py
    channels = x.shape[1]
    mean, std = [0.4 + 0.1 * i for i in range(channels)], [0.5 / (1 + i) for i in range(channels)]
    shift, scale = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (mean, std))
    x = made_inside(context, ((x - shift) / scale).to(x.dtype) if normalized else x)
    y, net = made_inside(context, labels(seed, len(x))), Net(channels).train(training)
    # Of one value there is no variance, and early stopping may leave one sample.
    assume(not training or batch_norm == "eval" or (len(x) > 1 and kind != "early-stop") or x[0:1, 0].numel() != 1)
    arguments: dict[str, Any] = {
        "norm": norm, "bounds": bounds, "batch_norm": batch_norm, "normalization": (mean, std) if normalized else None
    }  # fmt: skip
    is_moving = training and batch_norm == "train"
    with inside(context), untouched(x, y, net=net, buffers=not is_moving):
        x_adv = make(kind, eps, **arguments)(net, x, y, generator=source(seed))
        again = run(kind, net, x, y, eps=eps, **arguments, generator=source(seed))
    assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
    assert x_adv.isfinite().all()
    if not is_moving or kind not in ("restarts", "early-stop"):
        torch.testing.assert_close(again, x_adv, rtol=0, atol=0)
    if not len(x):
        return
    clean, perturbed = (t.double() * scale + shift if normalized else t.double() for t in (x.detach(), x_adv))
    unit = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps if x.dtype != torch.float64 else 0.0)
    rounding = (
        4
        * unit
        * max(1.0, *(float(t.max()) for t in (perturbed.abs(), x_adv.double().abs().amax((0, 2, 3)) * scale.flatten())))
    )
    reach = radius * (2.5 if kind == "nfgsm" else 1)
    many = math.sqrt(clean[0].numel()) if norm == "l2" else 1.0
    assert (sizes(perturbed - clean, norm) <= reach * (1 + 1e-5) + many * rounding).all()
    if bounds is not None:
        assert perturbed.min() >= bounds[0] - rounding
        assert perturbed.max() <= bounds[1] + rounding


@fuzz(
    400,
    x=batches(least=1),
    seed=SEEDS,
    kind=st.sampled_from(KINDS),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(1e-3, 0.5),
    layout=st.sampled_from(LAYOUTS[:-1]),
)
def test_the_layout_in_memory_does_not_matter(
    x: Tensor, seed: int, kind: str, norm: str, eps: float, layout: str
) -> None:
    y, net = labels(seed, len(x)), Net(x.shape[1]).eval()
    one, other = (
        make(kind, eps, norm=norm)(net, same, y, generator=source(seed))
        for same in (x.contiguous(), lay_out(x, layout))
    )
    unit = max(torch.finfo(x.dtype).eps, 1e-6 if x.dtype != torch.float64 else 0.0)
    torch.testing.assert_close(one, other, rtol=0, atol=4 * unit)


@fuzz(
    300,
    x=batches(least=2, dtypes=FLOATS[:2]),
    seed=SEEDS,
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0, 1),
    kind=st.sampled_from(["fgsm", "plain", "early-stop"]),
)
def test_in_eval_mode_a_sample_does_not_depend_on_the_others(
    x: Tensor, seed: int, norm: Any, eps: float, kind: str
) -> None:
    y, net = labels(seed, len(x)), Net(x.shape[1]).eval()
    attack: Attack = FGSM(eps, norm=norm)
    if kind != "fgsm":
        attack = PGD(eps, norm=norm, steps=3, random_start=False, early_stop=kind == "early-stop")
    alone = torch.cat([attack(net, *pair) for pair in zip(x[:, None], y[:, None], strict=True)])
    torch.testing.assert_close(attack(net, x, y), alone, rtol=0, atol=1e-5)


@fuzz(200, x=batches(dtypes=FLOATS[:2]), seed=SEEDS, eps=st.floats(0, 1), norm=st.sampled_from(["linf", "l2"]))
def test_early_stop_saves_work_and_changes_no_accuracy(x: Tensor, seed: int, eps: float, norm: Any) -> None:
    y, net = labels(seed, len(x)), Net(x.shape[1]).eval()
    fooled = []
    for early_stop in (False, True):
        x_adv = pgd(net, x, y, eps=eps, norm=norm, steps=2, restarts=3, early_stop=early_stop, generator=source(seed))
        fooled.append(net(x_adv).argmax(1) != y)
    assert torch.equal(*fooled)
    assert (fooled[0] | (net(x).argmax(1) == y) | torch.tensor(eps > 0)).all()


class Diverging(nn.Module):
    """NaN for the samples whose first value is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :1] * torch.tensor([1.0, -1.0, 0.5])
        return torch.where(x.flatten(1)[:, :1] > 0.5, torch.nan, logits)


@fuzz(
    200,
    x=batches(least=1, dtypes=(torch.float32, torch.float16)),
    seed=SEEDS,
    kind=st.sampled_from(KINDS),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_nan_is_refused_by_its_sample_and_without_checks_stays_in_it(
    x: Tensor, seed: int, kind: str, value: float
) -> None:
    y, net = labels(seed, len(x)), Net(x.shape[1]).eval()
    broken, bad = x.clone(), seed % len(x)
    broken[bad, 0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"`x` holds NaN or infinite values in samples \[{bad}\]"):
        run(kind, net, broken, y, eps=0.1)
    one, other = (run(kind, net, same, y, eps=0.1, check=False, generator=source(seed)) for same in (x, broken))
    others = torch.arange(len(x)) != bad
    torch.testing.assert_close(one[others], other[others], rtol=0, atol=2e-3)
    assert math.isinf(value) or other[bad].isnan().any()


GOOD: dict[str, Any] = {"eps": 0.1, "norm": "linf", "bounds": (0.0, 1.0), "normalization": None, "batch_norm": "train"}
BAD: dict[str, st.SearchStrategy[Any]] = {
    "eps": st.one_of(
        NOT_NUMBERS, st.sampled_from([2.0, 1e6, (0.1, -0.1), (0.1, "x"), torch.ones(1, 2), torch.ones(0)])
    ),
    "step_size": st.one_of(NOT_NUMBERS.filter(lambda value: value is not None), st.just((0.1, math.nan))),
    "norm": st.sampled_from(["l1", "", None, 2, ["linf"]]),
    "bounds": st.sampled_from([(1, 0), (0, 0), (0,), 1.0, (0, math.nan), ("0", "1"), (0, 1, 2), (0, None), "01"]),
    "normalization": st.sampled_from(
        [(0.5, 0.5), ([0.5], [0.0]), ([], []), ([math.nan], [1.0]), "mean", ([0.5],), ([1, 2], [1]), ([0], [math.inf])]
    ),
    "batch_norm": st.sampled_from(["test", "", None, True, ["eval"]]),
    "steps": st.sampled_from([0, -1, 2.0, True, None, "3"]),
    "restarts": st.sampled_from([0, -1, 1.5, False, None]),
    "k": st.sampled_from([-1, math.nan, math.inf, True, "2", None, 1j]),
}


@fuzz(
    150,
    10,
    wrong=st.sampled_from(sorted(BAD)).flatmap(lambda name: st.tuples(st.just(name), BAD[name])),
    kind=st.sampled_from(["fgsm", "nfgsm", "pgd"]),
)
def test_bad_arguments_are_refused_with_their_names(wrong: tuple[str, Any], kind: str) -> None:
    name, value = wrong
    kind = {"k": "nfgsm", "steps": "pgd", "restarts": "pgd"}.get(name, kind)
    forms: dict[str, tuple[Any, Any]] = {"f": (FGSM, fgsm), "n": (NFGSM, nfgsm), "p": (PGD, pgd)}
    attack, function = forms[kind[0]]
    arguments = {**GOOD, name: value}
    arguments.pop("step_size") if arguments.get("step_size", 0) is None else None
    assert outcome(lambda: attack(**arguments), f"`{name}`") is None
    batch = Net(1).eval(), torch.rand(2, 1, 3, 3), torch.tensor([0, 1])
    assert outcome(lambda: function(*batch, **arguments), f"`{name}`") is None


X = torch.rand(2, 1, 3, 3)
Y = torch.tensor([0, 1])
BAD_BATCHES: list[tuple[Any, Any]] = [
    ((X * 255).byte(), Y), (X > 0.5, Y), (X.numpy(), Y), (X[0, 0, 0], Y), (torch.tensor(0.5), Y), (X + 0j, Y),
    (X, Y.float()), (X, Y > 0), (X, Y + 0j), (X, Y.to(torch.complex128)), (X, [0, 1]), (X, Y[:1]), (X, Y[:, None]),
    (X, Y + 2), (X, Y - 1), (X, torch.tensor(0)), (X * 2, Y), (X - 1, Y), (X, Y - 100), (None, Y), (X[:, :, :0] - 1,
      Y[:1]),
]  # fmt: skip


@fuzz(120, 5, batch=st.sampled_from(BAD_BATCHES), kind=st.sampled_from(KINDS), norm=st.sampled_from(["linf", "l2"]))
def test_bad_batches_are_refused(batch: tuple[Any, Any], kind: str, norm: str) -> None:
    names = ("`x`", "`y`", "labels")
    assert outcome(lambda: run(kind, Net(1).eval(), *batch, eps=0.1, norm=norm), *names) is None
    assert outcome(lambda: make(kind, 0.1, norm=norm)(Net(1).eval(), *batch), *names) is None


@fuzz(
    150,
    shape=st.sampled_from(
        [(2, 1, 0, 3), (2, 0, 3, 3), (0, 1, 0, 3), (2, 0), (0, 5), (2, 5), (2, 3, 4), (2, 1, 2, 2, 2)]
    ),
    kind=st.sampled_from(KINDS),
    norm=st.sampled_from(["linf", "l2"]),
    seed=SEEDS,
)
def test_inputs_of_any_number_of_axes_or_without_entries(
    shape: tuple[int, ...], kind: str, norm: str, seed: int
) -> None:
    x, y = noise(seed, *shape), labels(seed, shape[0])
    x_adv = run(kind, lambda x: x.flatten(1).cos().sum(1)[:, None] * torch.arange(CLASSES), x, y, eps=0.1, norm=norm)
    assert x_adv.shape == x.shape
    assert not x.numel() or (sizes(x_adv - x, norm) <= 0.25 + 1e-6).all()


@fuzz(100, factor=st.one_of(st.floats(0, 2), NOT_NUMBERS), eps=st.floats(0, 1), step=st.none() | st.floats(0, 1))
def test_scaled_attacks_have_scaled_lengths(factor: Any, eps: float, step: float | None) -> None:
    attack = outcome(lambda: PGD(eps, step_size=step).scaled(factor), "`factor`", "`eps`")
    is_good = isinstance(factor, float) and 0 <= factor < math.inf and eps * factor <= 1 + 1e-6
    assert (attack is not None) == is_good
    if attack is not None:
        assert attack.eps == eps * factor
        assert attack.step_size == (None if step is None else step * factor)

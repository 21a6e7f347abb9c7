from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import hessian, vmap
from torch.nn import functional as F

from pl_robust.attacks._target import BatchNormMode
from pl_robust.losses import (
    AKD,
    ARD,
    IAD,
    RSLAD,
    TRADES,
    ard_loss,
    distillation_loss,
    gradient_alignment,
    gradient_alignment_weight,
    iad_loss,
    input_hessian_eigenvalues,
    jsd_consistency,
    local_linearity_error,
    rslad_loss,
    trades_loss,
)
from tests.attacks.test_fuzz_attacks import CLASSES, Net, labels
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

SCALES = st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e4])
SIZES = {"count": st.integers(1, 5), "classes": st.integers(1, 6), "seed": SEEDS, "scale": SCALES}
Array = np.ndarray[Any, np.dtype[np.float64]]


def logits_of(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return ((noise(seed, *shape) - 0.5) * 2 * scale).to(dtype)


def log_softmax(logits: Tensor | Array, temperature: float = 1.0) -> Array:
    """In NumPy, float64."""
    scores = np.asarray(logits.double() if isinstance(logits, Tensor) else logits) / temperature
    scores = scores - scores.max(1, keepdims=True)
    logs: Array = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return logs


def kl(log_p: Array, log_q: Array) -> Array:
    divergences: Array = (np.exp(log_p) * np.where(np.exp(log_p) > 0, log_p - log_q, 0)).sum(1)
    return divergences


@fuzz(
    900,
    5,
    **SIZES,
    views=st.integers(2, 4),
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(["contiguous", "transposed", "strided"]),
    context=st.sampled_from(CONTEXTS),
)
def test_jsd_is_what_it_says_in_its_range_and_symmetric(
    count: int, classes: int, seed: int, scale: float, views: int, dtype: torch.dtype, layout: str, context: str
) -> None:
    views_of = logits_of(seed, views, count, classes, scale=scale, dtype=dtype)
    given = [made_inside(context, lay_out(one, layout)) for one in views_of]
    with inside(context), untouched(*given):
        value, turned = jsd_consistency(*given), jsd_consistency(*reversed(given))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    clamped = 4e-8 * classes  # by the mixture's clamp at 1e-7
    rounding = 1e-6 * max(1.0, scale * 1e-2) if dtype != torch.float64 else 1e-12
    assert -clamped - rounding <= float(value.detach()) <= math.log(views) + rounding
    torch.testing.assert_close(value, turned, rtol=0, atol=rounding)
    logs = np.stack([log_softmax(one.detach()) for one in given])
    mixture = np.log(np.exp(logs).mean(0).clip(1e-7, 1))
    expected = sum(kl(one, mixture).mean() for one in logs) / views
    assert abs(float(value.detach()) - expected) <= 10 * rounding
    if value.requires_grad:
        assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, given))


@fuzz(
    900,
    5,
    **SIZES,
    dtype=st.sampled_from(FLOATS),
    layout=st.sampled_from(["contiguous", "transposed", "strided"]),
    share=st.one_of(st.sampled_from([0.0, 1.0, "1/3"]), st.floats(0, 1)),
    temperature=st.sampled_from([0.1, 1.0, 4, "30", 1e3]),
    reduction=st.sampled_from(["batch", "batch_and_classes"]),
    certain=st.booleans(),
)
def test_distillation_is_what_numpy_says(
    count: int,
    classes: int,
    seed: int,
    scale: float,
    dtype: torch.dtype,
    layout: str,
    share: Any,
    temperature: Any,
    reduction: Any,
    certain: bool,
) -> None:
    clean, adv = (
        lay_out(one, layout).requires_grad_() for one in logits_of(seed, 2, count, classes, scale=scale, dtype=dtype)
    )
    y = (noise(seed + 1, count) * classes).long()
    tau, weight = float(temperature), 1 / 3 if share == "1/3" else float(share)
    teacher, teacher_adv = (log_softmax(one) for one in logits_of(seed + 2, 2, count, classes, scale=9))
    if certain:  # of one class, with probability 1
        teacher = np.where(np.eye(classes)[y.numpy()] > 0, 0.0, -np.inf)
    asked, asked_adv = torch.tensor(teacher), torch.tensor(teacher_adv)
    logs, logs_adv = log_softmax(clean.detach()), log_softmax(adv.detach())
    hard = -logs[np.arange(count), y.numpy()]
    divisor = classes if reduction == "batch_and_classes" else 1
    soft = -np.where(np.isinf(teacher), 0, np.exp(teacher) * log_softmax(clean.detach(), tau)).sum(1)
    tempered = kl(teacher, log_softmax(adv.detach(), tau))
    trust = np.exp(teacher_adv[np.arange(count), y.numpy()]) ** weight
    pairs = {
        "trades": (trades_loss(clean, adv, y, beta=weight), hard + weight * kl(logs, logs_adv)),
        "mixture": (
            distillation_loss(clean, y, asked, teacher_weight=share, temperature=temperature),
            (1 - weight) * hard + weight * tau**2 * soft,
        ),
        "ard": (
            ard_loss(clean, adv, y, asked, alpha=share, temperature=temperature, reduction=reduction),
            weight * tau**2 * tempered / divisor + (1 - weight) * hard,
        ),
        "iad": (
            iad_loss(clean, adv, y, asked, asked_adv, beta=share, temperature=temperature),
            tau**2 * tempered + (1 - trust) * kl(logs, logs_adv),
        ),
        "rslad": (
            rslad_loss(clean, adv, asked, adversarial_weight=share, clean_weight=2, reduction=reduction),
            (weight * kl(teacher, logs_adv) + 2 * kl(teacher, logs)) / divisor,
        ),
    }
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    for name, (value, expected) in pairs.items():
        assert value.dtype in (torch.float32, torch.float64), name
        size = 1.0 + max(1.0, tau**2) * max(scale, 9) / max(tau, 1) * rtol / 1e-2
        assert abs(float(value.detach()) - expected.mean()) <= rtol * (abs(expected.mean()) + size), (
            name,
            value,
            expected,
        )
        gradients = torch.autograd.grad(value, (clean, adv), allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients), name


L = torch.zeros(2, 3)
P = F.log_softmax(torch.tensor([[1.0, 2, 3], [0, 0, 0]]), dim=1)
Y = torch.tensor([0, 2])
BAD_LOGITS = st.sampled_from(
    [L[0], L[:1], L[:, :2], L[:, :0], L[None], L.long(), L > 0, L + 0j, L.numpy(), None, [[0.0] * 3] * 2]
)
BAD_LABELS = st.sampled_from([Y[:1], Y.float(), Y > 0, Y + 1, Y - 1, Y - 100, Y[:, None], Y.int(), [0, 2], None, P])
BAD_TEACHERS = st.sampled_from([P[:1], P[:, :2], P.exp(), P + 1, P * math.nan, P[0], P.long(), None, P + 0j])
LOSSES: dict[str, Any] = {
    "trades": lambda v: trades_loss(v["logits"], v["adv"], v["y"], beta=v["weight"]),
    "distillation": lambda v: distillation_loss(v["logits"], v["y"], v["teacher"], teacher_weight=v["weight"]),
    "ard": lambda v: ard_loss(v["logits"], v["adv"], v["y"], v["teacher"], alpha=v["weight"]),
    "iad": lambda v: iad_loss(v["logits"], v["adv"], v["y"], v["teacher"], v["teacher"], beta=v["weight"]),
    "rslad": lambda v: rslad_loss(v["logits"], v["adv"], v["teacher"], clean_weight=v["weight"]),
    "jsd": lambda v: jsd_consistency(v["logits"], v["adv"]),
}


@fuzz(
    240,
    8,
    loss=st.sampled_from(sorted(LOSSES)),
    wrong=st.one_of(
        st.tuples(st.sampled_from(["logits", "adv"]), BAD_LOGITS),
        st.tuples(st.just("y"), BAD_LABELS),
        st.tuples(st.just("teacher"), BAD_TEACHERS),
        st.tuples(st.just("weight"), NOT_NUMBERS),
    ),
)
def test_losses_refuse_what_does_not_fit(loss: str, wrong: tuple[str, Any]) -> None:
    name, value = wrong
    takes = {"trades": ("logits", "adv", "y", "weight"), "distillation": ("logits", "y", "teacher", "weight"),
             "rslad": ("logits", "adv", "teacher", "weight"), "jsd": ("logits", "adv")}  # fmt: skip
    assume(name in takes.get(loss, ("logits", "adv", "y", "teacher", "weight")))
    given = {"logits": L, "adv": L + 1, "y": Y, "teacher": P, "weight": 0.5}
    assert LOSSES[loss](given).isfinite()
    names = {"y": ("`y`", "labels"), "teacher": ("teacher",), "weight": ("weight`", "`beta`", "`alpha`")}
    assert outcome(lambda: LOSSES[loss]({**given, name: value}), *names.get(name, ("logits", "teacher", "`y`"))) is None


@fuzz(36, loss=st.sampled_from(sorted(LOSSES)), row=st.integers(0, 2), value=st.sampled_from([math.nan, math.inf]))
def test_nan_and_empty_batches_never_become_a_good_number(loss: str, row: int, value: float) -> None:
    logits = torch.zeros(3, 3).index_fill(0, torch.tensor(row), value)
    teacher, y = P[[0, 1, 1]], torch.tensor([0, 1, 2])
    good = {"logits": torch.zeros(3, 3), "adv": torch.ones(3, 3), "y": y, "teacher": teacher, "weight": 0.5}
    for name in ("logits", "adv") if loss != "distillation" else ("logits",):
        assert LOSSES[loss]({**good, name: logits}).isnan()
    empty = {name: part[:0] if isinstance(part, Tensor) else part for name, part in good.items()}
    assert outcome(lambda: LOSSES[loss](empty), "logits") is None


@fuzz(
    200,
    weight=st.one_of(NOT_NUMBERS, st.floats(0, 1), st.sampled_from([2, "1/2"])),
    make=st.sampled_from(["TRADES", "AKD", "ARD", "IAD", "RSLAD", "weight"]),
)
def test_objectives_refuse_weights_at_construction(weight: Any, make: str) -> None:
    makers: dict[str, Any] = {
        "TRADES": TRADES, "AKD": AKD, "ARD": ARD, "IAD": IAD, "RSLAD": RSLAD, "weight": gradient_alignment_weight
    }  # fmt: skip
    made = outcome(lambda: makers[make](weight), "weight`", "`beta`", "`alpha`", "eps")
    most = {"TRADES": math.inf, "IAD": math.inf, "RSLAD": math.inf, "weight": 16 / 255}.get(make, 1)
    if weight == "1/2" and make != "weight":
        assert made is not None
    elif isinstance(weight, int | float) and not isinstance(weight, bool):
        assert (made is not None) == (0 <= weight <= most and math.isfinite(weight))
    else:
        assert made is None


@fuzz(
    350,
    x=batches(dtypes=FLOATS[:3]),
    seed=SEEDS,
    eps=st.sampled_from([0, 1e-12, "8/255", 0.3, 1e6]),
    norm=st.sampled_from(["linf", "l2"]),
    layout=st.sampled_from(LAYOUTS[:-1]),
    context=st.sampled_from(CONTEXTS),
    training=st.booleans(),
)
def test_gradient_alignment_and_linearity_in_their_ranges(
    x: Tensor, seed: int, eps: Any, norm: Any, layout: str, context: str, training: bool
) -> None:
    assume(eps != 1e6 or x.dtype != torch.float16)  # which ends at 65504
    y, net = labels(seed, len(x)), Net(x.shape[1]).train(training)
    arguments: dict[str, Any] = {"eps": eps, "norm": norm}
    mode: BatchNormMode = "batch_stats" if training and x[:, 0].numel() > 1 else "eval"
    with inside(context), untouched(x, net=net):
        values = [
            gradient_alignment(net, same, y, **arguments, batch_norm=mode, generator=source(seed))
            for same in (x, lay_out(x, layout))
        ]
        if eps != 1e6 or norm == "l2":
            errors = [
                local_linearity_error(net, same, y, **arguments, steps=2, generator=source(seed))
                for same in (x, lay_out(x, layout))
            ]
            assert errors[0].shape == (len(x),)
            assert bool((errors[0] >= 0).all() & errors[0].isfinite().all())
            torch.testing.assert_close(*errors, rtol=2e-3, atol=1e-4 if x.dtype != torch.float16 else 1e-2)
            if eps in (0, 1e-12):
                assert (errors[0] <= 1e-5).all()
    assert -1e-6 <= float(values[0].detach()) <= 2 + 1e-6
    torch.testing.assert_close(*values, rtol=0, atol=1e-4)
    if eps in (0, 1e-12) and x.dtype == torch.float64:
        assert abs(float(values[0].detach())) <= 1e-6
    if values[0].requires_grad and len(x):
        gradients = torch.autograd.grad(values[0], list(net.parameters()), allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients)


def small_net(entries: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(entries, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double().eval()


@fuzz(
    250,
    x=batches(channels=st.integers(1, 2), sides=st.integers(1, 2), dtypes=(torch.float64,)),
    seed=SEEDS,
    data=st.data(),
)
def test_curvature_is_the_hessian_s_and_of_each_sample_alone(x: Tensor, seed: int, data: st.DataObject) -> None:
    y, entries = labels(seed, len(x)), x[:1].numel() if len(x) else math.prod(x.shape[1:])
    net, k = small_net(entries, seed), data.draw(st.integers(1, entries), label="k")
    arguments: dict[str, Any] = {"k": k, "iterations": entries + 1}
    with untouched(x, net=net):
        values = input_hessian_eigenvalues(net, x, y, **arguments, generator=source(seed))
        alone = [
            input_hessian_eigenvalues(net, *pair, **arguments, generator=source(seed))
            for pair in (zip(x[:, None], y[:, None], strict=True) if len(x) else ())
        ]
    assert values.shape == (len(x), k)
    if len(x):
        torch.testing.assert_close(values, torch.cat(alone), rtol=1e-6, atol=1e-9)
        matrices = vmap(hessian(lambda flat, label: F.cross_entropy(net(flat[None]), label[None])))(x.flatten(1), y)
        torch.testing.assert_close(values, torch.linalg.eigvalsh(matrices).flip(1)[:, :k], rtol=1e-5, atol=1e-8)


@fuzz(
    60,
    wrong=st.sampled_from([
        ("k", 0), ("k", 5), ("k", 1.0), ("k", True), ("iterations", 0), ("iterations", "4"), ("steps", 0),
        ("steps", 2.0), ("eps", -1), ("eps", math.nan), ("eps", "x"), ("eps", None), ("norm", "l1"), ("norm", None),
        ("normalization", (0, 1)), ("batch_norm", "off"), ("start_gradient", torch.zeros(2, 3)), ("start_gradient", 1),
        ("start_gradient", torch.zeros(2, 1, 2, 2).long()), ("bounds", (1, 0)),
    ]),
    which=st.integers(0, 2),
)  # fmt: skip
def test_measures_refuse_what_does_not_fit(wrong: tuple[str, Any], which: int) -> None:
    name, value = wrong
    x, y = torch.rand(2, 1, 2, 2).double(), torch.tensor([0, 1])
    measures: list[tuple[Any, dict[str, Any]]] = [
        (
            gradient_alignment,
            {"eps": 0.1, "norm": "linf", "normalization": None, "batch_norm": "eval", "start_gradient": None},
        ),
        (local_linearity_error, {"eps": 0.1, "norm": "linf", "normalization": None, "steps": 2, "bounds": None}),
        (input_hessian_eigenvalues, {"k": 2, "iterations": 4, "normalization": None, "bounds": None}),
    ]
    measure, arguments = measures[which]
    if name in arguments:
        assert outcome(lambda: measure(small_net(4, 0), x, y, **{**arguments, name: value}), f"`{name}`") is None

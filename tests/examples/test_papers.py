"""The papers' miniatures: verdicts that can fail, short runs, and the claims as they stand."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401  # it sets environment variables when it is imported: not inside a test

import pl_robust._config_run  # noqa: F401  # likewise
from pl_robust._claims import Claim, load_script

pytestmark = pytest.mark.lightning

PAPERS = Path(__file__).parents[2] / "examples" / "papers"
NAMES = [path.name for path in sorted(PAPERS.iterdir()) if path.is_dir()]
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
]


def script(name: str) -> Any:
    return load_script(PAPERS / name / "miniature.py")


def runs(**results: dict[str, float]) -> dict[str, list[dict[str, float]]]:
    """The same result for each of three seeds."""
    return {name.replace("_", " "): [dict(one) for _ in range(3)] for name, one in results.items()}


ROBUST = {"acc_pgd": 0.5, "acc_adv": 0.7, "peak": 0.5, "detections": 0}
AT = {"clean": 95.0, "PGD": 58.0, "ECE": 0.16, "divergence": 0.2}
TONE = {"30 at 23": 1.0, "30 at 105": 0.001, "300 at 23": 0.92, "300 at 105": 0.08, "psnr 300": 60.0}
BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
# Results with which every claim holds.
GOOD: dict[str, dict[str, list[dict[str, float]]]] = {
    "1_catastrophic_overfitting": {
        **runs(FGSM={"acc_pgd": 0.05, "acc_adv": 0.98, "peak": 0.3, "detections": 1}),
        "FGSM, no feature": [ROBUST] * 3,
        "N-FGSM": [ROBUST] * 3,
        "PGD-10": [{**ROBUST, "acc_pgd": 0.67}] * 3,
    },
    "2_akd": {
        "AT": [AT] * 3,
        "AT, weak": [{**AT, "clean": 98.5, "PGD": 25.0}] * 3,
        "AKD": [{**AT, "divergence": 0.1}] * 3,
        "AKD, weak teacher": [{**AT, "ECE": 0.13}] * 3,
    },
    "3_prime": {
        "standard": [{"clean": 99.0, "mean": 88.0, "fog": 40.0} | dict.fromkeys(BLURS, 94.0)] * 3,
        "PRIME": [{"clean": 98.0, "mean": 95.0, "fog": 80.0} | dict.fromkeys(BLURS, 96.0)] * 3,
    },
    "4_inr_dictionaries": runs(
        tone=TONE,
        picture={"inside": 0.997, "one": 10.7, "bound": 10.8, "many": 70.0},
        faces={"ReLU": 0.1, "SIREN-5": 0.15, "SIREN-40": 0.8},
        maml={"learned": 29.0, "new": 13.0},
    ),
    "5_linearized_networks": {
        "0": [{"net": 1.0, "linearized": 1.0, "linearized_after": 1.0, "cka_growth": 1.0}] * 3,
        "60": [{"net": 0.77, "linearized": 0.9, "linearized_after": 0.76, "cka_growth": 2.6}] * 3,
        "NAD 0": [{"acc": 1.0}] * 3,
        "NAD 300": [{"acc": 0.55}] * 3,
    },
    "6_graph_architectures": runs(
        few_SGC={"acc 0": 60.0, "acc 1": 64.0},
        few_GCN={"acc 0": 61.0, "acc 1": 64.0},
        many_SGC={"acc 0": 70.0, "acc 1": 72.0},
        many_GCN={"acc 0": 75.0, "acc 1": 77.0},
    ),
}
# What a broken part would bring: run, number, value of the last seed -> the claim that must fail, by a part of it.
BROKEN = [
    ("1_catastrophic_overfitting", "FGSM", "acc_pgd", 0.45, "then comes CO"),
    ("1_catastrophic_overfitting", "FGSM", "peak", 0.1, "robust at first"),  # never robust: no collapse
    ("1_catastrophic_overfitting", "FGSM", "acc_adv", 0.5, "FGSM does not fool it"),
    ("1_catastrophic_overfitting", "FGSM", "detections", 0, "announces it"),
    ("1_catastrophic_overfitting", "FGSM, no feature", "acc_pgd", 0.05, "without the feature"),
    ("1_catastrophic_overfitting", "N-FGSM", "acc_pgd", 0.05, "N-FGSM"),
    ("1_catastrophic_overfitting", "N-FGSM", "detections", 1, "silent"),  # a false alarm
    ("1_catastrophic_overfitting", "PGD-10", "acc_pgd", 0.45, "under PGD"),  # a PGD that is an FGSM
    ("2_akd", "AKD", "divergence", 0.2, "says what its teacher says"),  # labels only
    ("2_akd", "AKD", "PGD", 44.0, "as robust as by AT"),
    ("2_akd", "AKD, weak teacher", "PGD", 30.0, "keeps the student robust"),
    ("2_akd", "AKD, weak teacher", "ECE", 0.16, "better calibrated"),  # the same teacher
    ("2_akd", "AT, weak", "PGD", 58.0, "is none"),  # the same eps
    ("2_akd", "AT, weak", "clean", 95.0, "rises instead"),
    ("3_prime", "PRIME", "mean", 88.5, "more robust to common corruptions"),  # no augmentation
    ("3_prime", "PRIME", "fog", 41.0, "the worst of the 15"),
    ("3_prime", "PRIME", "glass_blur", 85.0, "to blur"),
    ("3_prime", "PRIME", "clean", 90.0, "costs little"),
    ("4_inr_dictionaries", "tone", "30 at 23", 0.9, "amplitude at 23"),
    ("4_inr_dictionaries", "tone", "30 at 105", 0.1, "not its alias"),
    ("4_inr_dictionaries", "tone", "300 at 105", 0.001, "leaks"),
    ("4_inr_dictionaries", "tone", "psnr 300", 20.0, "fits the samples"),
    ("4_inr_dictionaries", "picture", "inside", 0.9, "predicted support"),
    ("4_inr_dictionaries", "picture", "one", 15.0, "tiled"),
    ("4_inr_dictionaries", "picture", "many", 11.0, "many frequencies"),
    ("4_inr_dictionaries", "faces", "SIREN-40", 0.4, "kernel suits faces"),
    ("4_inr_dictionaries", "faces", "SIREN-5", 0.8, "less so"),
    ("4_inr_dictionaries", "faces", "ReLU", 0.5, "ReLU"),
    ("4_inr_dictionaries", "maml", "learned", 20.0, "two steps fit"),
    ("4_inr_dictionaries", "maml", "new", 28.0, "from a new one"),
    ("5_linearized_networks", "0", "net", 0.9, "easy for the network"),
    ("5_linearized_networks", "0", "linearized", 0.9, "for its linearization"),
    ("5_linearized_networks", "60", "linearized", 0.99, "harder for the linearization"),
    ("5_linearized_networks", "60", "net", 0.9, "do not always win"),
    ("5_linearized_networks", "60", "cka_growth", 1.0, "turns to the task"),
    ("5_linearized_networks", "60", "linearized_after", 0.9, "fares as the network"),  # of the untrained network
    ("5_linearized_networks", "NAD 0", "acc", 0.9, "learns its NAD 0"),
    ("5_linearized_networks", "NAD 300", "acc", 1.0, "NAD 300 not"),  # any direction is learned
    ("6_graph_architectures", "few GCN", "acc 0", 75.0, "is enough"),
    ("6_graph_architectures", "many GCN", "acc 0", 68.0, "worth it"),  # a GCN without its ReLU
    ("6_graph_architectures", "few SGC", "acc 0", 50.0, "ratio of labels"),
]


def verdicts(claims: list[Claim]) -> dict[str, bool]:
    return {claim.text: claim.holds for claim in claims}


@pytest.mark.parametrize("name", NAMES)
def test_good_results_pass(name: str) -> None:
    found = verdicts(script(name).claims(GOOD[name]))
    assert len(found) >= 3
    assert all(found.values()), found


@pytest.mark.parametrize(("name", "run", "number", "value", "claim"), BROKEN)
def test_a_broken_part_fails_its_claim(name: str, run: str, number: str, value: float, claim: str) -> None:
    results = copy.deepcopy(GOOD[name])
    results[run][-1] = {**results[run][-1], number: value}
    failed = [text for text, holds in verdicts(script(name).claims(results)).items() if not holds]
    assert any(claim in text for text in failed), failed


def test_every_claim_can_fail() -> None:
    for name in NAMES:
        claims = verdicts(script(name).claims(GOOD[name]))
        for text in claims:
            assert any(one[0] == name and one[4] in text for one in BROKEN), text


def test_the_divergence_of_a_student_is_that_of_all_images_under_attack() -> None:
    """Of logits that are the inputs, and an attack that doubles them; a ragged last batch weighs as much as it has."""
    x, y = torch.randn(10, 3), torch.zeros(10, dtype=torch.long)

    class Scaled(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    def found(student: float, teacher: float) -> float:
        model = SimpleNamespace(
            net=Scaled(student),
            _teachers=SimpleNamespace(nets=[Scaled(teacher)]),
            eval_attacks={"pgd": lambda net, x, y: 2 * x},
        )
        batches = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
        data = SimpleNamespace(test_dataloader=lambda: batches)
        value: float = script("2_akd").divergence(SimpleNamespace(model=model, datamodule=data))
        return value

    assert found(1.5, 1.5) == pytest.approx(0, abs=1e-6)
    teacher, student = (torch.distributions.Categorical(logits=factor * x) for factor in (2.0, 1.0))
    expected = torch.distributions.kl_divergence(teacher, student).mean().item()
    assert found(0.5, 1.0) == pytest.approx(expected, rel=1e-5)


QUICK = {
    "1_catastrophic_overfitting": ["--model.eval_attacks.pgd.steps=1", "--trainer.callbacks.max_samples=16"],
    "2_akd": ["--model.eval_attacks.pgd.steps=1", "--model.attack.steps=1"],
}
QUICK_RUNS = ("4_inr_dictionaries", "6_graph_architectures")  # the others take ten seconds each


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK_RUNS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_short_run_goes_through_and_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "4_inr_dictionaries":
        pytest.importorskip("skimage")
    module = script(name)
    sizes = {"tone": {"steps": 2}, "picture": {"size": 8, "steps": 2}, "faces": {"size": 6, "width": 16}}
    smaller: dict[str, dict[str, Any]] = {
        # Finding a LeNet's directions takes seconds; nad_lenet.yaml has a test of its own.
        "5_linearized_networks": {"run_nad": lambda config, cell: {"acc": 0.5}},
        "6_graph_architectures": {"SPLITS": 2},
        "4_inr_dictionaries": {
            "SETTINGS": {key: {**own, **sizes[key]} for key, own in getattr(module, "SETTINGS", {}).items()}
        },
    }
    for constant, value in smaller.get(name, {}).items():
        monkeypatch.setattr(module, constant, value)
    arguments = ["--folder", "mini", "--seeds", "4", "--", *SHORT, *QUICK.get(name, [])]
    with pytest.raises(SystemExit) as ended:
        module.main(arguments)
    assert ended.value.code == 1  # the claims do not hold of networks that have seen two batches
    assert Path("mini/claims.png").stat().st_size > 5_000
    text = Path("mini/claims.md").read_text()
    assert "FAIL" in text
    assert "nan" not in text


@pytest.mark.parametrize(
    "name",
    [
        # A minute of a core, and two to six
        pytest.param(name, marks=pytest.mark.slow if name == "6_graph_architectures" else pytest.mark.long)
        for name in NAMES
    ],
)
def test_the_claims_hold(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """As the command stands in the README."""
    folder = Path("runs") / "papers" / name
    command = [sys.executable, str(PAPERS / name / "miniature.py"), "--folder", str(folder), "--jobs", "2"]
    ended = subprocess.run(command, check=False)
    with capfd.disabled():
        print(f"\n{(folder / 'claims.md').read_text()}")
    assert ended.returncode == 0

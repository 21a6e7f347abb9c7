"""Observers that take the ball of the module's training attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_robust._lightning import MisconfigurationException
from pl_robust.attacks import FGSM, NFGSM, PGD, Attack
from pl_robust.callbacks import CatastrophicOverfittingDetector, CurvatureLogger
from tests.callbacks.test_catastrophic_overfitting import DriftingWithAttack, signs
from tests.toys import PlainModule, loader, quiet_trainer, stripes

pytestmark = pytest.mark.lightning

NORMALIZATION = ([0.5], [0.25])


class Trained(PlainModule):
    """Holds its training attack, as AdversarialTraining does."""

    def __init__(self, attack: Attack) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        self.attack = attack

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def normalized() -> DataLoader[Any]:
    x, y = stripes(40).tensors
    return DataLoader(TensorDataset((x - 0.5) / 0.25, y), batch_size=16)


def fit(observer: Any, attack: Attack, data: DataLoader[Any]) -> Any:
    quiet_trainer(max_epochs=1, callbacks=[observer]).fit(Trained(attack), data, data)
    return observer.history


BALLS: dict[str, dict[str, Any]] = {
    "plain": {"eps": 0.1},
    "l2": {"eps": 0.5, "norm": "l2"},
    "no box": {"eps": "1/8", "bounds": None},
    "normalized": {"eps": 0.1, "normalization": NORMALIZATION},
    "per channel": {"eps": [0.1]},
}


@pytest.mark.parametrize("observer", [CatastrophicOverfittingDetector, CurvatureLogger])
@pytest.mark.parametrize("ball", list(BALLS))
def test_no_eps_means_the_training_attacks_ball(observer: Any, ball: str) -> None:
    data = normalized() if ball == "normalized" else loader(40)
    taken = fit(observer(), FGSM(**BALLS[ball]), data)
    assert taken == fit(observer(**BALLS[ball]), FGSM(0.01, bounds=None), data)
    assert taken != fit(observer(), FGSM(**{**BALLS[ball], "eps": 0.01}), data)


@pytest.mark.parametrize("observer", [CatastrophicOverfittingDetector, CurvatureLogger])
def test_without_a_training_attack_it_asks_for_eps(observer: Any) -> None:
    with pytest.raises(
        MisconfigurationException,
        match=rf"PlainModule has no attack there: give `eps=`, such as {observer.__name__}\(eps=8/255\)",
    ):
        quiet_trainer(max_epochs=1, callbacks=[observer()]).fit(PlainModule(), loader(32), loader(32))


@pytest.mark.parametrize("observer", [CatastrophicOverfittingDetector, CurvatureLogger])
@pytest.mark.parametrize("given", [{"norm": "l2"}, {"bounds": None}, {"normalization": NORMALIZATION}])
def test_other_parts_of_the_ball_are_not_given_without_eps(observer: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"with `eps`=None the training attack's .*: give `eps`, or leave them out"):
        observer(**given)


@pytest.mark.parametrize("observer", [CatastrophicOverfittingDetector, CurvatureLogger])
def test_the_state_key_does_not_depend_on_fit(observer: Any) -> None:
    watching = observer()
    key = watching.state_key
    fit(watching, FGSM(0.1), loader(32))
    assert watching.state_key == key == observer().state_key
    others = [observer(0.1), observer(every_n_steps=2), observer(prefix="other"), observer(max_samples=10)]
    assert len({key, *(other.state_key for other in others)}) == 5


def test_the_detectors_state_key_is_what_it_was_in_checkpoints_of_old() -> None:
    assert CatastrophicOverfittingDetector(0.1).state_key == (
        "CatastrophicOverfittingDetector{'eps': 0.1, 'norm': 'linf', 'attack': 'None', 'strong_attack': "
        "\"PGD(eps=0.1, norm='linf', bounds=(0.0, 1.0), batch_norm='train', steps=10, restarts=1, "
        "random_start=True, early_stop=True)\", 'every_n_epochs': 1, 'every_n_steps': None, 'max_samples': 256, "
        "'max_kept': 0.5, 'bounds': (0.0, 1.0), 'normalization': 'None', 'keys': [0, 1], 'prefix': 'co'}"
    )


def test_two_detectors_one_with_eps_and_one_without_resume(tmp_path: Path) -> None:
    def both() -> list[Any]:
        return [CatastrophicOverfittingDetector(), CatastrophicOverfittingDetector(0.05)]

    first = both()
    trainer = quiet_trainer(max_epochs=1, callbacks=first)
    trainer.fit(Trained(FGSM(0.1)), loader(32), loader(40))
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    second = both()
    trainer = quiet_trainer(max_epochs=2, callbacks=second)
    trainer.fit(Trained(FGSM(0.1)), loader(32), loader(40), ckpt_path=tmp_path / "two.ckpt")
    for before, after in zip(first, second, strict=True):
        assert after.history[:1] == before.history
        assert [row["epoch"] for row in after.history] == [0, 1]
    assert first[0].history != first[1].history


def test_a_second_fit_takes_the_second_modules_ball() -> None:
    observer = CurvatureLogger()
    first = fit(observer, FGSM(0.1), loader(32))
    assert fit(observer, FGSM(0.01), loader(32)) == fit(CurvatureLogger(0.01), FGSM(0.1), loader(32)) != first


def test_on_its_own_fallback_the_ball_stays() -> None:
    detector = CatastrophicOverfittingDetector(
        strong_attack=PGD(0.18, steps=40, bounds=None),
        action="rollback",
        fallback_attack=NFGSM(0.01, bounds=None),
    )
    module = DriftingWithAttack(2)
    module.attack = FGSM(0.18, bounds=None)
    trainer = quiet_trainer(max_epochs=3, callbacks=[detector])
    with pytest.warns(UserWarning, match="training goes on with NFGSM"):
        trainer.fit(module, signs(), signs())
    trainer.fit_loop.max_epochs = 4
    with pytest.warns(UserWarning, match="training stops"):
        trainer.fit(module, signs(), signs())
    # With the fallback's tiny ball, FGSM would find nothing to do: the accuracy would be that on clean images.
    assert detector._gauge.ball.eps == 0.18

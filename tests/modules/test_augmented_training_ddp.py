"""Training on views on two gloo processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pl_robust.losses import jsd_consistency
from pl_robust.modules import AugmentedTraining
from tests._processes import run_ranks
from tests.modules.test_adversarial_training import small_net
from tests.modules.test_augmented_training import Views
from tests.toys import assert_identical, loader, quiet_trainer, stripes

pytestmark = pytest.mark.lightning


def fit() -> tuple[dict[str, Tensor], dict[str, float]]:
    net = small_net().eval()  # running statistics, so that a sample's gradient does not depend on its batch
    module = AugmentedTraining(
        net, num_classes=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), lr_scheduler="constant"
    )
    module.net.train = lambda mode=True: module.net  # type: ignore[method-assign]
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1, devices=2, strategy="ddp")
    trainer.fit(module, DataLoader(Views(32), batch_size=16, shuffle=False))
    state = {key: value.detach() for key, value in net.state_dict().items()}
    (metrics,) = trainer.test(module, loader(41, seed=2), verbose=False)
    return state, dict(metrics)


def test_a_step_on_two_ranks_is_the_step_on_both_batches_and_no_sample_counts_twice() -> None:
    (first, metrics), (second, others) = run_ranks(fit, 2)
    assert_identical(first, second)
    assert metrics == others
    net = small_net().eval()
    images, y = next(iter(DataLoader(Views(32), batch_size=32)))
    clean, *augmented = net(torch.cat(images)).chunk(3)
    loss = F.cross_entropy(clean, y) + 12 * jsd_consistency(clean, *augmented)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    for (name, before), gradient in zip(net.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(first[name], (before - 0.1 * gradient).detach())
    net.load_state_dict(first)
    x, y = stripes(41, seed=2).tensors  # an odd number: the sampler repeats one
    with torch.no_grad():
        assert metrics["test/acc"] == pytest.approx((net(x).argmax(1) == y).float().mean().item())
        assert metrics["test/loss"] == pytest.approx(F.cross_entropy(net(x), y).item(), abs=1e-5)

"""What every test gets: a quiet plot backend, and a check that it leaves no trace in the process."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  # sets environment variables when it is imported: not inside a test
import torch
from torch.func import jvp

from pl_robust._probe import probe

matplotlib.use("Agg")
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # LightningCLI's own, on the newest jsonargparse
torch.set_num_threads(1)  # tiny tensors: threads cost more than they give
# At the first use of these torch loads its compiler, which sets environment variables, too.
with probe(torch.nn.Linear(1, 1)), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_geometric  # noqa: F401

    jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


@pytest.fixture(autouse=True)
def _leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in its own folder, seeded; fail it when it leaks environment variables, grad or inference mode."""
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the legacy global generator is what users' code draws from
    torch.manual_seed(0)
    before = dict(os.environ)
    yield
    lightning_sets = {"PL_GLOBAL_SEED", "PL_SEED_WORKERS", "POPULATED_CUSTOM_CLUSTER", "PYTEST_CURRENT_TEST"}
    leaked = {key for key in os.environ if before.get(key) != os.environ[key]} - lightning_sets
    for key in lightning_sets - {"PYTEST_CURRENT_TEST"}:
        os.environ.pop(key, None)
    torch.set_default_dtype(torch.float32)  # Lightning 1.9 leaves that of `precision=64` behind an exception
    assert not leaked, f"the test left environment variables behind: {leaked}"
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.are_deterministic_algorithms_enabled()

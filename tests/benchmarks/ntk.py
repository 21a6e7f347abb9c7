"""Time and memory of `empirical_ntk` against the kernel that people write: vmap(jacrev), contracted layer by layer.

python -m tests.benchmarks.ntk [--rounds 5] [--threads N] [--samples 256] [--jax peer/bin/python]

LeNet on images 3x32x32 with ten outputs. The peer takes one Jacobian for rows and columns; "tutorial" is PyTorch's on
neural tangent kernels, which takes two. All take turns, and each round gives one ratio: the median counts. Seconds of
the first call, and what a call adds to the resident memory, are those of a fresh process each. Then torchvision's
resnet18 at 32 pixels in a fresh process; the peer has no place there. With `--jax`, neural-tangents on its own LeNet,
see `neural_tangents_peer.py`. With CUDA also resnet18 of 1,024 samples.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pl_robust.models import LeNet
from pl_robust.ntk import empirical_ntk

OUTPUTS = 10


def jacobian(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """That of each parameter, [N, C, P]."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        given: Tensor = torch.func.functional_call(model, parameters, (sample[None],))
        return given[0]

    jacobians: dict[str, Tensor] = torch.func.vmap(torch.func.jacrev(outputs), (None, 0))(parameters, x)
    return {name: part.flatten(2) for name, part in jacobians.items()}


def contracted(rows: dict[str, Tensor], columns: dict[str, Tensor]) -> Tensor:
    return torch.stack([torch.einsum("Naf,Maf->NM", part, columns[name]) for name, part in rows.items()]).sum(0)


def tutorial(model: nn.Module, x: Tensor) -> Tensor:
    """https://docs.pytorch.org/tutorials/intermediate/neural_tangent_kernels.html, the trace kernel [N, N]."""
    return contracted(jacobian(model, x), jacobian(model, x))


def peer(model: nn.Module, x: Tensor) -> Tensor:
    rows = jacobian(model, x)
    return contracted(rows, rows)


METHODS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {"ours": empirical_ntk, "peer": peer, "tutorial": tutorial}


def network(name: str, samples: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(samples, 3, 32, 32)
    if name == "lenet":
        return LeNet(3, OUTPUTS).eval(), x
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=OUTPUTS)
    return model.eval(), x


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_resident() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with that of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def alone(method: str, name: str, samples: int) -> None:
    """Print the seconds of a process's first call, and by how much it raised the peak of the memory."""
    model, x = network(name, samples)
    before = peak_resident()
    taken = seconds(partial(METHODS[method], model, x))
    print(taken, peak_resident() - before)


def in_fresh_process(method: str, name: str, samples: int, threads: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "tests.benchmarks.ntk", "--threads", str(threads), "--samples", str(samples)]
    done = subprocess.run([*command, "--alone", method, name], check=True, capture_output=True, text=True)
    taken, grown = map(float, done.stdout.split())
    return taken, grown / 2**30


def on_cuda(samples: int) -> None:
    model, x = network("resnet18", samples)
    model, x = model.cuda(), x.cuda()
    empirical_ntk(model, x[:64])

    def run() -> None:
        empirical_ntk(model, x)
        torch.cuda.synchronize()

    torch.cuda.reset_peak_memory_stats()
    taken = seconds(run)
    print(f"CUDA, resnet18, N = {samples}: {taken:.1f} s, peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def against_jax(python: str, model: nn.Module, x: Tensor, rounds: int) -> None:
    command = [python, str(Path(__file__).with_name("neural_tangents_peer.py")), str(len(x)), "3"]
    warm = []
    for _ in range(rounds):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        first, taken, peak = map(float, done.stdout.split())
        warm.append((taken, taken / statistics.median(seconds(partial(empirical_ntk, model, x)) for _ in range(3))))
    taken, ratio = (statistics.median(column) for column in zip(*warm, strict=True))
    print(
        f"neural-tangents: warm {taken:.3f} s, {ratio:.1f} times ours; first call {first:.3f} s, "
        f"resident memory {peak:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--jax", metavar="PYTHON", help="that of an environment with neural-tangents")
    parser.add_argument("--alone", nargs=2, metavar=("METHOD", "NETWORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        method, name = arguments.alone
        alone(method, name, arguments.samples)
        return
    model, x = network("lenet", arguments.samples)
    ours, theirs, _ = (method(model, x) for method in METHODS.values())  # the first calls
    rounds = [
        {name: seconds(partial(method, model, x)) for name, method in METHODS.items()} for _ in range(arguments.rounds)
    ]
    print(
        f"LeNet, N = {len(x)}, {OUTPUTS} outputs, {arguments.threads} threads; largest difference "
        f"{float((ours - theirs).abs().max() / theirs.abs().max()):.1g} of the largest entry"
    )
    for name in METHODS:
        ratios = [times[name] / times["ours"] for times in rounds]
        print(
            f"warm, {name}: {statistics.median(times[name] for times in rounds):.3f} s, "
            f"{statistics.median(ratios):.1f} times ours (rounds {', '.join(f'{ratio:.1f}' for ratio in ratios)})"
        )
    for name in ("ours", "peer"):
        fresh = [in_fresh_process(name, "lenet", len(x), arguments.threads) for _ in range(3)]
        cold, grown = (statistics.median(column) for column in zip(*fresh, strict=True))
        print(f"fresh process, {name}: first call {cold:.3f} s, resident memory + {grown:.2f} GiB")
    taken, grown = in_fresh_process("ours", "resnet18", 64, arguments.threads)
    print(f"resnet18 at 32 px, N = 64: {taken:.1f} s in a fresh process, resident memory + {grown:.2f} GiB")
    if arguments.jax:
        against_jax(arguments.jax, model, x, arguments.rounds)
    if torch.cuda.is_available():
        on_cuda(1024)


if __name__ == "__main__":
    main()

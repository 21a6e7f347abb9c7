"""Fresh processes for tests: the ranks of a DDP run, and one to be killed.

Functions and arguments are pickled, so a test passes a top-level function of its file. A fork server that has imported
the slow packages once starts each child in a fraction of a second.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from typing import Any

# Only the namespace under test: the other one in sys.modules would change pl_robust's choice in the children.
_LIGHTNING = "lightning.pytorch" if os.environ.get("PL_ROBUST_LIGHTNING") == "lightning" else "pytorch_lightning"
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torchmetrics", "sklearn", _LIGHTNING])


def run_ranks(fn: Callable[..., Any], world_size: int = 2, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Call ``fn(*args)`` in each of ``world_size`` fresh processes; return their results by rank.

    ``Trainer(accelerator="cpu", devices=world_size, strategy="ddp")`` in ``fn`` joins as one rank over gloo.

    Raises:
        RuntimeError: with the child's traceback, if one fails; the others are then killed.
        TimeoutError: naming the ranks that did not end in time.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    children, ends = [], []
    for rank in range(world_size):
        # Lightning launches no processes of its own where it finds LOCAL_RANK.
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        child, end = _start(fn, args, shared | own)
        children.append(child)
        ends.append(end)
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    try:
        while len(results) < world_size:
            waiting = {end: rank for rank, end in enumerate(ends) if rank not in results}
            ready = wait_any(list(waiting), deadline - time.monotonic())
            if not ready:
                raise TimeoutError(f"{fn.__name__}: ranks {sorted(waiting.values())} did not end in {timeout:.0f} s")
            for end, rank in waiting.items():
                if end in ready:
                    results[rank] = _receive(end, f"{fn.__name__}, rank {rank}")
        for child in children:
            child.join(10)
    finally:
        for child, end in zip(children, ends, strict=True):
            _end(child, end)
    return [results[rank] for rank in range(world_size)]


def run_and_kill(fn: Callable[..., Any], kill_when: Callable[[], bool], *args: Any, timeout: float = 60.0) -> int:
    """Call ``fn(*args)`` in a fresh process, SIGKILL it as soon as ``kill_when()`` holds; return its exit code.

    The exit code is ``-signal.SIGKILL``, or 0 if the process was done before. A child that shall die at one exact place
    writes a file there and sleeps.

    Raises:
        RuntimeError: with the child's traceback, if it fails.
        TimeoutError: if neither happens in time.
    """
    child, end = _start(fn, args, {})
    deadline = time.monotonic() + timeout
    try:
        while child.is_alive():
            if end.poll():
                _receive(end, fn.__name__)
                child.join(10)
                break
            if kill_when():
                os.kill(child.pid, signal.SIGKILL)
                child.join(10)
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{fn.__name__}: still running after {timeout:.0f} s, and not to be killed yet")
            time.sleep(0.005)
        return int(child.exitcode)
    finally:
        _end(child, end)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(fn: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, str]) -> tuple[Any, Connection]:
    here, there = _CONTEXT.Pipe(duplex=False)
    # The fork server's environment is the one it was started in, not the caller's of today.
    environment = {**os.environ, **variables}
    child = _CONTEXT.Process(target=_child, args=(there, environment, os.getcwd(), fn, args))
    child.start()
    there.close()
    return child, here


def _child(end: Connection, environment: dict[str, str], folder: str, fn: Callable[..., Any], args: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    try:
        answer = (True, fn(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    # Pickled here: sent as it is, a tensor would be a handle to the memory of a process that is about to end.
    end.send_bytes(pickle.dumps(answer))
    end.close()
    if answer[0] and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _receive(end: Connection, who: str) -> Any:
    try:
        worked, answer = pickle.loads(end.recv_bytes())  # noqa: S301  # from our own child
    except EOFError:
        raise RuntimeError(f"{who}: died without a word") from None
    if not worked:
        raise RuntimeError(f"{who}:\n{answer}")
    return answer


def _end(child: Any, end: Connection) -> None:
    end.close()
    if child.is_alive():
        child.kill()
    child.join()
    child.close()

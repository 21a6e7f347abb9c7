"""Many runs as one sweep: spread by joblib, kept one by one, taken up where it was stopped."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote

import torch
from joblib import Parallel, delayed, parallel_config, register_parallel_backend  # type: ignore[import-untyped]
from tqdm import tqdm  # type: ignore[import-untyped]

from pl_robust._number import check_count

Cell: TypeAlias = Mapping[str, bool | int | float | str | None]
Backend = Literal["loky", "dask", "ray"]


class SweepError(RuntimeError):
    """Some cells of a sweep failed; the results of the others are kept."""


def run_cells(
    function: Callable[[Cell], Mapping[str, float]],
    cells: Sequence[Cell],
    folder: str | Path,
    *,
    experiment: Mapping[str, Any],
    jobs: int | None = None,
    backend: Backend = "loky",
    scheduler: str | None = None,
    description: str = "sweep",
) -> list[dict[str, float]]:
    """Call ``function`` for each cell, and keep each result in a JSON file of its own as soon as it is there.

    A second call takes finished cells from the folder and runs the others only; a sweep that is killed loses no more
    than the cells in flight. A cell that fails prints its traceback and leaves the others alone. A worker that dies
    (out of memory, say) ends the sweep with joblib's error; what was finished is kept then, too.

    Each cell runs on one torch thread, wherever it runs: other numbers of threads round differently, and a sweep shall
    not depend on the machine it was spread over. Cells run in processes of their own, but for ``jobs=1`` without a
    scheduler, where they run in this one.

    The results travel back and are written here, by the caller's process: workers of a cluster need not see this
    machine's files. For the same reason ``function`` should need no file that the workers may lack.

    Args:
        function: cell -> numbers; pickled by cloudpickle, so that it may come from the script that is run.
        cells: the arguments of each run, plain values by name; no two alike.
        folder: where the results are kept; made if it does not exist.
        experiment: plain values that say what all cells share (configuration, versions). It is stored with each result,
            and a folder with results of another experiment is refused: results are never mixed.
        jobs: number of processes on this machine; None means one, or, with ``scheduler``, whatever the cluster has.
        backend: who spreads the runs: ``"loky"`` (processes), ``"dask"`` or ``"ray"``; the last two start a cluster of
            their own on this machine, unless ``scheduler`` is given.
        scheduler: address of a running dask scheduler (``tcp://host:8786``) or ray cluster (``host:6379``, ``auto``).
        description: what the progress bar says.

    Returns:
        The results, in the order of ``cells``.

    Raises:
        ValueError: if an argument is not among the allowed ones, two cells are alike, a file in ``folder`` is damaged
            or of another experiment, or the workers of a cluster run several tasks in one process.
        TypeError: if a cell or ``experiment`` holds anything but plain values.
        ImportError: if the package behind ``backend`` is not installed.
        SweepError: at the end, if cells failed; it names them.
    """
    folder = Path(folder)
    _check_spread(jobs, backend, scheduler)
    names = _name_cells(cells)
    shared = json.loads(json.dumps(dict(experiment)))  # as it will be read back: tuples are lists
    finished = _read_finished(folder, shared)
    results = {index: finished[key] for index, cell in enumerate(cells) if (key := _key(cell)) in finished}
    waiting = [index for index in range(len(cells)) if index not in results]
    if not waiting:
        return [results[index] for index in range(len(cells))]
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    bar = tqdm(total=len(cells), initial=len(results), desc=description, unit="cell")
    with _workers(backend, jobs, scheduler), bar:
        # All are handed out at once, one by one: a worker that joins late finds work, and no result waits for another.
        parallel = Parallel(return_as="generator_unordered", pre_dispatch="all", batch_size=1)
        for index, result, error in parallel(delayed(_attempt)(function, index, cells[index]) for index in waiting):
            if result is None:
                failures.append(f"{names[index]}: {error.splitlines()[-1]}")
                tqdm.write(f"{names[index]} failed\n{error}", file=sys.stderr)
            else:
                content = {"experiment": shared, "cell": dict(cells[index]), "result": result}
                _write(folder / f"{names[index]}.json", content)
                results[index] = result
            bar.update()
    if failures:
        raise SweepError(
            f"{len(failures)} of {len(cells)} cells failed ({'; '.join(failures)}); the others are kept in {folder}, "
            "and the next call runs only those that are missing"
        )
    return [results[index] for index in range(len(cells))]


def _check_spread(jobs: int | None, backend: str, scheduler: str | None) -> None:
    if backend not in get_args(Backend):
        raise ValueError(f"`backend` must be one of {get_args(Backend)}, got {backend!r}")
    if jobs is not None:
        check_count(jobs, "jobs")
    if scheduler is not None and backend == "loky":
        raise ValueError(f"`scheduler` is for backend='dask' or 'ray'; 'loky' stays on this machine, got {scheduler!r}")
    if scheduler is not None and jobs is not None:
        raise ValueError(f"`jobs` counts processes on this machine: leave it out with `scheduler`, got {jobs}")


def _name_cells(cells: Sequence[Cell]) -> list[str]:
    """Names of the cells' files, without ending: ``beta=0.1,eps=0.25,seed=0``."""
    names: list[str] = []
    for cell in cells:
        for name, value in cell.items():
            if value is not None and not isinstance(value, bool | int | float | str):
                raise TypeError(f"a cell must hold plain values (numbers, strings), got {name}={value!r}")
        names.append(",".join(f"{quote(name)}={quote(str(value), safe='')}" for name, value in cell.items()))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`cells` must differ from each other, got {twice[0]} more than once")
    return names


def _key(cell: Cell) -> str:
    return json.dumps(dict(cell), sort_keys=True)


def _read_finished(folder: Path, experiment: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The results in a folder by the key of their cell; every JSON file there must be one, of this experiment."""
    finished = {}
    for path in sorted(folder.glob("*.json")):
        try:
            saved = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and its cell runs again") from None
        is_one = isinstance(saved, dict) and saved.keys() == {"experiment", "cell", "result"}
        if not is_one or not isinstance(saved["cell"], dict):
            raise ValueError(f"{path} is not the result of a sweep's cell: move it away, or take another folder")
        result = saved["result"]
        if not result or not isinstance(result, dict) or not all(isinstance(n, int | float) for n in result.values()):
            raise ValueError(f"{path} is damaged (its result is {result!r}): delete it, and its cell runs again")
        if saved["experiment"] != experiment:
            difference = _difference(saved["experiment"], experiment, "")
            raise ValueError(
                f"{folder} holds another experiment ({path.name} has {difference}): take another folder, or empty it"
            )
        finished[_key(saved["cell"])] = saved["result"]
    return finished


def _difference(there: Any, here: Any, where: str) -> str:
    """Say where two nests of plain values first differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            pair = (there.get(key, "(missing)"), here.get(key, "(missing)"))
            if pair[0] != pair[1]:
                return _difference(*pair, f"{where}.{key}" if where else key)
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for number, pair in enumerate(zip(there, here, strict=True)):
            if pair[0] != pair[1]:
                return _difference(*pair, f"{where}.{number}")
    return f"{where} = {there!r}, and this one {here!r}"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    # Renamed into place when it is whole on the disk: who is killed here leaves no half file under that name.
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _attempt(
    function: Callable[[Cell], Mapping[str, float]], index: int, cell: Cell
) -> tuple[int, dict[str, float] | None, str]:
    """Run one cell, in a worker: its number, its result if it came to one, else the traceback."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return index, {name: float(value) for name, value in function(cell).items()}, ""
    except (Exception, SystemExit):
        # As text: an exception of a worker's package may not be unpickled here.
        return index, None, traceback.format_exc()
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _workers(backend: Backend, jobs: int | None, scheduler: str | None) -> Iterator[None]:
    """Have joblib's next Parallel use the workers asked for; those started here end with the context."""
    with ExitStack() as stack:
        if backend == "dask":
            client = _enter_dask(stack, jobs or 1, scheduler)
            stack.enter_context(parallel_config("dask", n_jobs=-1, client=client))
        elif backend == "ray":
            _enter_ray(stack, jobs or 1, scheduler)
            stack.enter_context(parallel_config("ray", n_jobs=-1))
        else:
            # A worker that has grown by 300 MB, which torch and a cache do, is replaced: nothing to warn of. Where
            # warnings are errors, this one would end joblib's own thread, and the sweep would wait for ever.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            stack.enter_context(parallel_config("loky", n_jobs=jobs or 1))
        yield


def _enter_dask(stack: ExitStack, jobs: int, scheduler: str | None) -> Any:
    try:
        dask: Any = import_module("dask")
        distributed: Any = import_module("distributed")
    except ImportError:
        raise ImportError("backend='dask' needs the package distributed: pip install distributed") from None
    cluster: Any = scheduler
    if scheduler is None:
        # dask's nannies leave the workers' environment variables in this process, too.
        stack.callback(_restore_environment, dict(os.environ))
        # A daemon may have no children, and a DataLoader with workers has some.
        stack.enter_context(dask.config.set({"distributed.worker.daemon": False}))
        cluster = stack.enter_context(
            distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
        )
    client = stack.enter_context(distributed.Client(cluster))
    crowded = [address for address, threads in client.nthreads().items() if threads > 1]
    if crowded:
        # Threads of a process share the global generator, and with it the seed.
        raise ValueError(
            f"dask's workers must run one task at a time, got {crowded[0]} with several threads: "
            "start them with `dask worker ADDRESS --nthreads 1 --nworkers auto`"
        )
    return client


def _restore_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _enter_ray(stack: ExitStack, jobs: int, scheduler: str | None) -> None:
    try:
        ray: Any = import_module("ray")
        ray_backend: Any = import_module("ray.util.joblib.ray_backend").RayBackend
    except ImportError:
        raise ImportError("backend='ray' needs the package ray: pip install ray") from None

    class GeneratingRay(ray_backend):  # type: ignore[misc]  # its base is known at run time only
        # joblib takes ray's pool for Python's own, which it lets return lists only. Ray's calls back for each task.
        supports_return_generator = True

    register_parallel_backend("ray", GeneratingRay)
    if scheduler is None:
        ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=scheduler, log_to_driver=False)
    stack.callback(ray.shutdown)

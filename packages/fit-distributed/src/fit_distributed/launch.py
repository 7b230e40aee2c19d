"""The one call that makes a function run on many processes: those of this machine, or of several."""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from fit_core import has_process_group
from torch import distributed

from . import worker
from .environment import launcher_variables
from .pickling import dump_call, load_value

__all__ = ["LaunchError", "launch"]

T = TypeVar("T")

_NOISY = ("torch.distributed.elastic", "torch.multiprocessing")
_LAUNCHER = "FIT_DISTRIBUTED_LAUNCHER"
_OPTIONS = {"nproc", "nnodes", "rdzv", "max_restarts", "backend", "log_dir", "timeout"}


class LaunchError(RuntimeError):
    """A process failed, and with it the launch. The message ends with the traceback of that process.

    Attributes:
        rank (int): which process failed first.
        traceback (str): its traceback; without one, what is known of its end.
    """

    def __init__(self, rank: int, world_size: int, traceback: str) -> None:
        super().__init__(f"rank {rank} of {world_size} failed\n\n{traceback.rstrip()}")
        self.rank = rank
        self.traceback = traceback


def launch(
    fn: Callable[..., T],
    /,
    *args: Any,
    nproc: int | str = "auto",
    nnodes: int = 1,
    rdzv: str | None = None,
    max_restarts: int = 0,
    backend: str | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    timeout: float = 1800.0,
    **kwargs: Any,
) -> list[T]:
    """Call ``fn(*args, **kwargs)`` on every process, in a process group, and return what each returned, by rank.

    One process runs here, without a group, so that a debugger works. Where the processes are there already, which
    torchrun, ``python -m torch.distributed.launch``, srun, Ray Train or accelerate have started, this one calls the
    function too, and ``nproc``, ``nnodes``, ``rdzv`` and ``max_restarts`` are the business of who started them.

    Args:
        fn: a function of a module or script; with cloudpickle installed also a closure or one of a notebook's cell.
            It and its arguments are sent to new processes, so that it matters not what this one did before.
        *args: its arguments.
        nproc: processes on this machine, 1 or more; ``"auto"``: one for each accelerator, else one.
        nnodes: machines, 1 or more. The same call is to be made on each.
        rdzv: ``"host:port"`` where several machines meet: one of them, and a port that is free there.
        max_restarts: how often all processes are started anew after one has failed or was killed, 0 or more. The
            function then runs from its beginning, and a checkpoint is where it goes on.
        backend: of torch.distributed; None: the one for the device. With ``"gloo"``, processes may share a device.
        log_dir: folder for a file ``rank0.log``, ``rank1.log``, ... of what each process prints, appended to. Rank 0
            prints on the console too, the others only there.
        timeout: seconds, above 0, that a process waits for the others, in a collective or at its end.
        **kwargs: more arguments.

    Returns:
        What each process returned, by rank, tensors on the CPU.

    Raises:
        LaunchError: a process failed. The message ends with its traceback.
        ConnectionError: the machines did not find each other.
        KeyboardInterrupt: somebody pressed Ctrl-C. The processes are gone.
        TypeError, ValueError: an argument does not fit; nothing was started.
        RuntimeError: launch was called by a function that runs in a launch; nothing was started.

    Example:
        >>> def train(lr):
        ...     model = parallel(Net())
        ...     runner = Runner(model, torch.optim.SGD(model.parameters(), lr), nn.CrossEntropyLoss())
        ...     return runner.fit(shard(train_loader), epochs=5)
        >>> histories = launch(train, lr=0.1, nproc=2)
    """
    _check(fn, nnodes, rdzv, max_restarts, backend, timeout)
    if has_process_group():
        return worker.call(fn, args, kwargs)
    if launcher_variables() and (rdzv is None or "RANK" in os.environ):
        return worker.call_in_group(fn, args, kwargs, backend, timeout)
    count = _count(nproc, backend)
    if count == nnodes == 1:
        return worker.call(fn, args, kwargs)
    logs = os.path.abspath(log_dir) if log_dir else None
    job = worker.Job(dump_call(fn, args, kwargs), backend, timeout, logs, os.getpid())
    return [load_value(value) for value in _on_elastic(job, count, nnodes, rdzv, max_restarts)]


def _check(
    fn: Callable[..., Any], nnodes: int, rdzv: str | None, max_restarts: int, backend: str | None, timeout: float
) -> None:
    """Refuse what does not fit, wherever the processes come from."""
    if worker.is_running():
        raise RuntimeError("launch was called by a function that runs in a launch: call the inner function itself")
    if os.environ.get(_LAUNCHER) == str(os.getppid()):
        raise RuntimeError(
            "launch was called while its new processes import this file: put the call below "
            "'if __name__ == \"__main__\":'"
        )
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {type(fn).__name__}: launch(train, ...), without its parentheses")
    if taken := sorted(_OPTIONS & _parameters(fn)):
        raise TypeError(
            f"{getattr(fn, '__name__', fn)} has parameters which are launch's own too: {', '.join(taken)}. Rename "
            f"them, or bind them before: launch(functools.partial(fn, {taken[0]}=...))"
        )
    for name, value, least in (("nnodes", nnodes, 1), ("max_restarts", max_restarts, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a finite number of seconds above 0, got {timeout!r}")
    for name, text in (("rdzv", rdzv), ("backend", backend)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} must be a string or None, got {text!r}")
    if (nnodes > 1) != (rdzv is not None) or (rdzv is not None and not rdzv.rpartition(":")[2].isdecimal()):
        raise ValueError(
            f"several machines need a place to meet, and one needs none; got nnodes={nnodes}, rdzv={rdzv!r}: pass "
            'nnodes=2, rdzv="host:port", the same on each machine'
        )
    if backend is not None and not distributed.is_backend_available(backend.lower().split(":")[-1]):
        raise ValueError(f"backend {backend!r} is not in this build of torch: leave it out for the one of the device")


def _parameters(fn: Callable[..., Any]) -> set[str]:
    try:
        parameters = set(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # Some builtins do not tell.
        return set()
    return parameters - set(fn.keywords) if isinstance(fn, functools.partial) else parameters


def _count(nproc: int | str, backend: str | None) -> int:
    """The number of processes to start on this machine."""
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if nproc == "auto":
        return max(devices, 1)
    if isinstance(nproc, bool) or not isinstance(nproc, int) or nproc < 1:
        raise ValueError(f'nproc must be "auto" or a whole number, 1 or more, got {nproc!r}')
    if nproc > devices > 0 and backend != "gloo":
        raise ValueError(
            f"nproc is {nproc}, but this machine has {devices} accelerator{'s' * (devices > 1)}: pass at most that, or "
            'backend="gloo", with which processes may share one'
        )
    return nproc


def _on_elastic(job: worker.Job, nproc: int, nnodes: int, rdzv: str | None, max_restarts: int) -> list[bytes]:
    """Run the job in new processes on torch elastic, the engine under torchrun."""
    # Imported here: it takes a moment, which a single process need not wait.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    host = (rdzv or "localhost").partition(":")[0]
    with tempfile.TemporaryDirectory(prefix="fit_distributed_") as folder, _keep_environment():
        os.environ[_LAUNCHER] = str(os.getpid())
        # Without it, as many threads as cores in each process make all of them slow.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // nproc)))
        if nnodes > 1:  # A store for each attempt: the shared one mixes up machines that have seen more attempts.
            os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        config = LaunchConfig(
            min_nodes=nnodes,
            max_nodes=nnodes,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex if rdzv is None else "fit",
            rdzv_backend="c10d",
            rdzv_endpoint=rdzv or "localhost:0",
            rdzv_configs={"join_timeout": max(1, int(job.timeout))},
            local_addr="localhost" if host in ("localhost", "127.0.0.1") else None,
            max_restarts=max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(folder),
        )
        sys.stdout.flush()  # What was printed before comes before what the processes print.
        try:
            returned = elastic_launch(config, worker.work)(job)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            failed: Exception = _explain(Path(folder), rank, failure.exitcode, nproc * nnodes)
        except SignalException as error:
            failed = error
        except RendezvousError as error:
            failed = ConnectionError(
                f"the {nnodes} machines did not meet at {config.rdzv_endpoint} within {job.timeout:g} s "
                f"({type(error).__name__}: {error}): does each make the same call, and can it reach that address?"
            )
        else:
            return next(values for values in returned.values() if values is not None)
    if isinstance(failed, SignalException):
        signal.raise_signal(failed.sigval)  # To the handler that was there before: of Ctrl-C a KeyboardInterrupt.
    raise failed


def _explain(folder: Path, rank: int, exitcode: int, world_size: int) -> LaunchError:
    """The error of the process that failed first, not of one that failed because that was gone."""
    first = worker.first_failure(worker.last_attempt(folder))
    # A process that left no word of its own was not waiting for another, unless its backend made it abort.
    if first and (exitcode == -signal.SIGABRT or worker.has_reported(worker.last_attempt(folder), rank)):
        return LaunchError(first[0], world_size, first[1])
    if exitcode < 0:
        why = " (out of memory?)" if exitcode == -signal.SIGKILL else ""
        return LaunchError(rank, world_size, f"rank {rank} was killed by signal {-exitcode}{why}")
    return LaunchError(rank, world_size, f"rank {rank} ended with exit code {exitcode}; what it printed may tell why")


@contextmanager
def _keep_environment() -> Iterator[None]:
    """Give back signal handlers, environment and log level, which elastic leaves as it likes."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    environment = dict(os.environ)
    # For one failure it would print some 45 lines.
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(_NOISY)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for number, handler in handlers.items():
            if is_main_thread and handler is not None:
                signal.signal(number, handler)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Not on macOS and Windows.
    return len(affinity(0)) if affinity else os.cpu_count() or 1

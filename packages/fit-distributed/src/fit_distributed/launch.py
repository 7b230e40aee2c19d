"""The one call that makes a function run on many processes: those of this machine, or of several."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from fit_core import has_process_group
from torch import distributed

from . import worker
from .environment import launcher_variables
from .pickling import dump_call, load_value
from .reports import LaunchError

__all__ = ["LaunchError", "launch"]

T = TypeVar("T")

_OPTIONS = {"nproc", "nnodes", "rdzv", "max_restarts", "backend", "log_dir", "timeout"}


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
        SystemExit: the launch was stopped by SIGTERM, SIGUSR1 or SIGHUP, which the processes got too.
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
    from . import elastic  # Imported here: it takes a moment, which a single process need not wait.

    return [load_value(value) for value in elastic.run(job, count, nnodes, rdzv, max_restarts)]


def _check(
    fn: Callable[..., Any], nnodes: int, rdzv: str | None, max_restarts: int, backend: str | None, timeout: float
) -> None:
    """Refuse what does not fit, wherever the processes come from."""
    if worker.is_running():
        raise RuntimeError("launch was called by a function that runs in a launch: call the inner function itself")
    if os.environ.get(worker.LAUNCHER) == str(os.getppid()):
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

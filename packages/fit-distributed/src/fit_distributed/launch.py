"""Run a function on several processes of this machine, or of several machines."""

from __future__ import annotations

import functools
import inspect
import math
import multiprocessing
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
    """Call `fn(*args, **kwargs)` on every process, in a process group, and return the results by rank.

    A single process runs here, without a group, so you can use a debugger. If torchrun, `python -m
    torch.distributed.launch`, srun, mpirun, Ray Train or accelerate have started the processes already, the function
    is called in place, and `nproc`, `nnodes`, `rdzv` and `max_restarts` are ignored.

    Args:
        fn: a function of a module or script. With cloudpickle installed, also a closure or a function of a notebook
            cell. It is sent with its arguments to new processes, which do not inherit anything from this one.
        *args: its arguments.
        nproc: processes on this machine, 1 or more. `"auto"` starts one per accelerator, or a single one without.
        nnodes: machines, 1 or more. Make the same call on each.
        rdzv: `"host:port"` where several machines meet: one of them, and a free port there.
        max_restarts: how many times all processes are restarted after one has failed or was killed, 0 or more. The
            function then runs again from its beginning, and should load a checkpoint.
        backend: the backend of torch.distributed. None selects it by the device. With `"gloo"`, processes may share
            a device.
        log_dir: a folder for the output of each process, appended to `rank0.log`, `rank1.log`, ... Rank 0 prints to
            the console too, the others only there.
        timeout: seconds, above 0, that a process waits for the others, in a collective or at its end.
        **kwargs: more arguments.

    Returns:
        The results of all processes, by rank, with tensors on the CPU.

    Raises:
        LaunchError: a process failed. The message ends with its traceback.
        ConnectionError: the machines did not find each other.
        KeyboardInterrupt: you pressed Ctrl-C. The processes have ended.
        SystemExit: SIGTERM, SIGUSR1 or SIGHUP stopped the launch. The processes got the signal too.
        TypeError: an argument has the wrong type. Nothing was started.
        ValueError: an argument is out of range. Nothing was started.
        RuntimeError: launch was called by a function that runs in a launch. Nothing was started.

    Examples:
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
    start_method = multiprocessing.get_start_method(allow_none=True)
    job = worker.Job(dump_call(fn, args, kwargs), backend, timeout, logs, os.getpid(), start_method)
    from . import elastic  # Imported here, because it takes a moment that a single process does not need.

    return [load_value(value) for value in elastic.run(job, count, nnodes, rdzv, max_restarts)]


def _check(
    fn: Callable[..., Any], nnodes: int, rdzv: str | None, max_restarts: int, backend: str | None, timeout: float
) -> None:
    """Refuse invalid arguments, no matter who starts the processes."""
    if worker.is_running():
        raise RuntimeError("expected one launch, got one inside another. Call the inner function itself")
    if os.environ.get(worker.LAUNCHER) == str(os.getppid()):
        raise RuntimeError(
            "expected a guarded call of launch, got one that runs when the new processes import this file. Put it "
            "below 'if __name__ == \"__main__\":'"
        )
    if not callable(fn):
        raise TypeError(
            f"expected fn to be a function, got {type(fn).__name__}. Write launch(train, ...) and not launch(train(), "
            "...)"
        )
    if taken := sorted(_OPTIONS & _parameters(fn)):
        raise TypeError(
            f"expected {getattr(fn, '__name__', fn)} to have other parameters than launch, got {', '.join(taken)}. "
            f"Rename them, or bind them before: launch(functools.partial(fn, {taken[0]}=...))"
        )
    for name, value, least in (("nnodes", nnodes, 1), ("max_restarts", max_restarts, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"expected {name} to be a whole number, {least} or more, got {value!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ValueError(f"expected timeout to be a finite number of seconds above 0, got {timeout!r}")
    for name, text in (("rdzv", rdzv), ("backend", backend)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"expected {name} to be a string or None, got {text!r}")
    if (nnodes > 1) != (rdzv is not None) or (rdzv is not None and not rdzv.rpartition(":")[2].isdecimal()):
        raise ValueError(
            f"expected rdzv with several machines only, got nnodes={nnodes}, rdzv={rdzv!r}. Pass "
            'nnodes=2, rdzv="host:port", the same on each machine'
        )
    if backend is not None and not distributed.is_backend_available(backend.lower().split(":")[-1]):
        raise ValueError(
            f"expected a backend of this build of torch, got {backend!r}. Leave it out to select it by the device"
        )


def _parameters(fn: Callable[..., Any]) -> set[str]:
    try:
        parameters = set(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # Some builtins do not have a signature.
        return set()
    return parameters - set(fn.keywords) if isinstance(fn, functools.partial) else parameters


def _count(nproc: int | str, backend: str | None) -> int:
    """Return the number of processes to start on this machine."""
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if nproc == "auto":
        return max(devices, 1)
    if isinstance(nproc, bool) or not isinstance(nproc, int) or nproc < 1:
        raise ValueError(f'expected nproc to be "auto" or a whole number, 1 or more, got {nproc!r}')
    if nproc > devices > 0 and backend != "gloo":
        accelerators = f"{devices} accelerator{'s' * (devices > 1)}"
        raise ValueError(
            f"expected nproc to be at most the {accelerators} of this machine, got {nproc}. Pass less, or "
            'backend="gloo", with which processes may share one'
        )
    return nproc

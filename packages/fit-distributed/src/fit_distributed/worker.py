"""Run a process of a launch: join the group, call the function, and return its value or report an error."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import DistNetworkError, DistStoreError

from .environment import device, launcher_variables, local_rank, rank, world_size
from .pickling import dump_value, load_value
from .reports import is_lost, log_restart, lost, report
from .store import agree

__all__ = ["LAUNCHER", "Job", "call", "call_in_group", "is_running", "work"]

LAUNCHER = "FIT_DISTRIBUTED_LAUNCHER"
"""The environment variable in which new processes find the id of the one that launched them."""

_running = False
_left: list[Any] = []


@dataclass(frozen=True)
class Job:
    """Describe a job for the processes of a launcher."""

    call: bytes
    """The pickled function, arguments and keyword arguments."""
    backend: str | None
    timeout: float
    log_dir: str | None
    launcher: int
    """Its process id."""
    start_method: str | None
    """How the launcher starts processes of its own, such as loader workers. None is the default of Python."""


def work(job: Job) -> list[bytes] | None:
    """Run a job in a new process. Return the results of all processes on the first one of this machine."""
    _die_with(job.launcher)
    if hasattr(os, "setpgrp"):  # Ctrl-C reaches only the launcher, which passes it on. So it comes once and not twice.
        os.setpgrp()
    multiprocessing.set_start_method(job.start_method, force=True)  # Python sets spawn here, which takes seconds.
    with _output(job.log_dir):
        try:
            log_restart()
            fn, args, kwargs = pickle.loads(job.call)
            _join(job.backend, job.timeout)
            with _mark_running():
                value = fn(*args, **kwargs)
            values = _gather(value)
            _leave()
        except BaseException as error:
            report(error, job.timeout)
    return values if local_rank() == 0 else None


def call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Call a function in this process, in its group if there is one. Return the results of all processes."""
    with _mark_running():
        value = fn(*args, **kwargs)
    return [load_value(data) for data in _gather(value)] if world_size() > 1 else [value]


def call_in_group(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], backend: str | None, timeout: float
) -> list[Any]:
    """Join the group that the launcher of this process has set up, and call a function there."""
    from torch.distributed.elastic.multiprocessing.errors import record  # torchrun then prints the traceback.

    os.environ.update(launcher_variables())
    if world_size() == 1:
        return call(fn, args, kwargs)
    if not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise RuntimeError(
            f"expected MASTER_ADDR and MASTER_PORT, where the {world_size()} processes meet. Set them to the first "
            "host and a free port on it: mpirun -x MASTER_ADDR=host0 -x MASTER_PORT=29500 ..."
        )
    _meet(backend, timeout)
    values = record(_call_or_explain)(fn, args, kwargs)
    _leave()
    return values or []


def _call_or_explain(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    try:
        return call(fn, args, kwargs)
    except RuntimeError as error:
        if is_lost(error):
            raise lost() from error
        raise


def is_running() -> bool:
    """Return whether a launched function runs in this process."""
    return _running


@contextmanager
def _mark_running() -> Iterator[None]:
    global _running
    _running = True
    try:
        yield
    finally:
        _running = False


def _meet(backend: str | None, timeout: float) -> None:
    """Join the group of a launcher. It may have started too few processes, or given them an address that is wrong."""
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        _join(backend, timeout)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise ConnectionError(
                f"expected a free port for the {world_size()} processes to meet, got {place}, which is in use. Set "
                "MASTER_PORT to another one, the same for every process"
            ) from error
        if not isinstance(error, (DistNetworkError, DistStoreError)):
            raise
        raise ConnectionError(
            f"expected {world_size()} processes to meet at {place}, got a timeout on rank {rank()} after {timeout:g} "
            "s. Check that all were started. If a host does not reach that address, set MASTER_ADDR and MASTER_PORT to "
            "one that all reach"
        ) from error


def _join(backend: str | None, timeout: float) -> None:
    """Join the process group."""
    here = device()
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = agree(rank(), world_size(), timeout) if is_shared else None
    if here.type != "cpu":
        torch.accelerator.set_device_index(here.index)
    distributed.init_process_group(
        backend or ("gloo" if here.type == "cpu" else None),  # None: gloo for tensors on the CPU, and the device's own
        store=store,
        rank=rank() if store else -1,
        world_size=world_size() if store else -1,
        timeout=timedelta(seconds=timeout),
        device_id=here if here.type != "cpu" and backend is None else None,
    )


def _leave() -> None:
    """Leave the process group. Not after an error, which would make the other processes look guilty."""
    distributed.barrier()  # gloo aborts a process whose peer ends before it has finished itself.
    # Kept until the process ends: in torch 2.6 the destructor holds Python's lock while it waits for a thread of gloo,
    # which may need that lock to free the last tensors. That would be a deadlock.
    _left.append(distributed.group.WORLD)
    distributed.destroy_process_group()


def _gather(value: Any) -> list[bytes]:
    # In the form in which fit_core exchanges values, which compares the calls of the processes.
    own = "the end of the launched function", dump_value(value)
    gathered = [own] * world_size()
    distributed.all_gather_object(gathered, own)
    for number, entry in enumerate(gathered):
        if entry[0] != own[0]:
            raise RuntimeError(
                f"rank {rank()} has reached {own[0]} while rank {number} is at {entry[0]}. Make the same calls in the "
                "same order on every process"
            )
    return [data for _, data in gathered]


def _die_with(launcher: int) -> None:
    """End this process when its launcher ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG.
    if os.getppid() != launcher:  # It has ended already.
        os._exit(1)


# The output of a process.


@contextmanager
def _output(log_dir: str | None) -> Iterator[None]:
    """Let only rank 0 print to the console. With `log_dir` every rank also prints to a file."""
    path = os.devnull
    if log_dir:
        os.makedirs(log_dir, exist_ok=True)
        path = os.path.join(log_dir, f"rank{rank()}.log")
    with open(path, "a", buffering=1) as file:
        if rank():
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        elif log_dir:
            sys.stdout, sys.stderr = _Tee(sys.stdout, file), _Tee(sys.stderr, file)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            if isinstance(sys.stdout, _Tee) and isinstance(sys.stderr, _Tee):
                sys.stdout, sys.stderr = sys.stdout.console, sys.stderr.console


class _Tee:
    """Write to the console and copy it to a file. Everything else, such as its width, is that of the console."""

    def __init__(self, console: Any, file: Any) -> None:
        self.console = console
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(text)
        return int(self.console.write(text))

    def flush(self) -> None:
        self._file.flush()
        self.console.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)

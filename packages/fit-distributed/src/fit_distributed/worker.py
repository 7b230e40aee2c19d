"""What a process of a launch does: enter the group, call the function, hand back its value, or tell why not."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # missing in its __all__

from .environment import device, launcher_variables, local_rank, rank, world_size
from .pickling import dump_value, load_value

__all__ = ["Job", "call", "call_in_group", "first_failure", "has_reported", "is_running", "last_attempt", "work"]

_running = False
_left: list[Any] = []

_GRACE = 3.0
"""Seconds in which the processes that waited with this one report that they did."""

_LAST_WORD = 1.0
"""Seconds a failed process stays, so that the launcher sees first one that was killed: it looks ten times a second."""


@dataclass(frozen=True)
class Job:
    """What a launcher tells its processes."""

    call: bytes
    """The pickled function, arguments and keyword arguments."""
    backend: str | None
    timeout: float
    log_dir: str | None
    launcher: int
    """Its process id."""


def work(job: Job) -> list[bytes] | None:
    """The life of one new process. Returns what every process returned, on the first one of this machine."""
    _die_with(job.launcher)
    if hasattr(os, "setpgrp"):  # Ctrl-C goes to the launcher alone, which passes it on: so it comes once, not twice.
        os.setpgrp()
    with _output(job.log_dir):
        try:
            _log_restart()
            fn, args, kwargs = pickle.loads(job.call)
            _join(job.backend, job.timeout)
            with _mark_running():
                value = fn(*args, **kwargs)
            values = _gather(value)
            _leave()
        except BaseException as error:
            _report(error, job.timeout)
    return values if local_rank() == 0 else None


def call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Call a function in this process, in its group if there is one; returns what every process returned."""
    with _mark_running():
        value = fn(*args, **kwargs)
    return [load_value(data) for data in _gather(value)] if world_size() > 1 else [value]


def call_in_group(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], backend: str | None, timeout: float
) -> list[Any]:
    """Enter the group of which the launcher of this process told, and call a function there."""
    from torch.distributed.elastic.multiprocessing.errors import record  # torchrun then prints the traceback.

    os.environ.update(launcher_variables())
    if world_size() == 1:
        return call(fn, args, kwargs)
    _join(backend, timeout)
    values = record(call)(fn, args, kwargs)
    _leave()
    return values or []


def is_running() -> bool:
    """Whether a function that was launched runs in this process."""
    return _running


@contextmanager
def _mark_running() -> Iterator[None]:
    global _running
    _running = True
    try:
        yield
    finally:
        _running = False


def _join(backend: str | None, timeout: float) -> None:
    """Enter the process group."""
    env = os.environ
    here = device()
    store = None
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and env.get("GROUP_WORLD_SIZE") == "1":
        # Elastic uses one store for all attempts, and what the last one has left there would lead this one astray.
        tcp = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), timeout=timedelta(seconds=timeout))
        store = PrefixStore(f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}", tcp)
    if here.type != "cpu":
        torch.accelerator.set_device_index(here.index)
    distributed.init_process_group(
        backend or ("gloo" if here.type == "cpu" else None),  # None: gloo for the CPU's tensors beside the device's
        store=store,
        rank=rank() if store else -1,
        world_size=world_size() if store else -1,
        timeout=timedelta(seconds=timeout),
        device_id=here if here.type != "cpu" and backend is None else None,
    )


def _leave() -> None:
    """Leave the process group; never after an error, since that would make the others look guilty."""
    distributed.barrier()  # gloo aborts a process whose peer is gone before it has come to rest itself.
    # Kept until the process ends: in torch 2.6 the end of the object holds Python's lock while it waits for a thread
    # of gloo, which may need that lock to let go of the last tensors. Both then wait for ever.
    _left.append(distributed.group.WORLD)
    distributed.destroy_process_group()


def _gather(value: Any) -> list[bytes]:
    values = [b""] * world_size()
    distributed.all_gather_object(values, dump_value(value))
    return values


def _die_with(launcher: int) -> None:
    """See to it that this process does not outlive its launcher, whatever ends that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG.
    if os.getppid() != launcher:  # It was gone already.
        os._exit(1)


# What a process prints.


@contextmanager
def _output(log_dir: str | None) -> Iterator[None]:
    """Rank 0 prints on the console; with ``log_dir`` every rank into a file."""
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
    """The console, of which a file gets a copy. All but writing, a bar's question for its width say, is its own."""

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


# How a process fails. Each leaves a file in the folder of the attempt; the first puts its rank into the file "first".


def _attempt() -> Path:
    return Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]


def last_attempt(folder: Path) -> Path:
    """The folder of the last attempt, below that of the run."""
    return max(folder.glob("*/attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]), default=folder)


def first_failure(attempt: Path) -> tuple[int, str] | None:
    """Rank and traceback of the process that failed first on this machine, if it could tell."""
    try:
        number = int((attempt / "first").read_text())
        return number, (attempt / f"failed{number}").read_text()
    except (OSError, ValueError):
        return None


def has_reported(attempt: Path, number: int) -> bool:
    """Whether the process of this rank could tell of its end."""
    return (attempt / f"gone{number}").exists()


def _report(error: BaseException, timeout: float) -> NoReturn:
    """Leave word of an error, and raise it."""
    attempt = _attempt()
    (attempt / f"gone{rank()}").touch()
    try:
        with open(attempt / "first", "x") as file:
            file.write(str(rank()))
    except FileExistsError:  # Others came first; their word counts.
        _wait(lambda: first_failure(attempt) is not None, _GRACE + 5)
        raise error from None
    if error.__traceback__:
        error.__traceback__ = error.__traceback__.tb_next  # Without the frame of this file.
    reported: BaseException = error
    if _is_timeout(error):
        reported = TimeoutError(_missing(attempt, timeout))
    elif isinstance(error, SystemExit):
        reported = RuntimeError(f"the function called sys.exit({error.code!r}): let it return instead")
    if reported is not error:
        reported.__cause__ = error
    report = attempt / f"failed{rank()}"
    text = "".join(traceback.format_exception(reported))
    report.with_suffix(".part").write_text(text)
    report.with_suffix(".part").rename(report)
    if rank():  # Into its log. On the console it is the last word of the launcher's error.
        sys.stderr.write(text)
    time.sleep(_LAST_WORD)
    raise reported


def _is_timeout(error: BaseException) -> bool:
    """Whether a collective or the store waited in vain."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("timed out waiting", "wait timeout", "socket timeout")
    )


def _missing(attempt: Path, timeout: float) -> str:
    """Who did not come. A timeout breaks off the wait of all the others, and these report at once."""
    first = rank() - local_rank()

    def missing() -> list[int]:
        here = range(first, first + int(os.environ["LOCAL_WORLD_SIZE"]))
        return [number for number in here if not has_reported(attempt, number)]

    _wait(lambda: not missing(), _GRACE)
    names = ", ".join(map(str, missing())) or "of another machine"
    return f"rank {names} did not come within {timeout:g} s to where rank {rank()} waited"


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _log_restart() -> None:
    attempt = _attempt()
    count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if count and local_rank() == 0:
        failed = first_failure(attempt.with_name(f"attempt_{count - 1}"))
        why = "a process was killed"
        if failed and "by peer" not in failed[1]:  # Else it lost the connection to the one that was.
            why = f"rank {failed[0]} failed: {_last_line(failed[1])}"
        logging.getLogger("fit_distributed").warning(
            "restart %s of %s: %s", count, os.environ["TORCHELASTIC_MAX_RESTARTS"], why
        )


def _last_line(text: str) -> str:
    """Return the line of a traceback that names the exception, which notes may follow."""
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "fit: "))]
    return lines[-1]

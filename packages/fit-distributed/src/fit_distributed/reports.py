"""Find out which process of a launch failed first, and why.

Each process that fails leaves files in the folder of the attempt. The first puts its rank into the file `first`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import fit_core
import torch

from .environment import local_rank, rank, world_size

__all__ = ["LaunchError", "explain", "is_lost", "log_restart", "lost", "report"]

_GRACE = 3.0
"""Seconds in which the processes that waited with this one report that they did."""

_LAST_WORD = 1.0
"""Seconds that a failed process stays. The launcher checks ten times per second, and should see a killed one first."""


class LaunchError(RuntimeError):
    """Raised when a process failed, and with it the launch. The message ends with the traceback of that process.

    Attributes:
        rank: the process that failed first.
        traceback: its traceback. Without one, a sentence about how it ended.
    """

    __module__ = "fit_distributed"

    def __init__(self, rank: int, world_size: int, traceback: str) -> None:
        super().__init__(f"rank {rank} of {world_size} failed\n\n{traceback.rstrip()}")
        self.rank = rank
        self.traceback = traceback


def explain(folder: Path, rank: int, exitcode: int, world_size: int) -> LaunchError:
    """Return the error of the process that failed first, and not of one that lost the connection to it."""
    first = first_failure(last_attempt(folder))
    # A process without a report was not waiting for another one, unless its backend aborted it.
    if first and (exitcode == -signal.SIGABRT or has_reported(last_attempt(folder), rank)):
        return LaunchError(first[0], world_size, first[1])
    if exitcode < 0:
        why = {
            signal.SIGKILL: " (out of memory?)",
            signal.SIGABRT: ": torch aborted it. gloo does that when the processes make different calls, for example "
            "when their training loaders yield different numbers of batches",
        }.get(signal.Signals(-exitcode), "")
        return LaunchError(rank, world_size, f"rank {rank} was killed by signal {-exitcode}{why}")
    if exitcode == 0:
        why = " before the function returned. Let it return, and do not call os._exit in it"
    else:
        why = ". What it printed may say why"
    return LaunchError(rank, world_size, f"rank {rank} ended with exit code {exitcode}{why}")


def _attempt() -> Path:
    return Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]


def last_attempt(folder: Path) -> Path:
    """Return the folder of the last attempt, inside that of the run."""
    return max(folder.glob("*/attempt_*"), key=lambda path: path.stat().st_mtime_ns, default=folder)


def first_failure(attempt: Path) -> tuple[int, str] | None:
    """Return rank and traceback of the process that failed first on this machine, or None without a report."""
    try:
        number = int((attempt / "first").read_text())
        return number, (attempt / f"failed{number}").read_text()
    except (OSError, ValueError):
        return None


def has_reported(attempt: Path, number: int) -> bool:
    """Return whether the process of this rank has reported its end."""
    return (attempt / f"gone{number}").exists()


def report(error: BaseException, timeout: float) -> NoReturn:
    """Report an error, and raise it."""
    attempt = _attempt()
    (attempt / f"place{rank()}").write_text(_place(error))
    (attempt / f"gone{rank()}").touch()
    # The process that closed the connection knows why. If it is on this machine, it reports a moment later.
    if is_lost(error) and os.environ["LOCAL_WORLD_SIZE"] != "1":
        _wait((attempt / "first").exists, _GRACE)
    try:
        with open(attempt / "first", "x") as file:
            file.write(str(rank()))
    except FileExistsError:  # Another process failed first, and its report counts.
        _wait(lambda: first_failure(attempt) is not None, _GRACE + 5)
        raise error from None
    if error.__traceback__:
        error.__traceback__ = error.__traceback__.tb_next  # Without the frame of this file.
    reported: BaseException = error
    if _is_timeout(error):
        reported = TimeoutError(_missing(attempt, timeout, error))
    elif is_lost(error):
        elsewhere = ", on another machine if none here is named" if os.environ["GROUP_WORLD_SIZE"] != "1" else ""
        reported = lost(elsewhere)
    elif isinstance(error, SystemExit):
        reported = RuntimeError(f"the function called sys.exit({error.code!r}). Let it return instead")
    if reported is not error:
        reported.__cause__ = error
    report = attempt / f"failed{rank()}"
    text = "".join(traceback.format_exception(reported))
    report.with_suffix(".part").write_text(text)
    report.with_suffix(".part").rename(report)
    if rank():  # To its log. On the console it is the end of the launcher's error.
        sys.stderr.write(text)
    time.sleep(_LAST_WORD)
    raise reported


def _is_timeout(error: BaseException) -> bool:
    """Return whether a collective or the store timed out."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("timed out waiting", "wait timeout", "socket timeout", "application timeout")
    )


def _missing(attempt: Path, timeout: float, error: BaseException) -> str:
    """Return a sentence about the missing processes. The others time out together, and report at once."""
    first = rank() - local_rank()

    def missing() -> list[int]:
        here = range(first, first + int(os.environ["LOCAL_WORLD_SIZE"]))
        return [number for number in here if not has_reported(attempt, number)]

    _wait(lambda: not missing(), _GRACE)
    if not missing() and os.environ["GROUP_WORLD_SIZE"] == "1":
        places = "".join(
            f"\n  rank {number}: {(attempt / f'place{number}').read_text()}" for number in range(world_size())
        )
        return (
            f"the processes waited for each other in different calls for {timeout:g} s. Make the same calls on every "
            f"process, with the same number of training batches, and none inside 'if is_main():'{places}"
        )
    names = ", ".join(map(str, missing())) or "of another machine"
    return f"rank {names} did not come within {timeout:g} s to where rank {rank()} waited: {_place(error)}"


def is_lost(error: BaseException) -> bool:
    """Return whether a collective has failed because another process is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("by peer", "broken pipe", "remote process exited")
    )


def lost(elsewhere: str = "") -> ConnectionError:
    """Return the error of a process that has lost the connection to another one."""
    return ConnectionError(
        f"rank {rank()} lost the connection to another process, which failed or was killed first{elsewhere}. "
        "Its own message says why"
    )


def _place(error: BaseException) -> str:
    """Return the line of the user's code in which an error was raised, and the function of a package that it called."""
    frames = traceback.extract_tb(error.__traceback__)
    torchs, *ours = (str(Path(file).parent) + os.sep for file in (torch.__file__, fit_core.__file__, __file__) if file)
    users = [frame for frame in frames if not frame.filename.startswith((torchs, *ours))]
    if not users:
        return "outside the function"
    line = users[-1]
    called = [frame.name for frame in frames[frames.index(line) + 1 :] if not frame.filename.startswith(torchs)]
    inside = f", in {called[-1]}" if called else ""
    return f"{Path(line.filename).name}, line {line.lineno}: {line.line}{inside}"


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def log_restart() -> None:
    """Log why the processes were restarted, if they were."""
    attempt = _attempt()
    count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if count and local_rank() == 0:
        failed = first_failure(attempt.with_name(f"attempt_{count - 1}"))
        why = "a process was killed"
        if failed and "by peer" not in failed[1]:  # Otherwise it lost the connection to the killed one.
            why = f"rank {failed[0]} failed: {_last_line(failed[1])}"
        logging.getLogger("fit_distributed").warning(
            "restart %s of %s: %s", count, os.environ["TORCHELASTIC_MAX_RESTARTS"], why
        )


def _last_line(text: str) -> str:
    """Return the line of a traceback that names the exception, which notes may follow."""
    lines = [line for line in text.splitlines() if line and not line.startswith((" ", "fit: "))]
    return lines[-1]

"""One run of `train.py` in a folder of its own, and what can happen to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Check", "FaultError", "Job", "plain", "process_killed", "until", "version"]


class FaultError(Exception):
    """A run that did not do what it should."""


@dataclass(frozen=True)
class Check:
    """Describe a check: what a user types, what happens to the run, and the function that does it."""

    scheduler: str
    command: str
    what: str
    run: Callable[[Job], None]


class Job:
    """A run of `train.py`, started by a command in its own folder.

    Attributes:
        folder: where the program runs.
        gold: what a single process has come to.
    """

    def __init__(self, folder: Path, gold: list[float] | None) -> None:
        self.folder = folder
        self.gold = gold
        self.processes: list[subprocess.Popen[bytes]] = []
        for program in ("train.py", "ray_train.py"):
            shutil.copy(Path(__file__).with_name(program), folder)

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the variables of a command."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}

    def start(self, command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command of the shell. Its output goes to the file `log`."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {command}"],
                cwd=self.folder,
                env=self.environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, command: str, **variables: str) -> None:
        """Run a command, which has to succeed."""
        self.end(self.start(command, **variables), 0)

    def call(self, command: str, **variables: str) -> str:
        """Return what a command prints, which has to succeed."""
        done = subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environment(**variables), capture_output=True, text=True
        )
        if done.returncode:
            raise FaultError(f"{command}\n{done.stderr}")
        return done.stdout

    def end(self, process: subprocess.Popen[bytes], *statuses: int, seconds: float = 180) -> None:
        """Wait for the end of a command, which has to have one of these statuses."""
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise FaultError(f"still runs after {seconds:g} s\n{self.log()[-4000:]}") from None
        if status not in statuses:
            raise FaultError(f"expected status {statuses}, got {status}\n{self.log()[-4000:]}")

    def reach(self, step: int) -> None:
        """Wait until the run has made so many steps."""
        until(lambda: int(self.read("step") or 0) >= step or self.has_ended(), f"step {step}", self)
        if self.has_ended():
            raise FaultError(f"expected to reach step {step}, got an end\n{self.log()[-4000:]}")

    def has_ended(self) -> bool:
        """Return whether all commands have ended."""
        return bool(self.processes) and all(process.poll() is not None for process in self.processes)

    def kill_worker(self, rank: int) -> None:
        """Kill a process of the run with SIGKILL."""
        os.kill(int(self.read(f"worker-{rank}")), signal.SIGKILL)

    def read(self, name: str) -> str:
        """Return what is in a file, or nothing without one."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""

    def log(self) -> str:
        """Return what the commands have printed."""
        return self.read("log")

    def expect(self, *texts: str) -> None:
        """Compare what was printed."""
        for text in texts:
            if text not in self.log():
                raise FaultError(f"expected to read {text!r}, got\n{self.log()[-4000:]}")

    def starts(self) -> list[tuple[int, int]]:
        """Return for each start of rank 0 the number of processes, and the step from which they trained."""
        lines = [line.split() for line in self.read("begun").splitlines()]
        return [(int(words[3]), int(words[6])) for words in lines if words[1] == "0"]

    def expect_result(self, *sizes: int, resumed_from: int = 0) -> None:
        """Compare the result with a single process, and how many processes it had at each start."""
        if not self.read("result.json"):
            raise FaultError(f"expected a result, got none\n{self.log()[-4000:]}")
        result = json.loads(self.read("result.json"))
        differences = [abs(a - b) for a, b in zip(result, self.gold or result, strict=True)]
        difference = max(differences)
        if difference > 1e-11:
            which = "weights" if difference in differences[:-10] else "validation losses"
            raise FaultError(
                f"expected the {which} of one process, got others by {difference:g}\n{self.read('begun')}\n{self.log()}"
            )
        starts = self.starts()
        if sizes and tuple(size for size, _ in starts) != sizes:
            raise FaultError(f"expected starts with {sizes} processes, got {starts}")
        if starts[0][1] or any(step < max(resumed_from, 1) for _, step in starts[1:]):
            raise FaultError(f"expected to resume from step {resumed_from} or later, got {starts}")

    def stop(self) -> None:
        """End everything that was started."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def plain(command: str, **variables: str) -> Callable[[Job], None]:
    """Return the check that a command comes to the result of one process."""

    def run(job: Job) -> None:
        job.run(command, **variables)
        job.expect_result(2)

    return run


def process_killed(command: str, **variables: str) -> Callable[[Job], None]:
    """Return the check that it does so, too, if one of its processes is killed."""

    def run(job: Job) -> None:
        process = job.start(command, **variables)
        job.reach(40)
        job.kill_worker(1)
        job.end(process, 0)
        job.expect_result(2, 2, resumed_from=35)

    return run


def until(condition: Callable[[], object], what: str, job: Job, seconds: float = 180) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FaultError(f"expected {what} within {seconds:g} s, got\n{job.log()[-4000:]}")
        time.sleep(0.05)


def version(command: str) -> str:
    """Return the first line that a command prints."""
    return subprocess.run(command, shell=True, capture_output=True, text=True).stdout.partition("\n")[0].strip()

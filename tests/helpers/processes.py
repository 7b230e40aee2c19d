"""Run functions in real processes. They come from a fork server that has imported torch, which takes seconds."""

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from fit_core.testing import in_two_processes

SERVER = multiprocessing.get_context("forkserver")


def in_a_process(function, *arguments):
    """Return what a function returns in a new process. It has one thread and may fork."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        value, error = receiver.recv()
    finally:
        process.kill()
        process.join()
    assert not error, error
    return value


def _send(sender, function, arguments):
    multiprocessing.set_start_method(None, force=True)  # loader workers fork, as in a program
    try:
        sender.send((function(*arguments), None))
    except BaseException:
        sender.send((None, traceback.format_exc()))


def run_program(path, *arguments):
    """Run a Python file as `subprocess.run([sys.executable, path, ...], capture_output=True, text=True)` does."""
    program = Program([path, *arguments], os.getcwd(), os.environ)
    stdout, stderr = program.communicate()
    return SimpleNamespace(returncode=program.returncode, stdout=stdout, stderr=stderr)


class Program:
    """Stand in for `subprocess.Popen([sys.executable, path, ...], start_new_session=True)`. The output is in files."""

    def __init__(self, command, folder, variables):
        self._files = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115 - open until this is gone
        names = [file.name for file in self._files]
        self._process = SERVER.Process(
            target=_run_program, args=(list(map(str, command)), str(folder), dict(variables), names)
        )
        self._process.start()
        self.pid, self.kill, self.terminate = self._process.pid, self._process.kill, self._process.terminate

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self):
        try:
            self._process.join()
        finally:
            self.kill()
        return tuple(file.read() for file in self._files)


def _run_program(command, folder, variables, names):
    os.setsid()
    for number, name in enumerate(names, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    try:
        runpy.run_path(command[0], run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def on_two_processes(cases, folder):
    """Call each case with its rank on two processes. Return, by name, what it returned on rank 0 and on rank 1."""
    first, second = in_two_processes(partial(_call_all, cases), folder)
    return {name: (first[name], second[name]) for name in cases}


def _call_all(cases, rank, folder):
    return {name: plain(case(rank)) for name, case in cases.items()}


def plain(value):
    """Return a result without History, which torch.load refuses to make."""
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    return value

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
    with tempfile.TemporaryDirectory() as folder:
        process = SERVER.Process(target=_run_program, args=(Path(folder), str(path), list(map(str, arguments))))
        process.start()
        try:
            process.join()
        finally:
            process.kill()
        stdout, stderr = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)


def _run_program(folder, path, arguments):
    multiprocessing.set_start_method(None, force=True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    runpy.run_path(path, run_name="__main__")


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

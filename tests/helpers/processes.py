"""Run functions in real processes. They come from a fork server that has imported torch, which takes seconds."""

import multiprocessing
import traceback
from functools import partial

from fit_core.testing import in_two_processes


def in_a_process(function, *arguments):
    """Return what a function returns in a new process. It has one thread and may fork."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
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
    try:
        sender.send((function(*arguments), None))
    except BaseException:
        sender.send((None, traceback.format_exc()))


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

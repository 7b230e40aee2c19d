"""Run cases in two real processes, which are started once for all of them: a start takes seconds."""

from functools import partial

from fit_core.testing import in_two_processes


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

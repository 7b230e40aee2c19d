"""Train for the tests of signals to a whole process group, as in crash.py."""

import atexit
import contextlib
import os
import signal
import time
from functools import partial

import torch
from crash import At, digest, ended, fork
from fit_callbacks import CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_core import Runner
from scene import network
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    """Samples with random noise of the worker that reads them."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.randn(6) + index, index % 3


def loader(workers, context, **options):
    options |= {"num_workers": workers, "multiprocessing_context": context} if workers else {}
    return DataLoader(Noisy(), batch_size=4, **options)


def train(folder, *callbacks, workers, context, persistent=False):
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(folder, resume="auto")
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=[saver, *callbacks])
    options = {"persistent_workers": True} if persistent else {}
    train_loader, val_loader = (loader(workers, context, shuffle=shuffle, **options) for shuffle in (True, False))
    runner.fit(train_loader, epochs=2, val_loader=val_loader)
    (folder / "digest").write_text(digest(runner.state))


def main(work):
    """Run as Python itself would, in a process group of its own, with no output."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with open(os.devnull, "w") as quiet:
        os.dup2(quiet.fileno(), 1)
    try:
        work()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        atexit._run_exitfuncs()  # fork() leaves them out


def is_anyone_left(group):
    """Return whether a process of a group lives, after those that only have to notice that their parent is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def interrupted(run, name, place, gold, number, **options):
    """Send a signal to the group twice within 50 ms, at a batch of the run, and resume. Return what is wrong."""
    sent = getattr(signal, name)
    run.mkdir()

    def send():
        (run / "ready").touch()
        time.sleep(0.02)  # Let it come in the middle of something, now and then.

    at = {
        "training": At(number, send),
        "validation": At(number, send, training=False),
        "saving": At(number, send, "on_checkpoint"),
    }[place]
    child = fork(lambda: main(partial(train, run, at, **options)))
    while not (run / "ready").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before the signal"
        time.sleep(0.001)
    status = None
    for _ in range(2 if sent == signal.SIGINT else 10**9):  # A scheduler may repeat itself without end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, sent)
        time.sleep(0.05)
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
    status = ended(child) if status is None else status
    left = is_anyone_left(child)
    epoch, step = (read(run / "last.pt")[key] for key in ("epoch", "global_step"))
    again = ended(fork(lambda: main(partial(train, run, **options | {"context": "fork"}))))  # Spawning takes seconds.
    # The random numbers of persistent workers are not restored.
    same = again == 0 and ("persistent" in options or (run / "digest").read_text() == gold)
    result = status, left, again, same, (epoch, step) >= ((number - 1) // 6, number)
    return [] if result == (128 + sent, False, 0, True, True) else [[name, place, options, *result]]


def signals(folder, context):
    """Every signal at every place with loader workers that fork, and a few with one that is spawned."""
    (folder / "gold").mkdir()
    with open(folder / "errors", "w") as errors:
        os.dup2(errors.fileno(), 2)
    workers = 2 if context == "fork" else 1
    assert ended(fork(lambda: main(partial(train, folder / "gold", workers=workers, context="fork")))) == 0
    gold = (folder / "gold" / "digest").read_text()
    names, places = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"), ("training", "validation", "saving")
    if context == "fork":
        cases = [(name, place, False) for name in names for place in places] + [("SIGTERM", "validation", True)]
    else:
        cases = [("SIGUSR1", "training", False), ("SIGINT", "validation", False), ("SIGTERM", "saving", True)]
    wrong = []
    for name, place, persistent in cases:
        options = {"workers": workers, "context": context} | ({"persistent": True} if persistent else {})
        # In the second of two epochs of 6 batches. In the first one where the second would spawn workers for seconds.
        number = 2 if context == "spawn" and not persistent else 8
        wrong += interrupted(folder / f"{name}-{place}-{persistent}", name, place, gold, number, **options)
    return wrong, (folder / "errors").read_text()

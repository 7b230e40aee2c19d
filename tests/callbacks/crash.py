"""Run a scenario of the tests of crashes in a process of its own.

A scenario forks processes that may be killed. A fork takes milliseconds where a new process would import torch for
seconds. It is safe because there is one thread.
"""

import contextlib
import hashlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from functools import partial
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver, FileLogger, LRScheduler, ModelEma
from fit_callbacks.checkpoint import read
from fit_core import Callback, Runner
from scene import batches, flat, network
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR


def fork(function):
    """Start a process that runs `function`, and return its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(child):
    """Wait for a process, and return its exit status, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(state):
    """A hash of weights, optimizer, schedule, average, best value."""
    saved = state.state_dict()
    parts = [saved[key] for key in ("model", "optimizer", "callbacks", "epoch", "global_step", "history")]
    return hashlib.sha256(repr(flat(parts)).encode()).hexdigest()


class At(Callback):
    """Does something at the n-th training batch, or validation batch, that this process sees at a hook."""

    def __init__(self, number, action, hook="on_batch_end", training=True):
        self.left, self.action, self.training = number, action, training
        setattr(self, hook, self.count)

    def count(self, state):
        if state.is_train == self.training:
            self.left -= 1
            if self.left == 0:
                self.action()


def train(folder, *callbacks, epochs=3, resume="auto", result=None, accumulate_steps=2, **options):
    torch.manual_seed(0)
    runner = Runner(
        model := network(),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        nn.CrossEntropyLoss(),
        callbacks=[
            ModelEma(0.9),
            FileLogger(folder / "log.csv"),
            CheckpointSaver(folder, every_steps=1, resume=resume, **options),
            LRScheduler(lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)),
            *callbacks,
        ],
        accumulate_steps=accumulate_steps,
    )
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runner.fit(batches(), epochs=epochs, val_loader=batches(seed=1))
    (folder / (result or "digest")).write_text(digest(runner.state) + (folder / "log.csv").read_text())
    return out.getvalue()


def send_to_itself(number):
    os.kill(os.getpid(), number)


kill = partial(send_to_itself, signal.SIGKILL)


def killed_at_every_step(folder):
    """kill -9 in each batch, before and after it was saved. Then resume, killed up to twice more."""
    assert ended(fork(lambda: train(folder / "gold"))) == 0
    gold = (folder / "gold" / "digest").read_text()
    wrong = []
    for hook in ("on_batch_end", "on_checkpoint", "on_after_backward"):
        for number in range(1, 16):
            run = folder / f"{hook}-{number}"
            interruptions = (number, 2, 1) if hook == "on_checkpoint" else (number,)  # several in an epoch
            stops = [(At(batch, kill, hook),) for batch in interruptions]
            statuses = [ended(fork(partial(train, run, *stop))) for stop in (*stops, ())]
            if statuses[0] != -9 or statuses[-1] != 0 or (run / "digest").read_text() != gold:
                wrong.append([hook, number, statuses])
    return {"wrong": wrong}


class Wide(nn.Linear):
    def __init__(self):
        super().__init__(2048, 3072)  # 25 MB of weights, 50 MB with momentum


def save_large(folder):
    model = Wide()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    data = [(torch.ones(1, 2048), torch.zeros(1, 3072))] * 1000
    saver = CheckpointSaver(folder, every_steps=1, resume="auto", save_on_signal=False)
    with contextlib.redirect_stdout(io.StringIO()):
        Runner(model, optimizer, nn.MSELoss(), callbacks=[saver]).fit(data)


def killed_while_writing(folder):
    """kill -9 at random moments of writing 50 MB. A file with a final name is whole, and a resume uses it."""
    rng = random.Random(0)
    folder.mkdir()
    steps, partial = [], 0
    while len(steps) < 12 or not partial:  # until a kill has come while a file was written
        child = fork(lambda: save_large(folder))
        part = folder / ".last.pt.part"
        begun = part.stat().st_mtime_ns if part.exists() else 0
        while not part.exists() or part.stat().st_mtime_ns == begun:  # until it writes
            time.sleep(0.001)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(rng.uniform(0, 0.3) if steps else 0)
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -9
        partial += part.exists()
        wholes = {path.name: read(path)["global_step"] for path in folder.glob("*.pt")}
        steps.append(max(wholes.values(), default=0))
    return {"steps": steps, "partial": partial}


def disk_full(folder):
    """The disk takes at most one MB per file. The checkpoint before stays, and no partial file."""
    assert ended(fork(lambda: train(folder, epochs=1))) == 0
    before = (folder / "last.pt").read_bytes()

    def fill():
        model = Wide()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        saver = CheckpointSaver(folder, resume=False)
        try:
            Runner(model, optimizer, nn.MSELoss(), callbacks=[saver]).fit([(torch.ones(1, 2048), torch.zeros(1, 3072))])
        except Exception as error:
            (folder / "error").write_text(f"{type(error).__name__}: {error}")

    status = ended(fork(fill))
    kept = (folder / "previous-1" / "last.pt").read_bytes() == before
    return {
        "status": status,
        "error": (folder / "error").read_text(),
        "intact": kept,
        "left": sorted(path.name for path in folder.iterdir()),
    }


def signals(folder):
    """Signals in training, validation and saving."""
    assert ended(fork(lambda: train(folder / "gold"))) == 0
    gold = (folder / "gold" / "digest").read_text()
    results = {}
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        send = partial(send_to_itself, getattr(signal, name))
        for place, at in (
            ("training", At(7, send)),
            ("saving", At(7, send, "on_checkpoint")),
            ("validation", At(8, send, training=False)),
        ):
            run = folder / f"{name}-{place}"

            def stop(run=run, at=at):
                try:
                    train(run, at)
                except KeyboardInterrupt:
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
                    os.kill(os.getpid(), signal.SIGINT)  # as Python itself ends a program

            status = ended(fork(stop))
            steps = read(run / "last.pt")["global_step"]
            again = ended(fork(partial(train, run)))
            results[f"{name} {place}"] = [status, steps, again, (run / "digest").read_text() == gold]
    return results


def second_signal(folder):
    """A second SIGTERM changes nothing, nor a Ctrl-C that is repeated at once. One that a person repeats is the end."""

    def stuck():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        (folder / "first").write_text("noted")
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)
        (folder / "second").write_text("never")

    def run():
        try:
            train(folder, At(3, stuck))
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    folder.mkdir()
    status = ended(fork(run))
    return {"status": status, "first": (folder / "first").exists(), "second": (folder / "second").exists()}


def ranks(folder):
    """Two gloo processes, of which one is asked to stop, or killed. They agree on the step."""

    def process(rank, run, *callbacks, seed=0, world=2):
        os.environ.update(MASTER_ADDR="localhost", RANK=str(rank), WORLD_SIZE=str(world))
        store = f"file://{run}/store-{time.monotonic_ns() if world == 1 else run.joinpath('attempt').read_text()}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        torch.manual_seed(rank + seed)
        model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.3))
        model = nn.parallel.DistributedDataParallel(model)
        runner = Runner(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            nn.CrossEntropyLoss(),
            callbacks=[CheckpointSaver(run, every_steps=2, resume="auto"), ModelEma(0.9), *callbacks],
        )
        with contextlib.redirect_stdout(io.StringIO()):
            runner.fit(batches(seed=rank), epochs=3, val_loader=batches(seed=5)[: 1 + rank])
        (run / f"digest-{rank}").write_text(digest(runner.state) + str(torch.get_rng_state().sum()))
        torch.distributed.barrier()

    def both(run, attempt, *callbacks, seed=0):
        run.mkdir(exist_ok=True)
        (run / "attempt").write_text(str(attempt))
        children = [
            fork(lambda rank=rank: process(rank, run, *(callbacks if rank else ()), seed=seed)) for rank in range(2)
        ]
        return [ended(child) for child in children]

    gold = both(folder / "gold", 0)
    digests = [(folder / "gold" / f"digest-{rank}").read_text() for rank in range(2)]
    asked = both(folder / "asked", 0, At(7, partial(send_to_itself, signal.SIGTERM)))
    stopped_at = read(folder / "asked" / "last.pt")["global_step"]
    validating = both(folder / "validating", 0, At(3, partial(send_to_itself, signal.SIGTERM), training=False))
    validated_at = read(folder / "validating" / "last.pt")["global_step"]
    resumed, same = [], []
    for name in ("asked", "validating"):
        resumed.append(both(folder / name, 1, seed=50))
        same.append([(folder / name / f"digest-{rank}").read_text() for rank in range(2)] == digests)
    killed = both(folder / "killed", 0, At(9, kill))
    after = both(folder / "killed", 1, seed=70)
    same.append([(folder / "killed" / f"digest-{rank}").read_text() for rank in range(2)] == digests)
    return {
        "gold": gold,
        "asked": asked,
        "stopped_at": stopped_at,
        "validating": validating,
        "validated_at": validated_at,
        "resumed": resumed,
        "killed": killed[1],
        "after": after,
        "same": same,
    }


def run(scenario, *arguments):
    """Run a scenario as a program of its own would."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # A shell's background job, in which the tests may run, ignores Ctrl-C, and nohup SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as warm:  # so that what is imported late is there when it forks
        train(Path(warm))
    return scenario(*arguments)

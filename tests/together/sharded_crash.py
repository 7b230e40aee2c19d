"""Run a scenario of the tests of sharded checkpoints in a process that forks, as in tests/callbacks/crash.py."""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from datetime import timedelta
from functools import partial
from itertools import accumulate

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp
from fit_callbacks import CheckpointSaver, ModelEma
from fit_callbacks.checkpoint import read
from fit_core import Callback, Runner
from sharded import loaders, network, runner, sharded, weights
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh


def start(folder, world, function, attempt, timeout=60):
    """Start processes of a gloo group that run `function(folder)`. Return their numbers."""
    return [_fork(partial(_process, folder, rank, world, function, attempt, timeout)) for rank in range(world)]


def _process(folder, rank, world, function, attempt, timeout):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    store = f"file://{folder}/store-{attempt}"
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        function(folder)
    distributed.barrier()


def _fork(function):
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        if not os.environ.get("QUIET"):
            traceback.print_exc()
    os._exit(code)


def ended(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


class Wide(nn.Module):
    """25 MB of weights, 50 MB with momentum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1024, 3072), nn.Linear(3072, 1024)

    def forward(self, input):
        return self.second(self.first(input))


def save_large(folder, background=False, saver=CheckpointSaver, epochs=1):
    torch.manual_seed(0)
    model = sharded(Wide())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    callback = saver(folder / "run", every_steps=1, resume="auto", save_on_signal=False, background=background)
    data = [(torch.ones(1, 1024), torch.zeros(1, 1024))] * (1000 if saver is CheckpointSaver else 2)
    Runner(model, optimizer, nn.MSELoss(), callbacks=[callback]).fit(data, epochs=epochs)


def killed_while_saving(folder):
    """kill -9 of any rank at random moments of a save. A file with a final name is whole, and a resume uses it."""
    rng = random.Random(0)
    run, steps, partial_ones = folder / "run", [], 0
    run.mkdir()
    os.environ["QUIET"] = "1"
    while len(steps) < 6 or not partial_ones:  # until some kills have come while shards were written
        save = partial(save_large, background=len(steps) % 2 == 1)
        children = start(folder, 2, save, len(steps), timeout=15)  # gloo does not always see that the other is gone
        before, saves = set(run.glob("shards-*")), 0
        while saves <= len(steps) % 3:  # until it writes, for the first time or later
            new = set(run.glob("shards-*")) - before
            before, saves = before | new, saves + len(new)
            time.sleep(0.001)
            assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children)
        time.sleep(rng.uniform(0, 0.2) if steps else 0)
        victim = rng.choice(children)
        os.kill(victim, signal.SIGKILL)
        statuses = dict(zip(children, ended(children), strict=True))
        assert statuses.pop(victim) == -9
        assert set(statuses.values()) == {1}  # The other one has noticed.
        contents = {path.name: read(path) for path in run.glob("*.pt")}
        used = {torch.load(path, weights_only=True)["shards"]["folder"] for path in run.glob("*.pt")}
        partial_ones += {path.name for path in run.glob("shards-*")} > used
        steps.append(max((content["global_step"] for content in contents.values()), default=0))
    return {"steps": steps, "left": len(list(run.glob("shards-*")))}


class Stop(Callback):
    """Stops after some steps, and notes the state there."""

    def __init__(self, steps):
        self.steps = steps

    def on_checkpoint(self, state):
        state.should_stop = state.global_step == self.steps


def train(folder, name, stop=None, resume="auto", result=None, seed=None, mesh=None):
    """Train a part of a run, and write down what it starts from and what it ends with."""
    options = {"mesh": init_device_mesh("cpu", mesh, mesh_dim_names=("copies", "shards"))} if mesh else {}
    model, ema = network(seed=distributed.get_world_size() if seed is None else seed, **options), ModelEma(0.9)
    seen = []

    class Start(Callback):
        def on_epoch_begin(self, state):
            seen.append(everything(state, ema))

    saver = CheckpointSaver(folder / name, resume=resume)
    run = runner(model, ema, saver, Start(), *([Stop(stop)] if stop else []))
    train_loader, val_loader = loaders()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(train_loader, epochs=3, val_loader=val_loader)
    last = everything(run.state, ema)
    if run.state.rank == 0 and result:
        messages = [str(warning.message) for warning in caught if "resumed with other" in str(warning.message)]
        parts = {"first": seen[0] if seen else {}, "last": last, "said": messages}
        torch.save(parts, folder / result)


def everything(state, ema):
    full = {}
    for number, part in state.optimizer.state_dict()["state"].items():
        momentum = part["momentum_buffer"]
        full[f"momentum {number}"] = momentum.full_tensor() if hasattr(momentum, "full_tensor") else momentum
    averages = {f"average {name}": value for name, value in weights(ema.model).items()}
    return {name: value.clone() for name, value in {**weights(state.model), **averages, **full}.items()}


def other_processes(folder):
    """4 to 2, 2 to 4, to 1 and from a plain file: the same weights, optimizer and average where it is resumed."""
    assert ended(start(folder, 1, partial(train, name="gold", result="gold.pt"), "gold")) == [0]
    gold = torch.load(folder / "gold.pt", weights_only=True)
    results = {}
    for before, after in ((4, 2), (2, 4), (2, 1), (1, 2)):
        name = f"{before}-{after}"
        assert ended(start(folder, before, partial(train, name=name, stop=8), f"{name}-a")) == [0] * before
        saved = read(folder / name / "last.pt")
        if before == 1:  # a plain run
            assert "shards" not in torch.load(folder / name / "last.pt", weights_only=True)
        assert ended(start(folder, after, partial(train, name=name, result=f"{name}.pt"), f"{name}-b")) == [0] * after
        result = torch.load(folder / f"{name}.pt", weights_only=True)
        momenta = {f"momentum {n}": part["momentum_buffer"] for n, part in saved["optimizer"]["state"].items()}
        averages = {f"average {key}": value for key, value in saved["callbacks"]["ModelEma"]["model"].items()}
        expected = {**saved["model"], **averages, **momenta}
        results[name] = {
            "exact": result["first"].keys() == expected.keys()
            and all(torch.equal(value, expected[key]) for key, value in result["first"].items()),
            "said": result["said"],
            "last": max(float((v - gold["last"][k]).abs().max()) for k, v in result["last"].items()),
        }
    torch.save(read(folder / "2-4" / "last.pt"), folder / "whole.pt")  # the documented line
    whole = torch.load(folder / "whole.pt", weights_only=True)
    results["whole"] = sorted(whole["model"]), [tuple(value.shape) for value in whole["model"].values()]
    resume = partial(train, name="from-whole", resume=str(folder / "whole.pt"), result="whole-result.pt")
    for world in (1, 2):
        assert ended(start(folder, world, resume, f"whole-{world}")) == [0] * world
        first = torch.load(folder / "whole-result.pt", weights_only=True)["last"]
        results[f"whole on {world}"] = all(torch.equal(first[name], value) for name, value in whole["model"].items())
    return results


def hybrid(folder):
    """Four processes that are two copies of two shards, against one process, and resumed on two."""
    assert ended(start(folder, 1, partial(train, name="gold", result="gold.pt", seed=0), "gold")) == [0]
    assert (
        ended(start(folder, 4, partial(train, name="hybrid", result="hybrid.pt", seed=0, mesh=(2, 2)), "a")) == [0] * 4
    )
    assert ended(start(folder, 4, partial(train, name="again", stop=8, seed=0, mesh=(2, 2)), "b")) == [0] * 4
    assert ended(start(folder, 4, partial(train, name="again", result="again.pt", mesh=(2, 2)), "c")) == [0] * 4
    gold, full, again = (torch.load(folder / f"{n}.pt", weights_only=True)["last"] for n in ("gold", "hybrid", "again"))
    return {
        "difference": max(float((value - gold[name]).abs().max()) for name, value in full.items()),
        "same": all(torch.equal(value, again[name]) for name, value in full.items()),
    }


def peaks(folder):
    """The most bytes that a save and a resume allocate on rank 0 at the same time, by the number of processes."""
    results = {}
    for world in (2, 4):
        run = folder / str(world)
        run.mkdir()
        for attempt in range(2):  # the second is a resume
            assert (
                ended(start(run, world, partial(save_large, saver=Measured, epochs=1 + attempt), attempt))
                == [0] * world
            )
        results[world] = [json.loads(path.read_text()) for path in sorted(run.glob("peak-*"))]
    return results


class Measured(CheckpointSaver):
    """Writes down the most bytes of tensors that it has allocated at the same time."""

    def on_begin(self, state):
        self._measured("resume", super().on_begin, state)

    def on_checkpoint(self, state):
        self._measured("save", super().on_checkpoint, state)

    def _measured(self, name, hook, state):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            hook(state)
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        if state.rank == 0:
            (self.save_dir.parent / f"peak-{name}").write_text(str(max(accumulate(sizes), default=0)))

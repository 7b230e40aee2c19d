"""A run that is stopped after any batch and goes on in another process ends with the same bits."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset


class Augmented(Dataset):
    """Eleven samples that are never twice the same: noise of torch, NumPy and Python."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        noise = torch.randn(4) + float(np.random.rand()) + random.random()
        return noise + index, torch.tensor(index % 3)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(4), torch.randint(3, ())


class Finite(IterableDataset):
    def __iter__(self):
        for _ in range(11):
            yield torch.randn(4), torch.randint(3, ())


class Save(Callback):
    """Keeps the bytes of the run at each checkpoint."""

    def __init__(self):
        self.saved = []

    def on_checkpoint(self, state):
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        self.saved.append(buffer.getvalue())


class Stop(Callback):
    def __init__(self, after):
        self.left = after

    def on_batch_end(self, state):
        self.left -= 1
        state.should_stop = self.left == 0


class Schedule(Callback):
    """Steps a scheduler each optimizer step and draws a number at every hook it can."""

    def on_begin(self, state):
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(state.optimizer, 0.97)

    def on_epoch_begin(self, state):
        torch.rand(1)

    def on_loader_begin(self, state):
        random.random()

    def on_batch_end(self, state):
        if state.is_optimizer_step:
            self.scheduler.step()

    def on_epoch_end(self, state):
        self.scheduler.step()
        np.random.rand()

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict):
        self.scheduler.load_state_dict(state_dict)


def correct(output, target):
    return (output.argmax(1) == target).double().mean()


def loaders(kind, workers):
    options = {"batch_size": 3, "num_workers": workers}
    train = {
        "shuffled": lambda: DataLoader(Augmented(), shuffle=True, **options),
        "generator": lambda: DataLoader(
            Augmented(), shuffle=True, generator=torch.Generator().manual_seed(5), **options
        ),
        "iterable": lambda: DataLoader(Finite(), **options),
        "endless": lambda: DataLoader(Endless(), **options),
    }[kind]()
    return train, DataLoader(Augmented(), batch_size=4)


def make(callbacks=(), **options):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), [correct], callbacks, **options)


def fingerprint(runner):
    state = runner.state.state_dict()
    digest = hashlib.sha256()
    buffers = [state["model"], state["optimizer"]["state"], state["grad_scaler"], state["callbacks"], state["history"]]
    digest.update(repr([_plain(part) for part in buffers]).encode())
    digest.update(repr((state["epoch"], state["global_step"], state["samples_seen"])).encode())
    return digest.hexdigest()


def _plain(value):
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


CASES = {
    "shuffled": ("shuffled", 0, {}, {"epochs": 3}),
    "own generator": ("generator", 0, {}, {"epochs": 3}),
    "accumulation": ("shuffled", 0, {"accumulate_steps": 3}, {"epochs": 3}),
    "fp16": ("shuffled", 0, {"use_fp16": True, "accumulate_steps": 2}, {"epochs": 3}),
    "bf16": ("shuffled", 0, {"use_bf16": True}, {"epochs": 2}),
    "steps_per_epoch": ("shuffled", 0, {"accumulate_steps": 2}, {"epochs": 4, "steps_per_epoch": 3}),
    "no len": ("iterable", 0, {}, {"epochs": 3}),
    "no len, accumulation": ("iterable", 0, {"accumulate_steps": 3}, {"epochs": 3}),
    "endless": ("endless", 0, {}, {"epochs": 3, "steps_per_epoch": 4}),
    "validate every second": ("shuffled", 0, {}, {"epochs": 4, "validate_every": 2}),
    "two workers": ("shuffled", 2, {}, {"epochs": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_any_batch_and_resumed_ends_with_the_same_bits(case):
    kind, workers, options, arguments = CASES[case]

    def run(callbacks, saved=None, validate=True):
        runner = make([*callbacks, Schedule()], **options)
        train, val = loaders(kind, workers)
        if saved is not None:
            torch.rand(17)  # another process is somewhere else with its random numbers
            runner.state.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        runner.fit(train, val_loader=val, **arguments)
        return runner

    save = Save()
    gold = fingerprint(run([save]))
    places = save.saved if workers == 0 else save.saved[1::3]  # starting workers takes its time
    assert len(places) >= 3
    for saved in places:
        assert fingerprint(run([], saved)) == gold


def test_three_interruptions_in_one_epoch_are_no_interruption():
    save = Save()
    gold = make([save, Schedule()])
    gold.fit(loaders("shuffled", 0)[0], epochs=2)
    saved = None
    for batches in (1, 1, 2, 99):
        save = Save()
        runner = make([save, Schedule(), Stop(batches)])
        if saved:
            runner.state.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        runner.fit(loaders("shuffled", 0)[0], epochs=2)
        saved = save.saved[-1]
    assert fingerprint(runner) == fingerprint(gold)


class StopInValidation(Callback):
    def on_batch_end(self, state):
        if not state.is_train and state.epoch == 1:
            state.should_stop = True


@pytest.mark.parametrize("kind", ["shuffled", "iterable"])
def test_stopped_in_validation_the_run_validates_again_and_ends_with_the_same_bits(kind):
    train, val = loaders(kind, 0)
    gold = make([Schedule()])
    gold.fit(train, epochs=3, val_loader=val)

    stopped = make([Schedule(), StopInValidation()])
    stopped.fit(train, epochs=3, val_loader=val)
    assert [row["epoch"] for row in stopped.state.history] == [1]
    saved = io.BytesIO()
    torch.save(stopped.state.state_dict(), saved)
    saved.seek(0)

    resumed = make([Schedule()])
    resumed.state.load_state_dict(torch.load(saved, weights_only=True))
    resumed.fit(train, epochs=3, val_loader=val)
    assert fingerprint(resumed) == fingerprint(gold)


def test_a_state_loaded_in_on_begin_reaches_callbacks_before_and_after(tmp_path):
    save = Save()
    gold = make([save, Schedule()])
    gold.fit(loaders("shuffled", 0)[0], epochs=2)

    class Load(Callback):
        def on_begin(self, state):
            state.load_state_dict(torch.load(io.BytesIO(save.saved[2]), weights_only=True))

    for order in ([Load(), Schedule()], [Schedule(), Load()]):
        runner = make(order)
        runner.fit(loaders("shuffled", 0)[0], epochs=2)
        assert fingerprint(runner) == fingerprint(gold)


def test_a_finished_run_that_is_resumed_does_no_step():
    save = Save()
    make([save, Schedule()]).fit(loaders("shuffled", 0)[0], epochs=2)
    again = Save()
    runner = make([again, Schedule()])
    runner.state.load_state_dict(torch.load(io.BytesIO(save.saved[-1]), weights_only=True))
    history = runner.fit(loaders("shuffled", 0)[0], epochs=2)
    assert again.saved == []
    assert [row["epoch"] for row in history] == [1, 2]


class Stateful:
    """A loader that restores itself and refuses to be read twice, as StatefulDataLoader would be slow to."""

    def __init__(self):
        self.place = 0
        self.given = []

    def __len__(self):
        return 4

    def __iter__(self):
        while self.place < 4:
            self.place += 1
            self.given.append(self.place)
            yield torch.full((2, 4), float(self.place)) + torch.randn(2, 4), torch.tensor([0, self.place % 3])
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state_dict):
        self.place = state_dict["place"]


def test_a_loader_with_a_state_of_its_own_is_not_read_again():
    save = Save()
    gold = make([save])
    gold.fit(Stateful(), epochs=2)
    for number, saved in enumerate(save.saved):
        runner, loader = make(), Stateful()
        runner.state.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
        runner.fit(loader, epochs=2)
        assert fingerprint(runner) == fingerprint(gold)
        batches_done = [1, 2, 3, 4, 4, 5, 6, 7, 8, 8][number]  # the fifth and the last stand at the end of an epoch
        assert len(loader.given) == 8 - batches_done


def test_other_settings_are_named_in_one_warning():
    save = Save()
    make([save], accumulate_steps=2).fit(loaders("shuffled", 0)[0], epochs=2)
    runner = make()
    runner.state.load_state_dict(torch.load(io.BytesIO(save.saved[0]), weights_only=True))
    with pytest.warns(UserWarning, match=r"epochs 2 -> 3, batches per epoch 4 -> 5, batch_size 3 -> 2, accumulate_s"):
        runner.fit(DataLoader(Augmented(), batch_size=2, drop_last=True), epochs=3)
    assert [row["epoch"] for row in runner.state.history] == [1, 2, 3]


def test_a_metric_without_memory_is_named():
    class Forgetful:
        def reset(self):
            pass

        def update(self, output, target):
            pass

        def compute(self):
            return 1.0

    save = Save()
    make([save]).fit(loaders("shuffled", 0)[0])
    runner = make()
    runner.state.metrics.append(Forgetful())
    runner.state.load_state_dict(torch.load(io.BytesIO(save.saved[0]), weights_only=True))
    with pytest.warns(UserWarning, match="Forgetful of the interrupted epoch will miss the batches"):
        runner.fit(loaders("shuffled", 0)[0])


def test_a_state_of_another_model_is_refused_whole():
    save = Save()
    make([save]).fit(loaders("shuffled", 0)[0])
    saved = torch.load(io.BytesIO(save.saved[-1]), weights_only=True)
    model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runner = Runner(model, torch.optim.SGD(model.parameters()), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"another model\. Nothing was loaded") as caught:
        runner.state.load_state_dict(saved)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "  missing: 2.weight, 2.bias",
        "  unexpected: 4.weight, 4.bias",
        "  shape: 0.weight (8, 4) -> (9, 4), 0.bias (8,) -> (9,), 1.weight (8,) -> (9,), 1.bias (8,) -> (9,), "
        "1.running_mean (8,) -> (9,), 1.running_var (8,) -> (9,)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_of_a_newer_format_is_refused():
    save = Save()
    make([save]).fit(loaders("shuffled", 0)[0])
    saved = torch.load(io.BytesIO(save.saved[-1]), weights_only=True)
    saved["format"] = 3
    with pytest.raises(ValueError, match="has format 3, and this fit-core reads up to 1: upgrade fit-core"):
        make().state.load_state_dict(saved)


def test_the_saved_model_has_bare_names():
    model = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Linear(4, 3), backend="eager"))
    compiled = torch.compile(model, backend="eager")
    runner = Runner(compiled, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    runner.fit(loaders("shuffled", 0)[0])
    saved = runner.state.state_dict()
    assert list(saved["model"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    plain.load_state_dict(saved["model"])
    again = Runner(torch.compile(plain, backend="eager"), torch.optim.SGD(plain.parameters(), lr=0.1), nn.MSELoss())
    again.state.load_state_dict(saved)


def test_there_is_no_state_before_fit():
    with pytest.raises(RuntimeError, match="once fit has begun"):
        make().state.state_dict()


SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, {folder!r})
from test_resume import Callback, Schedule, fingerprint, loaders, make

folder, kill_after = sys.argv[1], int(sys.argv[2])
path = os.path.join(folder, "run.pt")

class SaveOrDie(Callback):
    seen = 0
    def on_checkpoint(self, state):
        torch.save(state.state_dict(), path)
        self.seen += 1
        if self.seen == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

runner = make([SaveOrDie(), Schedule()], accumulate_steps=2)
if os.path.exists(path):
    runner.state.load_state_dict(torch.load(path, weights_only=True))
runner.fit(loaders("shuffled", 0)[0], epochs=3, val_loader=loaders("shuffled", 0)[1])
print(fingerprint(runner))
"""


def test_killed_processes_leave_off_and_go_on_with_the_same_bits(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT.format(folder=os.path.dirname(__file__))))

    def process(folder, kill_after):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(script), str(folder), str(kill_after)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    gold = process(tmp_path / "gold", 0)
    assert gold.returncode == 0, gold.stderr
    for _ in range(2):
        assert process(tmp_path / "killed", 5).returncode == -signal.SIGKILL
    last = process(tmp_path / "killed", 0)
    assert last.stdout == gold.stdout, last.stderr

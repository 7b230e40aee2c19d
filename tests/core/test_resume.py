"""A run that is stopped after any batch and continues in another process ends with the same bits."""

import io
import signal

import pytest
import torch
from classifier import Schedule, Stateful, fingerprint, loaders, make
from fit_core import Callback
from processes import run_program
from scene import Snapshots, load


class Stop(Callback):
    def __init__(self, after):
        self.left = after

    def on_batch_end(self, state):
        self.left -= 1
        state.should_stop = self.left == 0


CASES = {
    "shuffled": ("shuffled", 0, {}, {"epochs": 3}),
    "own generator": ("generator", 0, {}, {"epochs": 3}),
    "own generator, whole batches": ("generator, whole batches", 0, {}, {"epochs": 3}),
    "own generator, steps_per_epoch": ("generator", 0, {}, {"epochs": 4, "steps_per_epoch": 3}),
    "draws at its end": ("draws at its end", 0, {"accumulate_steps": 2}, {"epochs": 3}),
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
            runner.state.load_state_dict(load(saved))
        runner.fit(train, val_loader=val, **arguments)
        return runner

    save = Snapshots()
    gold = fingerprint(run([save]))
    places = save.saved if workers == 0 else save.saved[1::3]  # starting workers takes its time
    assert len(places) >= 3
    for saved in places:
        assert fingerprint(run([], saved)) == gold


def test_three_interruptions_in_one_epoch_are_no_interruption():
    save = Snapshots()
    gold = make([save, Schedule()])
    gold.fit(loaders("shuffled", 0)[0], epochs=2)
    saved = None
    for batches in (1, 1, 2, 99):
        save = Snapshots()
        runner = make([save, Schedule(), Stop(batches)])
        if saved:
            runner.state.load_state_dict(load(saved))
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
    save = Snapshots()
    gold = make([save, Schedule()])
    gold.fit(loaders("shuffled", 0)[0], epochs=2)

    class Load(Callback):
        def on_begin(self, state):
            state.load_state_dict(load(save.saved[2]))

    for order in ([Load(), Schedule()], [Schedule(), Load()]):
        runner = make(order)
        runner.fit(loaders("shuffled", 0)[0], epochs=2)
        assert fingerprint(runner) == fingerprint(gold)


def test_a_finished_run_that_is_resumed_does_no_step():
    save = Snapshots()
    make([save, Schedule()]).fit(loaders("shuffled", 0)[0], epochs=2)
    again = Snapshots()
    runner = make([again, Schedule()])
    runner.state.load_state_dict(load(save.saved[-1]))
    history = runner.fit(loaders("shuffled", 0)[0], epochs=2)
    assert again.saved == []
    assert [row["epoch"] for row in history] == [1, 2]


def test_a_loader_with_a_state_of_its_own_is_not_read_again():
    save = Snapshots()
    gold = make([save])
    gold.fit(Stateful(), epochs=2)
    for number, saved in enumerate(save.saved):
        runner, loader = make(), Stateful()
        runner.state.load_state_dict(load(saved))
        runner.fit(loader, epochs=2)
        assert fingerprint(runner) == fingerprint(gold)
        batches_done = [1, 2, 3, 4, 4, 5, 6, 7, 8, 8][number]  # the fifth and the last stand at the end of an epoch
        assert len(loader.given) == 8 - batches_done


SCRIPT = """
import os, signal, sys, torch
from classifier import Schedule, fingerprint, loaders, make
from fit_core import Callback

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
    script.write_text(SCRIPT)

    def process(folder, kill_after):
        folder.mkdir(exist_ok=True)
        return run_program(script, folder, kill_after)

    gold = process(tmp_path / "gold", 0)
    assert gold.returncode == 0, gold.stderr
    for _ in range(2):
        assert process(tmp_path / "killed", 5).returncode == -signal.SIGKILL
    last = process(tmp_path / "killed", 0)
    assert last.stdout == gold.stdout, last.stderr

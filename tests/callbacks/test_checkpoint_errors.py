"""An error while a checkpoint is written reaches the user, in the thread too, and nothing else is lost."""

import os
import shutil
import signal
import threading
import time
from fractions import Fraction

import fit_callbacks.checkpoint.commit
import pytest
import torch
from checkpoints import Values
from fit_callbacks import CheckpointError, CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import batches, make
from torch import nn

BACKGROUND = pytest.mark.parametrize("background", [False, True])


class Stateful(Callback):
    """A callback with a given state."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state_dict):
        self.state = state_dict


class Act(Callback):
    """Does something after the first epoch, once it is saved in a folder."""

    def __init__(self, folder, action):
        self.folder, self.action = folder, action

    def on_epoch_begin(self, state):
        if state.epoch == 1:
            while not (self.folder / "last.pt").exists():  # A thread may be writing it.
                time.sleep(0.01)
            self.action()


@BACKGROUND
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), "got a lock at callbacks.Stateful.deep.0.value: "),
        (Fraction(1, 3), r"got a Fraction at callbacks.Stateful.deep.0.value: Fraction\(1, 3\)"),
        (lambda: None, "got a function at callbacks.Stateful.deep.0.value: "),
    ],
)
def test_what_cannot_be_loaded_again_is_refused_at_the_first_save(tmp_path, background, value, message):
    saver = CheckpointSaver(tmp_path, background=background, on_error="warn")
    advice = r"Leave it out of Stateful.state_dict\(\), or convert it there"
    with pytest.raises(TypeError, match=f"{message}.*{advice}"):
        make(saver, Stateful(fine=torch.ones(2), deep=[{"value": value}])).fit(batches(), epochs=3)
    assert not list(tmp_path.glob("*.pt*"))


def test_what_is_in_the_logs_is_named_too(tmp_path):
    class Log(Callback):
        def on_epoch_end(self, state):
            state.logs["ratio"] = Fraction(1, 2)

    with pytest.raises(TypeError, match=r"got a Fraction at logs\.ratio: .*Put plain values there"):
        make(Log(), CheckpointSaver(tmp_path)).fit(batches(), epochs=2)


def test_what_torch_loads_is_saved(tmp_path):
    state = {"none": None, "size": torch.Size([2]), "complex": 1j, "bytes": b"x", "nested": ({1: "a"}, [])}
    make(CheckpointSaver(tmp_path), Stateful(**state)).fit(batches())
    assert read(tmp_path / "last.pt")["callbacks"]["Stateful"] == state


@BACKGROUND
def test_a_folder_that_is_gone_is_named(tmp_path, background):
    folder = tmp_path / "run"
    gone = Act(folder, lambda: shutil.move(folder, tmp_path / "moved"))
    with pytest.raises(
        CheckpointError, match=r"cannot save .*run: the folder has been moved or deleted. Create it again"
    ):
        make(CheckpointSaver(folder, background=background), gone).fit(batches(), epochs=3)
    assert read(tmp_path / "moved" / "last.pt")["epoch"] >= 1


@BACKGROUND
def test_a_rename_that_fails_is_named_and_leaves_the_last_checkpoint(tmp_path, background, monkeypatch):
    real = os.replace

    def replace(source, target):
        if os.path.basename(target) == "last.pt":
            raise PermissionError(13, "not today", str(target))
        real(source, target)

    deny = Act(tmp_path, lambda: monkeypatch.setattr(os, "replace", replace))
    with pytest.raises(CheckpointError, match=r"not today.*The checkpoints before it are intact"):
        make(CheckpointSaver(tmp_path, background=background), deny).fit(batches(), epochs=3)
    assert read(tmp_path / "last.pt")["epoch"] == 1
    assert not list(tmp_path.glob(".last.pt.part"))


@BACKGROUND
def test_any_error_of_the_writer_reaches_the_user(tmp_path, background, monkeypatch):
    def fail(content, part):
        raise MemoryError("no memory")

    monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", fail)
    with pytest.raises(CheckpointError, match="no memory"):
        make(CheckpointSaver(tmp_path, background=background)).fit(batches())


def test_the_error_of_a_run_is_not_replaced_by_that_of_the_writer(tmp_path, monkeypatch):
    def fail(content, part):
        raise OSError("no disk")

    class Fail(Callback):
        def on_checkpoint(self, state):
            if state.epoch == 1:
                raise ZeroDivisionError

    monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", fail)
    with pytest.warns(UserWarning, match="CheckpointError: cannot save .*no disk"), pytest.raises(ZeroDivisionError):
        make(CheckpointSaver(tmp_path, background=True), Fail()).fit(batches(), epochs=2)


@BACKGROUND
def test_with_a_warning_the_run_continues_and_saves_when_it_can(tmp_path, background, monkeypatch):
    real, epochs = fit_callbacks.checkpoint.commit.write, []

    def write(content, part):
        epochs.append(content["epoch"])
        if content["epoch"] == 2:
            raise OSError(28, "No space left on device")
        real(content, part)

    monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", write)
    saver = CheckpointSaver(tmp_path, "value", "min", keep=2, background=background, on_error="warn")
    with pytest.warns(UserWarning, match=r"No space left on device.*The run continues without it"):
        make(Values(0.5, 0.1, 0.3, 0.4), saver).fit(batches(), epochs=4)
    assert epochs == [1, 2, 3, 4]
    assert read(tmp_path / "last.pt")["epoch"] == 4
    assert read(tmp_path / "best.pt")["epoch"] == 3  # the second would be better, and is not there
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == ["epoch-0003.pt", "epoch-0004.pt"]


def test_a_last_save_that_failed_is_tried_again_at_the_end(tmp_path, monkeypatch):
    real, tries = fit_callbacks.checkpoint.commit.write, []

    def write(content, part):
        tries.append(part)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        real(content, part)

    monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", write)
    with pytest.warns(UserWarning, match="The run continues without it"):
        make(CheckpointSaver(tmp_path, on_error="warn")).fit(batches())
    assert read(tmp_path / "last.pt")["epoch"] == 1


def test_a_stop_by_a_signal_does_not_promise_what_was_not_saved(tmp_path, monkeypatch, capsys):
    def fail(content, part):
        raise OSError(28, "No space left on device")

    class Interrupt(Callback):
        def on_batch_end(self, state):
            monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", fail)
            signal.raise_signal(signal.SIGTERM)

    runner = make(Interrupt(), CheckpointSaver(tmp_path, on_error="warn"))
    with pytest.warns(UserWarning, match="The run continues without it"), pytest.raises(SystemExit) as stopped:
        runner.fit(batches())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert stopped.value.code == 143
    assert f"(checkpoint: {tmp_path}/last.pt of an earlier step)" in capsys.readouterr().out


def test_on_error_has_two_values(tmp_path):
    with pytest.raises(ValueError, match="expected on_error to be 'raise' or 'warn', got 'ignore'"):
        CheckpointSaver(tmp_path, on_error="ignore")


# What is not finite


class Spoil(Callback):
    """Spoils a tensor of the model in the second epoch."""

    def __init__(self, name):
        self.name = name

    def on_epoch_end(self, state):
        if state.epoch == 1:
            with torch.no_grad():
                state.model.get_parameter_or_buffer(self.name)[0] = float("nan")


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("low", torch.full((3,), torch.finfo(torch.float32).min))

    def get_parameter_or_buffer(self, name):
        return getattr(self, name)

    def forward(self, input):
        return self.linear(input) * self.phase.abs()


@pytest.mark.parametrize("name", ["phase", "mean"])
def test_nan_in_buffers_and_complex_weights_is_not_saved(tmp_path, name, capsys):
    make(CheckpointSaver(tmp_path), Spoil(name), model=Parts()).fit(batches(), epochs=3)
    assert read(tmp_path / "last.pt")["epoch"] == 1  # and the mask of -inf was no hindrance
    assert "is not saved, because its weights are nan or infinite" in capsys.readouterr().out

"""Checkpoints: which files there are, what they hold, and what never replaces them."""

import math
import os

import pytest
import torch
from checkpoints import Values, names
from fit_callbacks import CheckpointSaver, ModelEma
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import batches, flat, make, network
from torch import nn

# Files


def test_the_files_of_a_run(tmp_path):
    runner = make(CheckpointSaver(tmp_path), ModelEma(0.9))
    runner.fit(batches(), epochs=3, val_loader=batches(seed=1))
    assert names(tmp_path) == ["before-last.pt", "best.pt", "last.pt"]
    best, last, before = (read(tmp_path / name) for name in ("best.pt", "last.pt", "before-last.pt"))
    losses = [row["val/loss"] for row in runner.state.history]
    assert (last["epoch"], before["epoch"], best["epoch"]) == (3, 2, losses.index(min(losses)) + 1)
    assert best["monitor"] == {"name": "val/loss", "value": min(losses), "weights": "callbacks.ModelEma.model"}
    bare = network()
    bare.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True)["model"])
    assert flat(bare.state_dict()) == flat(runner.state.model.state_dict())
    assert last["callbacks"]["ModelEma"]["model"].keys() == last["model"].keys()


def test_every_so_many_steps(tmp_path):
    seen = []

    class Look(Callback):
        def on_batch_begin(self, state):
            if (tmp_path / "last.pt").exists():
                saved = read(tmp_path / "last.pt")
                seen.append((state.global_step, saved["global_step"]))

    make(CheckpointSaver(tmp_path, every_steps=2), Look()).fit(batches(), epochs=2)
    assert [saved for _, saved in seen] == [2, 2, 4, 5, 6, 6, 8, 8]


def test_nan_never_replaces_a_finite_checkpoint(tmp_path, capsys):
    data = batches()
    saver = CheckpointSaver(tmp_path, "train/loss", every_steps=1)

    class Poison(Callback):
        def on_batch_begin(self, state):
            if state.epoch == 1 and state.batch_idx == 2:
                state.input = state.input * float("nan")

    make(saver, Poison(), model=nn.Linear(6, 3)).fit(data, epochs=3)
    last, best = read(tmp_path / "last.pt"), read(tmp_path / "best.pt")
    assert last["global_step"] == 7
    assert best["epoch"] == 1
    for saved in (last, best):
        assert all(torch.isfinite(value).all() for value in saved["model"].values())
    out = capsys.readouterr().out
    assert "CheckpointSaver: step 8 is not saved, because its weights are nan or infinite. Add StopOnNonFinite()" in out


def test_a_criterion_that_is_nan_is_not_saved(tmp_path):
    runner = make(CheckpointSaver(tmp_path, "train/loss"))
    runner.state.criterion = nn.CrossEntropyLoss()
    runner.state.criterion.scale = nn.Parameter(torch.tensor(math.nan), requires_grad=False)
    runner.fit(batches())
    assert not (tmp_path / "last.pt").exists()


def test_files_of_others_stay(tmp_path):
    for name in ("epoch-0001.txt", "notes.md", "model.pt", ".hidden"):
        (tmp_path / name).write_text("mine")
    make(Values(3.0, 2.0, 1.0), CheckpointSaver(tmp_path, "value", "min", keep=2)).fit(batches((4,)), epochs=3)
    for name in ("epoch-0001.txt", "notes.md", "model.pt", ".hidden"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_new_run_sets_the_old_ones_checkpoints_aside(tmp_path, capsys):
    for number in range(3):
        make(CheckpointSaver(tmp_path), lr=0.1 / (number + 1)).fit(batches(), epochs=2)
    assert names(tmp_path) == ["before-last.pt", "best.pt", "last.pt", "previous-1", "previous-2"]
    for folder, lr in (("previous-1", 0.1), ("previous-2", 0.05), (".", 0.1 / 3)):
        assert read(tmp_path / folder / "last.pt")["optimizer"]["param_groups"][0]["lr"] == lr
    assert "earlier run" in capsys.readouterr().out


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    make(CheckpointSaver(tmp_path, keep=2)).fit(batches(), epochs=3)
    assert all(read(tmp_path / name)["epoch"] for name in names(tmp_path))
    assert (tmp_path / "best.pt").stat().st_ino != (tmp_path / "last.pt").stat().st_ino


def test_a_callback_that_raises_shows_in_the_traceback_and_loses_nothing(tmp_path):
    class Fail(Callback):
        def on_batch_end(self, state):
            if state.epoch == 1:
                raise LookupError("mine")

    with pytest.raises(LookupError) as caught:
        make(CheckpointSaver(tmp_path), Fail()).fit(batches(), epochs=2)
    assert caught.traceback[-1].name == "on_batch_end"
    assert read(tmp_path / "last.pt")["epoch"] == 1

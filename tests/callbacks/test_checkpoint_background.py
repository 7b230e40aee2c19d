"""Checkpoints that a thread writes."""

import threading

import fit_callbacks.checkpoint.commit
import pytest
from fit_callbacks import CheckpointError, CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import batches, flat, make
from torch import nn

# In the background


def test_the_background_writes_the_same_bits(tmp_path):
    for background in (False, True):
        folder = tmp_path / str(background)
        make(CheckpointSaver(folder, every_steps=1, background=background)).fit(batches(), epochs=3)
    for name in ("last.pt", "before-last.pt", "best.pt"):
        assert flat(read(tmp_path / "True" / name)) == flat(read(tmp_path / "False" / name))


def test_the_background_copies_at_once_and_the_next_save_waits(tmp_path, monkeypatch):
    may_write, log = threading.Event(), []
    real = fit_callbacks.checkpoint.commit.write

    def slow(content, part):
        assert may_write.wait(60)
        log.append(content["global_step"])
        real(content, part)

    monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", slow)

    class Steps(Callback):
        def on_batch_end(self, state):
            log.append(f"step {state.global_step}")
            if state.global_step == 3:
                may_write.set()

    saver = CheckpointSaver(tmp_path, every_steps=2, background=True)
    make(saver, Steps(), model=nn.Linear(6, 3)).fit(batches((8,) * 4))
    assert log[:3] == ["step 1", "step 2", "step 3"]  # the third step did not wait for the second's file
    assert [entry for entry in log if isinstance(entry, int)] == [2, 4, 4]
    assert read(tmp_path / "before-last.pt")["global_step"] == 4


def test_an_error_of_the_writer_reaches_the_user(tmp_path, monkeypatch):
    def fail(content, part):
        raise CheckpointError("the disk has gone")

    monkeypatch.setattr(fit_callbacks.checkpoint.commit, "write", fail)
    for every_steps, epochs in ((1, 1), (None, 1)):  # at the next save, and at the end of the run
        saver = CheckpointSaver(tmp_path, every_steps=every_steps, background=True)
        with pytest.raises(CheckpointError, match="the disk has gone"):
            make(saver).fit(batches(), epochs=epochs)

"""Folders, arguments and checkpoints that are refused before the first step."""

import os
import subprocess
import sys

import pytest
import torch
from fit_callbacks import CheckpointSaver
from fit_callbacks.checkpoint import read
from scene import Snapshots, Watch, batches, flat, make
from torch import nn

# Two runs in one folder


def test_two_savers_in_one_folder_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"one CheckpointSaver per folder, got two for .*\. Use different folders"):
        make(CheckpointSaver(tmp_path), CheckpointSaver(tmp_path / "." / "")).fit(batches())
    make(CheckpointSaver(tmp_path)).fit(batches())  # the folder is free again


ELSEWHERE = """
import sys
from fit_callbacks.checkpoint.lock import FolderLock
from pathlib import Path

lock = FolderLock()
lock.acquire(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_folder_of_another_process_is_refused_until_that_is_killed(tmp_path):
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RuntimeError, match=rf"another run is writing to .* \(process {other.pid}\)\. Wait for it"):
            make(CheckpointSaver(tmp_path)).fit(batches())
        other.kill()
        other.wait()
    make(CheckpointSaver(tmp_path)).fit(batches())
    assert (tmp_path / "last.pt").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    steps = Snapshots()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="to be a folder, got the file"):
        make(steps, CheckpointSaver(tmp_path / "file")).fit(batches())
    assert steps.saved == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        make(CheckpointSaver(tmp_path)).fit(batches())


def test_a_misspelt_monitor_is_refused_before_the_first_step(tmp_path):
    steps = Watch("on_batch_end", lambda state: 1)
    with pytest.raises(
        ValueError, match=r"monitor 'train/los' not found\. Did you mean 'train/loss'\? There are: train"
    ):
        make(CheckpointSaver(tmp_path, "train/los"), steps).fit(batches())
    assert steps.seen == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(batches())
    model = nn.Sequential(nn.Linear(6, 3))
    before = flat(model.state_dict())
    with pytest.raises(
        ValueError, match=r"got one of another\. Nothing was loaded:(?s:.*)unexpected: 1\.weight(?s:.*)shape: 0"
    ) as error:
        make(CheckpointSaver(tmp_path, resume=True), model=model).fit(batches())
    where = f"The checkpoint is {tmp_path / 'last.pt'}. For a new run, pass another folder or resume=False"
    assert str(error.value).splitlines()[-1] == where
    assert flat(model.state_dict()) == before


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(batches())
    saved = read(tmp_path / "last.pt")
    torch.save({**saved, "format": 7}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"format 1 or older, got 7\. Upgrade fit-core"):
        make(CheckpointSaver(tmp_path, resume=True)).fit(batches())


def test_arguments_that_mean_nothing(tmp_path):
    for options, message in (
        ({"keep": 0}, "expected keep to be 1 or more"),
        ({"every_steps": 0}, "expected every_steps to be a number"),
        ({"mode": "best"}, "expected mode to be 'min'"),
    ):
        with pytest.raises(ValueError, match=message):
            CheckpointSaver(tmp_path, **options)

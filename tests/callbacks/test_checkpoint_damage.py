"""Damaged checkpoints are found, and code in them is not run."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import flip
from fit_callbacks import CheckpointError, CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_callbacks.checkpoint.__main__ import main
from scene import Snapshots, batches, flat, make, network

# Damage


def spoil_by_truncation(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_to_nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, spoil_by_truncation, spoil_to_nothing])
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(tmp_path, spoil):
    gold = make(CheckpointSaver(tmp_path / "gold"))
    gold.fit(batches(), epochs=3)
    make(CheckpointSaver(tmp_path / "a")).fit(batches(), epochs=2)
    saved = read(tmp_path / "a" / "before-last.pt")
    assert saved["epoch"] == 1
    (tmp_path / "a" / "best.pt").unlink()  # may be the same file as last.pt
    spoil(tmp_path / "a" / "last.pt")
    runner = make(CheckpointSaver(tmp_path / "a", resume=True), model=network(seed=3))
    with pytest.warns(UserWarning, match="cannot be used") as caught:
        runner.fit(batches(), epochs=3)
    message = str(caught[0].message)
    assert "last.pt cannot be used: " in message
    assert "before-last.pt instead" in message
    assert flat(runner.state.model.state_dict()) == flat(gold.state.model.state_dict())


def test_a_flipped_bit_would_go_unseen_by_torch(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(batches())
    flip(tmp_path / "last.pt")
    torch.load(tmp_path / "last.pt", weights_only=True)  # this is why checksums are compared
    with pytest.raises(CheckpointError, match=r"the checksum of its record .* is wrong"):
        read(tmp_path / "last.pt")


@pytest.mark.parametrize("resume", [True, "auto"])
def test_all_damaged_is_an_error_and_never_a_fresh_start(tmp_path, resume):
    make(CheckpointSaver(tmp_path)).fit(batches(), epochs=2)
    for path in tmp_path.iterdir():
        spoil_by_truncation(path)
    steps = Snapshots()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used\. .*last\.pt .*before-last\.pt .*best\.pt"):
        make(CheckpointSaver(tmp_path, resume=resume), steps).fit(batches())
    assert steps.saved == []


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"format": 1, "model": Bomb(tmp_path / "exploded")}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be used"):
        make(CheckpointSaver(tmp_path, resume=True)).fit(batches())
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        make(CheckpointSaver(tmp_path, resume="auto")).fit(batches())
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="contains a list and not a run"):
        read(tmp_path / "last.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_file_of_weights_alone_says_how_to_start_from_them(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"not a run. To start from these weights, call model.load_state_dict"):
        make(CheckpointSaver(tmp_path / "a", resume=path)).fit(batches())


# The tool


def test_the_tool_lists_a_folder(tmp_path, capsys):
    make(CheckpointSaver(tmp_path, keep=2)).fit(batches(), epochs=3)
    command = [sys.executable, "-W", "error", "-m", "fit_callbacks.checkpoint"]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines.keys() == {"file", "last.pt", "before-last.pt", "best.pt", "epoch-0002.pt", "epoch-0003.pt"}
    loss = read(tmp_path / "last.pt")["monitor"]["value"]
    assert lines["last.pt"].split()[:5] == ["last.pt", "3", "15", "train/loss", f"{loss:.6g}"]
    assert lines["last.pt"].endswith(" kB  whole")
    flip(tmp_path / "before-last.pt")
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    assert "DAMAGED" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("before-last.pt"))
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == "usage: python -m fit_callbacks.checkpoint FOLDER\n"

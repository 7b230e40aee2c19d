"""A launch that is stopped by a signal saves its run, leaves nothing running, and resumes with the same bits."""

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from fit_callbacks import CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_core import Callback, Runner
from fit_core.testing import in_two_processes
from fit_distributed import parallel, rank, shard
from programs import is_alive, start, until
from torch import nn
from torch.utils.data import DataLoader, Dataset

pytestmark = pytest.mark.timeout(280)


class Noisy(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.randn(6) + index, index % 3


class Ready(Callback):
    """Say that the eighth batch of training or validation is there, and be slow from then on."""

    def __init__(self, folder, is_train):
        self.path, self.is_train, self.left = Path(folder) / "ready", is_train, 8

    def on_batch_end(self, state):
        self.left -= state.is_train == self.is_train
        if self.left == 0:
            self.path.touch()
        if self.left <= 0:
            time.sleep(0.1)


def train(folder, workers, is_train=None):
    torch.manual_seed(0)
    model = parallel(nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.2), nn.Linear(12, 3)))
    torch.manual_seed(rank())
    callbacks = [CheckpointSaver(folder, resume="auto"), *([] if is_train is None else [Ready(folder, is_train)])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loaders = [DataLoader(Noisy(), batch_size=2, shuffle=shuffle, num_workers=workers) for shuffle in (True, False)]
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=callbacks)
    history = runner.fit(shard(loaders[0]), epochs=2, val_loader=shard(loaders[1]))
    return list(history), {name: value.clone() for name, value in runner.state.state_dict()["model"].items()}


def resume_and_train(workers, rank, folder):
    """Resume the run of a folder, and train one from scratch."""
    return train(folder, workers), train(folder / "gold", workers)


SCRIPT = """
import signal, sys
from fit_distributed import launch
from test_stop import train

if __name__ == "__main__":
    for name in ("SIGHUP", "SIGUSR1", "SIGTERM"):  # which may be ignored where the tests run
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    folder, workers, is_train = sys.argv[1:]
    launch(train, folder, int(workers), is_train == "True", nproc=2, backend="gloo", timeout=100, max_restarts=1)
"""


def descendants(pid):
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize(
    ("name", "workers", "is_train", "to_all"),
    [("SIGTERM", 2, False, True), ("SIGUSR1", 0, True, False), ("SIGHUP", 0, False, False)],
)
def test_a_signal_to_a_launch_saves_and_stops_it(tmp_path, name, workers, is_train, to_all):
    number = getattr(signal, name)
    process = start(tmp_path, SCRIPT, tmp_path, workers, is_train)
    until(lambda: (tmp_path / "ready").exists() or process.poll() is not None)
    everyone = descendants(process.pid)
    assert len(everyone) > 2
    for _ in range(2):  # as launchers and schedulers do
        for pid in everyone if to_all else everyone[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.05)
    out, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert f"CheckpointSaver: stopped by {name} in epoch 2 of 2" in out
    until(lambda: not any(map(is_alive, everyone)))
    saved = read(tmp_path / "last.pt")
    assert saved["epoch"] == 1
    assert (saved["global_step"] == 12) != is_train
    resumed_and_gold = in_two_processes(partial(resume_and_train, workers), tmp_path)
    for (history, weights), (own_history, own_weights) in resumed_and_gold:
        assert history == own_history
        assert all(torch.equal(value, own_weights[key]) for key, value in weights.items())

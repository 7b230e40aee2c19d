"""Workers are killed -9 in training, in validation and in a save, and the run ends with the same bits."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from fit_callbacks import CheckpointSaver
from fit_core import Callback, Runner
from fit_core.testing import in_two_processes
from fit_distributed import launch, parallel, rank, shard
from forked import forked
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.timeout(240)


class Save(Callback):
    """The state of every process in one file, replaced in one step and loaded when a run starts."""

    def __init__(self, path):
        self.path = path

    def on_begin(self, state):
        if os.path.exists(self.path):
            state.load_state_dict(torch.load(self.path, weights_only=True))

    def on_checkpoint(self, state):
        saved = state.state_dict()
        ranks = [None] * state.world_size
        distributed.all_gather_object(ranks, saved["ranks"][0])
        if state.rank == 0:
            torch.save({**saved, "ranks": ranks}, f"{self.path}.part")
            os.replace(f"{self.path}.part", self.path)


class Kill(Callback):
    """SIGKILL on one rank at one place, once: (rank, hook, global step, attempt)."""

    def __init__(self, places):
        self.places = places

    def _at(self, hook, state):
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if (state.rank, hook, state.global_step, attempt) in self.places:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_after_backward(self, state):
        self._at("training", state)

    def on_batch_end(self, state):
        if not state.is_train:
            self._at("validation", state)

    def on_checkpoint(self, state):
        self._at("save", state)


def train(folder, places, own):
    generator = torch.Generator().manual_seed(1)
    dataset = TensorDataset(torch.randn(24, 4, generator=generator), torch.randint(3, (24,), generator=generator))
    torch.manual_seed(0)
    model = parallel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3)))
    torch.manual_seed(rank())  # each process has random numbers of its own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # The kill in a save comes before the others have gathered, or after.
    saver = Save(os.path.join(folder, "run.pt")) if own else CheckpointSaver(folder, every_steps=1, resume="auto")
    callbacks = [Kill(places), saver]
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=callbacks, accumulate_steps=2)
    loaders = [DataLoader(dataset, batch_size=3, shuffle=shuffle) for shuffle in (True, False)]
    with open(os.path.join(folder, f"attempts{rank()}"), "a") as file:
        file.write("|")
    history = runner.fit(shard(loaders[0]), epochs=3, val_loader=shard(loaders[1]))
    return runner.state.state_dict()["model"], list(history)


def undisturbed(own, rank, folder):
    return train(folder / "gold", [], own)


@pytest.mark.parametrize("own", [True, False])
def test_killed_workers_and_restarts_leave_no_trace_in_the_weights(tmp_path, own):
    (tmp_path / "gold").mkdir()
    (tmp_path / "killed").mkdir()
    places = [(1, "training", 1, 0), (0, "validation", 4, 1), (1, "save", 5, 2)]
    gold = in_two_processes(partial(undisturbed, own), tmp_path)
    folder = str(tmp_path / "killed")
    with forked():
        again = launch(train, folder, places, own, nproc=2, backend="gloo", max_restarts=3, timeout=60)
    assert Path(tmp_path / "killed" / "attempts1").read_text() == "||||"
    for (weights, history), (their_weights, their_history) in zip(gold, again, strict=True):
        assert all(torch.equal(value, their_weights[name]) for name, value in weights.items())
        assert their_history == history

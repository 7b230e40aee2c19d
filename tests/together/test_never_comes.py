"""A process that never comes to a save or a vote ends the launch after its timeout, and not after half an hour."""

import signal
import threading

import pytest
import torch
from failing import failed
from fit_callbacks import CheckpointSaver
from fit_core import Callback, Runner
from fit_distributed import rank
from torch import nn

pytestmark = pytest.mark.timeout(180)


class Hang(Callback):
    """Rank 1 never comes to the save."""

    def on_checkpoint(self, state):
        if rank() == 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else torch waits 30 s for the saver to stop it
            threading.Event().wait()


class Stop(Callback):
    def on_checkpoint(self, state):
        state.should_stop = state.global_step == 3


def hang_before(kind, folder):
    model = nn.Linear(2, 1)  # Without gradients to exchange, the groups of the saver and of the vote are the only ones.
    callbacks = [CheckpointSaver(folder, every_steps=1)] if kind == "save" else [Stop()]
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), callbacks=[Hang(), *callbacks])
    runner.fit([(torch.ones(2, 2), torch.ones(2, 1))] * 4)


@pytest.mark.parametrize("kind", ["save", "vote"])
def test_a_process_that_never_comes_to_a_save_or_a_vote_ends_the_launch_after_the_timeout(kind, tmp_path):
    error, seconds = failed(hang_before, kind, tmp_path, timeout=6)
    assert "rank 1 did not come within 6 s to where rank 0 waited: " in str(error)
    assert seconds < 170

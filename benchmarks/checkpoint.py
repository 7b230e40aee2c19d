"""Measure the time of a checkpoint of 200 MB, as a multiple of `torch.save` and `fsync` of the same content.

Both are measured in turn, in one run; the table gives the median of the ratios within a round, and their range. For
`background=True` it is the time that training waits, as a multiple of the copy that has to be made.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver
from fit_callbacks.checkpoint.content import copy_to_cpu
from fit_core import Callback, Runner
from torch import nn


class Clock(Callback):
    """Compare the saver with a hand-written save at the end of each epoch."""

    def __init__(self, saver, folder):
        self.saver = saver
        self.folder = folder
        self.ratios = []

    def on_checkpoint(self, state):
        if state.is_train and len(state.history) != state.epoch:
            return
        if not self.ratios:  # The first one also makes files that the others replace.
            self.saver._save(state)
            self.saver._writer.wait()
        start = time.perf_counter()
        if self.saver.background:
            copy_to_cpu(state.state_dict())
        else:
            with (self.folder / "by-hand.pt").open("wb") as file:
                torch.save(state.state_dict(), file)
                file.flush()
                os.fsync(file.fileno())
        by_hand = time.perf_counter() - start
        start = time.perf_counter()
        self.saver._save(state)
        self.ratios.append(((time.perf_counter() - start) / by_hand, by_hand))
        self.saver._writer.wait()


def measure(folder, megabytes, rounds, background):
    model = nn.Linear(1000, int(megabytes * 250), bias=False)
    saver = CheckpointSaver(folder, save_on_signal=False, background=background)
    clock = Clock(saver, folder)
    # The saver is not in the list: the clock calls it.
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), callbacks=[clock])
    data = [(torch.ones(1, 1000), torch.zeros(1, int(megabytes * 250)))]
    runner.fit(data, epochs=rounds)
    return clock.ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", default=None, help="where to write (default: the folder for temporary files)")
    arguments = parser.parse_args()
    print(f"{'':<38}{'by hand':>10}{'ratio':>8}{'range':>14}")
    for background, name in (
        (False, "save, against torch.save + fsync"),
        (True, "wait in the background, against copy"),
    ):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measured = measure(Path(folder), arguments.megabytes, arguments.rounds, background)
        ratios = sorted(ratio for ratio, _ in measured)
        seconds = statistics.median(seconds for _, seconds in measured)
        print(f"{name:<38}{seconds:>8.3f} s{statistics.median(ratios):>8.2f}{ratios[0]:>7.2f}-{ratios[-1]:.2f}")


if __name__ == "__main__":
    main()

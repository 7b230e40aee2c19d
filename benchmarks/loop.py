"""What the Runner costs beside loops written by hand, lean and with a bar, accuracies, TensorBoard and checkpoints.

Each round starts a fresh process for every contestant, one after the other on one core, and the ratio is taken within
the round; the table gives its median and range. Where valgrind is installed, ``--instructions`` also counts the
instructions of a step: of two lengths the difference, so that what happens once is not in it.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from fit_callbacks import CheckpointSaver, ConsoleLogger, TensorBoard
from fit_core import Callback, Runner
from fit_metrics import Accuracy
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

BATCHES = 50


def parts():
    """The model, its optimizer and loss, and the batches of an epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    data = [(torch.randn(32, 32), torch.randint(10, (32,))) for _ in range(BATCHES)]
    return model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), data


def plain(steps, folder, mark):
    """The loop of a tutorial, but for the running loss, which stays on the device."""
    model, optimizer, criterion, data = parts()
    for _ in range(steps // BATCHES):
        total = torch.zeros(())
        for input, target in data:
            optimizer.zero_grad()
            loss = criterion(model(input), target)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(input)
        mark()


def lean(steps, folder, mark):
    """The Runner of fit-core alone."""
    model, optimizer, criterion, data = parts()
    Runner(model, optimizer, criterion, callbacks=[Mark(mark)]).fit(data, epochs=steps // BATCHES)


def careful(steps, folder, mark):
    """By hand, by somebody who knows what costs: values are read when they are shown; 20 loaders make an epoch."""
    model, optimizer, criterion, data = parts()
    writer = SummaryWriter(folder)
    step = 0
    for epoch in range(steps // (20 * BATCHES)):
        total, right, right5 = torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.zeros(())
        count = 0
        bar = tqdm(total=20 * BATCHES, desc=f"Epoch {epoch + 1}", mininterval=0.25, leave=False)
        for _ in range(20):
            for input, target in data:
                optimizer.zero_grad()
                output = model(input)
                loss = criterion(output, target)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    total += loss.detach() * len(input)
                    hits = output.topk(5, 1).indices == target[:, None]
                    right += hits[:, 0].sum()
                    right5 += hits.sum()
                count += len(input)
                step += 1
                if bar.update():
                    values = {"loss": total / count, "Acc@1": right / count, "Acc@5": right5 / count}
                    bar.set_postfix({name: f"{float(value):.4f}" for name, value in values.items()}, refresh=False)
                if step % 50 == 0:
                    writer.add_scalar("train_step/loss", float(total) / count, step)
                    writer.add_scalar("train_step/Acc@1", float(right) / count, step)
                    writer.add_scalar("train_step/Acc@5", float(right5) / count, step)
                    writer.add_scalar("lr", optimizer.param_groups[0]["lr"], step)
        bar.close()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.pt")
        mark()
    writer.close()


def full(steps, folder, mark):
    """The same by callbacks; the checkpoint is fit's, which survives a kill."""
    model, optimizer, criterion, data = parts()
    callbacks = [ConsoleLogger(), TensorBoard(folder), CheckpointSaver(folder), Mark(mark)]
    runner = Runner(model, optimizer, criterion, [Accuracy(1), Accuracy(5)], callbacks)
    runner.fit(data, epochs=steps // (20 * BATCHES), steps_per_epoch=20 * BATCHES)


class Mark(Callback):
    """Notes the time after each epoch."""

    def __init__(self, mark):
        self.mark = mark

    def on_epoch_end(self, state):
        self.mark()


CONTESTANTS = {"plain": plain, "lean": lean, "careful": careful, "full": full}


def alone(name, steps):
    """Run one contestant here; seconds a step after the first epoch, in which all warms up."""
    torch.set_num_threads(1)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        CONTESTANTS[name](steps, folder, lambda: times.append(time.perf_counter()))
    epochs = len(times) - 1
    return (times[-1] - times[0]) / (epochs * steps / len(times)) if epochs else float("nan")


def in_a_process(name, steps, *before):
    """Run one contestant in a process of its own, on one core; what it prints."""
    command = [*before, sys.executable, __file__, "--alone", name, "--steps", str(steps)]
    if shutil.which("taskset"):
        command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def seconds(name, steps):
    return float(re.search(r"^step (\S+)$", in_a_process(name, steps), re.MULTILINE)[1])


def instructions(name, few):
    """Instructions a step, by callgrind."""
    counts = []
    for steps in (few, 3 * few):
        printed = in_a_process(name, steps, "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        counts.append(int(re.search(r"Collected : (\d+)", printed)[1]))
    return (counts[1] - counts[0]) / (2 * few)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6000, help="a multiple of 1000 (default: 6000)")
    parser.add_argument("--instructions", action="store_true", help="count instructions too; takes minutes")
    parser.add_argument("--alone", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(f"step {alone(arguments.alone, arguments.steps)}")
        return
    rounds = [{name: seconds(name, arguments.steps) for name in CONTESTANTS} for _ in range(arguments.rounds)]
    print(f"MLP 32-64-10, batch 32, SGD, one thread, torch {torch.__version__}, {Path(__file__).name}")
    print(f"{'':<10}{'us/step':>9}{'  against':<12}{'ratio':>6}{'range':>14}{'instructions':>15}{'ratio':>7}")
    counted = {}
    for name, other in (("plain", "plain"), ("lean", "plain"), ("careful", "careful"), ("full", "careful")):
        ratios = sorted(one[name] / one[other] for one in rounds)
        line = f"{name:<10}{1e6 * statistics.median(one[name] for one in rounds):>9.0f}  {other:<10}"
        line += f"{statistics.median(ratios):>6.2f}{ratios[0]:>9.2f}-{ratios[-1]:.2f}"
        if arguments.instructions:
            counted[name] = instructions(name, 100 if other == "plain" else 1000)
            line += f"{counted[name]:>15.0f}{counted[name] / counted[other]:>7.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()

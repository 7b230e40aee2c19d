"""Measure one program in this process and print JSON: `python benchmarks/alone.py NAME WORK EPOCHS`."""

import importlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import torch
from peers import PEERS
from works import WORKS

GOAL = 0.91


class Reached(BaseException):
    """The goal is reached; no library is to catch it."""


def count_instructions(switch):
    """Let callgrind start or stop to count. It reacts while the process runs, so this one sleeps shortly."""
    control = subprocess.Popen(["callgrind_control", "-i", switch, str(os.getpid())], stdout=subprocess.DEVNULL)
    while control.poll() is None:
        time.sleep(0.01)
    if control.returncode:
        raise RuntimeError("callgrind_control failed")


def main(name, work_name, epochs):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    importlib.import_module("torch._dynamo")  # by the first step of an optimizer otherwise. Some libraries do it before
    work = WORKS[work_name]()
    if name in PEERS:
        run = PEERS[name].run
        for module in PEERS[name].module.split(", "):  # The import is not measured.
            importlib.import_module(module)
    else:  # Peers' environments need not have the packages of fit.
        from ours import CONTESTANTS

        run = CONTESTANTS[name]
    times, memory = [], []

    def mark(*_):
        if os.environ.get("COUNT_INSTRUCTIONS") and len(times) < 2:
            count_instructions("off" if times else "on")
        times.append(time.perf_counter())
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        if work.test is not None:
            work.model.eval()
            with torch.no_grad():
                right = (work.model(work.test[0]).argmax(1) == work.test[1]).double().mean()
            work.model.train()
            if right >= GOAL:
                raise Reached

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        try:
            run(work, epochs, mark, folder)
        except Reached:
            figures["reached"] = time.perf_counter() - begin
            figures["epochs"] = len(times)
    if len(times) > 1:
        figures["first"] = times[0] - begin  # the first epoch, with everything that is done once
        figures["batches"] = len(work.loader)
        figures["step"] = (times[-1] - times[0]) / ((len(times) - 1) * len(work.loader))
        figures["each"] = [(b - a) / len(work.loader) for a, b in itertools.pairwise(times)]
    figures["memory"] = memory
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

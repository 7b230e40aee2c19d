"""Train under each scheduler on this machine, break the run, and compare the end with a single process.

`hatch run clusters:run mpi torchrun slurm accelerate ray`, or some of them. Each scheduler is set up here, with
configuration, keys and ports of its own, and taken down again. mpi and slurm need packages of Debian, and slurm needs
root. The script says which are missing. It prints the table of docs/distributed.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from job import FaultError, Job

NAMES = ["mpi", "torchrun", "slurm", "accelerate", "ray"]


def stop(number: int, frame: object) -> None:
    """Take everything down after the first SIGTERM."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="the schedulers (default: all)")
    parser.add_argument("-k", default="", help="only checks that contain this text")
    arguments = parser.parse_args()
    wrong = 0
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="clusters-") as top:
        (folder := Path(top, "gold")).mkdir()
        job = Job(folder, None)
        job.run("python train.py")
        gold = json.loads(job.read("result.json"))
        print("| scheduler | command | what was checked | result |\n|---|---|---|---|", flush=True)
        for name in arguments.names or NAMES:
            scheduler = importlib.import_module(f"on_{name}")
            if need := scheduler.missing():
                print(f"| {name} | - | - | not run: {need} |", flush=True)
                wrong += 1
                continue
            cluster = getattr(scheduler, "cluster", None)
            with cluster(Path(top)) if cluster else nullcontext():
                for number, check in enumerate(scheduler.CHECKS):
                    if arguments.k not in f"{check.command} {check.what}":
                        continue
                    (folder := Path(top, f"{name}-{number}")).mkdir()
                    job, start, result = Job(folder, gold), time.monotonic(), "ok"
                    try:
                        check.run(job)
                    except FaultError as error:
                        wrong += 1
                        result = "FAILED"
                        print(error, file=sys.stderr)
                    finally:
                        job.stop()
                    if "SHOW" in os.environ:
                        print(job.log(), file=sys.stderr)
                    seconds = time.monotonic() - start
                    row = [check.scheduler, f"`{check.command}`", check.what, f"{result}, {seconds:.0f} s"]
                    print(f"| {' | '.join(row)} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

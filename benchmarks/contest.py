"""Run contestants in processes of their own, compare them within a round, and count instructions."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from peers import PEERS

HERE = Path(__file__).parent
BENCH = HERE.parent / ".bench"
EPOCHS = {
    "mlp": 4,
    "conv": 4,
    "attention": 4,
    "mnist1d": 200,
    "thousand": 8,
    "big": 4,
    "workers": 6,
    "single": 3000,
    "single_validated": 3000,
}


def python_of(name):
    """Return the interpreter of a contestant, and why it cannot be installed."""
    if name not in PEERS:
        return sys.executable, None
    folder = BENCH / PEERS[name].packages[0]
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"\rinstalling {', '.join(PEERS[name].packages):<40}", end="", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        ours = next(path for path in sys.path if (Path(path) / "torch").is_dir())
        (next(folder.glob("lib/python*/site-packages")) / "torch-of-the-benchmark.pth").write_text(ours)
        torch_version = f"torch=={torch.__version__.split('+')[0]}"
        command = [python, "-m", "pip", "install", "--quiet", torch_version, *PEERS[name].packages]
        result = subprocess.run(command, capture_output=True, text=True, env=environment(name))
        if result.returncode:
            return None, last_line(result.stderr)
        (folder / "installed").touch()
    return str(python), None


def environment(name):
    """Return the environment of a contestant: one thread, bytecode kept as after an installation, own caches."""
    rest = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    if name in PEERS:
        rest |= PEERS[name].environment or {}
    else:
        rest["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    cache = str(BENCH / "compiled")
    return {**rest, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}


def forget_compiled():
    """Empty the cache of torch.compile, so that the first round shows what a first compilation takes."""
    shutil.rmtree(BENCH / "compiled", ignore_errors=True)


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no message"


def pinned(*command):
    """Return the command, on one core where the system can do that."""
    if shutil.which("taskset"):
        return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]
    return list(command)


def run(name, work, epochs, before=()):
    """Return the figures of one contestant, what it printed on stderr, and why it failed."""
    python, problem = python_of(name)
    if problem:
        return None, "", problem
    variables = environment(name) | ({"COUNT_INSTRUCTIONS": "1"} if before else {})
    command = [*before, python, str(HERE / "alone.py"), name, work, str(epochs)]
    try:
        result = subprocess.run(
            command if before else pinned(*command), capture_output=True, text=True, env=variables, timeout=900
        )
    except subprocess.TimeoutExpired:
        return None, "", "took more than 15 minutes"
    if result.returncode:
        return None, result.stderr, last_line(result.stderr)
    return json.loads(result.stdout.strip().splitlines()[-1]), result.stderr, None


def compare(work, names, rounds, figure="step"):
    """Return for each name the figures of all rounds, and for those that failed the reason."""
    seen, failed = {name: [] for name in names}, {}
    for number in range(rounds):
        for name in names:
            if name in failed:
                continue
            print(f"\r{work}, round {number + 1} of {rounds}: {name:<36}", end="", file=sys.stderr, flush=True)
            figures, _, problem = run(name, work, EPOCHS[work])
            if figures is None or figure not in figures:
                failed[name] = problem or "did not reach the goal"
            else:
                seen[name].append(figures)
    print(file=sys.stderr)
    return {name: rows for name, rows in seen.items() if name not in failed}, failed


def ratios(rows, others, figure="step"):
    """Return median, least and largest of the ratios within a round."""
    values = sorted(row[figure] / reference[figure] for row, reference in zip(rows, others, strict=True))
    return statistics.median(values), values[0], values[-1]


def instructions(names, work="mlp"):
    """Return the instructions per step of each name in the second epoch, or nothing without valgrind.

    Counts do not depend on the load, so all cores may count.
    """
    if not shutil.which("callgrind_control"):
        return {}
    before = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--instr-atstart=no")
    print(f"{work}: counting instructions", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        printed = list(pool.map(lambda name: run(name, work, 2, before)[1], names))
    found = {name: re.search(r"Collected : (\d+)", text) for name, text in zip(names, printed, strict=True)}
    return {name: int(match[1]) / 1000 for name, match in found.items() if match}

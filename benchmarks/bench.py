"""Compare fit with hand-written loops and other libraries, and write docs/benchmarks.md: hatch run bench.

Every contestant runs in a fresh process on one core, with one thread, all in turn; then the next round. A ratio is
taken within a round; the table gives the median of the rounds, and the range. Instructions are counted by callgrind
over two lengths, of which the shorter is subtracted; they do not depend on what else the machine does.

Other libraries are installed into environments of their own under ``.bench``, which take torch from this one.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import torch
from page import draw, write
from peers import PEERS

HERE = Path(__file__).parent
EPOCHS = {
    "mlp": 4,
    "conv": 4,
    "mnist1d": 200,
    "thousand": 8,
    "big": 4,
    "workers": 6,
    "single": 3000,
    "single_validated": 3000,
}
FEATURES = {  # feature: the Runner with it, the hand-written loop with it
    "Accuracy(1, 5)": ("accuracies", "accuracies-by-hand"),
    "ConsoleLogger": ("bar", "bar-by-hand"),
    "TensorBoard, every 50 steps": ("tensorboard", "tensorboard-by-hand"),
    "Timer": ("timer", "timer-by-hand"),
    "ModelEma": ("ema", "ema-by-hand"),
    "CheckpointSaver, once per epoch": ("saver", "idle-by-hand"),
}


def python_of(name):
    """The interpreter of a contestant, and what is wrong with it if it cannot be installed."""
    if name not in PEERS:
        return sys.executable, None
    package = PEERS[name][1][0]
    folder = HERE.parent / ".bench" / package
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        ours = next(path for path in sys.path if (Path(path) / "torch").is_dir())
        (next(folder.glob("lib/python*/site-packages")) / "torch-of-the-benchmark.pth").write_text(ours)
        torch_version = f"torch=={torch.__version__.split('+')[0]}"
        command = [python, "-m", "pip", "install", "--quiet", torch_version, *PEERS[name][1]]
        result = subprocess.run(command, capture_output=True, text=True, env=environment())
        if result.returncode:
            return None, last_line(result.stderr)
        (folder / "installed").touch()
    return str(python), None


def environment():
    """Of a contestant: one thread, nothing of this process's path, and bytecode kept, as after an installation."""
    rest = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    return {**rest, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no message"


def pinned(*command):
    """The command, on one core where the system can do that."""
    if shutil.which("taskset"):
        return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]
    return list(command)


def run(name, work, epochs, *before):
    """The figures of one contestant, what it printed on stderr, and what went wrong."""
    python, problem = python_of(name)
    if problem:
        return None, "", problem
    command = pinned(*before, python, str(HERE / "alone.py"), name, work, str(epochs))
    env = environment() if name in PEERS else {**environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    except subprocess.TimeoutExpired:
        return None, "", "took more than 15 minutes"
    if result.returncode:
        return None, result.stderr, last_line(result.stderr)
    return json.loads(result.stdout.strip().splitlines()[-1]), result.stderr, None


def compare(work, names, rounds, figure="step"):
    """For each name the figures of all rounds; and who failed, with the reason."""
    seen, failed = {name: [] for name in names}, {}
    for number in range(rounds):
        for name in names:
            if name in failed:
                continue
            print(f"\r{work}, round {number + 1} of {rounds}: {name:<24}", end="", file=sys.stderr, flush=True)
            figures, _, problem = run(name, work, EPOCHS[work])
            if figures is None or figure not in figures:
                failed[name] = problem or "did not reach the goal"
            else:
                seen[name].append(figures)
    print(file=sys.stderr)
    return {name: rows for name, rows in seen.items() if name not in failed}, failed


def ratios(rows, others, figure="step"):
    """Median, least and largest of the ratios within a round."""
    values = sorted(row[figure] / reference[figure] for row, reference in zip(rows, others, strict=True))
    return statistics.median(values), values[0], values[-1]


def instructions(name, work="mlp"):
    """Instructions a step: of two lengths the difference."""
    counts = []
    for epochs in (1, 2):
        _, printed, problem = run(name, work, epochs, "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        if problem:
            return None
        counts.append(int(re.search(r"Collected : (\d+)", printed)[1]))
    return (counts[1] - counts[0]) / 1000


def installed(name):
    """(version, packages, megabytes) of what a peer brings beside torch and what torch brings."""
    python, problem = python_of(name)
    if problem:
        return None
    site = next((Path(python).parent.parent / "lib").glob("python*/site-packages"))
    found = [
        package
        for package in importlib.metadata.distributions(path=[str(site)])
        if package.name not in ("pip", "setuptools")
    ]
    files = {package.locate_file(file) for package in found for file in package.files or ()}
    size = sum(file.stat().st_size for file in map(Path, files) if file.is_file() and file.suffix != ".pyc")
    version = next(package.version for package in found if package.name.lower() == PEERS[name][1][0])
    return version, len(found), size / 1e6


def own_size(*packages):
    """Megabytes of packages of this repository."""
    sources = [file for name in packages for file in (HERE.parent / "packages" / name / "src").rglob("*")]
    return sum(file.stat().st_size for file in sources if file.suffix in (".py", ".typed")) / 1e6


def import_time(name, module):
    """Seconds that importing takes after torch, the least of five."""
    python, problem = python_of(name)
    if problem:
        return None
    code = f"import torch, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    env = {**environment(), "KERAS_BACKEND": "torch"}
    if name not in PEERS:
        env["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    got = [subprocess.run(pinned(python, "-c", code), capture_output=True, text=True, env=env) for _ in range(5)]
    return min((float(result.stdout.split()[-1]) for result in got if not result.returncode), default=None)


def flat(steps):
    """A long run of the lean Runner: time a step and memory, of its first and last tenth."""
    figures, _, _ = run("lean", "mlp", max(20, steps // 1000))
    each, memory = figures["each"], figures["memory"]
    tenth = len(each) // 10
    first, last = (statistics.median(part) for part in (each[:tenth], each[-tenth:]))
    return {"steps": len(memory) * 1000, "time": (first, last), "memory": (memory[tenth], memory[-1])}


def machine():
    """In words: processor, cores, system, versions, date."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.+)", info.read_text())):
        name = found[1]
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {datetime.date.today().isoformat()}"
    )


def measure_loop(rounds, steps):
    """Compare the lean and the full Runner with hand-written loops."""
    loop, _ = compare("mlp", ["plain", "lean", "careful", "full"], rounds)
    return {"loop": loop, "instructions": {name: instructions(name) for name in loop if shutil.which("valgrind")}}


def measure_features(rounds, steps):
    """One feature at a time."""
    return {"features": compare("mlp", [name for pair in FEATURES.values() for name in pair], rounds)[0]}


def measure_scale(rounds, steps):
    """Other models, many callbacks, and a long run."""
    works = ("conv", "thousand", "big", "workers")
    return {
        "scale": {work: compare(work, ["plain", "lean"], rounds)[0] for work in works},
        "epochs": {
            work: compare(work, ["epochs-by-hand", "epochs"], rounds)[0] for work in ("single", "single_validated")
        },
        "ten": compare("mlp", ["lean", "ten"], rounds)[0],
        "flat": flat(steps),
    }


def measure_peers(rounds, steps):
    """Other libraries: their speed, what they install, how long they take to import."""
    peers, failed = {}, {}
    for work in ("mlp", "conv", "mnist1d"):
        figure = "reached" if work == "mnist1d" else "step"
        peers[work], wrong = compare(work, ["plain", "lean", *PEERS], max(3, rounds // 2), figure)
        failed = {**wrong, **failed}
    all_four = ["fit-core", "fit-callbacks", "fit-metrics", "fit-distributed"]
    brings = {name: installed(name) for name in PEERS}
    brings["**fit-core**"] = ("", 1, own_size("fit-core"))
    brings["**fit, all four**"] = ("", len(all_four), own_size(*all_four))
    modules = {
        "**fit-core**": "fit_core",
        "**fit, all four**": ", ".join(package.replace("-", "_") for package in all_four),
    }
    modules |= {name: peer[2] for name, peer in PEERS.items()}
    imports = {name: import_time(name, module) for name, module in modules.items()}
    return {"peers": peers, "failed": failed, "installed": brings, "import": imports}


PARTS = {"loop": measure_loop, "features": measure_features, "scale": measure_scale, "peers": measure_peers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=PARTS, help="measure one part, and keep what was measured of the others")
    parser.add_argument("--steps", type=int, default=200_000, help="of the long run")
    arguments = parser.parse_args()
    kept = HERE.parent / ".bench" / "result.json"
    kept.parent.mkdir(exist_ok=True)
    result = json.loads(kept.read_text()) if arguments.only and kept.exists() else {}
    for part in [arguments.only] if arguments.only else PARTS:
        result |= {"machine": machine(), "rounds": arguments.rounds}
        result |= PARTS[part](arguments.rounds, arguments.steps)
        kept.write_text(json.dumps(result))
    if all(part in result for part in PARTS):
        text = write(result, FEATURES, ratios)
        print(text)
        (HERE.parent / "docs" / "benchmarks.md").write_text(text)
        draw(result, ratios, HERE.parent / "docs" / "pictures" / "benchmarks.png")


if __name__ == "__main__":
    main()

"""Compare fit with hand-written loops and other libraries, and write docs/benchmarks.md: hatch run bench.

Every contestant runs in a fresh process on one core, with one thread, all in turn; then the next round. A ratio is
taken within a round; the table gives the median of the rounds, and the range. Instructions are counted by callgrind
in the second epoch. They do not depend on what else the machine does.

Other libraries are installed into environments of their own under `.bench`, which take torch from this one.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
from pathlib import Path

import installed
import torch
from chart import draw
from contest import BENCH, HERE, compare, forget_compiled, instructions, run
from page import write
from peers import PEERS

FEATURES = {  # feature: the Runner with it, the hand-written loop with it
    "Accuracy(1, 5)": ("accuracies", "accuracies-by-hand"),
    "ConsoleLogger": ("bar", "bar-by-hand"),
    "TensorBoard, every 50 steps": ("tensorboard", "tensorboard-by-hand"),
    "Timer": ("timer", "timer-by-hand"),
    "ModelEma": ("ema", "ema-by-hand"),
    "CheckpointSaver, once per epoch": ("saver", "saver-by-hand"),
}
LOOPS = ["plain", "lean", "careful", "full"]
COMPILED = ["CompiledStep", "torch.compile"]
TORCH_PEERS = [name for name, peer in PEERS.items() if not peer.compiles]
JAX_PEERS = [name for name, peer in PEERS.items() if peer.compiles]


def few(rounds):
    return min(rounds, 3)


def measure_loop(rounds, steps):
    """Compare the lean and the full Runner with hand-written loops."""
    return {"loop": compare("mlp", LOOPS, rounds)[0]}


def measure_instructions(rounds, steps):
    """Count the instructions of the same loops."""
    return {"instructions": instructions(LOOPS)}


def measure_features(rounds, steps):
    """Add one feature at a time."""
    names = ["idle-by-hand", *(name for pair in FEATURES.values() for name in pair)]
    return {"features": compare("mlp", names, rounds)[0]}


def measure_scale(rounds, steps):
    """Compare other models, many callbacks, and a long run."""
    works, epochs = ("thousand", "big", "workers"), ("single", "single_validated")
    return {
        "scale": {work: compare(work, ["plain", "lean"], few(rounds))[0] for work in works},
        "epochs": {work: compare(work, ["epochs-by-hand", "epochs"], few(rounds))[0] for work in epochs},
        "ten": compare("mlp", ["lean", "ten"], few(rounds))[0],
        "flat": flat(steps),
    }


def measure_peers(rounds, steps):
    """Compare other libraries and compiled steps, all in the same rounds, and what the libraries install."""
    forget_compiled()
    peers, failed = {}, []
    for work in ("mlp", "conv", "attention", "mnist1d"):
        names = ["plain", "lean", *COMPILED, *JAX_PEERS, *([] if work == "attention" else TORCH_PEERS)]
        figure = "reached" if work == "mnist1d" else "step"
        peers[work], wrong = compare(work, names, few(rounds), figure)
        failed += [(name, work, why) for name, why in wrong.items()]
    return {
        "peers": peers,
        "failed": failed,
        "versions": installed.versions(JAX_PEERS[0]),
        **installed.measure(TORCH_PEERS, few(rounds)),
    }


def flat(steps):
    """Return the time of a step and the memory in the first and last tenth of a long run of the lean Runner."""
    figures, _, problem = run("lean", "mlp", max(20, steps // 1000))
    if problem:
        raise RuntimeError(problem)
    each, memory = figures["each"], figures["memory"]
    tenth = len(each) // 10
    first, last = (statistics.median(part) for part in (each[:tenth], each[-tenth:]))
    return {"steps": len(memory) * 1000, "time": (first, last), "memory": (memory[tenth], memory[-1])}


def machine():
    """Return processor, cores, system, versions and date."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.+)", info.read_text())):
        name = found[1]
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {datetime.date.today().isoformat()}"
    )


PARTS = {
    "loop": measure_loop,
    "instructions": measure_instructions,
    "features": measure_features,
    "scale": measure_scale,
    "peers": measure_peers,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: 5, and 3 with other models and libraries")
    parser.add_argument("--only", choices=PARTS, help="measure one part, and keep what was measured of the others")
    parser.add_argument("--steps", type=int, default=100_000, help="of the long run (default: 100000)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs", help="where to write the page and the chart")
    arguments = parser.parse_args()
    kept = BENCH / "result.json"
    BENCH.mkdir(exist_ok=True)
    result = json.loads(kept.read_text()) if arguments.only and kept.exists() else {}
    for part in [arguments.only] if arguments.only else PARTS:
        result |= PARTS[part](arguments.rounds, arguments.steps)
        result |= {"machine": machine(), "rounds": arguments.rounds, "few": few(arguments.rounds)}
        kept.write_text(json.dumps(result))
    if missing := [part for part in PARTS if part not in result]:
        print(f"measured {arguments.only}. The page needs {', '.join(missing)} too")
        return
    text = write(result, FEATURES)
    print(text)
    (arguments.out / "pictures").mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmarks.md").write_text(text)
    draw(result, arguments.out / "pictures" / "benchmarks.png")


if __name__ == "__main__":
    main()

"""Write the page docs/benchmarks.md from the results of bench.py."""

import statistics

from chart import LABELS
from contest import ratios

HEAD = """# Benchmarks

This page answers three questions about the time of a training step:

1. [How much does the Runner cost?](#how-much-does-the-runner-cost)
2. [How much does a feature cost?](#how-much-does-a-feature-cost)
3. [How fast can a step get?](#how-fast-can-a-step-get)

One command runs all measurements and writes the page. It installs the other libraries into their own environments:

```
hatch run bench
```

Measured on {machine}, with {versions}. The versions of the other libraries are in the table of
[installations](#compared-with-other-libraries).

Each program runs in a fresh process, pinned to one core, with one thread. All run in turn for {rounds} rounds
({few} with other models and libraries), and a ratio compares two times of the same round. The tables show the median
and, in brackets, the range. A ratio below 1 is faster than the hand-written loop. On another machine the times differ,
the ratios differ less, and the counted instructions least.
"""

WORKS = {
    "mlp": "MLP 32-64-10, batch 32",
    "conv": "small convnet, batch 32",
    "attention": "one transformer layer, batch 16",
    "mnist1d": "MNIST-1D to 91%",
}
SCALE = {
    "conv": "small convnet, batch 32",
    "attention": "one transformer layer, batch 16",
    "thousand": "1000 parameter tensors",
    "big": "a model of 500 MB",
    "workers": "a DataLoader with two workers",
    "single": "one batch per epoch",
    "single_validated": "one batch per epoch, validated on one batch",
}
COMPILES = ["CompiledStep", "torch.compile", "JAX, jit", "JAX, scan", "Keras on JAX", "Keras on JAX, 100 steps"]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def shown(ratio):
    median, least, most = ratio
    return f"{median:.2f} ({least:.2f}-{most:.2f})" if median >= 0.1 else f"{median:.3f} ({least:.3f}-{most:.3f})"


def micro(rows):
    return f"{1e6 * statistics.median(row['step'] for row in rows):.0f}"


def label(name):
    text = LABELS.get(name, name)
    return f"**{text}**" if text.startswith("fit") else text


def write(result, features):
    """Return the text of the page."""
    head = HEAD.format(**{name: result[name] for name in ("machine", "versions", "rounds", "few")})
    return "\n".join([head, runner(result), costs(result, features), fastest(result), rest(result)])


def runner(result):
    """Answer the first question: the loop, its instructions, other works, other libraries."""
    seen, counted = result["loop"], result["instructions"]
    rows = []
    for name, other, what in (
        ("plain", "plain", "plain hand-written loop"),
        ("lean", "plain", "`Runner`, fit-core alone"),
        ("careful", "careful", "careful hand-written loop: progress bar, top-1 and top-5, TensorBoard, checkpoints"),
        ("full", "careful", "`Runner` with the same features as callbacks"),
    ):
        one, base = counted.get(name), counted.get(other)
        instructions = f"{one:,.0f} ({one / base:.3f})".replace(",", " ") if one and base else ""
        rows.append([what, micro(seen[name]), shown(ratios(seen[name], seen[other])), instructions])
    ten, long = result["ten"], result["flat"]
    first, last = (1e6 * seconds for seconds in long["time"])
    return (
        "## How much does the Runner cost?\n\nMLP 32-64-10, batch 32, SGD. The ratio compares with the hand-written "
        "loop that has the same features. The plain loop keeps its running loss on the device. The careful loop reads "
        "values only when it shows them.\n\n"
        + table(["", "us per step", "ratio", "instructions per step (ratio)"], rows)
        + "\nOther models and loaders, with fit-core alone:\n\n"
        + table(["", "hand-written loop, us per step", "Runner", "ratio"], scale(result))
        + f"\nTen callbacks with a hook at every batch, compared with none: {shown(ratios(ten['ten'], ten['lean']))}.\n"
        f"\nIn a run of {long['steps']} steps, a step took {first:.0f} us in the first tenth and {last:.0f} us in the "
        f"last. Peak memory was {long['memory'][0]:.1f} MB after the first tenth and {long['memory'][1]:.1f} MB at the "
        "end.\n\n" + peers(result)
    )


def scale(result):
    seen = {work: result["peers"][work] for work in ("conv", "attention")} | result["scale"]
    pairs = [(work, rows, "plain", "lean") for work, rows in seen.items()]
    pairs += [(work, rows, "epochs-by-hand", "epochs") for work, rows in result["epochs"].items()]
    return [
        [SCALE[work], micro(rows[by_hand]), micro(rows[ours]), shown(ratios(rows[ours], rows[by_hand]))]
        for work, rows, by_hand, ours in pairs
    ]


def peers(result):
    works = {work: result["peers"][work] for work in ("mlp", "conv", "mnist1d")}
    names = ["plain", "lean", *(name for name in result["installed"] if not name.startswith("*"))]
    rows = []
    for name in sorted(names, key=lambda name: order(works["mlp"], name)):
        row = [label(name)]
        for work, figure in (("mlp", "step"), ("conv", "step"), ("mnist1d", "reached")):
            row.append(cell(works[work], name, figure))
        seen = works["mnist1d"].get(name)
        row.append(f"{statistics.median(row['reached'] for row in seen):.1f} s" if seen else "-")
        row.append(str(seen[0]["epochs"]) if seen else "-")
        rows.append(row)
    text = (
        "### Compared with other libraries\n\n"
        "Each library runs with the leanest settings in its documentation: no progress bar, no log, no checkpoint, no "
        "metric. The first two columns show the time of a step. The MNIST-1D column shows the time of training until "
        "91% of the test set are classified correctly, which the same code checks after each epoch. Imports are not "
        "counted. All start from the same weights, so libraries that pass the same batches to the same optimizer need "
        "the same number of epochs. Keras has its own Adam and losses and needs another number.\n\n"
        + table(["", *(WORKS[work] for work in works), "wall", "epochs"], rows)
    )
    rows = []
    for name, seconds in result["import"].items():
        took = "-" if seconds is None else f"{1000 * seconds:.0f} ms"
        if got := result["installed"][name]:
            rows.append([name, got[0], str(got[1] - 1), f"{got[2]:.2f}", took])
    return text + (
        "\nThe next table shows what an installation adds to torch and to the packages that were installed for these "
        "measurements, and how long the import takes after `import torch`. Packages that were installed already "
        "(NumPy, tqdm, ...) are not counted, which favours the libraries that need them. Of the four fit packages, "
        "fit-callbacks needs TensorBoard and tqdm, and the others need only torch.\n\n"
        + table(["", "version", "further packages", "MB installed", "import"], rows)
    )


def order(seen, name):
    return ratios(seen[name], seen["plain"])[0] if name in seen else float("inf")


def cell(seen, name, figure="step"):
    return shown(ratios(seen[name], seen["plain"], figure)) if name in seen else "-"


def costs(result, features):
    """Answer the second question."""
    seen = result["features"]
    base = statistics.median(row["step"] for row in seen["idle-by-hand"])
    rows = []
    for what, (with_it, by_hand) in features.items():
        more = [1e6 * (statistics.median(row["step"] for row in seen[name]) - base) for name in (with_it, by_hand)]
        rows.append([what, *(f"{row:+.0f}" for row in more), shown(ratios(seen[with_it], seen[by_hand]))])
    return (
        "## How much does a feature cost?\n\nFor the same MLP, this table shows the microseconds per step that each "
        f"feature adds to the bare hand-written loop ({1e6 * base:.0f}), and the ratio of the whole step to that of a "
        "hand-written loop with the same feature. The cost is negative where the Runner is faster than the bare "
        "loop.\n\n" + table(["", "Runner", "hand-written loop", "ratio"], rows)
    )


def fastest(result):
    """Answer the third question: compiled steps, of ours and of others."""
    works = result["peers"]
    names = ["plain", "lean", *COMPILES]
    rows = [
        [label(name), *(cell(works[work], name) for work in ("mlp", "conv", "attention")), compiling(works, name)]
        for name in sorted(names, key=lambda name: order(works["mlp"], name))
        if any(name in seen for seen in works.values())
    ]
    goal = works["mnist1d"]
    reached = []
    walls = {name: statistics.median(row["reached"] for row in goal[name]) for name in names if name in goal}
    for name, wall in sorted(walls.items(), key=lambda pair: pair[1]):
        once = statistics.median(map(once_only, goal[name]))
        split = [f"{once:.1f} s", f"{wall - once:.1f} s"] if name in COMPILES else ["", f"{wall:.1f} s"]
        reached.append([label(name), f"{wall:.1f} s", *split, str(goal[name][0]["epochs"])])
    return (
        "## How fast can a step get?\n\n"
        "![The time of a step, relative to a hand-written loop](pictures/benchmarks.png)\n\n"
        "A compiler turns forward, backward and the optimizer's update into one program. `CompiledStep` does that in "
        "the Runner. [Make it faster](faster.md#compile-the-whole-step) says when it applies. `torch.compile` compiles "
        "the model in the plain loop. JAX compiles a step (`jit`), or an epoch whose batches are all in memory "
        "(`scan`). The first three columns show the time of a step without compiling, the last the seconds that "
        "compiling took: first with an empty cache, then with what the first time left in it.\n\n"
        + table(["", *(WORKS[work] for work in ("mlp", "conv", "attention")), "compiling the MLP"], rows)
        + "\nOn a CPU a graph pays for small models, whose time is that of starting operations. [On a GPU]"
        "(faster.md#compile-the-whole-step) it pays for larger models too.\n\n"
        "MNIST-1D to 91% of the test set, where compiling counts. Compiled code rounds differently, and after some "
        "steps the weights differ, so the numbers of epochs do too:\n\n"
        + table(["", "wall", "of which compiling", "the rest", "epochs"], reached)
    )


def once_only(row):
    """Return the seconds that the first epoch took longer than the others."""
    return max(0.0, row["first"] - statistics.median(row["each"]) * row["batches"]) if row.get("each") else 0.0


def compiling(works, name):
    if name not in COMPILES or name not in works["mlp"]:
        return ""
    first, *others = map(once_only, works["mlp"][name])
    return f"{first:.1f} s, {statistics.median(others):.1f} s" if others else f"{first:.1f} s"


def rest(result):
    """Say what was not run."""
    text = (
        "## What was not run\n\n"
        "* **Accelerators.** These numbers are from a CPU, where the time between two operations matters most. "
        "`python benchmarks/gpu.py` measures an MLP, a residual network and a transformer in fp32, bf16 and fp16 on "
        "the accelerator of the machine, and `python benchmarks/captured.py` the compiled step on CUDA. "
        "[Make it faster](faster.md#compile-the-whole-step) has the results of the second.\n"
        "* **Several processes.** `python benchmarks/distributed.py` compares them with a hand-written loop.\n"
    )
    reasons = {}
    for name, work, why in result["failed"]:
        reasons.setdefault((name, why), []).append(WORKS[work])
    return text + "".join(f"* **{name}** ({', '.join(of)}): `{why}`\n" for (name, why), of in reasons.items())

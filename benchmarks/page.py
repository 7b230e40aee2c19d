"""Write the page docs/benchmarks.md and its chart from the results of bench.py."""

import statistics

HEAD = """# Benchmarks

This page compares the time of a step with `fit`, with a hand-written loop and with other libraries. One command runs
all measurements and writes the page. It installs the other libraries into their own environments:

```
hatch run bench
```

Measured on {machine}.

Each program runs in a fresh process, pinned to one core, with one thread. All run in turn for {rounds} rounds
({few} with other libraries), and a ratio compares two times of the same round. The tables show the median and, in
brackets, the range. A ratio below 1 is faster than the hand-written loop. On another machine the times differ, the
ratios differ less, and the counted instructions least.
"""

NAMES = {"mlp": "MLP 32-64-10, batch 32", "conv": "small convnet, batch 32", "mnist1d": "MNIST-1D to 91%"}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def shown(ratio):
    median, least, most = ratio
    return f"{median:.2f} ({least:.2f}-{most:.2f})"


def micro(rows):
    return f"{1e6 * statistics.median(row['step'] for row in rows):.0f}"


def write(result, features, ratios):
    """Return the text of the page, with the parts that were measured."""
    few = max(3, result["rounds"] // 2)
    parts = [HEAD.format(machine=result["machine"], rounds=result["rounds"], few=few)]
    if "loop" in result:
        parts.append(loop(result, ratios))
    if "peers" in result:
        parts.append(peers(result, ratios))
    if "features" in result:
        parts.append(costs(result, features, ratios))
    if "scale" in result:
        parts.append(scale(result, ratios))
    parts.append(
        "## Accelerators\n\nThese numbers are from a CPU, where the time between two operations matters most. "
        "`python benchmarks/gpu.py` measures an MLP, a residual network and a transformer in fp32, bf16 and fp16 on "
        "the accelerator of the machine. It has not been run for this page.\n"
    )
    return "\n".join(parts)


def loop(result, ratios):
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
    return (
        "## Compared with a hand-written loop\n\nMLP 32-64-10, batch 32, SGD. The ratio compares with the hand-written "
        "loop that has the same features. The plain loop keeps its running loss on the device. The careful loop reads "
        "values only when it shows them.\n\n"
        + table(["", "us per step", "ratio", "instructions per step (ratio)"], rows)
        + "\n"
    )


def peers(result, ratios):
    works = result["peers"]
    order = sorted(
        works["mlp"], key=lambda name: ratios(works["mlp"][name], works["mlp"]["plain"])[0] if name != "plain" else 0
    )
    rows = []
    for name in order:
        label = {"plain": "hand-written loop", "lean": "**fit**"}.get(name, name)
        row = [label]
        for work, figure in (("mlp", "step"), ("conv", "step"), ("mnist1d", "reached")):
            seen = works[work]
            row.append(shown(ratios(seen[name], seen["plain"], figure)) if name in seen else "-")
        seen = works["mnist1d"].get(name)
        row.append(f"{statistics.median(row['reached'] for row in seen):.1f} s" if seen else "-")
        row.append(str(seen[0]["epochs"]) if seen else "-")
        rows.append(row)
    text = (
        "## Compared with other libraries\n\n"
        "![The time of a step, as a multiple of the hand-written loop](pictures/benchmarks.png)\n\n"
        "Each library runs with the leanest settings in its documentation: no progress bar, no log, no checkpoint, no "
        "metric. The first two columns show the time of a step. The MNIST-1D column shows the time of `fit` until 91% "
        "of the test set are classified correctly, which the same code checks after each epoch. All start from the "
        "same weights, so libraries that pass the same batches to the same optimizer need the same number of epochs. "
        "Keras has its own Adam and losses and needs another number.\n\n"
        + table(["", *NAMES.values(), "wall", "epochs"], rows)
        + "\n"
    )
    if result["failed"]:
        text += "\nCould not run:\n\n" + "".join(f"* {name}: `{why}`\n" for name, why in result["failed"].items())
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
        + "\n"
    )


def costs(result, features, ratios):
    seen = result["features"]
    base = statistics.median(row["step"] for row in seen["idle-by-hand"])
    rows = []
    for what, (with_it, by_hand) in features.items():
        more = [1e6 * (statistics.median(row["step"] for row in seen[name]) - base) for name in (with_it, by_hand)]
        rows.append([what, *(f"{row:+.0f}" for row in more), shown(ratios(seen[with_it], seen[by_hand]))])
    return (
        "## What each feature costs\n\nFor the same MLP, this table shows the microseconds per step that each feature "
        f"adds to the bare hand-written loop ({1e6 * base:.0f}), and the ratio of the whole step to that of a "
        "hand-written loop with the same feature. The cost is negative where the Runner is faster than the bare "
        "loop.\n\n" + table(["", "Runner", "hand-written loop", "ratio"], rows) + "\n"
    )


def scale(result, ratios):
    names = {
        "conv": "small convnet",
        "thousand": "1000 parameter tensors",
        "big": "a model of 500 MB",
        "workers": "a DataLoader with two workers",
    }
    rows = [
        [names[work], micro(seen["plain"]), micro(seen["lean"]), shown(ratios(seen["lean"], seen["plain"]))]
        for work, seen in result["scale"].items()
    ]
    names = {"single": "one batch per epoch", "single_validated": "one batch per epoch, validated on one batch"}
    rows += [
        [
            names[work],
            micro(seen["epochs-by-hand"]),
            micro(seen["epochs"]),
            shown(ratios(seen["epochs"], seen["epochs-by-hand"])),
        ]
        for work, seen in result["epochs"].items()
    ]
    ten = result["ten"]
    long = result["flat"]
    first, last = (1e6 * seconds for seconds in long["time"])
    return (
        "## Scale\n\n"
        + table(["", "hand-written loop, us per step", "Runner", "ratio"], rows)
        + f"\n\nTen callbacks with a hook at every batch, compared with none: "
        f"{shown(ratios(ten['ten'], ten['lean']))}.\n\n"
        f"In a run of {long['steps']} steps, a step took {first:.0f} us in the first tenth and {last:.0f} us in the "
        f"last. Peak memory was {long['memory'][0]:.1f} MB after the first tenth and {long['memory'][1]:.1f} MB at the "
        "end.\n"
    )


def draw(result, ratios, path):
    """Draw the times as bars, as multiples of the hand-written loop."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = result["peers"]["mlp"]
    values = sorted((ratios(rows, seen["plain"])[0], name) for name, rows in seen.items())
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(values) + 1), layout="constrained")
    labels = [{"plain": "hand-written loop", "lean": "fit"}.get(name, name) for _, name in values]
    colors = ["#d62728" if name == "lean" else "#999999" for _, name in values]
    bars = axes.barh(labels, [value for value, _ in values], color=colors)
    axes.bar_label(bars, [f"{value:.2f}" for value, _ in values], padding=4)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("time of a step, as a multiple of the hand-written loop (MLP 32-64-10, batch 32, CPU)")
    figure.savefig(path, dpi=120)

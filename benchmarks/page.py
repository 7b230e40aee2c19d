"""The page docs/benchmarks.md and its chart, from what bench.py measured."""

import statistics

HEAD = """# Benchmarks

What a step costs with `fit`, beside the loop that you would write by hand and beside other libraries. Everything on
this page is written by one command, which installs the other libraries into environments of their own:

```
hatch run bench
```

Measured on {machine}.

Each contestant runs in a fresh process, pinned to one core, with one thread; all run in turn, {rounds} rounds ({few}
with other libraries), and a ratio is taken within its round. The tables give the median and, in brackets, the range. A
ratio below 1 is quicker than the loop by hand. Another machine gives other times; ratios differ less, and counted
instructions least.
"""

NAMES = {"mlp": "MLP 32-64-10, batch 32", "conv": "small convnet, batch 32", "mnist1d": "MNIST-1D to 91 %"}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def shown(ratio):
    median, least, most = ratio
    return f"{median:.2f} ({least:.2f}-{most:.2f})"


def micro(rows):
    return f"{1e6 * statistics.median(row['step'] for row in rows):.0f}"


def write(result, features, ratios):
    """The text of the page: of the parts that were measured."""
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
        "## Accelerators\n\nThese figures are of a CPU, where the time between two operations shows most. "
        "`python benchmarks/gpu.py` measures an MLP, a residual network and a transformer in fp32, bf16 and fp16 on "
        "the accelerator that it finds. It has not been run for this page.\n"
    )
    return "\n".join(parts)


def loop(result, ratios):
    seen, counted = result["loop"], result["instructions"]
    rows = []
    for name, other, what in (
        ("plain", "plain", "the plain loop by hand"),
        ("lean", "plain", "`Runner`, fit-core alone"),
        ("careful", "careful", "a careful loop by hand: bar, top-1 and top-5, TensorBoard, checkpoints"),
        ("full", "careful", "`Runner` with these as callbacks"),
    ):
        one, base = counted.get(name), counted.get(other)
        instructions = f"{one:,.0f} ({one / base:.3f})".replace(",", " ") if one and base else ""
        rows.append([what, micro(seen[name]), shown(ratios(seen[name], seen[other])), instructions])
    return (
        "## Beside the loop by hand\n\nMLP 32-64-10, batch 32, SGD. The ratio is that to the loop by hand with the "
        "same features. The plain loop keeps its running loss on the device; the careful one reads values only when "
        "they are shown.\n\n" + table(["", "us a step", "ratio", "instructions a step (ratio)"], rows) + "\n"
    )


def peers(result, ratios):
    works = result["peers"]
    order = sorted(
        works["mlp"], key=lambda name: ratios(works["mlp"][name], works["mlp"]["plain"])[0] if name != "plain" else 0
    )
    rows = []
    for name in order:
        label = {"plain": "by hand", "lean": "**fit**"}.get(name, name)
        row = [label]
        for work, figure in (("mlp", "step"), ("conv", "step"), ("mnist1d", "reached")):
            seen = works[work]
            row.append(shown(ratios(seen[name], seen["plain"], figure)) if name in seen else "-")
        seen = works["mnist1d"].get(name)
        row.append(f"{statistics.median(row['reached'] for row in seen):.1f} s" if seen else "-")
        row.append(str(seen[0]["epochs"]) if seen else "-")
        rows.append(row)
    text = (
        "## Beside other libraries\n\n![A step's time, as a multiple of the loop by hand](pictures/benchmarks.png)\n\n"
        "Each at the leanest setting that its documentation has: no bar, no log, no checkpoint, no metric. The first "
        "two are the time of a step, MNIST-1D the time of `fit` until 91 % of the test set are right, looked at after "
        "each epoch by the same lines for all. All begin from the same weights; who passes the same batches to the "
        "same optimizer needs the same number of epochs. The numbers of epochs differ for Keras, whose Adam and losses "
        "are its own.\n\n" + table(["", *NAMES.values(), "wall", "epochs"], rows) + "\n"
    )
    if result["failed"]:
        text += "\nCould not run:\n\n" + "".join(f"* {name}: `{why}`\n" for name, why in result["failed"].items())
    rows = []
    for name, seconds in result["import"].items():
        took = "-" if seconds is None else f"{1000 * seconds:.0f} ms"
        if got := result["installed"][name]:
            rows.append([name, got[0], str(got[1] - 1), f"{got[2]:.2f}", took])
    return text + (
        "\nWhat comes with an installation, beside torch and all that was installed for these measurements, and "
        "how long the import takes after `import torch`. Packages that were there already (NumPy, tqdm, ...) are not "
        "counted, in favour of those that need them; of fit, fit-callbacks needs TensorBoard and tqdm, and the others "
        "nothing.\n\n" + table(["", "version", "further packages", "MB installed", "import"], rows) + "\n"
    )


def costs(result, features, ratios):
    seen = result["features"]
    base = statistics.median(row["step"] for row in seen["idle-by-hand"])
    rows = []
    for what, (with_it, by_hand) in features.items():
        more = [1e6 * (statistics.median(row["step"] for row in seen[name]) - base) for name in (with_it, by_hand)]
        rows.append([what, *(f"{row:+.0f}" for row in more), shown(ratios(seen[with_it], seen[by_hand]))])
    return (
        "## What each feature costs\n\nThe same MLP. Microseconds a step on top of the bare loop by hand "
        f"({1e6 * base:.0f}), and the ratio of the whole step to that of a loop with the same feature written by hand. "
        "A Runner that is quicker than the bare loop shows as a negative cost.\n\n"
        + table(["", "Runner", "by hand", "ratio"], rows)
        + "\n"
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
        + table(["", "by hand, us a step", "Runner", "ratio"], rows)
        + f"\n\nTen callbacks with a hook at every batch, against none: {shown(ratios(ten['ten'], ten['lean']))}.\n\n"
        f"Over {long['steps']} steps: {first:.0f} us a step in the first tenth and {last:.0f} in the last; "
        f"the most memory held was {long['memory'][0]:.1f} MB after the first tenth and {long['memory'][1]:.1f} MB at "
        "the end.\n"
    )


def draw(result, ratios, path):
    """Bars, as a multiple of the loop by hand."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = result["peers"]["mlp"]
    values = sorted((ratios(rows, seen["plain"])[0], name) for name, rows in seen.items())
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(values) + 1), layout="constrained")
    labels = [{"plain": "by hand", "lean": "fit"}.get(name, name) for _, name in values]
    colors = ["#d62728" if name == "lean" else "#999999" for _, name in values]
    bars = axes.barh(labels, [value for value, _ in values], color=colors)
    axes.bar_label(bars, [f"{value:.2f}" for value, _ in values], padding=4)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("time of a step, as a multiple of the loop by hand (MLP 32-64-10, batch 32, CPU)")
    figure.savefig(path, dpi=120)

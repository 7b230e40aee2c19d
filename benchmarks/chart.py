"""Draw the time of a step of every contestant, on a logarithmic axis around the hand-written loop."""

from contest import ratios

OURS, OTHERS, REFERENCE = "#c1272d", "#8a8f98", "#30343b"
LABELS = {
    "plain": "hand-written loop",
    "lean": "fit",
    "CompiledStep": "fit, CompiledStep",
    "torch.compile": "hand-written loop, torch.compile",
    "Keras on JAX, 100 steps": "Keras on JAX, 100 steps per execution",
}


def draw(result, path):
    """Draw a bar from 1 to the ratio of each contestant: to the left the faster ones, to the right the slower."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = result["peers"]["mlp"]
    values = sorted((ratios(rows, seen["plain"])[0], name) for name, rows in seen.items())
    least, most = min(values)[0], max(values)[0]
    figure, axes = pyplot.subplots(figsize=(8, 0.34 * len(values) + 1.2), layout="constrained")
    axes.set_xscale("log")
    for row, (value, name) in enumerate(values):
        color = OURS if name in ("lean", "CompiledStep") else REFERENCE if name == "plain" else OTHERS
        axes.barh(row, value - 1, left=1, height=0.66, color=color)
        left = value < 0.995
        axes.annotate(
            f"{value:.2f}" if value >= 0.1 else f"{value:.3f}",
            (value, row),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=10,
        )
    axes.axvline(1, color=REFERENCE, linewidth=1)
    axes.set_yticks(range(len(values)), [LABELS.get(name, name) for _, name in values], fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(least / 2, max(most, 1.2) * 1.6)  # with room for the numbers
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if least / 2 < tick < most * 1.6]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=10)
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", color="#e3e5e8", linewidth=0.8)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("time per step, relative to a hand-written loop: left is faster (log scale)", fontsize=10)
    axes.set_title("MLP 32-64-10, batch 32, one CPU core", fontsize=11, loc="left")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)

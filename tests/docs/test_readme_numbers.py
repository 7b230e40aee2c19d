"""The README repeats numbers of docs/benchmarks.md, which `hatch run bench` writes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def row(text, start):
    (line,) = re.findall(rf"^\| {re.escape(start)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def test_the_table_of_libraries_is_that_of_the_benchmarks():
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "benchmarks.md").read_text()
    compared, installed = page.split("### Compared with other libraries")[1].split("MB installed")
    names = ["fit", "Ignite", "Fabric", "accelerate", "Lightning", "Keras on torch"]
    steps = [row(compared, "**fit**" if name == "fit" else name)[0].split()[0] for name in names]
    sizes = [row(installed.split("\n## ")[0], "**fit, all four**" if name == "fit" else name)[2:] for name in names]
    assert row(readme, "time of a step") == steps
    assert row(readme, "MB installed") == [f"{float(size):.1f}" for size, _ in sizes]
    assert row(readme, "ms to import") == [time.removesuffix(" ms") for _, time in sizes]

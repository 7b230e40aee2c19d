"""Run the program of the README, and the examples in docstrings."""

import doctest
import re
from pathlib import Path

import fit_example.calibration
import torch


def test_the_program_of_the_readme(capsys):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["history"][-1]["milestones"] == 2
    assert "val/accuracy has reached 0.9" in capsys.readouterr().out


def test_the_examples():
    failed, tried = doctest.testmod(fit_example.calibration, extraglobs={"torch": torch})
    assert tried
    assert not failed

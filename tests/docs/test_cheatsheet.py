"""docs/cheatsheet.md is everything on one page: each public name, each hook, and each argument of fit."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "cheatsheet.md").read_text()


@pytest.mark.parametrize("package", ["fit_callbacks", "fit_metrics", "fit_distributed"])
def test_it_names_everything_that_can_be_imported(package):
    named = set(re.findall(r"\w+", PAGE))
    assert set(importlib.import_module(package).__all__) <= named


def test_it_shows_the_hooks_in_order_and_the_arguments_of_fit():
    from fit_core import HOOKS, Runner

    drawn = re.search(r"^```text\n(on_begin\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    assert tuple(dict.fromkeys(re.findall(r"^ *(on_\w+)", drawn, re.MULTILINE))) == HOOKS
    options = [name for name, parameter in inspect.signature(Runner.fit).parameters.items() if parameter.kind == 3]
    rows = re.search(r"^\| argument of `fit`.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)[0]
    assert set(re.findall(r"`(\w+)=", rows)) == {"epochs", *options}

"""Compare docs/loop.md with runner.py: the page shows every line of the loop, and no code that is not in the file."""

import ast
import re
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "packages/fit-core/src/fit_core/runner.py").read_text().splitlines()
PAGE = (ROOT / "docs/loop.md").read_text()
PIECES = re.findall(r"^```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
METHODS = [
    "fit",
    "_run_epoch",
    "_make_step",
    "forward",
    "backward",
    "optimizer_step",
    "autocast",
    "_begin",
    "_beside_the_run",
    "evaluate",
    "predict",
]


def place(piece):
    """Return the numbers, from 0, of the lines of the file that a piece shows. None if the file does not contain it."""
    size, wanted = len(piece.splitlines()), dedent(piece).strip("\n")
    for first in range(len(LINES) - size + 1):
        if dedent("\n".join(LINES[first : first + size])) == wanted:
            return set(range(first, first + size))
    return set()


def body(name):
    """Return the numbers of the lines of a method, without its signature, its docstring and empty lines."""
    nodes = ast.walk(ast.parse("\n".join(LINES)))
    (method,) = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name]
    first = method.body[1] if ast.get_docstring(method) else method.body[0]
    return {number for number in range(first.lineno - 1, method.end_lineno) if LINES[number].strip()}


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.strip().splitlines()[0])
def test_a_piece_is_the_code_of_the_loop(piece):
    assert place(piece), f"docs/loop.md shows code that is not in runner.py. Update this block:\n{piece}"


@pytest.mark.parametrize("name", METHODS)
def test_the_page_shows_all_of_a_method(name):
    shown = set().union(*map(place, PIECES))
    missing = [LINES[number] for number in sorted(body(name) - shown)]
    assert not missing, f"docs/loop.md does not show these lines of {name}:\n" + "\n".join(missing)


def test_the_pieces_are_in_the_order_of_the_method():
    firsts = [min(place(piece)) for piece in PIECES]
    for name in METHODS:
        own = [first for first in firsts if first in body(name)]
        assert own == sorted(own), f"the pieces of {name} are out of order"

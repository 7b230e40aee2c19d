"""docs/promises.md names a test for each promise, and the file that it links to defines that test."""

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "promises.md"
ROWS = re.findall(r"^\| (?!Promise)(?!-)(.+?) \| (.+) \|$", PAGE.read_text().replace("|---|---|", ""), re.MULTILINE)
LINKS = [link for _, tests in ROWS for link in re.findall(r"\[`(\w+)`\]\((\S+?)\)", tests)]


def test_every_promise_names_its_tests():
    assert len(ROWS) > 40
    for promise, tests in ROWS:
        assert re.fullmatch(r"\[`test_\w+`\]\(\S+\)(, \[`test_\w+`\]\(\S+\))*", tests), promise


@pytest.mark.parametrize("file", sorted({file for _, file in LINKS}))
def test_each_file_defines_the_tests_that_the_page_names(file):
    module = ast.parse((PAGE.parent / file).read_text())
    defined = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    named = {name for name, other in LINKS if other == file}
    assert named <= defined

"""docs/why.md shows wrong and right numbers: each line that it prints starts with the comment beside it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "why.md"


def test_the_page_prints_the_numbers_that_it_shows(capsys):
    text, names = PAGE.read_text(), {"__name__": "why"}
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    shown = [re.sub(r"(, which is wrong| of 100.*)$", "", line) for line in re.findall(r"print\(.*\)  # (.*)", text)]
    assert capsys.readouterr().out.splitlines() == shown
    assert len(shown) > 20


def test_each_section_names_tests_that_exist():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:-1]
    for section in sections:
        links = re.findall(r"\[`(test_\w+)`\]\((\S+?)\)", section)
        assert links, section.splitlines()[0]
        for name, file in links:
            module = ast.parse((PAGE.parent / file).read_text())
            assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, name

"""Every Python block in a README or in docs/ runs; those of one file share their names, in order.

A block after the comment `<!-- needs optuna -->` runs where the package is installed.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import fakes
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md")), *sorted(ROOT.glob("docs/**/*.md"))]
# The template runs its own: tests/protocol/test_template.py.
PAGES = [page for page in PAGES if "template" not in page.parts]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Packages whose name in an import is not their name in an index."""


def blocks_of(page):
    """Return the programs of a page with the package that each says it needs, or ""."""
    pattern = r"(?:^<!-- needs (\w+) -->\n)?^```python\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, client in fakes.clients().items():
        monkeypatch.setitem(sys.modules, name, client)
    names = {"__name__": "readme"}
    blocks = blocks_of(page)
    for package, block in blocks:
        if package and not importlib.util.find_spec(package):
            continue
        exec(compile(block, str(page), "exec"), names)
    assert blocks or page.parent.name == "docs"


def imported(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_what_its_programs_need(page):
    names = {name for package, block in blocks_of(page) if not package for name in imported(block)}
    own = {"torch", "fit_core", "fit_callbacks", "fit_metrics", "fit_distributed", *fakes.clients()}
    needed = {DISTRIBUTIONS.get(name, name) for name in names - own - sys.stdlib_module_names}
    assert needed <= set(" ".join(re.findall(r"pip install ([^`\n]*)", page.read_text())).split())

"""Every Python block in a README or in docs/ runs; those of one file share their names, in order.

A block after the comment `<!-- needs optuna -->` runs where the package is installed.
"""

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, client in fakes.clients().items():
        monkeypatch.setitem(sys.modules, name, client)
    names = {"__name__": "readme"}
    blocks = re.findall(
        r"(?:^<!-- needs (\w+) -->\n)?^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    for package, block in blocks:
        if package and not importlib.util.find_spec(package):
            continue
        exec(compile(block, str(page), "exec"), names)
    assert blocks or page.parent.name == "docs"

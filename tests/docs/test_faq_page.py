"""The messages of docs/faq.md are in the sources, so that a search for one of them finds the page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faq.md").read_text()
MESSAGES = [" ".join(text.split()) for text in re.findall(r"^```text\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)]


def fixed_parts():
    """Yield each string of the sources. Of one with values in it, yield the parts between them."""
    for path in ROOT.glob("packages/*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


SOURCES = "\0".join(fixed_parts())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_sources(message):
    for part in (part.strip(" .") for part in message.split("...")):
        assert part in SOURCES, f"docs/faq.md has a message that nothing raises. Reword or drop it: {part}"


def test_there_are_enough():
    assert len(MESSAGES) > 40

"""Our texts are plain English in Markdown: forms that read as a translation, or are reStructuredText, stay out."""

import ast
import functools
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORMS = {
    r"\banew\b": "again, from scratch",
    r"(?<!there )\b(?:is|are) no (?!longer)[a-z]": "is not a",
    r"\bgo(?:es)? on\b": "resume, continue",
    r"\btells?\b": "print, say, return",
    r"(?:^|[.:] )What [^?]*\.(?:\s|$)": "start with the subject",
    r"\bhalfway\b": "half",
    r"\d %(?!\()": "94%",
    r"\btakes up\b": "resume",
    r"\blets go\b": "release",
    r"\bwhoever\b": "you",
}
"""A form, and what to write in its place."""


def tracked(*names):
    listed = subprocess.run(["git", "ls-files", *names], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split()]


def prose(path):
    """Yield the lines of a text, or of the strings and comments in a program, with their numbers and without code."""
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"^( *)```.*?^\1```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)
        yield from enumerate((re.sub(r"`[^`]*`", "`code`", line) for line in text.splitlines()), 1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.splitlines(), node.lineno):
                yield number, re.sub(r"`[^`]*`", "`code`", line)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@functools.cache
def lines():
    """Return every line of prose with the place where it is."""
    return [
        (f"{path.relative_to(ROOT)}:{number}: {line.strip()}", line)
        for path in tracked("*.md", "*.py")
        for number, line in prose(path)
    ]


@pytest.mark.parametrize(("form", "better"), FORMS.items())
def test_a_form_that_reads_as_a_translation_is_not_used(form, better):
    found = [place for place, line in lines() if re.search(form, line)]
    assert not found, f"write {better!r} instead:\n" + "\n".join(found)


RST = {
    r"(?<!`)``(?!`)": "`code`",
    r":[a-z]+:`": "`Name`, which the site links",
    r"(?<!:)::$": "a fenced block",
    r"^ *Example:$": "Examples:",
    r"^ *\w+(?:Error|Exit), \w+:": "a line for each exception that names its condition",
    r"^ *Returns:\n.*: ": "a sentence without a colon, which would end the type",
}
"""A form that neither `help` nor the site shows well, and what to write in its place."""


@functools.cache
def docstrings():
    """Return every string that stands alone with the place where it is."""
    return [
        (f"{path}:{node.lineno}", node.value.value)
        for path in tracked("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


@pytest.mark.parametrize(("form", "better"), RST.items())
def test_docstrings_are_markdown(form, better):
    found = [place for place, text in docstrings() for _ in re.findall(form, text, re.MULTILINE)]
    assert not found, f"write {better} instead:\n" + "\n".join(found)

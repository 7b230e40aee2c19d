"""Convert docstrings for the site: an extension of griffe, which reads the packages."""

import ast
import re
import textwrap
from collections.abc import Callable
from typing import Any

import griffe


def to_markdown(text: str, resolve: Callable[[str], str] | None = None) -> str:
    """Turn what a docstring has of reStructuredText, roles and literal blocks, into Markdown."""

    def role(match: re.Match[str]) -> str:
        tilde, name = match[1], match[2]
        code = f"`{name.rpartition('.')[2] if tilde else name}`"
        return f"[{code}][{resolve(name)}]" if resolve else code

    def section(match: re.Match[str]) -> str:
        return f"**{match[1]}:**\n\n{textwrap.dedent(match[2])}"

    def block(match: re.Match[str]) -> str:
        indent, intro, code = match[1], match[2], textwrap.dedent(match[3]).strip()
        fenced = f"```{'python' if is_python(code) else 'text'}\n{code}\n```\n\n"
        return (f"{indent}{intro}:\n\n" if intro else "") + textwrap.indent(fenced, indent)

    def sub(pattern: str, new: str | Callable[[re.Match[str]], str]) -> str:
        return re.sub(pattern, new, text, flags=re.MULTILINE)

    text = sub(r"^Example:$", "Examples:")  # The name that griffe knows.
    text = sub(r"^(Shapes|Value):\n((?: .*\n?|\n)+)", section)  # It does not know these.
    text = sub(r"^( +\w+Error), (?=\w+Error:)", r"\1 | ")  # It would show a tuple.
    text = sub(r":[a-z]+:`(~?)([^`]+)`", role) + "\n"
    return sub(r"^( *)(.*)::\n\n((?:\1 +.*\n|\n)+)", block).strip()


def is_python(code: str) -> bool:
    """Whether a literal block is code, or else a drawing or what a terminal shows."""
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


class Docstrings(griffe.Extension):
    """Convert the docstrings of the packages before griffe shows them on the site."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Unhide functions that are named like their module (``fit_distributed.launch``), and convert docstrings."""
        for alias in [member for member in pkg.members.values() if member.is_alias]:
            alias.resolve_target()
        self.convert(pkg)
        for name in pkg.exports or ():
            module = pkg.members[name]
            if module.is_module:
                pkg.members[name] = griffe.Alias(name, module.members[name], parent=pkg)

    def convert(self, thing: griffe.Object) -> None:
        """Convert the docstring of a thing, and of all in it."""

        def resolve(name: str) -> str:
            first, dot, rest = name.partition(".")
            try:
                return thing.resolve(first) + dot + rest
            except griffe.NameResolutionError:
                return name

        if thing.docstring:
            thing.docstring.value = to_markdown(thing.docstring.value, resolve)
        for member in thing.members.values():
            if not member.is_alias:
                self.convert(member)

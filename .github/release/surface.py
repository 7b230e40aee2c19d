"""How far two surfaces of fit-core lie apart: which step of its version a change of the protocol asks for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

__all__ = ["changes"]


def changes(old: str, new: str) -> Iterator[tuple[str, str]]:
    """Each change from one ``surface.txt`` to another, as the part of the version that it asks for and a sentence.

    What is new asks for ``minor``; what is gone or means something else asks for ``major``.
    """
    before, after = entries(old), entries(new)
    for name in before.keys() - after.keys():
        yield "major", f"{name} is gone"
    for name in after.keys() - before.keys():
        yield "minor", f"{name} is new"
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            part = "minor" if extends(before[name], after[name]) else "major"
            yield part, f"{name} was {before[name]} and is {after[name]}"


def entries(surface: str) -> dict[str, str]:
    """``{"Runner.fit": "(self, ...) -> History", "RunnerState.epoch": ": int", ...}``."""
    found, owner = {}, ""
    for line in surface.splitlines():
        indent, name, rest = re.fullmatch(r"(  |class |)(\w+)(.*)", line).groups()  # type: ignore[union-attr]
        if indent == "class ":
            owner = name
        found[f"{owner}.{name}" if indent == "  " else name] = rest.strip()
    return found


def extends(old: str, new: str) -> bool:
    """Whether whatever worked with the old still works with the new: hooks were added, or arguments with a default."""
    if old.startswith("= ("):  # hooks, in the order of a run
        rest = iter(ast.literal_eval(new[2:]))
        return all(hook in rest for hook in ast.literal_eval(old[2:]))
    if not old.startswith("(") or not new.startswith("("):
        return False
    (positional, keywords, returned), (more, more_keywords, returns) = signature(old), signature(new)
    added = more[len(positional) :] + [one for one in more_keywords if one not in keywords]
    return (
        returned == returns
        and more[: len(positional)] == positional
        and all(one in more_keywords for one in keywords)
        and all(default is not None for _, _, default in added)
    )


def signature(text: str) -> tuple[list[tuple[str, str, str | None]], list[tuple[str, str, str | None]], str]:
    """Arguments by position, arguments by keyword, each as name, type and default, and what is returned."""
    function = ast.parse(f"def function{text}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    given = function.args

    def described(arguments: list[ast.arg], defaults: list[ast.expr | None]) -> list[tuple[str, str, str | None]]:
        return [
            (
                one.arg,
                ast.unparse(one.annotation) if one.annotation else "",
                None if default is None else ast.unparse(default),
            )
            for one, default in zip(arguments, defaults, strict=True)
        ]

    positional = given.posonlyargs + given.args
    missing = [None] * (len(positional) - len(given.defaults))
    returns = ast.unparse(function.returns) if function.returns else ""
    return described(positional, [*missing, *given.defaults]), described(given.kwonlyargs, given.kw_defaults), returns

"""The change that makes a release: the next version, and its heading in the changelog."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from .check import step_needed
from .project import PARTS, Package, Refusal, numbers, stepped

__all__ = ["prepare"]


def prepare(package: Package, part: str | None = None) -> str:
    """Write the version and the changelog's heading of the next release; commit them yourself.

    A version that was stepped together with the change that needs it, and is not released yet, is kept.

    Args:
        package: what is to be released.
        part: ``major``, ``minor`` or ``patch``. By default ``minor`` where the changelog says that something was added
            and ``patch`` where not, or what the protocol asks of fit-core if that is more.

    Returns:
        The version.

    Raises:
        Refusal: the changelog has nothing under ``Unreleased``.
    """
    if package.heading != "Unreleased" or "\n- " not in f"\n{package.notes}":
        raise Refusal(
            f"packages/{package.name}/CHANGELOG.md has nothing under a heading 'Unreleased' at its top "
            f"(the newest is {package.heading!r}): say there what changes for users"
        )
    if released := package.releases():
        default = "minor" if "### Added" in package.notes else "patch"
        part = part or max(default, step_needed(package, released[-1])[0], key=PARTS.index)
        following = stepped(released[-1], part)
        if numbers(following) > numbers(package.version):
            _replace(package.folder / "pyproject.toml", r'^version = ".*"$', f'version = "{following}"')
    today = datetime.date.today().isoformat()
    _replace(package.folder / "CHANGELOG.md", "^## Unreleased$", f"## {package.version} - {today}")
    return package.version


def _replace(file: Path, pattern: str, line: str) -> None:
    file.write_text(re.sub(pattern, line, file.read_text(), count=1, flags=re.MULTILINE))

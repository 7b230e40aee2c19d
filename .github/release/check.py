"""Whether a release may be: its tag, version, changelog, floor and protocol agree, and everything is committed."""

from __future__ import annotations

import re

from .project import PARTS, Package, Refusal, git, numbers, stepped
from .surface import changes

__all__ = ["check", "step_needed"]

SURFACE = "tests/protocol/surface.txt"


def check(package: Package, wanted: str, *, merged: bool = False) -> None:
    """Refuse a release that contradicts itself.

    Args:
        package: what is released.
        wanted: a version, ``1.0.0``, or a tag, ``fit-core-v1.0.0``.
        merged: also ask whether the commit is on the main branch, or on one for repairs such as ``fit-core-1.x``.

    Raises:
        Refusal: with what to change.
    """
    _everything_is_committed(package)
    _names_agree(package, wanted)
    _follows_the_last(package)
    _floor_is_released(package)
    if merged:
        _is_merged(package)


def step_needed(package: Package, last: str) -> tuple[str, str]:
    """The part of the version that changes of the protocol since the release ``last`` ask for, and which they are.

    ``patch`` where there are none, and for all packages but fit-core, whose versions are their own.
    """
    if package.name != "fit-core":
        return "patch", ""
    old = git(package.root, "show", f"fit-core-v{last}:{SURFACE}")
    found = list(changes(old, (package.root / SURFACE).read_text()))
    needed = max((part for part, _ in found), key=PARTS.index, default="patch")
    return needed, "; ".join(sorted(sentence for part, sentence in found if part == needed))


def _everything_is_committed(package: Package) -> None:
    if changed := git(package.root, "status", "--porcelain"):
        files = ", ".join(line[2:].strip() for line in changed.splitlines()[:5])
        raise Refusal(f"the tree is dirty ({files}): a release is made of commits alone; commit, stash or remove")


def _names_agree(package: Package, wanted: str) -> None:
    name, version = package.name, wanted.removeprefix(f"{package.name}-v")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Refusal(f"{wanted!r} is no release of {name}: a version is 1.2.3, a tag {name}-v1.2.3")
    if version != package.version:
        raise Refusal(
            f"{wanted} is wanted, but packages/{name}/pyproject.toml says {package.version}: "
            f"hatch run release:prepare {name}"
        )
    if not re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", package.heading):
        raise Refusal(
            f"the newest heading of packages/{name}/CHANGELOG.md is {package.heading!r}, "
            f"expected '{version} - YYYY-MM-DD': hatch run release:prepare {name}"
        )
    if "\n- " not in f"\n{package.notes}":
        raise Refusal(f"packages/{name}/CHANGELOG.md tells nothing of {version}: say what changes for users")
    tag = package.tag
    if git(package.root, "tag", "--list", tag) and git(package.root, "rev-list", "-1", tag) != git(
        package.root, "rev-parse", "HEAD"
    ):
        raise Refusal(f"the tag {tag} is there already, on another commit: a version is released once, take the next")


def _follows_the_last(package: Package) -> None:
    earlier = package.releases(before=package.version)
    if not earlier:
        return
    last = earlier[-1]
    steps = {stepped(last, part): part for part in PARTS}
    if package.version not in steps:
        raise Refusal(f"{package.name} {package.version} cannot follow {last}: the next ones are {', '.join(steps)}")
    step, (needed, why) = steps[package.version], step_needed(package, last)
    if PARTS.index(step) < PARTS.index(needed):
        raise Refusal(
            f"{package.name} {package.version} is a {step} version after {last}, but the protocol asks for a {needed} "
            f"one: {why}. hatch run release:prepare {package.name} --part {needed}, or take the change back"
        )


def _floor_is_released(package: Package) -> None:
    if package.name == "fit-core":
        return
    floor = ".".join(map(str, numbers(package.floor)))
    if floor not in Package(package.root, "fit-core").releases():
        raise Refusal(
            f"{package.name} needs fit-core>={package.floor}, and fit-core {floor} was never released: "
            f"release it first, or lower the floor in packages/{package.name}/pyproject.toml"
        )


def _is_merged(package: Package) -> None:
    branches = git(package.root, "branch", "--remotes", "--contains", "HEAD", "--format=%(refname:short)").split()
    if not any(re.fullmatch(rf"origin/(main|{package.name}-\d+\.x)", branch) for branch in branches):
        raise Refusal(f"the commit is neither on main nor on {package.name}-N.x: merge it, then tag the merge commit")

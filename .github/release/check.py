"""Refuse a release whose tag, version, changelog, floor and protocol disagree."""

from __future__ import annotations

import re
from collections import Counter

from packaging.version import Version
from project import Package, Refusal

SURFACE = "tests/protocol/surface.txt"


def check(package: Package, tag: str, *, merged: bool = False) -> None:
    """Refuse a release that contradicts itself. With `merged`, its commit must also be on main or NAME-N.x."""
    name, version, core = package.name, package.version, package.core
    check_clean(package)
    if tag != package.tag:
        raise Refusal(f"expected the tag {package.tag}, which is the version in packages/{name}, got {tag}")
    dated = re.sub(r"\d{4}-\d\d-\d\d$", "YYYY-MM-DD", package.heading)
    if dated != f"{version} - YYYY-MM-DD" or "- " not in package.notes:
        raise Refusal(
            f"expected '## {version} - YYYY-MM-DD' and a list of changes at the top of packages/{name}/CHANGELOG.md, "
            f"got '## {package.heading}'. Rename the heading, and say what changes for users"
        )
    if core is None and (earlier := [release for release in package.releases() if release < version]):
        check_surface(package, earlier[-1])
    if core and (floor := min(Version(bound.version) for bound in core.specifier)) not in package.cores():
        raise Refusal(f"{name} needs {core}, but fit-core {floor} was never released. Release it first")
    branches = package.git("branch", "--remotes", "--contains", "HEAD", "--format=%(refname:short)").split()
    if merged and not any(re.fullmatch(rf"origin/(main|{name}-\d+\.x)", branch) for branch in branches):
        raise Refusal(f"the commit is not on main or {name}-N.x. Merge it, then tag the merge commit")


def check_clean(package: Package) -> None:
    """Refuse a tree with uncommitted files."""
    if changed := package.git("status", "--porcelain"):
        raise Refusal(f"a release is made from a commit, got uncommitted files. Commit or remove them:\n{changed}")


def check_surface(core: Package, last: Version) -> None:
    """Refuse a changed surface whose version step is too small.

    A name that disappears needs a major step, any other change a minor step. The review of surface.txt decides whether
    a changed signature needs more.
    """
    old = core.git("show", f"fit-core-v{last}:{SURFACE}").splitlines()
    new = (core.root / SURFACE).read_text().splitlines()
    names, kept = (Counter(re.split("[(:=]", line)[0].strip() for line in lines) for lines in (old, new))
    step, fixed = ("major", 1) if names - kept else ("minor", 2) if old != new else ("patch", 3)
    if core.version.release[:fixed] == last.release[:fixed]:
        raise Refusal(
            f"{SURFACE} has changed since fit-core {last}, which needs a {step} step, got {core.version}. "
            f"Run: cd packages/fit-core && hatch version {step}\n"
            + core.git("diff", "--unified=0", f"fit-core-v{last}", "--", SURFACE)
        )

"""The whole path of a release, walked in a copy of the repository that is thrown away."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from .build import build, inspect, wheel_of
from .check import check
from .prepare import prepare
from .project import Package, git
from .trial import core_for, smoke, try_dependents, try_wheel

__all__ = ["record", "rehearse"]

NOBODY = {
    "user.name": "rehearsal",
    "user.email": "rehearsal@example.org",
    "commit.gpgsign": "false",
    "tag.gpgsign": "false",
}
"""Who commits and tags in the copy, whatever git is told elsewhere."""


def rehearse(
    package: Package,
    part: str | None = None,
    *,
    torch: str = "pinned",
    quick: bool = False,
    keep: Path | None = None,
) -> None:
    """Release a package into an index folder, from the version's step to the program of its README.

    Everything happens in a clone in a temporary folder; nothing is left behind, here or there.

    Args:
        package: what to release.
        part: see :func:`~release.prepare.prepare`.
        torch: see :class:`~release.trial.Environment`.
        quick: run the tests of the protocol alone.
        keep: a folder to put the wheel and its tests of the protocol into.

    Raises:
        Refusal: a release would be refused, or would not work.
    """
    if git(package.root, "status", "--porcelain"):
        check(package, package.version)  # says which files
    with tempfile.TemporaryDirectory() as scratch:
        root, index = Path(scratch, "clone"), Path(scratch, "index")
        git(package.root, "clone", "--quiet", "--no-hardlinks", str(package.root), str(root))
        for name, value in NOBODY.items():
            git(root, "config", name, value)
        index.mkdir()
        core, copy = Package(root, "fit-core"), Package(root, package.name)
        if package.name != "fit-core" and core.releases():
            shutil.copy(core_for(copy, "highest", Path(scratch, "core"))[0], index)  # as the registry has it
        elif package.name != "fit-core":
            print("fit-core was never released, and goes first:")
            _release(core, None, index)
        _release(copy, part, index)
        if package.name == "fit-core":
            print(f"  wheel alone: {try_wheel(copy, index, torch=torch, quick=quick)}")
            for line in try_dependents(copy, index, torch=torch, quick=quick):
                print(f"  dependents: {line}")
        else:
            for which in ("lowest", "highest")[: len(copy.cores())]:
                print(f"  {which} core: {try_wheel(copy, index, core=which, torch=torch, quick=quick)}")
        print(f"  from the index: {smoke(copy, copy.version, index=index, torch=torch)}")
        print("  notes:\n" + "\n".join(f"    {line}" for line in copy.notes.splitlines()))
        if keep:
            _keep(copy, index, keep)
        told = f"{copy.name} {copy.version} could be released. Nothing was; no file and no tag is left."
    print(told)


def record(packages: list[Package]) -> None:
    """Rehearse packages, and keep the wheels and tests that stand for a last release until there are tags."""
    with tempfile.TemporaryDirectory() as scratch:
        kept, recorded = Path(scratch, "recorded"), packages[0].root / "tests" / "recorded"
        kept.mkdir()
        for package in packages:
            rehearse(package, quick=True, keep=kept)
        shutil.rmtree(recorded, ignore_errors=True)
        shutil.copytree(kept, recorded)


def _release(package: Package, part: str | None, index: Path) -> None:
    """Version, changelog, commit, tag, check and build, as on the way to a real release."""
    before = package.version
    version = prepare(package, part)
    print(
        f"{package.name} {before} -> {version}, {package.heading}" if version != before else f"{package.name} {version}"
    )
    git(package.root, "commit", "--quiet", "--all", "--no-verify", "--message", f"Release {package.tag}")
    git(package.root, "tag", package.tag)
    check(package, package.tag)
    files = build(package, index)
    inspect(files)
    for path in files:
        print(f"  built: {path.name}, {path.stat().st_size} bytes")


def _keep(package: Package, index: Path, folder: Path) -> None:
    """Put the wheel into a folder, and with that of a dependent its tests of the protocol."""
    shutil.copy(wheel_of(package, index), folder)
    if package.name == "fit-core":  # whose surface is compared with that of the tree
        return
    tests = folder / f"{package.module}-{package.version}-tests.tar.gz"
    paths = ["tests/protocol/conformance.py", *package.protocol_tests]
    git(package.root, "archive", "--format=tar.gz", f"--output={tests}", "HEAD", "--", *paths)

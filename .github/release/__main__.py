"""The commands of a release."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .build import build, inspect
from .check import check
from .prepare import prepare
from .project import PACKAGES, PARTS, Package, Refusal
from .rehearse import record, rehearse
from .trial import smoke, try_dependents, try_wheel

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"


def main(arguments: list[str]) -> None:
    """Run the command that the arguments name."""
    given = parser().parse_args(arguments)
    if given.command == "record":
        record([Package(ROOT, name) for name in PACKAGES])
        return
    package = Package(ROOT, given.package)
    match given.command:
        case "check":
            check(package, given.version, merged=given.merged)
            print(f"{package.name} {package.version} may be released")
        case "prepare":
            print(
                f"{package.name} {prepare(package, given.part)}: look at the change, commit it, and tag it when merged"
            )
        case "build":
            files = build(package, DIST)
            inspect(files)
            for path in files:
                print(f"{path.relative_to(ROOT)}  {path.stat().st_size} bytes")
        case "test-wheel":
            print(try_wheel(package, DIST, core=given.core, torch=given.torch, quick=given.quick))
        case "test-dependents":
            print(*try_dependents(package, DIST, torch=given.torch, quick=given.quick), sep="\n")
        case "smoke":
            print(smoke(package, given.version.removeprefix(f"{package.name}-v"), torch=given.torch))
        case "notes":
            print(package.notes)
        case "rehearse":
            rehearse(package, given.part, torch=given.torch, quick=given.quick)


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    whole = argparse.ArgumentParser(prog="hatch run release:", description="Release one of the four packages.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, words: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, prog=f"hatch run release:{name}", help=words, description=words)
        one.add_argument("package", choices=PACKAGES, metavar="PACKAGE", help=", ".join(PACKAGES))
        return one

    check = command("check", "refuse a release whose tag, version, changelog, floor and protocol disagree")
    check.add_argument("version", help="a version, 1.2.0, or a tag, fit-core-v1.2.0")
    check.add_argument("--merged", action="store_true", help="the commit must be on origin's main, or NAME-N.x")
    prepare = command("prepare", "write the next version and the changelog's heading")
    command("build", "build wheel and sources into dist/, twice, and look into them")
    test_wheel = command("test-wheel", "try the wheel in dist/ with its tests, in a fresh environment")
    test_wheel.add_argument("--core", choices=["lowest", "highest"], default="highest", help="which fit-core release")
    dependents = command("test-dependents", "try the fit-core wheel in dist/ with the released dependents")
    smoke = command("smoke", "install a release from the registry, and run the program of its README")
    smoke.add_argument("version", help="its version or tag")
    command("notes", "print the newest section of the changelog")
    rehearse = command("rehearse", "walk the whole path of a release, and leave nothing behind")
    for one in (prepare, rehearse):
        one.add_argument("--part", choices=PARTS, help="which part of the version to step (default: what is needed)")
    for one in (test_wheel, dependents, smoke, rehearse):
        one.add_argument("--torch", default="pinned", help="pinned (as in hatch.toml), lowest, newest or a version")
    for one in (test_wheel, dependents, rehearse):
        one.add_argument("--quick", action="store_true", help="run the tests of the protocol alone")
    words = "rehearse all four, and keep in tests/recorded what stands for a last release until there is one"
    commands.add_parser("record", prog="hatch run release:record", help=words, description=words)
    return whole


try:
    main(sys.argv[1:])
except Refusal as refusal:
    sys.exit(f"refused: {refusal}")

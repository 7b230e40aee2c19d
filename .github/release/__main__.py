"""Release one of the four packages. docs/CONTRIBUTING.md has the steps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from check import check
from project import DEPENDENTS, Package, Refusal
from rehearsal import rehearse
from wheels import PYTHON, build, smoke, try_wheel

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the command in the arguments."""
    parser = argparse.ArgumentParser(prog="hatch run release:", description=__doc__)
    parser.add_argument("command", choices=["rehearse", "check", "build", "test", "smoke", "notes"])
    parser.add_argument("package", choices=["fit-core", *DEPENDENTS])
    parser.add_argument("tag", nargs="?", help="check: the tag of the release, such as fit-core-v1.2.0")
    parser.add_argument("--merged", action="store_true", help="check: the commit must be on main or NAME-N.x")
    parser.add_argument("--quick", action="store_true", help="rehearse, test: run only the tests of the protocol")
    parser.add_argument("--core", choices=["lowest", "highest"], default="highest", help="test: which fit-core")
    parser.add_argument("--python", default=PYTHON, help="test: another Python")
    given = parser.parse_args()
    package, dist = Package(ROOT, given.package), ROOT / "dist"
    commands = {
        "rehearse": lambda: rehearse(package, quick=given.quick),
        "check": lambda: check(package, given.tag or package.tag, merged=given.merged),
        "build": lambda: build(package, dist),
        "test": lambda: try_wheel(package, dist, core=given.core, python=given.python, quick=given.quick),
        "smoke": lambda: smoke(package),
        "notes": lambda: print(package.notes),
    }
    commands[given.command]()


try:
    main()
except Refusal as refusal:
    sys.exit(f"refused: {refusal}")

"""The files of a release: built from a commit alone, twice, and looked into."""

from __future__ import annotations

import email
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.message import Message
from pathlib import Path

from .project import DEPENDENTS, Package, Refusal, extract

__all__ = ["build", "built_at", "faults", "hatchling", "inspect", "wheel_of"]

LARGEST = 60_000
"""Bytes that a wheel may have."""


def build(package: Package, dist: Path, commit: str = "HEAD") -> list[Path]:
    """Put the source distribution and the wheel of a commit into ``dist``; others of the package there go.

    They are built in two places, and the wheel once more from the source distribution: all give the same bytes.

    Raises:
        Refusal: they do not, or :func:`faults` finds some.
    """
    dist.mkdir(parents=True, exist_ok=True)
    for old in dist.glob(f"{package.module}-*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        one, other = (
            hatchling(
                extract(package.root, commit, Path(scratch, name)) / "packages" / package.name, Path(scratch, out)
            )
            for name, out in (("here", "first"), ("a longer path", "second"))
        )
        _are_the_same(one, other, "built twice")
        (sdist,) = [path for path in one if path.suffix == ".gz"]
        with tarfile.open(sdist) as tar:
            tar.extractall(Path(scratch, "unpacked"), filter="data")
        (source,) = Path(scratch, "unpacked").iterdir()
        wheels = [path for path in one if path.suffix == ".whl"]
        _are_the_same(wheels, hatchling(source, Path(scratch, "third"), "-t", "wheel"), "built from its own sources")
        files = [Path(shutil.copy(path, dist)) for path in one]
    wrong = [sentence for path in files if path.suffix == ".whl" for sentence in faults(package, path)]
    if wrong:
        raise Refusal(f"the wheel of {package.name} is not as it should be: {'; '.join(wrong)}")
    return files


def inspect(files: list[Path]) -> None:
    """Ask twine and check-wheel-contents what they think of the files of a release.

    Raises:
        Refusal: one of them objects.
    """
    wheels = [path for path in files if path.suffix == ".whl"]
    for tool, *paths in (["twine", "check", "--strict", *files], ["check_wheel_contents", *wheels]):
        result = subprocess.run(
            [sys.executable, "-m", str(tool), *map(str, paths)], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise Refusal(f"{tool} objects:\n{result.stdout}{result.stderr}")


def built_at(package: Package, commit: str, folder: Path) -> Path:
    """The wheel of a package as it was at a commit or tag, built into a new folder."""
    with tempfile.TemporaryDirectory() as scratch:
        source = extract(package.root, commit, Path(scratch, "source"), f"packages/{package.name}")
        (wheel,) = hatchling(source / "packages" / package.name, folder, "-t", "wheel")
    return wheel


def wheel_of(package: Package, dist: Path) -> Path:
    """The wheel of a package that lies in a folder.

    Raises:
        Refusal: there is none, or there are several.
    """
    found = sorted(dist.glob(f"{package.module}-*.whl"))
    if len(found) != 1:
        raise Refusal(
            f"expected one wheel of {package.name} in {dist}, found {len(found)}: "
            f"hatch run release:build {package.name}"
        )
    return found[0]


def faults(package: Package, wheel: Path) -> list[str]:
    """What is wrong with a wheel, a sentence each."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"{package.module}-{package.version}.dist-info"
        if f"{info}/METADATA" not in names:
            return [f"it has no {info}/METADATA: it is of another version or package"]
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        licence = f"{info}/licenses/LICENSE"
        licence_is_ours = licence in names and archive.read(licence) == (package.root / "LICENSE").read_bytes()
    strangers = sorted({name.split("/")[0] for name in names} - {package.module, info})
    others = [
        name for name in names if name.startswith(f"{package.module}/") and not name.endswith((".py", "py.typed"))
    ]
    tests = [name for name in names if re.search(r"(^|/)(tests?|conftest)(/|_|\.)|_test\.py$", name)]
    checks = {
        f"it installs {', '.join(strangers)} beside {package.module}": strangers,
        f"it holds {', '.join(others)}, which is no Python": others,
        f"it holds tests: {', '.join(tests)}": tests,
        "py.typed is missing": f"{package.module}/py.typed" not in names,
        "the licence of the repository is not in it": not licence_is_ours,
        "it is not pure Python for any platform": not wheel.name.endswith("-py3-none-any.whl"),
        f"it has {wheel.stat().st_size} bytes, {LARGEST} are allowed": wheel.stat().st_size > LARGEST,
    }
    return [sentence for sentence, is_so in checks.items() if is_so] + _faults_of_metadata(package, metadata)


def _faults_of_metadata(package: Package, metadata: Message) -> list[str]:
    required = metadata.get_all("Requires-Dist") or []
    always = [need for need in required if "extra ==" not in need]
    unbound = [need for need in required if ">=" not in need and "==" not in need]
    core = [need for need in always if re.match(r"fit-core\b", need)]
    siblings = [need for need in required if re.match("|".join(DEPENDENTS), need)]
    checks = {
        f"License-Expression is {metadata['License-Expression']}, not MIT": metadata["License-Expression"] != "MIT",
        "License-File is missing": metadata.get_all("License-File") != ["LICENSE"],
        "classifiers name a licence, which License-Expression replaces": "License ::" in str(metadata),
        "Requires-Python is missing": not metadata["Requires-Python"],
        "its README is missing": metadata["Description-Content-Type"] != "text/markdown",
        f"these have no floor: {', '.join(unbound)}": unbound,
        f"it needs a sibling: {', '.join(siblings)}": siblings,
    }
    if package.name == "fit-core":
        checks[f"fit-core needs torch alone, not {', '.join(always)}"] = [need[:5] for need in always] != ["torch"]
    else:
        bound = len(core) == 1 and re.fullmatch(r"fit-core<(\d+),>=(\d+)\.\d+(\.\d+)?", core[0])
        right = bound and int(bound.group(1)) == int(bound.group(2)) + 1
        checks[f"fit-core is needed as {core}, expected floor and cap such as fit-core>=1.0,<2"] = not right
    return [sentence for sentence, is_so in checks.items() if is_so]


def hatchling(source: Path, out: Path, *options: str) -> list[Path]:
    """What the folder of a package gives when it is built, with options of ``hatchling build``."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *options]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Refusal(f"{source.name} cannot be built:\n{result.stdout}{result.stderr}")
    return sorted(out.iterdir())


def _are_the_same(one: list[Path], other: list[Path], how: str) -> None:
    hashes, others = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in side} for side in (one, other)
    )
    if different := sorted(name for name in hashes.keys() | others.keys() if hashes.get(name) != others.get(name)):
        raise Refusal(f"{how}, {', '.join(different)} differs: a release must be the same bytes wherever it is built")

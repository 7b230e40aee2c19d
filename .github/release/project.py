"""What the repository says about its packages: versions, changelogs, floors and tags."""

from __future__ import annotations

import re
import subprocess
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

__all__ = ["DEPENDENTS", "PACKAGES", "PARTS", "Package", "Refusal", "extract", "git", "numbers", "stepped"]

DEPENDENTS = ("fit-callbacks", "fit-metrics", "fit-distributed")
PACKAGES = ("fit-core", *DEPENDENTS)
PARTS = ("patch", "minor", "major")
"""The parts of a version, from the last to the first."""


class Refusal(Exception):  # noqa: N818  # nothing is in error, and somebody has said no
    """A release that must not be; the sentence says what to change."""


def git(root: Path, *command: str) -> str:
    """What a git command prints.

    Raises:
        Refusal: git says no.
    """
    result = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Refusal(f"git {' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout.strip()


def extract(root: Path, commit: str, folder: Path, *paths: str) -> Path:
    """Put files of a commit, as they are there and without any other, into a new folder."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit, "--", *paths], cwd=root, capture_output=True, check=False
    )
    if archive.returncode:
        raise Refusal(f"git archive {commit} failed: {archive.stderr.decode().strip()}")
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def numbers(version: str) -> tuple[int, int, int]:
    """``"1.2"`` as ``(1, 2, 0)``."""
    major, minor, patch = [*map(int, version.split(".")), 0, 0][:3]
    return major, minor, patch


def stepped(version: str, part: str) -> str:
    """The version that follows by a step of one of its :data:`PARTS`."""
    major, minor, patch = numbers(version)
    following = {"major": (major + 1, 0, 0), "minor": (major, minor + 1, 0), "patch": (major, minor, patch + 1)}
    return ".".join(map(str, following[part]))


@dataclass(frozen=True)
class Package:
    """One of the packages, as the tree under ``root`` has it.

    Raises:
        Refusal: there is no such package.
    """

    root: Path
    name: str

    def __post_init__(self) -> None:
        if self.name not in PACKAGES:
            raise Refusal(f"there is no package {self.name!r}; there are {', '.join(PACKAGES)}")

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / "packages" / self.name

    @property
    def module(self) -> str:
        """The name that is imported; files of a release begin with it too."""
        return self.name.replace("-", "_")

    @property
    def short(self) -> str:
        """The name of its folder in tests/."""
        return self.name.removeprefix("fit-")

    @property
    def protocol_tests(self) -> list[str]:
        """The tests of the protocol that a wheel of it passes by itself, on any core that it allows."""
        if self.name == "fit-core":
            return ["tests/protocol"]
        return [f"tests/protocol/{name}.py" for name in ("test_stranger", f"test_{self.short}_conform")]

    @property
    def version(self) -> str:
        """What ``pyproject.toml`` says."""
        return self._find(r'^version = "(.+)"', "pyproject.toml")

    @property
    def tag(self) -> str:
        """The tag that releases this version."""
        return f"{self.name}-v{self.version}"

    @property
    def floor(self) -> str:
        """The oldest fit-core that it allows; of fit-core itself, its own version."""
        return self.version if self.name == "fit-core" else self._find(r'"fit-core>=([\d.]+),<\d+"', "pyproject.toml")

    @property
    def heading(self) -> str:
        """The newest heading of the changelog: ``Unreleased``, or ``1.2.0 - 2026-01-31``."""
        return self._find(r"^## (.+)", "CHANGELOG.md")

    @property
    def notes(self) -> str:
        """The changelog below that heading, up to the next."""
        return self._find(r"^## .+\n((?:(?!^## )[^\n]*\n)*)", "CHANGELOG.md").strip()

    @property
    def extras(self) -> list[str]:
        """The names of its optional dependencies."""
        project = (self.folder / "pyproject.toml").read_text()
        optional = re.search(r"^\[project\.optional-dependencies\]\n((?:[^\[\n].*\n)*)", project, re.MULTILINE)
        return re.findall(r"^([\w-]+) = ", optional.group(1), re.MULTILINE) if optional else []

    def releases(self, before: str | None = None) -> list[str]:
        """Versions whose tags HEAD has among its ancestors, oldest first; final ones alone, without ``before``."""
        tags = git(self.root, "tag", "--merged", "HEAD", "--list", f"{self.name}-v*").split()
        versions = [tag.removeprefix(f"{self.name}-v") for tag in tags]
        final = [version for version in versions if re.fullmatch(r"\d+\.\d+\.\d+", version)]
        return sorted((version for version in final if version != before), key=numbers)

    def cores(self) -> list[str]:
        """Released versions of fit-core that this package allows, oldest first."""
        floor = numbers(self.floor)
        released = Package(self.root, "fit-core").releases()
        return [version for version in released if floor <= numbers(version) < (floor[0] + 1, 0, 0)]

    def _find(self, pattern: str, file: str) -> str:
        found = re.search(pattern, (self.folder / file).read_text(), re.MULTILINE)
        if found is None:
            raise Refusal(f"packages/{self.name}/{file} has no line like {pattern}")
        return found.group(1)

"""Read what the repository says about a package, and run commands."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.version import Version

DEPENDENTS = ("fit-callbacks", "fit-metrics", "fit-distributed")


class Refusal(Exception):  # noqa: N818  # nothing is broken: the message says what to change
    """A release that must not happen."""


def run(*command: str | Path, cwd: Path, show: bool = True, **more: str) -> str:
    """Print a command, run it and return its output. Raise a Refusal if it fails."""
    words = shlex.join(word.name if isinstance(word, Path) else word for word in command)
    if show:
        print(f"  $ {words}", flush=True)
    hidden = ("PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if name not in hidden} | more
    result = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Refusal(f"{words} failed:\n{result.stdout}{result.stderr}")
    return result.stdout.strip()


class Package:
    """One of the packages, as it is in the tree under `root`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name, self.module = root, name, name.replace("-", "_")
        self.folder = root / "packages" / name
        project = tomllib.loads((self.folder / "pyproject.toml").read_text())["project"]
        self.version = Version(project["version"])
        self.tag = f"{name}-v{self.version}"
        self.extras = "[{}]".format(",".join(project.get("optional-dependencies", ()))).replace("[]", "")
        needs = map(Requirement, project["dependencies"])
        self.core = next((need for need in needs if need.name == "fit-core"), None)  # None for fit-core itself
        changelog = (self.folder / "CHANGELOG.md").read_text()
        self.heading, _, self.notes = changelog.split("\n## ")[1].partition("\n")

    def git(self, *command: str) -> str:
        """Return the output of a git command."""
        return run("git", *command, cwd=self.root, show=False)

    def releases(self) -> list[Version]:
        """Versions with a tag in the history of HEAD, oldest first, without pre-releases."""
        tags = self.git("tag", "--merged", "HEAD", "--list", f"{self.name}-v*").split()
        versions = sorted(Version(tag.removeprefix(f"{self.name}-v")) for tag in tags)
        return [version for version in versions if not version.is_prerelease]

    def cores(self) -> list[Version]:
        """Released versions of fit-core that this dependent allows, oldest first."""
        return list(self.core.specifier.filter(Package(self.root, "fit-core").releases())) if self.core else []

"""Runs shellcheck over each command of the workflows, and asks that each is a script that runs on any machine too."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

__all__ = ["commands", "strangers"]

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("pip install hatch==", "gh release create ", 'test "$FAILED" = false')
"""What only a workflow does: it installs hatch, makes the page of a release on the forge, and sums up its jobs."""


def commands(workflows: Path) -> Iterator[tuple[str, str]]:
    """Where each command of the workflows stands, and the command."""
    for path in sorted(workflows.glob("*.yml")):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            for step in job.get("steps", ()):
                if "run" in step:
                    yield f"{path.name}, job {name}", step["run"]


def strangers(found: list[tuple[str, str]], hatch: str) -> Iterator[str]:
    """Commands that are no script of the text of hatch.toml, a sentence each."""
    environments = re.split(r"^\[envs\.", hatch, flags=re.MULTILINE)[1:]
    scripts = {
        (section.split(".scripts]")[0], name)
        for section in environments
        if ".scripts]" in section
        for name in re.findall(r"^([\w-]+) = ", section, re.MULTILINE)
    }
    for place, command in found:
        script = re.match(r"hatch run (?:([\w-]+):)?([\w-]+)", command)
        is_ours = script and (script.group(1) or "default", script.group(2)) in scripts
        if not is_ours and not command.startswith(("hatch test", *ELSEWHERE)):
            yield f"{place}: {command!r} is no script of hatch.toml, so nobody can try it before it runs there"


def main() -> None:
    """Check the workflows of this repository."""
    found = list(commands(ROOT / ".github" / "workflows"))
    wrong = list(strangers(found, (ROOT / "hatch.toml").read_text()))
    for place, command in found:
        told = subprocess.run(
            ["shellcheck", "--shell=bash", "-"], input=command, capture_output=True, text=True, check=False
        )
        if told.returncode:
            wrong.append(f"{place}: {command}\n{told.stdout}")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(found)} commands of the workflows are scripts of hatch.toml, and shellcheck has nothing to say")


if __name__ == "__main__":
    main()

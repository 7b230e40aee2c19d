"""Measure what an installation of each library adds to torch, and how long its import takes."""

import importlib.metadata
import subprocess
from pathlib import Path

from contest import HERE, environment, pinned, python_of
from peers import PEERS

ALL_FOUR = ["fit-core", "fit-callbacks", "fit-metrics", "fit-distributed"]


def packages_of(name):
    """Return the packages that were installed for a peer."""
    python, problem = python_of(name)
    if problem:
        return []
    site = next((Path(python).parent.parent / "lib").glob("python*/site-packages"))
    found = importlib.metadata.distributions(path=[str(site)])
    return [package for package in found if package.name not in ("pip", "setuptools")]


def versions(name):
    """Return the versions of the packages that were asked for: `jax 0.10.2, optax 0.2.8`."""
    found = {package.name.lower(): package.version for package in packages_of(name)}
    return ", ".join(f"{package} {found[package]}" for package in PEERS[name].packages if package in found)


def brings(name):
    """Return the version of a peer, and the number and megabytes of the packages that came with it."""
    found = packages_of(name)
    if not found:
        return None
    files = {package.locate_file(file) for package in found for file in package.files or ()}
    size = sum(file.stat().st_size for file in map(Path, files) if file.is_file() and file.suffix != ".pyc")
    version = next(package.version for package in found if package.name.lower() == PEERS[name].packages[0])
    return version, len(found), size / 1e6


def own_size(*packages):
    """Return the megabytes of packages of this repository."""
    sources = [file for name in packages for file in (HERE.parent / "packages" / name / "src").rglob("*")]
    return sum(file.stat().st_size for file in sources if file.suffix in (".py", ".typed")) / 1e6


def import_time(name, module, tries):
    """Return the seconds that an import takes after torch, the least of some tries."""
    python, problem = python_of(name)
    if problem:
        return None
    code = f"import torch, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command = pinned(python, "-c", code)
    got = [subprocess.run(command, capture_output=True, text=True, env=environment(name)) for _ in range(tries)]
    return min((float(result.stdout.split()[-1]) for result in got if not result.returncode), default=None)


def measure(names, tries):
    """Return both for our packages and the peers of these names."""
    rows = {name: brings(name) for name in names}
    rows["**fit-core**"] = ("", 1, own_size("fit-core"))
    rows["**fit, all four**"] = ("", len(ALL_FOUR), own_size(*ALL_FOUR))
    modules = {
        "**fit-core**": "fit_core",
        "**fit, all four**": ", ".join(package.replace("-", "_") for package in ALL_FOUR),
    }
    modules |= {name: PEERS[name].module for name in names}
    return {"installed": rows, "import": {name: import_time(name, module, tries) for name, module in modules.items()}}

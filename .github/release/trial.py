"""Wheels tried as a user has them: in a fresh environment, with no source tree to import by accident."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from .build import built_at, wheel_of
from .project import DEPENDENTS, Package, Refusal, extract

__all__ = ["Environment", "core_for", "metadata_of", "smoke", "try_dependents", "try_wheel"]


class Environment:
    """A fresh virtual environment, in which packages of ours come from files alone, and all others from the registry.

    Args:
        folder: where to make it.
        torch: which torch: ``pinned`` as in hatch.toml, ``lowest`` that fit-core allows, ``newest``, or a version.
        root: the repository.
        tools: also install what the tests need.
    """

    def __init__(self, folder: Path, torch: str, root: Path, *, tools: bool = False) -> None:
        self.python = folder / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.install(_torch(torch, root), *(_test_tools(root) if tools else []))

    def install(self, *requirements: str) -> None:
        """Install from the registry.

        Raises:
            Refusal: pip cannot.
        """
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)

    def install_wheels(self, *wheels: Path) -> None:
        """Install files of ours; what they need beside each other must be said in their metadata."""
        needs = {str(need) for wheel in wheels for need in _needs(wheel) if not need.name.startswith("fit-")}
        if needs:
            self.install(*sorted(needs))
        named = [f"{wheel}[{','.join(_extras(wheel))}]" if _extras(wheel) else str(wheel) for wheel in wheels]
        self.install("--no-index", "--force-reinstall", "--no-deps", *map(str, wheels))
        self.install("--no-index", *named)  # refuses a requirement that is not met

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What Python prints in this environment.

        Raises:
            Refusal: it fails; with all that it printed.
        """
        alien = ("PYTHONPATH", "PYTEST_ADDOPTS", "VIRTUAL_ENV")
        variables = {name: value for name, value in os.environ.items() if name not in alien}
        result = subprocess.run(
            [str(self.python), *command],
            cwd=cwd,
            env={**variables, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise Refusal(f"python {' '.join(command)} failed:\n{result.stdout}")
        return result.stdout

    def test(self, package: Package, commit: str, *, quick: bool = False) -> str:
        """Run a package's own tests, as they are at a commit. Returns pytest's last line."""
        tests = [f"tests/{package.short}", *package.protocol_tests]
        with tempfile.TemporaryDirectory() as scratch:
            alone = extract(package.root, commit, Path(scratch, "alone"), "tests", ".pytest.ini")
            told = self.run("-m", "pytest", "-q", "-n", "auto", *tests[1 if quick else 0 :], cwd=alone)
        return told.strip().splitlines()[-1]


def try_wheel(
    package: Package, dist: Path, *, core: str = "highest", torch: str = "pinned", quick: bool = False
) -> str:
    """Try the wheel in ``dist`` with the tests of its package.

    Args:
        package: whose wheel it is.
        dist: the folder where it lies.
        core: ``lowest`` or ``highest`` of the fit-core releases that it allows.
        torch: see :class:`Environment`.
        quick: run the tests of the protocol alone.

    Returns:
        A line that tells what was tried, and how many tests have passed.

    Raises:
        Refusal: a test fails, or the wheel cannot be installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wheels, words = [wheel_of(package, dist)], f"{package.name} {package.version}"
        if package.name != "fit-core":
            wheel, version = core_for(package, core, Path(scratch, "core"))
            wheels, words = [wheel, *wheels], f"{words} on fit-core {version}"
        environment = Environment(Path(scratch, "venv"), torch, package.root, tools=True)
        environment.install_wheels(*wheels)
        return f"{words}, {_versions(environment)}: {environment.test(package, 'HEAD', quick=quick)}"


def try_dependents(core: Package, dist: Path, *, torch: str = "pinned", quick: bool = False) -> list[str]:
    """Try the wheel of fit-core in ``dist`` with the newest release of each dependent, and tests of its own.

    A dependent that was never released is tried as it is in the tree.
    """
    told = []
    with tempfile.TemporaryDirectory() as scratch:
        environment = Environment(Path(scratch, "venv"), torch, core.root, tools=True)
        for name in DEPENDENTS:
            dependent = Package(core.root, name)
            released = dependent.releases()
            commit = f"{name}-v{released[-1]}" if released else "HEAD"
            wheel = built_at(dependent, commit, Path(scratch, name))
            environment.install_wheels(wheel_of(core, dist), wheel)
            told.append(
                f"{commit if released else f'{name} of the tree'}: {environment.test(dependent, commit, quick=quick)}"
            )
            environment.run("-m", "pip", "uninstall", "--quiet", "--yes", name)
    return told


def smoke(package: Package, version: str, *, index: Path | None = None, torch: str = "pinned", tries: int = 30) -> str:
    """Install a release as a user does, and run the program of its README.

    Args:
        package: what was released.
        version: of which version.
        index: a folder of wheels that takes the registry's place for packages of ours.
        torch: see :class:`Environment`.
        tries: how often to ask the registry, once in ten seconds, for what was uploaded just now.

    Raises:
        Refusal: it cannot be installed, or the program fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = Environment(Path(scratch, "venv"), torch, package.root)
        if index:
            environment.install_wheels(*sorted(index.glob("*.whl")))
        else:
            extras = f"[{','.join(package.extras)}]" if package.extras else ""
            _ask_until_it_is_there(environment, f"{package.name}{extras}=={version}", tries)
        code = f"import importlib.metadata as m, {package.module} as p; print(m.version({package.name!r}), p.__file__)"
        found, where = environment.run("-c", code, cwd=Path(scratch)).splitlines()[-1].split(maxsplit=1)
        if found != version or not Path(where).with_name("py.typed").exists():
            raise Refusal(f"{package.name} {version} was installed, but {found} without types was found at {where}")
        program = re.search(r"^```python\n(.*?)^```", (package.folder / "README.md").read_text(), re.M | re.S)
        assert program is not None
        Path(scratch, "program.py").write_text(program.group(1))
        environment.run("program.py", cwd=Path(scratch))
        return f"{package.name} {version}, {_versions(environment)}: installed, and the program of its README runs"


def core_for(package: Package, which: str, folder: Path) -> tuple[Path, str]:
    """The wheel of the lowest or highest fit-core release that a package allows, and its version.

    It is built from its tag. As long as there is no release, the tree stands for it.
    """
    core, released = Package(package.root, "fit-core"), package.cores()
    if not released:
        return built_at(core, "HEAD", folder), f"{core.version} of the tree"
    version = released[0 if which == "lowest" else -1]
    return built_at(core, f"fit-core-v{version}", folder), version


def _torch(which: str, root: Path) -> str:
    if which == "pinned":
        return _search(r'"(torch==[\d.]+)"', root / "hatch.toml")
    if which == "lowest":
        floor = _search(r'"torch>=([\d.]+)', root / "packages" / "fit-core" / "pyproject.toml")
        return f"torch=={floor}.*"
    return "torch" if which == "newest" else f"torch=={which}"


def _test_tools(root: Path) -> list[str]:
    """What tests need beside torch, as hatch.toml has it."""
    block = _search(r"\[envs\.hatch-test\](?:.|\n)*?dependencies = \[((?:.|\n)*?)\n\]", root / "hatch.toml")
    return [need for need in re.findall(r'"(.+?)"', block) if not need.startswith("torch==")]


def _search(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text())
    assert found is not None, f"{file.name} has nothing like {pattern}"
    return found.group(1)


def metadata_of(wheel: Path) -> email.message.Message:
    """What a wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def _extras(wheel: Path) -> list[str]:
    return metadata_of(wheel).get_all("Provides-Extra") or []


def _needs(wheel: Path) -> list[Requirement]:
    """What a wheel needs in this Python, its extras too."""
    needs = [Requirement(need) for need in metadata_of(wheel).get_all("Requires-Dist") or []]
    environments = [{"extra": extra} for extra in ["", *_extras(wheel)]]
    wanted = [need for need in needs if not need.marker or any(need.marker.evaluate(one) for one in environments)]
    for need in wanted:
        need.marker = None
    return [need for need in wanted if need.name != "torch"]


def _versions(environment: Environment) -> str:
    code = "import platform, torch; print('Python', platform.python_version() + ', torch', torch.__version__)"
    return environment.run("-c", code).splitlines()[-1]  # torch may have warned that there is no NumPy


def _ask_until_it_is_there(environment: Environment, requirement: str, tries: int) -> None:
    for left in reversed(range(tries)):
        try:
            environment.install("--no-cache-dir", requirement)
        except Refusal:
            if not left:
                raise
            time.sleep(10)
        else:
            break

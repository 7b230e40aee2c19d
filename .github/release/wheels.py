"""Build a package once, and test its wheel in a fresh environment without the source tree."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import tomllib
from project import DEPENDENTS, Package, run

PYTHON = Path(sys.executable)


def build(package: Package, dist: Path) -> None:
    """Build sources and wheel into `dist`, and inspect them."""
    print("Build the files once. These are tested, and these are published.")
    run(PYTHON, "-m", "hatchling", "build", "--clean", "-d", dist, cwd=package.folder)
    print("Inspect them. The registry must accept the metadata, and the wheel must contain the package alone.")
    run(PYTHON, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), cwd=dist)
    source = package.folder / "src" / package.module
    run(PYTHON, "-m", "check_wheel_contents", "--package", source, *dist.glob("*.whl"), cwd=dist)


def extract(package: Package, commit: str, folder: Path, *paths: str) -> Path:
    """Put files of a commit, and no others, into a folder."""
    folder.mkdir(parents=True)
    package.git("archive", f"--output={folder}.tar", commit, "--", *paths)
    shutil.unpack_archive(f"{folder}.tar", folder, filter="data")
    return folder


def build_from(package: Package, commit: str, scratch: Path) -> tuple[Package, Path]:
    """Return the package as it is at a commit or tag, and its wheel."""
    tree = extract(package, commit, scratch / package.name, f"packages/{package.name}")
    released, dist = Package(tree, package.name), scratch / "older"
    run(PYTHON, "-m", "hatchling", "build", "-t", "wheel", "-d", dist, cwd=released.folder)
    return released, next(dist.glob(f"{package.module}-*.whl"))


class Environment:
    """A fresh virtual environment in `folder`. The variable FIT_TORCH says which torch it gets."""

    def __init__(self, folder: Path, python: str | Path = PYTHON) -> None:
        self.folder = folder
        run(python, "-m", "venv", folder, cwd=Path())

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run Python in the environment. Temporary files go there too, and are deleted with it."""
        return run(self.folder / "bin" / "python", *command, cwd=cwd or self.folder, TMPDIR=str(self.folder))

    def install(self, *requirements: str | Path) -> None:
        """Install requirements in one call, so that pip refuses versions that do not fit together."""
        self.run("-m", "pip", "install", "--quiet", os.environ["FIT_TORCH"], *requirements)

    def run_readme(self, package: Package) -> None:
        """Run the first program of the package's README."""
        program = (package.folder / "README.md").read_text().split("```python\n")[1].split("```\n")[0]
        self.folder.joinpath("readme.py").write_text(program)
        self.run("readme.py")

    def test(self, package: Package, commit: str, *, quick: bool) -> None:
        """Run the package's own tests, as they are at a commit. With `quick`, run only those of the protocol."""
        short, protocol = package.name.removeprefix("fit-"), "tests/protocol"
        conform = [f"{protocol}/test_stranger.py", f"{protocol}/test_{short}_conform.py"]
        tests = [*([] if quick else [f"tests/{short}"]), *(conform if package.core else [protocol])]
        tree = extract(package, commit, self.folder / "tests" / package.name, "tests", ".pytest.ini")
        print(" ", self.run("-m", "pytest", "-q", "-n", "auto", *tests, cwd=tree).splitlines()[-1])


def try_wheel(package: Package, dist: Path, *, core: str, quick: bool, python: str | Path = PYTHON) -> None:
    """Test the wheel in `dist` on the `lowest` or `highest` fit-core, and a new fit-core with its dependents."""
    tools = tomllib.loads((package.root / "hatch.toml").read_text())["envs"]["hatch-test"]["dependencies"]
    (wheel,), needs = dist.glob("*.whl"), []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if package.core:
            commits = [f"fit-core-v{version}" for version in package.cores()] or ["HEAD"]
            commit = commits[0 if core == "lowest" else -1]
            print(f"Build the {core} fit-core that {package.name} allows, from {commit}.")
            needs.append(build_from(Package(package.root, "fit-core"), commit, scratch)[1])
        print("Install the wheel as a user does, and run the program of its README.")
        environment = Environment(scratch / "fresh", python)
        environment.install(Path(f"{wheel}{package.extras}"), *needs)
        environment.run_readme(package)
        print("Install the test tools, and run the tests of the package on the installed wheel.")
        environment.install(*(tool for tool in tools if "FIT_TORCH" not in tool))
        environment.test(package, "HEAD", quick=quick)
        for dependent in (Package(package.root, name) for name in DEPENDENTS if not package.core):
            commit = f"{dependent.name}-v{dependent.releases()[-1]}" if dependent.releases() else "HEAD"
            print(f"Test {dependent.name} from {commit} with its own tests. The new fit-core must not break it.")
            released, needed = build_from(dependent, commit, scratch)
            if released.core and package.version in released.core.specifier:
                environment.install(wheel, needed)
                environment.test(dependent, commit, quick=quick)
            else:
                print(f"  Skipped: it needs {released.core}.")


def smoke(package: Package) -> None:
    """Install the published release as a user does, and run the program of its README."""
    print(f"Install {package.tag} from the registry, and run the program of its README.")
    with tempfile.TemporaryDirectory() as scratch:
        environment = Environment(Path(scratch, "fresh"))
        environment.install("--no-cache-dir", f"{package.name}{package.extras}=={package.version}")
        environment.run_readme(package)

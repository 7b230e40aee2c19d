"""The newest dependents run on the oldest core that they allow, and the last released ones on the newest core.

A release is a tag, ``fit-core-v1.2.0``; its sources are taken from there. As long as there is none, the wheel and the
tests that ``hatch run release:record`` has put into ``tests/recorded`` stand for it. A clone without tags falls back on
those too (``git fetch --tags`` brings tags), and where there are none, on the tree.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "packages").exists():
    pytest.skip("needs the source tree", allow_module_level=True)

sys.path.insert(0, str(ROOT / ".github"))
from release.build import built_at, hatchling  # noqa: E402
from release.project import DEPENDENTS, Package, extract, git  # noqa: E402


def recorded(root, package):
    """The wheel of a rehearsed release, or None."""
    return next((root / "tests" / "recorded").glob(f"{package.replace('-', '_')}-*.whl"), None)


def oldest_core(root, package):
    """The oldest core that the tree's ``package`` allows: a tag, a recorded wheel, or None, the tree."""
    released = Package(root, package).cores()
    return f"fit-core-v{released[0]}" if released else recorded(root, "fit-core")


def last_release(root, package):
    """The newest release of a package: a tag, a recorded wheel, or None, the tree."""
    released = Package(root, package).releases()
    return f"{package}-v{released[-1]}" if released else recorded(root, package)


def pairs(root):
    """Which core to try with which dependent: (name, the core, the dependent); None is what the tree has."""
    for package in DEPENDENTS:
        yield from dict.fromkeys(
            [(package, oldest_core(root, package), None), (package, None, last_release(root, package))]
        )


def wheel_of(root, package, release, folder):
    """The wheel of a release: from its tag, the recorded one, or built of the tree."""
    if isinstance(release, Path):
        return release
    if release:
        return built_at(Package(root, package), release, folder)
    (wheel,) = hatchling(root / "packages" / package, folder, "-t", "wheel")
    return wheel


def install(root, package, release, folder):
    """Put a wheel, alone, into ``folder``/site."""
    wheel = wheel_of(root, package, release, folder / package)
    options = ["--quiet", "--no-index", "--no-deps", "--target", str(folder / "site")]
    python("-m", "pip", "install", *options, str(wheel), cwd=folder)


def own_tests(root, package, release, folder):
    """The folder with the dependent's own tests of the protocol."""
    if isinstance(release, Path):
        version = release.name.split("-")[1]
        with tarfile.open(release.with_name(f"{package.replace('-', '_')}-{version}-tests.tar.gz")) as tar:
            tar.extractall(folder, filter="data")
    elif release:
        extract(root, release, folder, "tests/protocol")
    else:
        folder = root
    return folder / "tests" / "protocol"


def python(*command, cwd, **variables):
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Editable installs make the tree importable: what was not installed is hidden, what was must come from there.
CONFTEST = """
import importlib
import sys

for name in {hidden}:
    sys.modules[name] = None
for name in {shown}:
    assert importlib.import_module(name).__file__.startswith({site!r}), sys.modules[name].__file__
"""


@pytest.mark.parametrize(("package", "core", "dependent"), list(pairs(ROOT)))
def test_a_dependent_runs_on_a_core_of_another_age(package, core, dependent, tmp_path):
    install(ROOT, "fit-core", core, tmp_path)
    install(ROOT, package, dependent, tmp_path)
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("conformance.py", *(Path(path).name for path in Package(ROOT, package).protocol_tests)):
        shutil.copy(own_tests(ROOT, package, dependent, tmp_path / "released") / name, tests)
    site, shown = str(tmp_path / "site"), ["fit_core", package.replace("-", "_")]
    hidden = [name.replace("-", "_") for name in DEPENDENTS if name != package]
    (tests / "conftest.py").write_text(CONFTEST.format(hidden=hidden, shown=shown, site=site))
    told = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path, PYTHONPATH=site, PYTEST_ADDOPTS=""
    )
    assert re.search(r"^\d+ passed", told, re.MULTILINE), told


@pytest.fixture
def project(tmp_path):
    """A project with releases: core 1.0.0, 1.1.0, 1.10.0 and 1.2.0rc1, callbacks 0.1.0 and 0.2.0."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "packages", root / "packages", ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "--quiet")

    def release(*tags):
        git(root, "add", "--all")
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
        git(root, *who, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", "a release")
        for tag in tags:
            git(root, *who, "tag", tag)

    release("fit-core-v1.0.0", "fit-callbacks-v0.1.0")
    hooks = root / "packages" / "fit-core" / "src" / "fit_core" / "callback.py"
    hooks.write_text(hooks.read_text().replace("on_before_step", "on_before_optimizer_step"))
    release("fit-core-v1.10.0", "fit-core-v1.2.0rc1", "fit-core-v1.1.0", "fit-callbacks-v0.2.0")
    return root


def test_which_core_is_tried_with_which_dependent(project):
    assert list(pairs(project)) == [
        ("fit-callbacks", "fit-core-v1.0.0", None),
        ("fit-callbacks", None, "fit-callbacks-v0.2.0"),
        ("fit-metrics", "fit-core-v1.0.0", None),
        ("fit-metrics", None, None),
        ("fit-distributed", "fit-core-v1.0.0", None),
        ("fit-distributed", None, None),
    ]
    toml = project / "packages" / "fit-metrics" / "pyproject.toml"
    for floor, tag in {"1.1": "fit-core-v1.1.0", "1.2": "fit-core-v1.10.0", "1.11": None}.items():
        toml.write_text(re.sub(r"fit-core>=[\d.]+", f"fit-core>={floor}", toml.read_text()))
        assert oldest_core(project, "fit-metrics") == tag


def test_a_recorded_wheel_stands_for_a_release_that_is_not_there_yet(project):
    folder = project / "tests" / "recorded"
    folder.mkdir(parents=True)
    for name in ("fit_callbacks-0.0.1", "fit_metrics-0.1.0"):
        folder.joinpath(f"{name}-py3-none-any.whl").touch()
    assert last_release(project, "fit-callbacks") == "fit-callbacks-v0.2.0"
    assert last_release(project, "fit-metrics") == folder / "fit_metrics-0.1.0-py3-none-any.whl"
    assert last_release(project, "fit-distributed") is None


def test_a_core_that_breaks_its_promise_is_found(project, tmp_path):
    """The core of the tree has renamed a hook: released callbacks fail on it, and work on the core of their time."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, core in ((old, "fit-core-v1.0.0"), (new, None)):
        folder.mkdir()
        install(project, "fit-core", core, folder)
        install(project, "fit-callbacks", "fit-callbacks-v0.1.0", folder)
    python("-c", "import fit_callbacks", cwd=tmp_path, PYTHONPATH=str(old / "site"))
    with pytest.raises(AssertionError, match="unknown hook on_before_step in GradientClipping"):
        python("-c", "import fit_callbacks", cwd=tmp_path, PYTHONPATH=str(new / "site"))


def promised():
    """What surface.txt names: what fit_core holds, and what a RunnerState has."""
    text = Path(__file__).with_name("surface.txt").read_text()
    names = set(re.findall(r"^(?:class )?(\w+)", text, re.MULTILINE))
    state = text.split("class RunnerState\n")[1]
    return names, set(re.findall(r"^  (\w+)", state, re.MULTILINE))


def asked_for(folder):
    """What the files in a folder import from fit_core, and what they take from a ``state: RunnerState``."""
    names, fields = set(), set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names if alias.name.startswith("fit_core")}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fit_core":
                names |= {alias.name if node.module == "fit_core" else node.module for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                given = [
                    one.arg for one in node.args.args if one.annotation and "RunnerState" in ast.unparse(one.annotation)
                ]
                inside = [one for one in ast.walk(node) if isinstance(one, ast.Attribute)]
                fields |= {one.attr for one in inside if isinstance(one.value, ast.Name) and one.value.id in given}
    return names, fields


@pytest.mark.parametrize("folder", [*(f"packages/{package}/src" for package in DEPENDENTS), "docs/template/src"])
def test_a_dependent_asks_for_nothing_that_is_not_promised(folder):
    names, fields = asked_for(ROOT / folder)
    promised_names, promised_fields = promised()
    assert names <= promised_names
    assert fields <= promised_fields
    if folder != "packages/fit-distributed/src":  # which works with any loop
        assert names


def test_what_is_asked_for_is_seen(tmp_path):
    (tmp_path / "one.py").write_text(
        "from fit_core import Callback, secret\n"
        "from fit_core.stream import Stream\n"
        "import fit_core.state\n"
        "def on_end(self, state: RunnerState, other: int):\n"
        "    return state._stream, state.epoch, other.real\n"
    )
    assert asked_for(tmp_path) == ({"Callback", "secret", "fit_core.stream", "fit_core.state"}, {"_stream", "epoch"})
    promised_names, promised_fields = promised()
    assert {"Callback", "HOOKS", "RunnerState"} <= promised_names
    assert "secret" not in promised_names
    assert {"epoch", "total_steps", "state_dict"} <= promised_fields
    assert "_stream" not in promised_fields

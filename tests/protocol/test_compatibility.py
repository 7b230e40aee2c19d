"""Released dependents run on today's fit-core, and today's dependents on the oldest fit-core that they allow.

A release is a tag such as `fit-core-v1.2.0`. Until a package has a tag, the commit RECORDED stands for its last
release. The older wheels are built from there, and the older tests are taken from there.
"""

import ast
import email
import functools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from whole import whole

ROOT = Path(__file__).parents[2]
if not (ROOT / "packages").exists():
    pytest.skip("needs the source tree", allow_module_level=True)

RECORDED = "ec02dfc5307005368ed69d77bc3244368bbc0a71"
"""Set this to a newer commit only when the contract changes incompatibly before the first release."""

DEPENDENTS = ("fit-callbacks", "fit-metrics", "fit-distributed")


def run(*command, cwd, **variables):
    variables = {**os.environ, **variables}
    result = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def history():
    """Skip tests of older packages where these cannot be built."""
    command = ["git", "cat-file", "-e", f"{RECORDED}^{{commit}}"]
    if not shutil.which("git") or subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"needs git and the commit {RECORDED}. In a shallow clone, run: git fetch --unshallow --tags")


def releases(package, root=ROOT):
    """Return the released versions of a package in the history of HEAD and their tags, oldest first."""
    tags = run("git", "tag", "--merged", "HEAD", "--list", f"{package}-v*", cwd=root).split()
    versions = sorted((Version(tag.removeprefix(f"{package}-v")), tag) for tag in tags)
    return {version: tag for version, tag in versions if not version.is_prerelease}


def last_release(package, root=ROOT):
    """Return the tag or commit of the last release."""
    return [RECORDED, *releases(package, root).values()][-1]


def oldest_core(needed, root=ROOT):
    """Return the tag or commit of the oldest fit-core that a specifier allows. None means the one of the tree."""
    released = releases("fit-core", root)
    return next(map(released.get, needed.filter(released)), None) if released else RECORDED


def extract(commit, path, folder):
    """Put a folder of a commit, or of the tree if that is None, into another folder."""
    if commit is None:
        ignored = shutil.ignore_patterns("__pycache__", "dist", "*.egg-info")
        return Path(shutil.copytree(ROOT / path, folder / path, ignore=ignored))
    run("git", "archive", f"--output={folder}/files.tar", commit, "--", path, cwd=ROOT)
    shutil.unpack_archive(folder / "files.tar", folder, filter="data")
    return folder / path


def build(source):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=source)
    return next(source.glob("dist/*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return a function that builds the wheel of a package from a commit, or from the tree, once."""
    return functools.cache(
        lambda package, commit: build(extract(commit, f"packages/{package}", tmp_path_factory.mktemp(package)))
    )


def needed_core(wheel):
    """Return the versions of fit-core that a wheel allows."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [archive.read(name) for name in archive.namelist() if name.endswith("/METADATA")]
    needs = map(Requirement, email.message_from_bytes(metadata).get_all("Requires-Dist"))
    return next(need.specifier for need in needs if need.name == "fit-core")


# Editable installs and PYTHONPATH make the tree importable. The tests must import the wheels, and no sibling.
CONFTEST = """
import importlib
import multiprocessing
import sys

multiprocessing.set_forkserver_preload(["torch._dynamo"])  # Two processes would each import it for seconds.
for name in {hidden}:
    sys.modules[name] = None
for name in {shown}:
    assert importlib.import_module(name).__file__.startswith({site!r}), sys.modules[name].__file__
"""


def run_its_tests(package, commit, wheels, folder):
    """Unpack wheels into a folder, and run the package's own tests of the protocol from a commit or the tree."""
    site = str(folder / "site")
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(site)  # all that an installation does to a wheel of pure Python
    extract(commit, "tests/protocol", folder)
    module = package.replace("-", "_")
    hidden = [name.replace("-", "_") for name in DEPENDENTS if name != package]
    conftest = CONFTEST.format(hidden=hidden, shown=["fit_core", module], site=site)
    folder.joinpath("tests", "conftest.py").write_text(conftest)
    tests = [f"tests/protocol/test_{name}.py" for name in ("stranger", f"{package.removeprefix('fit-')}_conform")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    told = run(*command, cwd=folder, PYTHONPATH=site, PYTEST_ADDOPTS="")
    assert re.search(r"^\d+ passed", told, re.MULTILINE), told


@whole
@pytest.mark.parametrize("package", DEPENDENTS)
def test_the_last_released_dependent_runs_on_this_core(package, history, wheel, tmp_path):
    commit = last_release(package)
    run_its_tests(package, commit, [wheel("fit-core", None), wheel(package, commit)], tmp_path)


@whole
@pytest.mark.parametrize("package", DEPENDENTS)
def test_this_dependent_runs_on_the_oldest_core_that_it_allows(package, history, wheel, tmp_path):
    dependent = wheel(package, None)
    core = wheel("fit-core", oldest_core(needed_core(dependent)))
    run_its_tests(package, None, [core, dependent], tmp_path)


def test_a_core_that_breaks_its_promise_is_found(history, wheel, tmp_path):
    source = extract(None, "packages/fit-core", tmp_path)
    hooks = source / "src" / "fit_core" / "callback.py"
    hooks.write_text(hooks.read_text().replace("on_before_step", "on_before_optimizer_step"))
    commit = last_release("fit-callbacks")
    with pytest.raises(AssertionError, match="on_before_step to be a hook, one of"):
        run_its_tests("fit-callbacks", commit, [build(source), wheel("fit-callbacks", commit)], tmp_path)


def test_which_releases_are_tested(tmp_path):
    """A commit stands for a release only until there is a tag."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
    run("git", "init", "--quiet", cwd=tmp_path)
    run("git", *who, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", "a release", cwd=tmp_path)
    needed = {floor: Requirement(f"fit-core>={floor},<2").specifier for floor in ("1.0", "1.1", "1.2", "1.11")}
    assert last_release("fit-callbacks", tmp_path) == oldest_core(needed["1.0"], tmp_path) == RECORDED
    for version in ("1.0.0", "1.10.0", "1.2.0rc1", "1.1.0", "2.0.0"):
        run("git", *who, "tag", f"fit-core-v{version}", cwd=tmp_path)
    run("git", *who, "tag", "fit-callbacks-v0.2.0", cwd=tmp_path)
    run("git", *who, "tag", "fit-callbacks-v0.1.0", cwd=tmp_path)
    assert last_release("fit-callbacks", tmp_path) == "fit-callbacks-v0.2.0"
    assert last_release("fit-metrics", tmp_path) == RECORDED
    oldest = {"1.0": "fit-core-v1.0.0", "1.1": "fit-core-v1.1.0", "1.2": "fit-core-v1.10.0", "1.11": None}
    assert {floor: oldest_core(specifier, tmp_path) for floor, specifier in needed.items()} == oldest


def promised():
    """Return the names in surface.txt: those of fit_core, and the fields and methods of a RunnerState."""
    text = Path(__file__).with_name("surface.txt").read_text()
    names = set(re.findall(r"^(?:class )?(\w+)", text, re.MULTILINE))
    state = text.split("class RunnerState\n")[1]
    return names, set(re.findall(r"^  (\w+)", state, re.MULTILINE))


def used(folder):
    """Return what the files in a folder import from fit_core, and what they read from a `state: RunnerState`."""
    names, fields = set(), set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = {alias.asname or alias.name for alias in node.names if alias.name.startswith("fit_core")}
                names |= imported - {"fit_core"}  # of which each attribute counts
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fit_core":
                names |= {node.attr} - {"__file__"}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fit_core":
                names |= {alias.name if node.module == "fit_core" else node.module for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                annotated = [argument for argument in node.args.args if argument.annotation]
                states = [each.arg for each in annotated if "RunnerState" in ast.unparse(each.annotation)]
                read = [each for each in ast.walk(node) if isinstance(each, ast.Attribute)]
                fields |= {each.attr for each in read if isinstance(each.value, ast.Name) and each.value.id in states}
    return names, fields


@pytest.mark.parametrize("folder", [*(f"packages/{package}/src" for package in DEPENDENTS), "docs/template/src"])
def test_a_dependent_uses_only_what_is_promised(folder):
    names, fields = used(ROOT / folder)
    promised_names, promised_fields = promised()
    assert names <= promised_names
    assert fields <= promised_fields
    if folder != "packages/fit-distributed/src":  # it works with any loop
        assert names


def test_what_a_dependent_uses_is_found(tmp_path):
    (tmp_path / "one.py").write_text(
        "from fit_core import Callback, secret\n"
        "from fit_core.stream import Stream\n"
        "import fit_core.state\n"
        "def on_end(self, state: RunnerState, other: int):\n"
        "    return state._stream, state.epoch, other.real\n"
        "import fit_core\n"
        "fit_core.hidden, fit_core.__file__\n"
    )
    names = {"Callback", "secret", "hidden", "fit_core.stream", "fit_core.state"}
    assert used(tmp_path) == (names, {"_stream", "epoch"})
    promised_names, promised_fields = promised()
    assert {"Callback", "HOOKS", "RunnerState"} <= promised_names
    assert "secret" not in promised_names
    assert {"epoch", "total_steps", "state_dict"} <= promised_fields
    assert "_stream" not in promised_fields

"""The template of a package of somebody else's is built, installed and passes its own tests, as it stands."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fit_core
import pytest
from whole import whole

HERE = Path(__file__).parent
TEMPLATE = HERE.parents[1] / "docs" / "template"

if not TEMPLATE.exists():
    pytest.skip("needs the source tree", allow_module_level=True)


def run(*command, cwd, **variables):
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


def built(folder):
    run("-m", "hatchling", "build", "-d", str(folder / "dist"), cwd=folder)
    return folder.joinpath("dist")


def copied(folder):
    ignored = shutil.ignore_patterns("__pycache__", ".*", "dist", "*.egg-info")
    return shutil.copytree(TEMPLATE, folder / "template", ignore=ignored)


@pytest.fixture
def template(tmp_path):
    return copied(tmp_path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    (wheel,) = built(copied(tmp_path_factory.mktemp("built"))).glob("*.whl")
    return wheel


@whole
def test_it_is_built_installed_and_passes_its_own_tests(wheel, template, tmp_path):
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    shutil.rmtree(template / "src")
    paths = os.pathsep.join([str(site), str(Path(fit_core.__file__).parents[1])])
    where = run("-c", "import fit_example; print(fit_example.__file__)", cwd=template, PYTHONPATH=paths)
    assert Path(where.strip()).is_relative_to(site)
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=template, PYTHONPATH=paths, PYTEST_ADDOPTS="")
    assert "passed" in told
    assert "skipped" not in told


def test_its_wheel_holds_the_package_its_types_and_its_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read("fit_example-0.1.0.dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"fit_example", "fit_example-0.1.0.dist-info"}
    assert "fit_example/py.typed" in names
    assert "fit_example-0.1.0.dist-info/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("Requires-Dist") == ["fit-core<2,>=1.0"]


def test_it_is_built_under_another_name_too(template):
    """The steps of its README."""
    readme = template.joinpath("README.md").read_text()
    steps = readme.split("```sh\n")[2].split("```")[0].splitlines()
    assert steps[0].split() == ["cp", "-r", "docs/template", "../fit-colours", "&&", "cd", "../fit-colours"]
    subprocess.run("\n".join(steps[1:]), shell=True, cwd=template, check=True)
    (wheel,) = built(template).glob("fit_colours-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "fit_colours/milestones.py" in archive.namelist()
        assert not any(b"example" in archive.read(name) for name in archive.namelist() if name.endswith(".py"))

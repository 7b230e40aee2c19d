"""Each package is a small wheel of its own, and fit-core's runs the minimal program with torch alone."""

import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["fit-core", "fit-callbacks", "fit-metrics", "fit-distributed"]


def build(source, dist, *options):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(dist), *options]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in dist.iterdir()}


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [archive.read(name) for name in archive.namelist() if name.endswith("/METADATA")]
    return email.message_from_bytes(metadata)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        build(ROOT / "packages" / package, folder, "-t", "wheel")
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_one_package_its_types_and_its_licence(wheels, package):
    module, metadata = package.replace("-", "_"), metadata_of(wheels[package])
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = wheel.namelist()
        (licence,) = [wheel.read(name) for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {module}
    assert f"{module}/py.typed" in names
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert "License ::" not in str(metadata)  # the expression replaces the classifiers
    assert metadata["Description-Content-Type"] == "text/markdown"
    files = [name for name in names if name.startswith(f"{module}/")]
    assert not [name for name in files if not name.endswith((".py", "py.typed"))]
    assert not [name for name in files if re.search(r"(^|/)(tests?|conftest)(/|_|\.)|_test\.py$", name)]
    assert wheels[package].name.endswith("-py3-none-any.whl")
    assert wheels[package].stat().st_size < 150_000


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_needs_fit_core_within_one_major_version_and_no_sibling(wheels, package):
    needed = metadata_of(wheels[package]).get_all("Requires-Dist")
    assert not [need for need in needed if ">=" not in need]
    required = [need for need in needed if "extra" not in need]
    if package == "fit-core":
        assert required == ["torch>=2.6"]
    else:
        (floor,) = [re.fullmatch(r"fit-core<(\d+),>=(\d+)\.\d+(\.\d+)?", need) for need in needed if "fit-" in need]
        assert int(floor[1]) == int(floor[2]) + 1


def test_a_package_is_the_same_bytes_wherever_it_is_built(tmp_path):
    here = ROOT / "packages" / "fit-metrics"
    elsewhere = shutil.copytree(here, tmp_path / "elsewhere" / "packages" / "fit-metrics")
    shutil.copy(ROOT / ".gitignore", tmp_path / "elsewhere")  # the sources contain it
    first, second = build(here, tmp_path / "first"), build(elsewhere, tmp_path / "second")
    assert first == second
    assert len(first) == 2
    shutil.unpack_archive(next((tmp_path / "first").glob("*.tar.gz")), tmp_path / "sources", filter="data")
    (sources,) = (tmp_path / "sources").iterdir()
    assert build(sources, tmp_path / "third", "-t", "wheel").items() < first.items()


MINIMAL = """
import sys

for name in ("fit_callbacks", "fit_metrics", "fit_distributed", "tqdm", "tensorboard", "matplotlib", "torchmetrics"):
    sys.modules[name] = None  # as if it were not installed
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
import fit_core
from fit_core import Runner

assert fit_core.__file__.startswith(sys.argv[1]), fit_core.__file__
model = nn.Linear(2, 1)
loader = [(torch.randn(8, 2), torch.zeros(8, 1)) for _ in range(10)]
history = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss()).fit(loader, epochs=5)
assert history[-1]["train/loss"] < history[0]["train/loss"]
"""


def test_the_wheel_of_fit_core_trains_with_torch_alone(wheels, tmp_path):
    zipfile.ZipFile(wheels["fit-core"]).extractall(tmp_path)
    command = [sys.executable, "-c", MINIMAL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_changelog_and_version_agree(package):
    folder = ROOT / "packages" / package
    version = re.search(r'^version = "(.+)"', (folder / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    headings = re.findall(r"^## (\S+)", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", version)

"""Each package is a small wheel of its own, and fit-core's runs the minimal program with torch alone."""

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["fit-core", "fit-callbacks", "fit-metrics", "fit-distributed"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=ROOT / "packages" / package, check=True, capture_output=True)
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_one_package_its_types_and_its_licence(wheels, package):
    module = package.replace("-", "_")
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = wheel.namelist()
        info = next(name for name in names if name.endswith("METADATA"))
        metadata = email.message_from_bytes(wheel.read(info))
        licence = wheel.read(info.replace("METADATA", "licenses/LICENSE"))
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {module}
    assert f"{module}/py.typed" in names
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    required = [need for need in metadata.get_all("Requires-Dist") if "extra" not in need]
    if package == "fit-core":
        assert required == ["torch>=2.6"]
    else:
        assert any(re.fullmatch(r"fit-core<2,>=1\.\d+", need) for need in required)
    assert wheels[package].stat().st_size < 60_000


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

"""Imports point from callbacks, metrics and distributed to core, and nowhere else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "packages"
ALLOWED = {
    "fit_core": {"torch"},
    "fit_callbacks": {"torch", "fit_core", "tqdm", "tensorboard", "matplotlib"},
    "fit_metrics": {"torch", "fit_core"},
    "fit_distributed": {"torch", "fit_core"},
}

if not ROOT.exists():
    pytest.skip("needs the source tree", allow_module_level=True)


def imports(path):
    """The first names of all that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_sources_import_only_what_the_house_allows(package):
    folder = ROOT / package.replace("_", "-") / "src" / package
    imported = set().union(*(imports(path) for path in folder.rglob("*.py")))
    assert imported - set(sys.stdlib_module_names) - {package} <= ALLOWED[package]


@pytest.mark.parametrize("package", ALLOWED)
def test_the_tests_of_a_package_need_no_sibling(package):
    """So a wheel can be tried alone, with tests/<package>; what needs several packages is in tests/together."""
    folder = Path(__file__).parents[1] / package.removeprefix("fit_")
    imported = set().union(*(imports(path) for path in folder.rglob("*.py")))
    assert package in imported
    assert imported & set(ALLOWED) <= {package, "fit_core"}


LOADED = {
    "fit_core": {"fit_core"},
    "fit_callbacks": {"fit_callbacks", "fit_core", "tqdm"},
    "fit_metrics": {"fit_metrics", "fit_core"},
    "fit_distributed": {"fit_distributed"},
}

NEW_MODULES = """
import sys, torch
before = set(sys.modules)
import {}
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - set(sys.stdlib_module_names) - {{"torch"}}))
"""


@pytest.mark.parametrize("package", LOADED)
def test_importing_a_package_loads_little(package):
    """TensorBoard, matplotlib and the like wait until somebody uses them."""
    code = NEW_MODULES.format(package)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == LOADED[package]

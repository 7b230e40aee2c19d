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


def arrows(folder):
    """Which module imports which others of its package when it is loaded, as dotted names without the package."""
    found = {}
    for path in folder.rglob("*.py"):
        place = path.relative_to(folder).with_suffix("").parts
        package = place[:-1]
        name = ".".join(package if place[-1] == "__init__" else place)
        found[name] = set()
        for node in ast.parse(path.read_text()).body:  # what is under TYPE_CHECKING or in a function is not loaded
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1]
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                found[name] |= {".".join((*base, *module.split("."))) for module in modules}
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_no_imports_inside_a_package_go_in_a_circle(package):
    left = arrows(ROOT / package.replace("_", "-") / "src" / package)
    left.pop("")  # __init__ imports them all
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("package", ALLOWED)
def test_no_module_uses_a_private_name_of_another(package):
    folder = ROOT / package.replace("_", "-") / "src" / package
    trees = {path: ast.parse(path.read_text()) for path in folder.rglob("*.py")}
    own = {path: privates(tree) for path, tree in trees.items()}
    for path, tree in trees.items():
        imported = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level for a in n.names]
        reached = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        }
        defined = set().union(*(names for other, names in own.items() if other != path)) - own[path]
        assert not [name for name in imported if name.startswith("_")]
        assert not reached & defined, path


def privates(tree):
    """Private functions, methods and attributes that a module defines."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize("package", ALLOWED)
def test_the_tests_of_a_package_need_no_sibling(package):
    """So a wheel can be tested alone, with tests/<package>. Tests of several packages are in tests/together."""
    folder = Path(__file__).parents[1] / package.removeprefix("fit_")
    imported = set().union(*(imports(path) for path in folder.rglob("*.py")))
    assert package in imported
    assert imported & set(ALLOWED) <= {package, "fit_core"}


LOADED = {
    "fit_core": {"fit_core"},
    "fit_callbacks": {"fit_callbacks", "fit_core", "tqdm"},
    "fit_metrics": {"fit_metrics", "fit_core"},
    "fit_distributed": {"fit_distributed", "fit_core"},
}

NEW_MODULES = """
import importlib, os, sys, torch
before = set(sys.modules)
for package in sys.argv[1:]:
    if os.fork() == 0:  # another process would import torch for seconds
        importlib.import_module(package)
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(*sorted(new - set(sys.stdlib_module_names) - {"torch"}), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded():
    """Return the modules that importing each package loads, beside torch."""
    command = [sys.executable, "-c", NEW_MODULES, *LOADED]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {package: set(line.split()) for package, line in zip(LOADED, lines, strict=True)}


@pytest.mark.parametrize("package", LOADED)
def test_importing_a_package_loads_little(package, loaded):
    """TensorBoard, matplotlib and the like wait until somebody uses them."""
    assert package in loaded[package]
    assert loaded[package] <= LOADED[package]  # torch may have loaded tqdm

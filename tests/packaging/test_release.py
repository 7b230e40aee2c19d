"""Refuse a release whose tag, version, changelog, floor and protocol disagree. A rehearsal leaves nothing behind."""

import re
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("tomllib", reason="the tools for releases need Python 3.11")
if not (ROOT / ".github").exists():
    pytest.skip("needs the source tree", allow_module_level=True)

sys.path.insert(0, str(ROOT / ".github" / "release"))
import rehearsal  # noqa: E402
from check import SURFACE, check  # noqa: E402
from project import DEPENDENTS, Package, Refusal, run  # noqa: E402

CORE, METRICS = "packages/fit-core", "packages/fit-metrics"
FILES = {
    f"{CORE}/pyproject.toml": '[project]\nversion = "1.2.0"\ndependencies = ["torch>=2.6"]\n',
    f"{CORE}/CHANGELOG.md": "# Changelog\n\n## 1.2.0 - 2026-01-31\n\n- A loop.\n",
    f"{METRICS}/pyproject.toml": '[project]\nversion = "0.1.0"\ndependencies = ["fit-core>=1.2,<2"]\n',
    f"{METRICS}/CHANGELOG.md": "# Changelog\n\n## 0.1.0 - 2026-01-31\n\n- A metric.\n\n## 0.0.1\n",
    SURFACE: "class Runner(self, model: Module) -> None\n  fit(self, loader) -> History\n",
}


def git(root, *command):
    return run("git", *command, cwd=root, show=False)


def commit(root, files=(), *tags):
    for name, text in dict(files).items():
        root.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        root.joinpath(name).write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", "a change")
    for tag in tags:
        git(root, "tag", tag)


@pytest.fixture
def root(tmp_path):
    """A repository in which fit-core 1.2.0 is released, and fit-metrics 0.1.0 can be."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for setting, value in rehearsal.NOBODY.items():
        git(tmp_path, "config", setting, value)
    commit(tmp_path, FILES, "fit-core-v1.2.0")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("pyproject.toml", '"0.1.0"', '"0.2.0"', "expected the tag fit-metrics-v0.2.0, .* got fit-metrics-v0.1.0"),
        ("CHANGELOG.md", "0.1.0", "0.2.0", "expected '## 0.1.0 - YYYY-MM-DD' .* got '## 0.2.0 - 2026-01-31'"),
        ("CHANGELOG.md", "0.1.0 - 2026-01-31", "Unreleased", "got '## Unreleased'. Rename the heading"),
        ("CHANGELOG.md", "- A metric.", "", "say what changes for users"),
        ("pyproject.toml", ">=1.2", ">=1.3", "fit-core 1.3 was never released. Release it first"),
        ("pyproject.toml", ">=1.2", ">=1.1", "fit-core 1.1 was never released"),
    ],
)
def test_tag_version_changelog_and_floor_must_agree(root, file, old, new, message):
    package = Package(root, "fit-metrics")
    check(package, "fit-metrics-v0.1.0")
    for wrong in ("fit-metrics-v0.2.0", "fit-core-v0.1.0", "0.1.0"):
        with pytest.raises(Refusal, match=f"expected the tag fit-metrics-v0.1.0, .* got {wrong}"):
            check(package, wrong)
    commit(root, {f"{METRICS}/{file}": FILES[f"{METRICS}/{file}"].replace(old, new)})
    with pytest.raises(Refusal, match=message):
        check(Package(root, "fit-metrics"), "fit-metrics-v0.1.0")


def test_a_dirty_tree_is_refused(root):
    root.joinpath("notes.txt").touch()
    for refused in (lambda package: check(package, package.tag), rehearsal.rehearse):
        with pytest.raises(Refusal, match=r"uncommitted files. Commit or remove them:\n.*notes.txt"):
            refused(Package(root, "fit-metrics"))


@pytest.mark.parametrize(
    ("old", "new", "version", "step"),
    [
        ("", "", "1.2.1", None),
        ("  fit", "  test(self) -> None\n  fit", "1.2.1", "minor"),
        ("  fit", "  test(self) -> None\n  fit", "1.3.0", None),
        ("loader)", "loader, *, epochs: int = 1)", "1.2.1", "minor"),
        ("  fit(self, loader) -> History\n", "", "1.3.0", "major"),
        ("  fit", "  train", "2.0.0", None),
    ],
)
def test_a_changed_surface_needs_its_version_step(root, old, new, version, step):
    files = {name: text.replace("1.2.0", version) for name, text in FILES.items() if name.startswith(CORE)}
    commit(root, {**files, SURFACE: FILES[SURFACE].replace(old, new)})
    if step is None:
        check(Package(root, "fit-core"), f"fit-core-v{version}")
    else:
        message = rf"needs a {step} step, got {version}. Run: .* hatch version {step}\n(.*\n)*[+-]  \w+\(self"
        with pytest.raises(Refusal, match=message):
            check(Package(root, "fit-core"), f"fit-core-v{version}")


def test_only_merged_commits_are_released(root):
    package = Package(root, "fit-metrics")
    with pytest.raises(Refusal, match=r"not on main or fit-metrics-N.x. Merge it, then tag the merge commit"):
        check(package, package.tag, merged=True)
    for branch in ("main", "fit-metrics-0.x"):
        commit(root)
        git(root, "update-ref", f"refs/remotes/origin/{branch}", "HEAD")
        check(package, package.tag, merged=True)


def test_a_dependent_is_tested_on_the_cores_that_it_allows(root):
    commit(root, (), *(f"fit-core-v{version}" for version in ("1.1.0", "1.10.0", "1.3.0rc1", "1.3.0", "2.0.0")))
    assert [str(version) for version in Package(root, "fit-metrics").cores()] == ["1.2.0", "1.3.0", "1.10.0"]


@pytest.mark.parametrize("tags", [(), ("fit-core-v1.2.0",), ("fit-core-v1.2.0", "fit-metrics-v0.1.0")])
def test_a_rehearsal_leaves_nothing_behind(root, tags, tmp_path_factory, monkeypatch, capsys):
    """Without builds and fresh environments, which .ci/run tries."""
    git(root, "tag", "--delete", "fit-core-v1.2.0")
    commit(root, {f"{METRICS}/CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n- Another metric.\n"}, *tags)
    tried, temporary = [], tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(rehearsal, "build", lambda package, dist: tried.append(package.tag))
    monkeypatch.setattr(rehearsal, "try_wheel", lambda package, dist, core, quick: tried.append(core))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = git(root, "for-each-ref")
    rehearsal.rehearse(Package(root, "fit-metrics"))
    assert (git(root, "for-each-ref"), git(root, "status", "--porcelain")) == (before, "")
    assert not list(temporary.iterdir())
    tag = "fit-metrics-v0.2.0" if len(tags) == 2 else "fit-metrics-v0.1.0"
    assert tried == [tag, "lowest"]
    told = capsys.readouterr().out
    assert ("$ git tag --force fit-core-v1.2.0" in told) == (not tags)
    assert f"git push origin {tag}" in told
    assert "- Another metric." in told


def test_the_workflows_of_the_packages_differ_in_the_name_alone():
    core, *others = [(ROOT / f".github/workflows/release-{name}.yml").read_text() for name in ("fit-core", *DEPENDENTS)]
    assert others == [core.replace("fit-core", name) for name in DEPENDENTS]
    (publish,) = [job for job in re.split(r"^  (?=\w+:)", core, flags=re.MULTILINE) if "id-token: write" in job]
    assert "environment: {name: pypi-fit-core}" in publish
    assert "run:" not in publish  # nothing of ours runs where a release can be published

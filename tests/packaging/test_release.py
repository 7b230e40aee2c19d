"""A release whose tag, version, changelog, floor or protocol disagree is refused, and the sentence says what to do."""

import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "packages").exists():
    pytest.skip("needs the source tree", allow_module_level=True)

sys.path.insert(0, str(ROOT / ".github"))
import release.rehearse as rehearsal  # noqa: E402
from release.build import build, faults  # noqa: E402
from release.check import SURFACE, check, step_needed  # noqa: E402
from release.prepare import prepare  # noqa: E402
from release.project import PACKAGES, Package, Refusal, git, stepped  # noqa: E402
from release.shell import strangers  # noqa: E402
from release.surface import changes  # noqa: E402
from release.trial import core_for, metadata_of  # noqa: E402


class Project:
    """A copy of the repository that was never released, in which one can."""

    def __init__(self, root):
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "packages", root / "packages", ignore=ignored)
        (root / SURFACE).parent.mkdir(parents=True)
        for name in (SURFACE, "LICENSE", ".gitignore"):
            shutil.copy(ROOT / name, root / name)
        git(root, "init", "--quiet", "--initial-branch=main")
        for setting, value in rehearsal.NOBODY.items():
            git(root, "config", setting, value)
        for name in PACKAGES:  # however far the tree is on its way to a release
            self.write(name, "CHANGELOG.md", r"\A(?:.|\n)*?^## .*", "# Changelog\n\n## Unreleased")
        self.commit()

    def package(self, name):
        return Package(self.root, name)

    def write(self, name, file, pattern, text):
        path = self.root / "packages" / name / file
        path.write_text(re.sub(pattern, text, path.read_text(), count=1, flags=re.MULTILINE))

    def add_to_changelog(self, name, entry):
        self.write(name, "CHANGELOG.md", r"\A", f"## Unreleased\n\n{entry}\n\n")

    def commit(self):
        git(self.root, "add", "--all")
        git(self.root, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", "a change")

    def release(self, name, part=None):
        package = self.package(name)
        prepare(package, part)
        self.commit()
        git(self.root, "tag", package.tag)
        return package


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture
def released(project):
    """Fit-core and fit-callbacks are released, and have changed since."""
    for name in ("fit-core", "fit-callbacks"):
        project.release(name)
        project.add_to_changelog(name, "### Fixed\n\n- A bug.")
    project.commit()
    return project


def test_a_first_release_keeps_its_version(project):
    package = project.package("fit-core")
    before = package.version
    assert prepare(package) == before
    assert re.fullmatch(rf"{before} - \d{{4}}-\d\d-\d\d", package.heading)
    project.commit()
    check(package, before)
    check(package, package.tag)
    git(project.root, "tag", package.tag)
    check(package, package.tag)
    assert package.releases() == [before]
    assert "### Added" in package.notes
    assert "## " not in package.notes.replace("### ", "")


@pytest.mark.parametrize(
    ("entry", "part", "step"),
    [
        ("### Fixed\n\n- A bug.", None, "patch"),
        ("### Added\n\n- A callback.", None, "minor"),
        ("### Fixed\n\n- A bug.", "major", "major"),
    ],
)
def test_the_next_version_follows_from_the_changelog(released, entry, part, step):
    package = released.release("fit-callbacks")  # of the fixed bug
    before = package.version
    released.add_to_changelog("fit-callbacks", entry)
    assert prepare(package, part) == stepped(before, step)
    assert package.notes == entry
    released.commit()
    check(package, stepped(before, step))


def test_a_version_that_was_stepped_with_its_change_is_kept(released):
    package = released.package("fit-callbacks")
    released.write(
        "fit-callbacks", "pyproject.toml", r'^version = ".*"', f'version = "{stepped(package.version, "minor")}"'
    )
    assert prepare(package) == package.version
    released.commit()
    check(package, package.version)


def test_nothing_new_is_no_release(project):
    package = project.release("fit-core")
    with pytest.raises(Refusal, match="has nothing under a heading 'Unreleased'"):
        prepare(package)
    project.add_to_changelog("fit-core", "### Fixed\n")
    with pytest.raises(Refusal, match="say there what changes for users"):
        prepare(package)


def test_what_is_no_version_of_the_package_is_refused(released):
    package = released.package("fit-core")
    for wanted in ("1.0", "fit-callbacks-v0.1.0", "v1.0.0", "1.0.0rc1", ""):
        with pytest.raises(Refusal, match=r"is no release of fit-core: a version is 1.2.3, a tag fit-core-v1.2.3"):
            check(package, wanted)
    with pytest.raises(Refusal, match="there is no package 'core'; there are fit-core, fit-callbacks"):
        released.package("core")


def test_a_dirty_tree_is_refused(released):
    package = released.release("fit-core")
    check(package, package.version)
    released.root.joinpath("notes.txt").touch()
    with pytest.raises(Refusal, match=r"the tree is dirty \(notes.txt\)"):
        check(package, package.version)


def test_a_tag_that_is_not_the_version_is_refused(released):
    package = released.release("fit-core")
    with pytest.raises(
        Refusal, match=f"fit-core-v7.0.0 is wanted, but packages/fit-core/pyproject.toml says {package.version}"
    ):
        check(package, "fit-core-v7.0.0")


def test_a_changelog_that_does_not_tell_of_the_version_is_refused(released):
    package = released.package("fit-core")
    with pytest.raises(Refusal, match=r"newest heading of .*CHANGELOG.md is 'Unreleased', expected '.* - YYYY-MM-DD'"):
        check(package, package.version)
    prepare(package)
    released.write("fit-core", "CHANGELOG.md", "^- A bug.$", "")
    released.commit()
    with pytest.raises(Refusal, match="tells nothing of"):
        check(package, package.version)


def test_a_version_is_released_once(released):
    package = released.release("fit-core")
    released.commit()
    with pytest.raises(Refusal, match=f"the tag {package.tag} is there already, on another commit"):
        check(package, package.tag)


def test_a_version_that_skips_one_is_refused(released):
    package = released.package("fit-callbacks")
    last = package.version
    released.write("fit-callbacks", "pyproject.toml", r'^version = ".*"', 'version = "0.7.0"')
    prepare(package)
    released.commit()
    steps = ", ".join(stepped(last, part) for part in ("patch", "minor", "major"))
    with pytest.raises(Refusal, match=f"fit-callbacks 0.7.0 cannot follow {last}: the next ones are {steps}"):
        check(package, "0.7.0")


def test_a_floor_that_was_never_released_is_refused(project):
    package = project.package("fit-metrics")
    prepare(package)
    project.commit()
    with pytest.raises(Refusal, match=r"fit-core 1.0.0 was never released: release it first, or lower the floor"):
        check(package, package.version)
    git(project.root, "tag", "fit-core-v1.0.0")
    check(package, package.version)
    project.write("fit-metrics", "pyproject.toml", r"fit-core>=1\.\d+", "fit-core>=1.9")
    project.commit()
    with pytest.raises(Refusal, match=r"fit-metrics needs fit-core>=1.9, and fit-core 1.9.0 was never released"):
        check(package, package.version)


def test_what_is_not_merged_is_refused(released, tmp_path):
    released.release("fit-core")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(released.root), str(clone))
    for setting, value in rehearsal.NOBODY.items():
        git(clone, "config", setting, value)
    package = Package(clone, "fit-core")
    check(package, package.tag, merged=True)
    copy = Project.__new__(Project)
    copy.root = clone
    copy.add_to_changelog("fit-core", "### Fixed\n\n- Another bug.")
    copy.release("fit-core")
    check(package, package.tag)
    with pytest.raises(Refusal, match=r"the commit is neither on main nor on fit-core-N.x: merge it"):
        check(package, package.tag, merged=True)
    git(clone, "push", "--quiet", "origin", "HEAD:refs/heads/fit-core-1.x")
    check(package, package.tag, merged=True)


def change_surface(project, old, new):
    path = project.root / SURFACE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    project.commit()


def test_a_changed_protocol_asks_for_its_step(released):
    package = released.package("fit-core")
    last = package.version
    change_surface(released, "  error: BaseException | None\n", "  error: BaseException | None\n  seconds: float\n")
    assert step_needed(package, last) == ("minor", "RunnerState.seconds is new")
    prepare(package, "patch")
    released.commit()
    with pytest.raises(Refusal, match=r"is a patch version after .*asks for a minor one: RunnerState.seconds is new"):
        check(package, package.version)
    released.write("fit-core", "CHANGELOG.md", "^## .*", "## Unreleased")
    prepare(package)
    released.commit()
    assert package.version == stepped(last, "minor")
    check(package, package.version)

    change_surface(released, "  error: BaseException | None\n", "")
    with pytest.raises(Refusal, match=r"is a minor version after .*asks for a major one: RunnerState.error is gone"):
        check(package, package.version)


SIGNATURE = "class Runner(self, model: Module, *, steps: int = 1) -> None\n  fit(self, loader) -> History\n"


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("steps: int = 1", "steps: int = 1, other: int = 2", "minor"),
        ("steps: int = 1", "other: int = 2, steps: int = 1", "minor"),  # by keyword, so the order says nothing
        ("model: Module,", "model: Module, other: int = 2,", "minor"),
        ("fit(self, loader)", "fit(self, loader, *, epochs: int = 1)", "minor"),
        ("  fit", "  test(self) -> None\n  fit", "minor"),
        ("steps: int = 1", "steps: int = 1, other: int", "major"),
        ("steps: int = 1", "steps: int = 2", "major"),
        ("steps: int = 1", "steps: float = 1", "major"),
        ("steps: int = 1", "other: int = 1", "major"),
        ("model: Module,", "other: int, model: Module,", "major"),
        ("model: Module, *,", "model: Module,", "major"),
        ("-> History", "-> None", "major"),
        ("  fit(self, loader) -> History\n", "", "major"),
    ],
)
def test_what_a_change_of_a_signature_asks_for(old, new, part):
    assert old in SIGNATURE
    assert [asked for asked, _ in changes(SIGNATURE, SIGNATURE.replace(old, new))] == [part]


def test_hooks_may_be_added_but_keep_their_order():
    def hooks(*names):
        return f"HOOKS = {names}\n"

    old = hooks("on_begin", "on_batch_end", "on_end")
    assert [part for part, _ in changes(old, hooks("on_begin", "on_new", "on_batch_end", "on_end"))] == ["minor"]
    assert [part for part, _ in changes(old, hooks("on_batch_end", "on_begin", "on_end"))] == ["major"]
    assert [part for part, _ in changes(old, hooks("on_begin", "on_end"))] == ["major"]
    assert not list(changes(old, old))


def test_the_surface_of_the_tree_is_understood():
    text = (ROOT / SURFACE).read_text()
    assert not list(changes(text, text))
    for line in text.splitlines():
        if line.startswith("  ") and text.count(f"{line}\n") == 1:
            ((part, sentence),) = changes(text, text.replace(f"{line}\n", ""))
            assert part == "major"
            assert sentence.endswith(f".{re.split(r'[(:]', line.strip())[0]} is gone")


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_can_be_built(project, tmp_path, name):
    sdist, wheel = sorted(path.name for path in build(project.package(name), tmp_path))[::-1]
    version = project.package(name).version
    assert [sdist, wheel] == [f"{name.replace('-', '_')}-{version}{end}" for end in (".tar.gz", "-py3-none-any.whl")]


def test_a_release_is_the_same_bytes_wherever_it_is_built(project, tmp_path):
    package = project.package("fit-metrics")
    first = {path.name: path.read_bytes() for path in build(package, tmp_path / "one")}
    other = Project(tmp_path / "elsewhere" / "project").package("fit-metrics")
    second = {path.name: path.read_bytes() for path in build(other, tmp_path / "two")}
    assert first == second
    assert len(first) == 2
    (project.root / "packages" / "fit-metrics" / "src" / "fit_metrics" / "draft.py").touch()
    third = {path.name: path.read_bytes() for path in build(package, tmp_path / "one")}
    assert third == first  # only what is committed


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("fit-metrics", {"pyproject.toml": (r"fit-core>=1.0,<2", "fit-core>=1.0")}, "expected floor and cap"),
        ("fit-metrics", {"pyproject.toml": (r"fit-core>=1.0,<2", "fit-core>=1.0,<3")}, "expected floor and cap"),
        ("fit-metrics", {"pyproject.toml": (r'"fit-core', '"fit-callbacks>=0.1", "fit-core')}, "needs a sibling"),
        ("fit-core", {"pyproject.toml": (r'"torch>', '"numpy>=2", "torch>')}, "fit-core needs torch alone"),
        ("fit-core", {"pyproject.toml": (r'"torch>=2.6"', '"torch"')}, "these have no floor: torch"),
        ("fit-core", {"pyproject.toml": (r'^license = "MIT"', 'license = "BSD-3-Clause"')}, "not MIT"),
        ("fit-core", {"LICENSE": ("MIT", "Other")}, "the licence of the repository is not in it"),
        ("fit-core", {"pyproject.toml": (r"^readme.*", "")}, "its README is missing"),
        ("fit-core", {"src/fit_core/py.typed": None}, "py.typed is missing"),
        ("fit-core", {"src/fit_core/test_batch.py": ""}, "it holds tests: fit_core/test_batch.py"),
        ("fit-core", {"src/fit_core/data.bin": "a" * 10}, "data.bin, which is no Python"),
        ("fit-core", {"src/fit_core/large.py": "".join(map(str, range(60_000)))}, "60000 are allowed"),
    ],
)
def test_a_wheel_that_is_not_as_it_should_be_is_refused(project, tmp_path, name, spoil, sentence):
    for file, change in spoil.items():
        path = project.root / "packages" / name / file
        if isinstance(change, tuple):
            project.write(name, file, *change)
        elif change is None:
            path.unlink()
        else:
            path.write_text(change)
    project.commit()
    with pytest.raises(Refusal, match=sentence):
        build(project.package(name), tmp_path / "dist")


def test_a_wheel_of_another_version_is_seen(project, tmp_path):
    package = project.package("fit-core")
    _, wheel = sorted(build(package, tmp_path), key=lambda path: path.suffix == ".whl")
    assert faults(package, wheel) == []
    project.write("fit-core", "pyproject.toml", r'^version = ".*"', 'version = "9.0.0"')
    assert faults(package, wheel) == [
        "it has no fit_core-9.0.0.dist-info/METADATA: it is of another version or package"
    ]
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("stray.py", "")
    project.write("fit-core", "pyproject.toml", r'^version = ".*"', 'version = "1.0.0"')
    assert faults(package, wheel) == ["it installs stray.py beside fit_core"]


@pytest.fixture
def short(monkeypatch):
    """A rehearsal without its fresh environments, which .ci/run tries; notes what they would be given."""
    given = []

    def note(package, *arguments, index=None, core=None, **options):
        found = [path.name.split("-")[0] for path in sorted(index.glob("*.whl"))] if index else core
        given.append((package.name, package.version, found))
        return "tried"

    for name in ("try_wheel", "smoke", "inspect"):
        monkeypatch.setattr(rehearsal, name, note if name != "inspect" else lambda files: None)
    monkeypatch.setattr(rehearsal, "try_dependents", lambda *arguments, **options: ["tried"])
    return given


def everything_in(project):
    files = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file() and ".git" not in path.parts}
    return files, git(project.root, "log", "--all"), git(project.root, "tag"), git(project.root, "status")


def test_a_rehearsal_leaves_nothing_behind(released, short, capsys, tmp_path):
    before = everything_in(released)
    rehearsal.rehearse(released.package("fit-callbacks"))
    assert everything_in(released) == before
    told = capsys.readouterr().out
    last = released.package("fit-callbacks").version
    following = stepped(last, "patch")
    assert f"fit-callbacks {last} -> {following}, {following} - " in told
    assert f"built: fit_callbacks-{following}-py3-none-any.whl" in told
    assert f"fit-callbacks {following} could be released. Nothing was" in told
    assert "- A bug." in told
    assert short == [
        ("fit-callbacks", following, "lowest"),
        ("fit-callbacks", following, ["fit_callbacks", "fit_core"]),  # what smoke finds in the index
    ]


def test_a_rehearsal_of_a_dependent_before_any_core_releases_the_core_first(project, short, capsys):
    rehearsal.rehearse(project.package("fit-metrics"))
    told = capsys.readouterr().out
    assert told.index("fit-core was never released, and goes first") < told.index("built: fit_core-")
    assert told.index("built: fit_core-") < told.index("built: fit_metrics-")


def test_a_rehearsal_tries_the_lowest_and_the_highest_core(released, short):
    highest = released.release("fit-core").version
    released.add_to_changelog("fit-callbacks", "### Fixed\n\n- Another bug.")
    released.commit()
    package = released.package("fit-callbacks")
    assert package.cores() == ["1.0.0", highest]
    rehearsal.rehearse(package)
    assert [found for *_, found in short] == ["lowest", "highest", ["fit_callbacks", "fit_core"]]


def test_a_rehearsal_refuses_what_a_release_refuses(released, short):
    released.root.joinpath("draft").touch()
    with pytest.raises(Refusal, match=r"the tree is dirty \(draft\)"):
        rehearsal.rehearse(released.package("fit-core"))
    released.root.joinpath("draft").unlink()
    released.write("fit-callbacks", "pyproject.toml", r"fit-core>=1\.\d+", "fit-core>=1.9")
    released.commit()
    with pytest.raises(Refusal, match=r"fit-core 1.9.0 was never released"):
        rehearsal.rehearse(released.package("fit-callbacks"))
    change_surface(released, "  error: BaseException | None\n", "")
    with pytest.raises(Refusal, match=r"asks for a major one: RunnerState.error is gone"):
        rehearsal.rehearse(released.package("fit-core"), "patch")
    assert not short


def test_the_core_of_a_wheel_is_built_from_its_tag(released, tmp_path):
    released.write("fit-core", "src/fit_core/__init__.py", r"\Z", "NEW = True\n")
    released.commit()
    highest = released.release("fit-core").version
    for which, version in (("lowest", "1.0.0"), ("highest", highest)):
        wheel, told = core_for(released.package("fit-metrics"), which, tmp_path / which)
        assert told == version
        with zipfile.ZipFile(wheel) as archive:
            assert (b"NEW" in archive.read("fit_core/__init__.py")) == (which == "highest")


def test_each_command_of_the_workflows_must_be_a_script(tmp_path):
    hatch = '[envs.release]\n\n[envs.release.scripts]\ncheck = "a"\n\n[envs.default.scripts]\ndemo = "b"\n'
    found = [("x", command) for command in ("hatch run release:check fit-core", "hatch run demo", "hatch test --cover")]
    assert not list(strangers(found, hatch))
    found = [("ci.yml, job a", "hatch run release:other"), ("ci.yml, job b", "python setup.py upload")]
    assert [sentence.split(" is no")[0] for sentence in strangers(found, hatch)] == [
        "ci.yml, job a: 'hatch run release:other'",
        "ci.yml, job b: 'python setup.py upload'",
    ]


WORKFLOWS = ROOT / ".github" / "workflows"


def test_the_workflows_of_the_packages_differ_in_the_name_alone():
    core = (WORKFLOWS / "release-fit-core.yml").read_text()
    for name in PACKAGES:
        text = (WORKFLOWS / f"release-{name}.yml").read_text()
        assert text == core.replace("fit-core", name)
        assert text.count(name) > 10


def test_workflows_are_pinned_and_have_no_more_rights_than_they_need():
    for path in WORKFLOWS.glob("*.yml"):
        text = path.read_text()
        assert "\npermissions: {}\n" in text
        for action in re.findall(r"uses: (\S+)", text):
            assert action.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        for job in re.split(r"^  (?=\w+:)", text, flags=re.MULTILINE):
            if "id-token: write" in job:  # what publishes runs no command of ours
                assert "run:" not in job
                assert "environment: {name: pypi-" in job


def test_the_extras_that_a_user_installs_are_those_of_the_wheel(project, tmp_path):
    for name, extras in {"fit-core": [], "fit-callbacks": ["plot"], "fit-distributed": ["notebook"]}.items():
        package = project.package(name)
        assert package.extras == extras
        wheel = next(path for path in build(package, tmp_path) if path.suffix == ".whl")
        assert metadata_of(wheel).get_all("Provides-Extra", []) == extras

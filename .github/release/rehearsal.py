"""Walk the whole path of a release in a clone, and print each step with its reason."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

from check import check, check_clean
from project import Package, run
from wheels import build, try_wheel

NOBODY = {"user.name": "rehearsal", "user.email": "rehearsal@example.org", "commit.gpgsign": "no", "tag.gpgsign": "no"}


def rehearse(package: Package, *, quick: bool = False) -> None:
    """Release a package without publishing it. Leave nothing behind."""
    print(f"Rehearse a release of {package.name} in a clone. Nothing is published, and the clone is deleted.")
    check_clean(package)
    with tempfile.TemporaryDirectory() as scratch:
        root, dist = Path(scratch, "clone"), Path(scratch, "dist")
        settings = [f"--config={setting}={value}" for setting, value in NOBODY.items()]
        package.git("clone", "--quiet", "--no-hardlinks", *settings, str(package.root), str(root))
        print("\n1. Prepare: a commit with a version and a dated heading in the changelog, and a tag on it.")
        if package.core and not Package(root, "fit-core").releases():
            print(f"fit-core was never released and goes first, because {package.name} needs {package.core}.")
            prepare(root, "fit-core")
        copy = prepare(root, package.name)
        print("\n2. Build: the workflow does this from the tag, in a clean checkout without secrets.")
        build(copy, dist)
        print("\n3. Test: the wheel must work without the source tree, and together with other releases.")
        for core in ("lowest", "highest")[: max(1, len(copy.cores()))]:
            try_wheel(copy, dist, core=core, quick=quick)
        print(f"\n4. Publish: when the commit is merged, a maintainer runs 'git push origin {copy.tag}'. The workflow")
        print(f"release-{copy.name}.yml repeats the steps above, publishes the files, installs them from the registry,")
        print(f"and creates a page with these notes:\n{copy.notes}")
    print(f"{copy.tag} could be released. Nothing was published, and the clone is deleted.")


def prepare(root: Path, name: str) -> Package:
    """Commit and tag the next release in a clone, as a maintainer does, and check it."""
    package = Package(root, name)
    if package.heading == "Unreleased":
        if package.version in package.releases():
            print(f"{package.tag} is released, so {name} needs a new version.")
            run("hatch", "version", "minor", cwd=package.folder)
        heading = f"{Package(root, name).version} - {datetime.date.today()}"
        print(f"In packages/{name}/CHANGELOG.md, the heading 'Unreleased' becomes '{heading}'.")
        changelog = package.folder / "CHANGELOG.md"
        changelog.write_text(changelog.read_text().replace("## Unreleased", f"## {heading}", 1))
        run("git", "commit", "--quiet", "--all", "--no-verify", "--message", f"Release {name} {heading}", cwd=root)
    package = Package(root, name)
    run("git", "tag", "--force", package.tag, cwd=root)
    print("Check that tag, version, changelog, floor and protocol agree. The workflow stops if they do not.")
    check(package, package.tag)
    return package

"""Show the repository on the site: add pages, link names, and warn if a public name is left out. A hook of mkdocs.

Pages in docs/ link to READMEs and sources elsewhere in the repository, as one reads them on a code forge. Each file
that is linked so becomes a page of the site, under the path it has in the repository, and the links lead there. A link
to what is not there stays as it is, and mkdocs refuses it.
"""

import ast
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocstrings import Inventory

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)")
ALWAYS = ("packages/*/README.md", "examples/README.md", "docs/template/*.*", "docs/template/**/*.py")
NOT_FOUND = re.compile("tests/|benchmarks/|docs/template/|packages/.*/src/")
"""The search does not find these files: they have the words of every page, and the reference shows the sources."""
CODE = re.compile(
    r"<(?:pre|a)\b.*?</(?:pre|a)>|<h\d(?: id=\"(?P<anchor>[^\"]*)\")?.*?</h\d>"
    r"|<code>(?:(?P<package>fit_\w+)\.)?(?P<name>[A-Za-z]\w*)(?P<rest>(?:\.\w+)*)(?P<call>\(.*?\))?</code>",
    re.DOTALL,
)
"""Inline code that may be a public name, and the parts of a page where it stays as it is."""
log = get_plugin_logger("site")
shown: dict[str, str] = {}
"""The file of the repository behind each page."""
public = [
    public
    for page in (ROOT / "docs" / "reference").glob("*.md")
    for public in re.findall(r"^::: (\w+)\.(\w+)$", page.read_text(), re.MULTILINE)
]
"""The package and the name of everything public."""


class Unhide(griffe.Extension):
    """Show functions that are named like their module, such as `fit_distributed.launch`."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Replace such a module by the function in it."""
        for alias in [member for member in pkg.members.values() if member.is_alias]:
            alias.resolve_target()
        for name in pkg.exports or ():
            module = pkg.members[name]
            if module.is_module:
                pkg.members[name] = griffe.Alias(name, module.members[name], parent=pkg)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the versions of the packages at the foot of each page."""
    versions = {
        path.parent.name: re.search(r'^version = "(.*)"', path.read_text(), re.MULTILINE)[1]
        for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
    }
    config.copyright = ", ".join(f"{name} {version}" for name, version in versions.items())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the repository that a page links to, and for those linked from there."""
    paths = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    paths += sorted(str(path.relative_to(ROOT)) for pattern in ALWAYS for path in ROOT.glob(pattern))
    for path in paths:  # The list grows on the way.
        shown[uri(path)] = path
        paths += dict.fromkeys(other for other in linked(path) if other not in paths)
        file = files.get_file_from_path(uri(path))
        if file is None or file.inclusion.is_excluded():
            if file is not None:
                files.remove(file)
            files.append(File.generated(config, uri(path), content=content(path), inclusion=InclusionLevel.NOT_IN_NAV))
    examples = next(part["Examples"] for part in config.nav if "Examples" in part)
    examples += [{Path(path).name: uri(path)} for path in linked("examples/README.md") if path.endswith(".py")]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages, and keep tests and templates out of the search."""
    here = page.file.src_uri
    if NOT_FOUND.match(shown[here]):
        page.meta["search"] = {"exclude": True}
    else:  # The pages come before the reference, READMEs and programs.
        is_page = shown[here].startswith("docs/") and not here.startswith("reference/")
        page.meta["search"] = {"boost": 2 if is_page else 1}

    def lead(link: re.Match[str]) -> str:
        path = target(shown[here], link[1])
        return relpath(uri(path), dirname(here) or ".") if path else link[1]

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the names of the packages to the reference, once per section."""
    linked: set[str] = set()

    def link(code: re.Match[str]) -> str:
        if code[0].startswith("<h"):
            linked.clear()
            linked.add(code["anchor"] or "")
            return code[0]
        packages = [package for package, name in public if name == code["name"]]
        if len(packages) > 1:  # two packages have a ConfusionMatrix
            here = page.file.src_uri.replace("-", "_").replace("reference/", "fit_")
            packages = [package for package in packages if package == code["package"] or package in here]
        # `device` may be anything, but `device()` is a function.
        if len(packages) != 1 or not (code["call"] or code["name"][0].isupper()):
            return code[0]
        identifier = f"{packages[0]}.{code['name']}{code['rest']}"
        if identifier in linked:
            return code[0]
        linked.add(identifier)
        return f'<autoref identifier="{identifier}" optional>{code[0]}</autoref>'

    if page.file.src_uri.startswith("migrating/"):  # Other libraries have the same names, in the first column.
        return re.sub("</td>.*?</tr>", lambda cells: CODE.sub(link, cells[0]), html, flags=re.DOTALL)
    return CODE.sub(link, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of public names that the reference leaves out, and of those without a docstring."""
    with open(Path(config.site_dir, "objects.inv"), "rb") as file:
        known = Inventory.parse_sphinx(file)
    for package in sorted(ROOT.glob("packages/*/src/*")):
        module = griffe.load(package.name, search_paths=[package.parent], extensions=griffe.Extensions(Unhide()))
        for name in module.exports:
            if f"{module.name}.{name}" not in known:
                log.warning(f"{module.name}.{name} is public and stands on no page of docs/reference")
            members = [member for key, member in module[name].members.items() if not key.startswith("_")]
            for member in [
                module[name],
                *(member for member in members if member.is_function or "property" in member.labels),
            ]:
                if not member.docstring:
                    log.warning(f"{member.path} is public and has no docstring")


def uri(path: str) -> str:
    """Return the path of a file of the repository in the site's sources."""
    return path.removeprefix("docs/") + ("" if path.endswith((".md", ".png", ".svg")) else ".md")


def target(path: str, link: str) -> str | None:
    """Return the file of the repository that a link in another one leads to. For a folder, that is its README."""
    other = normpath(join(dirname(path), link))
    if (ROOT / other / "README.md").is_file():
        other += "/README.md"
    return other if (ROOT / other).is_file() else None


def linked(path: str) -> list[str]:
    """Return the files of the repository that a Markdown file links to."""
    links = LINK.findall((ROOT / path).read_text()) if path.endswith(".md") else []
    return [other for other in (target(path, link) for link in links) if other]


def content(path: str) -> str:
    """Return a file as a page: Markdown unchanged, a program as its docstring and then its code."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    docstring, code = "", text
    if path.endswith(".py") and text.startswith('"""'):
        module = ast.parse(text)
        docstring = ast.get_docstring(module) or ""
        code = "".join(text.splitlines(keepends=True)[module.body[0].end_lineno :])
    language = {".py": "python", ".toml": "toml"}.get(Path(path).suffix, "text")
    return f'# {Path(path).name}\n\n{docstring}\n\n`````{language} title="{path}"\n{code.strip()}\n`````\n'

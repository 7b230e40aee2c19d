"""The site has a page for all that is there: each public name, each page of docs/, each link. Needs no mkdocs."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted(ROOT.glob("docs/**/*.md")) if "template" not in page.parts]
READMES = [*sorted(ROOT.glob("packages/*/README.md")), ROOT / "examples" / "README.md"]
PACKAGES = ["fit_core", "fit_callbacks", "fit_metrics", "fit_distributed"]


def without_code(page):
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(page):
    """The anchors that code forges and the site make of the headings."""
    titles = re.findall(r"^#+ (.*)", without_code(page), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_public_name_stands_in_the_reference_once(package):
    pages = "\n".join(page.read_text() for page in sorted(ROOT.glob("docs/reference/*.md")))
    names = re.findall(rf"^::: {package}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(names) == sorted(importlib.import_module(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_each_public_class_shows_how_it_is_used(package):
    module = importlib.import_module(package)
    classes = [value for name in module.__all__ if isinstance(value := getattr(module, name), type)]
    without = {
        kind.__name__ for kind in classes if "Examples:\n" not in kind.__doc__ and not issubclass(kind, Exception)
    }
    # Nobody makes a RunnerState, and the others are bases of classes with examples.
    assert without <= {"RunnerState", "MatrixMetric", "ClassScore", "RankingMetric", "ImageMetric"}


def test_each_page_is_in_the_navigation():
    navigation = re.search(r"^nav:\n(.*?)^\S", (ROOT / ".mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)[1]
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES]
    assert sorted(named) == sorted([*pages, *(str(page.relative_to(ROOT)) for page in READMES)])


def test_each_example_has_a_line_in_their_readme():
    linked = re.findall(r"^\| \[.*?\]\((\S+)\)", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)
    assert sorted(linked) == sorted(path.name for path in ROOT.glob("examples/*.py"))


@pytest.mark.parametrize("page", [ROOT / "README.md", *READMES, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?![a-z]+:)(\S+?)\)", without_code(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in headings(target), f"{link} leads to no heading"


@pytest.mark.parametrize(
    "page", [ROOT / "docs/template/README.md", *READMES, *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_what_belongs_to_a_list_is_indented_by_four(page):
    """Code forges accept less. Python-Markdown, which makes the site, ends the list there."""
    assert not re.findall(r"^ {1,3}(?:```|\|).*", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/index.md", *READMES[:-1]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_first_pages_fit_a_terminal_of_90_columns(page):
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert not [line for block in blocks for line in block.splitlines() if len(line) > 90]


@pytest.mark.parametrize("page", READMES[:-1], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_package_index_shows_the_readme_without_the_repository(page):
    assert not re.findall(r"\]\((?!https:|#)\S+?\)", without_code(page))

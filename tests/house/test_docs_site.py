"""The documentation site holds every page, and every link leads somewhere."""

import re
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracked_files import ROOT, tracked_files

PAGES = sorted(path for path in tracked_files() if path.match("docs/*.md"))
PICTURES = sorted(path for path in tracked_files() if path.match("docs/*.svg"))
ROOT_PAGES = sorted(path for path in tracked_files() if path.match("*.md") and len(path.parts) == 1)
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")
EXTERNAL = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(https?://[^"'\s>]+)""")


def nav_pages(entries: list[dict[str, object]]) -> Iterator[str]:
    """Every page under `nav`, in order."""
    for entry in entries:
        for target in entry.values():
            if isinstance(target, list):
                yield from nav_pages(target)
            else:
                yield str(target)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target, anchor in LINK.findall((ROOT / page).read_text()):
        file = (ROOT / page.parent / target) if target else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(f"{page}: {target}#{anchor}")
    return broken


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it, apart from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    for path in [*PAGES, *PICTURES, Path("zensical.toml")]:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes((ROOT / path).read_bytes())
    zensical = str(Path(sysconfig.get_path("scripts")) / "zensical")
    command = [zensical, "build", "--clean", "--strict"]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "build" / "docs"


def test_the_navigation_names_every_page_once() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(nav_pages(nav)) == [page.name for page in PAGES]


def test_every_link_of_a_page_leads_somewhere() -> None:
    assert [link for page in (*ROOT_PAGES, *PAGES) for link in broken_links(page)] == []


@pytest.mark.slow
def test_a_page_is_built_for_each_entry(site: Path) -> None:
    assert [page.name for page in PAGES if not (site / page.name).with_suffix(".html").exists()] == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    found = {url for page in site.glob("*.html") for url in EXTERNAL.findall(page.read_text())}
    assert found == set()


def test_no_page_has_a_diagram_that_a_cdn_would_draw() -> None:
    assert [str(page) for page in PAGES if "```mermaid" in (ROOT / page).read_text()] == []

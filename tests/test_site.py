"""The documentation as a site: it builds without a warning, its links lead somewhere, nothing comes from elsewhere."""

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import chromium

from spectrum_bench.paths import ROOT

pytestmark = pytest.mark.slow


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ("bash", "scripts/site.sh", *words)
    return subprocess.run(words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    tools = command("tools")
    if tools.returncode and not os.environ.get("CI"):
        pytest.skip(f"mkdocs' environment could not be made: {tools.stderr.strip().splitlines()[-1]}")
    out = tmp_path_factory.mktemp("site") / "site"
    built = command("build", OUT=str(out))
    assert built.returncode == 0, built.stdout + built.stderr
    return out


class Links(HTMLParser):
    """What a page names: links, what the browser fetches with it, and the places that links lead to."""

    def __init__(self, page: Path):
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value for key, value in attrs if value}
        self.places |= {named[key] for key in ("id", "name") if key in named}
        if tag == "a":
            self.links += [named[key] for key in ("href",) if key in named]
        elif tag in ("script", "img", "link", "iframe", "source"):
            self.fetched += [named[key] for key in ("src", "href") if key in named]


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Links]:
    return {page.resolve(): Links(page) for page in site.rglob("*.html")}


def test_every_page_of_docs_is_in_it_and_named_in_the_navigation(site):
    named = set(re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in named
        assert (site / page.with_suffix(".html").name).is_file()


def test_links_lead_to_a_page_and_a_place_of_it(pages, site):
    assert len(pages) > 50
    for page, found in pages.items():
        for link in found.links + found.fetched:
            path, _, place = link.partition("#")
            if re.match(r"[a-z]+:", link) or page.name == "404.html":  # whose links begin at the root of a server
                continue
            there = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            assert there.is_file() or (there / "index.html").is_file(), f"{page.relative_to(site.resolve())}: {link}"
            if place and there in pages and place != "__top":
                assert unquote(place) in pages[there].places, f"{page.relative_to(site.resolve())}: {link}"


def test_the_leaderboards_links_lead_to_tables_of_the_site(site):
    text = (site / "leaderboard.html").read_text(encoding="utf-8")
    assert '"base":""' in text
    files = set(re.findall(r'"file":"([^"]+)"', text))
    assert len(files) > 30 and all((site / file).is_file() for file in files)


def test_nothing_is_fetched_from_elsewhere(pages):
    for page, found in pages.items():
        outside = [name for name in found.fetched if re.match(r"(https?:)?//", name)]
        assert not outside, page.name


def test_the_search_and_the_api_know_the_library(site):
    index = (site / "search/search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "adaptive_window" in index
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in ("accelerate", "algorithms", "cached", "Algorithm"):
        assert f'.{name}"' in api  # the heading's anchor
    assert "UserError" in api and "a name or a constant does not exist" in api  # an error that `accelerate` raises


def test_the_search_answers_without_a_server(site, tmp_path):
    """Opened from a folder, in a page below others; and its console stays empty."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser = chromium(tmp_path / "profile")
    try:
        browser.get((site / "results/tiny/flux/index.html").as_uri())
        field = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
        browser.execute_script("arguments[0].focus()", field)
        field.send_keys("hindsight")
        found = (By.CSS_SELECTOR, ".md-search-result__item a")
        WebDriverWait(browser, 20).until(lambda _: browser.find_elements(*found))
        links = [each.get_attribute("href") for each in browser.find_elements(*found)]
        assert any("/hindcast.html" in link for link in links)
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


@pytest.mark.parametrize("page", ["index", "leaderboard", "which-method", "notebook", "api"])
def test_a_phone_scrolls_no_page_sideways(site, tmp_path, page):
    browser = chromium(tmp_path / "profile")
    try:
        metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((site / f"{page}.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert browser.get_log("browser") == []
    finally:
        browser.quit()

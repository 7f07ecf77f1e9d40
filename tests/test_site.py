"""The site: built once, then served on localhost and walked in a headless browser, at the width of
a desktop and of a phone"""

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urldefrag

import nbformat
import pytest
import yaml
from conftest import ROOT, copy_project
from test_notebooks import FETCHES, NOTEBOOKS

from tools.site import CFG, front_matter, page_name, ways_in

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
PAGES = [page_name(n) for n in NOTEBOOKS]
RULES = {
    "runOnly": ["wcag2a", "wcag2aa"],
    "resultTypes": ["violations"],
}  # axe's rules for WCAG 2 at the levels A and AA
LOOK = """() => ({
  links: [...document.querySelectorAll("a[href]")].map(a => a.href),
  ids: [...document.querySelectorAll("[id]")].map(e => e.id),
  unseen: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the site, built in a copy of the project"
    project = copy_project(tmp_path_factory.mktemp("site") / "project")
    env = os.environ | {"PYTHONPATH": str(project)}
    made = subprocess.run(
        [sys.executable, "-m", "tools.site"], cwd=project, env=env, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]  # so it is when a link is dead
    return project / "_docs"


def test_quarto_names_the_same_pages(site):
    """What Quarto would render: the same notebooks, each told the name that its page has in our
    own build"""
    told = {
        n: front_matter(nbformat.read(site.parent / "_proc" / n, 4))["output-file"]
        for n in NOTEBOOKS
    }
    assert told == {n: page_name(n).split("/")[-1] for n in NOTEBOOKS}


class Quiet(SimpleHTTPRequestHandler):
    "Serves files without a line of log for each"

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served, on localhost"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    "A headless Chromium; without one, the tests that need it are skipped"
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    "A new tab, and in `page.faults` what went wrong in it"
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.faults = []
    page.on(
        "console", lambda m: page.faults.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda e: page.faults.append(str(e)))
    page.on("requestfailed", lambda r: page.faults.append(r.url))
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith(("http://127.0.0.1:", "data:")) else page.faults.append(r.url)
        ),
    )
    yield page
    page.close()


def violations(page):
    "What axe finds wrong with a page: rule, and the first element"
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    found = axe.Axe().run(page, options=RULES).response["violations"]
    return {v["id"]: (len(v["nodes"]), v["nodes"][0]["html"][:120]) for v in found}


def test_built(site):
    "A page for each notebook, none of which asks another host for anything"
    assert {str(p.relative_to(site)) for p in site.rglob("*.html")} == set(PAGES)
    assert not [p for p in PAGES if FETCHES.search((site / p).read_text(encoding="utf-8"))]


def test_twins(site):
    "Each page says where its Markdown is, whose links lead to files; llms.txt lists them all"
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    for page in PAGES:
        twin = site / f"{page}.md"
        text, html = (p.read_text(encoding="utf-8") for p in (twin, site / page))
        assert text.startswith("# ") and f"]({page}.md): " in listed
        address = "../" * page.count("/") + f"{page}.md"
        assert f'<link rel="alternate" type="text/markdown" href="{address}">' in html
        prose = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.M | re.S)
        links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", prose)
        assert not [a for a in links if not (twin.parent / a).is_file()], page
    assert (site / "AGENTS.md").is_file()


@pytest.fixture(scope="module")
def seen():
    return {}


@pytest.mark.parametrize("name", PAGES)
def test_page(name, address, page, seen):
    """Nothing fails, every picture shows, it can be read by everyone, in light and dark, and on a
    phone"""
    page.goto(address + name)
    page.evaluate("() => Promise.all([...document.images].map(i => i.decode().catch(() => null)))")
    seen[address + name] = found = page.evaluate(LOOK)
    assert not page.faults and not found["unseen"]
    assert violations(page) == {}
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390, (
        "it must be pushed sideways on a phone"
    )
    assert not page.locator("#menu").get_attribute("open") and violations(page) == {}


def test_links(address, page, seen):
    "Every link and anchor of the pages leads somewhere"
    assert seen.keys() == {address + p for p in PAGES}, "run together with test_page"
    links = {link for found in seen.values() for link in found["links"] if link.startswith(address)}
    dead = []
    for link in links:
        target, anchor = urldefrag(link)
        if target in seen:
            dead += [link] * bool(anchor and anchor not in seen[target]["ids"])
        elif not page.request.get(target).ok:
            dead.append(link)
    assert len(links) > len(PAGES) and not dead


def test_quarto_opens_the_same_places(page):
    """Where Quarto renders the site, the script of _quarto.yml adds to its link to the source what
    our own pages have"""
    script = yaml.safe_load((ROOT / "_quarto.yml").read_text())["format"]["html"][
        "include-after-body"
    ][0]["text"]
    ways = {w["text"]: w["href"] for w in ways_in("tutorials/pipeline.ipynb")}
    page.set_content(
        f'<ul><li><a class="toc-action" href="{ways.pop("source")}">View '
        f'source</a></li></ul>{script}'
    )
    shown = page.eval_on_selector_all("a", "links => links.map(a => [a.textContent, a.href])")
    assert shown[0][0] == "View source" and dict(shown[1:]) == ways and len(ways) == 2


def test_search(address, page):
    "The name of a function leads to its heading"
    page.goto(address + "tutorials/pipeline.html")
    page.fill("#search", "ew_rewards")
    page.locator("#found a").first.click()
    page.wait_for_url("**/metrics.html#ew_rewards")
    assert not page.faults


def test_dark_is_kept(address, page):
    "The switch turns the page dark, and the next page is dark as well"
    page.goto(address + "index.html")
    shade = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(shade)
    page.click("#theme")
    dark = page.evaluate(shade)
    page.goto(address + "labels.html")
    assert light != dark == page.evaluate(shade) and page.inner_text("#theme") == "Light"


def test_ways_in(site):
    "Each page links to its notebook, where the settings say that the repository is"
    for name in NOTEBOOKS:
        text = (site / page_name(name)).read_text(encoding="utf-8")
        assert (
            f'href="{CFG.git_url}/blob/{CFG.branch}/nbs/{name}"' in text
            and f"/lab/tree/{name}" in text
        )

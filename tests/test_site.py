"""The site: built once, then served on localhost and walked in a headless browser, at the width of
a desktop and of a phone"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import lru_cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urldefrag

import nbformat
import pypandoc
import pytest
import yaml
from bs4 import BeautifulSoup, SoupStrainer
from conftest import ROOT, copy_project
from test_notebooks import FETCHES, NOTEBOOKS

from tools.pages import FILTER
from tools.site import CFG, HEADINGS, front_matter, page_name, ways_in
from tools.tracks import tracks

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
  unnamed: [...document.images].filter(i => !i.alt).map(i => i.src),
})"""
WRAPPED = """() => [...document.querySelectorAll("pre.sourceCode code")].filter(code => {
  const lines = code.textContent.trimEnd().split("\\n");
  const height = code.getBoundingClientRect().height;
  return Math.max(...lines.map(line => line.length)) <= 100
    && Math.round(height / parseFloat(getComputedStyle(code).lineHeight)) > lines.length;
}).map(code => code.textContent.slice(0, 100))"""   # code that a column of 1280 pixels breaks


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


@lru_cache(maxsize=2)
def main_part(path):
    "What a page says, parsed"
    text = path.read_text(encoding="utf-8")
    return BeautifulSoup(text, "html.parser", parse_only=SoupStrainer("main"))


def empty_headings(main):
    "Headings of a page with nothing below them, before the next one of their rank or its end"
    parts = main.find_all([*HEADINGS, "p", "pre", "table", "figure", "li", "img", "math", "script"])
    parts = [part for part in parts if "tracks" not in part.parent.get("class", [])]
    for heading, below in zip(parts, [*parts[1:], None]):
        if heading.name in HEADINGS and (
            below is None or below.name in HEADINGS and below.name <= heading.name
        ):
            yield heading.get_text()


def test_an_empty_heading_is_seen():
    page = "<h1>a</h1><h2>b</h2><h3>c</h3><p>d</p><h3>e</h3><h2>f</h2><p>g</p><h2>h</h2>"
    foot = "<div class='tracks'><p>i</p></div>"
    assert list(empty_headings(BeautifulSoup(page + foot, "html.parser"))) == ["e", "h"]


def words(tag):
    "The text of a part of a page, on one line"
    return " ".join(tag.get_text().split())


def code_blocks(main):
    "Texts of the code on a page"
    return [pre.get_text().strip() for pre in main.select("pre")]


@pytest.mark.parametrize("name", PAGES)
def test_no_heading_is_empty_and_nothing_is_shown_twice(name, site):
    "A signature is left out where the source follows"
    main = main_part(site / name)
    assert not list(empty_headings(main))
    blocks = code_blocks(main)
    signatures = [b for b in blocks if re.fullmatch(r"def \w+\(.*\)(->.*)?:", b, re.S)]
    named = [re.match(r"def (\w+)", block)[1] for block in signatures]
    others = "\n".join(block for block in blocks if block not in signatures)
    assert not [n for n in named if re.search(rf"^ *(?:def|class) {n}\b", others, re.M)]


@pytest.mark.parametrize("track", tracks())
def test_a_track_leads_on(track, site):
    "From its first page to its last, by the line at the foot; links of the sidebar lead to it"
    _, names = tracks()[track]
    for name, coming in zip(names, [*names[1:], None]):
        page = site / page_name(name)
        lines = main_part(page).select(".tracks p")
        (line,) = (line for line in lines if words(line.a) == track)
        if coming is None:
            assert words(line) == f"{track} ends here."
        else:
            target = (page.parent / line.find_all("a")[1]["href"]).resolve()
            assert target == (site / page_name(coming)).resolve()
        sidebar = page.read_text(encoding="utf-8").partition("<main")[0]
        assert f'<a href="{line.a["href"]}">{track}</a>' in sidebar


# Where Quarto renders the site. It is not in reach of the tests, so these ask for each fault that
# it once had whether what mends it is in place.

QUARTO = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
HTML = QUARTO["format"]["html"]
SCRIPT = HTML["include-after-body"][0]["text"]


def filtered(text, name="a.ipynb", quarto=True):
    "HTML of a page that site.lua has seen, as Quarto or our own build calls it"
    code = f"""quarto = {{ doc = {{ input_file = "/p/{name}" }}, project = {{ directory = "/p" }} }}
return dofile("{FILTER}")"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(code if quarto else f'return dofile("{FILTER}")')
        file.flush()
        options = ["--wrap=none", f"--lua-filter={file.name}", "--syntax-highlighting=none"]
        return pypandoc.convert_text(text, "html", "markdown", extra_args=options)


def test_quarto_takes_the_filter_the_fonts_and_the_tracks():
    "site.lua, and no font of another host (G); files that are there"
    assert HTML["filters"] == ["site.lua"] and FILTER == ROOT / "nbs/site.lua"
    assert "tracks.yml" in QUARTO["metadata-files"]
    for base, fonts in HTML["theme"].values():
        assert base in {"cosmo", "darkly"}
        assert "$web-font-path: false;" in (ROOT / "nbs" / fonts).read_text(encoding="utf-8")


def test_quarto_finds_the_card_from_every_folder():
    "(C) An address without a slash is taken from the folder of the page"
    for kind in ("open-graph", "twitter-card"):
        image = QUARTO["website"][kind]["image"]
        assert image.startswith("/") and (ROOT / "nbs" / image[1:]).is_file()


def test_added_links_are_indented_like_their_neighbours(page):
    "(B) Quarto puts an icon, if only an empty one, before each"
    page.set_content(
        '<ul><li><a class="toc-action" href="https://github.com/a/b/blob/main/nbs/c.ipynb">'
        f'<i class="bi bi-github"></i>View source</a></li></ul>{SCRIPT}'
    )
    assert page.locator("a").count() == page.locator("a > i.bi").count() == 3


def test_wide_things_do_not_push_a_page_of_quartos(page):
    "(F) Tables, formulas, long code in prose and long headings, on a phone; with space at the top"
    css = (ROOT / "nbs/styles.css").read_text(encoding="utf-8")
    word = "a_name_without_an_end" * 5
    cells = "".join(f"<td>{word}</td>" for _ in range(4))
    page.set_viewport_size({"width": 390, "height": 844})
    page.set_content(
        f"<style>{css}</style><main>"
        "<header id='title-block-header' class='quarto-title-block default'><h1>t</h1></header>"
        f"<h3>{word}</h3><ul><li><code>{word}</code></li></ul>"
        f"<table><tr>{cells}</tr></table>"
        f"<math display='block'><mi>{word * 3}</mi></math></main>"
    )
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    header = page.locator("header")
    assert header.evaluate("e => getComputedStyle(e).marginBottom") == "16px"


@pytest.mark.parametrize("quarto", [True, False])
def test_filter_mends_links_code_and_pictures(quarto):
    """(A) a method's link, no link to a private name, (D) links in code, (E) a text for each
    picture; no warnings"""
    html = filtered(
        "[x](model.html#affectgpt.predict) [`_y`](model.html#_y)\n\n"
        "```python\nx, # From [`load`](https://a.b/c.html#load)\n```\n\n![](p.png)\n\n![cap](q.png)"
        "\n\n::: {.cell-output .cell-output-stderr}\nUserWarning\n:::\n",
        quarto=quarto,
    )
    soup = BeautifulSoup(html, "html.parser")
    assert [a["href"] for a in soup.find_all("a")] == ["model.html#affectgpt"]
    assert "_y" in html and "UserWarning" not in html
    assert soup.pre.get_text().strip() == "x, # From `load`"
    key = "data-fig-alt" if quarto else "alt"
    texts = [image.get(key) for image in soup.find_all("img")]
    assert texts == ["What the code above draws", "cap"]


def test_filter_leaves_signatures_without_source_alone():
    symbol = "[source](x)\n\n### {0}\n\n```python\ndef {0}(\n    a, # b\n):\n```\n\n*said*\n\n"
    source = "```python\nclass one:\n    def two(self): pass\n```"
    html = filtered("".join(map(symbol.format, ("one", "one.two", "three"))) + source)
    code = code_blocks(BeautifulSoup(html, "html.parser"))
    assert len(code) == 2 and code[0].startswith("def three(") and code[1].startswith("class one")


def test_filter_leads_on_under_quarto():
    "Which names a page by the path of its notebook"
    text = (ROOT / "nbs/tracks.yml").read_text(encoding="utf-8")
    html = filtered(f"---\n{text}\n---\n\nText", name="tutorials/claims.ipynb")
    lines = BeautifulSoup(html, "html.parser").select(".tracks p")
    assert [line.get_text() for line in lines][:2] == [
        "Half an hour ends here.", "An evening ends here."
    ]
    assert lines[2].find_all("a")[1]["href"].startswith("../tutorials/")


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
    assert not page.faults and not found["unseen"] and not found["unnamed"]
    assert not page.evaluate(WRAPPED), "code does not fit its column"
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
    ways = {w["text"]: w["href"] for w in ways_in("tutorials/pipeline.ipynb")}
    page.set_content(
        f'<ul><li><a class="toc-action" href="{ways.pop("source")}">View '
        f"source</a></li></ul>{SCRIPT}"
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

"""The site without Quarto: nbdev processes the notebooks, pandoc renders them

python -m tools.site
"""

import html
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import yaml
from bs4 import BeautifulSoup, SoupStrainer
from nbdev.config import get_config
from nbdev.serve import proc_nbs

from tools.notebooks import ROOT
from tools.pages import HERE, inline_code, to_html, to_markdown, write_files
from tools.tracks import page_list, page_name

CFG = get_config(path=ROOT)
TRACKS = yaml.safe_load(page_list())
OUT = ROOT / CFG.doc_path.name
HOST = f"{CFG.doc_host}{CFG.doc_baseurl}/"
LAB = "http://localhost:8888/lab/tree/"
COLAB = CFG.git_url.replace("https://github.com/", "https://colab.research.google.com/github/")
HEADINGS = ["h1", "h2", "h3", "h4"]
SAID = SoupStrainer("main")


def sidebar():
    "The sidebar of _quarto.yml: pairs of a part's name and its entries, each with its `href`"
    contents = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    loose = [entry for entry in contents if "href" in entry]
    named = [(entry["section"], entry["contents"]) for entry in contents if "section" in entry]
    as_entry = [(part, [e if "href" in e else {"href": e} for e in found]) for part, found in named]
    return [("", loose), *as_entry]


def chapters():
    "The notebooks of the sidebar: pairs of a part's name and its notebooks"
    parts = ((part, [entry["href"] for entry in entries]) for part, entries in sidebar())
    named = ((part, [name for name in names if name.endswith(".ipynb")]) for part, names in parts)
    return [(part, names) for part, names in named if names]


def front_matter(nb):
    "The title and description that nbdev wrote into the first cell"
    return (
        yaml.safe_load(nb.cells[0].source.strip().strip("-"))
        if nb.cells[0].cell_type == "raw"
        else {}
    )


def relative_links(text, root):
    "Links to the site's address and to notebooks as links between the pages"
    text = text.replace(HOST, root)
    link = r"\]\((?!https?:)([^)#\s]+\.ipynb)(?=[)#])"
    return re.sub(link, lambda m: f"]({page_name(m[1])}", text)


def dead_links():
    "Links of the pages that lead to no file or anchor of the site"
    pages = {p: p.read_text() for p in OUT.rglob("*.html")}
    for page, text in pages.items():
        for href in re.findall(r'(?:href|src)="(?!https?:|data:|mailto:)([^"]+)"', text):
            name, _, anchor = href.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.is_file():
                yield f"{page.relative_to(OUT)}: {href}"
            elif anchor and f'id="{anchor}"' not in pages.get(target, ""):
                yield f"{page.relative_to(OUT)}: {href}"


def ways_in(name):
    "Links that open a notebook: its source, and the places to run it"
    return [
        {"text": "source", "href": f"{CFG.git_url}/blob/{CFG.branch}/nbs/{name}"},
        {
            "text": "JupyterLab",
            "href": LAB + name,
            "hint": "on your machine, while make lab is running",
        },
        {"text": "Colab", "href": f"{COLAB}/blob/{CFG.branch}/nbs/{name}"},
    ]


def sections(page):
    "What the search finds on a page: each heading with the prose below it"
    text = re.sub(r"<pre.*?</pre>", "", (OUT / page).read_text(encoding="utf-8"), flags=re.S)
    soup = BeautifulSoup(text[text.index("<main") :], "html.parser", parse_only=SAID)
    for links in soup.select(".open, .tracks"):
        links.decompose()
    title, found = soup.h1.get_text(), []
    for part in soup.main.find_all([*HEADINGS, "p", "li", "td", "figcaption"]):
        text = " ".join(part.get_text().split())
        if part.name not in HEADINGS:
            found[-1]["text"] += text + " "
        else:
            found.append(
                {
                    "page": title,
                    "heading": text,
                    "href": page + f"#{part.get('id')}" * (part.name != "h1"),
                    "text": "",
                }
            )
    return found


def link(
    found,  # An entry of the sidebar
    entry,  # Notebook -> title and address in the navigation
    name,  # The notebook of the page
):
    "An entry as page.html takes it: title, address, and whether it is this page"
    if found["href"] not in entry:  # a place on a page
        return {"href": found["href"].removeprefix("/"), "title": found["text"]}
    return entry[found["href"]] | ({"here": True} if found["href"] == name else {})


def frame(
    name,  # The notebook
    entry,  # Notebook -> title and address in the navigation
    about,  # Notebook -> its front matter
):
    "What page.html puts around the text of a page"
    names, page = list(entry), entry[name]["href"]
    at, title, text = (
        names.index(name),
        about[name]["title"].replace("`", ""),
        about[name]["description"],
    )
    neighbours = {"previous": names[at - 1 : at], "next": names[at + 1 : at + 2]}
    parts = [
        {"name": part, "pages": [link(found, entry, name) for found in group]}
        for part, group in sidebar()
    ]
    return {k: entry[n] for k, found in neighbours.items() for n in found} | {
        "title": title,
        "subtitle": inline_code(text),
        "description": html.escape(text.replace("`", "")),
        "site": CFG.title * (title != CFG.title),
        "brand": CFG.title,
        "host": HOST,
        "address": HOST + page,
        "here": page,
        "open": ways_in(name),
        "root": "../" * page.count("/"),
        "parts": parts,
    }


def build():
    "Render every chapter into the folder of the site"
    cache = Path(proc_nbs(n_workers=0, force=True))
    nbs = {n: nbformat.read(cache / n, 4) for _, part in chapters() for n in part}
    about = {
        n: {"title": Path(n).stem, "description": ""} | front_matter(nb) for n, nb in nbs.items()
    }
    entry = {
        n: {
            "href": page_name(n),
            "title": "Home" if n == CFG.readme_nb else about[n]["title"].replace("`", ""),
        }
        for n in nbs
    }
    shutil.rmtree(OUT, ignore_errors=True)
    pictures = [p for p in CFG.nbs_path.rglob("*") if p.suffix in {".png", ".svg", ".jpg", ".gif"}]
    write_files({p.relative_to(CFG.nbs_path): p.read_bytes() for p in pictures}, OUT)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # pandoc works while Python prepares the next
        made = []
        for name, nb in nbs.items():
            page, around = OUT / entry[name]["href"], frame(name, entry, about)
            known = {"notebook": name, **TRACKS}
            text, images = to_markdown(nb, files=f"{page.stem}_files")
            write_files(images, page.parent)
            body = relative_links(text, around["root"])
            made.append(pool.submit(to_html, body, page, around, metadata=known))
        for page in made:
            page.result()
    for name in ("page.css", "page.js"):
        shutil.copy(HERE / name, OUT)
    index = [s for n in nbs for s in sections(entry[n]["href"])]
    (OUT / "search.js").write_text(
        f"window.sections = {json.dumps(index, ensure_ascii=False)}\n", encoding="utf-8"
    )
    return OUT / "index.html"


if __name__ == "__main__":
    from tools.twins import write_twins  # it needs what is defined above

    index = build()
    write_twins()
    if dead := list(dead_links()):
        sys.exit("Dead links:\n  " + "\n  ".join(dead))
    print(f"The site: {index}")

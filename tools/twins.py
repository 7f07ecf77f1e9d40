"""The site for programs: a Markdown twin beside each page, and llms.txt, which lists them

python -m tools.twins    # after nbdev_docs, where Quarto builds the site; tools.site calls it
"""

import re
import shutil
from pathlib import Path

import nbformat

from tools.notebooks import ROOT
from tools.pages import TEMPLATE, to_markdown, write_files
from tools.site import CFG, HOST, OUT, chapters, front_matter, page_name, relative_links

TABLE = r"""{% block data_html %}
{% set text, html = output.data['text/plain'], output.data['text/html'] %}
{% if not text.startswith('<') %}{{ plain(text) }}{% elif '<table' in html %}{{ html }}{% endif %}
{% endblock %}"""
TWIN = re.sub(
    r"{% block data_html %}.*?{% endblock %}", lambda _: TABLE, TEMPLATE, flags=re.S
).replace(" {.output}", "")
ABOUT = """The package scores open-vocabulary emotion answers with the emotion-wheel metric (numpy
and pandas are enough), and trains models with GRPO on that metric. Each page below is a notebook
with its outputs, as Markdown."""


def plain_names(text):
    "Markdown with names in code without their links, and links to methods as links to their class"
    fence = re.compile(r"^(`{3,})python\n.*?^\1$", re.M | re.S)
    text = fence.sub(lambda m: re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", m[0]), text)
    return re.sub(r"(\.html#\w+)\.[\w.]+(?=\))", r"\1", text)


def twin(
    nb,  # A notebook that nbdev has processed; its directives are carried out in place
    name,  # Its path below nbs/
):
    "A page as Markdown, and its images by name; links lead to twins"
    page, about = page_name(name), front_matter(nb)
    text, images = to_markdown(nb, files=f"{Path(page).stem}_files", template=TWIN)
    text = relative_links(plain_names(text), "../" * page.count("/"))
    text = re.sub(r"\]\((?![a-z]+:)([^)#\s]+\.html)(?=[)#])", r"](\1.md", text)
    text = re.sub(r"<!-- WARNING: .*? -->\s*", "", text)   # nbdev's, for who would edit the page
    head = f"# {about['title']}\n\n> {about.get('description', '')}\n\n"
    return f"{head}Page: {HOST}{page} · Notebook: nbs/{name}\n\n{text}", images


def llms_txt(
    about,  # Notebook -> its front matter
):
    "The list of all twins, by the parts of the sidebar"
    lines = [f"# {CFG.title}\n", f"> {CFG.description}\n", f"{ABOUT}\n"]
    lines += ["- [AGENTS.md](AGENTS.md): ten commands, the library in a few lines, house rules"]
    for part, names in chapters():
        lines += [f"\n## {part}\n"] if part else []
        for name in names:
            title, text = about[name]["title"], about[name].get("description", "")
            lines.append(f"- [{title.replace('`', '')}]({page_name(name)}.md): {text}")
    return "\n".join(lines) + "\n"


def write_twins(proc=ROOT / "_proc"):
    "Write them into the folder of the site, from the notebooks that nbdev has processed"
    nbs = {n: nbformat.read(proc / n, 4) for _, part in chapters() for n in part}
    about = {n: front_matter(nb) for n, nb in nbs.items()}
    for name, nb in nbs.items():
        text, images = twin(nb, name)
        page = OUT / f"{page_name(name)}.md"
        write_files(images | {page.name: text.encode()}, page.parent)
    (OUT / "llms.txt").write_text(llms_txt(about), encoding="utf-8")
    shutil.copy(ROOT / "AGENTS.md", OUT)


if __name__ == "__main__":
    write_twins()

"""Notebooks to Markdown, and Markdown to HTML with pandoc: what the site, the report and the
README share"""

import html
import re
import subprocess
import tempfile
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import pypandoc
import yaml
from nbconvert import MarkdownExporter
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String
from pygments.util import ClassNotFound

from tools.notebooks import ROOT, directives

HERE = Path(__file__).resolve().parent
FILTER = ROOT / "nbs/site.lua"  # Quarto takes the same
WIDGET = "application/vnd.jupyter.widget-view+json"
PANDOC = "markdown+lists_without_preceding_blankline"
TEMPLATE = """{%- extends 'markdown/index.md.j2' -%}
{% block input %}{% if cell.source %}{% if cell.metadata.fold %}
<details open><summary>{{ cell.metadata.fold }}</summary>
{% endif %}
`````python
{{ cell.source }}
`````
{% if cell.metadata.fold %}
</details>
{% endif %}{% endif %}{% endblock %}
{% macro plain(text) %}
{{ text | fence }} {.output}
{{ text }}
{{ text | fence }}
{% endmacro %}
{% block stream %}{{ plain(output.text.rstrip()) }}{% endblock %}
{% block data_text %}{{ plain(output.data['text/plain']) }}{% endblock %}
{% block error %}{{ plain(output.ename ~ ': ' ~ output.evalue) }}{% endblock %}
{% block data_html %}
{{ output.data['text/html'] | fence }}{=html}
<div class="table">{{ output.data['text/html'] }}</div>
{{ output.data['text/html'] | fence }}
{% endblock %}
{% block data_png %}
![{{ cell.metadata.caption }}]({{ output.metadata.filenames['image/png']
}}){% if cell.metadata.label %}{{ '{#' ~ cell.metadata.label ~ '}' }}{% endif %}

{% endblock %}"""


def shown(output):
    """Is this output for the reader? Not so: what went to stderr, and live widgets such as
    progress bars"""
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def prepare(nb, code=True):
    "`nb` with its `#|` directives carried out; without its code where `code` is false"
    figures, cells = {}, []
    for cell in nb.cells:
        if cell.cell_type == "raw":
            continue
        if cell.cell_type == "code":
            opts = directives(cell.source)
            if {"hide", "export", "exporti", "default_exp"} & opts.keys() or opts.get(
                "include"
            ) == "false":
                continue
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
            if not code or opts.get("echo") == "false":
                cell.source = ""
            cell.outputs = [o for o in cell.outputs if shown(o) and opts.get("output") != "false"]
            for o in cell.outputs:
                if "text/html" in o.get("data", {}):
                    o.data["text/html"] = re.sub(
                        r"<style.*?</style>\s*", "", o.data["text/html"], flags=re.S
                    )
                if "text" in o:
                    o.text = re.sub(r"\x1b\[[0-9;]*m", "", o.text)
            label, caption = opts.get("label", ""), opts.get("fig-cap", "")
            if label:
                figures[label] = len(figures) + 1
            if caption and label:
                caption = f"Figure {figures[label]}. {caption}"
            cell.metadata.update(label=label, caption=caption, fold=opts.get("code-summary", ""))
        cells.append(cell)
    for cell in cells:
        if cell.cell_type != "markdown":
            continue
        cell.source = re.sub(
            r"@(fig-[\w-]*\w)", lambda m: f"[Figure {figures.get(m[1], '?')}](#{m[1]})", cell.source
        )
    nb.cells, nb.metadata["language_info"] = cells, {"name": "python"}
    return nb


def fence(text):
    "Backticks that are longer than any in `text`, so that nothing in it ends the block"
    return "`" * max(5, 1 + max(map(len, re.findall("`+", text)), default=0))


@lru_cache
def exporter(template):
    "nbconvert's, which takes longer to make than to use"
    made = MarkdownExporter(raw_template=template)
    made.register_filter("fence", fence)
    return made


def to_markdown(
    nb,  # A notebook; its directives are carried out in place
    files="files",  # The folder that the images' names begin with
    code=True,  # Keep the code?
    template=TEMPLATE,  # How cells are written, on top of nbconvert's template
):
    "The notebook as Markdown, and its images by name"
    text, resources = exporter(template).from_notebook_node(
        prepare(nb, code), resources={"output_files_dir": files}
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", resources["outputs"]


def inline_code(text):
    "Text for HTML, with `words` in backticks as code"
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def write_files(files, folder):
    "Write images given by name into `folder`"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


CODE = r'<pre class="([\w-]+)"><code>(.*?)</code></pre>'
CLASSES = {  # kind of token -> its class in page.css, as pandoc names it; the first that fits
    Comment: "co",
    String: "st",
    Number.Float: "fl",
    Number: "dv",
    Keyword.Namespace: "im",
    Keyword: "kw",
    Operator.Word: "kw",
    Name.Builtin: "bu",
    Name.Function: "fu",
    Name.Class: "fu",
    Name.Decorator: "at",
}


@lru_cache(maxsize=10_000)
def token_class(kind):
    "The class of a kind of token; None for plain text"
    return next((name for of, name in CLASSES.items() if kind in of), None)


def highlight(block):
    "A block of code, as a match of `pre`, class and text, with its tokens in colour"
    language, code = block.groups()
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return block[0]
    tokens, spans = lexer.get_tokens(html.unescape(code)), []
    for name, group in groupby(tokens, key=lambda token: token_class(token[0])):
        text = html.escape("".join(text for _, text in group))
        spans.append(f'<span class="{name}">{text}</span>' if name else text)
    return f'<pre class="sourceCode {language}"><code>{"".join(spans)}</code></pre>'


def to_html(
    markdown,  # The body of the page
    out,  # The file to write
    variables,  # What page.html fills in: title, subtitle, …
    resources=None,  # A folder with the images: embed them, and the style, in the one file
    metadata=None,  # What site.lua looks up: the notebook, and the tracks
):
    "Write a page with our template"
    options = {
        "standalone": True,
        "table-of-contents": True,
        "toc-depth": 3,
        "template": str(HERE / "page.html"),
        "html-math-method": {"method": "mathml"},
        "syntax-highlighting": "none",  # pandoc's own takes four fifths of its time
        "variables": variables,
        "metadata": metadata or {},
        "filters": [str(FILTER)],
    }
    if resources:
        options |= {"embed-resources": True, "resource-path": [str(resources), str(HERE)]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as f:
        yaml.safe_dump(options, f)
        f.flush()
        command = [pypandoc.get_pandoc_path(), "--defaults", f.name, "--quiet"]
        page = subprocess.run(
            [*command, "--from", PANDOC, "--to", "html5"],
            input=markdown,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
        ).stdout
    out.write_text(re.sub(CODE, highlight, page, flags=re.S), encoding="utf-8")
    return out

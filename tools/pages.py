"""Notebooks to Markdown, and Markdown to HTML with pandoc: what the site, the report and the
README share"""

import html
import re
import tempfile
from pathlib import Path

import pypandoc
import yaml
from nbconvert import MarkdownExporter

from tools.notebooks import directives

HERE = Path(__file__).resolve().parent
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
{% macro attributes(meta) %}
{{- '{' ~ ('#' ~ meta.label if meta.label else '')
    ~ ('' if meta.caption else ' alt="What the code above draws"') ~ '}'
    if meta.label or not meta.caption -}}
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
}}){{ attributes(cell.metadata) }}
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


def to_markdown(
    nb,  # A notebook; its directives are carried out in place
    files="files",  # The folder that the images' names begin with
    code=True,  # Keep the code?
    template=TEMPLATE,  # How cells are written, on top of nbconvert's template
):
    "The notebook as Markdown, and its images by name"
    exporter = MarkdownExporter(raw_template=template)
    exporter.register_filter("fence", fence)
    text, resources = exporter.from_notebook_node(
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


def to_html(
    markdown,  # The body of the page
    out,  # The file to write
    variables,  # What page.html fills in: title, subtitle, …
    resources=None,  # A folder with the images: embed them, and the style, in the one file
):
    "Write a page with our template"
    options = {
        "standalone": True,
        "table-of-contents": True,
        "toc-depth": 3,
        "template": str(HERE / "page.html"),
        "html-math-method": {"method": "mathml"},
        "variables": variables,
    }
    if resources:
        options |= {"embed-resources": True, "resource-path": [str(resources), str(HERE)]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as f:
        yaml.safe_dump(options, f)
        f.flush()
        page = pypandoc.convert_text(
            markdown, "html5", format=PANDOC, extra_args=["--defaults", f.name, "--quiet"]
        )
    out.write_text(
        re.sub(r'<a href="#cb[\d-]+"[^>]*></a>', "", page), encoding="utf-8"
    )  # pandoc's anchor at each line of code
    return out

"""README.md from nbs/index.ipynb, outputs included

python -m tools.readme
"""

import re
import shutil

import nbformat

from tools.notebooks import ROOT
from tools.pages import to_markdown, write_files

INDEX = ROOT / "nbs/index.ipynb"
TEMPLATE = """{%- extends 'markdown/index.md.j2' -%}
{% block input %}{% if cell.source %}{{ super() }}{% endif %}{% endblock %}
{% block data_png %}![{{ cell.metadata.caption }}]({{ output.metadata.filenames['image/png'] }})

*{{ cell.metadata.caption }}*
{% endblock %}"""


def readme(index=INDEX):
    """The text of README.md, and its images by name; links are made to start at the root of the
    repository"""
    text, images = to_markdown(nbformat.read(index, 4), files="index_files", template=TEMPLATE)
    text = re.sub(r"\]\((?![a-z]+:|#)", "](nbs/", text)
    return re.sub(r'(<img[^>]*src=")(?![a-z]+:)', r"\1nbs/", text), images


if __name__ == "__main__":
    markdown, files = readme()
    (ROOT / "README.md").write_text(markdown, encoding="utf-8")
    shutil.rmtree(INDEX.parent / "index_files", ignore_errors=True)
    write_files(files, INDEX.parent)
    print(f"README.md: {len(markdown.splitlines())} lines, {len(files)} images")

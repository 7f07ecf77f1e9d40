"""AGENTS.md, llms.txt and the Markdown twins: what they say is so, and answers what users ask"""

import re
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT

from tools.pages import CODE, highlight
from tools.site import chapters, page_name
from tools.twins import llms_txt, twin

AGENTS = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
QUESTIONS = [  # what a user asks; which file answers it; what the answer says
    ("What do I install to score?", "agents", r"`pip install \.` \| what scoring needs: numpy"),
    ("How do I score a file of answers?", "agents", r"`affectgpt-r1 score GOLD PRED --json`"),
    ("How do I write a file for a challenge?", "agents", r"`affectgpt-r1 submit \S+ \S+ --out"),
    ("What is wrong with my data?", "agents", r"`affectgpt-r1 check-data --human FOLDER:TRACK`"),
    ("How do I get a reward for trl?", "agents", r'make_rewards\("acc\+format", .* # as trl takes'),
    ("Which function gives an interval?", "agents", r"ew_interval\(gold, pred, .* # 95 %"),
    ("Why is a neutral clip not scored?", "agents", r"\*neutral\* gold is never\s+scored"),
    ("Which file do I edit?", "agents", r"Edit notebooks, never `affectgpt_r1/\*\.py`"),
    ("Where do I read about rewards?", "llms", r"\[Rewards\]\(rewards\.html\.md\)"),
    ("How do I try a clip of my own?", "llms", r"\(tutorials/your_video\.html\.md\): .*clip"),
]


def processed(name):
    "A notebook with the front matter that nbdev makes of its first cell"
    nb = nbformat.read(ROOT / "nbs" / name, 4)
    i = next(i for i, c in enumerate(nb.cells) if c.cell_type == "markdown")
    title, _, text = nb.cells.pop(i).source.strip().partition("\n\n> ")
    text = text.replace('"', '\\"')
    front = f'---\ntitle: "{title[2:]}"\ndescription: "{text}"\n---'
    nb.cells.insert(0, nbformat.v4.new_raw_cell(front))
    return nb


@pytest.fixture(scope="module")
def llms():
    "llms.txt, from the titles of the notebooks"
    about = {}
    for _, names in chapters():
        for name in names:
            cells = nbformat.read(ROOT / "nbs" / name, 4).cells
            first = next(c.source for c in cells if c.cell_type == "markdown")
            title, _, text = first.strip().partition("\n\n> ")
            about[name] = {"title": title[2:], "description": text}
    return llms_txt(about)


@pytest.mark.parametrize("question, file, answer", QUESTIONS)
def test_questions(question, file, answer, llms):
    "Ten questions of users, answered from the two files alone"
    assert re.search(answer, {"agents": AGENTS, "llms": llms}[file])


def test_llms_txt_lists_every_page(llms):
    names = [n for _, part in chapters() for n in part]
    assert re.findall(r"^- .*\]\((.*)\.md\): \S", llms, re.M) == ["AGENTS", *map(page_name, names)]
    assert re.match(r"# \S.*\n\n> \S", llms)


def test_the_lines_of_python_run(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```$", AGENTS, re.M | re.S)
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def helped(*words):
    "What the command line says about itself"
    command = [sys.executable, "-m", "affectgpt_r1", *words, "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_ten_commands_exist():
    "Each with its options; targets of make, too"
    rows = re.findall(r"^\| `(.*?)` \| .+ \|$", AGENTS, re.M)
    assert len(rows) == 10
    everything, targets = helped(), (ROOT / "Makefile").read_text()
    for words in map(str.split, rows):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", targets, re.M)
        elif words[0] == "affectgpt-r1":
            assert re.search(rf"^ +{words[1]}\b", everything, re.M), words[1]
            text = helped(words[1])
            assert all(w in text for w in words if w.startswith("--"))


def test_files_named_exist():
    "Paths in AGENTS.md"
    for path in re.findall(r"`((?:nbs|tools|tests)/[\w./]*|[A-Z]+\.md)`", AGENTS):
        assert (ROOT / path).exists(), path


def test_code_in_colour_stays_text():
    "Signs of HTML are escaped, quotes too; no link comes of a string"
    code = 'x = &quot;&lt;a href=1&gt;&quot;  # src=&quot;y&quot;'
    block = f'<pre class="python"><code>{code}\n</code></pre>'
    shown = re.sub(CODE, highlight, block, flags=re.S)
    assert '<span class="st">&quot;&lt;a href=1&gt;&quot;</span>' in shown
    assert '<span class="co"># src=&quot;y&quot;</span>' in shown and "<a" not in shown


def test_a_twin():
    "Title, prose, code, tables as text and links to other twins; no script, no options of cells"
    text, images = twin(processed("03_metrics.ipynb"), "03_metrics.ipynb")
    assert text.startswith("# Metrics\n\n> Score open-vocabulary answers")
    assert "(wheels.html.md)" in text and "constant_baseline  0." in text and "Styler" not in text
    assert not re.search(r"^#\||\.ipynb\)|<script|<style", text, re.M)
    assert all(f"]({name})" in text for name in images)
    text, _ = twin(processed("tutorials/play.ipynb"), "tutorials/play.ipynb")
    assert "(../metrics.html.md)" in text and len(text) < 10_000   # not the page's own code

"""The notebooks: in step with the library and the README, clean, with fresh outputs; every one of
them runs"""

import html
import json
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from tools.kernels import forked_kernels
from tools.measure import lesson_rates, long_lines, measure
from tools.measure import chapters as lessons
from tools.notebooks import OFFLINE, run_notebook
from tools.readme import INDEX, readme
from tools.site import chapters
from tools.tutorial import main

NBS = ROOT / "nbs"
NOTEBOOKS = sorted(
    str(p.relative_to(NBS)) for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
)
PIPELINE = "tutorials/pipeline.ipynb"
FETCHES = re.compile(
    r"""@import|(?:src|srcset)=["']?(?:https?:)?//|<link[^>]*href=["']?(?:https?:)?//|url\(["']?(?:https?:)?//"""
)
BIN = os.path.dirname(sys.executable)


def tree(folder, pattern):
    "The bytes of a folder's files, by name"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern))}


def changed(before, after):
    "Names of the files that are not the same in both"
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def nbdev(command, folder):
    "Run one of nbdev's commands in a copy of the project"
    subprocess.run([f"{BIN}/{command}"], cwd=folder, check=True, capture_output=True)


def test_library_in_step(scratch):
    package = scratch / "affectgpt_r1"
    for module in package.glob("*.py"):
        if module.name != "__init__.py":
            module.unlink()
    nbdev("nbdev_export", scratch)
    assert not changed(tree(ROOT / "affectgpt_r1", "*.py"), tree(package, "*.py")), (
        "run nbdev_export"
    )


def test_notebooks_clean(scratch):
    nbdev("nbdev_clean", scratch)
    assert not changed(tree(NBS, "*.ipynb"), tree(scratch / "nbs", "*.ipynb")), "run nbdev_clean"


def test_readme_in_step():
    text, images = readme()
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "run make readme"
    assert all((INDEX.parent / name).read_bytes() == content for name, content in images.items()), (
        "run make readme"
    )


def test_every_notebook_is_a_chapter():
    assert sorted(name for _, part in chapters() for name in part) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_title(name):
    """nbdev turns the title's cell into front matter: other prose in that cell would be lost from
    the site"""
    cells = nbformat.read(NBS / name, 4).cells
    title = next(c.source.strip() for c in cells if c.cell_type == "markdown")
    alone = re.fullmatch(r"# \S.*\n\n> \S.*", title) is not None
    assert alone, (
        "the first cell holds a title, a blank line and one line of subtitle; what "
        "follows needs a cell of its own"
    )


# How a page reads: the table of the book is printed by `python -m tools.measure`


@pytest.mark.parametrize("path", lessons(), ids=lambda p: p.stem)
def test_a_chapter_is_no_longer_than_a_lesson(path):
    page = measure(path)
    assert page.cells <= 60, "move what the story does not need to nbs/machinery"
    assert page.minutes <= 45


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_lines_fit_the_page(name):
    "At most 100 characters: code, prose, captions and tables"
    assert not long_lines(nbformat.read(NBS / name, 4).cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_long_page_has_an_example(name):
    page = measure(NBS / name)
    assert page.words <= 600 or page.examples


@pytest.mark.parametrize("rate, least", dict(outputs=0.6, asserting=0.3, words=3).items())
def test_lessons_show_and_assert(rate, least):
    "Over the chapters together: outputs and assertions a visible cell, words a line of code"
    assert lesson_rates([measure(path) for path in lessons()])[rate] >= least


def test_what_is_measured(tmp_path):
    "What the site shows counts, and cells, which are never hidden from who opens the notebook"
    new, picture = nbformat.v4, nbformat.v4.new_output("display_data", {"image/png": ""})
    code = {
        "#| hide\nassert x": [picture],
        "#| export\nx = 1": [],
        "#| exports\ndef f(): pass\n\n# why": [],
        "#| echo: false\nplot()": [picture],
        "test_eq(f(), 1)\n" + "x" * 101: [new.new_output("stream", text="1")],
    }
    text = "For example, words.\n\n## Exercises\n\n1. One.\n2. Two."
    cells = [new.new_markdown_cell(text), new.new_markdown_cell("word\n" * 171)]
    cells += [new.new_code_cell(source, outputs=out) for source, out in code.items()]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "x.ipynb")
    (tmp_path / "solutions").mkdir()
    solved = new.new_notebook(cells=[new.new_markdown_cell("## 1. One")])
    nbformat.write(solved, tmp_path / "solutions/x.ipynb")
    page = measure(tmp_path / "x.ipynb")
    assert (page.words, page.cells, page.visible, page.lines, page.long) == (180, 5, 2, 4, 1)
    assert (page.outputs, page.figures, page.asserting, page.examples) == (2, 1, 1, 1)
    assert (page.exercises, page.solved) == (2, 1) and page.minutes == pytest.approx(1 + 4 / 14)
    rates = lesson_rates([page, page])
    assert rates == dict(outputs=1, asserting=0.5, words=45)


def kinds(cell):
    """What a cell shows: printed text, or the richest form of a result; warnings and progress bars
    do not count"""
    res = set()
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        if any("widget" in mime for mime in data):
            continue
        if o.output_type == "stream":
            res |= {o.name} - {"stderr"}
        else:
            res.add(
                next(
                    (m for m in ("image/png", "text/html", "text/markdown") if m in data),
                    o.output_type,
                )
            )
    return res


NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
# What comes of training depends on the processor.
TRAINING = re.compile(r"\b(cold_start|train_grpo|train_towers|cold_started_toy)\(")


def said(cell):
    "The text that a cell shows: what it prints, and its tables"
    text = []
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        if o.output_type == "stream":
            text.append(o.text if o.name == "stdout" else "")
        elif "text/html" in data:
            text.append(re.sub(r"<style.*?</style>|<[^>]+>", " ", data["text/html"], flags=re.S))
        elif not any("widget" in mime or mime == "image/png" for mime in data):
            text.append(data.get("text/plain", ""))
    return " ".join(" ".join(text).split())


def alike(one, two):
    "The same words, and numbers within a twentieth, or 0.02?"
    a, b = (np.array([float(x.replace(",", "")) for x in NUMBER.findall(t)]) for t in (one, two))
    return NUMBER.sub("#", one) == NUMBER.sub("#", two) and np.allclose(a, b, rtol=0.05, atol=0.02)


def stale(ran, name):
    "Code of the cells that showed something else when run than what is stored"
    stored = {c.id: c for c in nbformat.read(NBS / name, 4).cells}
    pairs = [(c, stored[c.id]) for c in ran.cells if c.cell_type == "code" and c.id in stored]
    other = [c.source for c, old in pairs if kinds(c) != kinds(old)]
    if any(TRAINING.search(c.source) for c, _ in pairs):
        return other
    return other + [c.source for c, old in pairs if not alike(said(c), said(old))]


def test_stored_outputs_are_compared():
    """A number that moved is seen, one that moved a little is not; so are a word, a table and a
    figure that is gone"""

    def outputs(text, html="<td>1</td>", mime="image/png"):
        new = nbformat.v4.new_output
        return [
            new("stream", text=text),
            new("display_data", {"text/html": html, "text/plain": "x"}),
            new("display_data", {mime: ""}),
        ]

    old, same, number, word, table, figure = (
        nbformat.v4.new_code_cell("f()", outputs=outputs(*x))
        for x in (
            ["F 0.500 of 1,000 clips"],
            ["F 0.510 of 1,001 clips"],
            ["F 0.560 of 1,000 clips"],
            ["P 0.500 of 1,000 clips"],
            ["F 0.500 of 1,000 clips", "<td>2</td>"],
            ["F 0.500 of 1,000 clips", "<td>1</td>", "text/plain"],
        )
    )
    assert alike(said(same), said(old)) and kinds(same) == kinds(old)
    assert not any(alike(said(x), said(old)) for x in (number, word, table)) and kinds(
        figure
    ) != kinds(old)


@pytest.fixture(scope="session")
def kernels():
    "Kernels forked from a process that has the large libraries loaded already"
    with forked_kernels():
        yield


@pytest.mark.parametrize("name", [n for n in NOTEBOOKS if n != PIPELINE])
def test_runs(name, project, tmp_path, monkeypatch, kernels):
    "From top to bottom, and what it shows is what is stored in it"
    monkeypatch.setenv("PYTHONPATH", str(project))
    ran = run_notebook(project / "nbs" / name, tmp_path / "executed.ipynb", timeout=600)
    assert not stale(ran, name), (
        f"outputs are missing or old: run python -m tools.notebooks nbs/{name}"
    )


def test_pipeline(project, tmp_path, monkeypatch, capsys):
    """The main job, small: it shows what is stored, its numbers have their names, its report asks
    no other host for anything"""
    monkeypatch.setenv("PYTHONPATH", str(project))
    main(project / "nbs" / PIPELINE, preset="smoke", run_dir=tmp_path)
    assert not stale(nbformat.read(tmp_path / "pipeline.ipynb", 4), PIPELINE)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (
        metrics.keys() >= {"preset", "seed", "stages", "baselines", "seconds"}
        and metrics["preset"] == "smoke"
    )
    for stage in ("cold_start", "grpo"):
        assert metrics["stages"][stage].keys() >= {
            "ew_f",
            "ew_precision",
            "ew_recall",
            "mean_labels",
            "format_rate",
            "ci95",
            "ew_f_sampled",
        }
    assert (
        all("ew_f" in b for b in metrics["baselines"].values()) and metrics["seconds"]["total"] > 0
    )
    assert "grpo" in capsys.readouterr().out
    report = (tmp_path / "report.html").read_text()
    said = html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", "", report, flags=re.S))
    assert (
        all(
            f"{x}." in said
            for x in ("What was trained", "What came out", "How sure", "What it cost")
        )
        and len(said.split()) < 750
    )
    assert f"{metrics['stages']['grpo']['ew_f']:.3f}" in said and "<aside" not in report
    assert "data:image/png" in report and "<script" not in report and not FETCHES.search(report)


def test_directives_are_honoured(tmp_path):
    "What nbdev_test skips is skipped, and keeps its stored output; parameters are injected"
    code = nbformat.v4.new_code_cell
    kept = nbformat.v4.new_output("stream", text="from a GPU")
    parameters = code("n = 1", metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(
        cells=[
            parameters,
            code("#| cuda\n1/0", outputs=[kept]),
            code("#| eval: false\n1/0"),
            code("print(n)"),
        ]
    )
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, tmp_path / "in.ipynb")
    ran = run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"n": 5})
    outputs = [[o.text for o in c.outputs] for c in ran.cells]
    assert outputs == [[], [], ["from a GPU"], [], ["5\n"]]
    assert not any("skip-execution" in c.metadata.get("tags", []) for c in ran.cells)


def test_a_forked_kernel_is_as_new(tmp_path, monkeypatch):
    """It runs in the folder, the environment and the process group of its own, reads modules by
    PYTHONPATH, draws and plots; with the block its process ends"""
    (tmp_path / "mine.py").write_text("x = 3")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines = [
        "import mine, os, sys, numpy as np, matplotlib.pyplot as plt, subprocess",
        "print(os.getcwd(), mine.x, os.getpgid(0) == os.getpid(), 'affectgpt_r1' in sys.modules)",
        "print(os.getppid(), np.random.rand(), subprocess.run(['true']).returncode)",
        "from tqdm.auto import tqdm; from transformers.trainer import DEFAULT_PROGRESS_CALLBACK",
        "print(tqdm.__base__.__name__, DEFAULT_PROGRESS_CALLBACK.__name__)",
        "plt.plot([1, 2])",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(lines))])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, tmp_path / "in.ipynb")
    with forked_kernels():
        ran = [run_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb").cells[0] for _ in "ab"]
    said = [c.outputs[0].text.split("\n") for c in ran]
    (server, one, code), (same, two, _) = (lines[1].split() for lines in said)
    assert said[0][2] == "tqdm_notebook NotebookProgressCallback"
    assert ran[0].outputs[0].text.startswith(f"{tmp_path} 3 True False") and code == "0"
    assert server == same and one != two and "image/png" in ran[0].outputs[-1].data
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), 0)


def test_nothing_is_fetched():
    assert OFFLINE.items() <= os.environ.items()

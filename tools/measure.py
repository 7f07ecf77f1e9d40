"""What a page of the book holds: words, code, minutes of study, outputs, assertions, exercises

python -m tools.measure                       the table of the book
python -m tools.measure nbs/11_grpo.ipynb     that page alone
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools.notebooks import ROOT, directives

NBS = ROOT / "nbs"
WORDS, LINES = 180, 14  # that someone who studies reads in a minute
WIDTH = 100  # characters of a line
UNSEEN = {"hide", "export", "exporti", "default_exp"}
ASSERTS = re.compile(r"\b(assert|assert_\w+|test_eq|test_ne|test_close|test_fail|expect_fail)\b")
EXAMPLE = re.compile(r"\bfor\s+example\b|\be\.g\.", re.I)


def is_hidden(cell):
    "Does the site leave out a code cell, with all that it shows?"
    found = directives(cell.source)
    return bool(UNSEEN & found.keys()) or found.get("include") == "false"


def is_visible(cell):
    "Does the site show the source of a code cell?"
    return not is_hidden(cell) and directives(cell.source).get("echo") != "false"


def code_lines(cell):
    "Lines of code of a cell: neither empty nor an option"
    return [x for x in cell.source.splitlines() if x.strip() and not x.startswith("#|")]


def long_lines(cells):
    "Lines over 100 characters, but for the subtitle, which nbdev takes from one line"
    lines = (line for cell in cells for line in cell.source.splitlines())
    subtitle = next((c.source for c in cells if c.cell_type == "markdown"), "").splitlines()[2:]
    return [line for line in lines if len(line) > WIDTH and line not in subtitle]


def has_figure(cell):
    "Is there a picture among the outputs of a cell?"
    return any("image/png" in o.get("data", {}) for o in cell.outputs)


@dataclass(frozen=True)
class Page:
    "What a notebook holds; code counts where the site shows it, if nothing else is said"

    name: str
    words: int  # Of prose
    cells: int  # With code, hidden ones too
    visible: int  # With code that the site shows
    lines: int  # Of that code
    long: int  # Lines over 100 characters, in any cell; a subtitle has to be one line
    outputs: int  # Cells that show something, those without visible code too
    asserting: int  # Visible cells with an assertion
    examples: int  # Times that "for example" or "e.g." is in the prose
    figures: int
    exercises: int
    solved: int  # Exercises with a solution

    @property
    def minutes(self):
        "Of study: prose and code"
        return self.words / WORDS + self.lines / LINES


def measure(
    path,  # A notebook
):
    "Count what is on its page"
    path = Path(path)
    cells = nbformat.read(path, 4).cells
    prose = [c.source for c in cells if c.cell_type == "markdown"]
    code = [c for c in cells if c.cell_type == "code"]
    shown, visible = [c for c in code if not is_hidden(c)], [c for c in code if is_visible(c)]
    text = "\n\n".join(prose)
    return Page(
        name=path.stem,
        words=sum(len(source.split()) for source in prose),
        cells=len(code),
        visible=len(visible),
        lines=sum(len(code_lines(c)) for c in visible),
        long=len(long_lines(cells)),
        outputs=sum(bool(c.outputs) for c in shown),
        asserting=sum(bool(ASSERTS.search(c.source)) for c in visible),
        examples=len(EXAMPLE.findall(text)),
        figures=sum(map(has_figure, shown)),
        exercises=len(re.findall(r"^\d+\. ", text.partition("## Exercises")[2], re.M)),
        solved=len(solved(path.parent / "solutions" / path.name)),
    )


def solved(path):
    "Numbers of the exercises that a notebook of solutions solves; none where there is no such file"
    if not path.is_file():
        return []
    text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    return re.findall(r"^## (\d+)\. ", text, re.M)


def chapters():
    "The lessons: chapters without the map, in order"
    return [p for p in sorted(NBS.glob("[01]*.ipynb")) if p.stem != "00_overview"]


def lesson_rates(
    pages,  # From `measure`
):
    "Over several pages together: outputs and assertions a visible cell, words a line of code"
    outputs, asserting, visible, words, lines = (
        sum(getattr(page, name) for page in pages)
        for name in ("outputs", "asserting", "visible", "words", "lines")
    )
    return dict(
        outputs=outputs / visible, asserting=asserting / visible, words=words / max(lines, 1)
    )


COLUMNS = {  # of the table of the book; the exercises are those with a solution of all
    "minutes": lambda page: f"{page.minutes:.1f}",
    "words": lambda page: page.words,
    "cells": lambda page: page.cells,
    "lines": lambda page: page.lines,
    "over 100": lambda page: page.long,
    "outputs a cell": lambda page: f"{page.outputs / page.visible:.2f}" if page.visible else "",
    "asserting": lambda page: page.asserting,
    "examples": lambda page: page.examples,
    "figures": lambda page: page.figures,
    "exercises": lambda page: f"{page.solved} of {page.exercises}" if page.exercises else "",
}


def table(pages):
    "Lines of a table of pages"
    width = max(len(page.name) for page in pages) + 1
    yield f"{'page':{width}}" + "".join(f"{name:>{len(name) + 3}}" for name in COLUMNS)
    for page in pages:
        found = (f"{tell(page):>{len(name) + 3}}" for name, tell in COLUMNS.items())
        yield f"{page.name:{width}}" + "".join(found)


def book():
    "All pages but those of the machinery, in the order of the sidebar's folders"
    return [NBS / "00_overview.ipynb", *chapters(), *sorted(NBS.glob("[tp]*/*.ipynb"))]


if __name__ == "__main__":
    measured = [measure(path) for path in sys.argv[1:] or book()]
    print("\n".join(table(measured)))
    if not sys.argv[1:]:
        rates = lesson_rates([measure(path) for path in chapters()])
        print(
            "the chapters together: {outputs:.2f} outputs and {asserting:.2f} assertions a visible "
            "cell, {words:.1f} words a line of code".format(**rates)
        )

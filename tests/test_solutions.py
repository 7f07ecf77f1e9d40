"""Solutions: each exercise of a chapter has one, in the same order, with an assertion; the chapter
links to them"""

import re

import nbformat
import pytest
from conftest import ROOT

NBS = ROOT / "nbs"
SOLUTIONS = sorted(path.name for path in (NBS / "solutions").glob("*.ipynb"))
ASSERTS = re.compile(r"\b(assert|test_eq|test_close|expect_fail)\b")


def source(path):
    "The text of a notebook, cell by cell"
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells)


def test_the_first_chapters_have_solutions():
    assert {"01_labels.ipynb", "02_wheels.ipynb", "03_metrics.ipynb"} <= set(SOLUTIONS)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_each_exercise_is_solved(name):
    chapter, solutions = source(NBS / name), source(NBS / "solutions" / name)
    exercises = re.findall(r"^(\d+)\. ", chapter.partition("## Exercises")[2], re.M)
    solved = re.split(r"^## (\d+)\. ", solutions, flags=re.M)[1:]
    assert len(exercises) >= 3 and solved[::2] == exercises
    assert all(ASSERTS.search(text) for text in solved[1::2])
    assert f"](solutions/{name})" in chapter and f"](../{name})" in solutions
    assert "#| export" not in solutions and "#| default_exp" not in solutions

"""The map and its picture: kept values that can be made again, minutes and links that are true; the
glossary: sorted, with an example and a page for each term"""

import re
import time

import nbformat
import numpy as np
import pytest
import yaml
from conftest import ROOT

from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.pipeline_picture import LIT_BOXES, picture_values, pipeline_picture
from tools.notebooks import directives
from tools.site import chapters, page_name
from tools.tracks import in_hours, study_minutes, track_line, tracks

NBS = ROOT / "nbs"
MAP, GLOSSARY = NBS / "00_overview.ipynb", NBS / "pages/glossary.ipynb"


@pytest.fixture
def plt(monkeypatch):
    "Matplotlib without a screen; figures are closed afterwards"
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    yield plt
    plt.close("all")


def prose(path):
    "The Markdown of a notebook"
    cells = nbformat.read(path, 4).cells
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def slug(heading):
    "The anchor that pandoc gives a heading"
    if own := re.search(r"{#([\w-]+)}", heading):
        return own[1]
    kept = re.sub(r"[^\w\s.-]", "", heading.lower())
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", kept.strip()))


def anchors(path):
    "Anchors of a page's headings"
    text = re.sub(r"^```.*?^```", "", prose(path), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#{1,4} (.+)$", text, re.M)}


def dead(path, text):
    "Links of a page that lead to no notebook, or to no heading of it"
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.is_file() or anchor and anchor not in anchors(file):
            yield target


def test_dead_links_are_seen():
    text = "[a](#no-such-term) [b](../none.ipynb) [c](../11_grpo.ipynb#none) [d](#group)"
    found = list(dead(GLOSSARY, text))
    assert found == ["#no-such-term", "../none.ipynb", "../11_grpo.ipynb#none"]


# The kept values


def test_picture_is_small():
    file = ROOT / "affectgpt_r1/picture_data/group.npz"
    assert file.stat().st_size < 100_000
    assert "picture_data/*" in (ROOT / "setup.py").read_text()  # else no wheel holds it


def test_scores_of_the_picture_are_those_of_the_package():
    "F from the words, and advantages from F"
    kept = picture_values()
    answers = [answer.split(", ") for answer in kept["answers"]]
    f = ew_rewards([list(kept["gold"])] * 4, answers)
    assert np.allclose(f, kept["f"])
    assert np.allclose((f - f.mean()) / (f.std(ddof=1) + 1e-4), kept["advantages"], atol=1e-5)
    moved = np.sign(kept["changes"]) == np.sign(kept["advantages"])
    assert moved[np.abs(kept["advantages"]) > 0.01].all()


def test_clip_of_the_picture_can_be_made_again(tmp_path):
    "Frames, sound, subtitle and labels, from the seed of the toy corpus alone"
    from affectgpt_r1.data import load_mer2025
    from affectgpt_r1.toy import TOY_SIZES, write_annotations
    from affectgpt_r1.toy_files import ClipFiles, write_clips
    from tools.picture import CLIP, clip_parts

    states = write_annotations(tmp_path, TOY_SIZES["demo"], seed=0)
    name, state = list(states["human"].items())[CLIP]
    for folder in ("video", "audio"):
        (tmp_path / folder).mkdir(exist_ok=True)
    files = tmp_path / f"video/{name}.mp4", tmp_path / f"audio/{name}.wav"
    write_clips([ClipFiles(*files, name, state, 0, False)], 1, False)
    (row,) = [r for r in load_mer2025(tmp_path, "human", missing="drop") if r["name"] == name]
    made, kept = clip_parts(row), picture_values()
    for key in ("frames", "outline"):
        a, b = made[key].astype(float), kept[key].astype(float)
        assert a.shape == b.shape and np.abs(a - b).mean() < 0.02 * np.abs(b).max(), key
    assert made["subtitle"] == kept["subtitle"] and list(made["gold"]) == list(kept["gold"])


# The picture


@pytest.mark.parametrize("lit", [None, "media", "grpo"])
def test_letters_can_be_read_and_lie_inside(lit, plt):
    "At least 8 pt where the page is as wide as the figure, 6 pt on a phone; no text is cut off"
    axes = pipeline_picture(lit)
    figure = axes.figure
    begin = time.process_time()
    figure.canvas.draw()
    assert time.process_time() - begin < 3  # a third of a second on an idle machine
    phone = min(1, 350 / (figure.get_figwidth() * 100))
    sizes = [text.get_fontsize() for text in axes.texts]
    assert min(sizes) >= 8 and min(sizes) * phone >= 6
    page = figure.bbox
    for text in axes.texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0, text.get_text()
    names = {"clip", "words", "wheels", "F", "advantage", "update"}
    assert names - {"clip"} <= {t.get_text() for t in axes.texts}


def test_texts_of_two_boxes_do_not_meet(plt):
    "Neither in the large picture nor in the small one"
    for lit in (None, "media"):
        axes = pipeline_picture(lit)
        axes.figure.canvas.draw()
        boxes = [(t.get_text(), t.get_window_extent()) for t in axes.texts]
        met = [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[:i] if x.overlaps(y)]
        assert not met


def test_boxes_of_a_chapter_are_lit(plt):
    "Their titles are bold, and no other"
    for lit in ("modeling", "evaluate"):
        boxes = LIT_BOXES[lit]
        bold = {t.get_text() for t in pipeline_picture(lit).texts if t.get_weight() == "bold"}
        assert bold == {"soft tokens" if b == "tokens" else b for b in boxes}
        plt.close("all")
    assert not [t for t in pipeline_picture().texts if t.get_weight() == "bold"]


def test_every_chapter_has_boxes():
    stems = {page_name(p.name).removesuffix(".html") for p in NBS.glob("[01]*.ipynb")}
    assert stems - {"overview"} == LIT_BOXES.keys()
    with pytest.raises(ValueError, match="no chapter 'x': take one of labels, "):
        pipeline_picture("x")


@pytest.mark.parametrize("path", sorted(NBS.glob("[01]*.ipynb")), ids=lambda p: p.stem)
def test_a_lit_picture_is_that_of_its_chapter(path):
    "Right after the title, with a caption, and with the chapter's own boxes"
    cells = nbformat.read(path, 4).cells
    shown = [i for i, c in enumerate(cells) if 'pipeline_picture("' in c.source]
    for i in shown:
        own = page_name(path.name).removesuffix(".html")
        assert f'pipeline_picture("{own}")' in cells[i].source
        assert cells[i - 1].source.startswith("# ") and directives(cells[i].source)["fig-cap"]


# The map


def test_map_comes_first():
    parts = chapters()
    assert parts[0] == ("", ["index.ipynb", "00_overview.ipynb"])
    assert "pages/glossary.ipynb" in parts[-1][1]
    contents = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    assert contents[1] == {"text": "The map", "href": "00_overview.ipynb"}


def test_links_of_the_map():
    assert not list(dead(MAP, prose(MAP)))


def test_stored_minutes_are_those_of_the_pages():
    "Computed again, they are near to what the page shows: else it must be run again"
    outputs = [o for c in nbformat.read(MAP, 4).cells for o in c.get("outputs", [])]
    (stored,) = (o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {}))
    for name, line in zip(tracks(), stored.splitlines(), strict=True):
        now, number = track_line(name), r"\]\((\S+)\) (\d+)"
        (names, a), (told, b) = (zip(*re.findall(number, x)) for x in (now, line))
        a, b = np.array(a, float), np.array(b, float)
        assert (
            names == told and np.abs(a - b).max() <= 3 and abs(a.sum() - b.sum()) <= 0.1 * b.sum()
        ), f"{name}: run python -m tools.notebooks nbs/00_overview.ipynb"


def test_minutes_count_words_and_lines_that_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.tracks.NBS", tmp_path)
    new = nbformat.v4
    code = [
        "#| hide\nx",
        "#| export\nx",
        "#| echo: false\nx",
        "#| exports\na\n\nb",
        "#| label: f\nc",
    ]
    cells = [new.new_markdown_cell("word " * 360), *map(new.new_code_cell, code)]
    nbformat.write(new.new_notebook(cells=cells), tmp_path / "x.ipynb")
    assert study_minutes("x.ipynb") == pytest.approx(2 + 3 / 14)
    assert study_minutes("x.ipynb", code=False) == 2
    assert [in_hours(m) for m in (44.6, 125.2)] == ["45 minutes", "2 h 05 min"]


# The glossary


def entries():
    "Term -> its text"
    parts = re.split(r"^## (.+)$", prose(GLOSSARY), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def test_terms_are_sorted_and_enough():
    terms = list(entries())
    assert terms == sorted(terms, key=str.lower) and len(terms) >= 30
    assert len({slug(t) for t in terms}) == len(terms)


@pytest.mark.parametrize("term", entries())
def test_term(term):
    "Two to four sentences with an example, and a page that teaches it"
    text = " ".join(entries()[term].split())
    assert "or example, " in text and re.search(r"Taught in \[", text)
    assert 25 <= len(text.split()) <= 110
    assert not list(dead(GLOSSARY, text))


@pytest.mark.parametrize("name", [n for _, part in chapters() for n in part])
def test_links_to_terms_lead_to_terms(name):
    "Wherever a page links to the glossary"
    text = prose(NBS / name)
    found = re.findall(r"glossary\.ipynb#([^)\s]+)\)", text)
    assert set(found) <= {slug(term) for term in entries()}


def test_terms_that_readers_look_for():
    text = prose(GLOSSARY).lower()
    asked = """GRPO, policy, group, advantage, reward, EW F, sector, level, OV-MER, SFT, LoRA, soft
    token, placeholder, fusion, tower, greedy, temperature, KL, clipped, entropy, format reward, P1,
    P2, P3, dual reward, alignment reward, perception reward, WAF, hit rate, HIT, MER-UniBench,
    OV-MERD+, MER-Caption+, bootstrap, coverage, constant answer, pass@k, best of k, FSDP, ZeRO,
    checkpoint, stage, mode `"think"`"""
    assert [
        t
        for t in map(str.strip, asked.split(","))
        if " ".join(t.lower().split()) not in " ".join(text.split())
    ] == []

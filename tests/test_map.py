"""The map and its picture, the strip of the README: kept values that can be made again, minutes and
links that are true; the glossary: sorted, with an example and a page for each term, and linked"""

import re
import textwrap
import time

import nbformat
import numpy as np
import pytest
import yaml
from conftest import ROOT

from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.pipeline_picture import LIT_BOXES, picture_values, pipeline_picture
from tools.notebooks import directives
from tools.glossary import TERMS, linked, missing_terms, pages, unlinked
from tools.site import chapters, page_name, sidebar
from tools.strip import KEPT, WRITERS, answered_clips, readme_strip, scores, usual_clip
from tools.tracks import (
    PAGES,
    anchor,
    in_hours,
    page_list,
    study_minutes,
    track_line,
    track_row,
    tracks,
)

NBS = ROOT / "nbs"
INDEX, MAP, GLOSSARY = (
    NBS / name for name in ("index.ipynb", "00_overview.ipynb", "pages/glossary.ipynb")
)


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
    write_clips([ClipFiles(*files, name, state, 0)], 1, False)
    (row,) = [r for r in load_mer2025(tmp_path, "human", missing="drop") if r["name"] == name]
    made, kept = clip_parts(row), picture_values()
    for key in ("frames", "outline"):
        a, b = made[key].astype(float), kept[key].astype(float)
        assert a.shape == b.shape and np.abs(a - b).mean() < 0.02 * np.abs(b).max(), key
    assert made["subtitle"] == kept["subtitle"] and list(made["gold"]) == list(kept["gold"])


# The strip of the README


def test_words_of_the_strip_are_those_of_the_pipeline():
    "Of the clip that gains about as much as the mean over the seeds, with F from its words"
    clips = answered_clips()
    assert len(clips) == 10
    clip = clips[usual_clip(clips)]
    with np.load(KEPT, allow_pickle=False) as kept:
        assert list(kept["words"]) == [clip[writer] for writer in WRITERS], "python -m tools.strip"
        assert str(kept["subtitle"]) == clip["subtitle"]
        again = [scores([clip], writer)[0] for writer in WRITERS]
        assert np.allclose(kept["f"], again) and again[2] == pytest.approx(1)
    gains = scores(clips, "GRPO") - scores(clips, "cold start")
    assert usual_clip(clips) != gains.argmax()   # the best one is not shown


def test_strip_can_be_read(plt):
    "Letters of at least 8 pt on a page and 6 pt on a phone; nothing is cut off, no two texts meet"
    figure = readme_strip()
    figure.canvas.draw()
    texts = [t for t in figure.findobj(plt.Text) if t.get_text()]
    assert {"cold start   F 0.67", "GRPO   F 0.83"} <= {t.get_text() for t in texts}
    small = min(1, 350 / (figure.get_figwidth() * 100))
    assert min(t.get_fontsize() for t in texts) >= 8
    assert min(t.get_fontsize() for t in texts) * small >= 6
    boxes = [t.get_window_extent() for t in texts]
    page = figure.bbox
    assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 for b in boxes)
    assert not [1 for i, x in enumerate(boxes) for y in boxes[:i] if x.overlaps(y)]


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
    assert parts[0] == ("", ["index.ipynb", "00_overview.ipynb", "tutorials/play.ipynb"])
    assert "pages/glossary.ipynb" in parts[-1][1]
    contents = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    assert contents[1] == {"text": "The map", "href": "00_overview.ipynb"}


@pytest.mark.parametrize("path", [INDEX, MAP], ids=lambda p: p.stem)
def test_links_of_the_first_pages(path):
    assert not list(dead(path, prose(path)))


def test_sidebar_leads_to_the_tracks():
    "Each has a heading on the map, which the README's table links to, too"
    _, entries = sidebar()[1]
    assert [e["text"] for e in entries] == list(tracks())
    assert [e["href"] for e in entries] == [f"/overview.html#{anchor(t)}" for t in tracks()]
    assert {anchor(track) for track in tracks()} <= anchors(MAP)


def test_pages_of_the_tracks_are_in_step():
    "What leads on from page to page"
    assert PAGES.read_text(encoding="utf-8") == page_list(), "run python -m tools.tracks"
    listed = [track["pages"] for track in yaml.safe_load(page_list())["tracks"]]
    expected = [names for _, names in tracks().values()]
    assert [[page["notebook"] for page in found] for found in listed] == expected


def shown_markdown(path):
    "The Markdown that a page's cells show"
    outputs = (o for c in nbformat.read(path, 4).cells for o in c.get("outputs", []))
    return [o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]


@pytest.mark.parametrize("track", tracks())
def test_stored_minutes_are_those_of_the_pages(track):
    "Computed again, they are near to what the map shows: else it must be run again"
    stored = shown_markdown(MAP)[list(tracks()).index(track)]
    number = r"\]\((\S+)\) (\d+)"
    (names, a), (stored_names, b) = (
        zip(*re.findall(number, text)) for text in (track_line(track), stored)
    )
    a, b = np.array(a, float), np.array(b, float)
    near = np.abs(a - b).max() <= 3 and abs(a.sum() - b.sum()) <= 0.1 * b.sum()
    assert names == stored_names and near, "run python -m tools.notebooks nbs/00_overview.ipynb"


def minutes_of(text):
    "`27 minutes` or `3 h 05 min` as a number"
    hours, minutes = re.search(r"(?:(\d+) h )?(\d+) min", text).groups()
    return 60 * int(hours or 0) + int(minutes)


def test_readme_has_the_minutes_of_the_tracks():
    (table,) = (text for text in shown_markdown(INDEX) if "| track |" in text)
    for track, row in zip(tracks(), table.splitlines()[2:], strict=True):
        now = minutes_of(track_row(track))
        assert f"[{track}](00_overview.ipynb#{anchor(track)})" in row
        assert abs(minutes_of(row) - now) <= max(3, 0.1 * now), (
            "run python -m tools.notebooks nbs/index.ipynb, and python -m tools.readme"
        )


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


def test_forms_of_terms_belong_to_terms():
    assert TERMS.keys() <= {slug(term) for term in entries()}


@pytest.mark.parametrize("path", pages(), ids=lambda p: p.stem)
def test_terms_are_linked(path):
    "At least once on each page that uses them"
    missing = unlinked(path)
    assert not missing, f"{missing}: run python -m tools.glossary --write {path}"


def test_first_use_is_linked():
    "In prose; not in code, formulas, headings, links and tables; other words are other terms"
    prose_only = ["# GRPO\n\n`GRPO` [GRPO](x)\n\n| GRPO |\n|---|\n\n$GRPO$\n\n```\nGRPO\n```"]
    assert missing_terms(prose_only) == []
    assert missing_terms(["policy optimisation, GRPO-like"]) == []
    assert missing_terms(["LoRA", "[LoRA](../pages/glossary.ipynb#lora)"]) == []
    assert missing_terms(["Policies", "two\nsoft\ntokens"]) == ["policy", "soft-token"]
    text = "# T\n\n* one: it is\n  GRPO\n* two: GRPO"
    assert linked([text], "g")[0] == text.replace("  GRPO", "  [GRPO](g#grpo)")


def test_a_linked_paragraph_keeps_its_width_and_its_meaning():
    "No line becomes too long, and none begins like an item of a list"
    words = "the word " * 9 + "and GRPO is - so to say - 1. a way, and (t) is another one " * 3
    first, second = (textwrap.indent(textwrap.fill(words, 97), "  ") for _ in "ab")
    source = f"* {first.strip()}\n* {second.strip()}"
    (made,) = linked([source], "../pages/glossary.ipynb")
    assert max(map(len, made.splitlines())) <= 100 and made.count("glossary.ipynb#grpo") == 1
    assert len(re.findall(r"^\s*(?:[-*]|\(?\w{1,5}[.)])\s", made, re.M)) == 2
    plain = re.sub(r"\[(GRPO)\]\([^)]*\)", r"\1", made)
    assert " ".join(plain.split()) == " ".join(source.split())


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

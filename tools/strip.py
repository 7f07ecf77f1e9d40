"""The strip of the README: a test clip, and the words of its cold start, of GRPO and of the
annotators, from a row of the table on the page of the pipeline

python -m tools.strip
"""

import json
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from bs4 import BeautifulSoup

from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.plots import COLORS
from affectgpt_r1.wheels import load_wheels
from tools.notebooks import ROOT

PIPELINE = ROOT / "nbs/tutorials/pipeline.ipynb"
KEPT = ROOT / "affectgpt_r1/picture_data/strip.npz"
WRITERS = ["cold start", "GRPO", "annotators"]
WIDTH = 4.9  # inches: letters of 9 pt are 6 pt wide on a phone


def answered_clips():
    "The ten clips that the page of the pipeline lists: subtitle, and the words of each writer"
    cells = nbformat.read(PIPELINE, 4).cells
    html = [o.data.get("text/html", "") for c in cells for o in c.get("outputs", []) if "data" in o]
    (table,) = (BeautifulSoup(h, "html.parser") for h in html if "annotators</th>" in h)
    head = [th.get_text().strip() for th in table.select("thead th")]
    rows = [[td.get_text().strip() for td in tr.select("td")] for tr in table.select("tbody tr")]
    return [dict(zip(head, row)) for row in rows]


def scores(clips, writer):
    "F of a writer's words for each clip"
    gold, pred = ([clip[key].split(", ") for clip in clips] for key in ("annotators", writer))
    return np.array(ew_rewards(gold, pred))


def mean_gain():
    "What GRPO's greedy answers gain over those of the cold start, over the ten seeds"
    files = [ROOT / f"nbs/results/{name}.json" for name in ("seeds", "seeds_replication")]
    told = [json.loads(f.read_text())["differences"]["grpo - cold_start, greedy"] for f in files]
    return np.mean([gain for record in told for gain in record["by_seed"]])


def usual_clip(clips):
    "Number of the clip whose gain is nearest to the mean gain over the seeds: not the best one"
    gains = scores(clips, "GRPO") - scores(clips, "cold start")
    return int(np.abs(gains - mean_gain()).argmin())


def corpus_clip(number):
    "The files of a test clip of the corpus that the pipeline makes, read back"
    from affectgpt_r1.data import load_mer2025
    from affectgpt_r1.toy import TOY_SIZES, write_annotations
    from affectgpt_r1.toy_files import ClipFiles, write_clips
    from tools.picture import clip_parts

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        states = write_annotations(root, TOY_SIZES["toy"], seed=0)["test"]
        name = list(states)[number]
        files = [root / place for place in (f"video/{name}.mp4", f"audio/{name}.wav")]
        for file in files:
            file.parent.mkdir(exist_ok=True)
        write_clips([ClipFiles(*files, name, states[name], 0, False)], 1, False)
        with warnings.catch_warnings(action="ignore"):  # of the clips that were not made
            rows = load_mer2025(root, "ovmerd", missing="drop")
        return clip_parts(next(row for row in rows if row["name"] == name))


def record():
    "All values of the strip, by name"
    clips = answered_clips()
    number = usual_clip(clips)
    parts = corpus_clip(number)
    assert str(parts["subtitle"]) == clips[number]["subtitle"]
    assert ", ".join(parts.pop("gold")) == clips[number]["annotators"]
    words = np.array([clips[number][writer] for writer in WRITERS])
    f = np.array([scores(clips, writer)[number] for writer in WRITERS])
    return parts | dict(words=words, f=f)


def draw_clip(fig, kept):
    "Frames, sound and subtitle, along the upper edge"
    height = fig.get_figheight()
    for i, frame in enumerate(kept["frames"]):
        left, low = (0.05 + 0.83 * i) / WIDTH, 1 - 0.82 / height
        ax = fig.add_axes((left, low, 0.78 / WIDTH, 0.78 / height))
        ax.imshow(frame)
        ax.set_axis_off()
    ax = fig.add_axes((3.42 / WIDTH, 1 - 0.82 / height, 1.43 / WIDTH, 0.78 / height))
    ax.fill_between(range(120), *kept["outline"].astype(float), color=COLORS["grpo"], lw=0.4)
    ax.set_axis_off()
    fig.text(0.05 / WIDTH, 1 - 1.03 / height, f"subtitle: “{kept['subtitle']}”", fontsize=9.5)


def draw_words(fig, kept):
    "Who wrote which words, one under the other, with an arrow between them"
    height, colors = fig.get_figheight(), [COLORS[key] for key in ("cold_start", "grpo", "gold")]
    for i, (writer, words, f) in enumerate(zip(WRITERS, kept["words"], kept["f"])):
        top = 1.42 + 0.62 * i
        score = "" if writer == "annotators" else f"   F {f:.2f}"
        ax = fig.add_axes((0.07 / WIDTH, 1 - (top + 0.3) / height, 0.05 / WIDTH, 0.42 / height))
        ax.set(facecolor=colors[i], xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        fig.text(0.2 / WIDTH, 1 - top / height, writer + score, fontsize=9.5, weight="bold")
        fig.text(0.2 / WIDTH, 1 - (top + 0.22) / height, words, fontsize=9.5)
        if i:
            x, y = 0.095 / WIDTH, 1 - (top - 0.14) / height
            above = (x, y + 0.2 / height)
            ax.annotate("", (x, y), above, "figure fraction", arrowprops=dict(arrowstyle="->"))


def draw_wheel(fig, kept):
    "One wheel: the sectors that the annotators name, GRPO's answer, or both"
    height, wheels = fig.get_figheight(), load_wheels()
    told, gold = (
        {wheels.cluster(word, "Plutchik") for word in str(words).split(", ")}
        for words in kept["words"][1:]
    )
    kinds = {(1, 1): "hit", (1, 0): "missed", (0, 1): "extra", (0, 0): "none"}
    sectors = list(wheels.trees["Plutchik"])
    ax = fig.add_axes((2.72 / WIDTH, 0.03, 2.1 / WIDTH, 1.8 / height))
    ax.pie(
        np.ones(len(sectors)),
        labels=sectors,
        colors=[COLORS[kinds[s in gold, s in told]] for s in sectors],
        labeldistance=1.12,
        startangle=90,
        counterclock=False,
        radius=0.85,
        wedgeprops=dict(width=0.42, ec=plt.rcParams["figure.facecolor"], lw=1.5),
        textprops=dict(fontsize=8.5),
    )


def readme_strip():
    "The strip, from its kept values"
    with np.load(KEPT, allow_pickle=False) as values:
        kept = dict(values)
    fig = plt.figure(figsize=(WIDTH, 3.1), layout="none")
    draw_clip(fig, kept)
    draw_words(fig, kept)
    draw_wheel(fig, kept)
    return fig


if __name__ == "__main__":
    np.savez_compressed(KEPT, **record())
    print(f"{KEPT}: {KEPT.stat().st_size:,} bytes")

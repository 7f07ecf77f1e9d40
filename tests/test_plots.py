"Plots: something is drawn, axes are named, no text overlaps, same data give the same picture"
import io
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from affectgpt_r1.clip_plots import clip_storyboard, wheel_sunburst
from affectgpt_r1.plots import (
    COLORS, PANELS, ablation_bars, best_of_k, confusion_matrix, length_against_f, modality_matrix,
    running_mean, scores_with_intervals, set_style, training_curves, unibench_bars, unibench_radar,
    words_per_answer)
from affectgpt_r1.unibench import UNIBENCH
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
rng = np.random.default_rng(0)
log = [{"step": i, **{key: float(rng.random()) for key, *_ in PANELS}} for i in range(1, 41)]
stages = dict(cold_start=dict(ew_f=.5, ci95=[.45, .55], ew_f_sampled=.4),
              grpo=dict(ew_f=.6, ci95=[.56, .64], ew_f_sampled=.58))
baselines = dict(constant=dict(ew_f=.42, ci95=[.4, .44], labels=["happy"]), frequency=dict(ew_f=.3))
frames = rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
sound = rng.uniform(-1, 1, 48_000)
sectors = wheels.sectors("Plutchik")
shares = pd.DataFrame(rng.random((8, 8)), sectors, sectors).mask(np.eye(8)[::-1] > 0)
means = {"cold start": .5, "acc+format": .66, "all five": .61, "acc+format, think first": .64,
         "p3+1": .65, "sft": .67}
settings = {name: dict(f=f, low=f - .03, high=f + .03, seeds=f + rng.uniform(-.04, .04, 5))
            for name, f in means.items()}
benchmark = {name: dict(zip(UNIBENCH, rng.uniform(40, 95, 9)))
             for name in ("AffectGPT", "AffectGPT, re-run by others", "ours")}
worth = dict(oracle={"face": .8, "face + voice + words": .94},
             grpo={"face": .6, "face + voice + words": .7})
DRAW = dict(
    training_curves=lambda: training_curves(log),
    scores_with_intervals=lambda: scores_with_intervals(stages, baselines),
    words_per_answer=lambda: words_per_answer(
        {"a": ["x"], "b": ["x", "y"]},
        dict(cold_start=[["x"] * 14, []], grpo=dict(a=["x"], b=["y"]))),
    wheel_sunburst=lambda: wheel_sunburst(
        wheels, "Roberts", ["happy", "worried"], ["glad", "angry", "zork"]),
    clip_storyboard=lambda: clip_storyboard(
        frames, sound, 16000, "I am fine, thank you.", ["happy", "calm"], ["happy"]),
    storyboard_with_wheel=lambda: clip_storyboard(
        frames, sound, 16000, "Fine.", ["happy"], ["sad"], "The face is long. " * 12,
        wheels, "Willcox"),
    ablation_bars=lambda: ablation_bars(settings, compare="acc+format"),
    best_of_k=lambda: best_of_k(dict(cold_start={1: .5, 2: .6, 4: .7, 8: .72},
                                     grpo={1: .66, 2: .7, 4: .72, 8: .73})),
    length_against_f=lambda: length_against_f(
        dict(cold_start=[(2.3, .5), (2.6, .57)], grpo=[(1.9, .66)]), gold=3.),
    confusion_matrix=lambda: confusion_matrix(shares),
    modality_matrix=lambda: modality_matrix(worth),
    unibench_bars=lambda: unibench_bars(benchmark),
    unibench_radar=lambda: unibench_radar(benchmark))


@pytest.fixture(autouse=True)
def clean():
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")   # missing glyphs, layouts that do not fit
        warnings.simplefilter("default", ResourceWarning)  # another test's file, collected just now
        set_style()
        yield
    plt.close("all")


def drawn(name):
    "Axes and figure of a plot, laid out"
    axes = np.atleast_1d(DRAW[name]()).ravel()
    fig = axes[0].figure
    fig.canvas.draw()
    return axes, fig


def inside(box, outer, slack=1.5):
    right, top = outer.width + slack, outer.height + slack
    return box.x0 >= -slack and box.y0 >= -slack and box.x1 <= right and box.y1 <= top


def axis_texts(axis):
    "Label and tick labels of an axis, as far as they are in the picture"
    low, high = sorted(axis.get_view_interval())
    return [axis.label, *(t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high)]


def texts(fig):
    "Visible texts of a figure with their boxes; not those at an angle, whose boxes are too large"
    found = [fig._suptitle] if fig._suptitle else []
    for ax in fig.axes:
        found += [ax.title, *ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
        if ax.axison: found += [*axis_texts(ax.xaxis), *axis_texts(ax.yaxis)]
    shown = [t for t in found if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in shown if t.get_rotation() in (0, 90)]


@pytest.mark.parametrize("name", DRAW)
def test_drawn_named_and_inside(name):
    axes, fig = drawn(name)
    assert all(ax.lines or ax.patches or ax.images or ax.collections for ax in axes)
    assert "storyboard" in name or all(ax.get_title() for ax in axes)
    for ax in axes:
        if ax.axison and ax.name != "polar":
            assert ax.get_xlabel() or ax not in (axes[-1],)
            # the rows of these two have names
            assert ax.get_ylabel() or name in ("scores_with_intervals", "ablation_bars")
    outside = [t for t, box in texts(fig) if not inside(box, fig.bbox)]
    assert not outside


@pytest.mark.parametrize("name", DRAW)
def test_no_text_on_text(name):
    _, fig = drawn(name)
    boxes = texts(fig)
    for i, (a, box) in enumerate(boxes):
        for b, other in boxes[:i]:
            x = min(box.x1, other.x1) - max(box.x0, other.x0)
            y = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert x <= 2 or y <= 2, (a, b)


@pytest.mark.parametrize("name", DRAW)
def test_on_a_dark_page(name):
    "The ink is not that of the page: every text can be read against what it stands on"
    set_style(dark=True)
    axes, fig = drawn(name)
    set_style()
    def luma(c): return float(np.dot([.3, .59, .11], matplotlib.colors.to_rgb(c)))
    assert luma(fig.get_facecolor()) < .2
    for ax in fig.axes:
        shown = [ax.title, ax.xaxis.label, ax.yaxis.label]
        shown += [*ax.get_xticklabels(), *ax.get_yticklabels()]
        # the numbers of a table are in cells of their own colour
        if name not in ("confusion_matrix", "modality_matrix"): shown += ax.texts
        if ax.get_legend(): shown += ax.get_legend().get_texts()
        assert all(luma(t.get_color()) > .5 for t in shown if t.get_text())


@pytest.mark.parametrize("name", DRAW)
def test_same_data_same_picture(name):
    def png():
        _, fig = drawn(name)
        fig.savefig(out := io.BytesIO(), dpi=50)
        return out.getvalue()
    assert png() == png()


def test_values_are_those_given():
    axes, _ = drawn("training_curves")
    for ax, (key, *_) in zip(axes, PANELS):
        assert list(ax.lines[0].get_ydata()) == [r[key] for r in log]
        assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] >= max(r[key] for r in log)
    (ax,), _ = drawn("ablation_bars")
    for y, r in enumerate(settings.values()):
        interval, strokes, mean = ax.lines[3*y:3*y + 3]
        assert list(interval.get_xdata()) == [r["low"], r["high"]]
        assert list(strokes.get_xdata()) == list(r["seeds"]) and mean.get_xdata() == [r["f"]]
    assert list(ax.lines[-1].get_xdata()) == [settings["acc+format"]["f"]] * 2
    (ax,), _ = drawn("unibench_bars")
    scores = [list(x.values()) for x in benchmark.values()]
    assert [[b.get_height() for b in bars] for bars in ax.containers] == scores
    (ax,), _ = drawn("unibench_radar")
    assert [list(line.get_ydata()[:-1]) for line in ax.lines] == scores
    (ax,), _ = drawn("confusion_matrix")
    given = [v for v in shares.values.ravel() if not np.isnan(v)]
    assert [t.get_text() for t in ax.texts] == [f"{v:.2f}" for v in given]
    (ax,), _ = drawn("best_of_k")
    assert list(ax.lines[1].get_xdata()) == [1, 2, 4, 8]
    assert list(ax.lines[1].get_ydata()) == [.66, .7, .72, .73]
    (ax,), _ = drawn("words_per_answer")
    heights = [[b.get_height() for b in bars if b.get_height()] for bars in ax.containers]
    assert heights == [[.5, .5], [.5, .5], [1.]]


def test_running_mean():
    x = rng.normal(size=50)
    assert running_mean(x, 1) == pytest.approx(x)
    assert running_mean(np.ones(9), 5) == pytest.approx(np.ones(9))
    assert running_mean(x, 101)[25] == pytest.approx(x.mean())
    assert np.isnan(running_mean([np.nan], 3)).all()


def test_logs_with_holes():
    "trl leaves out keys, logs NaN where a reward did not apply, and ends with a summary"
    holes = [{"step": 1, "reward": .5},
             {"step": 2, "reward": .6, "rewards/accuracy/mean": float("nan")},
             {"step": 2, "train_loss": .1}]
    axes = training_curves(holes)
    # what was logged a few times has dots, and what was not has no panel
    assert [len(ax.lines) for ax in axes] == [3, 3] and len(axes[0].figure.axes) == 2
    assert all(ax.get_xlabel() and ax.xaxis.get_tick_params()["labelbottom"] for ax in axes)


def test_colours_differ():
    rgb = [np.array(matplotlib.colors.to_rgb(c)) for c in COLORS.values()]
    assert min(np.abs(a - b).max() for i, a in enumerate(rgb) for b in rgb[:i]) > .2


def test_needs_no_model():
    code = ("import sys, affectgpt_r1.plots, affectgpt_r1.clip_plots; "
            "assert not {'torch', 'transformers', 'affectgpt_r1.modeling'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("wheel", [0, 6, "roberts"])
def test_sunburst_names_the_wheels_there_are(wheel):
    with pytest.raises(ValueError, match="Plutchik"):
        wheel_sunburst(load_wheels(), wheel, ["happy"], ["sad"])


@pytest.mark.parametrize("subtitle", ["It costs $5, not $50.", "$\\frac$ of it", "one $ only"])
def test_dollar_signs_are_no_formulas(subtitle):
    "Between two dollars matplotlib reads a formula, and one that it can't read is an error"
    axes = clip_storyboard(frames, sound, 16000, subtitle, ["happy"], ["$a_b$"], "$x$", wheels, 1)
    fig = axes[0].figure
    fig.canvas.draw()
    title = fig._suptitle
    assert subtitle in title.get_text() and "$a_b$" in title.get_text()
    assert not title.get_parse_math()
    ax = wheel_sunburst(wheels, 1, ["$a_b$"], ["$^$"])
    ax.figure.canvas.draw()
    assert "$a_b$" in ax.get_title() and not ax.title.get_parse_math()

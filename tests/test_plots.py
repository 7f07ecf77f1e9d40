"""Plots: something is drawn, axes are named, nothing overlaps, and the same data give the same picture"""
import io
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from affectgpt_r1.plots import (
    COLORS, PANELS, clip_storyboard, running_mean, scores_with_intervals, set_style, training_curves, wheel_sunburst, words_per_answer)
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
rng = np.random.default_rng(0)
log = [{"step": i, **{key: float(rng.random()) for key, *_ in PANELS}} for i in range(1, 41)]
stages = dict(cold_start=dict(ew_f=.5, ci95=[.45, .55], ew_f_sampled=.4), grpo=dict(ew_f=.6, ci95=[.56, .64], ew_f_sampled=.58))
baselines = dict(constant=dict(ew_f=.42, ci95=[.4, .44], labels=["happy"]), frequency=dict(ew_f=.3))
frames, sound = rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), rng.uniform(-1, 1, 48_000)
DRAW = dict(
    training_curves=lambda: training_curves(log),
    scores_with_intervals=lambda: scores_with_intervals(stages, baselines),
    words_per_answer=lambda: words_per_answer({"a": ["x"], "b": ["x", "y"]}, dict(cold_start=[["x"] * 14, []], grpo=dict(a=["x"], b=["y"]))),
    wheel_sunburst=lambda: wheel_sunburst(wheels, "Roberts", ["happy", "worried"], ["glad", "angry", "zork"]),
    clip_storyboard=lambda: clip_storyboard(frames, sound, 16000, "I am fine, thank you.", ["happy", "calm"], ["happy"]))


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


def inside(box, outer, slack=1.5): return box.x0 >= -slack and box.y0 >= -slack and box.x1 <= outer.width + slack and box.y1 <= outer.height + slack


def axis_texts(axis):
    "Label and tick labels of an axis, as far as they are in the picture"
    low, high = sorted(axis.get_view_interval())
    return [axis.label, *(t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high)]


def texts(fig):
    "Visible texts of a figure with their boxes. A text turned at an angle is left to the eye: its box is larger than itself"
    found = [fig._suptitle] if fig._suptitle else []
    for ax in fig.axes:
        found += [ax.title, *ax.texts, *(ax.get_legend().get_texts() if ax.get_legend() else [])]
        if ax.axison: found += [*axis_texts(ax.xaxis), *axis_texts(ax.yaxis)]
    return [(t.get_text(), t.get_window_extent()) for t in found if t.get_visible() and t.get_text().strip() and t.get_rotation() in (0, 90)]


@pytest.mark.parametrize("name", DRAW)
def test_drawn_named_and_inside(name):
    axes, fig = drawn(name)
    assert all(ax.lines or ax.patches or ax.images or ax.collections for ax in axes)
    assert name == "clip_storyboard" or all(ax.get_title() for ax in axes)
    for ax in axes:
        if ax.axison and ax.name != "polar":
            assert ax.get_xlabel() or ax not in (axes[-1],)
            assert ax.get_ylabel() or name == "scores_with_intervals"   # its rows have names
    assert all(inside(box, fig.bbox) for _, box in texts(fig)), [t for t, box in texts(fig) if not inside(box, fig.bbox)]


@pytest.mark.parametrize("name", DRAW)
def test_no_text_on_text(name):
    _, fig = drawn(name)
    boxes = texts(fig)
    for i, (a, box) in enumerate(boxes):
        for b, other in boxes[:i]:
            x, y = (min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0))
            assert x <= 2 or y <= 2, (a, b)


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
    (ax,), _ = drawn("words_per_answer")
    assert [[b.get_height() for b in bars if b.get_height()] for bars in ax.containers] == [[.5, .5], [.5, .5], [1.]]


def test_running_mean():
    x = rng.normal(size=50)
    assert running_mean(x, 1) == pytest.approx(x)
    assert running_mean(np.ones(9), 5) == pytest.approx(np.ones(9))
    assert running_mean(x, 101)[25] == pytest.approx(x.mean())
    assert np.isnan(running_mean([np.nan], 3)).all()


def test_logs_with_holes():
    "trl leaves out keys, logs NaN where a reward did not apply, and ends with a summary"
    holes = [{"step": 1, "reward": .5}, {"step": 2, "reward": .6, "rewards/accuracy/mean": float("nan")}, {"step": 2, "train_loss": .1}]
    axes = training_curves(holes)
    assert [len(ax.lines) for ax in axes.flat] == [2, 2, 0, 0, 0, 0]
    assert [ax.texts[0].get_text() for ax in axes.flat[2:]] == ["not logged"] * 4


def test_colours_differ():
    rgb = [np.array(matplotlib.colors.to_rgb(c)) for c in COLORS.values()]
    assert min(np.abs(a - b).max() for i, a in enumerate(rgb) for b in rgb[:i]) > .2


def test_needs_matplotlib_only():
    code = ("import sys, affectgpt_r1.plots; "
            "assert not {'torch', 'transformers', 'pandas', 'affectgpt_r1.model'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("wheel", [0, 6, "roberts"])
def test_sunburst_names_the_wheels_there_are(wheel):
    with pytest.raises(ValueError, match="Plutchik"): wheel_sunburst(load_wheels(), wheel, ["happy"], ["sad"])

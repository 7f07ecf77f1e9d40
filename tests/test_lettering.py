"Text in figures: words are drawn letter by letter, whatever they hold"
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text
from matplotlib.text import Text

from affectgpt_r1 import lettering, plots
from affectgpt_r1.clip_plots import clip_storyboard, wheel_sunburst
from affectgpt_r1.lettering import plain_label, plain_lines
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
frames, sound = np.zeros((8, 24, 24, 3), np.uint8), np.zeros(16_000, np.float32)
ODD = ["I owe you $5.", "It was $5, now it's $10.", "You said $50_a_day, not $5!", "$$$", "$\\foo$",
       "100% \\$ sure {really} $", "$6^2^2", "a\tb\nc\r\nd", "\x00\x1b[31mred", "x" * 3000, "",
       "שלום, how are you?", "مرحبا \u202eabc", "👩\u200d👩\u200d👧 ✌️", "你怎么来了", "\ud800",
       "_hidden", "<b>&amp;</b>", "Ünïcödé ſ", "\u3000\u00a0\u2028", "a_b_c", "\\alpha \\n"]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(lettering, "_told", set())
    with matplotlib.rc_context():
        plots.set_style()
        yield
    plt.close("all")


def drawn(axes):
    "All texts of a drawn figure; none of them may be a formula"
    figure = np.ravel(axes)[0].figure
    figure.canvas.draw()
    texts = [t for t in figure.findobj(Text) if t.get_text()]
    assert not any(t.get_parse_math() and is_math_text(t.get_text()) for t in texts)
    return texts


@pytest.fixture
def strict():
    "Warnings are errors, but for the one about letters that are missing"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "no installed font")
        yield


def test_a_clip_with_any_words(strict):
    text = " ".join(ODD)
    drawn(clip_storyboard(frames, sound, 16_000, text, ODD, ODD, text))
    drawn(clip_storyboard(frames, sound, 16_000, ODD[1], [], [ODD[2]], ODD[4], wheels, "Junto"))
    drawn(wheel_sunburst(wheels, 1, ODD, ["happy", *ODD]))


def test_a_clip_as_a_table_has_it(strict):
    "Labels in one text, no words, and a sound that is not mono"
    axes = clip_storyboard(frames, sound, 16_000, None, "[happy, sad]", "angry", wheels=wheels)
    title = axes[0].figure.get_suptitle()
    assert "annotators: happy, sad" in title and "answer: angry" in title and "None" not in title
    assert "annotators: happy" in wheel_sunburst(wheels, 1, "happy", "sad").get_title()
    for wave in (np.zeros((16_000, 2), np.float32), sound[:0]):
        with pytest.raises(ValueError, match="a waveform is"):
            clip_storyboard(frames, wave, 16_000, "", [])


@pytest.mark.parametrize("draw", [
    lambda: plots.scores_with_intervals({x: dict(ew_f=.5, ew_f_sampled=.4) for x in ODD}),
    lambda: plots.words_per_answer([["x"]], {x: [["x"]] for x in ODD}),
    lambda: plots.ablation_bars({x: dict(f=.5, low=.4, high=.6, seeds=[.4, .6]) for x in ODD}),
    lambda: plots.best_of_k({x: {1: .3, 2: .4} for x in ODD}),
    lambda: plots.length_against_f({x: [(1, .3)] for x in ODD}),
    lambda: plots.modality_matrix({x: dict.fromkeys(ODD[:8], .4) for x in ODD[:8]}),
    lambda: plots.confusion_matrix(pd.DataFrame(np.eye(8), ODD[:8], ODD[:8])),
    lambda: plots.unibench_bars({x: dict.fromkeys(["MOSI", *ODD], 4.) for x in ODD}),
    lambda: plots.unibench_radar({x: dict.fromkeys(["MOSI", *ODD], 4.) for x in ODD})])
def test_systems_of_any_name(draw):
    "Only that they are drawn: so many long names do not fit a figure"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn(draw())


def test_dollars_are_drawn_as_they_are_written():
    "The same picture as that of each letter for itself"
    def picture(*texts, **kw):
        figure = plt.figure(figsize=(2, .4))
        for text in texts: figure.text(.05, .3, text, **kw)
        figure.canvas.draw()
        return np.array(figure.canvas.buffer_rgba())
    for text in ("$5, now $10", "$50_a_day, $5", "\\$ {x} $", "a\\\\$b$"):
        assert (picture(plain_label(text)) == picture(text, parse_math=False)).all()


def test_one_message_for_all_letters_that_are_missing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for text in ("你怎么来了", "难过", "你"):
            drawn(clip_storyboard(frames, sound, 16_000, text, ["难过"], ["高兴"]))
    if "CJK" in " ".join(lettering.fallback_fonts()):
        pytest.skip("a font with Chinese letters is installed")
    message, = (str(w.message) for w in caught)
    assert "Noto Sans CJK" in message and "fonts-noto-cjk" in message
    assert plain_label("a你b") == "a□b"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=80), st.integers(10, 60))
def test_lines_of_any_text(text, width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        label, lines = plain_label(text), plain_lines(text, width)
    assert not is_math_text(label) and "\n" not in label and len(label.replace("\\$", "$")) <= 60
    assert len(lines) <= 6 and all(len(line) <= width for line in lines)


def test_words_in_lines_are_all_there():
    text = "Well, it was $5 and is $10. " * 6
    assert " ".join(plain_lines(text, 50)) == text.strip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert max(map(len, plain_lines("你" * 200, 40))) in (20, 40)   # with a font, without one

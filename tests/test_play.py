"""The page that plays: its JavaScript gives the numbers of the Python, and what is typed stays
text"""

import re
import shutil

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from test_site import browser, page, violations

from affectgpt_r1.grpo import group_advantages
from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.rewards import PENALTIES, make_rewards
from affectgpt_r1.wheels import load_wheels
from tools.pages import HERE, to_html, to_markdown
from tools.site import relative_links

PLAY = ROOT / "nbs/tutorials/play.ipynb"
UNKNOWN = ["neutral", "zork", "qwertyish", "ünknöwn", "etc", "so on"]
JOINTS = [", ", ",", " , ", "; ", " and ", ", and ", " or ", "/", ".  ", "…, "]
DASHES = [" – ", " — ", " - "]   # but a field, a grade or a reason isn't read by the page:
NO_DASH = re.compile("mood|emotion|feeling|sentiment|attitude|mild|likely| ", re.I)   # Mood – sad
QUOTES = ["{}"] * 12 + ["“{}”", "‘{}’", "`{}`", "«{}»", '"{}"', "'{}'"]   # as a phone types them
WIDTHS = [390, 1280]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    "The page alone, as the site renders it"
    folder = tmp_path_factory.mktemp("play")
    text, _ = to_markdown(nbformat.read(PLAY, 4))
    to_html(relative_links(text, ""), folder / "play.html", {"title": "Play", "root": ""})
    shutil.copy(HERE / "page.css", folder)
    return f"file://{folder}/play.html"


@pytest.fixture
def opened(url, page):
    "The page in a browser that has no network"
    page.context.set_offline(True)
    page.goto(url)
    page.faults.clear()   # a file is not the local server that the other tests ask
    return page


def random_list(rng, vocabulary, most):
    "Words as somebody would type them: known or not, in any case, some twice, joined in any way"
    words = list(rng.choice(vocabulary, rng.integers(0, most)))
    words += list(rng.choice(UNKNOWN, rng.integers(0, 2)))
    words += words[:1] * int(rng.integers(0, 2))
    words = [str(rng.choice([w, w.title(), w.upper()])) for w in words]
    joints = [JOINTS + ([] if any(map(NO_DASH.search, words[i:i + 2])) else DASHES)
              for i in range(len(words))]
    words = [str(rng.choice(QUOTES)).format(w) for w in words]
    return "".join(w + str(rng.choice(some)) for w, some in zip(words, joints))


def pairs(n=500, seed=0):
    "Annotators' words and an answer, n times"
    rng, vocabulary = np.random.default_rng(seed), load_wheels().vocabulary
    for _ in range(n):
        words = vocabulary if rng.random() < 0.9 else UNKNOWN
        gold = ", ".join(rng.choice(words, rng.integers(1, 5)))
        near = gold if rng.random() < 0.3 else ""
        yield gold, near + ", " * bool(near) + random_list(rng, vocabulary, 6)


SCORE = """([pairs, kinds]) => {
  const reward = playReward(playData);
  return pairs.map(([gold, answer], i) => reward.group(gold, [answer], kinds[i % kinds.length])[0]);
}"""


def number(values):
    return np.array([np.nan if x is None else x for x in values], float)


def test_500_pairs(opened):
    "F, penalty and reward of the page are those of the library, for every kind of penalty"
    cases, kinds = list(pairs()), [str(kind or "none") for kind in PENALTIES]
    shown = opened.evaluate(SCORE, [cases, kinds])
    replies = [f"<answer>{answer}</answer>" for _, answer in cases]
    for i, kind in enumerate(PENALTIES):
        (accuracy,), _ = make_rewards("acc", penalty=kind)
        some = slice(i, None, len(PENALTIES))
        labels = [gold for gold, _ in cases[some]]
        reward = number(accuracy(completions=replies[some], labels=labels))
        (free,), _ = make_rewards("acc", penalty=None)
        f = number(free(completions=replies[some], labels=labels))
        found = [number(x[key] for x in shown[some]) for key in ("reward", "f")]
        np.testing.assert_allclose(found, [reward, f], rtol=0, atol=1e-9)
        assert np.isnan(f).any() and (f > 0.5).sum() > 10 and (kind is None or (reward < f).any())


def test_advantages(opened):
    "Of groups of four, and of four that are all equal"
    rng, wheels = np.random.default_rng(1), load_wheels()
    gold = ["happy", "excited", "sad"]
    groups = [[random_list(rng, wheels.vocabulary, 4) for _ in range(4)] for _ in range(20)]
    groups.append(["happy"] * 4)
    code = "([gold, groups]) => groups.map(g => playReward(playData).group(gold, g, 'p2'))"
    shown = opened.evaluate(code, [", ".join(gold), groups])
    (accuracy,), _ = make_rewards("acc", penalty="p2")
    for answers, rows in zip(groups, shown):
        replies = [f"<answer>{answer}</answer>" for answer in answers]
        rewards = torch.tensor(accuracy(completions=replies, labels=[gold] * 4)).double()
        right = group_advantages(rewards, 4).numpy()
        np.testing.assert_allclose(number(r["advantage"] for r in rows), right, rtol=0, atol=1e-6)


def test_typing_moves_the_numbers(opened):
    "Padding costs under p2 and nothing without a penalty; an unknown gold is not scored"
    numbers = opened.locator(".numbers")
    assert "reward 1.00" in numbers.nth(0).inner_text()
    before = numbers.nth(1).inner_text()
    opened.fill("[aria-label='Answer 1']", "happy, glad, joyful, excited")
    assert "F 1.00 × penalty 0.50 = reward 0.50" in numbers.nth(0).inner_text()
    assert numbers.nth(1).inner_text() != before   # the advantage is the group's
    opened.check("input[value=none]")
    assert "reward 1.00" in numbers.nth(0).inner_text()
    opened.fill("input.gold", "neutral")
    assert "F – " in numbers.nth(0).inner_text() and "not scored" in opened.inner_text(".note")
    assert opened.locator("path.hit").count() == 0 and not opened.faults


def test_sectors_are_drawn(opened):
    "Five wheels; on each, the sectors of the answer that is chosen"
    opened.fill("[aria-label='Answer 4']", "angry, happy")
    wheels = load_wheels()
    names = opened.locator(".wheels svg").evaluate_all("x => x.map(e => e.ariaLabel)")
    assert len(names) == 5
    for k, name in enumerate(wheels.names):
        found = sorted({wheels.cluster(w, name) for w in ("angry", "happy")})
        assert names[k].startswith(name) and names[k].endswith("answer " + ", ".join(found))


def test_text_becomes_elements_nowhere():
    "Nothing in the script reads a text as HTML or as code"
    script = PLAY.with_suffix(".js").read_text(encoding="utf-8")
    assert not re.search(r"(inner|outer)HTML|insertAdjacent|document\.write|\beval\(", script)
    assert "textContent" in script


@pytest.mark.parametrize("where", ["input.gold", "[aria-label='Answer 2']"])
def test_typed_markup_stays_text(opened, where):
    "No element comes of it and no script runs"
    opened.fill(where, "<img src=x onerror='document.title=1'><script>document.title=1</script>")
    assert opened.locator(".play img, .play script, .play .note *").count() == 0
    assert opened.title() == "Play" and not opened.faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(opened, scheme):
    "By everyone, in light and dark, and on a phone without being pushed sideways"
    opened.emulate_media(color_scheme=scheme)
    for width in WIDTHS:
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(opened) == {}

"Rewards: what they give for odd input, at what speed, without torch, and inside the trainers that call them"
import inspect
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1.labels import make_target
from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.rewards import (
    COMPONENTS, PENALTIES, RECIPES, EndpointJudge, Recipe, _ordinary, _tokens, accuracy_reward, alignment_reward, bradley_terry,
    clip_parts, dual_reward, find_emotions, format_reward, frozen_score, graded_scores, length_penalty, likelihood_judge, make_rewards,
    pad_synonyms, perception_reward, reward_alarms, swift_rewards, verl_score)
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
words = ["happy", "sad", "angry", "worried", "neutral", "negative", "zork", "高兴", ""]
some_words = st.lists(st.sampled_from(words), max_size=6)
tags = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "sad, glad", "not happy", " ", "\n"]), max_size=9).map("".join)
thought = st.builds(lambda labels, think: make_target(labels, "think", think), some_words, st.text(max_size=40))
text = st.one_of(st.text(max_size=80), some_words.map(make_target), thought, tags)


def shorter(row, a, b): return float(len(a) < len(b))


def test_no_torch():
    code = ("import sys, affectgpt_r1.rewards as r\n"
            "for name in r.RECIPES: [f(completions=['<think>sad</think><answer>sad</answer>']*2, labels=[['sad']]*2, prompts=['p']*2)\n"
            "                        for f in r.make_rewards(name, judge=lambda row, a, b: .5)[0]]\n"
            "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(text, some_words), min_size=1, max_size=8), st.sampled_from(list(PENALTIES)), st.sampled_from(["answer", "think"]))
def test_any_completion_has_a_reward(rows, penalty, mode):
    "Never an error, never NaN, always in [0, 1] or None, and the same for text and for messages"
    completions, labels = map(list, zip(*rows))
    every = Recipe("every", tuple((c, 1.) for c in COMPONENTS if mode == "think" or c not in ("dual", "alignment")), "all there are")
    for f in make_rewards(every, wheels, penalty, mode, judge=shorter)[0]:
        rewards = f(prompts=[""] * len(rows), completions=completions, completion_ids=[[]] * len(rows), labels=labels)
        assert len(rewards) == len(rows)
        assert all(r is None or (type(r) is float and 0 <= r <= 1 + 1e-12) for r in rewards), f.__name__
        assert f(completions=[[{"role": "assistant", "content": c}] for c in completions], labels=labels, prompts=[""] * len(rows)) == rewards


# format and length

@pytest.mark.parametrize("mode,texts,want", [
    ("answer", ["<answer>sad</answer>", " <answer>sad</answer>\n", "<answer></answer>", "sad", "<answer>sad", "<answer>sad</answer>.", "<think>x</think><answer>sad</answer>"], [1, 1, 0, 0, 0, 0, 0]),
    ("think", ["<think>x</think><answer>sad</answer>", "<think></think>\n<answer>sad</answer>", "<answer>sad</answer>", "<answer>sad</answer><think>x</think>", "<think>x</think><think>y</think><answer>sad</answer>"], [1, 1, 0, 0, 0])])
def test_format(mode, texts, want): assert format_reward(mode)(texts) == want


def test_penalties_are_the_papers():
    "Eq. 15, and 1 for every answer that is no longer than the gold"
    for g in range(1, 12):
        for n in range(0, 30):
            factor = {k: length_penalty(n, g, k) for k in PENALTIES}
            if n <= g: assert set(factor.values()) == {1.}
            else:
                want = {"p1": 1/(n - g + 1), "p2": g/n, "p3": np.log(g)/np.log(n), "p3+1": np.log(g + 1)/np.log(n + 1), None: 1.}
                assert factor == pytest.approx(want, abs=1e-15)
                assert factor["p1"] <= factor["p2"] + 1e-12 and factor["p2"] <= factor["p3+1"] + 1e-12
                assert g <= 2 or factor["p2"] <= factor["p3"] + 1e-12 <= factor["p3+1"] + 2e-12
    assert [length_penalty(n, 1, "p3") for n in (1, 2, 9)] == [1, 0, 0]   # the defect of the printed form
    assert length_penalty(2, 1, "p3+1") == pytest.approx(np.log(2)/np.log(3)) and length_penalty(3, 0) == length_penalty(3, 1)
    grid = length_penalty(*np.meshgrid(np.arange(30), np.arange(12)), "p3")
    assert grid.shape == (12, 30) and np.isfinite(grid).all() and (np.diff(grid) <= 1e-12).all()
    with pytest.raises(ValueError, match="'p1', 'p2', 'p3', 'p3\\+1', None"): length_penalty(3, 2, "p4")


# the answer

@pytest.mark.parametrize("measure", ["f", "precision", "recall", "jaccard"])
@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_accuracy_is_the_metric_times_the_penalty(penalty, measure):
    gold = [["happy"], ["sad", "angry"], ["worried", "sad", "angry"]]
    pred = [["happy", "glad"], ["sad", "cheerful", "angry", "furious"], ["angry"]]
    expected = ew_rewards(gold, pred, wheels=wheels, measure=measure) * [length_penalty(len(p), len(g), penalty) for p, g in zip(pred, gold)]
    reward = accuracy_reward(wheels, penalty, measure=measure)
    np.testing.assert_allclose(reward([make_target(p) for p in pred], labels=gold), expected, atol=1e-12)
    assert reward.__name__ == ("accuracy" if measure == "f" else measure)


def test_each_completion_stands_alone():
    "A reward does not depend on what else is in the batch"
    f = accuracy_reward(wheels)
    completions, labels = [make_target(["sad"]), make_target([]), make_target(["glad", "angry"])], [["sad"], ["neutral"], ["angry"]]
    assert f(completions, labels) == [f([c], [l])[0] for c, l in zip(completions, labels)]
    assert f(completions[::-1], labels[::-1]) == f(completions, labels)[::-1]
    with pytest.raises(TypeError, match="labels"): f(completions)
    with pytest.raises(ValueError, match="measure"): accuracy_reward(wheels, measure="luck")(completions, labels)


def test_long_answers():
    many = ", ".join(f"word{i}" for i in range(1500))
    for answer in (many, "happy " * 2000, "<answer>" * 1500, "happy, " * 1500):
        assert len(answer) >= 10_000
        r, = accuracy_reward(wheels)([f"<answer>{answer}</answer>"], labels=[["happy"]])
        assert 0 <= r <= 1
    assert r == pytest.approx(1/1500)   # one word, 1,500 times: right, and far too long


def test_f_and_words_are_logged_beside_the_reward():
    logged = {}
    f = accuracy_reward(wheels, "p1", measure="recall")
    f([make_target(["happy", "angry"]), make_target(["sad"]), "?"], [["happy"], ["neutral"], ["sad"]], log_metric=logged.__setitem__)
    assert logged == pytest.approx({"answer/f": (2/3 + 0)/2, "answer/words": 1., "answer/written": 1.})
    logged.clear(); f([make_target(["sad"])], [["neutral"]], log_metric=logged.__setitem__)
    assert logged == {"answer/words": 1., "answer/written": 1.}
    logged.clear(); f(["<answer>sad, sad, sad</answer>"], [["neutral"]], log_metric=logged.__setitem__)
    assert logged == {"answer/words": 1., "answer/written": 3.}


# emotion words in running text

@pytest.mark.parametrize("said,found", [
    ("She is not happy.", []), ("He never felt calm.", []), ("She isn't angry", []), ("SHE ISN’T ANGRY", []), ("without fear", []),
    ("She does not seem to be very happy", []), ("neither sad nor angry", []), ("far from happy", []), ("free of fear", []),
    ("no fear, anger, or sadness", []), ("He is not sad, but angry.", ["angry"]), ("not sad. Angry.", ["angry"]),
    ("not only sad but angry", ["sad", "angry"]), ("She can't hide her joy", ["joy"]), ("no doubt angry", ["angry"]),
    ("happy, not sad, but worried", ["happy", "worried"]), ("sad\nnot", ["sad"]), ("not a word: sad", ["sad"]),
    ("he is not what one would call in any way sad", ["sad"]),   # too far away
    ("over the moon", ["over the moon"]), ("The moon", []), ("sad-looking", ["sad"]), ("'sad'", ["sad"]), ("the man's anger", ["anger"]),
    ("sad and sad, Sad", ["sad"]), ("a well lit, open face", []), ("feels good", ["good"]), ("feels like", []), ("looks good", []),
    ("很高兴", []), ("", []), ("sadhappy", [])])
def test_emotion_words(said, found): assert find_emotions(said, wheels) == found


def test_every_form_is_found_after_feel():
    for form in wheels.vocabulary:
        found = find_emotions(f"She feels {form}.", wheels)
        if form in ("like", "kind", "still"): assert not found
        else: assert [_tokens(f) for f in found] == [_tokens(form)], form   # "absent-minded" and "absent minded" are one


def test_everyday_words_do_not_count_alone():
    assert _ordinary() & set(wheels.vocabulary) and find_emotions("; ".join(sorted(_ordinary())), wheels) == []
    assert not _ordinary() & {w for tree in wheels.trees.values() for w in tree} - {"powerful", "bad"}   # no sectors but these


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(["not", "no", "and", ",", ".", "sad", "feel", "low", "over", "the", "moon"]), max_size=30).map(" ".join)))
def test_any_text_can_be_searched(text):
    found = find_emotions(text, wheels)
    assert len(set(found)) == len(found) and set(found) <= set(wheels.vocabulary)


def test_searching_takes_time_with_the_text():
    "Not with its square (benchmarks/rewards.py has the time itself)"
    sentence = "In the clip the woman is smiling softly and her voice is low and steady; she does not look worried or sad, over the moon in fact. "
    def best(text):
        def seconds():
            start = time.perf_counter(); find_emotions(text, wheels)
            return time.perf_counter() - start
        return min(seconds() for _ in range(9))
    assert best(sentence*400)/best(sentence*40) < 25   # ten times the text


def test_dual_and_alignment():
    dual, align = dual_reward(wheels, "p2"), alignment_reward(wheels)
    both = "<think>{}</think><answer>{}</answer>"
    completions = [both.format("She is sad, lonely.", "happy"), both.format("not sad", "sad"), "<think>sad", "<answer>sad</answer><think>sad</think>", both.format("sad", "neutral")]
    assert dual(completions, labels=[["sad"]]*5) == [.5, 0, 0, 0, 1] and align(completions) == [0, 0, 0, 0, 0]
    assert dual(completions, labels=[["neutral"]]*5) == [None]*5
    t, a = ["sad", "angry"], ["sad"]
    assert align([both.format(", ".join(t), ", ".join(a))]) == pytest.approx(ew_rewards([a], [t], wheels, measure="jaccard"))


# the judge

def test_bradley_terry():
    true = np.array([4., 2., 1., .5])
    found = bradley_terry(1e4 * true[:, None] / np.add.outer(true, true) * (1 - np.eye(4)), prior=1e-6)
    assert found / found[2] == pytest.approx(true, rel=1e-3)
    wins = np.random.default_rng(0).random((6, 6)) * (1 - np.eye(6))
    s = bradley_terry(wins, prior=1e-9)
    expected = (wins + wins.T) * s[:, None] / np.add.outer(s, s)          # at the best fit, wins expected are wins seen
    assert expected.sum(1) == pytest.approx(wins.sum(1), abs=1e-5)
    ladder = np.triu(np.ones((8, 8)), 1)                                  # who never loses, or never wins, stays finite
    assert bradley_terry(np.zeros((3, 3))) == pytest.approx(np.ones(3))   # nothing said: all alike
    assert np.isfinite(bradley_terry(ladder)).all() and (np.diff(bradley_terry(ladder)) < 0).all()


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
def test_perception_gives_1_to_the_preferred_half(n):
    texts = ["x" * (k + 1) for k in range(n)]
    want = [1.] * (n // 2) + [0.] * (n - n // 2)
    f = perception_reward(shorter)
    assert f(texts, prompts=["?"] * n) == want and f(texts[::-1], name=["a"] * n) == want[::-1]
    order = np.random.default_rng(n).permutation(2 * n)   # two clips, mixed up
    mixed = f([(texts * 2)[i] for i in order], name=[("a" if i < n else "b") for i in order], prompts=["same"] * 2 * n)
    assert mixed == [(want * 2)[i] for i in order]


def test_the_judge_sees_its_row_and_may_abstain():
    rows = []
    def judge(row, a, b):
        rows.append(row)
        return None if row["name"] == "b" else 1.
    prompts = [[{"role": "user", "content": "?"}]] * 4
    f = perception_reward(judge)
    assert f(["1", "2", "1", "2"], prompts=prompts, name=["a", "a", "b", "b"], labels=[["sad"]] * 4, trainer_state=None, completion_ids=[[1]] * 4) == [1, 0, None, None]
    assert rows[0].keys() == {"prompt", "name", "labels", "completion_ids"} and rows[0]["prompt"] == prompts[0]
    assert f(["1", "1"], name=["b", "b"]) == [.5, .5] and len(rows) == 2   # equal texts are not shown to the judge
    assert f(["1"], name=["a"]) == [None]
    with pytest.raises(ValueError, match="a probability or None"): perception_reward(lambda *x: 2)(["1", "2"], name=["a"] * 2)
    with pytest.raises(ValueError, match="column `name`"): f(["1", "2"])


class Endpoint(ThreadingHTTPServer):
    "An OpenAI-compatible server that follows a script: each entry is a status, a body or a number of seconds to wait; then it says A"
    daemon_threads = True
    def __init__(self, *script):
        self.script, self.asked, self.headers_seen = list(script), [], []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
    @property
    def url(self): return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        s = self.server
        s.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))); s.headers_seen.append(self.headers)
        step = s.script.pop(0) if s.script else said("A")
        if isinstance(step, float): time.sleep(step); step = said("A")
        self.send_response(step if isinstance(step, int) else 200); self.end_headers()
        try: self.wfile.write(b"" if isinstance(step, int) else step)
        except BrokenPipeError: pass   # the client has given up
    def log_message(self, *args): pass


def said(content): return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.fixture
def endpoint():
    servers = []
    def start(*script):
        servers.append(Endpoint(*script))
        return servers[-1]
    yield start
    for s in servers: s.shutdown(); s.server_close()


def judge_of(server, **settings): return EndpointJudge(server.url, "m", **dict(dict(timeout=.5, pause=.01), **settings))


row = {"name": "clip", "prompt": "Which emotions?"}


def test_endpoint_asks_once_for_each_pair(endpoint, tmp_path):
    server = endpoint()
    judge = judge_of(server, key="k", cache=tmp_path/"verdicts.jsonl")
    p = judge(row, "sad", "happy")
    assert p in (0., 1.) and judge(row, "sad", "happy") == p and judge(row, "happy", "sad") == 1 - p and len(server.asked) == 1
    path, body = server.asked[0]
    assert path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0 and server.headers_seen[0]["Authorization"] == "Bearer k"
    parts = body["messages"][0]["content"]
    assert parts[0] == {"type": "text", "text": "Which emotions?"} and all(x in parts[-1]["text"] for x in ("sad", "happy", "A or B"))
    assert judge_of(server, cache=tmp_path/"verdicts.jsonl")(row, "sad", "happy") == p and len(server.asked) == 1   # from the disk
    judge(dict(row, name="other"), "sad", "happy"); assert len(server.asked) == 2   # another clip, another verdict
    (tmp_path/"verdicts.jsonl").write_text('["x", true]\n{"half')
    with pytest.raises(ValueError, match="line 2, is no verdict"): judge_of(server, cache=tmp_path/"verdicts.jsonl")


def test_endpoint_has_no_favourite_place(endpoint):
    "A judge that always says A prefers either text in about half of the pairs"
    judge = judge_of(endpoint())
    wins = [judge(row, f"text {i}", f"other {i}") for i in range(60)]
    assert 15 < sum(wins) < 45


@pytest.mark.parametrize("trouble", [500, 503, 429, b"<html>", b"{}", b'{"choices": []}', said(None), b"", 1.])
def test_endpoint_asks_again(endpoint, trouble):
    "After an error, garbage or silence, a second attempt"
    server = endpoint(trouble)
    assert judge_of(server)(row, "a", "b") in (0., 1.) and len(server.asked) == 2


@pytest.mark.parametrize("trouble", [500, b"<html>", .7])
def test_endpoint_gives_up(endpoint, trouble, monkeypatch):
    "After `retries` attempts with growing pauses; then the server has a rest, and is asked again later"
    pauses, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: (pauses.append(s), sleep(s)))
    server = endpoint(*[trouble] * 3)
    judge = judge_of(server, timeout=.3)
    with pytest.warns(UserWarning, match="no usable reply in 3 attempts"): assert judge(row, "a", "b") is None
    assert len(server.asked) == 3 and [p for p in pauses if p < .1] == [.01, .02]
    assert judge(row, "a", "c") is None and len(server.asked) == 3
    time.sleep(.35)
    assert judge(row, "a", "b") in (0., 1.) and len(server.asked) == 4   # a missing verdict is not kept


def test_endpoint_that_is_not_there():
    judge = EndpointJudge("http://127.0.0.1:9", "m", timeout=5, pause=.01)
    with pytest.warns(UserWarning, match="no usable reply"): assert perception_reward(judge)(["a", "b", "c"], prompts=["?"] * 3) == [None] * 3


def test_endpoint_cannot_judge_a_clip(endpoint):
    server = endpoint(413, said("Both are fine."), said("I say B."))
    judge = judge_of(server)
    assert judge(row, "a", "b") is None and judge(row, "a", "b") is None and len(server.asked) == 2   # refused; undecided
    assert judge(row, "a", "b") in (0., 1.)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_endpoint_set_up_wrongly(endpoint, status):
    with pytest.raises(ValueError, match=f"HTTP {status}; check the address, the key and the model 'm'"): judge_of(endpoint(status))(row, "a", "b")


def test_endpoint_in_a_batch(endpoint):
    "Several questions at once, and the same reward as with one after the other"
    class Longer(EndpointJudge):
        def _ask(self, row, a, b): return len(a) > len(b)
    texts = ["x" * (k + 1) for k in range(8)] * 3
    names = [n for n in "abc" for _ in range(8)]
    assert perception_reward(Longer("http://x", "m", workers=8))(texts, name=names) == ([0.] * 4 + [1.] * 4) * 3


def test_what_the_judge_is_shown(tmp_path):
    (tmp_path/"v.mp4").write_bytes(b"video"); (tmp_path/"a.wav").write_bytes(b"audio")
    clip = {"type": "video", "video": str(tmp_path/"v.mp4"), "audio": str(tmp_path/"a.wav"), "text": None}
    prompt = [{"role": "user", "content": [clip, {"type": "text", "video": None, "audio": None, "text": "Which?"}]}]
    video, audio, text = clip_parts({"prompt": prompt})
    assert video["video_url"]["url"] == "data:video/mp4;base64,dmlkZW8=" and audio["input_audio"] == {"data": "YXVkaW8=", "format": "wav"} and text["text"] == "Which?"
    with pytest.raises(KeyError, match="the trainer gave none"): clip_parts({"name": "clip"})
    assert clip_parts({"prompt": "Which?"}) == [{"type": "text", "text": "Which?"}]
    with pytest.raises(FileNotFoundError, match="gone.mp4"): clip_parts({"prompt": [{"content": [dict(clip, video=str(tmp_path/"gone.mp4"))]}]})


def test_likelihood_judge_scores_each_text_once():
    seen = []
    def score(row, text):
        seen.append(text)
        return None if text == "?" else -float(len(text))
    judge = likelihood_judge(score)
    assert perception_reward(judge)(["a", "bb", "ccc", "dddd"], prompts=["p"] * 4) == [1, 1, 0, 0] and sorted(seen) == ["a", "bb", "ccc", "dddd"]
    assert judge(dict(prompt="p"), "a", "?") is None and judge(dict(prompt="p"), "a", "b" * 2000) > .99 and judge(dict(prompt="p"), "b" * 2000, "a") < .01
    assert judge(dict(prompt="p"), "a", "bb") == pytest.approx(1 - judge(dict(prompt="p"), "bb", "a"))


# the right neighbourhood

def test_graded_scores():
    plain = lambda g, q: graded_scores([g], [q], wheels)[0]
    assert plain(["furious"], ["furious"]) == pytest.approx(1) and plain(["furious"], ["calm"]) == 0
    assert 0 < plain(["furious"], ["bored"]) < plain(["furious"], ["annoyed"]) < plain(["furious"], ["enraged"]) < 1
    rng = np.random.default_rng(0)
    g, q = ([list(rng.choice(wheels.vocabulary, rng.integers(0, 5))) for _ in range(300)] for _ in "gq")
    x, one, two = graded_scores(g, q, wheels), *(ew_rewards(g, q, wheels, level, undefined="nan") for level in (1, 2))
    known = ~np.isnan(one)
    assert (np.isnan(x) == ~known).all() and (x[known] >= (one/2 + two/2)[known] - 1e-12).all() and (x[known] <= 1 + 1e-12).all()
    order = [*reversed(range(300))]
    assert np.array_equal(x[order], graded_scores([g[i] for i in order], [q[i] for i in order], wheels), equal_nan=True)


def test_neighbours_are_those_on_plutchiks_circle():
    circle = list(wheels.trees["Plutchik"])
    alone = type(wheels)("one", {"Plutchik": wheels.trees["Plutchik"]}, {w: [w] for w in circle}, {w: [w] for w in circle})
    other = type(wheels)("two", {"Other": wheels.trees["Plutchik"]}, {w: [w] for w in circle}, {w: [w] for w in circle})
    for i, gold in enumerate(circle):
        near = {w for w in circle if graded_scores([[gold]], [[w]], alone)[0] == .25}
        assert near == {circle[i-1], circle[(i+1) % 8]}
        assert [w for w in circle if graded_scores([[gold]], [[w]], other)[0]] == [gold]   # no order, no neighbours


# recipes

def test_recipes_print_themselves_and_are_data():
    assert str(RECIPES["acc+format"]).startswith("acc+format") and "think" in str(RECIPES["dual"]) and "p1" in str(RECIPES["acc+format+p1"])
    functions, weights = make_rewards(Recipe("form", (("format", 2.),), "test"), wheels)
    assert [f.__name__ for f in functions] == ["format"] and weights == [2.]
    with pytest.raises(AttributeError): RECIPES["acc"].name = "other"
    assert hash(RECIPES["precision+recall"]) != hash(RECIPES["graded"])
    for name, recipe in RECIPES.items():
        functions, weights = make_rewards(name, wheels, judge=shorter)
        assert ([f.__name__ for f in functions], weights) == ([c for c, _ in recipe.weights], [w for _, w in recipe.weights])


def test_a_recipe_brings_its_penalty_and_mode():
    text, gold = make_target(["happy", "glad", "joyful"]), [["happy"]]
    by = lambda *a, **k: make_rewards(*a, **k)[0][0](completions=[text], labels=gold)[0]
    assert [by(f"acc+format+{p}") for p in ("p1", "p2", "p3")] == pytest.approx([1/3, 1/3, 0])
    assert by("acc+format") == by("acc+format", penalty="p2") and by("acc", penalty=None) == 1
    thinking, plain = "<think>x</think>" + text, text
    assert [make_rewards(n, judge=shorter)[0][1](completions=[thinking, plain]) for n in ("all-five", "acc+format")] == [[1, 0], [0, 1]]


@pytest.mark.parametrize("call,message", [
    (dict(recipe="best"), "no recipe 'best'; there are acc, acc\\+format"),
    (dict(penalty="p4"), "takes the penalty 'p2', 'p1'"), (dict(mode="thought"), "takes the mode 'answer', 'think'"),
    (dict(recipe="acc+format+p1", penalty="p2"), "takes the penalty 'p1', not 'p2'"), (dict(recipe="dual", mode="answer"), "takes the mode 'think'"),
    (dict(recipe="all-five"), "needs a judge"), (dict(recipe=replace(RECIPES["acc"], weights=(("luck", 1.),))), "asks for luck"),
    (dict(recipe=replace(RECIPES["acc"], weights=(("dual", 1.),))), "needs mode='think'"),
    (dict(recipe=replace(RECIPES["acc"], modes=("loud",))), "mode is 'loud'"), (dict(recipe=replace(RECIPES["acc"], penalties=("p9",))), "penalty is 'p9'")])
def test_wrong_recipes_are_named(call, message):
    with pytest.raises(ValueError, match=message): make_rewards(**call)


def test_padding_is_free_and_the_penalties_see_it():
    answer = ["worried", "surprised", "neutral", "zork"]
    padded = pad_synonyms(answer, wheels)
    assert padded[:4] == answer and len(answer) + 4 <= len(padded) <= len(answer) + 6 and len(set(padded)) == len(padded)
    assert pad_synonyms(["worried"], wheels, ["angry", "anxious", "afraid"]) == ["worried", *[w for w in ("anxious", "afraid") if (wheels.encode([w]) == wheels.encode(["worried"])).all()]]
    for gold in (["worried", "angry"], ["happy"], ["surprised"]):
        assert ew_rewards([gold], [answer], wheels) == ew_rewards([gold], [padded], wheels)


def test_a_group_is_scored_in_one_go(monkeypatch):
    "One call of the metric for all completions (benchmarks/rewards.py has the times)"
    sizes = []
    def counted(gold, pred, *args, **kwargs):
        sizes.append((len(gold), len(pred)))
        return ew_rewards(gold, pred, *args, **kwargs)
    monkeypatch.setattr("affectgpt_r1.rewards.ew_rewards", counted)
    completions = [make_target(x) for x in (["happy"], ["sad", "angry"], ["worried"])]*16
    accuracy_reward(wheels, "p2")(completions=completions, labels=[["happy", "proud"]]*48)
    assert sizes == [(48, 48)]


# in the trainers

def test_inside_trl(monkeypatch):
    "trl's own code takes the rewards, and `None` for a gold that no wheel knows"
    torch, trainer = pytest.importorskip("torch"), pytest.importorskip("trl.trainer.grpo_trainer")
    functions, weights = make_rewards("acc+format", wheels)
    completions = [[{"role": "assistant", "content": t}] for t in (make_target(["sad"]), "sad", make_target(["neutral"]), "")]
    inputs = [dict(prompt="p", name=str(i), labels=g) for i, g in enumerate([["sad"], ["sad"], ["neutral"], ["neutral"]])]
    monkeypatch.setattr(trainer, "gather", lambda x: x)
    me = SimpleNamespace(accelerator=SimpleNamespace(device="cpu", is_main_process=False), reward_funcs=functions, reward_processing_classes=[None] * 2,
                         reward_func_names=[f.__name__ for f in functions], state=SimpleNamespace(global_step=0), environments=None, args=SimpleNamespace(report_to=[]),
                         _log_completion_extra=None, _log_metric=None)
    found = trainer.GRPOTrainer._calculate_rewards(me, inputs, ["p"] * 4, completions, [[1]] * 4)
    np.testing.assert_allclose(found.numpy(), [[1, 1], [0, 0], [np.nan, 1], [np.nan, 0]])
    assert (found * torch.tensor(weights)).nansum(1).tolist() == pytest.approx([1.2, 0, 0.2, 0])


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A toy model and the rows of the smallest corpus"
    pytest.importorskip("torch", reason="needs the `train` extra")
    from affectgpt_r1.coldstart import target_text
    from affectgpt_r1.data import load_mer2025
    from affectgpt_r1.features import FeatureCache
    from affectgpt_r1.labels import QUESTIONS
    from affectgpt_r1.model import make_toy_model
    from affectgpt_r1.toy import make_toy_corpus
    root = tmp_path_factory.mktemp("lab")
    corpus = make_toy_corpus(root/"corpus", preset="smoke", seed=0)
    human, captions = load_mer2025(corpus, "human"), load_mer2025(corpus, "caption")
    model, processor = make_toy_model([target_text(r, "think") + r["subtitle"] for r in captions] + list(QUESTIONS.values()))
    processor.features = FeatureCache(root/"features", model, processor)
    processor.features.compute(human)
    return SimpleNamespace(root=root, human=human, model=model, processor=processor)


def test_frozen_copy(lab):
    "Its score is the mean log-probability of the text and the end, depends on the clip, and stays when the policy moves on"
    import torch

    from affectgpt_r1.grpo import token_logps
    from affectgpt_r1.model import make_prompt
    score, (first, second) = frozen_score(lab.model, lab.processor), (make_prompt(lab.human[i]) for i in (0, 1))
    text = make_target(["happy", "sad"])
    inputs = lab.processor.apply_chat_template([first], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt")
    written = torch.tensor([lab.processor.tokenizer(text)["input_ids"] + [lab.processor.tokenizer.eos_token_id]])
    ids = torch.cat([inputs.pop("input_ids"), written], 1); inputs.pop("attention_mask")
    with torch.no_grad(): want = token_logps(lab.model, ids, torch.ones_like(ids), written.shape[1], **inputs).mean().item()
    before = score(dict(prompt=first), text)
    assert before == pytest.approx(want, abs=1e-4)
    swapped = [dict(first[0], content=[second[0]["content"][0], first[0]["content"][1]])]   # the words of one clip with the media of another
    assert abs(score(dict(prompt=swapped), text) - before) > 1e-5
    saved = lab.model.lm_head.weight.detach().clone()
    with torch.no_grad(): lab.model.lm_head.weight.mul_(2)
    assert score(dict(prompt=first), text) == before
    with torch.no_grad(): lab.model.lm_head.weight.copy_(saved)


@pytest.mark.parametrize("name", ["precision+recall", "all-five"])
def test_recipes_train(lab, name):
    "Two steps through trl: each component is in the log by its name, with the words, and the recipe's own settings are taken"
    import copy

    from affectgpt_r1.grpo import train_grpo
    recipe, model = RECIPES[name], copy.deepcopy(lab.model)
    judge = likelihood_judge(frozen_score(model, lab.processor))
    mode = recipe.modes[0]
    log = train_grpo(model, lab.processor, lab.human, make_rewards(recipe, wheels, judge=judge), lab.root/name, mode=mode, steps=2, prompts=2, group=4, max_new_tokens=8, **recipe.trl)
    assert {f"rewards/{c}/mean" for c, _ in recipe.weights} | {"answer/words", "frac_reward_zero_std", "completions/clipped_ratio"} <= log[0].keys()


def test_as_verl_calls_it():
    "verl 0.9.1, NaiveRewardManager: keyword arguments, one completion at a time; a dict must hold `score`"
    compute_score = verl_score("acc+format+p1", wheels)
    call = lambda text, gold, **k: compute_score(data_source="mer2025", solution_str=text, ground_truth=gold, extra_info={"num_turns": 1}, **k)
    assert call("<answer>happy, glad</answer>", ["happy"]) == {"score": .5 + .2, "accuracy": .5, "format": 1.}
    assert call("<answer>happy</answer>", "[happy, glad]", reward_router_address="host", reward_model_tokenizer=None)["score"] == 1.2
    assert call("<answer>sad</answer>", np.array(["neutral"], object)) == {"score": .2, "accuracy": 0., "format": 1.}   # verl knows no None
    assert compute_score("x", "sad", ["sad"], None)["score"] == 0 and not inspect.iscoroutinefunction(compute_score)
    with pytest.raises(ValueError, match="needs a judge"): verl_score("all-five", wheels)


def test_as_swift_calls_it():
    "ms-swift 4.6.0: registered by name, made with `args=`, called with completions and columns; the class's name is the one in the log"
    orms = {"accuracy": object, "format": object}   # its own; ours must not take their place
    orms.update(swift_rewards("all-five", wheels, judge=shorter))
    assert list(orms)[:2] == ["accuracy", "format"] and len(orms) == 7
    completions = ["<think>She is sad.</think><answer>sad</answer>", "<think>She is sad.</think><answer>sad, low</answer>"]
    columns = dict(trainer_state=SimpleNamespace(global_step=0), messages=[[{"role": "user", "content": "?"}]] * 2, labels=[["sad"], ["sad"]], name=["clip"] * 2)
    rewards = {}
    for name in list(orms)[2:]:
        reward = orms[name](args=SimpleNamespace())
        assert callable(reward) and not inspect.isfunction(reward)
        rewards[reward.__class__.__name__] = reward(completions, **columns)
    assert rewards == {"accuracy": [1, .5], "format": [1, 1], "dual": [1, 1], "alignment": [1, 1], "perception": [1, 0]}
    assert orms["affectgpt_accuracy"](args=None)(completions[:1], labels=[["neutral"]]) == [None]


# alarms

def run(n=60, **curves):
    "A log as trl writes it: each curve from its first value to its last, with noise, and a summary at the end"
    rng = np.random.default_rng(0)
    names = dict(words="answer/written", tokens="completions/mean_length", f="answer/f", accuracy="rewards/accuracy/mean", format="rewards/format/mean", clipped="completions/clipped_ratio")
    curves = dict(dict(words=(3, 3), f=(.4, .6), accuracy=(.4, .6), format=(.95, 1), clipped=(0, 0)), **curves)
    noise = lambda k: rng.normal(0, .02) * (10 if k in ("words", "tokens") else 1)
    log = [{"step": i, "reward": .5} | {names[k]: np.interp(i, np.linspace(0, n - 1, len(v)), v) + noise(k) for k, v in curves.items() if v} for i in range(n)]
    return log + [{"eval_reward": .5, "step": n}, {"train_runtime": 1., "train_loss": .1, "step": n}]


@pytest.mark.parametrize("curves,alarms", [
    (dict(), []),
    (dict(words=(3, 10), f=(.6, .6), accuracy=(.6, .6)), ["padding"]),
    (dict(words=(3, 10), f=(.6, .6), accuracy=(.6, .2)), ["padding"]),                           # the penalty cuts the reward; F stands still
    (dict(words=(3, 3, 9), f=(.3, .6, .6), accuracy=(.3, .6, .6)), ["padding"]),                 # first it learns, then it pads
    (dict(words=None, f=None, tokens=(8, 30), accuracy=(.6, .6)), ["padding"]),                  # a log without words: tokens do
    (dict(words=(1, 3), f=(.2, .6), accuracy=(.2, .6)), []),                                     # longer and better is no alarm
    (dict(words=(4, 3), f=(.6, .4), accuracy=(.6, .4)), []),
    (dict(format=(1, .4), accuracy=(.3, .7)), ["format"]),
    (dict(format=(1, .4), accuracy=(.6, .3), f=(.6, .3)), []),                                   # both fall: another kind of trouble
    (dict(format=(.4, 1), accuracy=(.3, .7)), []),
    (dict(clipped=(1, 1)), ["truncated"]), (dict(clipped=(0, 0, 1, 1, 1)), ["truncated"]), (dict(clipped=(1, 0)), []), (dict(clipped=(.5, .5)), []),
    (dict(words=(3, 10), f=(.6, .6), format=(1, .4), accuracy=(.3, .7), clipped=(1, 1)), ["padding", "format", "truncated"])])
def test_alarms(curves, alarms): assert list(reward_alarms(run(**curves))) == alarms


def test_no_false_alarm():
    log = pd.read_csv(Path(__file__).parents[1]/"nbs/results/grpo_log.csv").to_dict("records")
    assert len(log) > 100 and reward_alarms(log) == {}
    assert reward_alarms([]) == {} and reward_alarms(run(8, words=(3, 10), f=(.6, .6))) == {}   # too short to tell
    assert reward_alarms([{k: np.nan if "/" in k else v for k, v in r.items()} for r in run()]) == {}
    assert reward_alarms([{"reward": 0., "answer/written": 0., "answer/f": 0.}] * 20) == {}   # nothing said, nothing grown
    padding = reward_alarms(run(words=(3, 10), f=(.6, .6)))["padding"]
    assert padding.startswith("answers grew from 3.") and "F went from 0.6" in padding

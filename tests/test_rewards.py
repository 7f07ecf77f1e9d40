"""Rewards: what they give for odd input, at what speed, without torch, and inside trl"""
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1.labels import make_target
from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.rewards import PENALTIES, RECIPES, Recipe, accuracy_reward, length_penalty, make_rewards
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
some_words = st.lists(st.sampled_from(["happy", "sad", "angry", "worried", "neutral", "zork", ""]), max_size=6)
text = st.one_of(st.text(max_size=80), some_words.map(make_target),
                 st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "sad, glad", " ", "\n"]), max_size=8).map("".join))


def test_no_torch():
    code = "import sys, affectgpt_r1.rewards as r; r.make_rewards(); assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(text, some_words), min_size=1, max_size=8), st.sampled_from(list(PENALTIES)), st.sampled_from(["answer", "think"]))
def test_any_completion_has_a_reward(rows, penalty, mode):
    completions, labels = map(list, zip(*rows))
    functions, weights = make_rewards("acc+format", wheels, penalty, mode)
    for f in functions:
        rewards = f(prompts=[""] * len(rows), completions=completions, completion_ids=[[]] * len(rows), labels=labels)
        assert len(rewards) == len(rows)
        assert all(r is None or (type(r) is float and 0 <= r <= 1) for r in rewards)
        assert f(completions=[[{"role": "assistant", "content": c}] for c in completions], labels=labels) == rewards


@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_accuracy_is_the_metric_times_the_penalty(penalty):
    gold = [["happy"], ["sad", "angry"], ["worried", "sad", "angry"]]
    pred = [["happy", "glad"], ["sad", "cheerful", "angry", "furious"], ["angry"]]
    expected = ew_rewards(gold, pred, wheels=wheels) * [length_penalty(len(p), len(g), penalty) for p, g in zip(pred, gold)]
    found = accuracy_reward(wheels, penalty)([make_target(p) for p in pred], labels=gold)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_each_completion_stands_alone():
    "A reward does not depend on what else is in the batch"
    f = accuracy_reward(wheels)
    completions, labels = [make_target(["sad"]), make_target([]), make_target(["glad", "angry"])], [["sad"], ["neutral"], ["angry"]]
    assert f(completions, labels) == [f([c], [l])[0] for c, l in zip(completions, labels)]
    assert f(completions[::-1], labels[::-1]) == f(completions, labels)[::-1]


def test_long_answers():
    many = ", ".join(f"word{i}" for i in range(1500))
    for answer in (many, "happy " * 2000, "<answer>" * 1500, "happy, " * 1500):
        assert len(answer) >= 10_000
        r, = accuracy_reward(wheels)([f"<answer>{answer}</answer>"], labels=[["happy"]])
        assert 0 <= r <= 1
    assert r == 1.0   # one word, 1,500 times


def test_recipes_print_themselves_and_are_data():
    assert str(RECIPES["acc+format"]).startswith("acc+format")
    functions, weights = make_rewards(Recipe("form", (("format", 2.),), "test"), wheels)
    assert [f.__name__ for f in functions] == ["format"] and weights == [2.]
    with pytest.raises(AttributeError): RECIPES["acc"].name = "other"


def test_a_group_is_scored_in_one_go():
    "64 completions within milliseconds, so that rewards never matter beside sampling"
    rng = np.random.default_rng(0)
    words = ["happy", "sad", "angry", "worried", "surprised", "grateful", "lonely", "proud"]
    draw = lambda: list(rng.choice(words, 3, replace=False))
    completions, labels = [make_target(draw()) for _ in range(64)], [draw() for _ in range(64)]
    f, = make_rewards("acc", wheels)[0]
    def seconds():
        start = time.perf_counter(); f(completions=completions, labels=labels)
        return time.perf_counter() - start
    assert min(seconds() for _ in range(20)) < 0.02


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

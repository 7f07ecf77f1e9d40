"Rewards: what they give for odd input, without torch, and inside the trainers that call them"
import inspect
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1.fields import ordinary_words
from affectgpt_r1.judges import frozen_score, likelihood_judge
from affectgpt_r1.labels import make_target
from affectgpt_r1.mentions import _tokens, find_emotions
from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.rewards import (
    COMPONENTS, PENALTIES, REWARD_RECIPES, RewardRecipe, accuracy_reward, alignment_reward,
    dual_reward, format_reward, graded_scores, length_penalty, make_rewards, pad_synonyms,
    reward_alarms)
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
words = ["happy", "sad", "angry", "worried", "neutral", "negative", "zork", "高兴", ""]
some_words = st.lists(st.sampled_from(words), max_size=6)
TAGS = ["<think>", "</think>", "<answer>", "</answer>", "sad, glad", "not happy", " ", "\n"]
tags = st.lists(st.sampled_from(TAGS), max_size=9).map("".join)


def think(labels, thoughts): return make_target(labels, "think", thoughts)


thought = st.builds(think, some_words, st.text(max_size=40))
text = st.one_of(st.text(max_size=80), some_words.map(make_target), thought, tags)


def shorter(row, a, b): return float(len(a) < len(b))


def test_no_torch():
    code = """
import sys, affectgpt_r1.rewards as r
texts = ['<think>sad</think><answer>sad</answer>']*2
for name in r.REWARD_RECIPES:
    for f in r.make_rewards(name, judge=lambda row, a, b: .5)[0]:
        f(completions=texts, labels=[['sad']]*2, prompts=['p']*2)
assert not {'torch', 'transformers', 'trl', 'openai'} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_others_import_from_here():
    from affectgpt_r1.rewards import answer_labels, completion_text
    assert answer_labels([{"content": make_target(["sad"])}]) == ["sad"]
    assert completion_text("x") == "x"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(text, some_words), min_size=1, max_size=8),
       st.sampled_from(list(PENALTIES)), st.sampled_from(["answer", "think"]))
def test_any_completion_has_a_reward(rows, penalty, mode):
    "Never an error, never NaN, always in [0, 1] or None, and the same for text and for messages"
    completions, labels = map(list, zip(*rows))
    names = [c for c in COMPONENTS if mode == "think" or c not in ("dual", "alignment")]
    every = RewardRecipe("every", tuple((c, 1.) for c in names), "all there are")
    messages = [[{"role": "assistant", "content": c}] for c in completions]
    prompts = [""] * len(rows)
    for f in make_rewards(every, wheels, penalty, mode, judge=shorter)[0]:
        rewards = f(prompts=prompts, completions=completions, completion_ids=[[]] * len(rows),
                    labels=labels)
        assert len(rewards) == len(rows)
        for r in rewards: assert r is None or (type(r) is float and 0 <= r <= 1 + 1e-12), f.__name__
        assert f(completions=messages, labels=labels, prompts=prompts) == rewards


# format and length

THOUGHT_AND_ANSWER = "<think>x</think><answer>sad</answer>"


@pytest.mark.parametrize("mode,text,want", [
    ("answer", "<answer>sad</answer>", 1), ("answer", " <answer>sad</answer>\n", 1),
    ("answer", "<answer></answer>", 0), ("answer", "sad", 0), ("answer", "<answer>sad", 0),
    ("answer", "<answer>sad</answer>.", 0), ("answer", THOUGHT_AND_ANSWER, 0),
    ("think", THOUGHT_AND_ANSWER, 1), ("think", "<think></think>\n<answer>sad</answer>", 1),
    ("think", "<answer>sad</answer>", 0), ("think", "<answer>sad</answer><think>x</think>", 0),
    ("think", "<think>x</think><think>y</think><answer>sad</answer>", 0)])
def test_format(mode, text, want): assert format_reward(mode)([text]) == [want]


def papers_penalties(n, g):
    "Eq. 15 for an answer of n words that is longer than the gold's g"
    return {"p1": 1/(n - g + 1), "p2": g/n, "p3": np.log(g)/np.log(n),
            "p3+1": np.log(g + 1)/np.log(n + 1), None: 1.}


@pytest.mark.parametrize("g", range(1, 12))
def test_penalties_are_the_papers(g):
    "Eq. 15, and 1 for every answer that is no longer than the gold"
    for n in range(0, 30):
        factor = {kind: length_penalty(n, g, kind) for kind in PENALTIES}
        if n <= g:
            assert set(factor.values()) == {1.}
            continue
        assert factor == pytest.approx(papers_penalties(n, g), abs=1e-15)
        assert factor["p1"] <= factor["p2"] + 1e-12 and factor["p2"] <= factor["p3+1"] + 1e-12
        if g > 2:
            assert factor["p2"] <= factor["p3"] + 1e-12
            assert factor["p3"] + 1e-12 <= factor["p3+1"] + 2e-12


def test_penalties_of_short_golds_and_of_arrays():
    assert [length_penalty(n, 1, "p3") for n in (1, 2, 9)] == [1, 0, 0]   # a defect as printed
    assert length_penalty(2, 1, "p3+1") == pytest.approx(np.log(2)/np.log(3))
    assert length_penalty(3, 0) == length_penalty(3, 1)
    grid = length_penalty(*np.meshgrid(np.arange(30), np.arange(12)), "p3")
    assert grid.shape == (12, 30) and np.isfinite(grid).all() and (np.diff(grid) <= 1e-12).all()
    with pytest.raises(ValueError, match="'p1', 'p2', 'p3', 'p3\\+1', None"):
        length_penalty(3, 2, "p4")


# the answer

@pytest.mark.parametrize("measure", ["f", "precision", "recall", "jaccard"])
@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_accuracy_is_the_metric_times_the_penalty(penalty, measure):
    gold = [["happy"], ["sad", "angry"], ["worried", "sad", "angry"]]
    pred = [["happy", "glad"], ["sad", "cheerful", "angry", "furious"], ["angry"]]
    factors = [length_penalty(len(p), len(g), penalty) for p, g in zip(pred, gold)]
    expected = ew_rewards(gold, pred, wheels=wheels, measure=measure) * factors
    reward = accuracy_reward(wheels, penalty, measure=measure)
    found = reward([make_target(p) for p in pred], labels=gold)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert reward.__name__ == ("accuracy" if measure == "f" else measure)


def test_each_completion_stands_alone():
    "A reward does not depend on what else is in the batch"
    f = accuracy_reward(wheels)
    completions = [make_target(["sad"]), make_target([]), make_target(["glad", "angry"])]
    labels = [["sad"], ["neutral"], ["angry"]]
    assert f(completions, labels) == [f([c], [x])[0] for c, x in zip(completions, labels)]
    assert f(completions[::-1], labels[::-1]) == f(completions, labels)[::-1]
    with pytest.raises(TypeError, match="labels"): f(completions)
    with pytest.raises(ValueError, match="measure"):
        accuracy_reward(wheels, measure="luck")(completions, labels)


def test_long_answers():
    many = ", ".join(f"word{i}" for i in range(1500))
    for answer in (many, "happy " * 2000, "<answer>" * 1500, "happy, " * 1500):
        assert len(answer) >= 10_000
        r, = accuracy_reward(wheels)([f"<answer>{answer}</answer>"], labels=[["happy"]])
        assert 0 <= r <= 1
    assert r == pytest.approx(1/1500)   # one word, 1,500 times: right, and far too long


def test_f_and_words_are_logged_beside_the_reward():
    f = accuracy_reward(wheels, "p1", measure="recall")
    def logged(completions, labels):
        found = {}
        f(completions, labels, log_metric=found.__setitem__)
        return found
    three = [make_target(["happy", "angry"]), make_target(["sad"]), "?"]
    found = logged(three, [["happy"], ["neutral"], ["sad"]])
    want = {"answer/f": (2/3 + 0)/2, "answer/words": 1., "answer/written": 1.}
    assert found == pytest.approx(want)
    found = logged([make_target(["sad"])], [["neutral"]])
    assert found == {"answer/words": 1., "answer/written": 1.}
    found = logged(["<answer>sad, sad, sad</answer>"], [["neutral"]])
    assert found == {"answer/words": 1., "answer/written": 3.}


# odd completions, in mode "think"; the chapter shows eight of them

T, SAID = "<think>She smiles, she is not sad.</think>", "<answer>happy</answer>"
ODD = [   # completion; format, accuracy with P2, dual with P2, alignment, graded with P2
    (f"{T}<answer>happy, cheerful</answer>", 1, 1, 1, 1, 1),
    (f"{T}\n\n<answer>Happy; CHEERFUL.</answer>\n", 1, 1, 1, 1, 1),
    (f"{T}<answer>happy, glad, joyful, cheerful</answer>", 1, .5, 1, 1, .48),
    (f"{T}<answer>sad</answer>", 1, 0, 1, 0, 0),
    (f"{T}<answer>happy, chee", 0, 1, 1, 1, .97),            # cut off: what can be read counts
    (f"{T}<answer></answer>", 0, 0, 1, 0, 0),
    (f"<think></think>{SAID}", 1, 1, 0, 0, .97),             # empty thoughts keep to the format
    (SAID, 0, 1, 0, 0, .97),
    (f"{SAID}{T}", 0, 1, 0, 0, .97),
    (f"{T}<answer>sad</answer>{SAID}", 0, 1, 1, 1, .97),     # the last answer is read
    (f"{T}<think>She is sad.</think>{SAID}", 0, 1, 1, 1, .97),   # the first thoughts are read
    (f"{T}<answer>{SAID}</answer>", 0, 1, 1, 1, .97),
    (f"<think><think>happy</think></think>{SAID}", 0, 1, 1, 1, .97),
    (f"Sure! {T}{SAID}", 0, 1, 1, 1, .97),
    (f"{T}happy, cheerful", 0, 0, 1, 0, 0),                  # no answer tag, no answer
    ("<think>happy, cheerful, happy", 0, 0, 0, 0, 0),        # still thinking
    (f"{T}<answer>高兴, 兴奋</answer>", 1, 0, 1, 0, 0),
    (f"{T}<answer>{'happy ' * 2000}</answer>", 1, 0, 1, 0, 0),   # one label of 12,000 characters
    (f"<think>{'She is happy. ' * 900}</think>{SAID}", 1, 1, 1, 1, .97),
    ("", 0, 0, 0, 0, 0)]


def think_rewards():
    "All rewards that look at one completion, with P2"
    return [format_reward("think"), accuracy_reward(wheels, "p2", "think"),
            dual_reward(wheels, "p2"), alignment_reward(wheels),
            accuracy_reward(wheels, "p2", "think", "graded")]


def test_odd_completions():
    labels = [["happy", "cheerful"]] * len(ODD)
    found = [f([o[0] for o in ODD], labels=labels) for f in think_rewards()]
    for (text, *want), got in zip(ODD, zip(*found)):
        assert list(got) == pytest.approx(want, abs=.005), text


@pytest.mark.parametrize("gold,want", [
    (["happy"], 1), (["negative"], 0), (["happy", "zork"], 1), (["neutral"], None), ([], None),
    (None, None), ("[happy, glad]", 1), ("[]", None)])
def test_odd_golds(gold, want):
    "Where no wheel knows the gold, the rewards that need it do not apply"
    answer = "<think>She is glad.</think><answer>joyful</answer>"
    found = {f.__name__: f([answer], labels=[gold])[0] for f in think_rewards()}
    assert found["accuracy"] == found["dual"] == want
    assert found["format"] == found["alignment"] == 1
    assert (found["graded"] is None) == (want is None)


# emotion words in running text

@pytest.mark.parametrize("said,found", [
    ("She is not happy.", []), ("He never felt calm.", []), ("She isn't angry", []),
    ("SHE ISN’T ANGRY", []), ("without fear", []), ("She does not seem to be very happy", []),
    ("neither sad nor angry", []), ("far from happy", []), ("free of fear", []),
    ("no fear, anger, or sadness", []), ("He is not sad, but angry.", ["angry"]),
    ("not sad. Angry.", ["angry"]), ("not only sad but angry", ["sad", "angry"]),
    ("She can't hide her joy", ["joy"]), ("no doubt angry", ["angry"]),
    ("happy, not sad, but worried", ["happy", "worried"]), ("sad\nnot", ["sad"]),
    ("not a word: sad", ["sad"]),
    ("he is not what one would call in any way sad", ["sad"]),   # too far away
    ("over the moon", ["over the moon"]), ("The moon", []), ("sad-looking", ["sad"]),
    ("'sad'", ["sad"]), ("the man's anger", ["anger"]), ("sad and sad, Sad", ["sad"]),
    ("a well lit, open face", []), ("feels good", ["good"]), ("feels like", []),
    ("looks good", []), ("很高兴", []), ("", []), ("sadhappy", [])])
def test_emotion_words(said, found): assert find_emotions(said, wheels) == found


def test_every_form_is_found_after_feel():
    for form in wheels.vocabulary:
        found = find_emotions(f"She feels {form}.", wheels)
        want = [] if form in ("like", "kind", "still") else [form]
        assert list(map(_tokens, found)) == list(map(_tokens, want)), form   # hyphen as space


def test_everyday_words_do_not_count_alone():
    ordinary = ordinary_words()
    assert ordinary & set(wheels.vocabulary)
    assert find_emotions("; ".join(sorted(ordinary)), wheels) == []
    sectors = {word for tree in wheels.trees.values() for word in tree}
    assert not ordinary & sectors - {"powerful", "bad"}


SNIPPETS = ["not", "no", "and", ",", ".", "sad", "feel", "low", "over", "the", "moon"]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200),
                 st.lists(st.sampled_from(SNIPPETS), max_size=30).map(" ".join)))
def test_any_text_can_be_searched(text):
    found = find_emotions(text, wheels)
    assert len(set(found)) == len(found) and set(found) <= set(wheels.vocabulary)


def test_searching_takes_time_with_the_text():
    "Not with its square (benchmarks/rewards.py has the time itself)"
    sentence = ("In the clip the woman is smiling softly and her voice is low and steady; "
                "she does not look worried or sad, over the moon in fact. ")
    def best(text):
        def seconds():
            start = time.thread_time()   # of this thread alone: the machine may be busy
            find_emotions(text, wheels)
            return time.thread_time() - start
        return min(seconds() for _ in range(9))
    assert best(sentence*400)/best(sentence*40) < 25   # ten times the text


def test_dual_and_alignment():
    dual, align = dual_reward(wheels, "p2"), alignment_reward(wheels)
    both = "<think>{}</think><answer>{}</answer>"
    completions = [both.format("She is sad, lonely.", "happy"), both.format("not sad", "sad"),
                   "<think>sad", "<answer>sad</answer><think>sad</think>",
                   both.format("sad", "neutral")]
    assert dual(completions, labels=[["sad"]]*5) == [.5, 0, 0, 0, 1]
    assert align(completions) == [0, 0, 0, 0, 0]
    assert dual(completions, labels=[["neutral"]]*5) == [None]*5
    want = ew_rewards([["sad"]], [["sad", "angry"]], wheels, measure="jaccard")
    assert align([both.format("sad, angry", "sad")]) == pytest.approx(want)


# the right neighbourhood

def test_graded_scores():
    def graded(gold, word): return graded_scores([[gold]], [[word]], wheels)[0]
    assert graded("furious", "furious") == pytest.approx(1) and graded("furious", "calm") == 0
    found = [graded("furious", word) for word in ("bored", "annoyed", "enraged")]
    assert 0 < found[0] < found[1] < found[2] < 1


def test_graded_scores_lie_between():
    rng = np.random.default_rng(0)
    def answer(): return list(rng.choice(wheels.vocabulary, rng.integers(0, 5)))
    def answers(): return [answer() for _ in range(300)]
    g, q = answers(), answers()
    x = graded_scores(g, q, wheels)
    one, two = (ew_rewards(g, q, wheels, level, undefined="nan") for level in (1, 2))
    known = ~np.isnan(one)
    assert (np.isnan(x) == ~known).all()
    assert (x[known] >= (one/2 + two/2)[known] - 1e-12).all() and (x[known] <= 1 + 1e-12).all()
    reversed_ = graded_scores(g[::-1], q[::-1], wheels)
    assert np.array_equal(x[::-1], reversed_, equal_nan=True)


def test_neighbours_are_those_on_plutchiks_circle():
    tree = wheels.trees["Plutchik"]
    circle, forms = list(tree), {w: [w] for w in tree}
    alone = type(wheels)("one", {"Plutchik": tree}, forms, forms)
    other = type(wheels)("two", {"Other": tree}, forms, forms)
    for i, gold in enumerate(circle):
        near = {w for w in circle if graded_scores([[gold]], [[w]], alone)[0] == .25}
        assert near == {circle[i-1], circle[(i+1) % 8]}
        hits = [w for w in circle if graded_scores([[gold]], [[w]], other)[0]]
        assert hits == [gold]   # no order, no neighbours


# recipes

def test_recipes_print_themselves_and_are_data():
    recipes = REWARD_RECIPES
    assert str(recipes["acc+format"]).startswith("acc+format")
    assert "think" in str(recipes["dual"]) and "p1" in str(recipes["acc+format+p1"])
    functions, weights = make_rewards(RewardRecipe("form", (("format", 2.),), "test"), wheels)
    assert [f.__name__ for f in functions] == ["format"] and weights == [2.]
    with pytest.raises(AttributeError): recipes["acc"].name = "other"
    assert hash(recipes["precision+recall"]) != hash(recipes["graded"])
    for name, recipe in recipes.items():
        functions, weights = make_rewards(name, wheels, judge=shorter)
        assert [(f.__name__, w) for f, w in zip(functions, weights)] == list(recipe.weights)


def test_a_recipe_brings_its_penalty_and_mode():
    plain = make_target(["happy", "glad", "joyful"])
    def first(*args, **how):
        return make_rewards(*args, **how)[0][0](completions=[plain], labels=[["happy"]])[0]
    found = [first(f"acc+format+{p}") for p in ("p1", "p2", "p3")]
    assert found == pytest.approx([1/3, 1/3, 0])
    assert first("acc+format") == first("acc+format", penalty="p2")
    assert first("acc", penalty=None) == 1
    texts = ["<think>x</think>" + plain, plain]
    found = [make_rewards(name, judge=shorter)[0][1](completions=texts)
             for name in ("all-five", "acc+format")]
    assert found == [[1, 0], [0, 1]]


ACC = REWARD_RECIPES["acc"]


@pytest.mark.parametrize("call,message", [
    (dict(recipe="best"), "no recipe 'best'; there are acc, acc\\+format"),
    (dict(penalty="p4"), "takes the penalty 'p2', 'p1'"),
    (dict(mode="thought"), "takes the mode 'answer', 'think'"),
    (dict(recipe="acc+format+p1", penalty="p2"), "takes the penalty 'p1', not 'p2'"),
    (dict(recipe="dual", mode="answer"), "takes the mode 'think'"),
    (dict(recipe="all-five"), "needs a judge"),
    (dict(recipe=replace(ACC, weights=(("luck", 1.),))), "asks for luck"),
    (dict(recipe=replace(ACC, weights=(("dual", 1.),))), "needs mode='think'"),
    (dict(recipe=replace(ACC, modes=("loud",))), "mode is 'loud'"),
    (dict(recipe=replace(ACC, penalties=("p9",))), "penalty is 'p9'")])
def test_wrong_recipes_are_named(call, message):
    with pytest.raises(ValueError, match=message): make_rewards(**call)


def test_padding_is_free_and_the_penalties_see_it():
    answer = ["worried", "surprised", "neutral", "zork"]
    padded = pad_synonyms(answer, wheels)
    assert padded[:4] == answer and len(answer) + 4 <= len(padded) <= len(answer) + 6
    assert len(set(padded)) == len(padded)
    worried = wheels.encode(["worried"])
    same = [w for w in ("anxious", "afraid") if (wheels.encode([w]) == worried).all()]
    assert pad_synonyms(["worried"], wheels, ["angry", "anxious", "afraid"]) == ["worried", *same]
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
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    functions, weights = make_rewards("acc+format", wheels)
    texts = (make_target(["sad"]), "sad", make_target(["neutral"]), "")
    completions = [[{"role": "assistant", "content": t}] for t in texts]
    golds = [["sad"], ["sad"], ["neutral"], ["neutral"]]
    inputs = [dict(prompt="p", name=str(i), labels=g) for i, g in enumerate(golds)]
    monkeypatch.setattr(trainer, "gather", lambda x: x)
    me = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False), reward_funcs=functions,
        reward_processing_classes=[None] * 2, reward_func_names=[f.__name__ for f in functions],
        state=SimpleNamespace(global_step=0), environments=None, args=SimpleNamespace(report_to=[]),
        _log_completion_extra=None, _log_metric=None)
    calculate = trainer.GRPOTrainer._calculate_rewards
    found = calculate(me, inputs, ["p"] * 4, completions, [[1]] * 4)
    np.testing.assert_allclose(found.numpy(), [[1, 1], [0, 0], [np.nan, 1], [np.nan, 0]])
    total = (found * torch.tensor(weights)).nansum(1).tolist()
    assert total == pytest.approx([1.2, 0, 0.2, 0])


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A toy model and the rows of the smallest corpus"
    pytest.importorskip("torch", reason="needs the `train` extra")
    from affectgpt_r1.coldstart import target_text
    from affectgpt_r1.data import load_mer2025
    from affectgpt_r1.features import FeatureCache
    from affectgpt_r1.labels import QUESTIONS
    from affectgpt_r1.parts import make_toy_model
    from affectgpt_r1.toy import make_toy_corpus
    root = tmp_path_factory.mktemp("lab")
    corpus = make_toy_corpus(root/"corpus", preset="smoke", seed=0)
    human, captions = load_mer2025(corpus, "human"), load_mer2025(corpus, "caption")
    texts = [target_text(r, "think") + r["subtitle"] for r in captions] + list(QUESTIONS.values())
    model, processor = make_toy_model(texts)
    processor.features = FeatureCache(root/"features", model, processor)
    processor.features.compute(human, model, processor)
    return SimpleNamespace(root=root, human=human, model=model, processor=processor)


def test_frozen_copy(lab):
    "The mean log-probability of the text and the end; it stays when the policy moves on"
    import torch

    from affectgpt_r1.grpo import token_logps
    from affectgpt_r1.processing import make_prompt
    score, tokenizer = frozen_score(lab.model, lab.processor), lab.processor.tokenizer
    first, second = make_prompt(lab.human[0]), make_prompt(lab.human[1])
    text = make_target(["happy", "sad"])
    inputs = lab.processor.apply_chat_template(
        [first], tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt")
    written = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
    ids = torch.cat([inputs.pop("input_ids"), written], 1)
    inputs.pop("attention_mask")
    with torch.no_grad():
        logps = token_logps(lab.model, ids, torch.ones_like(ids), written.shape[1], **inputs)
    before = score(dict(prompt=first), text)
    assert before == pytest.approx(logps.mean().item(), abs=1e-4)
    contents = [second[0]["content"][0], first[0]["content"][1]]   # another clip's media
    swapped = [dict(first[0], content=contents)]
    assert abs(score(dict(prompt=swapped), text) - before) > 1e-5
    saved = lab.model.lm_head.weight.detach().clone()
    with torch.no_grad(): lab.model.lm_head.weight.mul_(2)
    assert score(dict(prompt=first), text) == before
    with torch.no_grad(): lab.model.lm_head.weight.copy_(saved)


def test_frozen_score_is_the_loss_of_the_written_part(lab):
    "Built by hand from prompt, text and end, to the last bit"
    import torch

    from affectgpt_r1.processing import make_prompt
    score, tokenizer = frozen_score(lab.model, lab.processor), lab.processor.tokenizer
    for i, text in enumerate([make_target(["happy", "sad"]), "", "She is sad <answer>"]):
        prompt = make_prompt(lab.human[i])
        batch = lab.processor.apply_chat_template(
            [prompt], tokenize=True, return_dict=True, return_tensors="pt",
            add_generation_prompt=True)
        written = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        head = torch.full_like(batch["input_ids"], -100)
        batch["labels"] = torch.cat([head, written], 1)
        batch["input_ids"] = torch.cat([batch["input_ids"], written], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.no_grad(): want = -lab.model.eval()(**batch).loss.item()
        assert score(dict(prompt=prompt), text) == want


def test_frozen_score_of_thoughts(lab):
    "Their tokens as the model writes them, between its tags, without an end of the reply"
    import torch

    from affectgpt_r1.processing import make_prompt
    score, prompt = frozen_score(lab.model, lab.processor, "think"), make_prompt(lab.human[0])
    text = "She smiles and speaks fast."
    batch = lab.processor.training_batch([prompt], [f"<think>{text}</think>"])
    with torch.no_grad(): logits = lab.model.eval()(**batch).logits[0, :-1]
    labels = batch["labels"][0, 1:]
    logps = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    want = logps[labels >= 0][:-1].mean().item()   # without the end
    assert score(dict(prompt=prompt), text) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("name", ["precision+recall", "all-five"])
def test_recipes_train(lab, name):
    "Two steps through trl: each component is logged by its name, and a name brings its settings"
    import copy

    from affectgpt_r1.grpo import train_grpo
    recipe, model, rewards = REWARD_RECIPES[name], copy.deepcopy(lab.model), name
    if name == "all-five":   # needs a judge
        judge = likelihood_judge(frozen_score(model, lab.processor))
        rewards = make_rewards(recipe, wheels, judge=judge)
    log = train_grpo(model, lab.processor, lab.human, rewards, lab.root/name, mode=recipe.modes[0],
                     steps=2, num_prompts=2, num_generations=4, max_new_tokens=8)
    want = {"answer/words", "frac_reward_zero_std", "completions/clipped_ratio"}
    assert {f"rewards/{c}/mean" for c, _ in recipe.weights} | want <= log[0].keys()
    about = json.loads((lab.root / name / "run.json").read_text())
    assert {field: about[field] for field in recipe.trl} == recipe.trl


# alarms

COLUMNS = dict(words="answer/written", tokens="completions/mean_length", f="answer/f",
               accuracy="rewards/accuracy/mean", format="rewards/format/mean",
               clipped="completions/clipped_ratio")
HEALTHY = dict(words=(3, 3), f=(.4, .6), accuracy=(.4, .6), format=(.95, 1), clipped=(0, 0))


def run(n=60, **curves):
    "A log as trl writes it: each curve from its first value to its last, with noise, and a summary"
    rng, log = np.random.default_rng(0), []
    for i in range(n):
        step = {"step": i, "reward": .5}
        for name, values in (HEALTHY | curves).items():
            if not values: continue
            scale = 10 if name in ("words", "tokens") else 1
            value = np.interp(i, np.linspace(0, n - 1, len(values)), values)
            step[COLUMNS[name]] = value + rng.normal(0, .02) * scale
        log.append(step)
    end = {"train_runtime": 1., "train_loss": .1, "step": n}
    return log + [{"eval_reward": .5, "step": n}, end]


FLAT = dict(f=(.6, .6), accuracy=(.6, .6))


@pytest.mark.parametrize("curves,alarms", [
    (dict(), []),
    (dict(words=(3, 10), **FLAT), ["padding"]),
    # the penalty cuts the reward; F stays
    (dict(words=(3, 10), f=(.6, .6), accuracy=(.6, .2)), ["padding"]),
    # first it learns, then it pads
    (dict(words=(3, 3, 9), f=(.3, .6, .6), accuracy=(.3, .6, .6)), ["padding"]),
    # a log without words: tokens do
    (dict(words=None, f=None, tokens=(8, 30), accuracy=(.6, .6)), ["padding"]),
    # longer and better is no alarm
    (dict(words=(1, 3), f=(.2, .6), accuracy=(.2, .6)), []),
    (dict(words=(4, 3), f=(.6, .4), accuracy=(.6, .4)), []),
    (dict(format=(1, .4), accuracy=(.3, .7)), ["format"]),
    # both fall: another kind of trouble
    (dict(format=(1, .4), accuracy=(.6, .3), f=(.6, .3)), []),
    (dict(format=(.4, 1), accuracy=(.3, .7)), []),
    (dict(clipped=(1, 1)), ["truncated"]), (dict(clipped=(0, 0, 1, 1, 1)), ["truncated"]),
    (dict(clipped=(1, 0)), []), (dict(clipped=(.5, .5)), []),
    (dict(words=(3, 10), f=(.6, .6), format=(1, .4), accuracy=(.3, .7), clipped=(1, 1)),
     ["padding", "format", "truncated"])])
def test_alarms(curves, alarms): assert list(reward_alarms(run(**curves))) == alarms


def test_no_false_alarm():
    log = pd.read_csv(Path(__file__).parents[1]/"nbs/results/grpo_log.csv").to_dict("records")
    assert len(log) > 100 and reward_alarms(log) == {}
    assert reward_alarms([]) == {}
    assert reward_alarms(run(8, words=(3, 10), f=(.6, .6))) == {}   # too short to tell
    unknown = [{k: np.nan if "/" in k else v for k, v in r.items()} for r in run()]
    assert reward_alarms(unknown) == {}
    nothing_said = [{"reward": 0., "answer/written": 0., "answer/f": 0.}] * 20
    assert reward_alarms(nothing_said) == {}
    padding = reward_alarms(run(words=(3, 10), f=(.6, .6)))["padding"]
    assert padding.startswith("answers grew from 3.") and "F went from 0.6" in padding

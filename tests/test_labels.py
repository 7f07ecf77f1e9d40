"Parsing: what must never happen, on any text"
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1.labels import MODES, make_target, parse_labels, parse_response

SPECIAL_WORDS = ["none", "and", "the", "fed up", "self-conscious", "don't care"]
FRAGMENTS = ["<think>", "</think>", "<answer>", "</answer>", "happy", " ", "sad, ", "\n", "[", "]",
             '"', "'", "- ", "1. ", "and ", ". "]
word = (st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
        | st.sampled_from(SPECIAL_WORDS))
clean = st.lists(word, unique=True, max_size=8)
anything = (st.text(max_size=80) | st.text(st.characters(), max_size=40)
            | st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
any_script = st.lists(st.text(st.characters(categories=["Ll", "Lo"]), min_size=1, max_size=8),
                      unique=True, max_size=6).filter(lambda words: words != ["无"])   # 无: none


@settings(max_examples=400)
@given(anything)
def test_any_text_is_read(text):
    labels = parse_labels(text)
    assert all(x == x.strip() == x.lower() and any(map(str.isalpha, x)) for x in labels)
    assert len(set(labels)) == len(labels)
    for mode in MODES:
        r = parse_response(text, mode)
        assert r.labels == parse_labels(r.answer)
        if r.well_formed:
            assert r.answer and text.count("<answer>") == text.count("</answer>") == 1


@given(any_script)
def test_a_clean_list_comes_back_in_any_script(words):
    assert parse_labels(", ".join(words)) == words == parse_labels("、".join(words))


LONG = [".", "!", " ", "'", "\n", "then ", "the ", "a sense of ", "- ", "1. ", "a's ", "a:", "[",
        "<a", "the character's mood is ", "\ud800"]


@pytest.mark.parametrize("unit,n", [*((unit, 50_000) for unit in LONG),
                                    ("</think><answer>", 300_000)])
def test_long_text_takes_no_long_time(unit, n):
    "No rule goes over the text again and again"
    text, started = unit*(n//len(unit)), time.perf_counter()
    for x in (text, text + "x", f"<think>{text}</think> <answer>{text}</answer>x"):
        parse_labels(x)
        for mode in MODES:
            parse_response(x, mode)
    assert time.perf_counter() - started < 3


@given(clean)
def test_a_clean_list_comes_back(words):
    assert parse_labels(", ".join(words)) == words
    assert parse_labels(words) == words
    if "don't care" not in words:
        assert parse_labels(str(words)) == words == parse_labels(str(words), strict=True)
    numbered = "\n".join(f"{i}. {w.upper()}" for i, w in enumerate(words, 1))
    assert parse_labels(numbered) == words
    assert parse_labels(f"[{', '.join(words)}].") == words


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_a_target_whose_words_hold_a_tag_is_refused(tag):
    thought = f"He cries. {tag} Why?"
    for labels, mode, think in (
            ([f"sad{tag}"], "answer", ""), (["sad"], "think", thought), ([tag], "think", "")):
        with pytest.raises(ValueError, match=tag): make_target(labels, mode, think)
    assert make_target(["sad"], "answer", thought) == "<answer>sad</answer>"  # has no thoughts
    assert make_target(["<sad>"], "think", "a < b") == "<think>a < b</think><answer><sad></answer>"


@given(clean.filter(bool), st.sampled_from(MODES), st.text("abc .,\n", max_size=20))
def test_targets_are_well_formed(words, mode, think):
    r = parse_response(make_target(words, mode, think), mode)
    assert r.well_formed and r.labels == words
    assert not parse_response(make_target(words, "think", think), "answer").well_formed
    assert not parse_response(make_target(words, "answer"), "think").well_formed


@given(st.text(max_size=40))
def test_strict_is_the_rule_of_the_authors(text):
    "Restated character by character"
    if text == "[":
        with pytest.raises(ValueError): parse_labels(text, strict=True)
        return
    body = text[1:] if text[:1] == "[" else text
    body = body[:-1] if body[-1:] == "]" else body
    for quote in "'\"":
        body = body.replace(quote, ",")
    assert parse_labels(text, strict=True) == [x.strip() for x in body.split(",") if x.strip()]


@pytest.mark.parametrize("text,labels", [
    ("The character's emotional state is worried, anxious.", ["worried", "anxious"]),
    ("The main character's emotions are: happy and excited", ["happy", "excited"]),
    ("He feels angry; she seems sad.", ["angry", "sad"]),
    ("Emotions: happy, sad", ["happy", "sad"]),
    ("**Labels:**\n* Happy\n* Fed up", ["happy", "fed up"]),
    ("• joyful\n• proud", ["joyful", "proud"]),
    ("“happy”，“难过”。", ["happy", "难过"]),
    ("高兴、惊讶；害怕", ["高兴", "惊讶", "害怕"]),
    ('```json\n{"emotions": ["happy", "let down"]}\n```', ["happy", "let down"]),
    ("happy/sad | angry & tired", ["happy", "sad", "angry", "tired"]),
    ("happy, sad, and angry", ["happy", "sad", "angry"]),
    ("happy and sad and\nangry", ["happy", "sad", "angry"]),
    ("self-conscious, don't care", ["self-conscious", "don't care"]),
    ("<answer>happy</answer>", ["happy"]),
    ("1) shy 2) proud", ["shy", "proud"]),
    *((nothing, []) for nothing in ("N/A", "None", "None.", "no emotions", "[]", "...", "\u3000")),
])
def test_what_models_write(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize("x", [3, 3.5, True, b"happy", {"happy": 1}, ["happy", 3], [None],
                               [["happy"]], np.array([1.0])])
@pytest.mark.parametrize("strict", [True, False])
def test_anything_but_labels_is_refused(x, strict):
    with pytest.raises(ValueError, match="labels must be"): parse_labels(x, strict=strict)


def test_missing_values():
    for x in (None, float("nan"), np.nan, ""):
        assert parse_labels(x) == parse_labels(x, strict=True) == []
    assert parse_labels(pd.NA) == []
    with pytest.raises(ValueError):    # the authors' code stops there, too
        parse_labels(pd.NA, strict=True)
    assert parse_labels(np.array(["happy"]), strict=True) == ["happy"]
    assert parse_labels(np.array("[happy]"), strict=True) == ["happy"]

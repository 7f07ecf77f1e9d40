"Parsing: what must never happen, on any text"
import os
import time
from unicodedata import category

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1.fields import emotion_words, ordinary_words
from affectgpt_r1.label_parts import _FILLERS
from affectgpt_r1.labels import MODES, make_target, parse_labels, parse_response
from affectgpt_r1.markup import normal_letters, plain_text
from affectgpt_r1.wheels import load_wheels

SPECIAL_WORDS = ["none", "and", "the", "fed up", "self-conscious", "don't care"]
FRAGMENTS = ["<think>", "</think>", "<answer>", "</answer>", "happy", " ", "sad, ", "\n", "[", "]",
             '"', "'", "- ", "1. ", "and ", ". "]
word = (st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
        | st.sampled_from(SPECIAL_WORDS))
clean = st.lists(word, unique=True, max_size=8).filter(
    lambda words: not _FILLERS.intersection(words))   # etc: after a list, never in it
anything = (st.text(max_size=80) | st.text(st.characters(), max_size=40)
            | st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
letters = st.text(st.characters(categories=["Ll", "Lo"]), min_size=1, max_size=8).filter(
    lambda word: all(category(c)[0] in "LM" for c in normal_letters(word)))   # not ŀ: l and a dot
any_script = st.lists(letters, unique_by=normal_letters, max_size=6).filter(
    lambda words: words != ["无"] and not _FILLERS.intersection(words))   # none; second


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
    "In the normal form of Unicode, which is the form of all but a few letters"
    normal = [normal_letters(word) for word in words]
    assert parse_labels(", ".join(words)) == normal == parse_labels("、".join(words))
    assert parse_labels(words) == normal


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


def test_a_long_text_before_a_score_of_zero_takes_no_long_time():
    started = time.process_time()
    for text in ("x"*30_000 + " 0%", "word "*6000 + "- 0%", "sad 0% "*6000): parse_labels(text)
    assert time.process_time() - started < 2


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


@pytest.mark.parametrize("text,labels", [
    ("Happy: 80%, Sad: 20%", ["happy", "sad"]),
    ("- **Happy**: she smiles.\n- **Surprised**: raised brows.", ["happy", "surprised"]),
    ("Happy: the man smiles", ["happy"]),
    ("1. Happy: he is smiling\n2. Sad: tears", ["happy", "sad", "tears"]),
    ("Anger: high, Sadness: low", ["anger", "sadness"]),
    ("Primary emotion: Happy. Secondary: Sad", ["happy", "sad"]),
    ("Emotion: Happy (confidence: 0.9)", ["happy"]),
    ("Happy: 8/10", ["happy"]),
    ("happy: yes, sad: no", ["happy"]),
    ('{"happy": 0.8, "sad": 0.2}', ["happy", "sad"]),
    ('{"happy": true, "sad": false}', ["happy"]),
    ('[{"emotion": "happy", "score": 0.9, "reason": "she'
     ' smiles, and laughs"}, {"emotion": "sad"}]',
     ["happy", "sad"]),
    ("```json\n{\n  \"emotions\": [\"happy\", \"let down\"],\n  \"explanation\":"
     " \"The man frowns: he is angry\"\n}\n```",
     ["happy", "let down"]),
    ("Monica: happy", ["happy"]),
    ("Person 1: happy, Person 2: sad", ["happy", "sad"]),
    ("happy :)", ["happy"]),
    ("Option A: happy", ["happy"]),
    ("情绪：开心", ["开心"]),
    ("开心：80%，难过：20%", ["开心", "难过"]),
    ("开心：她笑了", ["开心"]),
    ("happy: 80% and sad: 20%", ["happy", "sad"]),
    ('{"emotions": ["happy"]}', ["happy"]),
    ("Answer: happy, sad", ["happy", "sad"]),
    ("Answer: **happy**", ["happy"]),
    ("Final answer: happy", ["happy"]),
    ("The answer is: happy", ["happy"]),
    ("Emotion(s): happy", ["happy"]),
    ("Emotions and feelings: happy", ["happy"]),
    ("Happy:\nShe smiles at him.\n\nSad:\nHe cries.", ["happy", "sad"]),
    ("Positive: happy, joyful\nNegative: sad", ["positive", "happy", "joyful", "negative", "sad"]),
    ("Emotion: sad\nReason: he cries, alone", ["sad"]),
    ("Reason: he cries.\nEmotion: sad", ["sad"]),
    ("Confidence: 0.9\nEmotion: sad", ["sad"]),
    ("Facial expression: smiling. Emotion: happy", ["smiling", "happy"]),
    ("[happy](http://x.y)", ["happy"]),
    ("emotions:\n  - happy\n  - sad", ["happy", "sad"]),
    ("happy, sad: ", ["happy", "sad"]),
    ("Happy: 0%, Sad: 100%", ["sad"]),
    ("happy:0.8", ["happy"]),
    ("happy:80%", ["happy"]),
    ("Happy: smiling broadly; Sad: crying", ["happy", "sad", "crying"]),
    ("Joy: 0.85\nTrust: 0.15", ["joy", "trust"]),
    ("Emotion: happy; Intensity: high", ["happy"]),
    ("The emotion is: happy.", ["happy"]),
    ("Surprise: The woman's eyes widen, and her mouth opens.\nJoy: She laughs.",
     ["surprise", "joy"]),
    ("1. **Anger** (0.9): The man shouts.\n2. **Fear** (0.1): He trembles.", ["anger", "fear"]),
    ("Joy | 0.8 | she smiles", ["joy"]), ("happy 80% - she smiles", ["happy"]),
    ("happy (80% confidence), sad (20 % sure)", ["happy", "sad"]),
    ("高兴和愤怒，以及惊讶", ["高兴", "愤怒", "惊讶"]), ("情感标签：愤怒、悲伤", ["愤怒", "悲伤"]),
    ("Anxious/worried: she bites her nails", ["anxious", "worried"]),
    ("{'happy': 0.8, 'sad': 0.2}", ["happy", "sad"]), ("“Happy”: she smiles", ["happy"]),
])
def test_a_word_before_a_colon(text, labels):
    "It is a label where the wheels know it, or where a score or a reason follows"
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text,labels", [
    (r"\boxed{happy}", ["happy"]),
    ("😊 Happy, 😢 Sad", ["happy", "sad"]),
    ("ｈａｐｐｙ，ｓａｄ", ["happy", "sad"]),
    ("„happy“, «sad»", ["happy", "sad"]),
    ("happy<|im_end|>", ["happy"]),
    ("happy</s>", ["happy"]),
    ("(A) happy", ["happy"]),
    ("开心和惊讶", ["开心", "惊讶"]),
    ("happy=0.8", ["happy"]),
    ("They are likely feeling anxious", ["anxious"]),
    ("Joy (80%), Sadness (20%)", ["joy", "sadness"]),
    ("Happy - 80%", ["happy"]),
    ("**Happy** – she smiles", ["happy"]),
    ("Happy - she smiles widely", ["happy"]),
    ("Happy (she smiles), Sad (he cries)", ["happy", "sad"]),
    ("happy 😊 sad 😢", ["happy", "sad"]),
    ("😊😢", []),
    ("A. happy", ["happy"]),
    ("(a) happy", ["happy"]),
    ("A) happy\nB) sad", ["happy", "sad"]),
    ("a. happy, b. sad", ["happy", "sad"]),
    ("平和与安静", ["平和", "安静"]),
    ("内心平和", ["内心平和"]),
    ("态度和蔼可亲", ["态度和蔼可亲"]),
    ("生气和惊讶", ["生气", "惊讶"]),
    ("开心、惊讶以及害怕", ["开心", "惊讶", "害怕"]),
    ("悲伤和气愤", ["悲伤", "气愤"]),
    ("参与感", ["参与感"]),
    ("happy (0.8)", ["happy"]),
    ("happy - 0.8", ["happy"]),
    ("happy 80%", ["happy"]),
    ("80% happy, 20% sad", ["happy", "sad"]),
    ("don't know", ["don't know"]),
    ("don’t care", ["don't care"]),
    ("self-conscious", ["self-conscious"]),
    ("self\u2011conscious", ["self-conscious"]),
    ("happy &amp; sad", ["happy", "sad"]),
    ("&quot;happy&quot;", ["happy"]),
    ("&lt;b&gt;happy&lt;/b&gt;", ["happy"]),
    ('["happy"]', ["happy"]),
    ("| Emotion | Score |\n|---|---|\n| Happy | 0.8 |\n| Sad | 0.2 |", ["happy", "sad"]),
    ("| Happy | 0.8 |", ["happy"]),
    (r"$\text{happy}$", ["happy"]),
    (r"$\boxed{\text{happy, sad}}$", ["happy", "sad"]),
    (r"\textbf{Happy}, \emph{sad}", ["happy", "sad"]),
    (r"\(\boxed{happy}\)", ["happy"]),
    ("cafe\u0301 mood", ["café mood"]),
    ("\ufb01ne", ["fine"]),
    ("hap\u200bpy", ["happy"]),
    ("happy\u00a0, sad", ["happy", "sad"]),
    ("hap\u00adpy", ["happy"]),
    ("İYİ", ["iyi"]),
    ("HAPPY, SAD", ["happy", "sad"]),
    ("「开心」「惊讶」", ["开心", "惊讶"]),
    ("『happy』", ["happy"]),
    ("‹happy›", ["happy"]),
    ("‚happy‘", ["happy"]),
    ("<|im_start|>assistant\nhappy<|im_end|>", ["happy"]),
    ("happy<｜end▁of▁sentence｜>", ["happy"]),
    ("happy<end_of_turn>", ["happy"]),
    ("[INST] happy [/INST]", ["happy"]),
    ("happy<eos>", ["happy"]),
    ("<emotion>happy</emotion><emotion>sad</emotion>", ["happy", "sad"]),
    ("<happy>, <sad>", ["happy", "sad"]),
    ("happy because she smiles", ["happy"]),
    ("She's happy", ["happy"]),
    ("They might be angry", ["angry"]),
    ("He is probably sad, maybe angry", ["sad", "angry"]),
    ("① happy ② sad", ["happy", "sad"]),
    ("1\ufe0f\u20e3 happy 2\ufe0f\u20e3 sad", ["happy", "sad"]),
    ("⒈happy", ["happy"]),
    ("→ happy", ["happy"]),
    ("happy → she smiles", ["happy"]),
    ("✅ happy", ["happy"]),
    ("★ happy ★", ["happy"]),
    ("happy; sad | angry", ["happy", "sad", "angry"]),
    ("happy+sad", ["happy", "sad"]),
    ("happy & sad", ["happy", "sad"]),
    ("#happy #sad", ["happy", "sad"]),
    ("@happy", ["happy"]),
    ("Happy!!! Sad???", ["happy", "sad"]),
    ("happy…sad", ["happy", "sad"]),
    ("_happy_, __sad__", ["happy", "sad"]),
    ("~~happy~~", ["happy"]),
    ("`happy`", ["happy"]),
    ("> happy", ["happy"]),
    ("## Happy\n## Sad", ["happy", "sad"]),
    ("[\"\\u5f00\\u5fc3\"]", ["开心"]),
    (r"happy\nsad", ["happy", "sad"]),
    ("happy=0.8;sad=0.1", ["happy", "sad"]),
    ("خوشحال، غمگین", ["خوشحال", "غمگین"]),
    ("खुश, दुखी", ["खुश", "दुखी"]),
    ("기쁨, 슬픔", ["기쁨", "슬픔"]),
    ("嬉しい・悲しい", ["嬉しい", "悲しい"]),
    ("joy 0.85, trust .15", ["joy", "trust"]),
    ("Happy/Sad", ["happy", "sad"]),
    ("black and white", ["black", "white"]),
])
def test_marks_are_no_words(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text,labels", [
    ("Mood: low", ["low"]),
    ("Emotions: low, sad", ["low", "sad"]),
    ("Emotions: weak, helpless", ["weak", "helpless"]),
    ("Emotion: intense", ["intense"]),
    ('{"emotion": "low", "intensity": "low"}', ["low"]),
    ("emotion=happy", ["happy"]),
    ('<emotion name="happy" score="0.8"/>', ["happy"]),
    ("Emotion = happy, Intensity = low", ["happy"]),
    ("Happy (80%), Sad (0%)", ["happy"]),
    ("happy=1, sad=0", ["happy"]),
    ("happy 90%, sad 0%", ["happy"]),
    ("| happy | 0.9 |\n| sad | 0.0 |", ["happy"]),
    ("0% happy, 100% sad", ["sad"]),
    ("happy: 0.9 and sad: 0", ["happy"]),
    ("happy (high), sad (low)", ["happy", "sad"]),
    ("happy - high, sad - low", ["happy", "sad"]),
    ("happy [high], sad [low]", ["happy", "sad"]),
    ("happy (strong), sad", ["happy", "sad"]),
    ("happy (primary), sad (secondary)", ["happy", "sad"]),
    ("happy (most likely), sad (less likely)", ["happy", "sad"]),
    ("happy (none), sad (absent)", []),
    ("- low\n- sad", ["low", "sad"]),
    ("(low), [sad]", ["low", "sad"]),
    ("[low, weak]", ["low", "weak"]),
    ("label=sad", ["sad"]),
    ("Emotion - happy", ["happy"]),
    ("Emotion → happy", ["happy"]),
    ("## Emotions\n- happy", ["happy"]),
    ("**Emotion** happy", ["happy"]),
    ("Emotions\nhappy, sad", ["happy", "sad"]),
    ("1.happy\n2.sad", ["happy", "sad"]),
    ("1、开心 2、悲伤", ["开心", "悲伤"]),
    ("一、开心\n二、悲伤", ["开心", "悲伤"]),
    ("一、开心", ["开心"]),
    ("a) happy b) sad", ["happy", "sad"]),
    ("II. sad", ["sad"]),
    ("I. happy\nII. sad\niv) calm", ["happy", "sad", "calm"]),
    ("happy¹, sad²", ["happy", "sad"]),
    ("他感到开心和悲伤", ["开心", "悲伤"]),
    ("人物的情绪是开心、惊讶。", ["开心", "惊讶"]),
    ("开心或悲伤", ["开心", "悲伤"]),
    ("开心及悲伤", ["开心", "悲伤"]),
    ("既开心又悲伤", ["开心", "悲伤"]),
    ("开心，因为他笑了", ["开心"]),
    ("可能是开心", ["开心"]),
    ("又惊又喜", ["又惊又喜"]),
    ("疑惑及不安", ["疑惑", "不安"]),
    ("迷惑、疑惑", ["迷惑", "疑惑"]),
    ("措手不及的感觉", ["措手不及的感觉"]),
    ("either happy or sad", ["happy", "sad"]),
    ("mix of joy and fear", ["joy", "fear"]),
    ("a mix of joy and fear", ["joy", "fear"]),
    ("neither, low", ["neither", "low"]),
    ("joy\nconfidence\nfear", ["joy", "confidence", "fear"]), ("情绪为难", ["情绪为难"]),
    ("joy - confidence - fear", ["joy", "confidence", "fear"]), ("# Reason\nhe cries", []),
    ("happy and sad 0%", ["happy"]), ("Emotion: happy (high), low", ["happy", "low"]),
    ("<label value='0' name='sad'/>", []), ("Emotion: none", []), ("dominant: happy", ["happy"]),
])
def test_what_is_said_around_a_word_is_no_label(text, labels):
    "Levels, names of fields, numbers, templates; a word whose score is zero is left out"
    assert parse_labels(text) == labels


MARKS = ["😊", "\\boxed{", "}", "<|im_end|>", "&amp;", "&lt;b&gt;", "A. ", "(b) ", "80%", "0.8",
         "=", ": ", "：", "。", "、", "和", "「", "」", "\u200d", "\u00ad", "ﬁ", "e\u0301", "ｈ",
         "İ", "**", "__", "| ", "$", "\n\n", "because ", "reason", "emotion", "she is ",
         "likely ", "\\u5f00", "```json\n", "無", "ǅ"]
marked = st.lists(st.sampled_from([*FRAGMENTS, *MARKS, *SPECIAL_WORDS]) | st.text(max_size=3),
                  max_size=14).map("".join)


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 600)))
@given(marked | anything)
def test_what_a_list_of_labels_is(text):
    "Each once, without a mark, no longer than the text; and reading it again changes nothing"
    labels = parse_labels(text)
    assert len(set(labels)) == len(labels)
    assert not set("".join(labels)) & set("<>{}[]()|*#:=\\\"&%$^~@,;!?\n\x01\x02")
    assert sum(map(len, labels)) <= len(plain_text(text))
    assert all(label.isascii() or label == normal_letters(label) for label in labels)
    assert parse_labels(", ".join(labels)) == labels == parse_labels(labels)


def test_the_words_that_are_looked_up_are_those_of_the_wheels():
    assert emotion_words() | ordinary_words() >= set(load_wheels().vocabulary)
    assert emotion_words() <= set(load_wheels().vocabulary)


@pytest.mark.parametrize("reply", [
    "Sure! Here are the emotions: happy, sad", "Sure! Here are:\n- happy\n- sad",
    "Certainly! Here's the list: [happy, sad]", "Of course! The emotions are: happy, sad",
    "Okay, here are the labels:\nhappy, sad", "Sure. Based on the clip: happy, sad",
    "Sure thing! Here is: happy and sad"])
def test_a_polite_opening_is_no_label(reply):
    assert parse_labels(reply) == ["happy", "sad"]
    assert parse_response(f"<answer>{reply}</answer>").labels == ["happy", "sad"]


@pytest.mark.parametrize("text, labels", [
    ("sure, confident", ["sure", "confident"]), ("[sure]", ["sure"]), ("sure", ["sure"]),
    ("Sure, happy", ["sure", "happy"]), ("[sure, the happy one]", ["sure", "the happy one"])])
def test_a_sure_person_is_one(text, labels):
    assert parse_labels(text) == labels

"The toy corpus: same seed, same bytes, however it is made; resumable; never mixed with another"
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from affectgpt_r1 import toy
from affectgpt_r1.labels import parse_labels
from affectgpt_r1.media import read_video, read_waveform
from affectgpt_r1.data import check_leakage, check_media, load_mer2025, load_unibench, read_npz
from affectgpt_r1.metrics import UNIBENCH, ew_rewards, unibench
from affectgpt_r1.toy import (
    BENCH, CHANNELS, EMOTIONS, Oracle, State, clip_rng, draw_state, draw_video, load_states, make_toy_corpus, oracle_scores, read_channel,
    state_prior, synth_voice)
from affectgpt_r1.wheels import load_wheels


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as m: yield m.setitem(toy.TOY_SIZES, "few", dict(caption=5, human=4, test=3, unibench=4))


def digest(root): return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return make_toy_corpus(tmp_path_factory.mktemp("toy")/"deep/er/corpus", preset="few", workers=1, progress=False)


def test_layout(corpus):
    assert len(list((corpus/"video").iterdir())) == len(list((corpus/"audio").iterdir())) == 12
    assert pd.read_csv(corpus/"track2_train_mercaptionplus.csv").columns.tolist() == ["name", "openset"]
    assert pd.read_csv(corpus/"track3_train_ovmerd.csv").columns.tolist() == ["name", "reason"]
    assert pd.read_csv(corpus/"subtitle_chieng.csv").columns.tolist() == ["name", "chinese", "english"]
    assert pd.read_csv(corpus/"oracle.csv")["split"].value_counts().to_dict() == dict(caption=5, human=4, test=3) | dict.fromkeys(UNIBENCH, 4)
    assert "no recording" in json.loads((corpus/"corpus.json").read_text())["note"]
    n = len(read_waveform(corpus/"audio/human_00000.wav"))
    assert 2.4*16000 <= n <= 4*16000 and read_video(corpus/"video/human_00000.mp4").shape == (8, 96, 96, 3)


def test_workers_do_not_matter(corpus, tmp_path):
    assert digest(make_toy_corpus(tmp_path/"two", preset="few", workers=2, progress=False)) == digest(corpus)


def test_seed_matters(corpus, tmp_path):
    other = digest(make_toy_corpus(tmp_path/"one", preset="few", seed=1, workers=1, progress=False))
    assert all(other[k] != v for k, v in digest(corpus).items())


def test_resumes(corpus, tmp_path):
    root = shutil.copytree(corpus, tmp_path/"copy")
    kept = root/"video/human_00000.mp4"
    stamp = kept.stat().st_mtime_ns
    for lost in ("video/human_00002.mp4", "audio/sample_00001.wav", "oracle.csv", "unibench/meld-process/label.npz",
                 "unibench/ovmerdplus-process/video/sample_00000.mp4", "unibench/iemocap-process/subvideo-tgt/Ses05M_impro01_F001.avi"): (root/lost).unlink()
    make_toy_corpus(root, preset="few", workers=1, progress=False)
    assert digest(root) == digest(corpus) and kept.stat().st_mtime_ns == stamp


def test_killed_before_the_card(tmp_path):
    "What is left of a corpus.json that was being written does not make the folder another's"
    (tmp_path/".4711-corpus.json").write_text("{")
    toy._claim(tmp_path, dict(seed=0))
    assert json.loads((tmp_path/"corpus.json").read_text()) == dict(seed=0)


def test_stopped_in_the_middle(corpus, tmp_path, monkeypatch):
    made = []
    def stop(job):
        if len(made) == 4: raise KeyboardInterrupt
        made.append(toy_make(job))
    toy_make = toy._make_clip
    monkeypatch.setattr(toy, "_make_clip", stop)
    with pytest.raises(KeyboardInterrupt): make_toy_corpus(tmp_path/"x", preset="few", workers=1, progress=False)
    monkeypatch.setattr(toy, "_make_clip", toy_make)
    assert digest(make_toy_corpus(tmp_path/"x", preset="few", workers=1, progress=False)) == digest(corpus)


def test_killed(corpus, tmp_path):
    "kill -9 while two workers write: they end with it, and the next run completes to the same bytes"
    root, code = tmp_path/"killed", "from affectgpt_r1 import toy; import sys; toy.TOY_SIZES['few'] = dict(caption=5, human=4, test=3, unibench=4)"
    run = subprocess.Popen([sys.executable, "-c", f"{code}; toy.make_toy_corpus(sys.argv[1], preset='few', workers=2)", root], stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(root.rglob("*.mp4"))) < 3: assert run.poll() is None; time.sleep(.02)
    os.kill(run.pid, signal.SIGKILL); run.wait()
    for _ in range(300):
        try: os.killpg(run.pid, 0); time.sleep(.1)
        except ProcessLookupError: break
    else: raise AssertionError("a worker lives on")
    assert len(list(root.rglob("*.mp4"))) < 40
    (root/"video/.4711-human_00000.mp4").write_bytes(b"half")
    assert digest(make_toy_corpus(root, preset="few", workers=1, progress=False)) == digest(corpus)


def test_half_written_file_is_not_kept(tmp_path):
    def fail(p): p.write_bytes(b"half"); raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"): toy._replace(tmp_path/"a.mp4", fail)
    assert not list(tmp_path.iterdir())


def test_refusals(corpus, tmp_path):
    with pytest.raises(ValueError, match="holds another corpus .*seed 0 instead of 7"): make_toy_corpus(corpus, preset="few", seed=7)
    with pytest.raises(ValueError, match="preset 'few' instead of 'smoke'"): make_toy_corpus(corpus, preset="smoke")
    with pytest.raises(ValueError, match="preset 'huge' is unknown, take one of toy, smoke"): make_toy_corpus(tmp_path/"new", preset="huge")
    (tmp_path/"mine").mkdir(); (tmp_path/"mine/thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no toy corpus"): make_toy_corpus(tmp_path/"mine", preset="few")
    assert [p.name for p in (tmp_path/"mine").iterdir()] == ["thesis.tex"]


def test_presets():
    assert toy.TOY_SIZES["toy"] == dict(caption=1000, human=320, test=320, unibench=40)
    assert toy.TOY_SIZES["smoke"] == dict(caption=96, human=48, test=32, unibench=6)


@pytest.mark.parametrize("key", UNIBENCH)
def test_unibench_sets(corpus, key):
    _, file, split, kind, classes = UNIBENCH[key]
    here = BENCH[key]
    folder = corpus/"unibench"/here.root
    subtitles = pd.read_csv(folder/here.subtitles, keep_default_na=False)
    assert subtitles.columns.tolist() == ["name", *here.columns]
    names = subtitles["name"].tolist()
    assert {p.name for p in (folder/here.audio).iterdir()} == {f"{n}.wav" for n in names}
    assert {p.name for p in (folder/here.video).iterdir()} == {f"{n}.{here.ext}" for n in names}
    if split is None: return
    gold = read_npz(folder/file)
    assert all(set(x) == {"emo", "val"} and all(type(v) in (int, float, str) for v in x.values()) for d in gold.values() for x in d.values())
    test = {n: x for n, x in gold[split].items() if key != "IEMOCAPFour" or n[4] == "5"}
    assert list(test) == names and len(names) == 4 and sum(map(len, gold.values())) > 4
    states = load_states(corpus, key)
    for n, x in test.items():
        if kind == "WAF": assert x["emo"] == 0 and np.sign(x["val"]) == np.sign(toy.VALENCE[states[n].primary]) and abs(x["val"]) <= (1 if "SIMS" in key else 3)
        else: assert x["val"] == -10 and toy.EMOTION_OF.get(c := classes[x["emo"]] if classes else x["emo"], c) == states[n].primary


@pytest.mark.parametrize("key", UNIBENCH)
def test_the_readers_read_it(corpus, key):
    "The generated sets load, and decode, through the readers of the real ones"
    rows = check_media(load_unibench(corpus/"unibench", key), progress=False)
    states = load_states(corpus, key) | (load_states(corpus, "test") if key == "OVMERDPlus" else {})
    assert set(rows["name"]) == set(states) and all(rows["subtitle"])
    for row in rows:
        p = states[row["name"]].primary
        if UNIBENCH[key][3] == "WAF": assert np.sign(row["valence"]) == np.sign(toy.VALENCE[p])
        elif key != "OVMERDPlus": assert toy.EMOTION_OF.get(row["labels"][0], row["labels"][0]) == p
    check_leakage(load_mer2025(corpus, "human"), rows)


def test_unibench_names(corpus):
    def names(key, split): return list(read_npz(corpus/"unibench"/BENCH[key].root/UNIBENCH[key][1])[split])
    assert Counter(n[4] for n in names("IEMOCAPFour", "whole_corpus")) == Counter("555512")
    assert names("MELD", "test_corpus")[:4] == ["test_dia0_utt0", "test_dia0_utt1", "test_dia0_utt2", "test_dia1_utt0"]
    assert all(n.startswith("train_dia") for n in names("MELD", "train_corpus"))
    assert pd.read_csv(corpus/"unibench/ovmerdplus-process/ovlabel.csv")["name"].str.split("_").str[0].tolist() == ["sample"]*3 + ["samplenew3"]*4
    assert next((corpus/"unibench/iemocap-process/subvideo-tgt").iterdir()).read_bytes()[8:12] == b"AVI "
    every = pd.read_csv(corpus/"oracle.csv")["name"]
    assert every.is_unique and len(every) == 5+4+3+9*4


def test_classes_have_the_published_shares():
    classes = Counter(toy._classes("MELD", 2610, np.random.default_rng(0)))
    assert all(abs(classes[c]-n) <= 1 for c, n in toy.SHARES["MELD"].items())
    for key in toy.SHARES: assert len(set(toy._classes(key, 6, np.random.default_rng(0))) - {"neutral"}) > 1
    zeros = Counter(toy._classes("CMUMOSEI", 40, np.random.default_rng(0)))["neutral"]
    assert abs(zeros/40-1025/4659) < .03


def test_ov_merd_plus_has_the_clips_of_the_ov_test(corpus, tmp_path, monkeypatch):
    plus = pd.read_csv(corpus/"unibench/ovmerdplus-process/ovlabel.csv").set_index("name")["openset"]
    test = pd.read_csv(corpus/"track2_train_ovmerd.csv").set_index("name")["openset"]
    assert plus[test.index].to_dict() == test.to_dict()
    assert (corpus/"video/sample_00001.mp4").samefile(corpus/"unibench/ovmerdplus-process/video/sample_00001.mp4")
    def refuse(*_): raise OSError("no hard links here")
    monkeypatch.setattr(os, "link", refuse)
    other = make_toy_corpus(tmp_path/"copied", preset="few", workers=1, progress=False)
    assert not (other/"video/sample_00001.mp4").samefile(other/"unibench/ovmerdplus-process/video/sample_00001.mp4")
    assert digest(other) == digest(corpus)


def test_the_table_of_unibench_can_be_filled(corpus, tmp_path):
    "By a reader who names the primary emotion of every clip"
    for key, (*_, kind, _) in UNIBENCH.items():
        states = load_states(corpus, key) | (load_states(corpus, "test") if key == "OVMERDPlus" else {})
        if kind == "WAF": items = ["positive" if toy.VALENCE[s.primary] > 0 else "negative" for s in states.values()]
        else: items = [f"[{s.primary}]" for s in states.values()]
        (tmp_path/key.lower()).mkdir()
        np.savez(tmp_path/key.lower()/f"epoch1-openset{'-sentiment'*(kind == 'WAF')}.npz", filenames=list(states), fileitems=items)
    table = unibench(tmp_path, corpus/"unibench").table.set_index("dataset")
    assert table.index.tolist() == list(UNIBENCH) and (table["n_scored"] > 0).all()
    assert (table["score"].drop("OVMERDPlus") == 1).all() and .5 < table["score"]["OVMERDPlus"] <= 1


def test_states():
    states = [draw_state(clip_rng(0, f"human_{i:05d}", "state")) for i in range(3000)]
    n = Counter(s.primary for s in states)
    neutral, felt = [s for s in states if s.primary == "neutral"], [s for s in states if s.primary != "neutral"]
    assert abs(len(neutral)/3000-toy.NEUTRAL) < .01 and set(n) == {*EMOTIONS, "neutral"}
    assert all(abs(n[e]/len(felt)-p) < .03 for e, p in toy.PRIORS.items())
    assert all(0 < s.intensity <= 1 and s.secondary != s.primary for s in felt)
    assert all(abs(np.mean([getattr(s, c) == "flat" for s in felt])-.1) < .02 for c in ("face", "voice"))
    assert set(neutral) == {State("neutral", 0., "", "flat", "flat", "small talk")}


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_words_are_on_the_wheels(emotion):
    wheels = load_wheels()
    words = [w for band in toy.WORDS[emotion] for w in band] + toy.ASSOCIATED[emotion].split()
    assert all(parse_labels(str([w]), strict=True) == [w] for w in words)
    assert not [w for w in words if not any(wheels.cluster(w, wheel=i, level=1) for i in range(1, 6))]


def test_annotators():
    states = [s for i in range(500) if (s := draw_state(clip_rng(1, f"x{i}", "state"))).primary != "neutral"]
    human = [toy.human_labels(s, clip_rng(1, f"x{i}", "labels")) for i, s in enumerate(states)]
    caption = [toy.caption_labels(s, clip_rng(1, f"x{i}", "labels")) for i, s in enumerate(states)]
    home = {w: e for e, bands in toy.WORDS.items() for b in bands for w in b}
    home |= {b: home[a] for a, b in toy.BRITISH.items()}
    assert all(1 <= len(h) <= 6 and len(set(h)) == len(h) and home[h[0]] == s.primary for h, s in zip(human, states))
    assert all(1 <= len(c) <= 5 for c in caption) and .68 < np.mean([home[c[0]] == s.primary for c, s in zip(caption, states)]) < .86
    assert all(12 <= len(toy.describe(s, clip_rng(1, f"x{i}", "reason")).split()) <= 30 for i, s in enumerate(states))


@pytest.mark.parametrize("pair", [("scared", "surprised"), ("sad", "calm"), ("angry", "disgusted")])
def test_shared_face_is_the_same_clear_one_is_not(pair):
    def film(e, shown): return draw_video(State(e, .9, face=shown), 24, np.random.default_rng(5)).astype(int)
    assert (film(pair[0], "shared") == film(pair[1], "shared")).all()
    assert np.abs(film(pair[0], "clear")-film(pair[1], "clear")).mean() > 1


@pytest.mark.parametrize("pair", [("happy", "surprised"), ("scared", "angry"), ("sad", "disgusted")])
def test_shared_voice_is_the_same_clear_one_is_not(pair):
    def voice(e, shown): return synth_voice(State(e, .9, voice=shown), 2.5, np.random.default_rng(5))
    assert (voice(pair[0], "shared") == voice(pair[1], "shared")).all()
    assert np.abs(voice(pair[0], "clear")-voice(pair[1], "clear")).mean() > .01


def test_flat_channels_tell_nothing():
    faces = [draw_video(State(e, .9, face="flat"), 24, np.random.default_rng(5)) for e in EMOTIONS]
    voices = [synth_voice(State(e, .9, voice="flat"), 2.5, np.random.default_rng(5)) for e in EMOTIONS]
    assert all((f == faces[0]).all() for f in faces) and all((v == voices[0]).all() for v in voices)


def test_sarcasm_contradicts():
    states = [s for i in range(4000) if (s := draw_state(clip_rng(3, f"x{i}", "state"))).words == "sarcastic"]
    assert .02 < len(states)/4000 < .05
    for s in states:
        assert read_channel(s, "words") == "happy" and s.primary not in toy.PLEASANT and "flat" not in (s.face, s.voice)
        line = toy.draw_words(s, np.random.default_rng(0))[1]
        assert any(line == x.split("|")[0] for x in toy.LINES["happy"])
    taken_at_their_word = np.mean([toy.seen_as(s, np.random.default_rng(i)) == "happy" for i, s in enumerate(states)])
    assert .2 < taken_at_their_word < .45


def test_neutral():
    s = draw_state(np.random.default_rng(0), "neutral")
    assert (s.primary, s.face, s.voice, s.words) == ("neutral", "flat", "flat", "small talk")
    assert toy.human_labels(s, np.random.default_rng(0)) == ["neutral"]
    captions = [toy.caption_labels(s, np.random.default_rng(i)) for i in range(500)]
    assert .5 < np.mean([c == ["neutral"] for c in captions]) < .7
    assert toy.describe(s, np.random.default_rng(0), 0) == "The face shows little. The voice is flat. The words say little."
    assert ew_rewards([["neutral"]], [["neutral"]], undefined="nan").tolist() != [0]      # skipped, not scored as wrong


def test_a_class_can_be_asked_for():
    for p in [*EMOTIONS, "neutral"]:
        states = [draw_state(np.random.default_rng(i), p) for i in range(200)]
        assert {s.primary for s in states} == {p} and all(s.secondary != p for s in states)


def test_two_spellings():
    states = [draw_state(clip_rng(5, f"x{i}", "state")) for i in range(3000)]
    lists = [toy.human_labels(s, clip_rng(5, f"x{i}", "labels")) for i, s in enumerate(states)]
    n, wheels = Counter(w for x in lists for w in x), load_wheels()
    for american, british in toy.BRITISH.items():
        assert n[american] > 5 and n[british] > 5 and (wheels.encode([american]) == wheels.encode([british])).all() and wheels.encode([british]).any()
    assert not [x for x in lists if set(x) & set(toy.BRITISH) and set(x) & set(toy.BRITISH.values())]   # nobody mixes them
    captions = [w for i, s in enumerate(states) for w in toy.caption_labels(s, np.random.default_rng(i))]
    assert set(captions) & set(toy.BRITISH) and not set(captions) & set(toy.BRITISH.values())


@pytest.fixture(scope="module")
def oracle(): return Oracle()


def value(oracle, channels): return sum(v for _, v in oracle.policy(channels).values())/(1-toy.NEUTRAL)


SUBSETS = [c for k in range(4) for c in itertools.combinations(CHANNELS, k)]


def test_prior_is_what_is_drawn():
    prior = state_prior()
    assert abs(sum(prior.values())-1) < 1e-12
    drawn = [draw_state(clip_rng(9, f"x{i}", "state")) for i in range(6000)]
    for f in (lambda s: s.words == "sarcastic", lambda s: s.face == "flat", lambda s: s.secondary == "calm", lambda s: s.primary == "neutral",
              lambda s: toy._band(s.intensity) == 0, lambda s: s.words == "sarcastic" and s.voice == "shared", lambda s: s.primary == "sad"):
        assert abs(sum(p for s, p in prior.items() if f(s)) - np.mean([f(s) for s in drawn])) < .02


def test_oracle_never_loses_by_reading_more(oracle):
    values = {frozenset(c): value(oracle, c) for c in SUBSETS}
    assert all(values[a] <= values[b]+1e-12 for a in values for b in values if a <= b)
    assert .35 < values[frozenset()] < .45 and .9 < values[frozenset(CHANNELS)] < 1
    assert values[frozenset({"face", "voice"})] > .1 + max(values[frozenset({c})] for c in CHANNELS)


def test_oracle_expects_what_the_metric_says(oracle):
    "The tables against `ew_rewards`, on the label lists they were made from and on new ones"
    meaning, lists = ("scared", "sad", .85), toy._annotators([*oracle.meanings], 100, 0)
    i = oracle.meanings[meaning]
    words, best = oracle._best(np.eye(len(oracle.meanings))[i])
    assert abs(best - ew_rewards(lists[i], [words]*100).mean()) < 1e-12
    others = [["scared"], ["scared", "sad"], ["scared", "sad", "happy"], ["worried", "gloomy"]]
    assert all(best >= ew_rewards(lists[i], [x]*100).mean() for x in others)
    states = [draw_state(clip_rng(2, f"x{i}", "state")) for i in range(3000)]
    gold = [toy.human_labels(s, clip_rng(2, f"x{i}", "labels")) for i, s in enumerate(states)]
    for c in SUBSETS:
        assert abs(np.nanmean(ew_rewards(gold, [oracle.answer(s, c) for s in states], undefined="nan")) - value(oracle, c)) < .02


def test_oracle_is_deceived_by_sarcasm_only_where_it_hears_nothing_else(oracle):
    s, wheels = State("angry", .8, face="clear", voice="clear", words="sarcastic"), load_wheels()
    assert {wheels.cluster(w, "Roberts") for w in oracle.answer(s, ("words",))} & {"happy"}
    assert {wheels.cluster(w, "Roberts") for w in oracle.answer(s)} == {"angry"}
    assert oracle.answer(s) == oracle.answer(State("angry", .8, face="clear", voice="clear", words="small talk"))


def test_oracle_scores(corpus):
    scores = oracle_scores(corpus)
    assert scores.index.tolist() == [" + ".join(c) or "nothing" for c in SUBSETS]
    assert ((0 <= scores.drop(columns="words")) & (scores.drop(columns="words") <= 1)).all(axis=None)
    assert load_states(corpus) == {n: draw_state(clip_rng(0, n, "state")) for n in ("sample_00000", "sample_00001", "sample_00002")}

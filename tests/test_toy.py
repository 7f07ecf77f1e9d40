"The toy corpus: same seed, same bytes, however it is made; resumable; never mixed with another"
import hashlib
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from affectgpt_r1 import toy
from affectgpt_r1.labels import parse_labels
from affectgpt_r1.media import read_video, read_waveform
from affectgpt_r1.metrics import UNIBENCH
from affectgpt_r1.toy import EMOTIONS, State, clip_rng, draw_state, draw_video, make_toy_corpus, synth_voice
from affectgpt_r1.wheels import load_wheels


@pytest.fixture(autouse=True)
def small(monkeypatch): monkeypatch.setitem(toy.TOY_SIZES, "few", dict(caption=5, human=4, test=3, unibench=4))


def digest(root): return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def corpus(tmp_path): return make_toy_corpus(tmp_path/"deep/er/corpus", preset="few", workers=1, progress=False)


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


def test_resumes(corpus):
    before = digest(corpus)
    kept = corpus/"video/human_00000.mp4"
    stamp = kept.stat().st_mtime_ns
    for lost in ("video/human_00002.mp4", "audio/sample_00001.wav", "oracle.csv"): (corpus/lost).unlink()
    make_toy_corpus(corpus, preset="few", workers=1, progress=False)
    assert digest(corpus) == before and kept.stat().st_mtime_ns == stamp


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

"""Spoken clips: the same bytes however they are made, the length of the video, speakers by split,
and an error that says what to install"""

import hashlib
import json
from importlib.util import find_spec
from shutil import which

import numpy as np
import pytest

from affectgpt_r1 import toy, toy_speech
from affectgpt_r1.media import read_waveform
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.toy_files import clip_seconds
from affectgpt_r1.toy_speech import (
    _FLITE_HZ, SPEAKERS, UNSEEN_SPEAKERS, SpeechSettings, speak, speak_clip, speaker_of,
    speech_settings)
from affectgpt_r1.toy_states import State
from affectgpt_r1.toy_voices import voice_numbers

needs_espeak = pytest.mark.skipif(
    not find_spec("espeakng_loader"), reason="not installed: espeakng-loader==0.2.4")
needs_flite = pytest.mark.skipif(not which("flite"), reason="not installed: flite, of Debian")
FEW = dict(caption=3, human=2, test=2, unibench=1)


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setitem(toy.TOY_SIZES, "few", FEW)


def make_few(root, **options):
    return make_toy_corpus(root, preset="few", progress=False, **dict(workers=1) | options)


def digest(root):
    "The hash of every file below `root`"
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(root.rglob("*")) if p.is_file()}


@needs_espeak
def test_same_seed_same_bytes(tmp_path):
    "In one process, in two, and where a clip was lost; the layout is that of the other corpus"
    a = make_few(tmp_path / "a", spoken=True)
    b = make_few(tmp_path / "b", spoken=True, workers=2)
    found = digest(a)
    assert found == digest(b)
    (a / "audio/human_00001.wav").unlink()
    assert digest(make_few(a, spoken=True)) == found
    plain = digest(make_few(tmp_path / "plain"))
    assert plain.keys() == found.keys()
    differ = {name for name in plain if plain[name] != found[name]}
    assert {name.rpartition(".")[2] for name in differ} == {"wav", "json"}
    assert differ >= {name for name in plain if name.endswith(".wav")}
    names = [p.stem for p in (a / "audio").iterdir()]
    lengths = [len(read_waveform(a / f"audio/{name}.wav")) / 16000 for name in names]
    assert lengths == [clip_seconds(0, name) for name in names]
    with pytest.raises(ValueError, match="another corpus .*voices 'spoken' instead of None"):
        make_few(a)
    with pytest.raises(ValueError, match="another corpus .*voices None instead of 'spoken'"):
        make_few(tmp_path / "plain", spoken=True)


@needs_espeak
def test_an_utterance_does_not_depend_on_the_one_before():
    usual = SpeechSettings(165, 50, 50)
    first = speak("She called this morning.", "en-us+m3", usual)
    speak("Get out!", "en-us+f2", SpeechSettings(300, 90, 90))
    assert np.array_equal(speak("She called this morning.", "en-us+m3", usual), first)


@needs_espeak
@pytest.mark.parametrize("voice", SPEAKERS + UNSEEN_SPEAKERS)
def test_every_speaker_is_there(voice):
    sound = speak("I put the keys on the table.", voice, SpeechSettings(165, 50, 50))
    assert 1 < len(sound) / 16000 < 3 and 0.1 < np.abs(sound).max() <= 1


@needs_espeak
def test_a_slow_voice_is_done_in_time():
    "Said faster only as far as it must be; a text that is too long is named"
    slow = State("sad", 1.0, voice="clear")
    text = "Please do not leave me here alone."
    x = speak_clip(slow, text, 2.4, "en-us+m3", np.random.default_rng(0))
    assert len(x) == 38400 and np.abs(x[-400:]).max() < 0.05 < np.abs(x[:30000]).max()
    with pytest.raises(ValueError, match="'and so on .* can't be said in 2.3 seconds"):
        speak_clip(slow, "and so on " * 40, 2.4, "en-us+m3", np.random.default_rng(0))


@needs_espeak
def test_an_unknown_voice_is_named():
    with pytest.raises(ValueError, match="eSpeak NG has no voice 'nobody'"):
        speak("Hello.", "nobody", SpeechSettings(165, 50, 50))


def test_settings_follow_the_numbers():
    "A strained voice is faster than a heavy one, a lively one higher; flat ones are all alike"
    def settings(emotion, **kw):
        numbers = voice_numbers(State(emotion, 1.0, **kw), np.random.default_rng(0), noise=0)
        return speech_settings(numbers)
    shared = {e: settings(e, voice="shared") for e in ("happy", "angry", "sad")}
    assert shared["angry"].rate > shared["happy"].rate > shared["sad"].rate
    assert shared["happy"].pitch > shared["angry"].pitch > shared["sad"].pitch
    assert settings("happy", voice="flat") == settings("sad", voice="flat")
    assert settings("happy", voice="flat").pitch == 50


def test_unseen_speakers_are_in_test_clips_only():
    def speakers(prefix): return [speaker_of(f"{prefix}_{i:05d}", 3) for i in range(200)]
    assert {*speakers("caption"), *speakers("human")} == {*SPEAKERS}
    test = speakers("sample")
    assert {*test} == {*SPEAKERS, *UNSEEN_SPEAKERS} and test == speakers("sample")
    assert 70 < sum(s in UNSEEN_SPEAKERS for s in test) < 130


@needs_flite
@pytest.mark.parametrize("voice", [f"flite:{name}" for name in _FLITE_HZ])
def test_a_recorded_voice_follows_its_settings(voice):
    "Always the same samples; half the speed takes twice as long; the pitch rises with its number"
    def said(rate=200, pitch=50, play=0):
        return speak("Well, here we are again.", voice, SpeechSettings(rate, pitch, play))

    def hertz(sound):
        "The strongest period of a few hundredths of a second, as a rate"
        middle = len(sound) // 2
        x = sound[middle - 1600:middle + 1600]
        similar = np.correlate(x, x, "full")[len(x) - 1:]
        return 16000 / (40 + similar[40:320].argmax())

    usual = said()
    assert np.array_equal(usual, said()) and 0.1 < np.abs(usual).max() <= 1
    assert len(said(rate=100)) / len(usual) == pytest.approx(2, rel=0.15)
    assert hertz(said(pitch=75)) / hertz(said(pitch=25)) == pytest.approx(2, rel=0.15)


@needs_espeak
@needs_flite
def test_a_corpus_with_recorded_voices(tmp_path):
    "The same bytes again; another corpus than that of eSpeak NG alone, with other speakers"
    found = digest(make_few(tmp_path / "a", spoken="flite"))
    assert found == digest(make_few(tmp_path / "b", spoken="flite", workers=2))
    with pytest.raises(ValueError, match="voices 'spoken, some by flite' instead of 'spoken'"):
        make_few(tmp_path / "a", spoken=True)
    assert found != digest(make_few(tmp_path / "c", spoken=True))


def test_an_unknown_recorded_voice_is_named():
    with pytest.raises(ValueError, match="no voice 'rms' here, take one of slt, kal16, awb"):
        speak("Hello.", "flite:rms", SpeechSettings(165, 50, 50))


def test_recorded_speakers_by_split():
    def speakers(prefix): return {speaker_of(f"{prefix}_{i:05d}", 3, "flite") for i in range(300)}
    seen = {*SPEAKERS, "flite:slt", "flite:kal16"}
    assert speakers("caption") == speakers("human") == seen
    assert speakers("sample") == seen | {*UNSEEN_SPEAKERS, "flite:awb"}


@needs_espeak
def test_a_missing_flite_is_said(tmp_path, monkeypatch):
    "Before anything is written, as a synthesiser that does not exist"
    monkeypatch.setattr(toy_speech, "which", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="apt-get install flite"):
        make_few(tmp_path / "corpus", spoken="flite")
    with pytest.raises(ValueError, match="spoken='kokoro' is unknown, take one of espeak, flite"):
        make_few(tmp_path / "corpus", spoken="kokoro")
    assert not any((tmp_path / "corpus").iterdir())


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    "Before anything is written"
    monkeypatch.setattr(toy_speech, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps espeakng-loader==0.2.4"):
        make_few(tmp_path / "corpus", spoken=True)
    assert not any((tmp_path / "corpus").iterdir())
    assert json.loads((make_few(tmp_path / "corpus") / "corpus.json").read_text())["seed"] == 0

"Use of the media: what is taken away, what that changes, and that a deaf model is seen to be deaf"
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from affectgpt_r1.data import load_mer2025
from affectgpt_r1.evaluate import predict_clips
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.labels import QUESTIONS, make_target
from affectgpt_r1.media_use import (
    CHANNEL_COLUMNS, _MixedFeatures, media_use, media_use_lines, reply_logps, take_away)
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.toy import make_toy_corpus

WORDS = ["happy", "sad", "angry", "worried"] * 3
ROWS = [dict(name=f"clip {i}", video=f"v{i}", audio=f"a{i}", subtitle=f"Number {i}.", labels=[word])
        for i, word in enumerate(WORDS)]


def toy(deaf=False):
    "A model with random weights, and random features; of a deaf one, the sound is always the same"
    texts = [*map(make_target, zip(WORDS)), *(r["subtitle"] for r in ROWS), *QUESTIONS.values()]
    model, processor = make_toy_model(texts)
    fusion = model.model.fusion
    def features(clip):
        def draw(layer, seed):
            return torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(seed))
        return dict(video_features=draw(fusion.multi_video, int(clip["video"][1:])),
                    audio_features=draw(fusion.multi_audio, int(clip["audio"][1:])) * (not deaf),
                    media_mask=torch.tensor([True, not deaf]))
    processor.features = features
    return model.eval(), processor


@pytest.fixture(scope="module")
def use(): return media_use(*toy(), ROWS, max_new_tokens=6)


def test_each_channel_and_way_has_a_row(use):
    ways = "silenced", "shuffled"
    assert list(use.index) == [(channel, how) for channel in CHANNEL_COLUMNS for how in ways]
    assert ((use["logp_low"] <= use["logp_shift"]) & (use["logp_shift"] <= use["logp_high"])).all()
    assert ((use["low"] <= use["change"]) & (use["change"] <= use["high"])).all()
    lines = media_use_lines(use.reset_index().to_dict("records"))
    assert lines == media_use_lines(use) and lines[0].startswith("face silenced: EW F ")


def test_the_shift_is_that_of_the_answer_to_the_whole_clip(use):
    "By hand, for one row: the same answers, asked of clips with the voice of another"
    model, processor = toy()
    said = predict_clips(model, processor, ROWS, max_new_tokens=6)["reply"].tolist()
    def of(rows): return reply_logps(model, processor, [make_prompt(row) for row in rows], said)
    shift = of(take_away(ROWS, "voice", "shuffled")) - of(ROWS)
    assert use.loc[("voice", "shuffled"), "logp_shift"] == pytest.approx(shift.mean(), abs=1e-6)
    assert abs(shift).max() > 1e-5


def test_a_deaf_model_loses_nothing_with_its_voice():
    "And sees and reads nevertheless"
    found = media_use(*toy(deaf=True), ROWS, max_new_tokens=6)["logp_shift"].abs()
    assert (found.loc["voice"] < 1e-7).all()
    assert (found.loc["face"] > 1e-6).all() and (found.loc["words"] > 1e-6).all()


def test_logps_are_those_of_the_loss():
    "One reply at a time, and several of different lengths at once"
    model, processor = toy()
    chats, replies = [make_prompt(row) for row in ROWS[:3]], ["sad", "happy, worried", ""]
    wanted = []
    for chat, reply in zip(chats, replies):
        with torch.no_grad(): loss = model(**processor.training_batch([chat], [reply])).loss
        wanted.append(-loss.item())
    assert reply_logps(model, processor, chats, replies) == pytest.approx(wanted, abs=1e-5)
    assert reply_logps(model, processor, chats, replies, 1) == pytest.approx(wanted, abs=1e-5)


def test_kept_features_come_back():
    model, processor = toy()
    kept = processor.features
    with pytest.raises(TypeError): media_use(model, processor, ROWS, wrong=1)
    assert processor.features is kept


def test_mixed_features_are_those_of_mixed_clips(tmp_path):
    "From real files: the encoders say the same of a clip that is mixed, or lacks a file"
    rows = list(load_mer2025(make_toy_corpus(tmp_path / "corpus", preset="tiny"), "ovmerd"))[:3]
    model, processor = make_toy_model([row["subtitle"] for row in rows])
    cache = FeatureCache(tmp_path / "features", model, processor)
    cache.compute(rows, model, processor, workers=0)
    mixed = _MixedFeatures(cache, rows)
    for channel in ("face", "voice"):
        for how in ("silenced", "shuffled"):
            changed = take_away(rows, channel, how)
            found = [mixed(row) for row in changed]
            cache.compute(changed, model, processor, workers=0)
            for got, row in zip(found, changed):
                for name, value in cache(row).items():
                    assert torch.allclose(got[name].float(), value.float(), atol=1e-5), (how, name)


def test_what_is_taken_away():
    assert {r["audio"] for r in take_away(ROWS, "voice", "silenced")} == {""}
    other = take_away(ROWS, "words", "shuffled", seed=1)
    assert all(a["subtitle"] != b["subtitle"] and a["video"] == b["video"] for a, b in
               zip(ROWS, other))
    assert sorted(r["subtitle"] for r in other) == sorted(r["subtitle"] for r in ROWS)


def test_claims_measure_it_for_each_stage():
    "The tool that makes the records of the page has it as a part"
    from tools import claims
    assert "media" in claims.PARTS and (ROOT / "tools/claims.py").read_text().count("_media.csv")
    calls = []
    class Run:
        test, mode, wheels, seed, processor = ROWS, "answer", None, 0, None
        def model(self, stage):
            calls.append(stage)
            model, self.processor = toy()
            return model
    table = claims.media(Run())
    assert calls == list(claims.STAGES) and len(table) == 6*len(calls)
    assert {"stage", "channel", "how", "change", "logp_shift"} <= {*table.columns}
    assert np.isfinite(table.select_dtypes(float)).all().all() and isinstance(table, pd.DataFrame)


def test_an_evaluation_has_it_for_some_clips(monkeypatch):
    "For as many as asked, and for none where there are not two"
    from affectgpt_r1 import stages
    model, processor = toy()
    seen = {}
    def use_of(model, processor, rows, *args, **settings):
        seen.update(n=len(rows), settings=settings)
        return pd.DataFrame([dict(change=0.)], pd.MultiIndex.from_tuples([("face", "silenced")]))
    monkeypatch.setattr(stages, "load_run_stage", lambda run, name: (model, processor))
    monkeypatch.setattr(stages, "predict_clips", lambda *args, **settings: None)
    monkeypatch.setattr(stages, "_score", lambda *args: {})
    monkeypatch.setattr(stages, "run_wheels", lambda run: None)
    monkeypatch.setattr(stages, "media_use", use_of)
    for asked, given in ((5, 5), (100, 12), (1, None), (0, None)):
        seen.clear()
        scores = stages._stage_scores(ROOT, "grpo", ROWS, "answer", 0, asked, {},
                                      dict(batch_size=2))
        assert seen.get("n") == given and ("media_use" in scores["grpo, greedy"]) == bool(given)


def test_claims_collect_it_for_each_run_of_a_grid(tmp_path, monkeypatch):
    "What has been measured is not measured again"
    from tools import claims

    (tmp_path / "few.toml").write_text("""seeds = [1, 2]
[defaults]
mode = "answer"
recipe = "acc"
penalty = ""
gold = "all"
steps = 1
tokens = 8
trl = {}
[settings]
"one setting" = {}
""")
    for seed in (1, 2):
        folder = tmp_path / f"runs/few/one-setting-{seed}"
        folder.mkdir(parents=True)
        (folder / "media.csv").write_text(f"setting,seed,change\none setting,{seed},-0.123456\n")
    monkeypatch.chdir(tmp_path)
    claims.grid(tmp_path / "few.toml", 1)
    rows = (tmp_path / "few_media.csv").read_text().splitlines()
    assert rows == ["setting,seed,change", "one setting,1,-0.12346", "one setting,2,-0.12346"]
    assert "--grid" in (tmp_path / "few_media.json").read_text()

"""The preset `laptop`: what its encoder hears, its stages, and a model that is asked by command"""

import importlib.util
import json
import re
import shutil

import pytest
import torch
from conftest import ROOT
from test_convert import save_parts, save_whisper
from transformers import AutoModelForCausalLM, WhisperConfig, WhisperModel

from affectgpt_r1 import demo, encoders, real_parts, stages
from affectgpt_r1.cli import main
from affectgpt_r1.features import encoder_fingerprint
from affectgpt_r1.inference import AffectGPT
from affectgpt_r1.labels import parse_response
from affectgpt_r1.metrics import ew_score
from affectgpt_r1.modeling import segment_features
from affectgpt_r1.parts import load_parts
from affectgpt_r1.rehearsal import even_tokens
from affectgpt_r1.stages import prepare_run
from tools import laptop


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    sizes = dict(d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                 decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=50,
                 max_source_positions=100)
    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    return WhisperModel(WhisperConfig(**sizes, **ends)).get_encoder().eval()


@torch.no_grad()
def test_frames_alone_are_what_the_encoder_computes(whisper, monkeypatch):
    "On a whole spectrogram nothing differs; on a short one only what lies behind it is left out"
    mel = torch.randn(3, 80, 200)
    assert torch.equal(encoders._frames_alone(whisper, mel), whisper(mel).last_hidden_state)
    short = mel[None, ..., :63]
    padded = segment_features(whisper, short)
    monkeypatch.setattr(whisper.config, "pad_segments", False, raising=False)
    alone = segment_features(whisper, short)
    assert alone.shape == padded.shape == (1, 3, 16) and not torch.allclose(alone, padded)
    assert torch.equal(alone[0], encoders._frames_alone(whisper, short[0]).mean(1))


@torch.no_grad()
def test_a_checkpoint_keeps_how_its_encoder_hears(tmp_path):
    "The two ways give other features, and no cache takes those of one for the other's"
    save_whisper(tmp_path / "whisper")
    parts = save_parts(tmp_path) | dict(audio_path=tmp_path / "whisper")
    padded, processor = load_parts(**parts)
    alone, _ = load_parts(**parts, pad_segments=False)
    assert alone.source["parts"]["pad_segments"] is False
    alone.save_pretrained(tmp_path / "whole")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    prints = [encoder_fingerprint(model, processor) for model in (padded, alone, again)]
    assert prints[0] != prints[1] == prints[2]
    media = torch.zeros(1, 1, 3, 48, 48), torch.randn(1, 2, 80, 202)
    A = [model.model.encode_media(*media)[1] for model in (padded, alone, again)]
    assert torch.equal(A[1], A[2]) and not torch.allclose(A[0], A[1])


# ---- asking a model by command ----


@pytest.fixture(scope="module")
def toy():
    return demo.cold_started_toy()


def test_predict_asks_the_model_that_is_there(toy, tmp_path, monkeypatch, capsys):
    "The laptop's where it was trained; here a copy of the toy stands for it"
    path = toy.test[0]["video"]
    wanted = AffectGPT(toy.model, toy.processor).predict(path, subtitle="So it goes.")
    shutil.copytree(toy.folder / "cold_start", tmp_path / "grpo")
    monkeypatch.setenv("AFFECTGPT_R1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "cold_started_toy", lambda: 1 / 0)
    demo.remember_laptop(tmp_path / "grpo")
    main(["predict", path, "--subtitle", "So it goes."])
    assert capsys.readouterr().out.startswith(f"{path}: {wanted.reply}\nprobabilities: ")
    shutil.rmtree(tmp_path / "grpo")
    assert demo.laptop_folder() is None
    with pytest.raises(ZeroDivisionError):   # the toy, then
        main(["predict", path])
    with pytest.raises(FileNotFoundError, match="run `make laptop`"):
        main(["predict", path, "--model", "laptop"])
    with pytest.raises(ValueError, match="--subtitle says what is heard in one clip; 2 are"):
        main(["predict", path, path, "--subtitle", "So it goes."])


# ---- the run ----


@pytest.fixture(scope="module")
def bench():
    "benchmarks/laptop.py"
    spec = importlib.util.spec_from_file_location("bench_laptop", ROOT / "benchmarks/laptop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = dict(
    sft=dict(epochs=1, warmup_steps=0), tuned=dict(max_steps=1, warmup_steps=0),
    grpo=dict(steps=1, num_prompts=2, num_generations=2, warmup_steps=0, temperature=5.0,
              rewards=([even_tokens], [1.0])))


def test_a_run_with_small_parts(bench, tmp_path, monkeypatch, capsys):
    "All stages, what is left to do said before each; nothing is done twice; then the record"
    parts = save_parts(tmp_path / "parts") | dict(preset="laptop")
    monkeypatch.setattr(laptop, "laptop_parts", lambda: parts)
    monkeypatch.setattr(laptop, "prepare_run", lambda run, spoken, **how: prepare_run(run, **how))
    monkeypatch.setenv("AFFECTGPT_R1_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):   # stopped between two stages
        with monkeypatch.context() as m:
            m.setattr(laptop, "run_grpo", lambda *args, **kwargs: 1 / 0)
            bench.train(run, 0, "answer", "tiny", **SMALL)
    bench.collect([run], tmp_path / "half.json")
    half = json.loads((tmp_path / "half.json").read_text())["runs"][0]
    assert half["missing"] == ["cold_start", "tuned", "grpo"] and not half["gains"]
    assert re.search(r"about \d+.* left in all", capsys.readouterr().out)
    bench.train(run, 0, "answer", "tiny", **SMALL)
    said = capsys.readouterr().out
    assert "features: done before" in said and "cold start: done before" in said
    for stage, aligned in (("cold_start", True), ("tuned", False)):
        assert json.loads((run / stage / "run.json").read_text())["align"] is aligned
    assert (run / "report.md").read_text() in said and "| the best constant answer |" in said
    assert demo.laptop_folder() == run / "grpo"
    assert set(json.loads((run / "seconds.json").read_text())) == set(laptop.STAGES)
    bench.collect([run], tmp_path / "whole.json")
    record = json.loads((tmp_path / "whole.json").read_text())
    (whole,) = record["runs"]
    assert whole["command"] == "python benchmarks/laptop.py train runs/run --seed 0 --clips tiny"
    assert not whole["missing"] and set(whole["stages"]) == {"cold_start", "tuned", "grpo"}
    assert set(whole["stages"]["grpo"]) == {"greedy", "sampled"}
    for use in (whole["media_use"][stage] for stage in bench.STAGES):
        assert [(r["channel"], r["how"]) for r in use] == [
            (c, how) for c in ("face", "voice", "words") for how in ("silenced", "shuffled")]
    scores = json.loads((run / "scores.json").read_text())
    assert whole["stages"]["grpo"]["greedy"]["all"]["ew_f"] == scores["grpo, greedy"]["ew_f"]
    assert len(whole["shown"]) == whole["clips"]["all"] == 2
    assert record["over_seeds"]["answer"]["grpo - cold_start, greedy"]["by_seed"] == [
        whole["gains"]["grpo - cold_start, greedy"]["difference"]]
    assert not record["between_modes"] and not whole["thoughts"]
    test, greedy = stages.run_splits(run)["test"], whole["stages"]["grpo"]["greedy"]["all"]
    said = laptop.replies(run, "grpo")
    labels = [parse_response(said[name]).labels for name in test["name"]]
    assert greedy["finer_f"] == ew_score(test["labels"], labels, level=2).f
    assert greedy["one_word"] == sum(len(set(x)) == 1 for x in labels) / 2
    assert whole["oracle"]["nothing"] <= whole["oracle"]["face + voice + words"]
    about = json.loads((run / "tuned/run.json").read_text())
    assert about["metric_for_best_model"] == "ew_f" and about["callbacks"][0].startswith("HeldOutF")
    file = tmp_path / "others.json"
    chance = "nothing but other samples"
    for name in ("a KL term", chance):
        bench.remedies([run], file, [name], **SMALL["grpo"])
    others = json.loads(file.read_text())   # it keeps what it held
    for name, beta, seed in (("a_KL_term", 0.04, 0), (chance.replace(" ", "_"), 0.0, 100)):
        about = json.loads((run / f"grpo_{name}/run.json").read_text())
        assert (about["beta"], about["seed"]) == (beta, seed)
    assert [(r["remedy"], r["seed"]) for r in others["runs"]] == [(chance, 0), ("a KL term", 0)]
    assert set(others["runs"][0]["scores"]) == {"greedy", "sampled"}
    assert [*others["over_seeds"]["a KL term"]] == [
        f"a KL term - {s}, {k}" for s in ("grpo", "tuned") for k in ("greedy", "sampled")]
    (run / "predictions/tuned-greedy.jsonl").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="greedy answers of tuned are not complete"):
        bench.remedies([run], file, ["a KL term"])
    with pytest.raises(FileExistsError, match="holds a run with {'seed': 0, 'mode': 'answer'"):
        laptop.main(0, "answer", run)   # with all clips
    with pytest.raises(FileExistsError, match="and {'seed': 1, 'mode': 'answer'"):
        bench.train(run, 1, "answer", "tiny", **SMALL)   # it does not take over the note
    assert bench.origin(run, {})["command"] == whole["command"]
    assert bench.origin(tmp_path, dict(date="today")) == dict(date="today")   # no note there
    think = tmp_path / "think"
    bench.train(think, 0, "think", "tiny", tmp_path / "whole.json", **SMALL)
    bench.collect([think], tmp_path / "whole.json", keep=True)
    record = json.loads((tmp_path / "whole.json").read_text())
    assert [r["mode"] for r in record["runs"]] == ["answer", "think"] == [*record["over_seeds"]]
    pairs = "cold_start", "tuned", "grpo"
    assert [*record["between_modes"]] == [
        f"think {b} - answer {a}, {kind}" for a, b in [*zip(pairs, pairs), ("grpo", bench.FEWER)]
        for kind in ("greedy", "sampled")]
    assert bench.FEWER in record["runs"][1]["media_use"] and not record["runs"][1]["missing"]
    assert {*record["runs"][1]["thoughts"]} == {*pairs, bench.FEWER}


def test_first_sentences_of_thoughts(bench, monkeypatch):
    said = dict(a="The brow is low. He shouts.", b="The brow is low. She is calm.", c="He smiles.")
    texts = {k: f"<think>{x}</think><answer>calm</answer>" for k, x in said.items()}
    monkeypatch.setattr(bench, "replies", lambda run, stage: texts)
    assert bench.thoughts(None, "grpo", [*said]) == dict(
        different=2, most="The brow is low", clips=2)


def test_as_many_tokens(bench, tmp_path):
    "A run whose answers are three times as long gets a third of the steps"
    log = [{"step": i, "completions/mean_length": 30} for i in range(60)]
    log.append({"step": 60, "eval_ew_f": 0.5})
    folder = tmp_path / "grpo"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(dict(steps=60)))
    (folder / "log.json").write_text(json.dumps(log))
    short = dict(mode="answer", seed=0, curves=dict(tokens=[[i, 10] for i in range(60)]))
    (tmp_path / "record.json").write_text(json.dumps(dict(runs=[short])))
    assert bench.steps_for_tokens(tmp_path, tmp_path / "record.json", 0) == 20
    with pytest.raises(ValueError, match="no run in mode answer with the seed 1"):
        bench.steps_for_tokens(tmp_path, tmp_path / "record.json", 1)


def test_what_features_asks_for(tmp_path, monkeypatch):
    "Clips that speak, and another seed gives another fusion and other clips"
    corpora, models = [], []
    monkeypatch.setattr(stages, "make_toy_corpus", lambda *a, **k: corpora.append((a, k)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["features", "--run-dir", str(tmp_path), "--spoken", "--seed", "3"])
    assert corpora == [((tmp_path / "corpus", "toy", 3), dict(spoken="espeak"))]
    monkeypatch.setattr(stages, "load_parts", lambda **asked: models.append(asked["seed"]))
    for asked in ({}, dict(seed=8)):
        stages._find_start(asked, None, "toy", 3, {})
    assert models == [3, 8]


def test_time_left_follows_the_machine(tmp_path, monkeypatch):
    "What is done is not counted, and a machine half as fast takes twice as long"
    monkeypatch.setattr(laptop, "workload", lambda: 2 * laptop.UNIT)
    clock, seconds = laptop.Clock(tmp_path, "answer"), laptop.SECONDS["answer"]
    assert clock.left() == pytest.approx(2 * sum(seconds.values()))
    clock.run("features", lambda: None)
    assert clock.left() == pytest.approx(2 * (sum(seconds.values()) - seconds["features"]))
    again = laptop.Clock(tmp_path, "answer")
    again.run("features", lambda: 1 / 0)   # done before
    assert again.left() == clock.left()


def test_what_make_test_installs_is_the_decoder():
    names = re.search(r"\^\(([\w|-]+)\)==", (ROOT / "Makefile").read_text())[1].split("|")
    asked = real_parts._PARTS["text_path"].packages.values()
    assert sorted(names) == sorted(what.split("==")[0] for what in asked)

"""Evaluation: predictions that survive anything, and baselines and records that say what they should"""
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affectgpt_r1.evaluate import (
    EndpointLabels, best_of, constant_baseline, frequency_baseline, missing_keys, predict, read_labels, score_predictions, summary_table,
    write_metrics)
from affectgpt_r1.labels import make_target
from affectgpt_r1.metrics import ew_score
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
rows = [dict(name=f"c{i}", video=f"{i}.mp4", audio=f"{i}.wav", subtitle="x" * (i % 5), labels=["sad"]) for i in range(23)]


def prompt(row, mode): return [{"role": "user", "content": row["video"] + row["subtitle"]}]


class Letters:
    "A processor of single letters, with prompts of different lengths, padded on the left; token 0 pads, 1 ends, 2 is special"
    placeholder_ids = [2]
    fail_at, calls = None, 0

    def apply_chat_template(self, chats, **kwargs):
        import torch
        if self.calls == self.fail_at: raise KeyboardInterrupt
        self.calls += 1
        ids = [[3 + ord(c) % 20 for c in chat[0]["content"]] for chat in chats]
        width = max(map(len, ids))
        return dict(input_ids=torch.tensor([[0] * (width - len(x)) + x for x in ids]),
                    attention_mask=torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in ids]))

    def batch_decode(self, ids, skip_special_tokens=False):
        assert skip_special_tokens
        return [" ".join(str(int(i)) for i in row if i > 1) for row in ids]


class Slow(Letters):
    def apply_chat_template(self, chats, **kwargs):
        time.sleep(.02)
        return super().apply_chat_template(chats, **kwargs)


def small_model():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        initializer_range=.5, pad_token_id=0, eos_token_id=1, bos_token_id=None)).train()


@pytest.fixture(scope="module")
def model(): return small_model()


def run(model, processor=None, batch_size=5, **more):
    return predict_clips(model, processor or Letters(), rows, prompt=prompt, batch_size=batch_size, max_new_tokens=6, **more)


HOW = dict(greedy=dict(), sampled=dict(sample=True, seed=3), several=dict(sample=True, answers=3), shuffled=dict(sample=True, shuffle_media=True))


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_interrupted_equals_unbroken(model, tmp_path, how):
    whole = run(model, out=tmp_path / "whole.jsonl", **how)
    processor = Letters()
    for processor.fail_at in (0, 2, 3):   # dies before anything, then after two batches, then after one more
        processor.calls = processor.fail_at if processor.fail_at == 0 else processor.calls
        with pytest.raises(KeyboardInterrupt): run(model, processor, out=tmp_path / "broken.jsonl", **how)
    with open(tmp_path / "broken.jsonl", "ab") as f: f.write(b'{"name": "c15", "re')
    processor.fail_at = None
    again = run(model, processor, out=tmp_path / "broken.jsonl", **how)
    assert again.equals(whole) and whole["name"].tolist() == [r["name"] for r in rows for _ in range(how.get("answers", 1))]
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert run(model, Letters(), out=None, **how).equals(whole)


def killed_runs(out, sizes):
    "Runs of prediction, each killed when the file has so many bytes"
    model = small_model()
    for size in map(int, sizes):
        child = os.fork()
        if not child:
            run(model, Slow(), out=out, **HOW["several"])
            os._exit(0)
        while not os.path.exists(out) or os.path.getsize(out) < size: time.sleep(.002)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it had ended before it was killed"


def test_killed_at_three_random_points(model, tmp_path):
    whole = run(model, out=tmp_path / "whole.jsonl", **HOW["several"])
    written, out = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "killed.jsonl"
    points = sorted(np.random.default_rng().integers(1, len(written) * .8, 3).tolist())
    code = "import sys, test_evaluate; test_evaluate.killed_runs(sys.argv[1], sys.argv[2:])"   # a process of its own: it forks
    env = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}", "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", code, out, *map(str, points)], check=True, env=env)
    left = out.read_bytes()
    assert points[-1] <= len(left) < len(written)
    assert run(model, out=out, **HOW["several"]).equals(whole) and out.read_bytes() == written


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_do_not_matter(model, tmp_path, how, size):
    run(model, out=tmp_path / "a.jsonl", **how)
    run(model, out=tmp_path / "b.jsonl", batch_size=size, **how)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_samples_follow_the_probabilities(model):
    "First tokens of 400 samples of one clip against the model's distribution, cut at top_p"
    torch, n = pytest.importorskip("torch"), 400
    table = predict_clips(model, Letters(), rows[:1], prompt=prompt, max_new_tokens=1, sample=True, answers=n, batch_size=n)
    chat = {k: v for k, v in Letters().apply_chat_template([prompt(rows[0], "answer")]).items()}
    with torch.no_grad(): scores = model.eval()(**chat).logits[0, -1]
    model.train()
    scores[2] = -torch.inf   # the placeholder
    p, order = scores.softmax(-1).sort(descending=True)
    kept = order[p.cumsum(0) - p < .9]
    wanted = torch.zeros(23).index_put((kept,), p[:len(kept)] / p[:len(kept)].sum())
    found = torch.bincount(torch.tensor([int(t or 1) for t in table["reply"]]), minlength=23) / n   # an empty reply: the end, or padding
    assert (found - wanted).abs()[2:].max() < .1 and not found[wanted == 0][2:].any()


def test_any_cut_of_the_file(model, tmp_path):
    path = tmp_path / "a.jsonl"
    run(model, out=path, sample=True)
    written = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(written), 5):
        path.write_bytes(written[:cut])
        run(model, out=path, sample=True)
        assert path.read_bytes() == written


def test_a_finished_file_is_only_read(model, tmp_path):
    first = run(model, out=tmp_path / "a.jsonl")
    processor = Letters()
    assert run(model, processor, out=tmp_path / "a.jsonl").equals(first) and processor.calls == 0


def test_replies_are_only_what_is_new(model):
    replies = [list(map(int, t.split())) for t in run(model, sample=True)["reply"]]
    assert all(len(r) <= 6 and not {0, 1, 2} & set(r) for r in replies)   # no padding, no end, no placeholder
    assert len({len(r) for r in replies}) > 1                               # some stopped at the end token
    assert model.training                                                  # left as it was found


def test_seeds_and_settings(model, tmp_path):
    run(model, out=tmp_path / "a.jsonl")
    assert not run(model, sample=True, seed=1).equals(run(model, sample=True, seed=2))
    assert run(model, seed=1).equals(run(model, seed=2))   # greedy
    for other in (dict(sample=True), dict(mode="think"), dict(shuffle_media=True)):
        with pytest.raises(ValueError, match="was made otherwise"): run(model, out=tmp_path / "a.jsonl", **other)
    with pytest.raises(ValueError, match="max_new_tokens is 6 there and 7 now"):
        predict_clips(model, Letters(), rows, prompt=prompt, max_new_tokens=7, out=tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="2 greedy answers"): run(model, answers=2)
    with pytest.raises(ValueError, match="clips is"):
        predict_clips(model, Letters(), rows[1:], prompt=prompt, batch_size=5, max_new_tokens=6, out=tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="mode"): run(model, mode="thought")


def test_with_our_model(tmp_path):
    "The real model and processor: the prompt that is made by default, features per clip, and media that matter"
    torch, ours = pytest.importorskip("torch"), pytest.importorskip("affectgpt_r1.model")
    model, processor = ours.make_toy_model(["<answer>happy, sad</answer> Watch the face, listen to the voice"], seed=0)
    def features(clip):
        rng = torch.Generator().manual_seed(int(clip["video"].split(".")[0]))
        return {f"{k}_features": 3 * torch.randn(8, n, generator=rng) for k, n in
                (("video", model.config.vision_config.projection_dim), ("audio", model.config.audio_config.hidden_size))}
    processor.features = features
    how = dict(batch_size=8, max_new_tokens=6)
    plain = predict_clips(model, processor, rows, out=tmp_path / "a.jsonl", **how)
    assert plain.equals(predict_clips(model, processor, rows, **how))
    assert not plain.equals(predict_clips(model, processor, rows, shuffle_media=True, **how))
    assert not any(x in t for t in plain["reply"] for x in ("<|im_end|>", "<|pad|>", "<video>", "assistant", "Subtitle"))
    assert set(predict_clips(model, processor, rows[:2], mode="think", **how)["name"]) == {"c0", "c1"}


def test_best_of_all_choices():
    "The mean over all choices of k answers, made one by one"
    words = ["happy", "sad", "angry, happy", "sad, happy, angry", "calm"]
    table = pd.DataFrame([dict(name=n, reply=t) for n in ("a", "b") for t in words])
    gold = dict(a=["happy"], b=["sad", "angry"])
    f = {n: [ew_score([gold[n]], [t.split(", ")], wheels=wheels).per_wheel.f.mean() for t in words] for n in gold}
    for k, value in best_of(gold, table, wheels).items():
        assert value == pytest.approx(np.mean([max(c) for n in gold for c in itertools.combinations(f[n], k)]))


def test_an_endpoint_that_is_away_is_an_error(tmp_path):
    labels = EndpointLabels("http://localhost:9/v1", "reader", tmp_path / "labels.jsonl", timeout=1)
    with pytest.raises(ValueError, match="localhost:9.*no usable reply.*0 answers are kept"): read_labels({"a": "happy"}, extract=labels)
    assert not (tmp_path / "labels.jsonl").exists()


def test_constant_baseline_finds_the_best_answer():
    "Greedy search equals the search of all lists, where these are few enough to try"
    words = ["happy", "sad", "angry", "worried", "surprised"]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        train = [list(rng.choice(words, rng.integers(1, 4), replace=False, p=rng.dirichlet(np.ones(5)))) for _ in range(40)]
        best = max(ew_score(train, [list(c)] * 40, wheels=wheels).f for k in range(1, 6) for c in itertools.combinations(words, k))
        found = constant_baseline(train, {str(i): t for i, t in enumerate(train)}, wheels)
        assert found["ew_f"] == pytest.approx(best, abs=.02) and found["ew_f"] <= best + 1e-9


def test_baselines_never_see_the_test_labels():
    train, gold = [["sad"], ["sad", "angry"]] * 10, {"a": ["happy"], "b": ["happy"]}
    assert set(constant_baseline(train, gold, wheels)["labels"]) <= {"sad", "angry"}
    assert constant_baseline(train, gold, wheels)["ew_f"] == frequency_baseline(train, gold, wheels, 0)["ew_f"] == 0


def test_neutral_and_empty_replies_are_scored():
    gold = {"a": ["neutral"], "b": ["happy"], "c": ["sad"]}
    s = score_predictions(gold, {"a": make_target(["neutral"]), "b": "", "c": make_target(["gloomy"])}, wheels)
    assert s["ew_f"] == pytest.approx(.5) and s["format_rate"] == pytest.approx(2/3) and np.isfinite(s["ci95"]).all()


def test_metrics_json(tmp_path):
    stage = dict(score_predictions({"a": ["sad"]}, {"a": make_target(["sad"])}, wheels), ew_f_sampled=np.float32(.5))
    record = dict(preset="toy", seed=0, stages=dict(cold_start=stage, grpo=stage), baselines=dict(constant=dict(ew_f=.1)), seconds=dict(total=1.))
    found = json.loads(write_metrics(tmp_path / "run", **record).read_text())
    assert list(found) == ["preset", "seed", "stages", "baselines", "seconds"] and not missing_keys(found)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["metrics.json"]
    for key in stage:
        broken = dict(record, stages=dict(cold_start=stage, grpo={k: v for k, v in stage.items() if k != key}))
        with pytest.raises(ValueError, match=f"stages.grpo.{key}$"): write_metrics(tmp_path / "other", **broken)
    assert not (tmp_path / "other").exists()
    assert summary_table(found["stages"], found["baselines"]).shape[0] == 3


def test_scoring_needs_no_torch():
    code = "import sys, affectgpt_r1.evaluate as e; e.score_predictions({'a': ['sad']}, {'a': 'sad'}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"Sampler and loss of GRPO: both differences are logged and kept, and a planted one stops the run"
import json
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset

from affectgpt_r1 import sampling_checks
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.grpo_trainer import HeldOutTrainer
from affectgpt_r1.labels import QUESTIONS, make_target
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.training import TrainingStopped

WORDS = ["happy", "sad", "angry", "worried"]
ROWS = [dict(name=f"clip {i}", video=str(i), audio=str(i), subtitle="Here we are.", labels=[word])
        for i, word in enumerate(WORDS)]


def any_word(completions, **columns): return [float(len(c[0]["content"]) % 3) for c in completions]


def run(out, dtype=torch.float32, steps=2, **settings):
    "Some steps on clips of random numbers: the log"
    model, processor = make_toy_model([*map(make_target, zip(WORDS)), *QUESTIONS.values()])
    fusion = model.model.fusion
    widths = fusion.multi_video.in_features, fusion.multi_audio.in_features
    def features(clip):
        generator = torch.Generator().manual_seed(int(clip["video"]))
        video, sound = (torch.randn(8, width, generator=generator) for width in widths)
        mask = torch.ones(2, dtype=torch.bool)
        return dict(video_features=video, audio_features=sound, media_mask=mask)
    processor.features = features
    return train_grpo(
        model.to(dtype), processor, Dataset.from_list(ROWS), ([any_word], [1.]), out, steps=steps,
        num_prompts=2, num_generations=4, max_new_tokens=8, warmup_steps=0, micro_batch=4,
        **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_and_largest_are_logged_and_kept(tmp_path, monkeypatch, dtype):
    seen, real = [], sampling_checks.compare_logps
    def compare(*args):
        seen.append(real(*args))
        return seen[-1]
    monkeypatch.setattr("affectgpt_r1.grpo_trainer.compare_logps", compare)
    steps = [r for r in run(tmp_path, dtype) if "reward" in r]
    assert len(steps) == 2 and len(seen) == 4   # two micro-batches a step
    for r, pair in zip(steps, (seen[:2], seen[2:])):
        means, largest = zip(*filter(None, pair))   # one may hold none of the rows noted
        assert r["sampling/logp_gap"] == pytest.approx(sum(means)/len(means))
        assert r["sampling/logp_gap_max"] == max(largest) > r["sampling/logp_gap"] > 0
    done = json.loads((tmp_path / "run.json").read_text())["done"]
    assert done["logp_gap_max"] == max(r["sampling/logp_gap_max"] for r in steps)
    assert done["logp_gap"] == pytest.approx(sum(r["sampling/logp_gap"] for r in steps)/2)
    assert (done["logp_gap_max"] < 1e-4) == (dtype == torch.float32)


def test_the_answers_to_a_prompt_share_a_micro_batch(tmp_path, monkeypatch):
    "trl shuffles them; sorted, each micro-batch of a group's size holds one group"
    seen, real = [], HeldOutTrainer._media_of
    def media_of(self, rows, *args):
        if "prompt_of" in self.media: seen.append(self.media["prompt_of"][rows].tolist())
        return real(self, rows, *args)
    monkeypatch.setattr(HeldOutTrainer, "_media_of", media_of)
    run(tmp_path, beta=0.)
    assert seen == [[0]*4, [1]*4]*2


def without_sound(self, rows, *args):
    "The loss does not hear what the sampler heard"
    kept = self.media
    if self.batch is not None: self.media = kept | dict(audio_features=0*kept["audio_features"])
    try: return REAL(self, rows, *args)
    finally: self.media = kept


REAL = HeldOutTrainer._media_of


def test_a_planted_mismatch_stops_the_run(tmp_path, monkeypatch):
    "And nothing is saved: by what the loss gets, and without that by what comes of it"
    monkeypatch.setattr(HeldOutTrainer, "_media_of", without_sound)
    said = "Step 1: an answer to clip 'clip 0' is scored with other audio_features"
    with pytest.raises(TrainingStopped, match=said): run(tmp_path)
    monkeypatch.setattr("affectgpt_r1.grpo_trainer.check_inputs", lambda *_: nullcontext())
    said = "Step 1: the sampler and the loss disagree about the answers: .* on average, most for"
    with pytest.raises(TrainingStopped, match=said): run(tmp_path / "again")
    assert not list(tmp_path.rglob("model.safetensors"))


def test_it_goes_on_where_it_is_not_planted_beyond_the_bound(tmp_path, monkeypatch):
    "The same fault, with a bound above it: the bound is what stops"
    monkeypatch.setattr(HeldOutTrainer, "_media_of", without_sound)
    monkeypatch.setattr("affectgpt_r1.grpo_trainer.check_inputs", lambda *_: nullcontext())
    monkeypatch.setattr(sampling_checks, "LARGEST_GAP", 99)
    steps = [r for r in run(tmp_path, steps=1) if "reward" in r]
    assert steps[0]["sampling/logp_gap_max"] > 1e-3

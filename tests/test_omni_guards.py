"""Guards of GRPO that look at each row: whatever the family of the model, and wherever trl has put
the row between sampling and loss"""

import numpy as np
import pytest
import torch
from datasets import Dataset

from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.grpo_trainer import HeldOutTrainer
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.omni import make_tiny_omni
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.training import TrainingStopped
from benchmarks.planted_faults import make_clips, noisy

FAMILIES = ["affectgpt", "qwen2_5_omni", "qwen3_omni_moe"]
# two answers to each of six clips; sampled for two steps at once, of two micro-batches each
SETTINGS = dict(recipe="toy", num_prompts=3, num_generations=2, micro_batch=3, steps=2,
                steps_per_generation=4, max_new_tokens=12, warmup_steps=0, learning_rate=1e-3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "Six clips; one has no sound, one no pictures"
    rows = make_clips(tmp_path_factory.mktemp("clips"))
    rows[3]["audio"], rows[4]["video"] = "", ""
    for i, row in enumerate(rows): row["subtitle"] = "Here we are. " * (1 + i % 2)
    return rows


def features(clip):
    "Random features of a clip, always the same, for AffectGPT"
    seed = int(str(clip["video"] or clip["audio"]).split("/c")[-1].split(".")[0])
    generator = torch.Generator().manual_seed(seed)
    has = [bool(clip["video"]), bool(clip["audio"])]
    V, A = (torch.randn(8, width, generator=generator) * there
            for width, there in zip(features.widths, has))
    return dict(video_features=V, audio_features=A, media_mask=torch.tensor(has))


def made(family, clips):
    "A tiny model of a family, and its processor"
    texts = ["happy", "Here we are.", "A smile.", *QUESTIONS.values()]
    if family != "affectgpt": return make_tiny_omni(texts, family, use_audio_in_video=True)
    model, processor = make_toy_model(texts)
    fusion = model.model.fusion
    features.widths = fusion.multi_video.in_features, fusion.multi_audio.in_features
    processor.features = features
    return model, processor


def train(family, clips, out, **settings):
    model, processor = made(family, clips)
    return train_grpo(model, processor, Dataset.from_list(clips), ([noisy], [1.]), out,
                      **SETTINGS | settings)


def one_bit(x):
    "The tensor with its last number the next larger one"
    x = x.clone()
    last = x.view(-1)[-1:]
    last.copy_(torch.nextafter(last, last + 1) if x.is_floating_point() else last + 1)
    return x


@pytest.mark.parametrize("family", FAMILIES)
def test_one_bit_of_one_row_is_found(clips, tmp_path, monkeypatch, family):
    "Of any row, though trl shuffles them and keeps half of them for the second step"
    log = train(family, clips, tmp_path / "well")
    assert len([row for row in log if "grad_norm" in row]) == 2
    real, name = HeldOutTrainer._compute_loss, ["video_features", "pixel_values_videos"]

    def compute_loss(self, model, inputs):
        if "c5" not in inputs["clip_names"]: return real(self, model, inputs)
        row = inputs["clip_names"].index("c5")
        media = {k: [*inputs[k]] for k in name if k in inputs}
        for x in media.values(): x[row] = one_bit(x[row])
        if family == "affectgpt": media = {k: torch.stack(x) for k, x in media.items()}
        return real(self, model, inputs | media)

    monkeypatch.setattr(HeldOutTrainer, "_compute_loss", compute_loss)
    with pytest.raises(TrainingStopped, match="Step [12]: an answer to clip 'c5' is scored with "
                       "other (video_features|pixel_values_videos) than"):
        train(family, clips, tmp_path / "ill")


@pytest.mark.parametrize("fault, said", [
    ("answer", "other answer than"), ("prompt", "other prompt than"),
    ("video", "(no video_features, which|other media_mask)")])
def test_answers_and_prompts_are_compared_too(clips, tmp_path, monkeypatch, fault, said):
    "What trl itself joins: one order for prompts, another for answers; or media that are gone"
    real = HeldOutTrainer._compute_loss

    def compute_loss(self, model, inputs):
        changed = {**inputs}
        if fault == "video": del changed["video_features"]
        else:
            names = [k for k in inputs if k.startswith(dict(answer="completion", prompt="prompt_")[
                fault]) and isinstance(inputs[k], torch.Tensor) and k != "prompt_of"]
            changed |= {k: inputs[k].roll(1, 0) for k in names}
        return real(self, model, changed)

    monkeypatch.setattr(HeldOutTrainer, "_compute_loss", compute_loss)
    with pytest.raises(TrainingStopped, match=f"Step 1: an answer .* is scored with {said}"):
        train("affectgpt", clips, tmp_path)


def test_prompts_with_frames_in_memory_are_told_apart():
    "A printed array leaves its middle out: two clips would be one"
    from affectgpt_r1.grpo_trainer import _distinct_prompts
    frames = np.zeros((2, 2, 50, 50, 3), np.uint8)
    frames[1, 0, 25, 25] = 1
    assert repr(frames[0]) == repr(frames[1])
    prompts = [[dict(role="user", content=[dict(video=x)])] for x in (*frames, frames[0].copy())]
    assert _distinct_prompts(prompts)[1] == [0, 1, 0]

"""Guards of GRPO that look at each row: whatever the family of the model, and wherever trl has put
the row between sampling and loss"""

import numpy as np
import pytest
import torch
from datasets import Dataset

from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.grpo_trainer import HeldOutTrainer
from affectgpt_r1.inference import AffectGPT
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.media_rows import pick_rows
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
    seed = int(str(clip["video"] or clip["audio"] or "/c0.").split("/c")[-1].split(".")[0])
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


def nought(x):
    "Zeros in place of a tensor, or of those in a list"
    return x * 0 if isinstance(x, torch.Tensor) else [nought(y) for y in x]


def lost(*kinds):
    "Features that an encoder has made, set to zero"
    def plant(model):
        for kind in kinds:
            real = getattr(model.model, f"get_{kind}_features")

            def features(*args, real=real, kind=kind, **kwargs):
                out = real(*args, **kwargs)
                for name in ("last_hidden_state", "pooler_output", "deepstack_features"):
                    if (x := getattr(out, name, None)) is not None: setattr(out, name, nought(x))
                return out

            setattr(model.model, f"get_{kind}_features", features)
    return plant


@pytest.mark.parametrize("family, first, kinds, said", [
    (FAMILIES[1], None, ("audio", "video"), "the clips do not reach the model"),
    (FAMILIES[2], None, ("audio", "video"), "the clips do not reach the model"),
    (FAMILIES[1], "silent", ("audio",), "the sound of the clips does not reach"),
    (FAMILIES[2], "without pictures", ("video",), "the video of the clips does not reach")])
def test_lost_media_are_found_where_they_are(clips, tmp_path, family, first, kinds, said):
    "Also where the first clips do not have them, and though prompts of a thinker differ in length"
    field = {"silent": "audio", "without pictures": "video"}.get(first)
    rows = [row | {field: ""} if field and i < 4 else row for i, row in enumerate(clips)]
    model, processor = made(family, rows)
    lost(*kinds)(model)
    with pytest.raises(ValueError, match=said):
        train_grpo(model, processor, Dataset.from_list(rows), ([noisy], [1.]), tmp_path, **SETTINGS)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_rows_that_all_get_the_first_clip_are_found(clips, tmp_path, monkeypatch, family):
    "Each modality reaches the model, and is that of another row"
    real = HeldOutTrainer._media_of

    def media_of(self, rows, length, n):
        media, many = self.media, len(next(iter(self.media.values())))
        first = [0] * many if family == "affectgpt" else [i % (many // 2) for i in range(many)]
        self.media = pick_rows(media, first)
        try: return real(self, rows, length, n)
        finally: self.media = media

    monkeypatch.setattr(HeldOutTrainer, "_media_of", media_of)
    with pytest.raises(ValueError, match="the clips do not reach the model"):
        train(family, clips, tmp_path)


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_a_clip_without_pictures_and_sound_is_a_subtitle(clips, tmp_path, family):
    "In both stages and in prediction, alone in a batch too, whatever the family"
    rows = [row | dict(video="", audio="") if i < 4 else row for i, row in enumerate(clips)]
    model, processor = made(family, rows)
    data = Dataset.from_list(rows)
    cold_start(model, processor, data, tmp_path / "sft", recipe="toy", batch_size=2, max_steps=3,
               warmup_steps=0)
    log = train_grpo(model, processor, data, ([noisy], [1.]), tmp_path / "grpo",
                     **SETTINGS | dict(num_prompts=1, micro_batch=2, steps=6,
                                       steps_per_generation=1))
    assert len([row for row in log if "reward" in row]) == 6
    if family != "affectgpt":
        said = AffectGPT(model, processor).predict(rows[0], max_new_tokens=4)
        assert said.used == dict(video=False, audio=False, subtitle=True)

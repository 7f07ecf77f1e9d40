"""The exhibits of nbs/tutorials/failure_museum, one test for each thread and named after it: what
the fault looks like where nothing guards against it, and what it meets here. Faults between
sampling and loss are planted in whole runs by tests/test_omni.py"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from affectgpt_r1 import omni_processing
from affectgpt_r1.chats import clip_in
from affectgpt_r1.grpo import grpo_loss, train_grpo
from affectgpt_r1.guards import check_clips_reach_policy, check_each_modality
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.media_rows import media_rule, pick_rows
from affectgpt_r1.omni import make_tiny_omni
from affectgpt_r1.omni_processing import sound_tokens
from affectgpt_r1.outcomes import reasons_in
from affectgpt_r1.parts import check_lora
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.recipes import training_recipe
from affectgpt_r1.sampling_checks import MEAN_GAP, compare_logps
from affectgpt_r1.training import TrainingStopped
from benchmarks.planted_faults import GRPO, make_clips

FAMILIES = ["qwen2_5_omni", "qwen3_omni_moe"]
TEXTS = ["happy", "Here we are.", *QUESTIONS.values()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    "Three clips: one whole, one without sound, one without pictures"
    rows = make_clips(tmp_path_factory.mktemp("clips"), 3)
    rows[1]["audio"], rows[2]["video"] = "", ""
    return rows


def ask(processor, rows):
    "The questions about some rows, as the model takes them"
    return processor.apply_chat_template(
        [make_prompt(r) for r in rows], tokenize=True, return_dict=True, padding=True,
        add_generation_prompt=True, return_tensors="pt")


def loss(model, batch):
    "What a trainer would log"
    with torch.no_grad(): return model(**batch, labels=batch["input_ids"]).loss.item()


def logits(model, batch, **changes):
    with torch.no_grad(): return model(**{**batch, **changes}).logits


class Asking:
    "What the guards ask of a trainer"
    accelerator = SimpleNamespace(device="cpu")

    def __init__(self, model, processor, rows):
        self.model, self.processing_class = model, processor
        self.train_dataset = Dataset.from_list(rows)

    def chat_of(self, row): return make_prompt(row)
    def logps_of(self, batch): return logits(self.model, batch, logits_to_keep=8).log_softmax(-1)


# --- media dropped -----------------------------------------------------------------------------


def test_qwen_vl_series_finetune_207(rows):
    "The video is missing from the model's input: the loss is a number. It is missed by name"
    model, processor = make_tiny_omni(TEXTS)
    real, healthy = model.model.get_video_features, loss(model, ask(processor, rows))

    def features(*args, **kwargs):
        out = real(*args, **kwargs)
        out.pooler_output = [x * 0 for x in out.pooler_output]
        return out

    model.model.get_video_features = features
    assert abs(loss(model, ask(processor, rows)) / healthy - 1) < .1
    check_clips_reach_policy(Asking(model, processor, rows))   # by their sound
    with pytest.raises(ValueError, match="the video of the clips does not reach the model"):
        check_each_modality(Asking(model, processor, rows))


def test_unsloth_6004(rows):
    "Sounds are left out, positions are plain: the loss is a number. Empty places are counted"
    model, processor = make_tiny_omni(TEXTS)
    batch = ask(processor, rows)
    for name in ("input_features", "feature_attention_mask"): del batch[name]
    plain = torch.arange(batch["input_ids"].shape[1]).expand(3, len(rows), -1)
    assert np.isfinite(loss(model, dict(batch, position_ids=plain)))
    with pytest.raises(ValueError, match="0 sounds came with the prompts, and 2 of 3 prompts hold"):
        media_rule(model.config).cut(batch, batch["input_ids"].tolist())


def test_nemo_rl_guide(rows):
    "The processor empties all media: the loss is a number. The first check stops the run"
    model, processor = make_tiny_omni(TEXTS)
    blind = [row | dict(video="", audio="") for row in rows]
    assert np.isfinite(loss(model, ask(processor, blind)))
    with pytest.raises(ValueError, match="the clips do not reach the model"):
        check_clips_reach_policy(Asking(model, processor, blind))


def test_ms_swift_6069(rows, tmp_path):
    "Loss, gradient and reward are 0, and the run goes on to its end. It says what was wrong"
    def nothing(completions, **columns): return [0.] * len(completions)
    model, processor = make_tiny_omni(TEXTS)
    with pytest.warns(UserWarning) as said:
        log = train_grpo(model, processor, Dataset.from_list(rows), ([nothing], [1.]), tmp_path,
                         **GRPO | dict(steps=1))
    assert all(log[0][name] == 0 for name in ("loss", "grad_norm", "reward"))
    said = " ".join(str(w.message) for w in said)
    assert "did two answers to a clip differ" in said and "no weight has changed" in said


# --- a flag lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", ["ms-swift #6835", "UniRL #306"])
def test_one_flag_for_the_whole_batch(rows, thread):
    "With one flag or the other some row gets wrong positions; ours are read off each row"
    model, processor = make_tiny_omni(TEXTS, use_audio_in_video=True)
    library = type(model).__bases__[1](model.config).eval()
    library.load_state_dict(model.state_dict())
    mixed = ask(processor, [rows[1], rows[0]])
    alone = torch.cat([logits(model, ask(processor, [r]))[:, -1] for r in (rows[1], rows[0])])
    for flag in (False, True):
        theirs = logits(library, mixed, use_audio_in_video=flag)[:, -1]
        assert theirs.isfinite().all() and not torch.allclose(theirs, alone, atol=1e-3)
    assert torch.allclose(logits(model, mixed)[:, -1], alone, atol=1e-5)


# --- the attention path ------------------------------------------------------------------------


def test_unirl_274():
    "An encoder that looks at all sound gives features that look alike; ours keeps its windows"
    model, _ = make_tiny_omni(TEXTS)
    sound = torch.randn(1, 16, 300, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, sound.shape[2], dtype=torch.long)
    steps = torch.tensor([0, (sound.shape[2] - 1) // 2 + 1], dtype=torch.int32)
    tower, found = model.model.audio_tower, []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        model.model.kept_sounds.found.clear()
        with torch.no_grad(): found.append(model.get_audio_features(sound, mask).last_hidden_state)
    with torch.no_grad(): wide = type(tower).forward(
        tower, sound[0], feature_lens=mask.sum(-1), aftercnn_lens=mask.sum(-1),
        cu_seqlens=steps).last_hidden_state
    cosine = torch.cosine_similarity(found[0].flatten(), wide.flatten(), 0)
    assert torch.allclose(*found, atol=1e-5) and cosine > .99   # it looks right
    assert not torch.allclose(found[0], wide, atol=1e-3)


def test_unsloth_notebooks_295(rows):
    "Adapters on the audio encoder get no gradient, and the loss is a number. They are refused"
    model, processor = make_tiny_omni(TEXTS)
    lora = LoraConfig(target_modules=r".*audio_tower.*(q_proj|v_proj)")
    batch = ask(processor, rows)
    with pytest.raises(ValueError, match="4 adapters would be in the towers"):
        check_lora(model, lora)
    adapted = get_peft_model(model, lora)
    seems = adapted(**batch, labels=batch["input_ids"]).loss
    named = [p for p in adapted.parameters() if p.requires_grad]
    assert seems.isfinite() and named and not seems.requires_grad


# --- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_unirl_260(rows, family):
    "One frame of sound more: as many vectors as places, whatever the length"
    model, processor = make_tiny_omni(TEXTS, family)
    for n in (199, 200, 201, 3000, 3001) if family == FAMILIES[0] else (199, 200, 201):
        sound = torch.randn(1, processor.feature_extractor.feature_size, n)
        with torch.no_grad():
            made = model.get_audio_features(sound, torch.ones(1, n).long()).last_hidden_state
        assert len(made) == sound_tokens(n, family)
    batch = ask(processor, [rows[0], rows[2]])
    mask = batch["feature_attention_mask"].clone()
    mask[0, 100:104] = 1   # one token more: the next sound begins in the place of this one
    seems, right = logits(model, batch, feature_attention_mask=mask), logits(model, batch)
    assert seems.isfinite().all() and not torch.allclose(seems[1], right[1], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_verl_omni_305(rows, family):
    "Without the seconds between frames, positions are an error elsewhere; they always come along"
    model, processor = make_tiny_omni(TEXTS, family, use_audio_in_video=True)
    rule, batch = media_rule(model.config), ask(processor, rows)
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        logits(model, {k: x for k, x in batch.items() if k != "video_second_per_grid"})
    cut = rule.cut(batch, batch["input_ids"].tolist())
    for which in ([0], [1, 2], [2, 1, 0]):
        joined = rule.join(pick_rows(cut, which))
        assert len(joined["video_second_per_grid"]) == len(joined["video_grid_thw"])


@pytest.mark.parametrize("family", FAMILIES)
def test_verl_omni_284(rows, family):
    "Tokens of media that are repeated twice: each row holds as many as it has vectors"
    model, processor = make_tiny_omni(TEXTS, family)
    batch = ask(processor, rows)
    wanted = [int(grid.prod()) // processor.image_processor.merge_size**2
              for grid in batch["video_grid_thw"]]
    held = (batch["input_ids"] == model.config.video_token_id).sum(1).tolist()
    assert held == [*wanted, 0]
    twice = dict(batch, input_ids=torch.where(   # the words become places, too
        batch["input_ids"] == model.config.audio_token_id, model.config.video_token_id,
        batch["input_ids"]))
    with pytest.raises(ValueError, match="(?i)tokens"): logits(model, twice)


# --- mixed rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", ["ms-swift #5150", "vllm-omni #449"])
def test_rows_with_and_without_sound(rows, thread):
    "They cannot be stacked; joined by row, each is as if it were alone"
    model, processor = make_tiny_omni(TEXTS)
    batch, rule = ask(processor, rows), media_rule(model.config)
    cut = rule.cut(batch, batch["input_ids"].tolist())
    with pytest.raises(TypeError): torch.stack(cut["input_features"])
    whole = logits(model, dict(batch) | rule.join(cut))
    for i, row in enumerate(rows):
        assert torch.allclose(whole[i, -1], logits(model, ask(processor, [row]))[0, -1], atol=1e-5)


def test_trl_4144(rows):
    "A data set fills None into the parts of all messages; they are as if they were not there"
    parts = [dict(type="video", video="a.mp4", audio="a.wav", face="", text="Well."),
             dict(type="text", text="What?")]
    filled = Dataset.from_list([dict(prompt=[dict(role="user", content=parts)])])[0]["prompt"]
    assert filled[0]["content"][1]["video"] is None
    assert clip_in(filled[0]) == clip_in(dict(role="user", content=parts))


# --- placeholders, templates -------------------------------------------------------------------


def test_nemo_rl_design_document(rows):
    "The token of a video in a subtitle: vectors for two places. The row is named"
    model, processor = make_tiny_omni(TEXTS)
    with pytest.raises(ValueError, match="c0.mp4.*subtitle holds '<|VIDEO|>'"):
        ask(processor, [rows[0] | dict(subtitle="See <|VIDEO|> here")])


def test_video_r1_86():
    "The reward is 0 from the first step on, the loss too: the log is read at the end of a run"
    log = [dict(loss=0., reward=0., grad_norm=0., frac_reward_zero_std=1., learning_rate=1e-5)] * 3
    said = " ".join(reasons_in(log, 512))
    assert "in no step did two answers to a clip differ" in said and "gradient was 0" in said


def test_ke_omni_r_2():
    "A KL term kept the format's reward at 0.015; the recipe for thinkers has none"
    assert training_recipe("omni", "grpo").settings["beta"] == 0


# --- sampler and trainer -----------------------------------------------------------------------


@pytest.mark.parametrize("thread, gap", [("verl-omni #637", .064), ("verl-omni #547", .0948)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_differs(thread, gap, dtype):
    "By the numbers of the report: the loss is a number; the comparison stops the run"
    generator = torch.Generator().manual_seed(0)
    sampled = -torch.rand(4, 16, generator=generator) - .1
    logps = sampled + gap * (torch.rand(4, 16, generator=generator) > .5).float().mul(2).sub(1)
    mask, advantages = torch.ones(4, 16), torch.tensor([1., -1., .5, -.5])
    assert grpo_loss(logps, sampled, advantages, mask).isfinite() and gap > MEAN_GAP
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(mixed_precision="no"), model=SimpleNamespace(dtype=dtype),
        args=SimpleNamespace(output_dir="unused"), state=SimpleNamespace(global_step=0))
    with pytest.raises(TrainingStopped, match="Step 1: the sampler and the loss disagree"):
        compare_logps(trainer, sampled, logps, mask, "abcd")


# --- cost --------------------------------------------------------------------------------------


def test_ms_swift_4413(rows, monkeypatch):
    "Eight answers to a clip: its video is decoded once, and encoded once for sampling and loss"
    decoded, real = [], omni_processing.read_clip
    monkeypatch.setattr(omni_processing, "read_clip", lambda *a: decoded.append(1) or real(*a))
    model, processor = make_tiny_omni(TEXTS)
    batch = ask(processor, rows[:1] * 8)
    for _ in range(2): logits(model, batch)
    assert len(decoded) == model.model.kept_videos.computed == 1

"Cold start and GRPO on a few clips: failures that would be silent, and runs that are interrupted"

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")
os.environ["TRACKIO_DIR"] = (
    tempfile.mkdtemp()
)  # trackio reads it when it is imported, which trl does where it is installed

import numpy as np
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState
from accelerate.commands.config import load_config_from_file
from conftest import ROOT
from torch import distributed
from transformers import AutoModelForCausalLM, AutoProcessor, HubertConfig, TrainerCallback
from trl import GRPOConfig
from trl.trainer.utils import add_fused_lm_head

import affectgpt_r1.cli as cli
import affectgpt_r1.coldstart as coldstart
import affectgpt_r1.grpo as grpo
from affectgpt_r1 import processes
from affectgpt_r1.checkpoints import hide_known_warnings, load_stage
from affectgpt_r1.coldstart import Collator, cold_start, target_text
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import (
    AffectGRPOTrainer, check_clips_reach_policy, grpo_rows, held_out_score, read_completions,
    token_logps, train_grpo)
from affectgpt_r1.memory import plan_memory
from affectgpt_r1.labels import QUESTIONS, parse_response
from affectgpt_r1.configuration import paper_config
from affectgpt_r1.memory import memory_estimate
from affectgpt_r1.modeling import MEDIA_KEYS
from affectgpt_r1.parts import lora_config, make_toy_model
from affectgpt_r1.processes import leave_processes
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.rewards import make_rewards
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.training import (
    TrainingStopped, last_checkpoint, run_training, trainer_settings)
from affectgpt_r1.wheels import load_wheels


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The smallest corpus with its features, and functions for a fresh and for a cold-started model"
    root = tmp_path_factory.mktemp("lab")
    corpus = make_toy_corpus(root / "corpus", preset="smoke", seed=0)
    captions, human = load_mer2025(corpus, "caption"), load_mer2025(corpus, "human")
    texts = [target_text(r, "think") + r["subtitle"] for r in captions] + list(QUESTIONS.values())

    def fresh():
        model, processor = make_toy_model(texts)
        processor.features = FeatureCache(root / "features", model, processor)
        return model, processor

    model, processor = fresh()
    for split in (captions, human): processor.features.compute(split, model, processor)
    cold_start(model, processor, captions, root / "cold", epochs=12)

    def started():
        model = AutoModelForCausalLM.from_pretrained(root / "cold")
        return model, processor

    return dict(root=root, captions=captions, human=human, fresh=fresh, started=started)


def trainer(lab, model, processor, kind=AffectGRPOTrainer, lora=None, **settings):
    rewards, weights = make_rewards(
        "acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
    defaults = dict(
        max_steps=1, per_device_train_batch_size=8, num_generations=4, max_completion_length=8,
        generation_kwargs={"suppress_tokens": processor.placeholder_ids}, reward_weights=weights)
    with hide_known_warnings():
        args = GRPOConfig(
            **dict(output_dir=str(lab["root"] / "trainer"), save_strategy="no")
            | trainer_settings()
            | defaults
            | settings
        )
        return kind(
            model, rewards, args, grpo_rows(lab["human"]), processing_class=processor,
            peft_config=lora)


def generated(t, n=2, group=4):
    "A batch of `n` clips with `group` answers each, as the trainer buffers it"
    rows = [t.train_dataset[i] for i in range(n) for _ in range(group)]
    with hide_known_warnings(): return t._generate_and_score_completions(rows)


def sequences(batch):
    return (
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        batch["completion_ids"].shape[1])


def test_features_reach_the_log_probs_of_the_loss(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    batch = generated(t)
    ids, mask, n = sequences(batch)
    media = {k: batch[k] for k in MEDIA_KEYS if k in batch}
    assert set(media) == {"video_features", "audio_features"}

    def logps(features):
        with torch.no_grad(), hide_known_warnings(), t.clips_of(features):
            return t.logps(ids, mask, n)

    written = batch["completion_mask"].bool()
    right, other = logps(media), logps({k: v.roll(4, 0) for k, v in media.items()})
    assert (right - other)[written].abs().max() > 1e-3
    with torch.no_grad(): plain = token_logps(model, ids, mask, n, **media)
    assert torch.allclose(right[written], plain[written], atol=1e-5)


def test_the_loss_itself_changes_with_the_features(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    batch = generated(t)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    ids, mask, n = sequences(batch)
    del batch["sampled_logps"], batch["input_digests"]   # with them, other clips are an error
    with torch.no_grad():
        batch["old_per_token_logps"] = token_logps(
            model, ids, mask, n, **{k: batch[k] for k in MEDIA_KEYS if k in batch})
    t.current_gradient_accumulation_steps = 1

    def loss(b):
        with hide_known_warnings(): return t._compute_loss(model, b).item()

    swapped = {**batch, **{k: batch[k].roll(4, 0) for k in MEDIA_KEYS if k in batch}}
    assert abs(loss(batch) - loss(swapped)) > 1e-5


def test_chunks_of_log_probs_equal_the_whole(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    batch = generated(t)
    ids, mask, n = sequences(batch)
    with torch.no_grad(), hide_known_warnings(), t.clips_of(batch):
        whole = t._get_per_token_logps_and_entropies(model, ids, mask, n)[0]
        parts = t._get_per_token_logps_and_entropies(model, ids, mask, n, batch_size=3)[0]
    assert torch.allclose(whole, parts, atol=1e-5)


def test_features_reach_the_samples(lab):
    "The same random numbers, the clip of another: other answers"
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    rows = [t.train_dataset[i] for i in range(4) for _ in range(4)]
    clips = [r["prompt"][0]["content"][0] for r in rows]
    others = [
        {
            **r,
            "prompt": [
                {
                    "role": "user",
                    "content": [
                        {**clip, "video": other["video"], "audio": other["audio"]},
                        r["prompt"][0]["content"][1]],
                }
            ],
        }
        for r, clip, other in zip(rows, clips, clips[4:] + clips[:4])
    ]

    def sampled(rows):
        torch.manual_seed(0)
        with hide_known_warnings():
            return t._generate_and_score_completions(rows)["completion_ids"].tolist()

    assert sampled(rows) == sampled(rows) != sampled(others)


def test_rows_stay_with_their_clip_after_shuffling(lab):
    model, processor = lab["fresh"]()
    seen = []

    class Spy(AffectGRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append({k: inputs[k] for k in ("prompt_ids", "video_features")})
            return super()._compute_loss(model, inputs)

    with hide_known_warnings():
        run_training(
            trainer(
                lab, model, processor, Spy, max_steps=2, per_device_train_batch_size=4,
                steps_per_generation=2),
            "spy",
        )
    by_features = {
        processor.features(row)["video_features"].sum().item(): row["subtitle"]
        for row in lab["human"]
    }
    assert len(seen) == 2
    for batch in seen:
        for ids, V in zip(batch["prompt_ids"], batch["video_features"]):
            assert by_features[V.sum().item()] in processor.tokenizer.decode(ids)


def test_a_clip_without_sound_is_known_as_one_from_sampling_to_loss(lab):
    mute = lab["human"].map(
        lambda r, i: dict(audio=None if i % 2 else r["audio"]), with_indices=True)
    model, processor = lab["started"]()
    processor.features.compute(mute, model, processor)
    seen = []

    class Spy(AffectGRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append({k: inputs[k] for k in ("video_features", "audio_features", "media_mask")})
            return super()._compute_loss(model, inputs)

    t = trainer(
        lab | dict(human=mute), model, processor, Spy, max_steps=2, per_device_train_batch_size=8,
        steps_per_generation=2, logging_steps=1)
    with hide_known_warnings(): log = run_training(t, "spy")
    has_sound = {
        processor.features(row)["video_features"].sum().item(): row["audio"] is not None
        for row in mute
    }
    assert (
        np.isfinite([r["loss"] for r in log if "loss" in r]).tolist() == [True, True]
        and len(seen) == 2
    )
    for V, A, mask in (
        row
        for batch in seen
        for row in zip(batch["video_features"], batch["audio_features"], batch["media_mask"])
    ):
        assert (
            mask.tolist() == [True, has_sound[V.sum().item()]]
            and bool(A.any()) == has_sound[V.sum().item()]
        )


def test_a_run_whose_media_do_not_reach_the_policy_is_stopped(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    assert check_clips_reach_policy(t) > 1e-3
    model.model.fusion.forward = lambda V, A, *masks: torch.zeros(
        len(V), 3, model.config.text_config.hidden_size)
    before = model.lm_head.weight.detach().clone()
    with hide_known_warnings(), pytest.raises(ValueError, match="do not reach the model"):
        t.train()
    assert torch.equal(model.lm_head.weight, before)


def test_the_check_of_the_media_draws_no_random_number(lab):
    t = trainer(lab, *lab["fresh"]())
    state = torch.get_rng_state()
    check_clips_reach_policy(t)
    assert torch.equal(state, torch.get_rng_state())


def test_towers_say_the_same_in_train_mode(lab):
    "Whatever dropout, layer drop and masking their configuration asks for"
    model, processor = lab["fresh"]()
    noisy = dict(
        hidden_dropout=0.3, attention_dropout=0.3, activation_dropout=0.3, feat_proj_dropout=0.3,
        layerdrop=0.5, apply_spec_augment=True, mask_time_prob=0.5, mask_time_length=2)
    model.config.audio_config = HubertConfig(**model.config.audio_config.to_dict() | noisy)
    model = type(model)(model.config).train()
    media = (
        processor.load_clips([lab["human"][0]])
        if processor.features is None
        else {k: v[None] for k, v in processor.read_clip(lab["human"][0]).items()}
    )
    assert model.training and model.model.language_model.training
    first, second = (
        model.model.encode_media(media["pixel_values_videos"], media["input_values"])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_tags_survive_decoding(lab):
    "What the rewards get to read is what the policy wrote"
    processor, text = lab["fresh"]()[1], target_text(lab["captions"][0], "think")
    ids = processor.tokenizer(text)["input_ids"] + [processor.tokenizer.eos_token_id]
    assert (
        processor.batch_decode([ids], skip_special_tokens=True) == [text]
        and parse_response(text, "think").well_formed
    )


@pytest.mark.parametrize("name", ["", "a folder of other weights"])
def test_the_reference_is_the_model_that_training_began_with(lab, tmp_path, name):
    "Not what is in the folder that the model once came from, and a model without one has it, too"
    other, processor = lab["fresh"]()
    model = lab["started"]()[0]
    if name: other.save_pretrained(tmp_path / "other")
    model.config._name_or_path = str(tmp_path / "other") if name else ""
    t = trainer(
        lab, model, processor, beta=0.1, max_steps=2, learning_rate=1e-2, max_completion_length=24)
    with hide_known_warnings(): run_training(t, "all weights")
    batch = generated(t)
    ids, mask, n = sequences(batch)
    media = {k: batch[k] for k in MEDIA_KEYS if k in batch}
    written = batch["completion_mask"].bool()
    with torch.no_grad():
        began, now = [token_logps(m, ids, mask, n, **media) for m in (lab["started"]()[0], t.model)]
    assert torch.allclose(batch["ref_per_token_logps"][written], began[written], atol=1e-5)
    assert (now - began)[written].abs().max() > 1e-2


def test_a_model_of_another_trainer_is_copied_whole(lab):
    "trl gives the model of a trainer a `forward` of its own, which runs that model only"
    model, processor = lab["started"]()
    add_fused_lm_head(model)
    t = trainer(
        lab, model, processor, beta=0.1, max_steps=2, learning_rate=1e-2, max_completion_length=24)
    with hide_known_warnings(): run_training(t, "all weights")
    ids = processor.tokenizer("happy and sad", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        began, reference, now = [
            m(input_ids=ids).logits for m in (lab["started"]()[0], t.ref_model, t.model)]
    assert torch.allclose(reference, began) and (reference - now).abs().max() > 1e-2


def test_without_adapters_the_policy_is_the_reference(lab):
    "Without its adapters and the trained fusion, the policy is the model that training began with"
    model, processor = lab["started"]()
    t = trainer(
        lab, model, processor, lora=lora_config(), beta=0.1, max_steps=2, learning_rate=1e-2,
        max_completion_length=24)
    with hide_known_warnings(): run_training(t, "lora")
    batch = generated(t)
    ids, mask, n = sequences(batch)
    media, written = (
        {k: batch[k] for k in MEDIA_KEYS if k in batch}, batch["completion_mask"].bool())
    base = lab["started"]()[0]
    with torch.no_grad():
        reference, now = (
            token_logps(base, ids, mask, n, **media), token_logps(t.model, ids, mask, n, **media))
    assert torch.allclose(batch["ref_per_token_logps"][written], reference[written], atol=1e-5)
    assert (now - reference)[written].abs().max() > 1e-2
    merged = t.model.merge_and_unload()
    assert merged is model
    with torch.no_grad():
        assert torch.allclose(token_logps(merged, ids, mask, n, **media), now, atol=1e-4)


def test_gradient_reaches_every_tensor_of_the_fusion_and_none_of_the_towers(lab):
    model, processor = lab["fresh"]()
    batch = Collator(processor)([lab["captions"][i] for i in range(4)])
    model.train()(**batch).loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for p in model.model.fusion.parameters()
        if p.shape != (1,)
    )
    assert all(
        p.grad is None
        for tower in (model.model.vision_tower, model.model.audio_tower)
        for p in tower.parameters()
    )


def test_a_copy_of_a_trained_model_goes_its_own_way(lab):
    model, processor = lab["fresh"]()
    rows = lab["captions"].select(range(8))
    cold_start(model, processor, rows, lab["root"] / "copied", epochs=1, warmup_steps=0)
    batch, twin = (
        processor.training_batch([make_prompt(lab["human"][0])], ["<answer>sad</answer>"]),
        copy.deepcopy(model).eval())
    with torch.no_grad():
        before = model.eval()(**batch).logits
        for p in model.parameters(): p.zero_()
        assert torch.equal(twin(**batch).logits, before) and not torch.equal(
            model(**batch).logits, before)


def test_placeholders_are_never_sampled(lab):
    model, processor = lab["fresh"]()
    batch = generated(trainer(lab, model, processor, max_completion_length=24), n=4)
    assert not torch.isin(batch["completion_ids"], torch.tensor(processor.placeholder_ids)).any()


@pytest.mark.parametrize("mode", ["answer", "think"])
def test_both_modes_train_save_and_load(lab, mode):
    model, processor = lab["fresh"]()
    before = model.lm_head.weight.detach().clone()
    log = cold_start(
        model, processor, lab["captions"], lab["root"] / f"cold-{mode}", mode=mode, epochs=1,
        logging_steps=1)
    assert any("loss" in r for r in log)
    rewards = make_rewards("acc+format", wheels=load_wheels(), penalty="p2", mode=mode)
    log = train_grpo(
        model, processor, lab["human"], rewards, lab["root"] / f"grpo-{mode}", mode=mode, steps=2,
        num_prompts=2, num_generations=4)
    assert {"reward", "rewards/accuracy/mean", "rewards/format/mean"} <= set(log[0])
    assert not torch.equal(before, model.lm_head.weight)
    loaded = AutoModelForCausalLM.from_pretrained(lab["root"] / f"grpo-{mode}")
    again = AutoProcessor.from_pretrained(lab["root"] / f"grpo-{mode}")
    inputs = again.apply_chat_template(
        [make_prompt(lab["human"][0], mode)], tokenize=True, return_dict=True,
        add_generation_prompt=True, return_tensors="pt")
    for p in loaded.parameters():
        p.data = (
            p.data.clone()
        )  # loaded, they lie in memory as in the file, and the place decides the last bit of a sum
    with torch.no_grad(): assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


def test_same_seed_same_numbers(lab):
    def run(name):
        model, processor = lab["fresh"]()
        out = lab["root"] / name
        cold = cold_start(model, processor, lab["captions"], out / "cold", epochs=2, seed=3)
        rewards = make_rewards("acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
        grpo = train_grpo(
            model, processor, lab["human"], rewards, out / "grpo", steps=2, num_prompts=2,
            num_generations=4, seed=3)
        return (
            [r["loss"] for r in cold if "loss" in r], [r["reward"] for r in grpo if "reward" in r],
            model.lm_head.weight.detach())

    (loss1, reward1, w1), (loss2, reward2, w2) = run("once"), run("twice")
    assert loss1 == loss2 and reward1 == reward2
    assert np.array_equal(w1.numpy(), w2.numpy())


def test_thinking_without_descriptions_is_refused(lab):
    model, processor = lab["fresh"]()
    with pytest.raises(ValueError, match=r"human_\d+.*no description"):
        cold_start(model, processor, lab["human"], lab["root"] / "none", mode="think", epochs=1)


# What a supervised target is


@pytest.mark.parametrize("mode", ["answer", "think", "mixed"])
def test_the_loss_is_on_the_target_and_its_end_token_alone(lab, mode):
    processor, rows = lab["fresh"]()[1], [lab["captions"][i] for i in range(8)]
    collator = Collator(processor, mode)
    batch, asked = collator(rows), [coldstart.row_mode(r, mode, 0) for r in rows]
    assert set(asked) == ({mode} if mode != "mixed" else {"answer", "think"})
    for row, kind, ids, labels, mask in zip(
        rows, asked, batch["input_ids"], batch["labels"], batch["attention_mask"]):
        text = processor.tokenizer.decode(ids[mask == 1])
        assert (
            processor.tokenizer.decode(labels[labels != -100])
            == target_text(row, kind) + "<|im_end|>"
        )
        assert text.endswith(target_text(row, kind) + "<|im_end|>") and QUESTIONS[kind] in text
        assert (labels[labels != -100] == ids[labels != -100]).all()


def test_the_loss_does_not_hear_the_prompt(lab):
    "Another subtitle changes what is predicted, and not which tokens the loss is taken on"
    model, processor = lab["fresh"]()
    row = lab["captions"][0]
    n = [
        (Collator(processor)([r])["labels"] != -100).sum().item()
        for r in (row, {**row, "subtitle": "Quite another, and longer, subtitle."})
    ]
    assert n[0] == n[1] == len(processor.tokenizer(target_text(row, "answer"))["input_ids"]) + 1


def test_the_stop_token_is_learnt(lab):
    model, processor = lab["started"]()
    inputs = processor.apply_chat_template(
        [make_prompt(lab["captions"][i]) for i in range(8)], tokenize=True, return_dict=True,
        add_generation_prompt=True, padding=True, return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=40)[
        :, inputs["input_ids"].shape[1] :]
    assert (out == processor.tokenizer.eos_token_id).any(1).all()


def test_labels_come_in_another_order_in_each_epoch(lab):
    "The order is drawn anew, the same for the same seed, and the words stay the same"
    model, processor = lab["fresh"]()
    row = next(r for r in lab["captions"] if len(r["labels"]) > 3)

    def targets(seed, epochs=6):
        collator, seen = Collator(processor, seed=seed), []
        for epoch in range(epochs):
            collator.on_epoch_begin(None, type("State", (), dict(epoch=float(epoch))), None)
            labels = collator([row])["labels"][0]
            seen.append(
                parse_response(
                    processor.tokenizer.decode(labels[labels != -100][:-1]), "answer"
                ).labels
            )
        return seen

    assert all(sorted(t) == sorted(row["labels"]) for t in targets(0))
    assert len({tuple(t) for t in targets(0)}) > 1 and targets(0) == targets(0) != targets(1)
    assert {tuple(t) for t in targets(None)} == {tuple(row["labels"])}


def test_epochs_are_counted_while_training(lab):
    model, processor = lab["fresh"]()
    seen = {}

    class Spy(Collator):
        def __call__(self, rows):
            seen.setdefault(self.epoch, set()).update(r["name"] for r in rows)
            return super().__call__(rows)

    collator, coldstart.Collator = coldstart.Collator, Spy
    try:
        cold_start(
            model, processor, lab["captions"].select(range(8)), lab["root"] / "epochs", epochs=3,
            batch_size=4, shuffle_labels=True)
    finally: coldstart.Collator = collator
    assert sorted(seen) == [0, 1, 2] and all(len(names) == 8 for names in seen.values())


def test_an_unknown_mode_is_refused(lab):
    with pytest.raises(ValueError, match="mode is 'both'"):
        cold_start(*lab["fresh"](), lab["captions"], lab["root"] / "none", mode="both")


# Runs that are stopped, killed and resumed


class StopAt(TrainerCallback):
    "An error at the end of a step, as from a full disk"

    def __init__(self, step): self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step: raise OSError("no space left")


def parameters_apart(a, b):
    return max(
        (x - y).abs().max().item() for x, y in zip(a.state_dict().values(), b.state_dict().values())
    )


def small_grpo(lab, out, steps=7, stop=None, **settings):
    "A short GRPO run on 12 clips, four a step, over several epochs; stopped after step `stop`"
    model, processor = lab["started"]()
    rewards = make_rewards("acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
    defaults = dict(
        steps=steps, num_prompts=4, num_generations=4, learning_rate=2e-3, save_steps=2, seed=1)
    add, callbacks = grpo.run_training, [StopAt(stop)] if stop else []

    def with_callbacks(trainer, *args):
        for c in callbacks: trainer.add_callback(c)
        return add(trainer, *args)

    grpo.run_training = with_callbacks
    try:
        log = train_grpo(
            model, processor, lab["human"].select(range(12)), rewards, lab["root"] / out,
            **defaults | settings)
    finally: grpo.run_training = add
    return model, log


def test_only_folders_of_checkpoints_count(tmp_path):
    "Copies, archives and files beside the checkpoints stop nothing"
    state = json.dumps(dict(global_step=1))
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-10 copy", "checkpoint-30.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(state)
    for name in ("checkpoint-20.zip", "checkpoint-20"): (tmp_path / name).write_text("x")
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize(
    "name, settings",
    [
        ("plain", {}), ("cycles", dict(num_iterations=2, steps_per_generation=2, save_steps=3)),
        ("lora", dict(lora=lora_config(), learning_rate=1e-2))],
)
def test_a_resumed_run_is_the_unbroken_run(lab, name, settings):
    "Also in a later epoch than the first, and with several updates for one sampling"
    whole, log = small_grpo(lab, f"whole-{name}", **settings)
    with pytest.raises(OSError): small_grpo(lab, f"broken-{name}", stop=5, **settings)
    kept = last_checkpoint(lab["root"] / f"broken-{name}")
    assert kept.name == "checkpoint-4"
    again, log2 = small_grpo(lab, f"broken-{name}", **settings)
    assert parameters_apart(whole, again) == 0.0
    assert [r["reward"] for r in log if "reward" in r] == [
        r["reward"] for r in log2 if "reward" in r]
    assert last_checkpoint(lab["root"] / f"broken-{name}") is None
    if "lora" not in settings: assert parameters_apart(whole, lab["started"]()[0]) > 0


def test_a_resumed_cold_start_is_the_unbroken_one(lab):
    def run(out, stop=None):
        model, processor = lab["fresh"]()
        extra = dict(callbacks=[StopAt(stop)]) if stop else {}
        kind = coldstart.AffectSFTTrainer
        coldstart.AffectSFTTrainer = lambda *a, callbacks, **k: kind(
            *a, callbacks=callbacks + extra.get("callbacks", []), **k)
        try:
            cold_start(
                model, processor, lab["captions"].select(range(24)), lab["root"] / out, epochs=3,
                batch_size=8, save_steps=2, shuffle_labels=True, mode="mixed")
        finally: coldstart.AffectSFTTrainer = kind
        return model

    whole = run("sft-whole")
    with pytest.raises(OSError): run("sft-broken", stop=7)
    assert last_checkpoint(lab["root"] / "sft-broken").name == "checkpoint-6"
    assert parameters_apart(whole, run("sft-broken")) == 0.0


def test_another_run_is_not_resumed(lab):
    with pytest.raises(OSError): small_grpo(lab, "other", stop=3)
    with pytest.raises(
        ValueError, match=r"with other settings: learning_rate is 0.002 there and 0.001 now"):
        small_grpo(lab, "other", learning_rate=1e-3)
    assert last_checkpoint(lab["root"] / "other").name == "checkpoint-2"


def test_a_checkpoint_that_was_cut_short_is_passed_over(lab):
    with pytest.raises(OSError): small_grpo(lab, "cut", stop=3)
    cut = lab["root"] / "cut" / "checkpoint-6"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half")
    (cut / "trainer_state.json").write_text('{"global')
    assert last_checkpoint(lab["root"] / "cut").name == "checkpoint-2"
    small_grpo(lab, "cut")


def test_checkpoints_stand_at_boundaries_between_samplings(lab):
    with pytest.raises(OSError): small_grpo(lab, "boundary", stop=5, num_iterations=3, save_steps=2)
    assert last_checkpoint(lab["root"] / "boundary").name == "checkpoint-3"


def test_a_run_killed_in_the_middle_of_a_step_ends_with_the_same_evaluation(lab):
    "SIGKILL while the answers of a step are scored: nothing can clean up"

    def run(out, kill=None):
        model, processor = lab["started"]()
        (accuracy, form), weights = make_rewards(
            "acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
        if kill: os.environ["KILL_AT"] = str(kill)   # of the child only

        def deadly(completions, trainer_state, **columns):   # the same function in both processes
            if str(trainer_state.global_step) == os.environ.get("KILL_AT"):
                os.kill(os.getpid(), signal.SIGKILL)
            return form(completions, **columns)

        deadly.__name__ = "format"
        train_grpo(
            model, processor, lab["human"].select(range(12)), ([accuracy, deadly], weights),
            lab["root"] / out, steps=6, num_prompts=4, num_generations=4, learning_rate=2e-3,
            save_steps=2)
        return held_out_score(
            model, processor, lab["human"].select(range(12, 28)), wheels=load_wheels())

    child = multiprocessing.get_context("fork").Process(target=run, args=("killed", 5))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert last_checkpoint(lab["root"] / "killed").name == "checkpoint-4"
    resumed, unbroken = run("killed"), run("unbroken")
    assert (
        resumed["ew_f"] == pytest.approx(unbroken["ew_f"], abs=1e-6)
        and resumed["words"] == unbroken["words"]
    )


def test_the_best_checkpoint_on_held_out_clips_is_kept_and_watching_changes_nothing(lab):
    held = lab["human"].select(range(12, 28))
    plain, log = small_grpo(lab, "unwatched", steps=6)
    best, watched = small_grpo(lab, "watched", steps=6, validation=held, wheels=load_wheels())
    assert [r["reward"] for r in log if "reward" in r] == [
        r["reward"] for r in watched if "reward" in r]
    scores = {r["step"]: r["eval_ew_f"] for r in watched if "eval_ew_f" in r}
    assert sorted(scores) == [2, 4, 6]
    processor = lab["started"]()[1]
    assert held_out_score(best, processor, held, wheels=load_wheels())["ew_f"] == pytest.approx(
        max(scores.values()), abs=1e-9)
    if scores[6] < max(scores.values()): assert parameters_apart(plain, best) > 0


def test_every_sampled_answer_is_kept_with_its_rewards(lab):
    _, log = small_grpo(lab, "kept", steps=2)
    table = read_completions(lab["root"] / "kept")
    assert len(table) == 2 * 16 and set(table["clip"]) <= set(lab["human"]["name"])
    means = table.groupby("step")["accuracy"].mean()
    assert [r["rewards/accuracy/mean"] for r in log if "reward" in r] == pytest.approx(
        means.tolist(), abs=1e-6)
    assert table["completion"].str.contains("<answer>").any() and {"format", "advantage"} <= set(
        table)
    with pytest.raises(FileNotFoundError, match="no completions"): read_completions(lab["root"])


def test_progress_in_plain_lines(lab, capsys):
    small_grpo(lab, "lines", steps=2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("GRPO 2/2") and all(
        word in last for word in ("reward", "accuracy", "words"))


# Errors that say what to change


def test_out_of_memory(lab, monkeypatch):
    kind = AffectGRPOTrainer._compute_loss

    def fails(self, model, inputs):
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return kind(self, model, inputs)

    monkeypatch.setattr(AffectGRPOTrainer, "_compute_loss", fails)
    with pytest.raises(
        TrainingStopped,
        match=r"out of memory in step 4.*micro-batch \(it is 16\).*checkpoint-2 is complete"):
        small_grpo(lab, "oom")
    monkeypatch.undo()
    small_grpo(lab, "oom", micro_batch=4)  # what was advised, from the checkpoint


def test_a_loss_that_is_no_number(lab, monkeypatch):
    kind, weights = AffectGRPOTrainer._compute_loss, {}

    def fails(self, model, inputs):
        loss = kind(self, model, inputs)
        weights[self.state.global_step] = model.lm_head.weight.detach().clone()
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(AffectGRPOTrainer, "_compute_loss", fails)
    model, processor = lab["started"]()
    rewards = make_rewards("acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
    with pytest.raises(
        TrainingStopped,
        match=r"gradient of step 4 is nan.*Lower the learning rate.*checkpoint-2 is complete"):
        train_grpo(
            model, processor, lab["human"], rewards, lab["root"] / "nan", steps=6, num_prompts=4,
            num_generations=4, save_steps=2)
    assert torch.equal(model.lm_head.weight, weights[3])  # the step was not taken


def test_a_supervised_loss_that_is_no_number(lab):
    model, processor = lab["fresh"]()
    with torch.no_grad(): model.model.fusion.video_proj.weight.fill_(float("inf"))
    with pytest.raises(TrainingStopped, match="was not finite"):
        cold_start(model, processor, lab["captions"], lab["root"] / "nan-sft", epochs=1)


def test_a_reward_that_raises(lab):
    def fragile(completions, trainer_state, **columns):
        if trainer_state.global_step == 3: raise KeyError("joyful")
        return [float(len(c[0]["content"])) for c in completions]

    model, processor = lab["started"]()

    def run():
        return train_grpo(
            model, processor, lab["human"], ([fragile], [1.0]), lab["root"] / "fragile", steps=6,
            num_prompts=4, num_generations=4, save_steps=2)

    with pytest.raises(
        TrainingStopped,
        match=r"'fragile' failed on the answers to human_\d+.*KeyError: 'joyful'.*-2 is complete"
    ):
        run()


def test_a_group_that_nobody_can_score(lab):
    def picky(completions, name, **columns): return [None if n == name[0] else 1.0 for n in name]

    model, processor = lab["started"]()
    with pytest.raises(TrainingStopped, match=r"No reward could score any answer to human_\d+, so"):
        train_grpo(
            model, processor, lab["human"], ([picky], [1.0]), lab["root"] / "picky", steps=2,
            num_prompts=4, num_generations=4)


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda d: d.select([]), "holds no clips"),
        (lambda d: d.remove_columns("labels"), "no column `labels`"),
        (
            lambda d: d.map(
                lambda row, i: dict(labels=[] if i == 1 else row["labels"]), with_indices=True
            ),
            r"1 of \d+ clips have no gold labels: human_\d+",
        ),
    ],
)
def test_a_data_set_without_gold(lab, change, error):
    model, processor = lab["fresh"]()
    rewards = make_rewards("acc+format", wheels=load_wheels())
    with pytest.raises(ValueError, match=error):
        train_grpo(model, processor, change(lab["human"]), rewards, lab["root"] / "none")


@pytest.mark.parametrize(
    "settings, error",
    [
        (dict(num_generations=1), "must be at least 2"),
        (dict(num_prompts=1000), "num_prompts is too large"),
        (dict(num_prompts=4, micro_batch=5), "must divide the 32 answers"),
        (dict(temperature=0), "temperature is 0: all answers to a clip would be the same")],
)
def test_settings_that_cannot_work(lab, settings, error):
    rewards = make_rewards("acc+format", wheels=load_wheels())
    with pytest.raises(ValueError, match=error):
        train_grpo(*lab["fresh"](), lab["human"], rewards, lab["root"] / "none", **settings)


@pytest.mark.parametrize(
    "name, ours",
    [
        ("per_device_train_batch_size", "micro_batch"), ("max_completion_length", "max_new_tokens"),
        ("max_steps", "steps"), ("eval_steps", "save_steps")],
)
def test_a_setting_is_given_under_one_name(lab, name, ours):
    rewards = make_rewards("acc+format", wheels=load_wheels())
    with pytest.raises(ValueError, match=f"give {ours} in place of {name}"):
        train_grpo(*lab["fresh"](), lab["human"], rewards, lab["root"] / "named-twice", **{name: 2})
    assert not (lab["root"] / "named-twice").exists()


def test_a_setting_of_the_cold_start_is_given_under_one_name(lab):
    with pytest.raises(ValueError, match="give batch_size in place of per_device_train_batch_size"):
        cold_start(
            *lab["fresh"](), lab["captions"], lab["root"] / "none", per_device_train_batch_size=2)


def test_further_arguments_of_generate_keep_placeholders_from_being_sampled(lab):
    how = dict(steps=1, warmup_steps=0, generation_kwargs={"repetition_penalty": 1.1})
    small_grpo(lab, "further", **how)
    assert not read_completions(lab["root"] / "further")["completion"].str.contains("<video>").any()


def test_the_longest_answer_travels_with_the_checkpoint(lab):
    assert (
        AutoModelForCausalLM.from_pretrained(lab["root"] / "cold").generation_config.max_new_tokens
        == 24
    )
    small_grpo(lab, "limit", steps=1, warmup_steps=0, max_new_tokens=9)
    assert (
        AutoModelForCausalLM.from_pretrained(lab["root"] / "limit").generation_config.max_new_tokens
        == 9
    )


# Memory, processes, reports


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_micro_batches_and_checkpointing_change_no_number(lab, loss_type):
    def run(
        name, **how
    ):  # plain gradient descent: Adam blows up the rounding of gradients near zero
        return small_grpo(
            lab, f"{loss_type}-{name}", steps=2, loss_type=loss_type, optim="sgd",
            learning_rate=0.5, warmup_steps=0, **how)[0]

    whole, start = run("whole"), lab["started"]()[0]
    assert parameters_apart(whole, start) > 1e-2
    for name, how in (
        ("micro", dict(micro_batch=4)),
        ("again", dict(micro_batch=8, gradient_checkpointing=True))):
        assert parameters_apart(whole, run(name, **how)) < 1e-5


def test_a_plan_fits_what_there_is():
    config = paper_config()

    def plan(gib, answers=64): return plan_memory(config, gib, answers, completion=512, lora=True)

    assert (
        plan(140) == dict(micro_batch=8, gradient_checkpointing=False)
        and plan(40)["gradient_checkpointing"]
    )
    for gib in (24, 80):
        found = plan(gib)
        need = memory_estimate(
            config, found["micro_batch"], 64, 256, 512, True, found["gradient_checkpointing"],
            torch.bfloat16).loc["sum"]
        assert 64 % found["micro_batch"] == 0 and need.max() <= 0.9 * gib
    with pytest.raises(ValueError, match="take fewer prompts"): plan(24, answers=2048)
    with pytest.raises(ValueError, match="one answer takes"): plan(18.8, answers=1)


class Scripted(AffectGRPOTrainer):
    "Writes answers that depend on the prompt and on the place in the group, and on nothing else"

    words = ["happy", "sad", "angry", "worried, sad", "happy, excited"]

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        texts = [
            f"<answer>{self.words[(sum(ids) + i % self.num_generations) % 5]}</answer>"
            for i, ids in enumerate(prompt_ids)
        ]
        return [
            self._tokenizer(t)["input_ids"] + [self._tokenizer.eos_token_id] for t in texts
        ], None


def scripted_run(lab, out, answers):
    "Losses and gradients of three steps; in one process, or in each of several"
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    model, processor = lab["started"]()
    cache = processor.features   # 64 bits: the order of a sum matters less
    processor.features = lambda clip: {
        k: v.double() if v.is_floating_point() else v for k, v in cache(clip).items()}
    t = trainer(
        lab, model.double(), processor, Scripted, max_steps=3, per_device_train_batch_size=answers,
        steps_per_generation=1, logging_steps=1, num_iterations=2, optim="sgd", learning_rate=0.5,
        output_dir=str(out))
    with hide_known_warnings(): log = run_training(t, "scripted")
    if t.is_world_process_zero():
        torch.save(model.state_dict(), out / "weights.pt")
        (out / "log.json").write_text(
            json.dumps([[r[k] for k in ("loss", "grad_norm")] for r in log if "grad_norm" in r]))


def test_two_processes_are_one_with_the_same_batch(lab, tmp_path):
    "Two processes with half of the answers each: the same losses, gradients and weights as one"
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    scripted_run(lab, one, 16)
    debug_launcher(scripted_run, (lab, two, 8), num_processes=2)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    alone, together = (json.loads((p / "log.json").read_text()) for p in (one, two))
    assert (
        np.allclose(alone, together, atol=1e-5)
        and len(alone) == 3
        and any(abs(loss) > 1e-4 for loss, _ in alone)
    )
    a, b = (torch.load(p / "weights.pt") for p in (one, two))
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 1e-5


def write_prepared(lab, run):
    "A run folder for the clips of the lab, with their features"
    corpus = str(lab["root"] / "corpus")
    sources = dict(caption=(corpus, "caption"), human=(corpus, "human"), test=(corpus, "ovmerd"))
    about = dict(sources=sources, missing="error", leakage="error", wheels={}, seed=0)
    (run / "prepared.json").write_text(json.dumps(about))
    (run / "features").symlink_to(lab["root"] / "features")


def launch(run, command, *args):
    "What a command prints that runs in two processes on a CPU, with the config for several GPUs"
    how = ["--config_file", str(ROOT / "configs/ddp.yaml"), "--num_processes", "2"]
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", *how, "--main_process_port", "0",
            "-m", "affectgpt_r1", command, "--run-dir", str(run), *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-9000:]
    return done.stdout


def test_the_script_trains_under_accelerate_launch(lab, tmp_path):
    write_prepared(lab, tmp_path)
    (tmp_path / "cold_start").symlink_to(lab["root"] / "cold")
    few = (   # without a warm-up, in whose first step nothing is learnt
        "--set", "steps=2", "num_prompts=2", "num_generations=4", "save_steps=1", "warmup_steps=0")
    said = launch(tmp_path, "grpo", *few)
    assert said.count("GRPO 2/2") >= 1 and "held-out F" in said
    assert (tmp_path / "grpo/model.safetensors").exists() and len(
        read_completions(tmp_path / "grpo")
    ) == 2 * 2 * 8


def test_adapters_go_from_stage_to_stage_in_two_processes(lab, tmp_path):
    "Cold start with LoRA, GRPO on the same adapters, evaluation: each in two processes"
    write_prepared(lab, tmp_path)
    (tmp_path / "start").symlink_to(lab["root"] / "cold")   # it can write answers
    launch(tmp_path, "sft", "--lora", "--set", "max_steps=2", "batch_size=4")
    few = ("steps=2", "num_prompts=2", "num_generations=4", "warmup_steps=0")
    launch(tmp_path, "grpo", "--set", *few)
    bases = [json.loads((tmp_path / s / "base.json").read_text()) for s in ("cold_start", "grpo")]
    assert bases[0] == bases[1] == dict(folder="../start", hash=bases[0]["hash"])
    cold, trained = (load_stage(tmp_path / stage)[0] for stage in ("cold_start", "grpo"))
    assert parameters_apart(cold, trained) > 0
    launch(tmp_path, "evaluate", "--set", "max_new_tokens=8")
    assert len(json.loads((tmp_path / "scores.json").read_text())) == 4


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_configs_are_read(lab, name):
    "accelerate knows every field, and the layers to be wrapped are there"
    config = load_config_from_file(str(ROOT / f"configs/{name}.yaml"))
    assert config.mixed_precision == "bf16" and config.num_machines == 1
    if name == "fsdp2":
        model = lab["fresh"]()[0]
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in {
            type(m).__name__ for m in model.modules()}
    if name.startswith("zero"): assert config.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize(
    "name, files",
    [
        ("tensorboard", "board/**/events.*"), ("wandb", "wandb/offline-run-*/logs/debug.log"),
        ("trackio", "*")],
)
def test_reports_go_where_they_are_sent(lab, name, files, tmp_path, monkeypatch):
    "trl hands `report_to` on; written to this machine, since tests are offline"
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    for variable, value in dict(
        WANDB_MODE="offline", WANDB_DIR=tmp_path, TENSORBOARD_LOGGING_DIR=tmp_path / "board"
    ).items():
        monkeypatch.setenv(variable, str(value))
    small_grpo(lab, f"report-{name}", steps=2, report_to=name, run_name="trial")
    assert list((Path(os.environ["TRACKIO_DIR"]) if name == "trackio" else tmp_path).glob(files))


# What a cold start must be told: no clip arrived, no clip was read


def deaf_and_blind(lab):
    "A fresh model whose fusion says the same of every clip"
    model, processor = lab["fresh"]()
    model.model.fusion.forward = lambda V, A, *masks: torch.zeros(
        len(V), 3, model.config.text_config.hidden_size)
    return model, processor


@pytest.mark.parametrize("n_clips", [1, 8])
def test_a_cold_start_without_clips_is_stopped_before_its_first_step(lab, tmp_path, n_clips):
    model, processor = deaf_and_blind(lab)
    before = model.lm_head.weight.detach().clone()
    with pytest.raises(ValueError, match="the clips do not reach the model"):
        cold_start(model, processor, lab["captions"].select(range(n_clips)), tmp_path, epochs=1)
    assert torch.equal(model.lm_head.weight, before) and not (tmp_path / "config.json").exists()


def read_clips_of(out): return json.loads((out / "run.json").read_text())["done"]["clips"]


def test_a_cold_start_counts_the_clips_that_it_has_read(lab, tmp_path):
    "One clip alone, too; a run of too few steps has read a part of what there is"
    captions, how = lab["captions"], dict(warmup_steps=0, batch_size=4)
    for rows, more in ((captions.select(range(1)), {}), (captions.select(range(10)), {}),
                       (captions.select(range(10)), dict(max_steps=2))):
        out = tmp_path / f"{len(rows)}-{len(more)}"
        cold_start(*lab["fresh"](), rows, out, epochs=1, **how | more)
        assert read_clips_of(out) == min(len(rows), 8 if more else 10)


def test_a_cold_start_that_has_read_none_of_its_clips_is_not_finished(lab, tmp_path, monkeypatch):
    "Batches that come from elsewhere"
    monkeypatch.setattr(coldstart.AffectSFTTrainer, "note_clips", lambda self, names: None)
    with pytest.raises(TrainingStopped, match="not one of 4 clips was read"):
        cold_start(*lab["fresh"](), lab["captions"].select(range(4)), tmp_path, epochs=1,
                   batch_size=4, warmup_steps=0)
    assert not json.loads((tmp_path / "run.json").read_text()).get("finished")


def test_names_of_clips_come_out_of_reading_processes(lab, tmp_path):
    model, processor = lab["fresh"]()
    cold_start(model, processor, lab["captions"].select(range(4)), tmp_path, epochs=1,
               batch_size=2, warmup_steps=0, dataloader_num_workers=1)
    assert read_clips_of(tmp_path) == 4


# Half precision, and other devices


@pytest.mark.parametrize("dtype, how", [
    (torch.float16, {}), (torch.bfloat16, {}), (None, dict(fp16=True)), (None, dict(bf16=True))],
    ids=["fp16 weights", "bf16 weights", "fp16", "bf16"])
def test_half_precision_learns_in_both_stages(lab, tmp_path, dtype, how):
    "Weights in 16 bits, and weights in 32 with 16 bits inside; fp16 has a loss scale"
    model, processor = lab["fresh"]()
    cache, to = processor.features, dtype or torch.float32
    processor.features = lambda clip: {
        k: v.to(to) if v.is_floating_point() else v for k, v in cache(clip).items()}
    model = model.to(to)
    rewards = [lambda completions, **columns: [len(c[0]["content"]) / 9 for c in completions]], [1.]
    few = dict(num_prompts=2, num_generations=4, learning_rate=1e-2, warmup_steps=0, steps=2)
    rows = lab["captions"].select(range(4))
    for train, args in ((cold_start, dict(epochs=2, batch_size=4, warmup_steps=0)),
                        (train_grpo, dict(rewards=rewards) | few)):
        before = copy.deepcopy(model)
        train(model, processor, rows, out=tmp_path / train.__name__, **args | how)
        assert parameters_apart(model, before) > 0
        assert all(x.dtype == to and x.isfinite().all() for x in model.parameters())


@pytest.mark.parametrize("device, bf16, expected", [
    ("cuda", True, dict(bf16=True, fp16=False, use_cpu=False)),
    ("cuda", False, dict(bf16=False, fp16=True, use_cpu=False)),
    ("mps", False, dict(bf16=False, fp16=False, use_cpu=False)),
    (None, False, dict(bf16=False, fp16=False, use_cpu=True))])
def test_the_precision_of_a_device(monkeypatch, device, bf16, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: bf16)
    found = trainer_settings()
    assert {name: found[name] for name in expected} == expected
    assert found["dataloader_pin_memory"] == (device == "cuda")


def end_of_a_program(rank, folder):
    "The first process has still to write when the second is done"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 0:
        time.sleep(1)
        (folder / "written").touch()
    leave_processes()
    assert (folder / "written").exists() and not distributed.is_initialized()


def test_no_process_leaves_before_the_others_are_done(tmp_path):
    "A launcher that sees one end badly stops the others, whatever they are writing"
    torch.multiprocessing.spawn(end_of_a_program, (tmp_path,), nprocs=2)


def test_a_command_ends_by_leaving(monkeypatch):
    left = []
    monkeypatch.setattr(cli, "_merge", lambda args: left.append("work"))
    monkeypatch.setattr(processes, "leave_processes", lambda: left.append("leave"))
    cli.main(["merge", "a", "b"])
    assert left == ["work", "leave"]

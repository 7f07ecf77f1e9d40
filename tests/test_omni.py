"""Tiny Qwen-Omni thinkers of both families, with video and sound, through all stages: the loss sees
what the sampler saw, and eight faults planted in between are found before the second step"""

import json
import re
import wave
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig
from trl import GRPOTrainer

from affectgpt_r1 import grpo_trainer, omni_model, sampling_checks, stages
from affectgpt_r1.checkpoints import load_stage, merge_stage, save_start
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.grpo import read_completions, train_grpo
from affectgpt_r1.inference import AffectGPT
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.media import read_video, write_video
from affectgpt_r1.media_rows import OmniRows, media_rule, pick_rows
from affectgpt_r1.omni import is_published_omni, load_omni, make_tiny_omni
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.sounds import read_waveform
from benchmarks.planted_faults import FAULTS, GRPO, THREADS, noisy, run_with

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ["qwen2_5_omni", "qwen3_omni_moe"]


def write_wav(path, seconds, random):
    "White noise"
    samples = (random.standard_normal(int(16000 * seconds)) * 3000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    "Six clips of different length and shape; one has no sound, one no pictures"
    folder, random, rows = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for i in range(6):
        video, audio = folder / f"c{i}.mp4", folder / f"c{i}.wav"
        frames = random.integers(0, 255, (8 + 4 * i, 64, 64 if i % 2 else 96, 3), dtype=np.uint8)
        write_video(video, frames)
        write_wav(audio, .5 + i / 2, random)
        rows.append(dict(
            name=f"c{i}", video=str(video), audio=str(audio), face="", subtitle="Here we are.",
            labels=["happy", "worried"][:1 + i % 2], description="Her mouth smiles."))
    rows[1]["audio"], rows[4]["video"] = "", ""
    return rows


@pytest.fixture(scope="module")
def texts(rows):
    return [", ".join(r["labels"]) + r["subtitle"] + r["description"] for r in rows] + [
        *QUESTIONS.values()]


def ask(processor, rows):
    "The questions about some rows, as the model takes them"
    return processor.apply_chat_template(
        [make_prompt(r) for r in rows], tokenize=True, return_dict=True,
        add_generation_prompt=True, padding=True, return_tensors="pt")


def logits(model, batch, **changes):
    with torch.no_grad(): return model(**{**batch, **changes}).logits


# --- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_as_if_alone(rows, texts, family, inside):
    "Rows with and without sound or video in one batch; and one row is what the library computes"
    model, processor = make_tiny_omni(texts, family, use_audio_in_video=inside)
    parent = type(model).__bases__[1]
    library = parent(model.config).eval()
    library.load_state_dict(model.state_dict())
    whole = logits(model, ask(processor, rows))
    for i, row in enumerate(rows):
        one = ask(processor, [row])
        n = one["input_ids"].shape[1]
        flag = dict(use_audio_in_video=True) if inside and row["audio"] and row["video"] else {}
        assert torch.allclose(whole[i, -n:], logits(model, one)[0], atol=1e-5)
        assert torch.allclose(logits(library, one, **flag), logits(model, one), atol=1e-5)
    kept = logits(model, ask(processor, rows), logits_to_keep=3)
    assert torch.equal(kept, whole[:, -3:])


def test_the_flag_of_a_batch_loses_a_row_without_sound(rows, texts):
    "Why positions are counted row by row: the library has one flag for all rows"
    model, processor = make_tiny_omni(texts, use_audio_in_video=True)
    library = type(model).__bases__[1](model.config).eval()
    library.load_state_dict(model.state_dict())
    batch = ask(processor, [rows[1], rows[0]])   # the first one has no sound
    theirs = logits(library, batch, use_audio_in_video=True)
    assert not torch.allclose(theirs, logits(model, batch), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_modality_moves_logps_and_samples(rows, texts, family):
    model, processor = make_tiny_omni(texts, family)
    with torch.no_grad(): model.lm_head.weight *= 10   # a random model hears little
    batch = ask(processor, rows[:1] * 8)
    for name in ("pixel_values_videos", "input_features"):
        other = {**batch, name: torch.zeros_like(batch[name])}
        change = (logits(model, batch)[:, -1] - logits(model, other)[:, -1]).abs().max()
        assert change > 1e-3, (name, change)
        written = []
        for given in (batch, batch, other):
            torch.manual_seed(0)
            written.append(model.generate(**given, max_new_tokens=12, do_sample=True))
        assert torch.equal(written[0], written[1]) and not torch.equal(written[0], written[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_clip_is_encoded_once(rows, texts, family):
    "Sixteen rows about two clips: the encoders see two; with other weights they begin anew"
    model, processor = make_tiny_omni(texts, family)
    inner, batch = model.model, ask(processor, [rows[0], rows[2]] * 8)
    whole = logits(model, batch)
    assert inner.kept_videos.computed == inner.kept_sounds.computed == 2
    assert torch.allclose(whole[1], logits(model, ask(processor, rows[2:3]))[0], atol=1e-5)
    assert inner.kept_videos.computed == 2
    with torch.no_grad(): next(inner.visual.parameters()).mul_(2)
    assert not torch.allclose(whole, logits(model, batch), atol=1e-4)
    assert inner.kept_videos.computed == 4 and inner.kept_sounds.computed == 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_audio_encoder_keeps_to_its_windows(rows, texts, attention):
    "A second of sound is encoded alone in Qwen2.5-Omni: what comes later changes nothing before it"
    model, processor = make_tiny_omni(texts)
    model.set_attn_implementation(attention)
    sound = processor.read_clip(dict(rows[5], video=""))["input_features"][None]
    later, mask = sound.clone(), torch.ones(1, sound.shape[2], dtype=torch.long)
    later[:, :, 200:] = 0
    with torch.no_grad():
        one, other = (model.get_audio_features(x, mask).last_hidden_state for x in (sound, later))
    assert torch.equal(one[:50], other[:50]) and not torch.allclose(one[50:], other[50:])


def test_encoders_are_frozen(texts):
    model, _ = make_tiny_omni(texts)
    model.train()
    inner = model.model
    for tower in (inner.visual, inner.audio_tower):
        assert not any(m.training for m in tower.modules())
        assert not any(p.requires_grad for p in tower.parameters())
    assert inner.language_model.training


# --- the processor -----------------------------------------------------------------------------


def test_the_same_without_torchvision(rows, texts):
    "Patches, spectrograms and tokens are those of the library's own processor"
    pytest.importorskip("torchvision", reason="the library's own processor needs torchvision")
    from transformers import Qwen2_5OmniProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
    _, processor = make_tiny_omni(texts)
    limits = dict(shortest_edge=1, longest_edge=64**2)
    video = Qwen2VLVideoProcessor(size=limits, cap_pixels_per_frame=False)
    theirs = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(), video, processor.feature_extractor, processor.tokenizer)
    for row in (rows[0], rows[3]):
        ours, chat = ask(processor, [row]), make_prompt(row)
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        frames = torch.tensor(read_video(row["video"], 4)).permute(0, 3, 1, 2)
        how = dict(fps=2 / ours["video_second_per_grid"].item(), size=limits)
        found = theirs(text=[text], videos=[frames], audio=[read_waveform(row["audio"])],
                       return_tensors="pt", videos_kwargs=how)
        n = ours["input_features"].shape[2]
        assert torch.equal(found["input_features"][:, :, :n], ours["input_features"])
        for name in ("input_ids", "pixel_values_videos", "video_grid_thw"):
            assert torch.equal(found[name], ours[name]), name


def test_long_sounds_are_cut_with_a_warning(rows, texts):
    _, processor = make_tiny_omni(texts, max_seconds=1.)
    with pytest.warns(UserWarning, match="c5.mp4.*cut after 1 s"): ask(processor, rows[5:])
    _, processor = make_tiny_omni(texts)
    with pytest.raises(ValueError, match="lasts 1 ms"):
        processor.read_clip(dict(video="", audio=np.zeros(16, np.float32), face=""))


def test_what_a_clip_may_not_say(rows, texts):
    "The place of a clip in a subtitle, as in 2.5 % of a public data set"
    _, processor = make_tiny_omni(texts)
    with pytest.raises(ValueError, match="c0.mp4.*'<|VIDEO|>'"):
        ask(processor, [rows[0] | dict(subtitle="See <|VIDEO|> here")])
    with pytest.raises(ValueError, match="'c0': its subtitle holds '<|VIDEO|>'"):
        processor.check_words([rows[0] | dict(subtitle="See <|VIDEO|> here")])
    with pytest.raises(ValueError, match="holds {clip}"):
        make_tiny_omni(texts, prompt_template="{question}")


# --- media by row ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_come_back_whatever_is_done_to_them(rows, texts, family):
    "Cut, shuffled, repeated and joined, a batch is what the processor makes of these rows"
    model, processor = make_tiny_omni(texts, family)
    batch, rule = ask(processor, rows), media_rule(model.config)
    cut = rule.cut(batch, batch["input_ids"].tolist())
    for which in ([0, 1, 2, 3, 4, 5], [5, 1, 1, 4], [1], [4]):
        joined, wanted = rule.join(pick_rows(cut, which)), ask(processor, [rows[i] for i in which])
        assert joined.keys() == wanted.keys() & set(OmniRows.names)
        for name in joined: assert torch.allclose(joined[name].float(), wanted[name].float()), name
    with pytest.raises(ValueError, match="5 videos came with the prompts, and 4 of 5"):
        rule.cut(batch, batch["input_ids"][1:].tolist())


# --- the stages --------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    "Sums of each row's media, as it was sampled with them and as the loss has them; and the gaps"
    seen = dict(sampled={}, loss=[], gaps=[])
    sampling, loss = GRPOTrainer._generate_and_score_completions, GRPOTrainer._compute_loss

    def sums(media):
        return {name: x.float().sum().item() for name, x in media.items() if name in OmniRows.names}

    def sample(self, inputs):
        batch = sampling(self, inputs)
        for row, ids in enumerate(batch["completion_ids"]):
            media = self.media_rule.join(pick_rows(self.media, slice(row, row + 1)))
            seen["sampled"].setdefault((inputs[row]["name"], tuple(ids.tolist())), sums(media))
        return batch

    def score(self, model, inputs):
        for row, (name, ids) in enumerate(zip(inputs["clip_names"], inputs["completion_ids"])):
            media = self.media_rule.join(pick_rows(self.media, slice(row, row + 1)))
            seen["loss"].append(((name, tuple(ids.tolist())), sums(media)))
        return loss(self, model, inputs)

    def compare(trainer, sampled, logps, *args):
        gap = real_compare(trainer, sampled, logps, *args)
        seen["gaps"].append((sampled - logps).nan_to_num(0).abs().mul(args[0]).max().item())
        return gap

    real_compare = sampling_checks.compare_logps
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", sample)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", score)
    monkeypatch.setattr(grpo_trainer, "compare_logps", compare)
    return seen


@pytest.mark.parametrize("family, inside", [("qwen2_5_omni", True), ("qwen3_omni_moe", False)])
def test_two_steps_of_each_stage(rows, texts, tmp_path, seen, family, inside):
    "Two steps of SFT, saved, reloaded; two of GRPO; rows of all kinds in one batch"
    model, processor = make_tiny_omni(texts, family, use_audio_in_video=inside)
    towers = {k: x.clone() for k, x in model.state_dict().items() if "language_model" not in k}
    data = Dataset.from_list(rows)
    cold_start(model, processor, data, tmp_path / "sft", recipe="toy", lora=True, batch_size=6,
               max_steps=2, warmup_steps=0, learning_rate=1e-2,
               gradient_checkpointing=True)   # then peft asks the encoders for gradients
    model, processor = load_stage(tmp_path / "sft")
    assert isinstance(model, PeftModel) and processor.use_audio_in_video == inside
    before = logits(model.eval(), ask(processor, rows))
    log = train_grpo(model, processor, data, ([noisy], [1.]), tmp_path / "grpo",
                     **{k: x for k, x in GRPO.items() if k != "lora"})
    steps = [r for r in log if "reward" in r]
    assert len(steps) == 2 and all(r["sampling/logp_gap"] < 1e-5 for r in steps)
    assert 0 < max(seen["gaps"]) <= 1e-5
    assert len(seen["loss"]) == 12 and len({name for (name, _), _ in seen["loss"]}) == 6
    for key, sums in seen["loss"]:
        assert sums == pytest.approx(seen["sampled"][key]), key
    assert len(read_completions(tmp_path / "grpo")) == 12
    again, processor = load_stage(tmp_path / "grpo")
    after = logits(again.eval(), ask(processor, rows))
    assert torch.equal(after, logits(model.eval(), ask(processor, rows)))
    assert not torch.allclose(after, before, atol=1e-4)
    weights = again.get_base_model().state_dict()
    assert all(torch.equal(weights[k], x) for k, x in towers.items())
    assert {k.split(".")[3] for k, p in again.named_parameters() if p.requires_grad} == {
        "language_model"}
    said = AffectGPT(again, processor).predict(rows[1], max_new_tokens=4)
    assert said.used == dict(video=True, audio=False, subtitle=True)


def test_merged_and_by_the_librarys_class(rows, texts, tmp_path):
    "A merged stage is a folder that transformers itself loads"
    model, processor = make_tiny_omni(texts)
    cold_start(model, processor, Dataset.from_list(rows), tmp_path / "sft", recipe="toy", lora=True,
               batch_size=3, max_steps=2, warmup_steps=0, learning_rate=1e-2)
    merge_stage(tmp_path / "sft", tmp_path / "merged")
    model, processor = load_stage(tmp_path / "merged")
    parent = omni_model.Qwen25OmniThinker.__bases__[1]
    library = parent.from_pretrained(tmp_path / "merged").eval()
    batch = ask(processor, rows[:1])
    assert torch.allclose(logits(library, batch), logits(model.eval(), batch), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_folder(rows, texts, tmp_path, family):
    "Weights under the names of the hub, beside those of a talker, load as the thinker"
    model, processor = make_tiny_omni(texts, family)
    names = {"model.language_model.": "thinker.model.", "model.visual.": "thinker.visual.",
             "model.audio_tower.": "thinker.audio_tower.", "lm_head.": "thinker.lm_head."}
    model.save_pretrained(tmp_path / "own")
    weights = {}
    for name, x in model.state_dict().items():
        old, new = next((k, v) for k, v in names.items() if name.startswith(k))
        weights[name.replace(old, new, 1)] = x.contiguous()
    whole = AutoConfig.for_model(family, thinker_config=model.config.to_dict())
    for part in (processor.tokenizer, processor.image_processor):
        part.save_pretrained(tmp_path / "hub")
    made = json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())
    made |= processor.feature_extractor.to_dict()   # one file for both, as on the hub
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(made))
    whole.save_pretrained(tmp_path / "hub")
    save_file(weights | {"talker.x": torch.zeros(1)}, tmp_path / "hub" / "model.safetensors",
              metadata=dict(format="pt"))
    small = dict(num_frames=4, pixels=(1, 64**2))
    loaded, processor = load_omni(tmp_path / "hub", dtype=torch.float32, **small)
    batch = ask(processor, rows)
    assert torch.allclose(logits(loaded.eval(), batch), logits(model, batch), atol=1e-5)
    assert loaded.source["omni"]["dtype"] == "float32"
    start = tmp_path / "start"
    save_start(loaded, processor, start)   # a run of the command line begins with it
    assert is_published_omni(tmp_path / "hub") and not is_published_omni(start)
    assert not list(start.glob("*.safetensors"))
    again, processor = load_stage(start)
    assert processor.num_frames == 4 and torch.equal(logits(again.eval(), batch), logits(
        loaded, batch))
    AffectGPT(loaded, processor).save_pretrained(tmp_path / "saved")
    assert "thinker of a Qwen-Omni" in (tmp_path / "saved" / "README.md").read_text()
    again = AffectGPT.from_pretrained(tmp_path / "saved").model
    assert torch.equal(logits(again, batch), logits(loaded, batch))
    with pytest.raises(ValueError, match="no Qwen-Omni"):
        AutoConfig.for_model("qwen2").save_pretrained(tmp_path / "other")
        load_omni(tmp_path / "other")


def test_16_bits(rows, texts, tmp_path, seen):
    "In bf16 sampler and loss differ more; how much is in the log"
    model, processor = make_tiny_omni(texts)
    log = train_grpo(model.to(torch.bfloat16), processor, Dataset.from_list(rows),
                     ([noisy], [1.]), tmp_path, gradient_checkpointing=True, **GRPO)
    gaps = [r["sampling/logp_gap"] for r in log if "reward" in r]
    assert all(1e-5 < gap < sampling_checks.MEAN_GAP for gap in gaps), gaps
    print("bf16:", gaps)


# --- eight faults, planted ---------------------------------------------------------------------


def test_clips_without_media_are_refused(rows, texts, tmp_path):
    "A processor that comes back with nothing, as where all frames are left out"
    model, processor = make_tiny_omni(texts)
    blind = [row | dict(video="", audio="") for row in rows]
    with pytest.raises(ValueError, match="the clips do not reach the model"):
        train_grpo(model, processor, Dataset.from_list(blind), ([noisy], [1.]), tmp_path, **GRPO)


def test_the_museum_names_guards_and_tests_that_exist():
    "Each thread has a guard in the package, and a test that is there"
    threads = pd.read_csv(ROOT / "nbs/results/failure_museum_threads.csv")
    assert len(threads) >= 20 and threads["kind"].nunique() >= 8
    for row in threads.itertuples():
        module, name = row.guard.split(".")
        assert hasattr(import_module(f"affectgpt_r1.{module}"), name), row.guard
        file, test = row.test.partition("[")[0].split("::")
        assert f"def {test}(" in (ROOT / file).read_text(), row.test
        slug = re.sub(r"\W+", "_", row.thread.lower())
        assert test == f"test_{slug}" or row.thread in row.test, row.test   # it bears the name
        assert isinstance(row.unguarded, str) and row.unguarded


@pytest.mark.parametrize("family, dtype", [
    ("qwen2_5_omni", torch.bfloat16), ("qwen3_omni_moe", torch.float32)], ids=["bf16", "qwen3"])
@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: ": ".join([fault, *filter(None, [THREADS.get(fault)])]))
def test_a_planted_fault_is_found(rows, tmp_path, fault, family, dtype):
    "Before the second step, by a message that says the step and what is not as it was sampled"
    said = run_with(fault, [rows[0], rows[2], rows[3]], tmp_path, family, dtype)
    assert said and re.match(f"Step 1: .*{FAULTS[fault][2]}", said), said
    if "scored with" in said: assert re.search("clip 'c[023]'", said), said


def test_dropout_of_adapters_is_no_fault(rows, texts, tmp_path):
    "Two passes that draw their own dropout never agree, so they are not compared"
    model, processor = make_tiny_omni(texts)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=.3, task_type="CAUSAL_LM",
                      target_modules=r".*model\.layers.*\.(q_proj|v_proj)")
    with pytest.warns(UserWarning, match="adapters have dropout"):
        log = train_grpo(model, processor, Dataset.from_list(rows), ([noisy], [1.]), tmp_path,
                         **GRPO | dict(lora=lora))
    assert not any("sampling/logp_gap" in row for row in log)


def test_the_plan_for_a_gpu_leaves_thinkers_alone(texts):
    "Their recipe says how large a step is; the estimate is AffectGPT's"
    assert stages._memory_plan(make_tiny_omni(texts)[0], "omni", {}) == {}


@pytest.mark.parametrize("recipe", ["omni", "mer_r1"])
def test_recipes(rows, texts, tmp_path, recipe):
    "A thinker's own recipe, and that of a paper, as far as it is known"
    model, processor = make_tiny_omni(texts)
    small = dict(num_prompts=2, num_generations=2, micro_batch=2, steps=1, max_new_tokens=32)
    if recipe == "omni": recipe = None   # taken from the model
    train_grpo(model, processor, Dataset.from_list(rows), None, tmp_path, recipe=recipe, **small)
    run = json.loads((tmp_path / "run.json").read_text())
    names = ["accuracy", "format"] if recipe is None else ["precision", "recall", "format"]
    assert [reward[0] for reward in run["rewards"]] == names
    assert run["beta"] == (0.04 if recipe else 0)

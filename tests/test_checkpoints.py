"What a stage writes, the next one reads: adapters stay adapters, and nothing is lost"

import copy
import json

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from peft import PeftModel
from transformers import TrainerCallback

from affectgpt_r1.checkpoints import load_stage, merge_stage, save_stage, save_start
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.modeling import AffectGPTForConditionalGeneration, unwrap_peft
from affectgpt_r1.parts import remember_source
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.rewards import make_rewards
from affectgpt_r1.training import TrainingStopped


@pytest.fixture(scope="module")
def toy():
    return cold_started_toy()


def small(toy):
    "A model to train and its data: eight clips"
    return copy.deepcopy(toy.model), toy.processor, toy.human.select(range(8))


def logps(toy, model):
    "Log-probabilities of a question to four clips"
    chats = [make_prompt(row) for row in toy.human.select(range(4))]
    batch = toy.processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, padding=True, return_tensors="pt")
    with torch.no_grad(): return model.eval()(**batch).logits.log_softmax(-1)


FEW = dict(steps=2, num_prompts=2, num_generations=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def adapted(toy, tmp_path_factory):
    "A cold start with LoRA: its folder, and the log-probabilities at its end"
    out = tmp_path_factory.mktemp("adapted")
    model, processor, rows = small(toy)
    cold_start(model, processor, rows, out, lora=True, epochs=2, batch_size=4, learning_rate=1e-2)
    return out, logps(toy, model)


def test_adapters_are_saved_as_adapters_with_the_fusion(adapted):
    out, _ = adapted
    assert not (out / "model.safetensors").exists() and not list(out.glob("checkpoint-*"))
    from safetensors import safe_open

    with safe_open(out / "adapter_model.safetensors", "pt") as f: names = list(f.keys())
    assert any("lora_B" in name for name in names) and any("fusion" in name for name in names)


def test_the_next_stage_begins_where_the_last_one_ended(toy, adapted, tmp_path):
    out, at_the_end = adapted
    model, processor = load_stage(out)
    assert isinstance(model, PeftModel)
    assert (logps(toy, model) - at_the_end).abs().max() < 1e-5
    assert (logps(toy, toy.model) - at_the_end).abs().max() > 1e-2   # it has learnt something
    processor.features = toy.processor.features
    train_grpo(model, processor, toy.human.select(range(8)), None, tmp_path / "grpo", **FEW)
    again, _ = load_stage(tmp_path / "grpo")
    assert (logps(toy, again) - logps(toy, model)).abs().max() < 1e-5
    assert (logps(toy, again) - at_the_end).abs().max() > 1e-3
    base = json.loads((tmp_path / "grpo/base.json").read_text())
    assert base["hash"] == json.loads((out / "base.json").read_text())["hash"]


def test_new_adapters_on_adapters_are_refused(toy, adapted, tmp_path):
    model, _ = load_stage(adapted[0])
    rows = toy.human.select(range(8))
    with pytest.raises(ValueError, match="has adapters already"):
        train_grpo(model, toy.processor, rows, None, tmp_path, lora=True, **FEW)
    with pytest.raises(ValueError, match="load_stage"):
        cold_start(unwrap_peft(model), toy.processor, rows, tmp_path)


def test_a_finished_run_gives_its_result(toy, adapted, tmp_path, capsys):
    "Neither trained again nor written over; other settings are refused"
    model, processor, rows = small(toy)
    how = dict(epochs=1, batch_size=4)
    log = cold_start(model, processor, rows, tmp_path, **how)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    other, _, _ = small(toy)
    assert cold_start(other, processor, rows, tmp_path, **how) == log
    assert "this run is finished" in capsys.readouterr().out
    assert torch.equal(logps(toy, other), logps(toy, model))
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="epochs is 1 there and 2 now"):
        cold_start(small(toy)[0], processor, rows, tmp_path, epochs=2, batch_size=4)
    out, at_the_end = adapted
    cold_start(other := small(toy)[0], processor, rows, out, lora=True, epochs=2, batch_size=4,
               learning_rate=1e-2)
    assert (logps(toy, other) - at_the_end).abs().max() < 1e-5


def test_a_merge_says_the_same_and_a_lossy_one_is_refused(toy, adapted, tmp_path):
    out, at_the_end = adapted
    found = merge_stage(out, tmp_path / "merged")
    assert found["error"] < 1e-3 * found["change"]
    merged, _ = load_stage(tmp_path / "merged")
    assert isinstance(merged, AffectGPTForConditionalGeneration)
    assert (logps(toy, merged) - at_the_end).abs().max() < 1e-3
    with pytest.raises(ValueError, match="nothing was written"):
        merge_stage(out, tmp_path / "lossy", torch.bfloat16, tolerance=0)
    assert not (tmp_path / "lossy").exists()


def test_callbacks_and_validation_of_a_cold_start(toy, tmp_path):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, args, state, control, **kwargs): self.steps += 1

    model, processor, rows = small(toy)
    count, held = Count(), toy.human.select(range(8, 12))
    log = cold_start(
        model, processor, rows, tmp_path, validation=held, callbacks=[count], epochs=2,
        batch_size=4, save_steps=2)
    assert count.steps == 4
    assert [r["step"] for r in log if "eval_loss" in r] == [2, 4]


def test_settings_for_which_there_are_no_clips(toy, tmp_path):
    "trl's sampler would give no batch at all, and the untrained model would be saved as trained"
    model, processor, rows = small(toy)
    with pytest.raises(ValueError, match="one sampling takes 6 clips"):
        train_grpo(
            model, processor, rows.select(range(5)), None, tmp_path, steps=2, num_prompts=2,
            num_generations=4, micro_batch=4, steps_per_generation=6)
    assert not (tmp_path / "config.json").exists()


def test_a_run_without_a_step_is_not_finished(toy, tmp_path):
    model, processor, rows = small(toy)
    with pytest.raises(TrainingStopped, match="not one step was taken"):
        cold_start(model, processor, rows, tmp_path, epochs=0)
    assert not (tmp_path / "log.json").exists() and not (tmp_path / "config.json").exists()


def test_a_model_without_a_preset_needs_a_recipe(toy, tmp_path):
    model, processor, rows = small(toy)
    model.config.preset = ""
    with pytest.raises(ValueError, match="which recipe"):
        cold_start(model, processor, rows, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_reward_for_another_mode_is_refused(toy, tmp_path):
    model, processor, rows = small(toy)
    rewards = make_rewards("acc+format", penalty="p2", mode="think")
    with pytest.raises(ValueError, match="made for mode 'think'"):
        train_grpo(model, processor, rows, rewards, tmp_path, **FEW)


def test_an_engine_that_would_not_see_the_clips_is_refused(toy, tmp_path):
    model, processor, rows = small(toy)
    with pytest.raises(ValueError, match="gets the tokens of a prompt and not its clip"):
        train_grpo(model, processor, rows, None, tmp_path, use_vllm=True, **FEW)
    assert not list(tmp_path.iterdir())


def test_a_merge_never_writes_over_anything(toy, adapted):
    "Not even over the adapters themselves, which a refused merge would have deleted"
    out, at_the_end = adapted
    with pytest.raises(ValueError, match="is not empty"): merge_stage(out, out)
    assert (logps(toy, load_stage(out)[0]) - at_the_end).abs().max() < 1e-5


def test_whole_weights_take_the_place_of_a_reference(toy, tmp_path):
    "A folder that named another model, and gets weights, is loaded from these"
    model, processor, _ = small(toy)
    remember_source(model, folder=str(toy.folder / "cold_start"))
    save_start(model, processor, tmp_path)
    with torch.no_grad(): model.lm_head.weight.add_(0.1)
    save_stage(model, processor, tmp_path)
    assert (logps(toy, load_stage(tmp_path)[0]) - logps(toy, model)).abs().max() < 1e-5


def test_a_run_with_another_penalty_is_not_resumed(toy, tmp_path):
    model, processor, rows = small(toy)
    train_grpo(model, processor, rows, None, tmp_path, penalty="p2", **FEW)
    with pytest.raises(ValueError, match="penalty is 'p2' there and 'p3' now"):
        train_grpo(small(toy)[0], processor, rows, None, tmp_path, penalty="p3", **FEW)

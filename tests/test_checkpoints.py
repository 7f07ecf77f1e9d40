"What a stage writes, the next one reads: adapters stay adapters, and nothing is lost"

import copy
import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from peft import LoraConfig, PeftModel
from peft.helpers import rescale_adapter_scale
from tokenizers.pre_tokenizers import Whitespace
from transformers import TrainerCallback

from affectgpt_r1 import sft_trainer
from affectgpt_r1.checkpoints import load_stage, merge_stage, save_stage, save_start
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.fingerprints import model_state
from affectgpt_r1.grpo import read_completions, train_grpo
from affectgpt_r1.grpo_runs import _check_clips
from affectgpt_r1.modeling import AffectGPTForConditionalGeneration, unwrap_peft
from affectgpt_r1.parts import remember_source, source_hash
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.recipes import stage_settings
from affectgpt_r1.replication import TutorialRun
from affectgpt_r1.rewards import accuracy_reward, make_rewards
from affectgpt_r1.training import TrainingStopped, _as_dict
from affectgpt_r1.wheels import EmotionWheels


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


def test_with_a_frozen_head_only_answers_get_logits(toy, tmp_path, monkeypatch):
    "The adapters learn the same as with the logits of all positions"
    kept, answers_only = [], sft_trainer._answers_only
    def note(head, labels):
        short = answers_only(head, labels)
        kept.append(short["logits_to_keep"] / labels.shape[1])
        return short
    found = []
    for cut in (note, lambda *given: {}):
        monkeypatch.setattr(sft_trainer, "_answers_only", cut)
        model, processor, rows = small(toy)
        out = tmp_path / str(len(found))
        cold_start(model, processor, rows, out, lora=True, epochs=2, batch_size=4)
        found.append(logps(toy, model))
    assert len(kept) == 4 and max(kept) < .7
    assert (found[0] - found[1]).abs().max() < 1e-5
    assert (found[0] - logps(toy, toy.model)).abs().max() > 1e-3


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


def test_a_finished_run_gives_the_next_stage_its_longest_answer(toy, tmp_path):
    "The same two calls again, in a new process, are the same two runs"
    for _ in range(2):
        model, processor, rows = small(toy)
        cold_start(model, processor, rows, tmp_path / "a", epochs=1, max_new_tokens=40,
                   warmup_steps=0)
        assert model.config.reply_mode == "answer"
        assert model.generation_config.max_new_tokens == 40
        train_grpo(model, processor, rows, None, tmp_path / "b", **FEW)


def test_sets_are_written_in_their_order():
    "Adapters keep their layers in a set, whose order is another one in each process"
    words = {f"layer_{i}" for i in range(30)}
    written = json.loads(json.dumps(LoraConfig(target_modules=list(words)), default=_as_dict))
    assert written["target_modules"] == sorted(words)


def test_the_state_of_a_model_is_part_of_its_key(toy, adapted):
    "It is the same after saving and loading, and another with adapters off, scaled or frozen"
    model = load_stage(adapted[0])[0]
    before = model_state(model, trains=True)
    assert model_state(load_stage(adapted[0])[0].bfloat16(), trains=True) == before
    assert model_state(toy.model) == model_state(load_stage(toy.folder / "cold_start")[0])
    with model.disable_adapter(): assert model_state(model)["adapters"] != before["adapters"]
    with rescale_adapter_scale(model, 0.5):
        assert model_state(model)["adapters"] != before["adapters"]
    assert model_state(model, trains=True) == before
    next(x for x in model.parameters() if x.requires_grad).requires_grad_(False)
    assert model_state(model, trains=True)["trains"] != before["trains"]
    unwrap_peft(model).config.text_config.logits_scaling = 8.
    assert model_state(model)["config"] != before["config"]


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


# Nothing happened is an error


def trained(toy, out, stage="grpo", rows=None, **settings):
    "A stage on eight clips"
    model, processor, clips = small(toy)
    rows = clips if rows is None else rows
    if stage == "sft": return cold_start(model, processor, rows, out, **settings)
    rewards = settings.pop("rewards", None)
    return train_grpo(model, processor, rows, rewards, out, **FEW | settings)


def constant(*values):
    def reward(completions, **columns):
        return [values[i % len(values)] for i in range(len(completions))]
    return reward


@pytest.mark.parametrize(
    "stage, settings, error",
    [
        ("grpo", dict(num_prompts=3, steps_per_generation=3), "one sampling takes 9 clips"),
        ("grpo", dict(num_prompts=3, generation_batch_size=36), "generation_batch_size is too"),
        ("grpo", dict(num_prompts=9), "num_prompts is too large: one sampling takes 9 clips"),
        ("grpo", dict(steps=0), "steps is 0; it must be a whole number"),
        ("grpo", dict(steps=2.5), "steps must be a whole number, not 2.5"),
        ("grpo", dict(micro_batch=0), "micro_batch is 0"),
        ("grpo", dict(max_new_tokens=2), "takes 4: every answer would be cut"),
        ("grpo", dict(learning_rate=0.), "learning_rate is 0.0: nothing would be learnt"),
        ("grpo", dict(rewards=([constant(1.)], [0.])), "no reward counts"),
        ("grpo", dict(rewards=([], [])), "no reward counts"),
        ("grpo", dict(sead=1), "has no setting 'sead'; did you mean 'seed'"),
        ("grpo", dict(epochs=1), "'grpo' has no setting 'epochs'; it has"),
        ("grpo", dict(gradient_checkpointing="maybe"), "checkpointing must be true or f"),
        ("grpo", dict(mask_truncated_completions=1), "completions must be true or false"),
        ("grpo", dict(beta="0,1"), "beta must be a number, not '0,1'"),
        ("grpo", dict(learning_rate=None), "learning_rate must be a number, not None"),
        ("sft", dict(shuffle_labels="0"), "labels must be true or false, not '0'"),
        ("sft", dict(lora="non"), "lora must be true or false or none"),
        ("sft", dict(max_steps=0), "max_steps is 0"),
        ("sft", dict(learning_rate=float("nan")), "learning_rate must be a number, not nan"),
        ("sft", dict(batch_size=16, dataloader_drop_last=True), "a batch takes 16 clips"),
    ],
)
def test_settings_with_which_nothing_would_happen(toy, tmp_path, stage, settings, error):
    "Refused before anything is written"
    with pytest.raises(ValueError, match=error):
        trained(toy, tmp_path / "out", stage, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage, settings", [
    ("grpo", dict(gradient_checkpointing=False, mask_truncated_completions=True, beta=.1)),
    ("sft", dict(shuffle_labels=False, lora=None))])
def test_a_text_of_the_right_kind_is_its_value(toy, stage, settings):
    "`read_setting` reads texts by their types, so 'False' is False, and nothing has to be refused"
    model, texts = small(toy)[0], {name: str(value) for name, value in settings.items()}
    found = stage_settings(model, stage, None, texts)
    assert found == stage_settings(model, stage, None, settings)
    assert {name: (type(found[name]), found[name]) for name in settings} == {
        name: (type(value), value) for name, value in settings.items()}


def test_clips_are_counted_over_all_processes():
    "Two processes with four prompts each ask about eight clips at once"
    args = SimpleNamespace(generation_batch_size=16, num_generations=2, world_size=2)
    _check_clips(8, 4, args)
    with pytest.raises(ValueError, match="takes 8 clips, in 2 processes, and there are 6; .* 8 cl"):
        _check_clips(6, 4, args)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_no_clips_to_choose_a_checkpoint_on(toy, tmp_path, stage):
    with pytest.raises(ValueError, match="the validation set holds no clips"):
        trained(toy, tmp_path, stage, validation=toy.human.select([]))


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_shorter_than_the_way_to_its_evaluation_is_evaluated(toy, tmp_path, stage):
    how = dict(epochs=1, batch_size=4) if stage == "sft" else {}
    log = trained(toy, tmp_path, stage, validation=toy.human.select(range(8, 12)), **how)
    assert [r["step"] for r in log if {"eval_loss", "eval_ew_f"} & set(r)] == [2]


@pytest.mark.parametrize(
    "settings, error",
    [
        (dict(warmup_steps=20, logging_steps=1), "no weight has changed in 1 steps: the learning"),
        (dict(warmup_steps=20), "no weight has changed in 1 steps: the steps were too small"),
        (dict(warmup_steps=0, learning_rate=1e39), "trained weights are not finite"),
    ],
)
def test_a_cold_start_that_taught_nothing_is_not_finished(toy, tmp_path, settings, error):
    with pytest.raises(TrainingStopped, match=error):
        trained(toy, tmp_path, "sft", max_steps=1, batch_size=8, **settings)
    assert not (tmp_path / "config.json").exists()
    assert not json.loads((tmp_path / "run.json").read_text()).get("finished")


def test_rewards_that_never_differ_are_said(toy, tmp_path):
    "All answers get the same: there was nothing to learn, and a second reward never said anything"
    with pytest.warns(UserWarning) as said:
        silent = constant(None)
        silent.__name__ = "silent"
        trained(toy, tmp_path, rewards=([constant(1.), silent], [1., 0.]), beta=0.)
    said = " ".join(str(w.message) for w in said)
    assert "no weight has changed in 2 steps" in said and "did two answers to a clip differ" in said
    assert "the reward 'silent' never was a number" in said
    assert json.loads((tmp_path / "run.json").read_text())["done"]["changed_weights"] == 0


@pytest.mark.parametrize(
    "values, error",
    [((1., float("nan")), "'reward' gave a value that is not finite for an answer to human_"),
     ((float("inf"), 0.), "not finite"), ((None,), "No reward could score any answer"),
     (("high",), "could not convert string to float")],
)
def test_rewards_that_are_no_numbers(toy, tmp_path, values, error):
    with pytest.raises(TrainingStopped, match=error):
        trained(toy, tmp_path, rewards=([constant(*values)], [1.]))
    assert not (tmp_path / "config.json").exists()


def test_a_reward_that_counts_and_never_was_a_number(toy, tmp_path):
    "The other one, of weight 0, does not make a result of it; nor does what weight decay changes"
    async def silent(completions, **columns): return [None] * len(completions)

    plain = constant(None)
    plain.__name__ = "silent"
    said = "No reward could score any answer to human_", "none ever was a number \\(silent\\)"
    for i, (reward, error) in enumerate(zip((plain, silent, silent), (*said, said[1]))):
        decay = dict(weight_decay=0.5, warmup_steps=0) if i == 2 else {}
        with pytest.raises(TrainingStopped, match=error):
            trained(toy, tmp_path / str(i), rewards=([reward, constant(0., 1.)], [1., 0.]), **decay)
        assert not json.loads((tmp_path / f"{i}/run.json").read_text()).get("finished")


def test_what_cannot_be_trained_is_refused(toy, adapted, tmp_path):
    model, processor, rows = small(toy)
    with pytest.raises(ValueError, match="no weight of this model takes part in training"):
        cold_start(model.requires_grad_(False), processor, rows, tmp_path / "a", epochs=1)
    model = load_stage(adapted[0])[0]
    model.base_model.disable_adapter_layers()
    with pytest.raises(ValueError, match="the adapters are switched off"):
        train_grpo(model, processor, rows, None, tmp_path / "b", **FEW)
    nowhere = LoraConfig(target_modules=["no_such_layer"])
    with pytest.raises(ValueError, match="Target modules"):
        cold_start(small(toy)[0], processor, rows, tmp_path / "c", lora=nowhere, epochs=1)


def test_a_run_that_a_callback_stops_says_so(toy, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs): control.should_training_stop = True

    with pytest.warns(UserWarning, match="it was stopped after 1 of 4 steps"):
        trained(toy, tmp_path, "sft", callbacks=[Stop()], epochs=2, batch_size=4, warmup_steps=0)
    assert json.loads((tmp_path / "run.json").read_text())["done"]["steps"] == 1


def test_clips_that_are_never_read_are_counted(toy, tmp_path):
    "Without shuffling, the last two of eight clips never make up a sampling of three"
    with pytest.warns(UserWarning, match="2 of 8 clips were never read"):
        trained(toy, tmp_path, steps=3, num_prompts=3, shuffle_dataset=False)
    done = json.loads((tmp_path / "run.json").read_text())["done"]
    assert done["clips"] == 6 and done["steps"] == done["asked_steps"] == 3


# Keys hold everything that decides a result


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    "A finished run of GRPO with a reward, a validation set and files of its own"
    root = tmp_path_factory.mktemp("finished")
    for row in toy.human.select(range(2)): shutil.copy(row["video"], root)

    def moved(row): return dict(video=str(root / Path(row["video"]).name))

    rows = toy.human.select(range(2)).map(moved)
    how = dict(steps=1, num_prompts=2, num_generations=4, warmup_steps=0,
               validation=toy.human.select(range(8, 10)))
    model, processor, _ = small(toy)
    processor = copy.copy(processor)
    processor.features = None
    rewards = make_rewards("acc+format", penalty="p2")
    train_grpo(model, processor, rows, rewards, root / "out", **how)
    return root, rows, how


def wider(completions, **columns): return [float(len(c[0]["content"])) for c in completions]


@pytest.mark.parametrize(
    "change, name",
    [
        ("nothing", ""), ("subtitle", "prompts is"), ("media", "media is"),
        ("image mean", "processor is"), ("template", "prompts is"), ("tokenizer", "processor is"),
        ("end", "processor is"),
        ("wheels", "rewards is"), ("penalty", "rewards is"), ("function", "rewards is"),
        ("validation", "validation is"), ("sampling", "sampling is"), ("labels", "clips is"),
    ],
)
def test_another_run_is_never_taken_for_this_one(toy, finished, change, name, capsys):
    root, rows, how = finished
    model, processor, _ = small(toy)
    processor = copy.deepcopy(processor)
    processor.features = None
    rewards, kept = make_rewards("acc+format", penalty="p2"), {}
    if change == "subtitle": rows = rows.map(lambda r: dict(subtitle="Quite other words."))
    if change == "labels": rows = rows.map(lambda r: dict(labels=["angry"]))
    if change == "image mean": processor.image_processor.image_mean = [0., 0., 0.]
    if change == "template": processor.chat_template += " "
    if change == "end":   # the prompt stays as it is, and answers end in another way
        closed = "{{ '<|im_end|>' if message['role'] != 'assistant' else '<|endoftext|>' }}"
        processor.chat_template = processor.chat_template.replace("}<|im_end|>", "}" + closed)
    if change == "tokenizer": processor.tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    if change == "wheels": rewards[0][0] = accuracy_reward(few_wheels(), "p2")
    if change == "penalty": rewards = make_rewards("acc+format", penalty="p1")
    if change == "function": rewards[0][1] = wider
    if change == "validation":
        how = how | dict(validation=how["validation"].map(lambda r: dict(subtitle="Other.")))
    if change == "sampling": model.generation_config.min_p = 0.5
    if change == "media":
        file = Path(rows[0]["video"])
        kept[file] = file.read_bytes()
        shutil.copy(rows[1]["video"], file)
    try:
        if not name:
            train_grpo(model, processor, rows, rewards, root / "out", **how)
            assert "this run is finished" in capsys.readouterr().out
            return
        with pytest.raises(ValueError, match=name):
            train_grpo(model, processor, rows, rewards, root / "out", **how)
    finally:
        for file, content in kept.items(): file.write_bytes(content)


def few_wheels():
    "Wheels with one sector"
    words, names = {"happy": ["happy"]}, {"happy": ["happy"]}
    return EmotionWheels("few", {"one": {"joy": {"joy": ["happy"]}}}, words, names)


# Folders and disks


def test_a_folder_that_is_not_for_this_run(toy, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; `out` must be a folder"):
        trained(toy, tmp_path / "file", "sft", epochs=1)
    model, processor, _ = small(toy)
    save_stage(model, processor, tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model that no training run has written"):
        trained(toy, tmp_path / "model", "sft", epochs=1)


def test_a_disk_that_is_full_at_the_end(toy, tmp_path, monkeypatch):
    "Nothing is called finished, and the same call goes on from the last checkpoint"
    how = dict(epochs=1, batch_size=4, save_steps=1, warmup_steps=0)
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("affectgpt_r1.training.save_stage", full)
    with pytest.raises(TrainingStopped, match="Make room. .*checkpoint-2 is complete"):
        trained(toy, tmp_path, "sft", **how)
    monkeypatch.undo()
    trained(toy, tmp_path, "sft", **how)
    assert json.loads((tmp_path / "run.json").read_text())["done"]["steps"] == 2


def test_a_record_that_was_cut_short_is_no_record(toy, tmp_path):
    (tmp_path / "run.json").write_text('{"stage": "col')
    trained(toy, tmp_path, "sft", epochs=1, batch_size=4, warmup_steps=0)
    assert json.loads((tmp_path / "run.json").read_text())["finished"]


def test_answers_that_were_cut_short_and_those_of_another_run(toy, tmp_path):
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions/completions_00009.parquet").write_bytes(b"from a run before")
    trained(toy, tmp_path)
    assert sorted(read_completions(tmp_path)["step"].unique()) == [1, 2]
    (tmp_path / "completions/completions_00003.parquet").write_bytes(b"PAR1 and no more")
    with pytest.warns(UserWarning, match="00003.parquet is cut short and is left out"):
        assert sorted(read_completions(tmp_path)["step"].unique()) == [1, 2]


def test_the_base_of_quantised_layers_is_told_by_the_others(toy):
    "Packed numbers may differ from machine to machine; embeddings, norms and towers do not"
    model, _, _ = small(toy)
    layer = model.model.language_model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)
    model.is_quantized = True
    before = source_hash(model)
    layer.weight.data += 1
    assert source_hash(model) == before
    with torch.no_grad(): model.lm_head.weight.add_(0.1)
    assert source_hash(model) != before


def test_torn_json_is_named(toy, tmp_path):
    save_stage(toy.model, toy.processor, tmp_path)
    (tmp_path / "base.json").write_text('{"folder": "..')
    with pytest.raises(ValueError, match="base.json: is no json"): load_stage(tmp_path)
    (tmp_path / "metrics.json").write_text("")
    with pytest.raises(ValueError, match="metrics.json: is no json"): TutorialRun(tmp_path)

"The ladder of algorithms: each rung by hand against trl's own loss, and the settings that run it"

import json

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import pandas as pd
from conftest import ROOT
from datasets import Dataset
from transformers import AutoModelForCausalLM, Qwen2Config
from trl import GRPOConfig, RLOOConfig, RLOOTrainer

from affectgpt_r1 import ablation
from affectgpt_r1.ablation import read_ablation
from affectgpt_r1.algorithms import LADDER, ladder_loss, leave_one_out_advantages
from affectgpt_r1.checkpoints import hide_known_warnings
from affectgpt_r1.claim_rules import claim_verdict, judge_claims, read_claim_rules
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.grpo import (
    AffectGRPOTrainer, grpo_rows, read_completions, token_logps, train_grpo)
from affectgpt_r1.recipes import training_recipe
from affectgpt_r1.rewards import accuracy_reward, make_rewards, variety_reward
from affectgpt_r1.training import trainer_settings
from affectgpt_r1.wheels import load_wheels
from tools import as_published

G, LONGEST = 4, 12
FEW = """
seeds = [3]

[defaults]
mode = "answer"
recipe = {accuracy = 1.0, format = 0.2, variety = 0.5}
penalty = ""
gold = "all"
steps = 2
tokens = 8
trl = {warmup_steps = 0, num_prompts = 2, num_generations = 2}
clips = 0
watch = 0

[settings]
few = {clips = 2, watch = 1}
"""


@pytest.fixture(scope="module")
def toy(): return cold_started_toy()


def trainer_of(toy, out, **settings):
    "Our trainer with the settings of a rung, weights in 64 bits so that rounding hides nothing"
    model = AutoModelForCausalLM.from_pretrained(toy.folder/"cold_start").double()
    baseline = settings.pop("baseline", "group")
    with hide_known_warnings():
        args = GRPOConfig(
            str(out), max_steps=1, per_device_train_batch_size=3*G, num_generations=G,
            max_completion_length=LONGEST, save_strategy="no",
            generation_kwargs={"suppress_tokens": toy.processor.placeholder_ids},
            **trainer_settings(), **settings)
        trainer = AffectGRPOTrainer(
            model, make_rewards("acc", wheels=load_wheels())[0], args,
            grpo_rows(toy.human.select(range(3))), processing_class=toy.processor)
    trainer.baseline, trainer.current_gradient_accumulation_steps = baseline, 1
    return trainer


def sampled(trainer):
    "A batch of the trainer: three clips with a group of answers each; and their rewards"
    rows = [row for row in trainer.train_dataset for _ in range(G)]
    with hide_known_warnings(): batch = trainer._generate_and_score_completions(rows)
    del batch["sampled_logps"]   # an older policy than the one that has sampled is made up below
    return batch, trainer.totals.clone()


def log_probs(trainer, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    media = {k: batch[k] for k in trainer.media_rule.names if k in batch}
    return token_logps(trainer.model, ids, mask, batch["completion_ids"].shape[1], **media)


def gradients(loss, model):
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad))
    return dict(zip(names, torch.autograd.grad(loss, weights)))


def apart(a, b): return max((a[name] - b[name]).abs().max().item() for name in a)


def trl_loss(trainer, batch):
    with hide_known_warnings(): return trainer._compute_loss(trainer.model, batch)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_gradients_are_those_of_trl(toy, name, tmp_path):
    torch.manual_seed(0)
    trainer = trainer_of(toy, tmp_path, **LADDER[name])
    batch, rewards = sampled(trainer)
    mask, logps = batch["completion_mask"], log_probs(trainer, batch)
    spread = 5e-4 if name == "gspo" else .3   # so that some are clipped, and some are not
    if name == "cispo": spread = 1.5
    old = logps.detach() + spread*torch.randn_like(logps)
    batch["old_per_token_logps"] = old
    theirs = gradients(trl_loss(trainer, batch), trainer.model)
    ours = gradients(
        ladder_loss(name, logps, old, rewards, mask, G, LONGEST), trainer.model)
    assert len(ours) > 20 and apart(ours, theirs) < 1e-6
    assert max(g.abs().max() for g in theirs.values()) > 1e-3


def test_rloo_is_that_of_trl(toy, tmp_path):
    trainer = trainer_of(toy, tmp_path, **LADDER["rloo"])
    batch, rewards = sampled(trainer)
    mask, logps = batch["completion_mask"], log_probs(trainer, batch)
    old = logps.detach() + .1*torch.randn_like(logps)
    batch |= dict(old_logps=(old*mask).sum(1), advantages=leave_one_out_advantages(rewards, G))
    with trainer.clips_of(batch), hide_known_warnings():
        theirs = RLOOTrainer._compute_loss(trainer, trainer.model, batch)
    ours = ladder_loss("rloo", logps, old, rewards, mask, G, LONGEST)
    found = [gradients(loss, trainer.model) for loss in (ours, theirs)]
    assert apart(*found) < 1e-6 and max(g.abs().max() for g in found[1].values()) > 1e-3


class KeepsAdvantages(RLOOTrainer):
    def _generate_and_score_completions(self, inputs):
        self.found = super()._generate_and_score_completions(inputs)["advantages"]
        raise StopIteration


def test_the_advantages_of_rloo_are_those_of_trl(toy, tmp_path):
    "trl's own trainer, on a small text model: it knows no clips"
    tokenizer, rewards = toy.processor.tokenizer, torch.arange(2*G)**2 / 10
    model = AutoModelForCausalLM.from_config(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2))
    args = RLOOConfig(
        str(tmp_path), per_device_train_batch_size=2*G, num_generations=G, max_steps=1, beta=0.,
        max_completion_length=2, **trainer_settings())
    trainer = KeepsAdvantages(
        model, lambda prompts, **_: rewards.tolist(), args,
        Dataset.from_dict(dict(prompt=["a clip", "another"])), processing_class=tokenizer)
    with pytest.raises(StopIteration), hide_known_warnings(): trainer.train()
    assert torch.allclose(trainer.found, leave_one_out_advantages(rewards, G), atol=1e-6)


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
def test_one_step_a_sampling_is_run_by_dr_grpo(toy, name, tmp_path):
    "Right after sampling, these two are trl's Dr. GRPO times a constant, as `LADDER` runs them"
    trainer = trainer_of(toy, tmp_path, **LADDER[name])
    batch, rewards = sampled(trainer)
    logps = log_probs(trainer, batch)
    ours = ladder_loss(name, logps, logps.detach(), rewards, batch["completion_mask"], G, LONGEST)
    constant = LONGEST * (1 if name == "reinforce" else G / (G-1))
    found = [gradients(loss, trainer.model)
             for loss in (ours, constant*trl_loss(trainer, batch))]
    assert apart(*found) < 1e-6 and max(g.abs().max() for g in found[0].values()) > 1e-3
    assert torch.equal(batch["advantages"], rewards) == (name == "reinforce")


def test_a_rung_is_trained_and_logs_its_advantages(toy, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(toy.folder/"cold_start")
    train_grpo(model, toy.processor, toy.human, "acc", tmp_path, steps=1, num_prompts=2,
               num_generations=G, max_new_tokens=LONGEST, warmup_steps=0,
               **LADDER["reinforce"])
    answers = read_completions(tmp_path)
    assert answers["accuracy"].max() > 0
    assert answers["advantage"].tolist() == pytest.approx(answers["accuracy"].tolist())
    with pytest.raises(ValueError, match="baseline is 'mean'; it must be group or none"):
        train_grpo(model, toy.processor, toy.human, "acc", tmp_path, steps=1, baseline="mean")


def test_the_record_compares_what_the_page_teaches():
    "Each rung with the settings of `LADDER`, and as many sampled answers as any other"
    seeds, arms = read_ablation(ROOT/"nbs/results/ladder.toml")
    rungs = {name: arm["trl"] for name, arm in arms.items() if name in LADDER}
    assert rungs == LADDER and len(seeds) == 5
    samplings = {arm["steps"] / arm["trl"].get("num_iterations", 1)
                 for arm in arms.values() if arm["steps"]}
    assert len(samplings) == 1


# Claims: the rules, and what the runs that decide them need


@pytest.mark.parametrize("kind, differences, amount, verdict", [
    ("gain", [.014, .016, .015], .015, "replicated"),
    ("gain", [.56, .57, .58], .015, "not replicated"),   # a collapse
    ("gain", [.001, .002, .003], .015, "not replicated"),   # next to nothing
    ("gain", [.56, .57, .58], 0, "replicated"),   # no size is known
    ("gain", [-.02, -.03, -.02], .015, "opposite"),
    ("gain", [-.02, .03, .02], .015, "undecided"),
    ("no loss", [-.01, -.012, -.011], .02, "replicated"),
    ("no loss", [.3, .31, .32], .02, "replicated"),
    ("no loss", [-.03, -.04, -.035], .02, "opposite"),
    ("no loss", [-.03, .02, .01], .02, "undecided"),
    ("no change", [.001, -.002, .003], .02, "replicated"),
    ("no change", [.3, .31, .32], .02, "opposite"),
    ("no change", [-.3, -.31, -.32], .02, "not replicated"),
    ("no change", [-.03, .02, .01], .02, "undecided")])
def test_a_claim_is_judged_by_direction_and_size(kind, differences, amount, verdict):
    assert claim_verdict(kind, differences, amount)["verdict"] == verdict


def test_rules_are_applied_seed_by_seed():
    "Paired by seed, of the seeds that both settings have; other runs change nothing"
    rule = dict(kind="gain", above="b", below="a", measure="f", amount=.02)
    runs = [("a", 1, .5), ("a", 2, .7), ("b", 2, .72), ("b", 1, .53), ("b", 3, 9.), ("c", 1, 9.)]
    runs = pd.DataFrame(runs, columns=["setting", "seed", "f"])
    found = judge_claims(dict(one=rule, other=rule | dict(above="d")), runs)
    assert found.loc["one", "mean"] == pytest.approx(.025) and found.loc["one", "seeds"] == 2
    assert found.loc["other", "verdict"] == "not run"
    last = rule | dict(above="a", below="a", measure="best", measure_below="f")
    found = judge_claims(dict(last=last), runs.assign(best=runs["f"] + .01))
    assert found.loc["last", "mean"] == pytest.approx(.01)


def test_the_rules_speak_of_what_is_run():
    rules = read_claim_rules(ROOT/"nbs/results/claims_rules.toml")
    seeds, arms = read_ablation(ROOT/"nbs/results/claims_runs.toml")
    assert seeds == list(range(10, 20))   # no recipe was searched for on these
    for rule in rules.values():
        here = {*arms} if "ablation" in rule["command"] else {"cold_start", "sft", "grpo"}
        assert {rule["above"], rule["below"]} <= here
        assert {rule["measure"], rule.get("measure_below", "greedy_f")} <= {
            "sampled_f", "greedy_f", "watched_f"}
    used = {rule[side] for rule in rules.values() for side in ("above", "below")}
    assert {*arms} <= used   # and nothing is run that decides nothing


def test_a_setting_takes_the_first_clips_and_looks_at_the_test_clips(toy, tmp_path):
    (tmp_path/"few.toml").write_text(FEW)
    _, settings = read_ablation(tmp_path/"few.toml")
    ablation._run_setting(toy.folder, tmp_path/"out", settings["few"], 3)
    record = json.loads((tmp_path/"out/record.json").read_text())
    looks = json.loads((tmp_path/"out/looks.json").read_text())
    assert [*looks] == ["1", "2"] and record["watched_f"] == max(looks.values())
    assert record["greedy_f"] == pytest.approx(looks["2"])   # the last look is at what is scored
    answers = read_completions(tmp_path/"out")
    assert set(answers["clip"]) == set(toy.human["name"][:2])
    assert (answers["variety"] <= answers["accuracy"]).all() and answers["variety"].max() > 0
    with pytest.raises(ValueError, match="clips is 1000, and there are 48 clips"):
        ablation._clips(toy.human, settings["few"] | dict(clips=1000))
    (tmp_path/"few.toml").write_text(FEW.replace("watch = 1", "watch = 3"))
    with pytest.raises(ValueError, match="the last of 2 steps is no look, every 3"):
        read_ablation(tmp_path/"few.toml")


def test_the_variety_file_is_read_and_compares_the_same_number_of_answers():
    _, arms = read_ablation(ROOT/"nbs/results/variety.toml")
    recipe = training_recipe("toy", "grpo").settings
    default = arms["as it is"]
    assert default["steps"] == recipe["steps"] and default["penalty"] == recipe["penalty"]
    assert default["recipe"] == recipe["rewards"] and default["trl"] == dict(beta=0)
    assert arms["KL 0.04"]["trl"] == dict(beta=recipe["beta"])   # the winner is the recipe now
    for name, arm in arms.items():
        both = recipe | arm["trl"]
        assert both["num_prompts"]*both["num_generations"] == 96, name


def test_what_the_records_take(tmp_path):
    "Pipelines without a KL term, but for those that have ended; a run with one is refused"
    def ended(seed, beta):
        run = tmp_path/f"runs/answer{seed}"
        (run/"grpo").mkdir(parents=True)
        (run/"metrics.json").write_text("{}")
        (run/"grpo/run.json").write_text(json.dumps(dict(beta=beta)))
    ended(3, 0.)
    found = [" ".join(c) for c in as_published.commands(tmp_path)]
    pipelines = [c for c in found if "tools.tutorial" in c]
    assert len(pipelines) == 14 and all(c.endswith("--beta 0") for c in pipelines)
    assert not any("answer3 " in c for c in pipelines)
    grids = [c.split()[-1] for c in found if " ablation " in c]
    assert [read_ablation(ROOT/g)[1]["cold start" if "check" not in g else "as it is"]["trl"]
            for g in grids] == [dict(beta=0)] * 4
    ended(12, .04)
    with pytest.raises(SystemExit, match="answer12 has a KL term .beta 0.04.*move it away"):
        [*as_published.commands(tmp_path)]


def test_variety_pays_what_is_right_and_different():
    reward = variety_reward(load_wheels())
    def paid(*answers, clips="aaa", gold=("happy", "sad")):
        said = [f"<answer>{words}</answer>" for words in answers]
        return reward(said, labels=[list(gold)]*len(said), prompts=list(clips))
    one, two, three = paid("happy", "happy", "sad")
    assert one == two == three/2 > 0   # the last differs from all others
    alone = accuracy_reward(load_wheels(), None)(["<answer>sad</answer>"], [["happy", "sad"]])
    assert three == pytest.approx(alone[0])   # nothing in common: its F
    assert paid("happy", "happy", "happy") == [0, 0, 0]
    assert paid("angry", "afraid", "bored", gold=["happy"]) == [0, 0, 0]
    assert paid("happy", "happy", "sad", clips="abc") == [0, 0, 0]   # nothing to compare with
    assert paid("happy", "sad", clips="aa", gold=["neutral"]) == [None, None]

"""Settings: a text is what its setting has to be, a name that nobody knows is an error

Command line, YAML, TOML, recipes and the parameters of notebooks, which all read by one function.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SchedulerType

from affectgpt_r1 import cli, recipes
from affectgpt_r1.ablation import read_ablation
from affectgpt_r1.evaluate import predict_clips
from affectgpt_r1.recipes import read_changes, stage_settings
from affectgpt_r1.settings import (
    function_settings, read_setting, read_settings, read_toml, read_value, read_yaml)
from tools.notebooks import read_parameters, run_notebook

ROOT = Path(__file__).parents[1]
FUZZ = int(os.environ.get("FUZZ_EXAMPLES", 60))
SWITCHES = ["gradient_checkpointing", "mask_truncated_completions", "log_completions",
            "disable_dropout", "bf16"]


@pytest.mark.parametrize("text,value", [
    ("False", False), ("false", False), ("no", False), ("off", False), ("True", True),
    ("TRUE", True), ("yes", True), ("on", True)])
@pytest.mark.parametrize("name", SWITCHES)
def test_switches(name, text, value):
    assert read_changes("grpo", {name: text})[name] is value


@pytest.mark.parametrize("text,value", [("False", False), ("True", True)])
def test_shuffled_labels(text, value):
    "With the text False, which Python takes for true, the labels were shuffled"
    model = SimpleNamespace(config=SimpleNamespace(preset="toy"))
    changes = dict(shuffle_labels=text, max_new_tokens="9")
    found = stage_settings(model, "sft", None, changes)
    assert found["shuffle_labels"] is value and found["max_new_tokens"] == 9


@pytest.mark.parametrize("stage,name,text,value", [
    ("sft", "learning_rate", "1e-5", 1e-5), ("sft", "learning_rate", "1E-05", 1e-5),
    ("sft", "epochs", "3", 3), ("sft", "epochs", ".5", .5), ("sft", "optim", "sgd", "sgd"),
    ("sft", "lora", "None", None), ("sft", "lora", "false", False),
    ("grpo", "penalty", "none", None), ("grpo", "penalty", "p3+1", "p3+1"),
    ("grpo", "steps", "1e3", 1000),
    ("grpo", "scale_rewards", "False", False), ("grpo", "scale_rewards", "none", "none"),
    ("grpo", "report_to", '["wandb"]', ["wandb"]), ("grpo", "report_to", "wandb", "wandb"),
    ("grpo", "generation_kwargs", "{'top_k': 5}", {"top_k": 5}), ("grpo", "run_name", "007", "007"),
    ("grpo", "max_grad_norm", "inf", float("inf"))])
def test_values_by_type(stage, name, text, value):
    found = read_changes(stage, {name: text})[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("stage,name,value,asked", [
    ("sft", "epochs", "three", "a number"), ("sft", "batch_size", "2.5", "a whole number"),
    ("sft", "batch_size", None, "a whole number"), ("sft", "shuffle_labels", "1", "true or false"),
    ("sft", "shuffle_labels", 1, "true or false"), ("sft", "learning_rate", "nan", "a number"),
    ("sft", "learning_rate", True, "a number"), ("sft", "mode", 1, "a text"),
    ("sft", "lora", "yes please", "true or false or none"), ("grpo", "steps", "1_000", "a whole"),
    ("grpo", "steps", "", "a whole number"), ("grpo", "reward_weights", "1", "a list or none")])
def test_values_of_another_type(stage, name, value, asked):
    with pytest.raises(ValueError, match=f"^{name} must be {asked}.*, not"):
        read_changes(stage, {name: value})


@pytest.mark.parametrize("stage,name,near", [
    ("sft", "lr_scheduler_type", "cosine"), ("grpo", "lr_scheduler_type", "linear"),
    ("sft", "optim", "adamw_torch"), ("grpo", "save_strategy", "steps")])
def test_words_of_a_list(stage, name, near):
    "trl takes an enumeration or a text, and would find a wrong word when the model is loaded"
    assert read_changes(stage, {name: near}) == {name: near}
    with pytest.raises(ValueError, match=f"^{name} must be one of .*{near}.*, not '{near}x'"):
        read_changes(stage, {name: near + "x"})


@pytest.mark.parametrize("hint,choices", [
    (Literal["linear", "cosine"], "linear, cosine"), (Literal["a"] | None, "a or none"),
    (SchedulerType | str, "linear, cosine.*"), (Literal[1, 2] | bool, "1, 2 or true or false")])
def test_choices(hint, choices):
    with pytest.raises(ValueError, match=f"^x must be one of {choices}, not 'cosin'"):
        read_setting("x", "cosin", hint)


def test_members_of_an_enumeration():
    assert read_setting("x", SchedulerType.COSINE, SchedulerType) == "cosine"
    assert type(read_setting("x", SchedulerType.COSINE, SchedulerType | str)) is str
    assert read_setting("x", "2", Literal[1, 2]) == 2
    with pytest.raises(ValueError, match="x must be one of 1, 2, not 3"):
        read_setting("x", 3, Literal[1, 2])


def test_items_of_a_list():
    assert read_changes("grpo", dict(reward_weights=["1", ".5"])) == dict(reward_weights=[1, .5])
    assert read_changes("grpo", dict(report_to=["none", "1"])) == dict(report_to=["none", "1"])
    with pytest.raises(ValueError, match="reward_weights\\[1\\] must be a number, not 'x'"):
        read_changes("grpo", dict(reward_weights=[1, "x"]))


@pytest.mark.parametrize("name,near", [
    ("leraning_rate", "learning_rate"), ("shufle_labels", "shuffle_labels"), ("Seed", "seed"),
    ("learning-rate", "learning_rate")])
def test_unknown_names(name, near):
    with pytest.raises(ValueError, match=f"the stage 'sft' has no setting '{name}'; did you mean "
                                         f"'{near}'?"):
        read_changes("sft", {name: "1"})
    with pytest.raises(ValueError, match="has no setting 'xyzzy'; it has"):
        read_changes("sft", {"xyzzy": "1"})


def test_all_recipes_are_of_these_types():
    for (_, stage), recipe in recipes.TRAINING_RECIPES.items():
        assert read_changes(stage, recipe.settings) == recipe.settings


def asked(monkeypatch, *args):
    "What a command hands to its stage"
    found = {}
    for name in ("run_cold_start", "run_grpo", "run_evaluation", "prepare_run"):
        monkeypatch.setattr(f"affectgpt_r1.stages.{name}",
                            lambda *a, **k: found.update(k, args=a) or {})
    cli.main([*args, "--run-dir", "r"])
    return found


def test_command_line(monkeypatch):
    found = asked(monkeypatch, "sft", "--set", "shuffle_labels=False", "learning_rate=1e-5",
                  "run_name=18_19", "lora=none")
    assert found["shuffle_labels"] is False and found["learning_rate"] == 1e-5
    assert found["run_name"] == "18_19" and found["lora"] is None
    assert asked(monkeypatch, "evaluate", "--set", "shuffle_media=no")["shuffle_media"] is False
    assert asked(monkeypatch, "features", "--set", "epochs=2")["epochs"] == 2
    for command, setting in [("sft", "epoch=3"), ("evaluate", "batchsize=3"),
                             ("evaluate", "out=x"), ("features", "epoch=2"), ("grpo", "step=1")]:
        with pytest.raises(ValueError, match="has no setting"):
            asked(monkeypatch, command, "--set", setting)


def test_options_are_not_guessed_from_their_beginning(capsys):
    with pytest.raises(SystemExit): cli.main(["sft", "--run", "r"])
    assert "--run-dir" in capsys.readouterr().err


YAML = """
run_dir: 2026-01-02
recipe: paper
lora: {lora}
mode: answer
seed: 010
set:
  learning_rate: 1e-5
  shuffle_labels: no
  run_name: on
"""


@pytest.mark.parametrize("lora,changes", [("yes", True), ("no", None), ("", None), ("off", None)])
def test_yaml(monkeypatch, tmp_path, lora, changes):
    "YAML reads 1e-5 as a text, on as true and 010 as 8; a command line reads none of them so"
    (tmp_path/"x.yaml").write_text(YAML.replace("{lora}", lora), encoding="utf-8-sig")
    found = {}
    monkeypatch.setattr("affectgpt_r1.stages.run_cold_start",
                        lambda *a, **k: found.update(k, args=a))
    cli.main(["sft", "--config", str(tmp_path/"x.yaml"), "--set", "epochs=2"])
    assert found.pop("args") == (Path("2026-01-02"), "paper") and found.pop("lora", None) is changes
    assert found == dict(seed=10, mode="answer", learning_rate=1e-5, shuffle_labels=False,
                         run_name="on", epochs=2)


NESTED = """
set:
  generation_kwargs: {do_sample: false, top_k: 5, words: [no, [1e-5]], none: null}
  lora: {r: 8, modules: [q_proj]}
  reward_weights: [1, 0.5]
  report_to: [none]
"""


def test_below_the_first_level_of_yaml(monkeypatch, tmp_path):
    "The text false is true in Python, so no value of a table stays a text that reads as another"
    (tmp_path/"x.yaml").write_text(NESTED)
    found = asked(monkeypatch, "grpo", "--config", str(tmp_path/"x.yaml"))
    assert found["generation_kwargs"] == dict(do_sample=False, top_k=5, words=["no", [1e-5]],
                                              none=None)
    assert found["lora"] == dict(r=8, modules=["q_proj"])
    assert found["reward_weights"] == [1, .5] and found["report_to"] == ["none"]


@pytest.mark.parametrize("args,message", [
    (["--set", "mode =think"], "give --mode think in place of 'mode =think'"),
    (["--set", "steps=1", "steps=2"], "argument --set: 'steps' comes twice"),
    (["--set", "steps=1", "--set", "steps =1"], "argument --set: 'steps' comes twice"),
    (["--config", "a", "--config=b"], "argument --config: give one file")])
def test_what_is_given_twice(capsys, args, message):
    with pytest.raises(SystemExit): cli.main(["grpo", "--run-dir", "r", *args])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{steps: 3, beta: .1}", "[steps=3, beta=.1]"])
def test_what_is_typed_wins_over_the_file(monkeypatch, tmp_path, text):
    (tmp_path/"x.yaml").write_text(f"set: {text}")
    args = ["grpo", "--config", str(tmp_path/"x.yaml")]
    found = asked(monkeypatch, *args, "--set", "steps =5")
    assert found["steps"] == 5 and found["beta"] == .1
    assert asked(monkeypatch, *args)["steps"] == 3


@pytest.mark.parametrize("text,message", [
    ("recipes: paper\n", "x.yaml: the command sft has no setting 'recipes'; did you mean 'recipe'"),
    ("learning_rate: 1e-5\n", "x.yaml: the command sft has no setting 'learning_rate'"),
    ("seed: 1\nseed: 2\n", "x.yaml, line 1: is no YAML: the key 'seed' comes twice"),
    ("set:\n  a: 1\n b: 2\n", "x.yaml, line 3: is no YAML"), ("- a\n", "is no table of options"),
    ("lora: perhaps\n", "lora must be true or false, not 'perhaps'"),
    ("set: [{steps: 3}]", "command sft: set must be a list of texts or a table, not .*steps"),
    ("a: \u5f00", "no setting")])
def test_yaml_faults(capsys, tmp_path, text, message):
    "They are faults of the command line: a message, and exit code 2"
    (tmp_path/"x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as e:
        cli.main(["sft", "--run-dir", "r", "--config", str(tmp_path/"x.yaml")])
    assert e.value.code == 2 and re.search(message, capsys.readouterr().err)
    (tmp_path/"x.yaml").write_bytes("set: {run_name: 哎}".encode("gbk"))
    with pytest.raises(SystemExit):
        cli.main(["sft", "--run-dir", "r", f"--config={tmp_path/'x.yaml'}"])
    assert re.search("x.yaml: is not a yaml file in UTF-8 .* GBK", capsys.readouterr().err)


TOML = """
seeds = [0]
[defaults]
mode = "answer"
recipe = "acc+format"
penalty = ""
gold = "all"
steps = 1
tokens = 8
trl = {}
[settings]
"start" = {steps = 0}
"""


@pytest.mark.parametrize("old,new,message", [
    ("steps = 0", 'steps = "many"', "steps must be a whole number"),
    ("steps = 0", "steps = true", "steps must be a whole number, not True"),
    ("{steps = 0}", '{gold = "frist"}', "gold 'frist' is unknown, take one of all, first"),
    ("{steps = 0}", '{recipe = "acc+fromat"}', "'acc\\+fromat'; did you mean 'acc\\+format'"),
    ("{steps = 0}", "{trl = {temprature = 1.3}}", "did you mean 'temperature'"),
    ("{steps = 0}", '{trl = {bf16 = "perhaps"}}', "bf16 must be true or false"),
    ("seeds", "seed", "has no setting 'seed'; did you mean 'seeds'"),
    ("seeds = [0]", 'seeds = ["a"]', "a seed must be a whole number"),
    ('gold = "all"\n', "", "has no defaults.gold"), ("steps = 1", "steps = ", "at line 8")])
def test_ablation_faults(tmp_path, old, new, message):
    (tmp_path/"x.toml").write_text(TOML)
    assert read_ablation(tmp_path/"x.toml")[1]["start"]["steps"] == 0
    (tmp_path/"x.toml").write_text(TOML.replace(old, new, 1))
    with pytest.raises(ValueError, match=message): read_ablation(tmp_path/"x.toml")


@pytest.mark.parametrize("name", ["ablation", "hacking"])
def test_our_own_ablations(name):
    assert len(read_ablation(ROOT/f"nbs/results/{name}.toml")[1]) > 5


def notebook(path, source):
    "A notebook with a cell of parameters, which prints one of them"
    code = nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[code(source, metadata={"tags": ["parameters"]}),
                                         code("print(repr(seed))")])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, path)
    return path


PARAMETERS = 'seed = 0  # of all\nname: str = "a"\nlr = 1e-3\nfast = True\nfolder = Path("x")\n'


def test_parameters_of_a_notebook(tmp_path):
    path = notebook(tmp_path/"n.ipynb", PARAMETERS)
    given = dict(seed="1", name="007", lr="1e-5", fast="False", folder="{x}")
    assert read_parameters(path, given) == dict(seed=1, name="007", lr=1e-5, fast=False,
                                                folder="{x}")
    for name, value, message in [("sead", "1", "no setting 'sead'; did you mean 'seed'"),
                                 ("seed", "one", "seed must be a whole number"),
                                 ("fast", "0", "fast must be true or false")]:
        with pytest.raises(ValueError, match=message): read_parameters(path, {name: value})
        with pytest.raises(ValueError, match=message):
            run_notebook(path, tmp_path/"out.ipynb", {name: value})
    assert not (tmp_path/"out.ipynb").exists()


def test_a_folder_with_braces(tmp_path):
    "papermill takes braces in a path for the name of a parameter"
    folder = tmp_path/"run {a} {seed}"
    folder.mkdir()
    path = notebook(folder/"n {b}.ipynb", "seed = 0")
    ran = run_notebook(path, folder/"out.ipynb", dict(seed="3"))
    assert ran.cells[-1].outputs[0].text == "3\n" and (folder/"out.ipynb").is_file()


def test_the_command_refuses_before_it_runs(tmp_path):
    path = notebook(tmp_path/"n.ipynb", "seed = 0")
    done = subprocess.run([sys.executable, "-m", "tools.notebooks", path, "--out", tmp_path/"o",
                           "-p", "sead", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "did you mean 'seed'" in done.stderr
    assert not list((tmp_path/"o").glob("*"))


@pytest.mark.skipif(not shutil.which("make"), reason="the command make is not installed")
def test_variables_of_make():
    def make(*given): return subprocess.run(["make", "-n", "-C", ROOT, *given, "help"],
                                            capture_output=True, text=True)
    assert "no variable ARG: there are PYTHON and ARGS" in make("ARG=--seed 1").stderr
    assert make("ARGS=--seed 1", "PYTHON=python3").returncode == 0


def test_settings_of_a_function():
    known = function_settings(predict_clips, "out")
    assert "out" not in known and read_settings({"top_k": "none"}, known, "x") == {"top_k": None}
    with pytest.raises(ValueError, match="prompt must be none or an object"):
        read_setting("prompt", "f", known["prompt"])


@pytest.mark.parametrize("text,value", [
    ("18_19", "18_19"), ("007", "007"), ("1.", 1.), (".5", .5), ("-0", 0), ("+3", 3), (".", "."),
    ("1e5", 1e5), ("nan", "nan"), ("inf", "inf"), ("0x10", "0x10"), ("1,5", "1,5"), ("", ""),
    ("no", "no"), ("null", None), ("[", "["), ("{a}", "{a}"), ("[" * 9999, "[" * 9999),
    ("１", "１"), ("1１", "1１"), ("1e999", "1e999")])
def test_values_without_a_type(text, value):
    assert read_value(text) == value and type(read_value(text)) is type(value)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | numbers
nested = st.recursive(plain | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x),
                      max_leaves=5)
HINTS = {bool: bool, int: int, float: float, str: str, type(None): int | None, list: list,
         dict: dict}


@settings(max_examples=FUZZ, deadline=None)
@given(nested)
def test_values_come_back(value):
    "What Python or JSON writes of a value is read as that value, if its type is known"
    hint = HINTS[type(value)]
    texts = [value] if isinstance(value, str) else [repr(value), json.dumps(value)]
    for text in texts:
        if len(text) > 300: continue
        found = read_setting("x", text, hint)
        assert found == value and isinstance(found, type(value) | int)
    assert read_setting("x", value, hint) == value


@settings(max_examples=FUZZ, deadline=None)
@given(st.text(max_size=12) | st.sampled_from(["1e999", "9" * 5000, "[" * 500, "{1: }"]),
       st.sampled_from([bool, int, float, str, list[str], dict, int | None, str | bool]))
def test_any_text_is_a_value_or_an_error(text, hint):
    try: found = read_setting("x", text, hint)
    except ValueError as e: assert str(e).startswith("x must be")
    else: read_setting("x", found, hint)
    read_value(text)


@settings(max_examples=FUZZ, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda x: x.encode("utf-8", "ignore")))
def test_settings_files_of_any_bytes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name, read in (("x.yaml", read_yaml), ("x.toml", read_toml)):
        (folder/name).write_bytes(data)
        try: read(folder/name)
        except ValueError as e: assert name in str(e)


@pytest.mark.parametrize("stage, config", [("sft", "SFTConfig"), ("grpo", "GRPOConfig")])
def test_settings_without_effect_are_refused_by_name(stage, config):
    "Each is a setting that trl has, and the message says what to use; what a stage sets is not one"
    trl = pytest.importorskip("trl", reason="needs the `train` extra")
    refused = recipes._WITHOUT_EFFECT[stage]
    assert refused.keys() <= {field.name for field in fields(getattr(trl, config))}
    assert not refused.keys() & recipes._KINDS[stage].keys()
    for name, instead in refused.items():
        with pytest.raises(ValueError) as e: recipes.read_changes(stage, {name: None})
        assert str(e.value) == f"{name} has no effect in the stage {stage!r}: {instead}"


def test_every_setting_of_another_engine_is_refused():
    trl = pytest.importorskip("trl", reason="needs the `train` extra")
    names = [f.name for f in fields(trl.GRPOConfig) if f.name.startswith("vllm_")]
    assert names
    for name in names:
        with pytest.raises(ValueError, match=f"{name} has no effect .* sampled by transformers"):
            recipes.read_changes("grpo", {name: 1})

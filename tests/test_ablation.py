"The ablation runner: recipes and seeds from one file, several at once, and nothing done twice"
import json

import pandas as pd
import pytest
from datasets import Dataset

from affectgpt_r1 import ablation, replication
from affectgpt_r1.ablation import read_ablation, run_ablation
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.wheels import load_wheels
from tools import tutorial

ABLATION = """
seeds = [3]

[defaults]
mode = "answer"
recipe = "acc+format"
penalty = ""
gold = "all"
steps = 1
tokens = 8
trl = {warmup_steps = 0}

[settings]
"start" = {steps = 0}
"recall, P2" = {recipe = {recall = 1.0}, penalty = "p2", gold = "first"}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "What a tutorial run leaves: corpus, features, cold start"
    folder = tmp_path_factory.mktemp("base")/"answer3"
    folder.symlink_to(cold_started_toy().folder)
    return folder.parent


@pytest.fixture
def path(tmp_path):
    (tmp_path/"small.toml").write_text(ABLATION)
    return tmp_path/"small.toml"


def test_runs_once_and_collects(base, path, tmp_path):
    def run(): run_ablation(path, str(base/"{mode}{seed}"), tmp_path/"runs")
    run()
    table, other = pd.read_csv(path.with_suffix(".csv")), tmp_path/"runs/recall,-P2-3/record.json"
    assert table[["setting", "seed"]].values.tolist() == [["start", 3], ["recall, P2", 3]]
    assert table["best4"].between(0, 1).all()
    assert set(pd.read_csv(tmp_path/"small_curves.csv")["setting"]) == {"recall, P2"}
    assert len(pd.read_csv(tmp_path/"small_answers.csv")) == 12
    assert json.loads(path.with_suffix(".json").read_text())["runs"] == 2
    # as after a crash: this run is made again, with the same scores, and the other is left alone
    (tmp_path/"runs/start-3/record.json").unlink()
    kept = other.stat().st_mtime_ns
    run()
    again = pd.read_csv(path.with_suffix(".csv"))
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    assert other.stat().st_mtime_ns == kept
    record = json.loads(other.read_text())
    other.write_text(json.dumps(record | dict(base="that of another cold start")))
    with pytest.raises(ValueError, match="recall,-P2-3 holds a run from another cold start"): run()
    other.write_text(json.dumps(record))
    path.write_text(ABLATION.replace('penalty = "p2"', 'penalty = "p1"'))
    with pytest.raises(ValueError, match="recall,-P2-3 holds a run of another setting"): run()


def test_trl_settings_are_added_to_those_of_the_defaults(path):
    for own, found in (("", {}), ("{warmup_steps = 5}", dict(warmup_steps=5)),
                       ("{beta = 0.1}", dict(beta=.1))):
        trl = f", trl = {own}" if own else ""
        path.write_text(ABLATION.replace("{steps = 0}", f"{{steps = 0{trl}}}"))
        assert read_ablation(path)[1]["start"]["trl"] == dict(warmup_steps=0) | found
    path.write_text(ABLATION.replace("trl = {warmup_steps = 0}", 'trl = "none"'))
    with pytest.raises(ValueError, match="trl must be a table"): read_ablation(path)


def test_what_is_wrong_is_said(base, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="make tutorial"):
        run_ablation(path, str(tmp_path/"{mode}{seed}"))
    with pytest.raises(ValueError, match="no setting elsewhere"):
        run_ablation(path, str(base/"{mode}{seed}"), only=["elsewhere"])
    path.write_text(ABLATION.replace('{steps = 0}', '{step = 0}'))
    with pytest.raises(ValueError, match="'start' has step; the defaults have mode"):
        read_ablation(path)


def test_records_of_other_code_are_refused(base, tmp_path, monkeypatch):
    "Half by one code and half by another would compare nothing"
    setting, folder = dict(name="a"), tmp_path/"a-3"
    folder.mkdir()
    monkeypatch.setattr(ablation, "_base_hash", lambda base: "the same cold start")
    record = dict(asked=setting, base="the same cold start", code=ablation._code())
    (folder/"record.json").write_text(json.dumps(record))
    assert ablation._is_finished(folder, setting, base)
    for code in ("other", None):
        (folder/"record.json").write_text(json.dumps(record | dict(code=code)))
        with pytest.raises(ValueError, match="a-3 holds a run by other code of this package"):
            ablation._is_finished(folder, setting, base)


def test_runs_of_different_recipes_are_not_compared(tmp_path):
    folders = [tmp_path/name for name in "ab"]
    for folder, beta in zip(folders, (0., .04)):
        (folder/"grpo").mkdir(parents=True)
        (folder/"grpo/run.json").write_text(json.dumps(dict(steps=4, beta=beta)))
    replication._check_settings(folders[:1] * 2)
    with pytest.raises(ValueError, match="a cannot be compared: their GRPO differs in beta"):
        replication._check_settings(folders)


def test_a_comparison_goes_on_with_the_same_code_only(tmp_path, monkeypatch):
    for _ in range(2): replication._check_code(tmp_path)
    monkeypatch.setattr(replication, "code_hash", lambda file: "other")
    with pytest.raises(ValueError, match="are by other code of this package; delete the folders"):
        replication._check_code(tmp_path)


def test_the_main_job_goes_on_with_the_same_code_only(tmp_path, monkeypatch):
    "Stages of a run that was stopped, of a whole run, and of other code"
    def stages():
        for name in ("cold_start", "grpo", "features"): (tmp_path/name).mkdir(exist_ok=True)
        tutorial.drop_stages(tmp_path)
        return {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert stages() == {"features"}   # nobody knows whose
    assert stages() == {"features", "cold_start", "grpo"}
    (tmp_path/"metrics.json").write_text("{}")
    assert stages() == {"features"}
    (tmp_path/"metrics.json").unlink()
    monkeypatch.setattr(tutorial, "code_hash", lambda file: "other")
    assert stages() == {"features"}


def test_a_share_of_cut_answers_is_in_each_record():
    "One way to decide and to report it: the table of `predict_clips`, and `score_predictions`"
    gold = {"a": ["sad"], "b": ["happy"]}
    reply = "<answer>sad</answer>"
    table = pd.DataFrame(dict(name=["a", "b"], sample=0, reply=reply, truncated=[True, False]))
    assert ablation._scores(gold, table, load_wheels(), "answer")["truncated"] == .5


def test_clips_that_a_setting_cannot_score_are_left_out():
    rows = Dataset.from_dict(dict(labels=[["neutral"], ["neutral", "sad"], ["sad"]]))
    def kept(recipe, gold):
        return len(ablation._scorable(rows, dict(recipe=recipe, gold=gold)))
    assert kept({"recall": 1.}, "all") == 2 and kept({"recall": 1.}, "first") == 1
    assert kept({"recall": 1., "format": .2}, "first") == kept("acc+format", "all") == 3


@pytest.mark.parametrize("asked, changes", [({}, {}), (dict(beta=0.), dict(beta=0.))])
def test_the_weight_of_the_kl_term_reaches_the_pipeline(tmp_path, monkeypatch, asked, changes):
    "A weight of 0 is asked for, and is not the same as none given"
    seen = []
    def ran(notebook, out, parameters, **how):
        seen.append(parameters["changes"])
        raise KeyboardInterrupt
    monkeypatch.setattr(tutorial, "run_notebook", ran)
    with pytest.raises(KeyboardInterrupt): tutorial.main(run_dir=tmp_path/"run", **asked)
    assert seen == [changes]

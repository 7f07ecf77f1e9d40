"The ablation runner: recipes and seeds from one file, several at once, and nothing done twice"
import json

import pandas as pd
import pytest

from affectgpt_r1.ablation import read_ablation, run_ablation
from affectgpt_r1.demo import cold_started_toy

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


def test_what_is_wrong_is_said(base, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="make tutorial"):
        run_ablation(path, str(tmp_path/"{mode}{seed}"))
    with pytest.raises(ValueError, match="no setting elsewhere"):
        run_ablation(path, str(base/"{mode}{seed}"), only=["elsewhere"])
    path.write_text(ABLATION.replace('{steps = 0}', '{step = 0}'))
    with pytest.raises(ValueError, match="'start' has step; the defaults have mode"):
        read_ablation(path)

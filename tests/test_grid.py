"The ablation runner: recipes and seeds from one file, several at once, and nothing done twice"
import json

import pandas as pd
import pytest

from affectgpt_r1.coldstart import cold_start, target_text
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.model import make_toy_model
from affectgpt_r1.toy import make_toy_corpus
from tools.grid import main, read_grid

GRID = """
seeds = [3]

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
"recall, P2" = {recipe = {recall = 1.0}, penalty = "p2", gold = "first"}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "What a tutorial run leaves: corpus, features, cold start"
    folder = tmp_path_factory.mktemp("base")/"answer3"
    corpus = make_toy_corpus(folder/"corpus", preset="smoke", seed=3)
    captions = load_mer2025(corpus, "caption").select(range(16))
    model, processor = make_toy_model([target_text(r, "answer") + r["subtitle"] for r in captions] + list(QUESTIONS.values()), seed=3)
    processor.features = FeatureCache(folder/"features", model, processor)
    cold_start(model, processor, captions, folder/"cold_start", epochs=1)
    return folder.parent


@pytest.fixture
def grid(tmp_path):
    (tmp_path/"small.toml").write_text(GRID)
    return tmp_path/"small.toml"


def test_runs_once_and_collects(base, grid, tmp_path):
    def run(): main(grid, str(base/"{mode}{seed}"), tmp_path/"runs")
    run()
    table = pd.read_csv(grid.with_suffix(".csv"))
    assert table[["setting", "seed"]].values.tolist() == [["start", 3], ["recall, P2", 3]] and table["best4"].between(0, 1).all()
    assert set(pd.read_csv(tmp_path/"small_curves.csv")["setting"]) == {"recall, P2"} and len(pd.read_csv(tmp_path/"small_answers.csv")) == 12
    assert json.loads(grid.with_suffix(".json").read_text())["runs"] == 2
    (tmp_path/"runs/start-3/record.json").unlink()   # as after a crash: this run is made again, with the same scores, and the other is left alone
    kept = (tmp_path/"runs/recall,-P2-3/record.json").stat().st_mtime_ns
    run()
    pd.testing.assert_frame_equal(pd.read_csv(grid.with_suffix(".csv")).drop(columns="seconds"), table.drop(columns="seconds"))
    assert (tmp_path/"runs/recall,-P2-3/record.json").stat().st_mtime_ns == kept
    grid.write_text(GRID.replace('penalty = "p2"', 'penalty = "p1"'))
    with pytest.raises(ValueError, match="recall,-P2-3 holds a run of another setting"): run()


def test_what_is_wrong_is_said(base, grid, tmp_path):
    with pytest.raises(FileNotFoundError, match="make tutorial"): main(grid, str(tmp_path/"{mode}{seed}"))
    with pytest.raises(ValueError, match="no setting elsewhere"): main(grid, str(base/"{mode}{seed}"), only=["elsewhere"])
    grid.write_text(GRID.replace('{steps = 0}', '{step = 0}'))
    with pytest.raises(ValueError, match="'start' has step; the defaults have mode"): read_grid(grid)

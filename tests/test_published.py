"Published numbers: as they were read, with arithmetic, place and rule"
import numpy as np
import pytest

from affectgpt_r1.published import (
    PENALTY_RUNS, PUBLISHED_SCORES, find_score, published_scores)
from affectgpt_r1.recipes import training_recipe
from affectgpt_r1.rewards import REWARD_RECIPES
from affectgpt_r1.unibench import UNIBENCH

# In the order of the later texts: MOSI MOSEI SIMS SIMSv2 MER23 MER24 MELD IEMO OV-MERD+ mean
READ = """
AffectGPT | 81.30 80.90 88.49 86.18 78.54 78.80 55.65 60.54 62.52 74.77
AffectGPT-R1, no penalty | 79.65 80.18 87.26 85.75 84.51 93.13 66.71 74.26 68.39 79.98
AffectGPT-RL, penalty P3 | 79.39 79.24 88.25 84.97 84.32 93.75 63.12 74.26 68.05 79.48
AffectGPT-RL, audio and text | 80.13 80.01 84.49 82.31 81.69 93.49 63.74 63.85 65.49 77.24
AffectGPT-RL, video and text | 78.78 79.07 85.91 85.85 77.72 85.29 61.09 67.42 62.42 75.95
R1-Omni | 58.02 56.48 71.82 68.58 64.17 67.43 43.20 51.58 55.24 59.61
AffectGPT, last checkpoint | 78.30 78.51 85.28 85.31 73.69 76.90 52.09 57.74 59.89 71.96
AffectGPT-R1, re-run on Qwen2.5-Omni | 80.29 80.64 85.70 83.75 81.88 80.89 57.53 65.71 64.08 75.60
GRPO baseline of MER-R1 | 83.48 86.31 87.78 86.84 78.16 82.70 61.45 67.28 66.86 77.87
OPPO | 86.50 84.63 86.22 88.26 87.73 90.34 64.06 73.60 67.16 81.05
MER-R1 | 86.06 86.73 88.04 88.48 88.60 92.96 71.90 78.10 70.68 83.50
Emotion-LLaMAv2 | 86.28 87.69 87.72 86.02 77.28 86.90 51.32 84.05 62.90 78.91
OmniOPSD | 90.06 89.03 90.76 89.14 85.79 92.43 71.89 89.09 59.52 84.19
"""
ORDER = ["CMUMOSI", "CMUMOSEI", "SIMS", "SIMSv2", "MER2023", "MER2024", "MELD", "IEMOCAPFour",
         "OVMERDPlus"]
ROWS = {s.system: s for s in PUBLISHED_SCORES}
BEST, ONE = "best-on-test", "one checkpoint"


@pytest.mark.parametrize("line", READ.strip().splitlines())
def test_rows_are_as_read(line):
    "Set by set, from a list in another order"
    name, numbers = line.split(" | ")
    *sets, mean = map(float, numbers.split())
    row = ROWS[name]
    assert dict(zip(UNIBENCH, row.sets)) == dict(zip(ORDER, sets)) and row.mean == mean


def test_printed_means_are_means():
    "But for one, whose nine sets have another"
    off = {s.system: round(float(np.mean(s.sets)), 2) for s in PUBLISHED_SCORES
           if s.mean and abs(np.mean(s.sets) - s.mean) > .0101}
    assert off == {"OPPO": 80.94}
    assert {s.system for s in PUBLISHED_SCORES if s.mean is None} == {
        s.system for s in PUBLISHED_SCORES if s.variant == "rewards"}


@pytest.mark.parametrize("name,protocol,place", [
    ("AffectGPT", BEST, "2501.16566"), ("AffectGPT, last checkpoint", ONE, "2606.27652"),
    ("AffectGPT-R1, no penalty", BEST, "2606.27652, table 1"),
    ("AffectGPT-RL, penalty P3", BEST, "2605.06126, table 3"),
    ("AffectGPT-RL, video and text", BEST, "2605.06126, table 3"),
    ("AffectGPT-R1, re-run on Qwen2.5-Omni", ONE, "2606.25325"), ("OPPO", ONE, "2606.25325"),
    ("MER-R1", ONE, "2606.27652"), ("OmniOPSD", "not said", "2606.15920, table 1"),
    ("Emotion-LLaMAv2", "not said", "2606.15920, table 1"),
    ("AffectGPT, human labels too", "not said", "2605.06126, table 5"),
    ("AffectGPT-RL with P1", "not said", "2605.06126, table 2")])
def test_each_row_has_its_rule_and_its_place(name, protocol, place):
    assert ROWS[name].protocol == protocol and place in ROWS[name].source
    assert ROWS[name].certainty == "paper"


def test_every_source_can_be_found():
    assert all("arXiv 2" in s.source for s in PUBLISHED_SCORES)
    assert published_scores(inputs=True)["source"].notna().all()


def test_whose_number_is_it():
    found = {x: find_score(x).iloc[0] for x in (79.98, 79.48, 71.96)}
    assert [r["system"] for r in found.values()] == [
        "AffectGPT-R1, no penalty", "AffectGPT-RL, penalty P3", "AffectGPT, last checkpoint"]
    assert {r["set"] for r in found.values()} == {"mean"}
    both = find_score(74.26)   # two rows share their IEMOCAP
    assert both["set"].tolist() == ["IEMOCAPFour"] * 2 and find_score(1.23).empty
    assert not len(find_score(79.47))


def test_penalties_differ_no_more_than_their_runs():
    for penalty in ("P1", "P2"):
        assert ROWS[f"AffectGPT-RL with {penalty}"].sets[-1] == PENALTY_RUNS[penalty][0]
    assert ROWS["AffectGPT-RL, penalty P3"].sets[-1] == PENALTY_RUNS["P3"][0]
    assert ROWS["AffectGPT-R1, no penalty"].sets[-1] == PENALTY_RUNS[None][0]
    _, means, deviations = zip(*(x for x in PENALTY_RUNS.values() if x[1]))
    assert max(means) - min(means) < 2*max(deviations)


def test_the_recipe_of_the_paper():
    "What was read, setting by setting; what was not is not called the paper's"
    sft, grpo = (training_recipe("paper", stage) for stage in ("sft", "grpo"))
    assert {name: sft.settings[name] for name in ("mode", "learning_rate", "batch_size")} == dict(
        mode="answer", learning_rate=1e-5, batch_size=3)
    read = dict(mode="answer", rewards="acc", penalty="p3", learning_rate=1e-5, num_prompts=1,
                num_generations=4)
    assert {name: grpo.settings[name] for name in read} == read
    assert all(grpo.sources[name][1].startswith("paper") for name in read)
    assert [name for name, _ in REWARD_RECIPES["acc"].weights] == ["accuracy"]   # no format
    assert {"p2", "p3"} <= {*REWARD_RECIPES["acc"].penalties}
    unknown = ("steps", "beta", "epsilon", "scale_rewards", "loss_type", "temperature")
    assert not [name for name in unknown if grpo.sources[name][1].startswith("paper")]

"""MER-UniBench and a close look at the mistakes, for the two models of a tutorial run, into nbs/results/unibench.json

    make tutorial ARGS="--seed 0 --run-dir runs/answer0"
    python -m tools.unibench runs/answer0
"""
import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from affectgpt_r1.benchmark import (
    answer_cost, calibration, calibration_error, group_scores, label_confidence, predict_unibench, sector_confusion, unibench_difference,
    unibench_scores)
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import LONGEST
from affectgpt_r1.model import AffectGPT
from affectgpt_r1.toy import _band, load_states
from affectgpt_r1.wheels import load_wheels
from tools.results import OUT, made_by

BANDS = ("weak", "middling", "strong")


def rows(table):
    "A table as records that json knows"
    return json.loads(table.reset_index(names="row").astype({"row": str}).to_json(orient="records", double_precision=6))


def repeats(answer):
    "Does a word stand in an answer more than once?"
    words = [w for w in map(str.strip, answer.split(",")) if w]
    return len(words) > len(set(words))


def stage(run, name, wheels):
    "The numbers of one model, its answers to the nine sets being written to `run`"
    corpus, length = run/"corpus", LONGEST["answer"]
    model, processor = AutoModelForCausalLM.from_pretrained(run/name).eval(), AutoProcessor.from_pretrained(run/name)
    processor.features = FeatureCache(run/"features", model, processor)
    answers = predict_unibench(model, processor, corpus/"unibench", run/"unibench"/name, wheels=wheels, max_new_tokens=length)
    test, states = load_mer2025(corpus, "ovmerd"), load_states(corpus)
    gold, asked = dict(zip(test["name"], test["labels"])), AffectGPT(model, processor)
    said = {row["name"]: asked.predict(row, wheels=wheels, max_new_tokens=length) for row in test}
    pred, confidence = {n: p.labels for n, p in said.items()}, label_confidence(gold, said, wheels)
    strength = {n: BANDS[_band(s.intensity)] for n, s in states.items()}
    return dict(
        scores=rows(unibench_scores(answers, corpus/"unibench", wheels=wheels)),
        cost=answer_cost(model, processor, test, max_new_tokens=length),
        strength=rows(group_scores(gold, pred, strength, wheels)), confusion=rows(sector_confusion(gold, pred, wheels, "Plutchik")),
        replies=[p.reply for p in said.values()][:4], repeating=sum(repeats(p.answer) for p in said.values()) / len(said),
        calibration=rows(calibration(confidence)), calibration_error=calibration_error(confidence))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("run", type=Path, help="folder of a tutorial run at the toy preset, mode answer")
    run = ap.parse_args().run
    torch.set_num_threads(1)
    wheels, seed = load_wheels(), json.loads((run/"metrics.json").read_text())["seed"]
    stages = {name: stage(run, name, wheels) for name in ("cold_start", "grpo")}
    difference = rows(unibench_difference(run/"unibench/cold_start", run/"unibench/grpo", run/"corpus/unibench", wheels=wheels))
    about = made_by([f'make tutorial ARGS="--seed {seed} --run-dir {run}"', f"python -m tools.unibench {run}"])
    about |= dict(seed=seed, steps=int(pd.read_json(run/"grpo/log.json")["step"].max()))
    (OUT/"unibench.json").write_text(json.dumps(about | dict(stages=stages, difference=difference), indent=1) + "\n")
    print(OUT/"unibench.json")

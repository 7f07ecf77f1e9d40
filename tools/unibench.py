"""MER-UniBench and a close look at the mistakes of a tutorial run's two models

    make tutorial ARGS="--seed 0 --run-dir runs/answer0"
    python -m tools.unibench runs/answer0

writes nbs/results/unibench.json.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from affectgpt_r1.benchmark import (
    answer_cost,
    calibration,
    calibration_error,
    group_scores,
    label_confidence,
    predict_unibench,
    sector_confusion,
    unibench_difference,
    unibench_scores,
)
from affectgpt_r1.data import load_mer2025, load_unibench
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.inference import MAX_NEW_TOKENS
from affectgpt_r1.inference import AffectGPT
from affectgpt_r1.toy import load_states
from affectgpt_r1.toy_states import intensity_band
from affectgpt_r1.unibench import UNIBENCH
from affectgpt_r1.wheels import load_wheels
from tools.results import OUT, made_by

STAGES = ("cold_start", "grpo")
BANDS = ("weak", "middling", "strong")


def as_records(table):
    "A table as records that json knows"
    table = table.reset_index(names="row").astype({"row": str})
    return json.loads(table.to_json(orient="records", double_precision=6))


def repeats_a_word(answer):
    "Whether a word occurs more than once in an answer"
    words = [w for w in map(str.strip, answer.split(",")) if w]
    return len(words) > len(set(words))


def load_model(run, name):
    "Model and processor of a stage, reading the run's cached features"
    model = AutoModelForCausalLM.from_pretrained(run / name).eval()
    processor = AutoProcessor.from_pretrained(run / name)
    processor.features = FeatureCache(run / "features", model, processor)
    for key in UNIBENCH:
        processor.features.compute(load_unibench(run / "corpus/unibench", key), model, processor)
    return model, processor


def report_on_test(model, processor, corpus, wheels, max_new_tokens):
    "What the model answers to the test split, and where it is wrong"
    test, states = load_mer2025(corpus, "ovmerd"), load_states(corpus)
    gold, predictor = dict(zip(test["name"], test["labels"])), AffectGPT(model, processor)
    said = {
        row["name"]: predictor.predict(row, wheels=wheels, max_new_tokens=max_new_tokens)
        for row in test
    }
    labels = {name: p.labels for name, p in said.items()}
    confidence = label_confidence(gold, said, wheels)
    strength = {name: BANDS[intensity_band(s.intensity)] for name, s in states.items()}
    return dict(
        cost=answer_cost(model, processor, test, max_new_tokens=max_new_tokens),
        strength=as_records(group_scores(gold, labels, strength, wheels)),
        confusion=as_records(sector_confusion(gold, labels, wheels, "Plutchik")),
        replies=[p.reply for p in said.values()][:4],
        repeating=sum(repeats_a_word(p.answer) for p in said.values()) / len(said),
        calibration=as_records(calibration(confidence)),
        calibration_error=calibration_error(confidence),
    )


def stage_report(run, name, wheels):
    "The numbers of one model; its answers to the nine sets are written to `run`"
    corpus, out, length = run / "corpus", run / "unibench" / name, MAX_NEW_TOKENS["toy"]["answer"]
    model, processor = load_model(run, name)
    answers = predict_unibench(
        model, processor, corpus / "unibench", out, wheels=wheels, max_new_tokens=length
    )
    scores = as_records(unibench_scores(answers, corpus / "unibench", wheels=wheels))
    return dict(scores=scores) | report_on_test(model, processor, corpus, wheels, length)


def parse_args():
    "The command line"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, help="folder of a tutorial run at the toy preset, mode answer"
    )
    return parser.parse_args()


def main(run):
    "Score both stages of `run`, and write the record"
    torch.set_num_threads(1)
    wheels, seed = load_wheels(), json.loads((run / "metrics.json").read_text())["seed"]
    stages = {name: stage_report(run, name, wheels) for name in STAGES}
    before, after = (run / "unibench" / name for name in STAGES)
    difference = unibench_difference(before, after, run / "corpus/unibench", wheels=wheels)
    record = made_by(
        [f'make tutorial ARGS="--seed {seed} --run-dir {run}"', f"python -m tools.unibench {run}"]
    )
    record["seed"] = seed
    record["steps"] = int(pd.read_json(run / "grpo/log.json")["step"].max())
    record |= dict(stages=stages, difference=as_records(difference))
    (OUT / "unibench.json").write_text(json.dumps(record, indent=1) + "\n")
    print(OUT / "unibench.json")


if __name__ == "__main__":
    main(parse_args().run)

"""Is GRPO better than its cold start, and better than supervised fine-tuning on the same clips? Over seeds, into nbs/results/seeds.json

    for s in 0 1 2 3 4; do make tutorial ARGS="--seed $s --run-dir runs/answer$s"; done
    python -m tools.seeds runs/answer0 runs/answer1 runs/answer2 runs/answer3 runs/answer4
    python -m tools.seeds runs/answer5 runs/answer6 runs/answer7 runs/answer8 runs/answer9 --out nbs/results/seeds_replication.json

The cold start of each run is fine-tuned on its human split, with the rate and the number of epochs that do best over all runs on a fifth of that
split that is held out; then cold start, SFT and GRPO answer the test clips, greedily and sampled (temperature 1, top-p 0.9). The test clips choose
nothing. Called again after an interruption, it goes on where it was.
"""
import argparse
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from datasets.utils.logging import disable_progress_bar
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.utils import logging as hf_logging

from affectgpt_r1.coldstart import cold_start, fingerprint
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.evaluate import constant_baseline, predict_clips, score_predictions
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import LONGEST
from affectgpt_r1.labels import parse_response
from affectgpt_r1.metrics import ew_difference, seed_interval
from affectgpt_r1.wheels import load_wheels
from tools.results import OUT, made_by

GRID = [dict(lr=lr, epochs=epochs, shuffle_labels=True) for lr in (5e-4, 1e-3, 2e-3) for epochs in (4, 12)]
KINDS = dict(greedy={}, sampled=dict(sample=True, temperature=1., top_p=.9))
PAIRS = (("cold_start", "grpo"), ("sft", "grpo"), ("cold_start", "sft"))


class Run:
    "What a tutorial run has left: clips, cold start, GRPO, cached features"
    def __init__(self, folder):
        self.folder, self.wheels = Path(folder), load_wheels()
        about = json.loads((self.folder/"metrics.json").read_text())
        self.preset, self.seed = about["preset"], about["seed"]
        self.mode = json.loads((self.folder/"cold_start"/"run.json").read_text())["mode"]
        self.human, self.test = (load_mer2025(self.folder/"corpus", track) for track in ("human", "ovmerd"))
        self.processor = AutoProcessor.from_pretrained(self.folder/"cold_start")
        self.processor.features = FeatureCache(self.folder/"features", self.model("cold_start"), self.processor)

    def model(self, stage): return AutoModelForCausalLM.from_pretrained(self.folder/stage)

    def replies(self, model, rows, kind, out=None):
        "What a model answers, by clip"
        table = predict_clips(model.eval(), self.processor, rows, mode=self.mode, out=out, max_new_tokens=LONGEST[self.mode], seed=self.seed, **KINDS[kind])
        return dict(zip(table["name"], table["reply"]))

    def train_sft(self, rows, out, settings):
        "The cold start, fine-tuned on human labels, unless that has been done"
        start = self.model("cold_start")
        done = json.loads((out/"run.json").read_text()) if (out/"model.safetensors").exists() else {}
        wanted = settings | dict(start=fingerprint(start, rows))
        if any(done.get(k) != v for k, v in wanted.items()):
            cold_start(start, self.processor, rows, out, mode=self.mode, seed=self.seed, **settings)
        return AutoModelForCausalLM.from_pretrained(out)

    def held_out(self):
        "EW F of each setting of `GRID` on a fifth of the human clips, trained on the others"
        order = np.random.default_rng(self.seed).permutation(len(self.human))
        held, rest = (self.human.select(sorted(i)) for i in np.split(order, [len(order) // 5]))
        gold = dict(zip(held["name"], held["labels"]))
        models = [self.train_sft(rest, self.folder/f"seeds/sft-{i}", settings) for i, settings in enumerate(GRID)]
        return [score_predictions(gold, self.replies(m, held, "greedy"), self.wheels, self.mode)["ew_f"] for m in models]

    def record(self, settings):
        "Scores of all stages on the test clips, and the paired bootstrap between them; the cold start is fine-tuned with `settings`"
        self.train_sft(self.human, self.folder/"sft", settings)
        gold = dict(zip(self.test["name"], self.test["labels"]))
        scores, labels = {}, {}
        for stage in ("cold_start", "sft", "grpo"):
            model = self.model(stage)
            for kind in KINDS:
                replies = self.replies(model, self.test, kind, self.folder/f"seeds/{stage}-{kind}.jsonl")
                scores.setdefault(stage, {})[kind] = score_predictions(gold, replies, self.wheels, self.mode)
                labels[stage, kind] = {name: parse_response(r, mode=self.mode).labels for name, r in replies.items()}
        within = {f"{b} - {a}, {kind}": ew_difference(gold, labels[a, kind], labels[b, kind], wheels=self.wheels, seed=self.seed)
                  for a, b in PAIRS for kind in KINDS}
        return dict(
            seed=self.seed, preset=self.preset, mode=self.mode, test_clips=len(gold), stages=scores,
            constant=constant_baseline(self.human["labels"], gold, self.wheels)["ew_f"],
            bootstrap={pair: dict(difference=d.difference, low=d.low, high=d.high) for pair, d in within.items()})


def over_seeds(records):
    "For each pair of stages: the differences by seed, their mean and its 95 % interval"
    result = {}
    for a, b in PAIRS:
        for kind in KINDS:
            d = [r["stages"][b][kind]["ew_f"] - r["stages"][a][kind]["ew_f"] for r in records]
            result[f"{b} - {a}, {kind}"] = dict(zip(("mean", "low", "high"), seed_interval(d))) | dict(by_seed=d)
    return result


def main(folders, out):
    runs = [Run(folder) for folder in folders]
    held_out = np.array([run.held_out() for run in runs])
    chosen = GRID[held_out.mean(0).argmax()]
    records = [run.record(chosen) for run in runs]
    sft = dict(chosen=chosen, tried=[settings | dict(held_out_ew_f=f.tolist()) for settings, f in zip(GRID, held_out.T)])
    elsewhere = f" --out {out}" if out != OUT/"seeds.json" else ""
    result = made_by(f"python -m tools.seeds {' '.join(folders)}{elsewhere}") | dict(differences=over_seeds(records), sft=sft, runs=records)
    out.write_text(json.dumps(result, indent=1, default=lambda x: x.tolist()) + "\n")
    for r in records:
        print(f"seed {r['seed']}:", *(f"{stage} {s['greedy']['ew_f']:.3f} / {s['sampled']['ew_f']:.3f}" for stage, s in r["stages"].items()), sep="  ")
    for pair, d in result["differences"].items():
        print(f"{pair:28} {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] by seed", *(f"{x:+.3f}" for x in d["by_seed"]))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", nargs="+", help="run folders of the tutorial, 2 to 10")
    ap.add_argument("--out", type=Path, default=OUT/"seeds.json")
    args = ap.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar(); disable_progress_bar(); logging.getLogger("transformers").setLevel(logging.ERROR)
    main(args.runs, args.out)

"""What do faults in the media of GRPO look like where nothing guards against them?

    python benchmarks/failure_museum.py --out nbs/results/failure_museum.csv

Trains a tiny Qwen-Omni thinker on six clips of noise, once as it should be and once with each fault
that leaves the loss a number, with the guards switched off. A run takes about half a minute. The
reward needs no clip: it pays for the letter "e". So it can rise whatever the policy sees and hears.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pandas as pd
from datasets import Dataset
from pytest import MonkeyPatch

from affectgpt_r1 import input_checks, sampling_checks
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.omni import make_tiny_omni
from benchmarks.planted_faults import FAULTS, make_clips

SHOWN = ["sound dropped", "rows swapped", "flag lost", "frames off by one"]


def letters(completions, **columns):
    "The share of the letter e"
    texts = [c[0]["content"] for c in completions]
    return [text.count("e") / max(len(text), 1) for text in texts]


def run(name, plant, rows, folder, steps):
    "The log of a run with a fault, or without one"
    texts = ["happy", "Here we are.", "A smile.", *QUESTIONS.values()]
    model, processor = make_tiny_omni(texts, use_audio_in_video=True)
    with MonkeyPatch.context() as patch:
        patch.setattr(sampling_checks, "LARGEST_GAP", float("inf"))
        patch.setattr(input_checks, "_other", lambda wanted, found: None)
        if plant: plant(patch, processor)
        log = train_grpo(
            model, processor, Dataset.from_list(rows), ([letters], [1.]), folder / name,
            recipe="toy", num_prompts=3, num_generations=8, steps=steps, max_new_tokens=16,
            warmup_steps=0, learning_rate=3e-3, beta=0.)
    keep = dict(loss="loss", reward="reward", grad_norm="grad_norm", gap="sampling/logp_gap")
    return [dict(fault=name, step=i + 1) | {k: r[v] for k, v in keep.items()}
            for i, r in enumerate(r for r in log if "reward" in r)]


def main():
    "Run them all and write the logs"
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, default=30)
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = make_clips(Path(folder))
        plants = {"none": None} | {name: FAULTS[name][0] for name in SHOWN}
        logs = [r for name, plant in plants.items()
                for r in run(name, plant, rows, Path(folder), args.steps)]
    pd.DataFrame(logs).round(9).to_csv(args.out, index=False)


if __name__ == "__main__": main()

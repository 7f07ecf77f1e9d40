"""How far apart are the sampler and the trainer? Log-probabilities of the same sampled tokens

    python benchmarks/sampler_gap.py runs/laptop --out nbs/results/sampler_gap.csv

For the toy and for the parts of the preset `laptop`, in 32 and in 16 bits: three steps of GRPO with
LoRA, four clips a step, four answers each. What the sampler said of a token is noted while it
samples, and compared with what the loss computes for it (machinery/sampling_checks.ipynb). The run
folder is one of `make laptop`: its clips and their features are used. Before the three steps come
two of a cold start, so that the answers are words.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from affectgpt_r1.checkpoints import load_stage
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.parts import load_parts
from affectgpt_r1.real_parts import laptop_parts
from affectgpt_r1.records import made_by
from affectgpt_r1.stages import run_splits
from affectgpt_r1.text_files import read_json

STEPS, PROMPTS, ANSWERS = 3, 4, 4


def parts(kind, dtype, run):
    "Model, processor, captions and human clips"
    if kind == "toy":
        toy = cold_started_toy()
        return toy.model.to(dtype), toy.processor, toy.captions, toy.human
    model, processor = load_parts(**laptop_parts(), dtype=dtype)
    processor.features = FeatureCache(run / "features", model, processor)
    splits = run_splits(run)
    return model, processor, splits["caption"], splits["human"]


def gap(kind, name, run):
    "Mean and largest difference over three steps"
    torch.set_num_threads(1)
    dtype = getattr(torch, name)
    model, processor, captions, human = parts(kind, dtype, run)
    with tempfile.TemporaryDirectory() as out:
        cold_start(model, processor, captions, f"{out}/sft", max_steps=2, warmup_steps=0, lora=True)
        model, _ = load_stage(f"{out}/sft", dtype=dtype)
        train_grpo(model, processor, human, None, f"{out}/grpo", steps=STEPS, warmup_steps=0,
                   num_prompts=PROMPTS, num_generations=ANSWERS, beta=0.)
        about = read_json(f"{out}/grpo/run.json")["done"]
    return dict(parts=kind, numbers=name, mean=about["logp_gap"], largest=about["logp_gap_max"])


def main(run, out):
    rows = []
    for kind in ("toy", "laptop"):
        for name in ("float32", "bfloat16"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                rows.append(pool.submit(gap, kind, name, run).result())
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.3g")
    command = f"python benchmarks/sampler_gap.py runs/laptop --out nbs/results/{out.name}"
    out.with_suffix(".json").write_text(json.dumps(made_by(command), indent=1) + "\n")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("run", type=Path, help="run folder of `make laptop`, with its features")
    ap.add_argument("--out", type=Path, default=Path("sampler_gap.csv"))
    main(**vars(ap.parse_args()))

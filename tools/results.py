"""Put the records of tutorial runs into nbs/results, with the command and the machine

    for s in 0 1 2; do make tutorial ARGS="--seed $s --run-dir runs/answer$s"; done
    python -m tools.results runs/answer0 runs/answer1 runs/answer2
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from affectgpt_r1.recipes import training_recipe
from affectgpt_r1.records import made_by
from tools.notebooks import ROOT

OUT = ROOT / "nbs/results"
LOGGED = [
    "step",
    "reward",
    "rewards/accuracy/mean",
    "rewards/format/mean",
    "words",
    "completions/mean_length",
    "frac_reward_zero_std",
    "entropy",
    "kl",
    "loss",
]


def command(run, *asked):
    "The command of a tutorial run, with the weight of its KL term if that is not the recipe's"
    beta = json.loads((Path(run) / "grpo/run.json").read_text())["beta"]
    if beta != training_recipe("toy", "grpo").settings["beta"]:
        asked = *asked, f"--beta {beta:g}"
    return f'make tutorial ARGS="{" ".join(asked)} --run-dir {run}"'


def collect(runs):
    "The records of `runs` and where they come from"
    records = [json.loads((Path(run) / "metrics.json").read_text()) for run in runs]
    commands = [command(run, f"--seed {r['seed']}") for run, r in zip(runs, records)]
    return made_by(commands) | dict(runs=records)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("runs", nargs="+", help="run folders, each with its metrics.json")
    runs = ap.parse_args().runs
    OUT.mkdir(exist_ok=True)
    (OUT / "tutorial.json").write_text(json.dumps(collect(runs), indent=1) + "\n")
    log = pd.read_json(Path(runs[0]) / "grpo/log.json")
    log = log[[name for name in LOGGED if name in log]].dropna()
    log.round(5).to_csv(OUT / "grpo_log.csv", index=False)
    print(f"{OUT}: {len(runs)} runs, and the GRPO log of the first")

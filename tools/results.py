"""Put the records of tutorial runs into nbs/results, with the command and the machine that made them

    for s in 0 1 2; do make tutorial ARGS="--seed $s --run-dir runs/answer$s"; done
    python -m tools.results runs/answer0 runs/answer1 runs/answer2
"""
import argparse
import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from tools.notebooks import ROOT

OUT = ROOT/"nbs/results"
LOGGED = ["step", "reward", "rewards/accuracy/mean", "rewards/format/mean", "completions/mean_length", "frac_reward_zero_std", "entropy", "loss"]
PACKAGES = ("torch", "transformers", "trl", "numpy")


def processor():
    "The processor's name, as the system gives it"
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def made_by(command):
    "What belongs beside any number: the command, the machine, the versions, the day"
    return dict(
        command=command, machine=f"{os.cpu_count()} cores, {processor()}, no GPU",
        versions={p: version(p) for p in PACKAGES}, python=platform.python_version(), date=datetime.date.today().isoformat())


def collect(runs):
    "The records of `runs` and where they come from"
    records = [json.loads((Path(run)/"metrics.json").read_text()) for run in runs]
    return made_by([f'make tutorial ARGS="--seed {r["seed"]} --run-dir {run}"' for run, r in zip(runs, records)]) | dict(runs=records)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", nargs="+", help="run folders, each with its metrics.json")
    runs = ap.parse_args().runs
    OUT.mkdir(exist_ok=True)
    (OUT/"tutorial.json").write_text(json.dumps(collect(runs), indent=1) + "\n")
    log = pd.read_json(Path(runs[0])/"grpo/log.json")
    log[LOGGED].dropna().round(5).to_csv(OUT/"grpo_log.csv", index=False)
    print(f"{OUT}: {len(runs)} runs, and the GRPO log of the first")

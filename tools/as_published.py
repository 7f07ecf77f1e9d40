"""All runs behind the pages Claims, A ladder of algorithms, and Variety, in one command

    make records

Some nine hours of one core: 5.4 for the grids of claims, ladder, variety and its check, by their
records, and the rest reckoned (pipelines, rivals and the use of the media). Each run that has ended
is kept, so the command can be stopped and given again. The seeds 0 to 4 chose settings; of 10 to
19, two (10 and 11) chose the number of steps of the pipeline. The pipelines have no KL term, as
before `variety_check` brought it into the recipe.
"""

import json
import subprocess
import sys
from pathlib import Path

from tools.notebooks import ROOT

CHOSE, FRESH = range(5), range(10, 20)
GRIDS = ("claims_runs", "ladder", "variety", "variety_check")


def is_done(
    run,  # Folder of a pipeline
):
    "Has it ended? Stops where it has a KL term, which the runs on record have not"
    if not Path(run, "metrics.json").is_file():
        return False
    if beta := json.loads(Path(run, "grpo/run.json").read_text())["beta"]:
        sys.exit(f"{run} has a KL term (beta {beta:g}), the runs on record have none: move it away")
    return True


def commands(
    root=ROOT,  # Where the folder `runs` is
):
    "The commands that are left; all but the pipelines look by themselves what is left of them"
    for s in (*CHOSE, *FRESH):
        run = f"runs/answer{s}"
        if not is_done(Path(root, run)):
            yield ["-m", "tools.tutorial", "--seed", str(s), "--run-dir", run, "--beta", "0"]
    runs = [f"runs/answer{s}" for s in FRESH]
    out = "nbs/results/claims_replication.json"
    yield ["-m", "affectgpt_r1", "replicate", *runs, "--out", out]
    yield ["-m", "tools.claims", *runs, "--parts", "media"]
    for grid in GRIDS:
        yield ["-m", "affectgpt_r1", "ablation", f"nbs/results/{grid}.toml"]
    yield ["-m", "tools.claims", "--grid", "nbs/results/claims_runs.toml"]


def main():
    for command in [*commands()]:
        print(*command[1:], flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()

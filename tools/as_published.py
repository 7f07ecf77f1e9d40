"""All runs behind the pages Claims, A ladder of algorithms, and Variety, in one command

    make records

Some ten hours of one core: 4.9 for the grids of claims, ladder and variety, by their records, and
the rest reckoned (pipelines, rivals, use of the media, and the check of the winner). Each run that
has ended is kept, so the command can be stopped and given again. The seeds 0 to 4 chose settings,
the seeds 10 to 19 nothing.
"""

import subprocess
import sys
from pathlib import Path

from tools.notebooks import ROOT

CHOSE, FRESH = range(5), range(10, 20)
GRIDS = ("claims_runs", "ladder", "variety", "variety_check")


def commands():
    "Each command, and the file that its end leaves; None where it looks by itself what is left"
    for s in (*CHOSE, *FRESH):
        run = f"runs/answer{s}"
        yield ["-m", "tools.tutorial", "--seed", str(s), "--run-dir", run], f"{run}/metrics.json"
    runs = [f"runs/answer{s}" for s in FRESH]
    out = "nbs/results/claims_replication.json"
    yield ["-m", "affectgpt_r1", "replicate", *runs, "--out", out], None
    yield ["-m", "tools.claims", *runs, "--parts", "media"], None
    for grid in GRIDS:
        yield ["-m", "affectgpt_r1", "ablation", f"nbs/results/{grid}.toml"], None
    yield ["-m", "tools.claims", "--grid", "nbs/results/claims_runs.toml"], None


def main():
    for command, done in commands():
        if done and Path(ROOT, done).is_file():
            continue
        print(*command[1:], flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()

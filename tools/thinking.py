"""Does thinking before the answer help? Pairs of tutorial runs, one in each mode

    for s in 5 6 7 8 9; do
        for m in answer think; do
            make tutorial ARGS="--mode $m --seed $s --run-dir runs/$m$s --beta 0"
        done
    done
    python -m tools.thinking --seeds 5 6 7 8 9

Writes into nbs/results/thinking.*: the scores by mode, seed and stage (.csv), the course of GRPO
(_curves.csv), both answers of the first seed to a few clips (_answers.csv), and what made them.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import pandas as pd

from affectgpt_r1.ablation import log_curves
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.labels import parse_response
from affectgpt_r1.records import made_by
from affectgpt_r1.tables import read_column
from tools.results import OUT, command

MODES, SHOWN = ("answer", "think"), 6
LOGGED = {"f": "answer/f", "written": "answer/written", "tokens": "completions/mean_length"}


def replies(run, stage, kind="greedy"):
    "What a stage of a run answered to the test clips, by clip"
    return read_column(run / f"predictions/{stage}-{kind}.jsonl", "reply")


def scores(run, mode, seed):
    """One line per stage: the scores that the run recorded, and how long and how varied the
    thoughts are"""
    about = json.loads((run / "metrics.json").read_text())
    for stage, s in about["stages"].items():
        said = {name: parse_response(reply, mode) for name, reply in replies(run, stage).items()}
        line = dict(
            mode=mode,
            seed=seed,
            stage=stage,
            greedy_f=s["ew_f"],
            sampled_f=s["ew_f_sampled"],
            shuffled_f=s["ew_f_media_shuffled"],
            precision=s["ew_precision"],
            recall=s["ew_recall"],
            words=s["mean_labels"],
            format=s["format_rate"],
            distinct=s["distinct_words"],
            seconds=about["seconds"][stage],
        )
        if mode == "think":
            thoughts = Counter(r.think for r in said.values())
            ((commonest, times),) = thoughts.most_common(1)
            line |= dict(
                thought_words=sum(len(t.split()) * n for t, n in thoughts.items()) / len(said),
                thoughts=len(thoughts),
                commonest=commonest,
                share=times / len(said),
            )
        yield line


def course(run, mode, seed):
    "The log of GRPO, a few steps to a line"
    return log_curves(pd.read_json(run / "grpo/log.json"), LOGGED).assign(mode=mode, seed=seed)


def shown(folder, seed):
    "The answers of both modes to the first test clips"
    clips = load_mer2025(folder / f"answer{seed}/corpus", "ovmerd").select(range(SHOWN))
    for mode in MODES:
        for stage in ("cold_start", "grpo"):
            said = replies(folder / f"{mode}{seed}", stage)
            for clip in clips:
                yield dict(
                    name=clip["name"],
                    labels=", ".join(clip["labels"]),
                    mode=mode,
                    stage=stage,
                    reply=said[clip["name"]],
                )


def main(folder, seeds):
    runs = [(folder / f"{mode}{seed}", mode, seed) for mode in MODES for seed in seeds]
    table = pd.DataFrame([line for run in runs for line in scores(*run)])
    table.round(5).to_csv(OUT / "thinking.csv", index=False)
    pd.concat([course(*run) for run in runs])[["mode", "seed", "step", *LOGGED]].round(4).to_csv(
        OUT / "thinking_curves.csv", index=False
    )
    pd.DataFrame(shown(folder, seeds[0])).to_csv(OUT / "thinking_answers.csv", index=False)
    commands = [command(run, f"--mode {mode}", f"--seed {seed}") for run, mode, seed in runs]
    commands.append(f"python -m tools.thinking --seeds {' '.join(map(str, seeds))}")
    (OUT / "thinking.json").write_text(json.dumps(made_by(commands), indent=1) + "\n")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument(
        "--runs",
        dest="folder",
        type=Path,
        default=Path("runs"),
        help="folder of the runs, which are called by mode and seed, as in think5",
    )
    ap.add_argument("--seeds", nargs="+", type=int, required=True)
    main(**vars(ap.parse_args()))

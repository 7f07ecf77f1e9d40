"""A whole run with pretrained weights on a laptop: clips that speak, cold start, GRPO, report

    make laptop-parts
    make laptop ARGS="--seed 1 --mode think"

Each stage goes on where it was stopped: run the same command again. About an hour in mode answer,
and two in mode think, of one core.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from datasets.utils.logging import disable_progress_bar
from transformers import LlamaConfig, LlamaModel
from transformers.utils import logging as hf_logging

from affectgpt_r1.demo import remember_laptop
from affectgpt_r1.evaluate import constant_baseline
from affectgpt_r1.labels import parse_response
from affectgpt_r1.media_use import media_use_lines
from affectgpt_r1.metrics import ew_difference
from affectgpt_r1.real_parts import laptop_parts
from affectgpt_r1.stages import (
    prepare_run, run_cold_start, run_evaluation, run_grpo, run_splits, run_wheels)
from affectgpt_r1.tables import read_column
from affectgpt_r1.text_files import read_json

STAGES = ("features", "cold start", "GRPO", "evaluation")
SECONDS = {   # of one core of the machine that `UNIT` was measured on, by mode
    "answer": dict(zip(STAGES, (740, 1110, 1050, 550))),
    "think": dict(zip(STAGES, (740, 2150, 3400, 1180)))}
UNIT = 0.165   # seconds of one core of that machine for `workload`
SHOWN = 10    # clips in the report
WEAKNESS = ("The weights are real, the data are not: drawn faces, and voices of a synthesiser. "
            "What they cannot show is at the end of nbs/machinery/real_parts.ipynb.\n")
MEDIA_CLIPS = 50   # on which the use of the media is measured: each is asked about seven times


def workload():
    "The seconds of a pass through two layers of the decoder's size and back, in 16 bits"
    layers = LlamaModel(LlamaConfig(
        vocab_size=8, hidden_size=576, intermediate_size=1536, num_hidden_layers=2,
        num_attention_heads=9, num_key_value_heads=3)).bfloat16().requires_grad_(False)
    x = torch.randn(8, 128, 576).bfloat16().requires_grad_()
    start = time.perf_counter()
    layers(inputs_embeds=x, use_cache=False).last_hidden_state.sum().backward()
    return time.perf_counter() - start


def estimate(mode):
    "Seconds of each stage on this machine, as it is just now"
    workload()   # the first call is slower
    factor = min(workload() for _ in range(3)) / UNIT
    return {stage: seconds * factor for stage, seconds in SECONDS[mode].items()}


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Clock:
    "Says before each stage how much time is left, and notes in `seconds.json` what a stage took"

    def __init__(self, run, mode):
        self.file, self.mode = run / "seconds.json", mode
        self.took = read_json(self.file) if self.file.exists() else {}

    def left(self):
        "Seconds for the stages to come, on this machine as it is just now"
        return sum(s for stage, s in estimate(self.mode).items() if stage not in self.took)

    def run(self, stage, work):
        "Do a stage. A stage that was stopped and taken up again has the time of all its parts"
        if stage in self.took:
            print(f"{stage}: done before", flush=True)
            return
        parts = self.file.with_name(f"seconds-{stage.replace(' ', '-')}.txt")
        print(f"{stage}: about {duration(self.left())} left in all", flush=True)
        start = time.perf_counter()
        try:
            work()
        finally:
            with parts.open("a") as f:
                f.write(f"{time.perf_counter() - start:.1f}\n")
        self.took[stage] = sum(map(float, parts.read_text().split()))
        self.file.write_text(json.dumps(self.took, indent=1))


def replies(run, stage, kind="greedy"):
    "Clip -> what a stage answered"
    return read_column(run / f"predictions/{stage}-{kind}.jsonl", "reply")


def said(run, mode, stage, kind="greedy"):
    "Clip -> the labels that a stage answered"
    return {name: parse_response(x, mode).labels for name, x in replies(run, stage, kind).items()}


def gain(run, before, after):
    "How much better some labels are than others, with its 95 % interval over clips"
    test = run_splits(run)["test"]
    gold = dict(zip(test["name"], test["labels"]))
    d = ew_difference(gold, before, after, wheels=run_wheels(run))
    return dict(difference=d.difference, low=d.low, high=d.high)


def constant(run):
    "The scores of the best constant answer"
    splits = run_splits(run)
    gold = dict(zip(splits["test"]["name"], splits["test"]["labels"]))
    return constant_baseline(splits["human"]["labels"], gold, run_wheels(run))


def table(run, mode):
    "The scores as lines of Markdown"
    scores = read_json(run / "scores.json")
    yield "| | EW F | 95 % interval | sampled | words | form kept |"
    yield "|---|---|---|---|---|---|"
    yield f"| the best constant answer | {constant(run)['ew_f']:.3f} | | | | |"
    for stage in ("cold_start", "grpo"):
        s, low_high = scores[f"{stage}, greedy"], "{} to {}"
        low_high = low_high.format(*(f"{x:.3f}" for x in s["ci95"]))
        yield (f"| {stage.replace('_', ' ')} | {s['ew_f']:.3f} | {low_high} | "
               f"{scores[f'{stage}, sampled']['ew_f']:.3f} | {s['mean_labels']:.1f} | "
               f"{s['format_rate']:.2f} |")
    found = gain(run, *(said(run, mode, stage) for stage in ("cold_start", "grpo")))
    yield "\nGRPO minus cold start: {difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**found)
    for stage in ("cold_start", "grpo"):
        yield f"\n{stage.replace('_', ' ')}, with something taken away from a clip:\n"
        for line in media_use_lines(scores[f"{stage}, greedy"].get("media_use", [])):
            yield f"* {line}"


def answers(run, mode, n=SHOWN):
    "Some answers before and after, as lines of Markdown"
    yield "\n| subtitle | annotators | cold start | GRPO |\n|---|---|---|---|"
    test = run_splits(run)["test"]
    for row in test.select(range(min(n, len(test)))):
        texts = [parse_response(replies(run, s)[row["name"]], mode).answer.replace("|", "/")
                 for s in ("cold_start", "grpo")]
        yield f"| {row['subtitle']} | {', '.join(row['labels'])} | {texts[0]} | {texts[1]} |"


def open_run(run, asked):
    "Note what a folder is for; raises FileExistsError where it holds another run"
    run.mkdir(parents=True, exist_ok=True)
    file = run / "asked.json"
    if file.exists() and (before := read_json(file)) != asked:
        raise FileExistsError(f"{run} holds a run with {before}, and {asked} is asked for: take "
                              "another folder, or delete this one")
    file.write_text(json.dumps(asked))


def main(seed=0, mode="answer", run_dir=None, clips="toy", **steps):
    "All stages; each one goes on where it was stopped"
    usual = {mode: "answer", f"seed-{seed}": "seed-0", clips: "toy"}
    run = Path(run_dir or "-".join(["runs/laptop", *(x for x, y in usual.items() if x != y)]))
    open_run(run, dict(seed=seed, mode=mode, clips=clips))
    hf_logging.disable_progress_bar()
    disable_progress_bar()
    clock, how = Clock(run, mode), dict(mode=mode, seed=seed)
    print(f"{run}: on {os.cpu_count()} cores about {duration(clock.left())}", flush=True)
    clock.run("features", lambda: prepare_run(
        run, clips=clips, model=laptop_parts(), seed=seed, spoken=True))
    clock.run("cold start", lambda: run_cold_start(run, **how, **steps.get("sft", {})))
    clock.run("GRPO", lambda: run_grpo(run, **how, **steps.get("grpo", {})))
    clock.run("evaluation", lambda: run_evaluation(run, **how, media_clips=MEDIA_CLIPS))
    lines = [f"# SmolLM2-135M on clips that speak, seed {seed}, mode {mode}\n", WEAKNESS,
             *table(run, mode), *answers(run, mode),
             f"\n{sum(clock.took.values()) / 60:.0f} minutes"]
    print(*lines, sep="\n")
    (run / "report.md").write_text("\n".join(lines) + "\n")
    remember_laptop(run / "grpo")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--seed", default=0, type=int)
    ap.add_argument("--mode", default="answer", choices=["answer", "think"])
    ap.add_argument("--run-dir", help="runs/laptop, with what is unusual in its name")
    ap.add_argument("--clips", default="toy", choices=["toy", "smoke"],
                    help="smoke: a trial with few clips")
    try:
        main(**vars(ap.parse_args()))
    except (ModuleNotFoundError, FileExistsError) as e:
        sys.exit(str(e))

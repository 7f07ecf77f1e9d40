"""Train one setting after another from the same cold starts, several at once, and keep what came of each

    for s in 0 1 2; do make tutorial ARGS="--seed $s --run-dir runs/answer$s"; done
    python -m tools.grid nbs/results/hacking.toml --base runs/{mode}{seed}

    for m in answer think; do for s in 5 6 7 8 9; do make tutorial ARGS="--mode $m --seed $s --run-dir runs/$m$s"; done; done
    python -m tools.grid nbs/results/ablation.toml --base runs/{mode}{seed}

The file names the seeds, the defaults and the settings; a setting says what differs from the defaults. A run that has finished is not run again,
and one that was interrupted goes on from its last checkpoint. A finished run of a setting that was changed since is an error. The records end up
beside the file: one line per run in .csv, the course of training in _curves.csv, the sampled answers of the first seed to a few clips in
_answers.csv, and in .json what made them. Nothing is collected where `--only` chooses some settings.
"""
import argparse
import json
import multiprocessing
import os
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tools.notebooks import OFFLINE
from tools.results import made_by

CURVES = {  # name in the records -> name in trl's log
    "reward": "reward", "f": "answer/f", "words": "answer/words", "written": "answer/written", "format": "rewards/format/mean", "truncated": "completions/clipped_ratio",
    "same": "frac_reward_zero_std", "entropy": "entropy"}
STEPS_PER_LINE = 5  # the curves are means over so many steps
SAMPLES = 4         # answers per test clip: the sampled scores are their mean, `best1` to `best4` the best of so many
SHOWN = 6           # clips of which the answers are kept


def first_word(reward):
    "`reward` with the first gold word as the only one: what a data set with one label per clip would pay for"
    def of_first(completions, labels, **columns): return reward(completions=completions, labels=[x[:1] for x in labels], **columns)
    of_first.__name__ = reward.__name__
    return of_first


def rewards(setting, model, processor, wheels):
    "((functions, weights), fields of trl's configuration) of a setting"
    from affectgpt_r1.rewards import RECIPES, Recipe, accuracy_reward, format_reward, frozen_score, likelihood_judge, make_rewards
    recipe = setting["recipe"]
    recipe = RECIPES[recipe] if isinstance(recipe, str) else Recipe("own", tuple(recipe.items()), "the grid file")
    judge = likelihood_judge(frozen_score(model, processor)) if "perception" in dict(recipe.weights) else None
    functions, weights = make_rewards(recipe, wheels, setting["penalty"] or None, setting["mode"], judge)
    if setting["gold"] == "first": functions = [first_word(f) for f in functions]
    watched = [] if "format" in dict(recipe.weights) else [format_reward(setting["mode"])]   # of weight 0: only for the log
    if "accuracy" not in dict(recipe.weights): watched.append(accuracy_reward(wheels, None, setting["mode"]))
    return (functions + watched, weights + [0.]*len(watched)), recipe.trl


def scores(gold, replies, wheels, mode):
    "What is kept of one answer per test clip"
    from affectgpt_r1.evaluate import score_predictions
    from affectgpt_r1.labels import parse_response
    from affectgpt_r1.metrics import hit_rate
    said = {n: parse_response(r, mode) for n, r in replies.items()}
    answers = {n: r.labels for n, r in said.items()}
    s = score_predictions(gold, replies, wheels, mode)
    sectors = np.mean([np.bitwise_count(wheels.encode(a)).mean() for a in answers.values()])
    hits = hit_rate({n: g[:1] for n, g in gold.items()}, answers, wheels)
    return dict(f=s["ew_f"], precision=s["ew_precision"], recall=s["ew_recall"], hit=hits.hit_rate, words=s["mean_labels"],
                written=float(np.mean([r.written for r in said.values()])), sectors=float(sectors), format=s["format_rate"], distinct=len({w for a in answers.values() for w in a}))


def evaluate(model, processor, test, setting, seed):
    "(scores, a few of the sampled answers) on the test clips"
    from affectgpt_r1.evaluate import best_of, predict_clips
    from affectgpt_r1.wheels import load_wheels
    gold, wheels, mode = dict(zip(test["name"], test["labels"])), load_wheels(), setting["mode"]
    how = dict(mode=mode, max_new_tokens=setting["tokens"], seed=seed)
    greedy, samples = predict_clips(model, processor, test, **how), predict_clips(model, processor, test, sample=True, answers=SAMPLES, **how)
    def scored(table): return scores(gold, dict(zip(table["name"], table["reply"])), wheels, mode)
    sampled = pd.DataFrame([scored(table) for _, table in samples.groupby("sample")]).mean()
    record = pd.concat([pd.Series(scored(greedy)).add_prefix("greedy_"), sampled.add_prefix("sampled_"), best_of(gold, samples, wheels, mode).add_prefix("best")])
    shown = samples[(samples["sample"] == 0) & samples["name"].isin(list(gold)[:SHOWN])]
    return record.to_dict(), shown.assign(labels=[", ".join(gold[n]) for n in shown["name"]])[["name", "labels", "reply"]]


def train(base, out, setting, seed):
    "One run: from the cold start in `base` to `out/record.json` and `out/curves.csv`"
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor
    from affectgpt_r1.data import load_mer2025
    from affectgpt_r1.features import FeatureCache
    from affectgpt_r1.grpo import train_grpo
    from affectgpt_r1.wheels import load_wheels
    torch.set_num_threads(1)
    start = time.perf_counter()
    model, processor = (auto.from_pretrained(base/"cold_start") for auto in (AutoModelForCausalLM, AutoProcessor))
    processor.features = FeatureCache(base/"features", model, processor)
    human, test = (load_mer2025(base/"corpus", track) for track in ("human", "ovmerd"))
    if setting["steps"]:   # 0 steps: the cold start itself
        paid, trl = rewards(setting, model, processor, load_wheels())
        log = train_grpo(model, processor, human, paid, out, mode=setting["mode"], steps=setting["steps"], max_new_tokens=setting["tokens"], seed=seed,
                         **trl, **setting["trl"])
        curves = pd.DataFrame(log).rename(columns={v: k for k, v in CURVES.items()})[["step", *CURVES]].dropna()
        curves.groupby((curves["step"] - 1)//STEPS_PER_LINE).mean().to_csv(out/"curves.csv", index=False)
    record, shown = evaluate(model.eval(), processor, test, setting, seed)
    shown.to_csv(out/"answers.csv", index=False)
    (out/"record.json").write_text(json.dumps(record | dict(seconds=time.perf_counter() - start, asked=setting)))


def run(base, out, setting, seed):
    "`train`, where nobody watches"
    os.environ.update(OFFLINE)
    out.mkdir(parents=True, exist_ok=True)
    train(base, out, setting, seed)


def read_grid(path):
    "Seeds, and the settings by name, each complete"
    grid = tomllib.loads(path.read_text())
    defaults, settings = grid["defaults"], {}
    for name, own in grid["settings"].items():
        if unknown := own.keys() - defaults.keys():
            raise ValueError(f"{path}: setting {name!r} has {', '.join(unknown)}; the defaults have {', '.join(defaults)}")
        settings[name] = defaults | own
    return grid["seeds"], settings


def finished(folder, setting):
    "Has this run been made? Raises ValueError where the folder holds the run of another setting"
    record = folder/"record.json"
    if not record.is_file(): return False
    if (asked := json.loads(record.read_text())["asked"]) != setting:
        raise ValueError(f"{folder} holds a run of another setting, {asked}: delete it, or give yours another name")
    return True


def collect(path, jobs, command):
    "The records of all runs, beside the grid file"
    rows, curves, answers = [], [], []
    for name, seed, out in jobs:
        key = dict(setting=name, seed=seed)
        record = json.loads((out/"record.json").read_text())
        rows.append(key | {k: x for k, x in record.items() if k != "asked"})
        if (out/"curves.csv").exists(): curves.append(pd.read_csv(out/"curves.csv").assign(**key))
        if seed == jobs[0][1]: answers.append(pd.read_csv(out/"answers.csv").assign(**key))
    pd.DataFrame(rows).round(5).to_csv(path.with_suffix(".csv"), index=False)
    pd.concat(curves)[["setting", "seed", "step", *CURVES]].round(4).to_csv(path.with_name(f"{path.stem}_curves.csv"), index=False)
    pd.concat(answers)[["setting", "seed", "name", "labels", "reply"]].to_csv(path.with_name(f"{path.stem}_answers.csv"), index=False)
    path.with_suffix(".json").write_text(json.dumps(made_by(command) | dict(runs=len(rows)), indent=1) + "\n")


def main(
    path,                       # The grid file
    base="runs/{mode}{seed}",   # Folder of the tutorial run of a mode and a seed, with its corpus, features and cold start
    out=None,                   # Folder of the runs: runs/ and the grid's name by default
    workers=2,                  # Runs at once, each on one thread
    only=None,                  # Names of settings, where not all are wanted
):
    "Run what has not been run, then collect"
    seeds, settings = read_grid(path)
    if unknown := set(only or ()) - set(settings): raise ValueError(f"{path} has no setting {', '.join(unknown)}")
    out = Path(out or f"runs/{path.stem}")
    jobs = [(name, seed, out/f"{name.replace(' ', '-')}-{seed}") for name in settings if not only or name in only for seed in seeds]
    start = {(name, seed): Path(base.format(mode=settings[name]["mode"], seed=seed)) for name, seed, _ in jobs}
    for (name, seed), folder in start.items():
        if not (folder/"cold_start/config.json").is_file():
            asked = f"--mode {settings[name]['mode']} --seed {seed} --run-dir {folder}"
            raise FileNotFoundError(f'{folder}: no cold start; run make tutorial ARGS="{asked}"')
    todo = [(name, seed, folder) for name, seed, folder in jobs if not finished(folder, settings[name])]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        started = [pool.submit(run, start[name, seed], folder, settings[name], seed) for name, seed, folder in todo]
        for job in tqdm(as_completed(started), total=len(jobs), initial=len(jobs) - len(todo), desc=path.stem, unit="run"): job.result()
    if not only: collect(path, jobs, f"python -m tools.grid {path} --base {base}")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("path", type=Path, help="the grid file")
    ap.add_argument("--base", default="runs/{mode}{seed}", help="folder of the tutorial run of a mode and a seed")
    ap.add_argument("--out", help="folder of the runs")
    ap.add_argument("--workers", type=int, default=2, help="runs at once")
    ap.add_argument("--only", nargs="*", help="names of settings, where not all are wanted")
    main(**vars(ap.parse_args()))

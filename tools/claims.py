"""What the page of claims needs besides the ablation grid, into nbs/results/claims_*

    affectgpt-r1 replicate runs/answer5 runs/answer6 runs/answer7 runs/answer8 runs/answer9 \\
        --out nbs/results/seeds_replication.json
    python -m tools.claims runs/answer5 runs/answer6 runs/answer7 runs/answer8 runs/answer9

Cold start, SFT on the human labels (trained by `affectgpt-r1 replicate`) and GRPO answer each test
clip sixteen times (_samples.csv: F of the best of k) and the nine sets of MER-UniBench (_sets.csv).
The cold start is trained again on each set of channels, from the same untrained decoder, the others
being taken out of captions and test clips alike (_channels.csv, with the oracle of the corpus).
And each model answers with face, voice or words silenced, or taken from another clip (_media.csv).
What has been done is not done again; `--parts media` measures that part only. After

    python -m tools.claims --grid nbs/results/claims_runs.toml

so does the model of each run of a grid (claims_runs_media.csv, next to the file).
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import combinations
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from affectgpt_r1.records import made_by
from tools.notebooks import OFFLINE
from tools.results import OUT

STAGES, ANSWERS = ("cold_start", "sft", "grpo"), 16
GIVES = {
    "face": "video",
    "voice": "audio",
    "words": "subtitle",
}  # channel of the oracle -> column of the rows


def samples(run):
    "F of the best of k sampled answers of each stage"
    from affectgpt_r1.evaluate import best_of, predict_clips

    gold, rows = dict(zip(run.test["name"], run.test["labels"])), []
    for stage in STAGES:
        model = run.model(stage).eval()
        table = predict_clips(
            model,
            run.processor,
            run.test,
            run.mode,
            run.folder / f"claims/{stage}.jsonl",
            sample=True,
            answers=ANSWERS,
            seed=run.seed,
        )
        rows += [
            dict(stage=stage, k=k, f=f, truncated=table["truncated"].mean())
            for k, f in best_of(gold, table, run.wheels, run.mode).items()
        ]
    return pd.DataFrame(rows)


def sets(run):
    "Scores of each stage on the nine sets"
    from affectgpt_r1.benchmark import predict_unibench, unibench_scores

    corpus, tables = run.folder / "corpus/unibench", []
    for stage in STAGES:
        model = run.model(stage).eval()
        answers = predict_unibench(
            model,
            run.processor,
            corpus,
            run.folder / "claims" / stage,
            mode=run.mode,
            wheels=run.wheels,
        )
        tables.append(unibench_scores(answers, corpus, wheels=run.wheels).assign(stage=stage))
    return pd.concat(tables)[["stage", "dataset", "measure", "score", "mean_labels"]]


def channels(run):
    "F of cold starts that were trained and tested on some channels only, and the oracle's"
    from affectgpt_r1.coldstart import cold_start, target_text
    from affectgpt_r1.data import load_mer2025
    from affectgpt_r1.evaluate import predict_clips, score_predictions
    from affectgpt_r1.labels import QUESTIONS
    from affectgpt_r1.parts import make_toy_model
    from affectgpt_r1.oracle import oracle_scores

    captions, oracle, rows = (
        load_mer2025(run.folder / "corpus", "caption"),
        oracle_scores(run.folder / "corpus", run.wheels),
        [],
    )
    gold, towers = dict(zip(run.test["name"], run.test["labels"])), run.model("cold_start")
    texts = [target_text(row, "think") + " " + row["subtitle"] for row in captions] + list(
        QUESTIONS.values()
    )
    for given in (c for k in (1, 2, 3) for c in combinations(GIVES, k)):
        taken = {column: "" for channel, column in GIVES.items() if channel not in given}

        def only(split):
            return split.map(lambda row: taken) if taken else split

        model, _ = make_toy_model(texts, seed=run.seed)
        for name in ("vision_tower", "audio_tower"):
            getattr(model.model, name).load_state_dict(getattr(towers.model, name).state_dict())
        out = run.folder / "claims" / "-".join(given)
        cold_start(model, run.processor, only(captions), out, mode=run.mode, seed=run.seed)
        table = predict_clips(
            model.eval(),
            run.processor,
            only(run.test),
            run.mode,
            out / "answers.jsonl",
        )
        scores, name = score_predictions(gold, table, run.wheels, run.mode), " + ".join(given)
        rows.append(
            dict(
                given=name,
                f=scores["ew_f"],
                truncated=scores["truncated_rate"],
                oracle=oracle.loc[name, "ew_f"],
            )
        )
    return pd.DataFrame(rows)


def media(run):
    "Change of F, and of the log-probability of the answers, without each channel or with another's"
    from affectgpt_r1.media_use import media_use

    tables = []
    for stage in STAGES:
        model = run.model(stage).eval()
        use = media_use(model, run.processor, run.test, run.mode, run.wheels, run.seed)
        tables.append(use.reset_index().assign(stage=stage))
    return pd.concat(tables)


PARTS = dict(samples=samples, sets=sets, channels=channels, media=media)


def measure(folder, part):
    "One part of one run, into `folder/claims`"
    os.environ.update(OFFLINE)
    import torch
    from affectgpt_r1.replication import TutorialRun

    torch.set_num_threads(1)
    run, out = TutorialRun(folder), folder / f"claims/{part}.csv"
    out.parent.mkdir(exist_ok=True)
    table = PARTS[part](run)
    table.insert(0, "seed", run.seed)
    table.to_csv(out, index=False)


def grid_media(name, seed, folder, base):
    "The use of the media by the model of one run of a grid, into `folder/media.csv`"
    os.environ.update(OFFLINE)
    import torch
    from affectgpt_r1.checkpoints import load_stage
    from affectgpt_r1.media_use import media_use
    from affectgpt_r1.replication import TutorialRun

    torch.set_num_threads(1)
    run, trained = TutorialRun(base), (folder / "config.json").is_file()
    model = (load_stage(folder)[0] if trained else run.model("cold_start")).eval()
    use = media_use(model, run.processor, run.test, run.mode, run.wheels, seed).reset_index()
    use.insert(0, "setting", name)
    use.insert(1, "seed", seed)
    use.to_csv(folder / "media.csv", index=False)


def grid(path, workers):
    "`grid_media` of each run of a grid that has ended"
    from affectgpt_r1.ablation import read_ablation

    seeds, settings = read_ablation(path)
    runs = {
        (name, seed): Path(f"runs/{path.stem}/{name.replace(' ', '-')}-{seed}")
        for name in settings
        for seed in seeds
    }
    todo = [
        (name, seed, folder, Path(f"runs/{settings[name]['mode']}{seed}"))
        for (name, seed), folder in runs.items()
        if not (folder / "media.csv").is_file()
    ]
    run_jobs(grid_media, todo, workers)
    tables = [pd.read_csv(folder / "media.csv") for folder in runs.values()]
    pd.concat(tables).round(5).to_csv(path.with_name(f"{path.stem}_media.csv"), index=False)
    about = made_by(f"python -m tools.claims --grid nbs/results/{path.name}")
    path.with_name(f"{path.stem}_media.json").write_text(json.dumps(about, indent=1) + "\n")


def run_jobs(work, jobs, workers):
    "Jobs in processes of their own"
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        started = as_completed([pool.submit(work, *job) for job in jobs])
        for job in tqdm(started, total=len(jobs), desc="claims", unit="part"):
            job.result()


def main(folders, workers=2, parts=tuple(PARTS)):
    for folder in folders:
        for stage in STAGES:
            if not (folder / stage / "config.json").is_file():
                raise FileNotFoundError(
                    f"{folder / stage}: no such model; see the commands in {__file__}"
                )
    todo = [
        (folder, part)
        for part in parts
        for folder in folders
        if not (folder / f"claims/{part}.csv").is_file()
    ]
    run_jobs(measure, todo, workers)
    for part in parts:
        pd.concat([pd.read_csv(folder / f"claims/{part}.csv") for folder in folders]).round(
            5
        ).to_csv(OUT / f"claims_{part}.csv", index=False)
    command = f"python -m tools.claims {' '.join(map(str, folders))} --parts {' '.join(parts)}"
    name = "claims" if set(parts) == set(PARTS) else "_".join(["claims", *parts])
    (OUT / f"{name}.json").write_text(json.dumps(made_by(command), indent=1) + "\n")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument(
        "runs", nargs="*", type=Path, help="run folders of the tutorial, 2 to 10, mode answer"
    )
    ap.add_argument("--grid", type=Path, help="a grid of runs instead, for the use of the media")
    ap.add_argument("--workers", type=int, default=2, help="parts at once, each on one thread")
    ap.add_argument("--parts", nargs="+", default=tuple(PARTS), choices=PARTS, metavar="PART")
    args = ap.parse_args()
    if args.grid:
        grid(args.grid, args.workers)
    else:
        main(args.runs, args.workers, args.parts)

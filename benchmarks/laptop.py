"""Does GRPO help a pretrained decoder on clips that speak? Several seeds, one mode or both

    for s in 0 1 2; do
        python benchmarks/laptop.py train runs/laptop$s --seed $s
        python benchmarks/laptop.py train runs/laptop-think$s --seed $s --mode think
    done
    python benchmarks/laptop.py collect runs/laptop* --out nbs/results/laptop.json
    python benchmarks/laptop.py starts runs/laptop0 --out nbs/results/laptop_starts.json
    python benchmarks/laptop.py costs runs/laptop0 --out nbs/results/laptop_costs.json

`train` does what `make laptop` does, then fine-tunes the cold start on the clips that GRPO had: as
many steps, as many clips a step, and the checkpoint chosen on the same held-out clips. Then all
models answer the test clips, some of them also without pictures, sound or words, or with those of
another clip. Each part goes on where it was stopped. `collect` scores what is there, and lists what
is not. Other settings of GRPO from the same cold starts are in `laptop_remedies.toml`, for
`affectgpt-r1 ablation`. `starts` gives the cold start one epoch in four ways, with and without an
aligned fusion, and asks each on the held-out clips, also with the media of other clips.
`costs` says what a prompt, a step and the memory are, beside those of the toy, and without each
thing that saves time: seconds of the processor with one thread, in a process of its own each.
"""

import argparse
import inspect
import json
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
import torch
from transformers import TrainerCallback
from transformers.modeling_outputs import CausalLMOutputWithPast

from affectgpt_r1.checkpoints import load_stage
from affectgpt_r1.coldstart import cold_start, target_text
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.evaluate import constant_baseline, predict_clips, score_predictions
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.labels import parse_response
from affectgpt_r1.media_use import media_use
from affectgpt_r1.metrics import ew_rewards, seed_interval
from affectgpt_r1.modeling import unwrap_peft
from affectgpt_r1.parts import load_parts
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.real_parts import laptop_parts
from affectgpt_r1.records import made_by
from affectgpt_r1.stages import (
    ANSWER_KINDS, hold_out, load_run_stage, run_evaluation, run_splits, run_wheels)
from affectgpt_r1.text_files import read_json
from affectgpt_r1.toy_speech import UNSEEN_SPEAKERS, speaker_of
from tools.laptop import SHOWN, gain, replies
from tools.laptop import main as make_run

STAGES = ("cold_start", "tuned", "grpo")
MEDIA_CLIPS = inspect.signature(run_evaluation).parameters["media_clips"].default
PAIRS = (("cold_start", "grpo"), ("tuned", "grpo"), ("cold_start", "tuned"))


def fine_tune(run, mode, seed, **changes):
    "The cold start, trained further on the human clips, with the steps that GRPO had"
    about = read_json(run / "grpo/run.json")
    model, processor = load_run_stage(run, "cold_start")
    held, rest = hold_out(run_splits(run)["human"], seed)
    settings = dict(
        batch_size=about["num_prompts"], max_steps=about["steps"], learning_rate=5e-4,
        shuffle_labels=True, save_steps=about["save_steps"])
    cold_start(model, processor, rest, run / "tuned", validation=held, mode=mode, seed=seed,
               **settings | changes)


def ask(run, mode, seed):
    "Answers of the fine-tuned model, and its use of the media, as `run_evaluation` has the others'"
    test, out = run_splits(run)["test"], run / "tuned/media_use.json"
    if out.exists():
        return
    model, processor = load_run_stage(run, "tuned")
    for kind, how in ANSWER_KINDS.items():
        predict_clips(model.eval(), processor, test, mode, run / f"predictions/tuned-{kind}.jsonl",
                      seed=seed, **how)
    rows = list(test)[:MEDIA_CLIPS]
    use = media_use(model, processor, rows, mode, run_wheels(run), seed)
    out.write_text(use.reset_index().to_json(orient="records"))


def train(folder, seed, mode, clips="toy", **steps):
    "A run, and what it is compared with"
    run = Path(folder)
    make_run(seed, mode, run, clips, **steps)
    fine_tune(run, mode, seed, **steps.get("tuned", {}))
    ask(run, mode, seed)


def scored(run, mode, gold, stage, kind):
    "The scores of a stage on some clips; None where its answers are not there or not complete"
    file = run / f"predictions/{stage}-{kind}.jsonl"
    if not file.exists():
        return None
    said = replies(run, stage, kind)
    if not gold.keys() <= said.keys():
        return None
    s = score_predictions(gold, said, run_wheels(run), mode)
    return {k: s[k] for k in ("ew_f", "ci95", "ew_precision", "ew_recall", "mean_labels",
                              "format_rate")}


def shown(run, mode, test):
    "What the policy says before and after about a few clips, and F of each answer"
    wheels, rows = run_wheels(run), []
    said = {s: replies(run, s) for s in ("cold_start", "grpo")}
    for row in test.select(range(min(SHOWN, len(test)))):
        line = dict(subtitle=row["subtitle"], annotators=row["labels"])
        for stage, texts in said.items():
            found = parse_response(texts[row["name"]], mode)
            f = ew_rewards([row["labels"]], [found.labels], wheels)[0]
            line[stage] = dict(reply=texts[row["name"]], labels=found.labels, f=float(f))
        rows.append(line)
    return rows


def parts_of(gold, seed):
    "All test clips, and those whose voice is in the training clips, or is not"
    unseen = {name for name in gold if speaker_of(name, seed) in UNSEEN_SPEAKERS}
    parts = dict(all=gold, seen_voices={n: x for n, x in gold.items() if n not in unseen},
                 unseen_voices={n: x for n, x in gold.items() if n in unseen})
    return {name: x for name, x in parts.items() if x}


def settings(run):
    "What the stages were trained with"
    names = ("learning_rate", "epochs", "steps", "max_steps", "batch_size", "num_prompts",
             "num_generations", "max_new_tokens", "rewards", "penalty", "temperature")
    files = {stage: run / stage / "run.json" for stage in STAGES}
    found = {stage: read_json(file) for stage, file in files.items() if file.exists()}
    return {stage: {k: x[k] for k in names if k in x} for stage, x in found.items()}


def scores(run, mode, parts):
    "Stage -> kind of answers -> part of the test clips -> scores, as far as they are there"
    found = {stage: {kind: {name: scored(run, mode, gold, stage, kind) for name, gold
                            in parts.items()} for kind in ANSWER_KINDS} for stage in STAGES}
    return {stage: {kind: x for kind, x in by_kind.items() if x["all"]}
            for stage, by_kind in found.items()}


def use_of_media(run):
    "Stage -> F without each channel and with that of another clip, as far as it was measured"
    files = run / "scores.json", run / "tuned/media_use.json"
    evaluated, tuned = (read_json(file) if file.exists() else {} for file in files)
    found = {stage: evaluated.get(f"{stage}, greedy", {}).get("media_use") for stage in STAGES}
    found["tuned"] = tuned
    return {stage: use for stage, use in found.items() if use}


def collect_run(run):
    "The scores of one run"
    seed, started = read_json(run / "prepared.json")["seed"], run / "cold_start/run.json"
    mode = read_json(started)["mode"] if started.exists() else "answer"
    splits, wheels = run_splits(run), run_wheels(run)
    parts = parts_of(dict(zip(splits["test"]["name"], splits["test"]["labels"])), seed)
    stages, seconds = scores(run, mode, parts), run / "seconds.json"
    gains = {f"{b} - {a}, {kind}": gain(run, mode, a, b, kind) for a, b in PAIRS
             for kind in ANSWER_KINDS if kind in stages[a] and kind in stages[b]}
    complete = all("greedy" in stages[s] for s in ("cold_start", "grpo"))
    return dict(
        seed=seed, mode=mode, clips={k: len(x) for k, x in parts.items()}, stages=stages,
        constant={k: constant_baseline(splits["human"]["labels"], x, wheels)
                  for k, x in parts.items()},
        media_use=(use := use_of_media(run)), gains=gains,
        missing=[stage for stage in STAGES if len(stages[stage]) < 2 or stage not in use],
        settings=settings(run), seconds=read_json(seconds) if seconds.exists() else {},
        shown=shown(run, mode, splits["test"]) if complete else [])


def over_seeds(runs):
    "Mode and pair -> the mean gain over the seeds, its 95 % interval, and each seed's"
    found = {}
    for mode in dict.fromkeys(r["mode"] for r in runs):
        mine = [r for r in runs if r["mode"] == mode]
        for pair in dict.fromkeys(p for r in mine for p in r["gains"]):
            d = [r["gains"][pair]["difference"] for r in mine if pair in r["gains"]]
            more = dict(zip(("mean", "low", "high"), seed_interval(d))) if len(d) > 1 else {}
            found.setdefault(mode, {})[pair] = more | dict(by_seed=d)
    return found


def collect(folders, out):
    runs = [collect_run(Path(folder)) for folder in folders
            if Path(folder, "prepared.json").exists()]
    names = " ".join(f"runs/{Path(folder).name}" for folder in folders)
    record = made_by(f"python benchmarks/laptop.py collect {names} --out nbs/results/laptop.json")
    record |= dict(over_seeds=over_seeds(runs), runs=runs)
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=float) + "\n")
    for r in runs:
        for stage, kinds in r["stages"].items():
            said = [f"{kind} {s['all']['ew_f']:.3f}" for kind, s in kinds.items()]
            print(r["mode"], r["seed"], stage, *said)
        print("constant", f"{r['constant']['all']['ew_f']:.3f}", "missing:", r["missing"])


STARTS = {   # one epoch of the cold start, and what differs from the recipe
    "aligned, rate 3e-4 (the recipe)": {}, "not aligned, rate 3e-4": dict(align=False),
    "aligned, rate 1e-3": dict(learning_rate=1e-3),
    "not aligned, rate 1e-3": dict(align=False, learning_rate=1e-3)}


def start(run, seed, name, **changes):
    "A short cold start, and what it makes of the held-out human clips"
    model, processor = load_run_stage(run, "start")
    splits, wheels = run_splits(run), run_wheels(run)
    cold_start(model, processor, splits["caption"], run / name, epochs=1, seed=seed, **changes)
    model, processor = load_run_stage(run, name)
    held = list(hold_out(splits["human"], seed)[0])
    gold = {row["name"]: row["labels"] for row in held}
    table = predict_clips(model.eval(), processor, held)
    use = media_use(model, processor, held, wheels=wheels, seed=seed)
    found = score_predictions(gold, table, wheels, "answer")
    return dict(ew_f=found["ew_f"], ci95=found["ci95"], changes=changes, clips=len(held),
                media_use=use.reset_index().to_dict("records"))


def starts(folder, out):
    run = Path(folder)
    seed = read_json(run / "prepared.json")["seed"]
    record = made_by(f"python benchmarks/laptop.py starts runs/{run.name} --out "
                     "nbs/results/laptop_starts.json") | dict(seed=seed, starts={})
    for i, (name, changes) in enumerate(STARTS.items()):
        record["starts"][name] = start(run, seed, f"start-{i}", **changes)
        print(name, f"{record['starts'][name]['ew_f']:.3f}", flush=True)
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=float) + "\n")


def texts_of(model, processor, rows):
    "Tokens of prompts, answers and tags, and a prompt as it is written"
    tokenizer = processor.tokenizer

    def length(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompts = [processor.apply_chat_template(make_prompt(row), add_generation_prompt=True)
               for row in rows]
    targets = {mode: [target_text(row, mode) for row in rows] for mode in ("answer", "think")}
    return dict(
        prompt=prompts[0], vocabulary=len(tokenizer),
        tags={tag: tokenizer.tokenize(tag) for tag in ("<answer>", "</answer>")},
        tokens=dict(prompt=sum(map(length, prompts)) / len(rows),
                    **{mode: sum(map(length, x)) / len(rows) for mode, x in targets.items()}))


class Steps(TrainerCallback):
    "Seconds of the processor that each step takes"

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.process_time() - self.start)


def slice_to_head(model, out, labels, **kwargs):
    "Logits of a slice of hidden states as it lies in memory"
    return CausalLMOutputWithPast(logits=model.lm_head(out.last_hidden_state),
                                  past_key_values=out.past_key_values)


WITHOUT = {   # what saves time or memory -> what stands for it where it is left out
    "logits of answers only": ("sft_trainer._answers_only", lambda *given: {}),
    "equal prompts read once to sample": ("shared_prompts._may_share", lambda *given: False),
    "answers to a prompt side by side": ("grpo_trainer._side_by_side", list),
    "a contiguous slice for the head": ("modeling.add_logits", slice_to_head)}


def cost(kind, run, without=()):
    "What a model is, and what two steps of the cold start and one of GRPO take with it"
    for what in without:
        mock.patch("affectgpt_r1." + WITHOUT[what][0], WITHOUT[what][1]).start()
    torch.set_num_threads(1)
    if kind == "toy":
        toy = cold_started_toy()
        model, processor, human, captions = toy.model, toy.processor, toy.human, toy.captions
    else:
        model, processor = load_parts(**laptop_parts(), dtype=getattr(torch, kind))
        processor.features = FeatureCache(run / "features", model, processor)
        human, captions = (run_splits(run)[name] for name in ("human", "caption"))
    found = texts_of(model, processor, captions.select(range(40)))
    with tempfile.TemporaryDirectory() as out:
        sft, grpo = Steps(), Steps()
        cold_start(model, processor, captions, f"{out}/sft", max_steps=2, warmup_steps=0,
                   callbacks=[sft])
        found["peak_gib_sft"] = peak()
        model = load_stage(f"{out}/sft")[0]
        trained = [p.numel() for p in model.parameters() if p.requires_grad]
        train_grpo(model, processor, human, None, f"{out}/grpo", steps=1, warmup_steps=0,
                   callbacks=[grpo])
    return found | dict(
        parameters=unwrap_peft(model).num_parameters(), trained=sum(trained),
        seconds_sft_step=min(sft.seconds), seconds_grpo_step=min(grpo.seconds), peak_gib=peak())


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20   # on Linux


def costs(folder, out):
    record = made_by(f"python benchmarks/laptop.py costs runs/{Path(folder).name} --out "
                     "nbs/results/laptop_costs.json")
    jobs = {kind: (kind,) for kind in ("toy", "bfloat16", "float32")}
    jobs |= {f"without {what}": ("bfloat16", (what,)) for what in WITHOUT}
    jobs["without all of these"] = "bfloat16", tuple(WITHOUT)
    for name, (kind, *without) in jobs.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            record[name] = pool.submit(cost, kind, Path(folder), *without).result()
        print(name, record[name], flush=True)
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.add_argument("folder")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--mode", default="answer", choices=["answer", "think"])
    one.add_argument("--clips", default="toy", choices=["toy", "smoke"])
    one.set_defaults(do=train)
    many = commands.add_parser("collect")
    many.add_argument("folders", nargs="+")
    many.add_argument("--out", type=Path, default=Path("laptop.json"))
    many.set_defaults(do=collect)
    for name, do in (("starts", starts), ("costs", costs)):
        table = commands.add_parser(name)
        table.add_argument("folder")
        table.add_argument("--out", type=Path, default=Path(f"laptop_{name}.json"))
        table.set_defaults(do=do)
    args = vars(parser.parse_args())
    args.pop("do")(**args)


if __name__ == "__main__":
    main()

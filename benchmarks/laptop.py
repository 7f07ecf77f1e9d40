"""Does GRPO help a pretrained decoder on clips that speak? Several seeds, one mode or both

    for s in 0 1 2; do
        python benchmarks/laptop.py train runs/laptop$s --seed $s
    done
    python benchmarks/laptop.py collect runs/laptop? --out nbs/results/laptop.json
    for s in 0 1 2; do
        python benchmarks/laptop.py train runs/laptop-think$s --seed $s --mode think \\
            --tokens-of nbs/results/laptop.json
    done
    python benchmarks/laptop.py collect runs/laptop-think? --keep --out nbs/results/laptop.json
    python benchmarks/laptop.py remedies runs/laptop? --out nbs/results/laptop_remedies.json
    python benchmarks/laptop.py starts runs/laptop0 --out nbs/results/laptop_starts.json
    python benchmarks/laptop.py costs runs/laptop0 --out nbs/results/laptop_costs.json

`train` does what `make laptop` does, then fine-tunes the cold start on the clips that GRPO had: as
many steps, as many clips a step, and the checkpoint chosen on the same held-out clips, as is its
learning rate, of three. In mode think the target is the cold start's own thought and the
annotators' labels. Then all models answer the test clips, some of them also without pictures, sound
or words, or with those of another clip. Each part goes on where it was stopped. With `--tokens-of`,
GRPO is run once more from the same cold start, with so many steps that it samples as many tokens as
the run in mode answer: thoughts are long. `collect` scores what is there, and lists what is not.
`remedies` runs GRPO with one change to its recipe from the cold starts of some runs, else in the
same way, and compares it with GRPO by the recipe and with the fine-tuned model. `starts` gives the
cold start 80 steps in four ways, with and without an aligned fusion, and asks each about the
held-out clips, also with the media of other clips. `costs` says what a prompt, a step and the
memory are, beside those of the toy, and without each thing that saves time: seconds of the
processor with one thread, in a process of its own each.
"""

import argparse
import json
import os
import re
import resource
import shlex
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
import torch
from transformers import TrainerCallback
from transformers.modeling_outputs import CausalLMOutputWithPast

from affectgpt_r1.alignment import label_embeddings, media_means
from affectgpt_r1.checkpoints import load_stage
from affectgpt_r1.coldstart import cold_start, target_text
from affectgpt_r1.demo import cold_started_toy
from affectgpt_r1.evaluate import constant_baseline, predict_clips, score_predictions
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import held_out_score, train_grpo
from affectgpt_r1.labels import parse_response
from affectgpt_r1.media_use import media_use
from affectgpt_r1.metrics import ew_rewards, ew_score, seed_interval
from affectgpt_r1.modeling import unwrap_peft
from affectgpt_r1.oracle import oracle_scores
from affectgpt_r1.parts import load_parts
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.real_parts import laptop_parts
from affectgpt_r1.records import made_by
from affectgpt_r1.stages import ANSWER_KINDS, hold_out, load_run_stage, run_splits, run_wheels
from affectgpt_r1.text_files import read_json
from affectgpt_r1.toy_speech import UNSEEN_SPEAKERS, speaker_of
from tools.laptop import MEDIA_CLIPS, SHOWN, gain, open_run, replies, said
from tools.laptop import main as make_run

STAGES = ("cold_start", "tuned", "grpo")
RATES = (3e-5, 1e-4, 3e-4)   # of the fine-tuned rival; the best on the held-out clips is kept
FEWER = "grpo_same_tokens"   # GRPO with as many tokens as another run
PAIRS = (("cold_start", "grpo"), ("tuned", "grpo"), ("cold_start", "tuned"))


def with_thoughts(run, human, model, processor):
    "Human clips, which have labels and no description, with the thoughts of the model before them"
    file = run / "predictions/thoughts.jsonl"
    table = predict_clips(model.eval(), processor, human, "think", file)
    thoughts = {name: parse_response(reply).think or "A person speaks."
                for name, reply in zip(table["name"], table["reply"])}
    return human.map(lambda row: dict(description=thoughts[row["name"]]))


class HeldOutF(TrainerCallback):
    "Has a checkpoint chosen as GRPO's is: by F of the answers to held-out clips, not by their loss"

    def __init__(self, score):
        self.score = score

    def on_evaluate(self, args, state, control, metrics, model, **kwargs):
        metrics["eval_ew_f"] = self.score(model)["ew_f"]


def fine_tune(run, mode, seed, **changes):
    "The cold start, trained further on the human clips, with the steps that GRPO had"
    if (run / "tuned").exists():
        return
    about, human = read_json(run / "grpo/run.json"), run_splits(run)["human"]
    if mode == "think":
        human = with_thoughts(run, human, *load_run_stage(run, "cold_start"))
    held, rest = hold_out(human, seed)
    settings = dict(batch_size=about["num_prompts"], max_steps=about["steps"],
                    shuffle_labels=True, save_steps=about["save_steps"],
                    metric_for_best_model="ew_f", greater_is_better=True)
    found = {}
    for rate in RATES:
        name = f"tuned-{rate:g}"
        model, processor = load_run_stage(run, "cold_start")
        score = partial(held_out_score, processor=processor, dataset=held, mode=mode,
                        wheels=run_wheels(run))
        cold_start(model, processor, rest, run / name, validation=held, mode=mode, seed=seed,
                   learning_rate=rate, callbacks=[HeldOutF(score)], **settings | changes)
        found[name] = held_out_f(run, name, held, mode)
    best = run / max(found, key=found.get)
    (best / "tried.json").write_text(json.dumps(found))
    best.rename(run / "tuned")


def held_out_f(run, stage, held, mode):
    "F of the greedy answers of a stage to the held-out clips"
    model, processor = load_run_stage(run, stage)
    table = predict_clips(model.eval(), processor, held, mode)
    gold = dict(zip(held["name"], held["labels"]))
    return score_predictions(gold, table, run_wheels(run), mode)["ew_f"]


def answer_run(record, seed):
    "The run in mode answer of a record; raises ValueError where there is none with this seed"
    for run in read_json(record)["runs"]:
        if (run["mode"], run["seed"]) == ("answer", seed):
            return run
    raise ValueError(f"{record} holds no run in mode answer with the seed {seed}")


def steps_for_tokens(run, record, seed):
    "The steps of GRPO that give a run as many tokens as that in mode answer, of the same seed, had"
    theirs, ours = (sum(length for _, length in found["tokens"])
                    for found in (answer_run(record, seed)["curves"], curves(run)))
    return max(1, round(read_json(run / "grpo/run.json")["steps"] * theirs / ours))


def train_again(run, stage, run_seed, **changes):
    "GRPO once more from the same cold start, with the same held-out clips and other settings"
    model, processor = load_run_stage(run, "cold_start")
    held, rest = hold_out(run_splits(run)["human"], run_seed)
    train_grpo(model, processor, rest, changes.pop("rewards", None), run / stage, validation=held,
               wheels=run_wheels(run), **dict(seed=run_seed) | changes)


def train_fewer(run, record, mode, seed, **changes):
    "GRPO with as many tokens as that of another run"
    steps = steps_for_tokens(run, record, seed)
    how = dict(mode=mode, save_steps=max(1, steps // 4)) | changes | dict(steps=steps)
    train_again(run, FEWER, seed, **how)
    ask(run, mode, seed, FEWER)


def answer_test(run, mode, seed, stage):
    "Answers of a model to the test clips, as `run_evaluation` has the others'; the model"
    model, processor = load_run_stage(run, stage)
    for kind, how in ANSWER_KINDS.items():
        file = run / f"predictions/{stage}-{kind}.jsonl"
        predict_clips(model.eval(), processor, run_splits(run)["test"], mode, file, seed=seed,
                      **how)
    return model, processor


def ask(run, mode, seed, stage):
    "Answers of a model, and its use of the media, as `run_evaluation` has the others'"
    out = run / stage / "media_use.json"
    if out.exists():
        return
    model, processor = answer_test(run, mode, seed, stage)
    rows = list(run_splits(run)["test"])[:MEDIA_CLIPS]
    use = media_use(model, processor, rows, mode, run_wheels(run), seed)
    out.write_text(use.reset_index().to_json(orient="records"))


MADE_BY = "made_by.json"   # in the folder of a run: command, machine, versions, date of its start


def note_origin(run, seed, mode, clips, tokens_of):
    "How a run was begun, for the record; what is there already stays"
    how = {"mode": (mode, "answer"), "clips": (clips, "toy"), "tokens-of": (tokens_of, None)}
    asked = [f" --{name} {x}" for name, (x, usual) in how.items() if x != usual]
    command = f"python benchmarks/laptop.py train runs/{run.name} --seed {seed}{''.join(asked)}"
    if not (run / MADE_BY).exists():
        (run / MADE_BY).write_text(json.dumps(made_by(command)))


def origin(run, otherwise):
    "How a run was begun; a run of `make laptop` has no note"
    return read_json(run / MADE_BY) if (run / MADE_BY).exists() else otherwise


def train(folder, seed, mode, clips="toy", tokens_of=None, **steps):
    "A run, and what it is compared with"
    run = Path(folder)
    if tokens_of:
        answer_run(Path(tokens_of), seed)   # an error now, and not after hours
    open_run(run, dict(seed=seed, mode=mode, clips=clips))
    note_origin(run, seed, mode, clips, tokens_of)
    make_run(seed, mode, run, clips, **steps)
    fine_tune(run, mode, seed, **steps.get("tuned", {}))
    ask(run, mode, seed, "tuned")
    if tokens_of:
        train_fewer(run, Path(tokens_of), mode, seed, **steps.get("grpo", {}))


def scored(run, mode, gold, stage, kind):
    "The scores of a stage on some clips; None where its answers are not there or not complete"
    file = run / f"predictions/{stage}-{kind}.jsonl"
    if not file.exists() or len(file.read_text(encoding="utf-8").splitlines()) < 2:
        return None   # the first line holds the settings
    texts = replies(run, stage, kind)
    if not gold.keys() <= texts.keys():
        return None
    wheels = run_wheels(run)
    s = score_predictions(gold, texts, wheels, mode)
    answers = {name: parse_response(texts[name], mode).labels for name in gold}
    kept = "ew_f", "ci95", "ew_precision", "ew_recall", "mean_labels", "format_rate"
    return {k: s[k] for k in kept} | dict(
        finer_f=ew_score(gold, answers, wheels, level=2).f,
        different_answers=len(set(map(frozenset, answers.values()))),
        one_word=sum(len(set(x)) == 1 for x in answers.values()) / len(answers))


def thoughts(run, stage, names):
    "How many different first sentences the thoughts of a stage have, and the most frequent one"
    texts = replies(run, stage)
    found = Counter((parse_response(texts[name]).think or "").split(".")[0] for name in names)
    [(most, clips)] = found.most_common(1)
    return dict(different=len(found), most=most, clips=clips)


def shown(run, mode, test):
    "What the policy says before and after about a few clips, and F of each answer"
    wheels, rows = run_wheels(run), []
    answers = {s: replies(run, s) for s in ("cold_start", "grpo")}
    for row in test.select(range(min(SHOWN, len(test)))):
        line = dict(subtitle=row["subtitle"], annotators=row["labels"])
        for stage, texts in answers.items():
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
             "num_generations", "max_new_tokens", "rewards", "penalty", "temperature", "beta",
             "align")
    files = {stage: run / stage / "run.json" for stage in (*STAGES, FEWER)}
    found = {stage: read_json(file) for stage, file in files.items() if file.exists()}
    return {stage: {k: x[k] for k in names if k in x} for stage, x in found.items()}


def tried(run):
    "F on the held-out clips of each rate that the rival was trained with"
    file = run / "tuned/tried.json"
    return read_json(file) if file.exists() else {}


CURVES = {"rewards/accuracy/mean": "reward", "eval_ew_f": "held_out_f",   # in trl's log -> here
          "completions/mean_length": "tokens", "entropy": "entropy",
          "frac_reward_zero_std": "groups_without_a_difference"}


def curves(run, stage="grpo"):
    "What the log of GRPO says of its steps: name -> [[step, value], …]"
    file = run / stage / "log.json"
    log = read_json(file) if file.exists() else []
    return {name: [[r["step"], round(r[key], 4)] for r in log if key in r]
            for key, name in CURVES.items()}


def scores(run, mode, parts):
    "Stage -> kind of answers -> part of the test clips -> scores, as far as they are there"
    found = {stage: {kind: {name: scored(run, mode, gold, stage, kind) for name, gold
                            in parts.items()} for kind in ANSWER_KINDS}
             for stage in (*STAGES, FEWER)}
    found = {stage: {kind: x for kind, x in by_kind.items() if x["all"]}
             for stage, by_kind in found.items()}
    return {stage: by_kind for stage, by_kind in found.items() if by_kind or stage != FEWER}


def use_of_media(run):
    "Stage -> F without each channel and with that of another clip, as far as it was measured"
    file = run / "scores.json"
    evaluated = read_json(file) if file.exists() else {}
    found = {stage: evaluated.get(f"{stage}, greedy", {}).get("media_use") for stage in STAGES}
    asked = {stage: run / stage / "media_use.json" for stage in ("tuned", FEWER)}
    found |= {stage: read_json(file) for stage, file in asked.items() if file.exists()}
    return {stage: use for stage, use in found.items() if use}


def collect_run(run):
    "The scores of one run"
    seed, started = read_json(run / "prepared.json")["seed"], run / "cold_start/run.json"
    mode = read_json(started)["mode"] if started.exists() else "answer"
    splits, wheels = run_splits(run), run_wheels(run)
    parts = parts_of(dict(zip(splits["test"]["name"], splits["test"]["labels"])), seed)
    stages, seconds = scores(run, mode, parts), run / "seconds.json"
    gains = {f"{b} - {a}, {kind}": gain(run, *(said(run, mode, s, kind) for s in (a, b)))
             for a, b in PAIRS for kind in ANSWER_KINDS if kind in stages[a] and kind in stages[b]}
    answered = [stage for stage, kinds in stages.items() if "greedy" in kinds]
    wanted = (*STAGES, FEWER) if mode == "think" else STAGES
    return dict(
        seed=seed, mode=mode, clips={k: len(x) for k, x in parts.items()}, stages=stages,
        constant={k: constant_baseline(splits["human"]["labels"], x, wheels)
                  for k, x in parts.items()},
        oracle=oracle_scores(run / "corpus", wheels)["ew_f"].to_dict(),
        thoughts={stage: thoughts(run, stage, splits["test"]["name"]) for stage in answered
                  if mode == "think"},
        media_use=(use := use_of_media(run)), gains=gains,
        missing=[s for s in wanted if len(stages.get(s, ())) < 2 or s not in use],
        curves=curves(run), settings=settings(run), tried=tried(run),
        seconds=read_json(seconds) if seconds.exists() else {},
        shown=shown(run, mode, splits["test"]) if {"cold_start", "grpo"} <= {*answered} else [])


def over_seeds(gains):
    "Pair -> the mean gain over the seeds, its 95 % interval, and each seed's; of one dict a seed"
    found = {}
    for pair in dict.fromkeys(pair for by_pair in gains for pair in by_pair):
        d = [by_pair[pair]["difference"] for by_pair in gains if pair in by_pair]
        more = dict(zip(("mean", "low", "high"), seed_interval(d))) if len(d) > 1 else {}
        found[pair] = more | dict(by_seed=d)
    return found


MODE_PAIRS = (("cold_start", "cold_start"), ("tuned", "tuned"), ("grpo", "grpo"), ("grpo", FEWER))


def think_minus_answer(answer, think):
    "Stages -> how much better a run in mode think is than the one in mode answer of its seed"
    found = {}
    for (a, b), kind in product(MODE_PAIRS, ANSWER_KINDS):
        both = answer["stages"].get(a, {}).get(kind), think["stages"].get(b, {}).get(kind)
        if all(both):
            before, after = (x["all"]["ew_f"] for x in both)
            found[f"think {b} - answer {a}, {kind}"] = dict(difference=after - before)
    return found


def collect(folders, out, keep=False):
    folders = [Path(folder) for folder in folders if Path(folder, "prepared.json").exists()]
    names = " ".join(f"runs/{folder.name}" for folder in folders)
    about = made_by(f"python benchmarks/laptop.py collect {names}{' --keep' * keep} --out "
                    "nbs/results/laptop.json")
    runs = [collect_run(folder) | origin(folder, about) for folder in folders]
    mine = {(r["mode"], r["seed"]) for r in runs}
    if keep:
        runs += [r for r in read_json(out)["runs"] if (r["mode"], r["seed"]) not in mine]
    runs.sort(key=lambda r: (r["mode"], r["seed"]))
    by_mode = {mode: {r["seed"]: r for r in runs if r["mode"] == mode}
               for mode in dict.fromkeys(r["mode"] for r in runs)}
    answer, think = (by_mode.get(mode, {}) for mode in ("answer", "think"))
    record = about | dict(
        over_seeds={m: over_seeds([r["gains"] for r in x.values()]) for m, x in by_mode.items()},
        between_modes=over_seeds([think_minus_answer(answer[seed], think[seed])
                                  for seed in answer if seed in think]), runs=runs)
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=float) + "\n")
    for r in runs:
        for stage, kinds in r["stages"].items():
            said = [f"{kind} {s['all']['ew_f']:.3f}" for kind, s in kinds.items()]
            print(r["mode"], r["seed"], stage, *said)
        print("constant", f"{r['constant']['all']['ew_f']:.3f}", "missing:", r["missing"])


REMEDIES = {   # what could make GRPO gain more -> what differs from the recipe
    "nothing but other samples": dict(seed=100),   # for comparison: what chance alone does
    "a KL term": dict(beta=0.04),
    "groups of 16, half the clips": dict(num_generations=16, num_prompts=4),
    "a third of the rate": dict(learning_rate=7e-5),
    "twice the steps": dict(steps=120),
    "precision and recall apart": dict(rewards="precision+recall")}


def check_answers(run, mode, gold):
    "Raises ValueError where the models that remedies are compared with have not answered"
    for stage, kind in product(("grpo", "tuned"), ANSWER_KINDS):
        if not scored(run, mode, gold, stage, kind):
            raise ValueError(f"{run}: the {kind} answers of {stage} are not complete; run "
                             "`python benchmarks/laptop.py train` with this folder first")


def remedy(run, name, **changes):
    "GRPO with one change from the cold start of a run: how it answers, beside the others"
    seed, mode = (read_json(run / "grpo/run.json")[key] for key in ("seed", "mode"))
    test = run_splits(run)["test"]
    gold = dict(zip(test["name"], test["labels"]))
    check_answers(run, mode, gold)
    stage, change = "grpo_" + re.sub(r"\W+", "_", name), REMEDIES[name]
    train_again(run, stage, seed, **dict(mode=mode) | changes | change)
    answer_test(run, mode, seed, stage)
    scores = {kind: scored(run, mode, gold, stage, kind) for kind in ANSWER_KINDS}
    gains = {f"{name} - {other}, {kind}": gain(
                 run, *(said(run, mode, s, kind) for s in (other, stage)))
             for other in ("grpo", "tuned") for kind in ANSWER_KINDS}
    print(name, seed, *(f"{kind} {x['ew_f']:.3f}" for kind, x in scores.items()), flush=True)
    return dict(seed=seed, mode=mode, remedy=name, change=change, scores=scores, gains=gains,
                curves=curves(run, stage))


def remedies(folders, out, only=None, **changes):
    "Each remedy from the cold starts of some runs; what was done before stays in the record"
    runs, names = [Path(folder) for folder in folders], only or [*REMEDIES]
    told = " ".join([*(f"runs/{run.name}" for run in runs),
                     *(f"--only {shlex.quote(name)}" for name in only or ())])
    about = made_by(f"python benchmarks/laptop.py remedies {told} --out "
                    "nbs/results/laptop_remedies.json")
    for name, run in product(names, runs):
        found = remedy(run, name, **changes) | about
        before = read_json(out)["runs"] if out.exists() else []
        keys = "remedy", "mode", "seed"
        kept = [r for r in before if [r[k] for k in keys] != [found[k] for k in keys]]
        done = sorted([*kept, found], key=lambda r: ([*REMEDIES].index(r["remedy"]), r["seed"]))
        by_name = {r["remedy"]: [x["gains"] for x in done if x["remedy"] == r["remedy"]]
                   for r in done}
        record = dict(over_seeds={k: over_seeds(x) for k, x in by_name.items()}, runs=done)
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=float) + "\n")


STARTS = {   # a short cold start, and what differs from the recipe
    "aligned, rate 3e-4 (the recipe)": {}, "not aligned, rate 3e-4": dict(align=False),
    "aligned, rate 1e-3": dict(learning_rate=1e-3),
    "not aligned, rate 1e-3": dict(align=False, learning_rate=1e-3)}


def start(run, seed, name, **changes):
    "A short cold start, and what it makes of the held-out human clips"
    model, processor = load_run_stage(run, "start")
    splits, wheels = run_splits(run), run_wheels(run)
    cold_start(model, processor, splits["caption"], run / name, max_steps=80, seed=seed, **changes)
    model, processor = load_run_stage(run, name)
    held = list(hold_out(splits["human"], seed)[0])
    gold = {row["name"]: row["labels"] for row in held}
    table = predict_clips(model.eval(), processor, held)
    use = media_use(model, processor, held, wheels=wheels, seed=seed)
    found = score_predictions(gold, table, wheels, "answer")
    return dict(ew_f=found["ew_f"], ci95=found["ci95"], changes=changes, clips=len(held),
                media_use=use.reset_index().to_dict("records"))


def reach(run, rate=1e-3):
    "Length of an aligned soft token, and how far it can move in a step of `rate` for each weight"
    model, processor = load_run_stage(run, "start")
    captions = run_splits(run)["caption"]
    V, A, _ = media_means(model, processor, captions)
    T = label_embeddings(model, processor, captions["labels"])
    moved = {kind: (rate * X.abs().sum(1).mean() * T.shape[1]**0.5).item()
             for kind, X in (("video", V), ("audio", A))}
    return dict(rate=rate, length=T.norm(dim=1).mean().item(), moved=moved)


def starts(folder, out):
    run = Path(folder)
    seed = read_json(run / "prepared.json")["seed"]
    record = made_by(f"python benchmarks/laptop.py starts runs/{run.name} --out "
                     "nbs/results/laptop_starts.json")
    record |= dict(seed=seed, reach=reach(run), starts={})
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
    one.add_argument("--tokens-of", help="record of mode answer, to sample as many tokens")
    one.set_defaults(do=train)
    many = commands.add_parser("collect")
    many.add_argument("folders", nargs="+")
    many.add_argument("--out", type=Path, default=Path("laptop.json"))
    many.add_argument("--keep", action="store_true", help="keep the other runs that --out holds")
    many.set_defaults(do=collect)
    others = commands.add_parser("remedies")
    others.add_argument("folders", nargs="+")
    others.add_argument("--only", action="append", choices=REMEDIES, help="not all remedies")
    others.add_argument("--out", type=Path, default=Path("laptop_remedies.json"))
    others.set_defaults(do=remedies)
    for name, do in (("starts", starts), ("costs", costs)):
        table = commands.add_parser(name)
        table.add_argument("folder")
        table.add_argument("--out", type=Path, default=Path(f"laptop_{name}.json"))
        table.set_defaults(do=do)
    args = vars(parser.parse_args())
    args.pop("do")(**args)


if __name__ == "__main__":
    main()

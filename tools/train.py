"""Cold start and GRPO as a script, for one process or for many

    python -m tools.train prepare --run-dir runs/small --preset small
    accelerate launch --config_file configs/ddp.yaml -m tools.train cold_start --run-dir runs/small
    accelerate launch --config_file configs/ddp.yaml -m tools.train grpo --run-dir runs/small --recipe small
    python -m tools.train evaluate --run-dir runs/small

`prepare` makes the clips (or takes those of --data, a folder in the layout of MER2025), makes the model (or takes that of --model) and caches its
features; the other stages read what the stage before has written. --set changes a setting of a stage, as in --set steps=500 lr=1e-5. Interrupted,
a stage goes on from its last checkpoint when it is called again.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.utils import is_flash_attn_2_available

from affectgpt_r1.coldstart import cold_start, target_text
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.evaluate import predict_clips, score_predictions
from affectgpt_r1.features import FeatureCache, train_towers
from affectgpt_r1.grpo import LONGEST, TRAINING, plan_memory, train_grpo, training_settings
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.model import make_model
from affectgpt_r1.rewards import make_rewards
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.wheels import load_wheels
from tools.notebooks import value


def load(folder, frozen=False):
    "Model and processor of a stage; a decoder that stays frozen in 16 bits"
    how = dict(attn_implementation="flash_attention_2" if is_flash_attn_2_available() else "sdpa")
    if frozen and torch.cuda.is_available(): how["dtype"] = torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, **how)
    model.model.fusion.float()   # trained, so with all its bits
    return model, AutoProcessor.from_pretrained(folder)


def splits(run):
    "Captions, human split and test split of a run"
    corpus = json.loads((run/"prepared.json").read_text())["data"]
    return [load_mer2025(corpus, track) for track in ("caption", "human", "ovmerd")]


def stage(run, name, frozen=False):
    "Model and processor that a stage has written, and the cached features for them"
    model, processor = load(run/name, frozen)
    processor.features = FeatureCache(run/"features", model, processor)
    return model, processor


def prepare(run, args):
    "Clips, a model whose encoders have been taught, and the features of all clips"
    data = args.data or str(make_toy_corpus(run/"corpus", preset=args.clips, seed=args.seed))
    run.mkdir(parents=True, exist_ok=True)
    (run/"prepared.json").write_text(json.dumps(dict(data=data, preset=args.preset, model=args.model, seed=args.seed)))
    captions, human, test = splits(run)
    if args.model: model, processor = load(args.model)
    else:
        texts = [target_text(row, "think") + " " + row["subtitle"] for row in captions] + list(QUESTIONS.values())
        model, processor = make_model(texts, args.preset, seed=args.seed)
        train_towers(model, processor, captions, load_wheels(), seed=args.seed, **args.set)
    model.save_pretrained(run/"start"); processor.save_pretrained(run/"start")
    processor.features = FeatureCache(run/"features", model, processor)
    for split in (captions, human, test): processor.features.compute(split)


def supervised(run, args):
    "The cold start on the captions"
    model, processor = stage(run, "start")
    cold_start(model, processor, splits(run)[0], run/"cold_start", mode=args.mode, seed=args.seed, **args.set)


def reinforce(run, args):
    "GRPO on the human split, a fifth of it held out to choose the checkpoint"
    settings = training_settings(args.recipe) | dict(mode=args.mode) | args.set
    model, processor = stage(run, "cold_start", frozen="lora" in settings)
    human = splits(run)[1]
    held, rest = (human.select(sorted(i)) for i in np.split(np.random.default_rng(args.seed).permutation(len(human)), [len(human) // 5]))
    if torch.cuda.is_available():
        gib, answers = torch.cuda.get_device_properties(0).total_memory / 2**30, settings["prompts"] * settings["group"]
        settings = plan_memory(model.config, gib, answers, completion=settings["max_new_tokens"], lora="lora" in settings) | settings
    wheels = load_wheels()
    rewards = make_rewards("acc+format", wheels=wheels, penalty="p2", mode=args.mode)
    train_grpo(model, processor, rest, rewards, run/"grpo", seed=args.seed, validation=held, wheels=wheels, **settings)


def evaluate(run, args):
    "Greedy and sampled answers of both models to the test clips"
    test, scores = splits(run)[2], {}
    gold = dict(zip(test["name"], test["labels"]))
    for name in ("cold_start", "grpo"):
        model, processor = stage(run, name)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        for kind, how in dict(greedy={}, sampled=dict(sample=True)).items():
            table = predict_clips(model, processor, test, mode=args.mode, out=run/f"predictions/{name}-{kind}.jsonl", seed=args.seed,
                            **dict(max_new_tokens=LONGEST[args.mode]) | args.set | how)
            scores[f"{name}, {kind}"] = score_predictions(gold, dict(zip(table["name"], table["reply"])), load_wheels(), args.mode)
            print(f"{name}, {kind}: EW F {scores[f'{name}, {kind}']['ew_f']:.3f}")
    (run/"scores.json").write_text(json.dumps(scores, indent=1))


STAGES = dict(prepare=prepare, cold_start=supervised, grpo=reinforce, evaluate=evaluate)

if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stage", choices=STAGES)
    ap.add_argument("--run-dir", required=True, type=Path)
    ap.add_argument("--data", help="folder with real clips, in the layout of MER2025")
    ap.add_argument("--clips", default="toy", choices=["toy", "smoke"], help="size of the generated corpus, where there is no --data")
    ap.add_argument("--preset", default="toy", choices=["toy", "small"], help="size of the model, where there is no --model")
    ap.add_argument("--model", help="checkpoint to start from, its encoders trained")
    ap.add_argument("--mode", default="answer", choices=["answer", "think"])
    ap.add_argument("--recipe", default="toy", choices=TRAINING)
    ap.add_argument("--seed", default=0, type=int)
    ap.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = ap.parse_args()
    args.set = {k: value(v) for k, v in (pair.split("=", 1) for pair in args.set)}
    STAGES[args.stage](args.run_dir, args)

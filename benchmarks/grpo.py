"""What does a step of GRPO cost, and where does the time go?

    python benchmarks/grpo.py                       # everything, a few minutes on two cores
    python benchmarks/grpo.py --rounds 1 --quick    # a trial

A step samples answers, scores them, and learns from them. Ours is compared with a bare loop of
a page (the same model, `generate`, a loss, AdamW) and with plain trl on a text-only decoder of the
same size. All answers have the full length, so that each does the same work. The contestants take
turns, and the fastest round of each counts, since a shared machine can only be slower than that.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TQDM_DISABLE="1",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from transformers import PrinterCallback, Qwen2ForCausalLM, TrainerCallback
from transformers.utils import logging as hf_logging
from trl import GRPOConfig, GRPOTrainer

from affectgpt_r1 import grpo_trainer
from affectgpt_r1.coldstart import target_text
from affectgpt_r1.training import trainer_settings
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import AffectGRPOTrainer, group_advantages, grpo_loss, grpo_rows, token_logps
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.memory import peak_bytes
from affectgpt_r1.modeling import MEDIA_KEYS, AffectGPTForConditionalGeneration
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.rewards import make_rewards
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.wheels import load_wheels
from tools.results import made_by

PARTS = ("generation", "scoring", "loss", "backward")


class Bench:
    "Clips with cached features, and contestants that take steps on them"

    def __init__(self, folder):
        self.folder, self.rewards = (
            Path(folder),
            make_rewards("acc+format", wheels=load_wheels(), penalty=None, mode="answer"),
        )
        corpus = make_toy_corpus(self.folder / "corpus", preset="smoke", seed=0)
        captions, self.human = load_mer2025(corpus, "caption"), load_mer2025(corpus, "human")
        self.toy, self.processor = make_toy_model(
            [target_text(r, "think") + r["subtitle"] for r in captions] + list(QUESTIONS.values())
        )
        self.processor.features = FeatureCache(self.folder / "features", self.toy, self.processor)
        self.processor.features.compute(self.human, self.toy, self.processor)
        self.rows = grpo_rows(self.human)

    def written(self, prompt):
        return self.processor.apply_chat_template(prompt, add_generation_prompt=True)

    def model(self, hidden=96, layers=2):
        "A model of the toy's kind with a decoder of another size"
        config = type(self.toy.config).from_dict(self.toy.config.to_dict())
        for key, value in dict(
            hidden_size=hidden,
            intermediate_size=8 * hidden // 3,
            num_hidden_layers=layers,
            layer_types=["full_attention"] * layers,
        ).items():
            setattr(config.text_config, key, value)
        torch.manual_seed(0)
        return AffectGPTForConditionalGeneration(config)

    def trainer(
        self, kind, model, rows, processor, prompts, group, tokens, steps, micro=None, free=False
    ):
        "A trainer whose parts are timed"
        answers = prompts * group
        micro = micro or answers
        full = {} if free else {"min_new_tokens": tokens}
        args = GRPOConfig(
            str(self.folder / "out"),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=answers // micro,
            num_generations=group,
            max_completion_length=tokens,
            logging_steps=1,
            save_strategy="no",
            reward_weights=self.rewards[1],
            generation_kwargs={"suppress_tokens": self.processor.placeholder_ids} | full,
            **trainer_settings(),
        )
        trainer = kind(model, self.rewards[0], args, rows, processing_class=processor)
        trainer.remove_callback(PrinterCallback)
        clock = Clock()
        trainer.add_callback(clock)
        clock.watch(trainer, "_generate_single_turn", "generation")
        clock.watch(trainer, "_calculate_rewards", "scoring")
        clock.watch(trainer, "_compute_loss", "loss")
        clock.watch(trainer.accelerator, "backward", "backward")
        return trainer, clock

    def timed(self, *args):
        "Seconds of the fastest step of a trainer, and of its parts"
        trainer, clock = self.trainer(*args)
        trainer.train()
        return clock.result()

    def ours(self, prompts, group, tokens, steps, hidden=96, layers=2, micro=None, free=False):
        "Seconds of the fastest step, and of its parts"
        parts = AffectGRPOTrainer, self.model(hidden, layers), self.rows, self.processor
        return self.timed(*parts, prompts, group, tokens, steps, micro, free)

    def plain_trl(self, prompts, group, tokens, steps, hidden=96, layers=2):
        """The same for trl's own trainer and a text-only decoder; the prompt is the same, three
        tags in it where the clip would be"""
        text = self.model(hidden, layers).config.text_config

        def words(row):
            return dict(
                prompt=self.written(row["prompt"]).replace(
                    "<multi><audio><video>", "<think><answer><think>"
                )
            )

        rows = self.rows.map(words)
        parts = GRPOTrainer, Qwen2ForCausalLM(text), rows, self.processor.tokenizer
        return self.timed(*parts, prompts, group, tokens, steps)

    def bare(self, prompts, group, tokens, steps, hidden=96, layers=2):
        """The same for a loop by hand: no accumulation, no logs, no checkpoints, no clipping of
        ratios that are one"""
        model, processor, (functions, weights) = (
            self.model(hidden, layers).train(),
            self.processor,
            self.rewards,
        )
        optimizer, taken = (
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True),
            [],
        )
        clips = itertools.cycle(self.human)
        for _ in range(steps):
            start, part = time.perf_counter(), {}
            rows = [r for r in itertools.islice(clips, prompts) for _ in range(group)]
            inputs = processor.apply_chat_template(
                [make_prompt(r) for r in rows],
                tokenize=True,
                return_dict=True,
                add_generation_prompt=True,
                padding=True,
                return_tensors="pt",
            )
            media, n = (
                {k: inputs[k] for k in MEDIA_KEYS if k in inputs},
                inputs["input_ids"].shape[1],
            )
            with torch.no_grad():
                ids = model.generate(
                    **inputs, do_sample=True, max_new_tokens=tokens, min_new_tokens=tokens
                )
            part["generation"] = time.perf_counter() - start
            answers = [
                [{"content": t}]
                for t in processor.batch_decode(ids[:, n:], skip_special_tokens=True)
            ]
            scores = [f(completions=answers, labels=[r["labels"] for r in rows]) for f in functions]
            reward = sum(
                w * torch.tensor([s or 0.0 for s in score]) for w, score in zip(weights, scores)
            )
            part["scoring"], begin = (
                time.perf_counter() - start - part["generation"],
                time.perf_counter(),
            )
            written = torch.ones(len(rows), tokens)
            logps = token_logps(
                model,
                ids,
                torch.cat([inputs["attention_mask"], written.long()], 1),
                tokens,
                **media,
            )
            loss = grpo_loss(
                logps, logps.detach(), group_advantages(reward, group), written, loss_type="dapo"
            )
            part["loss"], begin = time.perf_counter() - begin, time.perf_counter()
            loss.backward()
            part["backward"] = time.perf_counter() - begin
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            taken.append(dict(step=time.perf_counter() - start, **part))
        return min(taken[1:], key=lambda t: t["step"])


class Clock(TrainerCallback):
    "Seconds of each step, and of the methods that are timed"

    def __init__(self):
        self.steps, self.parts = [], {}

    def watch(self, owner, name, part):
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.parts[part] = self.parts.get(part, 0) + time.perf_counter() - start

        setattr(owner, name, timed)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.parts = time.perf_counter(), {}

    def on_log(
        self, args, state, control, logs=None, **kwargs
    ):  # after the optimiser's step and the log: all of a step
        if "grad_norm" not in logs:
            return
        now = time.perf_counter()
        self.steps.append(dict(step=now - self.start, **self.parts))
        self.start, self.parts = now, {}

    def result(self):
        return min(self.steps[1:], key=lambda t: t["step"])


def best(contestants, rounds):
    "The fastest step of each contestant; they take turns"
    found = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(run())
    return {name: min(runs, key=lambda r: r["step"]) for name, runs in found.items()}


def seconds(f, times=5):
    "Best wall time of `f`"
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        f()
        taken.append(time.perf_counter() - start)
    return min(taken)


def shown(name, r, answers, tokens):
    parts = "".join(f"{r.get(p, 0):>11.3f}" for p in PARTS)
    rest = r["step"] - sum(r.get(p, 0) for p in PARTS)
    speed = answers * tokens / r["step"]
    print(f"  {name:34}{r['step']:8.3f}{parts}{rest:>11.3f}{speed:>10.0f}", flush=True)


def head(title):
    print(
        f"\n{title}\n  "
        f"{'':34}{'s/step':>8}{''.join(f'{p:>11}' for p in PARTS)}{'rest':>11}{'tokens/s':>10}",
        flush=True,
    )


def overhead(bench, rounds, steps, quick):
    "Ours, the bare loop and plain trl, at 32 answers a step"
    result = {}
    for name, size in dict(
        toy=dict(hidden=96, layers=2), larger=dict(hidden=192, layers=6)
    ).items():
        if quick and name != "toy":
            continue
        how = dict(prompts=4, group=8, tokens=24, steps=steps, **size)
        r = best(
            dict(
                ours=lambda: bench.ours(**how),
                bare=lambda: bench.bare(**how),
                trl=lambda: bench.plain_trl(**how),
            ),
            rounds,
        )
        count = sum(p.numel() for p in bench.model(**size).model.language_model.parameters())
        head(f"32 answers of 24 tokens, a decoder of {count / 1e6:.2f} M")
        for who, label in dict(ours="ours", bare="a bare loop", trl="plain trl, text only").items():
            shown(label, r[who], 32, 24)
        r |= dict(
            parameters=count,
            over_bare=r["ours"]["step"] / r["bare"]["step"] - 1,
            over_trl=r["ours"]["step"] / r["trl"]["step"] - 1,
        )
        print(
            f"  ours over the bare loop {r['over_bare']:+.1%}, over plain trl {r['over_trl']:+.1%}"
        )
        result[name] = r
    return result


def growth(bench, rounds, steps, quick):
    "One thing varied at a time, around 4 prompts of 8 answers of 24 tokens"
    base, result = dict(prompts=4, group=8, tokens=24, steps=steps), {}
    vary = dict(
        group=(2, 4, 8, 16),
        prompts=(1, 4, 8, 16),
        tokens=(12, 24, 48, 96),
        hidden=(48, 96, 192, 384),
    )
    for field, values in vary.items():
        head(f"Growth with {field}")
        for v in values[:2] if quick else values:
            how = base | {field: v}
            r = best({"": lambda: bench.ours(**how)}, rounds)[""]
            trainer, _ = bench.trainer(
                AffectGRPOTrainer,
                bench.model(how.get("hidden", 96)),
                bench.rows,
                bench.processor,
                how["prompts"],
                how["group"],
                how["tokens"],
                1,
            )
            r["peak_mib"] = peak_bytes(trainer.train) / 2**20
            shown(
                f"{field} {v}: peak {r['peak_mib']:.0f} MiB",
                r,
                how["prompts"] * how["group"],
                how["tokens"],
            )
            result[f"{field} {v}"] = r
    return result


def speedups(bench, rounds, steps):
    "Each by ratio, before over after, at 12 prompts of 8 answers"
    result, chats = {}, [make_prompt(r) for r in bench.human.select(range(12)) for _ in range(8)]
    clips = [c[0]["content"][0] for c in chats]
    read = bench.processor.features
    once = seconds(lambda: bench.processor.load_clips(clips))
    each = seconds(lambda: [read(c) for c in clips])
    result["each clip's features read once, not once per answer"] = each / once
    raw_once, raw_each = (
        seconds(lambda: [bench.processor.read_clip(c) for c in some], 2)
        for some in (clips[::8], clips)
    )
    result["each clip decoded once, without a cache"] = raw_each / raw_once
    how = dict(prompts=12, group=8, tokens=24, steps=steps)
    r = best(
        {
            "whole": lambda: bench.ours(**how),
            **{str(m): (lambda m=m: bench.ours(**how, micro=m)) for m in (8, 16, 32)},
        },
        rounds,
    )

    def everywhere(model, positions, media, **inputs):
        return model(**inputs | media)

    def ours():
        return best({"": lambda: bench.ours(**how)}, rounds)[""]

    with mock.patch.object(grpo_trainer, "takes_packed_rows", lambda config: False):
        alone = ours()
        with mock.patch.object(grpo_trainer, "answer_logits", everywhere):
            everywhere_alone = ours()
    result["the head asked for the answer only, not for the prompt (whole step)"] = (
        everywhere_alone["step"] / alone["step"]
    )
    result["a prompt computed once for its eight answers (loss and gradient)"] = (
        alone["loss"] + alone["backward"]
    ) / (r["whole"]["loss"] + r["whole"]["backward"])
    result["the same (whole step)"] = alone["step"] / r["whole"]["step"]
    for m in ("8", "16", "32"):
        result[f"micro-batches of {m}, not 96 at once"] = r["whole"]["step"] / r[m]["step"]
    model = bench.model().eval()
    inputs = prompt_tensors(bench.processor, chats)

    def write(**kw):
        with torch.no_grad():
            return model.generate(**inputs, do_sample=True, **kw)

    prefill, whole = (
        seconds(lambda: write(max_new_tokens=n, min_new_tokens=n), 3) for n in (1, 24)
    )
    result["one prefill per prompt, not per answer (bound)"] = whole / (whole - prefill * 7 / 8)
    result["sampling ends when all answers have ended, here after 12 of 24 tokens"] = (
        whole / seconds(lambda: write(max_new_tokens=12, min_new_tokens=12), 3)
    )
    result["micro-batches of 16 sorted by length and cut (lengths 6 to 24)"] = sorted_batches(bench)
    print("\nSpeed-ups, before over after, 96 answers")
    for name, ratio in result.items():
        print(f"  {name:72}{ratio:6.2f}")
    return result


def prompt_tensors(processor, chats):
    "Prompts as tensors, padded on the left"
    return processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
    )


def sorted_batches(bench):
    """Seconds of the loss and its gradient on micro-batches in any order over those on sorted
    ones, each cut to its longest answer"""
    model, inputs = bench.model().train(), None
    chats = [make_prompt(r) for r in bench.human.select(range(12)) for _ in range(8)]
    inputs = prompt_tensors(bench.processor, chats)
    lengths = torch.randint(6, 25, (96,), generator=torch.Generator().manual_seed(0))
    media = {k: inputs[k] for k in MEDIA_KEYS if k in inputs}

    def passes(order, cut):
        for rows in order.split(16):
            n = int(lengths[rows].max()) if cut else 24
            written = (torch.arange(n) < lengths[rows, None]).long()
            ids = torch.cat([inputs["input_ids"][rows], torch.full((len(rows), n), 10)], 1)
            logps = token_logps(
                model,
                ids,
                torch.cat([inputs["attention_mask"][rows], written], 1),
                n,
                **{k: v[rows] for k, v in media.items()},
            )
            (logps * written).sum().backward()

    return seconds(lambda: passes(torch.arange(96), False)) / seconds(
        lambda: passes(lengths.argsort(), True)
    )


def main():
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--rounds", default=4, type=int, help="turns of each contestant")
    ap.add_argument(
        "--steps", default=6, type=int, help="steps in a turn; the first does not count"
    )
    ap.add_argument("--quick", action="store_true", help="fewer sizes")
    ap.add_argument("--out", type=Path, help="write the numbers to this json file, too")
    args = ap.parse_args()
    warnings.filterwarnings("ignore")
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        result = made_by("python " + " ".join(sys.argv)) | dict(threads=torch.get_num_threads())
        result["overhead"] = overhead(bench, args.rounds, args.steps, args.quick)
        result["growth"] = growth(bench, max(1, args.rounds // 2), args.steps, args.quick)
        result["speedups"] = speedups(bench, max(1, args.rounds // 2), args.steps)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

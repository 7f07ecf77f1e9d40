"""Plant faults in the trainer of a Qwen-Omni, as users of other trainers have reported them.

    python benchmarks/planted_faults.py --out nbs/results/planted_faults.csv

Plants each fault in a run of GRPO, for both families, in 32 and in 16 bits, and writes down what
stops the run, and in which step. The tests do the same with some of them; `failure_museum.py`
plants them with the guards switched off. A run takes about two seconds.
"""

import argparse
import os
import sys
import tempfile
import wave
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from pytest import MonkeyPatch
from trl import GRPOTrainer

from affectgpt_r1 import omni_model, sampling_checks
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.grpo_trainer import HeldOutTrainer
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.media import write_video
from affectgpt_r1.media_rows import pick_rows
from affectgpt_r1.omni import make_tiny_omni
from affectgpt_r1.training import TrainingStopped

GRPO = dict(recipe="toy", lora=True, num_prompts=3, num_generations=2, micro_batch=3, steps=2,
            max_new_tokens=12, warmup_steps=0, learning_rate=1e-3, beta=0.)


def make_clips(folder, n=6):
    "Rows about clips of noise, all different"
    random, rows = np.random.default_rng(0), []
    for i in range(n):
        video, audio = folder / f"c{i}.mp4", folder / f"c{i}.wav"
        write_video(video, random.integers(0, 255, (10 + i, 64, 64, 3), dtype=np.uint8))
        with wave.open(str(audio), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            noise = random.standard_normal(16000 + 1600 * i) * 3000
            file.writeframes(noise.astype("<i2").tobytes())
        rows.append(dict(name=f"c{i}", video=str(video), audio=str(audio), face="",
                         subtitle="Here we are.", labels=["happy"], description="A smile."))
    return rows


def noisy(completions, **columns):
    "A reward that tells answers apart"
    return [float(len(c[0]["content"]) % 3) for c in completions]


def change_media(change):
    "Let micro-batches of the loss get other media than the answers were sampled with"
    def plant(monkeypatch, processor):
        real = HeldOutTrainer._media_of

        def media_of(self, rows, *args):
            kept = self.media
            if self.batch is not None: self.media = change({**kept}, rows)
            try: return real(self, rows, *args)
            finally: self.media = kept

        monkeypatch.setattr(HeldOutTrainer, "_media_of", media_of)

    return plant


def without_sound(media, rows):
    media["input_features"] = [x if x is None else x * 0 for x in media["input_features"]]
    return media


def swapped(media, rows):
    n = len(media["prompt_of"])
    return pick_rows(media, [*range(1, n), 0])


def one_frame_late(media, rows):
    "Each patch holds two frames: the picture of the second comes first"
    media["pixel_values_videos"] = [
        x if x is None else x.view(len(x), 3, 2, -1).flip(2).flatten(1)
        for x in media["pixel_values_videos"]]
    return media


def lose_the_flag(monkeypatch, processor):
    "Sound inside the video: forgotten where answers are scored"
    real = omni_model._row_facts

    def facts(ids, config):
        videos, sounds, inside = real(ids, config)
        return videos, sounds, inside and not torch.is_grad_enabled()

    monkeypatch.setattr(omni_model, "_row_facts", facts)


def sample_placeholders(monkeypatch, processor):
    "The list of suppressed tokens is empty"
    monkeypatch.setattr(sampling_checks, "_places_of", lambda trainer: PLACES)
    PLACES.clear()
    PLACES.update(zip(processor.placeholder_ids, processor.tokenizer.convert_ids_to_tokens(
        processor.placeholder_ids)))
    monkeypatch.setattr(type(processor), "placeholder_ids", property(lambda self: []))


def sample_one_placeholder(monkeypatch, processor):
    "Suppressed by the settings, and sampled nevertheless"
    place = processor.placeholder_ids[1]
    change_batch(monkeypatch, lambda batch: batch["completion_ids"][:, 0].fill_(place))


def forget_the_template(monkeypatch, processor):
    processor.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def stale(monkeypatch, processor):
    "Log-probabilities of an earlier policy"
    def change(batch):
        batch["old_per_token_logps"] = batch["old_per_token_logps"] - .1
    change_batch(monkeypatch, change)


def wrong_mask(monkeypatch, processor):
    change_batch(monkeypatch, lambda batch: batch["completion_mask"][:, -1:].zero_())


def change_batch(monkeypatch, change):
    "Let trl's batch of answers be changed"
    real = GRPOTrainer._generate_and_score_completions

    def sample(self, inputs):
        batch = real(self, inputs)
        change(batch)
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", sample)


PLACES = {}
FAULTS = {   # fault -> how it is planted, settings, what is said
    "sound dropped": (change_media(without_sound), {}, "other input_features than"),
    "rows swapped": (change_media(swapped), {}, "is scored with other"),
    "flag lost": (lose_the_flag, {}, "other positions than"),
    "frames off by one": (change_media(one_frame_late), {}, "other pixel_values_videos than"),
    "placeholders not suppressed": (sample_placeholders, {}, "could be sampled"),
    "placeholder sampled": (sample_one_placeholder, {}, "the place of a clip"),
    "template missing": (forget_the_template, {}, "does not begin a reply"),
    "stale log-probs": (stale, dict(num_iterations=2), "sampler and the old policy"),
    "wrong mask": (wrong_mask, {}, "the mask of an answer to clip"),
}
THREADS = {   # fault -> where it was reported
    "sound dropped": "ms-swift #6924", "flag lost": "ms-swift #9472",
    "frames off by one": "UniRL #260", "placeholders not suppressed": "trl #3847",
    "placeholder sampled": "trl #3847", "template missing": "CoursIA #11304"}


def run_with(fault, rows, folder, family="qwen2_5_omni", dtype=torch.float32, **settings):
    "What stops a run of GRPO in which a fault is planted; None where nothing does"
    plant, needed, _ = FAULTS[fault]
    texts = [r["subtitle"] + r["description"] + ", ".join(r["labels"]) for r in rows]
    model, processor = make_tiny_omni([*texts, *QUESTIONS.values()], family,
                                      use_audio_in_video=True)
    with MonkeyPatch.context() as patch:
        plant(patch, processor)
        try: train_grpo(model.to(dtype), processor, Dataset.from_list(rows), ([noisy], [1.]),
                        folder, **GRPO | needed | settings)
        except TrainingStopped as e: return str(e)


def main():
    "Plant them all, and write a table"
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, required=True)
    args, found = ap.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        rows = make_clips(Path(folder))[:3]
        for family in ("qwen2_5_omni", "qwen3_omni_moe"):
            for dtype in (torch.float32, torch.bfloat16):
                for fault, (*_, wanted) in FAULTS.items():
                    out = Path(folder, f"{family}-{dtype}-{fault}")
                    said = run_with(fault, rows, out, family, dtype) or ""
                    said = said.removesuffix(" No checkpoint had been written yet.")
                    found.append(dict(
                        fault=fault, family=family, dtype=str(dtype).removeprefix("torch."),
                        found=said.startswith("Step 1: ") and wanted in said, message=said))
                    print(*found[-1].values(), sep=" | ", flush=True)
    pd.DataFrame(found).to_csv(args.out, index=False)


if __name__ == "__main__": main()

"""What do the stages cost at real shapes? For one GPU with 80 GB, in under eight minutes

    python benchmarks/gpu.py --out nbs/results/gpu.json
    python benchmarks/gpu.py --tiny                     # a trial on a CPU, in a minute

Random weights of the shapes of `small` (trained from scratch, all weights), `paper` (Qwen2.5-7B,
CLIP ViT-L/14, HuBERT-large, with LoRA in bf16) and `omni` (the thinker of Qwen2.5-Omni-7B, with
LoRA in bf16, on raw video and sound): seconds and peak memory of a batch of
features, of a step of the cold start, of a step of GRPO with 8 answers of 64 tokens and with 4 of
512, of the first checkpoint and of loading it; torch's own attention against flash attention, where
that is installed; and loading in four bits, where bitsandbytes is.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from transformers import Qwen2_5OmniThinkerConfig, WhisperFeatureExtractor
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available
from transformers.utils import logging as hf_logging

from affectgpt_r1.checkpoints import load_stage, probe_logps
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.omni import make_tiny_omni
from affectgpt_r1.omni_model import Qwen25OmniThinker
from affectgpt_r1.omni_processing import OmniProcessor
from affectgpt_r1.parts import load_parts, make_model
from affectgpt_r1.records import made_by
from affectgpt_r1.rehearsal import even_tokens, make_parts
from affectgpt_r1.toy import make_toy_corpus

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Meter:
    "Seconds and peak memory of named pieces of work; a failure is part of the result"

    def __init__(self):
        self.rows = {}

    def measure(self, name, work):
        "What `work` returns, or None where it failed"
        gc.collect()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start, result, row = time.perf_counter(), None, {}
        try:
            result = work()
        except Exception as e:
            row["error"] = f"{type(e).__name__}: {str(e)[:300]}"
            traceback.print_exc()
        row["seconds"] = round(time.perf_counter() - start, 2)
        if DEVICE == "cuda":
            row["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if isinstance(result, list):   # trl's log history: the fastest step
            steps = [entry["step_time"] for entry in result if "step_time" in entry]
            row |= {"step_seconds": round(min(steps), 3)} if steps else {}
        self.rows[name] = row
        print(name, row, flush=True)
        return result


FEW = dict(logging_steps=1, save_steps=10**6)   # no checkpoint in the middle


def train(meter, name, model, processor, rows, folder, recipe, sizes):
    "A cold start of three steps, then three steps of GRPO for each size of a group"
    how = dict(max_steps=3, batch_size=3, **FEW)
    meter.measure(
        f"{name}: cold start, 3 steps of 3 clips",
        lambda: cold_start(model, processor, rows, folder / "sft", recipe, **how),
    )
    for answers, tokens in sizes:
        reinforce(meter, name, processor, rows, folder, recipe, answers, tokens)
    answers, tokens = sizes[0]
    out = folder / f"grpo{answers}x{tokens}"
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    meter.rows[f"{name}: checkpoint"] = dict(mib=round(size / 2**20, 1))
    meter.measure(f"{name}: loading it", lambda: load_stage(out)[0].to(DEVICE))


def reinforce(meter, name, processor, rows, folder, recipe, answers, tokens):
    "Three steps of GRPO with one clip and answers of full length, and saving"
    stage = load_stage(folder / "sft")[0].to(DEVICE)
    out = folder / f"grpo{answers}x{tokens}"
    how = dict(num_prompts=1, num_generations=answers, max_new_tokens=tokens, steps=3, **FEW)
    how |= dict(micro_batch=answers, generation_kwargs={"min_new_tokens": tokens})
    meter.measure(
        f"{name}: GRPO, 3 steps of {answers} answers of {tokens} tokens, saved at the end",
        lambda: train_grpo(stage, processor, rows, ([even_tokens], [1.0]), out, recipe, **how),
    )


def paper(meter, folder, rows, shape, sizes):
    "The shape of the paper: trained parts would come from a folder, as these do"
    parts = meter.measure("paper: random parts on disk", lambda: make_parts(folder / "p", shape))
    processor = train_paper(meter, folder, rows, parts, sizes)
    for kind in ("sdpa", "flash_attention_2"):
        attention(meter, folder, processor, kind)
    four_bits(meter, parts)


def train_paper(meter, folder, rows, parts, sizes):
    "Load, encode and train; returns the processor"
    model, processor = meter.measure("paper: loading the parts", lambda: load_parts(**parts))
    model = model.to(DEVICE)
    processor.features = FeatureCache(folder / "features", model, processor)
    meter.measure(
        f"paper: features of {len(rows)} clips",
        lambda: processor.features.compute(rows, model, processor),
    )
    train(meter, "paper", model, processor, rows, folder, "paper", sizes)
    return processor


def attention(meter, folder, processor, kind):
    "Log-probabilities with one kind of attention; the second pass counts"
    if kind != "sdpa" and not is_flash_attn_2_available():
        meter.rows[f"paper: {kind}"] = dict(error="not installed")
        return
    stage = load_stage(folder / "sft", attn_implementation=kind)[0].to(DEVICE).eval()
    for _ in range(2):
        meter.measure(f"paper: {kind}", lambda: probe_logps(stage, processor, n_clips=32))


def four_bits(meter, parts):
    "The decoder in four bits"
    if not is_bitsandbytes_available():
        meter.rows["paper: four bits"] = dict(error="bitsandbytes is not installed")
        return
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    meter.measure("paper: four bits", lambda: load_parts(**parts, quantization_config=how))


def small(meter, folder, rows, preset, sizes):
    "The preset `small`, all of whose weights are trained"
    model, processor = make_model([" ".join(row["labels"]) for row in rows], preset)
    model = model.to(DEVICE)
    processor.features = FeatureCache(folder / "features", model, processor)
    meter.measure(
        f"small: features of {len(rows)} clips",
        lambda: processor.features.compute(rows, model, processor),
    )
    train(meter, "small", model, processor, rows, folder, preset, sizes)


def omni(meter, folder, rows, tiny, sizes):
    "A thinker, tiny or of the shape of Qwen2.5-Omni-7B"
    texts = [" ".join(row["labels"]) + row["subtitle"] for row in rows]
    model, processor = make_tiny_omni([*texts, *QUESTIONS.values()])
    if not tiny:
        small = model.config.to_dict()
        ids = {name: x for name, x in small.items() if "token_i" in name}
        vision = dict(hidden_size=1280, intermediate_size=3420, out_hidden_size=3584)
        config = Qwen2_5OmniThinkerConfig(vision_config=vision, **ids)
        sound = WhisperFeatureExtractor(feature_size=config.audio_config.num_mel_bins)
        processor = OmniProcessor(processor.image_processor, sound, processor.tokenizer)
        with torch.device(DEVICE):
            model = Qwen25OmniThinker._from_config(config, dtype=torch.bfloat16)
    train(meter, "omni", model.to(DEVICE), processor, rows, folder, "omni", sizes)


def main():
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--tiny", action="store_true", help="toy shapes, to try the script")
    ap.add_argument("--out", type=Path, help="write the numbers to this json file, too")
    args = ap.parse_args()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    sizes = [(4, 12), (2, 16)] if args.tiny else [(8, 64), (4, 512)]
    meter, start = Meter(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_toy_corpus(Path(folder) / "corpus", preset="tiny", seed=0, progress=False)
        rows = load_mer2025(corpus, "human")
        small(meter, Path(folder) / "small", rows, "toy" if args.tiny else "small", sizes)
        shape = "tiny" if args.tiny else "qwen2.5-7b"
        paper(meter, Path(folder) / "paper", rows, shape, sizes)
        omni(meter, Path(folder) / "omni", rows, args.tiny, sizes)
    device = torch.cuda.get_device_name(0) if DEVICE == "cuda" else "cpu"
    result = made_by("python " + " ".join(sys.argv)) | dict(
        device=device, tiny=args.tiny, seconds=round(time.perf_counter() - start), rows=meter.rows
    )
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    errors = {name: row["error"] for name, row in meter.rows.items() if "error" in row}
    if failed := [name for name, error in errors.items() if "installed" not in error]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

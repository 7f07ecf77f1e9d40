"A Qwen-Omni thinker whose weights two processes share out (FSDP2 on gloo), with clips of all kinds"

import os
import time

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from conftest import ROOT
from datasets import Dataset
from safetensors.torch import load_file
from test_sharded import KINDS, Sharing, free_port, pretend_gpus
from yaml import safe_load

from affectgpt_r1.checkpoints import load_stage, save_stage
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.omni import make_tiny_omni
from benchmarks.planted_faults import make_clips, noisy

LAYERS = dict(   # of the decoder
    qwen2_5_omni="Qwen2_5OmniDecoderLayer", qwen3_omni_moe="Qwen3OmniMoeThinkerTextDecoderLayer")


def train_in_a_process(rank, port, out, kind, rows, layer):
    "Two steps of GRPO; each process asks about one clip at a time"
    launched = KINDS[kind] | (dict(FSDP_TRANSFORMER_CLS_TO_WRAP=layer) if kind == "fsdp2" else {})
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                       WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2") | launched
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    sharing, (model, processor) = Sharing(), load_stage(out / "start")
    train_grpo(model, processor, Dataset.from_list(rows), ([noisy], [1.]), out / kind, "toy",
               lora=True, steps=2, num_prompts=1, num_generations=2, micro_batch=2,
               max_new_tokens=8, warmup_steps=0, learning_rate=1e-2, callbacks=[sharing],
               **pretend_gpus(kind))
    if rank == 0: (out / f"{kind}.txt").write_text(str(sharing.parts))


def trained(out, kind, rows, layer):
    "The adapters, and how many weights were shared out; an error after some minutes"
    args, end = (free_port(), out, kind, rows, layer), time.monotonic() + 400
    run = mp.start_processes(train_in_a_process, args, 2, join=False, start_method="fork")
    try:
        while not run.join(timeout=5): assert time.monotonic() < end, "each waits for the other"
    finally:
        for process in run.processes: process.kill()
    return load_file(out / kind / "adapter_model.safetensors"), (out / f"{kind}.txt").read_text()


def test_a_process_without_pictures_does_not_wait_for_ever(tmp_path, family="qwen2_5_omni"):
    "One process reads a clip without pictures while the other reads one without sound"
    rows = make_clips(tmp_path)[:4]
    for row, field in zip(rows, ("video", "audio", "video", "audio")): row[field] = ""
    rows[3]["audio"] = str(tmp_path / "c3.wav")
    texts = ["happy", "Here we are.", "A smile.", *QUESTIONS.values()]
    save_stage(*make_tiny_omni(texts, family), tmp_path / "start")
    (wanted, none), (found, parts) = (
        trained(tmp_path, kind, rows, LAYERS[family]) for kind in ("ddp", "fsdp2"))
    assert none == "0" and int(parts) > 0
    apart = torch.cat([(found[name] - x).abs().flatten() for name, x in wanted.items()])
    assert (apart > 1e-4).float().mean() < .01


@pytest.mark.parametrize("family", LAYERS)
def test_the_committed_settings_wrap_the_decoder_only(family):
    "Layers of encoders that are wrapped would be waited for"
    text = (ROOT / "configs/fsdp2_omni.yaml").read_text()
    wrapped = safe_load(text)["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"]
    assert wrapped == LAYERS["qwen2_5_omni"] and f"# {LAYERS['qwen3_omni_moe']}." in text
    model, _ = make_tiny_omni(["happy"], family)
    names = [n for n, m in model.named_modules() if type(m).__name__ == LAYERS[family]]
    assert names and all(n.startswith("model.language_model.layers") for n in names)

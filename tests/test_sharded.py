"Weights that two processes share out (torch's FSDP2 on gloo): training, saving, asking"
import os
import socket

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import torch.multiprocessing as mp
from peft import get_peft_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from affectgpt_r1.checkpoints import find_base, load_stage, probe_logps, save_stage
from affectgpt_r1.evaluate import predict_clips
from affectgpt_r1.fingerprints import weights_hash
from affectgpt_r1.grpo import grpo_loss, token_logps
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.modeling import unwrap_peft
from affectgpt_r1.parts import lora_config, make_toy_model
from affectgpt_r1.processing import make_prompt

ROWS = [dict(name=f"c{i}", video=str(i), audio=str(i), subtitle=words, labels=["sad"])
        for i, words in enumerate(("Well.", "I am not sure about that.", "No!", "Happy now?"))]
WIDTHS = []   # of the features of both towers
ADVANTAGES = torch.tensor([1., -1., 0.5, -0.5])


def features(clip):
    "Random features of a clip, always the same"
    generator = torch.Generator().manual_seed(int(clip["video"]))
    V, A = (torch.randn(8, width, generator=generator) for width in WIDTHS)
    return dict(video_features=V, audio_features=A, media_mask=torch.ones(2, dtype=torch.bool))


def adapted(out):
    "The same model with adapters in every process"
    model, processor = make_toy_model(["happy, sad, angry", *QUESTIONS.values()], seed=1)
    fusion = model.model.fusion
    WIDTHS[:] = fusion.multi_video.in_features, fusion.multi_audio.in_features
    processor.features = features
    find_base(model, out)
    torch.manual_seed(0)
    return get_peft_model(model, lora_config()), processor


def shard(model):
    "Share the weights out over all processes, layer by layer"
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in unwrap_peft(model).model.language_model.layers: fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def learn(model, processor, rows, advantages):
    "Two steps of GRPO's loss on given answers; the mean over the answers of all processes"
    texts = ["<answer>sad</answer>", "<answer>happy</answer>"] * 2
    batch = processor.training_batch([make_prompt(ROWS[i]) for i in rows], [texts[i] for i in rows])
    written = batch.pop("labels")[:, 1:] != -100
    ids, mask, n = batch.pop("input_ids"), batch.pop("attention_mask"), written.shape[1]
    # plain gradient descent: Adam blows up the rounding of gradients near zero
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(2):
        logps = token_logps(model, ids, mask, n, **batch)
        if step == 0: old = logps.detach()
        grpo_loss(logps, old, advantages[rows], written.float()).backward()
        optimizer.step()
        optimizer.zero_grad()


def in_a_process(rank, port, out):
    "What each of the two processes does: train its half of the answers, save, ask"
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                       WORLD_SIZE="2", LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, processor = adapted(out)
    shard(model)
    learn(model, processor, [2 * rank, 2 * rank + 1], ADVANTAGES)
    save_stage(model, processor, out, log=[])
    table = predict_clips(model.eval(), processor, ROWS, out=out / "replies.jsonl", batch_size=1,
                          max_new_tokens=8)
    if rank == 0: torch.save((weights_hash(model), table["reply"].tolist()), out / "asked.pt")
    else: weights_hash(model)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    "The folder that two processes with shared weights have written"
    out = tmp_path_factory.mktemp("sharded") / "grpo"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    adapted(out)   # writes the base, which both find
    mp.start_processes(in_a_process, (port, out), 2, start_method="fork")
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "The same in one process, with whole weights"
    model, processor = adapted(tmp_path_factory.mktemp("alone"))
    start = probe_logps(model, processor)
    learn(model, processor, [0, 1, 2, 3], ADVANTAGES)
    return model.eval(), processor, start


def test_shared_out_weights_are_saved_whole_and_loaded_by_the_next_stage(sharded, alone):
    model, processor, start = alone
    found = probe_logps(load_stage(sharded)[0].eval(), processor)
    wanted = probe_logps(model, processor)
    assert (found - wanted).abs().max() < 1e-5
    assert (wanted - start).abs().max() > 1e-3   # something was learnt


def test_a_model_is_asked_while_its_weights_are_shared_out(sharded, alone):
    "Answers of different length, one clip at a time in each process"
    model, processor, _ = alone
    hash_of_all, replies = torch.load(sharded / "asked.pt")
    said = predict_clips(model, processor, ROWS, max_new_tokens=8)["reply"].tolist()
    assert replies == said
    assert hash_of_all != weights_hash(torch.nn.Linear(1, 1))


def test_empty_stubs_have_no_hash():
    "DeepSpeed's ZeRO-3 leaves empty weights behind: all models would look the same"
    model = torch.nn.Linear(2, 2)
    model.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="weight is empty here"): weights_hash(model)

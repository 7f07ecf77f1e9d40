"Weights that two processes share out (torch's FSDP2 on gloo): training, saving, asking"
import os
import socket

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import accelerate
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from transformers import TrainerCallback

from affectgpt_r1.checkpoints import find_base, load_stage, probe_logps, save_stage
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.evaluate import predict_clips
from affectgpt_r1.fingerprints import weights_hash
from affectgpt_r1.grpo import grpo_loss, token_logps, train_grpo
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


def free_port():
    "A port that nobody uses"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    "The folder that two processes with shared weights have written"
    out = tmp_path_factory.mktemp("sharded") / "grpo"
    adapted(out)   # writes the base, which both find
    mp.start_processes(in_a_process, (free_port(), out), 2, start_method="fork")
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


# Both stages with trl's own loop and sampling, under a launcher's settings

KINDS = {   # what a launcher sets
    "ddp": {},
    "fsdp2": dict(
        ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_CPU_RAM_EFFICIENT_LOADING="false",
        FSDP_TRANSFORMER_CLS_TO_WRAP="Qwen2DecoderLayer", FSDP_RESHARD_AFTER_FORWARD="true"),
    "zero2": dict(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2"),
    "zero3": dict(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3",
                  ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true")}


def pretend_gpus(kind):
    "On a CPU, accelerate does not share weights out by FSDP, and finds no backend for DeepSpeed"
    if kind == "fsdp2":
        found = "gloo", accelerate.DistributedType.MULTI_GPU
        accelerate.PartialState._prepare_backend = lambda self, *args, **how: found
        cpu = torch.device("cpu")
        accelerate.PartialState.set_device = lambda self: setattr(self, "device", cpu)
    return dict(use_cpu=kind == "ddp") | (dict(ddp_backend="gloo") if "zero" in kind else {})


class Sharing(TrainerCallback):
    "Notes how many weights each process holds a part of"
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        weights = model.parameters()
        self.parts = sum(hasattr(x, "full_tensor") or hasattr(x, "ds_id") for x in weights)


def longer(completions, **columns): return [float(len(c[0]["content"])) for c in completions]


def stages_in_a_process(rank, port, out, kind):
    "Cold start with LoRA, then GRPO on the same adapters, two steps each"
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                       WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2") | KINDS[kind]
    AcceleratorState._reset_state(reset_partial_state=True)   # of other tests in this process
    torch.set_num_threads(1)
    rows = Dataset.from_list([row | dict(face="", description="") for row in ROWS])
    few, sharing = dict(warmup_steps=0, learning_rate=1e-2) | pretend_gpus(kind), Sharing()
    for stage, before in (("sft", "start"), ("grpo", "sft")):
        model, processor = load_stage(out / before)
        processor.features = features
        if stage == "sft": cold_start(model, processor, rows, out / stage, "toy", batch_size=1,
                                      lora=True, callbacks=[sharing], max_steps=2, **few)
        else: train_grpo(model, processor, rows, ([longer], [1.]), out / stage, "toy", steps=2,
                         num_prompts=2, num_generations=4, max_new_tokens=12, **few)
    if rank == 0: (out / "parts.txt").write_text(str(sharing.parts))


def both_stages(out, kind):
    "Adapters that two processes have written, and how many weights were shared out"
    model, processor = make_toy_model(["happy, sad, angry", *QUESTIONS.values()], seed=1)
    fusion = model.model.fusion
    WIDTHS[:] = fusion.multi_video.in_features, fusion.multi_audio.in_features
    save_stage(model, processor, out / "start")
    mp.start_processes(stages_in_a_process, (free_port(), out, kind), 2, start_method="fork")
    weights = [load_file(out / stage / "adapter_model.safetensors") for stage in ("sft", "grpo")]
    return weights, int((out / "parts.txt").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory): return both_stages(tmp_path_factory.mktemp("whole"), "ddp")


@pytest.mark.parametrize("kind", ["fsdp2", "zero2", "zero3"])
def test_trl_trains_and_samples_with_shared_out_weights(whole, tmp_path, kind):
    if "zero" in kind: pytest.importorskip("deepspeed", reason="needs deepspeed and a compiler")
    (wanted, none), (found, parts) = whole, both_stages(tmp_path, kind)
    assert none == 0 and (parts > 0 or kind == "zero2")   # it shares gradients and moments only
    for stage in (0, 1):
        assert found[stage].keys() == wanted[stage].keys()
        for name, weight in wanted[stage].items():
            if name.endswith("score.bias"): continue   # of a softmax: its gradient is rounding
            assert torch.allclose(found[stage][name], weight, atol=1e-4), name
    assert any(not torch.equal(x, y) for x, y in zip(found[0].values(), found[1].values()))

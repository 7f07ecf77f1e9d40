"The estimate of memory against what torch records, and plans for a GPU"
import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode

from affectgpt_r1.configuration import toy_config
from affectgpt_r1.memory import (
    memory_estimate, n_bytes, peak_bytes, plan_memory, saved_bytes, weight_bytes, without_memory)
from affectgpt_r1.modeling import AffectGPTForConditionalGeneration
from affectgpt_r1.parts import lora_config


@pytest.mark.parametrize("lora", [False, True])
def test_estimated_memory_is_near_the_measured(lora):
    config, batch, length = toy_config(500, (3, 4, 5), 2, 1), 16, 128
    model = AffectGPTForConditionalGeneration(config).train()
    if lora: model = get_peft_model(model, lora_config())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(6, 500, (batch, length))
    ids[:, :3] = torch.tensor([3, 4, 5])
    features = dict(video_features=torch.randn(batch, 8, 64),
                    audio_features=torch.randn(batch, 8, 64))
    def step():
        model(input_ids=ids, labels=ids, **features).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    step()
    moments = [x for state in optimizer.state.values() for x in state.values()]
    measured = n_bytes(model.parameters()) + n_bytes(moments) + peak_bytes(step)
    table = memory_estimate(config, batch=batch, prompt=64, completion=64, lora=lora)
    assert .9 < table.loc["sum", "training"] * 2**30 / measured < 1.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_layers_tell_what_all_keep(checkpointing):
    "The estimate counts on two layers of the decoder; here five are run"
    config = toy_config(300, (3, 4, 5), 2, 1)
    text = {**config.text_config.to_dict(), "num_hidden_layers": 5, "layer_types": None}
    config.text_config = type(config.text_config)(**text)
    with torch.device("meta"): model = AffectGPTForConditionalGeneration(config).train()
    if checkpointing: model.activation_checkpointing_enable()
    with FakeTensorMode():
        words = torch.zeros(2, 24, config.text_config.hidden_size, requires_grad=True)
        kept = saved_bytes(without_memory(model).model, inputs_embeds=words)
    how = dict(batch=2, prompt=16, completion=8, checkpointing=checkpointing)
    activations = memory_estimate(config, **how).loc["activations", "training"]
    assert len(model.model.language_model.layers) == 5 and activations * 2**30 == kept


@pytest.mark.parametrize("lora", [False, True])
def test_a_kl_term_takes_a_copy_of_a_model_without_adapters(lora):
    "With adapters, the model without them is the reference"
    config = toy_config(300, (3, 4, 5), 2, 1)
    plain, more = [memory_estimate(config, 2, 4, 16, 8, lora=lora, reference=reference)
                   for reference in (False, True)]
    with torch.device("meta"): model = AffectGPTForConditionalGeneration(config)
    copied = (more - plain.reindex(more.index, fill_value=0)).loc["sum"] * 2**30
    assert copied.tolist() == pytest.approx([0 if lora else n_bytes(model.parameters())] * 2)


def test_every_weight_belongs_to_one_component():
    config = toy_config(300, (3, 4, 5), 2, 1)
    with torch.device("meta"):
        model = get_peft_model(AffectGPTForConditionalGeneration(config), lora_config())
    parts = weight_bytes(model)
    assert sum(parts.values()) == n_bytes(model.parameters())
    names = {"towers", "fusion", "fusion, frozen twin", "LoRA", "decoder"}
    assert parts.keys() == {f"{name}, weights" for name in names}


@pytest.mark.filterwarnings("error:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("lora", [False, True])
def test_a_plan_fits_and_the_next_larger_one_does_not(lora):
    config, gib, how = toy_config(300, (3, 4, 5), 2, 1), .06, dict(lora=lora, dtype=torch.float32)
    plan = plan_memory(config, gib, answers=64, prompt=64, completion=64, **how)
    how |= dict(prompt=64, completion=64, checkpointing=plan["gradient_checkpointing"])
    batch = plan["micro_batch"]
    needs = [memory_estimate(config, b, 64, **how).loc["sum", "training"] for b in (batch, 2*batch)]
    assert needs[0] <= .9 * gib < needs[1]


def test_what_does_not_fit_at_all_is_said():
    config = toy_config(300, (3, 4, 5), 2, 1)
    with pytest.raises(ValueError, match="to be sampled, of 0.001; take fewer prompts"):
        plan_memory(config, .001, answers=64)
    with pytest.raises(ValueError, match="to be learnt from.*take LoRA, or shorter answers"):
        plan_memory(config, .005, answers=1, prompt=8, completion=64, dtype=torch.float32)

"What must hold of any Hugging Face model, and the faults that are caught before training"
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from model_cases import ask, human, silent, toy
from peft import get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, AutoProcessor, LogitsProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import GRPOConfig

from affectgpt_r1.checkpoints import hide_known_warnings
from affectgpt_r1.training import run_training, trainer_settings
from affectgpt_r1.configuration import FUSIONS, AffectGPTConfig, paper_config, toy_config
from affectgpt_r1.grpo import AffectGRPOTrainer, grpo_rows
from affectgpt_r1.modeling import AffectGPTForConditionalGeneration, insert_media_tokens
from affectgpt_r1.parts import lora_config, make_model, make_toy_model
from affectgpt_r1.processing import make_prompt


def small_model(**kwargs):
    return AffectGPTForConditionalGeneration(toy_config(300, (3, 4, 5), 2, 1, **kwargs))


def towers_of(model): return model.model.vision_tower, model.model.audio_tower


def test_config_survives_its_json(tmp_path):
    config = toy_config(300, (3, 4, 5), 2, 1)
    config.save_pretrained(tmp_path)
    again = AffectGPTConfig.from_pretrained(tmp_path)
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert (again.placeholder_ids, again.image_token_id) == ([3, 4, 5], 5)
    assert again.tie_word_embeddings


@pytest.mark.parametrize("module", ["parts", "inference"])
def test_auto_classes_load_it_in_a_fresh_process(toy, tmp_path, module):
    model, processor = toy
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = (f"import sys, affectgpt_r1.{module}\n"
            "from transformers import AutoModelForCausalLM, AutoProcessor\n"
            "for auto in (AutoModelForCausalLM, AutoProcessor):\n"
            "    print(type(auto.from_pretrained(sys.argv[1])).__name__)")
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                         text=True, check=True).stdout
    assert out.split() == ["AffectGPTForConditionalGeneration", "AffectGPTProcessor"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_saved_and_loaded_it_says_the_same(human, tmp_path, fusion):
    model, processor = make_toy_model([r["subtitle"] for r in human], seed=1, fusion=fusion)
    with torch.no_grad():
        for p in model.model.fusion.parameters(): p.add_(torch.randn_like(p), alpha=.1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    # loaded, weights lie in memory as in the file, and the place decides the last bit of a sum
    for p in loaded.parameters(): p.data = p.data.clone()
    batch = ask(AutoProcessor.from_pretrained(tmp_path), human.select(range(2)))
    with torch.no_grad(): assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_left_padded_rows_answer_as_they_would_alone(toy, human):
    model, processor = toy
    rows = sorted(human, key=lambda r: len(r["subtitle"]))
    rows = [rows[0], silent(rows[0]), {**rows[0], "video": ""}, rows[-1]]
    batch = ask(processor, rows)
    assert not batch["attention_mask"][:3, 0].any()  # the shorter ones are padded, on the left
    assert not batch["media_mask"].all()
    with torch.no_grad():
        for i, row in enumerate(rows):
            alone = model(**ask(processor, [row])).logits[0, -1]
            assert torch.allclose(model(**batch).logits[i, -1], alone, atol=1e-4)


def test_generation_with_cache_equals_generation_without(toy, human):
    model, processor = toy
    batch = ask(processor, [human[0], silent(human[1]), human[2]])
    def write(use_cache):
        return model.generate(**batch, do_sample=False, max_new_tokens=8, use_cache=use_cache)
    assert torch.equal(write(True), write(False))


def test_placeholders_are_looked_for_in_prompts_only(toy, human, monkeypatch):
    "On a GPU a look at the tokens waits for all work: one for a prompt, none for a written token"
    model, processor = toy
    batch, looks = ask(processor, human.select(range(2))), []
    with torch.no_grad(): cache = model(**batch, use_cache=True).past_key_values
    isin = torch.isin
    monkeypatch.setattr(torch, "isin", lambda *args: looks.append(1) or isin(*args))
    one = batch["input_ids"][:, -1:]
    mask = torch.cat([batch["attention_mask"], torch.ones_like(one)], 1)
    with torch.no_grad(): model(input_ids=one, attention_mask=mask, past_key_values=cache)
    assert not looks
    with pytest.raises(ValueError, match="no media were given"): model(input_ids=batch["input_ids"])
    assert looks == [1]


def test_towers_say_the_same_twice_in_training_mode(toy, human):
    model, processor = toy
    batch = ask(processor, human.select(range(2)))
    raw = batch["pixel_values_videos"], batch["input_values"]
    model.train()
    assert model.training and not any(tower.training for tower in towers_of(model))
    first, second = model.model.encode_media(*raw), model.model.encode_media(*raw)
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_towers_stay_frozen_after_loading(toy, tmp_path):
    toy[0].save_pretrained(tmp_path)
    loaded = type(toy[0]).from_pretrained(tmp_path).train()
    assert not any(p.requires_grad for tower in towers_of(loaded) for p in tower.parameters())
    assert all(p.requires_grad for p in loaded.model.fusion.parameters())


def test_towers_are_pinned_before_anyone_says_train():
    model = small_model()
    assert model.training and not model.model.audio_tower.training
    assert not any(p.requires_grad for tower in towers_of(model) for p in tower.parameters())


def test_a_prompt_without_its_placeholders_is_refused():
    with pytest.raises(ValueError, match="placeholders"):
        insert_media_tokens(torch.zeros(1, 3, 4), torch.tensor([[9, 3, 4]]), torch.zeros(1, 3, 4),
                            (3, 4, 5))


@pytest.mark.parametrize("clips", [1, 3])
def test_each_prompt_has_its_own_clip(toy, clips):
    ids = torch.tensor([toy[1].placeholder_ids] * 2)
    features = dict(video_features=torch.zeros(clips, 8, 64),
                    audio_features=torch.zeros(clips, 8, 64))
    with pytest.raises(ValueError, match=f"{clips} clips were given for 2 prompts"):
        toy[0](input_ids=ids, **features)


def test_a_clip_is_given_once_and_with_its_prompt(toy, human):
    model, processor = toy
    batch = ask(processor, [human[0]])
    features = dict(video_features=torch.zeros(1, 8, 64), audio_features=torch.zeros(1, 8, 64))
    with pytest.raises(ValueError, match="given twice"): model(**batch, **features)
    with pytest.raises(ValueError, match="media need `input_ids`"):
        model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]), **features)
    with pytest.raises(ValueError, match="no media were given"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="only one of the two"):
        model(input_ids=batch["input_ids"], video_features=torch.zeros(1, 8, 64))


@pytest.mark.parametrize("preset", ["big", "paper"])
def test_only_small_models_are_made_from_scratch(preset):
    with pytest.raises(ValueError, match=f"no preset '{preset}'.*load_parts"):
        make_model(["a b"], preset)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_layer_runs_for_a_clip_that_lacks_something(fusion):
    model = small_model(fusion=fusion)
    ids = torch.tensor([[9, 3, 4, 5, 8]])
    model(input_ids=ids, labels=ids, video_features=torch.randn(1, 8, 64),
          audio_features=torch.randn(1, 8, 64),
          media_mask=torch.tensor([[True, False]])).loss.backward()
    assert all(p.grad is not None for p in model.model.fusion.parameters())


def test_attention_is_switched_in_every_part(toy, human, tmp_path):
    model, processor = toy
    model.save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    parts = *towers_of(eager), eager.model.language_model
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    asked = set()
    def noted(module, *args, **kwargs):
        asked.add(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)
    AttentionInterface.register("noted", noted)  # as flash attention: any that transformers knows
    other = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="noted")
    with torch.no_grad(): other(**ask(processor, [human[0]]))
    assert asked == {"CLIPAttention", "HubertAttention", "Qwen2Attention"}
    batch = ask(processor, human.select(range(2)))
    real = batch["attention_mask"].bool()  # logits of padding are never used
    with torch.no_grad():
        assert torch.allclose(eager(**batch).logits[real], model(**batch).logits[real], atol=1e-4)


def learn(human, lora, checkpointing):
    "Runs of the decoder's first layer, loss and gradients of one training step"
    model, processor = make_toy_model([r["subtitle"] for r in human])
    outer, ran = get_peft_model(model, lora_config()) if lora else model, []
    if checkpointing:
        outer.activation_checkpointing_enable()
        outer.enable_input_require_grads()  # what peft asks of a trainer
    attention = model.model.language_model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: ran.append(1))
    prompts = [make_prompt(r) for r in human.select(range(2))]
    batch = processor.training_batch(prompts, ["<answer>happy</answer>"] * 2)
    loss = outer.train()(**batch, use_cache=False).loss
    loss.backward()
    assert not any(tower.training for tower in towers_of(model))
    frozen = [p for tower in towers_of(model) for p in tower.parameters()]
    assert not any(p.grad is not None or p.requires_grad for p in frozen)
    return len(ran), loss, [p.grad for p in outer.parameters() if p.requires_grad]


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(human, lora):
    once, loss, plain = learn(human, lora, False)
    twice, again, checked = learn(human, lora, True)
    assert (once, twice) == (1, 2) and torch.allclose(loss, again, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, checked, strict=True))


def test_merged_adapters_equal_unmerged_and_sit_in_the_decoder_only(toy, human):
    model, processor = make_toy_model([r["subtitle"] for r in human])
    batch = ask(processor, human.select(range(2)))
    adapted = get_peft_model(model, lora_config()).eval()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    for name in trained:
        assert "language_model" in name and "lora_" in name or "fusion.modules_to_save" in name
    assert len([n for n in trained if "lora_A" in n]) == 7 * 2
    with torch.no_grad():
        for p in trained.values(): p.add_(torch.randn_like(p), alpha=.05)
        unmerged = adapted(**batch).logits
        merged = adapted.merge_and_unload()(**batch).logits
    assert torch.allclose(merged, unmerged, atol=1e-4)


def test_trl_trains_adapters_and_fusion_and_nothing_else(human, tmp_path):
    model, processor = make_toy_model([r["subtitle"] for r in human])
    adapted = get_peft_model(model, lora_config())
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    def every_second_silent(row, i): return dict(audio=row["audio"] if i % 2 else "")
    rows = grpo_rows(human.map(every_second_silent, with_indices=True))
    settings = dict(max_steps=2, per_device_train_batch_size=8, num_generations=4,
                    max_completion_length=6, beta=0.04,
                    generation_kwargs={"suppress_tokens": processor.placeholder_ids})
    def reward(completions, **columns): return [float(i % 2) for i in range(len(completions))]
    with hide_known_warnings():
        args = GRPOConfig(str(tmp_path), **trainer_settings() | settings)
        trainer = AffectGRPOTrainer(adapted, reward, args, rows, processing_class=processor)
        run_training(trainer, "adapters")
    changed = {n for n, p in adapted.named_parameters()  # trl adds a copy as reference
               if n in before and not torch.equal(before[n], p)}
    layers = {n.split(".")[-2] for n in changed if "fusion" in n}
    assert layers >= {"video_proj", "audio_proj", "multi_proj", "multi_audio", "score"}
    assert any("lora_" in n for n in changed)
    assert all("lora_" in n or "modules_to_save" in n for n in changed)


def test_in_16_bits_the_fusion_keeps_32_and_raw_media_go_in(toy, human, tmp_path):
    model, processor = toy
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.fusion.parameters()} == {torch.float32}
    assert half.model.audio_tower.dtype == half.model.language_model.dtype == torch.bfloat16
    batch = ask(processor, human.select(range(2)))
    with torch.no_grad(): change = half(**batch).logits.float() - model(**batch).logits
    assert change[batch["attention_mask"].bool()].abs().max() < .2


def test_the_paper_has_the_papers_numbers():
    with torch.device("meta"):
        paper = AffectGPTForConditionalGeneration(paper_config())
        model = get_peft_model(paper, lora_config())
        small, _ = make_model(["a b"], "small")
    named = list(model.named_parameters())
    assert sum(p.numel() for n, p in named if "lora_" in n) == 40_370_176
    assert sum(p.numel() for n, p in named if "fusion.modules_to_save" in n) == 14_042_372
    assert 90e6 < sum(p.numel() for p in small.parameters()) < 110e6


def test_placeholders_are_never_written_even_where_they_are_likeliest(toy, human):
    model, processor = toy
    placeholders = torch.tensor(processor.placeholder_ids)
    class Push(LogitsProcessor):
        def __call__(self, ids, scores):
            return scores.index_add(1, placeholders, torch.full((len(scores), 3), 1e4))
    out = model.generate(**ask(processor, human.select(range(2))), logits_processor=[Push()],
                         max_new_tokens=4, do_sample=False)
    assert not torch.isin(out[:, -4:], placeholders).any()


@pytest.mark.parametrize("missing,key", [("audio", "input_values"),
                                         ("video", "pixel_values_videos")])
def test_what_stands_in_for_a_missing_modality_does_not_matter(toy, human, missing, key):
    model, processor = toy
    batch = ask(processor, [{**human[0], missing: ""}, human[1]])
    noisy = dict(batch, **{key: batch[key].clone()})
    noisy[key][0] = torch.randn_like(noisy[key][0])
    with torch.no_grad():
        logits = model(**batch).logits
        assert torch.equal(logits, model(**noisy).logits)
        unmasked = model(**dict(batch, media_mask=None)).logits
        assert not torch.allclose(logits[0], unmasked[0], atol=1e-4)
        alone = model(**ask(processor, [human[1]])).logits[0, -1]
        assert torch.allclose(logits[1, -1], alone, atol=1e-4)   # and the neighbour is as it was


def test_a_mask_without_gaps_changes_nothing(toy, human):
    model, processor = toy
    batch, mask = ask(processor, human.select(range(2))), torch.ones(2, 2, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch, media_mask=mask).logits)


def test_a_clip_with_nothing_but_words_is_answered(toy, human):
    model, processor = toy
    batch = ask(processor, [{**human[0], "audio": "", "video": ""}])
    out = model.generate(**batch, do_sample=False, max_new_tokens=4)
    with torch.no_grad(): assert torch.isfinite(model(**batch).logits).all()
    assert len(out[0]) > batch["input_ids"].shape[1]

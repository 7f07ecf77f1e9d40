"What must hold of any Hugging Face model, and the faults that are caught before training"
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, AutoProcessor, LogitsProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from test_media import greys, tone, write
from trl import GRPOConfig

from affectgpt_r1.coldstart import Collator, fit, machine_settings, quiet, target_text
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.grpo import AffectGRPOTrainer, grpo_rows
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.model import (
    FUSIONS, MEDIA_KEYS, AffectGPT, AffectGPTConfig, AffectGPTForConditionalGeneration, AffectGPTProcessor, check_prompt_template, clip_of, clips_of,
    label_probabilities, lora_config, make_model, make_prompt, make_toy_model, memory_estimate, model_card, n_bytes, paper_config,
    peak_bytes, saved_bytes, insert_media_tokens, toy_config, without_memory)
from affectgpt_r1.toy import make_toy_corpus


@pytest.fixture(scope="module")
def human(tmp_path_factory): return load_mer2025(make_toy_corpus(tmp_path_factory.mktemp("lab") / "corpus", preset="smoke", seed=1), "human")


@pytest.fixture(scope="module")
def toy(human): return make_toy_model([", ".join(r["labels"]) + r["subtitle"] for r in human] + list(QUESTIONS.values()))


def ask(processor, rows, **kwargs):
    return processor.apply_chat_template([make_prompt(r) for r in rows], tokenize=True, return_dict=True,
                                         add_generation_prompt=True, padding=True, return_tensors="pt", **kwargs)


def test_config_survives_its_json(tmp_path):
    config = toy_config(300, (3, 4, 5), 2, 1)
    config.save_pretrained(tmp_path)
    again = AffectGPTConfig.from_pretrained(tmp_path)
    assert again.text_config.to_dict() == config.text_config.to_dict()
    assert (again.placeholder_ids, again.image_token_id, again.tie_word_embeddings) == ([3, 4, 5], 5, True)


def test_auto_classes_load_it_in_a_fresh_process(toy, human, tmp_path):
    model, processor = toy
    model.save_pretrained(tmp_path); processor.save_pretrained(tmp_path)
    code = ("import sys, affectgpt_r1.model; from transformers import AutoModelForCausalLM, AutoProcessor; "
            "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__, type(AutoProcessor.from_pretrained(sys.argv[1])).__name__)")
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["AffectGPTForConditionalGeneration", "AffectGPTProcessor"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_saved_and_loaded_it_says_the_same(human, tmp_path, fusion):
    model, processor = make_toy_model([r["subtitle"] for r in human], seed=1, fusion=fusion)
    with torch.no_grad():
        for p in model.model.fusion.parameters(): p.add_(torch.randn_like(p), alpha=.1)
    model.save_pretrained(tmp_path); processor.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for p in loaded.parameters(): p.data = p.data.clone()  # loaded, they lie in memory as in the file, and the place decides the last bit of a sum
    batch = ask(AutoProcessor.from_pretrained(tmp_path), human.select(range(2)))
    with torch.no_grad(): assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_the_processor_keeps_its_settings(toy, tmp_path):
    ours = toy[1]
    frame = "{multi}{audio}{video} {question} {subtitle}"
    AffectGPTProcessor(ours.image_processor, ours.feature_extractor, ours.tokenizer, prompt_template=frame, visual="face", compat="affectgpt").save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert (again.frame, again.visual, again.compat) == (frame, "face", "affectgpt")
    assert again.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True) == "Hi"  # no chat around it


def test_left_padded_rows_answer_as_they_would_alone(toy, human):
    model, processor = toy
    rows = sorted(human, key=lambda r: len(r["subtitle"]))
    rows = [rows[0], silent(rows[0]), {**rows[0], "video": ""}, rows[-1]]
    batch = ask(processor, rows)
    assert not batch["attention_mask"][:3, 0].any() and not batch["media_mask"].all()  # the shorter ones are padded, on the left
    with torch.no_grad():
        for i, row in enumerate(rows):
            assert torch.allclose(model(**batch).logits[i, -1], model(**ask(processor, [row])).logits[0, -1], atol=1e-4)


def test_generation_with_cache_equals_generation_without(toy, human):
    model, processor = toy
    batch = ask(processor, [human[0], silent(human[1]), human[2]])
    def write(use_cache): return model.generate(**batch, do_sample=False, max_new_tokens=8, use_cache=use_cache)
    assert torch.equal(write(True), write(False))


def test_towers_say_the_same_twice_in_training_mode(toy, human):
    model, processor = toy
    raw = {k: v for k, v in ask(processor, human.select(range(2))).items() if k in ("pixel_values_videos", "input_values")}
    model.train()
    assert model.training and not model.model.vision_tower.training and not model.model.audio_tower.training
    first, second = model.model.encode_media(**raw), model.model.encode_media(**raw)
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_towers_stay_frozen_after_loading(toy, tmp_path):
    toy[0].save_pretrained(tmp_path)
    loaded = type(toy[0]).from_pretrained(tmp_path).train()
    assert not any(p.requires_grad for t in (loaded.model.vision_tower, loaded.model.audio_tower) for p in t.parameters())
    assert all(p.requires_grad for p in loaded.model.fusion.parameters())


def test_each_distinct_clip_is_read_once_in_a_call(toy, human, monkeypatch):
    model, processor = toy
    read = []
    original = processor.read_clip
    monkeypatch.setattr(processor, "read_clip", lambda clip: read.append(clip["video"]) or original(clip))
    batch = ask(processor, [human[0]] * 4 + [human[1]] * 4)
    assert len(read) == 2 and len(batch["input_values"]) == 8
    asked = []
    monkeypatch.setattr(processor, "features", lambda clip: asked.append(clip["video"]) or dict(video_features=torch.zeros(8, 64)))
    assert len(ask(processor, [human[0]] * 4 + [human[1]] * 4)["video_features"]) == 8 and len(asked) == 2  # cached features, too


def test_a_prompt_without_its_placeholders_is_refused():
    with pytest.raises(ValueError, match="placeholders"):
        insert_media_tokens(torch.zeros(1, 3, 4), torch.tensor([[9, 3, 4]]), torch.zeros(1, 3, 4), (3, 4, 5))


@pytest.mark.parametrize("clips", [1, 3])
def test_each_prompt_has_its_own_clip(toy, clips):
    ids = torch.tensor([toy[1].placeholder_ids] * 2)
    with pytest.raises(ValueError, match=f"{clips} clips were given for 2 prompts"):
        toy[0](input_ids=ids, video_features=torch.zeros(clips, 8, 64), audio_features=torch.zeros(clips, 8, 64))


def test_a_clip_is_given_once_and_with_its_prompt(toy, human):
    model, processor = toy
    batch = ask(processor, [human[0]])
    features = dict(video_features=torch.zeros(1, 8, 64), audio_features=torch.zeros(1, 8, 64))
    with pytest.raises(ValueError, match="given twice"): model(**batch, **features)
    with pytest.raises(ValueError, match="media need `input_ids`"):
        model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]), **features)


@pytest.mark.parametrize("preset", ["big", "paper"])
def test_only_small_models_are_made_from_scratch(preset):
    with pytest.raises(ValueError, match=f"no preset '{preset}'.*load_parts"): make_model(["a b"], preset)


def test_a_chat_is_about_one_clip(human):
    one, words = make_prompt(human[1]), [{"role": "user", "content": "no clip"}]
    assert clip_of(one + words)["video"] == human[1]["video"] and clip_of(words) is None
    assert [c["video"] for c in clips_of([one, words, make_prompt(human[0])])] == [human[1]["video"], human[0]["video"]]
    with pytest.raises(ValueError, match="one clip"): clip_of(one + make_prompt(human[0]))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_layer_runs_for_a_clip_that_lacks_something(fusion):
    model = AffectGPTForConditionalGeneration(toy_config(300, (3, 4, 5), 2, 1, fusion=fusion))
    ids = torch.tensor([[9, 3, 4, 5, 8]])
    model(input_ids=ids, labels=ids, video_features=torch.randn(1, 8, 64), audio_features=torch.randn(1, 8, 64),
          media_mask=torch.tensor([[True, False]])).loss.backward()
    assert all(p.grad is not None for p in model.model.fusion.parameters())


def test_towers_are_pinned_before_anyone_says_train():
    model = AffectGPTForConditionalGeneration(toy_config(300, (3, 4, 5), 2, 1))
    assert model.training and not model.model.audio_tower.training
    assert not any(p.requires_grad for t in (model.model.vision_tower, model.model.audio_tower) for p in t.parameters())


def test_attention_is_switched_in_every_part(toy, human, tmp_path):
    model, processor = toy
    model.save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    inner = eager.model
    assert {m.config._attn_implementation for m in (inner.vision_tower, inner.audio_tower, inner.language_model)} == {"eager"}
    asked = set()
    def noted(module, *args, **kwargs): asked.add(type(module).__name__); return sdpa_attention_forward(module, *args, **kwargs)
    AttentionInterface.register("noted", noted)  # as flash attention, any implementation that transformers knows
    with torch.no_grad(): AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="noted")(**ask(processor, [human[0]]))
    assert asked == {"CLIPAttention", "HubertAttention", "Qwen2Attention"}
    batch = ask(processor, human.select(range(2)))
    real = batch["attention_mask"].bool()  # what stands in the padding is nobody's
    with torch.no_grad(): assert torch.allclose(eager(**batch).logits[real], model(**batch).logits[real], atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(human, lora):
    def learn(checkpointing):
        model, processor = make_toy_model([r["subtitle"] for r in human])
        outer, ran = get_peft_model(model, lora_config()) if lora else model, []
        if checkpointing: outer.activation_checkpointing_enable(); outer.enable_input_require_grads()  # the second is what peft asks of a trainer
        model.model.language_model.layers[0].self_attn.register_forward_hook(lambda *_: ran.append(1))
        batch = processor.training_batch([make_prompt(r) for r in human.select(range(2))], ["<answer>happy</answer>"] * 2)
        loss = outer.train()(**batch, use_cache=False).loss
        loss.backward()
        towers = model.model.vision_tower, model.model.audio_tower
        assert not any(t.training or p.grad is not None or p.requires_grad for t in towers for p in t.parameters())
        return len(ran), loss, [p.grad for p in outer.parameters() if p.requires_grad]
    (once, loss, plain), (twice, again, checked) = learn(False), learn(True)
    assert (once, twice) == (1, 2) and torch.allclose(loss, again, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, checked, strict=True))


def test_merged_adapters_equal_unmerged_and_sit_in_the_decoder_only(toy, human):
    model, processor = make_toy_model([r["subtitle"] for r in human])
    batch = ask(processor, human.select(range(2)))
    adapted = get_peft_model(model, lora_config()).eval()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert all("language_model" in n and "lora_" in n or "fusion.modules_to_save" in n for n in trained)
    assert len([n for n in trained if "lora_A" in n]) == 7 * 2
    with torch.no_grad():
        for p in trained.values(): p.add_(torch.randn_like(p), alpha=.05)
        unmerged = adapted(**batch).logits
        assert torch.allclose(adapted.merge_and_unload()(**batch).logits, unmerged, atol=1e-4)


def test_trl_trains_adapters_and_fusion_and_nothing_else(human, tmp_path):
    model, processor = make_toy_model([r["subtitle"] for r in human])
    adapted = get_peft_model(model, lora_config())
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    rows = grpo_rows(human.map(lambda r, i: dict(audio=r["audio"] if i % 2 else ""), with_indices=True))  # every second clip is silent
    settings = dict(max_steps=2, per_device_train_batch_size=8, num_generations=4, max_completion_length=6, beta=0.04,
                    generation_kwargs={"suppress_tokens": processor.placeholder_ids})
    def reward(completions, **columns): return [float(i % 2) for i in range(len(completions))]
    with quiet():
        args = GRPOConfig(str(tmp_path), **machine_settings() | settings)
        fit(AffectGRPOTrainer(adapted, reward, args, rows, processing_class=processor), "adapters")
    changed = {n for n, p in adapted.named_parameters() if n in before and not torch.equal(before[n], p)}  # trl adds a copy as reference
    assert {n.split(".")[-2] for n in changed if "fusion" in n} >= {"video_proj", "audio_proj", "multi_proj", "multi_audio", "score"}
    assert any("lora_" in n for n in changed) and all("lora_" in n or "modules_to_save" in n for n in changed)


def test_in_16_bits_the_fusion_keeps_32_and_raw_media_go_in(toy, human, tmp_path):
    model, processor = toy
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.fusion.parameters()} == {torch.float32}
    assert half.model.audio_tower.dtype == half.model.language_model.dtype == torch.bfloat16
    batch = ask(processor, human.select(range(2)))
    with torch.no_grad(): assert (half(**batch).logits.float() - model(**batch).logits)[batch["attention_mask"].bool()].abs().max() < .2


def test_the_paper_has_the_papers_numbers():
    with torch.device("meta"): model = get_peft_model(AffectGPTForConditionalGeneration(paper_config()), lora_config())
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == 40_370_176
    assert sum(p.numel() for n, p in model.named_parameters() if "fusion.modules_to_save" in n) == 14_042_372
    with torch.device("meta"): small, _ = make_model(["a b"], "small")
    assert 90e6 < sum(p.numel() for p in small.parameters()) < 110e6


@pytest.mark.parametrize("lora", [False, True])
def test_estimated_memory_is_near_the_measured(lora):
    config, batch, length = toy_config(500, (3, 4, 5), 2, 1), 16, 128
    model = AffectGPTForConditionalGeneration(config).train()
    outer = get_peft_model(model, lora_config()) if lora else model
    optimizer = torch.optim.AdamW([p for p in outer.parameters() if p.requires_grad])
    ids = torch.randint(6, 500, (batch, length)); ids[:, :3] = torch.tensor([3, 4, 5])
    features = dict(video_features=torch.randn(batch, 8, 64), audio_features=torch.randn(batch, 8, 64))
    def step():
        outer(input_ids=ids, labels=ids, **features).loss.backward()
        optimizer.step(); optimizer.zero_grad()
    step()
    there = n_bytes(outer.parameters()) + n_bytes(x for state in optimizer.state.values() for x in state.values())
    estimate = memory_estimate(config, batch=batch, prompt=64, completion=64, lora=lora).loc["sum", "training"] * 2**30
    assert .9 < estimate / (there + peak_bytes(step)) < 1.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_layers_tell_what_all_keep(checkpointing):
    "The estimate counts on two layers of the decoder; here five are run"
    config = toy_config(300, (3, 4, 5), 2, 1)
    config.text_config = type(config.text_config)(**{**config.text_config.to_dict(), "num_hidden_layers": 5, "layer_types": None})
    with torch.device("meta"): model = AffectGPTForConditionalGeneration(config).train()
    if checkpointing: model.activation_checkpointing_enable()
    with FakeTensorMode():
        kept = saved_bytes(without_memory(model).model, inputs_embeds=torch.zeros(2, 24, config.text_config.hidden_size, requires_grad=True))
    estimate = memory_estimate(config, batch=2, prompt=16, completion=8, checkpointing=checkpointing)
    assert len(model.model.language_model.layers) == 5 and estimate.loc["activations", "training"] * 2**30 == kept


def test_training_rows_are_padded_right_with_the_loss_on_the_reply(toy, human):
    processor = toy[1]
    rows, replies = human.select(range(3)), ["<answer>happy</answer>", "<answer>sad, worried</answer>", "<answer></answer>"]
    batch = processor.training_batch([make_prompt(r) for r in rows], replies)
    ids, mask, labels = batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]
    assert mask[:, 0].all() and not mask[:, -1].all() and (labels[~mask] == -100).all()
    for i, reply in enumerate(replies):
        assert processor.tokenizer.decode(ids[i][labels[i] >= 0]) == reply + "<|im_end|>"
        assert processor.apply_chat_template(make_prompt(rows[i]), add_generation_prompt=True) == processor.tokenizer.decode(ids[i][mask[i] & (labels[i] < 0)])
    collated = Collator(processor)([dict(r, description="") for r in rows])
    ours = processor.training_batch([make_prompt(r) for r in rows], [target_text(r, "answer") for r in rows])
    assert all(torch.equal(collated[k], ours[k]) for k in collated)


@given(st.text(max_size=30).filter(lambda t: "<" not in t))
def test_any_subtitle_stands_in_the_frame_as_it_is(toy, subtitle):
    chat = make_prompt(dict(name="a", video="a.mp4", audio="a.wav", subtitle=subtitle))
    assert f"<multi><audio><video>\nSubtitle: {subtitle}\n{QUESTIONS['answer']}<|im_end|>" in toy[1].apply_chat_template(chat)


@pytest.mark.parametrize("frame", ["", "{multi}{audio}{video}{subtitle}", "{multi}{video}{audio}{subtitle}{question}",
                                   "{multi}{audio}{video}{subtitle}{question}{question}", "{multi}{audio}{video}{subtitle}{question}{name}", "{}"])
def test_a_wrong_frame_is_refused(frame):
    with pytest.raises(ValueError, match="once each"): check_prompt_template(frame)


def test_placeholders_are_never_written_even_where_they_are_likeliest(toy, human):
    model, processor = toy
    class Push(LogitsProcessor):
        def __call__(self, ids, scores): return scores.index_add(1, torch.tensor(processor.placeholder_ids), torch.full((len(scores), 3), 1e4))
    out = model.generate(**ask(processor, human.select(range(2))), logits_processor=[Push()], max_new_tokens=4, do_sample=False)
    assert not torch.isin(out[:, -4:], torch.tensor(processor.placeholder_ids)).any()


def both(processor):
    "The processor as it is, and one for the released weights"
    parts = processor.image_processor, processor.feature_extractor, processor.tokenizer
    how = dict(frame="{multi}{audio}{video}{subtitle}{question}", visual="face")
    return AffectGPTProcessor(*parts, **how), AffectGPTProcessor(*parts, **how, compat="affectgpt")


def test_faces_are_red_first_by_default_and_blue_first_for_the_released_weights(toy, human, tmp_path):
    np.save(tmp_path / "face.npy", np.full((9, 48, 48, 3), (255, 0, 0), np.uint8))  # blue, in the order of the file
    ours, compat = (p.read_clip(dict(human[0], face=str(tmp_path / "face.npy")))["pixel_values_videos"] for p in both(toy[1]))
    assert (ours[:, 2] > ours[:, 0]).all() and (compat[:, 0] > compat[:, 2]).all()


def test_sound_is_normalised_by_piece_and_for_the_released_weights_over_the_clip(toy):
    pieces = np.random.default_rng(0).normal(.3, 1, (8, 32000)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)[:, None]
    ours, compat = (p.sound(pieces).numpy() for p in both(toy[1]))
    assert np.allclose(ours.mean(1), 0, atol=1e-4) and np.allclose(ours.std(1), 1, atol=1e-3)
    centred = pieces - pieces.mean(1, keepdims=True)
    assert np.allclose(compat, (centred - centred.mean()) / np.sqrt(centred.var() + 1e-7), atol=1e-4)


def test_prediction_probabilities_are_those_of_a_second_pass(toy, human):
    model, processor = toy
    pair, row = AffectGPT(model, processor), human[0]
    said = pair.predict(row, max_new_tokens=12)
    assert said.used == dict(video=True, audio=True, subtitle=True)
    inputs = ask(processor, [row])
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        n = ids.shape[1] - inputs["input_ids"].shape[1]
        media = {k: inputs[k] for k in MEDIA_KEYS if k in inputs}
        logps = model(input_ids=ids, **media).logits[0, -n-1:-1].log_softmax(-1).gather(-1, ids[0, -n:, None])[:, 0]
    expected = label_probabilities(processor.tokenizer, ids[0, -n:].tolist(), logps, said.labels)
    assert said.labels and said.probabilities.keys() == expected.keys()
    for label, p in expected.items(): assert p is None or said.probabilities[label] == pytest.approx(p, rel=1e-3)
    assert list(said.sectors.index) == said.labels and "probability" in said._repr_html_()


def test_probability_of_a_label_is_the_product_over_its_tokens(toy):
    tokenizer = toy[1].tokenizer
    ids = tokenizer("<think>happy</think><answer>Sad, happy, happy</answer>")["input_ids"]
    logps = -np.arange(1, len(ids) + 1.)
    found = label_probabilities(tokenizer, ids, logps, ["sad", "happy", "calm"])
    tokens = [tokenizer.decode([i]) for i in ids]
    start = tokens.index("<answer>") + 1
    words, at = [], start
    for token in tokens[start:tokens.index("</answer>")]:
        if "," in token: words.append([])
        else: (words or [words.append([])] and words)[-1].append(at)
        at += 1
    assert found["sad"] == pytest.approx(np.exp(logps[words[0]].sum())) and found["calm"] is None
    assert found["happy"] == pytest.approx(np.exp(logps[words[1]].sum()))


def test_a_pair_with_adapters_is_saved_as_one_that_its_card_can_load(human, tmp_path):
    model, processor = make_toy_model([r["subtitle"] for r in human])
    adapted = get_peft_model(model, lora_config())
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p), alpha=.05)
    pair = AffectGPT(adapted, processor)
    before = pair.predict(human[0], max_new_tokens=8)
    pair.save_pretrained(tmp_path)
    for after in (AffectGPT.from_pretrained(tmp_path), pair):
        said = after.predict(human[0], max_new_tokens=8)
        assert said.reply == before.reply and list(said.probabilities.values()) == pytest.approx(list(before.probabilities.values()), rel=1e-3)
    assert "AffectGPT.from_pretrained" in (tmp_path / "README.md").read_text()


def test_a_pair_that_does_not_belong_together_is_refused(toy):
    with pytest.raises(ValueError, match="do not belong together"): AffectGPT(toy[0], both(toy[1])[1])


def test_a_path_is_a_clip_and_says_what_it_had_to_go_by(toy, human, tmp_path):
    pair = AffectGPT(*toy)
    assert pair.predict(human[0]["video"], max_new_tokens=2).used == dict(video=True, audio=False, subtitle=False)
    for streams in (dict(frames=greys(12), wave=tone(2)), dict(wave=tone(2))):
        file = write(tmp_path / "clip.mp4", **streams)
        assert pair.predict(file, max_new_tokens=2).used == dict(video="frames" in streams, audio=True, subtitle=False)
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"): pair.predict(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="text.mp4"): pair.predict(tmp_path / "text.mp4")


def test_the_card_says_what_it_was_told(toy):
    card = model_card(toy[0], "The caption split.", {"EW F": 0.5})
    assert card.startswith("---\n") and "library_name: affectgpt_r1" in card
    assert "The caption split." in card and "- EW F: 0.5" in card and "`toy`" in card and "| decoder | qwen2 | 96 | 2 |" in card


def test_tags_survive_decoding(toy):
    tokenizer = toy[1].tokenizer
    text = "<think>a smile</think><answer>happy</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def silent(row): return {**row, "audio": ""}


def test_a_mask_comes_only_with_a_batch_in_which_something_is_missing(toy, human):
    processor = toy[1]
    assert "media_mask" not in ask(processor, list(human.select(range(2))))
    batch = ask(processor, [silent(human[0]), {**human[1], "video": None}, human[2]])
    assert batch["media_mask"].tolist() == [[True, False], [False, True], [True, True]]


@pytest.mark.parametrize("missing,key", [("audio", "input_values"), ("video", "pixel_values_videos")])
def test_what_stands_in_for_a_missing_modality_does_not_matter(toy, human, missing, key):
    model, processor = toy
    batch = ask(processor, [{**human[0], missing: ""}, human[1]])
    noisy = dict(batch, **{key: batch[key].clone()})
    noisy[key][0] = torch.randn_like(noisy[key][0])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**noisy).logits)
        assert not torch.allclose(model(**batch).logits[0], model(**dict(batch, media_mask=None)).logits[0], atol=1e-4)
        alone = model(**ask(processor, [human[1]])).logits[0, -1]
        assert torch.allclose(model(**batch).logits[1, -1], alone, atol=1e-4)   # and the neighbour is as it was


def test_a_mask_without_gaps_changes_nothing(toy, human):
    model, processor = toy
    batch = ask(processor, human.select(range(2)))
    with torch.no_grad(): assert torch.equal(model(**batch).logits, model(**batch, media_mask=torch.ones(2, 2, dtype=torch.bool)).logits)


def test_a_clip_with_nothing_but_words_is_answered(toy, human):
    model, processor = toy
    batch = ask(processor, [{**human[0], "audio": "", "video": ""}])
    out = model.generate(**batch, do_sample=False, max_new_tokens=4)
    with torch.no_grad(): assert torch.isfinite(model(**batch).logits).all() and len(out[0]) > batch["input_ids"].shape[1]


def test_the_processor_keeps_how_it_sees(toy, tmp_path):
    processor = toy[1]
    processor.save_pretrained(tmp_path/"as it is")
    assert (type(processor).from_pretrained(tmp_path/"as it is").visual, processor.frames_by) == ("frame", "index")
    processor.visual, processor.frames_by = "face", "time"
    try: processor.save_pretrained(tmp_path/"other")
    finally: processor.visual, processor.frames_by = "frame", "index"
    again = type(processor).from_pretrained(tmp_path/"other")
    assert (again.visual, again.frames_by) == ("face", "time")

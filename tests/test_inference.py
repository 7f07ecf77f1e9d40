"How a model writes, how sure it is, and what is told about one clip"
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from model_cases import ask, human, toy
from peft import get_peft_model
from test_media import greys, tone, write
from transformers import AutoModelForCausalLM, LogitsProcessor

from affectgpt_r1.configuration import paper_config, toy_config
from affectgpt_r1.inference import (
    MAX_NEW_TOKENS, AffectGPT, Prediction, generate_replies, generation_config, label_probabilities,
    max_reply_tokens, model_card)
from affectgpt_r1.modeling import MEDIA_KEYS, AffectGPTForConditionalGeneration
from affectgpt_r1.parts import lora_config, make_toy_model
from affectgpt_r1.processing import AffectGPTProcessor, make_prompt
from affectgpt_r1.wheels import load_wheels


class Recite(LogitsProcessor):
    "Makes a model write `texts`, one to a row, and then its end"
    def __init__(self, tokenizer, texts):
        self.rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        self.start, self.eos = None, tokenizer.eos_token_id

    def __call__(self, ids, scores):
        if self.start is None: self.start = ids.shape[1]
        step, out = ids.shape[1] - self.start, torch.full_like(scores, -torch.inf)
        for i, row in enumerate(self.rows): out[i, row[step] if step < len(row) else self.eos] = 0
        return out


def chats_of(rows): return [make_prompt(row) for row in rows]


def compat_pair(toy, human):
    "An untrained toy that computes and reads as the released model"
    parts = toy[1].image_processor, toy[1].feature_extractor, toy[1].tokenizer
    processor = AffectGPTProcessor(*parts, compat="affectgpt",
                                   prompt_template="{multi}{audio}{video}{subtitle}{question}")
    words = processor.tokenizer
    ids = processor.placeholder_ids, words.eos_token_id, words.pad_token_id
    config = toy_config(len(words), *ids, compat="affectgpt")
    return AffectGPTForConditionalGeneration(config).eval(), processor


@pytest.mark.parametrize("mode", ["answer", "think"])
def test_greedy_replies_are_those_of_a_plain_call(toy, human, mode):
    model, processor = toy
    rows, config = human.select(range(4)), generation_config(*toy, mode)
    batch = processor.apply_chat_template(
        [make_prompt(row, mode) for row in rows], tokenize=True, return_dict=True,
        add_generation_prompt=True, padding=True, return_tensors="pt")
    plain = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS["toy"][mode])
    expected = processor.batch_decode(plain[:, batch["input_ids"].shape[1]:],
                                      skip_special_tokens=True)
    replies = generate_replies(*toy, [make_prompt(row, mode) for row in rows], config)
    assert [reply.text for reply in replies] == expected


def test_a_decoders_own_settings_change_nothing(human):
    "Qwen2.5-Instruct, for example, brings a penalty on repetition and samples"
    model, processor = make_toy_model([r["subtitle"] for r in human])
    chats = chats_of(human.select(range(3)))
    def texts(): return [r.text for r in generate_replies(
        model, processor, chats, generation_config(model, processor))]
    before = texts()
    for name, value in dict(do_sample=True, repetition_penalty=1.3, temperature=.7, top_p=.8,
                            top_k=20, no_repeat_ngram_size=2, num_beams=2).items():
        setattr(model.generation_config, name, value)
    plain = model.generate(**ask(processor, human.select(range(3))), max_new_tokens=24)
    assert texts() == before
    assert processor.batch_decode(plain[:, -24:], skip_special_tokens=True) != before


def test_replies_end_at_their_end_and_the_model_is_as_it_was(toy, human):
    model, processor = toy
    texts = ["<answer>happy</answer>", "<answer>sad, worried</answer>"]
    for training in (True, False):
        replies = generate_replies(
            model.train(training), processor, chats_of(human.select(range(2))),
            generation_config(*toy), [Recite(processor.tokenizer, texts)], logps=True)
        assert model.training is training and not model.model.audio_tower.training
    model.eval()
    assert [r.text for r in replies] == texts
    for text, reply in zip(texts, replies):
        ids = processor.tokenizer(text)["input_ids"] + [processor.tokenizer.eos_token_id]
        assert reply.ids == ids and reply.logps.shape == (len(ids),) and (reply.logps < 0).all()


def test_the_released_weights_stop_at_their_sign_and_answer_without_tags(toy, human, monkeypatch):
    model, processor = compat_pair(toy, human)
    texts = ["happy, sad###more", "calm###"]
    config = generation_config(model, processor, max_new_tokens=40)
    assert config.stop_strings == ["###"]
    replies = generate_replies(model, processor, chats_of(human.select(range(2))), config,
                               [Recite(processor.tokenizer, texts)])
    assert [r.text for r in replies] == ["happy, sad", "calm"]
    assert "more" not in processor.tokenizer.decode(replies[0].ids)
    generate = model.generate
    def recite(**kwargs):
        kwargs["logits_processor"] = [Recite(processor.tokenizer, texts[:1])]
        return generate(**kwargs)
    monkeypatch.setattr(model, "generate", recite)
    said = AffectGPT(model, processor).predict(human[0], max_new_tokens=40)
    assert (said.reply, said.labels) == ("happy, sad", ["happy", "sad"])
    assert all(p is not None for p in said.probabilities.values())


def test_the_limit_is_the_checkpoints_own_or_its_presets(toy, tmp_path):
    model, processor = make_toy_model(["a b"])
    assert max_reply_tokens(model, "think") == max_reply_tokens(model.config, "think") == 96
    assert max_reply_tokens(paper_config(), "think") == 512
    model.generation_config.max_new_tokens = 33
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert max_reply_tokens(loaded, "answer") == 33
    loaded.config.reply_mode = "answer"
    loaded.save_pretrained(tmp_path / "answer")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "answer")
    assert [max_reply_tokens(loaded, mode) for mode in ("answer", "think", "mixed")] == [33, 96, 96]
    assert max_reply_tokens(get_peft_model(loaded, lora_config()), "answer") == 33
    assert generation_config(loaded, processor).max_new_tokens == 33
    assert generation_config(loaded, processor, max_new_tokens=5).max_new_tokens == 5
    assert max_reply_tokens(paper_config(), "mixed") == 512   # the longer of both
    with pytest.raises(ValueError, match="mode is 'both'"): max_reply_tokens(model, "both")


def test_a_generation_config_is_explicit_and_can_be_saved(toy, tmp_path):
    config = generation_config(*toy)
    assert (config.do_sample, config.repetition_penalty, config.top_k) == (False, 1.0, 50)
    assert config.suppress_tokens == toy[1].placeholder_ids
    assert config.eos_token_id == [toy[1].tokenizer.eos_token_id]
    assert config.pad_token_id == toy[1].tokenizer.pad_token_id
    config.save_pretrained(tmp_path)
    sampled = generation_config(*toy, do_sample=True, top_k=0, temperature=.7)
    assert (sampled.do_sample, sampled.top_k, sampled.temperature) == (True, 0, .7)


def test_log_probabilities_are_those_of_a_second_pass(toy, human):
    model, processor = toy
    [reply] = generate_replies(model, processor, chats_of(human.select([0])),
                               generation_config(*toy, max_new_tokens=12), logps=True)
    inputs = ask(processor, [human[0]])
    media = {k: inputs[k] for k in MEDIA_KEYS if k in inputs}
    ids, n = torch.tensor([reply.ids]), len(reply.ids)
    with torch.no_grad():
        logits = model(input_ids=torch.cat([inputs["input_ids"], ids], 1), **media).logits
    expected = logits[0, -n-1:-1].log_softmax(-1).gather(-1, ids[0, :, None])[:, 0]
    assert np.allclose(reply.logps, expected, atol=1e-4)


def test_a_prediction_has_a_probability_and_places_for_each_label(toy, human, monkeypatch):
    model, processor = make_toy_model([", ".join(r["labels"]) + r["subtitle"] for r in human])
    text, generate = "<answer>happy, sad</answer>", model.generate
    def recite(**kwargs):
        kwargs["logits_processor"] = [Recite(processor.tokenizer, [text])]
        return generate(**kwargs)
    monkeypatch.setattr(model, "generate", recite)
    said = AffectGPT(model, processor).predict(human[0], max_new_tokens=40)
    assert said.used == dict(video=True, audio=True, subtitle=True) and said.reply == text
    assert list(said.sectors.index) == said.labels == ["happy", "sad"]
    assert said.probabilities.keys() == {"happy", "sad"} and said.to_dict()["reply"] == text
    shown = said._repr_html_()
    assert "probability" in shown and "<answer>" not in shown and "&lt;answer&gt;" in shown


def test_what_a_model_wrote_cannot_script_the_page():
    label = "<script>alert(1)</script>"
    said = Prediction(label, "", label, [label], {label: .5}, load_wheels().coverage([label]), {})
    assert "<script" not in said._repr_html_()


def test_probability_of_a_label_is_the_product_over_its_tokens(toy):
    tokenizer = toy[1].tokenizer
    ids = tokenizer("<think>happy</think><answer>Sad, happy, happy</answer>")["input_ids"]
    logps = -np.arange(1, len(ids) + 1.)
    found = label_probabilities(tokenizer, ids, logps, ["sad", "happy", "calm"])
    tokens = [tokenizer.decode([i]) for i in ids]
    start, end = tokens.index("<answer>") + 1, tokens.index("</answer>")
    words = [[]]
    for position in range(start, end):
        if "," in tokens[position]: words.append([])
        else: words[-1].append(position)
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
        assert said.reply == before.reply
        expected = list(before.probabilities.values())
        assert list(said.probabilities.values()) == pytest.approx(expected, rel=1e-3)
    card = (tmp_path / "README.md").read_text()
    assert "from affectgpt_r1.inference import AffectGPT" in card
    assert "AffectGPT.from_pretrained" in card


def test_a_pair_that_does_not_belong_together_is_refused(toy, human):
    with pytest.raises(ValueError, match="do not belong together"):
        AffectGPT(toy[0], compat_pair(toy, human)[1])


def test_a_path_is_a_clip_and_says_what_it_had_to_go_by(toy, human, tmp_path):
    pair = AffectGPT(*toy)
    def used(clip): return pair.predict(clip, max_new_tokens=2).used
    assert used(human[0]["video"]) == dict(video=True, audio=False, subtitle=False)
    for streams in (dict(frames=greys(12), wave=tone(2)), dict(wave=tone(2))):
        file = write(tmp_path / "clip.mp4", **streams)
        assert used(file) == dict(video="frames" in streams, audio=True, subtitle=False)
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"): used(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="text.mp4"): used(tmp_path / "text.mp4")


def test_the_card_says_what_it_was_told(toy):
    card = model_card(toy[0], "The caption split.", {"EW F": 0.5})
    assert card.startswith("---\n") and "library_name: affectgpt_r1" in card
    assert "The caption split." in card and "- EW F: 0.5" in card and "`toy`" in card
    assert "| decoder | qwen2 | 96 | 2 |" in card

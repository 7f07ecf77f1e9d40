"How a model writes, how sure it is, and what is told about one clip"
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from model_cases import ask, human, toy
from peft import get_peft_model
from test_media import greys, tone, write
from transformers import AutoModelForCausalLM, AutoProcessor, LogitsProcessor, TextStreamer

from affectgpt_r1 import inference
from affectgpt_r1.cards import model_card
from affectgpt_r1.checkpoint_code import AUTO_MAP
from affectgpt_r1.configuration import paper_config, toy_config
from affectgpt_r1.inference import (
    MAX_NEW_TOKENS, AffectGPT, Prediction, as_row, generate_replies, generation_config,
    label_probabilities, max_reply_tokens)
from affectgpt_r1.labels import MODES
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


@pytest.mark.parametrize("tag", [
    "<img src=x onerror=alert(1)>", "</p><iframe>", "<b>", "</table>", "<!-- ", "&lt;b>"])
def test_nothing_that_was_written_is_html(tag):
    "In each field that the page shows"
    there = dict(video=True, **{tag: True})
    said = Prediction(
        tag, tag, tag, [tag], {tag: .5}, load_wheels().coverage([tag, "happy"]), there)
    shown = said._repr_html_()
    assert tag not in shown.replace("</table>", "", tag == "</table>")
    assert shown.count("<table") == shown.count("</table>") == shown.count("<tbody") == 1


def test_the_page_of_a_prediction_is_no_formula_and_can_be_written():
    reply = "$x$ \ud800"
    said = Prediction(reply, "", reply, ["x"], {"x": .5}, load_wheels().coverage(["x"]), {})
    shown = said._repr_html_()
    assert shown.startswith('<div class="tex2jax_ignore mathjax_ignore">') and "$x$ ?" in shown
    assert shown.encode()


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
    card = str(model_card(toy[0], "The caption split.", {"EW F": 0.5}))
    assert card.startswith("---\n") and "library_name: affectgpt_r1" in card
    assert "The caption split." in card and "- EW F: 0.5" in card and "`toy`" in card
    assert "| decoder | qwen2 | 96 | 2 |" in card


def test_the_header_of_a_card_is_what_the_hub_reads(toy):
    told = dict(license="cc-by-4.0", base_model=["a/decoder", "b/clip"], datasets="c/clips",
                language=["zh", "en"])
    card = model_card(toy[0], **told, name="d/affect")
    always = dict(library_name="affectgpt_r1", pipeline_tag="video-text-to-text",
                  tags=["emotion-recognition", "multimodal", "affectgpt"])
    assert card.data.to_dict() == told | always
    assert 'from_pretrained("d/affect", trust_remote_code=True)' in card.text
    assert model_card(toy[0]).data.to_dict() == always | dict(license="unknown")


def test_many_clips_are_answered_as_each_alone(toy, human):
    pair, rows = AffectGPT(*toy), human.select(range(5))
    rows = [rows[0], {**rows[1], "audio": ""}, rows[2], {**rows[3], "video": ""}, rows[4]]
    alone = [pair.predict(row, max_new_tokens=6) for row in rows]
    for clips in (rows, tuple(rows), iter(rows)):
        said = pair.predict(clips, max_new_tokens=6, batch_size=2)
        assert [x.reply for x in said] == [x.reply for x in alone]
        assert [x.used for x in said] == [x.used for x in alone]
    assert said[1].used == dict(video=True, audio=False, subtitle=True)
    for one, other in zip(said, alone):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-3)
    assert pair.predict([]) == []
    [said] = pair.predict(human.select([0]), max_new_tokens=2)
    assert isinstance(said, Prediction)


def test_a_model_is_asked_for_what_it_was_trained_to_write(toy, human, monkeypatch):
    "With thoughts where its last stage taught thoughts, unless you say otherwise"
    pair, row = AffectGPT(*toy), human[0]
    alone = {mode: pair.predict(row, mode, max_new_tokens=8).reply for mode in MODES}
    assert alone["answer"] != alone["think"]
    for taught, expected in ((None, "answer"), ("mixed", "answer"), *zip(MODES, MODES)):
        monkeypatch.setattr(pair.model.config, "reply_mode", taught, raising=False)
        assert pair.predict(row, max_new_tokens=8).reply == alone[expected]


def test_a_path_may_come_with_what_is_said_in_it(toy, human):
    pair, row = AffectGPT(*toy), human[0]
    said = pair.predict(row["video"], subtitle="Well, well.", max_new_tokens=8)
    expected = {**row, "audio": "", "subtitle": "Well, well."}
    assert said.reply == pair.predict(expected, max_new_tokens=8).reply
    assert said.used == dict(video=True, audio=False, subtitle=True)
    with pytest.raises(ValueError, match="a row has its own"): as_row(row, "Hm.")
    with pytest.raises(ValueError, match="give rows"): pair.predict([row["video"]], subtitle="Hm.")


def test_an_answer_can_be_watched(toy, human, capsys):
    pair = AffectGPT(*toy)
    streamer = TextStreamer(toy[1].tokenizer, skip_prompt=True, skip_special_tokens=True)
    said = pair.predict(human[0], streamer=streamer, max_new_tokens=8)
    assert said.reply and said.reply in capsys.readouterr().out
    with pytest.raises(ValueError, match="ask about one"):
        pair.predict([human[0]], streamer=streamer)


def test_model_and_processor_come_from_the_same_place_on_the_hub(toy, monkeypatch):
    asked = []
    def loader(result): return lambda folder, **how: asked.append((folder, how)) or result
    for auto, part in zip((AutoModelForCausalLM, AutoProcessor), toy):
        monkeypatch.setattr(auto, "from_pretrained", loader(part))
    AffectGPT.from_pretrained("me/a", revision="v1", token="t", dtype="bfloat16")
    both = dict(revision="v1", token="t")
    assert asked == [("me/a", both | dict(dtype="bfloat16")), ("me/a", both)]


class Features(dict):
    "Cached features by the path of the video; a clip that is missing is an error"
    def __contains__(self, clip): return dict.__contains__(self, clip["video"])
    def __call__(self, clip): return self[clip["video"]]


def test_files_are_read_where_the_features_of_a_clip_are_not_cached(toy, human, monkeypatch):
    model, processor = toy
    raw = {k: x[None] for k, x in processor.read_clip(human[0]).items()}
    with torch.no_grad():
        V, A = model.model.encode_media(raw["pixel_values_videos"], raw["input_values"])
    known = dict(video_features=V[0], audio_features=A[0], media_mask=torch.tensor([True, True]))
    expected = [AffectGPT(*toy).predict(row, max_new_tokens=6) for row in human.select(range(2))]
    monkeypatch.setattr(processor, "features", Features({human[0]["video"]: known}))
    given, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **how: given.append(how) or generate(**how))
    said = AffectGPT(*toy).predict(human.select(range(2)), batch_size=1, max_new_tokens=6)
    assert [x.reply for x in said] == [x.reply for x in expected]
    assert ["video_features" in how for how in given] == [True, False]
    with pytest.raises(KeyError): ask(processor, [human[1]])   # anyone else is told of the gap


def test_a_q_former_has_no_place_for_more(human):
    model, processor = make_toy_model(["a b"], fusion="qformer")
    parts = processor.image_processor, processor.feature_extractor, processor.tokenizer
    for adapted in (model, get_peft_model(model, lora_config())):
        for how in (dict(num_frames=33), dict(num_segments=9)):
            [(name, n)] = how.items()
            with pytest.raises(ValueError, match=f"{name}={n}.*{n-1} positions"):
                AffectGPT(adapted, AffectGPTProcessor(*parts, **how))
        AffectGPT(adapted, AffectGPTProcessor(*parts, num_frames=32, num_segments=8))
    more = AffectGPTProcessor(*parts, num_frames=40, num_segments=12)
    said = AffectGPT(make_toy_model(["a b"])[0], more).predict(human[0], max_new_tokens=2)
    assert said.used["video"] and said.used["audio"]   # plain pools take any number


def test_a_pair_goes_to_the_hub_whole(toy, human, monkeypatch):
    sent = {}
    def create(repo_id, **how): return sent.update(create=how) or SimpleNamespace(repo_id="me/a")
    def upload(folder_path, **how):
        sent.update(upload=how, files=sorted(os.listdir(folder_path)), folder=folder_path)
        with open(os.path.join(folder_path, "README.md"), encoding="utf-8") as f: card = f.read()
        sent.update(card=card, reply=AffectGPT.from_pretrained(folder_path).predict(
            human[0], max_new_tokens=6).reply)
        return SimpleNamespace(commit_url="https://hub/me/a/commit/1")
    monkeypatch.setattr(inference, "create_repo", create)
    monkeypatch.setattr(inference, "upload_folder", upload)
    pair = AffectGPT(*toy)
    url = pair.push_to_hub("a", private=True, token="t", license="mit", training_data="Clips.")
    assert url == "https://hub/me/a/commit/1" and not os.path.exists(sent["folder"])
    assert sent["create"] == dict(token="t", private=True, exist_ok=True)
    assert sent["upload"] == dict(repo_id="me/a", token="t", commit_message="Upload AffectGPT")
    assert {"README.md", "config.json", "model.safetensors", "modeling_affectgpt.py",
            "processor_config.json", "tokenizer.json", "chat_template.jinja"} <= {*sent["files"]}
    assert "license: mit" in sent["card"] and 'from_pretrained("me/a")' in sent["card"]
    assert "Clips." in sent["card"]
    assert sent["reply"] == pair.predict(human[0], max_new_tokens=6).reply


ELSEWHERE = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
assert not any(name.startswith("affectgpt_r1") for name in sys.modules)
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "affectgpt_r1":
            raise ModuleNotFoundError(f"No module named {name!r}")
def fails(error, *words, **how):
    for auto in (AutoModelForCausalLM, AutoProcessor):
        try: auto.from_pretrained(sys.argv[1], **how)
        except error as e: assert all(word in str(e) for word in words), e
        else: raise AssertionError(how)
fails(ValueError, "trust_remote_code=True", trust_remote_code=False)
sys.meta_path.insert(0, Hidden())
fails(ImportError, "requires the following packages", "affectgpt_r1", trust_remote_code=True)
sys.meta_path.pop(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
from affectgpt_r1.inference import AffectGPT
pair = AffectGPT(model, processor)
print(pair.predict(sys.argv[3], max_new_tokens=6).reply)
pair.save_pretrained(sys.argv[2])
"""


def test_a_checkpoint_loads_where_the_package_is_not_imported(toy, human, tmp_path):
    "By trust_remote_code, and says what is missing; what is saved there is the same again"
    pair, video = AffectGPT(*toy), human[0]["video"]
    pair.save_pretrained(tmp_path / "a")
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "a", tmp_path / "b", video],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env=os.environ | dict(HF_MODULES_CACHE=str(tmp_path / "modules"), HF_HUB_OFFLINE="1"))
    assert run.returncode == 0, run.stderr
    reply = pair.predict(video, max_new_tokens=6).reply
    assert run.stdout.splitlines()[-1] == reply.splitlines()[-1]
    names = [sorted(file.name for file in (tmp_path / x).iterdir()) for x in "ab"]
    assert names[0] == names[1]
    for name in ("processor_config.json", "modeling_affectgpt.py"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    maps = [json.loads((tmp_path / x / "config.json").read_text())["auto_map"] for x in "ab"]
    assert maps[0] == maps[1] == AUTO_MAP
    again = AffectGPT.from_pretrained(tmp_path / "b")
    assert type(again.model) is AffectGPTForConditionalGeneration
    assert type(again.processor) is AffectGPTProcessor
    assert again.predict(video, max_new_tokens=6).reply == reply
    loaded = AutoProcessor.from_pretrained(tmp_path / "b", trust_remote_code=True)
    assert type(loaded) is AffectGPTProcessor   # what is imported already is not loaded again

"Prompts, clips and training rows: what goes into the model"
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from model_cases import ask, human, silent, toy
from transformers import AutoProcessor

from affectgpt_r1.labels import QUESTIONS, make_target
from affectgpt_r1.processing import (
    END, AffectGPTProcessor, check_prompt_template, clip_of, clips_of, make_prompt)

FIELDS = "{multi}{audio}{video}{subtitle}{question}"


def both(processor):
    "The processor as it is, and one for the released weights"
    parts = processor.image_processor, processor.feature_extractor, processor.tokenizer
    how = dict(prompt_template=FIELDS, visual="face")
    return AffectGPTProcessor(*parts, **how), AffectGPTProcessor(*parts, **how, compat="affectgpt")


def test_the_processor_keeps_its_settings(toy, tmp_path):
    _, compat = both(toy[1])
    compat.frames_by = "time"
    compat.save_pretrained(tmp_path / "compat")
    again = AutoProcessor.from_pretrained(tmp_path / "compat")
    assert (again.prompt_template, again.visual, again.compat) == (FIELDS, "face", "affectgpt")
    assert again.frames_by == "time"
    hello = [{"role": "user", "content": "Hi"}]
    assert again.apply_chat_template(hello, add_generation_prompt=True) == "Hi"  # no chat around it
    toy[1].save_pretrained(tmp_path / "default")
    default = AutoProcessor.from_pretrained(tmp_path / "default")
    assert (default.visual, default.frames_by, default.compat) == ("frame", "index", None)


def test_each_distinct_clip_is_read_once_in_a_call(toy, human, monkeypatch):
    processor, read = toy[1], []
    original, rows = processor.read_clip, [human[0]] * 4 + [human[1]] * 4
    def noted(clip):
        read.append(clip["video"])
        return original(clip)
    monkeypatch.setattr(processor, "read_clip", noted)
    assert len(ask(processor, rows)["input_values"]) == 8 and len(read) == 2
    def cached(clip):
        read.append(clip["video"])
        return dict(video_features=torch.zeros(8, 64))
    read.clear()
    monkeypatch.setattr(processor, "features", cached)  # cached features, too
    assert len(ask(processor, rows)["video_features"]) == 8 and len(read) == 2


def test_a_chat_is_about_one_clip(human):
    one, words = make_prompt(human[1]), [{"role": "user", "content": "no clip"}]
    assert clip_of(one + words)["video"] == human[1]["video"] and clip_of(words) is None
    clips = clips_of([one, words, make_prompt(human[0])])
    assert [c["video"] for c in clips] == [human[1]["video"], human[0]["video"]]
    with pytest.raises(ValueError, match="one clip"): clip_of(one + make_prompt(human[0]))


def test_training_rows_are_padded_right_with_the_loss_on_the_reply(toy, human):
    processor, rows = toy[1], human.select(range(3))
    replies = ["<answer>happy</answer>", "<answer>sad, worried</answer>", "<answer></answer>"]
    batch = processor.training_batch([make_prompt(r) for r in rows], replies)
    ids, mask, labels = batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]
    assert mask[:, 0].all() and not mask[:, -1].all() and (labels[~mask] == -100).all()
    for i, reply in enumerate(replies):
        learnt = processor.tokenizer.decode(ids[i][labels[i] >= 0])
        prompt = processor.tokenizer.decode(ids[i][mask[i] & (labels[i] < 0)])
        assert learnt == reply + "<|im_end|>"
        assert prompt == processor.apply_chat_template(make_prompt(rows[i]),
                                                       add_generation_prompt=True)


def test_a_training_row_is_prompt_and_reply_tokenized_apart(toy, human):
    "In the default mode: ids of the prompt, ids of the reply, the end token"
    processor = toy[1]
    rows = [silent(human[0]), human[1]]
    chats, replies = [make_prompt(r) for r in rows], [make_target(r["labels"]) for r in rows]
    batch = processor.training_batch(chats, replies)
    for i, (chat, reply) in enumerate(zip(chats, replies)):
        [prompt] = processor.apply_chat_template([chat], tokenize=True, add_generation_prompt=True)
        tail = processor.tokenizer(reply)["input_ids"] + [processor.tokenizer.eos_token_id]
        assert batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist() == prompt + tail
        assert batch["labels"][i][:len(prompt) + len(tail)].tolist() == [-100]*len(prompt) + tail
    assert batch["media_mask"].tolist() == [[True, False], [True, True]]
    with pytest.raises(ValueError, match="shorter"): processor.training_batch(chats, replies[:1])


def test_the_authors_training_row_has_a_first_token_and_their_end(toy, human):
    _, compat = both(toy[1])
    batch = compat.training_batch([make_prompt(human[0])], ["happy"])
    row, learnt = batch["input_ids"][0], batch["labels"][0] >= 0
    assert compat.tokenizer.convert_ids_to_tokens(row[:1]) == ["<|im_start|>"]
    assert compat.tokenizer.decode(row[learnt]) == f"happy{END}<|im_end|>"


@given(st.text(max_size=30).filter(lambda t: "<" not in t))
def test_any_subtitle_stands_in_the_template_as_it_is(toy, subtitle):
    chat = make_prompt(dict(name="a", video="a.mp4", audio="a.wav", subtitle=subtitle))
    text = f"<multi><audio><video>\nSubtitle: {subtitle}\n{QUESTIONS['answer']}<|im_end|>"
    assert text in toy[1].apply_chat_template(chat)


@pytest.mark.parametrize("template", [
    "", "{multi}{audio}{video}{subtitle}", "{multi}{video}{audio}{subtitle}{question}",
    FIELDS + "{question}", FIELDS + "{name}", "{}"])
def test_a_wrong_template_is_refused(template):
    with pytest.raises(ValueError, match="once each"): check_prompt_template(template)


def test_faces_are_red_first_by_default_and_blue_first_for_the_released_weights(
        toy, human, tmp_path):
    blue = np.full((9, 48, 48, 3), (255, 0, 0), np.uint8)  # in the order of the file
    np.save(tmp_path / "face.npy", blue)
    row = dict(human[0], face=str(tmp_path / "face.npy"))
    ours, compat = (p.read_clip(row)["pixel_values_videos"] for p in both(toy[1]))
    assert (ours[:, 2] > ours[:, 0]).all() and (compat[:, 0] > compat[:, 2]).all()


def test_sound_is_normalised_by_segment_and_for_the_released_weights_over_the_clip(toy):
    segments = np.random.default_rng(0).normal(.3, 1, (8, 32000)).astype(np.float32)
    segments *= np.arange(1, 9, dtype=np.float32)[:, None]
    ours, compat = (p.sound(segments).numpy() for p in both(toy[1]))
    assert np.allclose(ours.mean(1), 0, atol=1e-4) and np.allclose(ours.std(1), 1, atol=1e-3)
    centred = segments - segments.mean(1, keepdims=True)
    expected = (centred - centred.mean()) / np.sqrt(centred.var() + 1e-7)
    assert np.allclose(compat, expected, atol=1e-4)


def test_tags_survive_decoding(toy):
    tokenizer = toy[1].tokenizer
    text = "<think>a smile</think><answer>happy</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_mask_comes_only_with_a_batch_in_which_something_is_missing(toy, human):
    processor = toy[1]
    assert "media_mask" not in ask(processor, list(human.select(range(2))))
    batch = ask(processor, [silent(human[0]), {**human[1], "video": None}, human[2]])
    assert batch["media_mask"].tolist() == [[True, False], [False, True], [True, True]]

"What must hold of any Hugging Face model, and the faults that are caught before training"
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from affectgpt_r1.data import load_mer2025
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.model import AffectGPTConfig, clips_of, make_prompt, make_toy_model, splice, toy_config
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


def test_left_padded_rows_answer_as_they_would_alone(toy, human):
    model, processor = toy
    rows = sorted(human, key=lambda r: len(r["subtitle"]))
    rows = [rows[0], rows[-1]]
    batch = ask(processor, rows)
    assert batch["attention_mask"][0, 0] == 0  # the shorter one is padded, on the left
    with torch.no_grad():
        for i, row in enumerate(rows):
            assert torch.allclose(model(**batch).logits[i, -1], model(**ask(processor, [row])).logits[0, -1], atol=1e-4)


def test_generation_with_cache_equals_generation_without(toy, human):
    model, processor = toy
    batch = ask(processor, human.select(range(3)))
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


def test_a_prompt_without_its_placeholders_is_refused():
    with pytest.raises(ValueError, match="placeholders"):
        splice(torch.zeros(1, 3, 4), torch.tensor([[9, 3, 4]]), torch.zeros(1, 3, 4), (3, 4, 5))


def test_clip_parts_are_found_in_order(human):
    chats = [make_prompt(human[1]), [{"role": "user", "content": "no clip"}], make_prompt(human[0])]
    assert [c["video"] for c in clips_of(chats)] == [human[1]["video"], human[0]["video"]]


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

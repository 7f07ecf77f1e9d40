"What must hold of any Hugging Face model, and the faults that are caught before training"
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache, read_clips, sector_targets, train_towers
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.model import AffectGPTConfig, clip_of, make_prompt, make_toy_model, splice, toy_config
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.wheels import load_wheels


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


def test_a_chat_is_about_one_clip(human):
    one, words = make_prompt(human[1]), [{"role": "user", "content": "no clip"}]
    assert clip_of(one + words)["video"] == human[1]["video"] and clip_of(words) is None
    with pytest.raises(ValueError, match="one clip"): clip_of(one + make_prompt(human[0]))


def test_tags_survive_decoding(toy):
    tokenizer = toy[1].tokenizer
    text = "<think>a smile</think><answer>happy</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_features_are_computed_once_and_found_by_content(toy, human, tmp_path):
    model, processor = toy
    rows = human.select(range(5))
    cache = FeatureCache(tmp_path, model, processor)
    assert (cache.compute(rows, workers=0), cache.compute(rows, workers=0)) == (5, 0)
    one = dict(rows[0], name="copy", video=str(tmp_path / "copy.mp4"))
    (tmp_path / "copy.mp4").write_bytes(open(rows[0]["video"], "rb").read())
    assert cache.path(one) == cache.path(rows[0])  # the same bytes, another name
    stored, raw = cache(rows[0]), {k: t[None] for k, t in processor.read_clip(rows[0]).items()}
    V, A = model.model.encode_media(**raw)
    assert torch.allclose(stored["video_features"], V[0], atol=1e-5) and torch.allclose(stored["audio_features"], A[0], atol=1e-5)


def test_features_go_on_where_they_were_stopped(toy, human, tmp_path, monkeypatch):
    model, processor = toy
    rows = human.select(range(6))
    cache = FeatureCache(tmp_path, model, processor)
    store = cache._store
    def dies(clips, media):
        if len(list(tmp_path.iterdir())) >= 2: raise KeyboardInterrupt
        store(clips, media)
    monkeypatch.setattr(cache, "_store", dies)
    with pytest.raises(KeyboardInterrupt): cache.compute(rows, batch_size=2, workers=0)
    assert len(list(tmp_path.iterdir())) == 2
    assert FeatureCache(tmp_path, model, processor).compute(rows, workers=0) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_that_cannot_be_read_stops_with_its_name(toy, human, tmp_path, workers):
    model, processor = toy
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    rows = [dict(human[0]), dict(human[1], name="the_bad_one", video=str(tmp_path / "bad.mp4"))]
    with pytest.raises(ValueError, match="the_bad_one(.|\n)*bad.mp4"): FeatureCache(tmp_path / "f", model, processor).compute(rows, workers=workers)


def test_training_the_towers_teaches_and_freezes_them(human):
    model, processor = make_toy_model([r["subtitle"] for r in human])
    log = train_towers(model, processor, human, load_wheels(), epochs=3)
    for name in ("vision", "audio"):
        losses = [r["loss"] for r in log if r["tower"] == name]
        assert losses[-1] < losses[0]
    assert not any(p.requires_grad for p in model.model.audio_tower.parameters())


def test_sector_targets_know_synonyms():
    happy, joyful, nothing = sector_targets([["happy"], ["joyful"], ["zork"]], load_wheels())
    assert torch.equal(happy, joyful) and happy.sum() == 5 and nothing.sum() == 0

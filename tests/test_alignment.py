"""A fusion that begins as a regression onto the decoder's words"""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from test_convert import COMPAT, save_decoder, save_parts
from transformers import Gemma2Config

from affectgpt_r1 import coldstart
from affectgpt_r1.alignment import align_fusion, label_embeddings, media_means, ridge
from affectgpt_r1.checkpoints import load_stage
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.modeling import unwrap_peft
from affectgpt_r1.parts import load_parts, source_hash

WORDS = ["glad", "sad", "angry", "calm"]
KINDS = "multi", "audio", "video"


@pytest.fixture(scope="module")
def parts(tmp_path_factory): return save_parts(tmp_path_factory.mktemp("parts"))


class Features:
    "Features that depend on the first label of a clip, and on noise of its own"
    lacking = {}

    def __call__(self, clip):
        i = int(clip["video"].removesuffix(".mp4"))
        noise, word = (torch.Generator().manual_seed(s) for s in (100 + i, i % len(WORDS)))
        there = torch.tensor(self.lacking.get(i, (True, True)))
        V, A = (3 * torch.randn(width, generator=word) + 5
                + 0.1 * torch.randn(4, width, generator=noise) for width in (40, 64))
        return dict(video_features=V * there[0], audio_features=A * there[1], media_mask=there)


@pytest.fixture
def rows():
    names = [f"{i}.mp4" for i in range(32)]
    labels = [[WORDS[i % 4], WORDS[(i + i // 4) % 4]] for i in range(32)]
    return Dataset.from_dict(dict(name=names, video=names, audio=names, labels=labels,
                                  subtitle=["Well."] * 32, description=[""] * 32))


@pytest.fixture
def made(parts):
    def make(**kwargs):
        model, processor = load_parts(**parts, **kwargs)
        processor.features = Features()
        return model, processor
    return make


@torch.no_grad()
def tokens(fusion, processor, rows):
    "Soft tokens [clips, 3, hidden], 64-bit"
    batch = processor.load_clips([dict(row) for row in rows])
    args = batch["video_features"], batch["audio_features"], batch.get("media_mask")
    return fusion(*args).double()


@pytest.mark.parametrize("fusion", ["attention", "mean"])
def test_each_token_is_the_regression(made, rows, fusion):
    "By the closed form, and by what it is for: the deviations from the mean point to the targets"
    model, processor = made(fusion=fusion)
    T, (V, A, _) = label_embeddings(model, processor, rows["labels"]), media_means(
        model, processor, rows, batch_size=5)
    before = tokens(model.model.fusion, processor, rows)
    align_fusion(model, processor, rows)
    after = tokens(model.model.fusion, processor, rows)
    for i, X in enumerate((torch.cat([V, A], 1), A, V)):
        Z = (X - X.mean(0)) / X.std(0, correction=0)
        m = X.mean(0) / X.std(0, correction=0)
        P = torch.eye(len(m)) - torch.outer(m, m) / (m @ m)   # without the direction to zero
        W = torch.linalg.inv(P @ Z.T @ Z @ P / 32 + 0.3 * torch.eye(len(m))) @ P @ Z.T
        guess = Z @ P @ W @ (T - T.mean(0))
        guess *= (T - T.mean(0)).norm() / guess.norm()
        assert torch.allclose(after[:, i] - T.mean(0), guess, atol=1e-4 * guess.abs().max())
        near = [torch.cosine_similarity(x[:, i] - T.mean(0), T - T.mean(0)).mean().item()
                for x in (before, after)]
        assert near[1] > 0.6 > 0.3 > near[0], (KINDS[i], near)


def test_clips_that_lack_a_channel_teach_the_other_one(made, rows):
    model, processor = made()
    processor.features.lacking = {0: (True, False), 1: (False, True), 2: (True, False)}
    V, A, there = media_means(model, processor, rows)
    T = label_embeddings(model, processor, rows["labels"])
    align_fusion(model, processor, rows)
    for layer, X, on in ((model.model.fusion.video_proj, V, there[:, 0]),
                         (model.model.fusion.audio_proj, A, there[:, 1])):
        W, b = ridge(X[on], T[on], 0.3)
        assert not on.all() and torch.allclose(layer.weight.double(), W, atol=1e-5)
        assert torch.allclose(layer.bias.double(), b, atol=1e-4)
    both = there.all(1)
    found = tokens(model.model.fusion, processor, rows.select([1]))[0]   # it has no video
    assert torch.allclose(found[2], T[there[:, 0]].mean(0), atol=1e-4)   # knows nothing: the mean
    inner = model.model.fusion.multi_audio(A[1].float())
    assert torch.allclose(found[0], model.model.fusion.multi_proj(inner).double(), atol=1e-5)
    nothing = model.model.fusion.multi_proj(torch.zeros_like(inner)).double()
    assert torch.allclose(nothing, T[both].mean(0), atol=1e-5)


def test_no_clip_has_audio(made, rows):
    "Its token, and that of both, stay as they were"
    model, processor = made()
    processor.features.lacking = dict.fromkeys(range(32), (True, False))
    old = {k: x.clone() for k, x in model.model.fusion.state_dict().items()}
    align_fusion(model, processor, rows)
    changed = {k for k, x in model.model.fusion.state_dict().items() if not torch.equal(x, old[k])}
    assert {k.split(".")[0] for k in changed} == {"video_pool", "video_proj"}


def test_clips_that_give_nothing_to_tell_apart(made, rows):
    "One clip, or clips with the same labels: the fusion stays as it is, and still sees its clips"
    model, processor = made()
    old = {k: x.clone() for k, x in model.model.fusion.state_dict().items()}
    for few in (rows.select([0]), rows.select([0] * 3), rows.select([0, 16])):
        align_fusion(model, processor, few)
        assert all(torch.equal(x, old[k]) for k, x in model.model.fusion.state_dict().items())


@pytest.mark.parametrize("n", [2, 3, 7, 100])
def test_rounding_is_nothing_to_learn_from(n):
    "Equal features, or equal targets, whose mean is not quite any of them"
    same, other = torch.rand(1, 5).double().repeat(n, 1) + 0.1, torch.randn(n, 5).double()
    for X, T in ((same, other), (other, same)):
        W, b = ridge(X, T, 0.3)
        assert not W.any() and torch.allclose(b, T.mean(0))


@pytest.mark.parametrize("how, why", [(dict(fusion="qformer"), "has Q-Formers"),
                                      (COMPAT, "as the released weights")])
def test_a_fusion_without_such_layers_is_refused(made, rows, tmp_path, how, why):
    model, processor = made(**how, preset="laptop")
    with pytest.raises(ValueError, match=f"{why}.*give align=False"):
        cold_start(model, processor, rows, tmp_path / "run", epochs=1, lora=None)


def test_a_fusion_that_is_not_trained_is_refused(made, rows, tmp_path):
    "It would be changed, and not saved with the adapters"
    model, processor = made(preset="laptop")
    lora = LoraConfig(target_modules=r".*language_model.*\.q_proj", r=2)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="does not train its fusion"):
        cold_start(model, processor, rows, tmp_path / "run", max_steps=1, lora=lora)


def test_embeddings_that_are_scaled(parts, tmp_path):
    "Gemma multiplies what it looks up; the targets are what its decoder reads"
    save_decoder(tmp_path / "text", Gemma2Config, 20, head_dim=8)
    model, processor = load_parts(**parts | dict(text_path=tmp_path / "text"))
    embed = model.get_input_embeddings()
    ids = processor.tokenizer(" glad", add_special_tokens=False)["input_ids"]
    wanted = embed(torch.tensor(ids)).double().mean(0)
    assert not torch.allclose(wanted, embed.weight[ids].double().mean(0), atol=1e-3)
    assert torch.allclose(label_embeddings(model, processor, [["glad"]])[0], wanted)


def test_the_stages_of_a_run(made, rows, tmp_path, monkeypatch):
    "The first stage aligns what its adapters train, and no later one does; a resumed run neither"
    model, processor = made(preset="laptop")
    before, random = source_hash(model), model.model.fusion.video_proj.weight.clone()
    seen = []

    def align(model, processor, rows):
        align_fusion(model, processor, rows)
        fusion = unwrap_peft(model).model.fusion.modules_to_save["default"]
        seen.append({k: x.clone() for k, x in fusion.state_dict().items()})

    monkeypatch.setattr(coldstart, "align_fusion", align)
    how = dict(max_steps=2, batch_size=4, warmup_steps=0, save_steps=1, learning_rate=1e-9)
    cold_start(model, processor, rows, tmp_path / "first", **how)
    assert source_hash(model) == before and len(seen) == 1
    wrapped = unwrap_peft(model).model.fusion
    assert torch.equal(wrapped.original_module.video_proj.weight, random)
    again, processor = load_stage(tmp_path / "first")
    processor.features = Features()
    kept = unwrap_peft(again).model.fusion.modules_to_save["default"].state_dict()
    assert all(torch.allclose(x, seen[0][k], atol=1e-6) for k, x in kept.items())
    assert not torch.allclose(kept["video_proj.weight"], random, atol=1e-3)
    cold_start(again, processor, rows, tmp_path / "second", **how)
    assert len(seen) == 1
    abouts = [json.loads((tmp_path / f / "run.json").read_text()) for f in ("first", "second")]
    assert [about["align"] for about in abouts] == [True, False]


def test_a_resumed_run_keeps_its_weights(made, rows, tmp_path, monkeypatch):
    count = []
    monkeypatch.setattr(coldstart, "align_fusion", lambda *args: count.append(align_fusion(*args)))
    how = dict(max_steps=3, batch_size=4, warmup_steps=0, save_steps=1)

    class Stop(coldstart.TrainerCallback):
        def on_save(self, args, state, control, **kwargs): raise KeyboardInterrupt

    model, processor = made(preset="laptop")
    cold_start(model, processor, rows, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        cold_start(*made(preset="laptop"), rows, tmp_path / "run", callbacks=[Stop()], **how)
    Stop.on_save = lambda *args, **kwargs: None
    resumed, processor = made(preset="laptop")
    cold_start(resumed, processor, rows, tmp_path / "run", callbacks=[Stop()], **how)
    assert len(count) == 2
    a, b = (dict(unwrap_peft(m).model.fusion.modules_to_save["default"].named_parameters())
            for m in (model, resumed))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)

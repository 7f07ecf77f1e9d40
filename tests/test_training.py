"Cold start and GRPO on a handful of clips: the failures that would be silent"
import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import numpy as np
from transformers import AutoModelForCausalLM, AutoProcessor
from trl import GRPOConfig

from affectgpt_r1.coldstart import Collator, cold_start, fit, machine_settings, quiet, target_text
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.grpo import AffectGRPOTrainer, grpo_rows, token_logps, train_grpo
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.model import MEDIA_KEYS, make_prompt, make_toy_model
from affectgpt_r1.rewards import make_rewards
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.wheels import load_wheels


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder with the smallest corpus and its features, and how to make a fresh model for it"
    root = tmp_path_factory.mktemp("lab")
    corpus = make_toy_corpus(root / "corpus", preset="smoke", seed=0)
    captions, human = load_mer2025(corpus, "caption"), load_mer2025(corpus, "human")
    texts = [target_text(r, "think") + r["subtitle"] for r in captions] + list(QUESTIONS.values())

    def fresh():
        model, processor = make_toy_model(texts)
        processor.features = FeatureCache(root / "features", model, processor)
        return model, processor

    model, processor = fresh()
    for split in (captions, human): processor.features.compute(split)
    return dict(root=root, captions=captions, human=human, fresh=fresh)


def trainer(lab, model, processor, **settings):
    rewards, weights = make_rewards("acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
    defaults = dict(max_steps=1, per_device_train_batch_size=8, num_generations=4, max_completion_length=8,
                    generation_kwargs={"suppress_tokens": processor.placeholder_ids}, reward_weights=weights)
    with quiet():
        args = GRPOConfig(str(lab["root"] / "trainer"), **machine_settings() | defaults | settings)
        return AffectGRPOTrainer(model, rewards, args, grpo_rows(lab["human"]), processing_class=processor)


def generated(t, n=2, group=4):
    "A batch of `n` clips with `group` answers each, as the trainer buffers it"
    rows = [t.train_dataset[i] for i in range(n) for _ in range(group)]
    with quiet(): return t._generate_and_score_completions(rows)


def sequences(batch):
    return (torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), batch["completion_ids"].shape[1])


def test_features_reach_the_log_probs_of_the_loss(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    batch = generated(t)
    ids, mask, n = sequences(batch)
    media = {k: batch[k] for k in MEDIA_KEYS if k in batch}
    assert set(media) == {"video_features", "audio_features"}

    def logps(features):
        t._media = features
        with torch.no_grad(), quiet(): return t._get_per_token_logps_and_entropies(model, ids, mask, n)[0]

    written = batch["completion_mask"].bool()
    right, other = logps(media), logps({k: v.roll(4, 0) for k, v in media.items()})
    assert (right - other)[written].abs().max() > 1e-3
    with torch.no_grad(): plain = token_logps(model, ids, mask, n, **media)
    assert torch.allclose(right[written], plain[written], atol=1e-5)


def test_the_loss_itself_changes_with_the_features(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    batch = generated(t)
    batch["advantages"] = torch.linspace(-1, 1, len(batch["advantages"]))
    ids, mask, n = sequences(batch)
    with torch.no_grad():
        batch["old_per_token_logps"] = token_logps(model, ids, mask, n, **{k: batch[k] for k in MEDIA_KEYS if k in batch})
    t.current_gradient_accumulation_steps = 1
    def loss(b):
        with quiet(): return t._compute_loss(model, b).item()
    swapped = {**batch, **{k: batch[k].roll(4, 0) for k in MEDIA_KEYS if k in batch}}
    assert abs(loss(batch) - loss(swapped)) > 1e-5


def test_chunks_of_log_probs_equal_the_whole(lab):
    model, processor = lab["fresh"]()
    t = trainer(lab, model, processor)
    batch = generated(t)
    ids, mask, n = sequences(batch)
    t._media = {k: batch[k] for k in MEDIA_KEYS if k in batch}
    with torch.no_grad(), quiet():
        whole = t._get_per_token_logps_and_entropies(model, ids, mask, n)[0]
        parts = t._get_per_token_logps_and_entropies(model, ids, mask, n, batch_size=3)[0]
    assert torch.allclose(whole, parts, atol=1e-5)


def test_rows_stay_with_their_clip_after_shuffling(lab):
    model, processor = lab["fresh"]()
    seen = []

    class Spy(AffectGRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append({k: inputs[k] for k in ("prompt_ids", "video_features")})
            return super()._compute_loss(model, inputs)

    t = trainer(lab, model, processor, max_steps=2, per_device_train_batch_size=4, steps_per_generation=2)
    t.__class__ = Spy
    with quiet(): fit(t, "spy")
    clips = {row["prompt"][0]["content"][1]["text"]: row["prompt"] for row in t.train_dataset}
    by_features = {}
    for row in lab["human"]: by_features[processor.features(row)["video_features"].sum().item()] = row["subtitle"]
    assert len(seen) == 2
    for batch in seen:
        for ids, V in zip(batch["prompt_ids"], batch["video_features"]):
            assert by_features[V.sum().item()] in processor.tokenizer.decode(ids)
    assert clips


def test_gradient_reaches_every_tensor_of_the_fusion_and_none_of_the_towers(lab):
    model, processor = lab["fresh"]()
    batch = Collator(processor)([lab["captions"][i] for i in range(4)])
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.model.fusion.parameters() if p.shape != (1,))
    assert all(p.grad is None for tower in (model.model.vision_tower, model.model.audio_tower) for p in tower.parameters())


def test_placeholders_are_never_sampled(lab):
    model, processor = lab["fresh"]()
    batch = generated(trainer(lab, model, processor, max_completion_length=24), n=4)
    assert not torch.isin(batch["completion_ids"], torch.tensor(processor.placeholder_ids)).any()


@pytest.mark.parametrize("mode", ["answer", "think"])
def test_both_modes_train_save_and_load(lab, mode):
    model, processor = lab["fresh"]()
    before = model.lm_head.weight.detach().clone()
    log = cold_start(model, processor, lab["captions"], lab["root"] / f"cold-{mode}", mode=mode, epochs=1, logging_steps=1)
    assert any("loss" in r for r in log)
    rewards = make_rewards("acc+format", wheels=load_wheels(), penalty="p2", mode=mode)
    log = train_grpo(model, processor, lab["human"], rewards, lab["root"] / f"grpo-{mode}", mode=mode, steps=2, prompts=2, group=4)
    assert {"reward", "rewards/accuracy/mean", "rewards/format/mean"} <= set(log[0])
    assert not torch.equal(before, model.lm_head.weight)
    loaded = AutoModelForCausalLM.from_pretrained(lab["root"] / f"grpo-{mode}")
    again = AutoProcessor.from_pretrained(lab["root"] / f"grpo-{mode}")
    inputs = again.apply_chat_template([make_prompt(lab["human"][0], mode)], tokenize=True, return_dict=True,
                                       add_generation_prompt=True, return_tensors="pt")
    for p in loaded.parameters(): p.data = p.data.clone()  # loaded, they lie in memory as in the file, and the place decides the last bit of a sum
    with torch.no_grad(): assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


def test_same_seed_same_numbers(lab):
    def run():
        model, processor = lab["fresh"]()
        cold = cold_start(model, processor, lab["captions"], lab["root"] / "twice", epochs=2, seed=3)
        rewards = make_rewards("acc+format", wheels=load_wheels(), penalty="p3+1", mode="answer")
        grpo = train_grpo(model, processor, lab["human"], rewards, lab["root"] / "twice", steps=2, prompts=2, group=4, seed=3)
        return [r["loss"] for r in cold if "loss" in r], [r["reward"] for r in grpo if "reward" in r], model.lm_head.weight.detach()
    (loss1, reward1, w1), (loss2, reward2, w2) = run(), run()
    assert loss1 == loss2 and reward1 == reward2
    assert np.array_equal(w1.numpy(), w2.numpy())


def test_thinking_without_descriptions_is_refused(lab):
    model, processor = lab["fresh"]()
    with pytest.raises(ValueError, match=r"human_\d+.*no description"):
        cold_start(model, processor, lab["human"], lab["root"] / "none", mode="think", epochs=1)

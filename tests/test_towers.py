"The toy's encoders: taught at the same time as one after the other, and probed"
import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import numpy as np
from torch import nn

from affectgpt_r1 import towers
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.towers import (
    best_answers, clip_means, fit_probe, probe_modalities, sector_targets, train_towers,
    word_counts)
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()


@pytest.fixture(scope="module")
def human(tmp_path_factory):
    corpus = make_toy_corpus(tmp_path_factory.mktemp("lab") / "corpus", preset="smoke", seed=1)
    return load_mer2025(corpus, "human")


@pytest.fixture
def toy(): return make_toy_model(["some words"])


def weights(model):
    encoders = model.model.vision_tower, model.model.audio_tower
    return [w for tower in encoders for w in tower.state_dict().values()]


def test_training_the_towers_teaches_and_freezes_them(toy, human):
    model, processor = toy
    log = train_towers(model, processor, human, wheels, epochs=3)
    assert [(r["tower"], r["epoch"]) for r in log] == [
        (name, i) for name in ("vision", "audio") for i in range(3)]
    for name in ("vision", "audio"):
        losses = [r["loss"] for r in log if r["tower"] == name]
        assert losses[-1] < losses[0]
    for tower in (model.model.vision_tower, model.model.audio_tower):
        assert not tower.training and not any(p.requires_grad for p in tower.parameters())


def test_at_the_same_time_as_one_after_the_other(human, monkeypatch):
    "The same weights to the last bit, the same losses, and the same random numbers afterwards"
    found, real = [], towers._teach_together
    for cores in (1, 2):
        together = []
        def watched(*args, **kwargs):
            together.append(True)
            return real(*args, **kwargs)
        monkeypatch.setattr(towers, "_teach_together", watched)
        monkeypatch.setattr(towers, "usable_cores", lambda: cores)
        model, processor = make_toy_model(["some words"])
        log = train_towers(model, processor, human, wheels, epochs=2, seed=3)
        found.append((weights(model), log, torch.rand(1)))
        assert len(together) == cores - 1
    (one, log, after), (two, log_two, after_two) = found
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert log == log_two and after == after_two


def test_another_seed_gives_other_weights(human):
    found = []
    for seed in (0, 1):
        model, processor = make_toy_model(["some words"])
        train_towers(model, processor, human.select(range(9)), wheels, epochs=1, seed=seed)
        found.append(weights(model))
    assert not all(torch.equal(a, b) for a, b in zip(*found))


def test_an_encoder_with_dropout_has_its_turn(human, monkeypatch):
    "Dropout draws from the one global generator, so the order of the two matters"
    monkeypatch.setattr(towers, "usable_cores", lambda: 2)
    monkeypatch.setattr(towers, "_teach_together", lambda *args, **kwargs: pytest.fail("together"))
    found = []
    for _ in range(2):
        model, processor = make_toy_model(["some words"])
        for module in model.model.audio_tower.modules():
            if isinstance(module, nn.Dropout): module.p = .1
        train_towers(model, processor, human.select(range(9)), wheels, epochs=1)
        found.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_an_error_in_one_encoder_stops_the_other(toy, human, monkeypatch):
    model, processor = toy
    real, steps, threads = towers._take_steps, [], torch.get_num_threads()
    def breaks(lesson, *args):
        if lesson.name == "audio": raise ArithmeticError("audio broke")
        steps.append(lesson.name)
        return real(lesson, *args)
    monkeypatch.setattr(towers, "usable_cores", lambda: 2)
    monkeypatch.setattr(towers, "_take_steps", breaks)
    with pytest.raises(ArithmeticError, match="audio broke"):
        train_towers(model, processor, human.select(range(9)), wheels, epochs=10_000)
    assert len(steps) < 10_000 and torch.get_num_threads() == threads


def test_a_tower_learns_from_the_clips_that_have_its_modality(toy, human, monkeypatch):
    seen = {}
    def record(lesson, *args, **kwargs):
        seen[lesson.name] = len(lesson.media), len(lesson.targets)
        return []
    monkeypatch.setattr(towers, "_teach", record)
    rows = [dict(r) for r in human.select(range(8))]
    for i in range(3): rows[i]["audio"] = ""
    rows[5]["video"] = ""
    train_towers(*toy, human.from_list(rows), wheels)
    assert seen == dict(vision=(7, 7), audio=(5, 5))


@pytest.mark.parametrize("gpu", [True, False])
def test_towers_are_trained_where_the_other_stages_train(toy, human, monkeypatch, gpu):
    model, processor = toy
    moves = []
    def record(*args, **kwargs):
        moves.append("trained")
        return []
    monkeypatch.setattr(towers.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(model, "to", moves.append)
    monkeypatch.setattr(towers, "_teach", record)
    train_towers(model, processor, human.select(range(3)), wheels)
    assert moves == ["cuda" if gpu else "cpu", "trained", "trained"]


def test_clips_follow_a_tower_to_its_device_batch_by_batch(monkeypatch):
    "The device `meta` is another one than the CPU, and numbers of two devices do not meet"
    monkeypatch.setattr(torch.Tensor, "item", lambda x: 1.)   # a loss there has no value
    encoders = make_toy_model(["some words"])[0].to("meta").model
    for tower, encode, x in (
        (encoders.vision_tower, towers.frame_features, torch.zeros(6, 8, 3, 48, 48)),
        (encoders.audio_tower, towers.segment_features, torch.zeros(6, 2, 32000))):
        seen = []
        tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        lesson = towers._Lesson("tower", tower, encode, x, 1, torch.zeros(6, 33))
        towers._add_head(lesson, 0)
        [log] = towers._teach_all([lesson], epochs=2, batch_size=2, learning_rate=1e-3, holdout=.5)
        assert len(log) == 2 and tower.device.type == "meta" and x.device.type == "cpu"
        # one clip for the width; in each epoch three clips to learn from and three held out
        assert seen == [1] + 2 * [2, 1, 2 * x.shape[1], x.shape[1]]


def test_sector_targets_know_synonyms():
    happy, joyful, nothing = sector_targets([["happy"], ["joyful"], ["zork"]], wheels)
    assert torch.equal(happy, joyful) and happy.sum() == 5 and nothing.sum() == 0


def test_the_probe_is_logistic_regression():
    "At the optimum the gradient of the mean loss with its penalty is zero, computed here by hand"
    torch.manual_seed(0)
    X, Y = torch.randn(120, 4).double() * 3 + 1, (torch.rand(120, 3) > .6).double()
    Z = (X - X.mean(0)) / X.std(0, correction=0)
    for penalty in (1e-3, 1e-1):
        p = towers._logistic(X, Y, penalty)(X)
        logit = p.logit()
        b = logit.mean(0)
        W = torch.linalg.lstsq(Z, logit - b).solution
        assert torch.allclose(Z @ W + b, logit, atol=1e-4)                # linear in the features
        gradient = Z.T @ (p - Y) / len(Y) + 2 * penalty * W
        assert torch.allclose(gradient, torch.zeros(4, 3).double(), atol=1e-4)


def test_the_penalty_is_the_best_one_on_every_fourth_clip():
    torch.manual_seed(1)
    X = torch.randn(80, 30)
    Y = (X[:, :2] + torch.randn(80, 2) > 0).float()
    rows = torch.arange(80) % 4 == 3
    def held_out(penalty):
        p = towers._logistic(X[~rows], Y[~rows], penalty)(X[rows])
        return nn.functional.binary_cross_entropy(p, Y[rows]).item()
    choice = (1e-4, 1e-1, 10.)
    best = min(choice, key=held_out)
    assert best == 1e-1
    assert torch.equal(fit_probe(X, Y, choice)(X), towers._logistic(X, Y, best)(X))


def test_sectors_that_all_or_no_clips_name(recwarn):
    "The probe answers with what it has seen there, and the other sectors are untouched"
    torch.manual_seed(0)
    X = torch.randn(40, 3)
    Y = torch.stack([torch.zeros(40), (X[:, 0] > 0).float(), torch.ones(40)], 1)
    p = fit_probe(X, Y)(torch.randn(5, 3))
    assert p[:, 0].tolist() == [0] * 5 and p[:, 2].tolist() == [1] * 5
    assert torch.equal(fit_probe(X, Y[:, 1:2])(X)[:, 0], fit_probe(X, Y)(X)[:, 1])
    assert not recwarn.list


def test_a_sector_that_only_held_out_clips_name():
    X, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 1)
    y[[3, 7]] = 1   # every fourth clip is held out
    assert fit_probe(X, y)(X).isfinite().all()


def test_best_answers_score_best_where_the_sectors_are_known():
    gold = [["happy"], ["sad", "angry"], ["scared"], ["surprised", "happy"]]
    choice = [["joyful"], ["unhappy", "mad"], ["afraid"], ["startled", "glad"],
              ["happy", "sad", "angry", "scared"], ["bored"]]
    got = best_answers(sector_targets(gold, wheels), choice, wheels)
    for g, a in zip(gold, got):
        best = max(ew_rewards([g], [c], wheels)[0] for c in choice)
        assert ew_rewards([g], [a], wheels)[0] == best


class Rows(list):
    "A list of dicts that gives its columns, as a data set does"
    def __getitem__(self, k):
        return [r[k] for r in self] if isinstance(k, str) else list.__getitem__(self, k)


def test_a_probe_of_two_halves_needs_both():
    "Only face and voice together tell the label: their fusion must find it, neither alone can"
    rng = torch.Generator().manual_seed(0)
    words, signal = ["happy", "sad", "angry", "scared"], {}
    def split(name, n):
        face, voice = (torch.randint(2, (n,), generator=rng).tolist() for _ in range(2))
        for i in range(n): signal[name, i] = dict(video=face[i], audio=voice[i])
        return Rows(dict(name=name, i=i, labels=[words[2*face[i] + voice[i]]], subtitle="x")
                    for i in range(n))
    train, test = split("train", 200), split("test", 60)
    def cache(row):
        return {f"{k}_features": torch.full((8, 3), float(x)) + .1*torch.randn(8, 3, generator=rng)
                for k, x in signal[row["name"], row["i"]].items()}
    answers = probe_modalities(cache, train, test, wheels)
    gold = test["labels"]
    right = {k: np.mean([x == y for x, y in zip(got, gold)]) for k, got in answers.items()}
    assert right["face + voice"] > .95 and right["face + voice + words"] > .95
    assert max(right["face"], right["voice"]) < .75 and right["words"] < .5
    assert len({tuple(x) for x in answers["nothing"]}) == 1


def test_word_counts():
    assert word_counts(["A b", "c d"], ["b a a", "d"]).tolist() == [[1, 1, 0], [0, 0, 1]]


def test_means_of_clips(toy, human, tmp_path):
    cache = FeatureCache(tmp_path, *toy)
    cache.compute(human.select(range(3)), *toy)
    got = clip_means(cache, human.select(range(3)))
    assert torch.equal(got["audio"][1], cache(human[1])["audio_features"].mean(0))
    assert got["video"].shape == (3, 64)

"""The benchmark: one call for nine sets, the published row from the authors' files, a close look"""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from affectgpt_r1.benchmark import (
    calibration, calibration_error, group_scores, label_confidence,
    polarity, predict_unibench, sector_confusion, sector_scores, unibench_difference,
    unibench_scores, unibench_table, write_answers)
from affectgpt_r1.intervals import METRIC_OF, clip_columns, score_of_sums
from affectgpt_r1.metrics import ew_score, hit_rate, sentiment_score
from affectgpt_r1.unibench import UNIBENCH, read_answers, unibench
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
repo = Path(__file__).resolve().parents[1]
reference = Path(os.environ.get("AFFECTGPT_R1_REFERENCE", repo.parent/"shared/reference"))
WORDS = ["happy", "glad", "sad", "angry", "worried", "surprised", "disgusted", "zork"]
gold_words = st.lists(st.sampled_from(WORDS[:-1]), min_size=1, max_size=3)
pred_words = st.lists(st.sampled_from(WORDS), max_size=4)
names = st.integers(0, 30).map(str)
answers = st.dictionaries(names, st.tuples(gold_words, pred_words), min_size=2)


def sides(pairs):
    "Gold and answers of generated pairs"
    return {n: g for n, (g, _) in pairs.items()}, {n: p for n, (_, p) in pairs.items()}


@pytest.mark.skipif(not (reference/"predictions/expected.json").is_file(),
                    reason=f"the authors' data are not in {reference}")
def test_the_row_of_affectgpt():
    "From the authors' files; published with the best of seven checkpoints, of which we have three"
    v1 = load_wheels("v1", reference/"emotion_wheel/v1")
    scores = unibench_scores(reference/"predictions", reference/"labels", wheels=v1,
                             protocol="best-on-test", draws=50)
    row = unibench_table({"from the files": scores})
    ours, published = row.loc["from the files"], row.loc["AffectGPT"]
    for key in ("MELD", "CMUMOSEI", "SIMS"): assert round(ours[key], 2) == published[key]
    for key in ("MER2023", "IEMOCAPFour", "CMUMOSI", "SIMSv2"):
        assert published[key] - 4 < ours[key] < published[key]
    # two label files are not public, so there is no mean of nine
    assert np.isnan(ours[["MER2024", "OVMERDPlus", "mean"]].astype(float)).all()
    assert (scores["low"] < scores["score"]).all() and (scores["score"] < scores["high"]).all()


@given(answers)
def test_scores_are_those_of_their_sums(pairs):
    gold, pred = sides(pairs)
    value = {n: float(len(p) - 2) for n, p in pred.items()}
    word = {n: polarity(g, wheels) for n, g in gold.items()}
    one = {n: g[:1] for n, g in gold.items()}
    def of_sums(measure, g, a):
        metric = METRIC_OF[measure]
        return score_of_sums(metric, clip_columns(metric, g, a, wheels).sum(0))
    def close(x): return pytest.approx(x, abs=1e-12)
    assert of_sums("EW F", gold, pred) == close(ew_score(gold, pred, wheels).f)
    assert of_sums("hit rate", one, pred) == close(hit_rate(one, pred, wheels).hit_rate)
    if any(value.values()):
        assert of_sums("WAF", value, word) == close(sentiment_score(value, word).waf)


def test_polarity_is_voted_on():
    "By words, not by sectors: a second pleasant word counts, though it is in the same sector"
    assert polarity(["happy", "glad", "sad"], wheels) == "positive"
    assert polarity(["glad", "furious", "nervous"], wheels) == "negative"
    for words in ([], ["zork"], ["happy", "sad"], ["surprised"]):
        assert polarity(words, wheels) == "neutral"


def test_answers_are_read_back(tmp_path):
    labels = {"a": ["happy", "self-conscious"], "b": [], "c": ["on cloud nine"]}
    for key in ("MELD", "SIMS"): write_answers(tmp_path, key, labels, wheels, checkpoint=7)
    words = read_answers(tmp_path/"meld/checkpoint_000007-openset.npz")
    assert words == {"a": "[happy, self-conscious]", "b": "[]", "c": "[on cloud nine]"}
    polarities = read_answers(tmp_path/"sims/checkpoint_000007-openset-sentiment.npz")
    # two words that cancel out; none; one
    assert polarities == {"a": "neutral", "b": "neutral", "c": "positive"}
    assert not (tmp_path/"meld/checkpoint_000007-openset-sentiment.npz").exists()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Labels and subtitles of a generated MER-UniBench, without media"
    from affectgpt_r1 import toy
    root = tmp_path_factory.mktemp("bench")
    toy.write_annotations(root, dict(caption=1, human=1, test=6, unibench=8), seed=0)
    return root/"unibench"


class Says:
    "A model that gives every clip the same answer"
    device, training = "cpu", False
    generation_config = SimpleNamespace(top_k=None)
    def __init__(self, said): self.said = said
    def state_dict(self): return {}
    def modules(self): return iter(())
    def train(self, mode=True): return self
    def eval(self): return self
    def generate(self, input_ids, **how): return np.concatenate([input_ids, input_ids], 1)
    def apply_chat_template(self, chats, **how):
        import torch
        return dict(input_ids=torch.zeros(len(chats), 1, dtype=torch.long))
    def batch_decode(self, ids, **how): return [self.said] * len(ids)


def answered(said, corpus, out, **how):
    pytest.importorskip("torch")
    with pytest.warns(UserWarning, match="masked"):
        return predict_unibench(Says(said), Says(said), corpus, out, missing="mask",
                                prompt=lambda row, mode: row["name"], **how)


def test_one_call(corpus, tmp_path):
    "A constant answer gets the constant's score; a set that was answered is not answered again"
    out = answered("<answer>happy, sad, angry</answer>", corpus, tmp_path/"a", checkpoint=3)
    scores = unibench_scores(out, corpus, draws=20).set_index("dataset")
    hits = scores[scores["measure"] == "hit rate"]
    assert list(scores.index) == [*UNIBENCH, "mean"]
    assert scores["checkpoint"].dropna().eq(3).all()
    assert hits["score"].tolist() == hits["constant"].tolist()
    # the weights are the same, so the model is not asked again
    answered("another answer", corpus, tmp_path/"a", checkpoint=3)
    assert unibench_scores(out, corpus, draws=20).set_index("dataset").equals(scores)


def test_differences(corpus, tmp_path):
    a = answered("<answer>happy</answer>", corpus, tmp_path/"a")
    b = answered("<answer>happy, sad, angry, worried</answer>", corpus, tmp_path/"b")
    def difference(*pair):
        return unibench_difference(*pair, corpus, draws=100).set_index("dataset")
    d, there, back = difference(a, a), difference(a, b), difference(b, a)
    assert not d[["difference", "low", "high"]].any(axis=None) and (d["p"] == 1).all()
    assert there["difference"].values == pytest.approx(-back["difference"].values)
    assert there["low"].values == pytest.approx(-back["high"].values)
    table = [unibench(x, corpus).table.set_index("dataset")["score"] for x in (a, b)]
    assert there.loc["MELD", "difference"] == pytest.approx(table[1]["MELD"] - table[0]["MELD"])
    few = answered("<answer>happy</answer>", corpus, tmp_path/"few", sets=["MELD"])
    with pytest.raises(ValueError, match="different sets: MER2023.* and MELD"):
        unibench_difference(a, few, corpus, draws=5)


@given(answers)
def test_confusion_counts_what_it_says(pairs):
    gold, pred = sides(pairs)
    table, found = sector_confusion(gold, pred, wheels, 2), sector_scores(gold, pred, wheels, 2)
    def sectors(words): return {wheels.cluster(w, 2) for w in words}
    for g in table.index:
        for q in table.columns:
            with_gold = [n for n in gold if g in sectors(gold[n])]
            clips = [n for n in with_gold if q == g or q not in sectors(gold[n])]
            share = np.mean([q in sectors(pred[n]) for n in clips]) if clips else np.nan
            assert table.loc[g, q] == pytest.approx(share, nan_ok=True)
        assert found.loc[g, "gold"] == sum(g in sectors(x) for x in gold.values())


@given(answers)
def test_groups_share_out_the_clips(pairs):
    gold, pred = sides(pairs)
    groups = {n: "even" if int(n) % 2 == 0 else "odd" for n in gold}
    table = group_scores(gold, pred, groups, wheels)
    assert table["clips"].sum() == len(gold)
    for group, row in table.iterrows():
        g, q = ({n: x[n] for n in gold if groups[n] == group} for x in (gold, pred))
        assert row["f"] == ew_score(g, q, wheels).f


def test_calibration():
    gold = {str(i): ["happy"] for i in range(10)}
    words = {n: "glad" if int(n) < 7 else "sad" for n in gold}
    said = {n: SimpleNamespace(probabilities={words[n]: .7, "zork": .9}) for n in gold}
    table = label_confidence(gold, said, wheels)
    assert len(table) == 10 and calibration(table)["right"].item() == pytest.approx(.7)
    assert calibration_error(table) == pytest.approx(0)
    assert calibration_error(table.assign(probability=1.)) == pytest.approx(.3)


def test_needs_no_torch_and_no_media():
    heavy = "{'torch', 'transformers', 'datasets', 'av', 'scipy', 'sklearn'}"
    code = f"import sys, affectgpt_r1.benchmark; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

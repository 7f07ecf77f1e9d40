"Metrics: properties that hold for all answers, and errors that name what is wrong"
import importlib.util
import json
import multiprocessing
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from affectgpt_r1 import ew_sums
from affectgpt_r1 import metrics as M
from affectgpt_r1.metrics import (
    EWScore, ew_difference, ew_interval, ew_rewards, ew_score, hit_rate, mer2025_score, ovmer_score,
    seed_interval, sentiment_score)
from affectgpt_r1.wheels import load_wheels

w = load_wheels()
label = st.sampled_from(w.vocabulary[::7] + ["zork", "neutral", "", "Happy ", "FURIOUS"])
labels = st.lists(label, max_size=5)
clips = st.lists(st.tuples(labels, labels), min_size=1, max_size=8)
corpus = clips.map(lambda x: tuple(map(list, zip(*x))))
level = st.sampled_from([1, 2])

def by_hand(gold, pred, level):
    "The score as its definition reads, with sets and loops"
    rows = []
    for wheel in range(1, 6):
        sets = [[{w.cluster(x, wheel, level) for x in a} - {None} for a in side]
                for side in (gold, pred)]
        both = [(g, q) for g, q in zip(*sets) if g]
        n = max(len(both), 1)
        p = sum(len(g & q)/len(q) if q else 0 for g, q in both)/n
        r = sum(len(g & q)/len(g) for g, q in both)/n
        rows.append((2*p*r/(p + r) if p + r else 0, p, r))
    return np.mean(rows, axis=0)

@settings(max_examples=200)
@given(corpus, level)
def test_the_score_is_its_definition(c, level):
    s = ew_score(*c, level=level)
    np.testing.assert_allclose([s.f, s.precision, s.recall], by_hand(*c, level), atol=1e-12)

@given(corpus, level)
def test_scores_lie_between_0_and_1(c, level):
    s, o, m = ew_score(*c, level=level), ovmer_score(*c), mer2025_score(*c)
    values = [s.f, s.precision, s.recall, s.coverage, s.never_scored, m.score]
    values += [o.m_avg, *o.columns.f]
    values += list(s.per_wheel[["f", "precision", "recall"]].values.flat)
    for measure in ("f", "precision", "recall", "jaccard"):
        values += list(ew_rewards(*c, level=level, measure=measure))
    assert all(0 <= v <= 1 + 1e-12 for v in values)

@given(corpus, st.randoms())
def test_order_and_duplicates_do_not_matter(c, random):
    mixed = [[random.sample(a, len(a)) + a[:1] for a in side] for side in c]
    assert ew_score(*mixed).f == pytest.approx(ew_score(*c).f, abs=1e-12)
    assert ovmer_score(*mixed).m_avg == pytest.approx(ovmer_score(*c).m_avg, abs=1e-12)
    np.testing.assert_array_equal(ew_rewards(*mixed), ew_rewards(*c))

@given(st.lists(labels, min_size=1, max_size=6), level)
def test_gold_as_answer_gives_1_where_anything_maps(gold, level):
    s = ew_score(gold, gold, level=level)
    known = s.per_wheel.n_scored > 0
    np.testing.assert_allclose(s.per_wheel.loc[known, ["f", "precision", "recall"]], 1)
    maps = [any(w.cluster(x, i, level) for x in g for i in range(1, 6)) for g in gold]
    np.testing.assert_allclose(ew_rewards(gold, gold, level=level), np.array(maps, float))

known_words = st.lists(st.sampled_from(w.vocabulary[::7]), min_size=1, max_size=4)

@given(st.lists(st.tuples(known_words, known_words), min_size=1, max_size=6), level)
def test_swapping_sides_swaps_precision_and_recall(pairs, level):
    def on_all(answer):
        return all(any(w.cluster(x, i, level) for x in answer) for i in range(1, 6))
    pairs = [p for p in pairs if all(map(on_all, p))] or [(["happy"], ["angry", "glad"])]
    gold, pred = map(list, zip(*pairs))
    a, b = ew_score(gold, pred, level=level), ew_score(pred, gold, level=level)
    swapped = [b.f, b.recall, b.precision]
    np.testing.assert_allclose([a.f, a.precision, a.recall], swapped, atol=1e-12)
    there, back = ew_rewards(gold, pred, level=level), ew_rewards(pred, gold, level=level)
    np.testing.assert_allclose(there, back, atol=1e-12)

same = {tuple(w.encode([x]).tolist()): x for x in w.vocabulary}   # a word for each set of sectors

@given(corpus)
def test_a_word_of_a_predicted_sector_changes_nothing(c):
    gold, pred = c
    def other_words(answer):
        return [same[tuple(w.encode([x]).tolist())] for x in answer if w.encode([x]).any()]
    padded = [a + other_words(a) for a in pred]
    np.testing.assert_array_equal(ew_rewards(gold, padded), ew_rewards(gold, pred))
    assert ew_score(gold, padded).f == pytest.approx(ew_score(gold, pred).f, abs=1e-12)

@given(st.lists(corpus, min_size=1, max_size=4), level)
def test_batches_add_up(batches, level):
    whole = ew_score(*(sum(side, []) for side in zip(*batches)), level=level)
    one, merged = EWScore(level=level), EWScore(level=level)
    for b in batches:
        one.update(*b)
        merged.merge(pickle.loads(pickle.dumps(EWScore(level=level).update(*b))))
    def numbers(s): return [s.f, s.precision, s.recall, s.mean_labels, s.coverage, s.n]
    for s in (one.compute(), merged.compute()):
        np.testing.assert_allclose(numbers(s), numbers(whole), atol=1e-12)
    one.reset().update(*batches[0])
    assert one.compute().n == len(batches[0][0])

def test_blocks_add_up_or_not_at_all(monkeypatch):
    "Clips are summed up block by block; where one of them is wrong, none of the call is added"
    gold = [["happy"], ["sad"], ["angry", "neutral"]]*5
    pred = [["glad"], ["angry"], ["zork", "mad"]]*5
    whole = ew_score(gold, pred)
    monkeypatch.setattr(ew_sums, "_BLOCK_CLIPS", 4)
    score = EWScore().update(gold, pred)
    assert score.compute().to_dict() == whole.to_dict()
    with pytest.raises(ValueError, match="clip 14"): score.update(gold, pred[:-1] + [[7]])
    assert score.compute().to_dict() == whole.to_dict()

BENCH_MODULE = """import settings_of_theirs
print('loading')
table = open('table.txt').read()
def f(): return settings_of_theirs.WHO, table, open('table.txt').read()"""

def test_the_benchmark_keeps_references_apart(tmp_path, monkeypatch):
    "Two implementations with modules of the same names, which read by relative paths and print"
    path = Path(M.__file__).parents[1]/"benchmarks/metrics.py"
    spec = importlib.util.spec_from_file_location("bench", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path/name/"theirs").mkdir(parents=True)
        (tmp_path/name/"settings_of_theirs.py").write_text(f"WHO = {name!r}")
        (tmp_path/name/"theirs/score.py").write_text(BENCH_MODULE)
        (tmp_path/name/"table.txt").write_text(f"table of {name}")
        modules, places = set(sys.modules), list(sys.path)
        with bench.reference(tmp_path/name, "theirs.score", "f") as (f, seconds):
            assert f() == (name, *[f"table of {name}"]*2) and seconds > 0
        assert set(sys.modules) == modules and sys.path == places and Path.cwd() == tmp_path

one_word = st.sampled_from(["happy", "sad", "angry", "neutral", "surprise"])

@given(st.lists(st.tuples(one_word, labels), min_size=1, max_size=8))
def test_hit_rate_is_its_definition(pairs):
    gold, pred = [[g] for g, _ in pairs], [p for _, p in pairs]
    hits, shares = [], []
    for wheel in range(1, 6):
        G, Q = [[{w.cluster(x, wheel) for x in a} - {None} for a in side] for side in (gold, pred)]
        classes, both = set().union(*G), [(g, q) for g, q in zip(G, Q) if g]
        share = [len(g & q)/len(q & classes) if q & classes else 0 for g, q in both]
        hits.append(np.mean([len(g & q) for g, q in both]) if both else 0)
        shares.append(np.mean(share) if both else 0)
    h = hit_rate(gold, pred)
    np.testing.assert_allclose([h.hit_rate, h.mscore], [np.mean(hits), np.mean(shares)], atol=1e-12)
    assert h.mscore <= h.hit_rate + 1e-12 and h.n_scored + h.n_unscored == len(pairs)

values = st.sampled_from([-1.5, -.2, 0, .4, 2])
polarities = st.sampled_from(["positive", "negative", "neutral", "mixed"])
sentiments = st.lists(st.tuples(values, polarities), min_size=1)
sentiments = sentiments.filter(lambda x: any(v for v, _ in x))

@given(sentiments)
def test_sentiment_is_its_definition(pairs):
    kept = [(v > 0, x == "positive") for v, x in pairs if v]
    def f1(c):
        hits = sum(g == q == c for g, q in kept)
        return 2*hits/max(sum((g == c) + (q == c) for g, q in kept), 1)
    s = sentiment_score(*map(list, zip(*pairs)))
    assert s.waf == pytest.approx(sum(f1(g) for g, _ in kept)/len(kept), abs=1e-12)
    assert s.acc == pytest.approx(np.mean([g == q for g, q in kept]))
    assert s.n_scored == len(kept) and s.n_unparsable == sum(x == "mixed" for _, x in pairs)

def test_undefined():
    "The authors' code of 2025 says NaN where that of 2026 says 0"
    nothing_hit, nothing_scored = ([["happy"]], [["angry"]]), ([["neutral"]], [["angry"]])
    for case in (nothing_hit, nothing_scored):
        assert ew_score(*case).f == 0 and np.isnan(ew_score(*case, undefined="nan").f)
    assert ew_score(*nothing_hit, undefined="nan").precision == 0
    assert np.isnan(ew_score(*nothing_scored, undefined="nan").precision)
    assert ew_rewards(*nothing_scored) == [0]
    assert np.isnan(ew_rewards(*nothing_scored, undefined="nan"))

def test_rewards_average_over_the_wheels_that_know_the_gold():
    gold = ["disgusting"]   # Willcox's wheel has no disgust
    assert w.cluster("disgusting", "Willcox") is None
    assert ew_rewards([gold], [gold]) == [1] and ew_score([gold], [gold]).f == pytest.approx(.8)

def test_a_score_knows_its_tables():
    pair = [["happy"]], [["sad"]]
    results = [ew_score(*pair), ovmer_score(*pair), hit_rate(*pair), mer2025_score(*pair).level2]
    for s in results:
        assert (s.wheels, s.fingerprint) == ("builtin", w.fingerprint) and w.fingerprint in repr(s)
        assert json.loads(json.dumps(s.to_dict()))["fingerprint"] == w.fingerprint
    assert json.dumps(mer2025_score(*pair).to_dict())
    assert json.dumps(sentiment_score([1.], ["positive"]).to_dict())

def test_interval_covers():
    "95 % intervals of 40 corpora of 80 clips hold the true F in about 95 % of the cases"
    rng, words = np.random.default_rng(1), ["happy", "sad", "angry"]
    def draw(n):
        gold = rng.choice(words, n)
        pred = [[x] if rng.random() < .6 else [str(rng.choice(words))] for x in gold]
        return [[x] for x in gold], pred
    truth = ew_score(*draw(20_000)).f
    intervals = [ew_interval(*draw(80), n=300, seed=i) for i in range(40)]
    assert np.mean([low <= truth <= high for low, high in intervals]) > .85

def test_interval_and_difference_repeat_with_the_seed():
    gold, a = [["happy"], ["sad"], ["angry"]]*20, [["happy"], ["sad"], ["sad"]]*20
    b = [["happy"], ["sad"], ["angry"]]*20
    assert ew_interval(gold, a, seed=3) == ew_interval(gold, a, seed=3)
    low, high = ew_interval(gold, a, confidence=.5)
    assert ew_interval(gold, a)[0] < low < ew_score(gold, a).f < high < ew_interval(gold, a)[1]
    d, back = ew_difference(gold, a, b), ew_difference(gold, b, a)
    assert d.difference > 0 and d.low > 0 and d.p < .01
    assert (d.difference, d.low, d.p) == pytest.approx((-back.difference, -back.high, back.p))

def test_seed_interval():
    "Student's t by hand for five seeds, more than ten seeds, and too few"
    mean, low, high = seed_interval([.03, .05, .02, .06, .04])
    half = 2.776445*np.std([.03, .05, .02, .06, .04], ddof=1)/5**.5
    assert (mean, low, high) == pytest.approx((.04, .04 - half, .04 + half), abs=1e-8)
    half = 2.093024*np.std([0, 1]*10, ddof=1)/20**.5
    assert seed_interval([0., 1.]*10)[2] == pytest.approx(.5 + half)
    for few in ([], [.5]):
        with pytest.raises(ValueError, match=f"at least 2 seeds, not {len(few)}"):
            seed_interval(few)

def test_seed_interval_names_the_package_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match="seed_interval needs scipy: pip install scipy"):
        seed_interval([1., 2.])

GOLD, PRED = [["happy"], ["sad"], ["angry"]], [["glad"], ["angry"], ["angry", "sad"]]

def _worker(rank, port, out):
    import torch.distributed as dist
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    score = EWScore().update(GOLD[rank::2], PRED[rank::2])
    if rank == 0: assert ew_score(GOLD, PRED).n == 3   # one process alone: nothing is waited for
    own, both = score.compute(), score.compute(sync=True)
    again = score.compute(sync=True)                    # adding up must leave the object as it is
    out.put((rank, own.n, both.n, both.f, again.f))
    dist.destroy_process_group()

def test_across_processes():
    "Sums are added up where `sync` asks for it and nowhere else"
    pytest.importorskip("torch")
    import socket
    with socket.socket() as x:
        x.bind(("127.0.0.1", 0))
        port = x.getsockname()[1]
    ctx = multiprocessing.get_context("spawn")
    out = ctx.Queue()
    workers = [ctx.Process(target=_worker, args=(r, port, out)) for r in range(2)]
    for p in workers: p.start()
    found = [out.get(timeout=120) for _ in workers]
    for p in workers: p.join()
    f = ew_score(GOLD, PRED).f
    for rank, n_own, n, *both in found:
        assert n_own == len(GOLD[rank::2]) and n == 3
        assert both == pytest.approx([f, f], abs=1e-12)

def test_sync_in_a_single_process():
    score = EWScore().update(GOLD, PRED)
    assert score.compute(sync=True).to_dict() == score.compute().to_dict()

def best_of(n, f):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)

def test_time_grows_with_the_pairs():
    "Not with their square (benchmarks/metrics.py has the times themselves)"
    rng = np.random.default_rng(0)
    gold, pred = ([rng.choice(w.vocabulary, 3).tolist() for _ in range(1000)] for _ in range(2))
    many = best_of(3, lambda: ew_score(gold*100, pred*100))
    assert many/best_of(5, lambda: ew_score(gold*10, pred*10)) < 25   # ten times the pairs

ok = {"a": ["happy"], "b": ["sad"]}
@pytest.mark.parametrize("wrong,kind,said", [
    (lambda: ew_score(ok, {"a": ["happy"]}), KeyError, "no prediction for 1 of 2 clips: b"),
    (lambda: ew_score(ok, {**ok, "c": ["sad"]}), KeyError,
     "predictions for 1 clips that have no gold: c"),
    (lambda: ew_score([["happy"]]*3, [["sad"]]*2), ValueError, "3 gold answers but 2 predictions"),
    (lambda: ew_score(ok, [["sad"]]*2), ValueError, "both be mappings"),
    (lambda: ew_score("happy", "happy"), ValueError, "a mapping from clip to answer"),
    (lambda: ew_score(3, 4), ValueError, "not int and int"),
    (lambda: ew_score({}, {}), ValueError, "there are no clips"),
    (lambda: ew_score(ok, {"a": ["happy"], "b": 7}), ValueError,
     "prediction of clip b: labels must be a string or a list of strings, not 7"),
    (lambda: ew_score({"a": 7.5, "b": "sad"}, ok), ValueError, "gold of clip a: labels must be"),
    (lambda: ew_score(ok, {"a": ["happy"], "b": ["sad", 7]}), ValueError,
     "clip b: labels must be strings, not 7 (int)"),
    (lambda: ew_score(ok, {"a": ["happy"], "b": [["sad"]]}), ValueError,
     "clip b: labels must be strings, not ['sad'] (list)"),
    (lambda: ew_score([["happy"]], ["["]), ValueError,
     "prediction of clip 0: cannot parse the labels '['"),
    (lambda: ew_score(ok, ok, level=3), ValueError, "level is 3"),
    (lambda: ew_score(ok, ok, undefined="none"), ValueError, "undefined is 'none'"),
    (lambda: ew_rewards(ok, ok, measure="f1"), ValueError,
     "measure is 'f1'; it must be one of f, precision, recall, jaccard"),
    (lambda: ew_interval(ok, ok, n=0), ValueError, "needs at least one"),
    (lambda: EWScore().compute(), ValueError, "no clips yet"),
    (lambda: EWScore(level=1).merge(EWScore(level=2)), ValueError,
     "the same level"),
    (lambda: hit_rate({"a": "happy, sad"}, {"a": "sad"}), ValueError,
     "gold of clip a: hit rate needs exactly one word"),
    (lambda: sentiment_score({"a": "x"}, {"a": "positive"}), ValueError,
     "gold of clip a: sentiment must be a number, not 'x'"),
    (lambda: sentiment_score({"a": float("nan")}, {"a": "positive"}), ValueError, "gold of clip a"),
    (lambda: sentiment_score({"a": 1}, {"a": None}), ValueError,
     "prediction of clip a: polarity must be a word, not None"),
    (lambda: sentiment_score([0, 0], ["positive"]*2), ValueError, "all gold values are 0")])
def test_errors_name_what_is_wrong(wrong, kind, said):
    with pytest.raises(kind) as e: wrong()
    assert said in str(e.value)

def test_ten_thousand_missing_are_not_all_printed():
    with pytest.raises(KeyError) as e: ew_score({f"clip{i}": ["sad"] for i in range(10_000)}, {})
    said = str(e.value)
    assert "no prediction for 10000 of 10000 clips" in said and "and 9,990 more" in said
    assert len(said) < 300

WORDS = ["happy", ["happy"], "[happy]", ("happy",), np.array("happy"), np.array(["Happy "]),
         np.str_("happy")]

@pytest.mark.parametrize("gold", WORDS)
def test_the_one_word_of_a_hit_rate_in_any_form(gold):
    assert hit_rate({"a": gold}, {"a": "[joyful, sad]"}).hit_rate == 1

@pytest.mark.parametrize("gold", ["", None, [], ["happy", "sad"], 3, "happy, sad"])
def test_no_one_word(gold):
    with pytest.raises(ValueError, match="gold of clip a"): hit_rate({"a": gold}, {"a": "sad"})

def test_companions():
    "Every score has words per answer, share of known words and clips never scored"
    gold, pred = ["happy", "neutral"], [["glad", "zork"], ["sad", "neutral"]]
    mer2025 = mer2025_score(gold, pred)
    for s in (ew_score(gold, pred), ovmer_score(gold, pred), mer2025.level2):
        assert (s.mean_labels, s.coverage, s.never_scored, s.n) == (2, .5, .5, 2)
    h = hit_rate(gold, pred)
    assert (h.mean_labels, h.coverage, h.constant_baseline) == (2, .5, 1)
    assert (h.n_scored, h.n_unscored) == (1, 1)
    assert "0.5000" in repr(mer2025) and w.fingerprint in repr(mer2025)

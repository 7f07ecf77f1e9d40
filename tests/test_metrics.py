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

from affectgpt_r1 import metrics as M
from affectgpt_r1.metrics import (EWScore, ew_difference, ew_interval, ew_rewards, ew_score, hit_rate, mer2025_score, ovmer_score, sentiment_score,
                                  unibench)
from affectgpt_r1.wheels import load_wheels

w = load_wheels()
label = st.sampled_from(w.vocabulary[::7] + ["zork", "neutral", "", "Happy ", "FURIOUS"])
labels = st.lists(label, max_size=5)
corpus = st.lists(st.tuples(labels, labels), min_size=1, max_size=8).map(lambda x: tuple(map(list, zip(*x))))
level = st.sampled_from([1, 2])

def by_hand(gold, pred, level):
    "The score as its definition reads, with sets and loops"
    rows = []
    for wheel in range(1, 6):
        sets = [[{w.cluster(x, wheel, level) for x in a} - {None} for a in side] for side in (gold, pred)]
        both = [(g, q) for g, q in zip(*sets) if g]
        p = sum(len(g & q)/len(q) if q else 0 for g, q in both)/len(both) if both else 0
        r = sum(len(g & q)/len(g) for g, q in both)/len(both) if both else 0
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
    values = [s.f, s.precision, s.recall, s.coverage, s.never_scored, *s.per_wheel[["f", "precision", "recall"]].values.flat, o.m_avg, *o.columns.f, m.score]
    for measure in ("f", "precision", "recall", "jaccard"): values += list(ew_rewards(*c, level=level, measure=measure))
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

@given(st.lists(st.tuples(*[st.lists(st.sampled_from(w.vocabulary[::7]), min_size=1, max_size=4)]*2), min_size=1, max_size=6), level)
def test_swapping_sides_swaps_precision_and_recall(pairs, level):
    on_all = lambda a: all(any(w.cluster(x, i, level) for x in a) for i in range(1, 6))
    pairs = [p for p in pairs if all(map(on_all, p))] or [(["happy"], ["angry", "glad"])]
    gold, pred = map(list, zip(*pairs))
    a, b = ew_score(gold, pred, level=level), ew_score(pred, gold, level=level)
    np.testing.assert_allclose([a.f, a.precision, a.recall], [b.f, b.recall, b.precision], atol=1e-12)
    np.testing.assert_allclose(ew_rewards(gold, pred, level=level), ew_rewards(pred, gold, level=level), atol=1e-12)

same = {tuple(w.encode([x]).tolist()): x for x in w.vocabulary}   # a word for each set of sectors

@given(corpus)
def test_a_word_of_a_predicted_sector_changes_nothing(c):
    gold, pred = c
    padded = [a + [same[tuple(w.encode([x]).tolist())] for x in a if w.encode([x]).any()] for a in pred]
    np.testing.assert_array_equal(ew_rewards(gold, padded), ew_rewards(gold, pred))
    assert ew_score(gold, padded).f == pytest.approx(ew_score(gold, pred).f, abs=1e-12)

@given(st.lists(corpus, min_size=1, max_size=4), level)
def test_batches_add_up(batches, level):
    whole = ew_score(*(sum(side, []) for side in zip(*batches)), level=level)
    one, merged = EWScore(level=level), EWScore(level=level)
    for b in batches:
        one.update(*b)
        merged.merge(pickle.loads(pickle.dumps(EWScore(level=level).update(*b))))
    for s in (one.compute(), merged.compute()):
        np.testing.assert_allclose([s.f, s.precision, s.recall, s.mean_labels, s.coverage, s.n], [whole.f, whole.precision, whole.recall, whole.mean_labels, whole.coverage, whole.n], atol=1e-12)
    one.reset().update(*batches[0])
    assert one.compute().n == len(batches[0][0])

def test_blocks_add_up_or_not_at_all(monkeypatch):
    "Clips are summed up block by block; where one of them is wrong, none of the call is added"
    gold, pred = [["happy"], ["sad"], ["angry", "neutral"]]*5, [["glad"], ["angry"], ["zork", "mad"]]*5
    whole = ew_score(gold, pred)
    monkeypatch.setattr(M, "_BLOCK", 4)
    score = EWScore().update(gold, pred)
    assert score.compute().to_dict() == whole.to_dict()
    with pytest.raises(ValueError, match="clip 14"): score.update(gold, pred[:-1] + [[7]])
    assert score.compute().to_dict() == whole.to_dict()

def test_the_benchmark_keeps_references_apart(tmp_path, monkeypatch):
    "Two implementations with modules of the same names, which read by relative paths and print"
    spec = importlib.util.spec_from_file_location("bench", Path(M.__file__).parents[1]/"benchmarks/metrics.py")
    bench = importlib.util.module_from_spec(spec); spec.loader.exec_module(bench)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path/name/"theirs").mkdir(parents=True)
        (tmp_path/name/"settings_of_theirs.py").write_text(f"WHO = {name!r}")
        (tmp_path/name/"theirs/score.py").write_text("import settings_of_theirs\nprint('loading')\ntable = open('table.txt').read()\ndef f(): return settings_of_theirs.WHO, table, open('table.txt').read()")
        (tmp_path/name/"table.txt").write_text(f"table of {name}")
        before = set(sys.modules), list(sys.path)
        with bench.reference(tmp_path/name, "theirs.score", "f") as (f, seconds): assert f() == (name, *[f"table of {name}"]*2) and seconds > 0
        assert set(sys.modules) == before[0] and sys.path == before[1] and Path.cwd() == tmp_path

@given(st.lists(st.tuples(st.sampled_from(["happy", "sad", "angry", "neutral", "surprise"]), labels), min_size=1, max_size=8))
def test_hit_rate_is_its_definition(pairs):
    gold, pred = [[g] for g, _ in pairs], [p for _, p in pairs]
    hits, shares = [], []
    for wheel in range(1, 6):
        G, Q = [[{w.cluster(x, wheel) for x in a} - {None} for a in side] for side in (gold, pred)]
        classes, both = set().union(*G), [(g, q) for g, q in zip(G, Q) if g]
        hits.append(np.mean([len(g & q) for g, q in both]) if both else 0)
        shares.append(np.mean([len(g & q)/len(q & classes) if q & classes else 0 for g, q in both]) if both else 0)
    h = hit_rate(gold, pred)
    np.testing.assert_allclose([h.hit_rate, h.mscore], [np.mean(hits), np.mean(shares)], atol=1e-12)
    assert h.mscore <= h.hit_rate + 1e-12 and h.n_scored + h.n_unscored == len(pairs)

@given(st.lists(st.tuples(st.sampled_from([-1.5, -.2, 0, .4, 2]), st.sampled_from(["positive", "negative", "neutral", "mixed"])), min_size=1).filter(lambda x: any(v for v, _ in x)))
def test_sentiment_is_its_definition(pairs):
    kept = [(v > 0, x == "positive") for v, x in pairs if v]
    f1 = lambda c: 2*sum(g == q == c for g, q in kept)/max(sum((g == c) + (q == c) for g, q in kept), 1)
    s = sentiment_score(*map(list, zip(*pairs)))
    assert s.waf == pytest.approx(sum(f1(g) for g, _ in kept)/len(kept), abs=1e-12)
    assert s.acc == pytest.approx(np.mean([g == q for g, q in kept]))
    assert s.n_scored == len(kept) and s.n_unparsable == sum(x == "mixed" for _, x in pairs)

def test_undefined():
    "The authors' code of 2025 says NaN where that of 2026 says 0"
    cases = dict(nothing_hit=([["happy"]], [["angry"]]), nothing_scored=([["neutral"]], [["angry"]]))
    for c in cases.values(): assert ew_score(*c).f == 0 and np.isnan(ew_score(*c, undefined="nan").f)
    assert ew_score(*cases["nothing_hit"], undefined="nan").precision == 0
    assert np.isnan(ew_score(*cases["nothing_scored"], undefined="nan").precision)
    assert ew_rewards(*cases["nothing_scored"]) == [0] and np.isnan(ew_rewards(*cases["nothing_scored"], undefined="nan"))

def test_rewards_average_over_the_wheels_that_know_the_gold():
    gold = ["disgusting"]   # Willcox's wheel has no disgust
    assert w.cluster("disgusting", "Willcox") is None
    assert ew_rewards([gold], [gold]) == [1] and ew_score([gold], [gold]).f == pytest.approx(.8)

def test_a_score_knows_its_tables():
    results = [ew_score([["happy"]], [["sad"]]), ovmer_score([["happy"]], [["sad"]]), hit_rate(["happy"], [["sad"]]), mer2025_score([["happy"]], [["sad"]]).level2]
    for s in results:
        assert (s.wheels, s.fingerprint) == ("builtin", w.fingerprint) and w.fingerprint in repr(s)
        assert json.loads(json.dumps(s.to_dict()))["fingerprint"] == w.fingerprint
    assert json.dumps(mer2025_score([["happy"]], [["sad"]]).to_dict()) and json.dumps(sentiment_score([1.], ["positive"]).to_dict())

def test_interval_covers():
    "95 % intervals of 40 corpora of 80 clips hold the true F in about 95 % of the cases"
    rng, words = np.random.default_rng(1), ["happy", "sad", "angry"]
    def draw(n):
        gold = rng.choice(words, n)
        return [[x] for x in gold], [[x] if rng.random() < .6 else [str(rng.choice(words))] for x in gold]
    truth = ew_score(*draw(20_000)).f
    inside = [low <= truth <= high for low, high in (ew_interval(*draw(80), n=300, seed=i) for i in range(40))]
    assert np.mean(inside) > .85

def test_interval_and_difference_repeat_with_the_seed():
    gold, a, b = [["happy"], ["sad"], ["angry"]]*20, [["happy"], ["sad"], ["sad"]]*20, [["happy"], ["sad"], ["angry"]]*20
    assert ew_interval(gold, a, seed=3) == ew_interval(gold, a, seed=3)
    low, high = ew_interval(gold, a, confidence=.5)
    assert ew_interval(gold, a)[0] < low < ew_score(gold, a).f < high < ew_interval(gold, a)[1]
    d, back = ew_difference(gold, a, b), ew_difference(gold, b, a)
    assert d.difference > 0 and d.low > 0 and d.p < .01
    assert (d.difference, d.low, d.p) == pytest.approx((-back.difference, -back.high, back.p))

def _worker(rank, port, out):
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gold, pred = [["happy"], ["sad"], ["angry"]], [["glad"], ["angry"], ["angry", "sad"]]
    s = EWScore().update(gold[rank::2], pred[rank::2])
    out.put((s.compute().n, s.compute().f))   # twice: adding up must leave the object as it is
    dist.destroy_process_group()

def test_across_processes():
    pytest.importorskip("torch")
    import socket
    with socket.socket() as x:
        x.bind(("127.0.0.1", 0)); port = x.getsockname()[1]
    ctx = multiprocessing.get_context("spawn")
    out = ctx.Queue()
    workers = [ctx.Process(target=_worker, args=(r, port, out)) for r in range(2)]
    for p in workers: p.start()
    got = [out.get(timeout=120) for _ in workers]
    for p in workers: p.join()
    whole = ew_score([["happy"], ["sad"], ["angry"]], [["glad"], ["angry"], ["angry", "sad"]])
    for n, f in got: assert n == 3 and f == pytest.approx(whole.f, abs=1e-12)

def best_of(n, f):
    times = []
    for _ in range(n):
        t = time.perf_counter(); f(); times.append(time.perf_counter() - t)
    return min(times)

def test_time_grows_with_the_pairs():
    "Not with their square (benchmarks/metrics.py has the times themselves)"
    rng = np.random.default_rng(0)
    gold, pred = ([rng.choice(w.vocabulary, 3).tolist() for _ in range(1000)] for _ in range(2))
    assert best_of(3, lambda: ew_score(gold*100, pred*100))/best_of(5, lambda: ew_score(gold*10, pred*10)) < 25   # ten times the pairs

ok = {"a": ["happy"], "b": ["sad"]}
@pytest.mark.parametrize("wrong,kind,said", [
    (lambda: ew_score(ok, {"a": ["happy"]}), KeyError, "no prediction for 1 of 2 clips: b"),
    (lambda: ew_score(ok, {**ok, "c": ["sad"]}), KeyError, "predictions for 1 clips that have no gold: c"),
    (lambda: ew_score([["happy"]]*3, [["sad"]]*2), ValueError, "3 gold answers but 2 predictions"),
    (lambda: ew_score(ok, [["sad"]]*2), ValueError, "both be mappings"),
    (lambda: ew_score("happy", "happy"), ValueError, "a mapping from clip to answer"),
    (lambda: ew_score(3, 4), ValueError, "not int and int"),
    (lambda: ew_score({}, {}), ValueError, "there are no clips"),
    (lambda: ew_score(ok, {"a": ["happy"], "b": 7}), ValueError, "prediction of clip b: labels must be a string or a list of strings, not 7"),
    (lambda: ew_score({"a": 7.5, "b": "sad"}, ok), ValueError, "gold of clip a: labels must be"),
    (lambda: ew_score(ok, {"a": ["happy"], "b": ["sad", 7]}), ValueError, "clip b: labels must be strings, not 7 (int)"),
    (lambda: ew_score(ok, {"a": ["happy"], "b": [["sad"]]}), ValueError, "clip b: labels must be strings, not ['sad'] (list)"),
    (lambda: ew_score([["happy"]], ["["]), ValueError, "prediction of clip 0: cannot parse the labels '['"),
    (lambda: ew_score(ok, ok, level=3), ValueError, "level is 3"),
    (lambda: ew_score(ok, ok, undefined="none"), ValueError, "undefined is 'none'"),
    (lambda: ew_rewards(ok, ok, measure="f1"), ValueError, "measure is 'f1'; it must be one of f, precision, recall, jaccard"),
    (lambda: ew_interval(ok, ok, n=0), ValueError, "needs at least one"),
    (lambda: EWScore().compute(), ValueError, "no clips yet"),
    (lambda: EWScore(level=1).merge(EWScore(level=2)), ValueError, "the same level"),
    (lambda: hit_rate({"a": "happy, sad"}, {"a": "sad"}), ValueError, "gold of clip a: hit rate needs exactly one word"),
    (lambda: sentiment_score({"a": "x"}, {"a": "positive"}), ValueError, "gold of clip a: sentiment must be a number, not 'x'"),
    (lambda: sentiment_score({"a": float("nan")}, {"a": "positive"}), ValueError, "gold of clip a"),
    (lambda: sentiment_score({"a": 1}, {"a": None}), ValueError, "prediction of clip a: polarity must be a word, not None"),
    (lambda: sentiment_score([0, 0], ["positive"]*2), ValueError, "all gold values are 0"),
    (lambda: unibench("nowhere", "nowhere"), FileNotFoundError, "no folder nowhere"),
    (lambda: unibench(".", ".", protocol="best"), ValueError, "protocol is 'best'")])
def test_errors_name_what_is_wrong(wrong, kind, said):
    with pytest.raises(kind) as e: wrong()
    assert said in str(e.value)

def test_ten_thousand_missing_are_not_all_printed():
    with pytest.raises(KeyError) as e: ew_score({f"clip{i}": ["sad"] for i in range(10_000)}, {})
    assert "no prediction for 10000 of 10000 clips" in str(e.value) and "9990 more" in str(e.value) and len(str(e.value)) < 300

@pytest.fixture
def folders(tmp_path):
    "A tiny MER-UniBench in the authors' layout: three sets, two checkpoints"
    (tmp_path/"labels/meld-process").mkdir(parents=True); (tmp_path/"labels/ovmerdplus-process").mkdir()
    np.savez(tmp_path/"labels/meld-process/label.npz", test_corpus={"a": {"emo": 1, "val": -10}, "b": {"emo": 2, "val": -10}})
    np.savez(tmp_path/"labels/sims_label.npz", test_corpus={"a": {"emo": 0, "val": 1.}, "b": {"emo": 0, "val": -.5}, "c": {"emo": 0, "val": 0.}})
    (tmp_path/"labels/ovmerdplus-process/ovlabel.csv").write_text('name,openset\na,"[happy, sad]"\nb,[]\n')
    for name, kind, answers in [("results-meld/run", "", (["[glad]", "[glad]"], ["[joyful]", "[sad]"])), ("sims", "-sentiment", (["positive"]*3, ["positive", "neutral", "mixed"])),
                                ("OVMERDPlus", "", (["[happy, sad]", "[sad]"], ["[angry]", "[]"]))]:
        (tmp_path/"out"/name).mkdir(parents=True)
        for epoch, x in enumerate(answers, 1):
            np.savez(tmp_path/f"out/{name}/checkpoint_{epoch:06d}_loss_0.123-openset{kind}.npz", filenames=np.array(["a", "b", "c"][:len(x)]), fileitems=np.array(x))
    return tmp_path/"out", tmp_path/"labels"

def test_unibench(folders):
    u = unibench(*folders, checkpoint=1)
    assert u.n_sets == 3 and u.table.dataset.tolist() == ["MELD", "SIMS", "OVMERDPlus"] and u.table.checkpoint.tolist() == [1]*3
    assert u.table.score.tolist() == pytest.approx([.5, sentiment_score([1., -.5], ["positive"]*2).waf, 1]) and u.mean == pytest.approx(u.table.score.mean())
    assert u.table.n_scored.tolist() == [2, 2, 1] and len(u.missing) == 6 and "mer2024" in u.missing["MER2024"]
    best = unibench(*folders, protocol="best-on-test")
    assert best.table.checkpoint.tolist() == [2, 2, 1] and best.mean == pytest.approx(1) and best.protocol == "best-on-test"
    assert json.dumps(best.to_dict()) and "best-on-test" in repr(best)

NINE = {"MER2023": "happy", "MER2024": "worried", "MELD": 1, "IEMOCAPFour": 0, "CMUMOSI": 1.5, "CMUMOSEI": .2, "SIMS": 1., "SIMSv2": .4}

@pytest.mark.parametrize("kind", ["text", "objects", "bytes", "lists"])
def test_nine_data_sets_however_the_answers_are_kept(tmp_path, kind):
    "All nine, in the authors' names, in files of text, objects, bytes or lists; names sorted otherwise than gold"
    names = ["Ses05_1", "Ses05_2", "Ses05_3"]
    for key, emo in NINE.items():
        stem, file, split, *_ = M.UNIBENCH[key]
        (tmp_path/f"labels/{stem}-process").mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path/f"labels/{stem}-process"/file, train_corpus={"x": {"emo": emo, "val": 0.}}, **{split: {n: {"emo": emo, "val": emo} for n in names}})
    (tmp_path/"labels/ovmerdplus_ovlabel.csv").write_text("name,openset\n" + "".join(f'{n},"[happy, worried]"\n' for n in names))
    for key in M.UNIBENCH:
        sentiment = M.UNIBENCH[key][3] == "WAF"
        words = [["positive"] if sentiment else ["joyful", "scared"]]*2 + [["negative"] if sentiment else ["tired"]]
        text = [x[0] if sentiment else f"[{', '.join(x)}]" for x in words]
        items = {"text": np.array(text), "objects": np.array(text, object), "bytes": np.array(text, "S"), "lists": np.array(text if sentiment else [*words, []], object)[:3]}[kind]
        folder = tmp_path/f"out/results-{key.lower()}/run1"
        folder.mkdir(parents=True)
        np.savez_compressed(folder/f"checkpoint_000017_loss_0.512-openset{'-sentiment'*sentiment}.npz", filenames=np.array(names[::-1], "S" if kind == "bytes" else None)[::-1], fileitems=items)
        np.savez(folder/"checkpoint_000017_loss_0.512.npz", name2reason={n: "He is happy" for n in names})   # the replies lie beside
    u = unibench(tmp_path/"out", tmp_path/"labels")
    assert u.n_sets == 9 and not u.missing and set(u.table.checkpoint) == {17} and u.table.score.between(.5, 1).all() and u.mean == pytest.approx(u.table.score.mean())
    assert u.table.set_index("dataset").score[["MER2023", "MER2024", "MELD", "IEMOCAPFour"]].tolist() == pytest.approx([2/3]*4)
    assert {"mean_labels", "coverage", "n_scored", "n", "constant", "companion", "value"} <= set(u.table) and not u.table.isna().any(axis=None)

@pytest.mark.parametrize("gold", ["happy", ["happy"], "[happy]", ("happy",), np.array("happy"), np.array(["Happy "]), np.str_("happy")])
def test_the_one_word_of_a_hit_rate_in_any_form(gold): assert hit_rate({"a": gold}, {"a": "[joyful, sad]"}).hit_rate == 1

@pytest.mark.parametrize("gold", ["", None, [], ["happy", "sad"], 3, "happy, sad"])
def test_no_one_word(gold):
    with pytest.raises(ValueError, match="gold of clip a"): hit_rate({"a": gold}, {"a": "sad"})

def test_companions():
    "Words per answer, share of unknown words, of clips never scored, and the blind answer stand beside every score"
    gold, pred = ["happy", "neutral"], [["glad", "zork"], ["sad", "neutral"]]
    for s in (ew_score(gold, pred), ovmer_score(gold, pred), mer2025_score(gold, pred).level2): assert (s.mean_labels, s.coverage, s.never_scored, s.n) == (2, .5, .5, 2)
    h = hit_rate(gold, pred)
    assert (h.mean_labels, h.coverage, h.n_scored, h.n_unscored, h.constant_baseline) == (2, .5, 1, 1, 1)
    assert "0.5000" in repr(mer2025_score(gold, pred)) and w.fingerprint in repr(mer2025_score(gold, pred))

def test_unibench_asks_for_one_checkpoint(folders):
    with pytest.raises(ValueError, match="MELD has the checkpoints 1, 2: name one"): unibench(*folders)
    with pytest.raises(ValueError, match="MELD has no checkpoint 9; there are 1, 2"): unibench(*folders, checkpoint=9)
    with pytest.raises(ValueError, match="leave `checkpoint` out"): unibench(*folders, checkpoint=1, protocol="best-on-test")

def answers(*names, n=None): return dict(filenames=np.array(names), fileitems=np.array(["positive"]*(n or len(names))))

@pytest.mark.parametrize("file,content,error,said", [
    ("answers", answers("a", "b"), KeyError, "no prediction for 1 of 3 clips: c"), ("answers", answers("a", "b", "c", "d"), KeyError, "1 clips that have no gold: d"),
    ("answers", dict(names=np.array(["a"])), ValueError, "has no entry filenames, fileitems"), ("answers", answers("a", "b", n=1), ValueError, "2 filenames but 1 fileitems"),
    ("answers", dict(filenames=np.array("abc"), fileitems=np.array(["positive"]*3)), ValueError, "'abc' is no column"),
    ("answers", answers("a", "a", "b", "c"), ValueError, "more than one answer for clip a"), ("answers", "no npz", ValueError, "cannot be read as npz"),
    ("answers", dict(filenames=np.array(["a", "b", "c"]), fileitems=np.array(["positive", None, "x"], object)), ValueError, "prediction of clip b: polarity must be a word, not None"),
    ("sims_label.npz", dict(train={"a": {"val": 1.}}), ValueError, "has no split test_corpus; it holds train"),
    ("sims_label.npz", dict(test_corpus={"a": {"emo": 1}}), ValueError, "test_corpus does not give each clip an 'val'"),
    ("sims_label.npz", dict(test_corpus=np.array(["a"])), ValueError, "test_corpus does not give each clip an 'val'"),
    *(("meld-process/label.npz", dict(test_corpus={"a": {"emo": emo}}), ValueError, f"{emo!r} is no class; there are 0 to 6") for emo in (7, -1, "joy")),
    ("ovmerdplus-process/ovlabel.csv", "clip,openset\na,happy\n", ValueError, "has no column name"),
    ("ovmerdplus-process/ovlabel.csv", "name,openset\na,happy\na,sad\n", ValueError, "more than one row for clip a")])
def test_unibench_names_the_file_and_the_clip(folders, file, content, error, said):
    path = folders[0]/"sims/checkpoint_000001_loss_0.123-openset-sentiment.npz" if file == "answers" else folders[1]/file
    if isinstance(content, str): path.write_text(content)
    else: np.savez(path, **content)
    with pytest.raises(error) as e: unibench(*folders, checkpoint=1)
    assert path.name in str(e.value) and said in str(e.value)

"""Things are matched by name: the order of rows means nothing where there are names

And where there are none, what has no order of its own is refused.
"""
import json

import numpy as np
import pandas as pd
import pytest

from affectgpt_r1.benchmark import (
    group_scores, label_confidence, sector_confusion, sector_scores, unibench_difference)
from affectgpt_r1.evaluate import best_of
from affectgpt_r1.metrics import (
    ew_difference, ew_interval, ew_rewards, ew_score, hit_rate, mer2025_score, ovmer_score,
    sentiment_score)
from affectgpt_r1.predictions import PredictionLog
from affectgpt_r1.tables import read_column
from affectgpt_r1.unibench import read_answers

GOLD = {"a": ["happy"], "b": ["sad"], "c": ["angry"], "d": ["afraid", "sad"]}
PRED = {"a": ["joyful"], "b": ["angry"], "c": ["furious"], "d": ["sad"]}


def turned(answers): return dict(reversed(answers.items()))


@pytest.mark.parametrize("score", [
    lambda g, p: ew_score(g, p).to_dict(), lambda g, p: mer2025_score(g, p).score,
    lambda g, p: ovmer_score(g, p).m_avg, lambda g, p: ew_interval(g, p),
    lambda g, p: ew_rewards(g, p).tolist(),
    lambda g, p: ew_difference(g, p, {**p, "b": ["sad"]}).difference,
    lambda g, p: hit_rate({n: x[:1] for n, x in g.items()}, p).hit_rate,
    lambda g, p: sector_scores(g, p).fillna(-1).values.tolist(),
    lambda g, p: sector_confusion(g, p).fillna(-1).values.tolist(),
    lambda g, p: group_scores(g, p, dict(b="x", a="y", d="x", c="y")).values.tolist()])
def test_the_order_of_answers_means_nothing(score):
    assert score(GOLD, turned(PRED)) == score(GOLD, PRED)
    with pytest.raises(KeyError, match="no prediction for 1 of 4 clips: d"):
        score(GOLD, {n: PRED[n] for n in "abc"})
    with pytest.raises(KeyError, match="predictions for 1 clips that have no gold: z"):
        score(GOLD, {**PRED, "z": ["sad"]})


def test_series_and_mappings():
    gold, pred = pd.Series(GOLD), pd.Series(turned(PRED))
    right = ew_score(GOLD, PRED).f
    for g, p in [(gold, pred), (gold, PRED), (GOLD, pred), (gold.reset_index(drop=True).tolist(),
                                                           list(PRED.values()))]:
        assert ew_score(g, p).f == right
    with pytest.raises(ValueError, match="clips twice in the index: a"):
        ew_score(GOLD, pd.concat([pred, pred[-1:]]))


@pytest.mark.parametrize("pred,said", [
    (list(PRED.values()), "one of them has names and the other has none"),
    (PRED.values(), "in place of a dict_values, give .* the mapping itself"),
    ({"happy", "sad", "angry", "afraid"}, "in place of a set, .* a list"),
    (pd.DataFrame(dict(name=list("abcd"), openset=["sad"]*4)), "set_index.'name'"),
    ("happy", "in place of a str")])
def test_what_has_no_order(pred, said):
    for gold in (GOLD, pd.Series(GOLD)):
        with pytest.raises(ValueError, match=said): ew_score(gold, pred)
        if not isinstance(pred, list):
            with pytest.raises(ValueError, match=said): ew_score(pred, list(PRED.values()))


@pytest.mark.parametrize("name,other", [
    ("7", 7), ("a1", "a1 "), ("a1", "a1.mp4"), ("A1", "a1"), ("Zo\u00eb", "Zoe\u0308")])
def test_names_that_look_alike(name, other):
    with pytest.raises(KeyError, match="look alike and are not the same") as e:
        ew_score({name: ["sad"]}, {other: ["sad"]})
    assert repr(name) in e.value.args[0] and repr(other) in e.value.args[0]


def test_sentiment_by_name():
    gold, pred = dict(a=1., b=-2., c=.5), dict(c="positive", b="negative", a="negative")
    assert sentiment_score(gold, pred).acc == pytest.approx(2/3)


def test_best_of_any_order():
    "The answers of a clip need not stand together: a table that was sorted by sample, or shuffled"
    words = dict(a=["happy", "sad", "sad"], b=["happy"]*3, c=["sad", "angry", "sad"])
    gold = dict(a=["happy"], b=["sad"], c=["angry"])
    rows = [dict(name=n, sample=i, reply=f"<answer>{w}</answer>") for n in words
            for i, w in enumerate(words[n])]
    table = pd.DataFrame(rows)
    said = [[w] for x in words.values() for w in x]
    f = ew_rewards([gold[n] for n in words for _ in range(3)], said)
    right = np.sort(f.reshape(3, 3)).mean(0)[-1]   # of three answers the best
    for other in (table, table.sort_values("sample"), table.sample(frac=1, random_state=0)):
        assert best_of(gold, other).tolist() == best_of(gold, table).tolist()
        assert best_of(gold, other)[3] == pytest.approx(right)
    with pytest.raises(ValueError, match="3 answers to a clip, but fewer to b"):
        best_of(gold, table.drop(index=4))
    with pytest.raises(KeyError, match="answers to clips that have no gold: a"):
        best_of(dict(b=["sad"], c=["angry"]), table)
    with pytest.raises(KeyError, match="no answer to 1 of 4 clips: d"):
        best_of(gold | dict(d=["sad"]), table)


def test_csv_files_in_any_order(tmp_path):
    (tmp_path/"gold.csv").write_text("name,openset\n01,[happy]\n1,[sad]\n2,[angry]\n")
    (tmp_path/"pred.csv").write_text("openset,name\n[angry],2\n[happy],1\n[joyful],01\n")
    gold, pred = (read_column(tmp_path/f"{x}.csv", "openset") for x in ("gold", "pred"))
    rewards = ew_rewards(gold, pred)
    assert rewards[0] > .5 and rewards[1] < .5 and rewards[2] == 1


def test_npz_files_in_any_order(tmp_path):
    np.savez(tmp_path/"x.npz", filenames=["b", "a"], fileitems=["[sad]", "[happy]"])
    assert read_answers(tmp_path/"x.npz") == {"a": "[happy]", "b": "[sad]"}
    for names, said in [(["b", "b"], "more than one answer for clip b"), ([1, 2], "must be text"),
                        (["a"], "1 filenames but 2 fileitems")]:
        np.savez(tmp_path/"x.npz", filenames=names, fileitems=["[sad]", "[happy]"])
        with pytest.raises(ValueError, match=f"x.npz: .*{said}"): read_answers(tmp_path/"x.npz")
    np.savez(tmp_path/"x.npz", filenames=[b"\xb0\xa5"], fileitems=["[sad]"])
    with pytest.raises(ValueError, match="x.npz: b'.*' is not in UTF-8"):
        read_answers(tmp_path/"x.npz")


def test_a_file_of_replies_with_a_line_taken_out(tmp_path):
    path, asked = tmp_path/"x.jsonl", [(n, i) for n in "abc" for i in range(2)]
    with PredictionLog(path, {}, 2, asked) as log:
        log.write([dict(name=n, sample=i, reply=n) for n, i in asked])
    lines = path.read_text().splitlines(keepends=True)
    with PredictionLog(path, {}, 2, asked) as log: assert len(log.records) == 6
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match="x.jsonl, line 3, is not the reply that belongs there"):
        PredictionLog(path, {}, 2, asked)
    path.write_text("".join(lines[:2]) + '{"name": "a", "sam\n' + "".join(lines[3:]))
    with pytest.raises(ValueError, match="x.jsonl, line 3"): PredictionLog(path, {}, 2, asked)


def test_a_torn_file_of_replies_goes_on(tmp_path):
    "Torn at every byte: the whole batches are kept, and the file ends as if nothing had happened"
    path, asked = tmp_path/"x.jsonl", [(n, 0) for n in ("ä", "b", "c", "d")]
    records = [dict(name=n, sample=i, reply="é\u2028") for n, i in asked]
    with PredictionLog(path, {"seed": 0}, 2, asked) as log: log.write(records)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with PredictionLog(path, {"seed": 0}, 2, asked) as log:
            assert log.records == records[:len(log.records)] and len(log.records) in (0, 2)
            log.write(records[len(log.records):])
        assert path.read_bytes() == whole


def test_two_systems_with_other_sets(tmp_path):
    labels = tmp_path/"labels"
    (labels/"ovmerdplus-process").mkdir(parents=True)
    (labels/"ovmerdplus-process/ovlabel.csv").write_text("name,openset\na,[happy]\nb,[sad]\n")
    (labels/"sims-process").mkdir()
    np.savez(labels/"sims-process/label.npz", test_corpus={"a": dict(emo=0, val=1.)})
    for system, sets in (("one", ["ovmerdplus"]), ("two", ["ovmerdplus", "sims"])):
        for key in sets:
            folder, end = tmp_path/system/key, "-openset"
            folder.mkdir(parents=True)
            answers = dict(filenames=["b", "a"], fileitems=["[sad]", "[joyful]"])
            if key == "sims": answers, end = dict(filenames=["a"], fileitems=["positive"]), (
                "-openset-sentiment")
            np.savez(folder/f"epoch1{end}.npz", **answers)
    with pytest.raises(ValueError, match="the systems answered different sets"):
        unibench_difference(tmp_path/"one", tmp_path/"two", labels)


def test_confidence_by_name():
    with pytest.raises(KeyError, match="no prediction for 1 of 1 clips: a"):
        label_confidence({"a": ["sad"]}, {})


def test_keys_of_json_are_names(tmp_path):
    (tmp_path/"x.json").write_text(json.dumps(turned(PRED)))
    assert ew_score(GOLD, read_column(tmp_path/"x.json", "labels")).f == ew_score(GOLD, PRED).f


def test_row_numbers_are_no_names():
    "Columns of one table are taken row by row, those of two sorted tables are refused"
    a = pd.DataFrame(dict(name=["a", "b", "c"], openset=["happy", "sad", "angry"]))
    b = a[::-1].reset_index(drop=True)
    for gold, pred in [(a, b.sort_values("name")), (a, a[::-1]), (a[1:], b[:-1])]:
        with pytest.raises(ValueError, match="set_index.'name'"):
            ew_score(gold["openset"], pred["openset"])
    for same in (a, a.sort_values("openset"), a[1:]):
        assert ew_score(same["openset"], same["openset"]).f == 1
    numbers = b.assign(name=[2, 1, 0]).set_index("name")
    assert ew_score(a["openset"].rename_axis("name"), numbers["openset"]).f == 1


def test_groups_by_name():
    groups = dict(a="x", b="y", c="x", d="y")
    right = group_scores(GOLD, PRED, groups)
    found = group_scores(pd.Series(GOLD), pd.Series(turned(PRED)), pd.Series(turned(groups)))
    assert found.equals(right) and right.loc["x", "f"] == ew_score(
        {n: GOLD[n] for n in "ac"}, {n: PRED[n] for n in "ac"}).f
    for other, kind, said in [
            (dict(groups, b=None, d=np.nan), KeyError, "no group for 2 of 4 clips: b, d"),
            (dict(groups, b=1), ValueError, "must be all text or all numbers"),
            (dict(groups, b=["x"]), ValueError, "must be all text or all numbers"),
            (["x"]*4, ValueError, "groups must be a mapping from clip")]:
        with pytest.raises(kind, match=said): group_scores(GOLD, PRED, other)

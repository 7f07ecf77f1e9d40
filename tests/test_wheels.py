"Wheels: what the built-in tables promise, and what happens when something is wrong"
import csv
import io
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from affectgpt_r1 import wheels as W
from affectgpt_r1.wheels import EmotionWheels, load_wheels, wheel_clusters

w = load_wheels()

def test_built_in_tables():
    assert w.names == ["Plutchik", "Willcox", "Roberts", "Junto", "Parrott"] and w.version == "builtin"
    assert w.n_forms == len(w.vocabulary) > 7000 and len(w.fingerprint) == 64
    assert [len(w.sectors(i)) for i in range(1, 6)] == [8, 6, 7, 6, 6]
    assert [len(w.sectors(i, 2)) for i in range(1, 6)] == [24, 36, 41, 34, 25]
    assert "neutral" not in w.vocabulary
    tables = Path(W.__file__).parent/"tables"
    for f in W.BUILTIN_WHEELS.values(): assert "Source:" in (tables/f).read_text()

def test_a_word_keeps_the_place_it_is_printed_at():
    for wheel in w.names:
        one, two = wheel_clusters(w.trees[wheel])
        for word in one: assert (w.cluster(word, wheel), w.cluster(word, wheel, 2)) == (one[word], two[word])

def test_every_form_is_somewhere():
    assert all((w._table[1][1:] >= 0).any(1))
    assert ((w._table[1] >= 0) == (w._table[2] >= 0)).all()

@pytest.mark.parametrize("word,sectors", {
    "happy": "joy joyful happy joy joy", "joyful": "joy joyful happy joy joy", "delighted": "joy joyful happy joy joy",
    "anxious": "fear scared fearful fear fear", "worried": "fear scared fearful fear fear", "nervous": "fear scared fearful fear fear",
    "frustrated": "anger mad angry anger anger", "irritated": "anger mad angry anger anger", "furious": "anger mad angry anger anger",
    "relieved": "joy peaceful happy love joy", "grateful": "None peaceful happy None None", "sorrowful": "sadness sad sad sadness sadness",
    "terrified": "fear scared fearful fear fear", "disgusting": "disgust None disgusted anger anger", "astonished": "surprise powerful surprised surprise surprise",
    "lonely": "sadness sad sad sadness sadness", "jealous": "anger mad angry anger anger", "neutral": "None None None None None"}.items())
def test_common_words(word, sectors):
    for spelling in (word, word.upper(), f"  {word}\n"):
        assert [str(w.cluster(spelling, i)) for i in range(1, 6)] == sectors.split()

@pytest.mark.parametrize("british,american", [("demoralised", "demoralized"), ("dishonoured", "dishonored"), ("apologising", "apologizing"), ("paralysed", "paralyzed"),
    ("honoured", "honored"), ("good-humoured", "good-humored"), ("fulfilment", "fulfillment"), ("offence", "offense"), ("sceptical", "skeptical"), ("cosy", "cozy"),
    ("light-hearted", "lighthearted"), ("light-hearted", "light hearted"), ("judgemental", "judgmental"), ("traumatised", "traumatized"), ("tranquillity", "tranquility")])
def test_both_spellings(british, american):
    assert [w.cluster(british, i) for i in range(1, 6)] == [w.cluster(american, i) for i in range(1, 6)] != [None]*5

def test_a_wheel_word_lends_its_name_without_taking_the_place_of_others():
    "`trust` stands near the front of the lines for caring and for confident; where it is not printed it is dropped all the same"
    assert w.coverage(["trust", "caring", "confident"]).values[:, :5].tolist() == [
        ["trust", "peaceful", "happy", None, None], ["trust", "peaceful", "happy", "love", "love"], ["trust", "powerful", "happy", "joy", "joy"]]

def test_level_two_lies_within_level_one():
    for wheel in w.names:
        home = {b: a for a, below in w.trees[wheel].items() for b in below}
        assert all(home[w.cluster(f, wheel, 2)] == w.cluster(f, wheel) for f in w.vocabulary if w.cluster(f, wheel))

@given(st.lists(st.sampled_from(w.vocabulary + ["zork", "neutral"]), max_size=6), st.sampled_from([1, 2]))
def test_codes_are_sets_of_clusters(labels, level):
    for k, code in enumerate(w.encode(labels, level), 1):
        named = {s for i, s in enumerate(w.sectors(k, level)) if int(code) >> i & 1}
        assert named == {w.cluster(x, k, level) for x in labels} - {None}

def test_the_rules_of_the_authors():
    "Alphabetical tie-break over all names of a form; a level-1 word to its first level-2 word; the last place of a word wins"
    tree = {"glad": {"merry": ["funny"], "calm": []}, "bad": {"upset": ["cross", "funny"], "low": ["sour"]}}
    x = EmotionWheels("x", {"one": tree}, {"cross": {"cross", "calm"}, "mad": {"upset"}, "off": set()},
                      {"cross": {"cross"}, "mads": {"mad", "cross"}, "mad": {"mad"}, "off": {"off"}}, alphabetical=True)
    assert wheel_clusters(tree)[1]["glad"] == "calm" and wheel_clusters(tree)[0]["funny"] == "bad"
    assert x.cluster("cross") == "glad" and x.cluster("mad") == "bad"
    assert x.cluster("mads") == "glad"    # candidates calm, cross, upset: calm comes first, though mad alone would say bad
    assert x.cluster("off") is None
    assert x._first[x._row["mads"]] == "cross" and x._word[x._row["mads"]] == "calm" and x._word[x._row["off"]] is None

def test_unknown_words_do_not_grow_the_table_for_ever():
    x = W._Rows(happy=1)
    x.limit = 3
    for i in range(50): assert x[f"word{i}"] == 0
    assert len(x) == 3 and x[" Happy"] == 1

@pytest.mark.parametrize("wrong,error", [
    (lambda: load_wheels("v3"), "no wheels called 'v3'; there are: builtin, v1, v2026"),
    (lambda: load_wheels("v1"), "give their folder"),
    (lambda: load_wheels("builtin", root="x"), "leave `root` out"),
    (lambda: w.cluster("happy", wheel=0), "no wheel 0"),
    (lambda: w.cluster("happy", wheel="Geneva"), "no wheel 'Geneva'"),
    (lambda: w.cluster("happy", level=3), "level is 3"),
    (lambda: w.cluster(7), "not 7"),
    (lambda: w.encode(["happy", 7]), "7")])
def test_errors(wrong, error):
    with pytest.raises(ValueError) as e: wrong()
    assert error in str(e.value)

def authors_folder(path, wheels=5):
    "A small folder in the authors' layout, made up"
    openpyxl = pytest.importorskip("openpyxl")
    def sheet(name, rows):
        book = openpyxl.Workbook()
        for row in rows: book.active.append(row)
        book.save(path/name)
    for i in range(1, wheels + 1): sheet(f"wheel{i}.xlsx", [("level1", "level2", "level3"), (" Glad ", "Merry", "funny"), (None, None, "jolly"), (None, "calm", None)])
    sheet("synonym.xlsx", [[f"{c}_run{i}" for i in range(1, 9) for c in ("word", "synonym")], ["merry", "['cheery', 'gay']"]*8])
    with open(path/"format.csv", "w", newline="") as f: csv.writer(f).writerows([("name", "format"), ("cheery", "cheerier, cheeriest"), ("no words", "")])
    return path

def test_reading_sheets(tmp_path):
    x = W._load_sheets("v1", authors_folder(tmp_path))
    assert x.trees["wheel1"] == {"glad": {"merry": ["funny", "jolly"], "calm": []}}
    assert x.cluster("Cheeriest", 5, 2) == "merry" and x.cluster("glad", 1, 2) == "calm"
    with pytest.raises(ValueError, match="not the published 'v1'.*wheel words: 5 instead of 253"): load_wheels("v1", tmp_path)

def test_a_missing_wheel_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"): load_wheels("v1", tmp_path/"nowhere")
    with pytest.raises(FileNotFoundError, match="lacks wheel5.xlsx"): load_wheels("v1", authors_folder(tmp_path, wheels=4))
    (tmp_path/"wheel5.xlsx").write_text("not a sheet")
    with pytest.raises(ValueError, match="wheel5.xlsx"): load_wheels("v1", tmp_path)
    (tmp_path/"wheel5.xlsx").write_bytes((tmp_path/"wheel1.xlsx").read_bytes())
    (tmp_path/"format.csv").write_text("name,forms\na,b\n")
    with pytest.raises(ValueError, match="format.csv has no column format"): load_wheels("v1", tmp_path)

class Bomb:
    def __reduce__(self): return (Path.touch, (Path(self.path),))

def test_a_hostile_pickle_does_not_run(tmp_path):
    bomb = Bomb(); bomb.path = str(tmp_path/"boom")
    np.savez(tmp_path/"wheel_mapping.npz", format_mapping=np.array({"a": bomb}, dtype=object))
    with pytest.raises(ValueError, match="Path.touch|pathlib"): load_wheels("v2026", tmp_path)
    assert not (tmp_path/"boom").exists()
    np.load(tmp_path/"wheel_mapping.npz", allow_pickle=True)["format_mapping"]   # numpy itself would have run it
    assert (tmp_path/"boom").exists()

def test_prebuilt_mapping_of_something_else(tmp_path):
    np.savez(tmp_path/"wheel_mapping.npz", format_mapping=np.array({"a": ["a"]}, dtype=object))
    with pytest.raises(ValueError, match="has no entry raw_mapping, wheel_map_whole"): load_wheels("v2026", tmp_path)

def test_the_fingerprint_sees_every_change():
    trees, words, forms = {"one": {"a": {"b": ["c"]}}}, {"b": ["b"], "c": ["c"]}, {"b": ["b"], "cs": ["c"]}
    prints = {EmotionWheels("x", t, ws, fs).fingerprint for t, ws, fs in [
        (trees, words, forms), ({"one": {"a": {"b": ["c"], "d": []}}}, words, forms), (trees, {**words, "c": ["b"]}, forms), (trees, words, {**forms, "cs": ["b"]})]}
    assert len(prints) == 4
    assert EmotionWheels("y", trees, words, forms).fingerprint in prints

def test_light_import():
    "labels, wheels and metrics need numpy and pandas alone, and read and print nothing"
    code = ("import sys\n"
            "import numpy, pandas; import affectgpt_r1.metrics\n"
            "heavy = {'torch', 'transformers', 'datasets', 'openpyxl', 'matplotlib', 'fastcore', 'nbdev', 'execnb'} & set(sys.modules)\n"
            "assert not heavy, heavy")
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(W.__file__).parents[1])
    assert (r.returncode, r.stdout, r.stderr) == (0, "", "")

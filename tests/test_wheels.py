"Wheels: what the built-in tables promise, and what happens when something is wrong"
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_r1 import wheel_tables
from affectgpt_r1 import wheels as W
from affectgpt_r1.wheel_files import read_wheel_files
from affectgpt_r1.wheels import EmotionWheels, load_wheels, wheel_clusters

w = load_wheels()


def on_all_wheels(word):
    "The cluster of `word` at level 1 on each wheel"
    return [w.cluster(word, i) for i in range(1, 6)]


def test_built_in_tables():
    assert w.names == ["Plutchik", "Willcox", "Roberts", "Junto", "Parrott"]
    assert w.version == "builtin"
    assert w.n_forms == len(w.vocabulary) > 7000 and len(w.fingerprint) == 64
    assert [len(w.sectors(i)) for i in range(1, 6)] == [8, 6, 7, 6, 6]
    assert [len(w.sectors(i, 2)) for i in range(1, 6)] == [24, 36, 41, 34, 25]
    assert "neutral" not in w.vocabulary
    folder = Path(W.__file__).parent/"word_lists"
    for file in W.BUILTIN_WHEELS.values():
        assert "Source:" in (folder/file).read_text()


def test_a_word_keeps_the_place_it_is_printed_at():
    for wheel in w.names:
        one, two = wheel_clusters(w.trees[wheel])
        for word in one:
            assert (w.cluster(word, wheel), w.cluster(word, wheel, 2)) == (one[word], two[word])


def test_every_form_is_somewhere():
    placed = {level: w._table[level] >= 0 for level in (1, 2)}
    assert placed[1][1:].any(1).all() and not placed[1][0].any()
    assert (placed[1] == placed[2]).all()


@pytest.mark.parametrize("level", [1, 2])
def test_masks_are_the_tables_as_bits(level):
    masks, table = w.codes(level)[:, :5].astype(np.uint64), w._table[level]
    assert (masks == np.where(table < 0, 0, np.uint64(1) << table.clip(0).astype(np.uint64))).all()


@pytest.mark.parametrize("word,sectors", {
    "happy": "joy joyful happy joy joy",
    "joyful": "joy joyful happy joy joy",
    "delighted": "joy joyful happy joy joy",
    "anxious": "fear scared fearful fear fear",
    "worried": "fear scared fearful fear fear",
    "nervous": "fear scared fearful fear fear",
    "frustrated": "anger mad angry anger anger",
    "irritated": "anger mad angry anger anger",
    "furious": "anger mad angry anger anger",
    "relieved": "joy peaceful happy love joy",
    "grateful": "None peaceful happy None None",
    "sorrowful": "sadness sad sad sadness sadness",
    "terrified": "fear scared fearful fear fear",
    "disgusting": "disgust None disgusted anger anger",
    "astonished": "surprise powerful surprised surprise surprise",
    "lonely": "sadness sad sad sadness sadness",
    "jealous": "anger mad angry anger anger",
    "neutral": "None None None None None",
}.items())
def test_common_words(word, sectors):
    for spelling in (word, word.upper(), f"  {word}\n"):
        assert list(map(str, on_all_wheels(spelling))) == sectors.split()


@pytest.mark.parametrize("british,american", [
    ("demoralised", "demoralized"), ("dishonoured", "dishonored"), ("apologising", "apologizing"),
    ("paralysed", "paralyzed"), ("honoured", "honored"), ("good-humoured", "good-humored"),
    ("fulfilment", "fulfillment"), ("offence", "offense"), ("sceptical", "skeptical"),
    ("cosy", "cozy"), ("light-hearted", "lighthearted"), ("light-hearted", "light hearted"),
    ("judgemental", "judgmental"), ("traumatised", "traumatized"), ("tranquillity", "tranquility"),
])
def test_both_spellings(british, american):
    assert on_all_wheels(british) == on_all_wheels(american) != [None]*5


def test_a_wheel_word_lends_its_name_without_taking_the_place_of_others():
    """`trust` is near the front of the lines for caring and for confident; where it is not printed
    it is dropped all the same"""
    assert on_all_wheels("trust") == ["trust", "peaceful", "happy", None, None]
    assert on_all_wheels("caring") == ["trust", "peaceful", "happy", "love", "love"]
    assert on_all_wheels("confident") == ["trust", "powerful", "happy", "joy", "joy"]


def test_level_two_lies_within_level_one():
    for wheel in w.names:
        home = {part: sector for sector, parts in w.trees[wheel].items() for part in parts}
        for form in w.vocabulary:
            if w.cluster(form, wheel):
                assert home[w.cluster(form, wheel, 2)] == w.cluster(form, wheel)


@given(st.lists(st.sampled_from(w.vocabulary + ["zork", "neutral"]), max_size=6),
       st.sampled_from([1, 2]))
def test_codes_are_sets_of_clusters(labels, level):
    for k, code in enumerate(w.encode(labels, level), 1):
        named = {name for i, name in enumerate(w.sectors(k, level)) if int(code) >> i & 1}
        assert named == {w.cluster(label, k, level) for label in labels} - {None}


def test_the_rules_of_the_authors():
    """Alphabetical tie-break over all names of a form; a level-1 word to its first level-2 word;
    the last place of a word wins"""
    tree = {"glad": {"merry": ["funny"], "calm": []},
            "bad": {"upset": ["cross", "funny"], "low": ["sour"]}}
    words_of = {"cross": {"cross", "calm"}, "mad": {"upset"}, "off": set()}
    names_of = {"cross": {"cross"}, "mads": {"mad", "cross"}, "mad": {"mad"}, "off": {"off"}}
    x = EmotionWheels("x", {"one": tree}, words_of, names_of, alphabetical=True)
    one, two = wheel_clusters(tree)
    assert two["glad"] == "calm" and one["funny"] == "bad"
    assert x.cluster("cross") == "glad" and x.cluster("mad") == "bad"
    # candidates calm, cross, upset: calm comes first, though mad alone would say bad
    assert x.cluster("mads") == "glad"
    assert x.cluster("off") is None
    mads, off = x.rows(["mads", "off"])
    assert x.first_names[mads] == "cross" and x.first_words[mads] == "calm"
    assert x.first_words[off] is None
    assert x.first_names[0] is x.first_words[0] is None


def test_unknown_words_do_not_grow_the_table_for_ever():
    x = wheel_tables._Rows(happy=1)
    x.limit = 3
    for i in range(50):
        assert x[f"word{i}"] == 0
    assert len(x) == 3 and x[" Happy"] == 1


@pytest.mark.parametrize("wrong,error", [
    (lambda: load_wheels("v3"), "no wheels called 'v3'; there are: builtin, v1, v2026"),
    (lambda: load_wheels("v1"), "give their folder"),
    (lambda: load_wheels("builtin", root="x"), "leave `root` out"),
    (lambda: w.cluster("happy", wheel=0), "no wheel 0"),
    (lambda: w.cluster("happy", wheel="Geneva"), "no wheel 'Geneva'"),
    (lambda: w.cluster("happy", level=3), "level is 3"),
    (lambda: w.codes(0), "level is 0"),
    (lambda: w.check_level("1"), "level is '1'"),
    (lambda: w.cluster(7), "not 7"),
    (lambda: w.encode(["happy", 7]), "7")])
def test_errors(wrong, error):
    with pytest.raises(ValueError) as e: wrong()
    assert error in str(e.value)


def write_sheet(path, rows):
    book = pytest.importorskip("openpyxl").Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def authors_folder(path, wheels=5):
    "A small folder in the authors' layout, made up"
    wheel = [("level1", "level2", "level3"), (" Glad ", "Merry", "funny"), (None, None, "jolly"),
             (None, "calm", None)]
    for i in range(1, wheels + 1):
        write_sheet(path/f"wheel{i}.xlsx", wheel)
    head = [f"{column}_run{i}" for i in range(1, 9) for column in ("word", "synonym")]
    write_sheet(path/"synonym.xlsx", [head, ["merry", "['cheery', 'gay']"]*8])
    with open(path/"format.csv", "w", newline="") as file:
        rows = [("name", "format"), ("cheery", "cheerier, cheeriest"), ("no words", "")]
        csv.writer(file).writerows(rows)
    return path


def test_reading_sheets(tmp_path):
    tables = read_wheel_files("v1", authors_folder(tmp_path))
    x = EmotionWheels("v1", tables.trees, tables.words_of, tables.names_of, alphabetical=True)
    assert x.trees["wheel1"] == {"glad": {"merry": ["funny", "jolly"], "calm": []}}
    assert x.cluster("Cheeriest", 5, 2) == "merry" and x.cluster("glad", 1, 2) == "calm"
    message = "not the published 'v1'.*wheel words: 5 instead of 253"
    with pytest.raises(ValueError, match=message): load_wheels("v1", tmp_path)


def test_a_name_that_leads_nowhere_is_one_error(tmp_path):
    "A form of a name that is in no other table"
    (authors_folder(tmp_path)/"format.csv").write_text("name,format\nzork,zorks\n")
    with pytest.raises(ValueError, match="its tables do not fit together"):
        load_wheels("v1", tmp_path)


def test_a_missing_wheel_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"): load_wheels("v1", tmp_path/"nowhere")
    with pytest.raises(FileNotFoundError, match="lacks wheel5.xlsx"):
        load_wheels("v1", authors_folder(tmp_path, wheels=4))
    (tmp_path/"wheel5.xlsx").write_text("not a sheet")
    with pytest.raises(ValueError, match="wheel5.xlsx"): load_wheels("v1", tmp_path)
    (tmp_path/"wheel5.xlsx").write_bytes((tmp_path/"wheel1.xlsx").read_bytes())
    (tmp_path/"format.csv").write_text("name,forms\na,b\n")
    with pytest.raises(ValueError, match="format.csv: has no column format"):
        load_wheels("v1", tmp_path)


class MakesFolder:
    "Pickled, it asks for a call"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def test_a_hostile_mapping_does_not_run(tmp_path):
    "The prebuilt file goes through the safe reader (see test_tables.py)"
    hostile = np.array({"a": MakesFolder(tmp_path/"boom")}, dtype=object)
    np.savez(tmp_path/"wheel_mapping.npz", format_mapping=hostile)
    with pytest.raises(ValueError, match=r"wheel_mapping.npz: holds a pickled \S*mkdir"):
        load_wheels("v2026", tmp_path)
    assert not (tmp_path/"boom").exists()


def test_prebuilt_mapping_of_something_else(tmp_path):
    mapping, held = tmp_path/"wheel_mapping.npz", np.array({"a": ["a"]}, dtype=object)
    np.savez(mapping, format_mapping=held)
    with pytest.raises(ValueError, match="has no entry raw_mapping, wheel_map_whole"):
        load_wheels("v2026", tmp_path)
    np.savez(mapping, format_mapping=held, raw_mapping=held, wheel_map_whole=held)
    with pytest.raises(ValueError, match="wheel_mapping.npz: its tables do not fit together"):
        load_wheels("v2026", tmp_path)
    wheels = np.array({"one": {"level1": {"b": "c"}, "level2": {"b": "b"}}}, dtype=object)
    np.savez(mapping, format_mapping=held, raw_mapping=held, wheel_map_whole=wheels)
    with pytest.raises(ValueError, match="wheel_mapping.npz: its tables do not fit together"):
        load_wheels("v2026", tmp_path)


def test_the_fingerprint_sees_every_change():
    trees, words = {"one": {"a": {"b": ["c"]}}}, {"b": ["b"], "c": ["c"]}
    forms = {"b": ["b"], "cs": ["c"]}
    prints = {EmotionWheels("x", *tables).fingerprint for tables in [
        (trees, words, forms),
        ({"one": {"a": {"b": ["c"], "d": []}}}, words, forms),
        (trees, {**words, "c": ["b"]}, forms),
        (trees, words, {**forms, "cs": ["b"]})]}
    assert len(prints) == 4
    assert EmotionWheels("y", trees, words, forms).fingerprint in prints


def test_light_import():
    "labels, wheels and metrics need numpy and pandas alone, and read and print nothing"
    code = ("import sys\n"
            "import numpy, pandas; import affectgpt_r1.metrics\n"
            "heavy = {'torch', 'transformers', 'datasets', 'openpyxl', 'matplotlib', 'fastcore',\n"
            "         'nbdev', 'execnb'} & set(sys.modules)\n"
            "assert not heavy, heavy")
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                       cwd=Path(W.__file__).parents[1])
    assert (r.returncode, r.stdout, r.stderr) == (0, "", "")

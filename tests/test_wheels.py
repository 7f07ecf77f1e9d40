"Wheels: what the built-in tables promise, and what happens when something is wrong"
import csv
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

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

class Call:
    "Pickled, it asks for a call"
    def __init__(self, f, *args, state=None): self.asks = (f, args) if state is None else (f, args, state)
    def __reduce__(self): return self.asks

def npz(path, **entries):
    np.savez(path, **{k: np.array({"a": x}, dtype=object) for k, x in entries.items()})
    return path

@pytest.mark.parametrize("call,args,name", [(Path.touch, (Path,), "Path.touch"), (os.mkdir, (str,), "mkdir"), (eval, ("open({!r}, 'w')",), "builtins.eval"),
    (np.savetxt, (str, [1.]), "savetxt"), (getattr, ("x", "upper"), "builtins.getattr"), (np.load, ("x",), "load"), (os.system, ("touch {}",), "system")])
def test_a_hostile_pickle_does_not_run(tmp_path, call, args, name):
    victim = tmp_path/"boom"
    args = [a(victim) if a in (Path, str) else a.format(str(victim)) if isinstance(a, str) else a for a in args]
    npz(tmp_path/"wheel_mapping.npz", format_mapping=Call(call, *args))
    with pytest.raises(ValueError, match=rf"wheel_mapping.npz: holds a pickled \S*{name}, which is neither"): load_wheels("v2026", tmp_path)
    assert not victim.exists()
    if call in (Path.touch, os.mkdir, eval, np.savetxt, os.system):
        np.load(tmp_path/"wheel_mapping.npz", allow_pickle=True)["format_mapping"]   # numpy itself would have run it
        assert victim.exists()

def array(shape, dtype, data): return Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))
def bent(code, flags, size=-1): return Call(np.dtype, code, False, True, state=(3, "|", None, None, None, size, -1, flags))

@pytest.mark.parametrize("x", {
    "eight bytes taken for the address of an object": array((1,), bent("O8", 0), b"\x01"*8),
    "fewer objects than the shape says": array((5,), np.dtype("O"), [1]), "less data than the shape says": array((10**15,), np.dtype("f8"), b""),
    "a negative shape": array((-2, -3), np.dtype("O"), [1]*6), "fields with objects": array((1,), np.dtype([("x", "O")]), [1]), "void": array((1,), np.dtype("V8"), b"12345678"),
    "a scalar with too little data": Call(np._core.multiarray.scalar, np.dtype("f8"), b"1"), "a scalar object": Call(np._core.multiarray.scalar, np.dtype("O"), "x"),
    "memory that nobody has": Call(bytearray, 10**15), "an array from nothing": Call(np.ndarray, (10**6,)), "a state for a set": Call(set, state={"x": 1})}.items(), ids=lambda x: x[0])
def test_a_pickle_cannot_bend_numpy(tmp_path, x):
    with pytest.raises(ValueError, match="x.npz: "): W._read_npz(npz(tmp_path/"x.npz", test=x[1]))

def test_a_text_dtype_cannot_be_stretched(tmp_path):
    "A state that makes each item of a text array larger is not taken"
    got = W._read_npz(npz(tmp_path/"x.npz", test=array((2,), bent("U1", 8, 400), "ab".encode("utf-32-le"))))
    assert got["test"]["a"].dtype == "<U1" and got["test"]["a"].tolist() == ["a", "b"]

def test_what_is_read_is_what_numpy_reads(tmp_path):
    held = dict(number=np.float32(.5), text=np.str_("x"), empty=np.str_(""), big=np.arange(3, dtype=">f8").reshape(1, 3).T, words=np.array(["a", "bcd"]), flag=np.bool_(True),
                mixed=np.array([["a", 1], [None, {1, 2}]], object), sets=[{1}, frozenset([2]), 3+4j, b"x", bytearray(b"y")], order=OrderedDict(b=1, a=2), plain=("a", [1.5, None]))
    np.savez_compressed(tmp_path/"x.npz", held=held, names=np.array(["a", "b"]), table=np.arange(6).reshape(2, 3), nothing=np.zeros((0, 3)), rows=np.array([(1, 2.)], "i4,f8"))
    got, want = W._read_npz(tmp_path/"x.npz"), np.load(tmp_path/"x.npz", allow_pickle=True)
    assert set(got) == set(want) and repr(got["held"]) == repr(want["held"].item())
    for k in ("names", "table", "nothing", "rows"): assert got[k].dtype == want[k].dtype and np.array_equal(got[k], want[k])
    with pytest.raises(FileNotFoundError, match="absent.npz"): W._read_npz(tmp_path/"absent.npz")

def test_a_cut_file_is_one_error(tmp_path):
    whole = npz(tmp_path/"whole.npz", test={"emo": np.int64(3)}).read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path/"cut.npz").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="cut.npz: "): W._read_npz(tmp_path/"cut.npz")

@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4))
def test_broken_bytes_never_fail_in_another_way(changes):
    "The zip's own checks are passed by: the bytes below them are changed"
    file = io.BytesIO()
    np.save(file, np.array({"a": np.float32(.5), "b": np.array(["x", None], object), "c": {1}}, dtype=object))
    data = bytearray(file.getvalue())
    for place, value in changes: data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(f"{folder}/x.npz", "w") as z: z.writestr("x.npy", bytes(data))
        try: assert set(W._read_npz(f"{folder}/x.npz")) == {"x"}
        except ValueError as e: assert "x.npz: " in str(e)

def test_files_that_would_fill_the_memory(tmp_path, monkeypatch):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, dict(descr="<f8", fortran_order=False, shape=(10**15,)))
    with zipfile.ZipFile(tmp_path/"x.npz", "w") as z: z.writestr("x.npy", file.getvalue())
    with pytest.raises(ValueError, match="does not fit its data"): W._read_npz(tmp_path/"x.npz")
    np.savez_compressed(tmp_path/"bomb.npz", zeros=np.zeros(10**6))
    assert (tmp_path/"bomb.npz").stat().st_size < 20_000
    monkeypatch.setattr(W, "_MOST", 10**6)
    with pytest.raises(ValueError, match="bomb.npz: .*would unpack to 8,000,128 bytes"): W._read_npz(tmp_path/"bomb.npz")

def test_prebuilt_mapping_of_something_else(tmp_path):
    np.savez(tmp_path/"wheel_mapping.npz", format_mapping=np.array({"a": ["a"]}, dtype=object))
    with pytest.raises(ValueError, match="has no entry raw_mapping, wheel_map_whole"): load_wheels("v2026", tmp_path)
    np.savez(tmp_path/"wheel_mapping.npz", **{k: np.array({"a": ["a"]}, dtype=object) for k in ("format_mapping", "raw_mapping", "wheel_map_whole")})
    with pytest.raises(ValueError, match="wheel_mapping.npz: its tables do not fit together"): load_wheels("v2026", tmp_path)

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

"Npz files run nothing that is hidden in them; csv, Excel and json keep names as text"
import datetime
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1 import tables
from affectgpt_r1.tables import read_column, read_csv, read_npz
from affectgpt_r1.text_files import read_json, read_jsonl


class Call:
    "Pickled, it asks for a call"
    def __init__(self, f, *args, state=None):
        self.asks = (f, args) if state is None else (f, args, state)

    def __reduce__(self): return self.asks


def npz(path, **entries):
    "An npz file in the authors' layout: a dictionary in an array without dimensions"
    np.savez(path, **{k: np.array({"a": x}, dtype=object) for k, x in entries.items()})
    return path


@pytest.mark.parametrize("call,args,name", [
    (Path.touch, (Path,), "Path.touch"),
    (os.mkdir, (str,), "mkdir"),
    (eval, ("open({!r}, 'w')",), "builtins.eval"),
    (np.savetxt, (str, [1.]), "savetxt"),
    (getattr, ("x", "upper"), "builtins.getattr"),
    (np.load, ("x",), "load"),
    (os.system, ("touch {}",), "system"),
])
def test_a_hostile_pickle_does_not_run(tmp_path, call, args, name):
    victim = tmp_path/"boom"

    def aimed(arg):
        if arg in (Path, str): return arg(victim)
        return arg.format(str(victim)) if isinstance(arg, str) else arg

    path = npz(tmp_path/"wheel_mapping.npz", format_mapping=Call(call, *map(aimed, args)))
    message = rf"wheel_mapping.npz: holds a pickled \S*{name}, which is neither"
    with pytest.raises(ValueError, match=message): read_npz(path)
    assert not victim.exists()
    if call in (Path.touch, os.mkdir, eval, np.savetxt, os.system):
        np.load(path, allow_pickle=True)["format_mapping"]   # numpy itself would have run it
        assert victim.exists()


def array(shape, dtype, data):
    "A pickled array with this state"
    state = (1, shape, dtype, False, data)
    return Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=state)


def bent_dtype(code, flags, size=-1):
    "A pickled dtype with other flags and size than its code says"
    state = (3, "|", None, None, None, size, -1, flags)
    return Call(np.dtype, code, False, True, state=state)


@pytest.mark.parametrize("x", {
    "eight bytes taken for the address of an object": array((1,), bent_dtype("O8", 0), b"\x01"*8),
    "fewer objects than the shape says": array((5,), np.dtype("O"), [1]),
    "less data than the shape says": array((10**15,), np.dtype("f8"), b""),
    "a negative shape": array((-2, -3), np.dtype("O"), [1]*6),
    "fields with objects": array((1,), np.dtype([("x", "O")]), [1]),
    "void": array((1,), np.dtype("V8"), b"12345678"),
    "a scalar with too little data": Call(np._core.multiarray.scalar, np.dtype("f8"), b"1"),
    "a scalar object": Call(np._core.multiarray.scalar, np.dtype("O"), "x"),
    "memory that nobody has": Call(bytearray, 10**15),
    "an array from nothing": Call(np.ndarray, (10**6,)),
    "a state for a set": Call(set, state={"x": 1}),
}.items(), ids=lambda x: x[0])
def test_a_pickle_cannot_bend_numpy(tmp_path, x):
    with pytest.raises(ValueError, match="x.npz: "): read_npz(npz(tmp_path/"x.npz", test=x[1]))


def test_a_text_dtype_cannot_be_stretched(tmp_path):
    "A state that makes each item of a text array larger is not taken"
    stretched = array((2,), bent_dtype("U1", 8, 400), "ab".encode("utf-32-le"))
    got = read_npz(npz(tmp_path/"x.npz", test=stretched))
    assert got["test"]["a"].dtype == "<U1" and got["test"]["a"].tolist() == ["a", "b"]


def test_what_is_read_is_what_numpy_reads(tmp_path):
    held = dict(
        number=np.float32(.5), text=np.str_("x"), empty=np.str_(""), flag=np.bool_(True),
        big=np.arange(3, dtype=">f8").reshape(1, 3).T, words=np.array(["a", "bcd"]),
        mixed=np.array([["a", 1], [None, {1, 2}]], object), plain=("a", [1.5, None]),
        sets=[{1}, frozenset([2]), 3+4j, b"x", bytearray(b"y")], order=OrderedDict(b=1, a=2))
    plain = dict(names=np.array(["a", "b"]), table=np.arange(6).reshape(2, 3),
                 nothing=np.zeros((0, 3)), rows=np.array([(1, 2.)], "i4,f8"))
    np.savez_compressed(tmp_path/"x.npz", held=held, **plain)
    got, want = read_npz(tmp_path/"x.npz"), np.load(tmp_path/"x.npz", allow_pickle=True)
    assert set(got) == set(want) and repr(got["held"]) == repr(want["held"].item())
    for name in plain:
        assert got[name].dtype == want[name].dtype and np.array_equal(got[name], want[name])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.npz"): read_npz(tmp_path/"absent.npz")


def test_a_cut_file_is_one_error(tmp_path):
    whole = npz(tmp_path/"whole.npz", test={"emo": np.int64(3)}).read_bytes()
    for end in range(0, len(whole), 7):
        (tmp_path/"cut.npz").write_bytes(whole[:end])
        with pytest.raises(ValueError, match="cut.npz: "): read_npz(tmp_path/"cut.npz")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4))
def test_broken_bytes_never_fail_in_another_way(changes):
    "The bytes of the entry are changed, so that the zip's own checks see nothing wrong"
    file = io.BytesIO()
    held = {"a": np.float32(.5), "b": np.array(["x", None], object), "c": {1}}
    np.save(file, np.array(held, dtype=object))
    data = bytearray(file.getvalue())
    for place, value in changes:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.npz"
        with zipfile.ZipFile(path, "w") as z: z.writestr("x.npy", bytes(data))
        try:
            assert set(read_npz(path)) == {"x"}
        except ValueError as e:
            assert "x.npz: " in str(e)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_comes_twice(tmp_path):
    file = io.BytesIO()
    np.save(file, np.arange(3))
    with zipfile.ZipFile(tmp_path/"x.npz", "w") as z:
        for _ in range(2): z.writestr("x.npy", file.getvalue())
    with pytest.raises(ValueError, match="x.npz: .*an entry comes twice"):
        read_npz(tmp_path/"x.npz")


def test_files_that_would_fill_the_memory(tmp_path, monkeypatch):
    file = io.BytesIO()
    header = dict(descr="<f8", fortran_order=False, shape=(10**15,))
    np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(tmp_path/"x.npz", "w") as z: z.writestr("x.npy", file.getvalue())
    with pytest.raises(ValueError, match="does not fit its data"): read_npz(tmp_path/"x.npz")
    np.savez_compressed(tmp_path/"bomb.npz", zeros=np.zeros(10**6))
    assert (tmp_path/"bomb.npz").stat().st_size < 20_000
    monkeypatch.setattr(tables, "_MAX_BYTES", 10**6)
    with pytest.raises(ValueError, match="bomb.npz: .*would unpack to 8,000,128 bytes"):
        read_npz(tmp_path/"bomb.npz")


L, BOTH = "name,openset\n", {"a1": "[sad, tired]", "a2": "[happy]"}


@pytest.mark.parametrize("text", [
    L + 'a1,"[sad, tired]"\na2,[happy]\n', "\ufeff" + L + 'a1,"[sad, tired]"\r\na2,[happy]\r\n',
    L + 'a1,"[sad, tired]",\na2,[happy],\n', L + 'a1,"[sad, tired]",,\n\na2,[happy]\n,\n  ,,\n\n',
    "name,openset,\n" + 'a1,"[sad, tired]",\na2,[happy],\n', L + 'a1,"[sad, tired]"\ra2,[happy]\r',
    'Name , OPENSET\n a1 ,"[sad, tired]"\na2\u200b,[happy]\n',
    'name, openset\na1, "[sad, tired]"\na2, "[happy]"\n', '"name","openset"\n"a1","[sad, tired]"\n'
    '"a2","[happy]"\n', "name;openset\na1;[sad, tired]\na2;[happy]\n",
    "sep=;\r\nname;openset\r\na1;[sad, tired]\r\na2;[happy]\r\n",
    "name\topenset\na1\t[sad, tired]\na2\t[happy]\n",
    ',name,openset\n0,a1,"[sad, tired]"\n1,a2,[happy]\n',
    'n,openset,name\n7,"[sad, tired]",a1\n8,[happy],a2\n'])
def test_habits_of_csv(tmp_path, text):
    "One table, as people and programs write it"
    (tmp_path/"x.csv").write_text(text, encoding="utf-8", newline="")
    assert read_csv(tmp_path/"x.csv", ["openset"])["openset"].to_dict() == BOTH


@pytest.mark.parametrize("text,message", [
    (L + "a1,Oh, no\na2,[happy]\n", r"more cells than the header in row 1 \('a1'\): put quotes"),
    ("name,openset,\na1,Oh, no,\n", r"more cells than the header in row 1 \('a1'\)"),
    (L + "a2,[happy]\na1\n", r"too few cells in row 2 \('a1'\)"),
    (L + "a1,[sad]\nand left\n", r"too few cells in row 2 \('and left'\)"),
    ("name,openset,openset\na1,[sad],[happy]\n", "has more than one column openset"),
    ("a1,[sad]\na2,[happy]\n", r"has no column name, openset; its columns are a1, \[sad\]"),
    (L + 'a1,"[sad]\na2,[happy]\n', "in line 2, a quote is opened and never closed"),
    (L + 'a1,"He said "no""\n', "in line 2, '[,]' expected after"),
    (L + "a1,[sad]\n a1 ,[happy]\n", "more than one row for clip a1"),
    (L + "e\u0301,[sad]\n\u00e9,[happy]\n", "more than one row for clip \u00e9"),
    (L + ",[sad]\n", "no name in row 1"), (" \n\n", "it is empty"), (L + " , \n", "and no rows")])
def test_what_is_no_table(tmp_path, text, message):
    (tmp_path/"x.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="x.csv: .*" + message):
        read_csv(tmp_path/"x.csv", ["openset"])


@pytest.mark.parametrize("encoding,said", [
    ("gbk", "哎呀 in GBK"), ("big5", "哎呀 in Big5"), ("shift_jis", "悲しい in Shift-JIS"),
    ("cp1252", "é in Windows-1252"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"),
    ("utf-32", "UTF-16")])
def test_encodings_are_named(tmp_path, encoding, said):
    word = {"cp1252": "é", "shift_jis": "悲しい"}.get(encoding, "哎呀")
    (tmp_path/"x.csv").write_bytes(f"{L}a1,{word}\n".encode(encoding))
    with pytest.raises(ValueError, match=f"x.csv: is not a csv file in UTF-8 .*{said}"):
        read_csv(tmp_path/"x.csv", ["openset"])


@pytest.mark.parametrize("data,said", [
    (b"PK\3\4...", "Excel"), (b"\xd0\xcf\x11\xe0...", "old Excel"), (b"\x1f\x8b...", "gzip"),
    (b"<!DOCTYPE html>", "web page"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs")])
def test_other_files_are_named(tmp_path, data, said):
    (tmp_path/"x.csv").write_bytes(data)
    with pytest.raises(ValueError, match=f"x.csv: is not a csv file in UTF-8 .*{said}"):
        read_csv(tmp_path/"x.csv", [])


NAMES = ["0001", "01", "1", "1819", "18_19", "007", "1e5", "NA", "nan", "null", "None", "True",
         "2026-01-02", "1.0", "-", "=1"]


def written(folder, kind):
    "A file of each kind that has its own name as the reply of each clip"
    path = folder/f"x.{kind}"
    rows = [dict(name=n, reply=n) for n in NAMES]
    if kind == "csv": pd.DataFrame(rows).to_csv(path, index=False)
    if kind == "tsv": pd.DataFrame(rows).to_csv(path, index=False, sep="\t")
    if kind == "json": path.write_text(json.dumps(rows))
    if kind == "json object": path.write_text(json.dumps({n: n for n in NAMES}))
    if kind == "jsonl": path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    if kind == "xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for row in [("name", "reply"), *((n, n) for n in NAMES)]:
            book.active.append(row)
            for cell in book.active[book.active.max_row]: cell.data_type = "s"
        book.save(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "json object", "jsonl", "xlsx"])
def test_names_stay_text(tmp_path, kind):
    got = read_column(written(tmp_path, kind), "reply")
    assert got == {n: n for n in NAMES} and all(type(x) is str for x in got)


def test_names_in_excel(tmp_path):
    "What a cell shows, or an error: a number with zeros in front is shown, and not held"
    openpyxl = pytest.importorskip("openpyxl")
    book, path = openpyxl.Workbook(), tmp_path/"x.xlsx"
    for row in [("name", "reply"), (12, "a"), ("0012", "b"), (1.0, "c"), (2.5, "d"),
                (1234567890123, "e")]:
        book.active.append(row)
    hidden = book.create_sheet("old")
    hidden.append(("name", "reply"))
    hidden.append(("x", "y"))
    book.save(path)
    with pytest.raises(ValueError, match="x.xlsx has the columns in the sheets Sheet, old: hide"):
        read_column(path, "reply")
    hidden.sheet_state = "hidden"
    book.save(path)
    assert read_column(path, "reply") == {"12": "a", "0012": "b", "1": "c", "2.5": "d",
                                         "1234567890123": "e"}
    for value, form in ((12, "0000"), (datetime.date(2026, 1, 2), "yyyy-mm-dd"), (True, "General")):
        book.active["A2"].value, book.active["A2"].number_format = value, form
        book.save(path)
        with pytest.raises(ValueError, match="x.xlsx: cell A2 is no text .* as text"):
            read_column(path, "reply")


def test_a_clip_twice_in_any_file(tmp_path):
    twice = {"x.jsonl": '{"name": "a", "x": 1}\n{"name": "a", "x": 2}\n',
             "x.json": '{"a": 1, "a": 2}', "x.csv": "name,x\na,1\na ,2\n",
             "y.json": '{"a": 1, " a": 2}'}
    for file, text in twice.items():
        (tmp_path/file).write_text(text)
        message = f"{file}: .*(more than one row for clip a|comes twice)"
        with pytest.raises(ValueError, match=message):
            read_column(tmp_path/file, "x")


def test_a_torn_line_at_every_byte(tmp_path):
    "Whole lines are kept, half a line is dropped and reported, whatever it ends in"
    records = [{"name": "18_19", "reply": "哎呀, \"sad\"\u2028"},
               {"name": "1819", "reply": "é\r\n"}]
    lines = [json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records]
    whole, path = b"".join(lines), tmp_path/"x.jsonl"
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        done = [len(whole), len(whole) - 1, len(lines[0]), len(lines[0]) - 1]   # each line is whole
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = read_jsonl(path)
        assert got == records[:2 if end in done[:2] else 1 if end >= done[3] else 0]
        assert len(caught) == (end not in (0, *done))
        assert all("x.jsonl: the last line is cut" in str(w.message) for w in caught)


def test_json_that_is_none_names_its_line(tmp_path):
    for file, text, message in [
            ("x.json", '{\n "a": 1,\n b}', "x.json: is no json: .* in line 3, column 2"),
            ("x.jsonl", '{"a": 1}\n{"a": 1\n{"a": 1}\n', "x.jsonl, line 2: is no json"),
            ("y.jsonl", '{"a": 1}\n[1]\n', "y.jsonl: no json object in line 2"),
            ("y.json", '[\n {"name": "a"},\n {"name" "b"}\n]\n', "y.json: is no json: .* line 3"),
            ("x.json", "[" * 10**5, "x.json")]:
        (tmp_path/file).write_text(text)
        read = read_jsonl if file.endswith("l") else read_json
        with pytest.raises(ValueError, match=message): read(tmp_path/file)
        with pytest.raises(ValueError, match=message): read_column(tmp_path/file, "x")


def test_replies_that_were_stopped_before_the_first(tmp_path):
    "The settings at the head are no clip, even where nothing follows; a clip may have that name"
    file = tmp_path / "replies.jsonl"
    head, reply = {"settings": {"mode": "answer"}}, {"name": "a", "reply": "sad"}
    file.write_text(json.dumps(head) + "\n")
    with pytest.raises(ValueError, match="replies.jsonl: holds nothing"):
        read_column(file, "reply")
    file.write_text(json.dumps(head) + "\n" + json.dumps(reply) + "\n")
    assert read_column(file, "reply") == {"a": "sad"}
    file.write_text(json.dumps({"settings": {"reply": "sad"}}))
    assert read_column(file, "reply") == {"settings": "sad"}
    file.write_text(json.dumps({"settings": ["sad"]}))
    assert read_column(file, "reply") == {"settings": ["sad"]}


def test_a_column_of_an_npz_file(tmp_path):
    np.savez(tmp_path/"x.npz", filenames=["a"], fileitems=["sad"])
    with pytest.raises(ValueError, match="x.npz: is an npz file"):
        read_column(tmp_path/"x.npz", "x")
    (tmp_path/"x.csv").write_text("name,x\n.npy,PK\n")
    assert read_column(tmp_path/"x.csv", "x") == {".npy": "PK"}


def test_files_that_were_joined(tmp_path):
    "The header of the second file is no clip, and a byte order mark is no text"
    for mark in ("", "\ufeff"):
        (tmp_path/"x.csv").write_text(f"{mark}{L}a,sad\n{mark}{L}b,sad\n", encoding="utf-8")
        with pytest.raises(ValueError, match="x.csv: the header once more in row 2"):
            read_csv(tmp_path/"x.csv", ["openset"])
    (tmp_path/"x.csv").write_text(f"\ufeff\ufeff{L}a,sad\n\ufeffb,sad\n", encoding="utf-8")
    found = read_csv(tmp_path/"x.csv", ["openset"])["openset"]
    assert found.to_dict() == dict(a="sad", b="sad")
    (tmp_path/"x.csv").write_text(f"{L}a,{'x'*200_000}\n")
    with pytest.raises(ValueError, match="in line 2, .* a cell has more characters than"):
        read_csv(tmp_path/"x.csv", ["openset"])


def sheet(path, rows, change=lambda book: None, xml=lambda text: text):
    "An Excel file with `rows`, after changes of the book and of the text of its sheet"
    book, made = pytest.importorskip("openpyxl").Workbook(), io.BytesIO()
    for row in rows: book.active.append(row)
    change(book.active)
    book.save(made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            new.writestr(name, xml(text) if name.endswith("sheet1.xml") else text)
    return path


ROWS = [("name", "openset"), ("a", "happy"), ("b", "sad")]


def test_habits_of_excel(tmp_path):
    right = dict(a="happy", b="sad")
    small = sheet(tmp_path/"x.xlsx", ROWS, xml=lambda x: x.replace(b'"A1:B3"', b'"A1"'))
    assert read_column(small, "openset") == right
    for rows in ([("Name", "openset "), *ROWS[1:]], [(None, None), *ROWS]):
        assert read_column(sheet(tmp_path/"x.xlsx", rows), "openset") == right
    dated = [(*row, datetime.date(2026, 1, 2)) for row in ROWS[1:]]
    other = sheet(tmp_path/"x.xlsx", [("name", "openset", "date"), *dated])
    assert read_column(other, "openset") == right
    with pytest.raises(ValueError, match="no column name; its columns are clip, openset"):
        read_column(sheet(tmp_path/"x.xlsx", [("clip", "openset"), *ROWS[1:]]), "openset")


@pytest.mark.parametrize("row,merged,said", [
    (("b", "=A1"), None, "cell B3 is a formula without a result"),
    (("b", None), "B2:B3", "cell B2:B3 is merged"), ((10**16, "sad"), None, "cell A3 is no text"),
    (("b", "#N/A"), None, "cell B3 is no text")])
def test_cells_that_show_what_they_do_not_hold(tmp_path, row, merged, said):
    def change(page): return merged and page.merge_cells(merged)
    path = sheet(tmp_path/"x.xlsx", [*ROWS[:2], row], change)
    with pytest.raises(ValueError, match=f"x.xlsx: {said}"): read_column(path, "openset")

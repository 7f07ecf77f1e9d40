"Npz files: what is read is what numpy reads, and nothing that is hidden in them is run"
import io
import os
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_r1 import tables
from affectgpt_r1.tables import read_npz


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

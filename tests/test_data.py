"Data: a folder is read as it is, or refused in one error that names what is wrong; pickles cannot run anything"
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from affectgpt_r1 import toy
from affectgpt_r1.data import COLUMNS, check_media, load_mer2025, read_npz

REFERENCE = Path(os.environ.get("AFFECTGPT_R1_REFERENCE", Path(__file__).resolve().parents[1].parent/"shared/reference"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A corpus of six clips"
    toy.TOY_SIZES["six"] = dict(caption=2, human=2, test=2)
    yield toy.make_toy_corpus(tmp_path_factory.mktemp("toy")/"corpus", preset="six", workers=1, progress=False)
    del toy.TOY_SIZES["six"]


@pytest.fixture
def corpus(made, tmp_path): return Path(shutil.copytree(made, tmp_path/"corpus"))


def rewrite(path, change): path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("track,name,described", [("caption", "caption_00000", True), ("human", "human_00000", False), ("ovmerd", "sample_00000", True)])
def test_tracks(corpus, track, name, described):
    ds = load_mer2025(corpus, track)
    row = ds[0]
    assert ds.column_names == list(COLUMNS) and len(ds) == 2 and row["name"] == name and row["split"] == track
    assert row["video"] == str(corpus/f"video/{name}.mp4") and row["audio"] == str(corpus/f"audio/{name}.wav")
    assert row["subtitle"] and row["labels"] and bool(row["description"]) == described
    check_media(ds, progress=False)


def test_relative_root(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    assert Path(load_mer2025("corpus", "human")[0]["video"]).is_absolute()


def test_cells(corpus):
    (corpus/"track2_train_human.csv").write_bytes("\ufeffname,openset\r\nhuman_00000,\"[Happy, very glad]\"\r\nhuman_00001,\r\n".encode())
    rewrite(corpus/"subtitle_chieng.csv", lambda t: "name,chinese,english\nhuman_00000,,\"One, two\"\nhuman_00001,,\n")
    ds = load_mer2025(corpus, "human")
    assert ds["labels"][:] == [["Happy", "very glad"], ["neutral"]] and ds["subtitle"][:] == ["One, two", ""]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; give the one that holds"): load_mer2025(tmp_path/"nowhere", "human")


def test_missing_column(corpus):
    rewrite(corpus/"track2_train_human.csv", lambda t: t.replace("openset", "labels"))
    with pytest.raises(ValueError, match=r"track2_train_human\.csv: has no column openset; its columns are name, labels"): load_mer2025(corpus, "human")


def test_undecodable_video_is_named(corpus):
    (corpus/"video/human_00001.mp4").write_bytes(b"\0"*1000)
    with pytest.raises(ValueError, match=r"clip human_00001: .*human_00001\.mp4: cannot be decoded as video"):
        check_media(load_mer2025(corpus, "human"), progress=False)


def test_clip_without_sound_file(corpus):
    (corpus/"audio/human_00001.wav").unlink()
    with pytest.raises(ValueError, match=r"audio/<name>\.wav: no file for clip human_00001"): load_mer2025(corpus, "human")


def test_clip_without_sound(corpus):
    sf.write(corpus/"audio/human_00001.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"clip human_00001: .*human_00001\.wav: holds no samples"):
        check_media(load_mer2025(corpus, "human"), progress=False)


def test_all_faults_in_one_error(corpus):
    shutil.rmtree(corpus/"video")
    (corpus/"track3_train_ovmerd.csv").unlink()
    rewrite(corpus/"subtitle_chieng.csv", lambda t: "\n".join(l for l in t.split("\n") if "sample_00001" not in l))
    with pytest.raises(ValueError) as e: load_mer2025(corpus, "ovmerd")
    for part in ("video/: no such folder", "track3_train_ovmerd.csv: no such file", "subtitle_chieng.csv: no row for clip sample_00001"): assert part in str(e.value)


def test_long_lists_are_cut(corpus):
    rewrite(corpus/"track2_train_human.csv", lambda t: "name,openset\n" + "".join(f"x{i},happy\n" for i in range(25)))
    with pytest.raises(ValueError, match="x8, x9 and 15 more"): load_mer2025(corpus, "human")


def test_duplicate_name(corpus):
    rewrite(corpus/"track2_train_human.csv", lambda t: t+"human_00000,happy\n")
    with pytest.raises(ValueError, match="more than one row for clip human_00000"): load_mer2025(corpus, "human")


def test_empty_csv(corpus):
    (corpus/"track2_train_human.csv").write_text("")
    with pytest.raises(ValueError, match=r"track2_train_human\.csv: is no csv file"): load_mer2025(corpus, "human")


def test_unknown_track(corpus):
    with pytest.raises(ValueError, match="track 'humans' is unknown, take one of caption, human, ovmerd"): load_mer2025(corpus, "humans")


class Hostile:
    def __init__(self, call, *args): self.call = call, args
    def __reduce__(self): return self.call


@pytest.mark.parametrize("call,name", [(os.mkdir, "mkdir"), (os.system, "system"), (eval, "eval"), (exec, "exec"), (getattr, "getattr"), (Path, "Path"),
                                       (np.load, "load"), (np.fromfile, "fromfile")])
def test_hostile_pickle(tmp_path, call, name):
    harm = tmp_path/"harm"
    arg = dict(system=f"mkdir {harm}", eval=f"__import__('os').mkdir({str(harm)!r})", exec=f"__import__('os').mkdir({str(harm)!r})").get(name, str(harm))
    np.savez(tmp_path/"bad.npz", x=np.array({"a": Hostile(call, arg)}, object))
    with pytest.raises(ValueError, match=rf"bad\.npz: holds a pickled \S*{name}"): read_npz(tmp_path/"bad.npz")
    assert not harm.exists()


def test_npz_values(tmp_path):
    held = {"a": {"emo": "happy", "val": -10., "n": np.int64(3), "b": np.float32(.5), "s": {1}, "t": (1, None), "arr": np.arange(4.).reshape(2, 2)}}
    np.savez(tmp_path/"x.npz", corpus=held, names=np.array(["a", "b"]), items=np.array([["a", 1], ["b", None]], object))
    got = read_npz(tmp_path/"x.npz")
    np.testing.assert_array_equal(got["corpus"]["a"].pop("arr"), held["a"].pop("arr"))
    assert got["corpus"] == held and got["names"].tolist() == ["a", "b"] and got["items"].tolist() == [["a", 1], ["b", None]]


def test_npz_faults(tmp_path):
    (tmp_path/"text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="text.npz"): read_npz(tmp_path/"text.npz")
    with pytest.raises(FileNotFoundError, match="absent.npz"): read_npz(tmp_path/"absent.npz")


@pytest.mark.skipif(not (REFERENCE/"labels").is_dir(), reason=f"the authors' files are not in {REFERENCE}; name their folder in AFFECTGPT_R1_REFERENCE")
@pytest.mark.parametrize("file,split,size", [("mer2023_label-6way", "test1_corpus", 411), ("meld_label", "test_corpus", 2610), ("cmumosi_label", "test_corpus", 686),
    ("cmumosei_label", "test_corpus", 4659), ("sims_label", "test_corpus", 457), ("simsv2_label", "test_corpus", 1034)])
def test_label_files(file, split, size): assert len(read_npz(REFERENCE/f"labels/{file}.npz")[split]) == size


@pytest.mark.skipif(not (REFERENCE/"labels").is_dir(), reason=f"the authors' files are not in {REFERENCE}; name their folder in AFFECTGPT_R1_REFERENCE")
def test_other_files():
    whole = read_npz(REFERENCE/"labels/iemocap_label_4way.npz")["whole_corpus"]
    assert sum(name[4] == "5" for name in whole) == 1241
    for p in (REFERENCE/"predictions").rglob("*.npz"): assert read_npz(p)

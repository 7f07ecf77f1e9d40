"Data: every layout is read, or refused in one error that names what is wrong; pickles run nothing"
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from test_media import greys, tone, write

from affectgpt_r1.data import (
    COLUMNS, TRACKS, load_folder, load_mer2025, load_mer2026, load_unibench, read_npz)
from affectgpt_r1 import cli, folders, splits
from affectgpt_r1.cli import main
from affectgpt_r1.messages import list_some, printable
from affectgpt_r1.splits import (
    check_leakage, check_media, load_splits, parse_source, rl_split, shared_clips)
from affectgpt_r1.unibench import UNIBENCH

BESIDE = Path(__file__).resolve().parents[1].parent/"shared/reference"
REFERENCE = Path(os.environ.get("AFFECTGPT_R1_REFERENCE", BESIDE))
needs_reference = pytest.mark.skipif(
    not (REFERENCE/"labels").is_dir(),
    reason=f"the authors' files are not in {REFERENCE}; set AFFECTGPT_R1_REFERENCE to their folder")
pytestmark = pytest.mark.filterwarnings("ignore:.*the published set has")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    "One clip as mp4, avi, wav and npy"
    root = tmp_path_factory.mktemp("media")
    for x in ("mp4", "avi"): write(root/f"clip.{x}", greys(9))
    sf.write(root/"clip.wav", tone(.5), 16000)
    np.save(root/"clip.npy", greys(9, size=12))
    return root


def place(media, folder, names, suffix):
    "The clip under each of `names`"
    folder.mkdir(parents=True, exist_ok=True)
    for n in names: shutil.copy(media/f"clip{suffix}", folder/f"{n}{suffix}")


def table(path, **columns):
    "A csv file"
    pd.DataFrame(columns).to_csv(path, index=False)


def mer_folder(root, media, corpus, **names):
    "A miniature of a MER2025 or MER2026 folder: all tracks, or those of `names`"
    names = names or {track: [f"{track}_00000", f"{track}_00001"] for track in TRACKS[corpus]}
    every = [n for ns in names.values() for n in ns]
    place(media, root/"video", every, ".mp4")
    place(media, root/"audio", every, ".wav")
    for n in every: place(media, root/"openface_face"/n, [n], ".npy")
    english = [f"words of {n}" for n in every]
    table(root/"subtitle_chieng.csv", name=every, chinese=["你好"]*len(every), english=english)
    cells = dict(openset="['happy', 'warm']", discrete="happy")
    for name, ns in names.items():
        track = TRACKS[corpus][name]
        labels = {track.column: cells[track.column]} if track.column else {}
        table(root/track.label_file, name=ns, **labels)
        if track.reason_file: table(root/track.reason_file, name=ns, reason="The mouth smiles.")
    return root


GOLD = dict(
    MER2023=["happy", "worried"], MER2024=["angry", "neutral"], MELD=[0, 6], IEMOCAPFour=[3, 0],
    CMUMOSI=[-1.8, 0.], CMUMOSEI=[3., -3], SIMS=[.4, -.2], SIMSv2=[1., -1],
    OVMERDPlus=["['calm', 'at ease']", "[]"])
READ = GOLD | dict(MELD=["anger", "surprise"], IEMOCAPFour=["anger", "happy"])


def set_names(key):
    "The two clips of a miniature of a test set"
    if key == "IEMOCAPFour": return ["Ses05F_impro01_F000", "Ses05M_script01_M001"]
    return [f"{key} one", f"{key}_二"]


def write_labels(path, key, gold):
    "The label file of a test set, with clips of other splits in it"
    if key == "OVMERDPlus": return table(path, name=list(gold), openset=list(gold.values()))
    is_word = UNIBENCH[key].measure == "hit rate"
    def entry(g): return dict(emo=g, val=-10) if is_word else dict(emo=0, val=g)
    others = {"Ses01F_impro01_F000": dict(emo=0, val=-10)} if key == "IEMOCAPFour" else {}
    entries = {n: entry(g) for n, g in gold.items()} | others
    np.savez(path, train_corpus={"other": entry(0)}, **{UNIBENCH[key].split: entries})


def set_folder(root, media, key):
    "A miniature of a test set; gives the folder that holds its folder"
    test_set, names = UNIBENCH[key], set_names(key)
    folder = root/test_set.folder
    place(media, folder/test_set.audio_folder, names, ".wav")
    place(media, folder/test_set.video_folder, names, ".avi" if key == "IEMOCAPFour" else ".mp4")
    place(media, folder/"openface_face", names[:1], ".npy")
    words = {test_set.subtitle_column: [f"words of {n}" for n in names]}
    table(folder/test_set.subtitle_file, name=names, **words)
    write_labels(folder/test_set.label_file, key, dict(zip(names, GOLD[key])))
    return root


@pytest.fixture
def corpus(media, tmp_path):
    "Two tracks of MER2025, two clips each"
    return mer_folder(tmp_path/"mer2025", media, "MER2025", human=["human_00000", "human_00001"],
                      ovmerd=["sample_00000", "sample_00001"])


def rewrite(path, change):
    "A file after a change of its text"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize("corpus,track", [(c, t) for c, ts in TRACKS.items() for t in ts])
def test_every_track(media, tmp_path, corpus, track):
    load = dict(MER2025=load_mer2025, MER2026=load_mer2026)[corpus]
    ds = load(mer_folder(tmp_path, media, corpus), track)
    name = f"{track}_00000"
    assert ds.column_names == list(COLUMNS)
    assert ds["name"][:] == [name, f"{track}_00001"] and set(ds["split"]) == {track}
    row = ds[0]
    assert row["video"] == str(tmp_path/f"video/{name}.mp4")
    assert row["audio"] == str(tmp_path/f"audio/{name}.wav")
    assert row["face"] == str(tmp_path/f"openface_face/{name}/{name}.npy")
    assert row["subtitle"] == f"words of {name}"
    assert (row["language"], row["valence"]) == ("en", None)
    labels = dict(openset=["happy", "warm"], discrete=["happy"])
    assert row["labels"] == labels.get(TRACKS[corpus][track].column, [])
    assert bool(row["description"]) == bool(TRACKS[corpus][track].reason_file)
    assert check_media(ds, progress=False) is ds


@pytest.mark.parametrize("key", UNIBENCH)
def test_every_set_of_unibench(media, tmp_path, key):
    test_set, names = UNIBENCH[key], set_names(key)
    folder, suffix = tmp_path/test_set.folder, ".avi" if key == "IEMOCAPFour" else ".mp4"
    report = f"the {key} test set: 2 clips; the published set has {test_set.n_clips:,}"
    with pytest.warns(UserWarning, match=report):
        ds = load_unibench(set_folder(tmp_path, media, key), key)
    assert report in ds.info.description
    assert ds.column_names == list(COLUMNS) and ds["name"][:] == names and set(ds["split"]) == {key}
    row = ds[0]
    assert row["video"] == str(folder/test_set.video_folder/f"{names[0]}{suffix}")
    assert row["audio"] == str(folder/test_set.audio_folder/f"{names[0]}.wav")
    assert ds["face"][:] == [str(folder/f"openface_face/{names[0]}.npy"), ""]
    assert row["subtitle"] == f"words of {names[0]}"
    assert row["language"] == ("zh" if test_set.subtitle_column == "chinese" else "en")
    if test_set.measure == "WAF":
        assert ds["valence"][:] == GOLD[key] and ds["labels"][:] == [[], []]
    else:
        word_lists = test_set.measure == "EW F"
        expected = [["calm", "at ease"], ["neutral"]] if word_lists else [[x] for x in READ[key]]
        assert ds["labels"][:] == expected and ds["valence"][:] == [None, None]
    check_media(ds, progress=False)


@pytest.mark.parametrize("key,gold", [
    ("MER2023", ""), ("MER2023", np.nan), ("MELD", 7), ("MELD", -1), ("MELD", "joy"),
    ("CMUMOSI", np.nan), ("SIMS", "0.1"), ("SIMS", None)])
def test_gold_that_is_none(media, tmp_path, key, gold):
    root, (good, bad) = set_folder(tmp_path, media, key), set_names(key)
    labels = UNIBENCH[key].label_file
    write_labels(root/UNIBENCH[key].folder/labels, key, {good: GOLD[key][0], bad: gold})
    message = rf"\n- {labels}: no usable gold for clip {bad} \(\{{'emo'"
    with pytest.raises(ValueError, match=message) as e: load_unibench(root, key)
    assert good not in str(e.value)


def test_label_file_of_another_set(media, tmp_path):
    root = set_folder(tmp_path, media, "MELD")
    np.savez(root/"meld-process/label.npz", whole_corpus={"a": dict(emo=0)})
    other = r"\n- label\.npz: has no clips in a split test_corpus; it holds whole_corpus"
    with pytest.raises(ValueError, match=other): load_unibench(root, "MELD")
    (root/"meld-process/label.npz").unlink()
    (root/"meld-process/transcription-engchi-polish.csv").unlink()
    with pytest.raises(ValueError) as e: load_unibench(root, "MELD")
    for file in ("label.npz", "transcription-engchi-polish.csv"):
        assert f"\n- {file}: no such file" in str(e.value)


def test_a_label_file_without_clips(media, tmp_path):
    root = set_folder(tmp_path, media, "SIMS")
    np.savez(root/"sims-process/label.npz", test_corpus={})
    message = r"\n- label\.npz: has no clips in a split test_corpus; it holds test_corpus"
    with pytest.raises(ValueError, match=message): load_unibench(root, "SIMS")


def test_relative_root(corpus, monkeypatch):
    monkeypatch.chdir(corpus.parent)
    assert Path(load_mer2025("mer2025", "human")[0]["video"]).is_absolute()


def test_cells(corpus):
    labels = "\ufeffname,openset\r\nhuman_00000,\"[Happy, very glad]\"\r\nhuman_00001,\r\n"
    words = "\ufeffname,chinese,english\r\nhuman_00000,,\"One, two\"\r\nhuman_00001,,\r\n"
    (corpus/"track2_train_human.csv").write_bytes(labels.encode())
    (corpus/"subtitle_chieng.csv").write_bytes(words.encode())
    ds = load_mer2025(corpus, "human")
    assert ds["labels"][:] == [["Happy", "very glad"], ["neutral"]]
    assert ds["subtitle"][:] == ["One, two", ""]


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "None", "[]", "  "])
def test_label_cell_without_words(corpus, cell):
    text = f"name,openset\nhuman_00000,{cell}\nhuman_00001,[sad]\n"
    (corpus/"track2_train_human.csv").write_text(text)
    assert load_mer2025(corpus, "human")["labels"][:] == [["neutral"], ["sad"]]


@pytest.mark.parametrize("cell", ["", "nan"])
def test_one_word_is_asked_for_and_none_is_there(media, tmp_path, cell):
    mer_folder(tmp_path, media, "MER2026", discrete=["a", "b"])
    (tmp_path/"track1_train.csv").write_text(f"name,discrete\na,{cell}\nb,sad\n")
    with pytest.raises(ValueError, match="track1_train.csv: no label for clip a"):
        load_mer2026(tmp_path, "discrete")


ODD_NAMES = ["a clip, with blanks", "片段 #1", "naïve.v2", "007", "null", "NA"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_names(media, tmp_path, name):
    ds = load_mer2026(mer_folder(tmp_path, media, "MER2026", human=[name]), "human")
    assert ds["name"][:] == [name] and ds["subtitle"][:] == [f"words of {name}"]
    assert ds[0]["face"].endswith(f"{name}.npy")
    check_media(ds, progress=False)


def test_blank_name(corpus):
    rewrite(corpus/"track2_train_human.csv", lambda t: t+",[sad]\n  ,[sad]\n")
    message = r"\n- track2_train_human\.csv: no name in row 3, 4 after the header"
    with pytest.raises(ValueError, match=message): load_mer2025(corpus, "human")


def test_header_without_rows(corpus):
    (corpus/"track2_train_human.csv").write_text("name,openset\n")
    message = r"\n- track2_train_human\.csv: has a header and no rows"
    with pytest.raises(ValueError, match=message): load_mer2025(corpus, "human")


def test_missing_folder(tmp_path):
    message = r"nowhere: no such folder; give the one that holds"
    with pytest.raises(FileNotFoundError, match=message): load_mer2025(tmp_path/"nowhere", "human")


def test_missing_column(corpus):
    rewrite(corpus/"track2_train_human.csv", lambda t: t.replace("openset", "labels"))
    message = (r"\n- track2_train_human\.csv: has no column openset; "
               "its columns are name, labels")
    with pytest.raises(ValueError, match=message): load_mer2025(corpus, "human")


def test_clip_without_sound_file(corpus):
    (corpus/"audio/human_00001.wav").unlink()
    with pytest.raises(ValueError, match=r"audio/<name>\.wav: no file for clip human_00001"):
        load_mer2025(corpus, "human")
    fault = r"audio/<name>\.wav: no file for 1"
    with pytest.warns(UserWarning, match=f"1 clip; .*left out: {fault}") as caught:
        dropped = load_mer2025(corpus, "human", missing="drop")
    assert caught[0].filename == __file__
    assert dropped["name"][:] == ["human_00000"] and "left out" in dropped.info.description
    with pytest.warns(UserWarning, match=f"2 clips; .*masked: {fault}"):
        masked = load_mer2025(corpus, "human", missing="mask")
    assert masked["audio"][:] == [str(corpus/"audio/human_00000.wav"), ""]
    assert all(masked["video"])
    check_media(masked, progress=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_whole_modality_is_missing(corpus):
    shutil.rmtree(corpus/"audio")
    with pytest.raises(ValueError, match="audio/: no such folder"): load_mer2025(corpus, "human")
    message = "no clip has all its files: audio/<name>.wav: no file for 2"
    with pytest.raises(ValueError, match=message): load_mer2025(corpus, "human", missing="drop")
    assert load_mer2025(corpus, "human", missing="mask")["audio"][:] == ["", ""]


def test_all_faults_in_one_error(corpus):
    shutil.rmtree(corpus/"video")
    (corpus/"track3_train_ovmerd.csv").unlink()
    rewrite(corpus/"subtitle_chieng.csv",
            lambda t: "\n".join(line for line in t.split("\n") if "sample_00001" not in line))
    with pytest.raises(ValueError) as e: load_mer2025(corpus, "ovmerd")
    for part in ("video/: no such folder", "track3_train_ovmerd.csv: no such file",
                 "subtitle_chieng.csv: no row for clip sample_00001"):
        assert f"\n- {part}" in str(e.value)
    assert str(e.value).count(str(corpus)) == 1


def test_long_lists_are_cut(corpus):
    rows = "".join(f"x{i},happy\n" for i in range(25))
    (corpus/"track2_train_human.csv").write_text("name,openset\n" + rows)
    with pytest.raises(ValueError, match="x8, x9 and 15 more"): load_mer2025(corpus, "human")


def test_duplicate_name(corpus):
    rewrite(corpus/"track2_train_human.csv", lambda t: t+"human_00000,happy\n")
    with pytest.raises(ValueError, match="more than one row for clip human_00000"):
        load_mer2025(corpus, "human")


@pytest.mark.parametrize("held", [b"", b"\xff\xfe\x00n", b'name,openset\n"a,b\n'])
def test_no_csv(corpus, held):
    (corpus/"track2_train_human.csv").write_bytes(held)
    with pytest.raises(ValueError, match=r"\n- track2_train_human\.csv: is not a csv file"):
        load_mer2025(corpus, "human")


def test_unknown_names(corpus):
    def unknown(known):
        return pytest.raises(ValueError, match=f"is unknown, take one of {known}")
    with pytest.raises(ValueError, match="track 'humans' is unknown, take one of caption, human"):
        load_mer2025(corpus, "humans")
    with unknown("caption, human, discrete"): load_mer2026(corpus, "ovmerd")
    with pytest.raises(ValueError, match="set 'meld' is unknown, take one of MER2023, MER2024"):
        load_unibench(corpus, "meld")
    with pytest.raises(ValueError, match="missing 'ignore' is unknown, take one of error, drop"):
        load_unibench(corpus, "MELD", missing="ignore")
    with unknown("error, drop, mask"): load_mer2025(corpus, "human", missing="ignore")
    with unknown("error, drop, mask"): check_media(load_mer2025(corpus, "human"), faulty="ignore")


def test_a_whole_set_and_a_generated_one_are_read_without_a_warning(corpus, monkeypatch, recwarn):
    whole = TRACKS["MER2025"]["human"]._replace(n_clips=2)
    monkeypatch.setitem(TRACKS["MER2025"], "human", whole)
    description = load_mer2025(corpus, "human").info.description
    assert description == "track human of a MER2025 folder: 2 clips"
    (corpus/"corpus.json").write_text("{}")
    description = load_mer2025(corpus, "ovmerd").info.description
    assert description == "track ovmerd of a MER2025 folder: 2 generated clips"
    assert not recwarn.list


def broken(corpus):
    "Six clips, five of them faulty in one way each"
    names = ["fine", "cut", "blind", "mute", "nosound", "noface"]
    human = load_mer2025(corpus, "human")
    rows = human.select([0]*6).to_dict() | dict(name=names)
    for c in ("video", "audio", "face"):
        for i, n in enumerate(names):
            path = Path(rows[c][i])
            rows[c][i] = str(shutil.copy(path, corpus/f"{n}{path.suffix}"))
    video = Path(rows["video"][0]).read_bytes()
    (corpus/"cut.mp4").write_bytes(video[:len(video)//2])
    write(corpus/"blind.mp4", wave=tone())   # an mp4 file without a video stream
    sf.write(corpus/"mute.wav", np.zeros(0), 16000)
    (corpus/"nosound.wav").unlink()
    (corpus/"noface.npy").write_bytes(b"no faces")
    return human.from_dict(rows, features=human.features)


REPORTED = [
    "cut: .*cut.mp4: is cut short", "blind: .*blind.mp4: has no video stream",
    "mute: .*mute.wav: holds no samples", "nosound: .*nosound.wav: no such file",
    "noface: .*noface.npy: cannot be read as an npy file"]


def test_faulty_media_are_named(corpus):
    named = "(.|\n)*".join(f"clip {fault}" for fault in REPORTED)
    message = "5 files cannot be used: repair what is listed(.|\n)*" + named
    with pytest.raises(ValueError, match=message): check_media(broken(corpus), progress=False)


def test_faulty_media_are_left_out_or_masked(corpus):
    ds = broken(corpus)
    with pytest.warns(UserWarning, match="5 files cannot be used\n- clip cut"):
        assert check_media(ds, progress=False, faulty="drop")["name"][:] == ["fine"]
    with pytest.warns(UserWarning, match="5 files cannot be used"):
        masked = check_media(ds, progress=False, faulty="mask")
    assert masked.features == ds.features and masked["name"][:] == ds["name"][:]
    def without(column): return [n for n, path in zip(masked["name"], masked[column]) if not path]
    assert without("video") == ["cut", "blind"]
    assert without("audio") == ["mute", "nosound"]
    assert without("face") == ["noface"]
    check_media(masked, progress=False)


def test_many_faulty_files_are_counted(corpus):
    ds = load_mer2025(corpus, "human").select([0]*13)
    for i in range(2): (corpus/f"video/human_0000{i}.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="13 files cannot be used(.|\n)*\n- and 3 more$"):
        check_media(ds, progress=False)


def human_track(root, media, names):
    "The human track of a MER2026 folder with these clips"
    return load_mer2026(mer_folder(root, media, "MER2026", human=names), "human")


def test_rl_split(corpus, media, tmp_path):
    human = human_track(tmp_path/"mer2026", media, [f"s{i}" for i in range(7)])
    description = human.info.description
    kept = rl_split(human, human.select([1, 3, 5]))
    assert kept["name"][:] == ["s0", "s2", "s4", "s6"] and kept.features == human.features
    assert kept.info.description == f"{description}; 3 of them are test clips and left out"
    assert human.info.description == description


def test_leakage(media, tmp_path):
    a = human_track(tmp_path/"a", media, ["one", "two", "three"])
    b = human_track(tmp_path/"b", media, ["three", "four", "five"])
    for ds in (a, b):
        for i, path in enumerate([*ds["video"], *ds["audio"]]):
            Path(path).write_bytes(f"{path} {i:4}".encode().ljust(200))
    assert shared_clips(a, b).values.tolist() == [["three", "three", "name"]]
    shutil.copy(b["video"][1], a["video"][0])
    shutil.copy(b["audio"][2], a["audio"][1])
    assert shared_clips(a, b).values.tolist() == [
        ["one", "four", "video"], ["three", "three", "name"], ["two", "five", "audio"]]
    message = ("3 clips are in both splits, by name or by the bytes of their files: "
               "one = four, three, two = five")
    with pytest.raises(ValueError, match=message): check_leakage(a, b)
    check_leakage(a.select([2]), b.select([1, 2]))


def test_files_that_nobody_has_are_no_leak(media, tmp_path):
    "Masked media, and empty files, are not the same clip"
    a = human_track(tmp_path/"a", media, ["one"])
    for name in ("empty", "none"): (tmp_path/f"{name}.wav").touch()
    def other(name, wav):
        columns = dict(name=[name], video=[""], audio=[str(tmp_path/wav)])
        return a.from_dict(a.to_dict() | columns, features=a.features)
    check_leakage(other("one", "none.wav"), other("two", "empty.wav"))


# the splits of an experiment, with folders as a lab has them

def sample_names(kind, n): return [f"{kind}_{i:05d}" for i in range(n)]


def film(root, names):
    "Files of each clip that no other clip has, the same ones in every folder"
    for name in names:
        shade = sum(map(ord, name)) % 251
        write(root/f"video/{name}.mp4", np.full((9, 48, 64, 3), shade, np.uint8))
        sf.write(root/f"audio/{name}.wav", np.full(8000, shade / 999), 16000)


@pytest.fixture
def real(media, tmp_path):
    """The real folders in small: no human track in MER2025; in MER2026 no descriptions, and a human
    track that holds the test clips (332 of 1,532) and a clip of the captions"""
    caption, test = sample_names("caption", 4), sample_names("sample", 2)
    human = [*test, *sample_names("samplenew", 3), caption[0]]
    parts = dict(MER2025=dict(caption=caption, ovmerd=test, disdim=["d0"], candidates=["k0"]),
                 MER2026=dict(caption=caption, human=human, discrete=["e0"], candidates=["k0"]))
    for corpus, names in parts.items():
        root = mer_folder(tmp_path/corpus, media, corpus, **names)
        every = {name for ns in names.values() for name in ns}
        film(root, every)
        table(root/"subtitle_chieng.csv", name=sorted(every), english="Well.")
    return dict(caption=(tmp_path/"MER2025", "caption"), human=(tmp_path/"MER2026", "human"),
                test=(tmp_path/"MER2025", "ovmerd"), progress=False)


def test_test_clips_among_the_human_clips_are_refused(real):
    with pytest.raises(ValueError) as e: load_splits(**real)
    assert str(e.value) == (
        "the data cannot be used as asked:\nhuman and test: 2 clips are in both splits, by name or "
        "by the bytes of their files: sample_00000, sample_00001\n"
        "leakage='drop' leaves them out of human")


def test_test_clips_are_left_out_of_training(real, capsys, recwarn):
    "By name, and also a copy under another name; what captions and human labels share is reported"
    root = real["human"][0]
    shutil.copy(root/"video/sample_00001.mp4", root/"video/samplenew_00002.mp4")
    found = load_splits(**real, leakage="drop")
    assert {name: split["name"][:] for name, split in found.items()} == dict(
        caption=sample_names("caption", 4), test=sample_names("sample", 2),
        human=[*sample_names("samplenew", 2), "caption_00000"])
    assert all(found["caption"]["description"]) and not any(found["human"]["description"])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        "caption: 4 clips", "human: 3 clips", "test: 2 clips"]
    assert "human of a MER2026 folder: 6 clips; the published set has 1,532" in said[1]
    assert said[1].endswith("; left out because they are test clips: 3; also in caption: 1; "
                            "2.0 labels per clip)")
    assert not recwarn.list   # the report has said it
    check_leakage(found["human"], found["test"])


def test_the_human_track_of_mer2025(real):
    wrong = real | dict(human=(real["caption"][0], "human"))
    with pytest.raises(ValueError) as e: load_splits(**wrong)
    for part in ("human: ", "track2_train_human.csv: no such file",
                 "the human labels were published with MER2026: give its folder"):
        assert part in str(e.value)


def test_gaps_of_the_real_folders(real, capsys):
    "A video without a video stream, a file that is missing, faces that are missing"
    root = real["human"][0]
    write(root/"video/samplenew_00001.mp4", wave=tone())
    (root/"audio/samplenew_00002.wav").unlink()
    shutil.rmtree(root/"openface_face/samplenew_00000")
    with pytest.raises(ValueError) as e: load_splits(**real)
    for part in ("audio/<name>.wav: no file for clip samplenew_00002", "2 clips are in both splits",
                 "clip samplenew_00001: ", "has no video stream", "missing='drop' leaves"):
        assert part in str(e.value)   # everything at once
    dropped = load_splits(**real, leakage="drop", missing="drop")["human"]
    assert dropped["name"][:] == ["samplenew_00000", "caption_00000"]
    capsys.readouterr()
    masked = load_splits(**real, leakage="drop", missing="mask")["human"]
    assert masked["name"][:] == [*sample_names("samplenew", 3), "caption_00000"]
    assert [bool(path) for path in masked["video"]] == [True, False, True, True]
    assert [bool(path) for path in masked["audio"]] == [True, True, False, True]
    said = capsys.readouterr().out
    assert "masked because a file cannot be decoded: samplenew_00001" in said
    assert "masked: audio/<name>.wav: no file for 1" in said and "without a face file: 1" in said


def test_a_test_set_of_unibench(real, media, tmp_path):
    set_folder(tmp_path/"unibench", media, "OVMERDPlus")
    found = load_splits(**real | dict(test=(tmp_path/"unibench", "OVMERDPlus")))
    assert found["test"]["name"][:] == set_names("OVMERDPlus") and len(found["human"]) == 6
    assert list(load_splits(test=(tmp_path/"unibench", "OVMERDPlus"), progress=False)) == ["test"]


def test_a_file_is_decoded_once(real, tmp_path, monkeypatch):
    "As long as it does not change, if there is a file that remembers it"
    how = real | dict(leakage="drop", checked=tmp_path/"checked.jsonl")
    first = load_splits(**how)
    def fail(path): raise ValueError(f"{path}: is read again")
    for column, read in list(splits._READERS.items()):
        again = lambda path: fail(path)
        again.__name__ = read.__name__
        monkeypatch.setitem(splits._READERS, column, again)
    assert load_splits(**how)["human"]["name"][:] == first["human"]["name"][:]
    os.utime(real["test"][0]/"video/sample_00000.mp4", (1, 1))
    with pytest.raises(ValueError, match="1 file cannot be used.*\n.*sample_00000.mp4: is read ag"):
        load_splits(**how)


def test_sources():
    "The last colon counts: a drive has one, too"
    assert parse_source("data/MER2026:human") == ("data/MER2026", "human")
    assert parse_source(r"C:\data\MER2026:human") == (r"C:\data\MER2026", "human")
    for text in ("data/MER2026", r"C:\data\MER2026", "C:/data", ":human", "data:", ""):
        with pytest.raises(ValueError, match="is not FOLDER:TRACK, as"): parse_source(text)


def test_choices_of_splits(tmp_path):
    with pytest.raises(ValueError, match="missing 'ignore' is unknown, take one of error, drop, m"):
        load_splits(missing="ignore")
    with pytest.raises(ValueError, match="leakage 'mask' is unknown, take one of error, drop$"):
        load_splits(leakage="mask")
    with pytest.raises(ValueError, match="give at least one of caption, human and test"):
        load_splits()
    with pytest.raises(ValueError, match="human: track 'humans' is unknown, take one of caption"):
        load_splits(human=(tmp_path, "humans"))
    with pytest.raises(ValueError, match="caption: .*nowhere: no such folder"):
        load_splits(caption=(tmp_path/"nowhere", "caption"))


@pytest.fixture
def mine(tmp_path):
    "A folder of one's own videos: with sound, silent, with a wav of its own, sound alone"
    root = tmp_path/"my videos"
    root.mkdir()
    write(root/"with sound.mp4", greys(9), wave=tone())
    write(root/"静か.mp4", greys(9))
    write(root/"beside.mp4", greys(9))
    sf.write(root/"beside.wav", tone(), 16000)
    write(root/"radio.mp4", wave=tone())
    (root/"notes.txt").write_text("no video")
    (root/"with sound.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nWell, hello!\n")
    vtt = "WEBVTT\n\n00:00.000 --> 00:01.000\n你好\n"
    (root/"静か.vtt").write_text(vtt, encoding="utf-8")
    return root


def test_own_videos(mine):
    report = ("4 videos; without pictures: radio; without sound: 静か; "
              "without words: beside, radio")
    with pytest.warns(UserWarning, match=report) as caught: ds = load_folder(mine)
    assert caught[0].filename == __file__ and ds.info.description == report
    rows = {r["name"]: r for r in ds}
    assert ds.column_names == list(COLUMNS)
    assert set(rows) == {"with sound", "静か", "beside", "radio"}
    both = rows["with sound"]
    assert both["audio"] == both["video"] == str(mine/"with sound.mp4")
    assert both["subtitle"] == "Well, hello!"
    assert (rows["静か"]["audio"], rows["静か"]["subtitle"]) == ("", "你好")
    assert rows["beside"]["audio"] == str(mine/"beside.wav")
    assert (rows["radio"]["video"], rows["radio"]["audio"]) == ("", str(mine/"radio.mp4"))
    assert all(r["labels"] == [] and r["valence"] is None for r in rows.values())
    assert set(ds["split"]) == {"own"}
    check_media(ds, progress=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_own_videos_with_a_table_of_words(mine, tmp_path):
    text = "\ufeffname,subtitle\r\nbeside.mp4,\"Yes, and no\"\r\nradio,News.\r\n"
    (tmp_path/"words.csv").write_bytes(text.encode())
    ds = load_folder(mine, tmp_path/"words.csv")
    words = {"beside": "Yes, and no", "radio": "News.", "with sound": "", "静か": ""}
    assert dict(zip(ds["name"], ds["subtitle"])) == words


def test_own_videos_faults(mine, tmp_path):
    (mine/"beside.MOV").write_bytes(b"no video")
    latin = "1\n00:00:00,000 --> 00:00:01,000\ndéjà vu\n".encode("latin-1")
    (mine/"with sound.srt").write_bytes(latin)
    with pytest.raises(ValueError) as e: load_folder(mine)
    for part in ("more than one video for clip beside", "beside.MOV: cannot be opened",
                 "with sound.srt: is not a subtitle file in UTF-8"):
        assert part in str(e.value)
    (tmp_path/"words.csv").write_text("name,subtitle\nbesides,Yes\n")
    with pytest.raises(ValueError, match="words.csv: no video for clip besides"):
        load_folder(mine, tmp_path/"words.csv")
    with pytest.raises(ValueError, match="\n- absent.csv: no such file"):
        load_folder(mine, tmp_path/"absent.csv")
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="no file of the kinds .mp4, .avi"):
        load_folder(tmp_path/"empty")
    with pytest.raises(FileNotFoundError, match="no such folder"): load_folder(tmp_path/"absent")


class Hostile:
    def __init__(self, call, *args): self.call = call, args
    def __reduce__(self): return self.call


@pytest.mark.parametrize("call,name", [
    (os.mkdir, "mkdir"), (os.system, "system"), (eval, "eval"), (exec, "exec"),
    (getattr, "getattr"), (Path, "Path"), (np.load, "load"), (np.fromfile, "fromfile")])
def test_hostile_pickle(tmp_path, call, name):
    harm = tmp_path/"harm"
    code = f"__import__('os').mkdir({str(harm)!r})"
    arg = dict(system=f"mkdir {harm}", eval=code, exec=code).get(name, str(harm))
    np.savez(tmp_path/"bad.npz", x=np.array({"a": Hostile(call, arg)}, object))
    with pytest.raises(ValueError, match=rf"bad\.npz: holds a pickled \S*{name}"):
        read_npz(tmp_path/"bad.npz")
    assert not harm.exists()


def test_npz_values(tmp_path):
    held = {"a": {"emo": "happy", "val": -10., "n": np.int64(3), "b": np.float32(.5), "s": {1},
                  "t": (1, None), "arr": np.arange(4.).reshape(2, 2)}}
    items = [["a", 1], ["b", None]]
    arrays = dict(names=np.array(["a", "b"]), items=np.array(items, object))
    np.savez(tmp_path/"x.npz", corpus=held, **arrays)
    got = read_npz(tmp_path/"x.npz")
    np.testing.assert_array_equal(got["corpus"]["a"].pop("arr"), held["a"].pop("arr"))
    assert got["corpus"] == held
    assert got["names"].tolist() == ["a", "b"] and got["items"].tolist() == items


def test_npz_faults(tmp_path):
    (tmp_path/"text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="text.npz"): read_npz(tmp_path/"text.npz")
    with pytest.raises(FileNotFoundError, match="absent.npz"): read_npz(tmp_path/"absent.npz")


@needs_reference
@pytest.mark.parametrize("key,file,size", [
    ("MER2023", "mer2023_label-6way", 411), ("MELD", "meld_label", 2610),
    ("IEMOCAPFour", "iemocap_label_4way", 1241), ("CMUMOSI", "cmumosi_label", 686),
    ("CMUMOSEI", "cmumosei_label", 4659), ("SIMS", "sims_label", 457),
    ("SIMSv2", "simsv2_label", 1034)])
def test_real_label_files(tmp_path, key, file, size):
    "Of the documented size, by the reader alone and through `load_unibench`, with media masked"
    test_set = UNIBENCH[key]
    held = read_npz(REFERENCE/f"labels/{file}.npz")[test_set.split]
    in_test = sum(key != "IEMOCAPFour" or name[4] == "5" for name in held)
    assert in_test == size == test_set.n_clips
    folder = tmp_path/test_set.folder
    folder.mkdir()
    shutil.copy(REFERENCE/f"labels/{file}.npz", folder/test_set.label_file)
    table(folder/test_set.subtitle_file, name=list(held), **{test_set.subtitle_column: "x"})
    masked = rf"{size:,} clips; masked: \S+/<name>.mp4: no file for {size:,}, \S+/<name>.wav: no"
    with pytest.warns(UserWarning, match=masked): ds = load_unibench(tmp_path, key, missing="mask")
    assert len(ds) == size
    empty = ("valence", None) if test_set.measure == "hit rate" else ("labels", [])
    assert all(ds[empty[0]][i] == empty[1] for i in range(0, size, 50))


@needs_reference
def test_other_real_files():
    for p in (REFERENCE/"predictions").rglob("*.npz"): assert read_npz(p)


HIDDEN = ("._one.mp4", ".DS_Store", "Thumbs.db", "~$words.xlsx", "desktop.ini", "notes.txt",
          "words.csv", ".hidden/x")
ODD = {"two.mp4.part": b"", "three.crdownload": b"\0\1", "x.tmp": b"", "cover.jpg": b"\xff\xd8\xff",
       "list.m3u8": b"#EXTM3U\nhttp://nowhere/a.ts\n", "data.bin": bytes(200), "x.sh": b"#!/bin/sh",
       "on.srt": b"1\n00:00:00,000 --> 00:00:01,000\nHi\n", "readme": b"Hello", "day.mp4/x": b"",
       "more/one.mp4": b""}


def test_neighbours_of_clips(tmp_path):
    "What a system hides is passed over; what else is left out is reported, and stops nothing"
    write(tmp_path/"one.mp4", greys(9), wave=tone())
    for name in (*HIDDEN, *ODD):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(ODD.get(name, b"\0\5\26\7"*9))
    with pytest.warns(UserWarning, match="left out: ") as caught: ds = load_folder(tmp_path)
    assert caught[0].filename == __file__ and str(caught[0].message) == ds.info.description
    assert ds["name"][:] == ["one"]
    said = ds.info.description.split("left out: ")[1]
    shown = {name.partition("/")[0] + "/" * ("/" in name) for name in ODD}
    assert said.startswith("cover.jpg, data.bin, day.mp4/") and said.endswith(" and 1 more")
    assert set(folders.scan_folder(tmp_path).left_out) == shown


@pytest.mark.parametrize("name,suffix", [
    ("one.flv", ".flv"), ("one.m4v", ".mp4"), ("one.ts", ".ts"), ("one", ".mkv"),
    ("one.MP4", ".mp4"), ("one.dat", ".mp4"), ("one.m2ts", ".ts"), ("one.avi", ".mp4")])
def test_the_content_makes_a_clip(tmp_path, name, suffix):
    (tmp_path/"in").mkdir()
    write(tmp_path/f"x{suffix}", greys(9), wave=tone(rate=44100), rate=44100)
    path = (tmp_path/f"x{suffix}").rename(tmp_path/"in"/name)
    ds = load_folder(tmp_path/"in")
    assert ds["name"][:] == ["one"] and ds["video"][:] == ds["audio"][:] == [str(path)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_one_name(tmp_path):
    write(tmp_path/"a.mp4", greys(9), wave=tone())
    for name in ("a.WAV", "a.flac", "b.flac", "c.flac"): sf.write(tmp_path/name, tone(), 16000,
                                                                  format=name[-4:].strip("."))
    write(tmp_path/"b.avi", greys(9))
    scan = folders.scan_folder(tmp_path)
    found = {clip.name: [path and path.name for path in clip[1:3]] for clip in scan.clips}
    assert found == dict(a=["a.mp4", "a.WAV"], b=["b.avi", "b.flac"], c=[None, "c.flac"])
    assert scan.left_out == ["a.flac"] and not scan.problems
    write(tmp_path/"a.mkv", greys(9))
    message = r"more than one video for clip a: a\.mkv, a\.mp4"
    with pytest.raises(ValueError, match=message): load_folder(tmp_path)
    (tmp_path/"gone.mp4").symlink_to(tmp_path/"nowhere.mp4")
    with pytest.raises(ValueError, match="gone.mp4: a link to a file that is not there"):
        load_folder(tmp_path)


def test_copies_and_previews_are_no_clips(tmp_path):
    write(tmp_path/"a.mp4", greys(9), wave=tone())
    copies = ["a.lrv", "a.mp4.bak", "a.mp4~", "b.orig"]
    for name in copies: shutil.copy(tmp_path/"a.mp4", tmp_path/name)
    (tmp_path/"a.thm").write_bytes(b"\xff\xd8\xff")
    words = "1\n00:00:00,000 --> 00:00:01,000\nHi\n"
    for name in ("a.txt", "notes.txt"): (tmp_path/name).write_text(words)
    (tmp_path/"a.sub").write_bytes(b"\0\0\1\xba" + bytes(200))
    (tmp_path/"a.idx").write_text("# VobSub index file, v7\n")
    left_out = {*copies, "a.thm", "a.txt", "a.sub", "a.idx"}
    with pytest.warns(UserWarning, match="left out: "): ds = load_folder(tmp_path)
    assert ds["name"][:] == ["a"] and ds["subtitle"][:] == [""]
    assert set(folders.scan_folder(tmp_path).left_out) == left_out


def test_several_files_for_a_clip_of_a_corpus(media, tmp_path):
    root = mer_folder(tmp_path, media, "MER2025", human=["a", "b"])
    write(root/"video/a.mkv", greys(9))
    write(root/"video/b.mov", wave=tone())
    (root/"video/a.mp4").unlink()
    write(root/"video/a.mp4", wave=tone())
    sf.write(root/"audio/a.flac", tone(), 16000)
    videos = load_mer2025(root, "human")["video"][:]
    assert [Path(video).name for video in videos] == ["a.mkv", "b.mp4"]
    assert load_mer2025(root, "human")["audio"][0] == str(root/"audio/a.wav")
    write(root/"video/a.avi", greys(9))
    message = r"video: more than one video for clip a: a\.avi, a\.mkv; keep one"
    with pytest.raises(ValueError, match=message): load_mer2025(root, "human")


NFD, NFC = "Zoe\u0308", "Zo\u00eb"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("on_disk,in_table", [(NFD, NFC), (NFC, NFD), (NFD, NFD)])
def test_names_from_a_mac(media, tmp_path, on_disk, in_table):
    "A Mac writes an accent as a character of its own: the same name, in other bytes"
    root = mer_folder(tmp_path/"mer", media, "MER2026", human=[on_disk])
    for file in root.glob("*.csv"): rewrite(file, lambda t: t.replace(on_disk, in_table))
    ds = load_mer2026(root, "human")
    assert ds["name"][:] == [NFC] and ds[0]["face"] and ds[0]["video"].endswith(f"{on_disk}.mp4")
    (tmp_path/"words.csv").write_text(f"name,subtitle\n{in_table}.mp4,Oh\n", encoding="utf-8")
    own = load_folder(root/"video", tmp_path/"words.csv")
    assert own["name"][:] == [NFC] and own["subtitle"][:] == ["Oh"]


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".wav"])
def test_names_of_files_in_tables(corpus, suffix):
    for file in ("track2_train_human.csv", "subtitle_chieng.csv"):
        rewrite(corpus/file, lambda t: t.replace("\nhuman_00000,", f"\n human_00000{suffix} ,"))
    ds = load_mer2025(corpus, "human")
    assert ds["name"][:] == ["human_00000", "human_00001"]
    assert ds["subtitle"][:] == ["words of human_00000", "words of human_00001"]
    rewrite(corpus/"track2_train_human.csv", lambda t: t + "human_00000,happy\n")
    with pytest.raises(ValueError, match="csv: more than one row for clip human_00000"):
        load_mer2025(corpus, "human")


def test_other_kinds_of_files_in_a_corpus(corpus):
    (corpus/"video/human_00000.mp4").rename(corpus/"video/human_00000.MP4")
    (corpus/"video/human_00001.mp4").rename(corpus/"video/human_00001.m4v")
    (corpus/"video/human_00001.jpg").write_bytes(b"\xff\xd8\xff")
    (corpus/"audio/human_00001.wav").unlink()
    sf.write(corpus/"audio/human_00001.FLAC", tone(.5), 16000, format="FLAC")
    (corpus/"audio/._human_00001.wav").write_bytes(b"\0\5\26\7")
    ds = load_mer2025(corpus, "human")
    assert [Path(x).suffix for x in ds["video"]] == [".MP4", ".m4v"]
    assert [Path(x).suffix for x in ds["audio"]] == [".wav", ".FLAC"]


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "null", "<NA>", "NA", "#N/A"])
def test_words_that_nobody_said(corpus, tmp_path, cell):
    rewrite(corpus/"subtitle_chieng.csv", lambda t: t.replace("words of human_00000", cell))
    with pytest.warns(UserWarning, match="subtitle_chieng.csv: 1 cell like nan taken as empty"):
        ds = load_mer2025(corpus, "human")
    assert ds["subtitle"][:] == ["", "words of human_00001"]
    rewrite(corpus/"subtitle_chieng.csv", lambda t: t.replace(cell, "Nan is null."))
    assert load_mer2025(corpus, "human")["subtitle"][0] == "Nan is null."


def test_a_name_that_ends_like_a_file(media, tmp_path):
    "The file of the clip `a.ts` is `a.ts.mp4`; `b.mp4` is the clip `b`"
    mer_folder(tmp_path, media, "MER2025", human=["a.ts", "b"])
    labels = tmp_path/TRACKS["MER2025"]["human"].label_file
    for name in ("b", "b.mp4", "b.wav"):
        rewrite(labels, lambda text: re.sub(r"\nb[.\w]*,", f"\n{name},", text))
        ds = load_mer2025(tmp_path, "human", missing="error")
        assert ds["name"][:] == ["a.ts", "b"]
        assert ds["subtitle"][:] == ["words of a.ts", "words of b"]
        assert ds["video"][0] == str(tmp_path/"video/a.ts.mp4")


OBEYED = "\x1b[2J\u202eevil"   # clears the screen, then turns the direction of writing


@pytest.mark.parametrize("fault", ["no film", "no file"])
def test_a_terminal_obeys_no_name(media, tmp_path, capsys, fault):
    "Names of clips in what check-data prints, in its error and in its warnings"
    names = [f"a{OBEYED}", "b"]
    root = mer_folder(tmp_path/"mer2025", media, "MER2025", human=names)
    film = root/"video"/f"a{OBEYED}.mp4"
    if fault == "no film": film.write_bytes(b"no film")
    else: film.unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit) as e: main(["check-data", "--human", f"{root}:human"])
        error = capsys.readouterr().err
        main(["check-data", "--human", f"{root}:human", "--missing", "drop"])
    out = capsys.readouterr()
    assert e.value.code == 1
    shown = [error, out.out, out.err, *(str(w.message) for w in said)]
    assert "\\x1b[2J\\u202eevil" in shown[0]
    assert not any(x in "".join(shown[:2]) for x in OBEYED[:1] + OBEYED[4])


def test_errors_and_warnings_of_a_command_are_printable(monkeypatch, capsys, tmp_path):
    def fail(args):
        warnings.warn(f"look at {OBEYED}\nand on")
        raise ValueError(f"first {OBEYED}") from RuntimeError(f"second {OBEYED}")
    monkeypatch.setattr(cli, "_merge", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *a, **k: print(warnings.formatwarning(*a[:4]))
        with pytest.raises(ValueError) as e: main(["merge", str(tmp_path), str(tmp_path)])
    for text in (str(e.value), str(e.value.__cause__), capsys.readouterr().out):
        assert "\\x1b[2J\\u202eevil" in text and "\x1b" not in text


def test_printable_keeps_letters():
    for text in ("喜 é 👩‍👧 नमस्ते مرحبا", "a - b/c.mp4"): assert printable(text) == text
    assert printable("a\nb\rc\td\x9be\u2028f\ud800") == "a\\nb\\rc\\td\\x9be\\u2028f\\ud800"
    assert list_some(["a\nb", 1]) == "a\\nb, 1"

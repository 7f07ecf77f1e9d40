"MER-UniBench: the gold of each set, answers in every form, and errors that name file and clip"
import json
import subprocess
import sys

import numpy as np
import pytest

from affectgpt_r1.metrics import sentiment_score
from affectgpt_r1.unibench import UNIBENCH, answer_files, gold_file, read_gold, unibench

def save_answers(folder, name, kind, items):
    folder.mkdir(parents=True, exist_ok=True)
    names = np.array(["a", "b", "c"][:len(items)])
    np.savez(folder/f"{name}-openset{kind}.npz", filenames=names, fileitems=np.array(items))

@pytest.fixture
def folders(tmp_path):
    "A tiny MER-UniBench in the authors' layout: three sets, two checkpoints"
    labels, out = tmp_path/"labels", tmp_path/"out"
    for folder in ("meld-process", "ovmerdplus-process"): (labels/folder).mkdir(parents=True)
    np.savez(labels/"meld-process/label.npz",
             test_corpus={"a": {"emo": 1, "val": -10}, "b": {"emo": 2, "val": -10}})
    values = {"a": 1., "b": -.5, "c": 0.}
    np.savez(labels/"sims_label.npz",
             test_corpus={n: {"emo": 0, "val": x} for n, x in values.items()})
    (labels/"ovmerdplus-process/ovlabel.csv").write_text('name,openset\na,"[happy, sad]"\nb,[]\n')
    answers = {
        ("results-meld/run", ""): (["[glad]", "[glad]"], ["[joyful]", "[sad]"]),
        ("sims", "-sentiment"): (["positive"]*3, ["positive", "neutral", "mixed"]),
        ("OVMERDPlus", ""): (["[happy, sad]", "[sad]"], ["[angry]", "[]"])}
    for (folder, kind), checkpoints in answers.items():
        for number, items in enumerate(checkpoints, 1):
            save_answers(out/folder, f"checkpoint_{number:06d}_loss_0.123", kind, items)
    return out, labels

def test_unibench(folders):
    u = unibench(*folders, checkpoint=1)
    assert u.n_sets == 3 and u.table.dataset.tolist() == ["MELD", "SIMS", "OVMERDPlus"]
    assert u.table.checkpoint.tolist() == [1]*3
    waf = sentiment_score([1., -.5], ["positive"]*2).waf
    assert u.table.score.tolist() == pytest.approx([.5, waf, 1])
    assert u.mean == pytest.approx(u.table.score.mean())
    assert u.table.n_scored.tolist() == [2, 2, 1]
    assert len(u.missing) == 6 and "mer2024" in u.missing["MER2024"]
    best = unibench(*folders, protocol="best-on-test")
    assert best.table.checkpoint.tolist() == [2, 2, 1] and best.mean == pytest.approx(1)
    assert best.protocol == "best-on-test"
    assert json.dumps(best.to_dict()) and "best-on-test" in repr(best)

NINE = {"MER2023": "happy", "MER2024": "worried", "MELD": 1, "IEMOCAPFour": 0, "CMUMOSI": 1.5,
        "CMUMOSEI": .2, "SIMS": 1., "SIMSv2": .4}
NAMES = ["Ses05_1", "Ses05_2", "Ses05_3"]

def write_gold(folder):
    "Labels of all nine sets"
    for key, emo in NINE.items():
        s = UNIBENCH[key]
        (folder/f"{s.stem}-process").mkdir(parents=True, exist_ok=True)
        test = {s.split: {n: {"emo": emo, "val": emo} for n in NAMES}}
        train = {"x": {"emo": emo, "val": 0.}}
        np.savez(folder/f"{s.stem}-process"/s.label_file, train_corpus=train, **test)
    rows = "".join(f'{n},"[happy, worried]"\n' for n in NAMES)
    (folder/"ovmerdplus_ovlabel.csv").write_text("name,openset\n" + rows)

def as_kind(kind, words):
    "Answers as the authors' files may hold them"
    text = [x if isinstance(x, str) else f"[{', '.join(x)}]" for x in words]
    if kind == "text": return np.array(text)
    if kind == "objects": return np.array(text, object)
    if kind == "bytes": return np.array(text, "S")
    return np.array([*words, []], object)[:3]

@pytest.mark.parametrize("kind", ["text", "objects", "bytes", "lists"])
def test_nine_data_sets_however_the_answers_are_kept(tmp_path, kind):
    "In files of text, objects, bytes or lists, with names sorted otherwise than gold"
    write_gold(tmp_path/"labels")
    for key, s in UNIBENCH.items():
        is_sentiment = s.measure == "WAF"
        words = [["joyful", "scared"]]*2 + [["tired"]]
        if is_sentiment: words = ["positive"]*2 + ["negative"]
        folder = tmp_path/f"out/results-{key.lower()}/run1"
        folder.mkdir(parents=True)
        checkpoint = folder/"checkpoint_000017_loss_0.512"
        names = np.array(NAMES[::-1], "S" if kind == "bytes" else None)[::-1]
        np.savez_compressed(f"{checkpoint}-openset{'-sentiment' if is_sentiment else ''}.npz",
                            filenames=names, fileitems=as_kind(kind, words))
        # the replies are in the same folder
        np.savez(f"{checkpoint}.npz", name2reason={n: "He is happy" for n in NAMES})
    u = unibench(tmp_path/"out", tmp_path/"labels")
    assert u.n_sets == 9 and not u.missing and set(u.table.checkpoint) == {17}
    assert u.table.score.between(.5, 1).all() and u.mean == pytest.approx(u.table.score.mean())
    hits = u.table[u.table.measure == "hit rate"]
    assert hits.dataset.tolist() == ["MER2023", "MER2024", "MELD", "IEMOCAPFour"]
    assert hits.score.tolist() == pytest.approx([2/3]*4)
    columns = {"mean_labels", "coverage", "n_scored", "n", "constant", "companion", "value"}
    assert columns <= set(u.table) and not u.table.isna().any(axis=None)

def test_unibench_asks_for_one_checkpoint(folders):
    with pytest.raises(ValueError, match="MELD has the checkpoints 1, 2: name one"):
        unibench(*folders)
    with pytest.raises(ValueError, match="MELD has no checkpoint 9; there are 1, 2"):
        unibench(*folders, checkpoint=9)
    with pytest.raises(ValueError, match="leave `checkpoint` out"):
        unibench(*folders, checkpoint=1, protocol="best-on-test")
    with pytest.raises(FileNotFoundError, match="no folder nowhere"): unibench("nowhere", "nowhere")
    with pytest.raises(ValueError, match="protocol is 'best'"): unibench(".", ".", protocol="best")

def answers(*names, n=None):
    return dict(filenames=np.array(names), fileitems=np.array(["positive"]*(n or len(names))))

def one_answer(x):
    items = np.array(["positive", x, "x"], object)
    return dict(filenames=np.array(["a", "b", "c"]), fileitems=items)

MELD, OVMERD = "meld-process/label.npz", "ovmerdplus-process/ovlabel.csv"
FAULTS = [
    ("answers", answers("a", "b"), KeyError, "no prediction for 1 of 3 clips: c"),
    ("answers", answers("a", "b", "c", "d"), KeyError, "1 clips that have no gold: d"),
    ("answers", dict(names=np.array(["a"])), ValueError, "has no entry filenames, fileitems"),
    ("answers", answers("a", "b", n=1), ValueError, "2 filenames but 1 fileitems"),
    ("answers", dict(filenames=np.array("abc"), fileitems=np.array(["positive"]*3)), ValueError,
     "'abc' is not a column"),
    ("answers", answers("a", "a", "b", "c"), ValueError, "more than one answer for clip a"),
    ("answers", "not npz", ValueError, "cannot be read as npz"),
    ("answers", one_answer(None), ValueError,
     "prediction of clip b: polarity must be a word, not None"),
    ("sims_label.npz", dict(train={"a": {"val": 1.}}), ValueError,
     "has no clips in a split test_corpus; it holds train"),
    ("sims_label.npz", dict(test_corpus={}), ValueError, "has no clips in a split test_corpus"),
    ("sims_label.npz", dict(test_corpus={"a": {"emo": 1}}), ValueError,
     "no usable gold for clip a ({'emo': 1}); 'val' must be a number"),
    ("sims_label.npz", dict(test_corpus=np.array(["a"])), ValueError,
     "has no clips in a split test_corpus"),
    ("sims_label.npz", dict(test_corpus={" ": {"val": 1.}}), ValueError,
     "1 clips of test_corpus have no name"),
    *((MELD, dict(test_corpus={"a": {"emo": 1}, "b": {"emo": emo}}), ValueError,
       f"no usable gold for clip b ({{'emo': {emo!r}}}); 'emo' must be a class from 0 to 6")
      for emo in (7, -1, "joy", None, True)),
    (OVMERD, "clip,openset\na,happy\n", ValueError, "has no column name"),
    (OVMERD, "name,openset\na,[\nb,happy\n", ValueError, "no usable gold for clip a ('[')"),
    (OVMERD, "name,openset\na,happy\na,sad\n", ValueError, "more than one row for clip a")]

@pytest.mark.parametrize("file,content,error,said", FAULTS)
def test_unibench_names_the_file_and_the_clip(folders, file, content, error, said):
    out, labels = folders
    answered = out/"sims/checkpoint_000001_loss_0.123-openset-sentiment.npz"
    path = answered if file == "answers" else labels/file
    if isinstance(content, str): path.write_text(content)
    else: np.savez(path, **content)
    with pytest.raises(error) as e: unibench(*folders, checkpoint=1)
    assert path.name in str(e.value) and said in str(e.value)

def test_all_clips_without_gold_are_named_at_once(tmp_path):
    entries = {"good": {"val": 1.}, "text": {"val": "0.1"}, "gone": {}, "nan": {"val": np.nan}}
    np.savez(tmp_path/"label.npz", test_corpus=entries)
    with pytest.raises(ValueError) as e: read_gold(tmp_path/"label.npz", "SIMS")
    assert all(name in str(e.value) for name in ("text", "gone", "nan"))
    assert "good" not in str(e.value)

def test_of_iemocap_session_5_is_the_test(tmp_path):
    names = ["Ses01F_1", "Ses05F_1", "Ses05M_2"]
    np.savez(tmp_path/"l.npz", whole_corpus={n: {"emo": i} for i, n in enumerate(names)})
    assert read_gold(tmp_path/"l.npz", "IEMOCAPFour") == {"Ses05F_1": "sad", "Ses05M_2": "neutral"}
    np.savez(tmp_path/"l.npz", whole_corpus={"Ses01F_1": {"emo": 0}})
    with pytest.raises(ValueError, match="no clip of Session 5"):
        read_gold(tmp_path/"l.npz", "IEMOCAPFour")

@pytest.mark.parametrize("cell", ["[]", "", "nan", "None", "n/a", " NULL "])
def test_no_label_means_neutral(tmp_path, cell):
    (tmp_path/"ov.csv").write_text(f"name,openset\n7,{cell}\n")
    assert read_gold(tmp_path/"ov.csv", "OVMERDPlus") == {"7": ["neutral"]}

def test_where_files_are_found(folders):
    out, labels = folders
    assert gold_file(labels, "MELD").parent.name == "meld-process"
    assert gold_file(labels, "SIMS").name == "sims_label.npz"
    assert gold_file(labels, "MER2023") is None
    assert list(answer_files(out, "MELD")) == [1, 2] and answer_files(out, "MER2023") == {}
    (out/"sims/again").mkdir()
    save_answers(out/"sims/again", "epoch1", "-sentiment", ["positive"])
    with pytest.raises(ValueError, match="two files for checkpoint 1 of SIMS"):
        answer_files(out, "SIMS")
    save_answers(out/"OVMERDPlus", "last", "", ["[sad]"])
    with pytest.raises(ValueError, match="no checkpoint in the name"):
        answer_files(out, "OVMERDPlus")

def test_needs_numpy_and_pandas_only():
    heavy = "{'torch', 'transformers', 'datasets', 'scipy', 'sklearn', 'av', 'openpyxl'}"
    code = f"import sys, affectgpt_r1.unibench; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hidden_files_beside_answers(tmp_path):
    "A Mac writes ._epoch1-openset.npz beside each file: that is no second answer to the same clips"
    (tmp_path/"meld").mkdir()
    np.savez(tmp_path/"meld/epoch1-openset.npz", filenames=["a"], fileitems=["[sad]"])
    (tmp_path/"meld/._epoch1-openset.npz").write_bytes(b"\0\5\26\7")
    (tmp_path/"._meld").write_bytes(b"\0\5\26\7")
    assert list(answer_files(tmp_path, "MELD")) == [1]

"""A file of answers from a terminal: scored, told what is wrong with it, or made into what a
challenge asks for; number for number as the authors' scripts"""

import contextlib
import io
import json
import os
import subprocess
import sys
import unicodedata
import zipfile
from csv import reader
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from affectgpt_r1.benchmark_clips import check_unibench
from affectgpt_r1.cli import main
from affectgpt_r1.metrics import ew_interval, ew_score
from affectgpt_r1.score_inputs import _stdin_bytes, as_labels, parse_cells, read_answer_file
from affectgpt_r1.score_report import METRICS, report_lines, score_report
from affectgpt_r1.terminal import safe_text
from affectgpt_r1.wheels import load_wheels

GOLD = {"a": "[happy, excited]", "b": "[sad]", "c": "[angry]", "d": "[neutral]"}
PRED = {"a": "[joyful]", "b": "[gloomy, zork]", "c": "[happy]", "d": "[calm]"}
reference = Path(os.environ.get("AFFECTGPT_R1_REFERENCE", ROOT.parent / "shared/reference"))
needs_reference = pytest.mark.skipif(
    not (reference / "pairs/expected.json").is_file(),
    reason=f"the authors' data are not in {reference}; name their folder in AFFECTGPT_R1_REFERENCE",
)


def csv(path, cells, column="openset"):
    "Write a csv file"
    lines = [f"name,{column}", *(f'{name},"{cell}"' for name, cell in cells.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def gold(tmp_path):
    return csv(tmp_path / "gold.csv", GOLD)


@pytest.fixture
def pred(tmp_path):
    return csv(tmp_path / "pred.csv", PRED)


def command(*args, stdin=None, **env):
    "Exit code, output and errors of a command"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        _stdin_bytes.cache_clear()
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin or b"")))
        for name, value in env.items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([str(arg) for arg in args])
            except SystemExit as end:
                return end.code, out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def as_file(kind, folder, cells):
    "The answers in a file of one kind"
    path, labels = folder / f"answers.{kind}", {n: as_labels(x) for n, x in cells.items()}
    rows = [dict(name=n, labels=x) for n, x in labels.items()]
    if kind == "csv":
        csv(path, cells)
    elif kind == "json":
        path.write_text(json.dumps(labels))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        np.savez(path, filenames=list(cells), fileitems=list(cells.values()))
    return path


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "npz"])
def test_every_kind_of_file_and_the_pipe_give_one_score(kind, tmp_path, gold):
    path = as_file(kind, tmp_path, PRED)
    want = ew_score(GOLD, PRED)
    for pred, stdin in ((path, None), ("-", path.read_bytes())):
        code, out, _ = command("score", gold, pred, "--json", stdin=stdin)
        found = json.loads(out)
        assert (code, found["score"], found["result"]["coverage"]) == (0, want.f, want.coverage)
        assert found["interval"] == pytest.approx(ew_interval(GOLD, PRED), abs=1e-12)
        assert found["constant_baseline"] == pytest.approx(want.constant_baseline, abs=1e-12)
        assert found["unknown"] == {"zork": 1}


@pytest.mark.parametrize("metric", ["ew", "mer2025", "ovmer", "hit", "sentiment"])
def test_every_metric(metric, tmp_path):
    "The score is that of the metric's own function, within its interval, above or below a constant"
    one = dict(a="happy", b="sad", c="angry", d="neutral")
    value, word = dict(a=1.5, b=-2, c=-1, d=0), dict(a="positive", b="negative", c="x", d="neutral")
    sides = dict(hit=(one, PRED), sentiment=(value, word)).get(metric, (GOLD, PRED))
    names = ("val", "polarity") if metric == "sentiment" else ("openset", "openset")
    files = [csv(tmp_path / f"{i}.csv", x, n) for i, (x, n) in enumerate(zip(sides, names))]
    found = json.loads(command("score", *files, "--metric", metric, "--json")[1])
    how = METRICS[metric]
    result = how.score(*sides, load_wheels(), 1, "zero")
    assert found["score"] == getattr(result, how.value)
    assert found["interval"][0] <= found["score"] <= found["interval"][1]
    plain = json.loads(json.dumps(result.to_dict()))
    assert found["result"] == plain
    if "constant_baseline" in plain:
        assert found["constant_baseline"] == pytest.approx(plain["constant_baseline"], abs=1e-12)
    text = command("score", *files, "--metric", metric)[1]
    assert f"{how.title}  {100 * found['score']:.2f}  (95 % interval" in text


def test_one_file_with_both(tmp_path):
    rows = [dict(name=n, gold=GOLD[n], pred=PRED[n]) for n in GOLD]
    (tmp_path / "both.json").write_text(json.dumps(rows))
    code, out, _ = command("score", tmp_path / "both.json", "--json")
    assert (code, json.loads(out)["score"]) == (0, ew_score(GOLD, PRED).f)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    out = command("score", "-", "--json", stdin=lines)[1]
    assert json.loads(out)["score"] == ew_score(GOLD, PRED).f


def test_one_file_without_gold_is_refused(tmp_path):
    "It would be scored against itself"
    for kind in ("npz", "json"):
        code, _, err = command("score", as_file(kind, tmp_path, PRED))
        assert code == 1 and "the answers: affectgpt-r1 score GOLD PRED" in err


def test_the_gold_is_found_by_the_clips(tmp_path):
    np.savez(tmp_path / "meld_label.npz", test_corpus={"a": dict(emo=1, val=-10)})
    np.savez(tmp_path / "mosi_label.npz", test_corpus={"c": dict(emo=0, val=1.5)})
    answers = as_file("npz", tmp_path, {"a": "joy"})
    found = json.loads(command("score", answers, "--unibench", tmp_path, "--json")[1])
    both = command("score", tmp_path / "meld_label.npz", answers, "--json")[1]
    assert found == json.loads(both) and found["metric"] == "hit"
    code, _, err = command("score", answers, answers, "--unibench", tmp_path)
    assert code == 1 and "leave out GOLD" in err
    other = as_file("npz", tmp_path, {"z": "joy"})
    assert "give the gold" in command("score", other, "--unibench", tmp_path)[2]
    missing = command("score", other, "--unibench", tmp_path / "nowhere")
    assert missing[0] == 1 and "nowhere: no label file" in missing[2]


def test_levels_and_answers_without_gold(gold, tmp_path):
    more = csv(tmp_path / "more.csv", PRED | {"e": "[happy]"})
    found = json.loads(command("score", gold, more, "--level", 2, "--json")[1])
    assert (found["score"], found["left_out"]) == (ew_score(GOLD, PRED, level=2).f, 1)
    assert "left out" in command("score", gold, more)[1]


FAULTS = {
    "no such file": (None, "pred.csv: no such file"),
    "a column is missing": ("name,reply\na,happy\n", "pred.csv: has no column openset or labels"),
    "twice": ("name,labels\na,x\nb,x\na,y\n", "pred.csv: more than one row for clip a"),
    "a cell": ('name,openset\na,x\nb,[\nc,x\nd,x\n', "pred.csv: row 2 (clip b): cannot parse"),
    "a clip": ("name,openset\na,x\n", "against"),
    "a name": ("name,openset\nA,x\nb,x\nc,x\nd,x\n", "these look alike and are not the same: 'a'"),
    "json": ('{"a": ["happy"], "b": [1], "c": [], "d": []}', "pred.csv: row 2 (clip b): labels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_file_and_row(fault, gold, tmp_path):
    text, message = FAULTS[fault]
    if text:
        (tmp_path / "pred.csv").write_text(text)
    code, out, err = command("score", gold, tmp_path / "pred.csv")
    assert (code, out) == (1, "") and err.startswith("error: ") and message in err
    assert "Traceback" not in err and str(tmp_path / "pred.csv") in err


def test_exit_codes(gold, pred):
    assert "exit code: 0" in command("score", "--help")[1]
    assert command("score", gold, pred)[0] == 0
    assert command("score", gold, pred, "--wheels", "v1")[0] == 1
    assert command("score", gold, pred, "--metric", "ovmer", "--level", 2)[0] == 1
    assert command("score", gold, pred, "--metric", "f1")[0] == 2
    assert command("score")[0] == 2


def test_sentiment_of_labels_is_refused(tmp_path, pred):
    value = csv(tmp_path / "val.csv", dict(a=1, b=-1, c=2, d=-2), "val")
    code, _, err = command("score", value, pred, "--metric", "sentiment")
    assert code == 1 and "no answer is positive, negative or neutral" in err


EVIL = "\x1b[2Jhappy\x1b]0;owned\x07\u202e\x9b31m\x7f"


def test_no_control_code_of_a_model_reaches_the_terminal(gold, tmp_path):
    "In the table and in a message; what is printed in colour is ours alone"
    evil = as_file("json", tmp_path, PRED | {"a": EVIL})
    code, out, _ = command("score", gold, evil)
    assert code == 0 and all(line.isprintable() for line in out.splitlines())
    assert r"\x1b[2jhappy".lower() in out.lower()
    report = score_report(gold, evil)
    ours = "\n".join(report_lines(report, colour=True))
    for style in ("1", "2", "31", "32", "33", "0"):
        ours = ours.replace(f"\x1b[{style}m", "")
    assert all(line.isprintable() for line in ours.split("\n"))
    names = as_file("json", tmp_path, {f"a{EVIL}": "[happy]"})
    code, _, err = command("score", gold, names)
    assert code == 1 and all(line.isprintable() for line in err.splitlines())


def test_colour_only_on_a_terminal(gold, pred):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def coloured(**env):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(Terminal()) as out:
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            for name, value in env.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit):
                main(["score", gold, pred])
        return "\x1b[1m" in out.getvalue()

    assert coloured() and not coloured(NO_COLOR="1") and not coloured(TERM="dumb")
    assert "\x1b" not in command("score", gold, pred)[1]


def test_safe_text_holds_nothing_that_a_terminal_obeys():
    every = safe_text("".join(map(chr, range(sys.maxunicode + 1))), sys.maxunicode + 1)
    kinds = {unicodedata.category(c) for c in every}
    assert kinds.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    turns = {"L", "R", "AL", "EN", "ES", "ET", "AN", "CS", "NSM", "BN", "B", "S", "WS", "ON", ""}
    assert {unicodedata.bidirectional(c) for c in every} <= turns
    assert safe_text("très 开心") == "très 开心"


def test_it_runs_with_numpy_and_pandas_alone(gold, pred):
    "As a process of its own, in which nothing else can be imported"
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "datasets", "scipy", "openpyxl",
                                      "sklearn", "matplotlib", "fastcore", "tqdm", "yaml", "av"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from affectgpt_r1.cli import main
main(sys.argv[1:])
"""
    run = subprocess.run([sys.executable, "-c", code, "score", gold, pred], capture_output=True,
                         text=True, env={"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0 and run.stdout.startswith("EW F  ") and not run.stderr


def test_a_pipe_that_closes_early_is_no_error(gold, pred):
    args = [sys.executable, "-m", "affectgpt_r1", "score", gold, pred]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(args, stdout=write, stderr=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)})
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")


def test_the_package_is_small():
    files = [p for p in (ROOT / "affectgpt_r1").rglob("*") if "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files if p.is_file()) < 5e6


# ---- the authors' data

load_tables = lru_cache(load_wheels)  # Excel files are slow to read


def authors(*args, version="v1"):
    "The lines that the authors' script prints, as the command gives them"
    root = reference / f"emotion_wheel/{version}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("affectgpt_r1.score_report.load_wheels", load_tables)
        code, out, err = command("score", *args, "--wheels", version, "--root", root, "--json")
    assert code == 0, err
    return json.loads(out)["authors"]


@needs_reference
@pytest.mark.parametrize("version", ["v1", "v2026"])
@pytest.mark.parametrize("system", ["Otter", "mPLUG-Owl"])
def test_as_the_authors_scripts_print_ov_merd(system, version):
    want = json.loads((reference / "ovmerd/expected.json").read_text())[system][version]
    pairs = reference / f"ovmerd/{system}.json"
    one, two = (want[f"level{i}"]["avg"][0] for i in (1, 2))
    f, precision, recall = want["level1"]["avg"]
    exact = f"fscore: {f}, precision: {precision}, recall: {recall}"
    lines = dict(v1=exact, v2026=f"ovmerd & {100 * f:.2f} \\\\")
    assert authors(pairs, version=version) == [lines[version]]
    both = f"ovmerd {100 * one:.2f}& {100 * two:.2f}& {100 * np.mean([one, two]):.2f}"
    assert authors(pairs, "--metric", "mer2025", version=version) == [both]


@needs_reference
@pytest.mark.parametrize("key", ["mer2023", "iemocapfour", "cmumosi"])
def test_as_the_authors_scripts_print_mer_unibench(key):
    "All digits; the set, and so the metric, is read off the label file"
    expected = json.loads((reference / "predictions/expected.json").read_text())[key]["v1"]
    stem = dict(iemocapfour="iemocap").get(key, key)
    label = next((reference / "labels").glob(f"{stem}_label*.npz"))
    for epoch in ("30", "60"):
        want = expected[epoch]
        kind = "-sentiment" if "waf" in want else ""
        answers = reference / f"predictions/{key}/epoch{epoch}-openset{kind}.npz"
        line = (f"fscore: {want['waf']}, acc: {want['acc']}" if "waf" in want else
                f"hitrate: {want['hit_rate']}")
        assert authors(label, answers) == [line]
        assert authors(answers, "--unibench", label.parent) == [line]


@needs_reference
def test_answers_of_a_larger_set_to_the_authors_gold():
    "532 answers of OV-MERD+ to the 332 clips of OV-MERD; 66.09 with the tables of MER2026"
    files = reference / "ovmerd/gold.csv", reference / "predictions/ovmerdplus/epoch30-openset.npz"
    assert authors(*files, version="v2026") == ["ovmerdplus & 66.09 \\\\"]
    gold = parse_cells(read_answer_file(files[0]), as_labels)
    assert len(gold) == 332


@needs_reference
def test_meld_with_the_tables_of_2026():
    "Published with the first tables as 55.65"
    (label,) = (reference / "labels").glob("meld_label*.npz")
    answers = reference / "predictions/meld/epoch30-openset.npz"
    for version, want in (("v1", 55.65), ("v2026", 56.33)):
        (line,) = authors(label, answers, version=version)
        assert round(100 * float(line.removeprefix("hitrate: ")), 2) == want


@needs_reference
def test_where_the_earlier_scripts_print_nan(tmp_path):
    "Wheel 5 of the authors has no surprise: NaN in 2025, 0 on that wheel in 2026"
    files = [csv(tmp_path / f"{i}.csv", {"a": "[surprised]"}) for i in range(2)]
    assert authors(*files) == ["fscore: nan, precision: nan, recall: nan"]
    assert authors(*files, version="v2026") == [f"{tmp_path.name} & 80.00 \\\\"]


@needs_reference
def test_tables_of_2026_need_no_openpyxl(monkeypatch):
    root = reference / "emotion_wheel/v2026"
    monkeypatch.setattr("affectgpt_r1.wheel_files.find_spec", lambda name: None)
    monkeypatch.setattr("affectgpt_r1.wheel_files.read_wheel_sheet", None)
    assert load_wheels("v2026", root).fingerprint == load_tables("v2026", str(root)).fingerprint


# ---- a challenge


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "candidates.csv"
    path.write_text("\n".join(["name", *"dcba"]) + "\n")
    return path


def test_what_is_written_is_what_was_checked(tmp_path, pred, names):
    "In the order of the names, readable by the authors' rule, the same bytes each time"
    out = tmp_path / "answer.zip"
    code, said, _ = command("submit", pred, names, "--out", out)
    assert code == 0 and "no fault" in said and f"written and read back: {out}" in said
    with zipfile.ZipFile(out) as z:
        assert z.namelist() == ["answer.csv"]
        rows = list(reader(io.StringIO(z.read("answer.csv").decode())))
    assert rows[0] == ["name", "openset"] and [row[0] for row in rows[1:]] == list("dcba")
    assert {n: as_labels(cell) for n, cell in rows[1:]} == {n: as_labels(PRED[n]) for n in PRED}
    before = out.read_bytes()
    assert command("submit", out, names, "--out", out)[0] == 0 and out.read_bytes() == before
    npz = tmp_path / "answer.npz"
    assert command("submit", pred, names, "--out", npz)[0] == 0
    held = np.load(npz, allow_pickle=False)
    assert held["filenames"].tolist() == list("dcba") and held["fileitems"][3] == "[joyful]"


WRONG = {
    "missing": ({"a": "[x]", "b": "[x]"}, "clips without an answer, 2: d, c"),
    "look alike": (
        {n: "[x]" for n in "abc"} | {"d.mp4": "[x]"},
        "these look alike and are not the same: 'd' and 'd.mp4'",
    ),
    "no candidate": (PRED | {"e": "[x]"}, "answers to clips that are no candidates, 1: e"),
    "long": (PRED | {"a": "[1, 2, 3, 4, 5, 6, 7, 8, 9]"}, "with more than 8 labels, 1: a"),
    "control code": (PRED | {"a": "[hap\x1bpy]"}, "would be read as others, 1: a"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_fault_is_named_and_nothing_is_written(fault, tmp_path, names):
    cells, message = WRONG[fault]
    answers, out = csv(tmp_path / "answers.csv", cells), tmp_path / "answer.zip"
    code, said, _ = command("submit", answers, names, "--out", out)
    assert code == 1 and message in said and "not written" in said and not out.exists()
    assert all(line.isprintable() for line in said.splitlines())


def test_doubles_and_the_label_cap(tmp_path, names):
    (tmp_path / "twice.csv").write_text("name,openset\na,x\nb,x\na,y\n")
    code, _, err = command("submit", tmp_path / "twice.csv", names)
    assert code == 1 and "more than one row for clip a" in err
    long = csv(tmp_path / "long.csv", WRONG["long"][0])
    assert command("submit", long, names, "--max-labels", 9)[0] == 0
    found = json.loads(command("submit", long, names, "--json")[1])
    assert found["most_labels"] == 9 and found["score"] is None and len(found["faults"]) == 1


def test_a_submission_is_scored_beside_a_constant_answer(tmp_path, pred, names):
    gold = csv(tmp_path / "gold.csv", {n: GOLD[n] for n in "ab"})
    found = json.loads(command("submit", pred, names, "--gold", gold, "--json")[1])
    want = ew_score({n: GOLD[n] for n in "ab"}, {n: PRED[n] for n in "ab"})
    assert found["score"]["score"] == want.f
    assert found["score"]["constant_baseline"] == pytest.approx(want.constant_baseline, abs=1e-12)
    assert "constant answer" in command("submit", pred, names, "--gold", gold)[1]
    assert "score: not known" in command("submit", pred, names)[1]


# ---- the nine sets


def test_clips_of_the_nine_sets(tmp_path):
    "Counts, reasons, files, and clips that are training clips, too"
    from affectgpt_r1.toy_benchmark import write_test_set

    states = write_test_set(tmp_path, "IEMOCAPFour", 8, seed=0)
    root = tmp_path / "unibench"
    video = root / "iemocap-process/subvideo-tgt"
    video.mkdir()
    for name in [*states, "of_no_clip"]:
        (video / f"{name}.avi").write_bytes(b"a film")
    (video / "notes.txt").write_text("no film")
    (video / "empty.avi").touch()
    train = tmp_path / "train.csv"
    train.write_text("\n".join(["name", f"{next(iter(states))}.avi", "another"]))
    code, out, _ = command("check-data", "--unibench", root, "--train", train)
    assert code == 1 and "8 clips in the label file, 1,241 expected" in out
    assert "only Session 5 is the test" in out and "2,193 files" in out
    assert f"clips that are in {train}, too, 1: {next(iter(states))}" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("  IEMOCAPFour"))
    assert "IEMOCAPFour: no audio, no faces in iemocap-process" in out
    assert row[1:3] == ["8", "1,241"] and row[4:] == ["8", "0", "0", "8", "1"]
    assert "not there: MER2023, MER2024, MELD" in out
    (found,) = json.loads(command("check-data", "--unibench", root, "--json")[1])
    assert found["missing"]["audio"] == list(states) and found["shared"] == {}
    assert command("check-data", "--unibench", tmp_path / "no")[0] == 1
    code, _, err = command("check-data", "--unibench", root, "--test", "a:b")
    assert code == 1 and "--unibench looks at the nine test sets alone" in err
    code, _, err = command("check-data")
    assert code == 1 and "what is to be checked?" in err


@needs_reference
def test_counts_of_the_authors_label_files():
    "The published counts, and those of the clips that are scored"
    found = {s.key: s for s in check_unibench(reference / "labels")}
    assert {key: (s.n == s.expected) for key, s in found.items()} == dict.fromkeys(found, True)
    scored = {key: s.scored for key, s in found.items()}
    assert scored == dict(MER2023=323, MELD=1354, IEMOCAPFour=857, CMUMOSI=656, CMUMOSEI=3634,
                          SIMS=388, SIMSv2=911)


# ---- what another reader found


def test_names_that_become_one_are_doubles(tmp_path, gold):
    np.savez(tmp_path / "p.npz", filenames=["a", "a ", "b"], fileitems=["happy", "sad", "sad"])
    code, _, err = command("score", gold, tmp_path / "p.npz")
    assert code == 1 and "p.npz: more than one row for clip a" in err


def test_json_by_column(tmp_path, gold):
    columns = dict(name=list(PRED), openset=list(PRED.values()))
    (tmp_path / "p.json").write_text(json.dumps(columns))
    found = json.loads(command("score", gold, tmp_path / "p.json", "--json")[1])
    assert found["score"] == ew_score(GOLD, PRED).f
    (tmp_path / "p.json").write_text(json.dumps(columns | dict(openset=["sad"])))
    assert "are not lists of one length" in command("score", gold, tmp_path / "p.json")[2]
    (tmp_path / "m.json").write_text(json.dumps(dict(name=["sad"], x=["happy"])))
    assert list(read_answer_file(tmp_path / "m.json").cells) == ["name", "x"]


def test_one_file_is_not_scored_against_itself(gold):
    for side in ("-", gold):
        code, _, err = command("score", side, side, stdin=b"name,openset\na,happy\n")
        assert code == 1 and "given as gold and as answers" in err


def test_nothing_scored_is_an_error(tmp_path):
    files = [csv(tmp_path / f"{i}.csv", dict(a=x, b=x)) for i, x in enumerate(("zork", "happy"))]
    code, out, err = command("score", *files)
    assert code == 1 and not out and "nothing is scored" in err
    code, out, err = command("score", *files[::-1])
    assert code == 0 and "no wheel knows a word of the answers" in err


def test_the_smaller_of_two_sets_has_the_gold(tmp_path):
    for stem, names in (("sims", "ab"), ("simsv2", "abc")):
        np.savez(tmp_path / f"{stem}_label.npz",
                 test_corpus={n: dict(emo=0, val=1.5) for n in names})
    answers = as_file("npz", tmp_path, dict(a="positive", b="positive"))
    found = json.loads(command("score", answers, "--unibench", tmp_path, "--json")[1])
    assert found["n"] == 2


def test_faults_are_told_beside_a_gold(tmp_path, gold):
    some = csv(tmp_path / "some.csv", dict(a="[happy]"))
    code, out, _ = command("submit", some, gold, "--gold", gold)
    assert code == 1 and "fault" in out
    assert command("submit", some, gold, "--max-labels", 0)[0] == 1


def test_names_with_dots_and_another_case(tmp_path):
    "clip.v1 is not clip.v9, and SAMPLE_1 is sample_1"
    from affectgpt_r1.benchmark_clips import _is_scored, _stem

    assert [_stem(n) for n in ("clip.v1", "a.MP4", "b.wav ", "c")] == ["clip.v1", "a", "b", "c"]
    assert [_is_scored(x) for x in (0, -1.5, "Neutral", ["Neutral"], ["sad", "neutral"])] == [
        False, True, False, False, True]
    folder = tmp_path / "ovmerdplus-process"
    folder.mkdir()
    csv(folder / "ovlabel.csv", dict(sample_1="[happy]", **{"clip.v1": "[sad]"}))
    train = tmp_path / "train.csv"
    train.write_text("name\nSAMPLE_1\nclip.v9\n")
    found = {s.key: s for s in check_unibench(tmp_path, [train])}
    assert found["OVMERDPlus"].shared == {str(train): ["sample_1"]}

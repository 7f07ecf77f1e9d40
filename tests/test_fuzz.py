"""Fuzzers: whatever a file or a text holds, it is read, or refused in an error that names the file

Each runs a small fixed budget here, and a larger one, with new inputs each time, by

    FUZZ_EXAMPLES=20000 python -m pytest tests/test_fuzz.py

An input that once failed is kept as an `@example`.
"""
import csv as csv_files
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from functools import cache

import av
import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from affectgpt_r1 import sounds, videos
from affectgpt_r1.containers import check_file, media_streams
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.endpoints import ReplyCache
from affectgpt_r1.labels import parse_labels, parse_response
from affectgpt_r1.media import cut_segments, read_audio, read_faces, read_video
from affectgpt_r1.metrics import ew_rewards, ew_score
from affectgpt_r1.replies import UnreadReplyError, read_completion, read_label_list
from affectgpt_r1.sounds import read_waveform
from affectgpt_r1.subtitles import read_subtitle
from affectgpt_r1.tables import read_column, read_csv, read_npz, read_sheet
from affectgpt_r1.text_files import clean_name, read_json, read_jsonl
from affectgpt_r1.unibench import read_answers, read_gold
from affectgpt_r1.verdicts import read_verdict
from affectgpt_r1.wheel_files import read_format_csv, read_wheel_sheet
from affectgpt_r1.wheels import load_wheels

ASKED = os.environ.get("FUZZ_EXAMPLES")
fuzz = settings(max_examples=int(ASKED or 60), derandomize=not ASKED, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
WORDS = ["happy", "Sad ", "neutral", "zork", "don't know", "[", "]", "'", "喜", "", "<answer>",
         "</think>", "nan", "a,b", "\x00", "\ud800"]
CELLS = ["", '"', "name", "openset", "format", "nan", "[happy, sad]", "喜, 怒", "a" * 200, "\ufeff",
         "\r"]
HEADERS = ["name,openset", "name,format", "name,english", "openset,name,name"]
text = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=8).map(" ".join)
cell = st.sampled_from(CELLS) | st.text(max_size=12)
table = st.lists(st.lists(cell, max_size=4).map(",".join), max_size=6).map("\n".join)
headed = st.builds(lambda head, rest: head + "\n" + rest, st.sampled_from(HEADERS), table)


def encoded(text, encoding="utf-8"):
    "`text` in bytes, with what no file in UTF-8 may hold"
    return text.encode(encoding, "surrogatepass")


csv = (st.binary(max_size=80) | (table | headed).map(encoded)
       | headed.map(lambda text: encoded(text, "utf-16")))
changes = st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 255),
                             st.sampled_from(["set", "cut", "add"])), min_size=1, max_size=5)


def changed(data, changes):
    "Bytes with some of them set, cut off from there on, or doubled"
    data = bytearray(data)
    for place, value, how in changes:
        at = place % (len(data) or 1)
        if how == "cut":
            del data[at + value:]
        elif how == "add":
            data[at:at] = data[at:at+value]
        elif data:
            data[at] = value
    return bytes(data)


def survives(read, path, data):
    "What `read` makes of a file with this content; a refusal must name the file"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(path)
        except (ValueError, FileNotFoundError) as e:
            assert path.name in str(e), f"{type(e).__name__}: {e}"


def zipped(entry):
    "A zip file whose only entry is x.npy: the checks that zip makes of its content are passed by"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z: z.writestr("x.npy", entry)
    return file.getvalue()


def npy(x):
    "The bytes of an npy file"
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


OBJECTS = npy(np.array({"a": dict(emo=1, val=np.float32(.5)), "b": [{1}, ("x", None)],
                        "c": np.array(["x", 2], object)}, object))
HEAD = OBJECTS[:OBJECTS.index(b"\x80")]
OPS = [    # steps of a pickle
    b"\x80\x04", b"(", b")", b"]", b"}", b"N", b"K\x01", b"J\xff\xff\xff\x7f", b"\x8c\x01x", b"t",
    b"\x85", b"\x86", b"\x87", b"q\x00", b"h\x00", b"\x94", b"0", b"2", b"R", b"b", b"o", b"\x81",
    b"\x92", b"s", b"u", b"a", b"e", b"Q", b"\x93", b"cposix\nsystem\n", b"cbuiltins\neval\n",
    b"ibuiltins\nset\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n",
    b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy._core.multiarray\nscalar\n",
    b"ccollections\nOrderedDict\n", b"cbuiltins\nbytearray\n", b"C\x02xy", b"\x8c\x02O8",
    b"\x8c\x02f8", b"\x8c\x04true",
]


@fuzz
@given(st.binary(max_size=400))
def test_npz_of_any_bytes(tmp_path, data):
    survives(read_npz, tmp_path/"x.npz", data)


@fuzz
@given(changes)
def test_npz_that_is_broken(tmp_path, how):
    survives(read_npz, tmp_path/"x.npz", zipped(changed(OBJECTS, how)))
    survives(read_npz, tmp_path/"x.npz", changed(zipped(OBJECTS), how))
    survives(read_answers, tmp_path/"x.npz", zipped(changed(OBJECTS, how)))


@fuzz
@given(st.lists(st.sampled_from(OPS), max_size=25))
def test_npz_with_a_pickle_of_any_steps(tmp_path, steps):
    "Whatever a pickle does step by step, nothing is called that is not admitted"
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("posix.system", "builtins.eval"):
            patch.setattr(name, lambda *a: ran.append(a))
        survives(read_npz, tmp_path/"x.npz", zipped(HEAD + b"".join(steps) + b"."))
    assert not ran


def test_the_steps_would_run_elsewhere(monkeypatch):
    "The same steps in Python's own unpickler: the fuzzer above can find something"
    ran = []
    monkeypatch.setattr("posix.system", lambda *a: ran.append(a))
    pickle.loads(b"".join([OPS[0], b"cposix\nsystem\n", b"\x8c\x01x", b"\x85", b"R", b"."]))
    assert ran == [("x",)]


@fuzz
@given(csv, st.sampled_from(["track2_train_human.csv", "subtitle_chieng.csv"]))
def test_csv_of_a_corpus(tmp_path, data, name):
    whole = {"track2_train_human.csv": "name,openset\na,[happy]\n",
             "subtitle_chieng.csv": "name,english\na,hello\n"}
    for file, held in whole.items():
        (tmp_path/file).write_text(held)
    survives(lambda path: load_mer2025(path.parent, "human", missing="mask"), tmp_path/name, data)


@fuzz
@example(b"")
@example(b"\x80")
@given(csv)
def test_csv_of_clips(tmp_path, data):
    table = survives(lambda path: read_csv(path, ["openset"]), tmp_path/"labels.csv", data)
    if table is not None:
        assert len(table) and table.index.is_unique
        assert all(isinstance(x, str) for x in [*table.index, *table["openset"]])


written = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
words = written | st.sampled_from([x for x in [*WORDS, *CELLS] if x not in ("\x00", "\ud800")])
clips = st.dictionaries((words | st.sampled_from(["007", "7", "NA", "1e5", "18_19", "1.0"])).map(
    clean_name).filter(bool), words, min_size=1, max_size=6)


@fuzz
@example({"a": ' "'}, ",", csv_files.QUOTE_MINIMAL, "\n", [])
@given(clips, st.sampled_from(",;\t"), st.sampled_from([csv_files.QUOTE_MINIMAL,
                                                        csv_files.QUOTE_ALL]),
       st.sampled_from(["\n", "\r\n"]), st.sampled_from([[], [""], ["", ""]]))
def test_csv_comes_back(tmp_path, held, separator, quoting, end, more):
    "What a program writes is read as the same text, whatever separates the cells"
    assume(held.get("name") != "openset")   # the header once more: two files that were joined
    assume(not any("\n\ufeff" in cell for cell in held.values()))   # the mark of the second one
    if "\r" in "".join([*held, *held.values()]):   # Python leaves it without quotes: a line end
        quoting = csv_files.QUOTE_ALL
    with open(tmp_path/"x.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv_files.writer(file, delimiter=separator, quoting=quoting, lineterminator=end)
        writer.writerow(["name", "openset"])
        writer.writerows([name, cell, *more] for name, cell in held.items())
    assert read_csv(tmp_path/"x.csv", ["openset"])["openset"].to_dict() == held
    assert read_column(tmp_path/"x.csv", "openset") == held


@fuzz
@given(clips, st.integers(0, 10**4))
def test_json_comes_back(tmp_path, held, cut):
    "Names and texts come back; of a file that is cut, its whole lines"
    columns = {"reply", "openset", "labels", "gold", "gt", "pred", "prediction"}
    assume(not ("name" in held and held.keys() & columns))   # one record, not clips of these names
    records = [dict(name=name, reply=reply) for name, reply in held.items()]
    lines = [json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records]
    whole, path = b"".join(lines), tmp_path/"x.jsonl"
    for name, data in (("x.jsonl", whole), ("x.json", json.dumps(held).encode()),
                       ("y.json", json.dumps(records).encode())):
        (tmp_path/name).write_bytes(data)
        assert read_column(tmp_path/name, "reply") == held
    path.write_bytes(whole[:cut % len(whole)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = read_jsonl(path)
    done = sum(len(whole[:cut % len(whole)]) >= sum(map(len, lines[:i + 1])) - 1
               for i in range(len(lines)))
    assert kept == records[:done]


@fuzz
@example(b'{"a": 1, "a": 2}')
@example(b"[" * 9999)
@given(st.binary(max_size=80) | text.map(encoded) | st.builds(
    lambda x, how: changed(json.dumps([dict(name="a", reply=x)]).encode(), how), text, changes))
def test_json_of_any_bytes(tmp_path, data):
    survives(read_json, tmp_path/"x.json", data)
    survives(read_jsonl, tmp_path/"x.jsonl", data)
    for name in ("x.json", "x.csv"):
        found = survives(lambda path: read_column(path, "reply"), tmp_path/name, data) or {}
        assert all(isinstance(name, str) and name for name in found)


@fuzz
@example(b"")
@example(b"\x80")
@given(csv)
def test_csv_of_gold(tmp_path, data):
    gold = survives(lambda path: read_gold(path, "OVMERDPlus"), tmp_path/"openset.csv", data) or {}
    assert all(isinstance(x, list) and x for x in gold.values())


@fuzz
@example(b"\x80")
@given(csv)
def test_csv_of_forms(tmp_path, data):
    survives(lambda path: read_format_csv(path, {"happy", "name"}), tmp_path/"format.csv", data)


@fuzz
@example([(23209, 0, "set")])
@given(changes)
def test_sheets(tmp_path, how):
    openpyxl = pytest.importorskip("openpyxl")
    book, file = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["level1", "level2", "level3"])
    book.active.append(["happy", None, 3])
    book.save(file)
    data = changed(file.getvalue(), how)
    survives(lambda path: read_sheet(path, []), tmp_path/"wheel1.xlsx", data)
    survives(read_wheel_sheet, tmp_path/"wheel1.xlsx", data)


LINES = ["1", "2", "", "WEBVTT", "NOTE x", "00:00:01,000 --> 00:00:02,000", "00:01 --> 00:02 a:b",
         "1 --> 2", "0:00:01.000,0:00:02.000", "[Script Info]", "[Events]", "{1}{2}hi", "[1][2]hi",
         "Format: Start, End, Text", "Dialogue: 0:00:01.00,0:00:02.00,hi{\\p1}", "<tt><body><p>",
         "<SAMI><BODY><SYNC Start=1>", "<rt><rt>", "&amp;#x110000;", "{\\", "<i", "\x00", "９９"]


@fuzz
@example(["1", "{1}{2}hi"], "\r", "x.srt")
@given(st.lists(st.sampled_from(LINES) | text, max_size=12), st.sampled_from(["\n", "\r", " "]),
       st.sampled_from(["x.srt", "x.vtt", "x.ass", "x.ttml"]))
def test_subtitles_of_any_lines(tmp_path, lines, end, name):
    said = survives(read_subtitle, tmp_path/name, encoded(end.join(lines)))
    if said is None: return   # refused
    assert said == " ".join(said.split()) and not re.search(r"[\0-\x1f\ufeff]", said)


@fuzz
@given(st.binary(max_size=80)
       | text.map(lambda t: encoded(f"1\n00:00:01,000 --> 00:00:02,000\n{t}\n\n{t}")))
def test_subtitles(tmp_path, data):
    assert isinstance(survives(read_subtitle, tmp_path/"x.srt", data), str | None)


@fuzz
@example([(0, 25, "add")])
@given(changes)
def test_faces(tmp_path, how):
    data = changed(npy(np.zeros((3, 4, 4, 3), np.uint8)), how)
    survives(lambda path: read_faces(path, 2), tmp_path/"faces.npy", data)


@cache
def sound_file(kind):
    "The bytes of a sound of a twentieth of a second"
    wave, file = np.sin(np.arange(800)/9), io.BytesIO()
    if kind.isupper():
        sf.write(file, wave, 16000, format=kind)
        return file.getvalue()
    codec = {"matroska": "pcm_f32le", "webm": "libopus"}.get(kind, "aac")
    with av.open(file, "w", format=kind) as box:
        stream = box.add_stream(codec, rate=16000, layout="mono")
        for at in range(0, 800, 160):
            frame = av.AudioFrame.from_ndarray(wave[None, at:at+160].astype("f4"), "flt", "mono")
            frame.sample_rate, frame.pts = 16000, at
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return file.getvalue()


@fuzz
@example([(26, 9, "set")], "WAV")
@given(changes, st.sampled_from(["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "mp4", "matroska",
                                 "mpegts", "adts", "webm"]))
def test_sound(tmp_path, how, kind):
    data = changed(sound_file(kind), how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sounds, "_LONGEST", 60)   # an hour of silence takes its time
        wave = survives(read_waveform, tmp_path/"x.wav", data)
        segments = survives(read_audio, tmp_path/"x.wav", data)
    assert (wave is None) == (segments is None)
    if wave is not None:
        assert wave.ndim == 1 and len(wave) and np.abs(wave).max() <= 1
        assert np.array_equal(segments, cut_segments(wave))


@fuzz
@given(text, st.sampled_from(["think", "answer"]))
def test_replies(reply, mode):
    found = parse_response(reply, mode)
    assert all(isinstance(x, str) and x == x.strip() and x for x in found.labels)
    assert isinstance(parse_labels(reply), list)


@fuzz
@example([("", "[")])
@given(st.lists(st.tuples(text | st.lists(text, max_size=4), text | st.lists(text, max_size=4)),
                min_size=1, max_size=5))
def test_scores_of_any_words(pairs):
    gold, pred = map(list, zip(*pairs))
    wheels = load_wheels()
    try:
        score = ew_score(gold, pred, wheels=wheels)
    except ValueError as e:  # the one text that the strict rules refuse
        assert "an opening bracket and nothing else" in str(e) and "[" in [*gold, *pred]
        return
    assert 0 <= score.f <= 1 and 0 <= score.precision <= 1 and 0 <= score.recall <= 1
    rewards = ew_rewards(gold, pred, wheels=wheels)
    assert rewards.shape == (len(pairs),) and ((rewards >= 0) & (rewards <= 1)).all()


FILMS = {"x.mp4": ("libx264", {}), "x.mov": ("libx264", {"movflags": "+faststart"}),
         "x.mkv": ("libx264", {}), "x.webm": ("libvpx", {"live": "1"}), "x.avi": ("mpeg4", {}),
         "x.ts": ("mpeg2video", {}), "x.flv": ("flv", {}), "x.wmv": ("wmv2", {})}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "The bytes of short films of several kinds"
    av, made, folder = pytest.importorskip("av"), {}, tmp_path_factory.mktemp("films")
    for name, (codec, options) in FILMS.items():
        with av.open(str(folder/name), "w", options=options) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            stream.codec_context.gop_size = 5
            for i in range(20):
                pixels = np.full((32, 32, 3), 10*i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        made[name] = (folder/name).read_bytes()
    return made


@fuzz
@given(st.sampled_from(list(FILMS)), changes, st.booleans())
def test_films(tmp_path, monkeypatch, films, name, how, in_runs):
    monkeypatch.setattr(videos, "_WORTH", 1 if in_runs else 500)
    path, data = tmp_path/name, changed(films[name], how)
    frames = survives(read_video, path, data)
    assert frames is None or len(frames) == 8 and frames.shape[3] == 3 and frames.dtype == np.uint8
    kinds = survives(media_streams, path, data)
    assert kinds is None or frames is None or kinds[0]


HEADS = [b"RIFF", b"RIFX", b"RF64", b"FORM", b"WAVE", b"data", b"ds64", b"\0\0\0\x10ftyp",
         b"\xff"*4, b"\0"*4, b"\x24\xf0\xff\x7f",
         b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x42\x86\x81\x01"]


@fuzz
@example(b"\x1aE\xdf\xa3\0\0\0\x10ftypRIFF")
@given(st.lists(st.sampled_from(HEADS) | st.binary(max_size=8), max_size=12).map(b"".join))
def test_heads_of_files(tmp_path, data):
    survives(check_file, tmp_path/"x.wav", data)
    survives(media_streams, tmp_path/"x.wav", data)


# replies of judges and labellers

MARKS = ["A", "B", "a", "b", "A ", "Ｂ", "<think>", "</think>", "[THINK]", "[/THINK]", "<|im_end|>",
         "<reasoning>", "</reasoning>", "```json", "{", "}", "[", "]", '"winner": ', "\\boxed{A}",
         "**", "Answer: ", "Reasoning:", "better", "not", "or", "I'm sorry, but I can't", "更好",
         ":", "\n"]
reply_text = st.lists(st.sampled_from(MARKS) | st.text(max_size=6), max_size=15).map("".join)
SAID = ["A", "B", "is", "is", "better", "better", "worse", "than", "than", "not", "neither", "or",
        "and", "but", "because", "answer:", "I choose", "the", "reply", "so", "if", "overall",
        "more", "accurate", "fits", "equally", ".", ".", ",", "?", "\n", "wins", "over", ">",
        "actually,", "7/10", "9/10,", "80%", "A:", "B:", "scores"]
sentences = st.lists(st.sampled_from(SAID), max_size=14).map(" ".join)
NOTHING_SAID = ["A man cries.", "Reply A names sadness, reply B anger.", "A is sad.", "A better?",
                "The voice in B trembles.", "A good look at the face helps.", "So both are close.",
                "If A were right, he would smile.", "Some would say that B wins.", "1. A: sad"]
VERDICTS = ["B", "**B**", "(b)", "Answer: B", "B is better than A.", "A is worse.", "I choose B.",
            '{"winner": "B", "why": "A is loud"}', "Overall, B fits better.", "\\boxed{B}", "B更好"]
json_value = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.sampled_from(["A", "length", "B"])
    | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "finish_reason", "text", "type",
                         "refusal", "tool_calls", "reasoning"]), inner, max_size=4), max_leaves=12)
message = json_value.map(lambda x: {"choices": [{"message": x, "finish_reason": None}]})


def understood(read, x):
    "What a reader makes of a reply; None where it says why it does not understand it"
    try: return read(x)
    except UnreadReplyError as e: assert e.kind and e.cure and str(e)


@fuzz
@given(json_value | message | message.map(lambda x: {"choices": [x]}))
def test_completions(body):
    text = understood(read_completion, body)
    assert text is None or text.strip()


@fuzz
@given(reply_text | sentences)
def test_replies_of_judges_and_labellers(reply):
    assert understood(read_verdict, reply) in ("A", "B", "tie", None)
    labels = understood(read_label_list, reply)
    assert labels is None or all(isinstance(x, str) and x == x.strip() and x for x in labels)


@fuzz
@example(">")
@given(sentences)
def test_no_reply_has_an_advantage(reply):
    "Where A and B change places, so does the verdict; but A is an article, too"
    assume(not re.search(r"[AB]\s+(better|more|worse)", reply))
    swapped = reply.translate(str.maketrans("AB", "BA"))
    other = {"A": "B", "B": "A", "tie": "tie", None: None}
    assert understood(read_verdict, swapped) == other[understood(read_verdict, reply)]


@fuzz
@example("[/THINK]A", "B", "think")
@given(reply_text | sentences, st.sampled_from(VERDICTS), st.sampled_from(["think", "Reasoning"]))
def test_thoughts_change_nothing(thoughts, verdict, tag):
    reply = f"<{tag}>{thoughts}</{tag}>\n{verdict}"
    if "<|channel|>" not in thoughts: assert understood(read_verdict, reply) == "B"
    assert understood(read_label_list, f"<{tag}>{thoughts}</{tag}>[sad, shy]") == ["sad", "shy"]
    assert understood(read_verdict, f"<{tag}>{thoughts}".replace("/", "")) is None   # cut


@fuzz
@given(st.lists(st.sampled_from(NOTHING_SAID), max_size=5), st.sampled_from([None, *VERDICTS]))
def test_a_verdict_is_the_one_that_was_written(around, verdict):
    assert understood(read_verdict, "\n".join([*around, verdict or ""])) == (verdict and "B")


@fuzz
@example(b'["a", true]\n"ab"\n')
@given(st.binary(max_size=60) | changes.map(
    lambda how: changed(b'["a", true]\n["b", "[happy]"]\n["c", false]\n', how)))
def test_caches_of_replies(tmp_path, data):
    cache = survives(ReplyCache, tmp_path/"cache.jsonl", data)
    if cache is not None:
        cache.recall("new", lambda: True)
        assert len(ReplyCache(tmp_path/"cache.jsonl")) == len(cache)

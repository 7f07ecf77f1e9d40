"Files, replies and settings as people have them: one table for each kind of fault"
import json

import numpy as np
import openpyxl
import pandas as pd
import pytest
import soundfile as sf

from affectgpt_r1.containers import media_streams
from affectgpt_r1.data import load_folder
from affectgpt_r1.evaluate import score_predictions
from affectgpt_r1.faces import open_faces
from affectgpt_r1.labels import completion_text, parse_labels
from affectgpt_r1.media import read_clip
from affectgpt_r1.replies import UnreadReplyError, read_completion, read_label_list
from affectgpt_r1.subtitles import read_subtitle
from affectgpt_r1.tables import read_column, read_csv
from affectgpt_r1.verdicts import read_verdict

HARMONY = "<|channel|>analysis<|message|>A is better<|end|><|start|>assistant<|channel|>"


@pytest.mark.parametrize("reply", [
    HARMONY + 'final <|constrain|>json<|message|>{"winner": "B"}<|return|>',
    HARMONY + "final json<|message|>B", "<s>B</s>", " <bos> B", "<s><bos>B",
    "B\n\n---\nLet me know if you need anything else!", "B. Feel free to ask if it is unclear.",
    "Answer: B\n\nI hope this helps!", "答案：B（更符合视频）", "回复B更符合所见所闻。",
    "B更符合事实", "更符合的是B", "更准确的回答是B。"])
def test_a_judge_prefers_b(reply): assert read_verdict(reply) == "B"


@pytest.mark.parametrize("reply", [
    HARMONY + "final<|constrain|>json", "A. Let me know if B is better. B is better.",
    "B\n\nI hope this helps, but I could be wrong.", "A. Feel free to ask. Or B.",
    "B\n\nI hope this is not wrong.", "A. Feel free to choose B.", "A（或B）", "A(B更好)",
    "B更符合音频", "B\nFeel free to choose A.\nActually A?"])
def test_a_judge_stays_unread(reply):
    with pytest.raises(UnreadReplyError): read_verdict(reply)


@pytest.mark.parametrize("reply,labels", [
    ("No emotions are described.", []), ("There are no emotions mentioned in the description.", []),
    ("The description names no emotions.", []), ("描述中没有提到任何情绪。", []),
    ("There is no clear emotion.", []), ("[happy, sad, etc.]", ["happy", "sad"]),
    ("<s>[happy]</s>", ["happy"])])
def test_lists_of_a_labeller(reply, labels): assert read_label_list(reply) == labels


@pytest.mark.parametrize("reply", ["[word, word]", "[list of words]", "[list of emotion words]",
                                   "No emotions but anger are described."])
def test_a_list_of_place_holders_is_none(reply):
    with pytest.raises(UnreadReplyError): read_label_list(reply)


@pytest.mark.parametrize("content", [
    ["B"], [{"text": "B"}], {"type": "text", "text": "B"}, [{"thinking": "A"}, {"text": "B"}],
    [{"type": "thinking", "text": "A"}, "B"]])
def test_contents_as_servers_send_them(content):
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    assert read_completion(body) == "B"


@pytest.mark.parametrize("text,labels", [
    ("happy, sad, etc.", ["happy", "sad"]), ("happy, sad, and so on", ["happy", "sad"]),
    ("happy (e.g. joyful), i.e. glad", ["happy", "joyful", "glad"]),
    ("开心、难过等", ["开心", "难过"]), ("开心、难过等情绪。", ["开心", "难过"]),
    ("开心、难过等等", ["开心", "难过"]), ("不平等, 平等", ["不平等", "平等"]),
    ("首先是开心，其次是难过", ["开心", "难过"]), ("第一，开心；第二，难过", ["开心", "难过"]),
    ("happy[EOS][PAD]", ["happy"]), ("[SEP] happy [UNK]", ["happy"]), ("[MASK]ed", ["ed"])])
def test_what_is_no_label(text, labels): assert parse_labels(text) == labels


SAID = dict(role="assistant", content="<answer>sad</answer>")


@pytest.mark.parametrize("completion,text", [
    ([dict(role="assistant", content="Let me look.", tool_calls=[1]),
      dict(role="tool", content="<answer>happy</answer>"), SAID], SAID["content"]),
    ([SAID, dict(role="tool", content="x")], SAID["content"]), (SAID, SAID["content"]),
    ([dict(role="assistant", content=[dict(type="text", text="a"), dict(text="b"),
                                      dict(type="image")])], "ab"),
    ([dict(role="assistant", content=None, tool_calls=[1])], ""), ([dict(content="x")], "x")])
def test_the_last_message_of_the_model_is_its_answer(completion, text):
    assert completion_text(completion) == text


def test_a_conversation_without_the_model_is_no_completion():
    for completion in ([], [dict(role="user", content="x")]):
        with pytest.raises(ValueError, match="holds no message"): completion_text(completion)


ONE, TWO = "00:00:01,000 --> 00:00:02,000", "00:00:03,000 --> 00:00:04,000"
XML = '<tt xmlns="http://www.w3.org/ns/ttml"><body><div>{}</div></body></tt>'


@pytest.mark.parametrize("name,text,said", [
    ("a.srt", f"1\n-00:00:01,500 --> 00:00:02,000\nHi\n\n2\n{TWO}\nGo\n", "Hi Go"),
    ("a.srt", f"1\n-00:00:03,500 --> -00:00:02,000\nHi\n\n2\n{TWO}\nGo\n", "Hi Go"),
    ("a.srt", f"1\n{ONE}\n<a href='http://x'>Hi</a> H<sub>2</sub>O <center>x</center>\n",
     "Hi H2O x"),
    ("a.srt", f"1.\n{ONE}\nHi\n\n2.\n{TWO}\nGo\n", "Hi Go"),
    ("a.srt", f"#1\n{ONE}\nHi\n\n#2\n{TWO}\n#7\n", "Hi #7"),
    ("a.srt", f"1\n{ONE}\nHow old?\n42.\n\n2\n{TWO}\nOh\n", "How old? 42. Oh"),
    ("a.sub", "00:00:01.00,00:00:02.00\nHi[br]you\n\n00:00:03.00,00:00:04.00\nGo\n", "Hi you Go"),
    ("a.ttml", XML.format('<p begin="30000000t" end="40000000t">Go</p>'
                          '<p begin="10000000t" end="20000000t">Hi 5t</p>'), "Hi 5t Go"),
    ("a.ttml", XML.format("<p begin='00:00:01:12' end='00:00:02:00'>Hi 00:00:01:12</p>"),
     "Hi 00:00:01:12")])
def test_subtitles_of_other_programs(tmp_path, name, text, said):
    (tmp_path/name).write_text(text, encoding="utf-8")
    assert read_subtitle(tmp_path/name) == said


FOREIGN = {
    b"PAR1\x15\x04": "a Parquet file", b"SQLite format 3\0": "an SQLite database",
    b"\x80\x04\x95": "a pickle", b"\x89HDF\r\n": "an HDF5 file", b"<!doctype html>": "a web page",
    b"\xef\xbb\xbf\n<HTML lang=en>": "a web page", b"<table border=1>": "a web page",
    b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull"}


@pytest.mark.parametrize("data", FOREIGN)
def test_files_that_are_something_else(tmp_path, data):
    (tmp_path/"x.csv").write_bytes(data + bytes(100))
    with pytest.raises(ValueError, match=f"x.csv: .*{FOREIGN[data]}"):
        read_csv(tmp_path/"x.csv", [])
    (tmp_path/"x.mp4").write_bytes(data + b"x"*100)
    with pytest.raises(ValueError, match=f"x.mp4: .*{FOREIGN[data]}"):
        media_streams(tmp_path/"x.mp4")


def test_an_empty_film_and_faces_that_git_left_behind(tmp_path):
    (tmp_path/"x.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="x.mp4: .*it is empty"): media_streams(tmp_path/"x.mp4")
    (tmp_path/"x.npy").write_bytes([*FOREIGN][-1])
    with pytest.raises(ValueError, match="x.npy: .*git lfs pull"): open_faces(tmp_path/"x.npy")
    (tmp_path/"x.npy").write_bytes(b"\x93NUMPY\x01\x00torn")
    with pytest.raises(ValueError) as e: open_faces(tmp_path/"x.npy")
    assert "it is a numpy file" not in str(e.value)


def test_a_web_page_in_a_cell_is_a_cell(tmp_path):
    (tmp_path/"x.csv").write_text("name,openset\n<html>,<table>\n")
    assert read_column(tmp_path/"x.csv", "openset") == {"<html>": "<table>"}


WORDS = "1\n00:00:00,000 --> 00:00:01,000\n{}\n"


@pytest.mark.parametrize("names,said", [
    (["a.en.srt"], "0"), (["a.zh-Hans.vtt"], "0"), (["a.mp4.srt"], "0"), (["a.mp4.en.srt"], "0"),
    (["a.en.srt", "a.zh.srt"], ""), (["a.en.srt", "a.mp4.srt"], ""), (["a.en.srt", "a.srt"], "1"),
    (["a.en.ass", "a.en.srt"], "0"), (["a.old.srt"], ""), (["a_en.srt"], ""), (["b.en.srt"], "")])
def test_subtitles_with_a_language_in_their_names(tmp_path, names, said):
    sf.write(tmp_path/"a.wav", np.zeros(800), 16000)
    for i, name in enumerate(names): (tmp_path/name).write_text(WORDS.format(i))
    with pytest.warns(UserWarning, match="without pictures") as caught: ds = load_folder(tmp_path)
    assert ds["name"][:] == ["a"] and ds["subtitle"][:] == [said]
    left_out = set() if said and len(names) == 1 else {*names} - {names[int(said)] if said else ""}
    assert all(name in str(caught[0].message) for name in left_out)


def test_the_clip_of_a_name_with_a_language_has_its_own_words(tmp_path):
    for name in ("a", "a.en"): sf.write(tmp_path/f"{name}.wav", np.zeros(800), 16000)
    (tmp_path/"a.en.srt").write_text(WORDS.format("Hi"))
    with pytest.warns(UserWarning): ds = load_folder(tmp_path)
    assert dict(zip(ds["name"], ds["subtitle"])) == {"a": "", "a.en": "Hi"}


def test_a_folder_of_folders_says_so(tmp_path):
    for name in ("audio", "video"): (tmp_path/name).mkdir()
    with pytest.raises(ValueError, match="no file of the kinds .*holds the folders audio/, video/"):
        load_folder(tmp_path)


def test_json_as_pandas_writes_it(tmp_path):
    table = pd.DataFrame(dict(name=["b", "a"], openset=["sad", "happy"]))
    table.to_json(tmp_path/"x.json")
    assert read_column(tmp_path/"x.json", "openset") == {"b": "sad", "a": "happy"}
    columns = json.loads((tmp_path/"x.json").read_text())
    (tmp_path/"x.json").write_text(json.dumps(columns | {"openset": {"1": "happy", "0": "sad"}}))
    assert read_column(tmp_path/"x.json", "openset") == {"b": "sad", "a": "happy"}
    (tmp_path/"x.json").write_text(json.dumps(columns | {"openset": {"1": "happy"}}))
    with pytest.raises(ValueError, match="x.json: its columns"):
        read_column(tmp_path/"x.json", "openset")


def test_names_and_words_as_excel_writes_them(tmp_path):
    (tmp_path/"x.csv").write_text('name,openset\n"=""001""",happy\n="002",sad\n')
    assert read_column(tmp_path/"x.csv", "openset") == {"001": "happy", "002": "sad"}
    book = openpyxl.Workbook()
    for row in (["name", "openset"], ["a", "happy,_x000D_\nsad"]): book.active.append(row)
    book.save(tmp_path/"x.xlsx")
    assert read_column(tmp_path/"x.xlsx", "openset") == {"a": "happy,\r\nsad"}
    (tmp_path/"x.ods").write_bytes(b"PK\3\4" + b"mimetypeapplication/vnd.oasis.opendocument.sheet")
    with pytest.raises(ValueError, match="x.ods: is an OpenDocument file"):
        read_column(tmp_path/"x.ods", "openset")


@pytest.mark.parametrize("video,audio,words", [
    (float("nan"), "", "or '' where there is none; this one is nan"),
    ("", float("nan"), "this float has .*or '' where there is no sound"),
    ("", dict(array=np.zeros(9), sampling_rate=44100), "this dict has .*samples at 16 kHz"),
    ("", (44100, np.zeros(9)), "this tuple has"), (b"abc", "", "the path of a file")])
def test_media_of_other_kinds_say_what_is_taken(video, audio, words):
    with pytest.raises(ValueError, match=words): read_clip(dict(video=video, audio=audio))


def test_gold_may_be_a_series_by_clip():
    gold = pd.Series({"a": ["happy"], "b": ["sad"]})
    replies = {"b": "<answer>sad</answer>", "a": "<answer>happy</answer>"}
    assert score_predictions(gold, replies)["ew_f"] == 1

"Subtitles: every word comes back, and nothing that is not said"
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affectgpt_r1.subtitles import read_subtitle

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
- 你好, "A"
{\\an8}<i>B</i>

2
00:00:03,000 --> 00:00:04,000
42
"""
VTT = """WEBVTT - title

STYLE
::cue {}

chapter
00:01.000 --> 00:02.000
one

00:02.000 --> 00:03.000
one
two
"""


def test_subtitles(tmp_path):
    (tmp_path/"a.srt").write_text(SRT, encoding="utf-8", newline="\r\n")
    assert read_subtitle(tmp_path/"a.srt") == "- 你好, \"A\" B 42"
    (tmp_path/"a.vtt").write_text(VTT)
    assert read_subtitle(tmp_path/"a.vtt") == "one two"
    (tmp_path/"empty.srt").write_text("")
    assert read_subtitle(tmp_path/"empty.srt") == ""


CUE = "00:00:01,000 --> 00:00:02,000\n"
WHAT_PYSUBS2_READS_OTHERWISE = {
    "a number ends the last cue": ("a.srt", f"1\n{CUE}How old?\n42\n", "How old? 42"),
    "a number ends a cue": ("a.srt", f"1\n{CUE}How old?\n42\n\n2\n{CUE}Oh!", "How old? 42 Oh!"),
    "a cue without words": ("a.srt", f"1\n{CUE}\n2\n{CUE}Oh!\n", "Oh!"),
    "a clue in braces": ("a.srt", f"1\n{CUE}{{laughs}} No\n", "{laughs} No"),
    "hours are left out": ("a.vtt", "00:01.000 --> 00:02.000\nNo head\n", "No head"),
    "a note between cues": (
        "a.vtt", f"WEBVTT\n\n{CUE.replace(',', '.')}one\n\nNOTE by hand\n\nlast\n"
        f"{CUE.replace(',', '.')}two\n", "one two"),
    "times inside a line": (
        "a.vtt", f"WEBVTT\n\n{CUE.replace(',', '.')}one<00:00:01.300><c> two</c>"
        "<00:00:01.600><c> three</c>\n", "one two three")}


@pytest.mark.parametrize("case", WHAT_PYSUBS2_READS_OTHERWISE)
def test_subtitles_that_need_care(tmp_path, case):
    name, text, said = WHAT_PYSUBS2_READS_OTHERWISE[case]
    (tmp_path/name).write_text(text, encoding="utf-8")
    assert read_subtitle(tmp_path/name) == said


def test_subtitles_whose_times_cannot_be_read(tmp_path):
    (tmp_path/"a.srt").write_text(f"1\n{CUE}one\n\n2\n1:2 --> 1:3\ntwo\n")
    with pytest.raises(ValueError, match=r"a\.srt: 1 of its times cannot be read"):
        read_subtitle(tmp_path/"a.srt")


ONE, TWO = "00:00:01,000 --> 00:00:02,000", "00:00:03,000 --> 00:00:04,000"
ASS = ("[Script Info]\nTitle: x\n\n[V4+ Styles]\nFormat: Name, Fontname\nStyle: Default,Arial\n\n"
       "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, "
       "Text\n")


@pytest.mark.parametrize("what,name,text,said", [
    ("numbers missing", "a.srt", f"{ONE}\nHello\n{TWO}\n1984\n", "Hello 1984"),
    ("number as words, unnumbered", "a.srt", f"{ONE}\n1984\n\n{TWO}\nGo\n", "1984 Go"),
    ("number as words", "a.srt", f"1\n{ONE}\n1984\n\n2\n{TWO}\nGo\n", "1984 Go"),
    ("number as words, no blank", "a.srt", f"1\n{ONE}\n1984\n2\n{TWO}\nGo\n", "1984 Go"),
    ("double CR", "a.srt",
     f"1\r\r\n{ONE}\r\r\nHello\r\r\n\r\r\n2\r\r\n{TWO}\r\r\nGo\r\r\n",
     "Hello Go"),
    ("double spaced", "a.srt", f"1\n\n{ONE}\n\nHello\n\n\n\n2\n\n{TWO}\n\nGo\n", "Hello Go"),
    ("positions", "a.srt", f"1\n{ONE}  X1:201 X2:516 Y1:397 Y2:423\nHello\n", "Hello"),
    ("dots", "a.srt", "1\n00:00:01.000 --> 00:00:02.000\nHello\n", "Hello"),
    ("no hours", "a.srt", "1\n00:01,000 --> 00:02,000\nHello\n", "Hello"),
    ("blanks in times", "a.srt", "1\n00: 00: 01, 000 -> 00: 00: 02, 000\nHello\n", "Hello"),
    ("no ms", "a.srt", "1\n00:00:01 --> 00:00:02\nHello\n", "Hello"),
    ("order", "a.srt", f"2\n{TWO}\nsecond\n\n1\n{ONE}\nfirst\n", "first second"),
    ("arrow in words", "a.srt", f"1\n{ONE}\nA --> B\n", "A --> B"),
    ("arrow in numbers", "a.srt", f"1\n{ONE}\n2 --> 3 of them\n", "2 --> 3 of them"),
    ("zero width", "a.srt", f"1\n{ONE}\nHel\u200blo\u202c \ufeffyou\n", "Hello you"),
    ("BOM inside", "a.srt", f"\ufeff1\n{ONE}\nHello\n\ufeff2\n{TWO}\nGo\n", "Hello Go"),
    ("music", "a.srt", f"1\n{ONE}\n♪ la la ♪\n[Music]\n(sighs)\n", "♪ la la ♪ [Music] (sighs)"),
    ("music only", "a.srt", f"1\n{ONE}\n♪♪♪\n", "♪♪♪"),
    ("tags", "a.srt",
     f"1\n{ONE}\n<font color=\"#ff0000\">Red</font> <b>bold</B> <u>u</u>\n",
     "Red bold u"),
    ("comparison", "a.srt", f"1\n{ONE}\nx < y and y > z\n", "x < y and y > z"),
    ("unknown tag", "a.srt", f"1\n{ONE}\n<Ann> Hi\n", "<Ann> Hi"),
    ("microdvd code", "a.srt", f"1\n{ONE}\n{{y:i}}Hello{{\\b0}}\n", "Hello"),
    ("entities", "a.srt",
     f"1\n{ONE}\n&lt;b&gt; &#39;hi&#39; &quot;x&quot; AT&T R&D;\n",
     "<b> 'hi' \"x\" AT&T R&D;"),
    ("double escaped", "a.srt", f"1\n{ONE}\nIt&amp;#39;s\n", "It's"),
    ("empty", "a.srt", "", ""),
    ("blank", "a.srt", " \n\n", ""),
    ("header only", "a.vtt", "WEBVTT\n\n", ""),
    ("CR", "a.srt", f"1\r{ONE}\rHello\ryou\r\r2\r{TWO}\rGo\r", "Hello you Go"),
    ("vtt blocks", "a.vtt",
     "WEBVTT\n\nSTYLE\n::cue { color: red }\n\nREGION\nid:fred\n\nintro\n"
     "00:01.000 --> 00:02.000 region:fred\n<v.loud Ann>Hi</v>\n\nNOTE\n"
     "00:05.000 --> 00:06.000\nold words\n\n00:03.000 --> 00:04.000\nNOTE this\n",
     "Hi NOTE this"),
    ("ruby", "a.vtt",
     "WEBVTT\n\n00:01.000 --> 00:02.000\n<ruby>漢<rt>kan</rt>字<rt>ji</rt></ruby>\n",
     "漢字"),
    ("said again", "a.vtt",
     "WEBVTT\n\n1\n00:01.000 --> 00:02.000\nNo!\nNo!\n\n2\n00:05.000 --> 00:06.000\n"
     "No!\n",
     "No! No! No!"),
    ("vtt called srt", "a.srt", "WEBVTT\n\n00:01.000 --> 00:02.000\nHi\n", "Hi"),
    ("srt called vtt", "a.vtt", f"1\n{ONE}\nHi\n\n2\n{TWO}\nGo\n", "Hi Go"),
    ("ass", "a.ass",
     f"{ASS}Dialogue: "
     "0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\\i1}two{\\i0}\\Nlines\n"
     "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,one, with comma\n"
     "Comment: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,not said\n"
     "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\p1}m 0 0 l 1 1{\\p0}\n",
     "one, with comma two lines"),
    ("ass called srt", "a.srt",
     f"{ASS}Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,Hello\n",
     "Hello"),
    ("ssa", "a.ssa",
     "[Script Info]\nTitle: x\n\n[V4 Styles]\nFormat: Name, Fontname\n"
     "Style: Default,Arial\n\n[Events]\n"
     "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, "
     "Text\nDialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,Hello\n",
     "Hello"),
    ("sbv", "a.sbv",
     "0:00:01.000,0:00:02.000\nHello\nyou\n\n0:00:03.000,0:00:04.000\n1984\n",
     "Hello you 1984"),
    ("microdvd", "a.sub", "{0}{25}Hello|you\n{50}{75}Go\n", "Hello you Go"),
    ("ttml", "a.ttml",
     "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n"
     "<tt xmlns=\"http://www.w3.org/ns/ttml\"><body><div><p begin=\"00:00:01.000\" "
     "end=\"00:00:02.000\">Hello<br/>you &amp; me</p></div></body></tt>",
     "Hello you & me"),
    ("sami", "a.smi",
     "<SAMI><BODY><SYNC Start=1000><P Class=EN>Hello<br>you<SYNC Start=2000><P "
     "Class=EN>&nbsp;</BODY></SAMI>",
     "Hello you"),
    ("words beside the time", "a.srt", f"1\n{ONE} Hello there\n", "Hello there"),
    ("a number is skipped", "a.srt",
     f"1\n{ONE}\nHello\n3\n00:00:05,000 --> 00:00:06,000\nGo\n",
     "Hello Go"),
    ("blank inside", "a.srt",
     f"1\n{ONE}\nI am stuck,\n\nten minutes late.\n\n2\n{TWO}\n\n",
     "I am stuck, ten minutes late."),
    ("N", "a.srt", f"1\n{ONE}\none\\Ntwo\n", "one two"),
    ("from 0", "a.srt", f"0\n{ONE}\nA\n1\n{TWO}\nB\n", "A B"),
    ("tag over lines", "a.srt", f"1\n{ONE}\n<i>two\nlines</i>\n", "two lines"),
    ("line separators", "a.srt", f"1\n{ONE}\na\u2028b\u0085c\n", "a b c"),
    ("braces", "a.srt", f"1\n{ONE}\n{{laughs}} No\n", "{laughs} No"),
    ("odd words", "a.srt",
     f"1\n{ONE}\n$5 & <3 * # %s {{x}} \\o/ C:\\temp\n",
     "$5 & <3 * # %s {x} \\o/ C:\\temp"),
    ("Chinese", "a.srt", f"1\n{ONE}\n你好，世界 <i>再见</i>\n", "你好，世界 再见"),
    ("rate of frames", "a.sub", "{1}{1}23.976\n{25}{50}Hello\n", "Hello"),
    ("a number is said", "a.sub", "{1}{25}42\n{26}{50}Hello\n", "42 Hello"),
    ("close comparison", "a.srt", f"1\n{ONE}\nif a<b and c>d\n", "if a<b and c>d"),
    ("letters apart", "a.srt", f"1\n{ONE}\na < b > c, <u 2 x> y\n", "a < b > c, <u 2 x> y"),
    ("short tags", "a.srt", f"1\n{ONE}\n<i>a</i > <b class=x>b< /b> <i.loud>c</i> <p/>d\n",
     "a b c d"),
    ("ass without styles", "a.ass",
     "[Script Info]\nTitle: x\n\n[Events]\n"
     "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
     "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,Hello\n", "Hello"),
    ("times in words", "a.srt",
     f"1\n{ONE}\nmeet me at 12:30\n12:30:00\n",
     "meet me at 12:30 12:30:00"),
])
def test_files_as_people_have_them(tmp_path, what, name, text, said):
    (tmp_path/name).write_bytes(text.encode())
    assert read_subtitle(tmp_path/name) == said


@pytest.mark.parametrize("name,data,why", [
    ("a.lrc", b"[00:12.00]La\n[00:14.00]lo\n", "lyrics"), ("a.srt", b"Hello", "no line has two"),
    ("a.json", b'{"segments": []}', "it is json"), ("a.idx", b"# VobSub index file", "pictures"),
    ("a.srt", f"1\n{ONE}\nHello\n".encode("utf-16"), "UTF-16"),
    ("a.srt", f"1\n{ONE}\n你怎么来了\n".encode("gbk"), "in GBK"),
    ("a.srt", f"1\n{ONE}\ndéjà vu\n".encode("latin-1"), "é.* in Windows-1252"),
    ("a.ttml", b"<tt><body>", "Error"), ("a.srt", b"\x1f\x8b\x08", "gzip"),
    ("a.vtt", b"WEBVTT\n\n1s --> 2s\nHi\n", "1 of its times cannot be read")])
def test_what_cannot_be_read_says_what_it_is(tmp_path, name, data, why):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: .*{why}"): read_subtitle(tmp_path/name)


ASKED = os.environ.get("FUZZ_EXAMPLES")
ODD = ["1984", "42", "<3", "5 > 4", "A --> B", "2 --> 3", "{laughs}", "♪", "[Music]", "(sighs)",
       "I'm", "“so”", "R&D", "AT&T", "$5", "50%", "C:\\x", "你好", "é", "-", "...", "<Ann>", "x<y",
       "WEBVTT", "NOTE", "12:30", "at", "<", ">", "{", "}", "#", "*", "_", "=", "[00:12.00]",
       "{1}{2}", "''"]
words = st.lists(st.sampled_from(ODD) | st.text("abcdefghijklmnop", min_size=1, max_size=7),
                 min_size=1, max_size=5)
cues = st.lists(words, min_size=1, max_size=5)


def stamp(second, point):
    return f"00:{second // 60:02}:{second % 60:02}{point}000"


def escaped(word):
    return word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@settings(max_examples=int(ASKED or 200), derandomize=not ASKED, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cues, st.sampled_from([".srt", ".vtt"]), st.sampled_from(["\n", "\r\n", "\r"]),
       st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_the_words_come_back_in_order(tmp_path, cues, suffix, end, has_numbers, has_blanks, draw):
    "Whatever the words are, with numbers and blank lines or without them"
    lines, point = (["WEBVTT", ""], ".") if suffix == ".vtt" else ([], ",")
    if not has_numbers: has_blanks = True   # a number at the end of a cue could be the next one's
    for i, cue in enumerate(cues):
        if has_numbers: lines.append(str(i + 1))
        lines.append(f"{stamp(9*i, point)} --> {stamp(9*i + 2, point)}")
        lines.append(draw.choice([" ", "<i>", ""]) + escaped(cue[0]))
        for word in cue[1:]:
            if draw.random() < .3: lines.append("")
            lines[-1] += draw.choice([" ", "</i> "]) + escaped(word)
        if has_blanks: lines += [""]*draw.choice([1, 2])
    (tmp_path/f"x{suffix}").write_text(end.join(lines), encoding="utf-8", newline="")
    said = [word for cue in cues for word in " ".join(cue).split()]
    assert read_subtitle(tmp_path/f"x{suffix}").split() == said

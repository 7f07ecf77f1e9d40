"""Sounds: by content, in time, in bounds, block by block. All files are made here, so that what is
in them is known: clicks at known moments, tones of a known loudness"""

import tracemalloc
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affectgpt_r1 import sounds
from affectgpt_r1.media import cut_segments, read_audio, read_clip, segment_starts
from affectgpt_r1.sounds import read_spans, read_waveform

LAYOUTS = ["mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1", "7.1"]


def clicks(seconds, rate, channels=1):
    "A short tone at .3, 1.3, 2.3 s …; float [channels, samples]"
    wave = np.zeros((channels, int(seconds * rate)))
    sound = 0.7 * np.sin(2 * np.pi * 1000 * np.arange(rate // 50) / rate)
    for second in range(int(seconds)):
        at = round((second + 0.3) * rate)
        wave[:, at : at + len(sound)] = sound
    return wave


def heard(wave):
    "When clicks are heard, in seconds, to a hundredth"
    loud = np.abs(wave[: len(wave) // 160 * 160]).reshape(-1, 160).max(1) > 0.25
    return np.flatnonzero(loud & ~np.r_[False, loud[:-1]]) / 100


def add_sound(box, stream, wave, rate, start):
    "Frames of `wave` from second `start` on"
    size = stream.codec_context.frame_size or 1024
    for at in range(0, wave.shape[1], size):
        part = wave[:, at : at + size].T.reshape(1, -1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(part, "flt", stream.layout.name)
        frame.sample_rate, frame.pts = rate, round(start * rate) + at
        frame.time_base = Fraction(1, rate)
        box.mux(stream.encode(frame))


def write(path, parts, codec="aac", rate=48000, picture=None, format=None, **options):
    "A file whose sound is made of (wave, start); with `picture`, six frames from that second on"
    with av.open(str(path), "w", format=format, options=options) as box:
        streams = []
        if picture is not None:
            video = {"webm": "libvpx", "avi": "mpeg4"}.get(path.suffix[1:], "libx264")
            streams.append(box.add_stream(video, rate=10, width=32, height=32, pix_fmt="yuv420p"))
        layout = LAYOUTS[len(parts[0][0]) - 1]
        streams.append(box.add_stream(codec, rate=rate, layout=layout))
        if codec[:3] == "wma": streams[-1].bit_rate = 128000
        if picture is not None:
            for k in range(60):
                frame = av.VideoFrame(32, 32, "yuv420p")
                frame.pts, frame.time_base = k + round(10 * picture), Fraction(1, 10)
                box.mux(streams[0].encode(frame))
        for wave, start in parts:
            add_sound(box, streams[-1], wave, rate, start)
        for stream in streams:
            box.mux(stream.encode())
    return path


def quiet(read, *args, **kw):
    "What is read, without a warning"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(*args, **kw)


def by_scipy(path, rate=16000):
    "The truth about a sound file"
    signal = pytest.importorskip("scipy.signal")
    wave, source = sf.read(path, always_2d=True)
    ratio = Fraction(rate, source)
    return signal.resample_poly(wave.mean(1), ratio.numerator, ratio.denominator)


# any rate, any number of channels, any length


@settings(max_examples=40, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000]),
       channels=st.integers(1, 8), kind=st.sampled_from([
           "PCM_U8 wav", "PCM_16 wav", "PCM_24 wav", "PCM_32 wav", "FLOAT wav", "DOUBLE wav",
           "PCM_S8 flac", "PCM_16 flac", "PCM_24 flac", "PCM_16 aiff", "PCM_16 au", "PCM_24 w64",
           "PCM_16 rf64", "FLOAT caf"]),
       length=st.sampled_from([1, 2, 3, 100, 4097, 65536, 65537, 100001]))
def test_any_sound_file(tmp_path, rate, channels, kind, length):
    subtype, suffix = kind.split()
    tones = np.arange(1, channels + 1) * 300   # below 4 kHz, and an offset as of cheap devices
    wave = 0.4 * np.sin(2 * np.pi * tones * np.arange(length)[:, None] / rate) + 0.1
    path = tmp_path / "x.dat"
    sf.write(path, wave, rate, subtype=subtype, format=suffix)
    found, segments = quiet(read_waveform, path), quiet(read_audio, path)
    assert found.dtype == np.float32 and np.abs(found).max() <= 1
    assert len(found) == max(1, round(length * 16000 / rate))
    np.testing.assert_array_equal(segments, cut_segments(found))
    if length > 4000:   # the ends belong to the filters
        truth = by_scipy(path)[: len(found)]
        np.testing.assert_allclose(found[300:-300], truth[300 : len(found) - 300], atol=0.003)


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("codec,suffix", [
    ("pcm_s16le", "mka"), ("pcm_f32le", "mka"), ("aac", "mka"), ("flac", "mka"),
    ("libopus", "webm"), ("aac", "mp4")])
def test_channels_of_a_track(tmp_path, channels, codec, suffix):
    "The average of all, also of eight planes; the first is as loud as one of them"
    wave = np.zeros((channels, 48000))
    wave[0] = 0.8 * np.sin(2 * np.pi * 400 * np.arange(48000) / 48000)
    if codec == "libopus" and channels in (3, 4):
        pytest.skip("this encoder knows no such layout")
    found = quiet(read_waveform, write(tmp_path / f"x.{suffix}", [(wave, 0)], codec))
    level = np.sqrt(2) * found[2000:14000].std()
    assert abs(level * channels - 0.8) < (0.01 if codec[:3] in ("pcm", "fla") else 0.3)
    assert abs(len(found) - 16000) < 1700


# by content


def content(kind, folder):
    "A file of three clicks of the given kind"
    wave = clicks(3, 48000)
    if kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "CAF"):
        sf.write(folder / "x", wave[0], 48000, format=kind)
        return folder / "x"
    kinds = dict(m4a=("aac", "ipod"), aac=("aac", "adts"), mka=("libopus", "matroska"),
                 opus=("libopus", "ogg"), wma=("wmav2", "asf"), ac3=("ac3", "ac3"),
                 mp2=("mp2", "mp2"), wavpack=("wavpack", "wv"), ts=("aac", "mpegts"),
                 mp3=("libmp3lame", "mp3"), threegp=("aac", "3gp"),
                 mp3_in_wav=("libmp3lame", "wav"))
    if kind in kinds:
        codec, format = kinds[kind]
        return write(folder / "x", [(wave, 0)], codec, format=format)
    return write(folder / f"x.{kind}", [(wave, 0)], picture=0)


@pytest.mark.parametrize("kind", [
    "WAV", "FLAC", "OGG", "MP3", "AIFF", "W64", "CAF", "m4a", "aac", "mka", "opus", "wma", "ac3",
    "mp2", "wavpack", "ts", "mp3", "threegp", "mp3_in_wav", "mp4", "mov", "mkv", "flv"])
def test_content_decides(tmp_path, kind):
    data = content(kind, tmp_path).read_bytes()
    waves = []
    for name in ("a.wav", "a.mp4", "a.mp3", "a.raw", "a.vox", "a.txt", "no suffix", "a.m4a"):
        (tmp_path / name).write_bytes(data)
        waves.append(quiet(read_waveform, tmp_path / name))
        np.testing.assert_array_equal(waves[-1], waves[0])
        np.testing.assert_array_equal(quiet(read_audio, tmp_path / name), cut_segments(waves[0]))
    np.testing.assert_allclose(heard(waves[0]), [0.3, 1.3, 2.3], atol=0.08)
    assert abs(len(waves[0]) - 48000) < 2500


def test_a_title_and_a_cover_are_no_sound(tmp_path):
    "mp3 with a title in Latin letters of 1990 and a picture in front"
    sf.write(tmp_path / "a.mp3", clicks(3, 48000)[0], 48000)
    def frame(name, text): return name + len(text).to_bytes(4, "big") + b"\0\0" + text
    cover = b"\0image/png\0\3\0" + b"\x89PNG" * 9
    body = frame(b"TIT2", b"\0d\xe9j\xe0 vu") + frame(b"APIC", cover)
    size = bytes(len(body) >> s & 127 for s in (21, 14, 7, 0))
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(b"ID3\3\0\0" + size + body + data)
    a, b = (quiet(read_waveform, tmp_path / f"{n}.mp3") for n in "ab")
    np.testing.assert_array_equal(a, b)


def test_tags_in_another_encoding_are_read_over(tmp_path):
    path = write(tmp_path / "a.mkv", [(clicks(1, 48000), 0)], "flac")
    with av.open(str(path)) as box: before = dict(box.metadata)
    key, value = next((k, v) for k, v in before.items() if "Lavf" in v)
    data = path.read_bytes().replace(value.encode(), b"\xe9" * len(value))
    path.write_bytes(data)
    with pytest.raises(UnicodeDecodeError): av.open(str(path))
    assert heard(quiet(read_waveform, path)) == [0.3]


def test_a_name_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.mp4", [(clicks(1, 48000), 0)]).rename(tmp_path / "file:b|c.mp4")
    np.testing.assert_allclose(heard(quiet(read_waveform, "file:b|c.mp4")), [0.3], atol=0.05)


def test_the_default_track_is_read(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as box:
        tracks = [box.add_stream("flac", rate=16000, layout="mono") for _ in range(2)]
        tracks[0].disposition, tracks[1].disposition = 0, av.stream.Disposition.default
        for track, loud in zip(tracks, (0, 1)):
            add_sound(box, track, loud * clicks(2, 16000), 16000, 0)
            box.mux(track.encode())
    assert len(heard(read_waveform(tmp_path / "a.mkv"))) == 2


# in time


@pytest.mark.parametrize("suffix,codec", [
    ("mkv", "aac"), ("mp4", "aac"), ("mov", "pcm_s16le"), ("ts", "aac"), ("webm", "libopus"),
    ("flv", "aac"), ("mkv", "libmp3lame"), ("mkv", "pcm_s16le")])
@pytest.mark.parametrize("late", [0, 0.05, 0.5, 3])
def test_sound_that_begins_late(tmp_path, suffix, codec, late):
    rate = 44100 if suffix == "flv" else 48000
    path = write(tmp_path / f"a.{suffix}", [(clicks(3, rate), late)], codec, rate, picture=0)
    shift = late if late > 0.1 else 0
    if shift:
        with pytest.warns(UserWarning, match=rf"a\.{suffix}: its sound begins .* after its pict"):
            wave = read_waveform(path)
    else:
        wave = quiet(read_waveform, path)
    np.testing.assert_allclose(heard(wave), shift + np.array([0.3, 1.3, 2.3]), atol=0.09)
    assert abs(len(wave) / 16000 - 3 - shift) < 0.1


def test_pictures_that_begin_late_leave_all_of_the_sound(tmp_path):
    path = write(tmp_path / "a.mkv", [(clicks(3, 48000), 0)], picture=2)
    message = r"a\.mkv: its pictures begin 2\.0. s after its sound; its frames are taken from there"
    with pytest.warns(UserWarning, match=message): wave = read_waveform(path)
    np.testing.assert_allclose(heard(wave), [0.3, 1.3, 2.3], atol=0.05)


@pytest.mark.parametrize("suffix", ["mkv", "m4a", "ts"])
def test_a_sound_of_its_own_begins_with_its_first_sample(tmp_path, suffix):
    wave = quiet(read_waveform, write(tmp_path / f"a.{suffix}", [(clicks(3, 48000), 100)]))
    np.testing.assert_allclose(heard(wave), [0.3, 1.3, 2.3], atol=0.05)


@pytest.mark.parametrize("suffix,codec,format", [
    ("mkv", "pcm_s16le", None), ("mka", "aac", "matroska"), ("mp4", "aac", None),
    ("webm", "libopus", None), ("ogg", "libopus", None), ("ogg", "vorbis", None),
    ("oga", "flac", "ogg"), ("m4a", "aac", None), ("mka", "flac", "matroska"),
    ("mov", "alac", None)])
def test_gaps(tmp_path, suffix, codec, format):
    "Packets of a whole file are left out, as a bad line or a broken card does it"
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"a.{suffix}"
    if codec == "vorbis": sf.write(whole, clicks(6, 48000, 2).T, 48000)
    else: write(whole, [(clicks(6, 48000, 2), 0)], codec, format=format)
    options = dict(page_duration="100000") if "og" in suffix else {}
    with av.open(str(whole)) as box, av.open(str(path), "w", format=format, options=options) as out:
        copy = out.add_stream_from_template(box.streams.audio[0])
        for packet in box.demux():
            time = None if packet.pts is None else packet.pts * packet.time_base
            if time is None or 1 < time < 3 or 4.1 < time < 4.6: continue
            packet.stream = copy
            out.mux(packet)
    warning = rf"a\.{suffix}: silence fills gaps in its sound: 2, 2\.[45]"
    with pytest.warns(UserWarning, match=warning):
        wave = read_waveform(path)
    np.testing.assert_allclose(heard(wave), [0.3, 3.3, 5.3], atol=0.05)
    assert abs(len(wave) / 16000 - 6) < 0.1


@pytest.mark.parametrize("kind", ["aac", "mp2", "ts", "flac", "ogg", "vorbis", "mp3", "ac3"])
@pytest.mark.parametrize("rate,channels", [(48000, 1), (44100, 1), (48000, 2)])
def test_files_in_a_row(tmp_path, kind, rate, channels):
    "Broadcasts and players put files one after the other; rate and channels change inside"
    codec = dict(ts="aac", ogg="libopus", mp3="libmp3lame").get(kind, kind)
    if kind == "ogg": rate = {44100: 24000}.get(rate, rate)   # Opus knows no other
    for name, r, c in (("1", 48000, 1), ("2", rate, channels)):
        format = {"aac": "adts", "ts": "mpegts"}.get(kind, kind)
        form = dict(flac="FLAC", vorbis="OGG").get(kind)
        if form: sf.write(tmp_path / name, clicks(3, r, c).T, r, format=form)
        else: write(tmp_path / name, [(clicks(3, r, c), 0)], codec, r, format=format)
    row = b"".join((tmp_path / name).read_bytes() for name in "12")
    (tmp_path / "row.wav").write_bytes(row)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wave, segments = read_waveform(tmp_path / "row.wav"), read_audio(tmp_path / "row.wav")
    np.testing.assert_array_equal(segments, cut_segments(wave))
    assert all("the clock of its sound starts anew at" in str(w.message) for w in caught)
    np.testing.assert_allclose(heard(wave), [0.3, 1.3, 2.3, 3.3, 4.3, 5.3], atol=0.1)
    assert abs(len(wave) / 16000 - 6) < 0.16


def test_the_first_packet_may_be_left_behind(tmp_path):
    "Fragmented mp4 files: pictures begin late, and sound as well but for its first packet"
    fragmented = dict(movflags="frag_keyframe+empty_moov")
    write(tmp_path / "a.mp4", [(clicks(6, 48000), 0)], picture=0, **fragmented)
    wave = quiet(read_waveform, tmp_path / "a.mp4")
    np.testing.assert_allclose(heard(wave), np.arange(6) + 0.3, atol=0.05)


def frames(*spans):
    "Frames of ones as (start, block, rate)"
    return [(start, np.ones(round(seconds * 1000), np.float32), 1000) for start, seconds in spans]


@pytest.mark.parametrize("spans,wave,gaps,jumps", [
    ([(0, 1), (1, 1)], "11", 0, 0),
    ([(2, 1), (3, 1)], "0011", 1, 0),
    ([(0, 1), (3, 1), (4, 1)], "10011", 1, 0),
    ([(0, 1), (None, 1), (4, 1)], "11001", 1, 0),
    ([(0, 2), (0, 1), (2, 1)], "11101", 1, 1),         # after a new start gaps are seen again
    ([(0, 2), (1, 2), (3, 1)], "11111", 0, 1),
    ([(0, 1), (99999, 1), (100000, 1)], "111", 0, 1),  # an hour at most
    ([(-1, 1), (0, 1)], "11", 0, 0)])
def test_the_clock(spans, wave, gaps, jumps):
    report = sounds._Report()
    blocks = [b for b, _ in sounds._in_time(frames(*spans), sounds._Clock(0, 3600, report))]
    np.testing.assert_array_equal(np.concatenate(blocks)[500::1000], [int(x) for x in wave])
    assert (len(report.gaps), len(report.jumps)) == (gaps, jumps)


def test_clocks_that_round_leave_no_gap():
    "Each packet a twentieth of a millisecond later, and up to 40 ms of jitter"
    rng, report = np.random.default_rng(0), sounds._Report()
    spans = [(0.02005 * k + rng.uniform(0, 0.04), 0.02) for k in range(1000)]
    total = sum(len(b) for b, _ in sounds._in_time(frames(*spans), sounds._Clock(0, 3600, report)))
    assert total == 20000 and not report.gaps and not report.jumps


# in bounds


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("peak", [1, 1.5, 30000])
def test_floating_point_samples_stay_in_bounds(tmp_path, rate, subtype, peak):
    wave = peak * np.sin(2 * np.pi * 200 * np.arange(rate) / rate)
    sf.write(tmp_path / "a.wav", wave, rate, subtype=subtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_waveform(tmp_path / "a.wav")
    assert np.abs(found).max() <= 1
    assert [f"peaks at {peak:.4g};" in str(w.message) for w in caught] == [True] * (peak > 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_no_numbers(tmp_path, value, subtype):
    wave = np.zeros(24000)
    wave[12000] = value
    with np.errstate(over="ignore"):
        sf.write(tmp_path / "a.wav", wave.astype(np.float64), 16000, subtype=subtype)
    for read in (read_waveform, read_audio):
        with pytest.raises(ValueError, match=r"a\.wav: .* not numbers, .* 0\.75 s from its start"):
            read(tmp_path / "a.wav")


def test_range_of_a_track(tmp_path):
    path = write(tmp_path / "a.mka", [(4 * clicks(1, 16000), 0)], "pcm_f32le", 16000)
    with pytest.warns(UserWarning, match=r"a\.mka: its sound peaks at 2\.8"):
        assert np.abs(read_waveform(path)).max() == 1


def header(**changed):
    "A wav file of one second, with other numbers in its header"
    import struct
    values = dict(riff=32036, rate=16000, data=32000) | changed
    noise = (3000 * np.sin(np.arange(16000))).astype("<i2").tobytes()
    return (b"RIFF" + struct.pack("<I", values["riff"]) + b"WAVEfmt " + struct.pack(
        "<IHHIIHH", 16, 1, 1, values["rate"], 2 * values["rate"] % 2**32, 2, 16)
        + b"data" + struct.pack("<I", values["data"]) + noise)


@pytest.mark.parametrize("changed", [
    {}, dict(riff=2**32 - 1, data=2**32 - 1), dict(data=2**32 - 1), dict(data=0),
    dict(riff=0, data=0), dict(data=0x7FFFF000), dict(riff=2**31, data=2**31),
    dict(riff=0x7FFFF024, data=0x7FFFF000)])
def test_lengths_that_mean_unknown(tmp_path, changed):
    (tmp_path / "a.wav").write_bytes(header(**changed))
    wave = quiet(read_waveform, tmp_path / "a.wav")
    np.testing.assert_allclose(wave, 3000 / 32768 * np.sin(np.arange(16000)), atol=1e-4)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), cut_segments(wave))


@pytest.mark.parametrize("rate", [1, 300, 4 * 10**9])
def test_rates_that_no_sound_has(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(header(rate=rate))
    with pytest.raises(ValueError, match=r"a\.wav: (has .* samples per second|cannot be decoded)"):
        read_waveform(tmp_path / "a.wav")


@pytest.mark.parametrize("data,message", [
    (header(riff=36, data=0)[:44], "holds no samples"),
    (b"", "cannot be decoded as audio"), (b"RIFF", "is cut short|cannot be decoded as audio"),
    (b"no sound at all\n" * 99, "cannot be decoded|no sound"),
    (b"1\n00:00:01,000 --> 00:00:02,000\nhi\n", "has no sound track|cannot be decoded")])
def test_files_without_sound(tmp_path, data, message):
    (tmp_path / "a.wav").write_bytes(data)
    for read in (read_waveform, read_audio):
        with pytest.raises(ValueError, match=rf"a\.wav: {message}"): read(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["mp3", "flac"])
def test_sounds_cut_short(tmp_path, kind):
    if kind == "flac": sf.write(tmp_path / "a", clicks(6, 48000)[0], 48000, format="FLAC")
    else: write(tmp_path / "a", [(clicks(6, 48000), 0)], "libmp3lame", format="mp3")
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(ValueError, match="cut: (is cut short, 2.4 of its 6.0|cannot be decoded)"):
        read_waveform(tmp_path / "cut")


# block by block


@pytest.mark.parametrize("near", [5, 0])
@pytest.mark.parametrize("kind", ["wav", "mp4", "adts", "ogg", "matroska", "flac"])
def test_segments_are_those_of_the_whole_sound(tmp_path, monkeypatch, kind, near):
    "To the last bit; also where the length was not known, and the file has to be read twice"
    monkeypatch.setattr(sounds, "_NEAR", near)
    rng = np.random.default_rng(0)
    lengths = (16000, 31999), (16000, 200001), (44100, 150000), (48000, 1), (8000, 9000)
    for rate, length in lengths:
        path, wave = tmp_path / f"{rate} {length}", rng.uniform(-0.5, 0.5, length)
        if kind in ("wav", "flac", "ogg"): sf.write(path, wave, rate, format=kind)
        elif kind == "matroska": write(path, [(wave[None], 0)], "flac", rate, format=kind)
        elif length < 10000: continue
        else: write(path, [(wave[None], 0)], "aac", rate, format=kind)
        whole = read_waveform(path)
        for segments, seconds in ((8, 2), (1, 0.5), (3, 0.01)):
            expected = cut_segments(whole, segments, round(16000 * seconds))
            np.testing.assert_array_equal(read_audio(path, segments, seconds), expected)
        np.testing.assert_array_equal(read_clip(dict(audio=path)).segments, cut_segments(whole))
        np.testing.assert_array_equal(
            read_audio(path, rate=8000), cut_segments(read_waveform(path, 8000), 8, 16000))


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    reads, decode = [], sounds._blocks
    monkeypatch.setattr(sounds, "_blocks", lambda *a: reads.append(a) or decode(*a))
    sf.write(tmp_path / "a.wav", clicks(60, 8000)[0], 8000)
    read_audio(tmp_path / "a.wav")
    read_audio(write(tmp_path / "a.mp4", [(clicks(60, 48000), 0)]))
    assert len(reads) == 2


def test_twenty_minutes_of_stereo_need_little_memory(tmp_path):
    with sf.SoundFile(tmp_path / "a.wav", "w", 16000, 2, "PCM_U8") as file:
        for _ in range(20): file.write(np.zeros((60 * 16000, 2), np.int16))
    tracemalloc.start()
    segments = read_audio(tmp_path / "a.wav")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert segments.shape == (8, 32000) and peak < 20e6   # all of it: 77 MB, and 154 MB in stereo


def test_spans_anywhere(tmp_path):
    sf.write(tmp_path / "a.wav", np.arange(200000) / 2**18, 16000, subtype="FLOAT")
    wave, lengths = read_waveform(tmp_path / "a.wav"), []
    def starts(length):
        lengths.append(length)
        return np.array([length - 10, 0, 100000])
    spans = read_spans(tmp_path / "a.wav", starts, 20)
    np.testing.assert_array_equal(spans[0], np.r_[wave[-10:], np.zeros(10)])
    np.testing.assert_array_equal(spans[1:], [wave[:20], wave[100000:100020]])
    assert set(lengths) == {200000}


@pytest.mark.parametrize("suffix", ["WAV", "WAVEX"])
def test_wav_files_in_a_row(tmp_path, suffix):
    for name, rate, channels in (("1", 16000, 1), ("2", 44100, 2), ("3", 16000, 1)):
        sf.write(tmp_path / name, clicks(2, rate, channels).T, rate, format=suffix)
    row = b"".join((tmp_path / name).read_bytes() for name in "123")
    (tmp_path / "row.wav").write_bytes(row)
    wave = quiet(read_waveform, tmp_path / "row.wav")
    np.testing.assert_allclose(heard(wave), [0.3, 1.3, 2.3, 3.3, 4.3, 5.3], atol=0.02)
    assert len(wave) == 6 * 16000
    (tmp_path / "tail.wav").write_bytes((tmp_path / "1").read_bytes() + b"TAG" + bytes(125))
    assert len(quiet(read_waveform, tmp_path / "tail.wav")) == 2 * 16000


def test_flac_from_a_pipe(tmp_path):
    "Its writer cannot know how many samples follow: there are none by its header"
    sf.write(tmp_path / "a.flac", clicks(3, 44100).T, 44100)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21:26] = bytes([data[21] & 240, 0, 0, 0, 0])
    (tmp_path / "piped.flac").write_bytes(data)
    wave = quiet(read_waveform, tmp_path / "piped.flac")
    np.testing.assert_allclose(heard(wave), [0.3, 1.3, 2.3], atol=0.02)
    assert len(wave) == 3 * 16000
    segments = quiet(read_audio, tmp_path / "piped.flac")
    np.testing.assert_array_equal(segments, cut_segments(wave))


def test_a_waveform_has_the_bounds_of_a_file():
    loud = np.linspace(-3, 3, 16000, dtype=np.float32)
    with pytest.warns(UserWarning, match="a sound given as samples: its sound peaks at 3; what is"):
        segments = read_clip(dict(audio=loud)).segments
    np.testing.assert_array_equal(segments[0, :16000], np.clip(loud, -1, 1))
    for value in (np.nan, -np.inf, 1e300):
        wave = np.r_[np.zeros(8000), value]
        with pytest.raises(ValueError, match=r"samples that are not numbers.* 0\.50 s from"):
            quiet(cut_segments, wave)
    assert (quiet(cut_segments, np.full(9, -1.)) == np.pad(-np.ones(9), (0, 31991))).all()


def test_a_waveform_has_floating_point_samples():
    with pytest.raises(ValueError, match="these are int16"):
        read_clip(dict(audio=np.zeros(100, np.int16)))

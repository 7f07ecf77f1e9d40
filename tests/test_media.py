"Media: the sampling rules for any length, formats of sound, faces, missing modalities, and files that cannot be read"
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_r1 import media
from affectgpt_r1.media import (
    _write_video, crop_faces, face_boxes, frame_indices, segment_starts, read_audio, read_clip, read_faces, read_subtitle, read_video,
    read_waveform, time_indices)


def greys(n, step=8, size=32): return np.ones((n, size, size, 3), np.uint8)*np.arange(0, step*n, step, dtype=np.uint8)[:, None, None, None]


def write(path, frames=None, ticks=None, wave=None, rate=16000, **options):
    "A file with a video stream of `frames` at `ticks` tenths of a second, a sound track of `wave`, or both"
    with av.open(str(path), "w", options=options) as box:
        if frames is not None:
            v = box.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=10, options={"crf": "10", "bf": "0"})
            v.height, v.width, v.pix_fmt, v.codec_context.time_base = *frames.shape[1:3], "yuv420p", Fraction(1, 10)
        if wave is not None: a = box.add_stream("aac", rate=rate, layout="mono")
        if frames is not None:
            for f, t in zip(frames, range(len(frames)) if ticks is None else ticks):
                f = av.VideoFrame.from_ndarray(f, format="rgb24")
                f.pts, f.time_base = t, Fraction(1, 10)
                box.mux(v.encode(f))
            box.mux(v.encode())
        if wave is not None:
            f = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            f.sample_rate = rate
            box.mux(a.encode(f)); box.mux(a.encode())
    return path


def tone(seconds=3, rate=16000): return .5*np.sin(2*np.pi*300*np.arange(int(seconds*rate))/rate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with a video of 20 frames and a tone of 3 s"
    root = tmp_path_factory.mktemp("media")
    _write_video(root/"a.mp4", np.ones((20, 32, 48, 3), np.uint8)*np.arange(0, 240, 12, dtype=np.uint8)[:, None, None, None])
    sf.write(root/"a.wav", .5*np.sin(2*np.pi*300*np.arange(48000)/16000), 16000)
    return root


@given(st.integers(1, 5000), st.integers(1, 16))
def test_frame_indices(count, n):
    i = frame_indices(count, n)
    assert len(i) == n and i[0] == 0 and i.max() < count and (np.diff(i) >= 0).all()
    if count >= n: assert i.tolist() == [k*count//n for k in range(n)] and len(set(i.tolist())) == n


@given(st.floats(0, 600), st.integers(1, 16))
def test_pieces_stay_inside(duration, n):
    s = segment_starts(duration, n)
    assert len(s) == n and s[0] == 0 and (s+2 <= max(duration, 2)+1e-9).all()


def test_video_frames_in_order(folder):
    frames = read_video(folder/"a.mp4")
    assert frames.shape == (8, 32, 48, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(frames.mean((1, 2, 3))/12, frame_indices(20), atol=.3)
    np.testing.assert_array_equal(frames, read_video(folder/"a.mp4"))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
def test_short_videos(tmp_path, count):
    _write_video(tmp_path/"v.mp4", np.ones((count, 32, 32, 3), np.uint8)*np.arange(0, 20*count, 20, dtype=np.uint8)[:, None, None, None])
    np.testing.assert_allclose(read_video(tmp_path/"v.mp4").mean((1, 2, 3))/20, frame_indices(count), atol=.3)


@pytest.mark.parametrize("rate,channels,subtype", [(16000, 1, "PCM_16"), (48000, 2, "PCM_16"), (8000, 1, "PCM_U8"), (44100, 2, "PCM_24"), (22050, 1, "FLOAT")])
def test_sound_formats(tmp_path, rate, channels, subtype):
    def tone(r): return .5*np.sin(2*np.pi*300*np.arange(3*r)/r)
    sf.write(tmp_path/"t.wav", np.stack([tone(rate)]*channels, 1), rate, subtype=subtype)
    wave = read_waveform(tmp_path/"t.wav")
    assert wave.shape == (48000,) and wave.dtype == np.float32
    np.testing.assert_allclose(wave[200:-200], tone(16000)[200:-200], atol=.02)
    assert read_audio(tmp_path/"t.wav").shape == (8, 32000)


@pytest.mark.parametrize("samples", [1, 100, 31999, 32000, 32001, 100000])
def test_pieces_of_any_length(tmp_path, samples):
    ramp = np.linspace(.1, .9, samples, dtype=np.float32)
    sf.write(tmp_path/"r.wav", ramp, 16000, subtype="FLOAT")
    pieces, padded = read_audio(tmp_path/"r.wav"), np.pad(ramp, (0, max(0, 32000-samples)))
    for piece, start in zip(pieces, segment_starts(samples/16000)):
        np.testing.assert_array_equal(piece, padded[int(start*16000+1e-6):][:32000])


def test_unusual_names(tmp_path, folder):
    odd = tmp_path/"a clip, 片段 #1.mp4"
    odd.write_bytes((folder/"a.mp4").read_bytes())
    assert read_video(odd).shape[0] == 8


@pytest.mark.parametrize("keep", [0, 10, 300, 1200])
def test_undecodable_video(tmp_path, folder, keep):
    (tmp_path/"broken.mp4").write_bytes((folder/"a.mp4").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"broken\.mp4: (cannot be decoded as video|is cut short)"): read_video(tmp_path/"broken.mp4")


@pytest.mark.parametrize("flags", ["", "+faststart", "+frag_keyframe+empty_moov"])
@pytest.mark.parametrize("share", [.3, .6, .95])
def test_truncated_video(tmp_path, flags, share):
    "Also where the index stands at the beginning and the frames that are there could be decoded"
    noise = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), np.uint8)
    whole = write(tmp_path/"whole.mp4", noise, **dict(movflags=flags) if flags else {}).read_bytes()
    assert len(read_video(tmp_path/"whole.mp4")) == 8
    (tmp_path/"cut.mp4").write_bytes(whole[:int(share*len(whole))])
    with pytest.raises(ValueError, match=r"cut\.mp4: is cut short"): read_video(tmp_path/"cut.mp4")


def test_truncated_avi(tmp_path):
    whole = write(tmp_path/"whole.avi", greys(30)).read_bytes()
    (tmp_path/"cut.avi").write_bytes(whole[:len(whole)//2])
    with pytest.raises(ValueError, match=r"cut\.avi: is cut short"): read_video(tmp_path/"cut.avi")


def test_avi_is_read_like_mp4(tmp_path):
    write(tmp_path/"a.avi", greys(30))
    for by in ("index", "time"): np.testing.assert_allclose(read_video(tmp_path/"a.avi", by=by).mean((1, 2, 3))/8, frame_indices(30), atol=.5)


@given(st.integers(8, 400), st.integers(1, 2000), st.integers(-50, 1000))
def test_by_time_is_by_number_where_frames_last_equally_long(count, gap, first):
    np.testing.assert_array_equal(time_indices(first+gap*np.arange(count), first+gap*count), frame_indices(count))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 16))
def test_by_time_takes_what_is_on_show(lengths, n):
    starts, end = np.cumsum([0, *lengths])[:-1], sum(lengths)
    for k, i in enumerate(time_indices(starts, end, n)): assert starts[i] <= k*end/n < starts[i]+lengths[i]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    ticks = [*range(15), *range(15, 165, 10)]
    path = write(tmp_path/f"uneven{suffix}", greys(30), ticks)
    np.testing.assert_allclose(read_video(path).mean((1, 2, 3))/8, frame_indices(30), atol=.3)
    by_time = read_video(path, by="time").mean((1, 2, 3))/8
    assert (np.abs(by_time[:, None]-frame_indices(30)).min(1) > .5).any() and (np.diff(by_time) > 0).all()
    if suffix == ".mp4": np.testing.assert_allclose(by_time, time_indices(ticks, 165), atol=.3)


@pytest.mark.parametrize("by", ["index", "time"])
def test_video_of_one_frame(tmp_path, by):
    frames = read_video(write(tmp_path/"one.mp4", greys(1)+90), by=by)
    assert frames.shape == (8, 32, 32, 3) and (frames == frames[0]).all() and abs(frames.mean()-90) < 3


def test_each_video_is_decoded_once(tmp_path, monkeypatch):
    path, decoded = write(tmp_path/"a.mp4", greys(30)), []
    original = media._decode
    monkeypatch.setattr(media, "_decode", lambda *a: decoded.append(a) or original(*a))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kw in (dict(), dict(by="time"), dict(visual="face")): read_clip(dict(video=path, audio=""), **kw)
    assert len(decoded) == 3


def test_video_without_a_video_stream(tmp_path, folder):
    (tmp_path/"sound.mp4").write_bytes((folder/"a.wav").read_bytes())
    with pytest.raises(ValueError, match=r"sound\.mp4: has no video stream"): read_video(tmp_path/"sound.mp4")


def test_unreadable_sound(tmp_path):
    sf.write(tmp_path/"empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"empty\.wav: holds no samples"): read_audio(tmp_path/"empty.wav")
    (tmp_path/"text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav: cannot be decoded as audio"): read_waveform(tmp_path/"text.wav")


def test_sound_cut_short(tmp_path):
    sf.write(tmp_path/"a.wav", tone(), 16000)
    (tmp_path/"cut.wav").write_bytes((tmp_path/"a.wav").read_bytes()[:20001])
    assert len(sf.read(tmp_path/"cut.wav")[0]) > 0   # soundfile takes it for a short sound
    with pytest.raises(ValueError, match=r"cut\.wav: is cut short, 76,043 of its 96,044 bytes are lacking"): read_waveform(tmp_path/"cut.wav")


def test_sound_of_unknown_length_is_read(tmp_path):
    "A program that writes a wav to a pipe cannot know the length and puts the largest number"
    sf.write(tmp_path/"a.wav", tone(), 16000)
    data = bytearray((tmp_path/"a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff"*4
    (tmp_path/"piped.wav").write_bytes(data)
    assert len(read_waveform(tmp_path/"piped.wav")) == 48000


def test_sound_with_samples_that_are_not_numbers(tmp_path):
    sf.write(tmp_path/"nan.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav: holds samples that are not numbers"): read_waveform(tmp_path/"nan.wav")


@pytest.mark.parametrize("rate", [16000, 44100])
def test_sound_track_of_a_video(tmp_path, rate):
    wave = read_waveform(write(tmp_path/"a.mp4", greys(30), wave=tone(3, rate), rate=rate))
    assert abs(len(wave)-48000) < 2500 and abs(np.quantile(np.abs(wave[8000:40000]), .95)-.5) < .02
    spectrum = np.abs(np.fft.rfft(wave[8000:40000]))
    assert abs(spectrum.argmax()*16000/32000-300) < 2
    with pytest.raises(ValueError, match=r"mute\.mp4: has no sound track"): read_waveform(write(tmp_path/"mute.mp4", greys(8)))


def test_faces_of_a_file_are_read_by_the_same_rule(tmp_path):
    np.save(tmp_path/"f.npy", greys(30, size=12))
    np.testing.assert_array_equal(read_faces(tmp_path/"f.npy"), greys(30, size=12)[frame_indices(30)])
    clip = read_clip(dict(video="", audio="", face=tmp_path/"f.npy"), visual="face")
    assert clip.present == (True, False) and clip.seen == "face file"


@pytest.mark.parametrize("held", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4, 3))])
def test_no_faces(tmp_path, held):
    np.save(tmp_path/"f.npy", held)
    with pytest.raises(ValueError, match=r"f\.npy: holds .* of shape"): read_faces(tmp_path/"f.npy")


def test_broken_face_file(tmp_path):
    np.save(tmp_path/"f.npy", greys(30))
    (tmp_path/"cut.npy").write_bytes((tmp_path/"f.npy").read_bytes()[:5000])
    np.save(tmp_path/"pickle.npy", np.array([{"a": 1}], object))
    for name in ("cut.npy", "pickle.npy"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an npy file"): read_faces(tmp_path/name)


def found(monkeypatch, boxes):
    "Let the detector see `boxes`, one list per frame"
    seen = iter(boxes)
    monkeypatch.setattr(media, "_detect", lambda frame: np.array(next(seen), float).reshape(-1, 4))
    return face_boxes(np.zeros((len(boxes), 8, 8, 3), np.uint8))


def test_the_face_that_others_support_is_followed(monkeypatch):
    "Not a larger one seen once; through a gap; and beyond its own width"
    walk = [[[30*k, 50, 40, 40]] for k in range(8)]
    walk[0] += [[200, 0, 90, 90]]
    walk[4] = []
    got = found(monkeypatch, walk)
    assert np.isnan(got[4]).all() and np.isnan(got).sum() == 3
    np.testing.assert_array_equal(np.delete(got, 4, 0), [[30*k+20, 70, 40] for k in range(8) if k != 4])


def test_no_face_anywhere(monkeypatch, tmp_path):
    assert np.isnan(found(monkeypatch, [[]]*8)).all()
    path = write(tmp_path/"wall.mp4", greys(10))
    with pytest.warns(UserWarning, match=r"wall\.mp4: no face found, the whole frames are taken"):
        clip = read_clip(dict(video=path, audio=""), visual="face")
    assert clip.seen == "whole frames: no face found" and clip.present == (True, False)
    np.testing.assert_array_equal(clip.pictures, read_video(path)[..., ::-1])


def test_crops_bridge_gaps_and_are_smooth():
    ramp = np.zeros((5, 60, 200, 3), np.uint8)
    ramp[...] = np.arange(200, dtype=np.uint8)[:, None]
    boxes = np.array([[40, 30, 20], [np.nan]*3, [80, 30, 20], [100, 30, 20], [np.nan]*3])
    middle = crop_faces(ramp, boxes, size=20)[:, :, 9:11].mean((1, 2, 3))
    np.testing.assert_allclose(middle, np.convolve([40, 40, 60, 80, 100, 100, 100], np.full(3, 1/3), "valid")-.5, atol=1.5)


def test_a_drawn_face_is_found():
    from affectgpt_r1.toy import State, draw_video
    boxes = face_boxes(draw_video(State("calm", .5), 8, np.random.default_rng(0)))
    assert np.isfinite(boxes).all() and (np.abs(boxes[:, 0]-48) < 12).all() and (boxes[:, 2] > 40).all()


@pytest.mark.parametrize("row,present", [(dict(video="", audio=""), (False, False)), (dict(video="v", audio=None), (True, False)), (dict(video=None, audio="a"), (False, True))])
def test_a_missing_modality_is_a_mask(folder, row, present):
    files = dict(v=folder/"a.mp4", a=folder/"a.wav")
    clip = read_clip({k: files.get(v, v) for k, v in row.items()})
    assert clip.present == present and clip.pictures.any() == present[0] and clip.segments.any() == present[1]
    assert len(clip.pictures) == len(clip.segments) == 8


def test_a_named_file_that_is_not_there_is_an_error_not_a_mask(folder):
    with pytest.raises(FileNotFoundError): read_clip(dict(video=folder/"a.mp4", audio=folder/"b.wav"))


def test_subtitles(tmp_path):
    (tmp_path/"a.srt").write_bytes("\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n- 你好, \"A\"\r\n{\\an8}<i>B</i>\r\n\r\n2\r\n00:00:03,000 --> 00:00:04,000\r\n42\r\n".encode())
    assert read_subtitle(tmp_path/"a.srt") == "- 你好, \"A\" B 42"
    (tmp_path/"a.vtt").write_text("WEBVTT - title\n\nSTYLE\n::cue {}\n\nchapter\n00:01.000 --> 00:02.000\none\n\n00:02.000 --> 00:03.000\none\ntwo\n")
    assert read_subtitle(tmp_path/"a.vtt") == "one two"
    (tmp_path/"empty.srt").write_text("")
    assert read_subtitle(tmp_path/"empty.srt") == ""


@pytest.mark.parametrize("read", [read_video, read_audio, read_waveform, read_faces, read_subtitle])
def test_absent_file(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="nothing.x: no such file"): read(tmp_path/"nothing.x")

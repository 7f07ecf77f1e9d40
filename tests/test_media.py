"Media: sampling rules for any length, formats of sound, faces, missing modalities, broken files"
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_r1 import faces, videos
from affectgpt_r1.containers import check_file, media_streams
from affectgpt_r1.faces import crop_faces, face_boxes
from affectgpt_r1.media import (
    decode_frames, frame_indices, frame_times, read_audio, read_clip,
    read_faces, read_video, read_waveform, segment_starts, time_indices, write_video)
from affectgpt_r1.subtitles import read_subtitle


def greys(n, step=8, size=32):
    "`n` frames, each brighter by `step`"
    shades = np.arange(0, step*n, step, dtype=np.uint8)
    return np.ones((n, size, size, 3), np.uint8)*shades[:, None, None, None]


def shades(frames, step=8):
    "The numbers of frames that `greys` made"
    return frames.mean((1, 2, 3))/step


def add_video_stream(container, path, frames):
    "A stream whose frames are given in tenths of a second"
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    stream = container.add_stream(codec, rate=10, options={"crf": "10", "bf": "0"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 10)
    return stream


def encode_frames(container, stream, frames, ticks):
    "Frames that appear at `ticks` tenths of a second"
    for pixels, tick in zip(frames, range(len(frames)) if ticks is None else ticks):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = tick, Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def encode_sound(container, stream, wave, rate):
    "All of a mono sound"
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate = rate
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write(path, frames=None, ticks=None, wave=None, rate=16000, **options):
    "A file with a video stream of `frames`, a sound track of `wave`, or both"
    with av.open(str(path), "w", options=options) as container:
        if frames is not None: video = add_video_stream(container, path, frames)
        if wave is not None: audio = container.add_stream("aac", rate=rate, layout="mono")
        if frames is not None: encode_frames(container, video, frames, ticks)
        if wave is not None: encode_sound(container, audio, wave, rate)
    return path


def tone(seconds=3, rate=16000):
    "300 Hz"
    return .5*np.sin(2*np.pi*300*np.arange(int(seconds*rate))/rate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with a video of 20 frames and a tone of 3 s"
    root = tmp_path_factory.mktemp("media")
    video = np.broadcast_to(greys(20, 12)[:, :, :1], (20, 32, 48, 3))
    write_video(root/"a.mp4", np.ascontiguousarray(video))
    sf.write(root/"a.wav", tone(), 16000)
    return root


@given(st.integers(1, 5000), st.integers(1, 16))
def test_frame_indices(count, n):
    i = frame_indices(count, n)
    assert len(i) == n and i[0] == 0 and i.max() < count and (np.diff(i) >= 0).all()
    if count >= n: assert i.tolist() == [k*count//n for k in range(n)] and len(set(i.tolist())) == n


@given(st.floats(0, 600), st.integers(1, 16))
def test_segments_stay_inside(duration, n):
    s = segment_starts(duration, n)
    assert len(s) == n and s[0] == 0 and (s+2 <= max(duration, 2)+1e-9).all()


def test_video_frames_in_order(folder):
    frames = read_video(folder/"a.mp4")
    assert frames.shape == (8, 32, 48, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(shades(frames, 12), frame_indices(20), atol=.3)
    np.testing.assert_array_equal(frames, read_video(folder/"a.mp4"))


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
def test_short_videos(tmp_path, count):
    write_video(tmp_path/"v.mp4", greys(count, 20))
    frames = read_video(tmp_path/"v.mp4")
    np.testing.assert_allclose(shades(frames, 20), frame_indices(count), atol=.3)


@pytest.mark.parametrize("num_frames,num_segments", [(1, 1), (3, 5), (16, 2)])
def test_other_numbers_of_frames_and_segments(folder, num_frames, num_segments):
    clip = read_clip(dict(video=folder/"a.mp4", audio=folder/"a.wav"), num_frames, num_segments)
    np.testing.assert_allclose(shades(clip.pictures, 12), frame_indices(20, num_frames), atol=.3)
    np.testing.assert_array_equal(clip.segments, read_audio(folder/"a.wav", num_segments))
    silent = read_clip(dict(video="", audio=""), num_frames, num_segments)
    assert silent.pictures.shape == (num_frames, 112, 112, 3)
    assert silent.segments.shape == (num_segments, 32000)


def test_all_frames_and_their_times(tmp_path):
    path = write(tmp_path/"a.mp4", greys(30))
    frames, times = decode_frames(path)
    np.testing.assert_allclose(shades(np.stack([frames[i] for i in range(30)])), range(30), atol=.3)
    assert times == frame_times(path) and len(times[0]) == 30
    assert list(decode_frames(path, {4, 2})[0]) == [2, 4]


@pytest.mark.parametrize("rate,channels,subtype", [
    (16000, 1, "PCM_16"), (48000, 2, "PCM_16"), (8000, 1, "PCM_U8"), (44100, 2, "PCM_24"),
    (22050, 1, "FLOAT")])
def test_sound_formats(tmp_path, rate, channels, subtype):
    sf.write(tmp_path/"t.wav", np.stack([tone(3, rate)]*channels, 1), rate, subtype=subtype)
    wave = read_waveform(tmp_path/"t.wav")
    assert wave.shape == (48000,) and wave.dtype == np.float32
    np.testing.assert_allclose(wave[200:-200], tone()[200:-200], atol=.02)
    assert read_audio(tmp_path/"t.wav").shape == (8, 32000)


@pytest.mark.parametrize("samples", [1, 100, 31999, 32000, 32001, 100000])
def test_segments_of_any_length(tmp_path, samples):
    ramp = np.linspace(.1, .9, samples, dtype=np.float32)
    sf.write(tmp_path/"r.wav", ramp, 16000, subtype="FLOAT")
    padded = np.pad(ramp, (0, max(0, 32000-samples)))
    for segment, start in zip(read_audio(tmp_path/"r.wav"), segment_starts(samples/16000)):
        np.testing.assert_array_equal(segment, padded[int(start*16000+1e-6):][:32000])


def test_unusual_names(tmp_path, folder):
    odd = tmp_path/"a clip, 片段 #1.mp4"
    odd.write_bytes((folder/"a.mp4").read_bytes())
    assert read_video(odd).shape[0] == 8


@pytest.mark.parametrize("keep", [0, 10, 300, 1200])
def test_undecodable_video(tmp_path, folder, keep):
    (tmp_path/"broken.mp4").write_bytes((folder/"a.mp4").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"broken\.mp4: (cannot be decoded as video|is cut short)"):
        read_video(tmp_path/"broken.mp4")


@pytest.mark.parametrize("flags", ["", "+faststart", "+frag_keyframe+empty_moov"])
@pytest.mark.parametrize("share", [.3, .6, .95])
def test_truncated_video(tmp_path, flags, share):
    "Also if the index comes first and the frames that are there could be decoded"
    noise = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), np.uint8)
    options = dict(movflags=flags) if flags else {}
    whole = write(tmp_path/"whole.mp4", noise, **options).read_bytes()
    assert len(read_video(tmp_path/"whole.mp4")) == 8
    (tmp_path/"cut.mp4").write_bytes(whole[:int(share*len(whole))])
    with pytest.raises(ValueError, match=r"cut\.mp4: is cut short"): read_video(tmp_path/"cut.mp4")


def test_truncated_avi(tmp_path):
    whole = write(tmp_path/"whole.avi", greys(30)).read_bytes()
    (tmp_path/"cut.avi").write_bytes(whole[:len(whole)//2])
    with pytest.raises(ValueError, match=r"cut\.avi: is cut short"): read_video(tmp_path/"cut.avi")


def test_avi_is_read_like_mp4(tmp_path):
    write(tmp_path/"a.avi", greys(30))
    for by in ("index", "time"):
        frames = read_video(tmp_path/"a.avi", by=by)
        np.testing.assert_allclose(shades(frames), frame_indices(30), atol=.5)


@given(st.integers(8, 400), st.integers(1, 2000), st.integers(-50, 1000))
def test_by_time_is_by_number_where_frames_last_equally_long(count, gap, first):
    by_time = time_indices(first+gap*np.arange(count), first+gap*count)
    np.testing.assert_array_equal(by_time, frame_indices(count))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 16))
def test_by_time_takes_what_is_on_screen(lengths, n):
    starts, end = np.cumsum([0, *lengths])[:-1], sum(lengths)
    for k, i in enumerate(time_indices(starts, end, n)):
        assert starts[i] <= k*end/n < starts[i]+lengths[i]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate(tmp_path, suffix):
    ticks = [*range(15), *range(15, 165, 10)]
    path = write(tmp_path/f"uneven{suffix}", greys(30), ticks)
    np.testing.assert_allclose(shades(read_video(path)), frame_indices(30), atol=.3)
    by_time = shades(read_video(path, by="time"))
    assert (np.abs(by_time[:, None]-frame_indices(30)).min(1) > .5).any()
    assert (np.diff(by_time) > 0).all()
    if suffix == ".mp4": np.testing.assert_allclose(by_time, time_indices(ticks, 165), atol=.3)


@pytest.mark.parametrize("by", ["index", "time"])
def test_video_of_one_frame(tmp_path, by):
    frames = read_video(write(tmp_path/"one.mp4", greys(1)+90), by=by)
    assert frames.shape == (8, 32, 32, 3) and (frames == frames[0]).all()
    assert abs(frames.mean()-90) < 3


def test_each_video_is_decoded_once(tmp_path, monkeypatch):
    path, decoded = write(tmp_path/"a.mp4", greys(30)), []
    monkeypatch.setattr(
        videos, "decode_frames", lambda *a: decoded.append(a) or decode_frames(*a))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kw in (dict(), dict(by="time"), dict(visual="face")):
            read_clip(dict(video=path, audio=""), **kw)
    assert len(decoded) == 3


def test_video_without_a_video_stream(tmp_path, folder):
    (tmp_path/"sound.mp4").write_bytes((folder/"a.wav").read_bytes())
    with pytest.raises(ValueError, match=r"sound\.mp4: has no video stream"):
        read_video(tmp_path/"sound.mp4")
    assert media_streams(tmp_path/"sound.mp4") == (False, True)


def test_streams(tmp_path):
    assert media_streams(write(tmp_path/"both.mp4", greys(9), wave=tone())) == (True, True)
    assert media_streams(write(tmp_path/"mute.mp4", greys(9))) == (True, False)
    (tmp_path/"notes.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"notes\.mp4: cannot be opened"):
        media_streams(tmp_path/"notes.mp4")


def test_unreadable_sound(tmp_path):
    sf.write(tmp_path/"empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"empty\.wav: holds no samples"):
        read_audio(tmp_path/"empty.wav")
    (tmp_path/"text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav: cannot be decoded as audio"):
        read_waveform(tmp_path/"text.wav")


def test_sound_cut_short(tmp_path):
    sf.write(tmp_path/"a.wav", tone(), 16000)
    (tmp_path/"cut.wav").write_bytes((tmp_path/"a.wav").read_bytes()[:20001])
    assert len(sf.read(tmp_path/"cut.wav")[0]) > 0   # soundfile takes it for a short sound
    message = r"cut\.wav: is cut short, 76,043 of its 96,044 bytes are missing"
    with pytest.raises(ValueError, match=message): read_waveform(tmp_path/"cut.wav")


def test_sound_of_unknown_length_is_read(tmp_path):
    "A program that writes a wav to a pipe cannot know the length and puts the largest number"
    sf.write(tmp_path/"a.wav", tone(), 16000)
    data = bytearray((tmp_path/"a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff"*4
    (tmp_path/"piped.wav").write_bytes(data)
    assert len(read_waveform(tmp_path/"piped.wav")) == 48000


def test_sound_with_samples_that_are_not_numbers(tmp_path):
    sf.write(tmp_path/"nan.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav: holds samples that are not numbers"):
        read_waveform(tmp_path/"nan.wav")


@pytest.mark.parametrize("rate", [16000, 44100])
def test_sound_track_of_a_video(tmp_path, rate):
    wave = read_waveform(write(tmp_path/"a.mp4", greys(30), wave=tone(3, rate), rate=rate))
    assert abs(len(wave)-48000) < 2500
    assert abs(np.quantile(np.abs(wave[8000:40000]), .95)-.5) < .02
    spectrum = np.abs(np.fft.rfft(wave[8000:40000]))
    assert abs(spectrum.argmax()*16000/32000-300) < 2
    with pytest.raises(ValueError, match=r"mute\.mp4: has no sound track"):
        read_waveform(write(tmp_path/"mute.mp4", greys(8)))


def test_faces_of_a_file_are_read_by_the_same_rule(tmp_path):
    np.save(tmp_path/"f.npy", greys(30, size=12))
    expected = greys(30, size=12)[frame_indices(30)]
    np.testing.assert_array_equal(read_faces(tmp_path/"f.npy"), expected)
    clip = read_clip(dict(video="", audio="", face=tmp_path/"f.npy"), visual="face")
    assert clip.present == (True, False) and clip.seen == "face file"


@pytest.mark.parametrize("held", [
    np.zeros((0, 4, 4, 3), np.uint8), np.zeros((5, 0, 0, 3), np.uint8),
    np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4, 3))])
def test_no_faces(tmp_path, held):
    np.save(tmp_path/"f.npy", held)
    with pytest.raises(ValueError, match=r"f\.npy: holds .* of shape"): read_faces(tmp_path/"f.npy")


def test_broken_face_file(tmp_path):
    np.save(tmp_path/"f.npy", greys(30))
    (tmp_path/"cut.npy").write_bytes((tmp_path/"f.npy").read_bytes()[:5000])
    np.save(tmp_path/"pickle.npy", np.array([{"a": 1}], object))
    for name in ("cut.npy", "pickle.npy"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an npy file"):
            read_faces(tmp_path/name)
    np.savez(tmp_path/"f.npz", greys(3))
    (tmp_path/"f.npz").rename(tmp_path/"zip.npy")
    with pytest.raises(ValueError, match=r"zip\.npy: is an npz file"):
        read_faces(tmp_path/"zip.npy")


@pytest.mark.parametrize("sizes", [(32, 16), (32, 32, 30)])
def test_frames_of_different_sizes(sizes):
    frames = [greys(1, size=size)[0] for size in sizes]
    with pytest.raises(ValueError, match="the frames of a video have one size"):
        read_clip(dict(video=frames, audio=""))


def found(monkeypatch, boxes):
    "Let the detector see `boxes`, one list per frame"
    seen = iter(boxes)
    def detect(frame): return np.array(next(seen), float).reshape(-1, 4)
    monkeypatch.setattr(faces, "_detect", detect)
    return face_boxes(np.zeros((len(boxes), 8, 8, 3), np.uint8))


def test_the_face_that_others_support_is_followed(monkeypatch):
    "Not a larger one seen once; through a gap; and beyond its own width"
    walk = [[[30*k, 50, 40, 40]] for k in range(8)]
    walk[0] += [[200, 0, 90, 90]]
    walk[4] = []
    got = found(monkeypatch, walk)
    assert np.isnan(got[4]).all() and np.isnan(got).sum() == 3
    expected = [[30*k+20, 70, 40] for k in range(8) if k != 4]
    np.testing.assert_array_equal(np.delete(got, 4, 0), expected)


def test_no_face_anywhere(monkeypatch, tmp_path):
    assert np.isnan(found(monkeypatch, [[]]*8)).all()
    monkeypatch.undo()   # the wall is shown to the real detector
    path = write(tmp_path/"wall.mp4", greys(10))
    warning = r"wall\.mp4: no face found, the whole frames are taken"
    with pytest.warns(UserWarning, match=warning):
        clip = read_clip(dict(video=path, audio=""), visual="face")
    assert clip.seen == "whole frames: no face found" and clip.present == (True, False)
    np.testing.assert_array_equal(clip.pictures, read_video(path)[..., ::-1])


def test_crops_bridge_gaps_and_are_smooth():
    ramp = np.zeros((5, 60, 200, 3), np.uint8)
    ramp[...] = np.arange(200, dtype=np.uint8)[:, None]
    boxes = np.array([[40, 30, 20], [np.nan]*3, [80, 30, 20], [100, 30, 20], [np.nan]*3])
    middle = crop_faces(ramp, boxes, size=20)[:, :, 9:11].mean((1, 2, 3))
    track = np.convolve([40, 40, 60, 80, 100, 100, 100], np.full(3, 1/3), "valid")
    np.testing.assert_allclose(middle, track-.5, atol=1.5)


def test_a_drawn_face_is_found():
    from affectgpt_r1.toy_faces import draw_video
    from affectgpt_r1.toy_states import State
    boxes = face_boxes(draw_video(State("calm", .5), 8, np.random.default_rng(0)))
    assert np.isfinite(boxes).all()
    assert (np.abs(boxes[:, 0]-48) < 12).all() and (boxes[:, 2] > 40).all()


@pytest.mark.parametrize("row,present", [
    (dict(video="", audio=""), (False, False)), (dict(video="v", audio=None), (True, False)),
    (dict(video=None, audio="a"), (False, True))])
def test_a_missing_modality_is_a_mask(folder, row, present):
    files = dict(v=folder/"a.mp4", a=folder/"a.wav")
    clip = read_clip({k: files.get(v, v) for k, v in row.items()})
    assert clip.present == present
    assert (clip.pictures.any(), clip.segments.any()) == present
    assert len(clip.pictures) == len(clip.segments) == 8


def test_a_named_file_that_is_not_there_is_an_error_not_a_mask(folder):
    with pytest.raises(FileNotFoundError, match=r"b\.wav: no such file"):
        read_clip(dict(video=folder/"a.mp4", audio=folder/"b.wav"))


@pytest.mark.parametrize("read", [
    check_file, media_streams, read_video, read_audio, read_waveform, read_faces, read_subtitle])
def test_absent_file(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="nothing.x: no such file"):
        read(tmp_path/"nothing.x")

"""Containers as they come: files made here by container, codec and oddity, read, and compared with
what was drawn, with what OpenCV reads, and with decoding everything"""
import io
import struct
import warnings
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import soundfile as sf
from av.stream import Disposition

from affectgpt_r1 import videos
from affectgpt_r1.containers import VIDEO_FILES, check_file, media_streams, open_media
from affectgpt_r1.data import load_folder
from affectgpt_r1.inference import as_row
from affectgpt_r1.media import decode_frames, frame_indices, read_clip, read_video, read_waveform
from affectgpt_r1.videos import choose_frames, frame_times

COUNT = 48


def drawn(count=COUNT, size=(64, 48)):
    "Frames that grow brighter by 4, with a bar that moves"
    width, height = size
    frames = np.empty((count, height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:] = (20+4*i) % 256
        frame[:height//2, (3*i) % width:(3*i) % width+6] = (255-4*i) % 256
    return frames


def numbers(frames):
    "The numbers of frames that `drawn` made, by the grey around the bar"
    return (np.median(frames[:, frames.shape[1]//2+2:], (1, 2, 3))-20)/4


def add_film(container, codec="libx264", pix="yuv420p", rate=10, size=(64, 48), gop=8, between=None,
             options=None, color_range=None, turn=None):
    "A video stream of an open file"
    stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
    stream.width, stream.height, stream.pix_fmt = *size, pix
    stream.codec_context.gop_size = gop
    if between is not None: stream.codec_context.max_b_frames = between
    if color_range is not None: stream.codec_context.color_range = color_range
    return stream


def encode(container, stream, frames, ticks=None):
    "Write the frames, at `ticks` or one after the other"
    for pixels, tick in zip(frames, ticks or range(len(frames))):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = tick, 1/stream.average_rate
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write(path, count=COUNT, ticks=None, form=None, box=None, **film):
    "A file with one film"
    with av.open(str(path), "w", format=form, options=box or {}) as container:
        stream = add_film(container, **film)
        encode(container, stream, drawn(count, film.get("size", (64, 48))), ticks)
    return path


X264 = {"crf": "8", "sc_threshold": "0"}
OPEN = X264 | {"x264-params": "open-gop=1"}
X265 = {"x265-params": "log-level=none:crf=8:keyint=8:min-keyint=8:open-gop=0"}
X265_OPEN = {"x265-params": "log-level=none:crf=8:keyint=8:min-keyint=8:open-gop=1"}
AV1, VP9, VP8 = {"crf": "15", "preset": "10"}, {"crf": "10", "b": "0"}, {"crf": "4", "b": "2M"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16"}
RATE, WOVEN = {"b": "2M"}, {"flags": "+ilme+ildct"}
UNEVEN = [i*i for i in range(COUNT)]
GRID = {
    "b_frames.mp4": dict(options=X264, between=3),
    "open_gop.mp4": dict(options=OPEN, between=3),
    "key_frames_only.mp4": dict(options=X264, gop=1),
    "refresh.mp4": dict(options=X264 | {"intra-refresh": "1"}),
    "fragments.mp4": dict(options=X264, between=3, box={"movflags": "+frag_keyframe+empty_moov"}),
    "uneven.mp4": dict(options=X264, between=3, ticks=UNEVEN),
    "late.mp4": dict(options=X264, between=3, ticks=[50+i for i in range(COUNT)]),
    "444.mp4": dict(options=X264, pix="yuv444p"),
    "full_range.mp4": dict(options=X264, pix="yuvj420p"),
    "grey.mp4": dict(options=X264, pix="gray", color_range=2),
    "grey10.mp4": dict(options=X264, pix="gray10le", color_range=2),
    "woven.mp4": dict(options=X264 | WOVEN, between=3),
    "hevc.mp4": dict(codec="libx265", options=X265),
    "hevc_open.mp4": dict(codec="libx265", options=X265_OPEN),
    "mpeg4.mp4": dict(codec="mpeg4", options=RATE, between=2),
    "av1.mp4": dict(codec="libsvtav1", options=AV1),
    "vp9.mp4": dict(codec="libvpx-vp9", options=VP9),
    "h264.m4v": dict(options=X264, between=3, form="mp4"),
    "faststart.mov": dict(options=X264, between=3, box={"movflags": "+faststart"}),
    "prores.mov": dict(codec="prores_ks", pix="yuv422p10le"),
    "mjpeg.mov": dict(codec="mjpeg", pix="yuvj420p"),
    "alpha.mov": dict(codec="qtrle", pix="argb"),
    "b_frames.mkv": dict(options=X264, between=3),
    "uneven.mkv": dict(options=X264, between=3, ticks=UNEVEN),
    "live.mkv": dict(options=X264, between=3, box={"live": "1"}),
    "hevc10.mkv": dict(codec="libx265", pix="yuv420p10le", options=X265),
    "mpeg2.mkv": dict(codec="mpeg2video", rate=25, options=RATE, between=2),
    "ffv1.mkv": dict(codec="ffv1", pix="yuv444p"),
    "hidden_vp8.webm": dict(codec="libvpx", options=VP8 | HIDDEN, gop=16),
    "hidden_vp9.webm": dict(codec="libvpx-vp9", options=VP9 | HIDDEN, gop=16),
    "av1.webm": dict(codec="libsvtav1", options=AV1),
    "alpha.webm": dict(codec="libvpx-vp9", pix="yuva420p", options=VP9),
    "mpeg4.avi": dict(codec="mpeg4", options=RATE),
    "mpeg4_b_frames.avi": dict(codec="mpeg4", options=RATE, between=2),
    "h264.avi": dict(options=X264, between=3),
    "msmpeg4.avi": dict(codec="msmpeg4v2", options=RATE),
    "mjpeg.avi": dict(codec="mjpeg", pix="yuvj420p"),
    "raw.avi": dict(codec="rawvideo", pix="bgr24"),
    "sorenson.flv": dict(codec="flv", options=RATE),
    "h264.flv": dict(options=X264, between=3),
    "h263.3gp": dict(codec="h263", size=(176, 144), rate=30, options=RATE),
    "mpeg4.3gp": dict(codec="mpeg4", options=RATE),
    "h264.ts": dict(options=X264, between=3),
    "open_gop.ts": dict(options=OPEN, between=3),
    "woven.mts": dict(codec="mpeg2video", rate=25, options=RATE | WOVEN, between=2),
    "hevc.m2ts": dict(codec="libx265", options=X265),
    "mpeg1.mpg": dict(codec="mpeg1video", rate=25, options=RATE, between=2),
    "mpeg2.vob": dict(codec="mpeg2video", rate=25, options=RATE, between=2),
    "wmv2.wmv": dict(codec="wmv2", options=RATE),
    "msmpeg4.asf": dict(codec="msmpeg4", options=RATE),
    "vp8.ogv": dict(codec="libvpx", options=VP8),
    "mpeg2.mxf": dict(codec="mpeg2video", rate=25, options=RATE, between=2),
    "colours.gif": dict(codec="gif", pix="rgb8"),
    "h264.nut": dict(options=X264, between=3),
    "bare.h264": dict(options=X264, between=3)}
DECODED_AS_A_WHOLE = {"h264.avi", "colours.gif", "bare.h264"}
IN_PART = {"refresh.mp4", "mpeg1.mpg", "mpeg2.vob"}   # their key frames are not found by a jump
OPENCV_CANNOT = {"woven.mp4", "woven.mts", "hevc10.mkv", "prores.mov", "grey10.mp4"}


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    "Writes a file of the grid on first use"
    folder, made = tmp_path_factory.mktemp("grid"), {}
    def get(name):
        if name not in made: made[name] = write(folder/name, **GRID[name])
        return made[name]
    return get


def opencv(path):
    "All frames as OpenCV reads them, RGB"
    film, frames = cv2.VideoCapture(str(path)), []
    while (read := film.read())[0]: frames.append(read[1][..., ::-1])
    return np.stack(frames)


@pytest.mark.parametrize("name", GRID)
def test_frames_are_the_drawn_ones(grid, name):
    path = grid(name)
    assert media_streams(path) == (True, False)
    frames = read_video(path)
    quantised = name == "colours.gif"
    wanted = frame_indices(COUNT)
    np.testing.assert_allclose(numbers(frames), wanted, atol=7 if quantised else .6)
    if name in OPENCV_CANNOT: return
    theirs = opencv(path)
    assert len(theirs) == len(frame_times(path)[0]) == COUNT
    assert np.abs(frames.astype(int)-theirs[wanted]).mean() < 1


@pytest.mark.parametrize("name", GRID)
def test_decoding_a_few_frames_gives_the_same(grid, name, monkeypatch):
    "As decoding everything, wherever the frames lie; and most files need no decoding of everything"
    monkeypatch.setattr(videos, "_WORTH", 1)
    path, jumped = grid(name), []
    few = videos._few_frames
    monkeypatch.setattr(videos, "_few_frames", lambda *a: jumped.append(few(*a)) or jumped[-1])
    everything, times = decode_frames(path)
    assert times == frame_times(path)
    for wanted in ([0, 30], [3, 41], [20, 21, 22], [9, 39], [1, 30, 47], [24], [31, 32]):
        frames = choose_frames(path, lambda starts, end: wanted)
        np.testing.assert_array_equal(frames, [everything[i] for i in wanted])
    in_runs = sum(frames is not None for frames in jumped)
    assert in_runs >= (0 if name in DECODED_AS_A_WHOLE else 1 if name in IN_PART else 5)
    assert name not in DECODED_AS_A_WHOLE or in_runs == 0


def test_the_grid_is_large_enough():
    assert len(GRID) > 40 and len({name.split(".")[1] for name in GRID}) > 15


def test_a_break_in_the_pictures(tmp_path):
    "mp4 files have gaps in the order of decoding where other files have the lengths of frames"
    ticks = [*range(12), *range(41, 50)]
    path = write(tmp_path/"break.mp4", len(ticks), ticks, between=3, options=X264, rate=25)
    starts, end = frame_times(path)
    scale = starts[1] - starts[0]
    assert [(t - starts[0])/scale for t in (*starts, end)] == [*ticks, 50]
    assert decode_frames(path, ())[1] == (starts, end)
    shown = numbers(read_video(path, by="time"))
    np.testing.assert_allclose(shown, [0, 6, *[11]*5, 14], atol=.4)


@pytest.mark.parametrize("spans,end", [
    ([(0, 5), (5, 5), (10, 5)], 15), ([(0, 5), (5, 5), (10, 20), (30, 5)], 35),
    ([(0, 1), (1, 1), (2, 9)], 11), ([(0, 33), (33, 33), (67, 33)], 100),
    ([(0, 5), (5, 5), (40, 5), (10, 30), (45, 5)], 50),
    ([(0, 5), (5, 5), (40, 5), (10, 5), (45, 30)], 50), ([(0, 0), (7, None)], 14), ([], 0)])
def test_the_end_of_a_film(spans, end):
    assert videos._starts_and_end(spans) == (sorted(start for start, _ in spans), end)


def test_an_edit_list(tmp_path, monkeypatch):
    "A cut without encoding anew: the packets from the key frame on are there, but not to be seen"
    monkeypatch.setattr(videos, "_WORTH", 1)
    path = write(tmp_path/"cut.mp4", options=X264, between=3, ticks=[i-20 for i in range(COUNT)])
    everything, times = decode_frames(path)
    assert len(everything) == len(opencv(path)) == 28 and times == frame_times(path)
    np.testing.assert_allclose(numbers(read_video(path)), 20+frame_indices(28), atol=.6)
    frames = choose_frames(path, lambda starts, end: [2, 19])
    np.testing.assert_array_equal(frames, [everything[2], everything[19]])


def test_damage_between_the_frames_wanted(tmp_path, monkeypatch):
    "A short clip is decoded as a whole, so damage anywhere is an error"
    path = write(tmp_path/"a.mp4", options=X264, between=0)
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(container.streams.video[0]) if p.size][28]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place:place+size] = bytes(size)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be decoded as video"): read_video(path)
    monkeypatch.setattr(videos, "_WORTH", 1)
    np.testing.assert_allclose(numbers(read_video(path, 2)), [0, 24], atol=.6)
    def near(starts, end): return [0, 30]
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be decoded as video"):
        choose_frames(path, near)


@pytest.mark.parametrize("fault", [
    "other times", "twice", "no time", "no key", "damaged", "hidden"])
def test_doubtful_packets_mean_decoding_everything(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(videos, "_WORTH", 1)
    path = write(tmp_path/"a.mp4", options=X264)
    packets = videos._list_packets(path)
    assert videos._few_frames(path, packets, [0, 24]).keys() >= {0, 24}
    changes = {"other times": dict(shown_at=packets[3].shown_at+1), "no time": dict(shown_at=None),
               "twice": dict(shown_at=packets[4].shown_at), "damaged": dict(is_plain=False),
               "hidden": dict(is_shown=False)}
    if fault == "no key": packets[0] = packets[0]._replace(is_key=False)
    else: packets[3] = packets[3]._replace(**changes[fault])
    assert videos._few_frames(path, packets, [0, 24]) is None


def test_a_file_in_which_no_jump_is_possible(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "_WORTH", 1)
    def refuse(*a): raise av.error.PermissionError(1, "Operation not permitted")
    monkeypatch.setattr(videos, "_jump", refuse)
    path = write(tmp_path/"a.mp4", options=X264)
    np.testing.assert_allclose(numbers(read_video(path)), frame_indices(COUNT), atol=.6)


def with_matrix(path, *numbers):
    "Write a display matrix into an mp4 file: four whole numbers a, b, c, d"
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd")+4+40
    a, b, c, d = (round(65536*n) for n in numbers)
    data[place:place+36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


TURNS = {"none": (1, 0, 0, 1), "90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0)}
MIRRORS = {"left and right": ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
           "up and down": ((1, 0, 0, -1), lambda f: f[:, ::-1]),
           "along the diagonal": ((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)),
           "along the other one": ((0, -1, -1, 0), lambda f: f[:, ::-1, ::-1].swapaxes(1, 2))}


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_video_is_read_as_opencv_reads_it(tmp_path, turn):
    path = with_matrix(write(tmp_path/"phone.mp4", options=X264), *TURNS[turn])
    np.testing.assert_array_equal(read_video(path), opencv(path)[frame_indices(COUNT)])
    lying = read_video(with_matrix(path, *TURNS["none"]))
    quarter = [*TURNS].index(turn)
    np.testing.assert_array_equal(read_video(with_matrix(path, *TURNS[turn])),
                                  np.rot90(lying, -quarter, (1, 2)))


@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_mirrored_video(tmp_path, mirror):
    path, (matrix, expected) = write(tmp_path/"selfie.mp4", options=X264), MIRRORS[mirror]
    stored = read_video(path)
    np.testing.assert_array_equal(read_video(with_matrix(path, *matrix)), expected(stored))


def test_a_slanted_video_is_not_turned(tmp_path):
    path = write(tmp_path/"slant.mp4", options=X264)
    stored = read_video(path)
    with pytest.warns(UserWarning, match=r"slant\.mp4: asks for less than a quarter turn"):
        np.testing.assert_array_equal(read_video(with_matrix(path, .8, .6, -.6, .8)), stored)
    with warnings.catch_warnings():   # by less than a degree: taken for none
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_video(with_matrix(path, 1, .01, -.01, 1)), stored)


def box(name, *content):
    "A box of an mp4 file"
    data = b"".join(content)
    return struct.pack(">I", len(data)+8)+name+data


def picture_bytes(suffix):
    "A red picture"
    return cv2.imencode(suffix, np.full((40, 40, 3), (0, 0, 255), np.uint8))[1].tobytes()


def with_cover(path):
    "The cover of an mp4 file, where tagging programs put it: in front of all streams"
    data = path.read_bytes()
    place = data.index(b"moov")-4
    size = struct.unpack(">I", data[place:place+4])[0]
    handler = box(b"hdlr", bytes(8), b"mdir", b"appl", bytes(9))
    image = box(b"data", struct.pack(">II", 13, 0), picture_bytes(".jpg"))
    meta = box(b"meta", bytes(4), handler, box(b"ilst", box(b"covr", image)))
    moov = box(b"moov", box(b"udta", meta), data[place+8:place+size])
    path.write_bytes(data[:place]+moov+data[place+size:])
    return path


def add_sound(container, codec="aac", rate=16000):
    "A sound track of an open file"
    stream = container.add_stream(codec, rate=rate)
    stream.layout, stream.codec_context.bit_rate = "mono", 96000
    return stream


def encode_tone(container, stream):
    "Three seconds of 300 Hz"
    wave = .5*np.sin(2*np.pi*300*np.arange(3*stream.rate)/stream.rate)
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = stream.rate, 0, Fraction(1, stream.rate)
    resampler = av.AudioResampler(format=stream.format, layout="mono", rate=stream.rate)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode())


def test_a_cover_in_front_of_the_film(tmp_path):
    path = write(tmp_path/"tagged.mp4", options=X264)
    plain = read_video(path)
    with_cover(path)
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    np.testing.assert_array_equal(read_video(path), plain)
    assert media_streams(path) == (True, False)


def test_a_cover_is_no_film(tmp_path):
    "A song with a cover is a sound file, whatever its name says"
    with av.open(str(tmp_path/"song.mp4"), "w") as container:
        encode_tone(container, add_sound(container))
    path = with_cover(tmp_path/"song.mp4")
    with av.open(str(path)) as container: assert container.streams.video
    assert media_streams(path) == (False, True)
    with pytest.raises(ValueError, match=r"song\.mp4: has no video stream"): read_video(path)
    row = as_row(path)
    assert (row["video"], row["audio"]) == ("", str(path))


def test_a_cover_that_does_not_say_so(tmp_path):
    with av.open(str(tmp_path/"a.mkv"), "w") as container:
        cover = add_film(container, "mjpeg", "yuvj420p", size=(32, 32))
        film = add_film(container, options=X264)
        encode(container, cover, np.full((1, 32, 32, 3), 255, np.uint8))
        encode(container, film, drawn())
    np.testing.assert_allclose(numbers(read_video(tmp_path/"a.mkv")), frame_indices(COUNT), atol=.6)


def test_of_several_films_the_default_one(tmp_path):
    with av.open(str(tmp_path/"two.mkv"), "w") as container:
        films = [add_film(container, options=X264, size=size) for size in ((32, 32), (64, 48))]
        films[0].disposition, films[1].disposition = Disposition(0), Disposition.default
        encode(container, films[0], np.full((9, 32, 32, 3), 255, np.uint8))
        encode(container, films[1], drawn())
    assert read_video(tmp_path/"two.mkv").shape == (8, 48, 64, 3)


def test_a_stream_that_never_comes(tmp_path):
    with av.open(str(tmp_path/"a.mkv"), "w") as container:
        add_film(container, options=X264)
        encode_tone(container, add_sound(container))
    assert media_streams(tmp_path/"a.mkv") == (False, True)
    with pytest.raises(ValueError, match=r"a\.mkv: has no video frames"):
        read_video(tmp_path/"a.mkv")


def joined(path, *parts):
    "Two broadcasts, one after the other"
    for i, part in enumerate(parts): write(path.with_name(f"{i}.ts"), **part)
    path.write_bytes(b"".join(path.with_name(f"{i}.ts").read_bytes() for i in range(len(parts))))
    return path


def resized(path):
    "A live recording in webm whose frames become smaller"
    with av.open(str(path), "w") as container:
        film = add_film(container, "libvpx", options=VP8)
        encode(container, film, drawn())
        small = av.CodecContext.create("libvpx", "w")
        small.width, small.height, small.pix_fmt = 32, 24, "yuv420p"
        small.time_base, small.options = Fraction(1, 10), VP8
        frames = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in drawn(size=(32, 24))]
        for i, frame in enumerate(frames): frame.pts = i
        for packet in [p for frame in [*frames, None] for p in small.encode(frame)]:
            packet.pts += COUNT
            packet.dts += COUNT
            packet.stream, packet.time_base = film, Fraction(1, 10)
            container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["call.ts", "call.webm"])
def test_the_size_changes(tmp_path, monkeypatch, name):
    parts = dict(options=X264), dict(options=X264, size=(32, 24))
    path = joined(tmp_path/name, *parts) if name == "call.ts" else resized(tmp_path/name)
    message = rf"{name}: the size of its frames changes; all are brought to 64 x 48"
    with pytest.warns(UserWarning, match=message): frames = read_video(path)
    assert frames.shape == (8, 48, 64, 3)
    np.testing.assert_allclose(numbers(frames), frame_indices(2*COUNT) % COUNT, atol=1)
    with pytest.warns(UserWarning, match=message): everything, _ = decode_frames(path)
    monkeypatch.setattr(videos, "_WORTH", 1)
    with pytest.warns(UserWarning, match=message): few = read_video(path)
    np.testing.assert_array_equal(few, frames)
    np.testing.assert_array_equal(frames, [everything[i] for i in frame_indices(2*COUNT)])


def test_the_kind_of_pixels_changes(tmp_path):
    path = joined(tmp_path/"a.ts", dict(options=X264), dict(options=X264, pix="yuv444p"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = numbers(read_video(path))
    np.testing.assert_allclose(found, frame_indices(2*COUNT) % COUNT, atol=1)


@pytest.mark.parametrize("gop,first", [(16, 5), (200, 10)])
def test_a_recording_that_begins_between_key_frames(tmp_path, gop, first):
    "What cannot be decoded is passed over, as OpenCV does"
    count = gop+8
    whole = write(tmp_path/"whole.ts", count=count, options=X264, between=0, gop=gop)
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
    assert not any(p.is_keyframe for p in packets[1:gop]) and packets[gop].is_keyframe
    (tmp_path/"cut.ts").write_bytes(whole.read_bytes()[packets[first].pos//188*188:])
    frames, expected = read_video(tmp_path/"cut.ts"), drawn(count)[gop+np.arange(8)]
    assert np.abs(frames.astype(int)-expected).mean() < 4


def test_damage_at_the_beginning_is_an_error(tmp_path):
    path = write(tmp_path/"a.mp4", options=X264, between=0)
    with av.open(str(path)) as container:
        packet = next(container.demux(container.streams.video[0]))
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place:place+size] = bytes(size)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be decoded as video"): read_video(path)


def test_pixels_that_are_not_square_are_kept(tmp_path):
    with av.open(str(tmp_path/"dv.mp4"), "w") as container:
        stream = add_film(container, options=X264)
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        encode(container, stream, drawn())
    with av.open(str(tmp_path/"dv.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    assert read_video(tmp_path/"dv.mp4").shape == (8, 48, 64, 3)


STILL = [".jpg", ".png", ".bmp", ".webp"]


@pytest.mark.parametrize("suffix", STILL)
@pytest.mark.parametrize("name", ["still.mp4", "still{}"])
def test_a_still_picture_is_no_film(tmp_path, suffix, name):
    path = tmp_path/name.format(suffix)
    path.write_bytes(picture_bytes(suffix))
    for read in (read_video, media_streams):
        with pytest.raises(ValueError, match=r"still\.\w+: cannot be .*\(it is a \w+ picture\)"):
            read(path)


def test_words_are_no_film(tmp_path):
    "A subtitle file opens as one, but there is nothing to see or to hear"
    (tmp_path/"a.mp4").write_text("1\n00:00:00,000 --> 00:00:02,000\nWell, hello!\n\n"*3)
    for read in (read_video, media_streams):
        with pytest.raises(ValueError, match=r"a\.mp4: .*it is neither a video nor a sound file"):
            read(tmp_path/"a.mp4")


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ts"])
@pytest.mark.parametrize("text", [
    "ffconcat version 1.0\nfile '{}'\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n"])
def test_a_playlist_opens_no_other_file(tmp_path, name, text):
    other = write(tmp_path/"other.ts", options=X264)
    (tmp_path/name).write_text(text.format(other.name))
    for read in (read_video, media_streams, frame_times):
        with pytest.raises(ValueError, match=r"list\.\w+: cannot be .*it is a playlist"):
            read(tmp_path/name)


def test_a_name_is_no_protocol(tmp_path, monkeypatch):
    "A file may be called like an instruction to FFmpeg; other files are not opened"
    monkeypatch.chdir(tmp_path)
    write(tmp_path/"a.ts", options=X264)
    with pytest.raises(FileNotFoundError): read_video("concat:a.ts|a.ts")
    with pytest.raises(FileNotFoundError): read_video("http://127.0.0.1:9/a.mp4")
    (tmp_path/"concat:a.ts").write_bytes((tmp_path/"a.ts").read_bytes())
    assert read_video("concat:a.ts").shape == (8, 48, 64, 3)


def test_names_in_another_encoding(tmp_path):
    "Titles in GBK or Latin-1 do not matter to the frames"
    with av.open(str(tmp_path/"a.avi"), "w") as container:
        container.metadata["title"] = "TITLE123"
        encode(container, add_film(container, "mpeg4", options=RATE), drawn())
    data = (tmp_path/"a.avi").read_bytes()
    (tmp_path/"a.avi").write_bytes(data.replace(b"TITLE123", b"\xc4\xe3\xba\xc3\xff123"))
    assert b"TITLE123" in data and media_streams(tmp_path/"a.avi") == (True, False)
    np.testing.assert_allclose(numbers(read_video(tmp_path/"a.avi")), frame_indices(COUNT), atol=.6)


def wav(riff=None, data=None, keep=None, order="<", seconds=1):
    "The bytes of a wav file whose two lengths are changed, perhaps cut"
    buffer = io.BytesIO()
    sf.write(buffer, np.zeros(int(16000*seconds)), 16000, format="WAV", subtype="PCM_16")
    held = bytearray(buffer.getvalue())
    if riff is not None: held[4:8] = struct.pack("<I", riff)
    if data is not None: held[40:44] = struct.pack("<I", data)
    return bytes(held[:keep])


UNKNOWN = [0, 0x7ffff000, 0x7ffff024, 0x7fffffff, 0x80000000, 0x80000024, 0xfffff000, 0xffffffdb,
           0xffffffff]


@pytest.mark.parametrize("length", UNKNOWN)
def test_lengths_that_mean_unknown(tmp_path, length):
    path = tmp_path/"pipe.wav"
    for lengths in ((length, None), (None, length), (length, length)):
        path.write_bytes(wav(*lengths))
        assert check_file(path) == path
    path.write_bytes(wav(length, None, keep=9000))   # the samples' own length is right, and cut
    with pytest.raises(ValueError, match=r"pipe\.wav: is cut short, 23,044 of its 32,044 bytes"):
        check_file(path)
    path.write_bytes(wav(None, length, keep=9000))
    with pytest.raises(ValueError, match=r"pipe\.wav: is cut short, 23,044 of its 32,044 bytes"):
        check_file(path)


@pytest.mark.parametrize("length", [2**31-10**6, 2**31+10**6, 2**32-10**6, 32000+36+4])
def test_lengths_that_are_lengths(tmp_path, length):
    (tmp_path/"a.wav").write_bytes(wav(length))
    with pytest.raises(ValueError, match=r"a\.wav: is cut short"): check_file(tmp_path/"a.wav")


@pytest.mark.parametrize("form,suffix", [("RF64", "wav"), ("AIFF", "aiff"), ("WAV", "wav")])
def test_other_heads_of_sound_files(tmp_path, form, suffix):
    path = tmp_path/f"a.{suffix}"
    sf.write(path, np.zeros(16000), 16000, format=form, subtype="PCM_16")
    data = path.read_bytes()
    assert check_file(path) == path
    path.write_bytes(data+b"a tag at the end")
    assert check_file(path) == path
    path.write_bytes(data[:20000])
    with pytest.raises(ValueError, match=r"is cut short"): check_file(path)


def test_an_rf64_file_of_unknown_length(tmp_path):
    sf.write(tmp_path/"a.wav", np.zeros(16000), 16000, format="RF64", subtype="PCM_16")
    data = bytearray((tmp_path/"a.wav").read_bytes())
    place = data.index(b"ds64")+8
    for length in (0, 2**64-1):
        data[place:place+8] = struct.pack("<Q", length)
        (tmp_path/"a.wav").write_bytes(data)
        assert check_file(tmp_path/"a.wav")


def test_an_avi_file_in_several_parts(tmp_path):
    data = write(tmp_path/"a.avi", codec="mpeg4", options=RATE).read_bytes()
    part = b"RIFF"+struct.pack("<I", 1004)+b"AVIX"+bytes(1000)
    (tmp_path/"a.avi").write_bytes(data+part)
    assert check_file(tmp_path/"a.avi")
    (tmp_path/"a.avi").write_bytes(data+part[:-400])
    with pytest.raises(ValueError, match=r"a\.avi: is cut short, 400 of its"):
        check_file(tmp_path/"a.avi")
    for length in (0, 0xffffffff):
        (tmp_path/"a.avi").write_bytes(data[:4]+struct.pack("<I", length)+data[8:])
        assert read_video(tmp_path/"a.avi").shape == (8, 48, 64, 3)


def test_a_box_that_reaches_to_the_end(tmp_path):
    data = write(tmp_path/"a.mp4", options=X264, box={"movflags": "+faststart"}).read_bytes()
    place = data.index(b"mdat")-4
    (tmp_path/"a.mp4").write_bytes(data[:place]+bytes(4)+data[place+4:])
    np.testing.assert_allclose(numbers(read_video(tmp_path/"a.mp4")), frame_indices(COUNT), atol=.6)


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_matroska_lengths(tmp_path, suffix):
    film = dict(options=X264) if suffix == ".mkv" else dict(codec="libvpx", options=VP8)
    data = write(tmp_path/f"a{suffix}", **film).read_bytes()
    (tmp_path/f"a{suffix}").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=rf"a\{suffix}: is cut short, 100 of its"):
        read_video(tmp_path/f"a{suffix}")
    live = write(tmp_path/f"live{suffix}", **film, box={"live": "1"})
    assert b"\x01\xff\xff\xff\xff\xff\xff\xff" in live.read_bytes()[:200]
    assert len(read_video(live)) == 8


SOUND = {"aac.mp4": ("aac", 16000), "opus.mkv": ("libopus", 48000), "flac.mkv": ("flac", 44100),
         "pcm.mov": ("pcm_s16le", 22050), "opus.webm": ("libopus", 48000),
         "pcm.avi": ("pcm_s16le", 16000), "mp3.avi": ("libmp3lame", 44100),
         "mp3.flv": ("libmp3lame", 22050), "aac.ts": ("aac", 44100), "mp2.mpg": ("mp2", 44100),
         "wma.wmv": ("wmav2", 44100), "aac.3gp": ("aac", 16000), "flac.ogv": ("flac", 16000),
         "aac.m4v": ("aac", 48000), "ac3.m2ts": ("ac3", 48000)}
FILMS = {".webm": dict(codec="libvpx", options=VP8), ".ogv": dict(codec="libvpx", options=VP8),
         ".mpg": dict(codec="mpeg1video", rate=25, options=RATE), ".wmv": dict(codec="wmv2"),
         ".avi": dict(codec="mpeg4"), ".3gp": dict(codec="mpeg4")}


@pytest.mark.parametrize("name", SOUND)
def test_a_film_with_sound(tmp_path, name):
    "What `as_row` promises can be read, and the tone is the one that was written"
    path = tmp_path/name
    codec, rate = SOUND[name]
    with av.open(str(path), "w", format="mp4" if name.endswith(".m4v") else None) as container:
        film = add_film(container, **FILMS.get(path.suffix, dict(options=X264)))
        sound = add_sound(container, codec, rate)
        encode(container, film, drawn(30))
        encode_tone(container, sound)
    assert media_streams(path) == (True, True) and path.suffix in VIDEO_FILES
    clip = read_clip(as_row(path))
    assert clip.present == (True, True)
    wave = read_waveform(path)
    middle = wave[8000:40000]
    assert abs(len(wave)-48000) < 4000
    assert abs(np.abs(np.fft.rfft(middle)).argmax()*16000/len(middle)-300) < 2
    assert abs(np.quantile(np.abs(middle), .95)-.5) < .03


@pytest.mark.parametrize("name,codec,rate", [
    ("a.wav", "pcm_s16le", 16000), ("a.mp3", "libmp3lame", 44100), ("a.flac", "flac", 16000),
    ("a.m4a", "aac", 44100), ("a.aac", "aac", 44100), ("a.opus", "libopus", 48000),
    ("a.ogg", "flac", 16000), ("a.wma", "wmav2", 44100), ("a.mka", "aac", 16000),
    ("a.aiff", "pcm_s16be", 16000), ("a.au", "pcm_s16be", 16000), ("a.caf", "pcm_s16le", 16000)])
def test_a_sound_file_is_no_film(tmp_path, name, codec, rate):
    with av.open(str(tmp_path/name), "w") as container:
        encode_tone(container, add_sound(container, codec, rate))
    assert media_streams(tmp_path/name) == (False, True)
    with pytest.raises(ValueError, match=r"has no video stream"): read_video(tmp_path/name)


def test_a_folder_of_all_kinds(tmp_path):
    for i, name in enumerate(["b_frames.mp4", "h264.flv", "h264.ts", "wmv2.wmv", "colours.gif"]):
        write(tmp_path/f"{i}.{name}", **GRID[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(load_folder(tmp_path)) == 5


def test_a_codec_error_names_the_file(tmp_path):
    for suffix in (".mp4", ".mkv", ".flv", ".wmv", ".avi"):
        (tmp_path/f"x{suffix}").write_bytes(np.random.default_rng(0).bytes(5000))
        for read in (read_video, media_streams, frame_times, decode_frames):
            with pytest.raises(ValueError, match=rf"x\{suffix}: cannot be "):
                read(tmp_path/f"x{suffix}")


def test_errors_inside_the_block_name_the_file(tmp_path):
    path = write(tmp_path/"a.mp4", options=X264)
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be opened \(Invalid data"):
        with open_media(path): raise av.error.InvalidDataError(1094995529, "Invalid data")

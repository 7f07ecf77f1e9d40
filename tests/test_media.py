"Media: the sampling rules for any length, formats of sound, and files that cannot be read"
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_r1.media import _write_video, frame_indices, piece_starts, read_audio, read_video, read_waveform


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
    s = piece_starts(duration, n)
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
    for piece, start in zip(pieces, piece_starts(samples/16000)):
        np.testing.assert_array_equal(piece, padded[int(start*16000+1e-6):][:32000])


def test_unusual_names(tmp_path, folder):
    odd = tmp_path/"a clip, 片段 #1.mp4"
    odd.write_bytes((folder/"a.mp4").read_bytes())
    assert read_video(odd).shape[0] == 8


@pytest.mark.parametrize("keep", [0, 10, 300, 1200])
def test_undecodable_video(tmp_path, folder, keep):
    (tmp_path/"broken.mp4").write_bytes((folder/"a.mp4").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"broken\.mp4: cannot be decoded as video"): read_video(tmp_path/"broken.mp4")


def test_video_without_a_video_stream(tmp_path, folder):
    (tmp_path/"sound.mp4").write_bytes((folder/"a.wav").read_bytes())
    with pytest.raises(ValueError, match=r"sound\.mp4: has no video stream"): read_video(tmp_path/"sound.mp4")


def test_unreadable_sound(tmp_path):
    sf.write(tmp_path/"empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"empty\.wav: holds no samples"): read_audio(tmp_path/"empty.wav")
    (tmp_path/"text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav: cannot be decoded as audio"): read_waveform(tmp_path/"text.wav")


@pytest.mark.parametrize("read", [read_video, read_audio, read_waveform])
def test_absent_file(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="nothing.x: no such file"): read(tmp_path/"nothing.x")

"Features: computed once, kept complete whatever happens, found by content, never all in memory"
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import numpy as np
from conftest import ROOT

from affectgpt_r1 import features
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache, MediaHashes, read_features, write_features
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.toy import make_toy_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_toy_corpus(tmp_path_factory.mktemp("lab") / "corpus", preset="smoke", seed=1)


@pytest.fixture(scope="module")
def human(corpus): return load_mer2025(corpus, "human")


@pytest.fixture(scope="module")
def toy(): return make_toy_model(["some words"])


def held(folder): return {p.name: p.read_bytes() for p in Path(folder).glob("*.safetensors")}


def test_features_are_computed_once_and_are_the_towers_own(toy, human, tmp_path):
    model, processor = toy
    rows = human.select(range(5))
    cache = FeatureCache(tmp_path, model, processor)
    assert (cache.compute(rows, workers=0), cache.compute(rows, workers=0)) == (5, 0)
    stored, raw = cache(rows[0]), {k: t[None] for k, t in processor.read_clip(rows[0]).items()}
    V, A = model.model.encode_media(raw["pixel_values_videos"], raw["input_values"])
    assert torch.allclose(stored["video_features"], V[0], atol=1e-5)
    assert torch.allclose(stored["audio_features"], A[0], atol=1e-5)
    assert stored["media_mask"].tolist() == [True, True]


def test_an_entry_is_found_by_content(toy, human, tmp_path):
    cache, row = FeatureCache(tmp_path / "f", *toy), human[0]
    copy = dict(row, name="copy", video=str(tmp_path / "copy.mp4"))
    (tmp_path / "copy.mp4").write_bytes(Path(row["video"]).read_bytes())
    before = cache.path(row)
    assert cache.path(copy) == before   # the same bytes, another name
    (tmp_path / "copy.mp4").write_bytes(Path(human[1]["video"]).read_bytes())
    # other pictures, and those of clip 1 with the sound of clip 0
    assert cache.path(copy) not in (before, cache.path(human[1]))


def test_an_entry_depends_on_weights_and_preprocessing(human, tmp_path):
    model, processor = make_toy_model(["some words"])
    paths = [FeatureCache(tmp_path, model, processor).path(human[0])]
    def again(): paths.append(FeatureCache(tmp_path, model, processor).path(human[0]))
    with torch.no_grad(): model.model.audio_tower.encoder.layers[0].final_layer_norm.bias[3] += 1e-3
    again()
    processor.feature_extractor.do_normalize = False; again()
    processor.image_processor.image_mean = [.5, .5, .5]; again()
    processor.frames_by = "time"; again()
    processor.visual = "face"; again()
    assert len(set(paths)) == len(paths)
    with torch.no_grad(): model.lm_head.weight += 1                    # no part of the encoders
    again()
    assert paths[-1] == paths[-2]


def test_training_mode_changes_no_feature(human, tmp_path):
    model, processor = make_toy_model(["some words"])
    FeatureCache(tmp_path / "eval", model, processor).compute(human.select(range(3)), workers=0)
    model.train()
    model.model.audio_tower.config.hidden_dropout = .5
    cache = FeatureCache(tmp_path / "train", model, processor)
    fresh = make_toy_model(["some words"])[0]
    cache.fingerprint = FeatureCache(tmp_path / "eval", fresh, processor).fingerprint
    cache.compute(human.select(range(3)), workers=0)
    assert held(tmp_path / "eval") == held(tmp_path / "train") and len(held(tmp_path / "eval")) == 3


def test_files_are_hashed_once_for_all_runs(tmp_path, monkeypatch):
    file, known = tmp_path / "片 a.mp4", tmp_path / "media.jsonl"
    file.write_bytes(b"one")
    first = MediaHashes(known)(file)
    with known.open("ab") as f: f.write(b'["/torn when kil')
    opened, real = [], features.hashlib.file_digest
    def digest(f, kind):
        opened.append(f.name)
        return real(f, kind)
    monkeypatch.setattr(features.hashlib, "file_digest", digest)
    assert MediaHashes(known)(file) == first and not opened
    file.write_bytes(b"two"); os.utime(file, ns=(1, 1))
    again = MediaHashes(known)
    assert again(file) != first and len(opened) == 1
    assert again(file) == again(file) and len(opened) == 1


def test_features_go_on_where_they_were_stopped(toy, human, tmp_path, monkeypatch):
    rows = human.select(range(7))
    FeatureCache(tmp_path / "whole", *toy).compute(rows, batch_size=3, workers=0)
    cache, write = FeatureCache(tmp_path / "cut", *toy), features.write_features
    def dies(path, tensors):
        if len(held(tmp_path / "cut")) == 4: raise KeyboardInterrupt   # in the middle of a batch
        write(path, tensors)
    monkeypatch.setattr(features, "write_features", dies)
    with pytest.raises(KeyboardInterrupt): cache.compute(rows, batch_size=3, workers=0)
    monkeypatch.setattr(features, "write_features", write)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.safetensors")}
    again, sizes = FeatureCache(tmp_path / "cut", *toy), []
    encode = again.encode
    def counted(media):
        sizes.append(len(media["media_mask"]))
        return encode(media)
    monkeypatch.setattr(again, "encode", counted)
    assert again.compute(rows, batch_size=3, workers=0) == 3
    assert sizes == [3, 1]   # all of the interrupted batch: in other batches the last digits differ
    assert held(tmp_path / "cut") == held(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())


KILLED = """
import sys, time
from affectgpt_r1 import features
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.parts import make_toy_model
real = features.os.replace
def slow(*a): time.sleep(.05); real(*a)
features.os.replace = slow
rows = load_mer2025(sys.argv[1], "human").select(range(24))
cache = features.FeatureCache(sys.argv[2], *make_toy_model(["some words"]))
cache.compute(rows, batch_size=4, workers=0)
"""


def test_killed_while_caching(toy, corpus, human, tmp_path):
    "After SIGKILL the next run continues, and the result is that of a run that was not killed"
    rows, cut = human.select(range(24)), tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, str(corpus), str(cut)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    until = time.time() + 120
    while len(held(cut)) < 6 and run.poll() is None and time.time() < until: time.sleep(.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = len(held(cut))
    assert 6 <= done < 24
    assert FeatureCache(cut, *toy).compute(rows, batch_size=4, workers=0) == 24 - done
    FeatureCache(tmp_path / "whole", *toy).compute(rows, batch_size=4, workers=0)
    assert held(cut) == held(tmp_path / "whole")


def flipped(data, i): return data[:i] + bytes([data[i] ^ 1]) + data[i+1:]


@pytest.mark.parametrize("damage", [
    lambda d: flipped(d, len(d) - 1), lambda d: flipped(d, len(d) // 2), lambda d: flipped(d, 3),
    lambda d: flipped(d, 20), lambda d: flipped(d, 60), lambda d: d[:-7], lambda d: d[:9],
    lambda d: b"", lambda d: bytes(len(d))])
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_damaged_entry_is_found_and_computed_again(toy, human, tmp_path, damage):
    rows = human.select(range(4))
    cache = FeatureCache(tmp_path, *toy)
    cache.compute(rows, workers=0)
    sound, path = held(tmp_path), cache.path(rows[2])
    path.write_bytes(damage(sound[path.name]))
    with pytest.warns(UserWarning, match=f"{path.name}: is damaged"):
        assert read_features(path) is None
    again = cache(rows[2])["video_features"]
    stored = features.safe_open(path, framework="pt").get_tensor("video_features")
    assert torch.allclose(again, stored)
    path.write_bytes(damage(sound[path.name]))
    assert cache.compute(rows, workers=0) == 1 and held(tmp_path) == sound


def test_disk_full(toy, human, tmp_path, monkeypatch):
    rows = human.select(range(6))
    cache, real, written = FeatureCache(tmp_path / "f", *toy), Path.write_bytes, []
    def full(path, data):
        written.append(path)
        if len(written) < 4: return real(path, data)
        real(path, data[:len(data)//2])
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    message = r"f: cannot keep features there \(No space left on device\).*make room and run again"
    with pytest.raises(OSError, match=message) as e: cache.compute(rows, batch_size=2, workers=0)
    assert e.value.errno == errno.ENOSPC
    monkeypatch.setattr(Path, "write_bytes", real)
    assert len(held(tmp_path / "f")) == 3 and not list((tmp_path / "f").glob("*.part"))
    assert all(read_features(p) for p in (tmp_path / "f").glob("*.safetensors"))
    assert cache.compute(rows, batch_size=2, workers=0) == 3


def test_a_file_that_the_system_refuses_to_let_grow(tmp_path):
    "No simulation: the limit of the process on the size of a file cuts the write in the middle"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="cannot keep features there"):
            write_features(tmp_path / "x.safetensors", dict(a=torch.zeros(1000)))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


MEMORY = """
import sys, torch
from pathlib import Path
from affectgpt_r1.features import read_features, write_features
def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
paths = [Path(sys.argv[1], f"{i}.safetensors") for i in range(2000)]
for p in paths:
    write_features(p, dict(video_features=torch.randn(8, 768), audio_features=torch.randn(8, 1024)))
read_features(paths[0])
before = resident()
for p in paths: read_features(p)["video_features"].sum()
mapped = resident() - before
kept = [{k: t.clone() for k, t in read_features(p).items()} for p in paths]
print(mapped, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, as on Linux")
def test_features_are_not_read_into_memory(tmp_path):
    """2,000 clips of the paper's size are 115 MB. They are read in a process of its own, since
    memory that other tests have freed would be used again and not show"""
    command = [sys.executable, "-c", MEMORY, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    mapped, copied = map(float, run.stdout.split())
    assert mapped < 12 and copied > 60   # MB; `copied` is what it would be otherwise


def test_missing_modalities_are_cached_as_such(toy, human, tmp_path):
    cache = FeatureCache(tmp_path, *toy)
    changes = dict(audio=""), dict(video=None), dict(), dict(audio="", video="")
    rows = [human[0] | change for change in changes]
    assert cache.compute(rows, workers=0) == 4
    whole = cache(rows[2])
    for row, there in zip(rows, [(True, False), (False, True), (True, True), (False, False)]):
        got = cache(row)
        assert tuple(got["media_mask"].tolist()) == there
        for k, has in zip(("video_features", "audio_features"), there):
            assert torch.allclose(got[k], whole[k] * has, atol=1e-5)


def test_faces_are_read_where_they_are_asked_for(human, tmp_path):
    model, processor = make_toy_model(["some words"])
    pictures = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8)
    np.save(tmp_path / "face.npy", pictures)
    row = dict(human[0], face=str(tmp_path / "face.npy"))
    frames = FeatureCache(tmp_path / "f", model, processor)
    assert frames.path(row) == frames.path(human[0])
    seen = frames(row)
    processor.visual = "face"
    faces = FeatureCache(tmp_path / "f", model, processor)
    assert faces.path(row) != faces.path(human[0])
    assert not torch.allclose(faces(row)["video_features"], seen["video_features"])
    assert torch.allclose(faces(row)["audio_features"], seen["audio_features"], atol=1e-5)
    before = faces.path(row)
    np.save(tmp_path / "face.npy", np.zeros((9, 16, 16, 3), np.uint8))
    assert faces.path(row) != before


def test_the_prompt_carries_the_faces(human, tmp_path):
    from affectgpt_r1.processing import clips_of, make_prompt
    assert clips_of([make_prompt(dict(human[0], face="x.npy"))])[0]["face"] == "x.npy"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_clip_that_cannot_be_read_stops_with_its_name(toy, human, tmp_path, workers):
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    rows = [dict(human[0]), dict(human[1], name="the_bad_one", video=str(tmp_path / "bad.mp4"))]
    with pytest.raises(ValueError, match="the_bad_one(.|\n)*bad.mp4"):
        FeatureCache(tmp_path / "f", *toy).compute(rows, workers=workers)


def test_workers_change_no_feature(toy, human, tmp_path):
    rows = human.select(range(9))
    for workers in (0, 2):
        FeatureCache(tmp_path / str(workers), *toy).compute(rows, batch_size=4, workers=workers)
    assert held(tmp_path / "0") == held(tmp_path / "2")

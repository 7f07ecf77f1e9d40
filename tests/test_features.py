"Features: computed once, kept complete whatever happens, found by content, never all in memory"
import copy
import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import numpy as np
import peft
import transformers
from conftest import ROOT

from affectgpt_r1 import clip_loading, features
from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.evaluate import predict_clips
from affectgpt_r1.features import FeatureCache, MediaHashes, read_features, write_features
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.inference import AffectGPT
from affectgpt_r1.parts import lora_config, make_toy_model
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
    assert [cache.compute(rows, model, processor, workers=0) for _ in range(2)] == [5, 0]
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
    for name in ("eval", "train"):
        if name == "train":
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout): module.p = .5
        cache = FeatureCache(tmp_path / name, model, processor)
        assert cache.compute(human.select(range(3)), model, processor, workers=0) == 3
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


@pytest.mark.parametrize("line", [b"5", b"null", b"[1, 2]", b'["a", 1, 2, 3]', b"{}"])
def test_a_damaged_file_of_hashes_is_named(tmp_path, line):
    known = tmp_path / "media.jsonl"
    known.write_bytes(b'["/a.mp4", 3, 4, "hash"]\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"media\.jsonl, line 2: is no \[file, size"):
        MediaHashes(known)
    known.write_bytes(b'["/a.mp4", 3, 4, "hash"]\n["\xe9\x80')
    with pytest.raises(ValueError, match=r"media\.jsonl: is not a jsonl file in UTF-8"):
        MediaHashes(known)


def test_features_go_on_where_they_were_stopped(toy, human, tmp_path, monkeypatch):
    rows = human.select(range(7))
    FeatureCache(tmp_path / "whole", *toy).compute(rows, *toy, batch_size=3, workers=0)
    cache, write = FeatureCache(tmp_path / "cut", *toy), features.write_features
    def dies(path, tensors):
        if len(held(tmp_path / "cut")) == 4: raise KeyboardInterrupt   # in the middle of a batch
        write(path, tensors)
    monkeypatch.setattr(features, "write_features", dies)
    with pytest.raises(KeyboardInterrupt): cache.compute(rows, *toy, batch_size=3, workers=0)
    monkeypatch.setattr(features, "write_features", write)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.safetensors")}
    sizes, encode = [], features._encode_clips
    def counted(encoders, media):
        sizes.append(len(media["media_mask"]))
        return encode(encoders, media)
    monkeypatch.setattr(features, "_encode_clips", counted)
    assert FeatureCache(tmp_path / "cut", *toy).compute(rows, *toy, batch_size=3, workers=0) == 3
    assert sizes == [3, 1]   # all of the interrupted batch: in other batches the last digits differ
    assert held(tmp_path / "cut") == held(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())


KILLED = """
import sys, time
from affectgpt_r1 import feature_files, features
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.parts import make_toy_model
real = feature_files.os.replace
def slow(*a): time.sleep(.05); real(*a)
feature_files.os.replace = slow
rows = load_mer2025(sys.argv[1], "human").select(range(24))
toy = make_toy_model(["some words"])
features.FeatureCache(sys.argv[2], *toy).compute(rows, *toy, batch_size=4, workers=0)
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
    assert FeatureCache(cut, *toy).compute(rows, *toy, batch_size=4, workers=0) == 24 - done
    FeatureCache(tmp_path / "whole", *toy).compute(rows, *toy, batch_size=4, workers=0)
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
    cache.compute(rows, *toy, workers=0)
    sound, path = held(tmp_path), cache.path(rows[2])
    path.write_bytes(damage(sound[path.name]))
    with pytest.warns(UserWarning, match=f"{path.name}: is damaged"):
        assert read_features(path) is None
    assert rows[2] not in cache and rows[1] in cache
    assert cache.compute(rows, *toy, workers=0) == 1 and held(tmp_path) == sound


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
    with pytest.raises(OSError, match=message) as e:
        cache.compute(rows, *toy, batch_size=2, workers=0)
    assert e.value.errno == errno.ENOSPC
    monkeypatch.setattr(Path, "write_bytes", real)
    assert len(held(tmp_path / "f")) == 3 and not list((tmp_path / "f").glob("*.part"))
    assert all(read_features(p) for p in (tmp_path / "f").glob("*.safetensors"))
    assert cache.compute(rows, *toy, batch_size=2, workers=0) == 3


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
    assert cache.compute(rows, *toy, workers=0) == 4
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
    frames.compute([row], model, processor, workers=0)
    seen = frames(row)
    processor.visual = "face"
    faces = FeatureCache(tmp_path / "f", model, processor)
    assert faces.path(row) != faces.path(human[0])
    faces.compute([row], model, processor, workers=0)
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
        FeatureCache(tmp_path / "f", *toy).compute(rows, *toy, workers=workers)


def test_workers_change_no_feature(toy, human, tmp_path):
    rows = human.select(range(9))
    for workers in (0, 2):
        cache = FeatureCache(tmp_path / str(workers), *toy)
        cache.compute(rows, *toy, batch_size=4, workers=workers)
    assert held(tmp_path / "0") == held(tmp_path / "2")


def test_a_clip_that_was_not_computed_is_an_error(toy, human, tmp_path, monkeypatch):
    "Training with a cache never runs the encoders, and says which clip it lacks"
    model, processor = copy.deepcopy(toy)
    cache = processor.features = FeatureCache(tmp_path / "f", model, processor)
    cache.compute(human.select([0]), model, processor, workers=0)
    assert human[0] in cache and human[1] not in cache
    message = f"{human[1]['name']}.*{tmp_path / 'f'}.*run `compute`"
    with pytest.raises(KeyError, match=message): cache(human[1])
    nameless = {k: human[1][k] for k in ("video", "audio")}
    with pytest.raises(KeyError, match=human[1]["video"]): cache(nameless)
    monkeypatch.setattr(type(model.model), "encode_media", lambda *a: pytest.fail("encoded"))
    with pytest.raises(KeyError, match="run `compute`"):
        cold_start(model, processor, human.select(range(2)), tmp_path / "out", epochs=1)


def test_compute_says_what_was_there(toy, human, tmp_path, capsys):
    cache = FeatureCache(tmp_path, *toy)
    cache.compute(human.select(range(2)), *toy, workers=0)
    capsys.readouterr()
    assert cache.compute(human.select(range(5)), *toy, workers=0) == 3
    assert capsys.readouterr().out == "features: 5 clips, 2 already there, 3 computed\n"


def test_other_encoders_are_refused(human, tmp_path):
    "Their features would be found as those of the first ones"
    model, processor = make_toy_model(["some words"])
    cache = FeatureCache(tmp_path, model, processor)
    with torch.no_grad(): model.model.vision_tower.visual_projection.weight += 1
    with pytest.raises(ValueError, match="other encoders"):
        cache.compute(human.select(range(2)), model, processor, workers=0)
    assert not held(tmp_path)


@pytest.fixture
def copied(monkeypatch):
    "Bytes of the tensors that are deep-copied from here on"
    sizes = []
    for kind in (torch.Tensor, torch.nn.Parameter):
        def counted(tensor, memo, real=kind.__deepcopy__):
            sizes.append(tensor.nbytes)
            return real(tensor, memo)
        monkeypatch.setattr(kind, "__deepcopy__", counted)
    return sizes


def test_a_processor_is_copied_and_saved_without_a_model(toy, human, tmp_path, copied):
    model, processor = toy[0], copy.copy(toy[1])
    plain = processor.to_dict()
    processor.save_pretrained(tmp_path / "plain")
    processor.features = FeatureCache(tmp_path / "f", model, processor)
    processor.features.compute(human.select([0]), model, processor, workers=0)
    processor.save_pretrained(tmp_path / "cached")
    assert processor.to_dict() == plain and "FeatureCache" not in repr(processor)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "cached" / file.name).read_bytes() == file.read_bytes()
    kept = processor.features(human[0])
    for again in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
        found = again.features(human[0])
        assert found.keys() == kept.keys() and all(torch.equal(found[k], kept[k]) for k in kept)
    assert sum(copied) == 0
    copy.deepcopy(model.lm_head)
    assert sum(copied) == model.lm_head.weight.nbytes   # they are counted


def test_a_checkpoint_copies_no_weights(human, tmp_path, copied):
    model, processor = make_toy_model(["<answer>happy, sad</answer> some words"])
    rows = human.select(range(4))
    cache = processor.features = FeatureCache(tmp_path / "f", model, processor)
    cache.compute(rows, model, processor, workers=0)
    cold_start(model, processor, rows, tmp_path / "out", epochs=2, batch_size=4)
    assert (tmp_path / "out/processor_config.json").exists() and sum(copied) == 0


def python(script, *args, launcher=(), check=True):
    "Run a script in a process of its own"
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    command = [sys.executable, *launcher, script, *map(str, args)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert not check or run.returncode == 0, run.stderr
    return run


RELOADED = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoProcessor
import affectgpt_r1.modeling
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
corpus, model, folder, transformers.configuration_utils.__version__ = sys.argv[1:]
rows = load_mer2025(corpus, "human").select(range(3))
processor = AutoProcessor.from_pretrained(model)
for dtype in (torch.float32, torch.bfloat16):
    reloaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    cache = FeatureCache(folder, reloaded, processor)
    print(sum(row in cache for row in rows))
"""


@pytest.mark.parametrize("version", [transformers.__version__, "99.0.0"])
def test_features_are_found_by_a_model_that_was_saved_and_loaded(
        toy, corpus, human, tmp_path, version):
    "In a fresh process, in 32 and in 16 bits, and with another version of transformers"
    FeatureCache(tmp_path / "f", *toy).compute(human.select(range(3)), *toy, workers=0)
    for part in toy: part.save_pretrained(tmp_path / "m")
    config = tmp_path / "m/config.json"
    config.write_text(config.read_text().replace(transformers.__version__, version))
    assert version in config.read_text()
    (tmp_path / "reloaded.py").write_text(RELOADED)
    run = python(tmp_path / "reloaded.py", corpus, tmp_path / "m", tmp_path / "f", version)
    assert run.stdout.split() == ["3", "3"]


UNGUARDED = """
import sys, torch
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.parts import make_toy_model
print("the script runs", flush=True)
torch.multiprocessing.set_start_method(sys.argv[1])
rows = load_mer2025(sys.argv[2], "human").select(range(6))
model, processor = make_toy_model(["some words"])
processor.features = FeatureCache(sys.argv[3], model, processor)
processor.features.compute(rows, model, processor, workers=1)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_every_start_method_needs_no_guard(corpus, tmp_path, method):
    "A plain script, without `if __name__ == '__main__'`, runs once"
    (tmp_path / "fill.py").write_text(UNGUARDED)
    run = python(tmp_path / "fill.py", method, corpus, tmp_path / "f")
    assert run.stdout == "the script runs\nfeatures: 6 clips, 0 already there, 6 computed\n"


def test_a_worker_that_cannot_start_says_what_to_do(corpus, tmp_path):
    "A class of the script is not found in a fresh process"
    own = "class Mine(type(processor)): pass\nprocessor.__class__ = Mine\nprocessor.features ="
    (tmp_path / "fill.py").write_text(UNGUARDED.replace("processor.features =", own))
    run = python(tmp_path / "fill.py", "spawn", corpus, tmp_path / "f", check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and run.stdout == "the script runs\n"
    assert last.startswith("RuntimeError: a process that decodes") and "workers=0" in last


TOGETHER = """
import os, sys
from pathlib import Path
from affectgpt_r1 import features
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.parts import make_toy_model
real, sizes = features._encode_clips, []
def counted(encoders, media):
    sizes.append(len(media["media_mask"]))
    return real(encoders, media)
features._encode_clips = counted
rows = load_mer2025(sys.argv[1], "human").select(range(11))
toy = make_toy_model(["some words"])
cache = features.FeatureCache(sys.argv[2], *toy)
n = cache.compute(rows, *toy, batch_size=2, workers=0)
assert all(row in cache for row in rows)   # the others are done, too
said = Path(__file__).with_name(f"process-{os.environ['RANK']}")
said.write_text(f"{n} computed, {sum(sizes)} of them here")
"""


def test_several_processes_share_the_clips(toy, corpus, human, tmp_path):
    "Each of two takes every other batch; the files are those of one process"
    (tmp_path / "fill.py").write_text(TOGETHER)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run = python(tmp_path / "fill.py", corpus, tmp_path / "f", launcher=launcher)
    assert run.stdout == "features: 11 clips, 0 already there, 11 computed\n"
    assert sorted(path.read_text() for path in tmp_path.glob("process-*")) == [
        "11 computed, 5 of them here", "11 computed, 6 of them here"]
    rows = human.select(range(11))
    FeatureCache(tmp_path / "one", *toy).compute(rows, *toy, batch_size=2, workers=0)
    assert held(tmp_path / "f") == held(tmp_path / "one")


@pytest.mark.parametrize("cores, local, n", [
    (1, 1, 1), (6, 1, 6), (64, 1, 8), (64, 16, 4), (4, 8, 1)])
def test_workers_by_the_number_of_cores(monkeypatch, cores, local, n):
    monkeypatch.setattr(clip_loading, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert clip_loading.default_workers() == n


@pytest.mark.parametrize("gpu", [True, False])
def test_only_the_encoders_go_to_a_gpu_and_come_back(human, tmp_path, monkeypatch, gpu):
    model, processor = make_toy_model(["some words"])
    cache, real, moves = FeatureCache(tmp_path, model, processor), features._encode_clips, []
    for name in ("vision_tower", "audio_tower"):
        move = lambda device, name=name: moves.append((name, device))
        monkeypatch.setattr(getattr(model.model, name), "to", move)
    monkeypatch.setattr(model, "to", lambda *a: pytest.fail("all of the model"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    def encode(*args):
        moves.append("encoded")
        return real(*args)
    monkeypatch.setattr(features, "_encode_clips", encode)
    cache.compute(human.select(range(2)), model, processor, workers=0)
    there = [("vision_tower", "cuda"), ("audio_tower", "cuda")] * gpu
    assert moves == [*there, "encoded", *((name, "cpu") for name, _ in there)]
    done = len(moves)
    assert cache.compute(human.select(range(2)), model, processor, workers=0) == 0
    assert len(moves) == done   # nothing to compute, nothing moves


def test_adapters_change_no_feature(human, tmp_path):
    "peft wraps the model once more; its encoders stay what they are"
    model, processor = make_toy_model(["some words"])
    cache = FeatureCache(tmp_path, model, processor)
    adapted = peft.get_peft_model(model, lora_config())
    assert cache.compute(human.select(range(2)), adapted, processor, workers=0) == 2
    assert human[0] in FeatureCache(tmp_path, adapted, processor)


def changed_pair(how):
    "A model and its processor, and what is changed between filling and reading"
    model, processor = make_toy_model(["some words"])
    def change():
        if how == "frames": processor.num_frames = 4
        else:
            with torch.no_grad(): model.model.vision_tower.visual_projection.weight += 1
    return model, processor, change


@pytest.mark.parametrize("how, why", [
    ("encoders", "the encoders of this AffectGPTForConditionalGeneration are [0-9a-f]{12}, those "
                 "that made the features are [0-9a-f]{12}"),
    ("frames", "this AffectGPTProcessor prepares in another way: num_frames is 8 there and 4 now")])
@pytest.mark.parametrize("reads", ["cold start", "GRPO", "predict_clips", "ask"])
def test_features_of_other_encoders_are_not_read(human, tmp_path, how, why, reads):
    "They have the right shape, and mean something else"
    model, processor, change = changed_pair(how)
    rows = human.select(range(2))
    processor.features = FeatureCache(tmp_path / "f", model, processor)
    processor.features.compute(rows, model, processor, workers=0)
    read = {"cold start": lambda: cold_start(model, processor, rows, tmp_path / "out", epochs=1),
            "GRPO": lambda: train_grpo(model, processor, rows, None, tmp_path / "out", steps=1),
            "predict_clips": lambda: predict_clips(model, processor, rows, max_new_tokens=2),
            "ask": lambda: AffectGPT(model, processor).predict(rows[0], max_new_tokens=2)}[reads]
    if reads in ("predict_clips", "ask"): read()   # it has been compared once, and was right
    change()
    with pytest.raises(ValueError, match=why) as e: read()
    assert str(tmp_path / "f") in str(e.value) and not (tmp_path / "out").exists()


def test_the_comparison_is_made_once(human, tmp_path, monkeypatch):
    model, processor = make_toy_model(["some words"])
    processor.features = FeatureCache(tmp_path / "f", model, processor)
    calls, real = [], features.encoder_fingerprint
    monkeypatch.setattr(features, "encoder_fingerprint", lambda *a: calls.append(a) or real(*a))
    for _ in range(3): features.check_features(model, processor)
    assert len(calls) == 1
    processor.features = None
    features.check_features(model, processor)

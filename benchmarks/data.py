"""How fast are clips decoded and encoded, and what does a large cache cost in memory?

    # toy clips of 96 pixels, made for the purpose
    python benchmarks/data.py
    # and the same clips, blown up to 480 pixels
    python benchmarks/data.py --size 96 480
    # also: read that many features of the paper's size, and watch the memory
    python benchmarks/data.py --entries 31000
    # also: a linear probe on the features
    python benchmarks/data.py --probe --preset toy --out nbs/results/probe.json

Everything is made in a temporary folder, or in `--folder`, which is used again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}
import numpy as np
import torch

from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache, read_features, write_features
from affectgpt_r1.towers import probe_modalities, train_towers
from affectgpt_r1.faces import face_boxes
from affectgpt_r1.media import (
    decode_frames, frame_times, read_audio, read_video, write_video)
from affectgpt_r1.metrics import ew_difference, ew_interval, ew_score
from affectgpt_r1.modeling import frame_features, segment_features
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.oracle import oracle_scores
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.wheels import load_wheels


def larger(dataset, folder, size):
    "The clips with their frames blown up to `size` pixels"
    folder.mkdir(exist_ok=True)

    def grow(row):
        path = folder / Path(row["video"]).name
        if not path.exists():
            frames = [f for _, f in sorted(decode_frames(row["video"])[0].items())]
            write_video(
                path,
                np.stack(
                    [np.kron(f, np.ones((size // 96, size // 96, 1), np.uint8)) for f in frames]
                ),
            )
        return dict(video=str(path))

    return dataset.map(grow)


def profile(rows, model, processor, cache):
    "Seconds of each stage over all clips, one after the other in this process"
    spent, now = {}, time.perf_counter

    def run(stage, f, *args):
        t = now()
        out = f(*args)
        spent[stage] = spent.get(stage, 0) + now() - t
        return out

    towers = model.model
    with torch.no_grad():
        for row in rows:
            run("hash the files", cache.path, row)
            frames = run("decode video", read_video, row["video"])
            segments = run("decode sound", read_audio, row["audio"])
            pixels = run(
                "resize and scale",
                lambda: processor.image_processor(list(frames), return_tensors="pt")[
                    "pixel_values"
                ],
            )
            sound = run("scale sound", processor.sound, segments)
            V = run("vision encoder", frame_features, towers.vision_tower, pixels[None])
            A = run("audio encoder", segment_features, towers.audio_tower, sound[None])
            run(
                "keep",
                write_features,
                cache.path(row),
                dict(video_features=V[0], audio_features=A[0]),
            )
            run("read back", read_features, cache.path(row))
    return spent


def timings(rows, size, model, processor, workers):
    "What one clip costs, stage by stage, and how many go through in a second"
    with tempfile.TemporaryDirectory() as t:
        spent = profile(rows, model, processor, FeatureCache(t, model, processor))
    total, ms = sum(spent.values()), {k: 1e3 * v / len(rows) for k, v in spent.items()}
    frames = sum(len(frame_times(r["video"])[0]) for r in rows) / len(rows)
    print(
        f"\n{len(rows)} clips of {frames:.0f} frames, {size} pixels. One process, one "
        f"thread: {len(rows) / total:.1f} clips/s, {1e3 * total / len(rows):.1f} ms per clip"
    )
    for k, v in ms.items():
        print(f"  {k:18} {v:7.2f} ms {v / sum(ms.values()):6.1%}")
    seen = [read_video(r["video"]) for r in rows.select(range(10))]
    t = time.perf_counter()
    for f in seen:
        face_boxes(f)
    faces = 1e3 * (time.perf_counter() - t) / len(seen)
    print(f"  {'find faces':18} {faces:7.2f} ms more, where they are asked for")
    rate = {}
    for n in dict.fromkeys((0, workers)):
        with tempfile.TemporaryDirectory() as f:
            cache = FeatureCache(f, model, processor)
            for what in (f"{n} workers", "found in the cache"):
                t = time.perf_counter()
                cache.compute(rows, model, processor, workers=n)
                rate[what] = len(rows) / (time.perf_counter() - t)
    print("  FeatureCache.compute, clips/s: " + ", ".join(f"{v:,.1f} {k}" for k, v in rate.items()))
    return dict(
        pixels=size,
        clips=len(rows),
        frames_per_clip=frames,
        clips_per_s=len(rows) / total,
        ms_per_clip=ms,
        ms_faces=faces,
        compute_clips_per_s=rate,
    )


def memory():
    "Resident memory in MB: of its own, and of files mapped into it"
    kb = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {k: int(kb[k].split()[0]) / 1024 for k in ("RssAnon", "RssFile")}


def read_all(folder):
    "In a process of its own: open a cache, read every entry once in random order, watch the memory"
    cache, rows = big_cache(folder)
    before = most = memory()
    t = time.perf_counter()
    for i in np.random.default_rng(0).permutation(len(rows)):
        cache(rows[i])["video_features"].sum()
        if i % 100 == 0:
            most = {k: max(v, most[k]) for k, v in memory().items()}
    return dict(entries=len(rows), seconds=time.perf_counter() - t, before_mb=before, most_mb=most)


def big_cache(folder):
    "A cache and its clips, by the list of their files"
    rows = (
        [
            dict(name=str(i), video=v, audio=v)
            for i, v in enumerate((folder / "clips.txt").read_text().split("\n"))
        ]
        if (folder / "clips.txt").exists()
        else []
    )
    return FeatureCache(folder / "cache", *make_toy_model(["a"])), rows


def fill(folder, n):
    """`n` clips that are a few bytes each, with features of the paper's size: 8 x 768 and 8 x 1024
    numbers of 4 bytes"""
    (folder / "clips").mkdir(parents=True)
    paths = [folder / "clips" / f"{i}.mp4" for i in range(n)]
    for i, p in enumerate(paths):
        p.write_text(str(i))
    (folder / "clips.txt").write_text("\n".join(map(str, paths)))
    cache, rows = big_cache(folder)
    for row in rows:
        write_features(
            cache.path(row),
            dict(
                video_features=torch.randn(8, 768),
                audio_features=torch.randn(8, 1024),
                media_mask=torch.tensor([True, True]),
            ),
        )
    return sum(f.stat().st_size for f in cache.folder.glob("*.safetensors")) / 2**20


def probe(corpus, model, processor, folder):
    """EW F of a linear probe on each set of modalities, beside the oracle's; towers taught on the
    captions, probe on the human split"""
    wheels, (captions, human, test) = (
        load_wheels(),
        (load_mer2025(corpus, s) for s in ("caption", "human", "ovmerd")),
    )
    train_towers(model, processor, captions, wheels)
    cache = FeatureCache(folder / "probe", model, processor)
    for split in (human, test):
        cache.compute(split, model, processor)
    gold, answers = test["labels"][:], probe_modalities(cache, human, test, wheels)
    full, best = (
        answers["face + voice + words"],
        max(("face", "voice", "words"), key=lambda k: ew_score(gold, answers[k], wheels).f),
    )
    gain = ew_difference(gold, answers[best], full, wheels)
    oracle = oracle_scores(corpus, wheels)["ew_f"]
    rows = [
        dict(
            modalities=k,
            f=ew_score(gold, a, wheels).f,
            low_high=ew_interval(gold, a, wheels),
            oracle=oracle[k],
        )
        for k, a in answers.items()
    ]
    return dict(
        train=len(human),
        test=len(test),
        rows=rows,
        gain=dict(over=best, difference=gain.difference, low=gain.low, high=gain.high, p=gain.p),
    )


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", default="smoke", help="of the generated corpus")
    p.add_argument("--seed", type=int, default=0, help="of the generated corpus")
    p.add_argument("--clips", type=int, default=96, help="clips to time")
    p.add_argument(
        "--size", type=int, nargs="+", default=[96], help="pixels of a frame, multiples of 96"
    )
    p.add_argument("--workers", type=int, default=2, help="decoding processes")
    p.add_argument("--entries", type=int, default=0, help="entries of the large cache")
    p.add_argument("--probe", action="store_true", help="train towers and probe them")
    p.add_argument("--folder", type=Path, help="where corpus and features are kept")
    p.add_argument("--out", type=Path, help="write the numbers to this json file, too")
    p.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.read:
        return print(json.dumps(read_all(a.read)))
    torch.set_num_threads(1)
    scratch = tempfile.TemporaryDirectory()
    folder = a.folder or Path(scratch.name)
    corpus = make_toy_corpus(folder / "corpus", preset=a.preset, seed=a.seed)
    rows = load_mer2025(corpus, "caption").select(range(a.clips))
    model, processor = make_toy_model([r["subtitle"] for r in rows])
    asked = " ".join(
        x for x in sys.argv[1:] if not {x, sys.argv[sys.argv.index(x) - 1]} & {"--folder", "--out"}
    )  # places do not matter
    result = dict(
        command=f"python benchmarks/data.py {asked}",
        date=str(date.today()),
        seed=a.seed,
        machine=(
            f"{platform.machine()}, {os.cpu_count()} cores, no GPU used, Python "
            f"{platform.python_version()}, torch {torch.__version__}"
        ),
    )
    print(result["machine"])
    result["timings"] = [
        timings(
            rows if size == 96 else larger(rows, folder / f"video{size}", size),
            size,
            model,
            processor,
            a.workers,
        )
        for size in a.size
    ]
    if a.entries:
        big = folder / f"entries{a.entries}"
        size = fill(big, a.entries)
        result["large_cache"] = dict(mb_on_disk=size) | json.loads(
            subprocess.run(
                [sys.executable, __file__, "--read", str(big)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        r = result["large_cache"]
        print(
            f"\n{a.entries:,} entries, {size:,.0f} MB on disk, read once each in "
            f"{r['seconds']:.0f} s"
        )
        for k in ("RssAnon", "RssFile"):
            print(f"  {k:8} {r['before_mb'][k]:7.0f} MB before, {r['most_mb'][k]:7.0f} MB at most")
    if a.probe:
        result["probe"] = probe(corpus, model, processor, folder)
        print(
            f"\nLinear probe, {result['probe']['train']} clips to learn from, "
            f"{result['probe']['test']} to test on: EW F"
        )
        for r in result["probe"]["rows"]:
            print(
                f"  {r['modalities']:22} {r['f']:.3f}  [{r['low_high'][0]:.3f}, "
                f"{r['low_high'][1]:.3f}], oracle {r['oracle']:.3f}"
            )
        g = result["probe"]["gain"]
        print(
            f"  all modalities over {g['over']} alone: +{g['difference']:.3f} "
            f"[{g['low']:.3f}, {g['high']:.3f}]"
        )
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")
    scratch.cleanup()


if __name__ == "__main__":
    main()

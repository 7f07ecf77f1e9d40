"""What do eight frames of a long film cost: seconds, memory, and are they the right ones?

    python benchmarks/media.py                                       # ten minutes of 640 x 360
    python benchmarks/media.py --minutes 1 --readers ours everything
    python benchmarks/media.py --out nbs/results/media.json
    # also: in how many of the odd files of tests/test_containers.py is each reader right?
    python benchmarks/media.py --grid

Compares `read_video`, decoding everything, OpenCV, and torchcodec where it is installed. Each
reader runs in a process of its own, which is told nothing but the path. The frames are compared
with those of decoding everything. Memory is the peak of the process while it reads, and what it
held before, when it had read a film of one second. In the grid the library decodes in runs wherever
it can; otherwise it does so in long films only. Films are made in a temporary folder, or in
`--folder`, which is used again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import numpy as np

FORMS = ("mp4", "mkv", "ts")
X264 = {"preset": "ultrafast", "crf": "28"}


def make_film(path, minutes):
    "Noise that moves every fifth frame, at 25 frames per second, in H.264"
    import av

    noise = np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=X264)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(int(60 * 25 * minutes)):
            if i % 5 == 0:
                pixels = np.roll(noise, 3 * i, 1)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def copy_film(source, path):
    "The same packets in another container"
    import av

    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


def ours(path):
    "What the library does"
    from affectgpt_r1.media import read_video

    return read_video(path)


def ours_in_runs(path):
    "What the library does with a long film, with any"
    from affectgpt_r1 import videos

    videos._WORTH = 1
    return ours(path)


def everything(path):
    "One pass over all frames"
    from affectgpt_r1.media import decode_frames, frame_indices, frame_times

    numbers = frame_indices(len(frame_times(path)[0]))
    kept, times = decode_frames(path, set(numbers.tolist()))
    if len(times[0]) != len(frame_times(path)[0]):
        numbers = frame_indices(len(times[0]))
        kept, _ = decode_frames(path, set(numbers.tolist()))
    return np.stack([kept[i] for i in numbers])


def opencv(path):
    "OpenCV, which is told the number of a frame"
    import cv2

    from affectgpt_r1.media import frame_indices

    film, frames = cv2.VideoCapture(str(path)), []
    for number in frame_indices(int(film.get(cv2.CAP_PROP_FRAME_COUNT))):
        film.set(cv2.CAP_PROP_POS_FRAMES, int(number))
        frames.append(film.read()[1][..., ::-1])
    return np.stack(frames)


def torchcodec(path):
    "torchcodec, in the mode that it calls exact"
    from torchcodec.decoders import VideoDecoder

    from affectgpt_r1.media import frame_indices

    film = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return film.get_frames_at(frame_indices(len(film)).tolist()).data.numpy()


READERS = dict(ours=ours, everything=everything, opencv=opencv, torchcodec=torchcodec)
WORKERS = READERS | dict(ours_in_runs=ours_in_runs)


def memory_mb():
    "What this process holds, and the most that it has held, in MB"
    kb = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return [int(kb[k].split()[0]) / 1024 for k in ("VmRSS", "VmHWM")]


def work(reader, paths, out):
    "In a process of its own: read each file, keep the frames, print what it cost"
    warnings.simplefilter("ignore")
    warm = Path(out).with_name("warm.mp4")
    if not warm.exists():
        make_film(warm, 1 / 60)
    WORKERS[reader](warm)  # imports and first calls are not counted
    (before, _), rows = memory_mb(), []
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for i, path in enumerate(paths):
        start, cpu = time.perf_counter(), time.process_time()
        try:
            frames, said = WORKERS[reader](path), ""
            np.save(f"{out}.{i}.npy", frames)
        except Exception as e:
            said = f"{type(e).__name__}: {e}".split("\n")[0][:200]
        seconds = time.perf_counter() - start
        rows.append(dict(seconds=seconds, cpu_seconds=time.process_time() - cpu, error=said))
    memory = dict(peak_mb=memory_mb()[1], before_mb=before)
    print(json.dumps(dict(rows=rows, memory=memory)))


def run(reader, paths, folder):
    "The frames and the costs of a reader, from a process of its own"
    out = folder / reader
    command = [sys.executable, __file__, "--work", reader, str(out), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None, dict(error=done.stderr.strip().split("\n")[-1][:200])
    result = json.loads(done.stdout.strip().split("\n")[-1])
    files = [Path(f"{out}.{i}.npy") for i in range(len(paths))]
    return [np.load(f) if f.exists() else None for f in files], result


def compare(frames, truth):
    "`equal`, or how far the frames are from the right ones: 0 to 255"
    if frames is None or truth is None:
        return None
    if frames.shape != truth.shape:
        return dict(shape=list(frames.shape))
    apart = np.abs(frames.astype(int) - truth).mean((1, 2, 3))
    return dict(equal=bool((frames == truth).all()), largest_mean_difference=float(apart.max()))


def long_films(readers, folder, minutes):
    "Costs of each reader for each container"
    first = folder / f"film{minutes:g}.mp4"
    if not first.exists():
        make_film(first, minutes)
    rows = []
    for form in FORMS:
        path = first.with_suffix(f".{form}")
        if not path.exists():
            copy_film(first, path)
        truth = None
        for reader in ["everything", *(r for r in readers if r != "everything")]:
            frames, result = run(reader, [path], folder)
            if frames is None:
                rows.append(dict(form=form, reader=reader, **result))
                continue
            truth = frames[0] if reader == "everything" else truth
            row = dict(form=form, reader=reader, **result["rows"][0], **result["memory"])
            rows.append(row | dict(frames=compare(frames[0], truth)))
            costs = row["seconds"], row["cpu_seconds"], row["peak_mb"]
            said = "{:.2f} s ({:.2f} busy), {:.0f} MB".format(*costs)
            print(form, reader, said, rows[-1]["frames"], flush=True)
    return rows


def odd_files(readers, folder):
    "How many files of tests/test_containers.py each reader reads as decoding everything does"
    from test_containers import GRID, write

    (folder / "grid").mkdir(exist_ok=True)
    paths = [write(folder / "grid" / name, **how) for name, how in GRID.items()]
    truth, _ = run("everything", paths, folder)
    counts = {}
    for reader in readers:
        worker = "ours_in_runs" if reader == "ours" else reader
        frames, result = run(worker, paths, folder)
        if frames is None:
            counts[reader] = result
            continue
        said = [compare(f, t) for f, t in zip(frames, truth)]
        wrong = {
            p.name: s or r["error"]
            for p, s, r in zip(paths, said, result["rows"])
            if not s or s.get("largest_mean_difference", 255) > 3
        }
        equal = sum(bool(s and s.get("equal")) for s in said)
        counts[reader] = dict(files=len(paths), equal=equal, wrong=wrong)
        print(f"{reader:12} {equal} of {len(paths)} equal, wrong: {wrong}")
    return counts


def main():
    if "--work" in sys.argv[1:2]:
        return work(sys.argv[2], sys.argv[4:], sys.argv[3])
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--minutes", type=float, default=10, help="length of the film")
    p.add_argument("--readers", nargs="+", default=list(READERS), choices=READERS)
    p.add_argument("--grid", action="store_true", help="also the odd files of the tests")
    p.add_argument("--folder", type=Path, help="where the films are kept")
    p.add_argument("--out", type=Path, help="write the numbers to this json file, too")
    a = p.parse_args()
    from affectgpt_r1.records import made_by

    scratch = tempfile.TemporaryDirectory()
    folder = a.folder or Path(scratch.name)
    folder.mkdir(exist_ok=True)
    readers = [r for r in a.readers if r != "torchcodec" or find_spec("torchcodec")]
    asked = ["--minutes", f"{a.minutes:g}"] + ["--grid"] * a.grid
    result = made_by(" ".join(["python benchmarks/media.py", *asked]))
    for package in ("av", "opencv-python-headless", *["torchcodec"] * ("torchcodec" in readers)):
        result["versions"][package] = version(package)
    result |= dict(minutes=a.minutes, films=long_films(readers, folder, a.minutes))
    if a.grid:
        result["grid"] = odd_files(readers, folder)
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What do the eight segments of a long sound cost, in seconds and in memory?

    python benchmarks/sound.py
    python benchmarks/sound.py --minutes 120

Each file is read twice, each time in a process of its own: as a whole, which is then cut, and by
`read_audio`, which keeps what lies near a segment. The files are made in a temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import av
import numpy as np
import soundfile as sf

from affectgpt_r1.media import cut_segments, read_audio, read_waveform

RATE = 48000
READ = {
    "whole": lambda path: cut_segments(read_waveform(path)),
    "streamed": read_audio,
}


def write_file(path, minutes):
    "Stereo noise at 48 kHz"
    with sf.SoundFile(path, "w", RATE, 2) as file:
        for minute in range(minutes):
            noise = np.random.default_rng(minute).uniform(-0.5, 0.5, (60 * RATE, 2))
            for at in range(0, len(noise), RATE):
                file.write(noise[at : at + RATE])


def write_film(path, minutes):
    "A black picture every second, with stereo noise"
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=1, width=32, height=32)
        audio = film.add_stream("aac", rate=RATE, layout="stereo")
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 2 * RATE)).astype(np.float32)
        for second in range(60 * minutes):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts = second
            film.mux(video.encode(frame))
            frame = av.AudioFrame.from_ndarray(noise, "flt", "stereo")
            frame.sample_rate, frame.pts = RATE, RATE * second
            film.mux(audio.encode(frame))
        for stream in (video, audio):
            film.mux(stream.encode())


def peak():
    "The most memory that this process has had, in MB"
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(path, how):
    "In this process: seconds, MB more than before, and a sum of what was read"
    READ[how](Path(path).with_name("short.wav"))  # what is loaded once
    before, start = peak(), time.perf_counter()
    segments = READ[how](path)
    return time.perf_counter() - start, peak() - before, float(np.abs(segments).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return print(json.dumps(measure(*args.measure)))
    with tempfile.TemporaryDirectory() as folder:
        sf.write(Path(folder) / "short.wav", np.zeros((RATE, 2)), RATE)
        for name in ("film.mp4", "sound.wav", "sound.flac", "sound.mp3"):
            write = write_film if name == "film.mp4" else write_file
            write(Path(folder) / name, args.minutes)
            told = {}
            for how in READ:
                command = [sys.executable, __file__, "--measure", str(Path(folder) / name), how]
                run = subprocess.run(command, capture_output=True, text=True, check=True)
                told[how] = json.loads(run.stdout.splitlines()[-1])
            cells = [f"{how} {s:6.1f} s {mb:7.1f} MB" for how, (s, mb, _) in told.items()]
            same = len({total for _, _, total in told.values()}) == 1
            print(f"{args.minutes} min {name:10}", *cells, "the same" if same else "NOT the same")


if __name__ == "__main__":
    main()

"""How fast is the emotion-wheel score?

    python benchmarks/metrics.py                                    # ours alone, built-in wheels
    python benchmarks/metrics.py --wheels v1 --root …/emotion_wheel/v1 \\
        --reference …/AffectGPT --module my_affectgpt.evaluation.wheel

A reference is a folder with a Python module in it (or a .py file) that has
`wheel_metric_calculation(name2gt=, name2pred=, inter_print=, level=)`. It is imported and run with
that folder as working directory, as the authors' code expects, on the same pairs, and its scores
are compared with ours. `--function` takes another name with the same arguments.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

from affectgpt_r1.labels import parse_labels
from affectgpt_r1.metrics import ew_rewards, ew_score
from affectgpt_r1.wheels import load_wheels


def make_pairs(vocabulary, n, seed=0):
    """`n` pairs of label lists, one to nine gold words (mean 3.4) and three answered ones, one in
    ten unknown"""
    rng = np.random.default_rng(seed)
    words = np.array(
        [*rng.choice(vocabulary, 450, replace=False), *(f"unknown{i}" for i in range(50))]
    )

    def side(mean):
        sizes = 1 + rng.binomial(8, (mean - 1) / 8, n)
        drawn = words[rng.integers(0, len(words), sizes.sum())].tolist()
        ends = np.cumsum(sizes)
        return [drawn[e - k : e] for e, k in zip(ends.tolist(), sizes.tolist())]

    return side(3.4), side(3.0)


def seconds(f, at_least=0.3, most=50):
    "Best wall time of `f`, which runs for `at_least` seconds in all"
    times = []
    while sum(times) < at_least and len(times) < most:
        t = time.perf_counter()
        f()
        times.append(time.perf_counter() - t)
    return min(times)


def plain_score(gold, pred, wheels, level=1):
    "The definition in sets and loops, with a look-up per word: what one would write first"
    clusters = [
        {f: wheels.cluster(f, k, level) for f in wheels.vocabulary}
        for k in range(1, len(wheels.names) + 1)
    ]

    def run():
        fs = []
        for where in clusters:
            p, r = [], []
            for g, q in zip(gold, pred):
                G, Q = ({where.get(x.lower().strip()) for x in a} - {None} for a in (g, q))
                if not G:
                    continue
                p.append(len(G & Q) / len(Q) if Q else 0.0)
                r.append(len(G & Q) / len(G))
            P, R = np.mean(p), np.mean(r)
            fs.append(2 * P * R / (P + R) if P + R else 0.0)
        return float(np.mean(fs))

    return run


@contextlib.contextmanager
def reference(path, module, function):
    """The function and the seconds that its import took, in the folder it has to run in;
    afterwards the next one may use the same names"""
    folder, before = path if path.is_dir() else path.parent, Path.cwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        t = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            f = getattr(importlib.import_module(module or path.stem), function)
        yield f, time.perf_counter() - t
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        for name, m in list(sys.modules.items()):
            place = getattr(m, "__file__", None) or next(
                iter(getattr(m, "__path__", [])), "/"
            )  # a folder without __init__.py has a path only
            if folder in Path(place).parents:
                del sys.modules[name]


def table(title, rows):
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:58} {value}")


def imports(statement):
    "Seconds that a statement takes in a fresh interpreter, best of five"
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    run = lambda: float(
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).resolve().parents[1],
        ).stdout
    )
    return min(run() for _ in range(5))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--wheels", default="builtin", help="builtin, v1 or v2026")
    p.add_argument("--root", help="folder of the authors' tables")
    p.add_argument(
        "--reference",
        action="append",
        default=[],
        help="folder or .py file of another implementation; may be given again",
    )
    p.add_argument("--module", help="its module, where it is not the file")
    p.add_argument("--function", default="wheel_metric_calculation")
    p.add_argument("--pairs", help="json with name, gt, pred, instead of made-up pairs")
    p.add_argument("--largest", type=int, default=1_000_000)
    p.add_argument("--out", help="write the numbers to this json file, too")
    a = p.parse_args()
    references = [Path(x).resolve() for x in a.reference]
    for path in references:
        if not path.exists():
            p.error(f"no reference implementation at {path}")
    started, w = time.perf_counter(), load_wheels(a.wheels, a.root and Path(a.root).resolve())
    load = time.perf_counter() - started
    gold, pred = make_pairs(w.vocabulary, 1000)
    if a.pairs:
        rows = json.loads(Path(a.pairs).read_text())
        gold, pred = ([parse_labels(r[k], strict=True) for r in rows] for k in ("gt", "pred"))
    text = [[str(x) for x in side] for side in (gold, pred)]
    out, n = Path(a.out).resolve() if a.out else None, len(gold)
    result = dict(
        machine=(
            f"{platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, numpy {np.__version__}"
        ),
        wheels=w.version,
        fingerprint=w.fingerprint,
        pairs=n,
        load_wheels_ms=1e3 * load,
    )
    print(
        f"{result['machine']}\n{w}\n{n} pairs, {sum(map(len, gold))} gold and "
        f"{sum(map(len, pred))} predicted words"
    )

    base = imports("import pandas")
    result["import_s"] = dict(
        pandas=base, more_for_metrics=imports("import pandas, affectgpt_r1.metrics") - base
    )
    table(
        "Start",
        [
            (
                "import affectgpt_r1.metrics, more than import pandas",
                f"{1e3 * result['import_s']['more_for_metrics']:.0f} ms",
            ),
            ("load_wheels()", f"{1e3 * load:.1f} ms"),
        ],
    )

    ours = seconds(lambda: ew_score(gold, pred, w))
    result["ms_per_1000"] = {
        "parsed, level 1": 1e6 * ours / n,
        "parsed, level 2": 1e6 * seconds(lambda: ew_score(gold, pred, w, level=2)) / n,
        "strings, level 1": 1e6 * seconds(lambda: ew_score(*text, w)) / n,
        "plain sets, level 1": 1e6 * seconds(plain_score(gold, pred, w)) / n,
    }
    table(
        "One score, ms per 1,000 pairs",
        [(k, f"{v:8.2f}") for k, v in result["ms_per_1000"].items()],
    )
    g, q = gold[:64], pred[:64]
    result["reward_us_per_pair"] = {
        "batch of 64": 1e6 * seconds(lambda: ew_rewards(g, q, w)) / 64,
        "one at a time": 1e6 * seconds(lambda: ew_rewards(g[:1], q[:1], w)),
    }
    table(
        "Rewards, µs per pair", [(k, f"{v:8.2f}") for k, v in result["reward_us_per_pair"].items()]
    )

    result["growth_ms_per_1000"] = {}
    size = 1
    while size <= a.largest:
        k = -(-size // n)
        G, Q = (gold * k)[:size], (pred * k)[:size]
        result["growth_ms_per_1000"][size] = (
            1e6 * seconds(lambda: ew_score(G, Q, w), most=5 if size > 1000 else 50) / size
        )
        size *= 10
    table(
        "Growth, ms per 1,000 pairs",
        [(f"{k:>9,} pairs", f"{v:8.2f}") for k, v in result["growth_ms_per_1000"].items()],
    )

    names = [f"clip{i}" for i in range(n)]
    name2gt, name2pred = (dict(zip(names, side)) for side in text)
    ours_text, us = (
        seconds(lambda: ew_score(name2gt, name2pred, w)),
        ew_score(name2gt, name2pred, w),
    )
    result["references"] = {}
    for path in references:
        with reference(path, a.module, a.function) as (f, importing):

            def theirs(g=name2gt, q=name2pred):
                with contextlib.redirect_stdout(io.StringIO()):
                    return f(name2gt=g, name2pred=q, inter_print=False, level="level1")

            one = [{"clip0": x["clip0"]} for x in (name2gt, name2pred)]
            score, t, t1 = theirs(), seconds(theirs, most=5), seconds(lambda: theirs(*one), most=5)
        ours_one = result["reward_us_per_pair"]["batch of 64"] / 1e6
        same = bool(np.allclose(score, [us.f, us.precision, us.recall], rtol=0, atol=1e-12))
        result["references"][str(path)] = dict(
            import_s=importing,
            ms_per_1000=1e6 * t / n,
            ms_one_pair=1e3 * t1,
            times_faster=t / ours_text,
            times_faster_reward=t1 / ours_one,
            same_score=same,
        )
        table(
            f"Against {path}",
            [
                ("its import", f"{importing:.2f} s"),
                (
                    f"{n} pairs of strings: theirs, ours",
                    f"{1e3 * t:.1f} ms, {1e3 * ours_text:.1f} ms: {t / ours_text:.0f} times",
                ),
                (
                    "one pair as a reward: theirs, ours in a batch of 64",
                    f"{1e3 * t1:.1f} ms, {1e6 * ours_one:.1f} µs: {t1 / ours_one:,.0f} times",
                ),
                (
                    "same scores to 1e-12",
                    "yes" if same else f"NO: {score} against {[us.f, us.precision, us.recall]}",
                ),
            ],
        )
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

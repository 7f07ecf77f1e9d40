"""How long does a reward take, and what of it is reading strings?

    python benchmarks/rewards.py                                    # ours alone, built-in wheels
    python benchmarks/rewards.py --wheels v2026 --root …/emotion_wheel/v2026 \\
        --reference …/AffectGPT --module my_affectgpt.evaluation.wheel

A reference is what `benchmarks/metrics.py` takes: a folder or a .py file with
`wheel_metric_calculation(name2gt=, name2pred=, inter_print=, level=)`. It is called as a reward has
to call it, once for each completion, and its F is compared with our reward where all five wheels
know the gold (elsewhere the two average over different wheels).
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
from metrics import make_pairs, seconds, table

from affectgpt_r1.labels import make_target, parse_labels
from affectgpt_r1.mentions import find_emotions
from affectgpt_r1.rewards import REWARD_RECIPES, answer_labels, format_reward, make_rewards
from affectgpt_r1.wheels import load_wheels

THOUGHT = (
    "In the clip the woman smiles, but her voice is low and she does not look at him; the "
    "words, said without any joy, "
    "sound sad rather than angry, and at the end she seems to be on edge."
)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--wheels", default="builtin", help="builtin, v1 or v2026")
    p.add_argument("--root", help="folder of the authors' tables")
    p.add_argument("--reference", help="folder or .py file of another implementation")
    p.add_argument("--module", help="its module, where it is not the file")
    p.add_argument("--function", default="wheel_metric_calculation")
    p.add_argument("-n", type=int, default=64, help="completions in a batch")
    p.add_argument("--out", help="write the numbers to this json file, too")
    a = p.parse_args()
    w, out, n = (
        load_wheels(a.wheels, a.root and Path(a.root).resolve()),
        a.out and Path(a.out).resolve(),
        a.n,
    )
    result = dict(
        machine=(
            f"{platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, numpy {np.__version__}"
        ),
        wheels=w.version,
        completions=n,
    )
    print(f"{result['machine']}\n{w}\n{n} completions")

    labels, pred = make_pairs(w.vocabulary, n)
    columns = dict(labels=labels, prompts=[f"clip {i // 8}" for i in range(n)])
    text = {mode: [make_target(x, mode, THOUGHT) for x in pred] for mode in ("answer", "think")}
    result["ms"] = {}
    for name, recipe in REWARD_RECIPES.items():
        functions, mode = make_rewards(name, w, judge=lambda row, a, b: 0.5)[0], recipe.modes[0]
        result["ms"][name] = 1e3 * seconds(
            lambda: [f(completions=text[mode], **columns) for f in functions]
        )
    table(f"A recipe on {n} completions, ms", [(k, f"{v:8.2f}") for k, v in result["ms"].items()])

    functions, form = make_rewards("acc+format", w, penalty="p2")[0], format_reward()

    def read():
        form(completions=text["answer"])
        return [answer_labels(x) for x in text["answer"]], [
            parse_labels(x, strict=True) for x in labels
        ]

    whole, strings = (
        seconds(lambda: [f(completions=text["answer"], **columns) for f in functions]),
        seconds(read),
    )
    result["acc+format+p2"] = dict(
        ms=1e3 * whole, reading_strings_ms=1e3 * strings, rest_ms=1e3 * (whole - strings)
    )
    table("acc+format with P2, ms", [(k, f"{v:8.2f}") for k, v in result["acc+format+p2"].items()])

    thought = " ".join((THOUGHT.split() * 4)[:100])
    find_emotions("", w)
    result["find_emotions_ms_per_1000"] = 1e3 * seconds(
        lambda: [find_emotions(thought, w) for _ in range(1000)]
    )
    table(
        f"Emotion words in 1,000 texts of {len(thought.split())} words",
        [("ms", f"{result['find_emotions_ms_per_1000']:8.1f}")],
    )

    if a.reference:
        path = Path(a.reference).resolve()
        if not path.exists():
            p.error(f"no reference implementation at {path}")
        folder = path if path.is_dir() else path.parent
        sys.path.insert(0, str(folder))
        os.chdir(folder)  # where the authors' code expects to run
        with contextlib.redirect_stdout(io.StringIO()):
            f = getattr(importlib.import_module(a.module or path.stem), a.function)

        def theirs(gold, answer):
            with contextlib.redirect_stdout(io.StringIO()):
                return f(
                    name2gt={"clip": str(gold)},
                    name2pred={"clip": str(answer)},
                    inter_print=False,
                    level="level1",
                )[0]

        ours = make_rewards("acc", w, penalty=None)[0][0]
        here, there = (
            seconds(lambda: ours(completions=text["answer"], labels=labels)),
            seconds(lambda: [theirs(*x) for x in zip(labels, pred)], most=3),
        )
        known = [(w.encode(g) > 0).all() for g in labels]
        gap = max(
            abs(r - theirs(g, x))
            for r, g, x, k in zip(
                ours(completions=text["answer"], labels=labels), labels, pred, known
            )
            if k
        )
        result["reference"] = dict(
            theirs_ms_per_completion=1e3 * there / n,
            ours_ms_per_completion=1e3 * here / n,
            times_faster=there / here,
            compared=sum(map(int, known)),
            largest_difference=gap,
        )
        table(
            f"Accuracy, one call per completion against one for all: {a.reference}",
            [(k, f"{v:14,.4g}") for k, v in result["reference"].items()],
        )
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

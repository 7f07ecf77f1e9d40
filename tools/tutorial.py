"""The main job: run the pipeline notebook from data to report, then say what came of it

python -m tools.tutorial --seed 1 --mode think
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from papermill import PapermillExecutionError

from affectgpt_r1.fingerprints import code_hash
from affectgpt_r1.media_use import media_use_lines
from tools.notebooks import ROOT, brief, run_notebook
from tools.pages import to_html, to_markdown, write_files

NOTEBOOK = ROOT / "nbs/tutorials/pipeline.ipynb"


def write_report(
    nb,  # An executed notebook
    title,
    out,  # The HTML file to write
):
    """Its cells tagged `brief`, then those tagged `report`, as one page without code and without a
    request to anywhere"""
    nb.cells = [
        c for tag in ("brief", "report") for c in nb.cells if tag in c.metadata.get("tags", [])
    ]
    body, images = to_markdown(nb, code=False)
    with tempfile.TemporaryDirectory() as tmp:
        write_files(images, Path(tmp))
        return to_html(
            body,
            out,
            {
                "title": title,
                "subtitle": "What was trained, what came out, how sure that is, and what it cost",
            },
            resources=tmp,
        )


def table(metrics):
    "The lines of a short table of `metrics.json`"
    head = f"{'on held-out clips':24}{'EW F':>8}{'95 % interval':>18}"
    yield head + f"{'sampled':>10}{'words':>8}{'format':>8}"
    for name, b in metrics["baselines"].items():
        yield f"{name.replace('_', ' '):24}{b['ew_f']:8.3f}"
    for name, s in metrics["stages"].items():
        low, high = s["ci95"]
        interval = f"{low:.3f} to {high:.3f}"
        yield (
            f"{name.replace('_', ' '):24}{s['ew_f']:8.3f}{interval:>18}{s['ew_f_sampled']:10.3f}"
            f"{s['mean_labels']:8.1f}{s['format_rate']:8.2f}"
        )
    yield "".join(
        f"\n{name.replace('_', ' ')} with another clip's media: {s['ew_f_media_shuffled']:.3f}"
        for name, s in metrics["stages"].items()
    )
    for name, s in metrics["stages"].items():
        yield f"\n{name.replace('_', ' ')}, with something taken away from a clip:"
        yield from ("  " + line for line in media_use_lines(s["media_use"]))


def drop_stages(run_dir):
    """Delete what a whole run has trained, so that its times are those of a run, and what other
    code has trained: a stage goes on only where this code has begun it"""
    made_by, code = run_dir / "code.json", code_hash(ROOT / "affectgpt_r1/stages.py")
    same = made_by.exists() and json.loads(made_by.read_text()) == code
    if (run_dir / "metrics.json").exists() or not same:
        for stage in ("cold_start", "grpo"):
            shutil.rmtree(run_dir / stage, ignore_errors=True)
    made_by.write_text(json.dumps(code))


def main(
    notebook=NOTEBOOK,  # The pipeline
    preset="toy",  # How large: "toy", or "smoke" for a trial in a minute
    seed=0,  # Seed of every stage
    mode="answer",  # "answer", or "think" to reason first
    beta=None,  # Weight of the KL term in GRPO, if not that of the recipe
    # Where everything is written: runs/tutorial, or by default a folder named by what differs from
    # it
    run_dir=None,
):
    "Run, write the report, print the table"
    asked = dict(
        preset=(preset, "toy"), seed=(seed, 0), mode=(mode, "answer"), beta=(beta, None)
    )
    unusual = [f"{name}-{value}" for name, (value, usual) in asked.items() if value != usual]
    run_dir = Path(run_dir or "-".join(["runs/tutorial", *unusual])).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    results = run_dir / "metrics.json"
    drop_stages(run_dir)
    results.unlink(missing_ok=True)
    changes = {} if beta is None else dict(beta=beta)
    parameters = dict(preset=preset, seed=seed, mode=mode, changes=changes, run_dir=str(run_dir))
    try:
        nb = run_notebook(notebook, run_dir / "pipeline.ipynb", parameters, progress=True)
    except PapermillExecutionError as e:
        sys.exit(f"\n{brief(e)}\nThe notebook as far as it got: {run_dir / 'pipeline.ipynb'}")
    report = write_report(
        nb, f"AffectGPT-R1, {preset} preset, seed {seed}", run_dir / "report.html"
    )
    metrics = json.loads(results.read_text())
    print(
        *table(metrics),
        "",
        f"{metrics['seconds']['total']:.0f} seconds. Report: {report}",
        sep="\n",
    )


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--preset", default="toy", choices=["toy", "smoke"])
    ap.add_argument("--seed", default=0, type=int)
    ap.add_argument("--mode", default="answer", choices=["answer", "think"])
    ap.add_argument("--beta", type=float, help="weight of GRPO's KL term, if not the recipe's")
    ap.add_argument(
        "--run-dir", help="runs/tutorial, with what differs from the defaults in its name"
    )
    main(**vars(ap.parse_args()))

"""Run notebooks from top to bottom, leaving out the cells that nbdev_test leaves out

python -m tools.notebooks nbs/01_labels.ipynb                     fresh outputs, in place, cleaned
python -m tools.notebooks nbs/tutorials/pipeline.ipynb --out FOLDER -p seed 1   executed copies
"""

import argparse
import ast
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import nbformat
from nbdev.config import get_config
from PIL import Image
from papermill import PapermillExecutionError, execute_notebook
from papermill.engines import NBClientEngine, papermill_engines

from affectgpt_r1.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
SKIP = "skip-execution"  # the tag by which nbclient knows a cell to skip
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


def directives(source):
    """The `#|` lines of a cell, as a dict: `#| fig-cap: Text` gives `{'fig-cap': 'Text'}`, `#|
    hide` gives `{'hide': ''}`"""
    lines = re.findall(r"^#\|[ \t]*([\w-]+):?[ \t]*(.*?)[ \t]*$", source, re.M)
    return {name: value.strip("\"'") for name, value in lines}


def is_skipped(cell, flags):
    "Would nbdev_test skip this code cell?"
    found = directives(cell.source)
    return (
        found.get("eval") == "false"
        or not flags.isdisjoint(found)
        or "nbdev_export(" in cell.source
    )


def sections(nb):
    "For each cell, the heading it stands under"
    heading, res = "", []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for line in re.findall(r"^#{1,3} (.+)$", cell.source, re.M):
                heading = line.strip(" -`")
        res.append(heading)
    return res


class Ticker(threading.Thread):
    "Redraws a progress bar every second, so that its clock runs during a long cell"

    def __init__(self, bar):
        super().__init__(daemon=True)
        self.bar, self.done = bar, threading.Event()

    def run(self):
        while not self.done.wait(1):
            self.bar.refresh()


class DirectivesEngine(NBClientEngine):
    "papermill's engine, with nbdev's directives honoured and the section named on the progress bar"

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, flags=(), **kwargs):
        for cell in nb_man.nb.cells:
            if cell.cell_type == "code" and is_skipped(cell, set(flags)):
                cell.metadata.setdefault("tags", []).append(SKIP)
        if nb_man.pbar is None:
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        names, cell_start = sections(nb_man.nb), nb_man.cell_start

        def named_start(cell, cell_index=None, **kw):
            nb_man.pbar.set_description_str(f"{names[cell_index][:32]:32}", refresh=True)
            cell_start(cell, cell_index, **kw)

        nb_man.cell_start = named_start
        ticker = Ticker(nb_man.pbar)
        if sys.stderr.isatty():
            ticker.start()
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        finally:
            ticker.done.set()


papermill_engines.register("directives", DirectivesEngine)


def defaults(nb):
    "Name -> default of each parameter, from the cell tagged `parameters`; None if it is no literal"
    tagged = (c.source for c in nb.cells if "parameters" in c.metadata.get("tags", []))
    found = {}
    for node in ast.parse(next(tagged, "")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for name in (t.id for t in targets if isinstance(t, ast.Name)):
            try:
                found[name] = ast.literal_eval(node.value)
            except (ValueError, TypeError):
                found[name] = None
    return found


def read_parameters(path, given):
    "Values by the types of the defaults; an error names a parameter that the notebook lacks"
    kinds = {
        name: Any if default is None else type(default)
        for name, default in defaults(nbformat.read(path, 4)).items()
    }
    return read_settings(given, kinds, str(path))


def run_notebook(
    path,  # The notebook to run
    out,  # Where the executed notebook is written
    parameters=None,  # Values for the cell tagged `parameters`, or texts of them
    cwd=None,  # The folder it runs in: its own, unless given
    progress=False,  # Show a progress bar?
    timeout=None,  # Seconds that one cell may take
):
    "The executed notebook; a failing cell raises `PapermillExecutionError`"
    os.environ.update(OFFLINE)
    path, out = Path(path).resolve(), Path(out).resolve()
    before = {c.id: c for c in nbformat.read(path, 4).cells}
    parameters = read_parameters(path, parameters or {})
    places = (str(place).replace("{", "{{").replace("}", "}}") for place in (path, out))
    bar = progress and dict(
        disable=False,
        desc=f"{path.stem:32}",
        bar_format="{desc} {percentage:3.0f}%|{bar:24}| {elapsed}",
    )
    nb = execute_notebook(  # which takes braces in a path for the name of a parameter
        *places,
        parameters,
        engine_name="directives",
        progress_bar=bar,
        cwd=str(cwd or path.parent),
        execution_timeout=timeout,
        flags=get_config(path=ROOT).tst_flags.split(),
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    for cell in nb.cells:  # a skipped cell keeps the outputs that it came with
        if SKIP not in cell.metadata.get("tags", []):
            continue
        cell.metadata.tags.remove(SKIP)
        cell.outputs = before[cell.id].outputs
    nbformat.write(nb, out)
    return nb


def brief(error):
    "A failed cell in a few lines: the line of code that failed, and the error"
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    at = re.findall(r"^-+> *\d+ (.*)$", trace, re.M) or error.source.splitlines()
    return f"Failed at\n    {at[0].strip()}\n{error.ename}: {error.evalue}"


def is_widget(output):
    return any("widget" in mime for mime in output.get("data", {}))


def pack(output):
    "Its picture, if it holds one, in fewer bytes and with the same pixels"
    if "image/png" not in output.get("data", {}):
        return
    packed, picture = (
        io.BytesIO(),
        Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))),
    )
    if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):
        picture = picture.convert("RGB")  # nothing is transparent
    picture.save(packed, "PNG", optimize=True)
    output["data"]["image/png"] = base64.b64encode(packed.getvalue()).decode()


def refresh(path):
    "Runs a notebook and writes its fresh outputs back in place, without progress bars and cleaned"
    with tempfile.TemporaryDirectory() as tmp:
        nb = run_notebook(path, Path(tmp) / "executed.ipynb", progress=True)
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not is_widget(o)]
        for output in cell.get("outputs", []):
            pack(output)
    nbformat.write(nb, path)
    subprocess.run(
        [Path(sys.executable).parent / "nbdev_clean", "--fname", path], check=True, cwd=ROOT
    )


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("notebooks", nargs="+", type=Path)
    ap.add_argument(
        "--out", type=Path, help="folder for the executed copies (without it: in place)"
    )
    ap.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    args = ap.parse_args()
    if args.parameters and not args.out:
        ap.error("-p needs --out")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    try:  # before the first of them runs
        for nb_path in args.notebooks:
            read_parameters(nb_path, dict(args.parameters))
    except ValueError as e:
        sys.exit(str(e))
    for nb_path in args.notebooks:
        try:
            if args.out:
                run_notebook(
                    nb_path,
                    args.out / nb_path.name,
                    dict(args.parameters),
                    progress=True,
                )
            else:
                refresh(nb_path.resolve())
        except PapermillExecutionError as e:
            sys.exit(f"{nb_path}: {brief(e)}")

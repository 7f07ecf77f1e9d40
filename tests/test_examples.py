"The examples of CONTRIBUTING.md, and the script for a GPU, do what they say"

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


def test_examples_run(tmp_path):
    blocks = re.findall(
        r"^```python\n(.*?)^```$",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.M | re.S,
    )
    assert len(blocks) == 4 and all("assert" in b and len(b.splitlines()) <= 12 for b in blocks)
    script = tmp_path / "examples.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_script_for_a_gpu_runs_at_toy_size(tmp_path):
    pytest.importorskip("torch", reason="needs the `train` extra")
    out = tmp_path / "gpu.json"
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", "--out", out],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert all(row.get("seconds", 0) >= 0 for row in rows.values())
    assert rows["paper: checkpoint"]["mib"] > 0 and len(rows) >= 14

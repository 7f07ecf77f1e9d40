"The examples of CONTRIBUTING.md do what they say"

import re
import subprocess
import sys

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

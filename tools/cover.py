"""Which lines of the library does no test run? By module and function, into coverage.json

python -m coverage run -m pytest tests
python -m coverage combine
python -m tools.cover
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.results import OUT, made_by

COMMAND = [
    "python -m coverage run -m pytest tests",
    "python -m coverage combine",
    "python -m tools.cover",
]


def report():
    "coverage's own report, as json"
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "--quiet", "-o", out], check=True)
        return json.loads(out.read_text())


def count(part):
    return {k: part["summary"][k] for k in ("num_statements", "missing_lines")}


if __name__ == "__main__":
    found = {
        Path(path).stem: file
        for path, file in report()["files"].items()
        if not Path(path).name.startswith("_")
    }
    modules = {name: count(file) for name, file in found.items()}
    functions = [
        dict(module=name, function=f or "(top level)", **count(part))
        for name, file in found.items()
        for f, part in file["functions"].items()
        if part["missing_lines"]
    ]
    (OUT / "coverage.json").write_text(
        json.dumps(made_by(COMMAND) | dict(modules=modules, functions=functions), indent=1) + "\n"
    )
    lines, missing = (
        sum(m[k] for m in modules.values()) for k in ("num_statements", "missing_lines")
    )
    print(f"{OUT / 'coverage.json'}: {lines - missing} of {lines} statements are run")

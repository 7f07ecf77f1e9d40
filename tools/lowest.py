"""Do the trainers work with the lowest versions that settings.ini admits?

    python -m tools.lowest             makes .venv-lowest, runs tests/test_training.py in it
    python -m tools.lowest -k resume   the rest of the line goes to pytest

The newest versions are those of requirements.lock, which `make test` runs with. torch is taken from
there here too: its older builds bring gigabytes of CUDA with them.
"""

import configparser
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-lowest"
PYTEST = (
    "pytest",
    "hypothesis",
    "nbdev",
    "papermill",
    "nbformat",
    "fastcore",
    "execnb",
    "ghapi",
    "setuptools",
)  # what tests/conftest.py needs


def lowest(requirement):
    "A requirement with its lower bound as the only version; as it is, where it has none"
    r = Requirement(requirement)
    bounds = [s.version for s in r.specifier if s.operator in (">=", "==")]
    return f"{r.name}=={bounds[0]}" if bounds else requirement


def pins():
    """What pip is asked for: the lower bounds of what training uses, and what the tests themselves
    need"""
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")

    def group(name):
        return {Requirement(r).name: r for r in cfg["DEFAULT"][f"{name}requirements"].split()}

    asked = group("") | group("media_") | {n: lowest(r) for n, r in group("train_").items()}
    tests = group("dev_")
    return list(
        (
            asked
            | {"torch": f"torch=={version('torch').split('+')[0]}"}
            | {n: tests.get(n, n) for n in PYTEST}
        ).values()
    )


def main(args):
    "Install once, then test"
    python, wanted = VENV / "bin/python", pins()
    done = VENV / "installed.txt"
    if not done.exists() or done.read_text().split() != wanted:
        print("lowest versions:", *wanted, flush=True)
        venv.create(VENV, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.write_text("\n".join(wanted))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [python, "-m", "pytest", "tests/test_training.py", *args], cwd=ROOT, env=env
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

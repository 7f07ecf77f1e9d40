"What all tests share: offline, no telemetry, and a copy of the project that a test may write into"

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.notebooks import OFFLINE

os.environ.update(OFFLINE)
# A second thread gains little at this size, and waits long where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One cold-started toy model for all notebooks and tests of a session; workers inherit the folder.
if "AFFECTGPT_R1_CACHE" not in os.environ:
    os.environ["AFFECTGPT_R1_CACHE"] = TOY_CACHE = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, TOY_CACHE, ignore_errors=True)
settings.register_profile("steady", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("steady")
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "runs", "build", "dist", "_docs", "_proc", "*.egg-info"),
    *("__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers, the tests of a file go to one, which makes their fixtures once; the
    notebooks are spread over all"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "::test_runs[" in nodeid else nodeid.split("::")[0]

    config.option.loadscopereorder = False  # the order below is kept
    return ByFile(config, log)


# What takes longest, longest first: it is started first, so that no core waits for it at the end.
SLOW = [
    "test_training.py",
    "test_runs[tutorials/reward_hacking.ipynb]",
    "test_runs[11_grpo.ipynb]",
    "test_site.py",
    "test_runs[09_coldstart.ipynb]",
    "test_runs[08_features.ipynb]",
    "test_runs[tutorials/gpu.ipynb]",
    "test_pipeline",
    "test_ablation.py",
]


def pytest_collection_modifyitems(items):
    "The slow ones first, the others in their order"

    def rank(item):
        return next((i for i, name in enumerate(SLOW) if name in item.nodeid), len(SLOW))

    items.sort(key=rank)


def copy_project(folder):
    "The project's files in a new folder"
    return Path(shutil.copytree(ROOT, folder, ignore=LEFT_OUT, symlinks=True))


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    "A copy of the project, shared by the tests of a session, in which notebooks are run"
    return copy_project(tmp_path_factory.mktemp("run") / "project")


@pytest.fixture
def scratch(tmp_path):
    "A copy of the project of this test's own"
    return copy_project(tmp_path / "project")

"What all tests share: offline, no telemetry, and a copy of the project that a test may write into"

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.notebooks import OFFLINE

os.environ.update(OFFLINE)
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # a second thread gains little at this size, and waits long where the machine is busy
settings.register_profile("steady", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("steady")
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "runs",
    "build",
    "dist",
    "_docs",
    "_proc",
    "*.egg-info",
    "__pycache__",
    ".pytest_cache",
    ".hypothesis",
    ".ipynb_checkpoints",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers, the tests of a file go to one, which makes their fixtures once; the
    notebooks are spread over all"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "::test_runs[" in nodeid else nodeid.split("::")[0]

    return ByFile(config, log)


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

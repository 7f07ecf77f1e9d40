"""The package: light to import, layered, complete when installed, and free of traces of the
machine it was made on"""

import ast
import configparser
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT

from tools.structure import graph, levels, modules, n_lines, notebooks, own_imports

PACKAGE = ROOT / "affectgpt_r1"
MODULES = modules()
LIGHT = [
    "messages", "processes", "labels", "label_parts", "markup", "fields", "tables", "wheel_files",
    "wheel_tables", "wheels", "scoring", "ew_sums", "benchmark_scores", "metrics", "unibench",
    "terminal", "intervals", "score_inputs", "score_report", "submissions", "benchmark_clips",
    "mentions", "alarms", "more_rewards", "reward_recipes", "rewards", "engines", "harnesses"]
MOST_LINES = 420
MOST_CELL_LINES = 20

ONLY_NUMPY_AND_PANDAS = """
import sys, importlib
allowed = {"numpy", "pandas", "dateutil", "six", "tzdata", "affectgpt_r1"}
allowed |= set(sys.stdlib_module_names)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in allowed or name.startswith("_sysconfigdata"): return
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
read = []
sys.addaudithook(lambda event, args: read.append(str(args[0])) if event == "open" else None)
import affectgpt_r1
for name in sys.argv[1:]: importlib.import_module(f"affectgpt_r1.{name}")
assert [] == [f for f in read if "affectgpt_r1/word_lists/" in f]
"""


def python(code, *args, path=ROOT, **kw):
    "Run code in a new interpreter; what it printed"
    run = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(path)},
        **kw,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def imports(path, inside=True):
    "(level, name) of every module that a file imports, inside functions too unless told otherwise"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            yield from ((0, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.level == 0 or node.module):
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, a.name) for a in node.names)


def settings():
    "settings.ini"
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def required(*groups):
    """Names of the distributions that settings.ini asks for; of all groups that a user installs,
    unless named"""
    cfg = settings()
    keys = groups or [
        k
        for k in cfg
        if k.endswith("requirements") and k not in ("dev_requirements", "docs_requirements")
    ]
    return {plain(re.match(r"[\w.-]+", r)[0]) for k in keys for r in cfg[k].split()}


def test_light_modules_need_numpy_and_pandas_only():
    assert python(ONLY_NUMPY_AND_PANDAS, *LIGHT) == ""


def test_imports_ask_no_host(tmp_path):
    code = """
import sys, importlib
asked = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"): asked.append((event, args))
sys.addaudithook(hook)
for name in sys.argv[1:]: importlib.import_module(f"affectgpt_r1.{name}")
assert not asked, asked
"""
    assert python(code, *MODULES, cwd=tmp_path) == "" and not any(tmp_path.iterdir())


def test_every_module_has_a_notebook():
    files = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "_modidx"}
    assert files == set(notebooks())


def test_modules_stand_on_levels():
    "No circle: levels raises an error where there is one"
    uses = graph()
    level = levels(uses)
    assert all(level[other] < level[m] for m in MODULES for other in uses[m])


def test_a_circle_is_seen():
    with pytest.raises(ValueError, match="a circle among a, b"):
        levels({"a": {"b"}, "b": {"a"}, "c": set()})


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_private_name(module):
    assert {name for _, name in own_imports(module) if name.startswith("_")} == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module):
    assert n_lines(module) <= MOST_LINES


def definitions(module):
    "Public functions and classes of a module"
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.ClassDef
    return [n.name for n in tree.body if isinstance(n, kinds) and n.name[0] != "_"]


def test_no_two_modules_define_the_same_public_name():
    where = {}
    for module in MODULES:
        for name in definitions(module):
            where.setdefault(name, []).append(module)
    assert {name: at for name, at in where.items() if len(at) > 1} == {}


def test_public_names_say_what_they_are():
    "What could mean anything is no name for others to import"
    generic = {"save", "fit", "finish", "cycle", "stack", "average", "quiet", "shuffled", "run"}
    found = {(m, name) for m in MODULES for name in definitions(m)}
    assert not {(m, name) for m, name in found if name in generic}


def callables(module):
    "Public functions and classes of a module, by name"
    public = importlib.import_module(f"affectgpt_r1.{module}")
    found = {name: inspect.unwrap(getattr(public, name)) for name in public.__all__}
    return {name: x for name, x in found.items() if inspect.isroutine(x) or is_built(x)}


def is_built(x):
    "Is it a class that a user makes objects of, and no error?"
    return inspect.isclass(x) and not issubclass(x, Exception)


def without_type(x):
    "Parameters without a type; and `->` where a function does not say what it returns"
    signature = inspect.signature(x)
    for p in signature.parameters.values():
        rest = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if p.annotation is p.empty and not rest:
            yield p.name
    if inspect.isroutine(x) and signature.return_annotation is signature.empty:
        yield "->"


@pytest.mark.parametrize("module", MODULES)
def test_public_signatures_have_types(module):
    found = {name: list(without_type(x)) for name, x in callables(module).items()}
    assert {} == {name: missing for name, missing in found.items() if missing}


def parameters(x):
    "(name, line) of each parameter of a function or class; of a dataclass, of each field"
    has_fields = dataclasses.is_dataclass(x) or hasattr(x, "_fields")
    if inspect.isclass(x) and not has_fields and inspect.isfunction(x.__init__):
        x = x.__init__
    source = textwrap.dedent(inspect.getsource(x))
    (node,) = ast.parse(source).body
    found = [(n.target.id, n) for n in getattr(node, "body", []) if isinstance(n, ast.AnnAssign)]
    if isinstance(node, ast.FunctionDef):
        found = [(a.arg, a) for a in (*node.args.args, *node.args.kwonlyargs)]
    yield from ((name, source.splitlines()[n.lineno - 1]) for name, n in found if name != "self")


@pytest.mark.parametrize("module", MODULES)
def test_public_parameters_are_explained(module):
    "A comment on the line of each, from which nbdev makes the table of parameters"
    found = callables(module).items()
    lines = {(name, p): line for name, x in found for p, line in parameters(x)}
    assert [] == [where for where, line in lines.items() if " # " not in line]


def is_table(source):
    "Does a cell hold one table and nothing else?"
    (node, *others) = ast.parse(source).body
    value = getattr(node, "value", None)
    literal = isinstance(value, (ast.Dict, ast.List, ast.Tuple, ast.Set))
    literal |= isinstance(value, ast.Call) and ast.unparse(value.func) == "dict"
    code = (ast.comprehension, ast.Lambda)
    return literal and not others and not any(isinstance(n, code) for n in ast.walk(node))


def is_free(source):
    "May a cell be longer: is it one table, or nothing but imports?"
    imports = (ast.Import, ast.ImportFrom)
    return is_table(source) or all(isinstance(node, imports) for node in ast.parse(source).body)


@pytest.mark.parametrize("module", MODULES)
def test_no_exported_cell_is_long(module):
    "A definition fits on a screen, with what the page says about it"
    for cell in nbformat.read(notebooks()[module], 4).cells:
        if cell.cell_type != "code" or not cell.source.startswith("#| export"):
            continue
        lines = [line for line in cell.source.splitlines() if not line.startswith("#|")]
        assert len(lines) <= MOST_CELL_LINES or is_free(cell.source), lines[0]


@pytest.mark.parametrize("module", MODULES)
def test_what_it_imports_is_declared(module):
    "No development tool, and nothing that settings.ini does not name"
    names = packages_distributions()

    def undeclared(asked, **how):
        found = imports(PACKAGE / f"{module}.py", **how)
        outside = {name.partition(".")[0] for level, name in found if level == 0}
        outside -= set(sys.stdlib_module_names) | {"affectgpt_r1"}
        return {o for o in outside if not asked & {plain(d) for d in names.get(o, [o])}}

    assert undeclared(required()) == set()
    if module in LIGHT:
        assert undeclared(required("requirements"), inside=False) == set()


def test_what_is_declared_is_imported():
    "pillow alone is needed without an import of ours: by the image processor"
    provided = {top: {plain(d) for d in names} for top, names in packages_distributions().items()}
    used = set().union(
        *(
            provided.get(name.partition(".")[0], {plain(name.partition(".")[0])})
            for m in MODULES
            for level, name in imports(PACKAGE / f"{m}.py")
            if level == 0
        )
    )
    assert required() - used == {"pillow"}


def test_index_of_symbols():
    from affectgpt_r1._modidx import d

    found = {m.removeprefix("affectgpt_r1.") for m in d["syms"]}
    assert {m for m in found if not m.startswith("harness_files.")} == set(MODULES)


def pins(*files):
    "What lock files pin, by name as written there; of the two of an installation, unless named"
    lines = [
        ln
        for name in files or ("requirements.lock", "requirements-torch.lock")
        for ln in (ROOT / name).read_text().splitlines()
    ]
    return dict(
        re.fullmatch(r"([\w.-]+)==([\w.]+)(?: \\)?", ln).groups()
        for ln in lines
        if not ln.startswith(("#", "    --hash=sha256:"))
    )


def test_lock_pins_every_requirement():
    from packaging.requirements import Requirement

    found = pins() | pins("requirements-real.lock")
    versions, cfg = {plain(name): version for name, version in found.items()}, settings()
    for r in (Requirement(r) for k in cfg if k.endswith("requirements") for r in cfg[k].split()):
        assert r.specifier.contains(versions[plain(r.name)]), r


def test_every_pin_but_torch_has_hashes():
    text = (ROOT / "requirements.lock").read_text()
    hashed = re.findall(r"^([\w.-]+)==[\w.]+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
    assert {*hashed} == pins().keys() - {"torch"}


def test_lock_installs_with_the_oldest_python_that_settings_admit():
    from importlib.metadata import metadata
    from packaging.specifiers import SpecifierSet

    asked = {name: metadata(name)["Requires-Python"] or "" for name in pins()}
    assert {} == {
        name: r
        for name, r in asked.items()
        if not SpecifierSet(r).contains(f"{settings()['min_python']}.0")
    }


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SCORES = """
import affectgpt_r1
from affectgpt_r1.metrics import ew_score
from affectgpt_r1.wheels import load_wheels
print(affectgpt_r1.__file__)
print(ew_score([["happy"]], [["happy"]], wheels=load_wheels()).f)
"""


def test_wheel(scratch, tmp_path):
    "Built, it holds the tables and asks for little; installed elsewhere, it imports and scores"
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, scratch], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        str(p.relative_to(ROOT))
        for p in PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert {name for name in packed if ".dist-info/" not in name} == ours
    assert any(name.startswith("affectgpt_r1/word_lists/") for name in packed)
    assert any(name.startswith("affectgpt_r1/harness_files/ew_score/") for name in packed)
    about = zipfile.ZipFile(wheel).read(next(n for n in packed if n.endswith("METADATA"))).decode()
    base = re.findall(r"^Requires-Dist: ([\w.-]+)[^;\n]*$", about, re.M)
    assert {plain(n) for n in base} == {"numpy", "pandas"}
    assert {"train", "media", "plots", "dev", "docs"} <= set(
        re.findall(r"^Provides-Extra: (.+)$", about, re.M)
    )
    assert any(n.endswith("/LICENSE") for n in packed)

    target = tmp_path / "installed"
    subprocess.run(
        [*PIP, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True
    )
    where, score = python(SCORES, path=target, cwd=tmp_path).split()
    assert Path(where).is_relative_to(target) and float(score) == 1


def test_source_archive_in_an_empty_environment(scratch, tmp_path):
    """The archive alone builds the package; in an environment that lends nothing but numpy and
    pandas, it scores"""
    build = (
        "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    )
    archive = python(build, tmp_path, path="", cwd=scratch).splitlines()[-1]
    subprocess.run(
        [
            *PIP,
            "wheel",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            "-w",
            tmp_path,
            tmp_path / archive,
        ],
        check=True,
    )
    venv.create(tmp_path / "venv", with_pip=False)
    bare = tmp_path / "venv/bin/python"
    subprocess.run(
        [*PIP, "--python", bare, "install", "--no-deps", "--no-index", *tmp_path.glob("*.whl")],
        check=True,
    )
    assert subprocess.run([bare, "-c", "import numpy"], capture_output=True).returncode
    lent = tmp_path / "lent"
    lent.mkdir()
    for name in ("numpy", "numpy.libs", "pandas", "pandas.libs", "dateutil", "six.py", "tzdata"):
        for found in Path(np.__file__).parents[1].glob(name):
            (lent / name).symlink_to(found)
    run = subprocess.run(
        [bare, "-c", SCORES],
        env={"PYTHONPATH": str(lent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    where, score = run.stdout.split()
    assert Path(where).is_relative_to(tmp_path / "venv") and float(score) == 1 and not run.stderr
    told = subprocess.run(
        [tmp_path / "venv/bin/affectgpt-r1", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.returncode == 0 and "check-data" in told.stdout and not told.stderr
    command = [tmp_path / "venv/bin/affectgpt-r1", "grpo", "--run-dir", tmp_path]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and 'pip install "affectgpt_r1[all]"' in run.stderr
    assert run.stderr.startswith("error: this command needs ") and run.stderr.count("\n") == 1


def test_what_is_uploaded(scratch, tmp_path):
    "`python -m build` makes both archives, the wheel from the other; twine finds nothing to mend"
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip("twine", reason="twine is not installed")
    built = tmp_path / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", built, scratch]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:]
    files = sorted(built.iterdir())
    version = settings()["version"]
    kinds = ("-py3-none-any.whl", ".tar.gz")
    assert [f.name for f in files] == [f"affectgpt_r1-{version}{kind}" for kind in kinds]
    assert files[0].stat().st_size < 1_000_000   # wheel; what it asks for is numpy and pandas
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout


def test_ruff():
    "No mechanical faults, and no line over 100 columns, in library, notebooks, tools and tests"
    pytest.importorskip("ruff", reason="ruff is not installed")
    made = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout


def texts(path):
    "The text of a file; of a notebook, without its pictures"
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8", errors="ignore")
    res = []
    for cell in nbformat.read(path, 4).cells:
        res.append(cell.source)
        for o in cell.get("outputs", []):
            res += [
                o.get("text", ""),
                *("".join(v) for k, v in o.get("data", {}).items() if k.startswith("text")),
            ]
    return "\n".join(res)


def test_no_machine_paths():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    homes = [
        r"/(?:home|Users)/\w+",
        r"/(?:root)/",
        r"/tmp/\w+",
        r"/opt/\w+",
        r"/mnt/\w+",
        re.escape(str(ROOT)),
        re.escape(str(Path.home())),
    ]
    machine = re.compile(rf"(?<![\w.])(?:{'|'.join(homes)})")
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if (
            path == Path(__file__)
            or path.suffix in {".png", ".gif", ".jpg", ".npz", ".mp4", ".wav"}
            or not path.is_file()
        ):
            continue
        if hits := machine.findall(texts(path)):
            found[name] = hits[:3]
    assert not found

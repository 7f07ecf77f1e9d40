"""Which module of the package imports which, and on which level each of them stands

    python -m tools.structure
"""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "affectgpt_r1"


def notebooks():
    "Module -> its notebook: lessons, tutorials, machinery, as the first cell of each names it"
    found = {}
    for folder in (ROOT / "nbs", ROOT / "nbs/tutorials", ROOT / "nbs/machinery"):
        for path in sorted(folder.glob("*.ipynb")):
            first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
            if first.startswith("#| default_exp "):
                found[first.split()[-1]] = path
    return found


def modules():
    "Names of the modules that a user can import"
    return [name for name in notebooks() if not name.startswith("_")]


def own_imports(module):
    "(module, name) of each import of another module of the package, inside functions too"
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("affectgpt_r1.")]
            found |= {(name.split(".")[1], "") for name in names}
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level == 1 or origin.split(".")[0] == "affectgpt_r1":
                inner = origin.removeprefix("affectgpt_r1").strip(".")
                found |= {(inner, a.name) if inner else (a.name, "") for a in node.names}
    return found


def graph():
    "Module -> modules that it imports from"
    return {m: {other for other, _ in own_imports(m)} for m in modules()}


def levels(uses):
    """Module -> level: 0 imports nothing of ours, every other stands one above the highest that it
    imports; raises ValueError where modules import each other in a circle"""
    level = {}
    while len(level) < len(uses):
        ready = [m for m in uses if m not in level and uses[m] <= level.keys()]
        if not ready:
            raise ValueError(f"a circle among {', '.join(sorted(uses.keys() - level.keys()))}")
        level |= {m: max((level[other] for other in uses[m]), default=-1) + 1 for m in ready}
    return level


def n_lines(module):
    "Lines of a module"
    return len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    uses = graph()
    for module, level in sorted(levels(uses).items(), key=lambda x: (x[1], x[0])):
        print(f"{level}  {module:16}{n_lines(module):5}  {', '.join(sorted(uses[module]))}")

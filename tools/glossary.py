"""Terms of the glossary that a page uses without a link to them

python -m tools.glossary            lists them
python -m tools.glossary --write    links each one where the page uses it first
"""

import argparse
import re
import textwrap
from pathlib import Path

import nbformat

from tools.measure import NBS, WIDTH

GLOSSARY = NBS / "pages/glossary.ipynb"
TERMS = {  # anchor in the glossary -> its forms; everyday words such as "group" are left out
    "advantage": "(?i:advantages?)",
    "alignment-reward": "(?i:alignment rewards?)",
    "best-of-k": "(?i:best of k)|pass@k",
    "bootstrap-interval": "(?i:bootstrap)",
    "checkpoint": "(?i:checkpoints?)",
    "cold-start": "(?i:cold starts?)",
    "constant-answer": "(?i:constant answers?)",
    "dual-reward": "(?i:dual rewards?)",
    "emotion-wheel": "(?i:emotion wheels?)",
    "entropy": "(?i:entropy)",
    "ew-f": "EW F|EW score",
    "format-reward": "(?i:format rewards?)",
    "fsdp-and-zero": "FSDP2?|ZeRO",
    "fusion": "(?i:fusion)",
    "grpo": "GRPO",
    "hit-rate": "(?i:hit rates?)",
    "kl-divergence": "KL(?: divergence)?",
    "length-penalty": "(?i:length penalt(?:y|ies))",
    "lora": "LoRA",
    "mer-caption": r"MER-Caption\+",
    "mer-unibench": "MER-UniBench",
    "ov-mer": "OV-MER",
    "ov-merd": r"OV-MERD\+",
    "perception-reward": "(?i:perception rewards?)",
    "placeholder": "(?i:placeholders?)",
    "policy": r"(?i:polic(?:y|ies))(?!\soptimi)",
    "soft-token": "(?i:soft tokens?)",
    "temperature": "(?i:temperatures?)",
    "waf": "WAF",
}
SKIPPED = re.compile(  # code, formulas, links, tags, headings, tables, quotations
    r"^(`{3,}|~{3,}).*?^\1|`[^`]+`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<[^>]+>"
    r"|^#+ .*?$|^\|.*?$|^>.*?$",
    re.M | re.S,
)
MARKUP = re.compile(r"\s*(?:[-*+]|\(?\w{1,5}[.)]|#+|>|\|)(?:\s|$)")  # at the head of a line


def prose(source):
    "A Markdown cell with what is no prose blanked out, at its old length"
    return SKIPPED.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), source)


def first_use(
    sources,  # Of the Markdown cells of a page, in order
    forms,  # Of a term, from `TERMS`
):
    "Number of the cell, begin and end; None if the term is not used"
    pattern = re.compile(rf"(?<![\w-])(?:{forms})(?![\w-])".replace(" ", r"\s"))
    for number, source in enumerate(sources):
        if found := pattern.search(prose(source)):
            return number, *found.span()


def missing_terms(
    sources,  # Of the Markdown cells of a page, in order, without its title
):
    "Anchors of the terms that a page uses and does not link"
    linked = set(re.findall(r"glossary\.ipynb#([\w-]+)\)", "\n".join(sources)))
    return [t for t, forms in TERMS.items() if t not in linked and first_use(sources, forms)]


def rewrapped(paragraph):
    "Its lines at most 100 characters long, where that can be done without a change of meaning"
    lines = paragraph.splitlines()
    if max(map(len, lines)) <= WIDTH or any(line.endswith(("  ", "\\")) for line in lines):
        return paragraph
    mark = re.match(r"\s*(?:[-*+]\s+|\d+[.)]\s+)?", lines[0])[0]
    rest = " " * len(mark)
    if any(len(x) - len(x.lstrip()) != len(rest) for x in lines[1:]):
        rest = re.match(r"\s*", lines[-1])[0]
    text = " ".join(line.strip() for line in [lines[0][len(mark) :], *lines[1:]])
    for width in range(WIDTH, WIDTH - 30, -1):
        made = textwrap.wrap(
            text,
            width,
            initial_indent=mark,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if not any(map(MARKUP.match, made[1:])):
            return "\n".join(made)
    return paragraph


def paragraph_around(source, at):
    "Begin and end of the paragraph, or of the item of a list, that holds a place"
    begins = [0, *(m.end() for m in re.finditer(r"\n\s*\n", source))]
    begins += [m.start() for m in re.finditer(r"^[ \t]*(?:[-*+]|\d+[.)])\s", source, re.M)]
    begins += [m.end() + 1 for m in re.finditer(r"^(?:#|\||>|```).*$", source, re.M)]
    begin = max(b for b in begins if b <= at)
    ends = [m.start() for m in re.finditer(r"\n\s*\n", source)] + [len(source)]
    ends += [b - 1 for b in begins if b > begin]
    return begin, min(e for e in ends if e > at)


def linked(
    sources,  # Of the Markdown cells of a page, in order, without its title
    address,  # Of the glossary, seen from the page
):
    "The same with a link at the first use of each missing term"
    sources = list(sources)
    for term in missing_terms(sources):
        number, begin, end = first_use(sources, TERMS[term])
        source = sources[number]
        source = f"{source[:begin]}[{source[begin:end]}]({address}#{term}){source[end:]}"
        low, high = paragraph_around(source, begin)
        sources[number] = source[:low] + rewrapped(source[low:high]) + source[high:]
    return sources


def prose_cells(nb):
    "The Markdown cells of a notebook, but for its title"
    return [cell for cell in nb.cells if cell.cell_type == "markdown"][1:]


def pages():
    "All notebooks but the glossary itself"
    found = (p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts)
    return [path for path in found if path != GLOSSARY]


def unlinked(
    path,  # A notebook
):
    "Anchors of the terms that it uses and does not link"
    return missing_terms([cell.source for cell in prose_cells(nbformat.read(path, 4))])


def write_links(
    path,  # A notebook, below nbs/
):
    "Link the missing terms in place"
    nb = nbformat.read(path, 4)
    cells = prose_cells(nb)
    up = "../" * len(path.relative_to(NBS).parent.parts)
    address = "glossary.ipynb" if path.parent == GLOSSARY.parent else f"{up}pages/glossary.ipynb"
    for cell, source in zip(cells, linked([c.source for c in cells], address), strict=True):
        cell.source = source
    nbformat.write(nb, path)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("notebooks", nargs="*", type=Path, help="all of them, unless given")
    ap.add_argument("--write", action="store_true", help="insert the links")
    args = ap.parse_args()
    for path in [p.resolve() for p in args.notebooks] or pages():
        if found := unlinked(path):
            print(f"{path.relative_to(NBS)}: {', '.join(found)}")
        if found and args.write:
            write_links(path)

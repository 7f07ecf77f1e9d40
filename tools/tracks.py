"""The three tracks through the pages, and how many minutes they take

python -m tools.tracks
"""

import re

import nbformat

from tools.measure import NBS, WORDS, measure

CLAIMS = "tutorials/claims.ipynb"


def study_minutes(
    name,  # A notebook below nbs/
    code=True,  # Count the code, too?
):
    "Minutes for the prose of a page, and for the code that it shows"
    page = measure(NBS / name)
    return page.minutes if code else page.words / WORDS


def pages(folder, pattern="*"):
    "Names of notebooks, in order"
    return sorted(str(p.relative_to(NBS)) for p in (NBS / folder).glob(f"{pattern}.ipynb"))


def tracks():
    "Name -> whether its readers read the code, and its pages"
    chapters = pages("", "[01]*")
    evening = [name for name in chapters if re.match("0[123]_|1[012]_", name)]
    first = ["index.ipynb", "00_overview.ipynb", "tutorials/pipeline.ipynb", CLAIMS]
    return {
        "Half an hour": (False, first),
        "An evening": (True, [*evening, CLAIMS]),
        "Everything": (True, [*chapters, *pages("tutorials")]),
    }


def title(name):
    "The first heading of a page; of the README, its name"
    if name == "index.ipynb":
        return "README"
    cells = nbformat.read(NBS / name, 4).cells
    first = next(c.source for c in cells if c.cell_type == "markdown")
    return first.partition("\n")[0].strip("# ")


def in_hours(minutes):
    "As `45 minutes` or `3 h 20 min`"
    hours, minutes = divmod(round(minutes), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} minutes"


def track_line(
    track,  # Its name
):
    "A track with its minutes, and its pages with theirs, in Markdown"
    code, names = tracks()[track]
    minutes = [study_minutes(name, code) for name in names]
    told = [f"[{title(name)}]({name}) {m:.0f}" for name, m in zip(names, minutes)]
    return f"- **{track}**, {in_hours(sum(minutes))}: {', '.join(told)}."


if __name__ == "__main__":
    print("\n".join(map(track_line, tracks())))

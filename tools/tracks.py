"""The three tracks through the pages, and how many minutes they take

python -m tools.tracks    # prints them, and writes nbs/tracks.yml
"""

import re

import nbformat
import yaml

from tools.measure import NBS, WORDS, measure

PAGES = NBS / "tracks.yml"
CLAIMS = "tutorials/claims.ipynb"


def study_minutes(
    name,  # A notebook below nbs/
    code=True,  # Count the code, too?
):
    "Minutes for the prose of a page, and for the code that it shows"
    page = measure(NBS / name)
    return page.minutes if code else page.words / WORDS


def page_name(
    notebook,  # Path of a notebook, or a link to one
):
    "Where nbdev and Quarto put its page: `04_media.ipynb` becomes `media.html`"
    folder, slash, name = notebook.rpartition("/")
    page = re.sub(r"^\d+[a-z]?_", "", name).removesuffix(".ipynb")
    return f"{folder}{slash}{page}.html"


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


def anchor(track):
    "Where the map describes a track"
    return track.lower().replace(" ", "-")


def in_hours(minutes):
    "As `45 minutes` or `3 h 20 min`"
    hours, minutes = divmod(round(minutes), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} minutes"


def track_line(
    track,  # Its name
):
    "The minutes of a track and those of its pages, in Markdown"
    code, names = tracks()[track]
    minutes = [study_minutes(name, code) for name in names]
    listed = [f"[{title(name)}]({name}) {m:.0f}" for name, m in zip(names, minutes)]
    return f"**{in_hours(sum(minutes))}**: {', '.join(listed)}."


def track_row(
    track,  # Its name
):
    "A track with its minutes as a row of the README's table, in Markdown"
    code, names = tracks()[track]
    minutes = in_hours(sum(study_minutes(name, code) for name in names))
    links = [f"[{title(n)}]({n})" if n != "index.ipynb" else "this page" for n in names]
    listed = ", ".join(links) if len(names) < 10 else "all chapters in order, then the tutorials"
    return f"| [{track}](00_overview.ipynb#{anchor(track)}) | {minutes} | {listed} |"


def page_list():
    """What site.lua needs to lead on along the tracks, as YAML: their names, where the map
    describes them, and their pages"""
    written = []
    for track, (_, names) in tracks().items():
        entries = [dict(notebook=n, href=page_name(n), title=title(n)) for n in names]
        place = f"{page_name('00_overview.ipynb')}#{anchor(track)}"
        written.append(dict(name=track, href=place, pages=entries))
    return "# By python -m tools.tracks\n" + yaml.safe_dump({"tracks": written}, sort_keys=False)


if __name__ == "__main__":
    for name in tracks():
        print(f"{name}: {track_line(name)}")
    PAGES.write_text(page_list(), encoding="utf-8")

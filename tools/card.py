"""The picture that a shared link shows, and the icon of the site: a wheel of emotions, drawn here

python -m tools.card
"""

import math

import matplotlib
import matplotlib.pyplot as plt

from tools.notebooks import ROOT, get_config

COLOURS = [
    "#f0c419",
    "#e69f00",
    "#d55e00",
    "#cc79a7",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#a6c945",
]  # told apart by the colour-blind


def ring(ax, x, y, radius, width):
    "A ring of one sector per colour"
    step = 360 / len(COLOURS)
    for i, colour in enumerate(COLOURS):
        ax.add_patch(
            matplotlib.patches.Wedge(
                (x, y),
                radius,
                i * step,
                (i + 1) * step,
                width=width,
                color=colour,
                ec="white",
                lw=3,
            )
        )


def card(path):
    "The social card, 1200 by 630 pixels"
    cfg = get_config(path=ROOT)
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 6.3))
    ax.axis("off")
    ring(ax, 9.3, 3.15, 2.4, 0.85)
    ring(ax, 9.3, 3.15, 1.4, 0.75)
    ax.text(0.8, 3.9, cfg.title, fontsize=50, weight="bold", color="#1d2126", va="center")
    about = cfg.description.replace(" for ", "\nfor ").replace(
        " emotion recognition", "\nemotion recognition"
    )
    ax.text(0.8, 2.3, about, fontsize=22, color="#5b6570", va="center", linespacing=1.4)
    fig.savefig(path, metadata={"Software": None})
    plt.close(fig)


def icon(path):
    "The icon, as SVG: the sectors of the wheel"
    n, sectors = len(COLOURS), []
    for i, colour in enumerate(COLOURS):
        (x0, y0), (x1, y1) = (
            (16 + 15 * math.cos(2 * math.pi * k / n), 16 + 15 * math.sin(2 * math.pi * k / n))
            for k in (i, i + 1)
        )
        sectors.append(
            f'<path fill="{colour}" d="M16 16L{x0:.1f} {y0:.1f}A15 15 0 0 1 {x1:.1f} {y1:.1f}Z"/>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{"".join(sectors)}'
        '<circle cx="16" cy="16" r="5" fill="#fff"/></svg>\n'
    )
    path.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    matplotlib.use("Agg")
    card(ROOT / "nbs/card.png")
    icon(ROOT / "nbs/favicon.svg")

"""What panels are made of: curves along compute, groups of bars, the paper's hatched bars."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from gp_virl.plots.curves import Curve, smooth
from gp_virl.plots.look import (
    BRIEF_PANELS,
    CHANGE,
    COLOURS,
    DASHES,
    MARKERS,
    NAMES,
    PERCENT,
    points,
)

PRIOR = "#A86400"  # the paper's orange, dark enough to be read
NARROW = 7.5  # points, of numbers over narrow bars
Scores = Mapping[tuple[str, str], tuple[float, float]]  # (branch, group) -> (value, error)


def draw_curve(panel: Axes, along: Curve, unit: float) -> None:
    """A smoothed line, and its points with errors or, of several seeds, a band."""
    x, colour = along.flops / unit, COLOURS[along.branch]
    mark = MARKERS[along.branch]
    style = {"color": colour, "linestyle": DASHES[along.branch], "label": NAMES[along.branch]}
    panel.plot(x, smooth(along.value), linewidth=2.2, zorder=3, solid_capstyle="round", **style)
    if len(along.seeds) > 1:
        low, high = smooth(along.value - along.error), smooth(along.value + along.error)
        panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        for values in along.seeds:
            panel.plot(x[1:], values[1:], mark, color=colour, markersize=3, alpha=0.45)
        return
    bars = {"fmt": mark, "markersize": 4, "elinewidth": 1, "capsize": 2, "alpha": 0.6}
    panel.errorbar(x[1:], along.value[1:], along.error[1:], color=colour, **bars)


def draw_init(panel: Axes, init: Curve, unit: float) -> None:
    """The shared first point, and its level across the panel."""
    x, y = init.flops[0] / unit, init.value[0]
    panel.axhline(y, color=COLOURS["init"], linewidth=0.9, linestyle=":", zorder=1)
    shape = {"fmt": MARKERS["init"], "markersize": 7, "color": COLOURS["init"], "zorder": 5}
    panel.errorbar(x, y, init.error[0], capsize=2, elinewidth=1, label=NAMES["init"], **shape)


def draw_groups(
    panel: Axes,
    groups: Sequence[str],
    branches: Sequence[str],
    scores: Scores,
    size: float | None = None,
) -> None:
    """One group of bars a split, with errors, and the change from Init above each other bar.

    `size` is of these numbers, by default what the bars' width allows.
    """
    width = 0.8 / len(branches)
    size = size or (7 if width < 0.25 else 9)
    for place, branch in enumerate(branches):
        there = [i for i, split in enumerate(groups) if (branch, split) in scores]
        value, error = np.array([scores[branch, groups[i]] for i in there]).T
        x = np.array(there) + (place - (len(branches) - 1) / 2) * width
        shape = {"width": width * 0.92, "color": COLOURS[branch], "label": NAMES[branch]}
        panel.bar(x, value, yerr=error, ecolor="#222222", error_kw={"capsize": 2}, **shape)
        for at, top, spread, i in zip(x, value, error, there, strict=True):
            if branch != "init":
                change = points(top - scores["init", groups[i]][0])
                above(panel, at, top + spread, change, COLOURS[branch], size)
    panel.set_xticks(range(len(groups)), [BRIEF_PANELS[split] for split in groups])


def draw_paper(
    panel: Axes,
    paper: Mapping[str, float],
    places: Sequence[float],
    width: float,
    size: float = 9,
) -> None:
    """The paper's hatched bars, in %, and the change from Init above each other bar."""
    for x, (branch, value) in zip(places, paper.items(), strict=True):
        colour = COLOURS[branch]
        panel.bar(
            x, value / 100, width, color="white", edgecolor=colour, hatch="////", linewidth=1.4
        )
        if branch != "init":
            change = points((value - paper["init"]) / 100)
            above(panel, x, value / 100, change, colour, size)


def draw_beside_paper(
    panel: Axes,
    branches: Sequence[str],
    scores: Scores,
    split: str,
    paper: Mapping[str, float],
    prior: float | None = None,
) -> None:
    """The bars of one split here, and the paper's with, marked, the best before it; both in %."""
    draw_groups(panel, (split,), branches, scores, NARROW)
    width = 0.8 / len(branches)
    places = [1 + (i - 1) * width for i in range(len(paper))]
    draw_paper(panel, paper, places, 0.92 * width, NARROW)
    if prior is not None:
        panel.hlines(prior / 100, 0.55, 1.5, color=PRIOR, linewidth=2, zorder=4)
        place = {"ha": "right", "va": "bottom", "fontsize": 8, "color": PRIOR}
        panel.text(1.5, prior / 100, f"prior\nbest {prior:.1f}", fontweight="bold", **place)
    panel.set_xticks((0, 1), ("this run", "paper, 11B"))
    panel.set_xlim(-0.5, 1.5)
    bar_axis(panel)
    for text in panel.texts:  # wider than its bar: it may stand over the next one
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    top = min(panel.get_ylim()[1], 1.001)
    panel.set_yticks([tick for tick in panel.get_yticks() if tick <= top])


def draw_changes(
    panel: Axes, groups: Sequence[str], branches: Sequence[str], changes: Scores
) -> None:
    """One group of bars a study: changes of a share with errors, up and down from 0."""
    width = 0.8 / len(branches)
    for place, branch in enumerate(branches):
        there = [i for i, group in enumerate(groups) if (branch, group) in changes]
        value, error = np.array([changes[branch, groups[i]] for i in there]).T
        x = np.array(there) + (place - (len(branches) - 1) / 2) * width
        shape = {"width": width * 0.92, "color": COLOURS[branch], "label": NAMES[branch]}
        panel.bar(x, value, yerr=error, ecolor="#222222", error_kw={"capsize": 2}, **shape)
        for at, change, spread in zip(x, value, error, strict=True):
            if change < 0:
                below(panel, at, change - spread, points(change), COLOURS[branch], NARROW)
            else:
                above(panel, at, change + spread, points(change), COLOURS[branch], NARROW)
    panel.axhline(0, color=COLOURS["init"], linewidth=0.9)
    panel.set_xticks(range(len(groups)), groups)
    panel.set_xlim(-0.5, len(groups) - 0.5)
    panel.margins(y=0.12)
    panel.yaxis.set_major_formatter(CHANGE)


def bar_axis(panel: Axes) -> None:
    """From 0, with room for the numbers above the bars."""
    panel.set_ylim(0, max(0.05, min(1.12, 1.12 * panel.get_ylim()[1])))
    panel.yaxis.set_major_formatter(PERCENT)


def above(panel: Axes, x: float, y: float, text: str, colour: str, size: float) -> None:
    """A bold number three points above (x, y)."""
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    panel.annotate(text, (x, y), fontsize=size, fontweight="bold", color=colour, **place)


def below(panel: Axes, x: float, y: float, text: str, colour: str, size: float) -> None:
    """A bold number three points below (x, y)."""
    place = {"xytext": (0, -3), "textcoords": "offset points", "ha": "center", "va": "top"}
    panel.annotate(text, (x, y), fontsize=size, fontweight="bold", color=colour, **place)

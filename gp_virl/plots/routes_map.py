"""A map of one route, and what one sees on the way."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ACROSS = 4  # street views in a row
COLOURS = {"turn": "#D55E00", "forward": "#0072B2", "stop": "#222222"}
NAMED, OTHER = "#B0568C", "#A8A8A8"  # landmarks that the instructions name, and the others
LOOK = {"font.family": "DejaVu Sans", "font.size": 9, "figure.dpi": 150}
MARGIN = 45.0  # metres around the route
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True)
class Stop:
    """A waypoint of the map; metres east and north of any common origin."""

    xy: tuple[float, float]
    heading: float | None  # degrees on arriving; None where it is not known
    kind: str  # turn, forward or stop
    caption: str  # written above its street view; its lines stay lines
    view: UInt8[np.ndarray, "size size 3"] | None = None


def route_map(
    title: str,
    stops: Sequence[Stop],
    landmarks: Mapping[str, tuple[float, float]] | None = None,
    streets: Float[np.ndarray, "S 2 2"] | None = None,
    sentences: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """The route on its streets, north up, its instructions, and a strip of the street views.

    Streets are pairs of ends; stops, landmarks and streets share an origin; landmarks that the
    sentences name stand out. Raises ValueError for a route without stops.
    """
    if not stops:
        raise ValueError("stops: given none, allowed: at least one waypoint")
    shown = [(number, stop) for number, stop in enumerate(stops, 1) if stop.view is not None]
    rows = -(-len(shown) // ACROSS)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(11, 5.8 + 3.1 * rows), layout="constrained")
        grid = figure.add_gridspec(1 + rows, ACROSS, height_ratios=[5.4] + [3.1] * rows)
        axes = figure.add_subplot(grid[0, :-1])
        _draw_map(axes, stops, streets)
        _draw_landmarks(axes, stops, landmarks or {}, " ".join(sentences))
        side = figure.add_subplot(grid[0, -1])
        side.axis("off")
        side.legend(*axes.get_legend_handles_labels(), loc="lower left", frameon=False)
        lines = [textwrap.fill(f"{i}. {said}", 34) for i, said in enumerate(sentences, 1)]
        lines += ["", textwrap.fill(note, 34)] if note else []
        side.text(0, 1, "\n".join(lines), va="top", transform=side.transAxes)
        figure.suptitle(title)
        for cell, (number, stop) in enumerate(shown):
            axes = figure.add_subplot(grid[1 + cell // ACROSS, cell % ACROSS])
            axes.imshow(stop.view)
            axes.axis("off")
            caption = f"{number}. {stop.caption}".splitlines()
            text = "\n".join(textwrap.fill(line, 45) for line in caption)
            axes.set_title(text, fontsize=8, loc="left", color=COLOURS[stop.kind])
    return figure


def _draw_map(axes: Axes, stops: Sequence[Stop], streets) -> None:
    for street in () if streets is None else streets:
        axes.plot(*street.T, color="#E2E2E2", lw=10, solid_capstyle="round", zorder=1)
    way = np.array([stop.xy for stop in stops])
    axes.plot(*way.T, color="#888888", lw=1.5, zorder=2)
    for kind, colour in COLOURS.items():
        there = np.array([stop.xy for stop in stops if stop.kind == kind]).reshape(-1, 2)
        axes.scatter(*there.T, s=95, color=colour, label=kind, zorder=3)
    for number, stop in enumerate(stops, 1):
        axes.annotate(
            str(number), stop.xy, color="white", ha="center", va="center", fontsize=7, zorder=5
        )
        if stop.heading is not None:
            angle = np.radians(stop.heading)
            axes.quiver(
                *stop.xy, np.sin(angle), np.cos(angle), angles="uv", scale=21, width=0.005,
                headwidth=4, headlength=4, headaxislength=3.5, color=COLOURS[stop.kind],
                zorder=2.5,
            )  # fmt: skip
    low, high = way.min(0) - MARGIN, way.max(0) + MARGIN
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set(xlabel="metres east of the start", ylabel="metres north of the start")


def _draw_landmarks(axes: Axes, stops: Sequence[Stop], landmarks, told: str) -> None:
    """Stars with names."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for name, (x, y) in landmarks.items():
        if not (left <= x <= right and low <= y <= high):
            continue
        colour, size, order = (NAMED, 13, 4) if name in told else (OTHER, 9, 1.2)
        axes.plot(x, y, marker="*", ms=size, color=colour, zorder=order)
        eastward = _free_side(axes, stops, name, (x, y))
        axes.annotate(
            name, (x, y), (7 * eastward, 0), textcoords="offset points", va="center",
            ha="left" if eastward > 0 else "right", fontsize=8, zorder=order + 0.1, clip_on=True,
            color="#222222" if name in told else "#777777", path_effects=HALO,
        )  # fmt: skip


def _free_side(axes: Axes, stops: Sequence[Stop], name: str, xy: tuple[float, float]) -> int:
    """1 or -1: east or west of a place, where its name leaves the map less and hides fewer stops.

    A letter is taken to be 0.065 inches wide and a line 0.13 high, on a map of about 7.5 x 5.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    inch = max((right - left) / 7.5, (high - low) / 5)  # metres
    long, tall = (len(name) + 2) * 0.065 * inch, 0.13 * inch
    costs = {}
    for side in (1, -1):
        ends = sorted((xy[0], xy[0] + side * long))
        hidden = [
            ends[0] <= stop.xy[0] <= ends[1] and abs(stop.xy[1] - xy[1]) < tall for stop in stops
        ]
        outside = max(0.0, left - ends[0], ends[1] - right)
        costs[side] = sum(hidden) + len(stops) * outside / long
    return min(costs, key=costs.__getitem__)

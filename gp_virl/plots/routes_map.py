"""A map of one route, and what one sees on the way."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ACROSS = 4  # street views in a row
COLOURS = {"turn": "#D55E00", "forward": "#0072B2", "stop": "#222222"}
LOOK = {"font.family": "DejaVu Sans", "font.size": 9, "savefig.dpi": 150}
MARGIN = 45.0  # metres around the route


@dataclass(frozen=True)
class Stop:
    """A waypoint of the map; metres east and north of any common origin."""

    xy: tuple[float, float]
    heading: float | None  # degrees on arriving; None where it is not known
    kind: str  # turn, forward or stop
    caption: str  # written above its street view
    view: UInt8[np.ndarray, "size size 3"] | None = None


def route_map(
    title: str,
    stops: Sequence[Stop],
    landmarks: Mapping[str, tuple[float, float]] | None = None,
    streets: Float[np.ndarray, "S 2 2"] | None = None,
    sentences: Sequence[str] = (),
) -> Figure:
    """The route on its streets, north up, its instructions, and a strip of the street views.

    Streets are pairs of ends; stops, landmarks and streets share an origin. Raises ValueError
    for a route without stops.
    """
    if not stops:
        raise ValueError("stops: given none, allowed: at least one waypoint")
    shown = [(number, stop) for number, stop in enumerate(stops, 1) if stop.view is not None]
    rows = -(-len(shown) // ACROSS)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(11, 5.4 + 3.0 * rows), layout="constrained")
        grid = figure.add_gridspec(1 + rows, ACROSS, height_ratios=[5.0] + [3.0] * rows)
        axes = figure.add_subplot(grid[0, :-1])
        _draw_map(axes, stops, landmarks or {}, streets)
        side = figure.add_subplot(grid[0, -1])
        side.axis("off")
        side.legend(*axes.get_legend_handles_labels(), loc="lower left", frameon=False)
        lines = [textwrap.fill(f"{i}. {said}", 34) for i, said in enumerate(sentences, 1)]
        side.text(0, 1, "\n".join(lines), va="top", transform=side.transAxes)
        figure.suptitle(title)
        for cell, (number, stop) in enumerate(shown):
            axes = figure.add_subplot(grid[1 + cell // ACROSS, cell % ACROSS])
            axes.imshow(stop.view)
            axes.axis("off")
            axes.set_title(textwrap.fill(f"{number}. {stop.caption}", 36), fontsize=8)
    return figure


def _draw_map(axes: Axes, stops: Sequence[Stop], landmarks, streets) -> None:
    for street in () if streets is None else streets:
        axes.plot(*street.T, color="#D8D8D8", lw=9, solid_capstyle="round", zorder=1)
    way = np.array([stop.xy for stop in stops])
    axes.plot(*way.T, color="#888888", lw=1.5, zorder=2)
    for kind, colour in COLOURS.items():
        there = np.array([stop.xy for stop in stops if stop.kind == kind]).reshape(-1, 2)
        axes.scatter(*there.T, s=90, color=colour, label=kind, zorder=3)
    for number, stop in enumerate(stops, 1):
        axes.annotate(
            str(number), stop.xy, color="white", ha="center", va="center", fontsize=7, zorder=5
        )
        if stop.heading is not None:
            angle = np.radians(stop.heading)
            axes.quiver(*stop.xy, np.sin(angle), np.cos(angle), scale=28, width=0.004, zorder=2.5)
    low, high = way.min(0) - MARGIN, way.max(0) + MARGIN
    for name, xy in landmarks.items():
        if (low <= xy).all() and (xy <= high).all():
            axes.plot(*xy, marker="*", ms=11, color="#B0568C", zorder=4)
            axes.annotate(name, xy, (5, 4), textcoords="offset points", fontsize=8, clip_on=True)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set(xlabel="metres east", ylabel="metres north")

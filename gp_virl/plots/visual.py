"""The paper's figures about seeing: other looks (7), recognition against success (8)."""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gp_virl.plots import figures
from gp_virl.plots.curves import Curve, equal_compute
from gp_virl.plots.drawing import draw_beside_paper
from gp_virl.plots.look import (
    BRIEF_PANELS,
    COLOURS,
    EQUAL,
    FAINT,
    LINES,
    LOOK,
    NAMES,
    PERCENT,
    SPREAD,
    branches,
    caption,
    compute_label,
    legend,
    protocol,
    unit_of,
)
from gp_virl.plots.paper import PAPER, PRIOR_BEST
from gp_virl.plots.results import Record, ResultsError
from gp_virl.plots.studies import Column, Study, absent, column, columns, nothing, sizes

SPLIT = "visual_ood"
SHOWN = ("init", "rl", "sft")
OODS = ("rule_ood", "visual_ood")
SEEN = {True: ("*", "#00805E", 110), False: ("o", "#7A3E9D", 36)}  # ID or not: marker, colour, area
PAIRS = "A line joins ID and OOD of one checkpoint; the more compute, the more opaque. "
REAL = "The paper's V-IRL-VL, and the best before it: success on 18 real routes in nine cities."
FAINTEST = 0.2  # opacity of Init


def fig7(
    studies: Sequence[Study],
    tries: int | None = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Success on the other look: along compute, and at equal compute beside the paper's.

    A row for each of GP-VL and V-IRL-VL that is there; of V-IRL-VL the best before the paper is
    marked. Raises ResultsError, with what to run, if neither has Init, RL and SFT.
    """
    wanted = {"gp_vl": "success", "virl_vl": "success"}
    found, lacking = columns(studies, wanted, (SPLIT,), tries, decoding)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 1.0 + 3.0 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), 2, width_ratios=(1.25, 1), squeeze=False)
        for one, (left, right) in zip(found, axes, strict=True):
            fit, place = one.fits[SPLIT], (one.study.task, SPLIT)
            figures.draw_along(left, fit, unit_of(fit))
            left.set_title(
                f"{one.study.name}: {BRIEF_PANELS[SPLIT]}", loc="left", fontweight="bold"
            )
            left.set_ylabel(f"Success, {protocol(one.tries, decoding)}")
            names = ("init", *branches(fit))
            scores = figures.scores_at({SPLIT: fit}, names, equal_compute(fit))
            draw_beside_paper(right, names, scores, SPLIT, PAPER[place], PRIOR_BEST.get(place))
            right.set_title("At equal compute", loc="left", fontweight="bold")
        legend(figure, *axes[:, 0])
        figure.suptitle(title or None, x=0.01, ha="left")
        caption(
            figure,
            LINES + SPREAD,
            EQUAL + " Numbers on bars: points gained over Init.",
            REAL * any(one.study.task == "virl_vl" for one in found),
            sizes(found, decoding),
            absent(lacking),
        )
    return figure


def fig8(
    studies: Sequence[Study],
    tries: int | None = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Recognition against success of GP-VL: panels RL and SFT for every OOD split that is there.

    In each panel ID (stars) and OOD (circles) of a checkpoint are joined by a line; the later the
    checkpoint, the less transparent. Bars are standard errors. Raises ResultsError, with what to
    run, if no OOD split has both metrics for Init, RL and SFT.
    """
    found = _sights(studies, tries, decoding)
    drawn = [fit for one in found for part in one.columns for fit in part.fits.values()]
    records = [record for fit in drawn for record in fit if record.branch in SHOWN]
    unit = unit_of(records)
    scale = Normalize(*(end(r.compute_flops for r in records) / unit for end in (min, max)))
    success, recognition = found[0].columns
    with matplotlib.rc_context(LOOK | {"axes.grid.axis": "both"}):
        figure = Figure(figsize=(9, 1.3 + 3.1 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), 2, sharex=True, sharey=True, squeeze=False)
        for one, row in zip(found, axes, strict=True):
            for panel, branch in zip(row, ("rl", "sft"), strict=True):
                _draw_pairs(panel, one, branch, unit, scale)
                text = f"{NAMES[branch]}: ID and {BRIEF_PANELS[one.ood]}"
                panel.set_title(text, loc="left", fontweight="bold", color=COLOURS[branch])
        for panel in axes[-1]:
            panel.set_xlabel(f"Success, {protocol(success.tries, decoding)}")
        for panel in axes[:, 0]:
            panel.set_ylabel(f"Recognition, {protocol(recognition.tries, decoding, 'recognition')}")
        axes[0, 0].xaxis.set_major_formatter(PERCENT)
        axes[0, 0].yaxis.set_major_formatter(PERCENT)
        _draw_opacities(figure, axes, scale, unit)
        _name_marks(figure)
        figure.suptitle(title or success.study.title or None, x=0.01, ha="left")
        caption(figure, PAIRS + SPREAD, sizes((success, recognition), decoding))
    return figure


@dataclasses.dataclass(frozen=True)
class Sight:
    """Success and recognition at the checkpoints where both were measured on ID and on `ood`."""

    ood: str
    columns: tuple[Column, Column]

    def along(self, split: str, branch: str) -> tuple[Curve, Curve]:
        """(success, recognition) of a branch, with the same points."""
        success, recognition = self.columns
        return success.along(split, branch), recognition.along(split, branch)


def _sights(studies: Sequence[Study], tries: int | None, decoding: str) -> list[Sight]:
    """A Sight for every OOD split of the GP-VL study that has one."""
    found, lacking = [], []
    for study in studies:
        for ood in OODS if study.task == "gp_vl" else ():
            try:
                found.append(_sight(study, ood, tries, decoding))
            except ResultsError as missing:
                lacking.append(str(missing))
    if not found:
        raise nothing(
            studies, {"gp_vl": "recognition and success"}, ("id", "an OOD split"), lacking
        )
    return found


def _sight(study: Study, ood: str, tries: int | None, decoding: str) -> Sight:
    metrics = ("success", "recognition")
    whole = [column(study, ("id", ood), metric, tries, decoding) for metric in metrics]
    fits = [fit for one in whole for fit in one.fits.values()]
    shared = set.intersection(*({_checkpoint(record) for record in fit} for fit in fits))
    kept = dataclasses.replace(
        study, records=[record for record in study.records if _checkpoint(record) in shared]
    )
    return Sight(ood, tuple(column(kept, ("id", ood), m, tries, decoding) for m in metrics))


def _checkpoint(record: Record) -> tuple[str, int, int]:
    return record.branch, record.updates, record.seed


def _draw_pairs(panel: Axes, sight: Sight, branch: str, unit: float, scale: Normalize) -> None:
    """ID and OOD of every checkpoint of a branch, joined; more opaque with more compute."""
    sides = {split: sight.along(split, branch) for split in ("id", sight.ood)}
    opacity = FAINTEST + (1 - FAINTEST) * scale(sides["id"][0].flops / unit).data
    ends = [(success.value, recognition.value) for success, recognition in sides.values()]
    for x, y, alpha in zip(*np.array(ends).transpose(1, 2, 0), opacity, strict=True):
        panel.plot(x, y, color=FAINT, linewidth=0.9, alpha=alpha, zorder=1)
    for split, (success, recognition) in sides.items():
        mark, colour, area = SEEN[split == "id"]
        x, y = success.value, recognition.value
        for at in range(len(x)):
            bars = {"ecolor": colour, "elinewidth": 0.8, "fmt": "none", "alpha": 0.6 * opacity[at]}
            panel.errorbar(x[at], y[at], recognition.error[at], success.error[at], **bars)
        shape = {"marker": mark, "s": area, "color": colour, "linewidths": 0, "zorder": 3}
        panel.scatter(x, y, alpha=opacity, **shape)
    ring = {"marker": "o", "s": 150, "facecolors": "none", "edgecolors": COLOURS["init"]}
    panel.scatter(*np.array(ends)[:, :, 0].T, zorder=4, **ring)


def _name_marks(figure: Figure) -> None:
    """A legend of marks without transparency."""
    marks = []
    for name, (mark, colour, area) in zip(("ID", "OOD"), (SEEN[True], SEEN[False]), strict=True):
        shape = {"marker": mark, "markersize": area**0.5, "color": colour}
        marks.append(Line2D([], [], linestyle="", markeredgewidth=0, label=name, **shape))
    ring = {"marker": "o", "markersize": 12, "fillstyle": "none", "color": COLOURS["init"]}
    marks.append(Line2D([], [], linestyle="", label=NAMES["init"], **ring))
    figure.legend(handles=marks, loc="outside upper right", ncols=3, frameon=False)


def _draw_opacities(figure: Figure, axes: np.ndarray, scale: Normalize, unit: float) -> None:
    """The bar that tells compute by opacity."""
    ramp = np.zeros((64, 4))
    ramp[:, 3] = np.linspace(FAINTEST, 1, len(ramp))
    bar = figure.colorbar(
        ScalarMappable(scale, ListedColormap(ramp)), ax=axes, aspect=40, pad=0.015
    )
    bar.set_label(compute_label(unit))
    bar.outline.set_visible(False)

"""The paper's figures over several tasks: 1, 5, 6 and 18, one column a study that is there."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_virl.plots import figures
from gp_virl.plots.curves import at_compute, equal_compute
from gp_virl.plots.drawing import draw_beside_paper, draw_changes
from gp_virl.plots.look import (
    BRIEF_PANELS,
    COLOURS,
    EQUAL,
    LINES,
    LOOK,
    PANELS,
    SPREAD,
    branches,
    caption,
    legend,
    measure,
    points,
    scientific,
    unit_of,
)
from gp_virl.plots.paper import METRICS, PAPER, TASKS
from gp_virl.plots.studies import Column, Study, absent, column, columns, sizes

SHOWN_FIRST = ("virl_l", "virl_vl", "gp_l", "gp_vl")  # whose curves figure 1 shows
SUM = " A change adds the errors of both ends in squares."
ENDS = ("rl", "sft")  # compared with Init


def fig1(
    studies: Sequence[Study],
    ood: str = "rule_ood",
    tries: int | None = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """What RL and SFT gain and lose: curves of one study above the changes of all.

    Success in both rows (of V-IRL, whole routes); the curves are V-IRL's where it is there. Bars
    are changes from Init at equal compute, their errors those of both ends added in squares.
    Raises ResultsError, with what to run, if no study has Init, RL and SFT on both splits.
    """
    splits = ("id", ood)
    found, lacking = columns(studies, dict.fromkeys(TASKS, "success"), splits, tries, decoding)
    shown = min(found, key=lambda one: SHOWN_FIRST.index(one.study.task))
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 6.6), layout="constrained")
        axes = figure.subplots(2, 2, height_ratios=(1.15, 1), sharex="row")
        unit = unit_of([one for fit in shown.fits.values() for one in fit])
        for panel, below, split in zip(*axes, splits, strict=True):
            figures.draw_along(panel, shown.fits[split], unit)
            _panel_title(panel, f"{shown.study.name}, {PANELS[split].lower()}")
            draw_changes(below, [one.study.name for one in found], ENDS, _changes(found, split))
            _panel_title(below, f"Gained over Init: {BRIEF_PANELS[split]}")
        axes[0, 0].set_ylabel("Success")
        axes[1, 0].set_ylabel("Percentage points")
        legend(figure, *axes[0])
        figure.suptitle(title or None, x=0.01, ha="left")
        caption(figure, LINES + EQUAL, SPREAD + SUM, sizes(found, decoding), absent(lacking))
    return figure


def fig5(
    studies: Sequence[Study],
    ood: str = "rule_ood",
    tries: int | None = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Curves along compute: a column a task, in-distribution above `ood`.

    One study alone is drawn as `figures.fig5` does. V-IRL is measured by its per-step accuracy,
    GeneralPoints by success (paper, figure 5). Raises ResultsError, with what to run, if there is
    no column.
    """
    splits = ("id", ood)
    if len(studies) == 1:
        only = _single(studies[0], splits, tries, decoding)
        about = (only.tries, decoding, title or only.study.title, only.metric)
        return figures.fig5(only.study.records, splits, *about)
    found, lacking = columns(studies, METRICS, splits, tries, decoding)
    with matplotlib.rc_context(LOOK):
        size = (max(9, 3.1 * len(found)), 6.2)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(2, len(found), sharex="col", squeeze=False)
        for one, (above, below) in zip(found, axes.T, strict=True):
            unit = unit_of([record for fit in one.fits.values() for record in fit])
            for panel, split in ((above, "id"), (below, ood)):
                figures.draw_along(panel, one.fits[split], unit)
                _panel_title(panel, f"{one.study.name}: {BRIEF_PANELS[split]}")
                panel.set_ylabel(measure(one.metric))
            above.set_xlabel("")
        legend(figure, *axes.flat)
        figure.suptitle(title or None, x=0.01, ha="left")
        caption(figure, LINES + SPREAD, sizes(found, decoding), absent(lacking))
    return figure


def fig6(
    studies: Sequence[Study],
    ood: str = "rule_ood",
    tries: int | None = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Bars at equal compute: a panel a task with the paper's beside, above a table of all.

    One study alone is drawn as `figures.fig6` does. Metrics and errors as in `fig5`.
    """
    if len(studies) == 1:
        only = _single(studies[0], ("id", ood), tries, decoding)
        about = (only.tries, decoding, title or only.study.title, only.metric)
        return figures.fig6(only.study.records, only.study.task or "gp_l", ood, *about)
    found, lacking = columns(studies, METRICS, ("id", ood), tries, decoding)
    with matplotlib.rc_context(LOOK):
        size = (max(9, 3.1 * len(found)), 4.6 + 0.26 * len(found))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(2, len(found), height_ratios=(3, 0.3 + 0.26 * len(found)))
        panels = [figure.add_subplot(grid[0, i]) for i in range(len(found))]
        rows = []
        for panel, one in zip(panels, found, strict=True):
            fit, paper = one.fits[ood], PAPER.get((one.study.task, ood), {})
            flops, names = equal_compute(fit), ("init", *branches(fit))
            scores = figures.scores_at({ood: fit}, names, flops)
            draw_beside_paper(panel, names, scores, ood, paper)
            _panel_title(panel, f"{one.study.name}: {BRIEF_PANELS[ood]}")
            panel.set_ylabel(measure(one.metric))
            rows.append(_row({name: scores[name, ood] for name in names}, paper, flops))
        _table_of_tasks(figure.add_subplot(grid[1, :]), found, rows)
        legend(figure, *panels)
        figure.suptitle(title or None, x=0.01, ha="left")
        text = EQUAL + " Numbers on bars: points gained over Init."
        caption(figure, text, SPREAD, sizes(found, decoding), absent(lacking))
    return figure


def fig18(
    studies: Sequence[Study],
    ood: str = "rule_ood",
    tries: int | None = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Success of V-IRL-VL, every step of a route right, against training compute.

    Raises ResultsError, with what to run, if there is no such study.
    """
    splits = ("id", ood)
    found, _ = columns(studies, {"virl_vl": "success"}, splits, tries, decoding)
    only = found[0]
    about = (only.tries, decoding, title or only.study.title, only.metric)
    return figures.fig5(only.study.records, splits, *about)


def _single(study: Study, splits: Sequence[str], tries: int | None, decoding: str) -> Column:
    return column(study, splits, METRICS.get(study.task, "success"), tries, decoding)


def _panel_title(panel: Axes, text: str) -> None:
    panel.set_title(text, loc="left", fontweight="bold")


def _changes(found: Sequence[Column], split: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(change from Init at equal compute, error) by (branch, study)."""
    changes = {}
    for one in found:
        flops = equal_compute(one.fits[split])
        init, doubt = at_compute(one.along(split, "init"), flops)
        for branch in ENDS:
            value, error = at_compute(one.along(split, branch), flops)
            changes[branch, one.study.name] = (value - init, math.hypot(error, doubt))
    return changes


def _row(
    scores: Mapping[str, tuple[float, float]], paper: Mapping[str, float], flops: float
) -> list[str]:
    """Cells of one study: values, changes, the paper's changes, FLOPs."""
    gains = [points(scores[name][0] - scores["init"][0]) for name in ENDS]
    theirs = [points((paper[name] - paper["init"]) / 100) if paper else "–" for name in ENDS]
    values = [figures.cell(scores[name]) for name in ("init", "rl", "sft")]
    return [*values, *gains, *theirs, scientific(flops)]


def _table_of_tasks(panel: Axes, found: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    changes = ["RL − Init", "SFT − Init"]
    heads = ["Init, %", "RL, %", "SFT, %", *changes, *(f"paper,\n{c}" for c in changes), "FLOPs"]
    names = [one.study.name for one in found]
    figures.draw_table(panel, names, heads, rows, [COLOURS["init"]] * len(names))

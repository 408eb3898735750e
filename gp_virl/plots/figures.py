"""The paper's figures 5 and 6 of one study, from evaluation records alone."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_virl.plots.curves import at_compute, chosen, curve, equal_compute
from gp_virl.plots.drawing import Scores, bar_axis, draw_curve, draw_groups, draw_init, draw_paper
from gp_virl.plots.look import (
    BRIEF_PANELS,
    COLOURS,
    LOOK,
    NAMES,
    PANELS,
    SHORT,
    branches,
    caption,
    compute_label,
    counts,
    legend,
    measure,
    percent_axis,
    points,
    protocol,
    scientific,
    seeds,
    unit_of,
)
from gp_virl.plots.paper import PAPER
from gp_virl.plots.results import Record


def fig5(
    records: Sequence[Record],
    splits: tuple[str, ...] = ("id", "rule_ood"),
    tries: int = 1,
    decoding: str = "greedy",
    title: str = "",
    metric: str = "success",
) -> Figure:
    """`metric` against training compute, one panel a split: RL, SFT and, dashed, the SFT control.

    Every curve begins at the shared Init. Points are measurements with sqrt(P(1-P)/N); lines are
    smoothed (`curves.smooth`). With several seeds the points are the seeds', the line is their
    mean and the band one standard deviation. Raises ResultsError if a split, Init, RL or SFT is
    missing.
    """
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 4.1), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(splits), sharex=True))
        fits = [chosen(records, split, tries, decoding, metric) for split in splits]
        unit = unit_of([one for fit in fits for one in fit])
        for panel, split, fit in zip(axes, splits, fits, strict=True):
            draw_along(panel, fit, unit)
            panel.set_title(PANELS[split], loc="left", fontweight="bold")
        axes[0].set_ylabel(f"{measure(metric)}, {protocol(tries, decoding, metric)}")
        legend(figure, axes[0])
        figure.suptitle(title or None, x=0.01, ha="left")
        caption(figure, _fig5_caption(fits[0]))
    return figure


def fig6(
    records: Sequence[Record],
    task: str = "gp_l",
    ood: str = "rule_ood",
    tries: int = 1,
    decoding: str = "greedy",
    title: str = "",
    metric: str = "success",
) -> Figure:
    """Init, SFT and RL at equal compute as bars, beside the paper's (hatched), above a table.

    Equal compute is where the shorter of RL and SFT ends; values between two measurements are
    interpolated linearly. Numbers on bars are the changes from Init in points. Raises ResultsError
    if a split, Init, RL or SFT is missing.
    """
    records = [one for one in records if (one.tries, one.decoding) == (tries, decoding)]
    splits = ("id", *["id_held_out"] * _has(records, "id_held_out"), ood)
    fits = {split: chosen(records, split, tries, decoding, metric) for split in splits}
    flops = equal_compute(fits[ood])
    names = ("init", *branches(fits[ood]))
    scores = scores_at(fits, names, flops)
    paper = PAPER.get((task, ood), {})
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        rows = figure.subplots(2, 2, height_ratios=(3, 1.25), width_ratios=(len(splits), 1))
        grid = rows[1, 0].get_gridspec()
        draw_groups(rows[0, 0], splits, names, scores)
        bar_axis(rows[0, 0])
        rows[0, 0].set_yticks([tick for tick in rows[0, 0].get_yticks() if tick <= 1.001])
        rows[0, 0].set_title("This run, equal compute", loc="left", fontweight="bold")
        rows[0, 0].set_ylabel(f"{measure(metric)}, {protocol(tries, decoding, metric)}")
        _draw_paper(rows[0, 1], paper, ood)
        for cell in rows[1]:
            cell.remove()
        _table_of_branches(figure.add_subplot(grid[1, :]), splits, names, scores, paper, ood)
        legend(figure, rows[0, 0])
        figure.suptitle(title or None, x=0.01, ha="left")
        caption(figure, _fig6_caption(fits[ood], flops))
    return figure


def draw_along(panel: Axes, fit: Sequence[Record], unit: float) -> None:
    """A panel of one split: Init and every branch along compute, in `unit` FLOPs."""
    draw_init(panel, curve(fit, "init"), unit)
    for branch in branches(fit):
        draw_curve(panel, curve(fit, branch), unit)
    panel.set_xlabel(compute_label(unit))
    percent_axis(panel)


def scores_at(
    fits: Mapping[str, Sequence[Record]], names: Sequence[str], flops: float
) -> dict[tuple[str, str], tuple[float, float]]:
    """(value, error) at `flops` by (branch, split); what was not measured is left out."""
    return {
        (branch, split): at_compute(curve(fit, branch), flops)
        for split, fit in fits.items()
        for branch in names
        if branch in {one.branch for one in fit}
    }


def draw_table(
    panel: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    colours: Sequence[str],
) -> None:
    """A table over the whole panel: thin lines, bold head, row names in their colours."""
    panel.set_axis_off()
    table = panel.table(
        cellText=cells,
        rowLabels=rows,
        colLabels=columns,
        cellLoc="center",
        bbox=(0.12, 0, 0.88, 1),
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (line, column), cell in table.get_celld().items():
        cell.set_edgecolor("#CCCCCC")
        if line == 0:
            cell.set_height(cell.get_height() * (1 + 0.7 * any("\n" in name for name in columns)))
            cell.set_text_props(fontweight="bold")
        elif column < 0:
            cell.set_text_props(color=colours[line - 1], fontweight="bold")


def cell(score: tuple[float, float] | None) -> str:
    """A share and its error in %."""
    return "–" if score is None else f"{100 * score[0]:.1f} ± {100 * score[1]:.1f}"


def ends_early(fit: Sequence[Record], flops: float) -> str:
    """A sentence if the control ends before `flops`."""
    if any(one.branch == "sft_matched" for one in fit):
        last = curve(fit, "sft_matched").flops[-1]
        if last < flops:
            return f"{NAMES['sft_matched']} ends earlier, at {scientific(last)} FLOPs."
    return ""


def _has(records: Sequence[Record], split: str) -> bool:
    return {"rl", "sft", "init"} <= {one.branch for one in records if one.split == split}


def _draw_paper(panel: Axes, paper: Mapping[str, float], ood: str) -> None:
    panel.set_title("Paper, 11B", loc="left", fontweight="bold")
    if not paper:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "no numbers", ha="center", va="center", color="#777777")
        return
    draw_paper(panel, paper, range(len(paper)), 0.75)
    panel.set_xticks([1], [BRIEF_PANELS[ood]])
    bar_axis(panel)


def _table_of_branches(
    panel: Axes,
    splits: Sequence[str],
    names: Sequence[str],
    scores: Scores,
    paper: Mapping[str, float],
    ood: str,
) -> None:
    """Rows are branches; columns the splits here, the change of OOD, and the paper's two."""

    def row(branch: str) -> list[str]:
        cells = [cell(scores.get((branch, split))) for split in splits]
        mine = scores[branch, ood][0] - scores["init", ood][0]
        cells.append("" if branch == "init" else points(mine))
        cells.append(f"{paper[branch]:.1f}" if branch in paper else "–")
        if branch in paper and branch != "init":
            return [*cells, points((paper[branch] - paper["init"]) / 100)]
        return [*cells, "" if branch == "init" else "–"]

    columns = [f"{BRIEF_PANELS[split]}, %" for split in splits]
    columns += ["OOD − Init", "paper, OOD %", "paper, − Init"]
    rows, colours = [SHORT[name] for name in names], [COLOURS[name] for name in names]
    draw_table(panel, rows, columns, [row(branch) for branch in names], colours)


def _fig5_caption(fit: Sequence[Record]) -> str:
    spread = "bars: $\\sqrt{P(1-P)/N}$"
    if seeds(fit) > 1:
        spread = f"mean and standard deviation of {seeds(fit)} seeds"
    return f"Lines: Savitzky–Golay, order 3. Points: N = {counts(fit)}; {spread}."


def _fig6_caption(fit: Sequence[Record], flops: float) -> str:
    spread = "standard error" if seeds(fit) == 1 else f"standard deviation of {seeds(fit)} seeds"
    text = (
        f"At {scientific(flops)} FLOPs, where the shorter of RL and SFT ends; "
        "linear between measurements.\n"
        f"N = {counts(fit)}; ±: {spread}. Numbers on bars: points gained over Init."
    )
    return "\n".join(filter(None, [text, ends_early(fit, flops)]))

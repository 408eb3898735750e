"""The paper's figures 5 and 6 from evaluation records alone."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gp_virl.plots.curves import Curve, at_compute, chosen, curve, equal_compute, smooth
from gp_virl.plots.results import Record

# Blue, vermilion and a reddish purple (after Okabe and Ito) stay apart for colour-blind readers;
# markers and dashes tell them apart in grey.
COLOURS = {"init": "#444444", "rl": "#0072B2", "sft": "#D55E00", "sft_matched": "#B0568C"}
NAMES = {"init": "Init", "rl": "RL", "sft": "SFT", "sft_matched": "SFT at RL's learning rate"}
SHORT = NAMES | {"sft_matched": "SFT, RL's lr"}
DASHES = {"sft": "-", "sft_matched": (0, (5, 2)), "rl": "-"}
MARKERS = {"init": "D", "sft": "s", "sft_matched": "^", "rl": "o"}
PANELS = {
    "id": "In-distribution",
    "id_held_out": "In-distribution, held-out hands",
    "rule_ood": "Out-of-distribution: other rule",
    "visual_ood": "Out-of-distribution: other look",
}
BRIEF_PANELS = {
    "id": "ID",
    "id_held_out": "ID, held out",
    "rule_ood": "rule OOD",
    "visual_ood": "visual OOD",
}
# Success in % of Llama-3.2-Vision-11B (paper, figures 6 and 7).
PAPER = {
    ("gp_l", "rule_ood"): {"init": 11.5, "rl": 15.0, "sft": 3.4},
    ("virl_l", "rule_ood"): {"init": 80.8, "rl": 91.8, "sft": 1.3},
    ("gp_vl", "rule_ood"): {"init": 11.2, "rl": 14.2, "sft": 5.6},
    ("virl_vl", "rule_ood"): {"init": 35.7, "rl": 45.0, "sft": 2.5},
    ("gp_vl", "visual_ood"): {"init": 23.6, "rl": 41.2, "sft": 13.7},
    ("virl_vl", "visual_ood"): {"init": 16.7, "rl": 77.8, "sft": 11.1},
}
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "figure.dpi": 100,  # 9 inches are 900 pixels
    "savefig.dpi": 200,
    "svg.hashsalt": "gp_virl",
}


def fig5(
    records: Sequence[Record],
    splits: tuple[str, ...] = ("id", "rule_ood"),
    tries: int = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Success against training compute, one panel a split: RL, SFT and, dashed, the SFT control.

    Every curve begins at the shared Init. Points are measurements with sqrt(P(1-P)/N); lines are
    smoothed (`curves.smooth`). With several seeds the points are the seeds', the line is their
    mean and the band one standard deviation. Raises ResultsError if a split, Init, RL or SFT is
    missing.
    """
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 4.1), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(splits), sharex=True))
        fits = [chosen(records, split, tries, decoding) for split in splits]
        largest = max(one.compute_flops for fit in fits for one in fit)
        unit = 10.0 ** int(np.floor(np.log10(largest))) if largest > 0 else 1.0
        for panel, split, fit in zip(axes, splits, fits, strict=True):
            _draw_init(panel, curve(fit, "init"), unit)
            for branch in _branches(fit):
                _draw_curve(panel, curve(fit, branch), unit)
            panel.set_title(PANELS[split], loc="left", fontweight="bold")
            panel.set_xlabel(f"Training compute ({_power(unit)}FLOPs)")
            _percent_axis(panel)
        axes[0].set_ylabel(f"Success, {_protocol(tries, decoding)}")
        _legend(figure, axes[0])
        figure.suptitle(title or None, x=0.01, ha="left")
        figure.supxlabel(_fig5_caption(fits[0]), fontsize=8, color="#555555")
    return figure


def fig6(
    records: Sequence[Record],
    task: str = "gp_l",
    ood: str = "rule_ood",
    tries: int = 1,
    decoding: str = "greedy",
    title: str = "",
) -> Figure:
    """Init, SFT and RL at equal compute as bars, beside the paper's (hatched), above a table.

    Equal compute is where the shorter of RL and SFT ends; values between two measurements are
    interpolated linearly. Numbers on bars are the changes from Init in points. Raises ResultsError
    if a split, Init, RL or SFT is missing.
    """
    records = [one for one in records if (one.tries, one.decoding) == (tries, decoding)]
    splits = ("id", *["id_held_out"] * _has(records, "id_held_out"), ood)
    fits = {split: chosen(records, split, tries, decoding) for split in splits}
    flops = equal_compute(fits[ood])
    branches = ("init", *_branches(fits[ood]))
    scores = {
        (branch, split): at_compute(curve(fit, branch), flops)
        for split, fit in fits.items()
        for branch in branches
        if branch in {one.branch for one in fit}
    }
    paper = PAPER.get((task, ood), {})
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 5.6), layout="constrained")
        rows = figure.subplots(2, 2, height_ratios=(3, 1.25), width_ratios=(len(splits), 1))
        grid = rows[1, 0].get_gridspec()
        _draw_groups(rows[0, 0], splits, branches, scores)
        rows[0, 0].set_ylabel(f"Success, {_protocol(tries, decoding)}")
        _draw_paper(rows[0, 1], paper, ood)
        for cell in rows[1]:
            cell.remove()
        _draw_table(figure.add_subplot(grid[1, :]), splits, branches, scores, paper, ood)
        _legend(figure, rows[0, 0])
        figure.suptitle(title or None, x=0.01, ha="left")
        figure.supxlabel(_fig6_caption(fits[ood], flops), fontsize=8, color="#555555")
    return figure


def _has(records: Sequence[Record], split: str) -> bool:
    return {"rl", "sft", "init"} <= {one.branch for one in records if one.split == split}


def _branches(fit: Sequence[Record]) -> tuple[str, ...]:
    """Branches to draw; RL and SFT must be there, the control may be."""
    control = ("sft_matched",) if any(one.branch == "sft_matched" for one in fit) else ()
    return ("rl", "sft", *control)


def _protocol(tries: int, decoding: str) -> str:
    return f"{decoding}, {'first try' if tries == 1 else f'within {tries} tries'}"


def _scientific(number: float) -> str:
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"${mantissa}\\times 10^{{{int(exponent)}}}$"


def _power(unit: float) -> str:
    exponent = round(np.log10(unit))
    return f"$10^{{{exponent}}}$ " if exponent else ""


def _legend(figure: Figure, panel: Axes) -> None:
    """One legend above the panels, in the order of NAMES."""
    lines = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = [name for name in NAMES.values() if name in lines]
    place = {"loc": "outside upper right", "ncols": len(names), "frameon": False}
    figure.legend([lines[name] for name in names], names, **place)


def _points(share: float) -> str:
    """A change of a share in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent_axis(panel: Axes) -> None:
    """From 0 to a little above the largest value, at most to a little above 100%."""
    panel.set_ylim(0, max(0.05, min(panel.get_ylim()[1], 1.03)))
    panel.yaxis.set_major_formatter(PERCENT)
    panel.margins(x=0.03)


def _draw_curve(panel: Axes, along: Curve, unit: float) -> None:
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


def _draw_init(panel: Axes, init: Curve, unit: float) -> None:
    x, y = init.flops[0] / unit, init.value[0]
    panel.axhline(y, color=COLOURS["init"], linewidth=0.9, linestyle=":", zorder=1)
    shape = {"fmt": MARKERS["init"], "markersize": 7, "color": COLOURS["init"], "zorder": 5}
    panel.errorbar(x, y, init.error[0], capsize=2, elinewidth=1, label=NAMES["init"], **shape)


def _draw_groups(
    panel: Axes,
    splits: Sequence[str],
    branches: Sequence[str],
    scores: dict[tuple[str, str], tuple[float, float]],
) -> None:
    """One group of bars a split, with errors, and the change from Init above each other bar."""
    width = 0.8 / len(branches)
    for place, branch in enumerate(branches):
        there = [i for i, split in enumerate(splits) if (branch, split) in scores]
        value, error = np.array([scores[branch, splits[i]] for i in there]).T
        x = np.array(there) + (place - (len(branches) - 1) / 2) * width
        shape = {"width": width * 0.92, "color": COLOURS[branch], "label": NAMES[branch]}
        panel.bar(x, value, yerr=error, ecolor="#222222", error_kw={"capsize": 2}, **shape)
        for at, top, spread, i in zip(x, value, error, there, strict=True):
            if branch != "init":
                change = _points(top - scores["init", splits[i]][0])
                _above(panel, at, top + spread, change, COLOURS[branch], 7 if width < 0.25 else 9)
    panel.set_xticks(range(len(splits)), [BRIEF_PANELS[split] for split in splits])
    panel.set_title("This run, equal compute", loc="left", fontweight="bold")
    panel.set_ylim(0, min(1.12, 1.12 * panel.get_ylim()[1]))
    panel.set_yticks([tick for tick in panel.get_yticks() if tick <= 1.001])
    panel.yaxis.set_major_formatter(PERCENT)


def _draw_paper(panel: Axes, paper: dict[str, float], ood: str) -> None:
    panel.set_title("Paper, 11B", loc="left", fontweight="bold")
    if not paper:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "no numbers", ha="center", va="center", color="#777777")
        return
    for x, (branch, value) in enumerate(paper.items()):
        colour = COLOURS[branch]
        panel.bar(
            x, value / 100, 0.75, color="white", edgecolor=colour, hatch="////", linewidth=1.4
        )
        if branch != "init":
            _above(panel, x, value / 100, _points((value - paper["init"]) / 100), colour, 9)
    panel.set_xticks([1], [BRIEF_PANELS[ood]])
    panel.set_ylim(0, min(1.12, 1.12 * panel.get_ylim()[1]))
    panel.yaxis.set_major_formatter(PERCENT)


def _above(panel: Axes, x: float, y: float, text: str, colour: str, size: float) -> None:
    """A bold number three points above (x, y)."""
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    panel.annotate(text, (x, y), fontsize=size, fontweight="bold", color=colour, **place)


def _draw_table(
    panel: Axes,
    splits: Sequence[str],
    branches: Sequence[str],
    scores: dict[tuple[str, str], tuple[float, float]],
    paper: dict[str, float],
    ood: str,
) -> None:
    """Rows are branches; columns the splits here, the change of OOD, and the paper's two."""

    def row(branch: str) -> list[str]:
        cells = [_cell(scores.get((branch, split))) for split in splits]
        mine = scores[branch, ood][0] - scores["init", ood][0]
        cells.append("" if branch == "init" else _points(mine))
        cells.append(f"{paper[branch]:.1f}" if branch in paper else "–")
        if branch in paper and branch != "init":
            return [*cells, _points((paper[branch] - paper["init"]) / 100)]
        return [*cells, "" if branch == "init" else "–"]

    columns = [f"{BRIEF_PANELS[split]}, %" for split in splits]
    columns += ["OOD − Init", "paper, OOD %", "paper, − Init"]
    panel.set_axis_off()
    table = panel.table(
        cellText=[row(branch) for branch in branches],
        rowLabels=[SHORT[branch] for branch in branches],
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
            cell.set_text_props(fontweight="bold")
        elif column < 0:
            cell.set_text_props(color=COLOURS[branches[line - 1]], fontweight="bold")


def _cell(score: tuple[float, float] | None) -> str:
    return "–" if score is None else f"{100 * score[0]:.1f} ± {100 * score[1]:.1f}"


def _seeds(fit: Sequence[Record]) -> int:
    return len({one.seed for one in fit if one.branch == "rl"})


def _hands(fit: Sequence[Record]) -> str:
    least, most = min(one.n for one in fit), max(one.n for one in fit)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _fig5_caption(fit: Sequence[Record]) -> str:
    spread = "bars: $\\sqrt{P(1-P)/N}$"
    if _seeds(fit) > 1:
        spread = f"mean and standard deviation of {_seeds(fit)} seeds"
    return f"Lines: Savitzky–Golay, order 3. Points: N = {_hands(fit)} episodes; {spread}."


def _fig6_caption(fit: Sequence[Record], flops: float) -> str:
    spread = "standard error" if _seeds(fit) == 1 else f"standard deviation of {_seeds(fit)} seeds"
    text = (
        f"At {_scientific(flops)} FLOPs, where the shorter of RL and SFT ends; "
        "linear between measurements.\n"
        f"N = {_hands(fit)} episodes; ±: {spread}. Numbers on bars: points gained over Init."
    )
    if any(one.branch == "sft_matched" for one in fit):
        last = curve(fit, "sft_matched").flops[-1]
        if last < flops:
            text += f"\n{NAMES['sft_matched']} ends earlier, at {_scientific(last)} FLOPs."
    return text

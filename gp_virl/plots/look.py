"""How figures look and name things: colours, axes, legends and the words under them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
METRIC_NAMES = {
    "success": "Success",
    "per_step": "Per-step accuracy",
    "recognition": "Recognition",
}
COUNTED = {"success": "episodes"}  # what N counts; replies for all other metrics
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}%")
CHANGE = FuncFormatter(
    lambda share, _: f"{100 * share:+.4g}".replace("-", "−") if abs(share) > 1e-9 else "0"
)
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
FAINT = "#555555"
# Sentences for captions.
LINES = "Lines: Savitzky–Golay, order 3. "
SPREAD = "Error bars: $\\sqrt{P(1-P)/N}$; of several seeds, one standard deviation."
EQUAL = "At equal compute, where the shorter of RL and SFT ends; linear between measurements."


def protocol(tries: int, decoding: str, metric: str = "success") -> str:
    """How replies were drawn and which of them count."""
    if metric in COUNTED:
        return f"{decoding}, {'first try' if tries == 1 else f'within {tries} tries'}"
    return f"{decoding}, {'first replies' if tries == 1 else f'replies 1 to {tries}'}"


def measure(metric: str) -> str:
    """The name of a metric for an axis."""
    return METRIC_NAMES.get(metric, metric)


def scientific(number: float) -> str:
    """A number in three digits and a power of ten."""
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"${mantissa}\\times 10^{{{int(exponent)}}}$"


def unit_of(records: Sequence[Record]) -> float:
    """The power of ten in which an axis counts the FLOPs of `records`."""
    largest = max(one.compute_flops for one in records)
    return 10.0 ** int(np.floor(np.log10(largest))) if largest > 0 else 1.0


def compute_label(unit: float) -> str:
    """The name of an axis of training compute that counts in `unit` FLOPs."""
    exponent = round(np.log10(unit))
    power = f"$10^{{{exponent}}}$ " if exponent else ""
    return f"Training compute ({power}FLOPs)"


def points(share: float) -> str:
    """A change of a share in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def percent_axis(panel: Axes) -> None:
    """From 0 to a little above the largest value, at most to a little above 100%."""
    panel.set_ylim(0, max(0.05, min(panel.get_ylim()[1], 1.03)))
    panel.yaxis.set_major_formatter(PERCENT)
    panel.margins(x=0.03)


def legend(figure: Figure, *panels: Axes) -> None:
    """One legend above the panels, in the order of NAMES; what is only in some of them, too."""
    lines = {}
    for panel in panels:
        lines |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = [name for name in NAMES.values() if name in lines]
    place = {"loc": "outside upper right", "ncols": len(names), "frameon": False}
    figure.legend([lines[name] for name in names], names, **place)


def branches(fit: Sequence[Record]) -> tuple[str, ...]:
    """Branches to draw; RL and SFT must be there, the control may be."""
    control = ("sft_matched",) if any(one.branch == "sft_matched" for one in fit) else ()
    return ("rl", "sft", *control)


def seeds(fit: Sequence[Record]) -> int:
    """How many seeds RL was run with."""
    return len({one.seed for one in fit if one.branch == "rl"})


def counts(fit: Sequence[Record]) -> str:
    """The smallest and the largest N, and what it counts."""
    least, most = min(one.n for one in fit), max(one.n for one in fit)
    kind = COUNTED.get(fit[0].metric, "replies")
    return f"{least:,} {kind}" if least == most else f"{least:,} to {most:,} {kind}"


def caption(figure: Figure, *lines: str) -> None:
    """Small print below the panels."""
    figure.supxlabel("\n".join(line for line in lines if line), fontsize=8, color=FAINT)

"""Numbers behind the figures: success along compute, smoothed, over seeds, at equal compute."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.signal import savgol_filter

from gp_virl.evals.scores import binomial_error
from gp_virl.plots.results import Record, ResultsError

ORDER = 3  # of the Savitzky-Golay filter (paper, appendix C.3)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Success of one branch on one split at P points, Init first, in the order of compute."""

    branch: str
    flops: Float[np.ndarray, "P"]  # mean over seeds
    value: Float[np.ndarray, "P"]  # mean over seeds
    error: Float[np.ndarray, "P"]  # see `curve`
    seeds: Float[np.ndarray, "seeds P"]  # value of each seed


def chosen(
    records: Sequence[Record], split: str, tries: int, decoding: str, metric: str = "success"
) -> list[Record]:
    """The records of one split, metric, number of tries and decoding.

    Raises ResultsError, with what there is, if none fits.
    """
    fits = [
        one
        for one in records
        if (one.split, one.metric, one.tries, one.decoding) == (split, metric, tries, decoding)
    ]
    if not fits:
        there = sorted({(one.split, one.metric, one.tries, one.decoding) for one in records})
        raise ResultsError(
            f"no result for split={split}, metric={metric}, tries={tries}, decoding={decoding}; "
            f"there are {there}"
        )
    return fits


def curve(records: Sequence[Record], branch: str) -> Curve:
    """The Curve of `branch` from records of one split, beginning with the shared Init.

    Points are those that every seed has. `error` is sqrt(P(1-P)/N) for one seed, and the standard
    deviation over seeds for several. Raises ResultsError if the branch or Init is missing.
    """
    missing = {branch, "init"} - {one.branch for one in records}
    if missing:
        raise ResultsError(f"no results of branch {', '.join(sorted(missing))}")
    by_seed: dict[int, dict[tuple[bool, int], Record]] = {}
    for one in records:
        if one.branch in ("init", branch):
            by_seed.setdefault(one.seed, {})[one.branch != "init", one.updates] = one
    # Told apart by (after Init?, updates), as a branch may be measured at update 0 too.
    kinds = {False, branch != "init"}
    whole = [points for points in by_seed.values() if {after for after, _ in points} == kinds]
    shared = sorted(set.intersection(*(set(points) for points in whole))) if whole else []
    if {after for after, _ in shared} != kinds:
        raise ResultsError(f"no seed has Init and {branch}, or their seeds share no point")
    return _over_seeds(branch, [[points[place] for place in shared] for points in whole])


def smooth(values: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """`values` through a Savitzky-Golay filter of order 3, within [0, 1]; unchanged below 5 points.

    The window is the largest odd number of points there are (paper, appendix C.3, names the
    filter and not its window).
    """
    if len(values) < 5:
        return values
    window = len(values) - (len(values) + 1) % 2
    return np.clip(savgol_filter(values, window, ORDER), 0.0, 1.0)


def equal_compute(records: Sequence[Record]) -> float:
    """The FLOPs both RL and SFT have reached: the smaller of their last points."""
    return float(min(curve(records, branch).flops[-1] for branch in ("rl", "sft")))


def at_compute(along: Curve, flops: float) -> tuple[float, float]:
    """(value, error) of a curve at `flops`, interpolated linearly; past its end its last point."""
    value = np.interp(flops, along.flops, along.value)
    return float(value), float(np.interp(flops, along.flops, along.error))


def _over_seeds(branch: str, seeds: list[list[Record]]) -> Curve:
    """The Curve of points that are given for each seed in the same order."""
    flops = np.array([[one.compute_flops for one in points] for points in seeds], float).mean(0)
    values = np.array([[one.value for one in points] for points in seeds], float)
    counts = np.array([one.n for one in seeds[0]], float)
    mean = values.mean(0)
    error = values.std(0, ddof=1) if len(seeds) > 1 else binomial_error(mean, counts)
    order = np.argsort(flops, kind="stable")
    return Curve(branch, flops[order], mean[order], error[order], values[:, order])

"""Uncertainty of success rates. Plain NumPy, also for the figures."""

import math

import numpy as np
from jaxtyping import Float

Z95 = 1.96  # two-sided 95% quantile of the normal distribution, as usually rounded


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a success rate, within [0, 1] (Wilson 1927).

    Unlike the normal interval it is right at rates of 0 and 1. Raises ValueError unless
    0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: needs n >= 1 and 0 <= successes <= n")
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    # At the ends the interval touches 0 or 1 exactly; rounding must not leave a gap.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def binomial_error(
    rate: float | Float[np.ndarray, "*p"], n: float | Float[np.ndarray, "*p"]
) -> float | Float[np.ndarray, "*p"]:
    """The standard error sqrt(P(1-P)/N) of a success rate (paper, appendix C.3)."""
    return np.sqrt(rate * (1.0 - rate) / n)[()]


def difference_in_errors(rate: float, n: int, other: float, other_n: int) -> float:
    """How many standard errors `other` lies above `rate`; negative if below.

    The errors of both rates are added in squares, as if the samples were independent; when both
    were measured on the same hands this is on the cautious side. 0 if the rates are equal, and
    infinite if they differ without any error (rates of exactly 0 and 1).
    """
    error = math.hypot(binomial_error(rate, n), binomial_error(other, other_n))
    if rate == other:
        return 0.0
    return (other - rate) / error if error else math.copysign(math.inf, other - rate)

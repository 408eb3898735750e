"""Intervals and errors against published numbers and a plain search for the interval's ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.evals.scores import binomial_error, difference_in_errors, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # R: prop.test(x, n, correct = FALSE) with z = 1.959964, to four places
        (15, 20, 0.5313, 0.8881),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_agrees_with_r(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([1.0, 1.96, 3.0]))
def test_wilson_ends_are_z_errors_from_the_rate(n: int, share: float, z: float) -> None:
    """By definition the ends p solve |rate - p| = z sqrt(p (1 - p) / n)."""
    successes = round(share * n)
    low, high = wilson(successes, n, z)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            gap = abs(successes / n - end)
            assert gap == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_binomial_error_by_hand() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    got = binomial_error(np.array([0.0, 0.2, 1.0]), np.array([5.0, 16.0, 5.0]))
    assert got.tolist() == pytest.approx([0.0, 0.1, 0.0])


def test_difference_counts_errors_and_knows_its_sign() -> None:
    error = math.sqrt(0.3 * 0.7 / 2048 + 0.1 * 0.9 / 1024)
    assert difference_in_errors(0.3, 2048, 0.1, 1024) == pytest.approx(-0.2 / error)
    assert difference_in_errors(0.1, 1024, 0.3, 2048) == pytest.approx(0.2 / error)
    assert difference_in_errors(0.0, 10, 0.0, 10) == 0.0
    assert difference_in_errors(1.0, 10, 0.0, 10) == -math.inf

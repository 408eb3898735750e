"""Whatever a stranger's file holds is told in a few words, at once."""

import time

import pytest

from gp_virl.envs.foreign import LONGEST, shown


def shared(levels: int) -> list:
    """Nested lists whose repr doubles with each level."""
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "given",
    [None, True, 5, -(2**127), 1.5, float("nan"), "x", "it's", "\ud800", [], [1, "a"], (1.0,), ()]
    + [{}, {"a": [1]}, {(1.0, 2.0): "x"}, [[[5]]]],
)
def test_small_values_are_their_repr(given: object) -> None:
    assert shown(given) == repr(given)


@pytest.mark.parametrize(
    "given",
    [shared(40), deep(20_000), {"a": deep(20_000)}, (shared(60),) * 9, "x" * 10**6, 10**5000]
    + [(10**5000, 1.0), -(10**400), list(range(10**6)), dict.fromkeys(range(10**6)), {"k": {1: 2}}],
    ids=lambda given: type(given).__name__,
)
def test_large_values_are_cut(given: object) -> None:
    began = time.monotonic()
    assert 0 < len(shown(given)) <= LONGEST
    assert time.monotonic() - began < 0.5


def test_a_cut_is_visible() -> None:
    assert shown((10**5000, 1.0)) == "(an integer of 16610 bits, 1.0)"
    assert shown([1, 2, 3, 4, 5]) == "[1, 2, 3, 4, ...]"
    assert shown(dict.fromkeys(range(9))) == "{9 entries}"
    assert "..." in shown("x" * 200) and "..." in shown(["x" * 50, "y" * 50])

"""Curves against plain loops and a cubic fit by least squares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.plots.curves import at_compute, chosen, curve, equal_compute, smooth
from gp_virl.plots.results import ResultsError
from tests.plots.synthetic import INIT_FLOPS, measured, study


def of(records, split="id"):
    return chosen(records, split, 1, "greedy")


@given(st.lists(st.floats(0.3, 0.7), min_size=5, max_size=15))
def test_smooth_is_a_cubic_fit_in_the_largest_odd_window(values: list[float]) -> None:
    values = np.array(values)
    window = len(values) if len(values) % 2 else len(values) - 1
    x, half = np.arange(len(values)), window // 2
    fitted = []
    for i in x:
        start = min(max(i - half, 0), len(values) - window)
        part = slice(start, start + window)
        fitted.append(np.polyval(np.polyfit(x[part] - i, values[part], 3), 0))
    np.testing.assert_allclose(smooth(values), np.clip(fitted, 0, 1), atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_points_stay_as_they_are(count: int) -> None:
    values = np.linspace(0, 1, count) ** 2
    assert smooth(values).tolist() == values.tolist()


def test_smooth_stays_a_share() -> None:
    got = smooth(np.array([1, 1, 1, 0, 0, 0, 0.0]))
    assert got.min() >= 0 and got.max() <= 1


def test_a_curve_begins_at_init_and_follows_compute() -> None:
    records = of(study(points=4)[::-1])
    along = curve(records, "rl")
    init = next(one for one in records if one.branch == "init")
    assert along.flops[0] == INIT_FLOPS and along.value[0] == init.value
    assert len(along.flops) == 5 and (np.diff(along.flops) > 0).all()
    p = along.value
    assert along.error.tolist() == pytest.approx(np.sqrt(p * (1 - p) / 2048).tolist())


def test_init_alone_is_a_curve_of_one_point() -> None:
    assert curve(of(study()), "init").flops.tolist() == [INIT_FLOPS]


def test_seeds_are_averaged_over_shared_points() -> None:
    records = [measured("init", "id", v, 10.0, 0, s) for s, v in enumerate((0.2, 0.4, 0.9))]
    records += [measured("sft", "id", v, 20.0 + s, 5, s) for s, v in enumerate((0.5, 0.75))]
    records += [measured("sft", "id", 0.9, 30.0, 9, 0)]  # seed 1 is not there yet
    along = curve(of(records), "sft")
    assert along.flops.tolist() == [10.0, 20.5]
    assert along.value.tolist() == pytest.approx([0.3, 0.625], abs=1e-3)
    assert along.error.tolist() == pytest.approx([0.2 / 2**0.5, 0.25 / 2**0.5], abs=1e-3)
    assert along.seeds.shape == (2, 2)


def test_equal_compute_is_the_shorter_branch_and_values_are_between_points() -> None:
    records = [measured("init", "id", 0.5, 10.0, 0, 0, 100)]
    records += [measured("rl", "id", 0.6, 20.0, 1, 0, 100)]
    records += [measured("sft", "id", 0.7, 30.0, 1, 0, 100)]
    assert equal_compute(of(records)) == 20.0
    assert at_compute(curve(of(records), "sft"), 20.0)[0] == pytest.approx(0.6)
    assert at_compute(curve(of(records), "rl"), 99.0)[0] == pytest.approx(0.6)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ResultsError, match=r"split=visual_ood.*there are \[\('id'"):
        of(study(), "visual_ood")
    records = [one for one in of(study()) if one.branch != "rl"]
    with pytest.raises(ResultsError, match="no results of branch rl"):
        curve(records, "rl")
    lonely = [measured("init", "id", 0.5, 1.0, 0, 0), measured("rl", "id", 0.5, 2.0, 1, 1)]
    with pytest.raises(ResultsError, match="no seed has Init and rl"):
        curve(of(lonely), "rl")

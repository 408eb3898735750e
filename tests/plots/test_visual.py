"""Figures 7 and 8: points, lines and bars hold the records' numbers."""

import dataclasses

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from gp_virl.plots.look import NAMES
from gp_virl.plots.paper import PAPER
from gp_virl.plots.results import Record, ResultsError
from gp_virl.plots.studies import Study
from gp_virl.plots.visual import FAINTEST, fig7, fig8
from tests.plots.synthetic import INIT_FLOPS, task_study
from tests.plots.test_figures import legend, png, texts
from tests.plots.test_tasks import along, at_equal, bars, caption, same_line

CARDS, STREETS = task_study("gp_vl"), task_study("virl_vl")


def without(study: Study, **what) -> Study:
    """The study without records whose fields are all as given."""
    kept = [r for r in study.records if any(getattr(r, k) != v for k, v in what.items())]
    return dataclasses.replace(study, records=kept)


def test_fig7_has_curves_and_bars_of_both_tasks() -> None:
    figure = fig7([CARDS, STREETS])
    for study, (left, right) in zip((CARDS, STREETS), np.reshape(figure.axes, (2, 2)), strict=True):
        paper = PAPER[study.task, "visual_ood"]
        for branch in ("rl", "sft"):
            same_line(left, branch, study, "visual_ood", "success")
        mine = {b: at_equal(study, b, "visual_ood", "success")[0] for b in paper}
        assert bars(right) == {NAMES[b]: [pytest.approx(v)] for b, v in mine.items()}
        hatched = [bar.get_height() for bar in right.patches if bar.get_hatch()]
        assert hatched == pytest.approx([value / 100 for value in paper.values()])
        assert {f"{paper['rl'] - paper['init']:+.1f}"} <= set(texts(right))
    assert png(figure)


def test_fig7_marks_the_prior_best_of_navigation_beside_the_papers_bars_only() -> None:
    figure = fig7([CARDS, STREETS])
    cards, streets = figure.axes[1], figure.axes[3]
    marks = [c for c in streets.collections if c.get_label() != "" and len(c.get_paths()) == 1]
    level = [c.get_paths()[0].vertices for c in marks if isinstance(c, LineCollection)]
    level = [v for v in level if v[0, 1] == v[1, 1]]
    assert [v[0, 1] for v in level] == [0.44] and level[0][:, 0].min() > 0.5
    assert "prior\nbest 44.0" in texts(streets) and "prior\nbest 44.0" not in texts(cards)
    assert "18 real routes" in caption(figure)


def test_fig7_leaves_a_missing_half_out() -> None:
    figure = fig7([CARDS])
    assert len(figure.axes) == 2 and "18 real routes" not in caption(figure)
    figure = fig7([CARDS, without(STREETS, split="visual_ood")])
    assert len(figure.axes) == 2
    assert "Not drawn, V-IRL-VL: no result for split=visual_ood" in caption(figure)


def points(panel) -> list[PathCollection]:
    """Marks of ID, of OOD, and the rings of Init."""
    return [one for one in panel.collections if isinstance(one, PathCollection)]


def control() -> list[Record]:
    """Records that figure 8 must not take: of the SFT control, far along."""
    about = {"branch": "sft_matched", "compute_flops": 9e13}
    return [dataclasses.replace(r, **about) for r in CARDS.records if r.branch == "sft"]


def test_fig8_draws_recognition_over_success_with_compute_as_opacity() -> None:
    figure = fig8([STREETS, Study("gp_vl", "imagined", [*CARDS.records, *control()])])
    panels = np.reshape(figure.axes[:4], (2, 2))
    everything = [r for r in CARDS.records if r.branch in ("init", "rl", "sft")]
    longest = max(r.compute_flops for r in everything)
    for row, ood in zip(panels, ("rule_ood", "visual_ood"), strict=True):
        for panel, branch in zip(row, ("rl", "sft"), strict=True):
            *sides, rings = points(panel)
            for split, marks in zip(("id", ood), sides, strict=True):
                flops, success, _ = along(CARDS, branch, split, "success")
                _, recognition, _ = along(CARDS, branch, split, "recognition")
                np.testing.assert_allclose(marks.get_offsets().data.T, [success, recognition])
                share = (flops - INIT_FLOPS) / (longest - INIT_FLOPS)
                np.testing.assert_allclose(marks.get_alpha(), FAINTEST + (1 - FAINTEST) * share)
            first = [marks.get_offsets()[0] for marks in sides]
            np.testing.assert_allclose(rings.get_offsets(), first)
            joined = np.array(
                [line.get_xydata() for line in panel.get_lines() if len(line.get_xdata()) == 2]
            )
            expected = np.stack([marks.get_offsets().data for marks in sides], axis=1)
            np.testing.assert_allclose(joined, expected)
            assert NAMES[branch] in panel.get_title("left")
    assert panels[1, 0].get_xlabel() == "Success, greedy, first try"
    assert panels[0, 0].get_ylabel() == "Recognition, greedy, first replies"
    assert legend(figure) == ["ID", "OOD", "Init"]
    assert "10^{13}" in figure.axes[4].get_ylabel()
    assert png(figure)


def test_fig8_shows_standard_errors_both_ways() -> None:
    panel = fig8([CARDS]).axes[0]
    _, success, doubt = along(CARDS, "rl", "id", "success")
    _, recognition, other = along(CARDS, "rl", "id", "recognition")
    drawn = [c.get_segments()[0] for c in panel.collections if isinstance(c, LineCollection)]
    for x, y, dx, dy in zip(success, recognition, doubt, other, strict=True):
        across, up = [[x - dx, y], [x + dx, y]], [[x, y - dy], [x, y + dy]]
        assert any(np.allclose(segment, across) for segment in drawn)
        assert any(np.allclose(segment, up) for segment in drawn)


def test_fig8_takes_checkpoints_where_all_was_measured_and_splits_that_are_there() -> None:
    last = max(r.updates for r in CARDS.records)
    cut = without(CARDS, updates=last, metric="recognition", split="id", branch="rl")
    figure = fig8([without(cut, split="rule_ood")])
    assert len(figure.axes) == 3  # RL, SFT and the bar of opacities
    rl, sft = (len(points(panel)[0].get_offsets()) for panel in figure.axes[:2])
    assert rl == sft - 1


@pytest.mark.parametrize(
    ("draw", "studies", "named"),
    [
        (fig7, [task_study("gp_l")], "GP-L: not in this figure.*gp_vl.py:tiny or .*virl_vl.py"),
        (fig7, [without(CARDS, branch="sft")], "GP-VL: no success on visual_ood of sft"),
        (fig8, [STREETS], "recognition and success of GP-VL.*V-IRL-VL: not in this figure"),
        (fig8, [without(CARDS, metric="recognition")], "metric=recognition"),
    ],
)
def test_nothing_to_draw_names_what_is_missing(draw, studies: list, named: str) -> None:
    with pytest.raises(ResultsError, match=f"nothing to draw; .*{named}"):
        draw(studies)

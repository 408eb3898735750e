"""Figures over several tasks: every line and bar holds the records' numbers."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

from gp_virl.plots.curves import smooth
from gp_virl.plots.look import CHANGE, NAMES
from gp_virl.plots.paper import METRICS, PAPER, TASKS
from gp_virl.plots.results import ResultsError
from gp_virl.plots.studies import Study
from gp_virl.plots.tasks import fig1, fig5, fig6, fig18
from tests.plots.synthetic import task_study
from tests.plots.test_figures import legend, lines, png, texts

ALL = [task_study(task) for task in TASKS]


def along(study: Study, branch: str, split: str, metric: str, tries: int = 1):
    """(flops, values, errors) of one seed, Init first, straight from the records."""
    wanted = (split, metric, tries)
    own = [r for r in study.records if (r.split, r.metric, r.tries) == wanted]
    path = [r for r in own if r.branch == "init"]
    path += sorted((r for r in own if r.branch == branch != "init"), key=lambda r: r.compute_flops)
    value = np.array([r.value for r in path])
    n = np.array([r.n for r in path])
    return np.array([r.compute_flops for r in path]), value, np.sqrt(value * (1 - value) / n)


def at_equal(study: Study, branch: str, split: str, metric: str) -> tuple[float, float]:
    """(value, error) where RL, the shorter one here, ends."""
    end = along(study, "rl", split, metric)[0][-1]
    flops, value, error = along(study, branch, split, metric)
    return np.interp(end, flops, value), np.interp(end, flops, error)


def bars(panel) -> dict[str, list[float]]:
    """Heights of the bars with a name in the legend."""
    groups = [c for c in panel.containers if isinstance(c, BarContainer)]
    found = {c.get_label(): [bar.get_height() for bar in c.patches] for c in groups}
    return {name: heights for name, heights in found.items() if name in NAMES.values()}


def bar_errors(panel) -> list[list[float]]:
    """Half lengths of the error bars of each named group."""
    errors = [c for c in panel.containers if isinstance(c, ErrorbarContainer)]
    ends = [np.array([s[:, 1] for s in c.lines[2][0].get_segments()]) for c in errors]
    return [((high_low[:, 1] - high_low[:, 0]) / 2).tolist() for high_low in ends]


def caption(figure) -> str:
    return figure._supxlabel.get_text()


def same_line(panel, branch: str, study: Study, split: str, metric: str) -> None:
    flops, value, _ = along(study, branch, split, metric)
    line = lines(panel)[NAMES[branch]]
    np.testing.assert_allclose(line.get_xdata() * 1e13, flops)
    np.testing.assert_allclose(line.get_ydata(), smooth(value))


def test_fig5_has_a_column_a_task_with_its_own_metric() -> None:
    figure = fig5(ALL)
    panels = np.array(figure.axes).reshape(2, 4)
    for study, column in zip(ALL, panels.T, strict=True):
        metric = "per_step" if study.task.startswith("virl") else "success"
        for panel, split in zip(column, ("id", "rule_ood"), strict=True):
            for branch in ("rl", "sft"):
                same_line(panel, branch, study, split, metric)
            assert panel.get_title("left").startswith(TASKS[study.task])
            assert panel.get_ylabel() == {"per_step": "Per-step accuracy"}.get(metric, "Success")
        assert "FLOPs" in column[1].get_xlabel() and not column[0].get_xlabel()
    assert "GP-L, imagined: greedy, first try, N = 2,048 episodes." in caption(figure)
    assert "V-IRL-L, imagined: greedy, first replies, N = 7,000 to 7,120 replies." in caption(
        figure
    )
    assert png(figure) == png(fig5(ALL))


def test_a_missing_task_has_no_column_and_an_unfinished_one_is_named() -> None:
    half = dataclasses.replace(ALL[1], records=[r for r in ALL[1].records if r.branch != "rl"])
    figure = fig5([ALL[0], half, ALL[2]])
    assert [a.get_title("left") for a in figure.axes[:2]] == ["GP-L: ID", "GP-VL: ID"]
    assert len(figure.axes) == 4
    assert "Not drawn, V-IRL-L: no per_step on id of rl" in caption(figure)


def test_control_of_any_task_is_in_the_legend() -> None:
    names = legend(fig5([ALL[0], task_study("virl_l", control=True)]))
    assert names == [NAMES[b] for b in ("init", "rl", "sft", "sft_matched")]


@pytest.mark.parametrize("task", ["gp_l", "virl_l"])
def test_one_study_is_drawn_larger_by_its_metric_and_names_itself(task: str) -> None:
    study = task_study(task)
    figure = fig5([study])
    assert len(figure.axes) == 2 and figure._suptitle.get_text() == f"{TASKS[task]}, imagined"
    same_line(figure.axes[1], "rl", study, "rule_ood", METRICS[task])
    bar = fig6([study])
    assert [patch.get_height() for patch in bar.axes[1].patches] == pytest.approx(
        [value / 100 for value in PAPER[task, "rule_ood"].values()]
    )


def test_all_tries_are_as_many_as_were_allowed() -> None:
    study = task_study("virl_l")
    figure = fig5([study], tries=None)
    _, value, _ = along(study, "rl", "id", "per_step", tries=2)
    line = lines(figure.axes[0])["RL"]
    np.testing.assert_allclose(line.get_ydata(), smooth(value))
    assert "replies 1 to 2" in figure.axes[0].get_ylabel()


def test_fig6_has_bars_and_a_row_for_every_task_beside_the_papers() -> None:
    figure = fig6(ALL)
    *panels, table = figure.axes
    cells = {key: c.get_text().get_text() for key, c in table.tables[0].get_celld().items()}
    for row, (study, panel) in enumerate(zip(ALL, panels, strict=True), 1):
        metric, paper = METRICS[study.task], PAPER[study.task, "rule_ood"]
        names = ("init", "rl", "sft")
        scores = {b: at_equal(study, b, "rule_ood", metric) for b in names}
        assert bars(panel) == {NAMES[b]: [pytest.approx(scores[b][0])] for b in names}
        drawn = [error for (error,) in bar_errors(panel)]
        assert drawn == pytest.approx([scores[b][1] for b in names])
        hatched = [bar.get_height() for bar in panel.patches if bar.get_hatch()]
        assert hatched == pytest.approx([paper[b] / 100 for b in names])
        gain = f"{100 * (scores['sft'][0] - scores['init'][0]):+.1f}".replace("-", "−")
        theirs = f"{paper['sft'] - paper['init']:+.1f}".replace("-", "−")
        assert {gain, theirs} <= set(texts(panel))
        assert (cells[row, -1], cells[row, 4], cells[row, 6]) == (TASKS[study.task], gain, theirs)
    assert png(figure)


def test_fig1_shows_navigation_and_the_changes_of_all() -> None:
    figure = fig1(ALL)
    above, below = figure.axes[:2], figure.axes[2:]
    for top, bottom, split in zip(above, below, ("id", "rule_ood"), strict=True):
        assert top.get_title("left").startswith("V-IRL-L")
        for branch in ("rl", "sft"):
            same_line(top, branch, ALL[1], split, "success")
        for (name, heights), errors in zip(bars(bottom).items(), bar_errors(bottom), strict=True):
            branch = {"RL": "rl", "SFT": "sft"}[name]
            init = [at_equal(study, "init", split, "success") for study in ALL]
            ends = [at_equal(study, branch, split, "success") for study in ALL]
            pairs = list(zip(ends, init, strict=True))
            assert heights == pytest.approx([end[0] - start[0] for end, start in pairs])
            assert errors == pytest.approx([math.hypot(end[1], start[1]) for end, start in pairs])
        assert [t.get_text() for t in bottom.get_xticklabels()] == list(TASKS.values())
    assert png(figure)


def test_changes_are_told_in_points_with_their_sign() -> None:
    assert [CHANGE(x) for x in (0.005, 0.1, 0.0, -0.25)] == ["+0.5", "+10", "0", "−25"]


def test_fig1_makes_do_with_the_card_game() -> None:
    figure = fig1([ALL[0]])
    assert figure.axes[0].get_title("left").startswith("GP-L")
    assert "+" in "".join(texts(figure.axes[2])) and "−" in "".join(texts(figure.axes[3]))


def test_fig18_is_success_of_vision_navigation_only() -> None:
    study = task_study("virl_vl")
    figure = fig18([ALL[0], study])
    for panel, split in zip(figure.axes, ("id", "rule_ood"), strict=True):
        for branch in ("rl", "sft"):
            same_line(panel, branch, study, split, "success")
    assert figure.axes[0].get_ylabel() == "Success, greedy, first try"


def test_fig18_of_hardly_any_success_keeps_a_readable_axis() -> None:
    study = task_study("virl_vl")
    few = [dataclasses.replace(r, value=0.001, low=0.0) for r in study.records]
    assert fig18([dataclasses.replace(study, records=few)]).axes[0].get_ylim() == (0, 0.05)


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (fig1, "success of GP-L.*on id and visual_ood.*Run python -m launch.study"),
        (fig5, "per_step of V-IRL-L.*GP-L: no result for split=visual_ood"),
        (fig6, "per_step of V-IRL-L.*V-IRL-L: no result for split=visual_ood"),
        (fig18, "success of V-IRL-VL.*given: GP-L: not in this figure.*configs/virl_vl.py:tiny"),
    ],
)
def test_nothing_to_draw_names_what_is_missing_and_what_to_run(draw, named: str) -> None:
    with pytest.raises(ResultsError, match=f"nothing to draw; needed: .*{named}"):
        draw(ALL[:2], ood="visual_ood")

"""What the figures draw: the artists hold the records' numbers."""

import io

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from gp_virl.plots.curves import chosen, curve, smooth
from gp_virl.plots.figures import fig5, fig6
from gp_virl.plots.look import NAMES
from gp_virl.plots.paper import PAPER
from gp_virl.plots.results import ResultsError
from tests.plots.synthetic import INIT_FLOPS, study


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def lines(panel) -> dict:
    return {line.get_label(): line for line in panel.get_lines()}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts(panel) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_fig5_draws_smoothed_curves_from_the_shared_init() -> None:
    records = study()
    figure = fig5(records)
    assert len(figure.axes) == 2
    for panel, split in zip(figure.axes, ("id", "rule_ood"), strict=True):
        fit = chosen(records, split, 1, "greedy")
        for branch in ("rl", "sft", "sft_matched"):
            along = curve(fit, branch)
            line = lines(panel)[NAMES[branch]]
            np.testing.assert_allclose(line.get_xdata() * 1e13, along.flops)
            np.testing.assert_allclose(line.get_ydata(), smooth(along.value))
            assert (line.get_linestyle() == "--") is (branch == "sft_matched")
        points = [c for c in panel.containers if c.get_label() == NAMES["init"]]
        assert points[0].lines[0].get_xdata().tolist() == [INIT_FLOPS / 1e13]
        assert panel.get_ylim()[0] == 0
    assert legend(figure) == list(NAMES.values())
    assert "10^{13}" in figure.axes[0].get_xlabel()
    assert png(figure) == png(fig5(records))


def test_fig5_shows_raw_points_with_binomial_errors() -> None:
    records = study(control=False)
    panel = fig5(records).axes[1]
    along = curve(chosen(records, "rule_ood", 1, "greedy"), "rl")
    raw = [c for c in panel.containers if c.get_label() != NAMES["init"]]
    marks = {tuple(c.lines[0].get_ydata()): c for c in raw}
    container = marks[tuple(along.value[1:])]
    low, high = np.array([bar[:, 1] for bar in container.lines[2][0].get_segments()]).T
    np.testing.assert_allclose((high - low) / 2, along.error[1:])


def test_fig5_draws_a_band_for_several_seeds() -> None:
    def bands(seeds: int) -> list:
        drawn = fig5(study(seeds)).axes[1].collections
        return [one for one in drawn if isinstance(one, PolyCollection)]

    assert len(bands(1)) == 0 and len(bands(3)) == 3
    along = curve(chosen(study(3), "rule_ood", 1, "greedy"), "rl")
    edge = bands(3)[0].get_paths()[0].vertices[:, 1]
    assert edge.max() == pytest.approx(smooth(along.value + along.error).max())


def test_fig5_makes_do_without_the_control_and_with_few_points() -> None:
    assert "SFT at RL's learning rate" not in legend(fig5(study(control=False, points=2)))


def test_fig6_writes_the_change_from_init_on_the_bars() -> None:
    records = study(control=False, held_out=False)
    figure = fig6(records)
    here, paper, table = figure.axes
    fit = chosen(records, "rule_ood", 1, "greedy")
    init = curve(fit, "init").value[0]
    change = 100 * (curve(fit, "rl").value[-1] - init)  # RL is the shorter branch here
    assert f"{change:+.1f}" in texts(here)
    assert texts(paper) == ["+3.5", "−8.1"]
    assert [bar.get_height() for bar in paper.patches] == pytest.approx([0.115, 0.15, 0.034])
    assert all(bar.get_hatch() for bar in paper.patches)
    cells = {key: cell.get_text().get_text() for key, cell in table.tables[0].get_celld().items()}
    assert cells[2, -1] == "RL" and cells[2, 2] == f"{change:+.1f}" and cells[2, 3] == "15.0"
    assert cells[3, 4] == "−8.1"
    assert png(figure)


def test_fig6_shows_held_out_hands_and_the_control_where_measured() -> None:
    figure = fig6(study())
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["ID", "ID, held out", "rule OOD"]
    assert legend(figure) == list(NAMES.values())


def test_fig6_says_when_the_paper_has_no_number() -> None:
    figure = fig6(study(), task="another")
    assert texts(figure.axes[1]) == ["no numbers"]


def test_the_papers_numbers_show_the_finding() -> None:
    assert all(found["sft"] < found["init"] < found["rl"] for found in PAPER.values())
    assert PAPER["gp_l", "rule_ood"] == {"init": 11.5, "sft": 3.4, "rl": 15.0}


@pytest.mark.parametrize("draw", [fig5, fig6])
@pytest.mark.parametrize("branch", ["init", "sft", "rl"])
def test_a_missing_branch_is_named(draw, branch: str) -> None:
    records = [one for one in study() if one.branch != branch]
    with pytest.raises(ResultsError, match=branch):
        draw(records)

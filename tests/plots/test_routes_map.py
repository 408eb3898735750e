"""The map of a route shows its stops, its landmarks near by, and its street views."""

import numpy as np
import pytest

from gp_virl.plots.routes_map import COLOURS, NAMED, OTHER, Stop, route_map


def stops(views: int) -> list[Stop]:
    view = np.full((9, 9, 3), 128, np.uint8)
    kinds = ("turn", "forward", "turn", "forward", "forward", "stop")
    return [
        Stop(
            (20.0 * i, 0.0), None if i == 0 else 90.0, kind, f"at {i}", view if i < views else None
        )
        for i, kind in enumerate(kinds)
    ]


def test_everything_is_drawn() -> None:
    streets = np.array([[[0.0, 0.0], [100.0, 0.0]], [[40.0, -50.0], [40.0, 50.0]]])
    landmarks = {"Harbor Hotel": (42.0, 8.0), "Far Inn": (900.0, 0.0)}
    said = ["Turn to face east.", "Move forward."]
    figure = route_map("one", stops(6), landmarks, streets, said, "Mind the step.")
    plan, side, *views = figure.axes
    assert len(views) == 6 and views[3].get_title("left") == "4. at 3"
    written = {text.get_text() for text in plan.texts}
    assert written == {"1", "2", "3", "4", "5", "6", "Harbor Hotel"}
    assert side.texts[0].get_text() == "1. Turn to face east.\n2. Move forward.\n\nMind the step."
    points = {c.get_label(): c.get_offsets() for c in plan.collections if c.get_label() in COLOURS}
    assert {kind: len(xy) for kind, xy in points.items()} == {"turn": 2, "forward": 3, "stop": 1}
    assert points["stop"].tolist() == [[100.0, 0.0]]
    streets_drawn = [line.get_xydata() for line in plan.lines[:2]]
    assert np.allclose(streets_drawn, streets)
    arrows = [c for c in plan.collections if hasattr(c, "U")]
    assert len(arrows) == 5 and np.allclose([a.U for a in arrows], 1)
    assert figure.dpi == 150
    figure.canvas.draw()


def test_landmarks_of_the_instructions_stand_out_where_no_stop_is_hidden() -> None:
    landmarks = {"Inn": (50.0, 20.0), "Bar": (-5.0, 0.5), "Hall": (99.0, -30.0)}
    plan = route_map("one", stops(0), landmarks, None, ["Move forward until Bar."]).axes[0]
    stars = {tuple(line.get_xydata()[0]): line.get_color() for line in plan.lines[-3:]}
    assert [stars[xy] for xy in landmarks.values()] == [OTHER, NAMED, OTHER]
    names = {text.get_text(): text for text in plan.texts if text.get_text() in landmarks}
    sides = [names[name].get_horizontalalignment() for name in landmarks]
    assert sides == ["left", "right", "left"]  # Bar is written away from the way
    longer = route_map("one", stops(0), {"Inn at the very end of the road": (99.0, -30.0)})
    assert longer.axes[0].texts[-1].get_horizontalalignment() == "right"


def test_long_captions_are_broken_and_their_lines_kept() -> None:
    stop = Stop((0.0, 0.0), 0.0, "stop", "stop()\n" + "word " * 15, np.zeros((3, 3, 3), np.uint8))
    title = route_map("one", [stop]).axes[-1].get_title("left").split("\n")
    assert title[0] == "1. stop()" and len(title) == 3 and max(map(len, title)) <= 45


def test_without_views() -> None:
    assert len(route_map("one", stops(0)).axes) == 2
    with pytest.raises(ValueError, match="stops"):
        route_map("none", [])

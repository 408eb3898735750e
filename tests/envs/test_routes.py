"""Words for headings and turns, the expert's waypoints, its sentences, and the bank of arrays."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gp_virl.envs import routes
from gp_virl.envs.route_files import read_routes
from gp_virl.envs.routes import Leg, Place, Route, Waypoint, waypoints_along
from tests.envs.route_examples import GOLDEN, moved

TURNS = json.loads((GOLDEN.parent / "route_turns.json").read_text())


@pytest.fixture(scope="module")
def golden() -> list[Route]:
    return read_routes(GOLDEN, 3)


@pytest.mark.parametrize("case", TURNS, ids=lambda c: f"{c['route']}-from-{c['start_heading']}")
def test_golden_turns(case: dict, golden: list[Route]) -> None:
    route, before = golden[case["route"]], case["start_heading"]
    turns = [point for point in route.waypoints if point.kind == "turn"]
    assert len(turns) == len(case["turns"]) == len(route.legs)
    for point, expected in zip(turns, case["turns"], strict=True):
        assert (
            point.heading in (None, expected["heading_before"]) and point.next_heading is not None
        )
        before = before if point.heading is None else point.heading
        assert routes.turn_degrees(before, point.next_heading) == expected["turn_degrees"]
        assert routes.action(point, "relative", before) == expected["relative"]
        assert routes.action(point, "absolute", before) == expected["absolute"]
        assert routes.action(point, "absolute", None) == expected["absolute"]
    seen = [routes.observation(point) for point in turns[1:]]
    told = [text.replace("No landmark ", "No landmarks ") for text in case["landmarks"]]
    assert seen == told[:-1]
    last = route.legs[-1]
    assert f"The destination {last.landmark} is on your {last.side}" == told[-1]


def test_compass_words() -> None:
    for heading in range(720):
        word = routes.compass_word(heading)
        away = abs((heading - 45 * routes.COMPASS.index(word) + 180) % 360 - 180)
        assert away <= 22
    words = [routes.compass_word(h) for h in (0, 22, 22.5, 23, 67, 68, 337, 337.4, 337.5, 359.9)]
    east, west = "northeast", "northwest"
    assert words == ["north", "north", east, east, east, "east", west, west, "north", "north"]


def test_wrapped_turns() -> None:
    for before in range(0, 360, 7):
        for after in range(360):
            turn = routes.turn_degrees(before, after)
            assert -180 <= turn < 180 and (before + turn - after) % 360 == 0
    assert routes.turn_degrees(350, 10) == 20 and routes.turn_degrees(10, 350) == -20
    assert routes.turn_degrees(90, 270) == routes.turn_degrees(270, 90) == -180


@pytest.mark.parametrize(
    ("degrees", "word"),
    [
        (-180, "left"), (-90, "left"), (-46, "left"), (-45, "slightly left"), (-1, "slightly left"),
        (0, "slightly left"), (1, "slightly right"), (45, "slightly right"), (46, "right"),
        (179, "right"),
    ],
)  # fmt: skip
def test_relative_words(degrees: int, word: str) -> None:
    assert routes.relative_word(degrees) == word and word in routes.RELATIVE


def test_a_turn_word_needs_a_known_rule_and_a_heading() -> None:
    assert routes.turn_word("relative", 350, 10) == "slightly right"
    with pytest.raises(ValueError, match="rule: given 'north', allowed: absolute, relative"):
        routes.turn_word("north", 0, 0)
    with pytest.raises(ValueError, match="start heading: given None"):
        routes.turn_word("relative", None, 10)


@pytest.fixture
def short() -> Route:
    """Start, two points, a corner without a landmark, a cafe at once, one point, the hall."""
    legs = (Leg(0, None, None), Leg(90, "Cafe", "left"), Leg(135, "Hall", "behind"))
    at = [moved((10.0, 20.0), 10 * i, 5 * i) for i in range(7)]
    points = [Place(at[i], None if i == 1 else f"p{i % 5}") for i in range(7)]
    between = ([points[1], points[2]], [], [points[5]])
    found = waypoints_along(legs, points[0], [points[3], points[4], points[6]], between)
    return Route("0 to Hall", "Here", legs, found, 350)


def test_the_expert_s_way(short: Route) -> None:
    start = short.waypoints[0].position
    at = [point.position for point in short.waypoints]
    assert at == [moved(start, 10 * i, 5 * i) for i in range(7)]
    none = (None, None, False)
    assert short.waypoints == (
        Waypoint(at[0], "p0", None, 0, "turn", *none, 0),
        Waypoint(at[1], None, 0, None, "forward", *none, 1),
        Waypoint(at[2], "p2", 0, None, "forward", *none, 1),
        Waypoint(at[3], "p3", 0, 90, "turn", None, None, True, 2),
        Waypoint(at[4], "p4", 90, 135, "turn", "Cafe", "left", True, 4),
        Waypoint(at[5], "p0", 135, None, "forward", *none, 5),
        Waypoint(at[6], "p1", 135, None, "stop", *none, 5),
    )


def test_actions_and_texts(short: Route) -> None:
    headings = [350, 0, 0, 0, 90, 135, 135]
    said = [routes.action(p, "relative", h) for p, h in zip(short.waypoints, headings, strict=True)]
    turns = ["turn_direction(slightly right)", "turn_direction(right)"]
    assert said == [turns[0], *["forward()"] * 2, turns[1], turns[0], "forward()", "stop()"]
    assert routes.observation(short.waypoints[4]) == "Cafe is on your left"
    for index in (0, 1, 3, 6):
        assert routes.observation(short.waypoints[index]) == "No landmarks nearby"
    assert routes.sentences(short, "absolute", None) == [
        "Turn to face north.",
        "Move forward until the next intersection.",
        "Turn to face east.",
        "Move forward until the next intersection where Cafe is on your left.",
        "Turn to face southeast.",
        "Move forward until the destination where Hall is on your behind.",
    ]
    turned = routes.sentences(short, "relative", 180)[::2]
    assert turned == ["Turn left.", "Turn right.", "Turn slightly right."]
    assert routes.sentences(short, "relative", 350)[0] == "Turn slightly right."
    with pytest.raises(ValueError, match="start heading"):
        routes.sentences(short, "relative", None)


def test_bank_holds_every_field(golden: list[Route], short: Route) -> None:
    every = [*golden, short]
    bank, names, panos = routes.bank(every)
    assert len(set(names)) == len(names) and panos == ("p0", "p2", "p3", "p4", "p1")
    assert bank.kind.shape == (7, max(len(route.waypoints) for route in every))
    assert bank.leg_heading.shape == (7, 4)
    for index, route in enumerate(every):
        one = jax.tree.map(lambda x, i=index: x[i], bank)  # has the same fields, without routes
        one = SimpleNamespace(**{name: np.asarray(x) for name, x in vars(one).items()})
        assert (one.length, one.legs) == (len(route.waypoints), len(route.legs))
        assert one.start_heading == (350 if route is short else -1)
        for row, point in enumerate(route.waypoints):
            assert waypoint_of(one, row, names, panos) == (
                point.kind, point.heading, point.next_heading, point.landmark, point.side,
                point.intersection, point.sentence, point.pano,
            )  # fmt: skip
            east, north = map(float, one.position[row])
            there = moved(route.waypoints[0].position, north, east)
            assert there == pytest.approx(point.position, abs=1e-9)
        for row, leg in enumerate(route.legs):
            landmark, side = one.leg_landmark[row], one.leg_side[row]
            name = named(names, landmark)
            assert Leg(int(one.leg_heading[row]), name, named(routes.SIDES, side)) == leg
        rest = slice(len(route.waypoints), None)
        for field in ("kind", "heading", "next_heading", "landmark", "side", "sentence", "pano"):
            assert (getattr(one, field)[rest] == -1).all()
        assert not one.intersection[rest].any() and (one.position[rest] == 0).all()
        assert (one.leg_heading[len(route.legs) :] == -1).all()


def named(names, index):
    return None if index < 0 else names[index]


def waypoint_of(one, row: int, names, panos) -> tuple:
    heading, then = int(one.heading[row]), int(one.next_heading[row])
    return (
        routes.KINDS[one.kind[row]],
        None if heading < 0 else heading,
        None if then < 0 else then,
        named(names, one.landmark[row]),
        named(routes.SIDES, one.side[row]),
        bool(one.intersection[row]),
        int(one.sentence[row]),
        named(panos, one.pano[row]),
    )


def test_bank_of_nothing() -> None:
    with pytest.raises(ValueError, match="routes: given none"):
        routes.bank([])


def test_an_error_tells_all_problems() -> None:
    error = routes.RouteError(Path("x.json"), ["route '0': a", "route '1': b"])
    assert error.problems == ("route '0': a", "route '1': b")
    assert str(error) == "x.json: no route was read\n  route '0': a\n  route '1': b"

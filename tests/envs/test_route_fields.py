"""Every field of a route that is missing or wrong is named with its route."""

import json

import pytest

from gp_virl.envs.route_fields import Draft, is_position, read_draft
from gp_virl.envs.routes import Leg
from tests.envs.route_examples import CORNER, GOAL, START, changed, two_legs

NAN, INF = float("nan"), float("inf")


def read(given: object) -> tuple[Draft | None, list[str]]:
    problems: list[str] = []
    draft = read_draft(given, "7", "Folder", problems)
    assert (draft is None) == bool(problems)
    return draft, problems


def test_a_good_route() -> None:
    legs = (Leg(0, "Cafe: A", "left"), Leg(90, "Hall", "front"))
    draft = Draft("7 to Hall", "Old_Town", START, (CORNER, GOAL), legs, None)
    assert read(two_legs()) == (draft, [])
    assert read(changed("init_heading", 300))[0].start_heading == 300
    for region in (..., None, 5, " "):
        assert read(changed("dest_place.region", region))[0].region == "Folder"
    assert read(changed("start_place.relocated_geocode", [40, -74]))[0].start == (40.0, -74.0)


@pytest.mark.parametrize(
    "path",
    [
        "start_place", "start_place.relocated_geocode", "dest_place", "dest_place.name",
        "dest_place.relocated_geocode", "route_results", "route_results.geocode_list",
        "route_results.landmark_list", "init_heading", "milestone_info",
    ],
)  # fmt: skip
def test_a_field_that_is_missing_or_of_another_type(path: str) -> None:
    name = "7" if path in ("dest_place", "dest_place.name") else "7 to Hall"
    for value in (..., None, True, 1.5, b"x", [1.5] if path == "init_heading" else 9):
        if isinstance(value, bytes) or (path == "init_heading" and value == 9):
            continue
        _, problems = read(changed(path, value))
        told = "missing; it is" if value is ... else "given "
        assert [problem for problem in problems if f"route '{name}': {path}: {told}" in problem]
        assert len(problems) == 1, problems


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("init_heading", -1, "init_heading: given -1, allowed: an integer in 0..359"),
        ("init_heading", 360, "init_heading: given 360"),
        ("dest_place.name", " ", "dest_place.name: given ' ', allowed: a name"),
        ("dest_place.name", "\ud800", r"dest_place.name: given '\\ud800', allowed: a name"),
        ("route_results.geocode_list", [], "route_results.geocode_list: given no point"),
        (
            "route_results.geocode_list.1",
            [1.0],
            r"geocode_list\[1\]: given \[1.0\], allowed: \[lat",
        ),
        ("route_results.geocode_list.1", [NAN, 1.0], r"geocode_list\[1\]: given \[nan, 1.0\]"),
        ("route_results.geocode_list.0", "here", r"geocode_list\[0\]: given 'here'"),
        ("start_place.relocated_geocode", [INF, 0], "start_place.relocated_geocode: given"),
        ("start_place.relocated_geocode", [-74.0, 190.0], "start_place.relocated_geocode: given"),
        ("dest_place.relocated_geocode", ["40", "-74"], "dest_place.relocated_geocode: given"),
        ("dest_place.relocated_geocode", [True, 1], "dest_place.relocated_geocode: given"),
        ("dest_place.relocated_geocode", [10**400, 1], "dest_place.relocated_geocode: given"),
        ("route_results.landmark_list", [], "landmark_list: given 0 entries, allowed: 1, one for"),
        ("route_results.landmark_list", [None, None], "landmark_list: given 2 entries, allowed: 1"),
        ("route_results.landmark_list.0", {}, r"landmark_list\[0\].name: missing; it is a text"),
        ("route_results.landmark_list.0", 5, r"landmark_list\[0\]: given 5, allowed: an object or"),
        ("route_results.landmark_list.0.name", 5, r"landmark_list\[0\].name: given 5"),
        ("route_results.landmark_list.0", None, r"milestone_info\[0\].landmarks: given 'Cafe: A'"),
        ("milestone_info", "{", "milestone_info: the last block isn't closed"),
        ("milestone_info", "", "milestone_info: given 0 blocks, allowed: 2"),
    ],
)
def test_wrong_values(path: str, value: object, message: str) -> None:
    _, problems = read(changed(path, value))
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(problems))
    assert len(problems) == 1 and problems[0].startswith("route '7")


def test_a_block_less_is_told_even_if_landmarks_are_wrong_too() -> None:
    route = changed("route_results.landmark_list", [None, None])
    route["milestone_info"] = route["milestone_info"].split("}")[0] + "}"
    assert [problem for problem in read(route)[1] if "given 1 blocks, allowed: 2" in problem]


def test_all_wrong_fields_are_told_together() -> None:
    _, problems = read(
        {"dest_place": {"name": "Hall"}, "route_results": {"geocode_list": [[1, NAN]]}}
    )
    told = [problem.removeprefix("route '7 to Hall': ").split(":")[0] for problem in problems]
    assert told == [
        "start_place", "dest_place.relocated_geocode", "route_results.geocode_list[0]",
        "route_results.landmark_list", "init_heading", "milestone_info",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [None, [], 5, "x", [two_legs()]])
def test_what_is_no_route(given: object) -> None:
    _, problems = read(given)
    assert len(problems) == 1 and problems[0].startswith("route 7: given ")


def test_positions() -> None:
    assert is_position((90, -180)) and is_position([-90.0, 180.0])
    for given in ((90.1, 0), (0, 180.1), (NAN, 0), (0, -INF), (0,), (0, 0, 0), ("0", 0), (True, 0)):
        assert not is_position(given)
    assert not is_position({0: 0, 1: 1}) and not is_position("ab") and not is_position(None)


def test_messages_stay_printable() -> None:
    route = changed("init_heading", "\ud800" * 500)
    assert len(json.dumps(read(route)[1])) < 300

"""Blocks that are nearly JSON become legs; every wrong one is named."""

import pytest

from gp_virl.envs.milestone_info import read_legs
from gp_virl.envs.routes import SIDES, Leg, compass_word
from tests.envs.route_examples import block

GOAL = block(2, "The destination Hall is on your front", "90 (east)")
CAFE = block(1, "Cafe: A is on your left", "0 (north)")


def read(text: str, milestones=2, destination="Hall", landmarks=("Cafe: A",)):
    problems: list[str] = []
    names = None if landmarks is None else list(landmarks)
    legs = read_legs(text, milestones, destination, names, "route '7': milestone_info", problems)
    assert (legs is None) == bool(problems)
    assert all(problem.startswith("route '7': milestone_info") for problem in problems)
    return legs, problems


def test_blocks_become_legs() -> None:
    legs = (Leg(0, "Cafe: A", "left"), Leg(90, "Hall", "front"))
    assert read(CAFE + GOAL) == (legs, [])
    assert read((CAFE + GOAL).replace("\n", "\r\n  ").replace('",', '"')) == (legs, [])
    assert read((CAFE + GOAL).replace("}", "},")) == (legs, [])
    empty = block(1, "No landmark nearby", "0 (north)")
    assert read(empty + GOAL, landmarks=[None])[0] == (Leg(0, None, None), legs[1])
    assert read(CAFE + GOAL, None, None, None) == (legs, [])


def test_blocks_on_one_line() -> None:
    legs = read(CAFE + GOAL)[0]
    flat = (CAFE + GOAL).replace("\n", " ")
    assert read(flat) == (legs, [])
    assert read(flat.replace(",  }", "}").replace(", }", "}")) == (legs, [])
    wide = flat.replace('", ', '" ,  ').replace('": "', '" :   "').replace("{", "{\t")
    assert read(wide) == (legs, [])
    assert read((CAFE + GOAL).replace("}\n\n{", "}{")) == (legs, [])
    assert read((CAFE + GOAL).replace("}\n\n{", "},{")) == (legs, [])
    for name in ('A "{b}" c', "}{", 'Q "x"} y', "a, b: c"):
        given = block(1, f"{name} is on your left", "0 (north)").replace("\n", " ") + GOAL
        assert read(given, landmarks=[name]) == ((Leg(0, name, "left"), legs[1]), [])
    for wrong in ("x" + flat, flat + "}", flat.replace("{", "{{")):
        assert "line 1: given" in read(wrong)[1][0]


def test_blocks_need_no_number() -> None:
    legs = read(CAFE + GOAL)[0]
    for other in ('"intersection_idx": "7"', '"intersection_idx": "one"', '"idx": "1"'):
        assert read(CAFE.replace('"intersection_idx": "1"', other) + GOAL) == (legs, [])


def test_names_of_any_look() -> None:
    for name in (
        'The "Best" Place',
        "On is on your left Street",
        "Q: {x}, y",
        "Café №5",
        "The destination",
    ):
        text = block(1, f"{name} is on your right behind", "0 (north)")
        text += block(2, f"The destination {name} is on your behind", "90 (east)")
        legs = (Leg(0, name, "right behind"), Leg(90, name, "behind"))
        assert read(text, 2, name, [name]) == (legs, [])


def test_every_side_and_heading() -> None:
    for side in SIDES:
        text = block(1, f"The destination Hall is on your {side}", "9 (north)")
        assert read(text, 1, landmarks=[])[0] == (Leg(9, "Hall", side),)
    for heading in range(360):
        text = GOAL.replace("90 (east)", f"{heading} ({compass_word(heading)})")
        assert read(text, 1, landmarks=[])[0] == (Leg(heading, "Hall", "front"),)
    assert read(GOAL.replace("90 (east)", "360 (north)"), 1, landmarks=[])[0][0].heading == 0
    for heading in ("298(northwest)", "298 (Northwest)", " 298(NORTHWEST) "):
        given = GOAL.replace("90 (east)", heading)
        assert read(given, 1, landmarks=[])[0] == (Leg(298, "Hall", "front"),)
    for rounded in ("22 (northeast)", "23 (north)", "337 (north)"):
        assert read(GOAL.replace("90 (east)", rounded), 1, landmarks=[])[1] == []


@pytest.mark.parametrize(
    "heading",
    ["", "east", "90", "90 east", "90(east", "-90 (west)", "90.5 (east)", "361 (north)"]
    + ["nan (north)", "90 (east) x"],
)
def test_headings_that_are_none(heading: str) -> None:
    _, problems = read(CAFE + GOAL.replace("90 (east)", heading))
    assert problems == [
        f"route '7': milestone_info[1].to_next_intersection_heading: given {heading!r}, allowed: "
        'whole degrees in 0..360 and the compass word, such as "298 (northwest)"'
    ]


def test_a_compass_word_must_be_the_heading_s() -> None:
    for wrong in ("90 (west)", "90 (northeast)", "24 (north)"):
        _, problems = read(CAFE + GOAL.replace("90 (east)", wrong))
        degrees = int(wrong.split()[0])
        assert f"given {wrong!r}, allowed: {degrees} ({compass_word(degrees)})" in problems[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CAFE.replace(" is on your left", ""), r"\[0\].landmarks: given 'Cafe: A', allowed: \"N"),
        (CAFE.replace("on your left", "on your lefft"), r"\[0\].landmarks: given side 'lefft'"),
        (CAFE.replace("on your left", "on your"), r"\[0\].landmarks: given 'Cafe: A is on your'"),
        (CAFE.replace("Cafe: A is", " is"), r"\[0\].landmarks: given ' is on your left'"),
        (CAFE.replace("Cafe: A", "Cafe: B"), "given 'Cafe: B', allowed: 'Cafe: A' as in route_res"),
        (CAFE.replace("Cafe: A is on your left", "No landmark nearby"), "given None, allowed: 'Ca"),
        (CAFE.replace("landmarks", "landmark"), r"\[0\].landmarks: missing; it is \"NAME is on"),
        (CAFE.replace("to_next", "next"), r"\[0\].to_next_intersection_heading: missing"),
        (CAFE.replace("{\n", "{\n\n{\n"), "line 4: given '{', allowed: blocks of"),
        (CAFE.replace("}", ""), "line 10: given '{', allowed: blocks"),
        (CAFE.replace("{\n", ""), "line 2: given '\"intersection_idx"),
        (CAFE.replace("16 meters\"", "16 meters"), "line 5: given '\"distance"),
        (CAFE.replace('"human_heading"', '"distance"'), "line 6: .*each key once"),
        (CAFE + "Hello\n", "line 9: given 'Hello'"),
        ("", "given 1 blocks, allowed: 2, one for each point of route_results.geocode_list"),
        (CAFE + CAFE.replace('"1"', '"2"'), "given 3 blocks, allowed: 2"),
    ],
)  # fmt: skip
def test_wrong_blocks_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(read(text + GOAL)[1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOAL.replace("The destination ", ""), r"\[1\].landmarks: given 'Hall is.*\"The destin"),
        (GOAL.replace("Hall", "Mall"), r"given 'Mall', allowed: 'Hall' as in dest_place.name"),
        (GOAL.replace("The destination Hall is on your front", "No landmark nearby"), r"\[1\]"),
        (GOAL.replace("}", ""), "the last block isn't closed by a }"),
    ],
)
def test_wrong_last_blocks_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(read(CAFE + text)[1]))


def test_all_problems_are_told_together() -> None:
    first = CAFE.replace("left", "lefft").replace("0 (north)", "north")
    _, problems = read(first + GOAL.replace("Hall", "Mall"))
    assert len(problems) == 3
    assert {problem.split(":")[1].split("[")[1] for problem in problems} == {
        "0].landmarks", "0].to_next_intersection_heading", "1].landmarks",
    }  # fmt: skip

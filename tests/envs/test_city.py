"""Procedural cities: their plan, and routes in the released form that say what is true."""

import collections
import itertools
import json
import math
import re

import networkx as nx
import numpy as np
import pytest

from gp_virl.envs import city as cities
from gp_virl.envs import city_names, city_plan
from gp_virl.envs.city_styles import MINI, STYLES, TRAINING, style_of
from gp_virl.envs.routes import COMPASS, SIDES

BLOCK = re.compile(r'\n\{\n(?:"\w+": ".*",\n)+\}\n')


@pytest.fixture(scope="module")
def city() -> cities.City:
    return cities.build(TRAINING, 0)


@pytest.fixture(scope="module")
def routes(city):
    return cities.routes(city, 1000)


def blocks(route) -> list[dict[str, str]]:
    found = BLOCK.findall(route["milestone_info"])
    assert "".join(found) == route["milestone_info"]
    return [dict(re.findall(r'"(\w+)": "(.*)",\n', block)) for block in found]


def bearing(start, end) -> float:
    """Initial bearing on a sphere, degrees clockwise from north."""
    (lat1, lng1), (lat2, lng2) = (map(math.radians, place) for place in (start, end))
    east = math.sin(lng2 - lng1) * math.cos(lat2)
    north = math.cos(lat1) * math.sin(lat2)
    north -= math.sin(lat1) * math.cos(lat2) * math.cos(lng2 - lng1)
    return math.degrees(math.atan2(east, north)) % 360


def meters(start, end) -> float:
    """Along the sphere, by the law of cosines for small angles."""
    (lat1, lng1), (lat2, lng2) = (map(math.radians, place) for place in (start, end))
    return 6_371_000 * math.hypot(lat2 - lat1, (lng2 - lng1) * math.cos((lat1 + lat2) / 2))


def apart(first: float, second: float) -> float:
    return abs((first - second + 180) % 360 - 180)


def stops_of(route) -> list:
    return [route["start_place"]["relocated_geocode"], *route["route_results"]["geocode_list"]]


def test_the_text_is_true(routes) -> None:
    for route in routes:
        info, stops = blocks(route), stops_of(route)
        seen = [*route["route_results"]["landmark_list"], route["dest_place"]]
        assert len(info) == len(stops) - 1 == len(seen)
        facing = 0
        for i, (said, a, b, place) in enumerate(zip(info, stops, stops[1:], seen, strict=False)):
            heading, word = re.fullmatch(
                r"(\d+) \((\w+)\)", said["to_next_intersection_heading"]
            ).groups()
            assert apart(int(heading), bearing(a, b)) < 0.6
            assert min(COMPASS, key=lambda w: apart(45 * COMPASS.index(w), int(heading))) == word
            assert said["distance"] == f"{round(meters(a, b))} meters"
            assert said["intersection_idx"] == str(i + 1)
            assert said["human_heading"] == str(facing)
            facing = int(heading)
            last = "The destination " if i + 1 == len(info) else ""
            if place is None:
                assert said["landmarks"] == "No landmark nearby" and not last
                continue
            side = (bearing(b, place["geocode"]) - facing) % 360
            near = min(SIDES, key=lambda s: apart(45 * SIDES.index(s), side))
            assert said["landmarks"] == f"{last}{place['name']} is on your {near}"
            assert 5 < meters(b, place["geocode"]) < 20
        assert route["init_heading"] == 0
        assert list(stops[-1]) == route["dest_place"]["relocated_geocode"]


def test_routes_turn_and_do_not_wander(city, routes) -> None:
    graph = city.plan.graph()
    node = {city.position(tuple(xy)): i for i, xy in enumerate(city.plan.crossings.tolist())}
    turns = collections.Counter()
    for route in routes:
        stops = [tuple(stop) for stop in stops_of(route)]
        assert len(set(stops)) == len(stops) and 2 <= len(stops) - 2 <= 4
        headings = [bearing(a, b) for a, b in itertools.pairwise(stops)]
        assert all(30 <= meters(a, b) <= 120 for a, b in itertools.pairwise(stops))
        turn = [apart(a, b) for a, b in itertools.pairwise(headings)]
        assert min(turn) > 19 and max(turn) < 151
        turns.update(45 if degrees < 62 else 90 for degrees in turn)
        inner = [node[stop] for stop in stops[1:-1]]
        length = sum(graph[a][b]["length"] for a, b in itertools.pairwise(inner))
        shortest = nx.shortest_path_length(graph, inner[0], inner[-1], weight="length")
        assert length <= 1.3 * shortest + 1e-6
    assert turns[45] > 0.1 * turns[90] > 0
    assert len({json.dumps(stops_of(route)) for route in routes}) == 1000


def test_all_words_occur(routes) -> None:
    info = [block for route in routes for block in blocks(route)]
    words = collections.Counter(block["to_next_intersection_heading"] for block in info)
    seen = {re.search(r"\((\w+)\)", word).group(1) for word in words}
    assert seen == set(COMPASS)
    sides = {block["landmarks"].rpartition(" on your ")[2] for block in info}
    assert sides >= set(SIDES) - {"behind"}
    assert any(block["landmarks"] == "No landmark nearby" for block in info)


def test_same_seed_same_city(city, routes) -> None:
    again = cities.build(TRAINING, 0)
    assert cities.routes(again, 7) == routes[:7]
    assert again.mapping == city.mapping and again.metadata(city.ids[3]) == city.metadata(
        city.ids[3]
    )
    other = cities.build(TRAINING, 1)
    assert not set(other.mapping) & set(city.mapping)
    assert {p.name for p in other.plan.places} != {p.name for p in city.plan.places}


def test_mini_is_nine_other_cities() -> None:
    built, routes = cities.mini(0)
    assert len(built) == 9 and TRAINING not in {city.style.name for city in built}
    assert collections.Counter(r["dest_place"]["region"] for r in routes) == {
        STYLES[name].region: 2 for name in MINI
    }
    for city in built:
        mine = [r for r in routes if r["dest_place"]["region"] == city.style.region]
        stops = {tuple(stop) for route in mine for stop in stops_of(route)}
        near = cities.panoramas_near(city, routes)
        assert {city.mapping[stop] for stop in stops} <= near < set(city.ids)
        assert all(meters(stop, city.style.centre) < 500 for stop in stops)


@pytest.mark.parametrize("style", STYLES)
def test_plan(style: str) -> None:
    plan = cities.build(style, 5, blocks=4).plan
    names = [place.name for place in plan.places]
    assert len(set(names)) == len(names)
    assert len(
        {(name.split()[0], place.category) for name, place in zip(names, plan.places, strict=True)}
    ) == len(names)
    ends = plan.crossings[plan.streets]
    signs = np.array([place.sign for place in plan.places])
    walls = plan.facades.reshape(-1, 2)
    assert from_streets(walls, ends).min() > city_plan.STREET - 0.5
    assert from_streets(plan.trees, ends).min() > city_plan.ROAD
    assert city_plan.ROAD < from_streets(signs, ends).min() < city_plan.STREET
    assert nx.is_connected(plan.graph()) and min(dict(plan.graph().degree).values()) >= 2
    for i in range(len(plan.points)):
        away = np.hypot(*(plan.points - plan.points[i]).T)
        assert np.delete(away, i).min() > 4
    for place in plan.places:
        assert np.hypot(*(plan.points[place.pano] - place.sign)) < 20


def from_streets(points, ends) -> np.ndarray:
    """Distance of each point from the nearest street's middle line, one street at a time."""
    least = np.full(len(points), np.inf)
    for a, b in ends:
        share = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        least = np.minimum(least, np.hypot(*(points - a - share[:, None] * (b - a)).T))
    return least


def test_signs_look_different() -> None:
    rng = np.random.default_rng(0)
    names = [name for name, _ in city_names.draw_names(rng, 240)]
    assert len({city_names.sign_of(name) for name in names}) == 240
    first, second = city_names.sign_of("Harbor Hotel"), city_names.sign_of("Harbor Gym")
    assert first.board == second.board and first.icon != second.icon
    assert city_names.sign_of("Nowhere") == city_names.sign_of("Nowhere")


def test_errors(city) -> None:
    with pytest.raises(ValueError, match="atlantis.*new_york"):
        style_of("atlantis")
    with pytest.raises(ValueError, match="9.*3 to 8"):
        cities.build(TRAINING, 0, blocks=9)
    with pytest.raises(ValueError, match="seed.*-1"):
        cities.build(TRAINING, -1)
    with pytest.raises(ValueError, match="given 99999.*at most .*more blocks"):
        cities.routes(city, 99_999)
    with pytest.raises(ValueError, match="241.*240"):
        city_names.draw_names(np.random.default_rng(0), 241)
    for wrong in ("paris_0_0001", "new_york_0_9999", "x"):
        with pytest.raises(KeyError, match=f"{wrong}.*new_york_0_0000"):
            city.metadata(wrong)

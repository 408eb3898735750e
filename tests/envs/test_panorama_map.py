"""Panoramas found for points and legs, against a plain search through all of them."""

import math
import random

import numpy as np
import pytest

from gp_virl.envs import panorama_map
from gp_virl.envs.panorama_map import PanoramaMap, drawn_between, evenly_between, metres
from tests.envs.route_examples import moved

HERE = (40.0, -74.0)


def plain_metres(first, second) -> float:
    """The angle between two points by the law of cosines, in the arithmetic of the vectors."""
    vectors = []
    for lat, lng in (first, second):
        lat, lng = math.radians(lat), math.radians(lng)
        vectors.append(
            (math.cos(lat) * math.cos(lng), math.cos(lat) * math.sin(lng), math.sin(lat))
        )
    a, b = vectors
    cross = (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )
    return 6_371_000 * math.atan2(math.hypot(*cross), sum(x * y for x, y in zip(a, b, strict=True)))


def test_distances() -> None:
    draw = random.Random(0)
    for _ in range(200):
        first = draw.uniform(-90, 90), draw.uniform(-180, 180)
        near = first[0] * 0.999, first[1] + draw.uniform(-1e-3, 1e-3)
        far = draw.uniform(-90, 90), draw.uniform(-180, 180)
        for second in (near, far):
            expected = plain_metres(first, second)
            assert metres(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert metres((0, 0), (0, 180)) == pytest.approx(math.pi * 6_371_000)
    assert metres(HERE, moved(HERE, 3, 4)) == pytest.approx(5, rel=1e-5)
    assert metres((10, 179.9999), (10, -179.9999)) == pytest.approx(21.9, rel=1e-2)


def test_points_cut_a_leg_into_equal_parts() -> None:
    end = moved(HERE, 30, 60)
    points = [HERE, *evenly_between(HERE, end, 4), end]
    gaps = [metres(a, b) for a, b in zip(points, points[1:], strict=False)]
    assert gaps == pytest.approx([metres(HERE, end) / 5] * 5, rel=1e-4)
    across = evenly_between((0.0, 179.9), (0.0, -179.8), 2)
    assert np.array(across) % 360 == pytest.approx(np.array([[0, 180], [0, 180.1]]))
    assert all(abs(lng) <= 180 for _, lng in across)


@pytest.mark.parametrize(
    ("length", "most", "count"),
    [(4.9, 5, 0), (5.1, 5, 1), (5.1, 0, 0), (19.9, 5, 1), (20.1, 5, 2), (200, 5, 5), (0, 5, 0)],
)
def test_drawn_points(length: float, most: int, count: int) -> None:
    end = moved(HERE, length, 0)
    points = drawn_between(HERE, end, most)
    assert points == evenly_between(HERE, end, count) and len(points) == count


def scattered(seed: int, count: int = 60) -> dict:
    draw = random.Random(seed)
    return {
        moved(HERE, draw.uniform(-20, 120), draw.uniform(-30, 30)): f"p{i % 50}"
        for i in range(count)
    }


def test_nearest_and_what_is_seen() -> None:
    mapping = scattered(0)
    places = PanoramaMap.build(mapping, None)
    draw = random.Random(1)
    seen = []
    for _ in range(200):
        point = moved(HERE, draw.uniform(-40, 140), draw.uniform(-60, 60))
        best = min(mapping, key=lambda key: plain_metres(point, key))
        assert tuple(places.positions[places.nearest([point])[0]]) == best
        name, why = places.seen_from(point)
        seen.append(name is not None)
        if plain_metres(point, best) < 20:
            assert (name, why) == (mapping[best], "")
        else:
            assert name is None and f"{mapping[best]}, is" in why and "closer than 20 m" in why
    assert 20 < sum(seen) < 180
    for key, name in mapping.items():
        assert places.seen_from(key) == (name, "")


def test_an_own_key_comes_before_a_twin() -> None:
    twin = (HERE[0] + 1e-14, HERE[1])
    assert twin != HERE
    for mapping in ({HERE: "own", twin: "twin"}, {twin: "twin", HERE: "own"}):
        assert PanoramaMap.build(mapping, None).seen_from(HERE)[0] == "own"
        assert PanoramaMap.build(mapping, None).seen_from(twin)[0] == "twin"


def test_twenty_metres_are_too_far() -> None:
    places = PanoramaMap.build({HERE: "a"}, None)
    assert places.seen_from(moved(HERE, 19.9, 0))[0] == "a"
    assert places.seen_from(moved(HERE, 20.1, 0))[0] is None


def test_a_missing_picture_is_told() -> None:
    places = PanoramaMap.build({HERE: "a"}, frozenset())
    name, why = places.seen_from(HERE)
    assert name is None and "a.jpg or a.metadata.json is missing" in why


def plain_between(mapping: dict, start, end, ends, pictures) -> list[str]:
    """Ids of all panoramas that qualify, by looking at every one from every metre of the leg."""
    found: list[str] = []
    for place in evenly_between(start, end, int(plain_metres(start, end))):
        key = min(mapping, key=lambda key: plain_metres(place, key))
        name = mapping[key]
        clear = min(plain_metres(start, key), plain_metres(end, key)) > 8
        if plain_metres(place, key) < 20 and clear and name not in (*ends, *found):
            found += [name] if name in pictures else []
    return found


@pytest.mark.parametrize("seed", range(4))
def test_panoramas_between_two_milestones(seed: int) -> None:
    mapping = scattered(seed, 40)
    pictures = {f"p{i}" for i in range(50) if i % 7}
    places = PanoramaMap.build(mapping, frozenset(pictures))
    end = moved(HERE, 100, 10)
    ends = (places.seen_from(HERE)[0] or "", places.seen_from(end)[0] or "")
    expected = plain_between(mapping, HERE, end, ends, pictures)
    assert len(expected) >= 4
    every = places.between(HERE, end, ends, 100)
    assert [name for _, name in every] == expected
    assert all(mapping[position] == name for position, name in every)
    for most in range(len(expected) + 1):
        some = places.between(HERE, end, ends, most)
        assert len(some) == most
        order = [every.index(one) for one in some]
        assert order == sorted(set(order))
        gaps = np.diff([-0.5, *order, len(every) - 0.5]) if most else np.zeros(1)
        assert gaps.max() - gaps.min() <= 1 + len(every) / (most + 1)


def test_a_street_of_panoramas_every_ten_metres() -> None:
    mapping = {moved(HERE, north, 0): f"n{north}" for north in range(0, 101, 10)}
    places = PanoramaMap.build(mapping, None)
    end = moved(HERE, 100, 0)
    names = [name for _, name in places.between(HERE, end, ("n0", "n100"), 3)]
    assert names == ["n20", "n50", "n80"]
    assert len(places.between(HERE, end, ("n0", "n100"), 20)) == 9
    assert places.between(HERE, moved(HERE, 4.9, 0), ("n0", "x"), 3) == []
    close = PanoramaMap.build({moved(HERE, n, 0): f"n{n}" for n in (0, 7.9, 8.1, 20)}, None)
    found = close.between(HERE, moved(HERE, 20, 0), ("n0", "n20"), 9)
    assert [name for _, name in found] == ["n8.1"]
    beside = {moved(HERE, 30, 19.9): "near", moved(HERE, 70, 20.1): "far"}
    found = PanoramaMap.build(beside, None).between(HERE, end, ("", ""), 9)
    assert [name for _, name in found] == ["near"]


def test_a_leg_around_the_world_is_searched_in_bounded_steps() -> None:
    places = PanoramaMap.build({HERE: "a", (0.0, 0.0): "b"}, None)
    assert places.between((0.0, -90.0), (0.0, 89.0), ("", ""), 3) == []
    assert panorama_map.MOST_SAMPLES <= 10_000

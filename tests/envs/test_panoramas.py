"""Street views of procedural cities show what stands where, on a plan read by plain geometry."""

import math

import numpy as np
import pytest

from gp_virl.envs import city as cities
from gp_virl.envs.city_names import sign_of
from gp_virl.envs.city_plan import heading_between
from gp_virl.envs.city_styles import STYLES
from gp_virl.envs.panoramas import CAMERA, SIGHT, painter, panorama, panoramas

WIDTH = 384


@pytest.fixture(scope="module")
def city() -> cities.City:
    return cities.build("new_york", 3, blocks=4)


def column(city, pano: int, heading: float, width: int = WIDTH) -> int:
    return int((heading + city.rotations[pano]) % 360 / 360 * width) % width


def met(plan, here, heading: float) -> float:
    """Distance of the first facade in a direction, by solving for each facade alone."""
    east, north = math.sin(math.radians(heading)), math.cos(math.radians(heading))
    best = math.inf
    for ax, ay, bx, by in plan.facades.tolist():
        matrix = np.array([[east, ax - bx], [north, ay - by]])
        if abs(np.linalg.det(matrix)) < 1e-9:
            continue
        away, share = np.linalg.solve(matrix, [ax - here[0], ay - here[1]])
        if away > 0 and 0 <= share <= 1:
            best = min(best, away)
    return best


def test_facades_are_where_the_plan_has_them(city) -> None:
    for index in (3, 12, 60):
        here = city.plan.points[index]
        headings = np.arange(0.3, 360, 11.7)
        rays = np.stack([np.sin(np.radians(headings)), np.cos(np.radians(headings))])
        walls = painter(city, 64).walls(here, rays.astype(np.float32))
        expected = np.array([min(met(city.plan, here, h), SIGHT) for h in headings])
        np.testing.assert_allclose(walls.distance, expected, rtol=2e-3, atol=0.01)


def test_ground_sky_and_walls_meet_where_they_should(city) -> None:
    """Below a facade's foot is ground; above its top the sky."""
    index = 60
    image = panorama(city, city.ids[index], WIDTH).astype(int)
    angle = np.radians((np.arange(WIDTH) + 0.5) / WIDTH * 360 - city.rotations[index])
    ray = np.stack([np.sin(angle), np.cos(angle)]).astype(np.float32)
    walls = painter(city, WIDTH).walls(city.plan.points[index], ray)
    sky = np.roll(painter(city, WIDTH).sky, round(city.rotations[index] * WIDTH / 360), 1)
    for c in range(0, WIDTH, 7):
        top = math.degrees(math.atan2(walls.top[c] - CAMERA, walls.distance[c]))
        row = int((90 - top) / 180 * WIDTH / 2)
        clear = max(0, row - 25)  # trees reach higher than some roofs
        assert (image[:clear, c] == sky[:clear, c]).all()
        assert (image[row + 2, c] != sky[row + 2, c]).any()


def test_a_sign_stands_at_its_azimuth(city) -> None:
    found = 0
    for node, place in enumerate(city.plan.at_crossing):
        if place is None:
            continue
        image = panorama(city, city.ids[node], WIDTH)
        heading = heading_between(city.plan.crossings[node], place.sign)
        away = math.dist(city.plan.crossings[node], place.sign)
        c = column(city, node, heading)
        row = int((90 - math.degrees(math.atan2(3.4 - CAMERA, away))) / 180 * WIDTH / 2)
        wide = math.degrees(math.atan2(2.0, away)) / 360 * WIDTH
        edge = image[row - 6, int(c + 0.8 * wide) % WIDTH].astype(int)
        found += np.abs(edge - sign_of(place.name).board).max() < 40
        behind = image[row - 6, (c + WIDTH // 2) % WIDTH].astype(int)
        assert not np.abs(behind - sign_of(place.name).board).max() < 10
    named = sum(place is not None for place in city.plan.at_crossing)
    assert found >= 0.9 * named


def test_a_sign_shrinks_with_distance(city) -> None:
    """The same board seen from its crossing and from the next point along a street."""
    plan = city.plan
    for street, (a, _) in enumerate(plan.streets.tolist()):
        place = plan.at_crossing[a]
        if place is None:
            continue
        on = np.flatnonzero(on_street(plan, street))
        far = min(on, key=lambda i: abs(math.dist(plan.points[i], place.sign) - 35))
        if math.dist(plan.points[far], place.sign) < 25:
            continue
        board = np.array(sign_of(place.name).board)
        sizes = []
        for pano in (a, int(far)):
            image = panorama(city, city.ids[pano], 768).astype(int)
            c = column(city, pano, heading_between(plan.points[pano], place.sign), 768)
            strip = np.roll(image, 384 - c, 1)[150:205, 340:428]
            sizes.append((np.abs(strip - board).max(-1) < 25).sum())
        if sizes[1]:
            assert sizes[1] < 0.5 * sizes[0]
            return
    pytest.fail("no street has a sign to look at")


def on_street(plan, street: int) -> np.ndarray:
    a, b = plan.crossings[plan.streets[street]]
    way = (b - a) / np.hypot(*(b - a))
    offset = plan.points - a
    along, aside = offset @ way, offset @ np.array([way[1], -way[0]])
    return (np.abs(aside) < 0.1) & (along > 1) & (along < np.hypot(*(b - a)) - 1)


def test_the_road_leads_where_the_street_does(city) -> None:
    """In the middle of a street, asphalt lies ahead and pavement at its sides."""
    plan = city.plan
    street = next(i for i, place in enumerate(plan.in_street) if place)
    pano = plan.in_street[street].pano
    a, b = plan.crossings[plan.streets[street]]
    image = panorama(city, city.ids[pano], WIDTH).astype(int)
    heading = heading_between(a, b)
    rows = lambda away: int((90 + math.degrees(math.atan2(CAMERA, away))) / 180 * WIDTH / 2)  # noqa: E731
    for turn in (0, 180):
        ahead = image[rows(9), column(city, pano, heading + turn + 12)]
        assert np.abs(ahead - city.style.asphalt).max() < 20
    for turn in (90, 270):
        aside = image[rows(7), column(city, pano, heading + turn)]
        assert np.abs(aside - city.style.pavement).max() < 25


def test_rotation_moves_columns(city) -> None:
    pano = city.ids[30]
    turned = cities.City(city.style, city.seed, city.plan, city.rotations + 90)
    moved = panorama(turned, pano, WIDTH).astype(int)
    expected = np.roll(panorama(city, pano, WIDTH), WIDTH // 4, 1).astype(int)
    assert (np.abs(moved - expected).max(-1) > 12).mean() < 0.01


def test_every_call_draws_the_same(city) -> None:
    again = cities.build("new_york", 3, blocks=4)
    both = panoramas(city, city.ids[:3], 128)
    assert both.shape == (3, 64, 128, 3) and both.dtype == np.uint8
    assert (both == panoramas(again, city.ids[:3], 128)).all()
    assert not (both[0] == both[1]).all()


def test_cities_look_different() -> None:
    """The mean colours of facades and sky of any two cities are apart."""
    means = {}
    for name in STYLES:
        city = cities.build(name, 0, blocks=3)
        image = panoramas(city, city.ids[::20], 128).astype(float)
        means[name] = np.concatenate(
            [
                image[:, :12].mean((0, 1, 2)),
                image[:, 22:34].mean((0, 1, 2)),
                image[:, 45:].mean((0, 1, 2)),
            ]
        )
    names = list(means)
    for i, first in enumerate(names):
        for second in names[:i]:
            assert np.linalg.norm(means[first] - means[second]) > 20, (first, second)


def test_errors(city) -> None:
    for width in (62, 385):
        with pytest.raises(ValueError, match=f"{width}.*even"):
            panorama(city, city.ids[0], width)
    with pytest.raises(KeyError, match="nowhere"):
        panorama(city, "nowhere", 128)

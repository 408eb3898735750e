"""A procedural city and its routes, in the form of the released V-IRL data.

`build` draws a city from a style and a seed, `routes` its routes as objects of route_infos.json,
and `City.mapping` what gps_pano_mapping.pkl holds; `panoramas.panorama` draws a street view.
"""

import functools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float64

from gp_virl.envs.city_names import CATEGORIES
from gp_virl.envs.city_plan import Place, Plan, draw_plan, heading_between
from gp_virl.envs.city_styles import MINI, TRAINING, Style, style_of
from gp_virl.envs.panorama_map import EARTH_RADIUS, Position, metres
from gp_virl.envs.routes import SIDES, compass_word

TURNS = {2: 0.35, 3: 0.4, 4: 0.25}  # turning points of a route, and how often
SMALLEST_TURN, LARGEST_TURN = 20.0, 150.0  # degrees
DETOUR = 1.3  # a route is at most that many times as long as the shortest way
WALKING = 1.4  # metres per second
BLOCKS, FEWEST_BLOCKS, MOST_BLOCKS = 6, 3, 8  # along a side of a city
MINI_ROUTES = 2  # of each city of the mini benchmark


@dataclass(frozen=True, eq=False)
class City:
    """A plan in a style, on the globe. Panorama i stands at point i of the plan."""

    style: Style
    seed: int
    plan: Plan
    rotations: Float64[np.ndarray, "P"]  # degrees, as in the metadata of street views

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The id of each panorama."""
        count = len(self.plan.points)
        return tuple(f"{self.style.name}_{self.seed}_{i:04d}" for i in range(count))

    @functools.cached_property
    def mapping(self) -> Mapping[Position, str]:
        """Panorama ids by (latitude, longitude)."""
        points = map(tuple, self.plan.points.tolist())
        return {self.position(xy): name for xy, name in zip(points, self.ids, strict=True)}

    def position(self, xy: tuple[float, float]) -> Position:
        """(latitude, longitude) of a point of the plan, to a centimetre."""
        lat, lng = self.style.centre
        degree = math.radians(EARTH_RADIUS)
        across = degree * math.cos(math.radians(lat))
        return round(lat + xy[1] / degree, 7), round(lng + xy[0] / across, 7)

    def index(self, pano: str) -> int:
        """The panorama's number; KeyError, with what ids look like, for one of elsewhere."""
        head, _, number = pano.rpartition("_")
        inside = number.isdigit() and int(number) < len(self.ids)
        if not inside or self.ids[int(number)] != pano:
            raise KeyError(
                f"panorama: given {pano!r}, allowed: {self.ids[0]} to {self.ids[-1]} (given "
                f"prefix {head!r})"
            )
        return int(number)

    def metadata(self, pano: str) -> dict[str, Any]:
        """What <id>.metadata.json holds."""
        index = self.index(pano)
        lat, lng = self.position(tuple(self.plan.points[index].tolist()))
        return {"pano_id": pano, "lat": lat, "lng": lng, "rotation": float(self.rotations[index])}


def build(style: str, seed: int, blocks: int = BLOCKS) -> City:
    """The city of a style and a seed, with blocks x blocks blocks; the same on every machine.

    Raises ValueError for an unknown style and for blocks outside 3..8 (names run out beyond).
    """
    if not FEWEST_BLOCKS <= blocks <= MOST_BLOCKS:
        raise ValueError(f"blocks: given {blocks}, allowed: {FEWEST_BLOCKS} to {MOST_BLOCKS}")
    if seed < 0:
        raise ValueError(f"seed: given {seed}, allowed: an integer >= 0")
    look = style_of(style)
    rng = np.random.default_rng([seed, zlib.crc32(style.encode()), blocks])
    plan = draw_plan(look, rng, blocks)
    return City(look, seed, plan, rng.integers(0, 3600, len(plan.points)) / 10)


def mini(seed: int = 0) -> tuple[list[City], list[dict[str, Any]]]:
    """Nine cities, and two routes of each, as the VLN mini benchmark has."""
    cities = [build(style, seed, blocks=4) for style in MINI]
    return cities, [route for city in cities for route in routes(city, MINI_ROUTES)]


def training(
    count: int, seed: int = 0, style: str = TRAINING, blocks: int = BLOCKS
) -> tuple[City, list[dict[str, Any]]]:
    """The city to train in and `count` different routes through it."""
    city = build(style, seed, blocks)
    return city, routes(city, count)


def routes(city: City, count: int) -> list[dict[str, Any]]:
    """`count` different routes as objects of route_infos.json; fewer are a prefix of more.

    A route leads from a place in the middle of a street to another one, turning at every crossing
    it reaches, visits no crossing twice and is at most 1.3 times as long as the shortest way.
    Raises ValueError when the city has fewer.
    """
    ways = list(_ways(city.plan))
    if count > len(ways):
        raise ValueError(
            f"routes: given {count}, allowed: at most {len(ways)} in {city.style.name} with seed "
            f"{city.seed}; build the city with more blocks"
        )
    kinds = np.array([len(way.crossings) for way in ways])
    chance = np.array([TURNS[kind] / (kinds == kind).sum() for kind in kinds])
    rng = np.random.default_rng([city.seed, zlib.crc32(city.style.name.encode()), 1])
    order = rng.choice(len(ways), len(ways), replace=False, p=chance / chance.sum())
    return [_route(city, ways[i]) for i in order[:count]]


def panoramas_near(city: City, routes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Ids of the panoramas on the routes' legs; routes of other cities have none here."""
    plan, found = city.plan, set()
    places = {at: index for index, at in enumerate(city.mapping)}
    for route in routes:
        stops = [route["start_place"]["relocated_geocode"], *route["route_results"]["geocode_list"]]
        rows = [places.get(tuple(stop)) for stop in stops]
        if None in rows:
            continue
        for a, b in zip(plan.points[rows], plan.points[rows[1:]], strict=False):
            there = plan.points - a
            share = np.clip(there @ (b - a) / ((b - a) @ (b - a)), 0, 1)[:, None]
            on_leg = np.hypot(*(there - share * (b - a)).T) < 1.0
            found.update(np.flatnonzero(on_leg).tolist())
    return frozenset(city.ids[index] for index in found)


@dataclass(frozen=True)
class _Way:
    """Places to start and end at, and the crossings between them, each a turning point."""

    start: Place
    crossings: tuple[int, ...]
    end: Place


def _ways(plan: Plan) -> Iterator[_Way]:
    """All ways through the city that `routes` allows."""
    graph = plan.graph()
    shortest = dict(nx.all_pairs_dijkstra_path_length(graph, weight="length"))
    for street, start in enumerate(plan.in_street):
        if start is None:
            continue
        here = tuple(plan.points[start.pano].tolist())
        for first in plan.streets[street].tolist():
            yield from _onwards(plan, graph, shortest, start, here, (first,), {street}, 0.0)


def _onwards(plan, graph, shortest, start, before, crossings, walked, length) -> Iterator[_Way]:
    """The ways that begin with `crossings`; `before` is the point ahead of the last of them."""
    here = crossings[-1]
    arriving = heading_between(before, plan.crossings[here])
    for there in graph[here]:
        street = graph[here][there]["street"]
        leaving = heading_between(plan.crossings[here], plan.crossings[there])
        turn = abs((leaving - arriving + 180) % 360 - 180)
        if street in walked or not SMALLEST_TURN <= turn <= LARGEST_TURN:
            continue
        end = plan.in_street[street]
        if end and len(crossings) in TURNS:
            yield _Way(start, crossings, end)
        longer = length + graph[here][there]["length"]
        if there in crossings or len(crossings) == max(TURNS):
            continue
        if longer <= DETOUR * shortest[crossings[0]][there]:
            follow = (*crossings, there)
            point = plan.crossings[here]
            yield from _onwards(
                plan, graph, shortest, start, point, follow, walked | {street}, longer
            )


def _route(city: City, way: _Way) -> dict[str, Any]:
    """One object of route_infos.json."""
    plan = city.plan
    panos = [way.start.pano, *way.crossings, way.end.pano]
    at = [tuple(plan.points[pano].tolist()) for pano in panos]
    stops = [city.position(xy) for xy in at]
    headings = [round(heading_between(a, b)) % 360 for a, b in zip(at, at[1:], strict=False)]
    meters = [round(metres(a, b)) for a, b in zip(stops, stops[1:], strict=False)]
    seen = [*(plan.at_crossing[node] for node in way.crossings), way.end]
    sides = [_side(place, xy, h) for place, xy, h in zip(seen, at[1:], headings, strict=True)]
    landmarks = [
        _place(city, place)
        | {"spatial_relation": side, "expression": f"{place.name} is on your {side}"}
        if place
        else None
        for place, side in zip(seen[:-1], sides, strict=False)
    ]
    seconds = [round(length / WALKING) for length in meters]
    return {
        "start_place": _place(city, way.start),
        "dest_place": _place(city, way.end),
        "route_results": {
            "geocode_list": [list(stop) for stop in stops[1:]],
            "polyline": [""] * len(headings),
            "instructions": [f"Head <b>{compass_word(h)}</b>" for h in headings],
            "distance_list": meters,
            "time_list": seconds,
            "time": sum(seconds),
            "distance": sum(meters),
            "n_landmarks": sum(place is not None for place in landmarks),
            "landmark_list": landmarks,
        },
        "init_heading": 0,
        "instruction": "",
        "milestone_info": _milestones(seen, sides, meters, headings),
    }


def _side(place: Place | None, stop: tuple[float, float], heading: int) -> str:
    """Where a place is for who walked to `stop` with that heading; '' without a place."""
    if place is None:
        return ""
    return SIDES[round((heading_between(stop, place.sign) - heading) % 360 / 45) % len(SIDES)]


def _milestones(
    seen: Sequence[Place | None],
    sides: Sequence[str],
    meters: Sequence[int],
    headings: Sequence[int],
) -> str:
    """The text of `milestone_info`: blocks that look like JSON and are not."""
    blocks, facing = [], 0
    for index, (place, side) in enumerate(zip(seen, sides, strict=True)):
        text = f"{place.name} is on your {side}" if place else "No landmark nearby"
        fields = {
            "intersection_idx": str(index + 1),
            "landmarks": f"The destination {text}" if index + 1 == len(seen) else text,
            "distance": f"{meters[index]} meters",
            "human_heading": str(facing),
            "to_next_intersection_heading": f"{headings[index]} ({compass_word(headings[index])})",
        }
        facing = headings[index]
        lines = "".join(f'"{key}": "{value}",\n' for key, value in fields.items())
        blocks.append(f"\n{{\n{lines}}}\n")
    return "".join(blocks)


def _place(city: City, place: Place) -> dict[str, Any]:
    """A place object; `relocated_geocode` is the panorama it is named at."""
    kind = next(kind for kind in CATEGORIES if kind.name == place.category)
    street = tuple(city.plan.points[place.pano].tolist())
    return {
        "name": place.name,
        "geocode": list(city.position(place.sign)),
        "rating": 4.0,
        "place_id": f"{city.ids[place.pano]}_place",
        "distance": math.dist(street, place.sign),
        "n_reviews": 100,
        "heading": heading_between(street, place.sign),
        "photo_reference": None,
        "place_types": [kind.name, "point_of_interest", "establishment"],
        "plus_code": None,
        "vicinity": city.style.title,
        "relocated_geocode": list(city.position(street)),
        "region": city.style.region,
    }

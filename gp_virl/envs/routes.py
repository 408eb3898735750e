"""Routes: legs between milestones, the waypoints that the expert visits, and what it does there.

A route is walked leg by leg. At the start and at every milestone but the last the expert turns
to face the next leg, which also takes it one waypoint on; between milestones it goes forward; at
the destination it stops. A turn is a compass word under the absolute rule and a relative word
under the relative rule (paper, appendix B.3). `route_files.read_routes` reads routes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gp_virl.envs.panorama_map import EARTH_RADIUS, Position

SIDES = (
    "front",
    "right front",
    "right",
    "right behind",
    "behind",
    "left behind",
    "left",
    "left front",
)
COMPASS = (
    "north",
    "northeast",
    "east",
    "southeast",
    "south",
    "southwest",
    "west",
    "northwest",
)
RELATIVE = ("left", "right", "slightly left", "slightly right")
KINDS = ("turn", "forward", "stop")
RULES = ("absolute", "relative")


class RouteError(ValueError):
    """Routes that can't be used; `problems` are all of them, each naming its route and field."""

    def __init__(self, source: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"{source}: no route was read", *self.problems]))


@dataclass(frozen=True)
class Leg:
    """One straight stretch between milestones."""

    heading: int  # degrees clockwise from north, 0..359
    landmark: str | None  # at its end; None: none is near. The last leg's is the destination
    side: str | None  # of the landmark, one of SIDES, for who walks the leg


@dataclass(frozen=True)
class Waypoint:
    """A place where the agent acts, with the expert's observation and action."""

    position: Position  # latitude and longitude in degrees
    pano: str | None  # id of its street view
    heading: int | None  # on arriving; None at the start, where it is given or drawn
    next_heading: int | None  # that the expert turns to; None where it goes forward or stops
    kind: str  # one of KINDS
    landmark: str | None  # only milestones have one; start and destination show none
    side: str | None
    intersection: bool  # true at the milestones before the destination
    sentence: int  # which of the route's sentences is carried out here


@dataclass(frozen=True)
class Route:
    """A route with the waypoints that its expert visits."""

    name: str
    region: str
    legs: tuple[Leg, ...]
    waypoints: tuple[Waypoint, ...]
    start_heading: int | None  # None: not given, drawn per episode


@dataclass(frozen=True)
class Place:
    """A point of a route and the panorama that shows it."""

    position: Position
    pano: str | None = None


def compass_word(heading: int | float) -> str:
    """The nearest of COMPASS; 22.5 degrees is northeast."""
    return COMPASS[int((heading + 22.5) % 360 // 45)]


def turn_degrees(before: int, after: int) -> int:
    """The turn from one heading to another, clockwise, in [-180, 180): half a turn is -180."""
    return (after - before + 180) % 360 - 180


def relative_word(degrees: int) -> str:
    """The word of RELATIVE for a wrapped turn; none at all is slightly left."""
    if degrees < -45:
        return "left"
    if degrees > 45:
        return "right"
    return "slightly right" if degrees > 0 else "slightly left"


def turn_word(rule: str, before: int | None, after: int) -> str:
    """What x is in turn_direction(x); `before` is not read under the absolute rule.

    ValueError for an unknown rule, or without a heading to turn from under the relative rule.
    """
    if rule == "absolute":
        return compass_word(after)
    if rule != "relative":
        raise ValueError(f"rule: given {rule!r}, allowed: {', '.join(RULES)}")
    if before is None:
        raise ValueError(
            "start heading: given None, allowed under the relative rule: an integer in 0..359"
        )
    return relative_word(turn_degrees(before, after))


def waypoints_along(
    legs: Sequence[Leg],
    start: Place,
    milestones: Sequence[Place],
    between: Sequence[Sequence[Place]],
) -> tuple[Waypoint, ...]:
    """The waypoints of a route; each leg ends at a milestone and has points in `between`."""
    found = [_turn(start, None, legs[0].heading, None, 0)]
    for index, leg in enumerate(legs):
        for place in between[index]:
            found.append(
                Waypoint(
                    place.position, place.pano, leg.heading, None,
                    "forward", None, None, False, 2 * index + 1,
                )
            )  # fmt: skip
        if index + 1 < len(legs):
            follow = legs[index + 1].heading
            found.append(_turn(milestones[index], leg, follow, leg.landmark, 2 * index + 2))
    last = milestones[-1]
    found.append(
        Waypoint(
            last.position, last.pano, legs[-1].heading, None,
            "stop", None, None, False, 2 * len(legs) - 1,
        )
    )  # fmt: skip
    return tuple(found)


def _turn(
    place: Place, leg: Leg | None, follow: int, landmark: str | None, sentence: int
) -> Waypoint:
    """Where the expert turns to `follow`: at the start, or at a milestone after `leg`."""
    return Waypoint(
        position=place.position,
        pano=place.pano,
        heading=leg.heading if leg else None,
        next_heading=follow,
        kind="turn",
        landmark=landmark,
        side=leg.side if leg else None,
        intersection=leg is not None,
        sentence=sentence,
    )


def sentences(route: Route, rule: str, start_heading: int | None) -> list[str]:
    """The instructions, two for each leg. ValueError as `turn_word`."""
    written, before = [], start_heading
    for index, leg in enumerate(route.legs):
        word = turn_word(rule, before, leg.heading)
        written.append(f"Turn to face {word}." if rule == "absolute" else f"Turn {word}.")
        last = index + 1 == len(route.legs)
        goal = "the destination" if last else "the next intersection"
        where = f" where {leg.landmark} is on your {leg.side}" if leg.landmark is not None else ""
        written.append(f"Move forward until {goal}{where}.")
        before = leg.heading
    return written


def observation(waypoint: Waypoint) -> str:
    """The landmark that the expert sees, in words."""
    if waypoint.landmark is None:
        return "No landmarks nearby"
    return f"{waypoint.landmark} is on your {waypoint.side}"


def action(waypoint: Waypoint, rule: str, before: int | None) -> str:
    """The expert's action for who faces `before`. ValueError as `turn_word`."""
    if waypoint.next_heading is None:
        return f"{waypoint.kind}()"
    return f"turn_direction({turn_word(rule, before, waypoint.next_heading)})"


@struct.dataclass
class RouteBank:
    """Routes as padded arrays: W waypoints, G legs; -1 stands for nothing, also in the padding.

    `jax.tree.map(lambda x: x[i], bank)` is route i alone.
    """

    kind: Int[Array, "*b W"]  # index into KINDS
    heading: Int[Array, "*b W"]  # degrees; -1 at the start
    next_heading: Int[Array, "*b W"]  # degrees; -1 where the expert doesn't turn
    landmark: Int[Array, "*b W"]  # index into the names
    side: Int[Array, "*b W"]  # index into SIDES
    intersection: Bool[Array, "*b W"]
    sentence: Int[Array, "*b W"]  # 2 for each leg
    pano: Int[Array, "*b W"]  # index into the panoramas' ids
    position: Float[Array, "*b W 2"]  # metres east and north of the start; 0 in the padding
    length: Int[Array, "*b"]  # waypoints of the route
    leg_heading: Int[Array, "*b G"]
    leg_landmark: Int[Array, "*b G"]  # index into the names
    leg_side: Int[Array, "*b G"]
    legs: Int[Array, "*b"]  # legs of the route
    start_heading: Int[Array, "*b"]  # degrees; -1: to be drawn


def bank(routes: Sequence[Route]) -> tuple[RouteBank, tuple[str, ...], tuple[str, ...]]:
    """The bank, the landmarks' names and the panoramas' ids, both in order of appearance.

    ValueError without routes.
    """
    if not routes:
        raise ValueError("routes: given none, allowed: at least one")
    legs = [route.legs for route in routes]
    points = [route.waypoints for route in routes]
    names = _indices(leg.landmark for row in legs for leg in row)
    panos = _indices(point.pano for row in points for point in row)
    sides, kinds = _indices(SIDES), _indices(KINDS)
    east_north = _padded([_metres_from_start(row) for row in points], 0.0)
    made = RouteBank(
        kind=_padded([[kinds[p.kind] for p in row] for row in points]),
        heading=_padded([[_or_none(p.heading) for p in row] for row in points]),
        next_heading=_padded([[_or_none(p.next_heading) for p in row] for row in points]),
        landmark=_padded([[names.get(p.landmark, -1) for p in row] for row in points]),
        side=_padded([[sides.get(p.side, -1) for p in row] for row in points]),
        intersection=_padded([[p.intersection for p in row] for row in points], False),
        sentence=_padded([[p.sentence for p in row] for row in points]),
        pano=_padded([[panos.get(p.pano, -1) for p in row] for row in points]),
        position=east_north,
        length=jnp.array([len(row) for row in points]),
        leg_heading=_padded([[leg.heading for leg in row] for row in legs]),
        leg_landmark=_padded([[names.get(leg.landmark, -1) for leg in row] for row in legs]),
        leg_side=_padded([[sides.get(leg.side, -1) for leg in row] for row in legs]),
        legs=jnp.array([len(row) for row in legs]),
        start_heading=jnp.array([_or_none(route.start_heading) for route in routes]),
    )
    return made, tuple(names), tuple(panos)


def _indices(names) -> dict[str, int]:
    seen = dict.fromkeys(name for name in names if name is not None)
    return {name: index for index, name in enumerate(seen)}


def _or_none(heading: int | None) -> int:
    return -1 if heading is None else heading


def _metres_from_start(points: Sequence[Waypoint]) -> list[tuple[float, float]]:
    """(east, north) of each on the plane that touches the earth at the first."""
    lat, lng = points[0].position
    degree = math.radians(EARTH_RADIUS)
    across = degree * math.cos(math.radians(lat))
    offsets = [(p.position[0] - lat, (p.position[1] - lng + 180) % 360 - 180) for p in points]
    return [(across * eastward, degree * northward) for northward, eastward in offsets]


def _padded(rows: Sequence[Sequence], fill: int | float | bool = -1) -> Array:
    kind = {bool: np.bool_, int: np.int32, float: np.float32}[type(fill)]
    shape = np.shape(rows[0][0])
    padded = np.full((len(rows), max(map(len, rows)), *shape), fill, kind)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
    return jnp.asarray(padded)

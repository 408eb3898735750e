"""The picture of one route: its map, and what is seen at its waypoints.

Routes are read from files in the V-IRL format, with their street views where these are there, or
made in a procedural city, whose streets and landmarks are drawn too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from gp_virl.envs import city as cities
from gp_virl.envs import panoramas, routes, street_views
from gp_virl.envs.route_files import read_routes, routes_of, street_view_folders
from gp_virl.plots.routes_map import Stop, route_map
from launch.describe_routes import describe

SIZE, WIDTH = 640, 1024  # pixels of a grid of views, and of the panoramas it is taken from
SEEN_AS = "Views of a waypoint: front and right above, left and back below."


@dataclass(frozen=True, eq=False)
class Scenery:
    """A route and what is known of its surroundings, in metres east and north of its start."""

    route: routes.Route
    panoramas: UInt8[np.ndarray, "P h w 3"] | None = None  # of the waypoints that show one
    rotation: Float[np.ndarray, "P"] | None = None  # degrees
    landmarks: dict[str, tuple[float, float]] = field(default_factory=dict)
    streets: Float[np.ndarray, "S 2 2"] | None = None


def of_files(path: Path, index: int, max_straight: int) -> Scenery:
    """Route `index` of a file or folder, with the street views that lie there.

    Raises RouteError, StreetViewError, and ValueError for an index that there is not.
    """
    found = read_routes(path, max_straight)
    if not 0 <= index < len(found):
        raise ValueError(f"--index: given {index}, allowed: 0..{len(found) - 1} in {path}")
    route, folders = found[index], street_view_folders(path)
    ids = _seen(route)
    if not folders or not ids:
        return Scenery(route)
    homes = [next((f for f in folders if (f / f"{name}.jpg").exists()), None) for name in ids]
    if None in homes:
        return Scenery(route)
    read = [
        street_views.read_panoramas(home, [name], WIDTH)
        for home, name in zip(homes, ids, strict=True)
    ]
    pictures, rotations = zip(*read, strict=True)
    return Scenery(route, np.concatenate(pictures), np.concatenate(rotations))


def of_city(style: str, seed: int, index: int, max_straight: int) -> Scenery:
    """Route `index` of the procedural city of that style and seed.

    Raises ValueError for an unknown style, and for an index beyond the city's routes.
    """
    city, objects = cities.training(index + 1, seed, style)
    route = routes_of(objects, city.mapping, max_straight, city.style.region)[index]
    ids = _seen(route)
    rows = [city.index(name) for name in ids]
    origin = city.plan.points[rows[0]]
    return Scenery(
        route,
        panoramas.panoramas(city, ids, WIDTH),
        city.rotations[rows],
        {place.name: tuple((place.sign - origin).tolist()) for place in city.plan.places},
        city.plan.crossings[city.plan.streets] - origin,
    )


def draw(scenery: Scenery, rule: str, start_heading: int | None, title: str) -> Figure:
    """The map and the views; the start heading is chosen as `describe_routes.describe` does."""
    route = scenery.route
    told = describe(route, rule, start_heading)
    views = _views(scenery, [point["heading"] for point in told["waypoints"]])
    (bank, _, _) = routes.bank([route])
    stops = []
    for point, xy in zip(told["waypoints"], np.asarray(bank.position[0]).tolist(), strict=True):
        faced = told["start_heading_given"] or len(stops) > 0
        stops.append(
            Stop(
                xy=tuple(xy),
                heading=point["heading"] if faced else None,
                kind=point["kind"],
                caption=_caption(route, point, faced),
                view=views[len(stops)],
            )
        )
    title = title or f"Route {route.name}, {route.region}, {rule} actions"
    sentences = told["instructions"]
    note = SEEN_AS if any(view is not None for view in views) else ""
    return route_map(title, stops, scenery.landmarks, scenery.streets, sentences, note)


def _seen(route: routes.Route) -> list[str]:
    """The panoramas of a route's waypoints, each once."""
    return list(dict.fromkeys(point.pano for point in route.waypoints if point.pano))


def _views(scenery: Scenery, headings: Sequence[int]) -> list[np.ndarray | None]:
    """What is seen at each waypoint, where anything is."""
    if scenery.panoramas is None:
        return [None] * len(headings)
    bank = street_views.StreetViews.build(scenery.panoramas, scenery.rotation, SIZE)
    take, ids = jax.jit(type(bank).picture), _seen(scenery.route)
    points = zip(scenery.route.waypoints, headings, strict=True)
    return [
        np.asarray(take(bank, jnp.int32(ids.index(point.pano)), jnp.float32(heading)))
        if point.pano
        else None
        for point, heading in points
    ]


def _caption(route: routes.Route, point: dict, faced: bool) -> str:
    """What the expert does and sees at a described waypoint."""
    goal, seen = route.legs[-1], point["observation"]
    if point["kind"] == "stop" and goal.landmark:
        seen = f"The destination {goal.landmark} is on your {goal.side}"
    facing = f"facing {point['heading']}°" + ("" if faced else ", assumed")
    crossing = "; an intersection" if point["intersection"] else ""
    return f"{point['action']} {facing}\n{seen}{crossing}"

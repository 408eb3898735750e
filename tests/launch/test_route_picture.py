"""What is drawn of a route is the route's: places, views, captions, surroundings."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gp_virl.envs import city as cities
from gp_virl.envs.panorama_map import metres
from gp_virl.envs.panoramas import panorama
from gp_virl.envs.street_views import StreetViewError, StreetViews
from launch import make_city, route_picture
from tests.envs.route_examples import two_legs, write


@pytest.fixture(scope="module")
def lagos() -> route_picture.Scenery:
    return route_picture.of_city("lagos", 1, 4, 1)


def test_a_citys_scenery_is_around_the_start(lagos) -> None:
    city, objects = cities.training(5, 1, "lagos")
    ids = [point.pano for point in lagos.route.waypoints]
    assert len(lagos.panoramas) == len(lagos.rotation) == len(ids)
    assert (lagos.panoramas[1] == panorama(city, ids[1], route_picture.WIDTH)).all()
    assert lagos.rotation[1] == city.rotations[city.index(ids[1])]
    goal = objects[4]["dest_place"]
    away = metres(lagos.route.waypoints[0].position, tuple(goal["geocode"]))
    assert abs(np.hypot(*lagos.landmarks[goal["name"]]) - away) < 0.5
    assert lagos.streets.shape == (len(city.plan.streets), 2, 2)
    on_street = np.abs(lagos.streets).max(-1).min()
    assert on_street < 60  # the start is near some street's end


def test_stops_show_what_the_expert_sees_and_does(lagos, monkeypatch) -> None:
    drawn = {}
    monkeypatch.setattr(route_picture, "route_map", lambda *given: drawn.update(given=given))
    route_picture.draw(lagos, "absolute", None, "")
    title, stops, landmarks, streets, sentences, note = drawn["given"]
    route = lagos.route
    assert title == f"Route {route.name}, Lagos_Africa, absolute actions"
    assert (landmarks, streets) == (lagos.landmarks, lagos.streets) and "left and back" in note
    assert [stop.kind for stop in stops] == [point.kind for point in route.waypoints]
    assert stops[0].heading is None and "facing 0°, assumed" in stops[0].caption
    goal = route.legs[-1]
    seen = f"The destination {goal.landmark} is on your {goal.side}"
    assert stops[-1].caption == f"stop() facing {goal.heading}°\n{seen}"
    crossing = next(i for i, p in enumerate(route.waypoints) if p.intersection)
    assert stops[crossing].caption.endswith("; an intersection")
    first, last = route.waypoints[0].position, route.waypoints[-1].position
    assert abs(np.hypot(*stops[-1].xy) - metres(first, last)) < 0.1
    assert sentences[0].startswith("Turn to face")
    views = StreetViews.build(lagos.panoramas, lagos.rotation, route_picture.SIZE)
    wanted = np.asarray(views.picture(jnp.int32(2), float(stops[2].heading))).astype(int)
    assert np.abs(stops[2].view - wanted).max() <= 1
    route_picture.draw(lagos, "relative", 90, "Mine")
    title, stops, *_ = drawn["given"]
    assert title == "Mine" and stops[0].heading == 90 and "assumed" not in stops[0].caption


def test_files_with_and_without_street_views(tmp_path: Path) -> None:
    city, objects = cities.training(3, 4, "lagos")
    make_city.write(tmp_path / "city", [city], objects, 64)
    seen = route_picture.of_files(tmp_path / "city", 2, 1)
    ids = list(dict.fromkeys(point.pano for point in seen.route.waypoints))
    assert len(seen.panoramas) == len(ids) and seen.streets is None and not seen.landmarks
    with Image.open(tmp_path / "city" / "street_views" / f"{ids[1]}.jpg") as picture:
        small = np.asarray(Image.fromarray(seen.panoramas[1]).resize(picture.size)).astype(int)
        assert np.abs(small - np.asarray(picture)).mean() < 10
    about = json.loads((tmp_path / "city" / "street_views" / f"{ids[1]}.metadata.json").read_text())
    assert seen.rotation[1] == np.float32(about["rotation"])
    bare = route_picture.of_files(write(tmp_path / "bare", two_legs()), 0, 1)
    assert bare.panoramas is None
    figure = route_picture.draw(bare, "absolute", None, "")
    assert len(figure.axes) == 2


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, two_legs())
    with pytest.raises(ValueError, match="--index: given 1, allowed: 0..0"):
        route_picture.of_files(folder, 1, 3)
    at = (
        two_legs()["start_place"]["relocated_geocode"],
        *two_legs()["route_results"]["geocode_list"],
    )
    names = ("a", "b", "c")
    write(
        tmp_path, two_legs(), {tuple(place): n for place, n in zip(at, names, strict=True)}, names
    )
    with pytest.raises(StreetViewError, match=r"a\.jpg: not a readable picture"):
        route_picture.of_files(folder, 0, 3)
    with pytest.raises(ValueError, match="allowed: at most"):
        route_picture.of_city("lagos", 1, 10**6, 3)

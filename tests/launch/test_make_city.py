"""Written cities are read back by the reader of the released data."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gp_virl.envs import city as cities
from gp_virl.envs.panoramas import panorama
from gp_virl.envs.route_files import read_routes, routes_of
from gp_virl.envs.street_views import read_panoramas
from launch import make_city


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, cities.City]:
    out = tmp_path_factory.mktemp("city") / "out"
    city, routes = cities.training(12, 4, "lagos")
    count = make_city.write(out, [city], routes, 64)
    assert count == len(list((out / "street_views").glob("*.jpg")))
    return out, city


def test_files(written) -> None:
    out, city = written
    assert {path.name for path in out.iterdir()} == {
        "route_infos.json", "gps_pano_mapping.pkl", "street_views",
    }  # fmt: skip
    routes, counter = json.loads((out / "route_infos.json").read_text())
    assert routes == cities.routes(city, 12) and counter == 12
    mapping = pickle.loads((out / "gps_pano_mapping.pkl").read_bytes())
    assert mapping.items() <= city.mapping.items()
    ids = sorted(mapping.values())
    pictures, rotation = read_panoramas(out / "street_views", ids, 64)
    assert (rotation == city.rotations[[city.index(name) for name in ids]].astype(np.float32)).all()
    drawn = panorama(city, ids[0], 64).astype(int)
    assert np.abs(pictures[0] - drawn).mean() < 12
    assert Image.open(out / "street_views" / f"{ids[0]}.jpg").size == (64, 32)


def test_the_reader_reads_them(written) -> None:
    out, city = written
    routes = read_routes(out, max_straight=20, need_views=True)
    assert len(routes) == 12
    assert routes_of(cities.routes(city, 12), city.mapping, 20, out.name) == routes
    for route in routes:
        panos = [point.pano for point in route.waypoints]
        assert len(set(panos)) == len(panos)
        xy = city.plan.points[[city.index(name) for name in panos]]
        steps = np.hypot(*np.diff(xy, axis=0).T)
        assert (steps > 8).all() and (steps < 25).all()  # nothing on the way is left out
        for point in route.waypoints:
            if point.kind != "forward":
                assert city.mapping[point.position] == point.pano


def test_mini(tmp_path) -> None:
    built, routes = cities.mini(0)
    make_city.write(tmp_path, built, routes, 64)
    assert len(read_routes(tmp_path, max_straight=5, need_views=True)) == 18


def test_refusals(written, tmp_path) -> None:
    out, city = written
    with pytest.raises(ValueError, match="holds something"):
        make_city.write(out, [city], [], 64)
    with pytest.raises(ValueError, match="65.*even"):
        make_city.write(tmp_path / "new", [city], [], 65)
    assert not (tmp_path / "new").exists()

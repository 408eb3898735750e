"""Routes made up for tests, and the released files that would hold them."""

import copy
import json
import math
import pickle
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "data" / "route_infos.json"
METRES_PER_DEGREE = 6_371_000 * math.pi / 180


def golden() -> list[dict]:
    """The routes of the golden file, as JSON gives them."""
    return json.loads(GOLDEN.read_text())[0]


def moved(point: tuple[float, float], north: float, east: float) -> tuple[float, float]:
    """The point so many metres away."""
    across = METRES_PER_DEGREE * math.cos(math.radians(point[0]))
    return point[0] + north / METRES_PER_DEGREE, point[1] + east / across


def block(number: int, landmarks: str, heading: str, **more: str) -> str:
    """A block of a route's milestone_info."""
    fields = {"intersection_idx": str(number), "landmarks": landmarks, "distance": "16 meters"}
    fields |= {"human_heading": "0", "to_next_intersection_heading": heading} | more
    return "\n{\n" + "".join(f'"{key}": "{value}",\n' for key, value in fields.items()) + "}\n"


START = (40.0, -74.0)
CORNER = moved(START, 100, 0)
GOAL = moved(CORNER, 0, 40)


def two_legs() -> dict:
    """100 m north to a cafe, 40 m east to a hall."""
    return {
        "start_place": {"relocated_geocode": list(START)},
        "dest_place": {"name": "Hall", "relocated_geocode": list(GOAL), "region": "Old_Town"},
        "route_results": {
            "geocode_list": [list(CORNER), list(GOAL)],
            "landmark_list": [{"name": "Cafe: A"}],
        },
        "init_heading": 0,
        "milestone_info": block(1, "Cafe: A is on your left", "0 (north)")
        + block(2, "The destination Hall is on your front", "90 (east)"),
    }


def changed(path: str, value: object) -> dict:
    """`two_legs` with another value at a dotted path, or without it if `value` is Ellipsis."""
    route = copy.deepcopy(two_legs())
    *parents, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    place = route
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return route


def write(folder: Path, routes: object, mapping: dict | None = None, pictures=()) -> Path:
    """The folder with route_infos.json, and a mapping and (empty) pictures where given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "route_infos.json").write_text(json.dumps(routes))
    if mapping is not None:
        (folder / "gps_pano_mapping.pkl").write_bytes(pickle.dumps(mapping))
    if pictures:
        (folder / "street_views").mkdir(exist_ok=True)
    for name in pictures:
        (folder / "street_views" / f"{name}.jpg").touch()
        (folder / "street_views" / f"{name}.metadata.json").write_text('{"rotation": 0.0}')
    return folder

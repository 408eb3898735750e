"""A procedural city in the form of the released V-IRL data.

python -m launch.make_city OUT --style=new_york --routes=1000 --seed=0
python -m launch.make_city OUT --mini

OUT gets route_infos.json, gps_pano_mapping.pkl and street_views/; --mini writes 18 routes through
nine cities, as the VLN mini benchmark has.
"""

import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from PIL import Image
from tqdm import tqdm

from gp_virl.envs import city as cities
from gp_virl.envs.city_styles import STYLES, TRAINING
from gp_virl.envs.panorama_map import Position
from gp_virl.envs.panoramas import NARROWEST, panorama

_STYLE = flags.DEFINE_enum("style", TRAINING, list(STYLES), "what the city looks like")
_ROUTES = flags.DEFINE_integer("routes", 1000, "routes to write", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "another seed is another city", lower_bound=0)
_BLOCKS = flags.DEFINE_integer("blocks", cities.BLOCKS, "along a side of the city")
_MINI = flags.DEFINE_bool("mini", False, "nine cities with two routes each; not with --routes")
_WIDTH = flags.DEFINE_integer("width", 2048, "of a panorama, in pixels", lower_bound=NARROWEST)

QUALITY = 92  # of the JPEG files


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        raise app.UsageError("give one folder: OUT")
    if _MINI.value and (_STYLE.present or _ROUTES.present or _BLOCKS.present):
        raise app.UsageError("--mini chooses styles, routes and blocks itself; leave the flags out")
    try:
        if _MINI.value:
            built, routes = cities.mini(_SEED.value)
        else:
            city, routes = cities.training(_ROUTES.value, _SEED.value, _STYLE.value, _BLOCKS.value)
            built = [city]
        count = write(Path(arguments[1]), built, routes, _WIDTH.value)
    except (ValueError, OSError) as wrong:
        sys.exit(f"make_city: {wrong}")
    print(f"{arguments[1]}: {len(routes)} routes, {count} street views")


def write(
    out: Path, built: Sequence[cities.City], routes: Sequence[Mapping[str, Any]], width: int
) -> int:
    """How many street views were written: those near the routes, to a folder that is not there.

    Raises ValueError if it is, or holds something, and for a width that can't be drawn.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"given {out}, which holds something; allowed: a new or empty folder")
    if width < NARROWEST or width % 2:
        raise ValueError(f"--width: given {width}, allowed: an even number from {NARROWEST} on")
    views = out / "street_views"
    views.mkdir(parents=True, exist_ok=True)
    mapping: dict[Position, str] = {}
    for city in built:
        near = cities.panoramas_near(city, routes)
        mapping |= {at: name for at, name in city.mapping.items() if name in near}
        for name in tqdm(sorted(near), desc=city.style.title, unit="view", disable=None):
            picture = Image.fromarray(panorama(city, name, width))
            picture.save(views / f"{name}.jpg", quality=QUALITY)
            about = json.dumps(city.metadata(name))
            (views / f"{name}.metadata.json").write_text(about, encoding="utf-8")
    (out / "gps_pano_mapping.pkl").write_bytes(pickle.dumps(mapping))
    text = json.dumps([list(routes), len(routes)], indent=1)
    (out / "route_infos.json").write_text(text, encoding="utf-8")
    return len(mapping)


if __name__ == "__main__":
    app.run(main)

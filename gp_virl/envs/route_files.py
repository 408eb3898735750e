"""Reads routes in the released V-IRL format: route_infos.json, its panoramas, street views.

A folder of routes holds `route_infos.json`, and for the visual task `gps_pano_mapping.pkl` and
`street_views/`. Files are data from strangers: everything that is read is checked, and all that is
wrong is told at once, before any point is looked up.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from gp_virl.envs import plain_pickle
from gp_virl.envs.foreign import shown
from gp_virl.envs.panorama_map import PanoramaMap, Position, drawn_between
from gp_virl.envs.route_fields import Draft, is_position, kind_of, read_draft
from gp_virl.envs.routes import Place, Route, RouteError, waypoints_along

ROUTES, PANORAMAS, VIEWS = "route_infos.json", "gps_pano_mapping.pkl", "street_views"
PICTURE, ABOUT = ".jpg", ".metadata.json"
SHOWN = 5  # wrong entries of a mapping, and routes left out, that are named


def read_routes(path: str | Path, max_straight: int, need_views: bool = False) -> list[Route]:
    """The routes of a JSON file, of a folder that holds route_infos.json, or of such folders.

    Where gps_pano_mapping.pkl lies beside the routes (or in the folder of folders), waypoints
    between milestones are panoramas, else evenly spaced points; at most `max_straight` on a leg.
    With street_views/ beside it, only panoramas with picture and metadata have a street view; a
    route whose start or a milestone has none is left out, by name, in one warning. Raises
    RouteError with all that is wrong otherwise, if no route is left, or, with `need_views`, where
    there are no street views at all; ValueError for `max_straight`.
    """
    problems: list[str] = []
    found: list[tuple[list[Draft], PanoramaMap | None]] = []
    maps: dict[Path, PanoramaMap | None] = {}
    for file, prefix, folder in _sources(Path(path), problems):
        if folder not in maps:
            maps[folder] = _read_panoramas(folder, need_views, problems)
        drafts = _drafts(_read_objects(file, problems), prefix, file.parent.name, problems)
        found.append((drafts, maps[folder]))
    return _routes(found, max_straight, path, problems)


def routes_of(
    objects: Sequence[object],
    mapping: Mapping[Position, str] | None,
    max_straight: int,
    name: str,
) -> list[Route]:
    """The routes that `read_routes` gives for a folder called `name` with these objects.

    `mapping` is that of gps_pano_mapping.pkl: with it every panorama counts as a street view that
    is there. Raises RouteError and ValueError as `read_routes` does.
    """
    problems: list[str] = []
    panoramas = None if mapping is None else _panoramas(mapping, name, None, problems)
    return _routes(
        [(_drafts(objects, "", name, problems), panoramas)], max_straight, name, problems
    )


def _routes(
    found: Sequence[tuple[list[Draft], PanoramaMap | None]],
    max_straight: int,
    source: object,
    problems: list[str],
) -> list[Route]:
    """The routes of all drafts that can be placed, if there are some and no problems before."""
    if type(max_straight) is not int or max_straight < 0:
        raise ValueError(f"max_straight: given {max_straight!r}, allowed: an integer >= 0")
    if not problems and not any(drafts for drafts, _ in found):
        problems.append(f"{source}: given no route, allowed: at least one")
    if problems:
        raise RouteError(source, problems)
    unseen: dict[str, list[str]] = {}
    routes = [
        _placed(draft, panoramas, max_straight, unseen)
        for drafts, panoramas in found
        for draft in drafts
    ]
    if len(unseen) == len(routes):
        raise RouteError(source, [line for lines in unseen.values() for line in lines])
    if unseen:
        told = ["; ".join(lines) for lines in list(unseen.values())[:SHOWN]]
        more = [f"and {len(unseen) - SHOWN} more"] if len(unseen) > SHOWN else []
        about = f"{source}: {len(unseen)} of {len(routes)} routes are left out"
        logging.warning("%s", "\n  ".join([about, *told, *more]))
    return [route for route in routes if route is not None]


def street_view_folders(path: str | Path) -> list[Path]:
    """The street_views folders of what `read_routes` reads from `path`; [] if there are none."""
    folders = dict.fromkeys(folder / VIEWS for *_, folder in _sources(Path(path), []))
    return [folder for folder in folders if folder.is_dir()]


def _sources(path: Path, problems: list[str]) -> list[tuple[Path, str, Path]]:
    """Every file of routes, what its routes' names begin with, and its panoramas' folder."""
    if path.is_file():
        return [(path, "", path.parent)]
    if (path / ROUTES).is_file():
        return [(path / ROUTES, "", path)]
    files = sorted(path.glob(f"*/{ROUTES}")) if path.is_dir() else []
    if not files:
        problems.append(
            f"{path}: no routes are there; allowed: a JSON file of routes, a folder that holds "
            f"{ROUTES}, or a folder of such folders"
        )

    def panoramas(folder: Path) -> Path:
        own = (folder / PANORAMAS).exists() or (folder / VIEWS).exists()
        return folder if own or not (path / PANORAMAS).exists() else path

    return [(file, f"{file.parent.name}/", panoramas(file.parent)) for file in files]


def _read_objects(file: Path, problems: list[str]) -> list[object]:
    """What a file says of its routes."""
    try:
        given = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{file}: not readable as JSON: {error}")
        return []
    if isinstance(given, dict):
        given = [[given], 0]
    wrapped = isinstance(given, list) and len(given) == 2 and isinstance(given[0], list)
    if not wrapped or type(given[1]) is not int:
        problems.append(
            f"{file}: given {kind_of(given)}, allowed: [[route, ...], counter] with an integer "
            "counter, or one route"
        )
        return []
    return given[0]


def _drafts(
    objects: Sequence[object], prefix: str, region: str, problems: list[str]
) -> list[Draft]:
    drafts = [
        read_draft(one, f"{prefix}{index}", region, problems) for index, one in enumerate(objects)
    ]
    return [draft for draft in drafts if draft is not None]


def _read_panoramas(folder: Path, need_views: bool, problems: list[str]) -> PanoramaMap | None:
    """The map of a folder with its pictures, if there is one."""
    file, views = folder / PANORAMAS, folder / VIEWS
    if need_views or (views.is_dir() and not file.is_file()):
        missing = [str(part) for part in (file, views) if not part.exists()]
        if missing:
            problems.append(f"{', '.join(missing)}: missing; street views need both")
            return None
    if not file.is_file():
        return None
    try:
        given = plain_pickle.loads(file.read_bytes())
    except (OSError, plain_pickle.UnsafePickleError) as error:
        problems.append(f"{file}: {error}")
        return None
    return _panoramas(given, file, _pictures(views) if views.is_dir() else None, problems)


def _panoramas(
    given: object, source: object, pictures: frozenset[str] | None, problems: list[str]
) -> PanoramaMap | None:
    """The map of a mapping from `source`, if that is one."""
    if not isinstance(given, Mapping) or not given:
        problems.append(
            f"{source}: given {kind_of(given)}, allowed: {{(lat, lng): panorama id, ...}}"
        )
        return None
    wrong = [key for key, pano in given.items() if not (is_position(key) and _is_file_name(pano))]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        told = ", ".join(f"{shown(key)}: {shown(given[key])}" for key in wrong[:SHOWN])
        problems.append(
            f"{source}: given {{{told}}}{more}, allowed: (latitude, longitude) in degrees: the "
            "panorama's id, which is the name of a file"
        )
        return None
    return PanoramaMap.build(given, pictures)


def _is_file_name(given: object) -> bool:
    return type(given) is str and given not in ("", ".", "..") and not set(given) & set("/\\\0")


def _pictures(views: Path) -> frozenset[str]:
    """Ids that have both a panorama and its metadata."""
    names = {entry.name for entry in views.iterdir()}
    ids = {name.removesuffix(PICTURE) for name in names if name.endswith(PICTURE)}
    return frozenset(one for one in ids if f"{one}{ABOUT}" in names)


def _placed(
    draft: Draft,
    panoramas: PanoramaMap | None,
    max_straight: int,
    unseen: dict[str, list[str]],
) -> Route | None:
    """The route with its waypoints.

    None, and why by its name in `unseen`, where its start or a milestone has no street view.
    """
    places, problems = [], []
    for index, position in enumerate((draft.start, *draft.milestones)):
        pano, why = (None, "") if panoramas is None else panoramas.seen_from(position)
        if why:
            field = "route_results.geocode_list" + f"[{index - 1}]"
            field = field if index else "start_place.relocated_geocode"
            problems.append(f"route {shown(draft.name)}: {field}: {why}")
        places.append(Place(position, pano))
    if problems:
        unseen[draft.name] = problems
        return None
    between = []
    for start, end in zip(places, places[1:], strict=False):
        if panoramas is None:
            drawn = drawn_between(start.position, end.position, max_straight)
            between.append([Place(point) for point in drawn])
        else:
            ends = (start.pano, end.pano)
            seen = panoramas.between(start.position, end.position, ends, max_straight)
            between.append([Place(*one) for one in seen])
    waypoints = waypoints_along(draft.legs, places[0], places[1:], between)
    return Route(draft.name, draft.region, draft.legs, waypoints, draft.start_heading)

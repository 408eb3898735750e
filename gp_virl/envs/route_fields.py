"""Checks the fields of one route of a route_infos.json: whatever is wrong is told by its path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gp_virl.envs import milestone_info
from gp_virl.envs.foreign import shown
from gp_virl.envs.panorama_map import Position
from gp_virl.envs.routes import Leg

_NAMES = {dict: "an object", list: "a list", str: "a text", int: "an integer"}


@dataclass(frozen=True)
class Draft:
    """A checked route before its waypoints are known."""

    name: str
    region: str
    start: Position
    milestones: tuple[Position, ...]
    legs: tuple[Leg, ...]
    start_heading: int | None  # None: not given


def read_draft(given: object, number: str, folder: str, problems: list[str]) -> Draft | None:
    """The checked route, or None after adding to `problems`."""
    before = len(problems)
    if not isinstance(given, dict):
        problems.append(f"route {number}: given {kind_of(given)}, allowed: an object")
        return None
    goal = given.get("dest_place")
    goal = goal.get("name") if isinstance(goal, dict) else None
    name = f"{number} to {goal.strip()}" if _is_text(goal) else number
    read = _Fields(f"route {shown(name)}: ", problems)
    start = read.point(read.of(given, "start_place", dict), "start_place.relocated_geocode")
    place = read.of(given, "dest_place", dict)
    read.point(place, "dest_place.relocated_geocode")
    destination = read.name(place, "dest_place.name")
    results = read.of(given, "route_results", dict)
    milestones = read.points(results, "route_results.geocode_list")
    landmarks = read.landmarks(results, "route_results.landmark_list", milestones)
    heading = read.of(given, "init_heading", int)
    if heading is not None and not 0 <= heading < 360:
        read.wrong("init_heading", heading, "an integer in 0..359; 0 means not given")
    info = read.of(given, "milestone_info", str)
    legs = None
    if info is not None:
        where = f"{read.route}milestone_info"
        count = milestones and len(milestones)
        legs = milestone_info.read_legs(info, count, destination, landmarks, where, problems)
    if len(problems) > before:
        return None
    region = place.get("region")
    region = region if _is_text(region) else folder
    return Draft(name, region, start, tuple(milestones), legs, heading or None)


class _Fields:
    """Reads fields of one route; a field that is wrong is None and told in `problems`."""

    def __init__(self, route: str, problems: list[str]) -> None:
        self.route = route
        self.problems = problems

    def wrong(self, path: str, given: object, allowed: str) -> None:
        told = kind_of(given) if isinstance(given, (dict, list)) else shown(given)
        self.problems.append(f"{self.route}{path}: given {told}, allowed: {allowed}")

    def of(self, parent: Mapping | None, path: str, kind: type):
        """The value at the path's last key in `parent`, if it is of that very type."""
        if parent is None:
            return None
        key, allowed = path.rpartition(".")[2], _NAMES[kind]
        if key not in parent:
            self.problems.append(f"{self.route}{path}: missing; it is {allowed}")
        elif type(parent[key]) is not kind:
            self.wrong(path, parent[key], allowed)
        else:
            return parent[key]
        return None

    def name(self, parent: Mapping | None, path: str) -> str | None:
        given = self.of(parent, path, str)
        if given is not None and not _is_text(given):
            self.wrong(path, given, "a name that isn't blank, of Unicode characters")
            return None
        return given and given.strip()

    def point(self, parent: Mapping | None, path: str) -> Position | None:
        given = self.of(parent, path, list)
        return None if given is None else self._position(given, path)

    def points(self, parent: Mapping | None, path: str) -> list[Position] | None:
        """One position or more; None if any is wrong."""
        given = self.of(parent, path, list)
        if given is None:
            return None
        if not given:
            self.problems.append(f"{self.route}{path}: given no point, allowed: at least one")
            return None
        found = [self._position(one, f"{path}[{index}]") for index, one in enumerate(given)]
        return None if None in found else found

    def landmarks(
        self, parent: Mapping | None, path: str, milestones: Sequence[Position] | None
    ) -> list[str | None] | None:
        """The name, or None for no landmark, of each milestone but the last."""
        given = self.of(parent, path, list)
        if given is None or milestones is None:
            return None
        if len(given) != len(milestones) - 1:
            self.problems.append(
                f"{self.route}{path}: given {len(given)} entries, allowed: {len(milestones) - 1}, "
                "one for each milestone but the last"
            )
            return None
        names, before = [], len(self.problems)
        for index, place in enumerate(given):
            if place is None:
                names.append(None)
            elif type(place) is dict:
                names.append(self.name(place, f"{path}[{index}].name"))
            else:
                self.wrong(f"{path}[{index}]", place, "an object or null")
        return names if len(self.problems) == before else None

    def _position(self, given: object, path: str) -> Position | None:
        if not is_position(given):
            allowed = "[latitude in -90..90, longitude in -180..180]"
            self.problems.append(f"{self.route}{path}: given {shown(given)}, allowed: {allowed}")
            return None
        return float(given[0]), float(given[1])


def kind_of(given: object) -> str:
    """What a value is, for messages: containers and texts by kind, others as they are."""
    if isinstance(given, list):
        return f"a list of {len(given)}"
    return _NAMES.get(type(given)) or shown(given)


def _is_text(given: object) -> bool:
    """Not blank, and without the half characters that JSON can write and no file can hold."""
    if not isinstance(given, str) or not given.strip():
        return False
    return not any("\ud800" <= character <= "\udfff" for character in given)


def is_position(given: object) -> bool:
    """True for a pair of a latitude and a longitude in degrees."""
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        return False
    if not all(type(number) in (int, float) for number in given):
        return False
    return all(abs(number) <= most for number, most in zip(given, (90, 180), strict=True))

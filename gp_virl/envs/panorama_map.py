"""Which panorama stands for a point on earth, and the points between two milestones.

Positions are (latitude, longitude) in degrees, distances metres along the sphere.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial import cKDTree

Position = tuple[float, float]

EARTH_RADIUS = 6_371_000.0
NEAR = 20.0  # a point is seen from a panorama closer than this
CLEAR = 8.0  # a panorama between two milestones is farther than this from both
SHORTEST_LEG = 5.0  # a shorter one has no points between
SPACING = 10.0  # points drawn without panoramas are about that far apart
SAMPLING, MOST_SAMPLES = 1.0, 2000  # metres between the places where a leg looks for panoramas


def haversine(
    first: Float64[np.ndarray, "n 2"], second: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, "n"]:
    """Metres between points given in degrees."""
    (lat1, lng1), (lat2, lng2) = (np.radians(x).T for x in (first, second))
    square = np.sin((lat2 - lat1) / 2) ** 2
    square = square + np.cos(lat1) * np.cos(lat2) * np.sin((lng2 - lng1) / 2) ** 2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(square, 1)))


def metres(first: Position, second: Position) -> float:
    """Metres between two points."""
    return float(haversine(np.array([first], float), np.array([second], float))[0])


def evenly_between(start: Position, end: Position, count: int) -> list[Position]:
    """`count` points that cut the way from start to end into equal parts."""
    eastward = (end[1] - start[1] + 180) % 360 - 180  # the short way around, also over 180 degrees
    points = []
    for share in (i / (count + 1) for i in range(1, count + 1)):
        lat, lng = start[0] + share * (end[0] - start[0]), start[1] + share * eastward
        points.append((lat, (lng + 180) % 360 - 180 if abs(lng) > 180 else lng))
    return points


def drawn_between(start: Position, end: Position, most: int) -> list[Position]:
    """Points for a leg of which no panoramas are known: evenly spaced, at most `most` of them.

    One for every 10 m, at least one; none on a leg shorter than 5 m.
    """
    length = metres(start, end)
    if length < SHORTEST_LEG:
        return []
    return evenly_between(start, end, min(most, max(1, int(length // SPACING))))


@dataclass(frozen=True, eq=False)
class PanoramaMap:
    """Panorama ids by position; `build` makes it."""

    positions: Float64[np.ndarray, "k 2"]
    ids: tuple[str, ...]  # of each position; several positions may share one
    index: Mapping[Position, int]
    tree: cKDTree  # of the positions on the unit sphere: chords order points as haversine does
    pictures: Set[str] | None  # ids whose pictures are there; None where nobody looked

    @classmethod
    def build(cls, mapping: Mapping[Position, str], pictures: Set[str] | None) -> "PanoramaMap":
        """The map of {(latitude, longitude): id}, which is not empty."""
        positions = np.array(list(mapping), np.float64).reshape(-1, 2)
        index = {(float(lat), float(lng)): row for row, (lat, lng) in enumerate(mapping)}
        tree = cKDTree(_on_sphere(positions))
        return cls(positions, tuple(mapping.values()), index, tree, pictures)

    def nearest(self, points: Sequence[Position]) -> Int64[np.ndarray, "n"]:
        """The row of each point: its own if it has one, else the nearest at whatever distance."""
        rows = self.tree.query(_on_sphere(np.array(points, np.float64).reshape(-1, 2)))[1]
        own = [self.index.get((float(lat), float(lng)), -1) for lat, lng in points]
        return np.where(np.array(own) >= 0, own, rows).astype(np.int64)

    def seen_from(self, point: Position) -> tuple[str | None, str]:
        """(id of the panorama that shows the point, '') or (None, why there is none)."""
        row = int(self.nearest([point])[0])
        away = metres(point, tuple(self.positions[row].tolist()))
        if away >= NEAR:
            return None, (
                f"no street view: the nearest panorama, {self.ids[row]}, is {away:.1f} m away, "
                f"allowed: closer than {NEAR:g} m"
            )
        if self.pictures is not None and self.ids[row] not in self.pictures:
            name = self.ids[row]
            return None, (
                f"no street view: {name}.jpg or {name}.metadata.json is missing in street_views"
            )
        return self.ids[row], ""

    def between(
        self, start: Position, end: Position, ends: Sequence[str], most: int
    ) -> list[tuple[Position, str]]:
        """Position and id of at most `most` panoramas on the way, in walking order, spread evenly.

        All differ from each other and from `ends`, the ids at start and end, are more than 8 m
        from both points, and are the nearest, closer than 20 m, to some place on the way. None on
        a leg shorter than 5 m.
        """
        length = metres(start, end)
        if length < SHORTEST_LEG:
            return []
        places = evenly_between(start, end, min(MOST_SAMPLES, int(length / SAMPLING)))
        rows = self.nearest(places)
        there = self.positions[rows]
        kept = haversine(np.array(places), there) < NEAR
        for point in (start, end):
            kept &= haversine(np.broadcast_to(np.array(point, float), there.shape), there) > CLEAR
        found: dict[str, Position] = {}
        for row in rows[kept]:
            name = self.ids[row]
            if name not in ends and (self.pictures is None or name in self.pictures):
                found.setdefault(name, tuple(self.positions[row].tolist()))
        every, count = list(found.items()), min(most, len(found))
        chosen = [(2 * i + 1) * len(every) // (2 * count) for i in range(count)]
        return [(every[i][1], every[i][0]) for i in chosen]


def _on_sphere(degrees: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 3"]:
    lat, lng = np.radians(degrees).T
    return np.stack([np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat)], axis=1)

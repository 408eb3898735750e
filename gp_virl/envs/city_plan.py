"""The plan of a procedural city: streets, facades, panorama points and the places with names.

All in metres east and north of the city's centre; headings in degrees clockwise from north.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
from jaxtyping import Float64, Int64

from gp_virl.envs.city_names import draw_names
from gp_virl.envs.city_styles import Style

BLOCK = 80.0  # between crossings of the grid that is then bent and jittered
JITTER = 8.0  # standard share of it in which crossings move
SHORTEST, LONGEST = 42.0, 118.0  # streets
SHARPEST = 33.0  # degrees between two streets at a crossing
WIDEST = 195.0  # degrees without a street, at a crossing where a street was left out
LEFT_OUT = 0.15  # share of the inner streets
ROAD, STREET = 5.0, 8.0  # half widths: kerb and facades from the middle line
SIGN = 6.2  # of a sign from the middle line
STEP = 12.5  # between panoramas, about
PLOT = 12.0  # width of a building, about
FLOOR = 4.0
NAMED_CROSSINGS = 0.92
CLEAR_SIDE = 8.0  # a sign is that far inside a sector of the eight sides, in degrees, from all legs
MIDDLE_LEG = 30.0  # a place in the middle of a street is that far from both crossings


@dataclass(frozen=True)
class Place:
    """A landmark: a crossing's or one in the middle of a street."""

    name: str
    category: str
    sign: tuple[float, float]  # where it stands
    pano: int  # the panorama point it is named at


@dataclass(frozen=True, eq=False)
class Plan:
    """C crossings, S streets, P panorama points (the crossings first), F facades."""

    crossings: Float64[np.ndarray, "C 2"]
    streets: Int64[np.ndarray, "S 2"]  # the crossings it joins
    points: Float64[np.ndarray, "P 2"]
    at_crossing: tuple[Place | None, ...]  # of each crossing
    in_street: tuple[Place | None, ...]  # of each street
    facades: Float64[np.ndarray, "F 4"]  # x y x y, each one building's, the street on its right
    heights: Float64[np.ndarray, "F"]
    trees: Float64[np.ndarray, "T 2"]

    @property
    def places(self) -> tuple[Place, ...]:
        """All places with a name."""
        return tuple(place for place in self.at_crossing + self.in_street if place)

    def graph(self) -> nx.Graph:
        """The streets between crossings, with `length` in metres and `street`, its index."""
        graph = nx.Graph()
        for index, (a, b) in enumerate(self.streets.tolist()):
            length = float(np.hypot(*(self.crossings[a] - self.crossings[b])))
            graph.add_edge(a, b, length=length, street=index)
        return graph


def heading_between(start, end) -> float:
    """Degrees clockwise from north, in [0, 360)."""
    east, north = end[0] - start[0], end[1] - start[1]
    return math.degrees(math.atan2(east, north)) % 360


def draw_plan(style: Style, rng: np.random.Generator, blocks: int) -> Plan:
    """A city of `blocks` x `blocks` blocks, before diagonals."""
    crossings, graph = _streets(style, rng, blocks)
    streets = np.array(sorted(tuple(sorted(edge)) for edge in graph.edges), np.int64)
    points, middles = [tuple(xy) for xy in crossings.tolist()], []
    for a, b in streets.tolist():
        start, end = crossings[a], crossings[b]
        length = float(np.hypot(*(end - start)))
        parts = max(2, round(length / STEP))
        near = min(range(1, parts), key=lambda i: abs(i / parts - rng.uniform(0.42, 0.58)))
        far_enough = min(near, parts - near) * length / parts >= MIDDLE_LEG
        middles.append(len(points) + near - 1 if far_enough else None)
        points += [tuple((start + (end - start) * i / parts).tolist()) for i in range(1, parts)]
    at_crossing, in_street = _places(rng, crossings, graph, streets, np.array(points), middles)
    facades, heights = _facades(style, rng, crossings, graph)
    return Plan(
        crossings=crossings,
        streets=streets,
        points=np.array(points),
        at_crossing=at_crossing,
        in_street=in_street,
        facades=facades,
        heights=heights,
        trees=_trees(style, rng, crossings, streets, at_crossing + in_street),
    )


def _streets(
    style: Style, rng: np.random.Generator, blocks: int
) -> tuple[Float64[np.ndarray, "C 2"], nx.Graph]:
    """A bent grid with jittered crossings, some diagonals, and some streets left out."""
    count = blocks + 1
    across, along = np.meshgrid(*(2 * [(np.arange(count) - blocks / 2) * BLOCK]))
    bend = math.radians(style.fan) / (BLOCK * blocks)
    angle = across * bend + rng.uniform(0, math.pi / 2)
    radius = along + 1 / bend
    level = np.stack([radius * np.sin(angle), radius * np.cos(angle)], -1).reshape(-1, 2)
    level -= level.mean(0)
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(count, count), ordering="sorted")
    while True:  # few draws have a street of a wrong length
        crossings = level + rng.uniform(-JITTER, JITTER, level.shape)
        lengths = [np.hypot(*(crossings[a] - crossings[b])) for a, b in grid.edges]
        if min(lengths) >= SHORTEST and max(lengths) <= LONGEST:
            break
    for row, column in itertools.product(range(blocks), repeat=2):
        first = row * count + column
        corners = [(first, first + count + 1), (first + 1, first + count)]
        a, b = corners[rng.integers(2)]
        if rng.random() < style.diagonals and np.hypot(*(crossings[a] - crossings[b])) < LONGEST:
            grid.add_edge(a, b, diagonal=True)
            if min(min(_gaps(crossings, grid, node)) for node in (a, b)) < SHARPEST:
                grid.remove_edge(a, b)
    for a, b in [edge for edge in grid.edges if rng.random() < LEFT_OUT]:
        kept = dict(grid.edges[a, b])
        if grid.degree(a) < 4 or grid.degree(b) < 4 or kept:
            continue
        grid.remove_edge(a, b)
        if max(max(_gaps(crossings, grid, node)) for node in (a, b)) > WIDEST:
            grid.add_edge(a, b, **kept)
    return crossings, grid


def _around(crossings, graph: nx.Graph, node: int) -> list[int]:
    """Neighbours by heading, clockwise."""
    here = crossings[node]
    return sorted(graph[node], key=lambda other: heading_between(here, crossings[other]))


def _gaps(crossings, graph: nx.Graph, node: int) -> list[float]:
    """Degrees from each street at a crossing to the next one clockwise, in the order of _around."""
    headings = [
        heading_between(crossings[node], crossings[o]) for o in _around(crossings, graph, node)
    ]
    return [
        (b - a) % 360 or 360.0 for a, b in zip(headings, headings[1:] + headings[:1], strict=True)
    ]


def _blocks(crossings, graph: nx.Graph) -> Iterator[list[int]]:
    """The faces of the street graph, walked with the face on the left; one is the outside."""
    open_sides = {side for a, b in graph.edges for side in ((a, b), (b, a))}
    around = {node: _around(crossings, graph, node) for node in graph}
    while open_sides:
        start = side = min(open_sides)
        face = []
        while True:
            open_sides.remove(side)
            face.append(side[0])
            turn = around[side[1]]  # the next street clockwise from where one came from
            side = (side[1], turn[(turn.index(side[0]) + 1) % len(turn)])
            if side == start:
                break
        yield face


def _facades(style: Style, rng: np.random.Generator, crossings, graph: nx.Graph):
    """(facades, heights): buildings along every block, STREET metres from the middle lines.

    Those of a block are about as high as each other.
    """
    facades, floors = [], []
    for face in _blocks(crossings, graph):
        corners = crossings[face]
        ahead = np.roll(corners, -1, 0) - corners
        ahead /= np.hypot(*ahead.T)[:, None]
        left = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
        before = np.roll(left, 1, 0)
        inset = (left + before) / (1 + (left * before).sum(1, keepdims=True))
        walls = corners + STREET * inset
        usual = rng.integers(style.floors[0], style.floors[1] + 1)
        for start, end, way in zip(walls, np.roll(walls, -1, 0), ahead, strict=True):
            length = float((end - start) @ way)
            if length < 1:
                continue
            widths = rng.uniform(0.7, 1.3, max(1, round(length / PLOT)))
            cuts = np.concatenate([[0], np.cumsum(widths) / widths.sum()])[:, None]
            ends = start + cuts * (end - start)
            facades.append(np.concatenate([ends[:-1], ends[1:]], 1))
            floors.append(np.maximum(1, usual + rng.integers(-1, 2, len(widths))))
    return np.concatenate(facades), FLOOR * np.concatenate(floors) + 1.0


def _places(rng, crossings, graph, streets, points, middles):
    """(places at crossings, places in streets), None where there is none."""
    chosen = rng.random(len(crossings)) < NAMED_CROSSINGS
    names = iter(draw_names(rng, int(chosen.sum()) + sum(m is not None for m in middles)))
    at_crossing, in_street = [], []
    for node, named in enumerate(chosen):
        sign = _corner(rng, crossings, graph, node) if named else None
        at_crossing.append(Place(*next(names), sign, node) if named else None)
    for (a, b), middle in zip(streets, middles, strict=True):
        if middle is None:
            in_street.append(None)
            continue
        ahead = crossings[b] - crossings[a]
        ahead = ahead / np.hypot(*ahead)
        across = np.array([ahead[1], -ahead[0]]) * rng.choice([-1, 1])
        sign = points[middle] + across * SIGN + ahead * rng.choice([-6.5, 0.0, 6.5])
        in_street.append(Place(*next(names), tuple(sign.tolist()), middle))
    return tuple(at_crossing), tuple(in_street)


def _corner(rng: np.random.Generator, crossings, graph, node: int) -> tuple[float, float]:
    """Where a crossing's sign stands: before a facade, on a clear side for all who walk up.

    In a gap between two streets the sign is SIGN metres from their middle lines, or farther along
    one of them.
    """
    here, around = crossings[node], _around(crossings, graph, node)
    headings = [heading_between(crossings[other], here) for other in around]
    found = []
    for first, gap in zip(around, _gaps(crossings, graph, node), strict=True):
        if gap < 60:
            continue
        for along in (0.0, 2.5, 5.0):
            half = math.radians(min(gap, 180) / 2)
            away, aside = SIGN / math.tan(half) + along, SIGN
            for start, sense in (
                (math.radians(headings[around.index(first)] + 180), 1),
                (math.radians(headings[around.index(first)] + 180 + gap), -1),
            ):
                east = away * math.sin(start) + sense * aside * math.cos(start)
                north = away * math.cos(start) - sense * aside * math.sin(start)
                sign = (float(here[0] + east), float(here[1] + north))
                sides = [(heading_between(here, sign) - h) % 45 for h in headings]
                found.append((min(abs(side - 22.5) for side in sides), sign))
    clear = [sign for margin, sign in found if margin >= CLEAR_SIDE]
    return clear[rng.integers(len(clear))] if clear else max(found)[1]


def _trees(style: Style, rng, crossings, streets, places) -> Float64[np.ndarray, "T 2"]:
    """Trees on the pavements, away from crossings, signs and the roads of other streets."""
    signs = np.array([place.sign for place in places if place])
    drawn = []
    for start, end in crossings[streets]:
        length = float(np.hypot(*(end - start)))
        ahead = (end - start) / length
        for side in (-1, 1):
            along = np.arange(16 + rng.uniform(0, style.spacing), length - 14, style.spacing)
            across = np.array([ahead[1], -ahead[0]]) * side * (ROAD + 1.2)
            drawn.append(start + across + along[:, None] * ahead)
    trees = np.concatenate(drawn)
    clear = np.ones(len(trees), bool)
    for start, end in crossings[streets]:
        way = end - start
        share = np.clip((trees - start) @ way / (way @ way), 0, 1)
        clear &= np.hypot(*(trees - start - share[:, None] * way).T) > ROAD + 1
    for sign in signs:
        clear &= np.hypot(*(trees - sign).T) > 7
    return trees[clear]

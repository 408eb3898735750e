"""Small routes made by hand, with every case of the rules: turns over north, straight legs, nearby
and missing landmarks, given and drawn start headings."""

from collections.abc import Sequence

from gp_virl.envs.routes import Leg, Place, Route, waypoints_along


def route(
    name: str,
    legs: Sequence[tuple[int, str | None, str | None]],
    between: Sequence[int],
    start_heading: int | None = None,
) -> Route:
    """A route of legs (heading, landmark, side) with so many points between their ends."""
    made = [Leg(*leg) for leg in legs]
    place = iter(range(10_000))

    def somewhere() -> Place:
        number = next(place)
        return Place((40.0 + number / 1000, -74.0), f"{name}-{number}")

    start = somewhere()
    points = [[somewhere() for _ in range(count)] for count in between]
    milestones = [somewhere() for _ in made]
    return Route(
        name=name,
        region="here",
        legs=tuple(made),
        waypoints=waypoints_along(made, start, milestones, points),
        start_heading=start_heading,
    )


ROUTES = (
    route(
        "a",
        [
            (298, "Prince St", "front"),
            (212, 'Joe\'s "Big" Pizza', "left front"),
            (120, "MoMA Design Store", "left"),
        ],
        [1, 0, 2],
    ),
    route(
        "b",
        [(350, "The Dutch", "right"), (10, "Café 7-Eleven", "behind"), (348, "Shuka", "right")],
        [2, 1, 0],
        start_heading=355,
    ),
    route(
        "c",
        [(90, None, None), (135, "Dr. Martens: Soho", "left behind"), (90, "A", "right front")],
        [0, 3, 0],
        start_heading=90,
    ),
    route("d", [(180, "King Cross", "right behind")], [1]),
    route(
        "e",
        [
            (45, "Intersection Cafe", "right"),
            (90, "Nonexistent; Bar", "left"),
            (270, None, None),
            (315, "東京 Ramen", "behind"),
        ],
        [0, 1, 0, 1],
        start_heading=1,
    ),
)

"""Every waypoint of routes in the V-IRL format, with what the expert sees and does there.

python -m launch.describe_routes route_infos.json --rule=absolute
python -m launch.describe_routes nyc_1k_routes --rule=relative --start-heading=90 --json out.json

ROUTES is a JSON file, a folder that holds route_infos.json, or a folder of such folders.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gp_virl.envs import routes
from gp_virl.envs.route_files import read_routes

ASSUMED_HEADING = 0
COLUMNS = ("#", "heading", "position", "intersection", "observation", "action", "sentence")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all was described; 1, with the reason on stderr, when the routes can't be read."""
    asked = _parser().parse_args(argv)
    try:
        found = read_routes(asked.routes, asked.max_straight)
        described = [describe(route, asked.rule, asked.start_heading) for route in found]
        if asked.json:
            asked.json.write_text(json.dumps(described, indent=1), encoding="utf-8")
        for one in described:
            print(table(one))
    except (ValueError, OSError) as wrong:
        print(f"describe_routes: {wrong}", file=sys.stderr)
        return 1
    return 0


def describe(route: routes.Route, rule: str, start_heading: int | None) -> dict:
    """The route as JSON; `start_heading` comes before the file's, and north where both are none.

    Degrees for headings, latitude and longitude for positions; sentences count from 1.
    """
    given = route.start_heading if start_heading is None else start_heading
    first = ASSUMED_HEADING if given is None else given
    instructions = routes.sentences(route, rule, first)
    waypoints = []
    for point in route.waypoints:
        heading = first if point.heading is None else point.heading
        waypoints.append(
            {
                "heading": heading,
                "position": list(point.position),
                "pano": point.pano,
                "kind": point.kind,
                "observation": routes.observation(point),
                "intersection": point.intersection,
                "sentence": instructions[point.sentence],
                "sentence_number": point.sentence + 1,
                "action": routes.action(point, rule, heading),
            }
        )
    return {
        "name": route.name,
        "region": route.region,
        "rule": rule,
        "start_heading": first,
        "start_heading_given": given is not None,
        "instructions": instructions,
        "waypoints": waypoints,
    }


def table(described: dict) -> str:
    """The route for people: a title and a row for each waypoint."""
    rows = [COLUMNS]
    for number, point in enumerate(described["waypoints"]):
        lat, lng = point["position"]
        rows.append(
            (
                str(number),
                f"{point['heading']} ({routes.compass_word(point['heading'])})",
                f"{lat:.6f}, {lng:.6f}",
                "yes" if point["intersection"] else "no",
                point["observation"],
                point["action"],
                f"{point['sentence_number']}. {point['sentence']}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    heading, assumed = described["start_heading"], ""
    if not described["start_heading_given"]:
        assumed = ", assumed: the file gives none; choose one with --start-heading"
    title = f"route {described['name']}, {described['region']}, {described['rule']} actions"
    return "\n".join([title, f"start heading {heading}{assumed}", *lines, ""])


def _heading(text: str) -> int:
    if not text.isdecimal() or int(text) > 359:
        raise argparse.ArgumentTypeError(f"given {text!r}, allowed: an integer in 0..359")
    return int(text)


def count(text: str) -> int:
    """The number of an argument of a command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"given {text!r}, allowed: an integer >= 0")
    return int(text)


def walking_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how routes are walked."""
    parser.add_argument("--rule", choices=routes.RULES, default="absolute")
    parser.add_argument(
        "--start-heading", "--start_heading", type=_heading, metavar="N",
        help="degrees that the agent faces at the start of every route",
    )  # fmt: skip
    parser.add_argument(
        "--max-straight", "--max_straight", type=count, default=5, metavar="N",
        help="most waypoints between two milestones (default: 5)",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.describe_routes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("routes", type=Path, metavar="ROUTES")
    walking_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the descriptions here too")
    return parser


if __name__ == "__main__":
    sys.exit(main())

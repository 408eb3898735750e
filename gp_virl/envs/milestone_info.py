"""Reads a route's milestone_info: blocks of "key": "value" pairs that are nearly JSON.

    {
    "intersection_idx": "1",
    "landmarks": "Corner Cafe is on your left",
    "to_next_intersection_heading": "298 (northwest)",
    }

Each block is a milestone: what is seen there, and the heading of the leg that leads to it. A line
may hold several pairs and braces. Only the number of blocks is checked, not their intersection_idx.
"""

import re
from collections.abc import Sequence

from gp_virl.envs.foreign import shown
from gp_virl.envs.routes import SIDES, Leg, compass_word

NOTHING = "No landmark nearby"
DESTINATION = "The destination "
BETWEEN = " is on your "
# What a line holds, piece by piece. A value may have quotes and braces in it: it ends at a quote
# that a comma and another pair follow, or the block's end, or the line's.
_PIECE = re.compile(
    r"""\s*+(?:(?P<open>\{)|(?P<close>\}\s*+,?)|"(?P<key>[^"]*+)"\s*+:\s*+"(?P<value>.*?)"\s*+
    (?:,\s*+(?="[^"]*+"\s*+:\s*+")|(?:,\s*+)?+(?=(?:\}\s*+(?:,\s*+)?+(?:\{|\Z))|\Z)))""",
    re.VERBOSE,
)
_HEADING = re.compile(r"(\d{1,3}) ?\(([a-z]+)\)", re.IGNORECASE)


def read_legs(
    text: str,
    milestones: int | None,
    destination: str | None,
    landmarks: Sequence[str | None] | None,
    where: str,
    problems: list[str],
) -> tuple[Leg, ...] | None:
    """The legs of a route, or None after adding to `problems`, each line starting with `where`.

    The route's other fields tell the number of `milestones`, the name of the last, `destination`,
    and the names at the others, `landmarks`, None for none near. Where any of the three is None
    itself, its field was wrong and nothing is compared with it.
    """
    before = len(problems)
    blocks = _blocks(text, where, problems)
    if len(problems) > before:
        return None
    if milestones is not None and len(blocks) != milestones:
        problems.append(
            f"{where}: given {len(blocks)} blocks, allowed: {milestones}, one for each "
            "point of route_results.geocode_list"
        )
        return None
    legs = []
    for index, block in enumerate(blocks):
        last = index + 1 == len(blocks)
        heading = _heading(block, f"{where}[{index}].to_next_intersection_heading", problems)
        seen = _landmark(block, last, f"{where}[{index}].landmarks", problems)
        if heading is None or seen is None:
            continue
        legs.append(Leg(heading, *seen))
        known, source = destination, "dest_place.name"
        if not last:
            known, source = landmarks and landmarks[index], f"route_results.landmark_list[{index}]"
        if seen[0] != known and (destination if last else landmarks) is not None:
            problems.append(
                f"{where}[{index}].landmarks: given {shown(seen[0])}, allowed: {shown(known)} "
                f"as in {source}"
            )
    return tuple(legs) if len(problems) == before else None


def _blocks(text: str, where: str, problems: list[str]) -> list[dict[str, str]]:
    blocks: list[dict[str, str]] = []
    inside = False
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        place = 0
        while place < len(line):
            piece = _PIECE.match(line, place)
            if piece and piece["open"] and not inside:
                inside = True
                blocks.append({})
            elif piece and piece["close"] and inside:
                inside = False
            elif piece and piece["key"] is not None and inside and piece["key"] not in blocks[-1]:
                blocks[-1][piece["key"]] = piece["value"]
            else:
                problems.append(
                    f"{where}: line {number}: given {shown(line[place:].strip())}, allowed: blocks "
                    'of "key": "value" pairs between { and }, each key once'
                )
                return blocks
            place = piece.end()
    if inside:
        problems.append(f"{where}: the last block isn't closed by a }}")
    return blocks


def _heading(block: dict[str, str], where: str, problems: list[str]) -> int | None:
    """Whole degrees in 0..359; the compass word may be that of a heading rounded either way."""
    given = block.get("to_next_intersection_heading")
    if given is None:
        problems.append(f'{where}: missing; it is a heading such as "298 (northwest)"')
        return None
    found = _HEADING.fullmatch(given.strip())
    if not found or int(found[1]) > 360:
        problems.append(
            f"{where}: given {shown(given)}, allowed: whole degrees in 0..360 and the compass "
            'word, such as "298 (northwest)"'
        )
        return None
    heading = int(found[1])
    if found[2].lower() not in {compass_word(heading + change) for change in (-1, 0, 1)}:
        problems.append(
            f"{where}: given {shown(given)}, allowed: {heading} ({compass_word(heading)})"
        )
        return None
    return heading % 360


def _landmark(
    block: dict[str, str], last: bool, where: str, problems: list[str]
) -> tuple[str | None, str | None] | None:
    """(name, side), (None, None) for no landmark, or None after adding to `problems`."""
    given = block.get("landmarks")
    form = f"{DESTINATION if last else ''}NAME{BETWEEN}SIDE"
    if given is None:
        problems.append(f'{where}: missing; it is "{form}"')
        return None
    if given.strip() == NOTHING and not last:
        return None, None
    name, _, side = given.strip().rpartition(BETWEEN)
    if not name.strip() or (last and not name.startswith(DESTINATION)):
        other = "" if last else f' or "{NOTHING}"'
        problems.append(f'{where}: given {shown(given)}, allowed: "{form}"{other}')
        return None
    if side not in SIDES:
        problems.append(f"{where}: given side {shown(side)}, allowed: {', '.join(SIDES)}")
        return None
    name = name.removeprefix(DESTINATION) if last else name
    return name.strip(), side

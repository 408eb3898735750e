"""Reads a route's milestone_info: blocks of "key": "value" lines that are nearly JSON.

    {
    "intersection_idx": "1",
    "landmarks": "Corner Cafe is on your left",
    "to_next_intersection_heading": "298 (northwest)",
    }

Each block is a milestone: what is seen there, and the heading of the leg that leads to it.
"""

import re
from collections.abc import Sequence

from gp_virl.envs.routes import SIDES, Leg, compass_word

NOTHING = "No landmark nearby"
DESTINATION = "The destination "
BETWEEN = " is on your "
_LINE = re.compile(r'"([^"]*)"\s*:\s*"(.*)"\s*,?')
_HEADING = re.compile(r"(\d{1,3}) \(([a-z]+)\)")
_NUMBER = re.compile(r"\d{1,9}")


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
    _check_order(blocks, where, problems)
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
                f"{where}[{index}].landmarks: given {seen[0]!r}, allowed: {known!r} as in {source}"
            )
    return tuple(legs) if len(problems) == before else None


def _blocks(text: str, where: str, problems: list[str]) -> list[dict[str, str]]:
    blocks: list[dict[str, str]] = []
    inside = False
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        pair = _LINE.fullmatch(line)
        if line == "{" and not inside:
            inside = True
            blocks.append({})
        elif line in ("}", "},") and inside:
            inside = False
        elif pair and inside and pair[1] not in blocks[-1]:
            blocks[-1][pair[1]] = pair[2]
        elif line:
            problems.append(
                f"{where}: line {number}: given {line[:80]!r}, allowed: blocks of "
                '"key": "value" lines between lines { and }, each key once'
            )
            return blocks
    if inside:
        problems.append(f"{where}: the last block isn't closed by a line }}")
    return blocks


def _check_order(blocks: Sequence[dict[str, str]], where: str, problems: list[str]) -> None:
    """Blocks count up by one, from wherever they start."""
    first = None
    for index, block in enumerate(blocks):
        given = block.get("intersection_idx")
        path = f"{where}[{index}].intersection_idx"
        if given is None:
            problems.append(f"{path}: missing; it is the block's number")
        elif not _NUMBER.fullmatch(given):
            problems.append(f"{path}: given {given!r}, allowed: the block's number")
        else:
            first = int(given) - index if first is None else first
            if int(given) != first + index:
                problems.append(
                    f"{path}: given {given!r}, allowed: {str(first + index)!r}, as blocks count up"
                )


def _heading(block: dict[str, str], where: str, problems: list[str]) -> int | None:
    """Whole degrees in 0..359; the compass word may be that of a heading rounded either way."""
    given = block.get("to_next_intersection_heading")
    if given is None:
        problems.append(f'{where}: missing; it is a heading such as "298 (northwest)"')
        return None
    found = _HEADING.fullmatch(given.strip())
    if not found or int(found[1]) > 360:
        problems.append(
            f"{where}: given {given!r}, allowed: whole degrees in 0..360 and the compass word, "
            'such as "298 (northwest)"'
        )
        return None
    heading = int(found[1])
    if found[2] not in {compass_word(heading + change) for change in (-1, 0, 1)}:
        problems.append(f"{where}: given {given!r}, allowed: {heading} ({compass_word(heading)})")
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
        problems.append(f'{where}: given {given!r}, allowed: "{form}"{other}')
        return None
    if side not in SIDES:
        problems.append(f"{where}: given side {side!r}, allowed: {', '.join(SIDES)}")
        return None
    name = name.removeprefix(DESTINATION) if last else name
    return name.strip(), side

"""Scores replies at waypoints, of any model: the navigation half of `launch.score_replies`.

A line: {"reply": "...", "expert_action": "turn_direction(north)", "observation": "Prince St is on
your front", "intersection": true}, and an optional "id". `observation` is what there is to see:
that, the same after "The destination", or "No landmarks nearby". A destination is no intersection.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gp_virl.envs.navigation import ACTIONS, OUTCOMES, PAPER_REWARDS, Fault, judge
from gp_virl.envs.route_texts import RouteTexts, fetched
from gp_virl.text.route_prompts import load_wording
from gp_virl.text.route_replies import DESTINATION, NAME_BYTES, NOTHING, SIDE_MARK, byte_rows, parse

REQUIRED = ("reply", "expert_action", "observation", "intersection")
FIELDS = (
    "reply (text), expert_action, observation (text), intersection (true or false); optional: id"
)
SHORTEST, BATCH_BYTES = 256, 1 << 20


@dataclass(frozen=True)
class Line:
    """One reply at one waypoint."""

    name: object  # the line's id, or its number
    reply: bytes
    action: int  # the expert's, an index into ACTIONS
    landmark: str  # empty: there is none
    intersection: bool

    @property
    def size(self) -> int:
        """Bytes of the row that holds the reply: a power of four, so that few are compiled."""
        return max(SHORTEST, 1 << -(-(len(self.reply) - 1).bit_length() // 2) * 2)


def read_line(number: int, row: bytes) -> Line:
    """One line of a JSONL file; ValueError says what is wrong with it and what is allowed."""
    try:
        given = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"given {row[:60]!r}, not JSON ({error}); fields: {FIELDS}") from None
    if not isinstance(given, dict):
        raise ValueError(f"given {row[:60]!r}, allowed: an object with {FIELDS}")
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; fields: {FIELDS}")
    reply, action, observation, intersection = (given[name] for name in REQUIRED)
    if not isinstance(reply, str):
        raise ValueError(f"reply: given {reply!r}, allowed: a text")
    if action not in ACTIONS:
        raise ValueError(f"expert_action: given {action!r}, allowed: {', '.join(ACTIONS)}")
    if type(intersection) is not bool:
        raise ValueError(f"intersection: given {intersection!r}, allowed: true or false")
    return Line(
        name=given.get("id", number),
        reply=reply.encode("utf-8", "surrogatepass"),
        action=ACTIONS.index(action),
        landmark=_landmark(observation),
        intersection=intersection and action != "stop()",
    )


def _landmark(observation: object) -> str:
    """The landmark's name in the text of an observation, empty if there is none in sight."""
    mark = SIDE_MARK.decode()
    text = observation if isinstance(observation, str) else ""
    if mark not in text and text.lower().startswith(NOTHING.decode()):
        return ""
    name = text.rpartition(mark)[0].strip()
    if name.lower().startswith(DESTINATION.decode()):
        name = name[len(DESTINATION) :].strip()
    if not name or len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise ValueError(
            f"observation: given {observation!r}, allowed: 'No landmarks nearby', or "
            f"'NAME is on your SIDE' with a name of at most {NAME_BYTES} bytes"
        )
    return name


def score(lines: Sequence[Line]) -> list[dict]:
    """id, outcome, reward and feedback of each line, in order."""
    texts = RouteTexts(load_wording("full"), names=(), visual=False)
    scored: list[dict] = [{}] * len(lines)
    for rows, faults in _judged(lines):
        for lane, row in enumerate(rows):
            fault = fetched(faults, lane)
            name = OUTCOMES[int(fault.outcome)]
            scored[row] = {
                "id": lines[row].name,
                "outcome": name,
                "reward": getattr(PAPER_REWARDS, name),
                "feedback": texts.feedback_text(fault),
            }
    return scored


@jax.jit
@jax.vmap
def _judge(reply, length, action, name, intersection):
    return judge(parse(reply, length, jnp.asarray(byte_rows(ACTIONS))), action, name, intersection)


def _judged(lines: Sequence[Line]) -> Iterator[tuple[list[int], Fault]]:
    """(line indices, their faults with padding behind), batch by batch."""
    for size in sorted({line.size for line in lines}):
        rows = [row for row, line in enumerate(lines) if line.size == size]
        batch = max(1, min(BATCH_BYTES // size, 1 << (len(rows) - 1).bit_length()))
        for first in range(0, len(rows), batch):
            some = rows[first : first + batch]
            taken = [lines[row] for row in [*some, *some[:1] * (batch - len(some))]]
            reply = np.zeros((batch, size), np.uint8)
            for lane, line in enumerate(taken):
                reply[lane, : len(line.reply)] = np.frombuffer(line.reply, np.uint8)
            faults = _judge(
                reply,
                np.array([len(line.reply) for line in taken], np.int32),
                np.array([line.action for line in taken], np.int32),
                byte_rows([line.landmark for line in taken], NAME_BYTES),
                np.array([line.intersection for line in taken]),
            )
            yield some, fetched(faults)

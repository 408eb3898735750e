"""Scores replies at waypoints, of any model: the navigation half of `score_replies`."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gp_virl.envs.navigation import ACTIONS, OUTCOMES, PAPER_REWARDS, Fault, judge
from gp_virl.envs.route_texts import RouteTexts, fetched
from gp_virl.text.route_prompts import load_wording
from gp_virl.text.route_replies import NAME_BYTES, NOTHING, SIDE_MARK, bare_name, byte_rows, parse
from launch.reply_lines import Batch, batches, fields_of, spelled

REQUIRED = ("reply", "expert_action", "observation", "intersection")
FIELDS = (
    "reply (text), expert_action, observation (text), intersection (true or false); optional: id"
)


@dataclass(frozen=True)
class Line:
    """One reply at one waypoint."""

    name: object  # the line's id, or its number
    reply: bytes
    action: int  # the expert's, an index into ACTIONS
    landmark: str  # empty: there is none
    intersection: bool


def read_line(number: int, row: bytes) -> Line:
    """One line of a JSONL file; ValueError says what is wrong with it and what is allowed."""
    given = fields_of(row, REQUIRED, FIELDS)
    reply, action, observation, intersection = (given[name] for name in REQUIRED)
    if action not in ACTIONS:
        raise ValueError(f"expert_action: given {action!r}, allowed: {', '.join(ACTIONS)}")
    if type(intersection) is not bool:
        raise ValueError(f"intersection: given {intersection!r}, allowed: true or false")
    return Line(
        name=given.get("id", number),
        reply=spelled(reply),
        action=ACTIONS.index(action),
        landmark=_landmark(observation),
        intersection=intersection and action != "stop()",
    )


def _landmark(observation: object) -> str:
    """The landmark's name in the text of an observation, empty if there is none in sight."""
    mark = SIDE_MARK.decode()
    text = observation.strip() if isinstance(observation, str) else ""
    absent = observation is None or isinstance(observation, str) and not text
    if absent or (mark not in text and text.lower().startswith(NOTHING.decode())):
        return ""
    name = bare_name(text.rpartition(mark)[0])
    if not name or len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise ValueError(
            f"observation: given {observation!r}, allowed: 'No landmarks nearby', nothing, or "
            f"'NAME is on your SIDE' with a name of at most {NAME_BYTES} bytes"
        )
    return name


def score(lines: Sequence[Line]) -> list[dict]:
    """id, outcome, reward and feedback of each line, in order."""
    texts = RouteTexts(load_wording("full"), names=(), visual=False)
    scored: list[dict] = [{}] * len(lines)
    for batch in batches([line.reply for line in lines]):
        faults = _judged([lines[row] for row in batch.lanes], batch)
        for lane, row in enumerate(batch.lanes[: batch.kept]):
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


def _judged(lines: Sequence[Line], batch: Batch) -> Fault:
    """The faults of a batch's lanes."""
    action = np.array([line.action for line in lines], np.int32)
    names = byte_rows([line.landmark for line in lines], NAME_BYTES)
    intersection = np.array([line.intersection for line in lines])
    return fetched(_judge(batch.reply, batch.length, action, names, intersection))

"""Scores replies to hands of cards, of any model: the GeneralPoints half of `score_replies`.

A reply must name the cards of its hand where they were seen in a picture: of a line with a
"modality" if that is "vision" and not if it is "language", whatever the task; of any other line
under gp_vl.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from configs import common
from gp_virl.envs import cards
from gp_virl.envs.card_dialogue import CardTexts
from gp_virl.envs.general_points import OUTCOMES, judge, recognizes
from gp_virl.text import replies
from gp_virl.text.prompts import load_wording
from gp_virl.types import CARDS
from launch.reply_lines import Batch, batches, fields_of, spelled

TASKS = ("gp_l", "gp_vl")  # without pictures and with them
MODALITIES = ("language", "vision")
REQUIRED = ("reply", "cards", "rule", "target")
FIELDS = (
    "reply (text), cards (4 symbols), rule, target (integer >= 1); optional: id, modality "
    f"({' or '.join(MODALITIES)})"
)
LARGEST_TARGET = 2**31 - 1


@dataclass(frozen=True)
class Line:
    """One reply to one hand."""

    name: object  # the line's id, or its number
    reply: bytes
    symbols: tuple[str, ...]
    rule: cards.FaceRule
    target: int
    pictured: bool | None  # whether the cards were seen in a picture; None: as the task has it


def read_line(number: int, row: bytes) -> Line:
    """One line of a JSONL file; ValueError says what is wrong with it and what is allowed."""
    given = fields_of(row, REQUIRED, FIELDS)
    reply, symbols, rule, target = (given[name] for name in REQUIRED)
    if not isinstance(symbols, list) or len(symbols) != CARDS:
        raise ValueError(f"cards: given {symbols!r}, allowed: a list of {CARDS} symbols")
    unknown = [symbol for symbol in symbols if symbol not in cards.SYMBOLS]
    if unknown:
        raise ValueError(f"cards: given {unknown!r}, allowed: {', '.join(cards.SYMBOLS)}")
    if type(target) is not int or not 1 <= target <= LARGEST_TARGET:
        raise ValueError(f"target: given {target!r}, allowed: an integer in 1..{LARGEST_TARGET}")
    modality = given.get("modality")
    if "modality" in given and modality not in MODALITIES:
        raise ValueError(f"modality: given {modality!r}, allowed: {', '.join(MODALITIES)}")
    return Line(
        name=given.get("id", number),
        reply=spelled(reply),
        symbols=tuple(symbols),
        rule=cards.face_rule(rule if isinstance(rule, str) else repr(rule)),
        target=target,
        pictured=None if modality is None else modality == "vision",
    )


def score(lines: Sequence[Line], task: str) -> list[dict]:
    """id, outcome, reward and feedback of each line, in order, as gp_l or gp_vl judges them."""
    rewards = {seen: common.study(name, "tiny").env.rewards for seen, name in enumerate(TASKS)}
    pictured = [task == "gp_vl" if line.pictured is None else line.pictured for line in lines]
    wording = load_wording("full")
    scored: list[dict] = [{}] * len(lines)
    for batch in batches([line.reply for line in lines]):
        judged = _judged(
            [lines[row] for row in batch.lanes], batch, [pictured[row] for row in batch.lanes]
        )
        for row, outcome, foreign, unused, value in zip(
            batch.lanes[: batch.kept], *judged, strict=False
        ):
            line, name = lines[row], OUTCOMES[outcome]
            texts = CardTexts(wording, line.rule, line.target)
            named = [[int(number) for number in some if number >= 0] for some in (foreign, unused)]
            scored[row] = {
                "id": line.name,
                "outcome": name,
                "reward": rewards[pictured[row]][name],
                "feedback": texts.feedback_text(name, *named, int(value)),
            }
    return scored


@jax.jit
@jax.vmap
def _judge(reply, length, ranks, values, target, pictured):
    answer = replies.parse(reply, length)
    fault = judge(answer, values, target, recognizes(answer, ranks) | ~pictured)
    return fault.outcome, fault.foreign, fault.unused, fault.value


def _judged(lines: Sequence[Line], batch: Batch, pictured: Sequence[bool]) -> list[np.ndarray]:
    """[outcome, foreign, unused, value] of a batch's lanes."""
    ranks = np.array([[cards.SYMBOLS.index(one) for one in line.symbols] for line in lines])
    rules = np.array([line.rule.values for line in lines], np.int32)
    values = np.take_along_axis(rules, ranks, axis=1)
    target = np.array([line.target for line in lines], np.int32)
    judged = _judge(
        batch.reply, batch.length, ranks.astype(np.int32), values, target, np.array(pictured)
    )
    return [np.asarray(part) for part in judged]

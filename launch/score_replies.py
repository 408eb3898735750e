"""Scores the replies of any model.

    python -m launch.score_replies --task=gp_l|gp_vl IN.jsonl OUT.jsonl

A line of IN: {"reply": "...", "cards": ["10", "4", "K", "2"], "rule": "face_rank", "target": 24},
and an optional "id". `cards` is the hand; under gp_vl the reply must name it too.
A line of OUT: id (else the line's number), outcome, reward, feedback.
"""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from configs import common
from gp_virl.envs import cards
from gp_virl.envs.card_dialogue import CardTexts
from gp_virl.envs.general_points import OUTCOMES, judge, recognizes
from gp_virl.text import replies
from gp_virl.text.prompts import load_wording
from gp_virl.types import CARDS

TASKS = ("gp_l", "gp_vl")
_TASK = flags.DEFINE_enum("task", None, TASKS, "the task that the replies are of", required=True)

REQUIRED = ("reply", "cards", "rule", "target")
FIELDS = "reply (text), cards (4 symbols), rule, target (integer >= 1); optional: id, modality"
SHORTEST, BATCH_BYTES, LARGEST_TARGET = 256, 1 << 20, 2**31 - 1
SHOWN = 20  # errors printed


class BadLines(ValueError):
    """Lines of the input that can't be scored, each with its number."""


@dataclass(frozen=True)
class Line:
    """One reply to one hand."""

    name: object  # the line's id, or its number
    reply: bytes
    symbols: tuple[str, ...]
    rule: cards.FaceRule
    target: int

    @property
    def size(self) -> int:
        """Bytes of the row that holds the reply: a power of four, so that few are compiled."""
        return max(SHORTEST, 1 << -(-(len(self.reply) - 1).bit_length() // 2) * 2)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 3:
        raise app.UsageError("give two files: IN.jsonl OUT.jsonl")
    source, target = map(Path, arguments[1:])
    try:
        lines = read_lines(source.read_bytes())
    except (BadLines, OSError) as error:
        raise app.UsageError(f"{source}: {error}") from error
    write_whole(target, score(lines, _TASK.value))
    print(f"{len(lines)} replies scored: {target}")


def read_lines(content: bytes) -> list[Line]:
    """The lines of a JSONL file, blank ones left out; BadLines lists those that are wrong."""
    lines, problems = [], []
    for number, row in enumerate(content.split(b"\n"), start=1):
        if row.strip():
            try:
                lines.append(_line(number, row))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise BadLines("\n  ".join(["nothing was scored", *problems[:SHOWN], *more]))
    return lines


def _line(number: int, row: bytes) -> Line:
    try:
        given = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"given {row[:60]!r}, not JSON ({error}); fields: {FIELDS}") from None
    if not isinstance(given, dict):
        raise ValueError(f"given {row[:60]!r}, allowed: an object with {FIELDS}")
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; fields: {FIELDS}")
    reply, symbols, rule, target = (given[name] for name in REQUIRED)
    if not isinstance(reply, str):
        raise ValueError(f"reply: given {reply!r}, allowed: a text")
    if not isinstance(symbols, list) or len(symbols) != CARDS:
        raise ValueError(f"cards: given {symbols!r}, allowed: a list of {CARDS} symbols")
    unknown = [symbol for symbol in symbols if symbol not in cards.SYMBOLS]
    if unknown:
        raise ValueError(f"cards: given {unknown!r}, allowed: {', '.join(cards.SYMBOLS)}")
    if type(target) is not int or not 1 <= target <= LARGEST_TARGET:
        raise ValueError(f"target: given {target!r}, allowed: an integer in 1..{LARGEST_TARGET}")
    return Line(
        name=given.get("id", number),
        reply=reply.encode("utf-8", "surrogatepass"),
        symbols=tuple(symbols),
        rule=cards.face_rule(rule if isinstance(rule, str) else repr(rule)),
        target=target,
    )


def score(lines: Sequence[Line], task: str) -> list[dict]:
    """id, outcome, reward and feedback of each line, in order, as the task judges them."""
    rewards = common.study(task, "tiny").env.rewards
    wording = load_wording("full")
    scored: list[dict] = [{}] * len(lines)
    for rows, faults in _judged(lines, pictured=task == "gp_vl"):
        for row, outcome, foreign, unused, value in zip(rows, *faults, strict=False):
            line, name = lines[row], OUTCOMES[outcome]
            texts = CardTexts(wording, line.rule, line.target)
            named = [[int(number) for number in some if number >= 0] for some in (foreign, unused)]
            scored[row] = {
                "id": line.name,
                "outcome": name,
                "reward": rewards[name],
                "feedback": texts.feedback_text(name, *named, int(value)),
            }
    return scored


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, 0, None))
def _judge(reply, length, ranks, values, target, pictured):
    answer = replies.parse(reply, length)
    fault = judge(answer, values, target, recognizes(answer, ranks) | ~pictured)
    return fault.outcome, fault.foreign, fault.unused, fault.value


def _judged(lines: Sequence[Line], pictured: bool):
    """(line indices, [outcome, foreign, unused, value] with padding behind), batch by batch."""
    for size in sorted({line.size for line in lines}):
        rows = [row for row, line in enumerate(lines) if line.size == size]
        batch = max(1, min(BATCH_BYTES // size, 1 << (len(rows) - 1).bit_length()))
        for first in range(0, len(rows), batch):
            some = rows[first : first + batch]
            reply = np.zeros((batch, size), np.uint8)
            length, target = np.zeros(batch, np.int32), np.ones(batch, np.int32)
            ranks, values = np.zeros((2, batch, CARDS), np.int32)
            for lane, row in enumerate(some):
                line = lines[row]
                reply[lane, : len(line.reply)] = np.frombuffer(line.reply, np.uint8)
                length[lane], target[lane] = len(line.reply), line.target
                ranks[lane] = [cards.SYMBOLS.index(symbol) for symbol in line.symbols]
                values[lane] = np.array(line.rule.values)[ranks[lane]]
            judged = _judge(reply, length, ranks, values, target, np.bool_(pictured))
            yield some, [np.asarray(part) for part in judged]


def write_whole(path: Path, rows: Sequence[dict]) -> None:
    """Writes the rows as JSONL; the file is there whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    app.run(main)

"""Lines of replies that are to be scored: read and checked, and laid in rows of bytes."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int, UInt8

from gp_virl.envs.foreign import shown

SHORTEST, BATCH_BYTES = 256, 1 << 20
SHOWN = 20  # errors printed

Line = TypeVar("Line")


class BadLines(ValueError):
    """Lines of the input that can't be scored, each with its number."""


def read_lines(content: bytes, read: Callable[[int, bytes], Line]) -> list[Line]:
    """`read(number, row)` of the rows of a JSONL file, blank ones left out.

    BadLines lists the rows for which it raises ValueError.
    """
    lines, problems = [], []
    for number, row in enumerate(content.split(b"\n"), start=1):
        if row.strip():
            try:
                lines.append(read(number, row))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise BadLines("\n  ".join(["nothing was scored", *problems[:SHOWN], *more]))
    return lines


def fields_of(row: bytes, required: Sequence[str], fields: str) -> dict[str, Any]:
    """The object of a row, whose `reply` is a text; ValueError if it lacks something required.

    `fields` tells people what an object must have.
    """
    try:
        given = json.loads(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"given {row[:60]!r}, not JSON ({error}); fields: {fields}") from None
    if not isinstance(given, dict):
        raise ValueError(f"given {row[:60]!r}, allowed: an object with {fields}")
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; fields: {fields}")
    if not isinstance(given["reply"], str):
        raise ValueError(f"reply: given {shown(given['reply'])}, allowed: a text")
    return given


def spelled(reply: str) -> bytes:
    """The bytes of a reply, half of a surrogate pair included."""
    return reply.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Batch:
    """Replies of about one length; lanes beyond the `kept` ones repeat the first."""

    lanes: tuple[int, ...]  # the number of each lane's reply
    kept: int
    reply: UInt8[np.ndarray, "B L"]  # zeros behind
    length: Int[np.ndarray, "B"]


def batches(replies: Sequence[bytes]) -> Iterator[Batch]:
    """Every reply once, in batches of few different shapes, so that few programs are compiled."""
    sizes = [_row_size(reply) for reply in replies]
    for size in sorted(set(sizes)):
        rows = [row for row, one in enumerate(sizes) if one == size]
        count = max(1, min(BATCH_BYTES // size, 1 << (len(rows) - 1).bit_length()))
        for first in range(0, len(rows), count):
            some = rows[first : first + count]
            lanes = (*some, *some[:1] * (count - len(some)))
            reply = np.zeros((count, size), np.uint8)
            for lane, row in enumerate(lanes):
                reply[lane, : len(replies[row])] = np.frombuffer(replies[row], np.uint8)
            length = np.array([len(replies[row]) for row in lanes], np.int32)
            yield Batch(lanes, len(some), reply, length)


def _row_size(reply: bytes) -> int:
    """Bytes of the row that holds the reply: a power of four."""
    return max(SHORTEST, 1 << -(-(len(reply) - 1).bit_length() // 2) * 2)

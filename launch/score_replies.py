"""Scores the replies of any model.

    python -m launch.score_replies --task=gp_l|gp_vl|virl_l|virl_vl IN.jsonl OUT.jsonl

A line of IN, of the card game: {"reply": "...", "cards": ["10", "4", "K", "2"], "rule":
"face_rank", "target": 24}; `cards` is the hand, which under gp_vl the reply must name too. Of
navigation: {"reply": "...", "expert_action": "turn_direction(north)", "observation": "Prince St is
on your front", "intersection": true}; `observation` is what there is to see: that, the same after
"The destination", or "No landmarks nearby", and a destination is no intersection. An "id" is
optional. A line of OUT: id (else the line's number), outcome, reward, feedback.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from launch import score_cards, score_routes
from launch.reply_lines import BadLines, read_lines


class Judge(NamedTuple):
    """How the replies of a task are read and scored."""

    read_line: Callable
    score: Callable[[Sequence], list[dict]]


JUDGES = {
    "gp_l": Judge(score_cards.read_line, functools.partial(score_cards.score, task="gp_l")),
    "gp_vl": Judge(score_cards.read_line, functools.partial(score_cards.score, task="gp_vl")),
    "virl_l": Judge(score_routes.read_line, score_routes.score),
    "virl_vl": Judge(score_routes.read_line, score_routes.score),
}
_TASK = flags.DEFINE_enum("task", None, list(JUDGES), "what the replies are of", required=True)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 3:
        raise app.UsageError("give two files: IN.jsonl OUT.jsonl")
    source, target = map(Path, arguments[1:])
    if target.is_dir() or not target.parent.is_dir():
        what = "a folder" if target.is_dir() else "a file in a folder that is not there"
        raise app.UsageError(f"OUT: given {target}, {what}; allowed: a file in an existing folder")
    judge = JUDGES[_TASK.value]
    try:
        lines = read_lines(source.read_bytes(), judge.read_line)
    except (BadLines, OSError) as error:
        raise app.UsageError(f"{source}: {error}") from error
    if not lines:
        raise app.UsageError(f"{source}: no line to score is there, allowed: at least one")
    write_whole(target, judge.score(lines))
    print(f"{len(lines)} replies scored: {target}")


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

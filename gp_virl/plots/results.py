"""Evaluation results of runs as tidy records, read from metrics.jsonl or summary.json.

A run directory holds metrics.jsonl; its lines with kind "eval" are the records. summary.json holds
the same records in its list `results`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from gp_virl.places import Place, place, read_text

BRANCHES = ("init", "sft", "sft_matched", "rl")
SPLITS = ("id", "rule_ood", "visual_ood", "id_held_out")
DECODINGS = ("greedy", "sampled")


class ResultsError(ValueError):
    """A results file is missing, malformed, or contradicts itself."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One number measured at one point of one branch.

    `sft_matched` is SFT at PPO's learning rate. `tries` is how many replies an episode allowed,
    `updates` the branch's own optimiser updates, `compute_flops` all training compute since the
    very start, that of Init included. `low` and `high` are the Wilson interval of `value`.
    """

    branch: str
    split: str
    metric: str
    tries: int
    decoding: str
    value: float
    n: int
    low: float
    high: float
    compute_flops: float
    updates: int
    seed: int

    @property
    def place(self) -> tuple:
        """What tells this measurement from all others."""
        return (
            *(self.branch, self.split, self.metric, self.tries, self.decoding),
            *(self.updates, self.seed),
        )


FIELDS = {field.name: field.type for field in dataclasses.fields(Record)}
ALLOWED = {"branch": BRANCHES, "split": SPLITS, "decoding": DECODINGS}


def record(entry: Mapping[str, Any], where: str = "record") -> Record:
    """The Record of a JSON object; other fields are ignored.

    Raises ResultsError, beginning with `where`, that names every missing or impossible field.
    """
    wrong = [f"{name} is missing" for name in FIELDS if name not in entry]
    wrong += [
        complaint
        for name, kind in FIELDS.items()
        if name in entry and (complaint := _complaint(name, kind, entry[name]))
    ]
    if wrong:
        raise ResultsError(f"{where}: {'; '.join(wrong)}")
    return Record(**{name: kind(entry[name]) for name, kind in FIELDS.items()})


def read_metrics(path: str | Place) -> list[Record]:
    """The evaluation records of a metrics.jsonl, in its order; a cut last line is ignored.

    Raises ResultsError if the file is missing or any other line is malformed.
    """
    records = []
    for where, entry in json_lines(place(path)):
        if "kind" not in entry:
            raise ResultsError(f"{where}: a line needs a 'kind'")
        if entry["kind"] == "eval":
            records.append(record(entry, where))
    return records


def read_summary(path: str | Place) -> list[Record]:
    """The records in the list `results` of a summary.json. Raises ResultsError."""
    try:
        summary = json.loads(place(path).read_bytes())
    except FileNotFoundError as missing:
        raise ResultsError(f"{path} is not there; run the study first") from missing
    except ValueError as broken:
        raise ResultsError(f"{path} is not JSON: {broken}") from broken
    results = summary.get("results") if isinstance(summary, dict) else None
    if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
        raise ResultsError(f"{path}: 'results' must be a list of records")
    return distinct(record(entry, f"{path}, results[{i}]") for i, entry in enumerate(results))


def read_runs(directories: Iterable[str | Place]) -> list[Record]:
    """All evaluation records of run directories, each from its metrics.jsonl alone.

    Raises ResultsError if there are none, or if two measure the same thing with another result.
    """
    directories = [place(directory) for directory in directories]
    files = [directory / "metrics.jsonl" for directory in directories]
    records = distinct(one for file in files for one in read_metrics(file))
    if not records:
        raise ResultsError(f"no line of kind 'eval' in {', '.join(map(str, files))}")
    return records


def distinct(records: Iterable[Record]) -> list[Record]:
    """The records with exact repetitions dropped; raises ResultsError if two contradict."""
    first: dict[tuple, Record] = {}
    for one in records:
        before = first.setdefault(one.place, one)
        if before != one:
            raise ResultsError(
                f"two results for {dict(zip(PLACE_NAMES, one.place, strict=True))}: {before.value} "
                f"and {one.value}; give runs of different seeds, or a single one"
            )
    return list(first.values())


PLACE_NAMES = ("branch", "split", "metric", "tries", "decoding", "updates", "seed")


def json_lines(path: Place) -> list[tuple[str, dict[str, Any]]]:
    """(place, object) of each line of a JSONL file; a last line without its end is ignored.

    Raises ResultsError if the file is missing or a line is not a JSON object.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError) as missing:
        raise ResultsError(
            f"{path} is not there; give the directory of a finished run"
        ) from missing
    # Not splitlines: a JSON string may hold U+2028 and the like.
    whole, _, _ = text.rpartition("\n")
    entries = []
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as broken:
            raise ResultsError(f"{where}: not JSON: {line[:60]!r}") from broken
        if not isinstance(entry, dict):
            raise ResultsError(f"{where}: not a JSON object: {line[:60]!r}")
        entries.append((where, entry))
    return entries


def _complaint(name: str, kind: type, value: Any) -> str | None:
    """Why `value` can't be the field `name`; None if it can."""
    accepted = {str: str, int: int, float: int | float}[kind]
    if not isinstance(value, accepted) or isinstance(value, bool):
        return f"{name} must be {kind.__name__}, not {value!r}"
    if name in ALLOWED and value not in ALLOWED[name]:
        return f"{name} must be one of {', '.join(ALLOWED[name])}, not {value!r}"
    if name in ("value", "low", "high") and not 0 <= value <= 1:
        return f"{name} must be a share in [0, 1], not {value!r}"
    if name in ("n", "tries") and value < 1:
        return f"{name} must be at least 1, not {value!r}"
    if name in ("compute_flops", "updates") and not (0 <= value < math.inf):
        return f"{name} must be at least 0 and finite, not {value!r}"
    return None

"""Tallies that sum, and the append-only record of a run, metrics.jsonl.

A record is one JSON object on one line. Its `kind` says what it is: "eval" for one tidy evaluation
record (fields in gp_virl/plots/results.py), "sft" or "ppo" for the scalars of one training step.
In a bucket, where nothing can be appended, the file is written anew from time to time.
"""

import dataclasses
import importlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Shaped

from gp_virl.places import Place, is_local, place, write_whole

STORED_EVERY = 30.0  # seconds between writes of a whole file to a bucket


class MetricsError(ValueError):
    """A record, a metrics file or a sink that can't be used as asked."""


@struct.dataclass
class Tally:
    """Named weighted sums. Adding two tallies gives the tally of both batches together."""

    sums: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]  # name -> (sum of w * x, sum of w)


def tally(**entries: tuple[Shaped[Array, "..."], Shaped[Array, "..."]]) -> Tally:
    """The Tally of `name=(values, weights)`, summed in float32; a mask is a weight of 0 or 1.

    Values and weights broadcast against each other. A value whose weight is 0 is left out even
    when it is not finite.
    """
    return Tally({name: _weighed(*entry) for name, entry in entries.items()})


def merge(*tallies: Tally) -> Tally:
    """The tally of everything in `tallies`; a name that some of them lack counts as 0 there."""
    sums: dict[str, tuple[Array, Array]] = {}
    for one in tallies:
        for name, (total, weight) in one.sums.items():
            before_total, before_weight = sums.get(name, (0.0, 0.0))
            sums[name] = (before_total + total, before_weight + weight)
    return Tally(sums)


def means(counted: Tally) -> dict[str, float]:
    """Mean by name, as Python floats; NaN where nothing was counted."""
    read = {name: (float(total), float(weight)) for name, (total, weight) in counted.sums.items()}
    return {name: total / weight if weight else math.nan for name, (total, weight) in read.items()}


@dataclasses.dataclass(frozen=True)
class JsonlWriter:
    """Appends records to `path`; does nothing where `writes` is False. Made by `jsonl_writer`."""

    path: Path
    writes: bool

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record in a single write, so that a kill leaves at most one partial line.

        Arrays of no dimension become numbers and numbers that are not finite become null. Raises
        MetricsError if the record has no `kind` or a field can't be written.
        """
        if not self.writes:
            return
        line = _line(record) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def truncate(self, after: int, **match: Any) -> int:
        """How many records were dropped: those that equal `match` and lie after step `after`.

        A record lies at its `step`, or else at its `updates`; one with neither stays. On resuming
        from a checkpoint this forgets what was logged between the checkpoint and the kill. The
        file is replaced in one move.
        """
        if not self.writes or not self.path.exists():
            return 0
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not _lies_after(json.loads(line), after, match)]
        if len(kept) < len(lines):
            write_whole(self.path, _text(kept))
        return len(lines) - len(kept)

    def flush(self) -> None:
        """Nothing is left to write."""


class StoredJsonlWriter:
    """The same in a bucket: all records are held, and the file is written whole.

    That happens at the first record after `every` seconds, and when `flush` asks for it: before a
    checkpoint, so that a run which goes on from there finds all that came before. What a kill
    loses came after the checkpoint. Made by `jsonl_writer`.
    """

    def __init__(self, path: Place, writes: bool, every: float = STORED_EVERY) -> None:
        self.path, self.writes, self._every = path, writes, every
        self._lines = _whole_lines(path) if writes else []
        self._unwritten, self._written = False, time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        """Takes a record, as `JsonlWriter.write` does."""
        if not self.writes:
            return
        self._lines.append(_line(record))
        self._unwritten = True
        if time.monotonic() - self._written >= self._every:
            self.flush()

    def truncate(self, after: int, **match: Any) -> int:
        """As `JsonlWriter.truncate`."""
        kept = [line for line in self._lines if not _lies_after(json.loads(line), after, match)]
        dropped = len(self._lines) - len(kept)
        if dropped:
            self._lines, self._unwritten = kept, True
            self.flush()
        return dropped

    def flush(self) -> None:
        """Writes the file if it lacks records."""
        if self._unwritten:
            write_whole(self.path, _text(self._lines))
            self._unwritten, self._written = False, time.monotonic()


def jsonl_writer(path: str | Place, process_index: int = 0) -> JsonlWriter | StoredJsonlWriter:
    """A writer on `path` that keeps the records already there; only process 0 writes.

    A last line that a kill cut short is dropped. Raises MetricsError if any other line is not a
    JSON object.
    """
    found, writes = place(path), process_index == 0
    if not isinstance(found, Path):
        return StoredJsonlWriter(found, writes)
    if writes:
        found.parent.mkdir(parents=True, exist_ok=True)
        _drop_partial_line(found)
    return JsonlWriter(found, writes)


@dataclasses.dataclass(frozen=True)
class TensorBoardWriter:
    """Shows records as TensorBoard scalars. Made by `tensorboard_writer`."""

    sink: Any  # a SummaryWriter; None off process 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds every number of a record that has a `step`, under kind/branch/name."""
        if self.sink is None or "step" not in record:
            return
        under = "/".join(str(record[key]) for key in ("kind", "branch") if key in record)
        for name, value in record.items():
            value = _plain(name, value)
            if name not in ("step", "seed") and isinstance(value, int | float):
                self.sink.add_scalar(f"{under}/{name}", value, int(record["step"]))


def tensorboard_writer(directory: str | Place, process_index: int = 0) -> TensorBoardWriter:
    """A writer of TensorBoard event files; only process 0 writes.

    Raises MetricsError, with the command that helps, if tensorboardX is not installed.
    """
    if process_index != 0:
        return TensorBoardWriter(None)
    try:
        package = importlib.import_module("tensorboardX")
    except ImportError as missing:
        raise MetricsError(
            "TensorBoard output was asked for, but tensorboardX is not installed: "
            "pip install -e '.[tensorboard]', or turn TensorBoard off"
        ) from missing
    return TensorBoardWriter(package.SummaryWriter(str(directory)))


@dataclasses.dataclass(frozen=True)
class WandbWriter:
    """Sends records to Weights & Biases. Made by `wandb_writer`."""

    run: Any  # of the wandb package; None off process 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Logs every number of a record under kind/branch/name, with its step beside it."""
        if self.run is None:
            return
        under = "/".join(str(record[key]) for key in ("kind", "branch") if key in record)
        plain = {name: _plain(name, value) for name, value in record.items()}
        self.run.log({f"{under}/{n}": v for n, v in plain.items() if isinstance(v, int | float)})


def wandb_writer(directory: str | Place, process_index: int = 0) -> WandbWriter:
    """A writer to a Weights & Biases run of the directory's name; only process 0 writes.

    Raises MetricsError, with the command that helps, if wandb is not installed.
    """
    if process_index != 0:
        return WandbWriter(None)
    try:
        package = importlib.import_module("wandb")
    except ImportError as missing:
        raise MetricsError(
            "Weights & Biases output was asked for, but wandb is not installed: "
            "pip install -e '.[wandb]', or turn it off"
        ) from missing
    kept = str(directory) if is_local(directory) else None  # it keeps files on this machine alone
    return WandbWriter(package.init(dir=kept, name=place(directory).name))


@dataclasses.dataclass(frozen=True)
class RunWriter:
    """A run's metrics.jsonl and whatever else shows its records. Made by `run_writer`."""

    record: JsonlWriter | StoredJsonlWriter
    shows: tuple[TensorBoardWriter | WandbWriter, ...]

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes to metrics.jsonl and to every show."""
        self.record.write(record)
        for show in self.shows:
            show.write(record)

    def truncate(self, after: int, **match: Any) -> int:
        """As `JsonlWriter.truncate`; shows keep what they have."""
        return self.record.truncate(after, **match)

    def flush(self) -> None:
        """Returns once all records lie in metrics.jsonl; called before a checkpoint is kept."""
        self.record.flush()


SHOWS = {"tensorboard": tensorboard_writer, "wandb": wandb_writer}


def run_writer(
    directory: str | Place, shows: Sequence[str] = (), process_index: int = 0
) -> RunWriter:
    """The writer of a run directory; `shows` are names of SHOWS.

    Raises MetricsError for another name or where its package is not installed.
    """
    unknown = sorted(set(shows) - SHOWS.keys())
    if unknown:
        raise MetricsError(f"given {', '.join(unknown)}; allowed: {', '.join(SHOWS)}")
    home = place(directory)
    made = tuple(SHOWS[name](home / name, process_index) for name in shows)
    return RunWriter(jsonl_writer(home / "metrics.jsonl", process_index), made)


def _weighed(
    values: Shaped[Array, "..."], weights: Shaped[Array, "..."]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    values, weights = jnp.broadcast_arrays(values, weights)
    weights = weights.astype(jnp.float32)
    values = jnp.where(weights == 0, 0.0, values.astype(jnp.float32))
    return jnp.sum(values * weights), jnp.sum(weights)


def _line(record: Mapping[str, Any]) -> str:
    """A record as JSON; raises MetricsError where that can't be."""
    if "kind" not in record:
        raise MetricsError(f'a record needs a "kind"; its fields are {sorted(record)}')
    plain = {name: _plain(name, value) for name, value in record.items()}
    return json.dumps(plain, allow_nan=False)


def _text(lines: Sequence[str]) -> str:
    return "".join(line + "\n" for line in lines)


def _plain(name: str, value: Any) -> Any:
    """`value` as JSON holds it: arrays without dimensions as numbers, NaN and infinities as None.

    Raises MetricsError for anything JSON can't hold.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    try:
        number = np.asarray(value).item()
    except (TypeError, ValueError) as wrong:
        raise MetricsError(f"field {name!r}: one number is needed, not {value!r}") from wrong
    if not isinstance(number, bool | int | float):
        raise MetricsError(f"field {name!r}: {type(value).__name__} is not a JSON value")
    return number if math.isfinite(number) else None


def _lies_after(record: Mapping[str, Any], after: int, match: Mapping[str, Any]) -> bool:
    step = record.get("step", record.get("updates"))
    matches = all(record.get(name) == value for name, value in match.items())
    return matches and step is not None and step > after


def _whole_lines(path: Place) -> list[str]:
    """The lines of a file, without a last one that is cut; none where there is no file.

    Raises MetricsError if an earlier one is not a JSON object.
    """
    if not path.exists():
        return []
    found = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\n") and _is_object(line):
            found.append(line.decode().removesuffix("\n"))
        elif number < len(lines):
            raise MetricsError(
                f"{path}, line {number}: not a JSON object: {line[:80]!r}; repair or delete it"
            )
    return found


def _drop_partial_line(path: Path) -> None:
    """Cuts the file after its last whole record; raises MetricsError if an earlier one is bad."""
    kept = len(_text(_whole_lines(path)).encode())
    if path.exists() and kept < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(kept)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

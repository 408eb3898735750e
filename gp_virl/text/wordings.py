"""Wordings by name or from a user's file: `prompts.Wording` and `route_prompts.RouteWording`."""

import dataclasses
import json
import pathlib
import tomllib
from collections.abc import Mapping
from typing import TypeVar

from gp_virl.text.template import SLOT

Kind = TypeVar("Kind")


def load(name_or_path: str, kind: type[Kind], known: Mapping[str, Kind]) -> Kind:
    """The known wording of that name, or that of a .json or .toml file with the kind's fields.

    ValueError names the fields or slots that are missing, unknown or wrong, and those allowed.
    """
    if name_or_path in known:
        return known[name_or_path]
    path = pathlib.Path(name_or_path)
    readers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers or not path.is_file():
        raise ValueError(
            f"no wording {name_or_path!r}; give one of {', '.join(map(repr, known))}, or the "
            "path of an existing .json or .toml file with the fields of a wording"
        )
    try:
        fields = readers[path.suffix](path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as {path.suffix[1:].upper()}: {error}") from error
    return from_fields(fields, str(path), kind)


def from_fields(fields: object, where: str, kind: type[Kind]) -> Kind:
    """A wording from a mapping of all its fields; ValueError names what is wrong in `where`."""
    known = dataclasses.fields(kind)
    allowed = [field.name for field in known]
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where}: must be a table with the fields {', '.join(allowed)}")
    unknown, missing = sorted(set(fields) - set(allowed)), sorted(set(allowed) - set(fields))
    if unknown or missing:
        raise ValueError(
            f"{where}: unknown fields {unknown}, missing fields {missing}; "
            f"a wording has exactly the fields {', '.join(allowed)}"
        )
    for field in known:
        if type(fields[field.name]) is not field.type:
            raise ValueError(
                f"{where}: wording field {field.name!r} is {fields[field.name]!r}, must be "
                f"{field.type.__name__}"
            )
    try:
        return kind(**fields)
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from error


def put(text: str, **values: object) -> str:
    """`text` with these slots filled; others and any other brace stay as they are."""
    return SLOT.sub(lambda slot: str(values.get(slot[1], slot[0])), text)

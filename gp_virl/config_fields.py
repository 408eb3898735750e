"""Fields of a configuration, and dataclasses of them built from what a user gave.

Nothing is raised here: every wrong key and value becomes a line that says what is allowed.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any


def choice(*allowed: str):
    """A field that must be one of the given values."""
    return field(
        metadata={"test": lambda v: v in allowed, "allowed": "one of " + ", ".join(allowed)}
    )


def at_least(low: int | float):
    """A number field that must be >= low."""
    return field(metadata={"test": lambda v: v >= low, "allowed": f"a number >= {low}"})


def above(low: int | float):
    """A number field that must be > low."""
    return field(metadata={"test": lambda v: v > low, "allowed": f"a number > {low}"})


def between(low: int | float, high: int | float):
    """A number field in [low, high]."""
    return field(metadata={"test": lambda v: low <= v <= high, "allowed": f"in [{low}, {high}]"})


def unknown(path: str, name: str, known: Iterable[str]) -> str:
    """What is said of a name that is not among `known`."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{path}: unknown{hint}; allowed: {', '.join(known)}"


def built(
    kind: type,
    given: Any,
    path: str,
    problems: list[str],
    settled: Mapping[str, type] | None = None,
) -> Any:
    """The dataclass `kind` of a section's values; None, and more `problems`, where any is wrong.

    `path` is the section's name in messages; `settled` tells the class of fields that have several.
    """
    if not isinstance(given, Mapping) and not hasattr(given, "items"):
        problems.append(f"{path}: given {given!r}, allowed: a section with {_names(kind)}")
        return None
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types, before = typing.get_type_hints(kind) | dict(settled or {}), len(problems)
    for key in given:
        if key not in fields:
            problems.append(unknown(f"{path}.{key}", key, fields))
    values = {}
    for name, spec in fields.items():
        if name not in given:
            problems.append(f"{path}.{name}: missing; it is {expected(spec, types[name])}")
        elif dataclasses.is_dataclass(types[name]):
            values[name] = built(types[name], given[name], f"{path}.{name}", problems)
        else:
            values[name] = _checked(given[name], spec, types[name], f"{path}.{name}", problems)
    return kind(**values) if len(problems) == before else None


def _checked(value, spec, kind, path: str, problems: list[str]):
    if kind is float and type(value) is int:
        value = float(value)
    if kind is dict:
        value = value.to_dict() if hasattr(value, "to_dict") else value
    if type(value) is not kind or not spec.metadata.get("test", lambda v: True)(value):
        problems.append(f"{path}: given {value!r}, allowed: {expected(spec, kind)}")
    return value


def expected(spec: dataclasses.Field, kind: Any) -> str:
    """What a field of that kind may hold, in words."""
    if dataclasses.is_dataclass(kind):
        return f"a section with {_names(kind)}"
    if typing.get_args(kind):
        return " or ".join(expected(spec, one) for one in typing.get_args(kind))
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a text"}
    return spec.metadata.get("allowed", names.get(kind, kind.__name__))


def _names(kind) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind))

"""Conversations in LLaVA's JSON form, as the released SFT data have it: a source for the pipeline.

A file is a list of {"conversations": [{"from": "human" or "gpt", "value": text}, ...], "image":
path or list with one path}. All of the model's turns are trained. Files are data from strangers:
every entry is checked before any is used. Pictures stay in their files until they are asked for.

    source = llava_json.read("SFT_Data/gp-l/data.json")
    talks = pipeline.tokenized(source, tokenizer)
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, SupportsIndex

from gp_virl.envs.foreign import shown
from gp_virl.text.template import IMAGE

ROLES = ("human", "gpt")  # in turns
PLACEHOLDER = "<image>"
SHOWN = 20  # problems that a message tells; all are in `problems`
_LEADING = re.compile(rf"(\s*{PLACEHOLDER})+\s*")
_SPECIAL = re.compile(r"<\|\w+\|>")


class LlavaError(ValueError):
    """A file that can't be used; `problems` are all of them, each naming its entry and field."""

    def __init__(self, source: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - SHOWN
        rest = [f"... and {more} more"] if more > 0 else []
        lines = [f"{source}: no conversation was read", *self.problems[:SHOWN], *rest]
        super().__init__("\n  ".join(lines))


@dataclass(frozen=True)
class Entry(Mapping):
    """An example: `contents`, user first, which replies are `trained`, and perhaps an `image`.

    The picture's file is read whenever `image` is; OSError if it can't be.
    """

    contents: tuple[str, ...]
    picture: Path | None

    def __getitem__(self, field: str) -> Any:
        if field == "image" and self.picture is not None:
            return self.picture.read_bytes()
        return {"contents": self.contents, "trained": "all"}[field]

    def __iter__(self) -> Iterator[str]:
        yield from ("contents", "trained", *(["image"] if self.picture else []))

    def __len__(self) -> int:
        return 2 + (self.picture is not None)


@dataclass(frozen=True, eq=False)
class LlavaConversations:
    """The entries of a file, for random access."""

    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: SupportsIndex) -> Entry:
        return self.entries[index]


def read(path: str | Path, images: str | Path | None = None) -> LlavaConversations:
    """The conversations of a JSON file; pictures' paths are relative to `images`, or to its folder.

    LlavaError with all that is wrong: entries are counted from 0.
    """
    path = Path(path)
    folder = path.parent if images is None else Path(images)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as wrong:
        raise LlavaError(path, [f"{wrong}; give the path of a JSON file"]) from wrong
    except (ValueError, RecursionError) as wrong:
        raise LlavaError(path, [f"not JSON ({wrong})"]) from wrong
    if not isinstance(data, list) or not data:
        given = type(data).__name__ if not isinstance(data, list) else "an empty list"
        raise LlavaError(path, [f"given {given}, allowed: a list of at least one entry"])
    entries, problems = [], []
    for number, item in enumerate(data):
        found: list[str] = []
        entries.append(_entry(item, folder, found))
        problems += [f"entry {number}: {problem}" for problem in found]
    problems += _mixed(data) if not problems else []
    if problems:
        raise LlavaError(path, problems)
    return LlavaConversations(tuple(entries))


def _mixed(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """A problem for each entry without an image in a file of entries with images."""
    bare = [number for number, item in enumerate(data) if not item.get("image")]
    if len(bare) == len(data):
        return []
    return [
        f"entry {number}: image: given none, allowed: one in every entry, or in no entry"
        for number in bare
    ]


def _entry(item: object, folder: Path, problems: list[str]) -> Entry | None:
    """The entry; None, and what is wrong in `problems`, if it can't be used."""
    if not isinstance(item, dict):
        problems.append(f"given {type(item).__name__}, allowed: an object with conversations")
        return None
    picture = _picture(item.get("image"), folder, problems)
    texts = _texts(item.get("conversations"), bool(item.get("image")), problems)
    if problems:
        return None
    head = IMAGE if picture else ""
    return Entry((head + texts[0], *texts[1:]), picture)


def _picture(given: object, folder: Path, problems: list[str]) -> Path | None:
    """The file of an entry's picture; None where it has none."""
    if given is None or given == [] or given == "":
        return None
    names = given if isinstance(given, list) else [given]
    if len(names) > 1:
        problems.append(f"image: given {len(names)} paths, allowed: one picture per conversation")
        return None
    name = names[0]
    steps = PurePosixPath(name.replace("\\", "/")) if isinstance(name, str) else None
    if steps is None or steps.is_absolute() or ".." in steps.parts:
        problems.append(f"image: given {shown(name)}, allowed: a path inside {folder}")
        return None
    if not os.path.isfile(folder / name):  # unlike Path.is_file it never raises
        problems.append(
            f"image: given {shown(name)}, but {folder / name} is no file; give the folder that the "
            "paths are relative to"
        )
    return folder / name


def _texts(given: object, pictured: bool, problems: list[str]) -> list[str]:
    """The turns' texts, without placeholders and outer blanks, which chat templates trim."""
    if not isinstance(given, list) or not given:
        told = "an empty list" if given == [] else type(given).__name__
        problems.append(f"conversations: given {told}, allowed: a list of turns")
        return []
    if len(given) % 2:
        problems.append(f"conversations: given {len(given)} turns, allowed: pairs of human and gpt")
    return [_text(turn, number, pictured, problems) for number, turn in enumerate(given)]


def _text(turn: object, number: int, pictured: bool, problems: list[str]) -> str:
    where = f"conversations[{number}]"
    if not isinstance(turn, dict):
        problems.append(f"{where}: given {type(turn).__name__}, allowed: an object")
        return ""
    role, text = ROLES[number % 2], turn.get("value")
    if turn.get("from") != role:
        problems.append(f"{where}.from: given {shown(turn.get('from'))}, allowed here: {role!r}")
    if not isinstance(text, str):
        problems.append(f"{where}.value: given {type(text).__name__}, allowed: a text")
        return ""
    kept = text
    if role == "human" and (leading := _LEADING.match(text)):
        kept = text[leading.end() :]
        if not pictured:
            problems.append(f"{where}.value: given {PLACEHOLDER}, but the entry has no image")
    if role == "human" and PLACEHOLDER in kept:
        problems.append(
            f"{where}.value: given {PLACEHOLDER} within the text, allowed: at its start"
        )
    if not _is_unicode(text):
        problems.append(f"{where}.value: given half of a surrogate pair, allowed: valid Unicode")
    if special := _SPECIAL.search(kept):
        problems.append(
            f"{where}.value: given {special[0]}, which a tokenizer may read as the end of a turn "
            "or as a picture; allowed: plain text"
        )
    if not kept.strip():
        problems.append(f"{where}.value: given no text, allowed: some")
    return kept.strip()


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)

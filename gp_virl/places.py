"""Where runs are kept: directories of this machine, or of a bucket, such as gs://bucket/run.

Orbax reads and writes buckets through etils' paths, and so does all else here.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from etils import epath

Place = Path | epath.Path


SCHEME = "gs://"  # Orbax stores arrays in Google's buckets, and in no others


class PlaceError(ValueError):
    """A name that no run can be kept under."""


def place(name: str | os.PathLike[str]) -> Place:
    """The path of that name: pathlib's on this machine, etils' where the name is a URL.

    Raises PlaceError for URLs but gs://, and for those where what reads them isn't installed.
    """
    if isinstance(name, Place):
        return name
    text = os.fspath(name)
    if "://" not in text:
        return Path(name)
    if not text.startswith(SCHEME):
        raise PlaceError(f"given {text}; allowed: a directory, or {SCHEME}BUCKET/DIRECTORY")
    if not (find_spec("gcsfs") or find_spec("tensorflow")):
        raise PlaceError(f"given {text}, for which gcsfs is needed: pip install -e '.[gcs]'")
    return epath.Path(text)


def is_local(where: str | os.PathLike[str]) -> bool:
    """Whether the place is on a file system of this machine, mounted ones included.

    A bucket's files are written whole: they can't be appended to, nor moved.
    """
    return isinstance(place(where), Path)


def write_whole(path: Place, content: str | bytes) -> None:
    """Writes a file, and its directories, in one move: it is there whole or not at all.

    Text is UTF-8. A bucket does the same by itself: what is written appears when it is complete.
    """
    data = content.encode() if isinstance(content, str) else content
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(data)
    os.replace(beside, path)


def read_text(path: Place) -> str:
    """The text of a file, in which bytes that are not UTF-8 are replaced."""
    return path.read_bytes().decode("utf-8", errors="replace")

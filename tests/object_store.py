"""A bucket that isn't there: gs:// paths end in a directory, through the layers that reach Google.

As in a real one, files are written whole, can't be appended to or moved, and there are no
directories but the beginnings of names. Orbax's arrays, which TensorStore writes without the paths
of Python, go to the same directory.
"""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils

from gp_virl import places


class Store(DirFileSystem):
    """All buckets, each a directory under `root`; `written` holds the names of files, in order."""

    protocol = ("gs", "gcs")

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), LocalFileSystem(auto_mkdir=True), skip_instance_cache=True)
        self.root, self.written = root, []

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode not in ("r", "rb", "w", "wb"):
            raise ValueError(f"a store can't open files for {mode!r}")
        if "w" in mode:
            self.written.append(path)
        return super().open(path, mode, **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing is to be made."""

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Nothing is to be made."""

    def isdir(self, path: str) -> bool:
        found = self.root / self._strip_protocol(path)
        return any(one.is_file() for one in found.rglob("*"))

    def exists(self, path: str, **options: Any) -> bool:
        return (self.root / self._strip_protocol(path)).is_file() or self.isdir(path)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        raise ValueError("a store can't move files")


def opened(root: Path, patch: Callable[[Any, str, Any], None] = setattr) -> Store:
    """The store behind gs://, from now on."""
    made = Store(root)

    def kept(url: str) -> dict[str, str]:
        return {"driver": "file", "path": str(made.root / url.removeprefix("gs://"))}

    patch(places, "find_spec", lambda name: name)  # nothing has to be installed
    bucket = types.SimpleNamespace(hierarchical_namespace_enabled=False)
    patch(backend.fsspec_backend, "fs", lambda _: made)
    patch(gcs_utils, "get_kvstore_for_gcs", kept)
    patch(gcs_utils, "get_bucket", lambda _: bucket)
    return made


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, empty, while a test runs."""
    return opened(tmp_path / "store", monkeypatch.setattr)

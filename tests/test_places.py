"""Places on this machine and in an object store."""

from pathlib import Path

import pytest
from etils import epath

from gp_virl import places
from gp_virl.places import PlaceError, is_local, place, read_text, write_whole
from tests.object_store import Store, store  # noqa: F401 - a fixture


@pytest.mark.parametrize("name", ["runs/x", "/tmp/x", "x", Path("runs/x")])
def test_names_without_a_scheme_are_on_this_machine(name: str | Path) -> None:
    assert place(name) == Path(name) and is_local(name)


@pytest.mark.parametrize("name", ["gs://bucket/run", epath.Path("gs://bucket/run")])
def test_a_url_keeps_its_scheme_and_joins_like_a_path(
    name: str | epath.Path, store: Store  # noqa: F811
) -> None:  # fmt: skip
    found = place(name)
    assert not is_local(name)
    assert str(found / "seed0" / "rl") == "gs://bucket/run/seed0/rl"
    assert place(found) is found


@pytest.mark.parametrize("name", ["s3://bucket/run", "memory://run", "http://host/run"])
def test_other_urls_are_refused(name: str) -> None:
    with pytest.raises(PlaceError, match="gs://BUCKET"):
        place(name)


def test_what_a_url_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "find_spec", lambda _: None)
    with pytest.raises(PlaceError, match=r"pip install -e '\.\[gcs\]'"):
        place("gs://bucket/run")


def test_a_file_is_replaced_in_one_move(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, "first\u2028")
    assert read_text(path) == "first\u2028"
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_whole(path, b"second")
    assert path.read_bytes() == "first\u2028".encode()
    write_whole(path, b"second\xff")
    assert read_text(path) == "second\ufffd"
    assert list(path.parent.iterdir()) == [path]


def test_a_store_takes_a_file_as_it_is(store: Store) -> None:  # noqa: F811
    path = place("gs://bucket/run/seed0/talk.jsonl")
    assert not path.exists()
    write_whole(path, "a\n")
    write_whole(path, "b\n")
    assert read_text(path) == "b\n"
    assert store.written == [str(path)] * 2
    assert list(place("gs://bucket/run").glob("seed*/talk.jsonl")) == [path]

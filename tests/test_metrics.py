"""Tallies against plain loops; the metrics file against kills and resumes."""

import json
import math
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.metrics import (
    MetricsError,
    StoredJsonlWriter,
    Tally,
    jsonl_writer,
    means,
    merge,
    run_writer,
    tally,
    tensorboard_writer,
)
from gp_virl.places import Place, place
from tests.object_store import Store, store  # noqa: F401 - a fixture


def read(path: Place) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=1, max_size=12))
def test_means_of_merged_shards_equal_a_plain_loop(pairs: list[tuple[int, bool]]) -> None:
    shards = [pairs[::2], pairs[1::2]]
    tallies = [
        tally(x=(jnp.array([v for v, _ in s]), jnp.array([w for _, w in s], bool))) for s in shards
    ]
    kept = [value for value, counted in pairs if counted]
    got = means(merge(*tallies))["x"]
    if kept:
        assert got == pytest.approx(sum(kept) / len(kept), abs=1e-5)
    else:
        assert math.isnan(got)


def test_merge_takes_the_union_of_names_and_starts_from_nothing() -> None:
    one = tally(a=(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])))
    two = tally(a=(jnp.array([8.0]), jnp.array([2.0])), b=(jnp.array(5), jnp.array(1)))
    assert means(merge(Tally({}), one, two)) == {"a": 5.0, "b": 5.0}


def test_values_without_weight_may_be_nan() -> None:
    assert means(tally(a=(jnp.array([jnp.nan, 2.0]), jnp.array([0, 1])))) == {"a": 2.0}


def test_one_weight_serves_many_values() -> None:
    assert means(tally(a=(jnp.array([1.0, 3.0]), jnp.array(True)))) == {"a": 2.0}


def test_tallies_pass_through_jit_and_scan() -> None:
    @jax.jit
    def total(values):
        def body(carry, x):
            return merge(carry, tally(a=(x, jnp.ones_like(x)))), None

        start = tally(a=(jnp.zeros(()), jnp.zeros(())))
        return jax.lax.scan(body, start, values)[0]

    assert means(total(jnp.arange(5.0))) == {"a": 2.0}


def test_records_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    writer = jsonl_writer(path)
    writer.write({"kind": "sft", "branch": "sft", "step": 1, "loss": jnp.float32(0.5)})
    writer.write({"kind": "sft", "step": np.int64(2), "loss": math.nan, "share": [0.25, math.inf]})
    assert read(path) == [
        {"kind": "sft", "branch": "sft", "step": 1, "loss": 0.5},
        {"kind": "sft", "step": 2, "loss": None, "share": [0.25, None]},
    ]


@pytest.mark.parametrize("tail", [b'{"kind": "sft", "st', b'{"kind": "sft"}', b"\xff\xfe", b"{\n"])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl_writer(path).write({"kind": "sft", "step": 1})
    path.write_bytes(path.read_bytes() + tail)
    jsonl_writer(path).write({"kind": "sft", "step": 2})
    assert [record["step"] for record in read(path)] == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "sft"}\nnonsense\n{"kind": "sft"}\n')
    with pytest.raises(MetricsError, match="line 2"):
        jsonl_writer(path)


def test_truncate_forgets_only_what_matches_and_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = jsonl_writer(path)
    for step in range(1, 5):
        writer.write({"kind": "sft", "branch": "sft", "seed": 0, "step": step})
        writer.write({"kind": "ppo", "branch": "rl", "seed": 0, "step": step})
    writer.write({"kind": "eval", "branch": "rl", "seed": 0, "updates": 4})
    writer.write({"kind": "eval", "branch": "rl", "seed": 1, "updates": 4})
    writer.write({"kind": "note", "branch": "rl", "seed": 0})
    assert writer.truncate(2, branch="rl", seed=0) == 3
    left = read(path)
    assert [r["step"] for r in left if r.get("branch") == "sft"] == [1, 2, 3, 4]
    assert [r["step"] for r in left if r["kind"] == "ppo"] == [1, 2]
    assert [r["seed"] for r in left if r["kind"] == "eval"] == [1]
    assert [r["kind"] for r in left][-1] == "note"
    assert writer.truncate(2, branch="rl", seed=0) == 0
    assert list(tmp_path.iterdir()) == [path]


def test_only_process_0_writes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    writer = jsonl_writer(path, process_index=1)
    writer.write({"kind": "sft", "step": 1})
    assert writer.truncate(0) == 0
    assert not path.parent.exists()
    assert tensorboard_writer(tmp_path, process_index=1).sink is None


def test_on_a_store_the_file_is_written_when_asked_and_in_time(store: Store) -> None:  # noqa: F811
    path = place("gs://bucket/run/metrics.jsonl")
    writer = StoredJsonlWriter(path, True, every=3600)
    records = [{"kind": "sft", "branch": "sft", "step": step} for step in range(1, 6)]
    for record in records[:3]:
        writer.write(record)
    assert store.written == []
    writer.flush()
    writer.flush()
    assert read(path) == records[:3] and len(store.written) == 1
    writer.write(records[3])  # lost in a kill
    again = StoredJsonlWriter(path, True, every=0)
    again.write(records[4])
    assert read(path) == [*records[:3], records[4]]
    assert again.truncate(2, branch="sft") == 2 and read(path) == records[:2]
    assert again.truncate(2, branch="sft") == 0 and len(store.written) == 3


def test_a_run_on_a_store_has_the_local_files_lines(store: Store, tmp_path: Path) -> None:  # noqa: F811
    texts = []
    for home in (tmp_path / "run", "gs://bucket/run"):
        writer = run_writer(home)
        writer.write({"kind": "sft", "branch": "sft", "step": 1, "loss": jnp.float32(0.5)})
        writer.write({"kind": "sft", "branch": "sft", "step": 2, "loss": math.nan})
        writer.truncate(1, branch="sft")
        writer.write({"kind": "eval", "branch": "sft", "updates": 2, "who": "\u2028"})
        writer.flush()
        texts.append((place(home) / "metrics.jsonl").read_bytes())
    assert texts[0] == texts[1] and texts[0].count(b"\n") == 2
    other = run_writer("gs://bucket/other", process_index=1)
    other.write({"kind": "sft", "step": 1})
    assert other.truncate(0) == 0
    other.flush()
    assert not place("gs://bucket/other").exists()


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"step": 1}, "kind"),
        ({"kind": "sft", "loss": np.zeros(2)}, "loss"),
        ({"kind": "sft", "who": object()}, "who"),
    ],
)
def test_a_bad_record_is_refused_by_name(tmp_path: Path, record: dict, named: str) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(MetricsError, match=named):
        jsonl_writer(path).write(record)
    assert not path.exists()


def test_tensorboard_missing_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MetricsError, match="pip install"):
        tensorboard_writer(tmp_path)


def test_tensorboard_shows_the_scalars_of_steps(tmp_path: Path, monkeypatch) -> None:
    seen = []

    class Package:
        class SummaryWriter:
            def __init__(self, directory: str) -> None:
                seen.append(directory)

            def add_scalar(self, tag: str, value: float, step: int) -> None:
                seen.append((tag, value, step))

    monkeypatch.setitem(sys.modules, "tensorboardX", Package)
    writer = tensorboard_writer(tmp_path)
    writer.write({"kind": "ppo", "branch": "rl", "step": 3, "seed": 0, "kl": jnp.float32(0.5)})
    writer.write({"kind": "eval", "branch": "rl", "value": 0.5})
    assert seen == [str(tmp_path), ("ppo/rl/kl", 0.5, 3)]


def test_a_run_is_shown_in_wandb_as_well(tmp_path, monkeypatch) -> None:
    sent = []
    run = types.SimpleNamespace(log=sent.append)
    fake = types.SimpleNamespace(init=lambda **about: sent.append(about) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = run_writer(tmp_path, ("wandb",))
    record = {"kind": "ppo", "branch": "rl", "step": 3, "reward": jnp.float32(0.5)}
    writer.write(record)
    assert sent[0]["name"] == "wandb"
    assert sent[1] == {"ppo/rl/step": 3, "ppo/rl/reward": 0.5}
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["reward"] == 0.5
    assert writer.truncate(2, branch="rl") == 1
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_other_processes_show_nothing(tmp_path) -> None:
    run_writer(tmp_path, ("wandb", "tensorboard"), process_index=1).write({"kind": "sft"})
    assert not list(tmp_path.iterdir())


def test_an_absent_package_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MetricsError, match=r"pip install -e '\.\[wandb\]'"):
        run_writer(tmp_path, ("wandb",))

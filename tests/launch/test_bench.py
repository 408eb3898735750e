"""The bench's arithmetic, and its two measurements that a floor is promised for, on few things."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gp_l, gp_vl
from gp_virl.config import build
from gp_virl.model import mllama
from launch import bench
from launch.lab import open_lab


def test_rows_are_median_and_extremes() -> None:
    row = bench.rate("x", "things/s", 10, [1.0, 5.0, 2.0], "10 things")
    assert (row.value, row.low, row.high, row.repeats) == (5.0, 2.0, 10.0, 3)
    assert str(row).split() == ["x", "5", "2", "10", "things/s", "10", "things"]
    assert "1,234,567" in str(bench.row("x", "s", [1234567.4], ""))


def test_the_first_run_is_not_timed_and_compilation_is() -> None:
    calls = []

    def run() -> None:
        time.sleep(0.05 if calls else 0.5)
        calls.append(1)

    times = bench.seconds(run, 3)
    assert len(calls) == 4 and len(times) == 3
    assert all(0.05 <= t < 0.5 for t in times)
    program = bench.compiled("add", jax.jit(lambda x: x + 1), jnp.zeros(3))
    assert program.seconds > 0
    assert program.run(jnp.ones(3)).tolist() == [2, 2, 2]


@pytest.fixture
def few(monkeypatch) -> None:
    """Small batches; and no `lower`, which fills typed PyTrees with what the checker refuses."""
    for name in ("DEALT", "JUDGED", "DIALOGUES"):
        monkeypatch.setattr(bench, name, 256)

    def uncompiled(name, program, *_, **__):
        return bench.Compiled(name, 1.0, program)

    monkeypatch.setattr(bench, "compiled", uncompiled)


@pytest.mark.parametrize(("part", "names"), [
    (bench.deals, ["deal", "hands dealt"]),
    (bench.verdicts, ["judge tokens", "replies judged, from tokens",
                      "judge bytes", "replies judged, from bytes"]),
])  # fmt: skip
def test_rates_of_the_environment(few, part, names: list[str]) -> None:
    found = list(part(open_lab(build(gp_l.get_config("tiny"))), 2))
    assert [one.name for one in found] == names
    for one in found:
        if isinstance(one, bench.Row):
            assert one.repeats == 2 and 0 < one.low <= one.value <= one.high
            assert one.unit in ("hands/s", "replies/s") and one.batch.startswith("256 ")


def test_rates_of_pictures(few) -> None:
    """As many hands as lanes, drawn at once, and encoded a few at a time as in a rollout."""
    config = gp_vl.get_config("tiny")
    config.env.update(image_size=48)
    config.rollout.update(lanes=6, images=4)
    lab = open_lab(build(config))
    shapes = mllama.abstract(lab.model)[1]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    drawn, rendered, encode, encoded = bench.sights(lab, params, 2)
    assert (drawn.name, encode.name) == ("draw", "encode")
    assert (rendered.name, rendered.unit) == ("hands rendered", "hands/s")
    assert (encoded.name, encoded.unit) == ("images encoded", "images/s")
    for one in (rendered, encoded):
        assert one.repeats == 2 and 0 < one.low <= one.value <= one.high
        assert one.batch == "8 x 48 pixels square"  # the lanes in whole encodings


def test_the_replies_judged_are_of_all_kinds(monkeypatch, few) -> None:
    """Right and wrong ones, whole in the room they have: a rate of trivial replies means little."""
    judged = []
    monkeypatch.setattr(bench, "seconds", lambda run, _: [judged.append(run()[1]) or 1.0])
    list(bench.verdicts(open_lab(build(gp_l.get_config("tiny"))), 1))
    tokens, text = (verdict.outcome.tolist() for verdict in judged)
    assert tokens == text
    assert {0, 1, 2, 3} == set(tokens) and 50 < tokens.count(0) < 225

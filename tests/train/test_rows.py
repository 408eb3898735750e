"""Packing of conversations into rows against a plain reading of the rollout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.rollout.episodes import Rollout
from gp_virl.train.rows import first_fit, pack


def made_up_rollout(seed: int, turns: int = 7, lanes: int = 5, size: int = 64, reply: int = 6):
    """A rollout with nested prefixes, conversations that begin before it or outlast it."""
    rng = np.random.default_rng(seed)
    roll = {
        name: np.zeros((turns, lanes), np.int32)
        for name in ("prompt", "reply", "answer", "outcome", "episode", "turn", "prefilled")
    }
    roll |= {
        name: rng.normal(size=(turns, lanes)).astype(np.float32) for name in ("value", "reward")
    }
    roll["terminated"] = rng.random((turns, lanes)) < 0.4
    roll["truncated"] = ~roll["terminated"] & (rng.random((turns, lanes)) < 0.2)
    roll["played"] = np.ones((turns, lanes), bool)
    roll |= {name: np.zeros((turns, lanes), bool) for name in ("solved", "recognized", "encoded")}
    roll["tokens"] = np.zeros((turns, lanes, size), np.int32)
    roll["logp"] = np.zeros((turns, lanes, reply), np.float32)
    for b in range(lanes):
        talk = list(rng.integers(1, 99, rng.integers(3, 9)))
        for r in range(turns):
            said = list(rng.integers(1, 99, rng.integers(1, reply + 1)))
            roll["prompt"][r, b], roll["reply"][r, b] = len(talk), len(said)
            roll["answer"][r, b] = rng.integers(0, len(said) + 1)
            roll["logp"][r, b, : len(said)] = rng.normal(size=len(said))
            talk += said
            roll["tokens"][r, b, : len(talk)] = talk
            if roll["terminated"][r, b] or roll["truncated"][r, b] or len(talk) > size - 20:
                roll["terminated"][r, b] |= not roll["truncated"][r, b]
                talk = list(rng.integers(1, 99, rng.integers(3, 9)))
            else:
                talk += list(rng.integers(1, 99, rng.integers(1, 4)))
    roll["closed"] = roll["terminated"] | roll["truncated"]
    return Rollout(**{name: jnp.asarray(x) for name, x in roll.items()}, scene=None)


@pytest.mark.parametrize("seed", range(4))
def test_every_turn_stands_once_with_its_own_numbers(seed):
    roll = made_up_rollout(seed)
    turns, lanes = roll.prompt.shape
    advantage = jax.random.normal(jax.random.key(seed), (turns, lanes))
    rows = pack(roll, advantage, 2 * advantage, thought_coef=0.5, slots=8, pictures=1)
    found = set()
    for n, k in zip(*np.nonzero(np.asarray(rows.live)), strict=True):
        at = np.flatnonzero(np.asarray(rows.slot[n]) == k)
        # which turn is it? its advantage tells
        match = np.argwhere(np.asarray(advantage) == float(rows.advantage[n, k]))
        (r, b) = match[0]
        assert len(match) == 1 and (r, b) not in found
        found.add((r, b))
        prompt, reply = int(roll.prompt[r, b]), int(roll.reply[r, b])
        assert len(at) == reply and (np.diff(at) == 1).all()
        begin = at[0] - prompt  # the conversation's first column
        whole = np.asarray(roll.tokens[r, b, : prompt + reply])
        np.testing.assert_array_equal(rows.tokens[n, begin : begin + len(whole)], whole)
        np.testing.assert_array_equal(
            rows.positions[n, begin : begin + len(whole)], np.arange(len(whole))
        )
        assert len(set(np.asarray(rows.segments[n, begin : begin + len(whole)]))) == 1
        assert rows.prompt_end[n, k] == at[0] - 1
        np.testing.assert_array_equal(rows.logp[n, at], roll.logp[r, b, :reply])
        want = np.where(np.arange(reply) < int(roll.answer[r, b]), 0.5, 1.0)
        np.testing.assert_array_equal(rows.weight[n, at], want)
        assert rows.value[n, k] == roll.value[r, b]
        assert rows.target[n, k] == 2 * rows.advantage[n, k]
    assert len(found) == turns * lanes
    assert int((rows.slot >= 0).sum()) == int(roll.reply.sum())


@pytest.mark.parametrize("seed", range(4))
def test_segments_are_whole_conversations(seed):
    roll = made_up_rollout(seed)
    zero = jnp.zeros(roll.prompt.shape)
    rows = pack(roll, zero, zero, 1.0, slots=8, pictures=1)
    ends = np.array(roll.closed)
    ends[-1] = True
    want = sorted(np.asarray(roll.prompt + roll.reply)[ends].tolist())
    got = []
    for row in np.asarray(rows.segments):
        used = row[row > 0]
        assert (np.diff(used) >= 0).all() and (row[len(used) :] == 0).all()
        got += np.unique(used, return_counts=True)[1].tolist()
    assert sorted(got) == want
    assert int(rows.count) == int((rows.segments > 0).any(1).sum())
    assert not np.asarray(rows.segments[int(rows.count) :]).any()


@pytest.mark.parametrize("most", [1, 2, 9])
def test_first_fit_against_a_plain_loop(most):
    rng = np.random.default_rng(3)
    length = rng.integers(0, 40, 50) * (rng.random(50) < 0.7)
    turns = rng.integers(1, 4, 50)
    got = first_fit(jnp.asarray(length), jnp.asarray(turns), size=64, slots=4, most=most)
    rows: list[list[int]] = []
    for m in range(50):
        if not length[m]:
            assert got.row[m] == 50
            continue
        fits = (
            i for i, row in enumerate(rows)
            if length[row].sum() + length[m] <= 64 and turns[row].sum() + turns[m] <= 4
            and len(row) < most
        )  # fmt: skip
        place = next(fits, len(rows))
        if place == len(rows):
            rows.append([])
        assert got.row[m] == place
        assert got.offset[m] == length[rows[place]].sum()
        assert got.slot[m] == turns[rows[place]].sum()
        assert got.segment[m] == len(rows[place]) + 1
        rows[place].append(m)
    assert int(got.count) == len(rows)


@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_each_conversation_keeps_its_image(pictures):
    """Conversations may close before their episode ends; each has a scene of its own."""
    roll = made_up_rollout(5)
    rng = np.random.default_rng(0)
    turns, lanes = roll.prompt.shape
    closed = np.asarray(roll.closed)
    # Number of the conversation, which its scene tells: turns of one conversation share it.
    number = np.cumsum(np.pad(closed, ((1, 0), (0, 0)))[:-1], axis=0) * lanes + np.arange(lanes)
    scene = {"a": number + 7, "b": rng.normal(size=(number.max() + 1, 2, 3))[number]}
    roll = roll.replace(scene=jax.tree.map(jnp.asarray, scene))
    zero = jnp.zeros(roll.prompt.shape)
    rows = pack(roll, zero, zero, 1.0, slots=8, pictures=pictures)
    ends = closed.copy()
    ends[-1] = True
    found = []
    segments = np.asarray(rows.segments)
    for n, p in np.argwhere(np.asarray(rows.image_segments) > 0):
        segment = rows.image_segments[n, p]
        which = int(rows.scene["a"][n, p]) - 7
        r, b = np.argwhere((number == which) & ends)[0]
        length = int(roll.prompt[r, b] + roll.reply[r, b])
        columns = np.flatnonzero(segments[n] == segment)
        np.testing.assert_array_equal(rows.tokens[n, columns], roll.tokens[r, b, :length])
        np.testing.assert_allclose(rows.scene["b"][n, p], scene["b"][r, b], rtol=1e-6)
        found.append(which)
    assert sorted(found) == sorted(number[ends].tolist())
    assert segments.max() <= pictures

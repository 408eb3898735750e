"""Training rows: whole conversations, several packed side by side in one row of tokens.

The turns of a conversation are nested prefixes, so one forward pass over its last context gives
the log-probabilities of all its replies and the values of all its turns.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gp_virl.rollout.episodes import Rollout


@struct.dataclass
class Rows:
    """N rows of S tokens with up to K turns each; rows at and after `count` are empty."""

    tokens: Int[Array, "N S"]
    positions: Int[Array, "N S"]  # restart at each conversation
    segments: Int[Array, "N S"]  # 1, 2, ... per conversation of a row; 0 is padding
    slot: Int[Array, "N S"]  # the turn this reply token belongs to; -1 elsewhere
    logp: Float[Array, "N S"]  # of reply tokens, when sampled
    weight: Float[Array, "N S"]  # of reply tokens in the turn's log-probability
    prompt_end: Int[Array, "N K"]  # column of the last token before the reply
    live: Bool[Array, "N K"]  # True where the slot holds a turn
    value: Float[Array, "N K"]  # when sampled
    advantage: Float[Array, "N K"]
    target: Float[Array, "N K"]  # advantage + value, before normalisation
    count: Int[Array, ""]


@struct.dataclass
class Places:
    """Where each turn's conversation stands; M = R * B turns, time first."""

    row: Int[Array, "M"]  # N for turns that close no conversation
    offset: Int[Array, "M"]
    slot: Int[Array, "M"]
    segment: Int[Array, "M"]
    count: Int[Array, ""]  # rows used


def first_fit(length: Int[Array, "M"], turns: Int[Array, "M"], size: int, slots: int) -> Places:
    """Place items of `length` tokens and `turns` turns into rows, each in the first with room.

    Items of length 0 are not placed. M rows always suffice, as an item fits an empty row.
    """
    rows = length.shape[0]

    def place(carry, item):
        used, taken, held = carry
        length, turns = item
        row = jnp.argmax((used + length <= size) & (taken + turns <= slots))
        at = used[row], taken[row], held[row] + 1
        add = (length > 0).astype(jnp.int32)
        carry = (
            used.at[row].add(length),
            taken.at[row].add(turns * add),
            held.at[row].add(add),
        )
        return carry, (jnp.where(length > 0, row, rows), *at)

    empty = jnp.zeros(rows, jnp.int32)
    (used, _, _), places = jax.lax.scan(place, (empty, empty, empty), (length, turns))
    return Places(*places, count=(used > 0).sum())


def pack(
    roll: Rollout,
    advantage: Float[Array, "R B"],
    target: Float[Array, "R B"],
    thought_coef: float,
    slots: int,
) -> Rows:
    """Rows of every conversation that `roll` touches, earlier turns of it as plain context."""
    turns, lanes = roll.prompt.shape
    size = roll.tokens.shape[-1]
    ends = (roll.terminated | roll.truncated).at[-1].set(True)
    rank, last = _conversations(ends)
    length = jnp.where(ends, roll.prompt + roll.reply, 0).reshape(-1)
    places = first_fit(length, (rank + 1).reshape(-1), size, slots)
    # a turn's conversation is found at the turn that closes it
    closing = (last * lanes + jnp.arange(lanes)).reshape(-1)
    row, offset = places.row[closing], places.offset[closing]
    slot = places.slot[closing] + rank.reshape(-1)

    total = turns * lanes
    blank = jnp.zeros((total, size), jnp.int32)
    column = jnp.arange(size)
    at = (
        places.row[:, None],
        jnp.where(column < length[:, None], places.offset[:, None] + column, size),
    )
    at = jnp.broadcast_arrays(*at)
    at = tuple(at)
    flat = roll.tokens.reshape(total, size)
    tokens = blank.at[at].set(flat, mode="drop")
    positions = blank.at[at].set(jnp.broadcast_to(column, flat.shape), mode="drop")
    segments = blank.at[at].set(jnp.broadcast_to(places.segment[:, None], flat.shape), mode="drop")

    step = jnp.arange(roll.logp.shape[-1])
    replied = step < roll.reply.reshape(-1, 1)
    start = offset + roll.prompt.reshape(-1)
    at = (row[:, None], jnp.where(replied, start[:, None] + step, size))
    thought = step < roll.answer.reshape(-1, 1)
    weight = jnp.where(thought, thought_coef, 1.0)
    spread = jnp.broadcast_to(slot[:, None], replied.shape)

    def per_turn(values, fill):
        return (
            jnp.full((total, slots), fill, values.dtype)
            .at[row, slot]
            .set(values.reshape(-1), mode="drop")
        )

    return Rows(
        tokens=tokens,
        positions=positions,
        segments=segments,
        slot=jnp.full_like(blank, -1).at[at].set(spread, mode="drop"),
        logp=jnp.zeros(blank.shape).at[at].set(roll.logp.reshape(total, -1), mode="drop"),
        weight=jnp.zeros(blank.shape).at[at].set(weight, mode="drop"),
        prompt_end=per_turn(start - 1, 0),
        live=per_turn(jnp.ones(total, bool), False),
        value=per_turn(roll.value, 0.0),
        advantage=per_turn(advantage, 0.0),
        target=per_turn(target, 0.0),
        count=places.count,
    )


def _conversations(ends: Bool[Array, "R B"]) -> tuple[Int[Array, "R B"], Int[Array, "R B"]]:
    """Of each turn: its number within its conversation, and the turn that closes it."""
    turns = jnp.arange(ends.shape[0])

    def forward(rank, ends):
        return jnp.where(ends, 0, rank + 1), rank

    def back(later, now):
        turn, ends = now
        last = jnp.where(ends, turn, later)
        return last, last

    zero = jnp.zeros(ends.shape[1], jnp.int32)
    rank = jax.lax.scan(forward, zero, ends)[1]
    return rank, jax.lax.scan(back, zero, (turns, ends), reverse=True)[1]

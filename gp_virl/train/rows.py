"""Training rows: whole conversations, several packed side by side in one row of tokens.

The turns of a conversation are nested prefixes, so one forward pass over its last context gives
the log-probabilities of all its replies and the values of all its turns.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from gp_virl.rollout.episodes import Rollout


@struct.dataclass
class Rows:
    """N rows of S tokens with up to K turns and, if there are images, P conversations each.

    Rows at and after `count` are empty.
    """

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
    scene: PyTree  # of each conversation's image, leading axes N P; None without images
    image_segments: Int[Array, "N P"] | None  # the conversation that sees it; 0 where there is none


@struct.dataclass
class Places:
    """Where each turn's conversation stands; M = R * B turns, time first."""

    row: Int[Array, "M"]  # N for turns that close no conversation
    offset: Int[Array, "M"]
    slot: Int[Array, "M"]
    segment: Int[Array, "M"]
    count: Int[Array, ""]  # rows used


def first_fit(
    length: Int[Array, "M"], turns: Int[Array, "M"], size: int, slots: int, most: int
) -> Places:
    """Place items of `length` tokens and `turns` turns into rows, each in the first with room.

    A row has at most `most` items. Items of length 0 are not placed. M rows always suffice, as an
    item fits an empty row.
    """
    rows = length.shape[0]

    def place(carry, item):
        used, taken, held = carry
        length, turns = item
        row = jnp.argmax((used + length <= size) & (taken + turns <= slots) & (held < most))
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
    pictures: int,
) -> Rows:
    """Rows of every conversation that `roll` touches, earlier turns of it as plain context.

    A row has `slots` turns at most and, if there are images, `pictures` conversations.
    """
    turns, lanes = roll.prompt.shape
    size = roll.tokens.shape[-1]
    seen = bool(jax.tree.leaves(roll.scene))
    ends = roll.closed.at[-1].set(True)
    rank, last = _conversations(ends)
    length = jnp.where(ends, roll.prompt + roll.reply, 0).reshape(-1)
    places = first_fit(length, (rank + 1).reshape(-1), size, slots, pictures if seen else size)
    # a turn's conversation is found at the turn that closes it
    closing = (last * lanes + jnp.arange(lanes)).reshape(-1)
    row, offset = places.row[closing], places.offset[closing]
    slot = places.slot[closing] + rank.reshape(-1)

    total, column = turns * lanes, jnp.arange(size)
    whole = jnp.where(column < length[:, None], places.offset[:, None] + column, size)

    def of_conversation(values):
        return _spread(values, places.row[:, None], whole, (total, size), 0)

    step = jnp.arange(roll.logp.shape[-1])
    start = offset + roll.prompt.reshape(-1)
    said = jnp.where(step < roll.reply.reshape(-1, 1), start[:, None] + step, size)
    thought = step < roll.answer.reshape(-1, 1)

    def of_reply(values, fill):
        return _spread(values, row[:, None], said, (total, size), fill)

    def of_image(values):
        return _spread(values, places.row, places.segment - 1, (total, pictures), 0)

    def of_turn(values, fill):
        return _spread(values.reshape(-1), row, slot, (total, slots), fill)

    return Rows(
        tokens=of_conversation(roll.tokens.reshape(total, size)),
        positions=of_conversation(column),
        segments=of_conversation(places.segment[:, None]),
        slot=of_reply(slot[:, None], -1),
        logp=of_reply(roll.logp.reshape(total, -1), 0.0),
        weight=of_reply(jnp.where(thought, thought_coef, 1.0), 0.0),
        prompt_end=of_turn(start - 1, 0),
        live=of_turn(jnp.ones(total, bool), False),
        value=of_turn(roll.value, 0.0),
        advantage=of_turn(advantage, 0.0),
        target=of_turn(target, 0.0),
        count=places.count,
        scene=jax.tree.map(lambda x: of_image(x.reshape(total, *x.shape[2:])), roll.scene),
        image_segments=of_image(places.segment) if seen else None,
    )


def _spread(values, row, column, shape: tuple[int, int], fill):
    """`values` put at (row, column) of an array of `fill`; places outside it are dropped.

    What `values` has more axes than `row`, the array has as well.
    """
    row, column = jnp.broadcast_arrays(row, column)
    more = values.shape[row.ndim :]
    buffer = jnp.full((*shape, *more), fill, values.dtype)
    return buffer.at[row, column].set(jnp.broadcast_to(values, (*column.shape, *more)), mode="drop")


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

"""The cards that a reply names: its last `"cards": [...]` (or `'cards'`) list.

Reading rules: the elements are A, 2..10, J, Q, K in capitals, each bare or between two like
quotes, with commas between them and perhaps one after the last. Blanks (space, tab, newline, CR)
may stand anywhere but inside a 10. Aliases (T, 1, 11, k), suits and escapes are no cards. A list
that isn't closed, or has any other element, names none.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gp_virl.text import automaton
from gp_virl.text.automaton import COLON, DONE, NONE, NOTHING, Automaton

FIELD = "cards"
LETTERS = b"A23456789\x00JQK"  # the byte of each rank's symbol; a 10 has two
RANKS, TEN = len(LETTERS), LETTERS.index(0)
_NAME = 2  # the action at the last byte of a card's symbol


class CardListState(NamedTuple):
    """What the scan knows after some bytes."""

    state: Int[Array, ""]
    named: Int[Array, "13"]  # cards of each rank since the last key


class _Byte(NamedTuple):
    symbol: Int[Array, "*l"]
    rank: Int[Array, "*l"]  # of the card whose symbol ends here, if one does


def start() -> CardListState:
    """Before the first byte."""
    return CardListState(jnp.int32(0), jnp.zeros(RANKS, jnp.int32))


def prepare(read: Int[Array, "L"]) -> _Byte:
    """What `step` is given at each byte; 256 is the end."""
    rank = np.zeros(automaton.END + 1, np.int32)
    rank[list(LETTERS)] = np.arange(RANKS)
    rank[ord("0")] = TEN
    return _Byte(jnp.asarray(_automaton().symbol)[read], jnp.asarray(rank)[read])


def step(said: CardListState, byte: _Byte) -> CardListState:
    """After one more byte."""
    state, action = _automaton().move(said.state, byte.symbol)
    named = jnp.where(action == automaton.RESTART, 0, said.named)
    return CardListState(state, named + ((jnp.arange(RANKS) == byte.rank) & (action == _NAME)))


def finish(said: CardListState) -> Int[Array, "13"]:
    """How many cards of each rank the whole list names."""
    return jnp.where(jnp.asarray(_automaton().done)[said.state], said.named, 0)


@functools.lru_cache(1)
def _automaton() -> Automaton:
    alike = {"A": b"AJQK", "2": b"23456789"}
    return automaton.compiled(FIELD, ("[", "]", ",", "1", "0"), alike, _value_after)


def _value_after(value: tuple, symbol: str) -> tuple[tuple, int]:
    """(the value's state, the action).

    States (kind, quote) with "" for the quote of a bare element: a card is `wanted`, the `one` of
    a 10 was read, a card was `named`.
    """
    if value == COLON:
        return (("wanted", "") if symbol == "[" else NONE), NOTHING
    kind, quote = value
    if symbol == " " and kind != "one":
        return value, NOTHING
    if kind == "wanted":
        if symbol in ("A", "2"):
            return ("named", quote), _NAME
        if symbol == "1":
            return ("one", quote), NOTHING
        if not quote and symbol in ('"', "'"):
            return ("wanted", symbol), NOTHING
        return (DONE if symbol == "]" and not quote else NONE), NOTHING
    if kind == "one":
        return (("named", quote), _NAME) if symbol == "0" else (NONE, NOTHING)
    if quote:
        return (("named", "") if symbol == quote else NONE), NOTHING
    return {",": ("wanted", ""), "]": DONE}.get(symbol, NONE), NOTHING

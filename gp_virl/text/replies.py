"""What a reply says: token ids -> bytes -> Answer, all on the device.

A reply is read once, byte by byte, by two finite automata: one for its cards (card_list.py) and
the one here for its formula, compiled from `_value_after` and `_expression_after`; the scan adds
what is not finite: the depth of parentheses and the numbers. Nothing is nested, so no input is
too deep, and nothing is ever evaluated as code.

Reading rules of formulas: the last `"formula":` (or `'formula':`) counts; its value is a quoted
string that must be closed by the same quote; in it everything from the first `=` on is ignored.
Blanks (space, tab, newline, CR, U+00A0) separate tokens. The escapes of JSON are undone first in
the whole reply; an escaped quote closes no string, and is illegal before the `=`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from gp_virl.text import automaton, card_list, escapes
from gp_virl.text.automaton import COLON, DONE, NONE, NOTHING, RESTART, Automaton
from gp_virl.text.template import PieceBank, bank_of, compose
from gp_virl.types import KEPT_NUMBERS, Answer

LARGEST_NUMBER = 9999
FIELD = "formula"
OPERATORS = "+-*/"

# What the scan does at a byte, beside moving to the next state.
_FIRST_DIGIT, _NEXT_DIGIT, _OPERATE, _OPEN, _CLOSE = range(RESTART + 1, RESTART + 6)


class _Said(NamedTuple):
    """What the scan knows of the formula after some bytes."""

    state: Int[Array, ""]
    depth: Int[Array, ""]  # of open parentheses; below 0 for good once one closes too many
    count: Int[Array, ""]  # of numbers
    numbers: Int[Array, "8"]
    marks: Int[Array, "3"]  # depth * 4 + operator


def parse(reply: UInt8[Array, "L"], length: Int[Array, ""]) -> Answer:
    """The reply's last formula and last list of cards.

    The formula's numbers and operators mean nothing where `legal` is False. Only the first
    `length` bytes are read. Callers vmap over lanes.
    """
    read = jnp.where(jnp.arange(reply.shape[0]) < length, reply.astype(jnp.int32), automaton.END)
    read = escapes.in_place(read)
    symbol, detail = jnp.asarray(_automaton().symbol)[read], jnp.asarray(_details())[read]

    def step(said, byte):
        formula, cards = said
        return (_step(formula, *byte[0]), card_list.step(cards, byte[1])), None

    zero = jnp.int32(0)
    numbers, marks = jnp.zeros(KEPT_NUMBERS, jnp.int32), jnp.zeros(3, jnp.int32)
    start = _Said(zero, zero, zero, numbers, marks), card_list.start()
    (said, cards), _ = jax.lax.scan(step, start, ((symbol, detail), card_list.prepare(read)))
    marks = jnp.where(jnp.arange(3) < said.count - 1, said.marks, 0)
    return Answer(
        legal=jnp.asarray(_automaton().done)[said.state] & (said.depth == 0),
        numbers=jnp.where(jnp.arange(KEPT_NUMBERS) < said.count, said.numbers, 0),
        count=said.count,
        operators=marks % 4,
        depths=marks // 4,
        named=card_list.finish(cards),
    )


def _step(said: _Said, symbol: Int[Array, ""], detail: Int[Array, ""]) -> _Said:
    """The formula after one more byte; `detail` is the digit's value or the operator's index."""
    state, action = _automaton().move(said.state, symbol)
    first, digit = action == _FIRST_DIGIT, (action == _FIRST_DIGIT) | (action == _NEXT_DIGIT)
    restart = action == RESTART
    count = jnp.where(restart, 0, said.count + first)
    turn = (action == _OPEN).astype(jnp.int32) - (action == _CLOSE)
    depth = jnp.where(restart, 0, jnp.where(said.depth < 0, said.depth, said.depth + turn))
    here = jnp.arange(KEPT_NUMBERS) == count - 1
    grown = jnp.minimum(jnp.where(first, 0, said.numbers * 10) + detail, LARGEST_NUMBER)
    numbers = jnp.where(here & digit, grown, said.numbers)
    marks = jnp.where(here[:3] & (action == _OPERATE), depth * 4 + detail, said.marks)
    return _Said(state, depth, count, numbers, marks)


@functools.lru_cache(1)
def _automaton() -> Automaton:
    # A digit is "0", and + - * are "+".
    names = ("/", "(", ")", "=", "\xc2", "\xa0")
    return automaton.compiled(FIELD, names, {"0": b"0123456789", "+": b"+-*"}, _value_after)


@functools.lru_cache(1)
def _details() -> np.ndarray:
    """[257] the digit's value or the operator's index."""
    detail = np.zeros(automaton.END + 1, np.int32)
    for value, byte in [*enumerate(b"0123456789"), *enumerate(OPERATORS.encode())]:
        detail[byte] = value
    return detail


def _value_after(value: tuple, symbol: str) -> tuple[tuple, int]:
    """(the value's state, the action). A value that went wrong is NONE until the next key."""
    if value == COLON:
        return (("operand", symbol) if symbol in ('"', "'") else NONE), NOTHING
    kind, quote, *rest = value
    if kind == "tail":  # after the first `=` only the closing quote matters
        return (DONE if symbol == quote else value), NOTHING
    if kind == "no-break":  # U+00A0 is C2 A0
        return ((rest[0], quote) if symbol == "\xa0" else NONE), NOTHING
    return _expression_after(kind, quote, symbol)


def _expression_after(kind: str, quote: str, symbol: str) -> tuple[tuple, int]:
    """The same inside an expression: `kind` is operand (wanted), number (in one) or operator."""
    if symbol == "0" and kind != "operator":
        return ("number", quote), _FIRST_DIGIT if kind == "operand" else _NEXT_DIGIT
    later = "operand" if kind == "operand" else "operator"
    if symbol == " ":
        return (later, quote), NOTHING
    if symbol == "\xc2":
        return ("no-break", quote, later), NOTHING
    if kind == "operand":
        return (("operand", quote), _OPEN) if symbol == "(" else (NONE, NOTHING)
    if symbol in ("+", "/"):
        return ("operand", quote), _OPERATE
    if symbol == ")":
        return ("operator", quote), _CLOSE
    if symbol == "=":
        return ("tail", quote), NOTHING
    return (DONE if symbol == quote else NONE), NOTHING


def read(
    bank: PieceBank, tokens: Int[Array, "T"], length: Int[Array, ""], size: int
) -> tuple[UInt8[Array, "{size}"], Int[Array, ""]]:
    """The bytes of the first `length` tokens, cut at `size`, and how many there are."""
    entries = jnp.where(jnp.arange(tokens.shape[0]) < length, tokens, -1)
    text = compose(bank, entries, size)
    return text.tokens.astype(jnp.uint8), text.length


def field_start(
    bank: PieceBank, tokens: Int[Array, "T"], length: Int[Array, ""], size: int, name: bytes
) -> Int[Array, ""]:
    """How many of the first `length` tokens end before the last `name` in the bytes of `read`.

    All of them where it isn't.
    """
    text, _ = read(bank, tokens, length, size)
    found = jnp.arange(size) <= size - len(name)
    for offset, byte in enumerate(name):
        found &= jnp.roll(text, -offset) == byte
    place = jnp.max(jnp.where(found, jnp.arange(size), -1))
    kept = jnp.arange(tokens.shape[0]) < length
    ends = jnp.cumsum(jnp.where(kept, bank.length[tokens], 0))
    before = (kept & (ends <= place)).sum()
    return jnp.where(place < 0, length, before).astype(jnp.int32)


def byte_bank(tokenizer) -> PieceBank:
    """The bytes of every token id below `len(tokenizer)`; special tokens have none.

    Reads byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece (U+2581, <0xNN>) vocabularies.
    Raises ValueError for a token that is neither.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if not t.special}
    special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    plain = [n for i, n in enumerate(names) if n and i not in special and i not in added]
    spelled = _sentencepiece if any("\u2581" in n for n in plain) else _byte_level
    pieces = []
    for index, name in enumerate(names):
        if index in special or name is None:
            pieces.append(b"")
        else:
            pieces.append(added[index].encode() if index in added else spelled(name))
    return bank_of(pieces)


@functools.lru_cache(1)
def _byte_of() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes (openai/gpt-2, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _byte_level(name: str) -> bytes:
    byte_of = _byte_of()
    if not set(name) <= byte_of.keys():
        raise ValueError(
            f"token {name!r}: neither byte-level BPE nor SentencePiece; use a tokenizer of one of "
            "these kinds"
        )
    return bytes(byte_of[character] for character in name)


def _sentencepiece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()

"""What a reply says: token ids -> bytes -> Answer, all on the device.

A reply is read byte by byte by a finite automaton. Its table is compiled once from three plain
functions of one symbol (`_key_after`, `_value_after`, `_expression_after`); the scan adds what
is not finite: the depth of parentheses and the numbers. Nothing is nested, so no input is too
deep, and nothing is ever evaluated as code.

Reading rules: the last `"formula":` (or `'formula':`) counts; its value is a quoted string that
must be closed by the same quote; in it everything from the first `=` on is ignored. Blanks
(space, tab, newline, CR, the escapes \\t \\n \\r, U+00A0) separate tokens, `\\/` is `/`, any other
escape before the `=` is illegal.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from gp_virl.text.template import PieceBank, bank_of, compose
from gp_virl.types import KEPT_NUMBERS, Answer

LARGEST_NUMBER = 9999
KEY = "formula"
OPERATORS = "+-*/"

# What the scan does at a byte, beside moving to the next state.
_NOTHING, _RESTART, _FIRST_DIGIT, _NEXT_DIGIT, _OPERATE, _OPEN, _CLOSE = range(7)
_ACTIONS = 8

# Symbols: bytes that no rule tells apart share one. A digit is "0", a blank " ", + - * are "+".
_SYMBOLS = ('"', "'", "\\", " ", *KEY, ":", "0", "+", "/", "(", ")", "=", "n", "t")
_SYMBOLS += ("\xc2", "\xa0", "other", "end")


class _Symbols(NamedTuple):
    symbol: np.ndarray  # [257] index into _SYMBOLS; row 256 is the end of the reply
    detail: np.ndarray  # [257] the digit's value or the operator's index


class _Automaton(NamedTuple):
    table: np.ndarray  # [states * symbols] = next state * _ACTIONS + action
    done: np.ndarray  # [states] True after a closed string with a whole expression


def parse(reply: UInt8[Array, "L"], length: Int[Array, ""]) -> Answer:
    """The reply's last formula; fields other than `legal` mean nothing where it is False.

    Only the first `length` bytes are read. Callers vmap over lanes.
    """
    symbols, automaton = _symbols(), _automaton()
    read = jnp.where(jnp.arange(reply.shape[0]) < length, reply.astype(jnp.int32), 256)
    symbol, detail = jnp.asarray(symbols.symbol)[read], jnp.asarray(symbols.detail)[read]
    table = jnp.asarray(automaton.table)

    def step(carry, byte):
        state, depth, count, numbers, marks = carry
        symbol, detail = byte
        move = table[state * len(_SYMBOLS) + symbol]
        state, action = move // _ACTIONS, move % _ACTIONS
        first, digit = action == _FIRST_DIGIT, (action == _FIRST_DIGIT) | (action == _NEXT_DIGIT)
        restart = action == _RESTART
        count = jnp.where(restart, 0, count + first)
        turn = (action == _OPEN).astype(jnp.int32) - (action == _CLOSE)
        depth = jnp.where(restart, 0, jnp.where(depth < 0, depth, depth + turn))  # < 0 stays
        here = jnp.arange(KEPT_NUMBERS) == count - 1
        grown = jnp.minimum(jnp.where(first, 0, numbers * 10) + detail, LARGEST_NUMBER)
        numbers = jnp.where(here & digit, grown, numbers)
        marks = jnp.where(here[:3] & (action == _OPERATE), depth * 4 + detail, marks)
        return (state, depth, count, numbers, marks), None

    zero = jnp.int32(0)
    start = (zero, zero, zero, jnp.zeros(KEPT_NUMBERS, jnp.int32), jnp.zeros(3, jnp.int32))
    (state, depth, count, numbers, marks), _ = jax.lax.scan(step, start, (symbol, detail))
    numbers = jnp.where(jnp.arange(KEPT_NUMBERS) < count, numbers, 0)
    marks = jnp.where(jnp.arange(3) < count - 1, marks, 0)
    return Answer(
        legal=jnp.asarray(automaton.done)[state] & (depth == 0),
        numbers=numbers,
        count=count,
        operators=marks % 4,
        depths=marks // 4,
    )


@functools.lru_cache(1)
def _symbols() -> _Symbols:
    symbol = np.full(257, _SYMBOLS.index("other"), np.int32)
    detail = np.zeros(257, np.int32)
    for index, name in enumerate(_SYMBOLS):
        if len(name) == 1:
            symbol[ord(name)] = index
    for byte in b" \t\n\r":
        symbol[byte] = _SYMBOLS.index(" ")
    for value in range(10):
        symbol[ord("0") + value], detail[ord("0") + value] = _SYMBOLS.index("0"), value
    for value, name in enumerate(OPERATORS):
        symbol[ord(name)] = _SYMBOLS.index("/" if name == "/" else "+")
        detail[ord(name)] = value
    symbol[256] = _SYMBOLS.index("end")
    return _Symbols(symbol, detail)


@functools.lru_cache(1)
def _automaton() -> _Automaton:
    """All states that the start reaches, numbered in the order found."""
    states = [(("", 0), ("none",))]
    rows = []
    while len(rows) < len(states):
        key, value = states[len(rows)]
        row = []
        for symbol in _SYMBOLS:
            after, action = _after(key, value, symbol)
            if after not in states:
                states.append(after)
            row.append(states.index(after) * _ACTIONS + action)
        rows.append(row)
    done = np.array([value == ("done",) for _, value in states])
    return _Automaton(np.array(rows, np.int32).reshape(-1), done)


def _after(key: tuple, value: tuple, symbol: str) -> tuple[tuple, int]:
    """((key state, value state), action); what lies behind the reply's end changes nothing."""
    if symbol == "end":
        return (key, value), _NOTHING
    key, found = _key_after(key, symbol)
    value, action = (("colon",), _RESTART) if found else _value_after(value, symbol)
    return (key, value), action


def _key_after(key: tuple[str, int], symbol: str) -> tuple[tuple[str, int], bool]:
    """(how much of a key has been read, whether this symbol is its colon).

    Key (quote, n): n = 1 is the quote, 2..8 its letters, 9 the closing quote, 10 blanks after it.
    """
    quote, n = key
    if n == 9 and symbol == KEY[0]:  # the closing quote opened another key
        return (quote, 2), False
    if 1 <= n <= len(KEY) and symbol == KEY[n - 1]:
        return (quote, n + 1), False
    if n == len(KEY) + 1 and symbol == quote:
        return (quote, 9), False
    if n >= 9 and symbol == " ":
        return (quote, 10), False
    if n >= 9 and symbol == ":":
        return ("", 0), True
    return ((symbol, 1) if symbol in ('"', "'") else ("", 0)), False


def _value_after(value: tuple, symbol: str) -> tuple[tuple, int]:
    """(the value's state, the action). A value that went wrong is "none" until the next key."""
    kind, *rest = value
    if kind == "colon":
        if symbol in ('"', "'"):
            return ("operand", symbol), _NOTHING
        return (value if symbol == " " else ("none",)), _NOTHING
    if kind in ("none", "done"):
        return value, _NOTHING
    quote = rest[0]
    if kind == "tail":  # after the first `=` only the closing quote matters
        if symbol == quote:
            return ("done",), _NOTHING
        return (("tail escape", quote) if symbol == "\\" else value), _NOTHING
    if kind == "tail escape":
        return ("tail", quote), _NOTHING
    if kind == "escape":
        meant = "/" if symbol == "/" else " " if symbol in ("n", "t", "r") else "other"
        return _expression_after(rest[1], quote, meant)
    if kind == "no-break":  # U+00A0 is C2 A0
        return ((rest[1], quote) if symbol == "\xa0" else ("none",)), _NOTHING
    if symbol == "\\":
        return ("escape", quote, kind), _NOTHING
    return _expression_after(kind, quote, symbol)


def _expression_after(kind: str, quote: str, symbol: str) -> tuple[tuple, int]:
    """The same inside an expression: `kind` is operand (wanted), number (in one) or operator."""
    if symbol == "0" and kind != "operator":
        return ("number", quote), _FIRST_DIGIT if kind == "operand" else _NEXT_DIGIT
    later = "operand" if kind == "operand" else "operator"
    if symbol == " ":
        return (later, quote), _NOTHING
    if symbol == "\xc2":
        return ("no-break", quote, later), _NOTHING
    if kind == "operand":
        return (("operand", quote), _OPEN) if symbol == "(" else (("none",), _NOTHING)
    if symbol in ("+", "/"):
        return ("operand", quote), _OPERATE
    if symbol == ")":
        return ("operator", quote), _CLOSE
    if symbol == "=":
        return ("tail", quote), _NOTHING
    return (("done",) if symbol == quote else ("none",)), _NOTHING


def read(
    bank: PieceBank, tokens: Int[Array, "T"], length: Int[Array, ""], size: int
) -> tuple[UInt8[Array, "{size}"], Int[Array, ""]]:
    """The bytes of the first `length` tokens, cut at `size`, and how many there are."""
    entries = jnp.where(jnp.arange(tokens.shape[0]) < length, tokens, -1)
    text = compose(bank, entries, size)
    return text.tokens.astype(jnp.uint8), text.length


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

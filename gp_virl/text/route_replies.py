"""What a reply at a waypoint says: bytes -> RouteAnswer, all on the device.

First the JSON escapes of the whole reply are undone, so that names of places can be compared byte
by byte. A finite automaton, its table compiled once from two plain functions of one symbol
(`_key_after`, `_value_after`), then finds the values of `"current observation"` and `"action"`.

Reading rules: the last `"key":` (or `'key':`) counts, of those not right behind a letter, blanks
or not; its value is a quoted string that must be closed by the same quote. An action is the value
without blanks around it, letter by letter. An observation ends before `; You observe an
intersection`, which claims an intersection, as the same does before a `;` at its start or behind
the landmark. In it `NAME is on your SIDE` names a landmark, with or without `The destination`
before it; so does any other text up to the first `;`, unless it is empty or starts with `No
landmark`. Blanks are space, tab, newline, CR and U+00A0; around a value also FF and VT.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, UInt8

from gp_virl.text import automaton, escapes

KEYS = ("current observation", "action")
NAME_BYTES = 128  # of a landmark's name at most
SIDE_MARK = b" is on your "
DESTINATION = b"the destination "  # in any case, as the next two
PREFIXES = 2  # times that it may stand before a name: a name may itself start with it
NOTHING = b"no landmark"
INTERSECTION = b"you observe an intersection"
_OUTER = b" \t\n\r\f\v"  # blanks around a value
_BLANKS = (" ", "\t")  # the space, which stands in a key, and every other blank

# What the scan does at a byte for each key's value: two bits for the first key, two for the second.
_NOTHING, _FORGET, _BEGIN, _END = range(4)
_ACTIONS = 4 ** len(KEYS)
_SYMBOLS = ('"', "'", *_BLANKS, ":", *sorted(set("".join(KEYS)) - {" "}))
_SYMBOLS = (*_SYMBOLS, "letter", "other", "end")  # a letter that no key has


@struct.dataclass
class RouteAnswer:
    """What a reply says, before any route is looked at."""

    action: Int[Array, "*b"]  # row of the table of actions; -1: none of them
    observed: Bool[Array, "*b"]  # True where there is an observation
    name: UInt8[Array, "*b 128"]  # of the landmark it names; 0 behind it
    name_length: Int[Array, "*b"]  # bytes of the whole name; 0: it names no landmark
    intersection: Bool[Array, "*b"]  # True where it claims one


class _Automaton(NamedTuple):
    symbol: np.ndarray  # [257] index into _SYMBOLS; row 256 is the end of the reply
    table: np.ndarray  # [states * symbols] = next state * _ACTIONS + action


def byte_rows(texts: Sequence[str], width: int = 0) -> UInt8[np.ndarray, "n w"]:
    """The texts' bytes, one text a row, 0 behind them; as wide as the longest, or `width`.

    ValueError for a text of more than `width` bytes, where a width is given.
    """
    spelled = [text.replace("\u00a0", " ").encode("utf-8", "surrogatepass") for text in texts]
    most = max(map(len, spelled), default=0)
    if width and most > width:
        long = next(text for text, row in zip(texts, spelled, strict=True) if len(row) > width)
        raise ValueError(f"text: given {long!r}, allowed: at most {width} bytes; shorten it")
    rows = np.zeros((len(texts), width or most), np.uint8)
    for row, text in zip(rows, spelled, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return rows


def bare_name(name: str) -> str:
    """A landmark's name as `parse` reads it: no blanks around it, no `The destination` before."""
    for _ in range(PREFIXES):
        name = name.strip(_OUTER.decode() + "\u00a0")
        if name.encode("utf-8", "surrogatepass").lower().startswith(DESTINATION):
            name = name[len(DESTINATION) :]
    return name.strip(_OUTER.decode() + "\u00a0")


def parse(
    reply: UInt8[Array, "L"], length: Int[Array, ""], actions: UInt8[Array, "n w"]
) -> RouteAnswer:
    """The reply's last observation and last action, of which `actions` lists the spellings.

    Only the first `length` bytes are read. Callers vmap over lanes.
    """
    text = escapes.undone(reply.astype(jnp.int32), length)
    begin, end = _values(text)
    ink = jnp.ones(256, bool).at[np.frombuffer(_OUTER, np.uint8)].set(False)[text.byte]
    start, stop = _trimmed(ink, begin[1], end[1])
    said = _window(text.byte, start, stop, actions.shape[1])
    same = (said == actions).all(-1) & ((actions != 0).sum(-1) == stop - start)
    start, stop, claimed = _observation(text.byte, ink, begin[0], end[0])
    return RouteAnswer(
        action=jnp.where(same.any(), jnp.argmax(same), -1).astype(jnp.int32),
        observed=end[0] >= 0,
        name=_window(text.byte, start, stop, NAME_BYTES).astype(jnp.uint8),
        name_length=stop - start,
        intersection=claimed,
    )


def _observation(byte: Array, ink: Array, begin: Array, end: Array) -> tuple[Array, Array, Array]:
    """(first byte of the landmark's name, the byte after it, whether an intersection is claimed)
    of the observation between `begin` and `end`; equal places if no landmark is named.
    """
    place, nowhere = jnp.arange(byte.shape[0]), byte.shape[0]
    lower = jnp.where((byte >= 65) & (byte <= 90), byte + 32, byte)
    begin, end = _trimmed(ink, begin, end)
    cuts = _found(lower, b"; " + INTERSECTION, begin, end)
    end = jnp.minimum(jnp.min(jnp.where(cuts, place, nowhere)), end)
    ahead = _starts(lower, INTERSECTION + b";", begin, end)
    begin += ahead * len(INTERSECTION + b";")
    sided = _found(byte, SIDE_MARK, begin, end)
    side, has_side = jnp.max(jnp.where(sided, place, -1)), sided.any()
    rest = jnp.where(has_side, side + len(SIDE_MARK), begin)
    claims = _found(lower, INTERSECTION, rest, end)
    breaks = claims | ((byte == ord(";")) & (place >= begin) & (place < end))
    other = jnp.minimum(jnp.min(jnp.where(breaks, place, nowhere)), end)
    first, last = _trimmed(ink, begin, jnp.where(has_side, side, other))
    none = ~has_side & _starts(lower, NOTHING, first, last)
    for _ in range(PREFIXES):
        arrived = _starts(lower, DESTINATION, first, last)
        first, last = _trimmed(ink, first + arrived * len(DESTINATION), last)
    return first, jnp.where(none, first, last), claims.any() | cuts.any() | ahead


def _found(byte: Array, phrase: bytes, begin: Array, end: Array) -> Array:
    """True where the phrase starts and is wholly between `begin` and `end`."""
    place = jnp.arange(byte.shape[0])
    found = (place >= begin) & (place <= end - len(phrase))
    step, four = 4, byte  # four bytes at a time are compared
    for offset in range(1, step):
        four = four << 8 | jnp.roll(byte, -offset)
    for offset in [*range(0, len(phrase) - step, step), len(phrase) - step]:
        wanted = int.from_bytes(phrase[offset : offset + step], "big")
        found &= jnp.roll(four, -offset) == wanted
    return found


def _starts(byte: Array, phrase: bytes, begin: Array, end: Array) -> Array:
    """True if the text between `begin` and `end` starts with the phrase."""
    wanted = np.frombuffer(phrase, np.uint8)
    return (_window(byte, begin, end, len(phrase)) == wanted).all()


def _trimmed(ink: Array, begin: Array, end: Array) -> tuple[Array, Array]:
    """The span from its first to its last byte that is no blank; (0, 0) without any."""
    place = jnp.arange(ink.shape[0])
    inside = ink & (place >= begin) & (place < end)
    last = jnp.max(jnp.where(inside, place + 1, 0))
    return jnp.where(last > 0, jnp.argmax(inside), 0).astype(jnp.int32), last.astype(jnp.int32)


def _window(byte: Array, begin: Array, end: Array, width: int) -> Array:
    """The bytes between `begin` and `end`, cut or filled with 0 to `width`."""
    place = begin + jnp.arange(width)
    return jnp.where(place < end, byte[jnp.minimum(place, byte.shape[0] - 1)], 0)


def _values(text: escapes.Text) -> tuple[Array, Array]:
    """First place and end of each key's value; an end of -1 where there is no such string."""
    tables = _automaton()
    place, table = jnp.arange(text.byte.shape[0]), jnp.asarray(tables.table)
    symbol = jnp.asarray(tables.symbol)[jnp.where(place < text.length, text.byte, 256)]
    quoted = (symbol < 2) & ~text.bare  # an escaped quote is a letter like any other
    symbol = jnp.where(quoted, _SYMBOLS.index("other"), symbol)

    def step(carry, at):
        state, begin, end = carry
        place, symbol = at
        move = table[state * len(_SYMBOLS) + symbol]
        state, action = move // _ACTIONS, (move >> 2 * np.arange(len(KEYS))) % 4
        begin = jnp.where(action == _BEGIN, place + 1, begin)
        end = jnp.where(action == _END, place, jnp.where(action == _FORGET, -1, end))
        return (state, begin, end), None

    none = jnp.full(len(KEYS), -1, jnp.int32)
    (_, begin, end), _ = jax.lax.scan(step, (jnp.int32(0), none, none), (place, symbol))
    return begin, end


@functools.lru_cache(1)
def _automaton() -> _Automaton:
    """All states that the start reaches, numbered in the order found."""
    symbol = np.full(257, _SYMBOLS.index("other"), np.int32)
    symbol[256] = _SYMBOLS.index("end")
    symbol[list(automaton.LETTERS)] = _SYMBOLS.index("letter")
    for index, name in enumerate(_SYMBOLS):
        if len(name) == 1:
            symbol[ord(name)] = index
    symbol[list(b"\t\n\r")] = _SYMBOLS.index("\t")
    states = [(("", "", 0), (("none",),) * len(KEYS))]
    rows = []
    while len(rows) < len(states):
        key, values = states[len(rows)]
        row = []
        for name in _SYMBOLS:
            after, action = _after(key, values, name)
            if after not in states:
                states.append(after)
            row.append(states.index(after) * _ACTIONS + action)
        rows.append(row)
    return _Automaton(symbol, np.array(rows, np.int32).reshape(-1))


def _after(key: tuple, values: tuple, symbol: str) -> tuple[tuple, int]:
    """((key state, state of each value), actions); nothing changes behind the reply's end."""
    if symbol == "end":
        return (key, values), _NOTHING
    key, found = _key_after(key, symbol)
    moves = [_value_after(value, symbol) for value in values]
    if found is not None:
        moves[found] = ("colon",), _FORGET
    actions = sum(action << 2 * index for index, (_, action) in enumerate(moves))
    return (key, tuple(value for value, _ in moves)), actions


def _key_after(key: tuple[str, str, int], symbol: str) -> tuple[tuple[str, str, int], int | None]:
    """(how much of a key has been read, the index of the key whose colon this symbol is).

    Key (quote, letters, closed): closed is 1 at the closing quote and 2 at blanks behind it. No
    key opens right behind a letter, blanks or not; ("", "x", 0) is there.
    """
    quote, letters, closed = key
    if closed and symbol in _BLANKS:
        return (quote, letters, 2), None
    if closed and symbol == ":":
        return ("", "", 0), KEYS.index(letters)
    if quote and not closed and any(known.startswith(letters + symbol) for known in KEYS):
        return (quote, letters + symbol, 0), None
    if quote and not closed and symbol == quote and letters in KEYS:
        return (quote, letters, 1), None
    behind = "x" if letters and not closed else ""
    if symbol in ('"', "'"):
        return ("" if behind else symbol, "", 0), None
    if symbol not in _BLANKS:
        behind = "x" if symbol == "letter" or symbol in "".join(KEYS) else ""
    return ("", behind, 0), None


def _value_after(value: tuple, symbol: str) -> tuple[tuple, int]:
    """(the value's state, the action). A value that went wrong is "none" until its next key."""
    kind, *rest = value
    if kind == "colon" and symbol in ('"', "'"):
        return ("string", symbol), _BEGIN
    if kind == "colon":
        return (value if symbol in _BLANKS else ("none",)), _NOTHING
    if kind == "string" and symbol == rest[0]:
        return ("none",), _END
    return value, _NOTHING

"""The escapes of JSON, undone in a row of bytes on the device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gp_virl.text.automaton import END

OTHER = 255  # stands for what no formula and no list of cards has


class Text(NamedTuple):
    """A text whose escapes are undone."""

    byte: Int[Array, "L"]  # 0 behind it
    bare: Bool[Array, "L"]  # True where the byte was no escape
    length: Int[Array, ""]


def in_place(read: Int[Array, "L"]) -> Int[Array, "L"]:
    """The bytes, END behind the reply, with END also where an escape leaves fewer of them.

    \\n, \\t, \\r, \\/ and the \\uXXXX of ASCII and U+00A0 (a space) become the byte they mean;
    quotes, backslashes and all other escapes become OTHER, as they end no string.
    """
    slash = read == ord("\\")
    escaped = _escaped(slash) & (read != END)
    meant = np.full(END + 1, OTHER, np.int32)
    meant[np.frombuffer(b"ntr/", np.uint8)] = np.frombuffer(b"\n\t\r/", np.uint8)
    here, unit = _units(read, escaped & (read == ord("u")))
    plain = (unit < 0x80) & (unit != ord('"')) & (unit != ord("'")) & (unit != ord("\\"))
    code = jnp.where(plain, unit, jnp.where(unit == 0xA0, 32, OTHER))
    said = jnp.where(escaped, jnp.where(here, code, jnp.asarray(meant)[read]), read)
    digits = functools.reduce(jnp.bitwise_or, [_shifted(here, -n, False) for n in range(1, 5)])
    return jnp.where(digits | (slash & ~escaped), END, said)


def undone(byte: Int[Array, "L"], length: Int[Array, ""]) -> Text:
    """The text with the JSON escapes undone; a backslash before any other byte is dropped."""
    place = jnp.arange(byte.shape[0])
    byte = jnp.where(place < length, byte, 0)
    slash = byte == ord("\\")
    escaped = _escaped(slash) & (place < length)
    meant = jnp.arange(256).at[np.frombuffer(b"bfnrt", np.uint8)].set(np.array([8, 12, 10, 13, 9]))
    units, count, spelling = _unicode(byte, escaped & (byte == ord("u")))
    owner = jax.lax.cummax(jnp.where(units, place, -1))
    offset = place - owner
    within = (owner >= 0) & (offset < 5)  # u and four digits
    spelled = spelling[owner, jnp.minimum(offset, 3)]
    gap = (byte == 0xC2) & (_shifted(byte, 1, 0) == 0xA0)
    byte = jnp.where((byte == 0xA0) & _shifted(gap, -1, False), 32, byte)
    byte = jnp.where(within, spelled, jnp.where(escaped, meant[byte], byte))
    kept = jnp.where(within, offset < count[owner], ~gap & (~slash | escaped)) & (place < length)
    target = jnp.where(kept, jnp.cumsum(kept) - 1, byte.shape[0])
    return Text(
        byte=jnp.zeros_like(byte).at[target].set(byte, mode="drop"),
        bare=jnp.zeros_like(kept).at[target].set(~escaped & ~within, mode="drop"),
        length=kept.sum(),
    )


def _escaped(slash: Array) -> Array:
    """True behind an odd number of backslashes."""
    place = jnp.arange(slash.shape[0])
    other = jax.lax.cummax(jnp.where(slash, -1, place))  # the last byte that is no backslash
    run = place - 1 - _shifted(other, -1, -1)  # backslashes just before
    return run % 2 == 1


def _units(byte: Array, here: Array) -> tuple[Array, Array]:
    """(True at each u of `here` with four hexadecimal digits behind it, the number they write)."""
    digits = np.full(END + 1, -1, np.int32)
    for value, digit in enumerate("0123456789abcdef"):
        digits[[ord(digit), ord(digit.upper())]] = value
    digit = jnp.asarray(digits)[byte]
    ahead = [_shifted(digit, step, -1) for step in range(1, 5)]
    units = functools.reduce(lambda a, b: a & (b >= 0), ahead, here)
    unit = sum(value << (12 - 4 * step) for step, value in enumerate(ahead))
    return units, jnp.where(units, unit, 0)


def _unicode(byte: Array, here: Array) -> tuple[Array, Array, Array]:
    """(True at the u of each \\uXXXX, bytes of its character in UTF-8, these bytes [L, 4]).

    The first of two surrogates has all the bytes of their character; U+00A0 becomes a space.
    """
    units, unit = _units(byte, here)
    low = _shifted(unit, 6, 0)
    pair = (unit >> 10 == 0x36) & (low >> 10 == 0x37)
    code = jnp.where(pair, 0x10000 + ((unit & 0x3FF) << 10) + (low & 0x3FF), unit)
    code = jnp.where(code == 0xA0, 32, code)
    count = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
    tails = [(code >> shift) & 0x3F | 0x80 for shift in (0, 6, 12)]
    heads = [code, code >> 6 | 0xC0, code >> 12 | 0xE0, code >> 18 | 0xF0]
    rows = [jnp.stack([heads[n], *tails[:n][::-1], *[code] * (3 - n)], -1) for n in range(4)]
    spelling = jnp.take_along_axis(jnp.stack(rows, 1), (count - 1)[:, None, None], 1)[:, 0]
    return units, jnp.where(_shifted(pair, -6, False), 0, count), spelling


def _shifted(values: Array, step: int, fill: int | bool) -> Array:
    """values[i + step] at place i, `fill` where there is none."""
    place = jnp.arange(values.shape[0]) + step
    inside = (place >= 0) & (place < values.shape[0])
    return jnp.where(inside, jnp.roll(values, -step), fill)

"""A toy field, its letters the same at both ends, read as a regular expression reads it."""

import re

import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.text import automaton
from gp_virl.text.automaton import COLON, DONE, NONE, NOTHING

FIELD = re.compile(rb"""(["'])aha\1[ \t\n\r]*:[ \t\n\r]*""")
COUNT = 2
bits = [b'"', b"'", b"aha", b"a", b"h", b":", b" ", b"\n", b"0", b"7", b".", b"x", b"\xff"]
bits += [b'"aha":', b"'aha' : ", b'"aha": 12.', b'"aha"aha":3.']


def digits_after(value: tuple, symbol: str) -> tuple[tuple, int]:
    """Values are one digit or more and a full stop."""
    if symbol == "0":
        return ("digits",), COUNT
    return (DONE if symbol == "." and value != COLON else NONE), NOTHING


TOY = automaton.compiled("aha", (".",), {"0": b"0123456789"}, digits_after)


def read(text: bytes) -> tuple[bool, int]:
    """(whether the last value is whole, its digits), with the table walked in Python."""
    state, count = 0, 0
    for byte in [*text, automaton.END, automaton.END]:
        state, action = divmod(TOY.table[state * TOY.symbols + TOY.symbol[byte]], 8)
        count = 0 if action == automaton.RESTART else count + (action == COUNT)
    return bool(TOY.done[state]), count


@given(st.lists(st.sampled_from(bits), max_size=20).map(b"".join))
def test_the_last_field_is_read_as_the_expression_reads_it(text: bytes) -> None:
    found = [(text[: m.start()].rstrip(b" \t\n\r")[-1:], m.end()) for m in FIELD.finditer(text)]
    starts = [end for before, end in found if not before.isalpha()]
    value = re.match(rb"([0-9]+)\.", text[starts[-1] :]) if starts else None
    whole, digits = read(text)
    assert whole == (value is not None), text
    if value:
        assert digits == len(value[1]), text


def test_a_move_is_the_tables() -> None:
    state, seen = jnp.int32(0), []
    for byte in b'"aha": 7.':
        state, action = TOY.move(state, jnp.asarray(TOY.symbol[byte]))
        seen.append(int(action))
    assert seen == [0] * 5 + [automaton.RESTART, 0, COUNT, 0] and TOY.done[int(state)]

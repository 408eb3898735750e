"""Finite automata that find a field of a reply and read its value, compiled to tables.

A field is its name between two like quotes, blanks, a colon and a value; the last one counts. No
field opens right behind a letter, blanks or not: there a quoted word stands in a sentence. How
its value is read is a plain function of one state and one symbol. What is not finite (numbers,
counts, depths) is left to the scan that runs the automaton: the table tells it what to do.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

END = 256  # the symbol table's row for what lies behind the reply
BLANKS = b" \t\n\r"
LETTERS = string.ascii_letters.encode()
# States of a value: none is being read, the colon was read, the value is whole.
NONE, COLON, DONE = ("none",), ("colon",), ("done",)
# Actions: every automaton restarts at the colon of its key; 2..7 are its own.
NOTHING, RESTART = range(2)
ACTIONS = 8

# (state, symbol) -> (next state, action)
ValueRule = Callable[[tuple, str], tuple[tuple, int]]


@dataclass(frozen=True, eq=False)
class Automaton:
    """The tables of one field's automaton; state 0 is the start."""

    symbol: np.ndarray  # [257] of each byte and the end: bytes that no rule tells apart share one
    table: np.ndarray  # [states * symbols] = next state * ACTIONS + action
    done: np.ndarray  # [states] True where the last value is whole
    symbols: int

    def move(
        self, state: Int[Array, ""], symbol: Int[Array, ""]
    ) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """(next state, action)."""
        entry = jnp.asarray(self.table)[state * self.symbols + symbol]
        return entry // ACTIONS, entry % ACTIONS


def compiled(
    field: str, names: Sequence[str], alike: Mapping[str, bytes], value_after: ValueRule
) -> Automaton:
    """The automaton of the field whose values `value_after` reads.

    A symbol is called by its byte as a character, a class of `alike` by its key (a letter if and
    only if the class has nothing but letters), any other ASCII letter "letter", any other byte
    "other". Quotes, blanks (" "), the colon and the letters of `field` are symbols in any case.
    `value_after` is not asked in the states NONE and DONE, nor for blanks right after the colon.
    """
    singles = [name for name in ('"', "'", ":", *field, *names) if name not in alike]
    symbols = tuple(dict.fromkeys((*singles, " ", *alike, "letter", "other", "end")))
    symbol = np.full(END + 1, symbols.index("other"), np.int32)
    symbol[list(LETTERS)] = symbols.index("letter")
    for name, group in {**{s: s.encode("latin-1") for s in singles}, " ": BLANKS, **alike}.items():
        symbol[list(group)] = symbols.index(name)
    symbol[END] = symbols.index("end")
    states, rows = [(("", 0), NONE)], []
    while len(rows) < len(states):  # all states that the start reaches, in the order found
        row = []
        for name in symbols:
            after, action = _after(field, *states[len(rows)], name, value_after)
            if after not in states:
                states.append(after)
            row.append(states.index(after) * ACTIONS + action)
        rows.append(row)
    done = np.array([value == DONE for _, value in states])
    return Automaton(symbol, np.array(rows, np.int32).reshape(-1), done, len(symbols))


def _after(
    field: str, key: tuple[str, int], value: tuple, symbol: str, value_after: ValueRule
) -> tuple[tuple, int]:
    """((key state, value state), action); what lies behind the reply's end changes nothing."""
    if symbol == "end":
        return (key, value), NOTHING
    key, found = _key_after(field, key, symbol)
    if found:
        return (key, COLON), RESTART
    if value in (NONE, DONE) or (value == COLON and symbol == " "):
        return (key, value), NOTHING
    value, action = value_after(value, symbol)
    return (key, value), action


def _key_after(field: str, key: tuple[str, int], symbol: str) -> tuple[tuple[str, int], bool]:
    """(how much of a key has been read, whether this symbol is its colon).

    Key (quote, n): n = 1 is the quote, then come the letters, the closing quote, blanks after it.
    Outside a key ("letter", 0) is behind a letter and perhaps blanks.
    """
    quote, n = key
    closed = len(field) + 2
    if 1 <= n <= len(field) and symbol == field[n - 1]:
        return (quote, n + 1), False
    if n == len(field) + 1 and symbol == quote:
        return (quote, closed), False
    if n >= closed and symbol == " ":
        return (quote, closed + 1), False
    if n >= closed and symbol == ":":
        return ("", 0), True
    behind = quote == "letter" or 2 <= n < closed
    if symbol in ('"', "'"):
        return (("", 0) if behind else (symbol, 1)), False
    if symbol != " ":
        behind = symbol == "letter" or (len(symbol) == 1 and symbol in string.ascii_letters)
    return ("letter" if behind else "", 0), False

"""Formulas over four numbers: the exact table of all solutions, and exact values on the device.

All arithmetic is on integer numerators and denominators. Two formulas are the same solution if
they are written alike with as few parentheses as the usual order of operations allows:
`(2*(13-10))*4` and `2*((13-10)*4)` are both `2*(13-10)*4`.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt8

from gp_virl.envs.cards import RANK_MULTISETS, FaceRule, multiset_index
from gp_virl.types import CARDS, Answer

OPERATORS = "+-*/"
# Order of the four numbers, sorted by value: position -> which number. Int[24, 4]
ORDERS = np.array(list(itertools.permutations(range(CARDS))))


class _Template(NamedTuple):
    text: str  # numbers are {0} .. {3} from left to right
    tree: tuple | int


@dataclass(frozen=True, eq=False)
class SolutionTable:
    """All solutions of every rank multiset under one rule and target.

    Solution s is template[s] written with the numbers in order ORDERS[order[s]]; those of
    multiset m are start[m] .. start[m + 1].
    """

    rule: FaceRule
    target: int
    start: Int32[np.ndarray, "1821"]
    template: UInt8[np.ndarray, "solutions"]
    order: UInt8[np.ndarray, "solutions"]

    @property
    def count(self) -> Int32[np.ndarray, "1820"]:
        """Solutions of each rank multiset."""
        return np.diff(self.start)

    @property
    def solvable(self) -> Bool[np.ndarray, "1820"]:
        """True for rank multisets that reach the target."""
        return self.count > 0

    def solutions(self, ranks: Int[np.ndarray, "4"]) -> list[str]:
        """Every formula that reaches the target, without `=`; ranks may be in any order.

        Sorted by the number of parentheses, then by the template's text, then by the numbers.
        """
        index = int(multiset_index(ranks))
        values = sorted(self.rule.values[rank] for rank in RANK_MULTISETS[index])
        rows = slice(int(self.start[index]), int(self.start[index + 1]))
        return [
            _templates()[template].text.format(*(values[place] for place in ORDERS[order]))
            for template, order in zip(self.template[rows], self.order[rows], strict=True)
        ]


@functools.lru_cache(32)
def solve(rule: FaceRule, target: int) -> SolutionTable:
    """The exact table for a rule and a target."""
    values = np.sort(np.array(rule.values)[RANK_MULTISETS], axis=1)
    hands, multiset = np.unique(values, axis=0, return_inverse=True)  # many ranks, one value
    numbers = hands[:, ORDERS]  # [hands, 24, 4]
    first = _first_of_equals(numbers)
    hits = np.stack([_reaches(t.tree, numbers, target) & first for t in _templates()], axis=1)
    hits = hits[multiset.reshape(-1)]
    index, template, order = np.nonzero(hits)
    start = np.searchsorted(index, np.arange(len(RANK_MULTISETS) + 1))
    return SolutionTable(
        rule=rule,
        target=target,
        start=start.astype(np.int32),
        template=template.astype(np.uint8),
        order=order.astype(np.uint8),
    )


def _first_of_equals(numbers: np.ndarray) -> np.ndarray:
    """True where no earlier order of a hand lists the same four numbers. [hands, 24]"""
    same = (numbers[:, :, None] == numbers[:, None, :]).all(-1)
    return np.argmax(same, axis=2) == np.arange(len(ORDERS))


def _reaches(tree, numbers: np.ndarray, target: int) -> np.ndarray:
    """True where the tree's value is the target; a division by zero has no value."""
    numerator, denominator = _value(tree, numbers)
    return (denominator != 0) & (numerator == target * denominator)


def _value(tree, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(numerator, denominator); once a denominator is 0 it stays 0."""
    if isinstance(tree, int):
        return numbers[..., tree], np.ones_like(numbers[..., tree])
    operator, left, right = tree
    (a, b), (c, d) = _value(left, numbers), _value(right, numbers)
    if operator in "+-":
        return (a * d + c * b if operator == "+" else a * d - c * b), b * d
    return (a * c, b * d) if operator == "*" else (a * d, b * c * (d != 0))


@functools.lru_cache(1)
def _templates() -> tuple[_Template, ...]:
    """Every way to write three operators over four numbers with as few parentheses as possible."""
    found = {_written(tree): tree for tree in _trees(0, CARDS)}
    by_parentheses = sorted(found, key=lambda text: (text.count("("), text))
    return tuple(_Template(text, found[text]) for text in by_parentheses)


def _trees(first: int, last: int):
    """Every expression tree over the numbers first .. last - 1, kept in that order."""
    if last - first == 1:
        yield first
    for middle in range(first + 1, last):
        for left, right in itertools.product(_trees(first, middle), _trees(middle, last)):
            for operator in OPERATORS:
                yield operator, left, right


def _written(tree) -> str:
    """A tree as text with as few parentheses as possible."""
    if isinstance(tree, int):
        return f"{{{tree}}}"
    operator, left, right = tree
    wraps_left = not isinstance(left, int) and operator in "*/" and left[0] in "+-"
    # a+(b-c) is a+b-c and a*(b/c) is a*b/c, but a-(b+c), a/(b*c) and a*(b+c) are not.
    weak = {"+": "", "-": "+-", "*": "+-", "/": OPERATORS}[operator]
    wraps_right = not isinstance(right, int) and right[0] in weak
    texts = [
        f"({text})" if wrapped else text
        for text, wrapped in ((_written(left), wraps_left), (_written(right), wraps_right))
    ]
    return operator.join(texts)


def evaluate(answer: Answer) -> tuple[Int[Array, ""], Int[Array, ""], Bool[Array, ""]]:
    """(numerator, denominator, defined) of a formula with exactly four numbers up to 99.

    `defined` is False if something was divided by zero. Exact in int32: no intermediate exceeds
    2 * 99**4. The order of the operators is that of `gp_virl.types.Answer`.
    """
    tops, bottoms = answer.numbers[:CARDS], jnp.ones(CARDS, jnp.int32)
    operators, depths = answer.operators, answer.depths
    defined = jnp.bool_(True)
    while operators.shape[0]:
        at = jnp.argmax(depths * 2 + (operators >= 2))  # the first of the largest
        place = jnp.arange(operators.shape[0])
        here = place == at
        operator = jnp.sum(jnp.where(here, operators, 0))
        top, bottom, fine = _apply(operator, tops, bottoms, here)
        defined = defined & fine
        tops = jnp.where(here, top, jnp.where(place < at, tops[:-1], tops[1:]))
        bottoms = jnp.where(here, bottom, jnp.where(place < at, bottoms[:-1], bottoms[1:]))
        operators = jnp.where(place < at, operators, jnp.roll(operators, -1))[:-1]
        depths = jnp.where(place < at, depths, jnp.roll(depths, -1))[:-1]
    return tops[0], bottoms[0], defined


def _apply(operator, tops, bottoms, here):
    """One operator on the two fractions left and right of it: (top, bottom, divisor isn't 0)."""
    a, b, c, d = (
        jnp.sum(jnp.where(here, part, 0))
        for part in (tops[:-1], bottoms[:-1], tops[1:], bottoms[1:])
    )
    across = a * d, c * b
    top = jnp.stack([across[0] + across[1], across[0] - across[1], a * c, a * d])[operator]
    bottom = jnp.where(operator == 3, b * c, b * d)
    return top, bottom, (operator != 3) | (c != 0)


def reaches(
    top: Int[Array, ""], bottom: Int[Array, ""], target: int | Int[Array, ""]
) -> Bool[Array, ""]:
    """True where top / bottom is the target; no product that could overflow is taken."""
    divisor = jnp.where(bottom == 0, 1, bottom)
    return (bottom != 0) & (top % divisor == 0) & (top // divisor == target)

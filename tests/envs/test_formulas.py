"""The solution table against brute force with fractions, and exact values on the device."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest

from gp_virl.envs import cards, formulas
from gp_virl.text import replies
from tests import oracle

FACE_TEN, FACE_RANK = cards.face_rule("face_ten"), cards.face_rule("face_rank")


def test_known_counts() -> None:
    assert formulas.solve(FACE_RANK, 24).solvable.sum() == 1362
    values = np.array(FACE_TEN.values)[cards.RANK_MULTISETS]
    of_ten = np.unique(np.sort(values[formulas.solve(FACE_TEN, 24).solvable]), axis=0)
    assert len(of_ten) == 566  # of 715 multisets of 1..10


@pytest.mark.parametrize(
    ("rule", "target", "hand"),
    [
        (FACE_RANK, 24, "3 3 8 8"),
        (FACE_RANK, 24, "A 5 5 5"),
        (FACE_RANK, 24, "6 6 6 6"),
        (FACE_RANK, 24, "K 10 4 2"),
        (FACE_TEN, 24, "K 10 4 2"),
        (FACE_TEN, 24, "J Q K A"),
        (FACE_RANK, 1, "A 2 2 7"),
        (FACE_RANK, 36, "9 3 3 J"),
        (FACE_RANK, 24, "A A A A"),
    ],
)
def test_solutions_are_those_of_brute_force(rule: cards.FaceRule, target: int, hand: str) -> None:
    ranks = np.array([cards.SYMBOLS.index(symbol) for symbol in hand.split()])
    found = formulas.solve(rule, target).solutions(ranks)
    values = tuple(rule.values[rank] for rank in ranks)
    assert len(found) == len(set(found))
    assert set(found) == oracle.written_once(values, target)
    parentheses = [text.count("(") for text in found]
    assert parentheses == sorted(parentheses)
    assert found == formulas.solve(rule, target).solutions(ranks[::-1])
    assert formulas.solve(rule, target).count[cards.multiset_index(ranks)] == len(found)


def reachable(values: tuple[Fraction, ...], target: int) -> bool:
    """Plain search: combine any two numbers until one is left."""
    if len(values) == 1:
        return values[0] == target
    for i, j in itertools.permutations(range(len(values)), 2):
        rest = tuple(v for k, v in enumerate(values) if k not in (i, j))
        for operator in "+-*/":
            if operator == "/" and values[j] == 0:
                continue
            if reachable((*rest, oracle.apply(operator, values[i], values[j])), target):
                return True
    return False


@pytest.mark.parametrize(("rule", "target"), [(FACE_RANK, 24), (FACE_TEN, 97)])
def test_solvable_hands(rule: cards.FaceRule, target: int) -> None:
    solvable = formulas.solve(rule, target).solvable
    for index in np.random.default_rng(0).choice(1820, 60, replace=False):
        values = tuple(Fraction(rule.values[rank]) for rank in cards.RANK_MULTISETS[index])
        assert solvable[index] == reachable(values, target), values


def test_values_on_the_device_are_exact() -> None:
    """Every shape and operator; some divide by zero, some numbers are as large as can be."""
    texts = []
    for numbers in ((3, 3, 8, 8), (5, 2, 4, 2), (99, 99, 99, 99), (98, 99, 97, 1)):
        texts += oracle._full_texts(list(numbers))
    size = 64
    rows = np.zeros((len(texts), size), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        said = f'"formula":"{text}"'.encode()
        row[: len(said)] = np.frombuffer(said, np.uint8)
    lengths = np.full(len(texts), size, np.int32)

    @jax.jit
    @jax.vmap
    def evaluate(row, length):
        top, bottom, defined = formulas.evaluate(replies.parse(row, length))
        return top, bottom, defined, formulas.reaches(top, bottom, 24)

    results = zip(texts, *map(np.asarray, evaluate(rows, lengths)), strict=True)
    undefined = 0
    for text, top, bottom, fine, hit in results:
        value = oracle._value(text)
        assert fine == (value is not None), text
        undefined += value is None
        if value is not None:
            assert Fraction(int(top), int(bottom)) == value, text
            assert hit == (value == 24), text
    assert len(texts) == 4 * 320 and undefined > 20

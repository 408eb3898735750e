"""The deck, the rules, and the distribution of the hands dealt."""

import collections
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gp_virl.envs import cards, formulas

FACE_TEN = cards.face_rule("face_ten")


def test_ranks_and_multisets() -> None:
    assert cards.SYMBOLS == ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
    assert len(cards.RANK_MULTISETS) == 1820
    shuffled = np.random.default_rng(0).permuted(cards.RANK_MULTISETS, axis=1)
    assert (cards.multiset_index(shuffled) == np.arange(1820)).all()


def test_rules() -> None:
    assert FACE_TEN.values == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10)
    assert cards.face_rule("face_rank").values == tuple(range(1, 14))
    assert cards.register_rule("cards_test_seven", 7, 7, 7).values[10:] == (7, 7, 7)
    assert "cards_test_seven" in cards.rule_names()
    assert cards.register_rule("cards_test_seven", 7, 7, 7) == cards.face_rule("cards_test_seven")
    with pytest.raises(ValueError, match="another name"):
        cards.register_rule("cards_test_seven", 7, 7, 8)
    with pytest.raises(ValueError, match=r"100.*1\.\.99"):
        cards.register_rule("cards_test_wide", 7, 7, 100)
    with pytest.raises(ValueError, match="cards_test_wide.*face_ten, face_rank"):
        cards.face_rule("cards_test_wide")


def test_every_set_of_cards_once() -> None:
    every = np.ones(1820, bool)
    hands = cards.admissible_hands(every, "all")
    assert {frozenset(hand) for hand in hands.tolist()} == set(
        map(frozenset, itertools.combinations(range(52), 4))
    )
    assert len(hands) == 270_725
    for suits, allowed in (("black", {0, 2}), ("red", {1, 3})):
        hands = cards.admissible_hands(every, suits)
        assert len(np.unique(np.sort(hands, axis=1), axis=0)) == len(hands) == 14_950
        assert set(np.unique(hands % 4).tolist()) == allowed
        assert set(np.unique(hands // 4).tolist()) == set(range(13))
    with pytest.raises(ValueError, match="pink.*all, black, red"):
        cards.admissible_hands(every, "pink")


def rejected_until_admissible(count: int, admissible: np.ndarray) -> collections.Counter:
    """Rank multisets of hands dealt as a person would, in plain Python."""
    rng = random.Random(0)
    seen = collections.Counter()
    while seen.total() < count:
        index = int(cards.multiset_index(np.array(rng.sample(range(52), 4)) // 4))
        seen[index] += bool(admissible[index])
    return +seen


def test_dealing_has_the_distribution_of_redealing() -> None:
    admissible = formulas.solve(FACE_TEN, 24).solvable & cards.with_face()
    hands = cards.admissible_hands(admissible, "all")
    weight = np.bincount(cards.multiset_index(hands // 4), minlength=1820)
    assert (weight[~admissible] == 0).all() and (weight[admissible] > 0).all()
    seen = rejected_until_admissible(20_000, admissible)
    seen = np.array([seen[index] for index in range(1820)])
    expected = weight / weight.sum() * seen.sum()
    common = expected >= 5
    observed = np.append(seen[common], seen[~common].sum())
    assert stats.chisquare(observed, np.append(expected[common], expected[~common].sum()))[1] > 1e-3


def test_deal_draws_evenly_and_in_any_order() -> None:
    hands = jnp.array([[0, 1, 2, 3], [0, 20, 33, 51], [7, 8, 9, 50], [0, 0, 0, 0]], jnp.uint8)
    keys = jax.random.split(jax.random.key(1), 30_000)
    ranks, suits = jax.jit(jax.vmap(lambda key: cards.deal(key, hands, jnp.int32(3))))(keys)
    seen = collections.Counter(map(tuple, np.asarray(ranks * 4 + suits).tolist()))
    possible = {order for hand in hands[:3].tolist() for order in itertools.permutations(hand)}
    assert set(seen) == possible
    assert stats.chisquare(list(seen.values()))[1] > 1e-3


def test_held_out_share() -> None:
    for share, count in ((0.0, 0), (0.1, 182), (0.5, 910)):
        assert cards.held_out_multisets(share, 3).sum() == count
    one, again, other = (cards.held_out_multisets(0.1, seed) for seed in (3, 3, 4))
    assert (one == again).all() and (one != other).any()

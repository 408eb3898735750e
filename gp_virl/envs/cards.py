"""The deck as arrays, face rules, and dealing.

A card is rank * 4 + suit; ranks 0..12 are A, 2..10, J, Q, K and suits 0..3 are spades, hearts,
clubs, diamonds. Dealing four cards until the hand is admissible gives every admissible set of
four cards the same chance, in any order; so `deal` draws from the list of them, exactly and
without a loop.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int64, Integer, Key, UInt8

from gp_virl.types import CARDS

SYMBOLS = ("A", *map(str, range(2, 11)), "J", "Q", "K")
SUITS = ("spades", "hearts", "clubs", "diamonds")
RANKS = len(SYMBOLS)
JACK = SYMBOLS.index("J")
SUIT_CHOICES = {"all": (0, 1, 2, 3), "black": (0, 2), "red": (1, 3)}
HAND_CHOICES = ("all", "seen", "held_out")
LARGEST_VALUE = 99
MOST_HANDS = math.comb(RANKS * len(SUITS), CARDS)  # 270,725 sets of four cards

# Every multiset of four ranks, each in ascending order: Int[1820, 4], in lexicographic order.
RANK_MULTISETS = np.array(list(itertools.combinations_with_replacement(range(RANKS), CARDS)))
_ORDERS = np.array(list(itertools.permutations(range(CARDS))))


@dataclass(frozen=True)
class FaceRule:
    """What J, Q and K count; A counts 1 and 2..10 their number."""

    name: str
    jack: int
    queen: int
    king: int

    @property
    def values(self) -> tuple[int, ...]:
        """The value of each rank, A first."""
        return (*range(1, 11), self.jack, self.queen, self.king)


_rules: dict[str, FaceRule] = {}


def register_rule(name: str, jack: int, queen: int, king: int) -> FaceRule:
    """The rule, known from now on by its name, e.g. register_rule('all_seven', 7, 7, 7).

    Raises ValueError for a value outside 1..99 or a name that means another rule already.
    """
    rule = FaceRule(name, jack, queen, king)
    for value in (jack, queen, king):
        if type(value) is not int or not 1 <= value <= LARGEST_VALUE:
            raise ValueError(
                f"rule {name!r}: given value {value!r}, allowed: an integer in 1..{LARGEST_VALUE}"
            )
    if _rules.setdefault(name, rule) != rule:
        raise ValueError(f"rule {name!r} is {_rules[name]}; register {rule} under another name")
    return rule


def face_rule(name: str) -> FaceRule:
    """The registered rule of that name; raises ValueError with the known names."""
    if name not in _rules:
        raise ValueError(
            f"rule: given {name!r}, allowed: {', '.join(rule_names())}; others are added with "
            "gp_virl.envs.cards.register_rule"
        )
    return _rules[name]


def rule_names() -> tuple[str, ...]:
    """Names of all registered rules, in the order of registration."""
    return tuple(_rules)


register_rule("face_ten", jack=10, queen=10, king=10)
register_rule("face_rank", jack=11, queen=12, king=13)


def multiset_index(ranks: Integer[np.ndarray, "*b 4"]) -> Int64[np.ndarray, "*b"]:
    """Rows of RANK_MULTISETS; the order of the four ranks doesn't matter."""
    a, b, c, d = np.moveaxis(np.sort(ranks, axis=-1), -1, 0)
    return np.asarray(_index_of_ranks()[a, b, c, d])


@functools.lru_cache(1)
def _index_of_ranks() -> Int64[np.ndarray, "13 13 13 13"]:
    index = np.full((RANKS,) * CARDS, -1)
    index[tuple(RANK_MULTISETS.T)] = np.arange(len(RANK_MULTISETS))
    return index


def held_out_multisets(share: float, seed: int) -> Bool[np.ndarray, "1820"]:
    """True for the rank multisets kept from training: round(share * 1820) of them, by seed."""
    chosen = np.zeros(len(RANK_MULTISETS), bool)
    order = np.argsort(np.random.default_rng(seed).random(len(RANK_MULTISETS)))
    chosen[order[: round(share * len(RANK_MULTISETS))]] = True
    return chosen


def with_face() -> Bool[np.ndarray, "1820"]:
    """True for the rank multisets with at least one of J, Q, K."""
    return (RANK_MULTISETS >= JACK).any(axis=1)


def admissible_hands(
    admissible: Bool[np.ndarray, "1820"], suits: str
) -> UInt8[np.ndarray, "hands 4"]:
    """Every set of four cards of those suits whose ranks are admissible; at most 270,725 rows.

    Raises ValueError for an unknown choice of suits.
    """
    if suits not in SUIT_CHOICES:
        raise ValueError(f"suits: given {suits!r}, allowed: {', '.join(SUIT_CHOICES)}")
    sets = _card_sets(len(SUIT_CHOICES[suits]))
    kept = sets[admissible[multiset_index(sets // len(SUIT_CHOICES[suits]))]]
    rank, suit = np.divmod(kept, len(SUIT_CHOICES[suits]))
    return (rank * len(SUITS) + np.array(SUIT_CHOICES[suits])[suit]).astype(np.uint8)


@functools.lru_cache(2)
def _card_sets(suits: int) -> Int64[np.ndarray, "sets 4"]:
    """All sets of four cards of a deck of that many suits; a card is rank * suits + suit."""
    deck = RANKS * suits
    return np.array(list(itertools.combinations(range(deck), CARDS)))


def deal(
    key: Key[Array, ""], hands: UInt8[Array, "hands 4"], count: Int[Array, ""]
) -> tuple[Int[Array, "4"], Int[Array, "4"]]:
    """Ranks and suits of a hand drawn evenly from the first `count`, in a random order."""
    drawn = jax.random.randint(key, (), 0, count * len(_ORDERS))
    hand, order = drawn // len(_ORDERS), drawn % len(_ORDERS)
    cards = hands[hand].astype(jnp.int32)[jnp.asarray(_ORDERS)[order]]
    return cards // len(SUITS), cards % len(SUITS)

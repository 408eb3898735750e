"""GeneralPoints: four cards, one formula that reaches the target, up to `max_turns` tries."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from gp_virl.config import EnvConfig
from gp_virl.envs import card_images, cards, formulas
from gp_virl.envs.card_images import Scene
from gp_virl.types import CARDS, KEPT_NUMBERS, Answer, Verdict

OUTCOMES = ("solved", "wrong_value", "wrong_numbers", "illegal", "unrecognized")
SOLVED, WRONG_VALUE, WRONG_NUMBERS, ILLEGAL, UNRECOGNIZED = range(len(OUTCOMES))
LARGEST_NAMED_VALUE = 999
JITTER = 0x717E  # folded into a hand's key: how its cards lie is drawn apart from what they are


@struct.dataclass
class Fault:
    """What was wrong with one reply, for the feedback; -1 stands for nothing."""

    outcome: Int[Array, "*b"]  # index into OUTCOMES, -1 before the first reply
    foreign: Int[Array, "*b 8"]  # numbers not in the hand or used too often, where they stood
    unused: Int[Array, "*b 4"]  # values of the hand's cards that were not used, by card
    value: Int[Array, "*b"]  # of the formula, if it used the hand and is an integer in 0..999


@struct.dataclass
class State:
    """One conversation: a hand, and what became of the replies so far."""

    ranks: Int[Array, "*b 4"]  # 0..12 for A, 2..10, J, Q, K
    suits: Int[Array, "*b 4"]  # 0..3 for spades, hearts, clubs, diamonds
    turn: Int[Array, "*b"]  # replies judged so far
    fault: Fault  # of the last reply
    scene: Scene | None  # the picture of the hand; None where the prompt lists it


@struct.dataclass
class GeneralPoints:
    """One variant of the game. All that tells variants with pictures from each other, and those
    without, is arrays of the same shapes, so that one compiled program plays them all."""

    values: Int[Array, "13"]  # of each rank under the face rule
    target: Int[Array, ""]
    deck: UInt8[Array, "270725 4"]  # sets of cards to deal; rows from deck_size on mean nothing
    deck_size: Int[Array, ""]
    max_turns: Int[Array, ""]
    rewards: Float[Array, "5"]  # by OUTCOMES
    exceeded: Float[Array, ""]  # added to the last failed try's reward
    added: Bool[Array, ""]  # wrong cards don't replace the formula's outcome, only cost a reward
    jitter_shift: Float[Array, ""]
    jitter_scale: Float[Array, ""]
    pictured: bool = struct.field(pytree_node=False)  # the cards are seen, not listed

    @classmethod
    def build(cls, config: EnvConfig) -> "GeneralPoints":
        """The variant of a configuration.

        Raises ValueError for an unknown rule, suits or hands, and for settings that leave no
        hand to deal.
        """
        hands = cards.admissible_hands(admissible(config), config.suits)
        if not len(hands):
            raise ValueError(
                f"no hand can be dealt: given rule={config.rule}, target={config.target}, "
                f"suits={config.suits}, require_face={config.require_face}, "
                f"hands={config.hands}, held_out={config.held_out}; choose a target that some "
                "hand reaches"
            )
        deck = np.zeros((cards.MOST_HANDS, CARDS), np.uint8)
        deck[: len(hands)] = hands
        rewards = [getattr(config.rewards, name) for name in OUTCOMES]
        return cls(
            values=jnp.array(cards.face_rule(config.rule).values, jnp.int32),
            target=jnp.int32(config.target),
            deck=jnp.asarray(deck),
            deck_size=jnp.int32(len(hands)),
            max_turns=jnp.int32(config.max_turns),
            rewards=jnp.array(rewards, jnp.float32),
            exceeded=jnp.float32(config.rewards.exceeded),
            added=jnp.bool_(config.recognition == "added"),
            jitter_shift=jnp.float32(config.jitter_shift),
            jitter_scale=jnp.float32(config.jitter_scale),
            pictured=config.modality == "image",
        )

    def reset(self, key: Key[Array, ""]) -> State:
        """A new hand, before the first reply; a key deals the same with and without a picture."""
        hand = cards.deal(key, self.deck, self.deck_size)
        if not self.pictured:
            return new_state(*hand)
        lying = jax.random.fold_in(key, JITTER)
        return new_state(
            *hand, card_images.jittered(lying, *hand, self.jitter_shift, self.jitter_scale)
        )

    def step(self, state: State, answer: Answer) -> tuple[State, Verdict]:
        """The state after one reply, and its verdict.

        The episode terminates when solved or at the `max_turns`th failed reply, whose reward
        includes `exceeded`. Cards are judged only in pictures.
        """
        recognized = recognizes(answer, state.ranks) if self.pictured else jnp.bool_(True)
        fault = judge(answer, self.values[state.ranks], self.target, recognized | self.added)
        misread = jnp.where(self.added & ~recognized, self.rewards[UNRECOGNIZED], 0.0)
        turn = state.turn + 1
        solved = fault.outcome == SOLVED
        exceeded = ~solved & (turn >= self.max_turns)
        verdict = Verdict(
            outcome=fault.outcome,
            reward=self.rewards[fault.outcome] + jnp.where(exceeded, self.exceeded, 0.0) + misread,
            solved=solved,
            recognized=recognized,
            terminated=solved | exceeded,
            truncated=jnp.zeros_like(solved),
            closed=solved | exceeded,
        )
        return state.replace(turn=turn, fault=fault), verdict


def admissible(config: EnvConfig) -> Bool[np.ndarray, "1820"]:
    """True for the rank multisets (rows of `cards.RANK_MULTISETS`) that are dealt."""
    if config.hands not in cards.HAND_CHOICES:
        raise ValueError(f"hands: given {config.hands!r}, allowed: {', '.join(cards.HAND_CHOICES)}")
    dealt = formulas.solve(cards.face_rule(config.rule), config.target).solvable
    if config.require_face:
        dealt = dealt & cards.with_face()
    held_out = cards.held_out_multisets(config.held_out, config.seed)
    return dealt & {"all": True, "seen": ~held_out, "held_out": held_out}[config.hands]


def new_state(ranks: Int[Array, "4"], suits: Int[Array, "4"], scene: Scene | None = None) -> State:
    """A given hand, before the first reply."""
    nothing = jnp.int32(-1)
    fault = Fault(
        outcome=nothing,
        foreign=jnp.full(KEPT_NUMBERS, -1, jnp.int32),
        unused=jnp.full(CARDS, -1, jnp.int32),
        value=nothing,
    )
    return State(ranks=ranks, suits=suits, turn=jnp.int32(0), fault=fault, scene=scene)


def recognizes(answer: Answer, ranks: Int[Array, "4"]) -> Bool[Array, ""]:
    """True for a reply that names exactly the hand's cards, in any order."""
    held = (ranks[:, None] == jnp.arange(cards.RANKS)).sum(0)
    return (answer.named == held).all()


def judge(
    answer: Answer,
    values: Int[Array, "4"],
    target: int | Int[Array, ""],
    recognized: bool | Bool[Array, ""] = True,
) -> Fault:
    """The outcome of a reply to a hand of these values, and what was wrong with it.

    With more than eight numbers only the first eight are named, and no card is called unused. If
    the cards were not `recognized`, nothing is said of the formula.
    """
    foreign, unused = _unmatched(answer, values)
    right_numbers = (answer.count == CARDS) & ~foreign.any()
    top, bottom, defined = formulas.evaluate(answer)
    solved = defined & formulas.reaches(top, bottom, target)
    outcome = jnp.where(solved, SOLVED, WRONG_VALUE)
    outcome = jnp.where(right_numbers, outcome, WRONG_NUMBERS)
    outcome = jnp.where(answer.legal, outcome, ILLEGAL)
    outcome = jnp.where(recognized, outcome, UNRECOGNIZED)
    wrong_numbers = outcome == WRONG_NUMBERS
    value = top // jnp.where(bottom == 0, 1, bottom)
    named = (outcome == SOLVED) | (outcome == WRONG_VALUE)
    named &= defined & (value >= 0) & (value <= LARGEST_NAMED_VALUE)
    named &= formulas.reaches(top, bottom, value)
    return Fault(
        outcome=outcome.astype(jnp.int32),
        foreign=jnp.where(foreign & wrong_numbers, answer.numbers, -1),
        unused=jnp.where(unused & wrong_numbers & (answer.count <= KEPT_NUMBERS), values, -1),
        value=jnp.where(named, value, -1).astype(jnp.int32),
    )


def _unmatched(
    answer: Answer, values: Int[Array, "4"]
) -> tuple[Bool[Array, "8"], Bool[Array, "4"]]:
    """(numbers without a card, cards without a number).

    The n-th use of a value takes its n-th card.
    """
    written = jnp.arange(KEPT_NUMBERS) < answer.count
    number_turn = _occurrence(answer.numbers)
    card_turn = _occurrence(values)
    match = (answer.numbers[:, None] == values) & (number_turn[:, None] == card_turn)
    match &= written[:, None]
    return written & ~match.any(1), ~match.any(0)


def _occurrence(numbers: Int[Array, "n"]) -> Int[Array, "n"]:
    """How many equal numbers stand before each."""
    return jnp.tril(numbers[:, None] == numbers, -1).sum(1)

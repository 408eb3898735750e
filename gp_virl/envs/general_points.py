"""GeneralPoints: four cards, one formula that reaches the target, up to `max_turns` tries."""

import functools
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from gp_virl.envs import cards, formulas
from gp_virl.types import CARDS, KEPT_NUMBERS, Answer, Verdict

OUTCOMES = ("solved", "wrong_value", "wrong_numbers", "illegal", "unrecognized")
SOLVED, WRONG_VALUE, WRONG_NUMBERS, ILLEGAL, UNRECOGNIZED = range(len(OUTCOMES))
LARGEST_NAMED_VALUE = 999


class RewardTable(Protocol):
    """Reward of each outcome, and `exceeded`, which is added to the last failed try."""

    solved: float
    wrong_value: float
    wrong_numbers: float
    illegal: float
    unrecognized: float
    exceeded: float


class Settings(Protocol):
    """The fields of `gp_virl.config.EnvConfig`."""

    rule: str
    target: int
    suits: str
    require_face: bool
    max_turns: int
    hands: str
    held_out: float
    seed: int
    rewards: RewardTable


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


@dataclass(frozen=True)
class GeneralPoints:
    """One variant of the game; `build` checks it."""

    rule: cards.FaceRule
    target: int
    suits: str
    require_face: bool
    max_turns: int
    hands: str
    held_out: float
    seed: int
    outcome_rewards: tuple[float, ...]  # by OUTCOMES
    exceeded: float

    @classmethod
    def build(cls, config: Settings) -> "GeneralPoints":
        """The variant of a configuration.

        Raises ValueError for an unknown rule, suits or hands, and for settings that leave no
        hand to deal.
        """
        for name, given, allowed in (
            ("suits", config.suits, cards.SUIT_CHOICES),
            ("hands", config.hands, cards.HAND_CHOICES),
        ):
            if given not in allowed:
                raise ValueError(f"{name}: given {given!r}, allowed: {', '.join(allowed)}")
        if config.target < 1 or config.max_turns < 1:
            raise ValueError(
                f"given target={config.target}, max_turns={config.max_turns}; allowed: integers >= 1"
            )
        env = cls(
            rule=cards.face_rule(config.rule),
            target=config.target,
            suits=config.suits,
            require_face=config.require_face,
            max_turns=config.max_turns,
            hands=config.hands,
            held_out=config.held_out,
            seed=config.seed,
            outcome_rewards=tuple(float(getattr(config.rewards, name)) for name in OUTCOMES),
            exceeded=float(config.rewards.exceeded),
        )
        if not len(env.dealt_hands):
            raise ValueError(
                f"no hand can be dealt: given rule={env.rule.name}, target={env.target}, "
                f"suits={env.suits}, require_face={env.require_face}, hands={env.hands}, "
                f"held_out={env.held_out}; choose a target that some hand reaches"
            )
        return env

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the values of `Verdict.outcome`."""
        return OUTCOMES

    @property
    def admissible(self) -> Bool[np.ndarray, "1820"]:
        """True for the rank multisets (rows of `cards.RANK_MULTISETS`) that are dealt."""
        chosen = formulas.solve(self.rule, self.target).solvable
        if self.require_face:
            chosen = chosen & cards.with_face()
        if self.hands != "all":
            held_out = cards.held_out_multisets(self.held_out, self.seed)
            chosen = chosen & (held_out if self.hands == "held_out" else ~held_out)
        return chosen

    @property
    def dealt_hands(self) -> UInt8[np.ndarray, "hands 4"]:
        """Every set of four cards that can be dealt."""
        return _dealt_hands(self)

    def reset(self, key: Key[Array, ""]) -> State:
        """A new hand, before the first reply."""
        ranks, suits = cards.deal(key, jnp.asarray(self.dealt_hands))
        return new_state(ranks, suits)

    def values(self, ranks: Int[Array, "*b 4"]) -> Int[Array, "*b 4"]:
        """What the hand's cards count."""
        return jnp.asarray(self.rule.values, jnp.int32)[ranks]

    def step(self, state: State, answer: Answer) -> tuple[State, Verdict]:
        """The state after one reply, and its verdict.

        The episode terminates when solved or at the `max_turns`th failed reply, whose reward
        includes `exceeded`.
        """
        fault = judge(answer, self.values(state.ranks), self.target)
        turn = state.turn + 1
        solved = fault.outcome == SOLVED
        exceeded = ~solved & (turn >= self.max_turns)
        reward = jnp.asarray(self.outcome_rewards, jnp.float32)[fault.outcome]
        verdict = Verdict(
            outcome=fault.outcome,
            reward=reward + jnp.where(exceeded, jnp.float32(self.exceeded), 0.0),
            solved=solved,
            terminated=solved | exceeded,
            truncated=jnp.zeros_like(solved),
        )
        return state.replace(turn=turn, fault=fault), verdict


@functools.lru_cache(16)
def _dealt_hands(env: GeneralPoints) -> UInt8[np.ndarray, "hands 4"]:
    return cards.admissible_hands(env.admissible, env.suits)


def new_state(ranks: Int[Array, "4"], suits: Int[Array, "4"]) -> State:
    """A given hand, before the first reply."""
    nothing = jnp.int32(-1)
    fault = Fault(
        outcome=nothing,
        foreign=jnp.full(KEPT_NUMBERS, -1, jnp.int32),
        unused=jnp.full(CARDS, -1, jnp.int32),
        value=nothing,
    )
    return State(ranks=ranks, suits=suits, turn=jnp.int32(0), fault=fault)


def judge(answer: Answer, values: Int[Array, "4"], target: int | Int[Array, ""]) -> Fault:
    """The outcome of a reply to a hand of these values, and what was wrong with it.

    With more than eight numbers only the first eight are named, and no card is called unused.
    """
    foreign, unused = _unmatched(answer, values)
    right_numbers = (answer.count == CARDS) & ~foreign.any()
    top, bottom, defined = formulas.evaluate(answer)
    solved = defined & formulas.reaches(top, bottom, target)
    outcome = jnp.where(
        ~answer.legal,
        ILLEGAL,
        jnp.where(~right_numbers, WRONG_NUMBERS, jnp.where(solved, SOLVED, WRONG_VALUE)),
    )
    wrong_numbers = outcome == WRONG_NUMBERS
    value = top // jnp.where(bottom == 0, 1, bottom)
    named = defined & (value >= 0) & (value <= LARGEST_NAMED_VALUE)
    named &= formulas.reaches(top, bottom, value) & answer.legal & right_numbers
    return Fault(
        outcome=outcome.astype(jnp.int32),
        foreign=jnp.where(foreign & wrong_numbers, answer.numbers, -1),
        unused=jnp.where(unused & wrong_numbers & (answer.count <= KEPT_NUMBERS), values, -1),
        value=jnp.where(named, value, -1).astype(jnp.int32),
    )


def _unmatched(
    answer: Answer, values: Int[Array, "4"]
) -> tuple[Bool[Array, "8"], Bool[Array, "4"]]:
    """(numbers without a card, cards without a number): the n-th use of a value takes its n-th card."""
    written = jnp.arange(KEPT_NUMBERS) < answer.count
    number_turn = _occurrence(answer.numbers)
    card_turn = _occurrence(values)
    match = (answer.numbers[:, None] == values) & (number_turn[:, None] == card_turn)
    match &= written[:, None]
    return written & ~match.any(1), ~match.any(0)


def _occurrence(numbers: Int[Array, "n"]) -> Int[Array, "n"]:
    """How many equal numbers stand before each."""
    return jnp.tril(numbers[:, None] == numbers, -1).sum(1)

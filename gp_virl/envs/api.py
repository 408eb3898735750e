"""What every environment offers to the rollout: pure functions over one lane, vmapped by callers.

An environment is a frozen, hashable dataclass (a static argument of a jitted function); all that
changes during an episode is in its state, a PyTree.
"""

from typing import Protocol, TypeVar

from jax import Array
from jaxtyping import Key

from gp_virl.types import Answer, Verdict

S = TypeVar("S")


class Environment(Protocol[S]):
    """A task with verifiable replies."""

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the values of `Verdict.outcome`."""
        ...

    def reset(self, key: Key[Array, ""]) -> S:
        """A new episode's state."""
        ...

    def step(self, state: S, answer: Answer) -> tuple[S, Verdict]:
        """The state after one reply, and its verdict; the caller resets what has terminated."""
        ...

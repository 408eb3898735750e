"""What every environment offers: pure functions over one lane, vmapped by callers.

Environments and tasks are PyTrees whose arrays tell one split from another, so that one compiled
program plays every split; all that changes during an episode is in its state, another PyTree.
"""

from typing import Protocol, TypeVar, runtime_checkable

from jax import Array
from jaxtyping import Int, Key, PyTree, UInt8

from gp_virl.types import Answer, Context, Verdict

S = TypeVar("S")


@runtime_checkable
class Environment(Protocol[S]):
    """A world with verifiable answers; it knows nothing of tokens."""

    def reset(self, key: Key[Array, ""]) -> S:
        """A new episode's state."""
        ...

    def step(self, state: S, answer: Answer) -> tuple[S, Verdict]:
        """The state after one reply, and its verdict; the caller resets what has terminated."""
        ...


@runtime_checkable
class Task(Protocol[S]):
    """An environment with its texts: what a rollout plays, tokens in and tokens out."""

    stop_ids: Int[Array, "n"]  # a reply ends with any of these tokens
    image_token: Int[Array, ""] | None  # stands in a context where its image is; None without

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the values of `Verdict.outcome`; the first is 'solved'."""
        ...

    def reset(self, key: Key[Array, ""]) -> S:
        """A new episode's state; it has an integer field `turn`, the replies so far."""
        ...

    def scene(self, state: S) -> PyTree | None:
        """What the image in sight shows, in a few arrays; None where a task has no images.

        It changes only when another image is in sight.
        """
        ...

    def picture(self, scene: PyTree | None) -> UInt8[Array, "H W 3"] | None:
        """The image of a scene; None for None."""
        ...

    def observe(self, state: S, past: Context) -> Context:
        """The whole context wanted at the next reply.

        `past` is the conversation with the last reply at its end, read only if it goes on.
        """
        ...

    def judge(self, state: S, tokens: Int[Array, "T"], length: Int[Array, ""]) -> tuple[S, Verdict]:
        """The state after a reply of `length` tokens, and its verdict."""
        ...

    def answer_start(self, tokens: Int[Array, "T"], length: Int[Array, ""]) -> Int[Array, ""]:
        """How many of the reply's tokens end before its answer field."""
        ...

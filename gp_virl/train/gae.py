"""Generalized advantage estimation over turns."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gae(
    reward: Float[Array, "R B"],
    value: Float[Array, "R B"],
    next_value: Float[Array, "R B"],
    terminated: Bool[Array, "R B"],
    truncated: Bool[Array, "R B"],
    discount: float,
    lam: float,
) -> Float[Array, "R B"]:
    """Advantage of each turn (Schulman et al. 2016, eq. 16); one step is one reply.

    `next_value[r]` is the value of the context that follows turn r in the same conversation; it
    is not read where the turn terminated. Neither advantage nor value leaks past an end.
    """
    ends = terminated | truncated
    surprise = reward + discount * jnp.where(terminated, 0.0, next_value) - value

    def back(later, turn):
        surprise, ends = turn
        now = surprise + discount * lam * jnp.where(ends, 0.0, later)
        return now, now

    return jax.lax.scan(back, jnp.zeros_like(value[0]), (surprise, ends), reverse=True)[1]


def normalised(
    advantage: Float[Array, "*n"], live: Bool[Array, "*n"] | None = None
) -> Float[Array, "*n"]:
    """Advantages with mean 0 and (sample) deviation 1 over the live turns, 0 elsewhere."""
    live = jnp.ones_like(advantage, bool) if live is None else live
    count = live.sum()
    mean = jnp.where(live, advantage, 0.0).sum() / jnp.maximum(count, 1)
    square = jnp.where(live, (advantage - mean) ** 2, 0.0).sum()
    deviation = jnp.sqrt(square / jnp.maximum(count - 1, 1))
    return jnp.where(live, (advantage - mean) / (deviation + 1e-5), 0.0)

"""Drawing a token for every lane."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key


@struct.dataclass
class Sampling:
    """How tokens are drawn; all traced, so that one compiled function serves every setting."""

    temperature: Float[Array, ""]  # 0 is greedy
    top_p: Float[Array, ""]  # mass of the nucleus; 1 keeps every token
    greedy: Bool[Array, ""]

    @classmethod
    def of(cls, temperature: float = 1.0, top_p: float = 1.0, greedy: bool = False) -> "Sampling":
        """Raises ValueError for a negative temperature or a top_p outside (0, 1]."""
        if temperature < 0:
            raise ValueError(f"temperature={temperature}: must be at least 0 (0 is greedy)")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")
        return cls(
            temperature=jnp.float32(temperature),
            top_p=jnp.float32(top_p),
            greedy=jnp.asarray(greedy or temperature == 0),
        )


def nucleus(probability: Float[Array, "B V"], top_p: Float[Array, ""]) -> Bool[Array, "B V"]:
    """True for the most probable tokens that together just reach `top_p`; ties stay together.

    The most probable token is always kept (Holtzman et al. 2020).
    """
    falling = -jnp.sort(-probability, axis=-1)
    before = jnp.cumsum(falling, axis=-1) - falling  # mass of all more probable tokens
    kept = (before < top_p).at[:, 0].set(True)
    least = jnp.where(kept, falling, jnp.inf).min(axis=-1, keepdims=True)
    return probability >= least


def sample(
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    places: Int[Array, "B"],
    sampling: Sampling,
    forbidden: Bool[Array, "V"] | None = None,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """A token for every lane, and its log-probability.

    It is drawn with the lane's key and the token's place in the context, so that neither other
    lanes nor the batch matter.

    The log-probability is that of the whole distribution at the sampling temperature (1 when
    greedy): neither top_p nor `forbidden` ids, which are never drawn, change it, so that a
    training forward can compute it again.
    """
    greedy = sampling.greedy | (sampling.temperature <= 0)
    heat = jnp.where(greedy, 1.0, jnp.maximum(sampling.temperature, 1e-6))
    logp = jax.nn.log_softmax(logits / heat, axis=-1)
    allowed = logp if forbidden is None else jnp.where(forbidden, -jnp.inf, logp)

    def draw(scores):
        def cut(scores):
            probability = jax.nn.softmax(scores, axis=-1)
            return jnp.where(nucleus(probability, sampling.top_p), scores, -jnp.inf)

        # Sorting is dear on every backend, and training samples without a nucleus.
        scores = jax.lax.cond(sampling.top_p < 1, cut, lambda scores: scores, scores)
        drawn = jax.vmap(jax.random.fold_in)(keys, places)  # of no use to a greedy token
        return jax.vmap(jax.random.categorical)(drawn, scores)

    token = jax.lax.cond(greedy, lambda scores: jnp.argmax(scores, axis=-1), draw, allowed)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]

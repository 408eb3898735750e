"""Log-probabilities and entropies of tokens, the vocabulary taken in chunks."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

VOCABULARY_CHUNK = 16_384


def token_logp(
    hidden: Float[Array, "*b D"],
    head: Float[Array, "D V"],
    target: Int[Array, "*b"],
    temperature: Float[Array, ""] | float = 1.0,
    chunk: int = VOCABULARY_CHUNK,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Float32 log-probability of `target` and entropy of softmax(hidden @ head / temperature).

    No array of [*b V] exists when V > chunk: a scan over the head's columns keeps a running
    maximum and sums, and recomputes its logits in the backward pass.
    """
    vocabulary = head.shape[1]
    chunks = -(-vocabulary // chunk)
    width = -(-vocabulary // chunks)
    padded = jnp.pad(head, ((0, 0), (0, chunks * width - vocabulary)))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry, index):
        top, total, weighted, hit = carry
        first = index * width
        part = jax.lax.dynamic_slice_in_dim(padded, first, width, axis=1)
        logits = jnp.matmul(
            hidden, part.astype(hidden.dtype), preferred_element_type=jnp.float32
        ) / temperature  # fmt: skip
        column = first + jnp.arange(width)
        logits = jnp.where(column < vocabulary, logits, -jnp.inf)
        new_top = jnp.maximum(top, jax.lax.stop_gradient(logits.max(-1)))
        shrink = jnp.exp(top - new_top)
        mass = jnp.exp(logits - new_top[..., None])
        finite = jnp.where(column < vocabulary, logits, 0.0)
        total = total * shrink + mass.sum(-1)
        weighted = weighted * shrink + (mass * finite).sum(-1)
        hit = hit + jnp.where(column == target[..., None], finite, 0.0).sum(-1)
        return (new_top, total, weighted, hit), None

    zero = jnp.zeros(target.shape, jnp.float32)
    carry = (jnp.full(target.shape, -1e30, jnp.float32), zero, zero, zero)
    if chunks == 1:
        carry, _ = step(carry, jnp.int32(0))
    else:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(chunks))
    top, total, weighted, hit = carry
    norm = top + jnp.log(total)
    return hit - norm, norm - weighted / total

"""Log-probabilities and entropies of tokens, the vocabulary taken in chunks."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gp_virl.sharding import constrain

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
    maximum and sums, and recomputes its logits in the backward pass. On a mesh every chunk has
    columns of each device's part, so that no device computes another's.
    """
    vocabulary = head.shape[1]
    parts = _parts(vocabulary)
    share = vocabulary // parts  # columns of a part
    chunks = -(-vocabulary // chunk)
    width = -(-share // chunks)
    padded = jnp.pad(head.reshape(-1, parts, share), ((0, 0), (0, 0), (0, chunks * width - share)))
    padded = constrain(padded, None, "vocab", None)
    rows = hidden.shape[:-1]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry, index):
        top, total, weighted, hit = carry
        part = jax.lax.dynamic_slice_in_dim(padded, index * width, width, axis=2)
        logits = jnp.matmul(
            hidden.reshape(-1, hidden.shape[-1]),
            part.reshape(part.shape[0], -1).astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        ) / temperature  # fmt: skip
        logits = logits.reshape(*rows, parts, width)
        logits = constrain(logits, "batch", *[None] * (len(rows) - 1), "vocab", None)
        inner = index * width + jnp.arange(width)
        column = jnp.arange(parts)[:, None] * share + inner
        real = inner < share
        logits = jnp.where(real, logits, -jnp.inf)
        new_top = jnp.maximum(top, jax.lax.stop_gradient(logits.max((-2, -1))))
        shrink = jnp.exp(top - new_top)
        mass = jnp.exp(logits - new_top[..., None, None])
        finite = jnp.where(real, logits, 0.0)
        wanted = real & (column == target[..., None, None])
        total = total * shrink + mass.sum((-2, -1))
        weighted = weighted * shrink + (mass * finite).sum((-2, -1))
        hit = hit + jnp.where(wanted, finite, 0.0).sum((-2, -1))
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


def _parts(vocabulary: int) -> int:
    """Parts in which the current mesh cuts the vocabulary; 1 without a mesh, or undivided."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["tensor"]
    return parts if vocabulary % parts == 0 else 1

"""Grouped-query attention over [B, heads, tokens, head_dim], in the forms the backends like."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

HIDDEN = -1e30  # score of a key that must not be seen; finite, so that a blind row stays finite
BLOCK = 64  # queries per causal block: XLA's CPU backend skips the keys after each block

# One stretch of keys and values and which of them each query sees. The mask may have
# one row for all queries.
Stretch = tuple[Float[Array, "B Kh _ d"], Float[Array, "B Kh _ d"], Bool[Array, "#B #q _"]]


def attend(q: Float[Array, "B H q d"], stretches: tuple[Stretch, ...]) -> Float[Array, "B H q d"]:
    """Attention over the union of several stretches of keys, which are never copied together.

    A query that sees no key gets a mean of values, which means nothing; it is never NaN.
    """
    batch, heads, queries, width = q.shape
    kv_heads = stretches[0][0].shape[1]
    q = (q * width**-0.5).reshape(batch, kv_heads, -1, width)  # heads of one group are rows
    scores = []
    for k, _, visible in stretches:
        score = jnp.einsum("bkgd,bksd->bkgs", q, k, preferred_element_type=jnp.float32)
        # Added, not selected: the gradient then passes through untouched, about a tenth less time.
        bias = jnp.where(visible, 0.0, HIDDEN)
        if visible.shape[1] > 1:
            bias = jnp.tile(bias, (1, heads // kv_heads, 1))
        scores.append(score + bias[:, None])
    top = scores[0].max(-1, keepdims=True)
    for score in scores[1:]:
        top = jnp.maximum(top, score.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    weights = [jnp.exp(score - top) for score in scores]
    total = sum(weight.sum(-1, keepdims=True) for weight in weights)
    out = sum(
        jnp.einsum("bkgs,bksd->bkgd", weight.astype(v.dtype), v, preferred_element_type=jnp.float32)
        for weight, (_, v, _) in zip(weights, stretches, strict=True)
    )
    return (out / total).astype(q.dtype).reshape(batch, heads, queries, width)


def attend_causal(
    form: str,
    q: Float[Array, "B H S d"],
    k: Float[Array, "B Kh S d"],
    v: Float[Array, "B Kh S d"],
    together: Bool[Array, "#B S S"] | None,
) -> Float[Array, "B H S d"]:
    """Each token attends to itself and to earlier ones that `together` allows (None: all).

    `form` is "blocks", "plain" or "dot_product" (ModelConfig.attention_form).
    """
    length = q.shape[2]
    if form == "dot_product":
        out = jax.nn.dot_product_attention(
            *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)),
            mask=None if together is None else together[:, None],
            is_causal=True,
        )
        return jnp.swapaxes(out, 1, 2)
    earlier = jnp.tril(jnp.ones((1, length, length), bool))
    visible = earlier if together is None else earlier & together
    block = BLOCK if form == "blocks" else length
    outs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        stretch = (k[:, :, :end], v[:, :, :end], visible[:, start:end, :end])
        outs.append(attend(q[:, :, start:end], (stretch,)))
    return jnp.concatenate(outs, axis=2)

"""Grouped-query attention over [B, heads, tokens, head_dim], in the forms the backends like.

`form` is a ModelConfig.attention_form. Where a query sees no key, all forms give a mean of values,
which means nothing.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gp_virl.model import splash

HIDDEN = -1e30  # score of a key that must not be seen; finite, so that a blind row stays finite
BLOCK = 64  # queries per causal block: XLA's CPU backend skips the keys after each block
CUDNN_BLOCK = 64  # tokens that cuDNN's kernels like a multiple of

# One stretch of keys and values and which of them each query sees. The mask may have
# one row for all queries.
Stretch = tuple[Float[Array, "B Kh _ d"], Float[Array, "B Kh _ d"], Bool[Array, "#B #q _"]]


def attend(q: Float[Array, "B H q d"], stretches: tuple[Stretch, ...]) -> Float[Array, "B H q d"]:
    """Attention over the union of several stretches of keys, which are never copied together.

    A query that sees no key gets a mean of values; it is never NaN.
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


@struct.dataclass
class Segments:
    """Each query sees the keys of its own segment; segment 0 is nobody's."""

    q: Int[Array, "B q"]
    kv: Int[Array, "B s"]

    @property
    def visible(self) -> Bool[Array, "B q s"]:
        """The same as a mask."""
        return (self.q[:, :, None] == self.kv[:, None]) & (self.kv != 0)[:, None]


def attend_causal(
    form: str,
    q: Float[Array, "B H S d"],
    k: Float[Array, "B Kh S d"],
    v: Float[Array, "B Kh S d"],
    segments: Int[Array, "B S"] | None,
) -> Float[Array, "B H S d"]:
    """Each token attends to itself and to earlier tokens of its segment; of its row if None.

    Segment 0 is padding, whose rows mean nothing.
    """
    if _splashes(form):
        return splash.attend_causal(q, k, v, segments, form != "splash")
    length = q.shape[2]
    if form in ("dot_product", "cudnn"):
        together = None if segments is None else Segments(segments, segments).visible
        return _fused(form, q, k, v, together, causal=True)
    block = BLOCK if form == "blocks" else length
    outs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        visible = (jnp.arange(end) <= jnp.arange(start, end)[:, None])[None]
        if segments is not None:
            visible &= Segments(segments[:, start:end], segments[:, :end]).visible
        stretch = (k[:, :, :end], v[:, :, :end], visible)
        outs.append(attend(q[:, :, start:end], (stretch,)))
    return jnp.concatenate(outs, axis=2)


def attend_features(
    form: str,
    q: Float[Array, "B H S d"],
    k: Float[Array, "B Kh I d"],
    v: Float[Array, "B Kh I d"],
    over: Bool[Array, "B S I"] | Segments,
) -> Float[Array, "B H S d"]:
    """Text attends to image features; with a mask, in every form plainly.

    Masks come with caches, read by one or a few queries in the time that it takes to read them,
    and with padding tiles, which only comparisons with PyTorch keep.
    """
    by_segment = isinstance(over, Segments)
    if by_segment and _splashes(form):
        return splash.attend_segments(q, k, v, over.q, over.kv, form != "splash")
    visible = over.visible if by_segment else over
    if by_segment and _fits_cudnn(form, q):
        return _fused(form, q, k, v, visible)
    return attend(q, ((k, v, visible),))


def attend_tiles(
    form: str,
    q: Float[Array, "B H n d"],
    k: Float[Array, "B H n d"],
    v: Float[Array, "B H n d"],
    real: Bool[Array, "B M P"],
) -> Float[Array, "B H n d"]:
    """Tokens of M tiles attend to all tokens, but padding (not `real`) not to padding."""
    shown = real.reshape(real.shape[0], 1, -1)
    if _splashes(form):
        return splash.attend_tiles(q, k, v, shown[:, 0], form != "splash")
    if form in ("dot_product", "cudnn"):
        return _fused(form, q, k, v, shown | jnp.swapaxes(shown, 1, 2))

    @jax.checkpoint
    def one_tile(query):
        # All scores of an 11B image would take 2.5 GiB a layer; a tile's take a quarter.
        q, own = query
        return attend(q, ((k, v, own[:, :, None] | shown),))

    by_tile = jnp.moveaxis(q.reshape(*q.shape[:2], *real.shape[1:], -1), 2, 0)
    out = jax.lax.map(one_tile, (by_tile, jnp.swapaxes(real, 0, 1)))
    return jnp.moveaxis(out, 0, 2).reshape(q.shape)


def _splashes(form: str) -> bool:
    return form in ("splash", "splash_interpret")


def _fits_cudnn(form: str, q: Float[Array, "B H q d"]) -> bool:
    width = q.shape[3]
    return form == "cudnn" and q.dtype == jnp.bfloat16 and width <= 128 and width % 8 == 0


def _fused(
    form: str,
    q: Float[Array, "B H q d"],
    k: Float[Array, "B Kh s d"],
    v: Float[Array, "B Kh s d"],
    visible: Bool[Array, "B q s"] | None,
    causal: bool = False,
) -> Float[Array, "B H q d"]:
    """JAX's fused attention: cuDNN's kernel where it is the form and applies, else XLA's.

    No test runs cuDNN's kernel, which needs a GPU.
    """
    length, fits = q.shape[2], _fits_cudnn(form, q)
    if fits:
        q, k, v = (_filled(x, 2) for x in (q, k, v))
        visible = None if visible is None else _filled(_filled(visible, 1), 2)
    out = jax.nn.dot_product_attention(
        *(jnp.swapaxes(x, 1, 2) for x in (q, k, v)),
        mask=None if visible is None else visible[:, None],
        is_causal=causal,
        implementation="cudnn" if fits else "xla",
    )
    return jnp.swapaxes(out, 1, 2)[:, :, :length]


def _filled(x: Array, axis: int) -> Array:
    """`x` with zeros, or hidden keys, up to a multiple of CUDNN_BLOCK."""
    more = [(0, 0)] * x.ndim
    more[axis] = (0, -x.shape[axis] % CUDNN_BLOCK)
    return jnp.pad(x, more)

"""Supervised fine-tuning: next-token loss on reply tokens, one jitted update."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from gp_virl.model.mllama import laid
from gp_virl.sharding import constrain
from gp_virl.train.logp import token_logp
from gp_virl.train.state import TrainState, apply_gradients, held


@struct.dataclass
class Batch:
    """N rows of packed dialogues, or m microbatches of them."""

    tokens: Int[Array, "*m N S"]
    positions: Int[Array, "*m N S"]  # restart at each dialogue
    segments: Int[Array, "*m N S"]  # 1, 2, ...; 0 is padding
    replied: Bool[Array, "*m N S"]  # True for tokens to be predicted
    images: UInt8[Array, "*m N P H W C"] | None = None  # up to P dialogues of a row have one
    image_segments: Int[Array, "*m N P"] | None = None  # that see it; 0 where there is none


def loss(
    graph: nnx.GraphDef, params: PyTree, batch: Batch, frozen: str = "none"
) -> tuple[Float[Array, ""], dict]:
    """Sum of -log p over reply tokens, and sums to report; divide by `tokens` for the mean.

    `frozen` names the parts that get no gradient (a key of config.FROZEN).
    """
    model = nnx.merge(graph, held(params, frozen))
    cross = None
    if batch.images is not None:
        cross = model.glance(batch.tokens, batch.segments, batch.images, batch.image_segments)
    hidden = model.hidden(batch.tokens, batch.positions, batch.segments, cross)
    replied = batch.replied[:, 1:]
    logp, _ = token_logp(hidden[:, :-1], model.lm_head.kernel[...], batch.tokens[:, 1:], replied)
    total = -logp.sum()
    return total, {"loss": total, "tokens": replied.sum().astype(jnp.float32)}


def update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    microbatch: int,
    state: TrainState,
    batch: Batch,
    frozen: str = "none",
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimizer step on the mean loss over the batch, gradients summed over microbatches."""
    parts = jax.tree.map(lambda a: _cut(a, microbatch), batch)
    replied = jnp.maximum(batch.replied[:, 1:].sum(), 1)

    def add(carry, part):
        (_, sums), grads = jax.value_and_grad(loss, argnums=1, has_aux=True)(
            graph, state.params, part, frozen
        )
        return jax.tree.map(jnp.add, carry, (laid(grads), sums)), None

    zero = laid(jax.tree.map(jnp.zeros_like, state.params))
    sums = {"loss": jnp.zeros(()), "tokens": jnp.zeros(())}
    (grads, sums), _ = jax.lax.scan(add, (zero, sums), parts)
    grads = jax.tree.map(lambda g: g / replied, grads)
    state, norm = apply_gradients(state, grads, optimizer)
    metrics = {
        "loss": sums["loss"] / replied,
        "reply_tokens": sums["tokens"],
        "tokens": (batch.segments > 0).sum().astype(jnp.float32),
        "grad_norm": norm,
    }
    return state, metrics


def _cut(rows: Array, microbatch: int) -> Array:
    """Rows as microbatches, each of them spread over all devices."""
    parts = rows.reshape(-1, microbatch, *rows.shape[1:])
    return constrain(parts, None, "batch", *[None] * (rows.ndim - 1))

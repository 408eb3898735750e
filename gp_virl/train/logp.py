"""Log-probabilities and entropies at chosen positions, the vocabulary taken in chunks.

Where nothing is scored nothing is computed: the scored positions of a device's rows are gathered
into blocks, and loops run over as many blocks as there are. Both passes are written out, as a loop
of unknown length has no derivative, and run in `shard_map`, so that each device takes its own rows
and columns and sums over devices are made once, after the loops.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gp_virl.sharding import fitting, spec

BLOCK = 512  # positions of which logits exist at a time
CHUNK = 16_384  # columns of a device's part of the head, likewise
LEAST = -1e30


def token_logp(
    hidden: Float[Array, "N *s D"],
    head: Float[Array, "D V"],
    target: Int[Array, "N *s"],
    scored: Bool[Array, "N *s"],
    temperature: Float[Array, ""] | float = 1.0,
    chunk: int = CHUNK,
    block: int = BLOCK,
) -> tuple[Float[Array, "N *s"], Float[Array, "N *s"]]:
    """Float32 log-probability of `target` and entropy of softmax(hidden @ head / temperature).

    Both are 0 where `scored` is False. No more than `block` times `chunk` logits of a device exist
    at a time; the backward pass computes them again. The temperature is a constant: it gets no
    gradient.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows, columns = PartitionSpec(None), PartitionSpec(None, None)
    if not mesh.empty:
        rows = fitting(spec("batch"), hidden.shape[:1], mesh)
        columns = fitting(spec(None, "vocab"), head.shape, mesh)
    cut = Cut(rows, columns, chunk, block)
    scale = jnp.float32(1) / jax.lax.stop_gradient(temperature)
    return _scores(cut, hidden, head.astype(hidden.dtype), target, scored, scale)[:2]


@dataclass(frozen=True)
class Cut:
    """How the mesh cuts rows and the head's columns, and the sizes of a loop's steps."""

    rows: PartitionSpec
    columns: PartitionSpec
    chunk: int
    block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(cut: Cut, hidden, head, target, scored, scale):
    """Log-probability, entropy and log-normalizer of each position."""
    return _on_devices(_forward, cut, cut.rows, hidden, head, scale, (target, scored))


def _keep(cut: Cut, *args):
    logp, entropy, norm = _scores(cut, *args)
    return (logp, entropy, norm), (*args, entropy, norm)


def _pull(cut: Cut, kept, grads):
    hidden, head, target, scored, scale, entropy, norm = kept
    of_token = (target, scored, entropy, norm, *grads[:2])
    places = cut.rows, cut.columns
    to_hidden, to_head = _on_devices(_backward, cut, places, hidden, head, scale, of_token)
    return to_hidden, to_head, None, None, jnp.zeros_like(scale)


_scores.defvjp(_keep, _pull)


def _on_devices(work, cut: Cut, results, *args):
    """`work` on each device's own rows and columns, or on all of them without a mesh."""
    work = functools.partial(work, cut)
    if jax.sharding.get_abstract_mesh().empty:
        return work(*args)
    places = (cut.rows, cut.columns, PartitionSpec(), cut.rows)
    return jax.shard_map(work, in_specs=places, out_specs=results, check_vma=False)(*args)


def _forward(cut: Cut, hidden, head, scale, of_token):
    """Of a device's rows and columns; the sums over columns are then joined with other devices'."""
    target, scored = of_token
    flat, target = hidden.reshape(-1, hidden.shape[-1]), _own(cut, target, head).reshape(-1)
    places, blocks = _blocks(scored, cut.block)

    def fill(index, sums):
        at = places[index]
        found = _sums(_taken(flat, at), head, _taken(target, at), scale, cut.chunk)
        return sums.at[:, at].set(jnp.stack(found), mode="drop")

    sums = jax.lax.fori_loop(0, blocks, fill, jnp.zeros((4, target.size), jnp.float32))
    top, total, weighted, hit = sums.reshape(4, *scored.shape)
    axes = cut.columns[1] or ()
    highest = jax.lax.pmax(top, axes)
    joined = jax.lax.psum((*_lowered(total, weighted, top - highest), hit), axes)
    total, weighted, hit = joined
    size = jnp.log(total)
    results = (hit - highest - size, size - weighted / total, highest + size)
    return tuple(jnp.where(scored, x, 0.0) for x in results)


def _sums(x: Float[Array, "t D"], head, target: Int[Array, "t"], scale, chunk: int):
    """Largest logit m, sums of exp(z) and of z exp(z) for z = logit - m, and target's logit.

    In one pass over the columns (Milakov and Gimelshein 2018, algorithm 3).
    """

    def step(carry, index):
        top, total, weighted, hit = carry
        logits, column, new, _ = _logits(x, head, scale, index, chunk)
        new_top = jnp.maximum(top, jnp.where(new, logits, -jnp.inf).max(1))
        total, weighted = _lowered(total, weighted, top - new_top)
        under = logits - new_top[:, None]
        mass = jnp.where(new, jnp.exp(under), 0.0)
        total, weighted = total + mass.sum(1), weighted + (mass * under).sum(1)
        hit = hit + jnp.where(new & (column == target[:, None]), logits, 0.0).sum(1)
        return (new_top, total, weighted, hit), None

    zero = jnp.zeros(target.shape, jnp.float32)
    first = (jnp.full(target.shape, LEAST, jnp.float32), zero, zero, zero)
    return jax.lax.scan(step, first, jnp.arange(-(-head.shape[1] // chunk)))[0]


def _lowered(total, weighted, by):
    """Sums of exp(z) and of z exp(z) after `by`, at most 0, is added to each z."""
    return total * jnp.exp(by), (weighted + by * total) * jnp.exp(by)


def _backward(cut: Cut, hidden, head, scale, of_token):
    """Gradients of a device's rows and columns.

    With p the softmax of logits z, d logp = (1[target] - p) dz and
    d entropy = -p (log p + entropy) dz.
    """
    target, scored, *rest = of_token
    flat = hidden.reshape(-1, hidden.shape[-1])
    rest = [x.reshape(-1) for x in (_own(cut, target, head), *rest)]
    places, blocks = _blocks(scored, cut.block)

    def add(index, carry):
        to_flat, to_head = carry
        at = places[index]
        x, here = _taken(flat, at), [_taken(a, at)[:, None] for a in rest]
        to_x, to_head = _pulled(x, head, to_head, here, scale, cut.chunk)
        return to_flat.at[at].set(to_x.astype(flat.dtype), mode="drop"), to_head

    zero = (jnp.zeros_like(flat), jnp.zeros(head.shape, jnp.float32))
    to_flat, to_head = jax.lax.fori_loop(0, blocks, add, zero)
    to_hidden = jax.lax.psum(to_flat, cut.columns[1] or ()).reshape(hidden.shape)
    return to_hidden, jax.lax.psum(to_head, cut.rows[0] or ()).astype(head.dtype)


def _pulled(x, head, to_head, of_token, scale, chunk: int):
    """The gradient of x [t D], and that of the head with x's share added."""
    target, entropy, norm, to_logp, to_entropy = of_token

    def step(carry, index):
        to_x, to_head = carry
        logits, column, new, (part, start) = _logits(x, head, scale, index, chunk)
        probability = jnp.exp(logits - norm)
        pull = to_logp + to_entropy * (logits - norm + entropy)
        pull = jnp.where(column == target, to_logp, 0.0) - probability * pull
        pull = jnp.where(new, pull * scale, 0.0).astype(x.dtype)
        to_x += jnp.einsum("tv,dv->td", pull, part, preferred_element_type=jnp.float32)
        more = jnp.einsum("td,tv->dv", x, pull, preferred_element_type=jnp.float32)
        more += jax.lax.dynamic_slice_in_dim(to_head, start, part.shape[1], axis=1)
        return (to_x, jax.lax.dynamic_update_slice_in_dim(to_head, more, start, axis=1)), None

    first = (jnp.zeros(x.shape, jnp.float32), to_head)
    return jax.lax.scan(step, first, jnp.arange(-(-head.shape[1] // chunk)))[0]


def _logits(x, head, scale, index, chunk: int):
    """A chunk's logits [t c], its columns [c], which of them no earlier chunk had, the chunk."""
    columns = head.shape[1]
    width = -(-columns // -(-columns // chunk))
    start = jnp.minimum(index * width, columns - width)  # the last one may begin within another
    part = jax.lax.dynamic_slice_in_dim(head, start, width, axis=1)
    logits = jnp.matmul(x, part, preferred_element_type=jnp.float32) * scale
    column = start + jnp.arange(width)
    return logits, column, column >= index * width, (part, start)


def _blocks(scored: Bool[Array, "n *s"], block: int) -> tuple[Int[Array, "k t"], Int[Array, ""]]:
    """Flat places of scored positions in blocks, and how many blocks have some.

    Places that are left over are out of bounds.
    """
    flat = scored.reshape(-1)
    size = min(block, flat.size)
    count = flat.sum()
    order = jnp.where(jnp.arange(flat.size) < count, jnp.argsort(~flat, stable=True), flat.size)
    order = jnp.pad(order, (0, -flat.size % size), constant_values=flat.size)
    return order.reshape(-1, size), -(-count // size)


def _taken(x: Array, at: Int[Array, "t"]) -> Array:
    return x.at[at].get(mode="fill", fill_value=0)


def _own(cut: Cut, target: Array, head: Array) -> Array:
    """The targets' columns, counted from the device's first."""
    axis = cut.columns[1]
    return target - jax.lax.axis_index(axis) * head.shape[1] if axis else target

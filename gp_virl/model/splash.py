"""Splash attention, TPU kernels that keep no scores in memory, with each of the model's masks.

A kernel is code for one device, which the partitioner can't cut: on a mesh it runs in `shard_map`
on each device's own rows and heads. With `interpret` it runs on any backend, slowly.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gp_virl.sharding import fitting, spec

LANES = 128  # numbers in a row of a TPU's registers; channels and blocks are multiples of it
# Tokens of a block: estimated time of a token against that in the largest. A step of a kernel's
# grid takes some 0.35 us besides its matmuls, 0.7 us for 512 queries and keys on v5e. The float32
# scores of those are 1 MiB, of which the backward kernels hold four in 16 MiB of fast memory.
BLOCKS = {512: 1.0, 384: 1.13, 256: 1.4, 128: 2.5}
NOBODY = -1  # segment of what fills the last block; tokens have 0 and above
HIDDEN = -(2.0**30)  # added to the score of a hidden pair; exact in bfloat16, and its exp is 0


def attend_causal(
    q: Float[Array, "B H S d"],
    k: Float[Array, "B Kh S d"],
    v: Float[Array, "B Kh S d"],
    segments: Int[Array, "B S"] | None,
    interpret: bool = False,
) -> Float[Array, "B H S d"]:
    """Each token attends to itself and to earlier tokens of its segment; of its row if None.

    Padding, segment 0, attends to padding.
    """
    return _attend(_scaled(q), k, v, CausalMask, segments, segments, interpret=interpret)


def attend_segments(
    q: Float[Array, "B H S d"],
    k: Float[Array, "B Kh I d"],
    v: Float[Array, "B Kh I d"],
    of_queries: Int[Array, "B S"],
    of_keys: Int[Array, "B I"],
    interpret: bool = False,
) -> Float[Array, "B H S d"]:
    """Each query attends to all keys of its segment.

    One that has none gets a mean of values, which means nothing and must not be learned from.
    """
    return _attend(_scaled(q), k, v, FullMask, of_queries, of_keys, interpret=interpret)


def attend_tiles(
    q: Float[Array, "B H n d"],
    k: Float[Array, "B H n d"],
    v: Float[Array, "B H n d"],
    real: Bool[Array, "B n"],
    interpret: bool = False,
) -> Float[Array, "B H n d"]:
    """Every token attends to every token, but padding (not `real`) doesn't attend to padding.

    Segments can't say that. As heads are filled up to whole lanes anyway, two spare channels do:
    the query's are 1 if it is padding, and 1; the key's are HIDDEN if it is padding, and HIDDEN
    if it only fills the last block. The kernel itself has no mask.
    """
    length = q.shape[2]
    padding = jnp.pad(~real, ((0, 0), (0, filled(length) - length)))
    fills = jnp.arange(filled(length)) >= length
    q = _with_channels(_filled(_scaled(q)), padding, jnp.ones_like(fills))
    k = _with_channels(_filled(k), HIDDEN * padding, HIDDEN * fills)
    return _attend(q, k, v, FullMask, interpret=interpret)[:, :, :length]


def block(length: int) -> int:
    """Tokens of a block for a sequence of that length: padding against the time of small blocks."""
    return min(BLOCKS, key=lambda size: BLOCKS[size] * (length + -length % size))


def filled(length: int) -> int:
    """The length with its last block filled; `block` is the same for it."""
    return length + -length % block(length)


def _scaled(q: Array) -> Array:
    return q * q.shape[-1] ** -0.5


def _filled(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, filled(x.shape[2]) - x.shape[2]), (0, 0)))


def _in_lanes(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -x.shape[3] % LANES)))


def _with_channels(x: Array, *channels: Array) -> Array:
    """x [B H S d] with channels [B S] or [S] added, the same in every head."""
    more = [jnp.broadcast_to(c.reshape(-1, 1, x.shape[2]), x.shape[:3]) for c in channels]
    return jnp.concatenate([x, jnp.stack(more, -1).astype(x.dtype)], -1)


def _attend(q, k, v, mask: type, of_queries=None, of_keys=None, *, interpret: bool):
    """Attention of q, scaled, under a mask, within segments where they are given."""
    length, width = q.shape[2], v.shape[3]
    ids = None
    if of_queries is not None:
        ids = SegmentIds(
            *(
                jnp.pad(i, ((0, 0), (0, filled(i.shape[1]) - i.shape[1])), constant_values=NOBODY)
                for i in (of_queries, of_keys)
            )
        )
    q, k, v = (_in_lanes(_filled(x)) for x in (q, k, v))

    def on_device(q, k, v, ids):
        shown = mask((q.shape[2], k.shape[2]))
        kernel = make_splash_mha(
            MultiHeadMask([shown] * q.shape[1]),
            block_sizes=_sizes(block(q.shape[2]), block(k.shape[2])),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, ids)

    return _spread(on_device, q, k, v, ids)[:, :, :length, :width]


def _sizes(queries: int, keys: int) -> BlockSizes:
    # One kernel for all gradients spares two of seven products. It keeps queries' gradients for
    # each block of keys, 13 in the vision tower: 350 MiB an image while a layer is differentiated.
    return BlockSizes(
        block_q=queries, block_kv=keys,
        block_q_dkv=queries, block_kv_dkv=keys,
        use_fused_bwd_kernel=True,
    )  # fmt: skip


def _spread(attend, q, k, v, ids):
    """attend(q, k, v, ids) on each device's rows and heads; on all of them where they don't fit."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q, k, v, ids)
    places = fitting(spec("batch", "heads", None, None), q.shape, mesh)
    if places[1] is not None:  # kv heads are repeated until each device has those of its heads
        kv_heads, share = k.shape[1], mesh.shape[places[1]]
        k, v = (jnp.repeat(x, math.lcm(kv_heads, share) // kv_heads, axis=1) for x in (k, v))
    return jax.shard_map(
        attend,
        in_specs=(places, places, places, PartitionSpec(places[0])),
        out_specs=places,
        check_vma=False,  # a kernel doesn't say how its outputs vary over the mesh
    )(q, k, v, ids)

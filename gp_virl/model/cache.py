"""Keys and values that lanes hold, as explicit PyTrees.

Layers of a group have an array each: cut out of a common one, they would be copied whole at every
token that is decoded.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float, Int, Shaped

from gp_virl.model.config import DTYPES, ModelConfig
from gp_virl.sharding import constrain

KeyValues = tuple[Float[Array, "G B Kh S d"], ...]  # one for each self-attention layer of a group
CrossKeyValues = tuple[Float[Array, "G B Kh I d"], ...]  # and for each cross-attention layer


@struct.dataclass
class LaneCache:
    """What each of B lanes has read: its tokens and their keys and values, from position 0 on.

    Axes G groups, Kh key-value heads, d head channels.
    """

    tokens: Int[Array, "B S"]
    k: KeyValues
    v: KeyValues
    length: Int[Array, "B"]  # valid tokens of each lane; what lies behind means nothing

    @property
    def size(self) -> int:
        """Tokens a lane has room for."""
        return self.tokens.shape[1]

    def append(
        self, tokens: Int[Array, "B C"], k: KeyValues, v: KeyValues, count: Int[Array, "B"]
    ) -> "LaneCache":
        """The cache with the first count[b] <= C tokens added behind lane b's own.

        Earlier entries never change; tokens beyond the lane's room are dropped, and `length`
        then says the room.
        """
        write = jax.vmap(_written)

        def put(buffer: Array, new: Array) -> Array:
            new = new.astype(buffer.dtype)

            # A group at a time, in place. One scatter into all of them would have XLA lay the
            # whole cache out anew, and so keep a second one.
            def one(group: Int[Array, ""], buffer: Array) -> Array:
                held, added = (
                    jax.lax.dynamic_index_in_dim(x, group, keepdims=False) for x in (buffer, new)
                )
                held = write(held, added, self.length, count)
                return _laid(jax.lax.dynamic_update_index_in_dim(buffer, held, group, axis=0))

            return jax.lax.fori_loop(0, buffer.shape[0], one, buffer)

        rows = write(self.tokens[:, None, :, None], tokens[:, None, :, None], self.length, count)
        return LaneCache(
            tokens=rows[:, 0, :, 0],
            k=jax.tree.map(put, self.k, k),
            v=jax.tree.map(put, self.v, v),
            length=jnp.minimum(self.length + count, self.size),
        )


@struct.dataclass
class ReplyCache:
    """Keys and values of the reply being decoded; column i belongs to every lane's i-th token.

    All lanes write the same column, so that a step costs one small update in place and the
    lanes' long caches are only read.
    """

    k: KeyValues
    v: KeyValues

    @property
    def size(self) -> int:
        """Tokens a reply has room for."""
        return self.k[0].shape[3]

    def write(self, column: Int[Array, ""], k: KeyValues, v: KeyValues) -> "ReplyCache":
        """The cache with one more token's keys and values."""

        def put(buffer: Array, new: Array) -> Array:
            start = (0, 0, 0, column, 0)
            return _laid(jax.lax.dynamic_update_slice(buffer, new.astype(buffer.dtype), start))

        return ReplyCache(k=jax.tree.map(put, self.k, k), v=jax.tree.map(put, self.v, v))


@struct.dataclass
class CrossCache:
    """The image each of B lanes looks at, encoded once: keys and values of its I features.

    Axes as in LaneCache. A lane without an image sees no
    feature; with zeros for keys and values its text is read as if there were no images at all.
    """

    k: CrossKeyValues
    v: CrossKeyValues
    real: Bool[Array, "B I"]  # True for features of the image's tiles, False for padding tiles
    since: Int[Array, "B"]  # position of the image token: it and all later tokens see the image

    def visible(self, positions: Int[Array, "B S"]) -> Bool[Array, "B S I"]:
        """True where the token at a position sees a feature."""
        return (positions >= self.since[:, None])[:, :, None] & self.real[:, None]

    def put(self, lanes: Int[Array, "c"], by: "CrossCache") -> "CrossCache":
        """The cache with the images of c lanes taken from another one, of c lanes.

        Lane numbers beyond the last one are left out.
        """

        def at(axis: int):
            place = (slice(None),) * axis + (lanes,)
            return lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")

        k, v = jax.tree.map(at(1), (self.k, self.v), (by.k, by.v))
        return CrossCache(
            k=k, v=v, real=at(0)(self.real, by.real), since=at(0)(self.since, by.since)
        )


def _written(
    held: Shaped[Array, "Kh S d"],
    added: Shaped[Array, "Kh C d"],
    length: Int[Array, ""],
    count: Int[Array, ""],
) -> Shaped[Array, "Kh S d"]:
    """`held` with the first `count` columns of `added` from column `length` on.

    Columns that don't fit are dropped.
    """
    size, width = held.shape[1], min(added.shape[1], held.shape[1])
    start = jnp.minimum(length, size - width)  # a window that is wholly inside
    column = jnp.arange(width) - (length - start)
    within = (column >= 0) & (column < count)
    window = jax.lax.dynamic_slice_in_dim(held, start, width, axis=1)
    moved = jnp.take(added, column, axis=1, mode="clip")
    window = jnp.where(within[None, :, None], moved, window)
    return jax.lax.dynamic_update_slice_in_dim(held, window, start, axis=1)


def _room(config: ModelConfig, lanes: int, size: int) -> KeyValues:
    return _rooms(config, config.self_layers, lanes, size)


def _rooms(config: ModelConfig, count: int, lanes: int, size: int) -> tuple[Array, ...]:
    shape = (config.groups, lanes, config.num_key_value_heads, size, config.head_dim)
    return tuple(_laid(jnp.zeros(shape, DTYPES[config.dtype])) for _ in range(count))


def _laid(cached: Float[Array, "G B Kh _ d"]) -> Float[Array, "G B Kh _ d"]:
    """On the mesh by lanes and heads; in memory in the order of its axes.

    A TPU's compiler would have writers and readers each lay it out their own way, and keep a
    second cache to change between them.
    """
    cached = constrain(cached, "layers", "batch", "kv_heads", None, None)
    return with_layout_constraint(cached, Layout(range(cached.ndim)))


def empty(config: ModelConfig, lanes: int, size: int) -> LaneCache:
    """A cache of `lanes` lanes that hold nothing, with room for `size` tokens each."""
    return LaneCache(
        tokens=jnp.zeros((lanes, size), jnp.int32),
        k=_room(config, lanes, size),
        v=_room(config, lanes, size),
        length=jnp.zeros(lanes, jnp.int32),
    )


def empty_reply(config: ModelConfig, lanes: int, size: int) -> ReplyCache:
    """Room for replies of `size` tokens."""
    return ReplyCache(k=_room(config, lanes, size), v=_room(config, lanes, size))


def empty_cross(config: ModelConfig, lanes: int, features: int) -> CrossCache:
    """Room for an image of `features` features in each lane; none holds one."""
    crosses = config.pattern.count("cross")
    return CrossCache(
        k=_rooms(config, crosses, lanes, features),
        v=_rooms(config, crosses, lanes, features),
        real=jnp.zeros((lanes, features), bool),
        since=jnp.zeros(lanes, jnp.int32),
    )

"""Keys and values that lanes hold, as explicit PyTrees."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gp_virl.model.config import DTYPES, ModelConfig

KeyValues = Float[Array, "G J B Kh S d"]
CrossKeyValues = Float[Array, "G X B Kh I d"]


@struct.dataclass
class LaneCache:
    """What each of B lanes has read: its tokens and their keys and values, from position 0 on.

    Axes G groups, J self-attention layers of a group, Kh key-value heads, d head channels.
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
        lanes = jnp.arange(tokens.shape[0])[:, None]
        columns = jnp.arange(tokens.shape[1])
        places = self.length[:, None] + columns
        # An index behind the buffer is dropped by the scatter.
        places = jnp.where(columns < count[:, None], places, self.size)
        lane_first = (2, 4, 0, 1, 3, 5)

        def put(buffer: Array, new: Array) -> Array:
            new = new.astype(buffer.dtype).transpose(lane_first)
            return buffer.at[:, :, lanes, :, places].set(new, mode="drop")

        return LaneCache(
            tokens=self.tokens.at[lanes, places].set(tokens, mode="drop"),
            k=put(self.k, k),
            v=put(self.v, v),
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

    def write(self, column: Int[Array, ""], k: KeyValues, v: KeyValues) -> "ReplyCache":
        """The cache with one more token's keys and values."""
        start = (0, 0, 0, 0, column, 0)
        return ReplyCache(
            k=jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), start),
            v=jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), start),
        )


@struct.dataclass
class CrossCache:
    """The image each of B lanes looks at, encoded once: keys and values of its I features.

    Axes as in LaneCache; X cross-attention layers of a group. A lane without an image sees no
    feature; with zeros for keys and values its text is read as if there were no images at all.
    """

    k: CrossKeyValues
    v: CrossKeyValues
    real: Bool[Array, "B I"]  # True for features of the image's tiles, False for padding tiles
    since: Int[Array, "B"]  # position of the image token: it and all later tokens see the image

    def visible(self, positions: Int[Array, "B S"]) -> Bool[Array, "B S I"]:
        """True where the token at a position sees a feature."""
        return (positions >= self.since[:, None])[:, :, None] & self.real[:, None]

    def replaced(self, fresh: Bool[Array, "B"], by: "CrossCache") -> "CrossCache":
        """The cache with the lanes that are `fresh` taken from another one of the same sizes."""
        at = {"k": 2, "v": 2, "real": 0, "since": 0}

        def pick(name: str) -> Array:
            old, new = getattr(self, name), getattr(by, name)
            trailing = (1,) * (old.ndim - 1 - at[name])
            return jnp.where(fresh.reshape(-1, *trailing), new, old)

        return CrossCache(**{name: pick(name) for name in at})


def _room(config: ModelConfig, lanes: int, size: int) -> KeyValues:
    per_group = (config.self_layers, lanes, config.num_key_value_heads, size, config.head_dim)
    return jnp.zeros((config.groups, *per_group), DTYPES[config.dtype])


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
    per_group = (crosses, lanes, config.num_key_value_heads, features, config.head_dim)
    room = jnp.zeros((config.groups, *per_group), DTYPES[config.dtype])
    return CrossCache(
        k=room,
        v=room,
        real=jnp.zeros((lanes, features), bool),
        since=jnp.zeros(lanes, jnp.int32),
    )

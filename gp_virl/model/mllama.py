"""Llama-3.2-Vision's text side with its output head and a value head, and how to build it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import spmd
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from gp_virl.model.cache import LaneCache, ReplyCache
from gp_virl.model.config import ModelConfig
from gp_virl.model.decoder import Cross, Memory, TextDecoder
from gp_virl.model.layers import Linear
from gp_virl.model.value_head import ValueHead
from gp_virl.sharding import TRAINING, constrain


def same_segment(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """True where two tokens of a packed row belong to one segment; 0 marks padding."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, None, :]


class Mllama(nnx.Module):
    """Named as HF's MllamaForConditionalGeneration; used inside jit after nnx.merge."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.language_model = TextDecoder(config, rngs)
        head = (config.hidden_size, config.vocab_size)
        self.lm_head = Linear(head, ("embed", "vocab"), config, rngs)
        self.value_head = ValueHead(config, rngs)

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
        cross: Cross | None = None,
    ) -> Float[Array, "B S D"]:
        """Final normed hidden states, each computed from its token and earlier ones of its segment.

        `segments` numbers the conversations packed in a row (0 is padding, whose hidden states
        mean nothing); without it a row is one conversation.
        """
        together = None if segments is None else same_segment(segments)
        return self.language_model(tokens, positions, together, cross=cross)[0]

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Float32 logits; rows of the embedding beyond V (image placeholders) have none."""
        logits = self.lm_head(hidden).astype(jnp.float32)
        return constrain(logits, "batch", *[None] * (logits.ndim - 2), "vocab")

    def value(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        """Float32 value of the state that each hidden state closes."""
        return self.value_head(hidden)

    def extend(
        self, tokens: Int[Array, "B C"], count: Int[Array, "B"], cache: LaneCache
    ) -> tuple[Float[Array, "B C D"], LaneCache]:
        """Hidden states of the first count[b] tokens appended to lane b, and the longer cache.

        Hidden states at and after count[b] mean nothing.
        """
        positions = cache.length[:, None] + jnp.arange(tokens.shape[1])
        hidden, (k, v) = self.language_model(tokens, positions, memory=(_held(cache),), keep=True)
        return hidden, cache.append(tokens, k, v, count)

    def step(
        self, token: Int[Array, "B"], column: Int[Array, ""], cache: LaneCache, reply: ReplyCache
    ) -> tuple[Float[Array, "B D"], ReplyCache]:
        """Hidden state of every lane's reply token number `column`, and the reply cache with it.

        `cache` holds the lane's context and isn't changed while a reply is decoded.
        """
        positions = (cache.length + column)[:, None]
        before = jnp.arange(reply.k.shape[4]) < column
        said = Memory(k=reply.k, v=reply.v, visible=before[None, None])
        hidden, (k, v) = self.language_model(
            token[:, None], positions, memory=(_held(cache), said), keep=True
        )
        return hidden[:, 0], reply.write(column, k, v)


def _held(cache: LaneCache) -> Memory:
    visible = jnp.arange(cache.size) < cache.length[:, None]
    return Memory(k=cache.k, v=cache.v, visible=visible[:, None])


def abstract(
    config: ModelConfig, mesh: Mesh | None = None, rules: tuple = TRAINING
) -> tuple[Any, nnx.State]:
    """(graph, params) without memory: ShapeDtypeStructs, with shardings where a mesh is given."""

    def make():
        return Mllama(config, nnx.Rngs(0))

    if mesh is None:
        return nnx.split(nnx.eval_shape(make))
    with spmd.logical_axis_rules(rules):
        return nnx.get_abstract_model(make, mesh)


def build(
    config: ModelConfig, key: Key[Array, ""], mesh: Mesh | None = None, rules: tuple = TRAINING
) -> tuple[Any, nnx.State]:
    """(graph, params) initialised from `key`, laid out on `mesh` if one is given.

    Kernels are normal with variance 1/inputs, norms one, gates and biases zero.
    """
    graph, shapes = abstract(config, mesh, rules)
    shardings = None
    if mesh is not None:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)

    def make(key):
        return nnx.split(Mllama(config, nnx.Rngs(key)))[1]

    return graph, jax.jit(make, out_shardings=shardings)(key)

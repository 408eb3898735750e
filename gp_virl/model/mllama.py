"""Llama-3.2-Vision with its output head and a value head, and how to build it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import spmd
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from gp_virl.model.attention import Segments
from gp_virl.model.cache import CrossCache, LaneCache, ReplyCache
from gp_virl.model.config import DTYPES, ModelConfig
from gp_virl.model.decoder import Cross, CrossMemory, Looks, Memory, TextDecoder
from gp_virl.model.images import Tiling, tiled
from gp_virl.model.layers import Linear
from gp_virl.model.value_head import ValueHead
from gp_virl.model.vision import Affine, VisionTower
from gp_virl.sharding import ROLLOUT, TRAINING, constrain, fitting, placed


class Mllama(nnx.Module):
    """Named as HF's MllamaForConditionalGeneration; used inside jit after nnx.merge."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.language_model = TextDecoder(config, rngs)
        head = (config.hidden_size, config.vocab_size)
        self.lm_head = Linear(head, ("embed", "vocab"), config, rngs)
        self.value_head = ValueHead(config, rngs)
        if config.vision is not None:
            self.vision_model = VisionTower(config, rngs)
            wide = (config.vision.output_size, config.hidden_size)
            self.multi_modal_projector = Affine(wide, (None, "embed"), config, rngs)

    def encode_images(
        self,
        pixels: Float[Array, "B M C h w"],
        aspect_ratio_ids: Int[Array, "B"],
        real: Bool[Array, "B M"],
        tiles: int | None = None,
    ) -> Float[Array, "B I D"]:
        """What text attends to: projected features of each image, tile after tile.

        Pixels are normalised, and cut into tiles as `images.tiled` does; `real` tells the image's
        tiles from padding, which takes part in the tower as in HF. `tiles` says how many of them
        to keep after it. As text sees no padding, dropping it changes nothing for tokens that see
        a feature; those that see none attend to all in HF's order (`text_rows`="mlp"), also to
        padding, and to nothing in Meta's. Several images of a row are encoded as several rows.
        """
        features = self.vision_model(pixels, aspect_ratio_ids, real)[:, :tiles]
        features = self.multi_modal_projector(features)
        return features.reshape(features.shape[0], -1, features.shape[-1])

    def features(self, height: int, width: int) -> int:
        """How many features an image of that size in pixels has."""
        rows, columns = _tiling(self.config).canvas(height, width)
        return rows * columns * self.config.vision.num_patches

    def see(self, images: UInt8[Array, "B H W C"]) -> Float[Array, "B I D"]:
        """Features of images of one size, cut into tiles as HF's processor does; no padding."""
        tiles = tiled(images, _tiling(self.config))
        count = self.features(*images.shape[1:3]) // self.config.vision.num_patches
        return self.encode_images(tiles.pixels, tiles.aspect_ratio_ids, tiles.real, tiles=count)

    def glance(
        self,
        tokens: Int[Array, "B S"],
        segments: Int[Array, "B S"],
        images: UInt8[Array, "B P H W C"],
        image_segments: Int[Array, "B P"],
    ) -> Cross:
        """What packed rows look at: each conversation at its own image, from its image token on.

        The image token is the one without a row in the output head. `image_segments` names the
        conversation of each image; 0 is a slot without one. Tokens before the image token are
        attended over the same image (HF's order) without seeing it, so that segments say it all.
        """
        rows, slots = image_segments.shape
        features = self.see(images.reshape(-1, *images.shape[2:]))
        each = features.shape[1]
        own = (segments[:, :, None] == image_segments[:, None]) & (image_segments > 0)[:, None]
        begins = (tokens == self.config.vocab_size)[:, :, None] & own
        looks = Looks(
            sees=((jnp.cumsum(begins, axis=1) > 0) & own).any(-1),
            over=Segments(
                q=jnp.where(own.any(-1), segments, 0), kv=jnp.repeat(image_segments, each, axis=1)
            ),
        )
        return Cross(states=features.reshape(rows, slots * each, -1), visible=looks)

    def look(
        self, states: Float[Array, "B I D"], real: Bool[Array, "B I"], since: Int[Array, "B"]
    ) -> CrossCache:
        """What lanes keep of their images' features; see CrossCache for `real` and `since`."""
        k, v = self.language_model.look(states)
        return CrossCache(k=k, v=v, real=real, since=since)

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
        return self.language_model(tokens, positions, segments, cross=cross)[0]

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Float32 logits; rows of the embedding beyond V (image placeholders) have none."""
        # Not rounded to the activations' dtype, as training doesn't round them either.
        logits = self.lm_head(hidden, jnp.float32)
        return constrain(logits, "batch", *[None] * (logits.ndim - 2), "vocab")

    def value(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        """Float32 value of the state that each hidden state closes."""
        return self.value_head(hidden)

    def extend(
        self,
        tokens: Int[Array, "B C"],
        count: Int[Array, "B"],
        cache: LaneCache,
        images: CrossCache | None = None,
    ) -> tuple[Float[Array, "B C D"], LaneCache]:
        """Hidden states of the first count[b] tokens appended to lane b, and the longer cache.

        Hidden states at and after count[b] mean nothing.
        """
        positions = cache.length[:, None] + jnp.arange(tokens.shape[1])
        hidden, (k, v) = self.language_model(
            tokens, positions, memory=(_held(cache),), cross=_seen(images, positions), keep=True
        )
        return hidden, cache.append(tokens, k, v, count)

    def step(
        self,
        token: Int[Array, "B"],
        column: Int[Array, ""],
        cache: LaneCache,
        reply: ReplyCache,
        images: CrossCache | None = None,
    ) -> tuple[Float[Array, "B D"], ReplyCache]:
        """Hidden state of every lane's reply token number `column`, and the reply cache with it.

        `cache` holds the lane's context and isn't changed while a reply is decoded.
        """
        positions = (cache.length + column)[:, None]
        before = jnp.arange(reply.size) < column
        said = Memory(k=reply.k, v=reply.v, visible=before[None, None])
        hidden, (k, v) = self.language_model(
            token[:, None],
            positions,
            memory=(_held(cache), said),
            cross=_seen(images, positions),
            keep=True,
        )
        return hidden[:, 0], reply.write(column, k, v)


def _tiling(config: ModelConfig) -> Tiling:
    return Tiling(config.vision.image_size, config.vision.max_num_tiles)


def _held(cache: LaneCache) -> Memory:
    visible = jnp.arange(cache.size) < cache.length[:, None]
    return Memory(k=cache.k, v=cache.v, visible=visible[:, None])


def _seen(images: CrossCache | None, positions: Int[Array, "B S"]) -> CrossMemory | None:
    if images is None:
        return None
    return CrossMemory(k=images.k, v=images.v, visible=images.visible(positions))


def tile_features(shown: Bool[Array, "*b M"], patches: int) -> Bool[Array, "*b I"]:
    """A mask of tiles as one of their features, `patches` of each (VisionConfig.num_patches).

    Masks of several images a row, [B S N M], are reshaped to [B S N*M] before.
    """
    return jnp.repeat(shown, patches, axis=-1)


def abstract(
    config: ModelConfig, mesh: Mesh | None = None, rules: tuple = TRAINING
) -> tuple[Any, nnx.State]:
    """(graph, params) without memory: ShapeDtypeStructs, with shardings where a mesh is given.

    An axis of a weight that the mesh doesn't divide stays whole.
    """

    def make():
        return Mllama(config, nnx.Rngs(0))

    if mesh is None:
        return nnx.split(nnx.eval_shape(make))
    with spmd.logical_axis_rules(rules):
        graph, shapes = nnx.get_abstract_model(make, mesh)

    def fitted(leaf):
        return placed(leaf, NamedSharding(mesh, fitting(leaf.sharding.spec, leaf.shape, mesh)))

    return graph, jax.tree.map(fitted, shapes)


def laid(params: PyTree, rules: tuple = TRAINING) -> PyTree:
    """Parameters, or gradients of them, told to lie on the current mesh as `rules` say."""
    return jax.tree.map(lambda x: _lain(x, rules), params, is_leaf=_is_named)


def for_decoding(params: PyTree, config: ModelConfig) -> PyTree:
    """Parameters as decoding reads them, once for each token: gathered over fsdp, once for all.

    Matrices are already in the dtype of the activations that they are multiplied with.
    """

    def cast(path, x):
        at = [entry.key for entry in path if hasattr(entry, "key")]
        matrix = at[-1] in ("kernel", "embed_tokens") and at[0] != "value_head"
        return x.replace(x[...].astype(DTYPES[config.dtype])) if matrix else x

    cast_params = jax.tree_util.tree_map_with_path(cast, params, is_leaf=_is_named)
    return laid(cast_params, ROLLOUT)


def _is_named(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _lain(x: Any, rules: tuple) -> Any:
    names = x.get_metadata().get("out_sharding") if _is_named(x) else None
    return x if names is None else x.replace(constrain(x[...], *names, rules=rules))


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

"""The vision tower: tiles of an image to features (HF MllamaVisionModel)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from gp_virl.model.attention import attend_tiles
from gp_virl.model.config import DTYPES, ModelConfig
from gp_virl.model.layers import Linear
from gp_virl.model.stacks import recomputed, stack
from gp_virl.sharding import constrain

PAD_TO = 8  # tokens of a tile are padded to a multiple; padding takes part in attention, as in HF
NORM_EPS = 1e-5  # of the norms around the stacks; the config's norm_eps is that of the layers


class Affine(Linear):
    """x @ kernel + bias."""

    def __init__(self, size: tuple[int, int], axes: tuple, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(size, axes, config, rngs)
        zeros = jnp.zeros(size[1], DTYPES[config.param_dtype])
        self.bias = nnx.Param(zeros, out_sharding=axes[1:])

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return super().__call__(x) + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """torch.nn.LayerNorm: computed in float32, returned in x's dtype."""

    def __init__(self, eps: float, config: ModelConfig):
        width, dtype = config.vision.hidden_size, DTYPES[config.param_dtype]
        self.weight = nnx.Param(jnp.ones(width, dtype), out_sharding=("embed",))
        self.bias = nnx.Param(jnp.zeros(width, dtype), out_sharding=("embed",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        x32 = x.astype(jnp.float32)
        x32 -= x32.mean(-1, keepdims=True)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.eps)
        weight, bias = (p[...].astype(jnp.float32) for p in (self.weight, self.bias))
        return (x32 * weight + bias).astype(x.dtype)


class VisionAttention(nnx.Module):
    """HF MllamaVisionAttention: every token attends to every token, but padding not to padding."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.heads = config.vision.attention_heads
        self.form = config.attention_form
        square = (config.vision.hidden_size,) * 2
        self.q_proj = Linear(square, ("embed", "heads"), config, rngs)
        self.k_proj = Linear(square, ("embed", "heads"), config, rngs)
        self.v_proj = Linear(square, ("embed", "heads"), config, rngs)
        self.o_proj = Linear(square, ("heads", "embed"), config, rngs)

    def __call__(
        self, x: Float[Array, "B M P w"], real: Bool[Array, "B M P"]
    ) -> Float[Array, "B M P w"]:
        batch, tiles, length, _ = x.shape

        def split(x):
            heads = x.reshape(batch, tiles * length, self.heads, -1)
            return constrain(jnp.swapaxes(heads, 1, 2), "batch", "heads", None, None)

        q, k, v = (split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        out = attend_tiles(self.form, q, k, v, real)
        return self.o_proj(jnp.swapaxes(out, 1, 2).reshape(x.shape))


class VisionMLP(nnx.Module):
    """HF MllamaVisionMLP, with the exact GELU."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        wide = (config.vision.hidden_size, config.vision.intermediate_size)
        self.fc1 = Affine(wide, ("embed", "mlp"), config, rngs)
        self.fc2 = Affine(wide[::-1], ("mlp", "embed"), config, rngs)

    def __call__(self, x: Float[Array, "B M P w"]) -> Float[Array, "B M P w"]:
        inner = jax.nn.gelu(self.fc1(x), approximate=False)
        return self.fc2(constrain(inner, "batch", None, None, "mlp"))


class VisionLayer(nnx.Module):
    """HF MllamaVisionEncoderLayer; the gated ones are those of the global stack."""

    def __init__(self, gated: bool, config: ModelConfig, rngs: nnx.Rngs):
        self.self_attn = VisionAttention(config, rngs)
        self.mlp = VisionMLP(config, rngs)
        self.input_layernorm = LayerNorm(config.vision.norm_eps, config)
        self.post_attention_layernorm = LayerNorm(config.vision.norm_eps, config)
        self.gated = gated
        if gated:
            gate = jnp.full(1, math.pi / 4, DTYPES[config.param_dtype])
            self.gate_attn = nnx.Param(gate, out_sharding=(None,))
            self.gate_ffn = nnx.Param(gate, out_sharding=(None,))

    def __call__(
        self, x: Float[Array, "B M P w"], real: Bool[Array, "B M P"]
    ) -> Float[Array, "B M P w"]:
        attended = self.self_attn(self.input_layernorm(x), real)
        if self.gated:
            attended = jnp.tanh(self.gate_attn[...].astype(x.dtype)) * attended
        x = x + attended
        fed = self.mlp(self.post_attention_layernorm(x))
        if self.gated:
            fed = jnp.tanh(self.gate_ffn[...].astype(x.dtype)) * fed
        return constrain(x + fed, "batch", None, None, None)


class VisionEncoder(nnx.Module):
    """HF MllamaVisionEncoder; its layer i is `layers` at i of the leading axis."""

    def __init__(self, count: int, gated: bool, config: ModelConfig, rngs: nnx.Rngs):
        self.remat = config.remat
        self.layers = stack(count, lambda rngs: VisionLayer(gated, config, rngs), rngs)

    def __call__(
        self,
        x: Float[Array, "B M P w"],
        real: Bool[Array, "B M P"],
        picked: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "B M P w"], Float[Array, "n B M P w"]]:
        """The last layer's output, and those of the n layers `picked`."""
        graph, weights = nnx.split(self.layers)
        count = jax.tree.leaves(weights)[0].shape[0]
        picked = tuple(index % count for index in picked)
        kept = sorted(set(picked))
        # A layer that isn't kept has a slot behind the buffer, where the scatter drops it.
        slots = [kept.index(i) if i in kept else len(kept) for i in range(count)]

        def layer(state, slices):
            x, outputs = state
            weights, slot = slices
            module = nnx.merge(graph, weights)
            x = recomputed(module, x, real) if self.remat else module(x, real)
            if kept:
                outputs = outputs.at[slot].set(x, mode="drop")
            return (x, outputs), None

        outputs = jnp.zeros((len(kept), *x.shape), x.dtype)
        (x, outputs), _ = jax.lax.scan(layer, (x, outputs), (weights, jnp.array(slots)))
        order = [kept.index(i) for i in picked]
        return x, outputs if order == sorted(set(order)) else outputs[jnp.array(order)]


def _rows(table: Float[Array, "K *s"], ids: Int[Array, "B"]) -> Float[Array, "B *s"]:
    """table[ids] as a product, exactly: a TPU's compiler can fail to find room for the gather."""
    picked = jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype)
    return jnp.tensordot(picked, table, 1, precision=jax.lax.Precision.HIGHEST)


class TileEmbedding(nnx.Module):
    """HF MllamaPrecomputedAspectRatioEmbedding: where a tile stands in its image."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        vision, dtype = config.vision, DTYPES[config.param_dtype]
        rows = (len(vision.supported_aspect_ratios) + 1, vision.max_num_tiles, vision.hidden_size)
        table = jax.random.normal(rngs.params(), rows, dtype) / math.sqrt(vision.hidden_size)
        self.embedding = nnx.Param(table, out_sharding=(None, None, "embed"))
        self.gate = nnx.Param(jnp.zeros(1, dtype), out_sharding=(None,))

    def __call__(
        self, x: Float[Array, "B M P w"], aspect_ratio_ids: Int[Array, "B"]
    ) -> Float[Array, "B M P w"]:
        place = _rows(self.embedding[...], aspect_ratio_ids)
        return x + (place * jnp.tanh(self.gate[...])).astype(x.dtype)[:, :, None]


class PositionEmbedding(nnx.Module):
    """HF MllamaPrecomputedPositionEmbedding: where a patch stands in its tile and in its image."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        vision, dtype = config.vision, DTYPES[config.param_dtype]
        ids, tiles = len(vision.supported_aspect_ratios) + 1, vision.max_num_tiles
        grid = (vision.num_patches, vision.hidden_size)
        scale = vision.hidden_size**-0.5
        table = scale * jax.random.normal(rngs.params(), grid, dtype)
        self.embedding = nnx.Param(table, out_sharding=(None, "embed"))
        tiled = scale * jax.random.normal(rngs.params(), (ids, tiles, *grid), dtype)
        self.tile_embedding = nnx.Param(tiled, out_sharding=(None, None, None, "embed"))
        self.gate = nnx.Param(jnp.zeros(1, dtype), out_sharding=(None,))

    def __call__(
        self, x: Float[Array, "B M P w"], aspect_ratio_ids: Int[Array, "B"]
    ) -> Float[Array, "B M P w"]:
        gate = jnp.tanh(self.gate[...])
        of_tile = _rows(self.tile_embedding[...], aspect_ratio_ids)
        return x + ((1 - gate) * self.embedding[...] + gate * of_tile).astype(x.dtype)


class VisionTower(nnx.Module):
    """HF MllamaVisionModel."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        vision, dtype = config.vision, DTYPES[config.param_dtype]
        width = vision.hidden_size
        pixels = vision.num_channels * vision.patch_size**2
        # HF's convolution [w C p p] as a matrix [C*p*p, w].
        self.patch_embedding = Linear((pixels, width), (None, "embed"), config, rngs)
        token = jax.random.normal(rngs.params(), (width,), dtype) / math.sqrt(width)
        self.class_embedding = nnx.Param(token, out_sharding=("embed",))
        self.pre_tile_positional_embedding = TileEmbedding(config, rngs)
        self.gated_positional_embedding = PositionEmbedding(config, rngs)
        self.post_tile_positional_embedding = TileEmbedding(config, rngs)
        self.layernorm_pre = LayerNorm(NORM_EPS, config)
        self.layernorm_post = LayerNorm(NORM_EPS, config)
        self.transformer = VisionEncoder(vision.num_hidden_layers, False, config, rngs)
        self.global_transformer = VisionEncoder(vision.num_global_layers, True, config, rngs)

    def patches(self, pixels: Float[Array, "B M C h w"]) -> Float[Array, "B M p D"]:
        """Embedded patches, row by row; what is left over at the right and below is not seen."""
        size = self.config.vision.patch_size
        batch, tiles, channels, *sides = pixels.shape
        rows, columns = (side // size for side in sides)
        pixels = pixels[..., : rows * size, : columns * size].astype(DTYPES[self.config.dtype])
        pixels = pixels.reshape(batch, tiles, channels, rows, size, columns, size)
        pixels = pixels.transpose(0, 1, 3, 5, 2, 4, 6)
        return self.patch_embedding(pixels.reshape(batch, tiles, rows * columns, -1))

    def __call__(
        self,
        pixels: Float[Array, "B M C h w"],
        aspect_ratio_ids: Int[Array, "B"],
        real: Bool[Array, "B M"],
    ) -> Float[Array, "B M P f"]:
        """Features of every tile, class token first; those of tiles that aren't `real` as well."""
        vision = self.config.vision
        x = self.patches(pixels)
        x = self.pre_tile_positional_embedding(x, aspect_ratio_ids)
        token = self.class_embedding[...].astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (*x.shape[:2], 1, x.shape[3])), x], axis=2)
        x = self.layernorm_pre(self.gated_positional_embedding(x, aspect_ratio_ids))
        length = vision.num_patches
        padding = -length % PAD_TO
        x = jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))
        real = real[:, :, None] & (jnp.arange(length + padding) < length)
        x = constrain(x, "batch", None, None, None)
        x, inner = self.transformer(x, real, vision.intermediate_layers_indices)
        x = self.post_tile_positional_embedding(self.layernorm_post(x), aspect_ratio_ids)
        x, _ = self.global_transformer(x, real)
        # HF lays the intermediate outputs channel by channel: w0 of each layer, w1 of each, ...
        inner = jnp.moveaxis(inner, 0, -1).reshape(*x.shape[:3], -1)
        return jnp.concatenate([x, inner], axis=-1)[:, :, :length]

"""Weights, norms, rotary positions and the feed-forward block, named as in HF's Mllama modules."""

import math

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gp_virl.model.config import DTYPES, ModelConfig
from gp_virl.sharding import constrain

# Logical axis names stand on weights also where there is no mesh to lay them out on.
flax.config.update("flax_always_shard_variable", False)


class Linear(nnx.Module):
    """x @ kernel, no bias; kernel [in, out] is the transpose of HF's weight."""

    def __init__(self, size: tuple[int, int], axes: tuple, config: ModelConfig, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), size, DTYPES[config.param_dtype])
        self.kernel = nnx.Param(kernel / math.sqrt(size[0]), out_sharding=axes)

    def __call__(
        self, x: Float[Array, "*b i"], dtype: jnp.dtype | type | None = None
    ) -> Float[Array, "*b o"]:
        """In x's dtype, or in another one to which nothing is rounded on the way."""
        # One 2-D matmul: XLA's CPU backend runs it 1.7 times faster than a batched one.
        kernel = self.kernel[...].astype(x.dtype)
        out = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, preferred_element_type=dtype)
        return out.reshape(*x.shape[:-1], kernel.shape[1])


class RMSNorm(nnx.Module):
    """HF MllamaTextRMSNorm: computed in float32, returned in x's dtype."""

    def __init__(self, size: int, axis: str, config: ModelConfig):
        self.weight = nnx.Param(jnp.ones(size, DTYPES[config.param_dtype]), out_sharding=(axis,))
        self.eps = config.rms_norm_eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * scale).astype(x.dtype) * self.weight[...].astype(x.dtype)


class MLP(nnx.Module):
    """SwiGLU (HF MllamaTextMLP)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        wide = (config.hidden_size, config.intermediate_size)
        self.gate_proj = Linear(wide, ("embed", "mlp"), config, rngs)
        self.up_proj = Linear(wide, ("embed", "mlp"), config, rngs)
        self.down_proj = Linear(wide[::-1], ("mlp", "embed"), config, rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        inner = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(constrain(inner, "batch", None, "mlp"))


def rotary_frequencies(config: ModelConfig) -> Float[Array, "h"]:
    """Radians per position of each pair of head channels (HF _compute_llama3_parameters).

    Wavelengths above original/low are stretched by `factor`, those below original/high kept, and
    those between interpolated.
    """
    half = config.head_dim // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / half
    plain = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / scaling.factor


def rotary_angles(
    config: ModelConfig, positions: Int[Array, "B S"]
) -> tuple[Float[Array, "B S 1 h"], Float[Array, "B S 1 h"]]:
    """Cosine and sine of every position's rotation, float32; computed once for all layers."""
    angles = positions[..., None].astype(jnp.float32) * rotary_frequencies(config)
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(
    x: Float[Array, "B S H d"], cos: Float[Array, "B S 1 h"], sin: Float[Array, "B S 1 h"]
) -> Float[Array, "B S H d"]:
    """Rotary embedding in HF's rotate-half convention: channel i pairs with i + d/2."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)

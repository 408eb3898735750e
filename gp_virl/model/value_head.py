"""The value head: an MLP on the decoder's last hidden state (after RL4VLM, arXiv 2405.10292)."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gp_virl.model.config import DTYPES, ModelConfig


class Dense(nnx.Module):
    """x @ kernel + bias."""

    def __init__(self, size: tuple[int, int], std: float, config: ModelConfig, rngs: nnx.Rngs):
        dtype = DTYPES[config.param_dtype]
        kernel = jax.random.normal(rngs.params(), size, dtype) * jnp.asarray(std, dtype)
        self.kernel = nnx.Param(kernel, out_sharding=(None, None))
        self.bias = nnx.Param(jnp.zeros(size[1], dtype), out_sharding=(None,))

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class ValueHead(nnx.Module):
    """hidden_size -> value_widths -> 1 with ReLU, all in float32.

    The last layer starts small, so that first values are near 0 whatever the hidden states.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        widths = (config.hidden_size, *config.value_widths)
        inner = [
            Dense((a, b), (2.0 / a) ** 0.5, config, rngs) for a, b in itertools.pairwise(widths)
        ]
        self.layers = nnx.List([*inner, Dense((widths[-1], 1), 0.01, config, rngs)])

    def __call__(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
        x = hidden.astype(jnp.float32)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)[..., 0]

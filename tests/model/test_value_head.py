import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gp_virl.model.config import preset
from gp_virl.model.value_head import ValueHead


def test_value_is_a_float32_relu_mlp():
    head = ValueHead(preset("tiny", value_widths=(8, 4)), nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(1), (2, 3, 64))
    x = np.asarray(hidden, np.float64)
    for i, layer in enumerate(head.layers):
        x = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        x = x if i == 2 else np.maximum(x, 0)
    np.testing.assert_allclose(head(hidden), x[..., 0], atol=1e-6)
    assert head(hidden.astype(jnp.bfloat16)).dtype == jnp.float32


def test_first_values_are_near_zero():
    head = ValueHead(preset("tiny"), nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(1), (100, 64))
    assert abs(head(hidden)).max() < 0.5
    assert head(hidden).std() > 0

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.model.config import RopeScaling, preset
from gp_virl.model.layers import RMSNorm, rotary_angles, rotary_frequencies, rotate
from tests.model import plain


@pytest.mark.parametrize(
    ("scaling", "head_dim"),
    [(RopeScaling(), 128), (RopeScaling(), 16), (RopeScaling(32.0, 1.0, 4.0, 2048), 64), (None, 8)],
)
def test_rotary_frequencies_are_llama3s(scaling, head_dim):
    config = preset("11b", rope_scaling=scaling, head_dim=head_dim)
    np.testing.assert_allclose(rotary_frequencies(config), plain.frequencies(config), rtol=2e-6)


def test_scaling_keeps_short_waves_and_stretches_long_ones():
    scaled = rotary_frequencies(preset("11b"))
    unscaled = rotary_frequencies(preset("11b", rope_scaling=None))
    ratio = np.asarray(unscaled / scaled)
    assert ratio[0] == pytest.approx(1.0) and ratio[-1] == pytest.approx(8.0)
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


def test_rotation_pairs_halves_as_hf_does():
    config = preset("tiny", head_dim=8)
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 8))
    positions = jnp.array([[0, 1, 5], [7, 100, 3000]])
    got = rotate(x, *rotary_angles(config, positions))
    inv = plain.frequencies(config)
    for b, s, h in np.ndindex(2, 3, 2):
        want = plain.rotate_half(np.asarray(x[b, s, h]), int(positions[b, s]), inv)
        np.testing.assert_allclose(got[b, s, h], want, atol=1e-3 if positions[b, s] > 999 else 1e-5)


def test_norm_is_computed_in_float32():
    norm = RMSNorm(64, "embed", preset("tiny"))
    x = 300 * jax.random.normal(jax.random.key(0), (4, 64))
    want = plain.norm(np.asarray(x, np.float64), np.ones(64), 1e-5)
    np.testing.assert_allclose(norm(x), want, rtol=1e-5)
    half = norm(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), want, rtol=2e-2, atol=1e-3)


def test_weights_carry_their_logical_axes():
    norm = RMSNorm(64, "embed", preset("tiny"))
    assert isinstance(norm.weight, nnx.Param)
    assert norm.weight.out_sharding == ("embed",)

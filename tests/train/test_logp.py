"""Chunked log-probabilities against log_softmax, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.train.logp import token_logp


def plain(hidden, head, target, temperature):
    logp = jax.nn.log_softmax(hidden @ head / temperature)
    hit = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    return hit, -(jnp.exp(logp) * logp).sum(-1)


@pytest.mark.parametrize("chunk", [7, 10, 50, 1000])
def test_chunks(chunk):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (2, 5, 8))
    head = 3 * jax.random.normal(keys[1], (8, 50))
    target = jax.random.randint(keys[2], (2, 5), 0, 50)

    def total(f):
        def both(hidden, head):
            logp, entropy = f(hidden, head)
            return (logp * jnp.arange(10.0).reshape(2, 5)).sum() + (entropy**2).sum()

        return jax.value_and_grad(both, argnums=(0, 1))(hidden, head)

    got = total(lambda h, w: token_logp(h, w, target, 0.7, chunk=chunk))
    want = total(lambda h, w: plain(h, w, target, 0.7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, want)


def test_never_holds_all_logits():
    def logp(hidden, head):
        return token_logp(hidden, head, jnp.zeros(64, int), chunk=128)[0].sum()

    shapes = (
        jax.ShapeDtypeStruct((64, 16), jnp.float32),
        jax.ShapeDtypeStruct((16, 4096), jnp.float32),
    )
    text = str(jax.make_jaxpr(jax.grad(logp))(*shapes))
    assert "f32[64,128]" in text
    assert "64,4096]" not in text

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.model.attention import attend, attend_causal
from tests.model import plain


def qkv(queries, keys, seed=0):
    names = jax.random.split(jax.random.key(seed), 3)
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [jax.random.normal(key, shape) for key, shape in zip(names, shapes, strict=True)]


def oracle(q, k, v, visible):
    rows = [
        plain.attention(*(np.asarray(x[b], np.float64).swapaxes(0, 1) for x in (q, k, v)), mask)
        for b, mask in enumerate(np.broadcast_to(visible, (q.shape[0], q.shape[2], k.shape[2])))
    ]
    return np.stack(rows).swapaxes(1, 2)


def test_stretches_are_attended_as_one():
    q, k, v = qkv(3, 10)
    visible = np.array(jax.random.bernoulli(jax.random.key(9), 0.5, (2, 3, 10)))
    visible[:, :, 0] = True
    parts = [(0, 4), (4, 5), (5, 10)]
    stretches = tuple(
        (k[:, :, a:b], v[:, :, a:b], jnp.asarray(visible[:, :, a:b])) for a, b in parts
    )
    np.testing.assert_allclose(attend(q, stretches), oracle(q, k, v, visible), atol=1e-5)


def test_one_mask_row_serves_every_query():
    q, k, v = qkv(3, 10)
    visible = jnp.arange(10)[None, None] < jnp.array([4, 10])[:, None, None]
    got = attend(q, ((k, v, visible),))
    np.testing.assert_allclose(got, oracle(q, k, v, np.asarray(visible)), atol=1e-5)


@pytest.mark.parametrize("form", ["blocks", "plain", "dot_product"])
@pytest.mark.parametrize("length", [1, 64, 150])
def test_causal_forms_agree_with_the_oracle(form, length):
    q, k, v = qkv(length, length)
    earlier = np.tril(np.ones((1, length, length), bool))
    got = attend_causal(form, q, k, v, None)
    np.testing.assert_allclose(got, oracle(q, k, v, earlier), atol=1e-5)
    segments = jnp.sort(jax.random.randint(jax.random.key(3), (2, length), 0, 3), axis=1)
    together = segments[:, :, None] == segments[:, None, :]
    got = attend_causal(form, q, k, v, together)
    np.testing.assert_allclose(got, oracle(q, k, v, earlier & np.asarray(together)), atol=1e-5)


def test_a_blind_query_is_finite_and_so_is_its_gradient():
    q, k, v = qkv(3, 4)
    blind = jnp.zeros((1, 1, 4), bool)
    value, grads = jax.value_and_grad(
        lambda q, k, v: attend(q, ((k, v, blind),)).sum(), argnums=(0, 1, 2)
    )(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)

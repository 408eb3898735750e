import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.model.attention import (
    Segments,
    attend,
    attend_causal,
    attend_features,
    attend_tiles,
)
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
    segments = jnp.sort(jax.random.randint(jax.random.key(3), (2, length), 1, 4), axis=1)
    together = segments[:, :, None] == segments[:, None, :]
    got = attend_causal(form, q, k, v, segments)
    np.testing.assert_allclose(got, oracle(q, k, v, earlier & np.asarray(together)), atol=1e-5)


def test_a_blind_query_is_finite_and_so_is_its_gradient():
    q, k, v = qkv(3, 4)
    blind = jnp.zeros((1, 1, 4), bool)
    value, grads = jax.value_and_grad(
        lambda q, k, v: attend(q, ((k, v, blind),)).sum(), argnums=(0, 1, 2)
    )(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_segments_show_a_query_its_own_keys():
    segments = Segments(q=jnp.array([[1, 2, 0, 3]]), kv=jnp.array([[0, 2, 1, 2]]))
    want = [[0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(segments.visible, np.array([want], bool))


@pytest.mark.parametrize("form", ["blocks", "plain", "dot_product", "cudnn"])
def test_tiles_agree_with_the_oracle(form):
    q, _, _ = qkv(12, 12)
    k, v, _ = qkv(12, 12, seed=1)
    k, v = (jnp.repeat(x, 4 // x.shape[1], axis=1) for x in (k, v))
    real = jnp.arange(4) < jnp.array([[3, 2, 0], [4, 0, 0]])[..., None]
    shown = np.asarray(real).reshape(2, 1, 12)
    want = oracle(q, k, v, shown | shown.swapaxes(1, 2))
    np.testing.assert_allclose(attend_tiles(form, q, k, v, real), want, atol=1e-5)


@pytest.fixture
def calls(monkeypatch):
    """Arguments of each call of JAX's fused attention, whose cuDNN kernel needs a GPU."""
    made, fused = [], jax.nn.dot_product_attention

    def recorded(*arrays, **options):
        made.append((arrays, options))
        return fused(*arrays, **options | {"implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    return made


def halves(width, dtype=jnp.bfloat16):
    draws = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, 4, 100, width), (2, 2, 150, width), (2, 2, 150, width)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(draws, shapes, strict=True)]


def close(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=0.03)


def test_cudnn_gets_whole_blocks_and_hidden_keys(calls):
    """What it is given; the kernel itself isn't run."""
    q, k, v = halves(80)
    of_queries = jnp.sort(jax.random.randint(jax.random.key(3), (2, 100), 1, 4), axis=1)
    packed = Segments(of_queries, jnp.repeat(jnp.arange(1, 4), 50)[None].repeat(2, axis=0))
    got = attend_features("cudnn", q, k, v, packed)
    close(got, attend_features("plain", q, k, v, packed))
    same = attend_causal("cudnn", q, k[:, :, :100], v[:, :, :100], of_queries)
    close(same, attend_causal("plain", q, k[:, :, :100], v[:, :, :100], of_queries))
    attend_causal("cudnn", q, k[:, :, :100], v[:, :, :100], None)
    assert [options["implementation"] for _, options in calls] == ["cudnn"] * 3
    assert [options["is_causal"] for _, options in calls] == [False, True, True]
    assert [arrays[0].shape for arrays, _ in calls] == [(2, 128, 4, 80)] * 3
    assert [arrays[1].shape[1] for arrays, _ in calls] == [192, 128, 128]
    masks = [options["mask"] for _, options in calls]
    assert masks[0].shape == (2, 1, 128, 192) and masks[2] is None
    assert not masks[0][:, :, 100:].any() and not masks[0][..., 150:].any()


@pytest.mark.parametrize(("width", "dtype"), [(80, jnp.float32), (84, jnp.bfloat16)])
def test_cudnn_is_left_out_where_it_does_not_apply(calls, width, dtype):
    q, k, v = halves(width, dtype)
    attend_causal("cudnn", q, k[:, :, :100], v[:, :, :100], None)
    attend_features("cudnn", q, k, v, Segments(jnp.ones((2, 100), int), jnp.ones((2, 150), int)))
    assert [options["implementation"] for _, options in calls] == ["xla"]
    assert calls[0][0][0].shape == (2, 100, 4, width)


def test_masks_are_attended_plainly_in_every_form(calls):
    q, k, v = halves(80)
    visible = jax.random.bernoulli(jax.random.key(4), 0.5, (2, 100, 150))
    outs = [attend_features(form, q, k, v, visible) for form in ("plain", "cudnn", "splash")]
    assert not calls
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])

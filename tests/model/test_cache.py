import jax
import jax.numpy as jnp
import numpy as np

from gp_virl.model.cache import empty, empty_reply
from tests.model.models import CONFIG


def normal(key, layers):
    keys = jax.random.split(key, len(layers))
    return tuple(jax.random.normal(k, layer.shape) for k, layer in zip(keys, layers, strict=True))


def filled(lanes, size, length):
    cache = empty(CONFIG, lanes, size)
    keys = jax.random.split(jax.random.key(0), 3)
    return cache.replace(
        tokens=jax.random.randint(keys[0], cache.tokens.shape, 1, 40),
        k=normal(keys[1], cache.k),
        v=normal(keys[2], cache.v),
        length=jnp.asarray(length, jnp.int32),
    )


def test_append_writes_behind_each_lane_and_nowhere_else():
    length, count = [0, 3, 6, 8, 5], [4, 0, 4, 2, 1]  # lanes 2 and 3 run out of room
    cache = filled(5, 8, length)
    new = filled(5, 4, [0] * 5)
    got = jax.jit(lambda c, n, count: c.append(n.tokens, n.k, n.v, count))(
        cache, new, jnp.asarray(count, jnp.int32)
    )
    tokens = np.array(cache.tokens)
    k, v = ([np.array(layer) for layer in layers] for layers in (cache.k, cache.v))
    for b, (start, n) in enumerate(zip(length, count, strict=True)):
        for c in range(n):
            if start + c < 8:
                tokens[b, start + c] = new.tokens[b, c]
                for layer, (own, other) in enumerate(zip(new.k, new.v, strict=True)):
                    k[layer][:, b, :, start + c] = own[:, b, :, c]
                    v[layer][:, b, :, start + c] = other[:, b, :, c]
    jax.tree.map(np.testing.assert_array_equal, (got.tokens, got.k, got.v), (tokens, (*k,), (*v,)))
    assert got.length.tolist() == [4, 3, 8, 8, 6]
    assert cache.size == 8


def test_a_reply_column_is_written_alone():
    cache = empty_reply(CONFIG, 3, 5)
    one = normal(jax.random.key(0), [layer[:, :, :, :1] for layer in cache.k])
    got = cache.write(jnp.int32(2), one, jax.tree.map(lambda x: 2 * x, one))
    for k, v, want in zip(got.k, got.v, one, strict=True):
        np.testing.assert_array_equal(k[..., 2:3, :], want)
        np.testing.assert_array_equal(v[..., 2:3, :], 2 * want)
        assert not k[..., [0, 1, 3, 4], :].any() and not v[..., [0, 1, 3, 4], :].any()
    assert got.size == 5

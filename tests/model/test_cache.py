import jax
import jax.numpy as jnp
import numpy as np

from gp_virl.model.cache import empty, empty_reply
from tests.model.models import CONFIG


def filled(lanes, size, length):
    cache = empty(CONFIG, lanes, size)
    keys = jax.random.split(jax.random.key(0), 3)
    return cache.replace(
        tokens=jax.random.randint(keys[0], cache.tokens.shape, 1, 40),
        k=jax.random.normal(keys[1], cache.k.shape),
        v=jax.random.normal(keys[2], cache.v.shape),
        length=jnp.asarray(length, jnp.int32),
    )


def test_append_writes_behind_each_lane_and_nowhere_else():
    length, count = [0, 3, 6, 8, 5], [4, 0, 4, 2, 1]  # lanes 2 and 3 run out of room
    cache = filled(5, 8, length)
    new = filled(5, 4, [0] * 5)
    got = jax.jit(lambda c, n, count: c.append(n.tokens, n.k, n.v, count))(
        cache, new, jnp.asarray(count, jnp.int32)
    )
    want = {name: np.array(getattr(cache, name)) for name in ("tokens", "k", "v")}
    for b, (start, n) in enumerate(zip(length, count, strict=True)):
        for c in range(n):
            if start + c < 8:
                want["tokens"][b, start + c] = new.tokens[b, c]
                want["k"][:, :, b, :, start + c] = new.k[:, :, b, :, c]
                want["v"][:, :, b, :, start + c] = new.v[:, :, b, :, c]
    for name, array in want.items():
        np.testing.assert_array_equal(getattr(got, name), array)
    assert got.length.tolist() == [4, 3, 8, 8, 6]
    assert cache.size == 8


def test_a_reply_column_is_written_alone():
    cache = empty_reply(CONFIG, 3, 5)
    one = jax.random.normal(jax.random.key(0), (*cache.k.shape[:4], 1, CONFIG.head_dim))
    got = cache.write(jnp.int32(2), one, 2 * one)
    np.testing.assert_array_equal(got.k[..., 2:3, :], one)
    np.testing.assert_array_equal(got.v[..., 2:3, :], 2 * one)
    assert not got.k[..., [0, 1, 3, 4], :].any() and not got.v[..., [0, 1, 3, 4], :].any()

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gp_virl.model.cache import empty, empty_reply
from gp_virl.model.mllama import build
from tests.model.models import CONFIG, two_groups

LENGTHS = [9, 4, 7]


def row_tokens(seed=0):
    return jax.random.randint(jax.random.key(seed), (3, 16), 0, CONFIG.vocab_size)


@jax.jit
def uncached(tokens):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return nnx.merge(*two_groups()).hidden(tokens, places)


@jax.jit
def extend_jitted(tokens, count, cache):
    return nnx.merge(*two_groups()).extend(tokens, count, cache)


def extend(tokens, count, cache):
    return extend_jitted(tokens, jnp.asarray(count, jnp.int32), cache)


@jax.jit
def step(token, column, cache, reply):
    return nnx.merge(*two_groups()).step(token, column, cache, reply)


def test_ragged_chunks_equal_the_uncached_forward():
    tokens, want = row_tokens(), uncached(row_tokens())
    cache = empty(CONFIG, 3, 16)
    for counts in ([5, 0, 2], [4, 4, 5], [5, 1, 5]):
        starts = cache.length.tolist()
        chunk = jnp.stack([jnp.roll(tokens[b], -start)[:5] for b, start in enumerate(starts)])
        hidden, cache = extend(chunk, counts, cache)
        for b, (start, count) in enumerate(zip(starts, counts, strict=True)):
            got = hidden[b, :count]
            np.testing.assert_allclose(got, want[b, start : start + count], atol=1e-5)
    assert cache.length.tolist() == [14, 5, 12]
    for b, n in enumerate(cache.length.tolist()):
        np.testing.assert_array_equal(cache.tokens[b, :n], tokens[b, :n])


def test_a_chunk_that_reaches_over_the_buffer_corrupts_nothing():
    tokens, want = row_tokens(), uncached(row_tokens())
    _, cache = extend(tokens[:, :14], [14, 14, 3], empty(CONFIG, 3, 16))
    hidden, cache = extend(jnp.pad(tokens, ((0, 0), (0, 6)))[:, 14:22], [2, 0, 0], cache)
    np.testing.assert_allclose(hidden[0, :2], want[0, 14:], atol=1e-5)
    hidden, _ = extend(tokens[:, 14:15], [0, 1, 0], cache)
    np.testing.assert_allclose(hidden[1, 0], want[1, 14], atol=1e-5)


def test_reply_steps_equal_the_uncached_forward_and_merge():
    tokens, want = row_tokens(), uncached(row_tokens())
    _, cache = extend(tokens[:, :9], LENGTHS, empty(CONFIG, 3, 16))
    reply = empty_reply(CONFIG, 3, 6)
    said = jnp.stack([tokens[b, n : n + 6] for b, n in enumerate(LENGTHS)])
    for column in range(5):
        hidden, reply = step(said[:, column], jnp.int32(column), cache, reply)
        for b, n in enumerate(LENGTHS):
            np.testing.assert_allclose(hidden[b], want[b, n + column], atol=1e-5)
    merged = cache.append(said, reply.k, reply.v, jnp.array([5, 3, 5]))
    ahead = jnp.stack([tokens[b, n : n + 2] for b, n in enumerate([14, 7, 12])])
    hidden, _ = extend(ahead, [2, 2, 2], merged)
    for b, n in enumerate([14, 7, 12]):
        np.testing.assert_allclose(hidden[b], want[b, n : n + 2], atol=1e-5)


def test_heads_are_float32_and_image_rows_have_no_logit():
    graph, params = two_groups()
    model = nnx.merge(graph, params)
    hidden = jax.random.normal(jax.random.key(0), (3, 16, CONFIG.hidden_size)).astype(jnp.bfloat16)
    logits, value = model.logits(hidden), model.value(hidden)
    assert logits.shape == (3, 16, CONFIG.vocab_size) and logits.dtype == jnp.float32
    assert value.shape == (3, 16) and value.dtype == jnp.float32
    assert params["language_model"]["embed_tokens"].shape[0] == CONFIG.vocab_size + 8
    assert model.logits(hidden[0, 0]).shape == (CONFIG.vocab_size,)


def test_a_build_is_decided_by_its_key():
    make = jax.jit(lambda key: build(CONFIG, key)[1])
    one, same, other = (make(jax.random.key(seed)) for seed in (3, 3, 4))
    kernels = [
        params["language_model"]["groups"]["layers"][0]["mlp"]["up_proj"]["kernel"][...]
        for params in (one, same, other)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert abs(kernels[0] - kernels[2]).max() > 0.01
    assert abs(kernels[0][0] - kernels[0][1]).max() > 0.01  # groups differ from each other
    assert set(one) == {"language_model", "lm_head", "value_head"}

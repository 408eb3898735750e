"""Turns of lanes that look at images, against one uncached pass over the whole row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gp_virl.model.cache import empty, empty_cross
from gp_virl.model.decoder import Cross
from gp_virl.rollout.generate import common_prefix, turn
from gp_virl.rollout.sampling import Sampling
from gp_virl.types import Context
from tests.model.models import CONFIG, two_groups

LANES, ROOM, T, FEATURES = 4, 40, 6, 7
KEYS = jax.random.split(jax.random.key(2), LANES)
STOPS = jnp.array([0, 1, 2, 3], jnp.int32)
EVERYONE = jnp.ones(LANES, bool)
REAL = jnp.arange(FEATURES) < jnp.array([[7], [4], [0], [2]])  # lane 2 has no image
SINCE = jnp.array([0, 3, 0, 2], jnp.int32)
TRACES = []


def states(seed):
    return jax.random.normal(jax.random.key(seed), (LANES, FEATURES, CONFIG.hidden_size))


@jax.jit
def look(features):
    return nnx.merge(*two_groups()).look(features, REAL, SINCE)


@jax.jit
def play(cache, context, images, new_image):
    TRACES.append(None)
    model = nnx.merge(*two_groups())
    return turn(
        model, cache, context, KEYS, Sampling.of(0.9), STOPS, T, 5, EVERYONE,
        images=images, new_image=new_image,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="sees")
def uncached(tokens, features, sees=True):
    model = nnx.merge(*two_groups())
    places = jnp.broadcast_to(jnp.arange(ROOM), tokens.shape)
    visible = (places >= SINCE[:, None])[:, :, None] & REAL[:, None]
    hidden = model.hidden(tokens, places, cross=Cross(features, visible) if sees else None)
    return jax.nn.log_softmax(model.logits(hidden) / 0.9), model.value(hidden)


def prompts(seed, lengths):
    tokens = jax.random.randint(jax.random.key(seed), (LANES, ROOM), 4, CONFIG.vocab_size)
    return Context(tokens=tokens, length=jnp.array(lengths, jnp.int32))


def check(context, reply, features, sees=True, lanes=range(LANES)):
    rows = np.array(context.tokens)
    for b in range(LANES):
        n = int(context.length[b])
        rows[b, n : n + T] = reply.tokens[b]
    logp, value = uncached(jnp.asarray(rows), features, sees)
    for b in lanes:
        start, n = int(context.length[b]), int(reply.length[b])
        want = [logp[b, start - 1 + i, reply.tokens[b, i]] for i in range(n)]
        np.testing.assert_allclose(reply.logp[b, :n], want, atol=1e-5)
        np.testing.assert_allclose(reply.value[b], value[b, start - 1], atol=1e-5)
    return rows


def follow_up(context, reply, rows):
    """Three more tokens behind each reply."""
    length = context.length + reply.length
    for b, n in enumerate(length.tolist()):
        rows[b, n : n + 3] = [9, 8, 7]
    return Context(tokens=jnp.asarray(rows), length=length + 3)


def test_turns_equal_the_uncached_forward_and_a_new_image_empties_the_prefix():
    first, second = states(0), states(1)
    context = prompts(3, [11, 5, 7, 9])
    nothing = jnp.zeros(LANES, bool)
    images = look(first)
    reply, cache = play(empty(CONFIG, LANES, ROOM), context, images, nothing)
    rows = check(context, reply, first)
    context = follow_up(context, reply, rows)

    fresh = jnp.array([True, False, False, True])
    lanes = jnp.array([3, 0, LANES, LANES])  # in any order; beyond the last one means none
    new = look(second[lanes % LANES]).replace(real=REAL[lanes % LANES], since=SINCE[lanes % LANES])
    images = images.put(lanes, new)
    reply, cache = play(cache, context, images, fresh)
    check(context, reply, jnp.where(fresh[:, None, None], second, first))
    # Of the last reply all but its last token was held; where the image is new, nothing.
    kept = context.length - reply.prefilled
    assert kept.tolist()[0] == kept.tolist()[3] == 0
    assert kept.tolist()[1:3] == (context.length - 4).tolist()[1:3]
    assert len(TRACES) == 1


def test_without_new_images_the_prefix_is_that_of_the_tokens():
    cache = empty(CONFIG, LANES, ROOM)
    context = prompts(3, [11, 5, 7, 9])
    cache = cache.replace(tokens=context.tokens, length=context.length)
    assert common_prefix(cache, context).tolist() == [11, 5, 7, 9]
    new = jnp.array([False, True, False, True])
    assert common_prefix(cache, context, new).tolist() == [11, 0, 7, 0]


def test_an_empty_lane_reads_text_as_if_there_were_no_images():
    """Keys and values of zero add nothing, in HF's order too."""
    images = empty_cross(CONFIG, LANES, FEATURES)
    images = images.put(jnp.array([0, 1, LANES, 3]), look(states(0)))
    context = prompts(4, [4, 9, 12, 6])
    reply, _ = play(empty(CONFIG, LANES, ROOM), context, images, jnp.zeros(LANES, bool))
    check(context, reply, states(0), lanes=[0, 1, 3])
    check(context, reply, states(0), sees=False, lanes=[2])


def test_no_key_or_value_is_computed_twice():
    """Text-only turns trace no cross-attention; turns with images trace none of its projections."""
    model = nnx.merge(*two_groups())
    cache, token = empty(CONFIG, LANES, ROOM), jnp.zeros((LANES, 1), jnp.int32)
    images, ones = empty_cross(CONFIG, LANES, FEATURES), jnp.ones(LANES, jnp.int32)

    def products(images):
        trace = jax.make_jaxpr(lambda t, i: model.extend(t, ones, cache, i)[0])(token, images)
        return str(trace).count("dot_general")

    # A cross layer costs its two attention products, q and o projections and the MLP's three.
    assert products(images) - products(None) == 7 * CONFIG.pattern.count("cross")

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.model.cache import empty
from gp_virl.rollout.generate import common_prefix, turn
from gp_virl.rollout.sampling import Sampling
from gp_virl.types import Context
from tests.model.models import CONFIG, two_groups

LANES, ROOM, T, CHUNK = 4, 64, 9, 5
STOPS = jnp.array([0, 1, 2, 3], jnp.int32)  # a tenth of the vocabulary: replies of many lengths
EVERYONE = jnp.ones(LANES, bool)
KEYS = jax.random.split(jax.random.key(11), LANES)
WARM = Sampling.of(0.8)


TRACES = []


@jax.jit
def play(params, cache, context, keys, sampling, active):
    TRACES.append(active.shape)
    model = nnx.merge(two_groups()[0], params)
    return turn(model, cache, context, keys, sampling, STOPS, T, CHUNK, active)


def taken(cache, context, keys=KEYS, sampling=WARM, active=EVERYONE):
    return play(two_groups()[1], cache, context, keys, sampling, active)


def prompts(lengths=(11, 3, 7, 1), seed=0, lanes=LANES):
    tokens = jax.random.randint(jax.random.key(seed), (lanes, ROOM), 4, CONFIG.vocab_size)
    return Context(tokens=tokens, length=jnp.array(lengths, jnp.int32))


def followed_up(context, reply, feedback=(6, 1, 4, 2)):
    """Context, reply and a feedback of the given lengths, behind each other."""
    tokens = np.array(context.tokens)
    length = np.array(context.length)
    for b, extra in enumerate(feedback):
        said = np.asarray(reply.tokens)[b, : int(reply.length[b])]
        news = np.arange(extra) % 7 + 10
        row = np.concatenate([tokens[b, : length[b]], said, news])
        tokens[b], length[b] = np.pad(row, (0, ROOM - len(row))), len(row)
    return Context(tokens=jnp.asarray(tokens), length=jnp.asarray(length))


@functools.cache
def _forward():
    def run(params, tokens):
        model = nnx.merge(two_groups()[0], params)
        hidden = model.hidden(tokens[None], jnp.arange(ROOM)[None])[0]
        return model.logits(hidden), model.value(hidden)

    return jax.jit(run)


def check_against_training_forward(context, reply, temperature):
    """Every log-probability and value of a turn, from one uncached pass over the whole row."""
    whole = followed_up(context, reply, feedback=(0,) * len(context.length))
    for b in range(len(context.length)):
        start, n = int(context.length[b]), int(reply.length[b])
        logits, value = _forward()(two_groups()[1], whole.tokens[b])
        logp = jax.nn.log_softmax(logits / temperature)
        want = [logp[start - 1 + i, reply.tokens[b, i]] for i in range(n)]
        np.testing.assert_allclose(reply.logp[b, :n], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reply.value[b], value[start - 1], atol=1e-5)
        said = np.asarray(reply.tokens[b, :n])
        assert not np.isin(said[:-1], STOPS).any()
        assert bool(reply.ended[b]) == bool(np.isin(said[-1], STOPS))
        assert reply.ended[b] or n == T
        assert not np.asarray(reply.tokens[b, n:]).any() and not np.asarray(reply.logp[b, n:]).any()


@pytest.mark.parametrize("temperature", [0.8, 1.0])
def test_two_turns_equal_the_uncached_forward(temperature):
    context, sampling = prompts(), Sampling.of(temperature)
    reply, cache = taken(empty(CONFIG, LANES, ROOM), context, sampling=sampling)
    check_against_training_forward(context, reply, temperature)
    np.testing.assert_array_equal(reply.prefilled, context.length)
    second = followed_up(context, reply)
    answer, cache = taken(cache, second, sampling=sampling)
    check_against_training_forward(second, answer, temperature)
    # The feedback and the reply's last token, whose keys and values nobody had needed.
    np.testing.assert_array_equal(answer.prefilled, np.array([6, 1, 4, 2]) + 1)
    for b in range(LANES):
        n = int(cache.length[b])
        assert n == second.length[b] + answer.length[b] - 1
        whole = followed_up(second, answer).tokens
        np.testing.assert_array_equal(cache.tokens[b, :n], whole[b, :n])


def test_replies_of_several_lengths_are_covered():
    reply, _ = taken(empty(CONFIG, LANES, ROOM), prompts())
    assert len(set(reply.length.tolist())) > 1
    assert reply.ended.any()


def test_a_new_prompt_in_a_used_lane_keeps_only_what_is_common():
    context = prompts()
    reply, cache = taken(empty(CONFIG, LANES, ROOM), context)
    other = prompts((9, 5, 7, 2), seed=1)
    tokens = other.tokens.at[0, :4].set(context.tokens[0, :4]).at[2].set(context.tokens[2])
    other = other.replace(tokens=tokens)
    np.testing.assert_array_equal(common_prefix(cache, other)[jnp.array([0, 1, 3])], [4, 0, 0])
    again, _ = taken(cache, other)
    # Lane 2 asks the same again: its last token alone is run, for the hidden state.
    np.testing.assert_array_equal(again.prefilled, [5, 5, 1, 2])
    check_against_training_forward(other, again, 0.8)
    np.testing.assert_array_equal(again.tokens[2], reply.tokens[2])


def test_inactive_lanes_say_nothing_and_keep_their_cache():
    context = prompts()
    _, cache = taken(empty(CONFIG, LANES, ROOM), context)
    active = jnp.array([True, False, True, False])
    everyone, _ = taken(cache, prompts(seed=2))
    reply, after = taken(cache, prompts(seed=2), active=active)
    for b in (1, 3):
        assert not reply.tokens[b].any() and reply.length[b] == 0 and not reply.ended[b]
        assert reply.value[b] == 0 and reply.prefilled[b] == 0
        n = int(cache.length[b])
        assert after.length[b] == n
        for now, before in zip(after.k, cache.k, strict=True):
            np.testing.assert_array_equal(now[:, b, :, :n], before[:, b, :, :n])
        np.testing.assert_array_equal(after.tokens[b, :n], cache.tokens[b, :n])
    for b in (0, 2):
        np.testing.assert_array_equal(reply.tokens[b], everyone.tokens[b])
        np.testing.assert_allclose(reply.logp[b], everyone.logp[b], atol=1e-6)


def test_nobody_active_costs_nothing_and_changes_nothing():
    _, cache = taken(empty(CONFIG, LANES, ROOM), prompts())
    reply, after = taken(cache, prompts(seed=2), active=~EVERYONE)
    assert not reply.length.any()
    np.testing.assert_array_equal(after.length, cache.length)


def test_a_lanes_reply_does_not_depend_on_its_neighbours():
    context = prompts()
    reply, _ = taken(empty(CONFIG, LANES, ROOM), context)
    order = jnp.array([2, 0])
    two = jax.tree.map(lambda x: x[order], context)
    alone, _ = taken(empty(CONFIG, 2, ROOM), two, KEYS[order], active=jnp.ones(2, bool))
    np.testing.assert_array_equal(alone.tokens, reply.tokens[order])
    np.testing.assert_allclose(alone.logp, reply.logp[order], atol=1e-5)
    np.testing.assert_allclose(alone.value, reply.value[order], atol=1e-5)


def test_greedy_is_the_uncached_argmax():
    context = prompts()
    reply, _ = taken(empty(CONFIG, LANES, ROOM), context, sampling=Sampling.of(greedy=True))
    check_against_training_forward(context, reply, 1.0)
    whole = followed_up(context, reply)
    for b in range(LANES):
        logits, _ = _forward()(two_groups()[1], whole.tokens[b])
        start, n = int(context.length[b]), int(reply.length[b])
        np.testing.assert_array_equal(
            reply.tokens[b, :n], jnp.argmax(logits[start - 1 : start - 1 + n], -1)
        )


def test_forbidden_tokens_are_not_said():
    forbidden = jnp.arange(CONFIG.vocab_size) < 20

    @jax.jit
    def run(params):
        model = nnx.merge(two_groups()[0], params)
        cache = empty(CONFIG, LANES, ROOM)
        sampling = Sampling.of(1.0)
        return turn(model, cache, prompts(), KEYS, sampling, STOPS, T, CHUNK, EVERYONE, forbidden)[
            0
        ]

    reply = run(two_groups()[1])
    assert (reply.tokens >= 20).all() and (reply.length == T).all() and not reply.ended.any()


def test_a_full_lane_keeps_its_earlier_entries():
    context = prompts((ROOM - 2, 3, 7, 1))
    reply, cache = taken(empty(CONFIG, LANES, ROOM), context)
    n = ROOM - 2
    np.testing.assert_array_equal(cache.tokens[0, :n], context.tokens[0, :n])
    assert int(cache.length[0]) == min(n + int(reply.length[0]) - 1, ROOM)
    again, _ = taken(cache, context)
    np.testing.assert_array_equal(again.tokens[0], reply.tokens[0])


def test_one_compilation_serves_every_turn_and_setting():
    cache = empty(CONFIG, LANES, ROOM)
    for sampling in (Sampling.of(1.0), Sampling.of(0.3, 0.9), Sampling.of(greedy=True)):
        reply, cache = taken(cache, prompts(), sampling=sampling)
    assert len(TRACES) == len(set(TRACES))


def test_context_and_cache_must_have_the_same_room():
    with pytest.raises(ValueError, match="64 columns.*room for 32"):
        taken(empty(CONFIG, LANES, 32), prompts())

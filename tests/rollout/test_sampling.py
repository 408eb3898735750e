import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from gp_virl.rollout.sampling import Sampling, nucleus, sample

DRAWS = 4000
LOGITS = np.array([1.0, 3.0, -1.0, 2.5, 0.0, 2.0], np.float32)


def draws(sampling, forbidden=None, logits=LOGITS):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    rows = jnp.broadcast_to(jnp.asarray(logits), (DRAWS, len(logits)))
    return jax.jit(sample)(rows, keys, jnp.zeros(DRAWS, jnp.int32), sampling, forbidden)


def plain_nucleus(p, top_p):
    """Tokens in falling order until their mass reaches top_p."""
    kept, mass = np.zeros(len(p), bool), 0.0
    for i in np.argsort(-p, kind="stable"):
        if mass >= top_p and kept.any():
            break
        kept[i], mass = True, mass + p[i]
    return kept


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
def test_frequencies_and_log_probabilities(temperature, top_p):
    token, logp = draws(Sampling.of(temperature, top_p))
    whole = log_softmax(LOGITS.astype(np.float64) / temperature)
    np.testing.assert_allclose(logp, whole[np.asarray(token)], atol=1e-5)
    want = np.exp(whole) * plain_nucleus(np.exp(whole), top_p)
    want /= want.sum()
    got = np.bincount(token, minlength=len(LOGITS)) / DRAWS
    assert (got[want == 0] == 0).all()
    np.testing.assert_allclose(got, want, atol=4 * 0.5 / DRAWS**0.5)


@pytest.mark.parametrize("sampling", [Sampling.of(0.0), Sampling.of(0.7, greedy=True)])
def test_greedy_takes_the_best_and_scores_it_at_temperature_one(sampling):
    token, logp = draws(sampling)
    assert (token == 1).all()
    np.testing.assert_allclose(logp, log_softmax(LOGITS)[1], atol=1e-6)


def test_forbidden_ids_are_never_drawn_and_change_no_probability():
    forbidden = jnp.array([False, True, False, True, False, False])
    token, logp = draws(Sampling.of(1.0), forbidden)
    assert not np.isin(token, [1, 3]).any()
    np.testing.assert_allclose(logp, log_softmax(LOGITS)[np.asarray(token)], atol=1e-6)
    assert (draws(Sampling.of(0.0), forbidden)[0] == 5).all()


def test_nucleus_against_the_plain_one():
    p = np.random.default_rng(0).dirichlet(np.ones(20), size=50).astype(np.float32)
    for top_p in (1e-6, 0.3, 0.9, 0.999):
        got = nucleus(jnp.asarray(p), jnp.float32(top_p))
        np.testing.assert_array_equal(got, [plain_nucleus(row, top_p) for row in p])


def test_a_lanes_draw_depends_on_its_own_key_place_and_logits_only():
    keys = jax.random.split(jax.random.key(1), 8)
    logits = jax.random.normal(jax.random.key(2), (8, 30))
    places = jnp.arange(8)
    token, logp = sample(logits, keys, places, Sampling.of(1.0, 0.9))
    order = jnp.array([5, 2, 2, 7])
    again, logp_again = sample(logits[order], keys[order], places[order], Sampling.of(1.0, 0.9))
    np.testing.assert_array_equal(again, token[order])
    assert (sample(logits, keys, places + 1, Sampling.of(1.0, 0.9))[0] != token).any()
    np.testing.assert_array_equal(logp_again, logp[order])


def test_one_compilation_serves_every_setting():
    traces = []

    @jax.jit
    def traced(*inputs):
        traces.append(1)
        return sample(*inputs)

    keys, logits = jax.random.split(jax.random.key(1), 2), jnp.zeros((2, 5))
    settings = (Sampling.of(1.0), Sampling.of(0.0), Sampling.of(0.5, 0.5), Sampling.of(greedy=True))
    for sampling in settings:
        traced(logits, keys, jnp.zeros(2, jnp.int32), sampling)
    assert len(traces) == 1


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="temperature=-1"):
        Sampling.of(-1)
    with pytest.raises(ValueError, match="top_p=0"):
        Sampling.of(top_p=0)

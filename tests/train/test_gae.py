"""GAE against golden numbers and a plainly written loop."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.train.gae import gae, normalised

CASES = json.loads((Path(__file__).parents[1] / "data" / "ppo.json").read_text())["gae"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['name']}, {case['gamma']}")
def test_golden(case):
    values = jnp.array(case["values"])[:, None]
    terminated = jnp.array(case["terminated"], bool)[:, None]
    got = gae(
        jnp.array(case["rewards"])[:, None], values[:-1], values[1:], terminated,
        jnp.zeros_like(terminated), case["gamma"], case["gae_lambda"],
    )  # fmt: skip
    np.testing.assert_allclose(got[:, 0], case["advantages"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((got + values[:-1])[:, 0], case["returns"], rtol=1e-5, atol=1e-5)
    if "normalised_advantages" in case:
        np.testing.assert_allclose(
            normalised(got[:, 0]), case["normalised_advantages"], rtol=1e-4, atol=1e-5
        )


def plain(reward, value, following, terminated, truncated, discount, lam):
    out = np.zeros_like(reward)
    for b in range(reward.shape[1]):
        for r in range(reward.shape[0]):
            weight = 1.0
            for t in range(r, reward.shape[0]):
                ahead = 0.0 if terminated[t, b] else following[t, b]
                out[r, b] += weight * (reward[t, b] + discount * ahead - value[t, b])
                if terminated[t, b] or truncated[t, b]:
                    break
                weight *= discount * lam
    return out


def test_against_sums_of_surprises():
    rng = np.random.default_rng(0)
    reward, value, following = rng.normal(size=(3, 9, 33)).astype(np.float32)
    terminated = rng.random((9, 33)) < 0.3
    truncated = ~terminated & (rng.random((9, 33)) < 0.2)
    args = (reward, value, following, terminated, truncated)
    got = gae(*map(jnp.asarray, args), 0.9, 0.95)
    np.testing.assert_allclose(got, plain(*args, 0.9, 0.95), rtol=1e-4, atol=1e-5)


def test_nothing_leaks_past_an_end():
    def first(later):
        reward = jnp.array([[1.0], [0.0]]).at[1, 0].set(later)
        ends = jnp.array([[True], [False]])
        zero, none = jnp.zeros((2, 1)), jnp.zeros((2, 1), bool)
        return gae(reward, zero, zero, none, ends, 0.9, 0.95)[0, 0]

    assert jax.grad(first)(3.0) == 0.0


def test_normalised_ignores_the_dead():
    live = jnp.array([True, True, False, True])
    got = normalised(jnp.array([1.0, 2.0, 1e6, 4.0]), live)
    np.testing.assert_allclose(got[jnp.array([0, 1, 3])], normalised(jnp.array([1.0, 2.0, 4.0])))
    assert got[2] == 0.0

"""PPO against golden numbers and against a plainly written update."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.train.ppo import kl_estimate, policy_loss, value_loss

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "ppo.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["policy_loss"], ids=lambda case: case["name"])
def test_golden_policy_loss(case):
    def mean(logp):
        old, advantage = jnp.array(case["logp_old"]), jnp.array(case["advantages"])
        return policy_loss(logp, old, advantage, case["clip"]).mean()

    loss, grad = jax.value_and_grad(mean)(jnp.array(case["logp_new"]))
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, case["grad_logp_new"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case", GOLDEN["value_loss"], ids=lambda case: f"{case['name']}, clipped {case['clipped']}"
)
def test_golden_value_loss(case):
    clip = case["clip"] if case["clipped"] else float("inf")

    def mean(value):
        old, target = jnp.array(case["old_values"]), jnp.array(case["returns"])
        return value_loss(value, old, target, clip).mean()

    loss, grad = jax.value_and_grad(mean)(jnp.array(case["values"]))
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, case["grad_values"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", GOLDEN["total_loss"])
def test_golden_total(case):
    policy = policy_loss(
        *(jnp.array(case[name]) for name in ("logp_new", "logp_old", "advantages")), case["clip"]
    ).mean()
    value = value_loss(
        *(jnp.array(case[name]) for name in ("values", "old_values", "returns")), case["clip"]
    ).mean()
    np.testing.assert_allclose(policy, case["policy_loss"], rtol=1e-5)
    np.testing.assert_allclose(policy + case["value_loss_coef"] * value, case["loss"], rtol=1e-5)


def test_kl_estimate_is_unbiased_and_not_negative():
    p = jax.nn.log_softmax(jnp.array([0.3, -1.0, 2.0]))
    q = jax.nn.log_softmax(jnp.array([1.0, 0.2, 0.4]))
    each = kl_estimate(p, q)
    assert (each >= 0).all()
    np.testing.assert_allclose((jnp.exp(p) * each).sum(), (jnp.exp(p) * (p - q)).sum(), rtol=1e-5)

"""One small model that several tests share: two groups, every weight away from its start value."""

import functools

import jax
import jax.numpy as jnp

from gp_virl.model.config import ModelConfig
from gp_virl.model.mllama import build

CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    groups=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    value_widths=(16, 8),
)


@functools.cache
def two_groups():
    """(graph, params); norms and gates are perturbed, since ones and zeros would hide mistakes."""
    graph, params = build(CONFIG, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return graph, jax.tree.unflatten(tree, [jnp.asarray(x) for x in moved])

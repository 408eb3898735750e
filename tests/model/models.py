"""One small model that several tests share: two groups, every weight away from its start value."""

import functools

import jax
import numpy as np

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
    with jax.ensure_compile_time_eval():  # kept as numbers also when first called inside a jit
        graph, params = build(CONFIG, jax.random.key(0))
        leaves, tree = jax.tree.flatten(params)
        draw = np.random.default_rng(1)
        moved = [x + 0.1 * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
        return graph, jax.tree.unflatten(tree, moved)

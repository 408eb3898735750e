"""The decoder in plain numpy, one token and one head at a time, after HF's Mllama code."""

import math

import numpy as np
from flax import nnx

from gp_virl.model.config import ModelConfig


def tree_of(params) -> dict:
    """Nested plain dicts of numpy arrays."""
    return {path: np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(params)}


def frequencies(config: ModelConfig) -> np.ndarray:
    """transformers' _compute_llama3_parameters, branch by branch."""
    scaling = config.rope_scaling
    out = []
    for i in range(0, config.head_dim, 2):
        inv = 1.0 / config.rope_theta ** (i / config.head_dim)
        wavelen = 2 * math.pi / inv
        if scaling is not None:
            low = scaling.original_max_position_embeddings / scaling.low_freq_factor
            high = scaling.original_max_position_embeddings / scaling.high_freq_factor
            if wavelen > low:
                inv = inv / scaling.factor
            elif wavelen >= high:
                turns = scaling.original_max_position_embeddings / wavelen
                smooth = (turns - scaling.low_freq_factor) / (
                    scaling.high_freq_factor - scaling.low_freq_factor
                )
                inv = (1 - smooth) * inv / scaling.factor + smooth * inv
        out.append(inv)
    return np.array(out)


def rotate_half(x: np.ndarray, position: int, inv: np.ndarray) -> np.ndarray:
    """HF apply_rotary_pos_emb on one head of one token."""
    angles = np.concatenate([inv, inv]) * position
    half = len(x) // 2
    return x * np.cos(angles) + np.concatenate([-x[half:], x[:half]]) * np.sin(angles)


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """q [S H d], k and v [s Kh d], visible [S s] -> [S H d]; softmax by hand."""
    share = q.shape[1] // k.shape[1]
    out = np.zeros_like(q)
    for i in range(q.shape[0]):
        seen = np.flatnonzero(visible[i])
        for h in range(q.shape[1]):
            scores = k[seen, h // share] @ q[i, h] / math.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            out[i, h] = weights @ v[seen, h // share] / weights.sum()
    return out


def hidden(config, params, tokens, positions, segments, states=None, looks=None) -> np.ndarray:
    """Final hidden states [S D] of one row; `states` [I D] and `looks` [S I] are its image."""
    tree, eps = tree_of(params), config.rms_norm_eps
    inv = frequencies(config)
    x = tree["language_model", "embed_tokens"][tokens]
    n = len(tokens)
    visible = np.array(
        [[j <= i and segments[i] == segments[j] for j in range(n)] for i in range(n)]
    )
    for index in range(config.num_hidden_layers):
        group, slot = divmod(index, 5)

        def weight(*name, group=group, slot=slot):
            return tree["language_model", "groups", "layers", slot, *name][group]

        def split(x):
            return x.reshape(len(x), -1, config.head_dim)

        def feed(x):
            gate = x @ weight("mlp", "gate_proj", "kernel")
            up = x @ weight("mlp", "up_proj", "kernel")
            return (gate / (1 + np.exp(-gate)) * up) @ weight("mlp", "down_proj", "kernel")

        before = norm(x, weight("input_layernorm", "weight"), eps)
        if slot == 3:
            if states is None:
                continue
            q = split(before @ weight("cross_attn", "q_proj", "kernel"))
            k = split(states @ weight("cross_attn", "k_proj", "kernel"))
            v = split(states @ weight("cross_attn", "v_proj", "kernel"))
            q = norm(q, weight("cross_attn", "q_norm", "weight"), eps)
            k = norm(k, weight("cross_attn", "k_norm", "weight"), eps)
            sighted = looks.any(-1)
            mixed = attention(q, k, v, np.where(sighted[:, None], looks, True))
            mixed = mixed.reshape(n, -1) @ weight("cross_attn", "o_proj", "kernel")
            if config.text_rows == "both":
                mixed = mixed * sighted[:, None]
            x = x + np.tanh(weight("cross_attn_attn_gate")) * mixed
            fed = feed(norm(x, weight("post_attention_layernorm", "weight"), eps))
            x = x + np.tanh(weight("cross_attn_mlp_gate")) * fed * sighted[:, None]
            continue
        q = split(before @ weight("self_attn", "q_proj", "kernel"))
        k = split(before @ weight("self_attn", "k_proj", "kernel"))
        v = split(before @ weight("self_attn", "v_proj", "kernel"))
        for heads in (q, k):
            for i in range(n):
                for h in range(heads.shape[1]):
                    heads[i, h] = rotate_half(heads[i, h], positions[i], inv)
        mixed = attention(q, k, v, visible).reshape(n, -1)
        x = x + mixed @ weight("self_attn", "o_proj", "kernel")
        x = x + feed(norm(x, weight("post_attention_layernorm", "weight"), eps))
    return norm(x, tree["language_model", "norm", "weight"], eps)

"""The vision tower in plain numpy, one image and one head at a time, after HF's Mllama code."""

import math

import numpy as np

from gp_virl.model.config import ModelConfig
from tests.model.plain import tree_of

erf = np.vectorize(math.erf)


def layernorm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def layer(x: np.ndarray, real: np.ndarray, heads: int, eps: float, weight) -> np.ndarray:
    """One layer on the tokens [n w] of all tiles; weight(*path) gives its arrays."""

    def norm(x, name):
        return layernorm(x, weight(name, "weight"), weight(name, "bias"), eps)

    def gate(name):
        return np.tanh(weight(name)) if weight(name) is not None else 1.0

    before = norm(x, "input_layernorm")
    q, k, v = (
        np.split(before @ weight("self_attn", f"{name}_proj", "kernel"), heads, axis=1)
        for name in "qkv"
    )
    visible = real[:, None] | real[None, :]
    outs = []
    for h in range(heads):
        scores = np.where(visible, q[h] @ k[h].T / math.sqrt(q[h].shape[1]), -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        outs.append(scores / scores.sum(-1, keepdims=True) @ v[h])
    attended = np.concatenate(outs, axis=1) @ weight("self_attn", "o_proj", "kernel")
    x = x + gate("gate_attn") * attended
    inner = norm(x, "post_attention_layernorm") @ weight("mlp", "fc1", "kernel")
    inner = inner + weight("mlp", "fc1", "bias")
    inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
    fed = inner @ weight("mlp", "fc2", "kernel") + weight("mlp", "fc2", "bias")
    return x + gate("gate_ffn") * fed


def tower(config: ModelConfig, params, pixels, ratio: int, real_tiles) -> np.ndarray:
    """Features [M P f] of one image [M C h w] with aspect ratio id `ratio`."""
    tree, vision = tree_of(params), config.vision

    def at(*path):
        return tree.get(("vision_model", *path))

    size, width = vision.patch_size, vision.hidden_size
    grid = vision.image_size // size
    tokens, real = [], []
    gate = np.tanh(at("gated_positional_embedding", "gate"))
    for m in range(vision.max_num_tiles):
        own = [at("class_embedding")]
        for i in range(grid * grid):
            y, x = divmod(i, grid)
            patch = pixels[m, :, y * size : (y + 1) * size, x * size : (x + 1) * size]
            embedded = patch.reshape(-1) @ at("patch_embedding", "kernel")
            place = at("pre_tile_positional_embedding", "embedding")[ratio, m]
            own.append(embedded + np.tanh(at("pre_tile_positional_embedding", "gate")) * place)
        own = np.stack(own) + (1 - gate) * at("gated_positional_embedding", "embedding")
        own += gate * at("gated_positional_embedding", "tile_embedding")[ratio, m]
        own = layernorm(own, at("layernorm_pre", "weight"), at("layernorm_pre", "bias"), 1e-5)
        missing = -len(own) % 8
        tokens.append(np.concatenate([own, np.zeros((missing, width))]))
        real += [bool(real_tiles[m])] * len(own) + [False] * missing
    x, real = np.concatenate(tokens), np.array(real)

    def run(x, part, count):
        outputs = []
        for i in range(count):

            def weight(*path, i=i):
                array = at(part, "layers", *path)
                return None if array is None else array[i]

            x = layer(x, real, vision.attention_heads, vision.norm_eps, weight)
            outputs.append(x)
        return outputs

    outputs = run(x, "transformer", vision.num_hidden_layers)
    x = layernorm(outputs[-1], at("layernorm_post", "weight"), at("layernorm_post", "bias"), 1e-5)
    x = x.reshape(vision.max_num_tiles, -1, width)
    place = at("post_tile_positional_embedding", "embedding")[ratio]
    x = x + np.tanh(at("post_tile_positional_embedding", "gate")) * place[:, None]
    x = run(x.reshape(-1, width), "global_transformer", vision.num_global_layers)[-1]
    picked = np.stack([outputs[i] for i in vision.intermediate_layers_indices], axis=-1)
    x = np.concatenate([x, picked.reshape(len(x), -1)], axis=-1)
    return x.reshape(vision.max_num_tiles, -1, x.shape[-1])[:, : vision.num_patches]

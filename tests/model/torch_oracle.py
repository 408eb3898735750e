"""Tiny random models of `transformers` in PyTorch, and the same weights as parameters here."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from gp_virl.io.hf_config import layer_pattern
from gp_virl.io.hf_names import entries, modern, named
from gp_virl.model.config import ModelConfig, VisionConfig
from gp_virl.model.mllama import abstract

VISION = VisionConfig(
    hidden_size=32,
    num_hidden_layers=3,
    num_global_layers=2,
    attention_heads=4,
    intermediate_size=48,
    image_size=28,
    patch_size=7,
    intermediate_layers_indices=(0, 2),
)
USUAL = ModelConfig(
    vocab_size=50,
    hidden_size=48,
    groups=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    intermediate_size=80,
    value_widths=(4,),
    vision=VISION,
)
# Odd everything: 7 decoder layers without a period, 5 + 1 layers in the tower, picked out of order
# and from the end, tiles of 23 pixels of which patches of 4 leave 3 over, 3 tiles at most.
ODD = ModelConfig(
    vocab_size=37,
    hidden_size=30,
    groups=1,
    pattern=layer_pattern(7, (1, 4, 5)),
    num_attention_heads=5,
    num_key_value_heads=1,
    head_dim=6,
    intermediate_size=33,
    value_widths=(4,),
    rope_scaling=None,
    vision=VisionConfig(
        hidden_size=27,
        num_hidden_layers=5,
        num_global_layers=1,
        attention_heads=3,
        intermediate_size=41,
        image_size=23,
        patch_size=4,
        intermediate_layers_indices=(4, 1, -2),
        max_num_tiles=3,
        supported_aspect_ratios=((1, 1), (1, 2), (1, 3), (2, 1), (3, 1)),
        norm_eps=1e-3,
    ),
)


def torch_config(config: ModelConfig) -> Any:
    """MllamaConfig of the same model."""
    from transformers import MllamaConfig
    from transformers.models.mllama import configuration_mllama as hf

    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3"} | dataclasses.asdict(config.rope_scaling)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "intermediate_size", "rms_norm_eps")
    text = {name: getattr(config, name) for name in names}
    text |= {"cross_attention_layers": list(config.cross_attention_layers)}
    text |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "rope_parameters": rope}
    vision = dataclasses.asdict(config.vision) | {"vision_output_dim": config.vision.output_size}
    vision["supported_aspect_ratios"] = [list(x) for x in config.vision.supported_aspect_ratios]
    vision["intermediate_layers_indices"] = list(config.vision.intermediate_layers_indices)
    return MllamaConfig(
        vision_config=hf.MllamaVisionConfig(**vision),
        text_config=hf.MllamaTextConfig(**text),
        image_token_index=config.vocab_size,
    )


@functools.cache
def oracle(config: ModelConfig) -> Any:
    """A random PyTorch model; norms, biases and gates are away from the ones and zeros at start."""
    import torch
    from transformers import MllamaForConditionalGeneration

    torch.manual_seed(0)
    model = MllamaForConditionalGeneration._from_config(
        torch_config(config), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            else:
                fan = weight[0].numel() if "embedding.weight" not in name else 16
                weight.normal_(std=(1 if "patch" in name else 1.5) / fan**0.5)
    return model


def params_of(config: ModelConfig, tensors: dict[str, Any]) -> Any:
    """Parameters here that hold PyTorch's tensors (or their gradients); zeros where it has none."""
    _, shapes = abstract(config)
    leaves = named(shapes)
    table = entries(config, {path: leaf.shape for path, leaf in leaves.items()})
    tensors = {modern(name): np.asarray(x.detach()) for name, x in tensors.items()}

    def array(path: str, leaf: Any) -> jax.Array:
        if path not in table:
            return jnp.zeros(leaf.shape, leaf.dtype)
        entry = table[path]
        parts = [tensors.pop(name) for name in entry.names]
        if entry.turned:
            parts = [part.reshape(len(part), -1).T for part in parts]
        return jnp.asarray((np.stack(parts) if entry.stacked else parts[0]).reshape(leaf.shape))

    arrays = [array(path, leaf) for path, leaf in leaves.items()]
    assert not tensors, f"left over: {sorted(tensors)}"
    return jax.tree.unflatten(jax.tree.structure(shapes), arrays)


@functools.cache
def ours(config: ModelConfig) -> Any:
    """(graph, params) with the weights of `oracle(config)`."""
    return abstract(config)[0], params_of(config, oracle(config).state_dict())


@struct.dataclass
class Batch:
    """A random batch in numpy, in the shapes of HF's processor with one image a row."""

    tokens: Int[ArrayLike, "B S"]
    length: Int[ArrayLike, "B"]
    pixels: Float[ArrayLike, "B M C h w"]
    aspect_ratio_ids: Int[ArrayLike, "B"]
    real: Bool[ArrayLike, "B M"]
    since: Int[ArrayLike, "B"]  # position of the image token
    looks: Bool[ArrayLike, "B S M"]  # True where a token sees a tile


def batch(config: ModelConfig, ids: list[int], seed: int = 0, size: int = 11) -> Batch:
    """One row per aspect ratio id; id 0 is a row without an image, which HF pads with zeros."""
    draw, vision = np.random.default_rng(seed), config.vision
    rows = len(ids)
    tokens = draw.integers(0, config.vocab_size, (rows, size))
    shape = (rows, vision.max_num_tiles, vision.num_channels, vision.image_size, vision.image_size)
    ratios = ((1, 1), *vision.supported_aspect_ratios)
    count = np.array([np.prod(ratios[i]) for i in ids])
    real = np.arange(vision.max_num_tiles) < count[:, None]
    with_image = np.array(ids) > 0
    since = np.where(with_image, draw.integers(1, 4, rows), size)
    looks = (np.arange(size) >= since[:, None])[:, :, None] & real[:, None]
    pixels = draw.normal(size=shape).astype(np.float32)
    pixels *= (real & with_image[:, None])[:, :, None, None, None]
    tokens[np.flatnonzero(with_image), since[with_image]] = config.vocab_size
    length = np.concatenate([[size], draw.integers(5, size, rows - 1)])
    return Batch(tokens, length, pixels, np.array(ids), real, since, looks)


def torch_inputs(b: Batch, images: bool = True) -> dict[str, Any]:
    """Arguments of MllamaForConditionalGeneration.forward, right-padded."""
    import torch

    inputs = {
        "input_ids": b.tokens,
        "attention_mask": (np.arange(b.tokens.shape[1]) < b.length[:, None]).astype(np.int64),
    }
    if images:
        inputs |= {
            "pixel_values": b.pixels[:, None],
            "aspect_ratio_ids": b.aspect_ratio_ids[:, None],
            "aspect_ratio_mask": b.real[:, None].astype(np.int64),
            "cross_attention_mask": b.looks[:, :, None].astype(np.int64),
        }
    return {name: torch.from_numpy(x) for name, x in inputs.items()}


def merged(config: ModelConfig, params: Any = None) -> Any:
    """The model here with the oracle's weights, or with `params`."""
    graph, own = ours(config)
    return nnx.merge(graph, own if params is None else params)

"""Every module of the model against its PyTorch counterpart, on the inputs PyTorch gave it."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from gp_virl.model import decoder, layers, vision
from gp_virl.model.config import ModelConfig
from gp_virl.model.decoder import Cross, Looks, Surroundings
from gp_virl.model.layers import rotary_angles
from gp_virl.model.mllama import Mllama, tile_features
from launch.compare_inputs import Batch, tiles_seen

SIMPLE = (layers.Linear, layers.RMSNorm, layers.MLP, vision.LayerNorm)
PLACED = (vision.TileEmbedding, vision.PositionEmbedding)
# Kinds of PyTorch modules that are functions here, or parts of another module.
WITHOUT = ("MllamaRotaryEmbedding", "SiLUActivation", "GELUActivation", "ModuleList")
NAMES = ("max_abs", "mean_abs", "max_rel", "mean_rel")


@struct.dataclass
class Around:
    """What modules are given besides their input."""

    batch: Batch
    real: Bool[Array, "B M P"]  # features, the padding up to a multiple of 8 not
    states: Float[Array, "B I D"]  # what cross-attention looked at
    looks: Bool[Array, "B S I"]
    positions: Int[Array, "B S"]


def recorded(model: Any, given: dict[str, Any]) -> dict[str, tuple[str, dict, np.ndarray]]:
    """By module name, its kind, its arrays among the inputs and its output, in one forward."""
    import torch

    seen: dict[str, tuple[str, dict, np.ndarray]] = {}

    def hook(name: str):
        def keep(module, args, kwargs, out):
            arrays = {f"{i}": x for i, x in enumerate(args)} | kwargs
            arrays = {k: x.cpu().numpy() for k, x in arrays.items() if isinstance(x, torch.Tensor)}
            if hasattr(out, "last_hidden_state"):
                out = out.last_hidden_state
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, torch.Tensor):
                seen[name] = (type(module).__name__, arrays, out.float().cpu().numpy())

        return keep

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name and type(module).__name__ not in WITHOUT
    ]
    try:
        with torch.no_grad():
            model(**given, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def differences(
    graph: Any, params: PyTree, batch: Batch, seen: dict[str, tuple[str, dict, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """By module name, layer numbers as *, the largest differences among the layers' outputs.

    max_abs and mean_abs of the outputs, max_rel and mean_rel of the same as a share of the
    largest and the mean absolute output, and how many layers there are.
    """
    model = nnx.merge(graph, params)
    around = _around(model, batch, seen)
    table: dict[str, dict[str, float]] = {}
    for name, module in _counterparts(model, seen):
        _, arrays, want = seen[name]
        given = arrays.get("0", arrays.get("hidden_states"))
        given = batch.tokens if given is None else jnp.asarray(given)
        here, weights = nnx.split(module)
        patches = name.endswith("patch_embedding")
        got = np.asarray(_run(here, weights, given, around, patches))
        if patches:  # channels come first there
            got = np.swapaxes(got, -1, -2)
        error, scale = np.abs(got.reshape(want.shape) - want), np.abs(want)
        row = (error.max(), error.mean(), error.max() / scale.max(), error.mean() / scale.mean())
        short = re.sub(r"\.\d+", ".*", name)
        old = table.get(short, dict.fromkeys(NAMES, 0.0) | {"count": 0})
        new = {key: max(old[key], float(x)) for key, x in zip(NAMES, row, strict=True)}
        table[short] = new | {"count": old["count"] + 1}
    return table


def _around(model: Mllama, batch: Batch, seen: dict) -> Around:
    rows, size = batch.tokens.shape
    features = model.config.vision.num_patches
    padded = -(-features // vision.PAD_TO) * vision.PAD_TO
    real = batch.pictures.real[:, :, None] & (jnp.arange(padded) < features)
    states = jnp.asarray(seen["model.multi_modal_projector"][2]).reshape(
        rows, -1, model.config.hidden_size
    )
    looks = tile_features(tiles_seen(batch.pictures, size), features)
    positions = jnp.broadcast_to(jnp.arange(size), (rows, size))
    return Around(batch, real, states, looks, positions)


def _counterparts(model: Mllama, seen: dict) -> Iterator[tuple[str, nnx.Module]]:
    """(name there, module here) of all that were recorded."""
    for name, (kind, _, _) in seen.items():
        if name == "model":  # its output is the decoder's
            continue
        module: Any = model
        for part in re.sub(r"\.(\d+)", r"/\1", name.removeprefix("model.")).split("."):
            if "/" not in part:
                module = getattr(module, part, None)
            elif isinstance(module, decoder.TextDecoder):
                group, slot = divmod(int(part.split("/")[1]), len(model.config.pattern))
                module = _layer(module.groups, group).layers[slot]
            else:
                module = _layer(module.layers, int(part.split("/")[1]))
        if name == "model.vision_model.patch_embedding":
            module = model.vision_model
        if isinstance(module, nnx.Module):
            yield name, module
        elif kind != "Embedding":  # a table here, and compared with the module it is part of
            raise LookupError(f"{name} ({kind}) has no counterpart here")


def _layer(stacked: nnx.Module, index: int) -> nnx.Module:
    graph, weights = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], weights))


def _surroundings(config: ModelConfig, around: Around) -> Surroundings:
    cos, sin = rotary_angles(config, around.positions)
    return Surroundings(
        cos=cos, sin=sin, segments=None, memory=(),
        cross=Cross(states=around.states, visible=around.looks), looks=Looks.of(around.looks),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(graph: Any, weights: PyTree, x: Array, around: Around, patches: bool) -> Array:
    """A module's output; pictures go tile by tile here, and all tiles of one in a row there."""
    module = nnx.merge(graph, weights)
    batch, tiles = around.batch, around.batch.pictures.pixels.shape[1]
    if isinstance(module, SIMPLE):
        return module(x)
    if isinstance(module, decoder.TextDecoder):
        cross = Cross(states=around.states, visible=around.looks)
        return module(batch.tokens, around.positions, cross=cross)[0]
    if isinstance(module, vision.VisionTower):
        if patches:
            return module.patches(batch.pictures.pixels)
        return module(batch.pictures.pixels, batch.pictures.aspect_ratio_ids, batch.pictures.real)
    if isinstance(module, decoder.CrossAttention):
        return module(x, module.keys_values(around.states), Looks.of(around.looks).over)
    if isinstance(module, decoder.CrossLayer):
        return module(x, _surroundings(module.cross_attn.config, around), None)
    if isinstance(module, decoder.SelfAttention):
        return module(x, _surroundings(module.config, around), ())[0]
    if isinstance(module, decoder.SelfLayer):
        return module(x, _surroundings(module.self_attn.config, around), ())[0]
    by_tile = x.reshape(batch.tokens.shape[0], tiles, -1, x.shape[-1])
    if isinstance(module, vision.VisionMLP):
        return module(by_tile)
    if isinstance(module, PLACED):
        return module(by_tile, batch.pictures.aspect_ratio_ids)
    out = module(by_tile, around.real)
    return out[0] if isinstance(module, vision.VisionEncoder) else out

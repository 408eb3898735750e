"""The one table between parameters here and tensors of Hugging Face's Mllama checkpoints.

Names and shapes are those of MllamaForConditionalGeneration's state dict. A row says where a
parameter is here, how its tensor is called there, and how the two arrays are laid out.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
from jaxtyping import PyTree

from gp_virl.model.config import ModelConfig

# How the tensor there holds the array here.
SAME = "same"
TURNED = "turned"  # torch.nn.Linear: [out, in], here [in, out]
CONV = "conv"  # torch.nn.Conv2d: [out, channel, row, column], here [channel * row * column, out]
FLAT = "flat"  # torch.nn.Embedding: each row is one vector, here an array

NORM = (("weight", "weight", SAME),)
LAYER_NORM = (*NORM, ("bias", "bias", SAME))
LINEAR = (("kernel", "weight", TURNED),)
AFFINE = (*LINEAR, ("bias", "bias", SAME))
PROJECTIONS = (
    ("q_proj", "q_proj", LINEAR),
    ("k_proj", "k_proj", LINEAR),
    ("v_proj", "v_proj", LINEAR),
    ("o_proj", "o_proj", LINEAR),
)
GATED_MLP = (
    ("gate_proj", "gate_proj", LINEAR),
    ("up_proj", "up_proj", LINEAR),
    ("down_proj", "down_proj", LINEAR),
)
SELF_LAYER = (
    ("self_attn", "self_attn", PROJECTIONS),
    ("mlp", "mlp", GATED_MLP),
    ("input_layernorm", "input_layernorm", NORM),
    ("post_attention_layernorm", "post_attention_layernorm", NORM),
)
CROSS_LAYER = (
    (
        "cross_attn",
        "cross_attn",
        (*PROJECTIONS, ("q_norm", "q_norm", NORM), ("k_norm", "k_norm", NORM)),
    ),
    ("mlp", "mlp", GATED_MLP),
    ("input_layernorm", "input_layernorm", NORM),
    ("post_attention_layernorm", "post_attention_layernorm", NORM),
    ("cross_attn_attn_gate", "cross_attn_attn_gate", SAME),
    ("cross_attn_mlp_gate", "cross_attn_mlp_gate", SAME),
)
VISION_LAYER = (
    ("self_attn", "self_attn", PROJECTIONS),
    ("mlp", "mlp", (("fc1", "fc1", AFFINE), ("fc2", "fc2", AFFINE))),
    ("input_layernorm", "input_layernorm", LAYER_NORM),
    ("post_attention_layernorm", "post_attention_layernorm", LAYER_NORM),
)
GATED_VISION_LAYER = (
    *VISION_LAYER,
    ("gate_attn", "gate_attn", SAME),
    ("gate_ffn", "gate_ffn", SAME),
)
TILE_EMBEDDING = (("embedding", "embedding.weight", FLAT), ("gate", "gate", SAME))
POSITION_EMBEDDING = (
    ("embedding", "embedding", SAME),
    ("tile_embedding", "tile_embedding.weight", FLAT),
    ("gate", "gate", SAME),
)
# Rows of the whole model but for the layers, which are stacked here and numbered there.
TEXT = (
    ("language_model/embed_tokens", "model.language_model.embed_tokens.weight", SAME),
    ("language_model/norm", "model.language_model.norm", NORM),
    ("lm_head", "lm_head", LINEAR),
)
VISION = (
    ("vision_model/patch_embedding/kernel", "model.vision_model.patch_embedding.weight", CONV),
    ("vision_model/class_embedding", "model.vision_model.class_embedding", SAME),
    *(
        (f"vision_model/{name}", f"model.vision_model.{name}", rows)
        for name, rows in (
            ("pre_tile_positional_embedding", TILE_EMBEDDING),
            ("gated_positional_embedding", POSITION_EMBEDDING),
            ("post_tile_positional_embedding", TILE_EMBEDDING),
            ("layernorm_pre", LAYER_NORM),
            ("layernorm_post", LAYER_NORM),
        )
    ),
    ("multi_modal_projector", "model.multi_modal_projector", AFFINE),
)
# Parameters without a counterpart there.
OURS_ALONE = ("value_head",)

# Released checkpoints and save_pretrained write the names on the left; the state dict of the
# modules has those on the right. Both are read.
OLD_PREFIXES = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.language_model.",
    "vision_model.": "model.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter and the tensors that hold it, in the order of its leading "layers" axis."""

    names: tuple[str, ...]
    stacked: bool
    layout: str
    shape: tuple[int, ...]  # of each tensor there

    @property
    def turned(self) -> bool:
        """True where the tensor's first axis is the last one here."""
        return self.layout in (TURNED, CONV)


def modern(name: str) -> str:
    """The name in the new style, from either style."""
    for old, new in OLD_PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def old(name: str) -> str:
    """The name in the old style, from the new one."""
    for prefix, new in OLD_PREFIXES.items():
        if name.startswith(new):
            return prefix + name.removeprefix(new)
    return name


def named(params: PyTree) -> dict[str, object]:
    """Leaves by path, "language_model/norm/weight", in the tree's order."""
    pairs = jax.tree_util.tree_flatten_with_path(params)[0]
    simple = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    return {path.removesuffix("/value"): leaf for path, leaf in simple.items()}


def entries(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Entry]:
    """By parameter path, what holds it; `shapes` gives the shape of every parameter here.

    Raises KeyError if a parameter has no row or a row no parameter.
    """
    rows = _rows(config)
    wanted = {path for path in shapes if path.split("/")[0] not in OURS_ALONE}
    if wanted != set(rows):
        raise KeyError(
            f"without a row: {sorted(wanted - set(rows))}; "
            f"without a parameter: {sorted(set(rows) - wanted)}"
        )
    table = {}
    for path in shapes:
        if path in rows:
            names, stacked, layout = rows[path]
            shape = tuple(shapes[path])[1 if stacked else 0 :]
            table[path] = Entry(names, stacked, layout, _there(layout, shape, config))
    return table


def _rows(config: ModelConfig) -> dict[str, tuple[tuple[str, ...], bool, str]]:
    """path -> (names, stacked, layout) for every parameter that has a counterpart."""
    rows = {}

    def add(ours: str, theirs: tuple[str, ...], what, stacked: bool = False) -> None:
        if isinstance(what, str):
            rows[ours] = (theirs, stacked, what)
            return
        for here, there, inner in what:
            add(f"{ours}/{here}", tuple(f"{name}.{there}" for name in theirs), inner, stacked)

    period = len(config.pattern)
    for j, kind in enumerate(config.pattern):
        numbers = range(j, config.num_hidden_layers, period)
        layers = tuple(f"model.language_model.layers.{n}" for n in numbers)
        what = SELF_LAYER if kind == "self" else CROSS_LAYER
        add(f"language_model/groups/layers/{j}", layers, what, stacked=True)
    for ours, theirs, what in TEXT if config.vision is None else (*TEXT, *VISION):
        add(ours, (theirs,), what)
    if config.vision is not None:
        stacks = (
            ("transformer", config.vision.num_hidden_layers, VISION_LAYER),
            ("global_transformer", config.vision.num_global_layers, GATED_VISION_LAYER),
        )
        for name, count, what in stacks:
            layers = tuple(f"model.vision_model.{name}.layers.{n}" for n in range(count))
            add(f"vision_model/{name}/layers", layers, what, stacked=True)
    return rows


def _there(layout: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """Shape of the tensor there that holds an array of `shape`."""
    if layout == TURNED:
        return shape[::-1]
    if layout == CONV:
        size = config.vision.patch_size
        return (shape[-1], config.vision.num_channels, size, size)
    if layout == FLAT:
        return (shape[0], math.prod(shape[1:]))
    return shape

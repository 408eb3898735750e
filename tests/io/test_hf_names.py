import math

import jax
import pytest

from gp_virl.io.hf_names import OURS_ALONE, entries, modern, named, old
from gp_virl.model.config import preset
from gp_virl.model.mllama import abstract
from tests.model.torch_oracle import ODD, USUAL, torch_config

ELEVEN = preset("11b", images=True)
CONFIGS = {"usual": USUAL, "odd": ODD, "11b": ELEVEN}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def table(config):
    flat = named(abstract(config)[1])
    return flat, entries(config, {path: leaf.shape for path, leaf in flat.items()})


@every
def test_each_parameter_has_its_own_tensors(config):
    flat, rows = table(config)
    assert {path for path in flat if path not in rows} == {
        path for path in flat if path.split("/")[0] in OURS_ALONE
    }
    names = [name for row in rows.values() for name in row.names]
    assert len(names) == len(set(names))
    for path, row in rows.items():
        held = len(row.names) * math.prod(row.shape)
        assert held == math.prod(flat[path].shape), path
        assert row.stacked or len(row.names) == 1


def test_layers_of_a_stack_are_in_order():
    _, rows = table(ELEVEN)
    gates = rows["language_model/groups/layers/3/cross_attn_attn_gate"]
    assert gates.stacked
    assert gates.names == tuple(
        f"model.language_model.layers.{n}.cross_attn_attn_gate"
        for n in ELEVEN.cross_attention_layers
    )
    first = rows["language_model/groups/layers/0/self_attn/k_proj/kernel"]
    assert first.names[1] == "model.language_model.layers.5.self_attn.k_proj.weight"
    assert first.shape == (1024, 4096) and first.turned
    conv = rows["vision_model/patch_embedding/kernel"]
    assert conv.shape == (1280, 3, 14, 14) and conv.turned
    tiles = rows["vision_model/gated_positional_embedding/tile_embedding"]
    assert tiles.shape == (9, 4 * 1601 * 1280) and not tiles.turned


def test_both_styles_of_names():
    for style, new in {
        "language_model.lm_head.weight": "lm_head.weight",
        "language_model.model.norm.weight": "model.language_model.norm.weight",
        "vision_model.layernorm_pre.bias": "model.vision_model.layernorm_pre.bias",
        "multi_modal_projector.bias": "model.multi_modal_projector.bias",
    }.items():
        assert modern(style) == modern(new) == new
        assert old(new) == old(style) == style


def test_a_model_of_text_only_has_no_vision_rows():
    _, rows = table(preset("tiny"))
    assert not any(name.startswith("model.vision") for r in rows.values() for name in r.names)


def test_a_parameter_without_a_row_is_named():
    with pytest.raises(KeyError, match=r"without a row: \['extra'\]"):
        entries(USUAL, {path: leaf.shape for path, leaf in table(USUAL)[0].items()} | {"extra": ()})


@pytest.mark.torch
@every
def test_names_and_shapes_are_those_of_transformers(config):
    torch = pytest.importorskip("torch")
    from transformers import MllamaForConditionalGeneration

    with torch.device("meta"):
        model = MllamaForConditionalGeneration._from_config(torch_config(config))
    theirs = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    flat, rows = table(config)
    assert {name: row.shape for row in rows.values() for name in row.names} == theirs
    heads = sum(leaf.size for path, leaf in flat.items() if path not in rows)
    assert sum(x.size for x in jax.tree.leaves(flat)) - heads == model.num_parameters()
    if config is ELEVEN:
        assert model.num_parameters() == 10_670_220_835

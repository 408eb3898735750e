"""The formulas of the model's parts against its arrays and against its programs."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gp_virl.evals import costs
from gp_virl.evals.program_flops import Count, program_flops
from gp_virl.model.attention import BLOCK
from gp_virl.model.config import PRESETS, ModelConfig, preset
from gp_virl.model.mllama import Mllama, abstract
from tests.model.models import CONFIG

Spec = jax.ShapeDtypeStruct
# Odd sizes and arrangements, so that no two numbers are mistaken for each other.
TINY = preset("tiny", images=True, attention="plain")
ODD = dataclasses.replace(
    TINY,
    vocab_size=300,
    groups=3,
    pattern=("self", "cross", "self", "cross"),
    num_attention_heads=6,
    value_widths=(24, 20, 12),
    extra_rows=5,
    vision=dataclasses.replace(
        TINY.vision, intermediate_layers_indices=(0, 1), num_global_layers=2
    ),
)


def count_of(config: ModelConfig, fun: Callable, *arrays) -> Count:
    """What fun(model, *arrays) does, as traced from shapes."""
    graph, params = abstract(config)
    traced = jax.make_jaxpr(lambda params, *arrays: fun(nnx.merge(graph, params), *arrays))
    return program_flops(traced(params, *arrays))


def flops_of(config: ModelConfig, fun: Callable, *arrays) -> int:
    """FLOPs of fun(model, *arrays)."""
    return count_of(config, fun, *arrays).total()


def read(model: Mllama, tokens, image=None):
    """Logits of a row of tokens that looks at an image."""
    length = tokens.shape[1]
    segments, places = jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(length), tokens.shape)
    cross = None
    if image is not None:
        cross = model.glance(tokens, segments, image[None, None], segments[:, :1])
    return model.logits(model.hidden(tokens, places, segments, cross))


def tokens_of(length: int) -> Spec:
    return Spec((1, length), jnp.int32)


@pytest.mark.parametrize("size", PRESETS)
@pytest.mark.parametrize("images", [False, True])
def test_parameters_of_the_presets(size: str, images: bool) -> None:
    config = preset(size, images=images)
    arrays = jax.tree.leaves(abstract(config)[1])
    assert costs.parameters(config).total == sum(math.prod(x.shape) for x in arrays)


def test_parameters_by_part() -> None:
    for config in (ODD, CONFIG):
        params = abstract(config)[1]
        by_name = {
            name: sum(math.prod(x.shape) for x in jax.tree.leaves(part))
            for name, part in params.items()
        }
        whole = costs.parameters(config)
        assert whole.head == by_name["lm_head"] and whole.value_head == by_name["value_head"]
        assert whole.vision == by_name.get("vision_model", 0)
        assert whole.projector == by_name.get("multi_modal_projector", 0)
        assert whole.total == sum(by_name.values())


def test_released_sizes() -> None:
    """The released 11B model has 10.67 billion parameters, the 90B one 88.6."""
    for size, billions in (("11b", 10.67), ("90b", 88.59)):
        whole = costs.parameters(preset(size, images=True))
        assert (whole.total - whole.value_head) / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_token_costs_two_flops_for_each_weight_that_it_meets() -> None:
    config = preset("11b", images=True)
    whole, tokens = costs.parameters(config), 512
    met = whole.named("self_layers", "cross_layers", "head")
    reads = costs.text(config, tokens, costs.causal_pairs(tokens), looks=0)
    work = reads + costs.heads(config, tokens)
    assert work.total / tokens == pytest.approx(2 * met, rel=0.01)
    # 12 L H Q T of PaLM's appendix B is forward and backward over the whole square.
    square = costs.text(config, tokens, tokens**2)
    assert 3 * square.self_scores / tokens == 12 * 32 * 32 * 128 * tokens


@pytest.mark.parametrize("length", [1, 7, 64, 65, 200])
def test_causal_pairs(length: int) -> None:
    seen = jnp.tril(jnp.ones((length, length), bool))
    assert costs.causal_pairs(length) == seen.sum()
    assert costs.causal_pairs(length, length) == seen.size
    by_block = sum(
        min(start + BLOCK, length) * min(BLOCK, length - start) for start in range(0, length, BLOCK)
    )
    assert costs.causal_pairs(length, BLOCK) == by_block


@pytest.mark.parametrize("config", [ODD, CONFIG], ids=["odd", "text"])
@pytest.mark.parametrize("form", ["plain", "blocks", "dot_product"])
def test_reading_text(config: ModelConfig, form: str) -> None:
    length = 150
    config = dataclasses.replace(config, attention=form)
    pairs = costs.causal_pairs(length, BLOCK if form == "blocks" else length)
    want = costs.text(config, length, pairs) + costs.heads(config, length)
    assert flops_of(config, read, tokens_of(length)) == want.total


@pytest.mark.parametrize("sides", [(48, 48, 1), (96, 48, 2), (90, 96, 4)])
def test_reading_text_with_an_image(sides: tuple[int, int, int]) -> None:
    *sides, tiles = sides
    length, image = 21, Spec((*sides, 3), jnp.uint8)
    seen = costs.features(ODD, tiles)
    assert seen == tiles * 37
    parts = (
        costs.text(ODD, length, length**2, looks=length * seen),
        costs.heads(ODD, length),
        costs.looked_at(ODD, seen),
        costs.images(ODD, 1, tiles),
    )
    total = flops_of(ODD, read, tokens_of(length), image)
    assert total == sum(part.total for part in parts)


def test_the_tower_alone() -> None:
    for form in ("plain", "dot_product"):
        config = dataclasses.replace(ODD, attention=form)
        image = Spec((3, 48, 96, 3), jnp.uint8)
        want = costs.images(config, 3, tiles=2)
        assert flops_of(config, lambda model, image: model.see(image), image) == want.total


def test_the_released_tower_by_hand() -> None:
    """An image of 11B: 40 layers over 6432 tokens of width 1280, whatever its tiles."""
    work = costs.images(preset("11b", images=True), 1, tiles=4)
    assert costs.tower_tokens(preset("11b", images=True)) == 4 * 1608
    assert work.tower_scores == 40 * 4 * 1280 * 6432**2
    assert work.tower_weights + work.tower_down == 40 * 2 * 6432 * (4 * 1280**2 + 8 * 1280**2)
    assert work.projector == 2 * 4 * 1601 * 7680 * 4096
    # pixels; rows of a table of nine, for the places of patches and of a tile, twice
    assert work.patches == 2 * 4 * (1600 * 588 + 9 * (1601 + 1 + 1)) * 1280
    assert costs.images(preset("11b"), 0, 0).total == 0


def test_values() -> None:
    state = Spec((3, ODD.hidden_size), jnp.float32)
    done = flops_of(ODD, lambda model, state: model.value(state), state)
    assert done == costs.heads(ODD, 0, valued=3).total
    assert done == 3 * 2 * (64 * 24 + 24 * 20 + 20 * 12 + 12)

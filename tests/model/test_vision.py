import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.model.cache import empty
from gp_virl.model.config import VISION, VisionConfig, preset
from gp_virl.model.decoder import Cross
from gp_virl.model.mllama import abstract, tile_features
from gp_virl.sharding import mesh_of
from tests.model import plain_vision
from tests.model.models import CONFIG

TOWER = VisionConfig(
    hidden_size=12,
    num_hidden_layers=3,
    num_global_layers=2,
    attention_heads=3,
    intermediate_size=16,
    image_size=11,  # patches of 3 leave two pixels over
    patch_size=3,
    intermediate_layers_indices=(2, 0),
)
SIGHTED = dataclasses.replace(CONFIG, groups=1, vision=TOWER)
IDS = jnp.array([1, 2, 6, 0])
REAL = jnp.arange(4) < jnp.array([[1], [2], [4], [1]])
PIXELS = jax.random.normal(jax.random.key(3), (4, 4, 3, 11, 11))
TOKENS = jax.random.randint(jax.random.key(4), (4, 9), 0, CONFIG.vocab_size)


@functools.cache
def weights():
    """(graph, params), drawn in numpy: an initialisation takes ten seconds to compile."""
    graph, shapes = abstract(SIGHTED)
    draw = np.random.default_rng(0)

    def array(path, leaf):
        noise = draw.normal(size=leaf.shape)
        if leaf.ndim > 1:
            noise /= np.sqrt(leaf.shape[-2] if "kernel" in str(path) else leaf.shape[-1])
        if "norm" in str(path) and "weight" in str(path):
            noise = 1 + 0.1 * noise
        return jnp.asarray(noise, leaf.dtype)

    return graph, jax.tree.map_with_path(array, shapes)


@jax.jit
def features(params):
    return nnx.merge(weights()[0], params).vision_model(PIXELS, IDS, REAL)


@functools.partial(jax.jit, static_argnames=("config", "tiles"))
def encode(params, pixels, config=SIGHTED, tiles=None):
    model = nnx.merge(abstract(config)[0], params)
    return model.encode_images(pixels, IDS, REAL, tiles)


@functools.partial(jax.jit, static_argnames=("config", "tiles"))
def hidden(params, since, config=SIGHTED, tiles=None):
    model = nnx.merge(abstract(config)[0], params)
    later = jnp.arange(9) >= jnp.reshape(since, (-1, 1))
    looks = later[:, :, None] & REAL[:, None, :tiles]
    states = model.encode_images(PIXELS, IDS, REAL, tiles)
    cross = Cross(states=states, visible=tile_features(looks, TOWER.num_patches))
    return model.hidden(TOKENS, jnp.broadcast_to(jnp.arange(9), TOKENS.shape), cross=cross)


def test_features_agree_with_the_plain_tower():
    got = features(weights()[1])
    for b in range(4):
        image = (np.asarray(x[b]) for x in (PIXELS, IDS, REAL))
        want = plain_vision.tower(SIGHTED, weights()[1], *image)
        np.testing.assert_allclose(got[b], want, atol=1e-4)
    assert got.shape == (4, 4, 10, 36)
    assert got.std() > 0.5


def test_projected_features_stand_tile_by_tile():
    projector = weights()[1]["multi_modal_projector"]
    want = features(weights()[1]) @ projector["kernel"][...] + projector["bias"][...]
    got = encode(weights()[1], PIXELS)
    np.testing.assert_allclose(got, want.reshape(4, 40, -1), atol=1e-5)
    # Features of the tiles kept are the same numbers, so nothing but their count has changed.
    np.testing.assert_allclose(encode(weights()[1], PIXELS, tiles=2), got[:, :20], atol=1e-6)


def test_padding_tiles_take_part_in_the_tower():
    """A tile that isn't real is seen by real ones, as in HF, but isn't text's to see."""
    other = PIXELS.at[0, 3].add(1.0)
    assert not REAL[0, 3]
    moved = abs(encode(weights()[1], other) - encode(weights()[1], PIXELS)).max(axis=(1, 2))
    assert moved[0] > 1e-3 and not moved[1:].any()


@pytest.mark.parametrize(("order", "since"), [("both", 3), ("both", 0), ("mlp", 0)])
def test_dropping_padding_tiles_is_exact(order, since):
    """In HF's order every token must see the image, as one that doesn't attends to padding too."""
    config = dataclasses.replace(SIGHTED, text_rows=order)
    whole = hidden(weights()[1], since, config)
    two = hidden(weights()[1], since, config, tiles=2)
    rows = jnp.array([0, 1, 3])  # row 2 has four tiles
    np.testing.assert_allclose(two[rows], whole[rows], atol=1e-5)
    assert abs(two[2] - whole[2]).max() > 1e-3


def test_blind_tokens_look_at_padding_in_hfs_order():
    config = dataclasses.replace(SIGHTED, text_rows="mlp")
    whole, two = (hidden(weights()[1], 3, config, tiles=tiles) for tiles in (None, 2))
    assert abs(two - whole).max() > 1e-3


def test_rows_without_an_image_are_text_in_metas_order():
    config = dataclasses.replace(SIGHTED, text_rows="both")
    got = hidden(weights()[1], jnp.array([[1], [1], [1], [99]]), config)

    def text(params):
        model = nnx.merge(abstract(config)[0], params)
        return model.hidden(TOKENS, jnp.broadcast_to(jnp.arange(9), TOKENS.shape))

    want = jax.jit(text)(weights()[1])
    np.testing.assert_allclose(got[3], want[3], atol=1e-5)
    assert abs(got[:3] - want[:3]).max(axis=(1, 2)).min() > 1e-3


def test_attention_forms_and_remat_agree():
    want = encode(weights()[1], PIXELS)
    for change in ({"attention": "dot_product"}, {"remat": True}):
        got = encode(weights()[1], PIXELS, config=dataclasses.replace(SIGHTED, **change))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_bfloat16_computes_in_half():
    got = encode(weights()[1], PIXELS, config=dataclasses.replace(SIGHTED, dtype="bfloat16"))
    assert got.dtype == jnp.bfloat16
    want = encode(weights()[1], PIXELS)
    assert abs(got.astype(jnp.float32) - want).mean() < 0.05 * want.std()


@pytest.mark.parametrize("size", sorted(VISION))
def test_presets_have_towers_when_asked(size):
    config = preset(size, images=True)
    _, params = abstract(config)
    assert params["multi_modal_projector"]["kernel"].shape == (
        config.vision.output_size,
        config.hidden_size,
    )
    assert "vision_model" not in abstract(preset(size))[1]


def test_llamas_tower():
    vision = VISION["11b"]
    assert (vision.num_patches, vision.output_size) == (1601, 7680)
    _, params = abstract(preset("11b", images=True), mesh_of())
    tower = params["vision_model"]
    assert tower["transformer"]["layers"]["mlp"]["fc1"]["kernel"].shape == (32, 1280, 5120)
    assert tower["gated_positional_embedding"]["tile_embedding"].shape == (9, 4, 1601, 1280)


@pytest.mark.parametrize("size", ["11b", "90b"])
def test_the_released_sizes_compute_abstractly(size):
    """Two images to features, to the lanes' keys and values, to hidden states; no memory."""
    config = preset(size, images=True)
    graph, params = abstract(config)

    def run(params, pixels, ids, real, tokens):
        model = nnx.merge(graph, params)
        states = model.encode_images(pixels, ids, real, tiles=1)
        images = model.look(states, tile_features(real[:, :1], 1601), jnp.zeros(2, jnp.int32))
        count = jnp.full(2, tokens.shape[1])
        return images.k[0], model.extend(tokens, count, empty(config, 2, 16), images)[0]

    shapes = ((2, 4, 3, 560, 560), jnp.float32), ((2,), int), ((2, 4), bool), ((2, 8), int)
    keys, hidden = jax.eval_shape(run, params, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert keys.shape == (config.groups, 2, 8, 1601, 128)
    assert hidden.shape == (2, 8, config.hidden_size)
    assert keys.dtype == hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_heads": 5}, "multiple of attention_heads=5"),
        ({"intermediate_layers_indices": (0, 3)}, r"\[3\]: there are 3 local layers"),
        ({"max_num_tiles": 3}, r"\(1, 4\).*max_num_tiles=3"),
        ({"patch_size": 12}, "at least patch_size=12"),
    ],
)
def test_mistakes_name_what_is_allowed(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TOWER, **change)

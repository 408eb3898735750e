import jax
import numpy as np
import PIL
import pytest
from PIL import Image
from transformers import AutoProcessor, MllamaProcessor
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)

from gp_virl.model.cache import CrossCache
from gp_virl.model.config import ASPECT_RATIOS
from gp_virl.model.images import Tiling, prepared, resized, tiled, tiling_of
from gp_virl.text import tokenizer

SMALL = Tiling(size=28)
# Pillow 13 changed the order of a resize's two passes for some sizes: by a grey value at most.
SAME_ORDER = int(PIL.__version__.split(".")[0]) >= 13
GREY = 0 if SAME_ORDER else 1
PIXEL = 2e-6 if SAME_ORDER else 1.01 / 255 / min(SMALL.std)


def processor(tiling):
    return MllamaImageProcessorPil(
        size={"height": tiling.size, "width": tiling.size},
        max_image_tiles=tiling.max_tiles,
        image_mean=list(tiling.mean),
        image_std=list(tiling.std),
    )


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("tiling", [Tiling(), SMALL, Tiling(size=23, max_tiles=3)])
def test_canvas_and_size_are_hfs(tiling):
    assert list(tiling.arrangements) == get_all_supported_aspect_ratios(tiling.max_tiles)
    draw = np.random.default_rng(0)
    seen = set()
    sides = np.exp(draw.uniform(0, np.log(12 * tiling.size), (3000, 2))).astype(int)
    exact = [(h * tiling.size, w * tiling.size) for h in range(1, 9) for w in range(1, 9)]
    for height, width in [*sides.tolist(), *exact, (1, 1), (1, 5000), (5000, 1)]:
        canvas = get_optimal_tiled_canvas(height, width, tiling.max_tiles, tiling.size)
        want = get_image_size_fit_to_canvas(height, width, *canvas, tiling.size)
        assert tiling.fitted(height, width) == want, (height, width)
        rows, columns = tiling.canvas(height, width)
        assert (rows * tiling.size, columns * tiling.size) == canvas
        seen.add((rows, columns))
    assert seen == set(tiling.arrangements)


def test_ids_are_those_of_the_vision_config():
    assert Tiling().arrangements == ASPECT_RATIOS


@pytest.mark.parametrize(
    ("size", "new"),
    [((37, 53), (20, 20)), ((37, 53), (90, 111)), ((5, 64), (5, 7)), ((61, 1), (60, 3)),
     ((200, 9), (3, 9)), ((8, 8), (8, 8)), ((120, 120), (112, 112)),
     ((61, 21), (37, 13)), ((60, 30), (40, 20)), ((60, 30), (39, 20))],
)  # fmt: skip
def test_resize_is_pillows_bit_by_bit(size, new):
    image = noise(*size)
    want = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    got = np.asarray(resized(jax.numpy.asarray(image), *new), int)
    assert abs(got - want).max() <= GREY


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_tiles_are_hfs_at_every_aspect_ratio(ratio):
    draw = np.random.default_rng(ratio)
    cut = jax.jit(tiled, static_argnums=1)
    for _ in range(2):
        scale = draw.uniform(0.7, 1.3, 2)
        height, width = (np.array(ratio) * SMALL.size * scale).astype(int)
        images = np.stack([noise(height, width, seed) for seed in (0, 1)])
        got = cut(jax.numpy.asarray(images), SMALL)
        want = prepared(processor(SMALL), list(images))
        np.testing.assert_allclose(got.pixels, want.pixels, atol=PIXEL)
        np.testing.assert_array_equal(got.aspect_ratio_ids, want.aspect_ratio_ids)
        np.testing.assert_array_equal(got.real, want.real)
    exact = cut(jax.numpy.zeros((*(np.array(ratio) * SMALL.size), 3), np.uint8), SMALL)
    assert int(exact.aspect_ratio_ids) == ASPECT_RATIOS.index(ratio) + 1
    assert int(exact.real.sum()) == np.prod(ratio)


def test_random_sizes_and_full_size_tiles():
    draw = np.random.default_rng(4)
    for tiling, (height, width) in [
        (Tiling(), (300, 420)),
        *((SMALL, draw.integers(1, 150, 2)) for _ in range(4)),
        (Tiling(size=23, max_tiles=3), (17, 90)),
    ]:
        image = noise(height, width)
        got, want = tiled(jax.numpy.asarray(image), tiling), prepared(processor(tiling), [image])
        np.testing.assert_allclose(got.pixels, want.pixels[0], atol=PIXEL)
        assert int(got.aspect_ratio_ids) == int(want.aspect_ratio_ids[0])


def test_a_processor_takes_pillow_images_of_several_sizes():
    images = [Image.fromarray(noise(30, 80)), Image.fromarray(noise(20, 20)).convert("L")]
    got = prepared(processor(SMALL), images)
    assert got.pixels.shape == (2, 4, 3, 28, 28)
    assert got.real.sum(-1).tolist() == [3, 1]
    assert got.aspect_ratio_ids.tolist() == [3, 1]
    assert not np.asarray(got.pixels)[~np.asarray(got.real)].any()


def test_settings_are_read_from_a_processor():
    assert tiling_of(processor(SMALL)) == SMALL
    plain = processor(SMALL)
    plain.do_normalize = False
    with pytest.raises(ValueError, match="do_normalize=False: allowed is True"):
        tiling_of(plain)


def test_auto_processor_loads_what_prepared_takes(tmp_path):
    """Also: a lane sees its image from the position of the image token on, as HF's mask says."""
    tokens = tokenizer.load("tiny")
    MllamaProcessor(image_processor=processor(SMALL), tokenizer=tokens).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert tiling_of(loaded) == SMALL
    image = noise(50, 30)
    got = prepared(loaded, [image])
    np.testing.assert_allclose(
        got.pixels[0], tiled(jax.numpy.asarray(image), SMALL).pixels, atol=PIXEL
    )

    inputs = loaded(text="Look: <|image|>What is it?", images=image, return_tensors="np")
    ids = inputs["input_ids"][0]
    since = ids.tolist().index(tokens.convert_tokens_to_ids("<|image|>"))
    lane = CrossCache(
        k=(jax.numpy.zeros((1, 1, 1, 4, 2)),),
        v=(jax.numpy.zeros((1, 1, 1, 4, 2)),),
        real=got.real,
        since=jax.numpy.array([since]),
    )
    visible = lane.visible(jax.numpy.arange(len(ids))[None])
    np.testing.assert_array_equal(visible, inputs["cross_attention_mask"][:, :, 0] > 0)
    assert 0 < since < len(ids)

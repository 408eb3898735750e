"""Splash kernels, interpreted, against attention written out: values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.model import splash
from gp_virl.model.attention import Segments, attend_causal, attend_features, attend_tiles
from gp_virl.model.mllama import abstract
from tests.eight_devices import printed
from tests.model import test_glance

SPLASH, PLAIN = "splash_interpret", "plain"
QUICKLY = {"xla_backend_optimization_level": 0}  # interpreted kernels are long to compile


def qkv(heads, kv_heads, queries, keys, width, dtype=jnp.float32, rows=2):
    draws = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, heads, queries, width)] + [(rows, kv_heads, keys, width)] * 2
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(draws, shapes, strict=True)]


def outcome(attend, form, arrays, *masks, kept=None):
    """(output, gradients) of a random sum over the rows kept."""

    def total(*arrays):
        out = attend(form, *arrays, *masks)
        out = out if kept is None else jnp.where(kept[:, None, :, None], out, 0)
        probe = jax.random.normal(jax.random.key(9), out.shape)
        return (out * probe).sum(), out

    learned = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
    (_, out), grads = jax.jit(learned, compiler_options=QUICKLY)(*arrays)
    return out, grads


def same(*args, atol=1e-5, **kwargs):
    attend, *rest = args
    got, want = (outcome(attend, form, *rest, **kwargs) for form in (SPLASH, PLAIN))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), atol=atol, rtol=atol
        )


@pytest.fixture
def several_blocks(monkeypatch):
    """Blocks so small that rows of more than 128 tokens have several."""
    monkeypatch.setattr(splash, "BLOCKS", {128: 1.0})


@pytest.mark.parametrize(
    ("length", "block", "filled"),
    [(1, 128, 128), (128, 128, 128), (300, 384, 384), (640, 384, 768), (1024, 512, 1024),
     (2048, 512, 2048), (6404, 512, 6656), (6432, 512, 6656)],
)  # fmt: skip
def test_blocks_by_length(length, block, filled):
    assert (splash.block(length), splash.filled(length)) == (block, filled)


def test_a_filled_length_is_cut_as_the_length_was():
    for length in range(1, 2100):
        block, filled = splash.block(length), splash.filled(length)
        assert filled >= length and filled % block == 0 and splash.block(filled) == block


@pytest.mark.usefixtures("several_blocks")
def test_packed_rows_of_grouped_heads():
    segments = jnp.sort(jax.random.randint(jax.random.key(3), (2, 200), 1, 4), axis=1)
    segments = segments.at[1, -30:].set(0)  # padding, whose output means nothing
    same(attend_causal, qkv(4, 2, 200, 200, 16), segments, kept=segments > 0)


def test_rows_of_one_conversation():
    same(attend_causal, qkv(4, 4, 128, 128, 16), None)


@pytest.mark.usefixtures("several_blocks")
def test_features_of_packed_images():
    """Tokens of conversations 1 and 2 and of none, and slots without an image."""
    text = jnp.sort(jax.random.randint(jax.random.key(3), (2, 150), 0, 3), axis=1)
    image = jnp.repeat(jnp.array([[2, 0, 1], [1, 2, 0]]), 50, axis=1)
    arrays = qkv(4, 2, 150, 3 * 50, 16)
    same(attend_features, arrays, Segments(text, image), kept=text > 0)


def test_rows_that_see_nothing_are_finite():
    arrays = qkv(2, 1, 20, 30, 8)
    none = Segments(jnp.full((2, 20), 3), jnp.ones((2, 30), int))
    for leaf in jax.tree.leaves(outcome(attend_features, SPLASH, arrays, none)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("width", [80, 127])
@pytest.mark.usefixtures("several_blocks")
def test_tiles_with_padding(width):
    """Two spare channels fit into the lanes of a head, or they don't."""
    real = jnp.arange(50) < jnp.array([[50, 44, 30, 0], [49, 0, 0, 0]])[..., None]
    same(attend_tiles, qkv(3, 3, 200, 200, width), real)


def test_tiles_in_bfloat16():
    real = jnp.arange(64) < jnp.array([[60, 0], [60, 60]])[..., None]
    same(attend_tiles, qkv(3, 3, 128, 128, 80, jnp.bfloat16), real, atol=0.05)


def test_padding_tells_the_tiles_apart():
    """What the spare channels hide matters, so that the tests above would notice a leak."""
    q, k, v = qkv(3, 3, 200, 200, 80)
    real = jnp.arange(50) < jnp.array([[50, 44, 30, 0], [49, 0, 0, 0]])[..., None]
    masked, seen = (attend_tiles(PLAIN, q, k, v, r) for r in (real, jnp.ones_like(real)))
    moved = abs(masked - seen).max(axis=(1, 3)).reshape(real.shape)
    assert (moved[real] < 1e-5).all() and (moved[~real] > 1e-3).all()


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def learned(graph, params, packed):
    """Loss, (hidden states, logits) and gradients of packed rows with pictures."""
    seen = [packed[name] for name in ("tokens", "segments", "images", "image_segments")]
    tokens, real = packed["tokens"], packed["segments"] > 0

    def loss(params):
        net = nnx.merge(graph, params)
        cross = net.glance(*seen)
        hidden = net.hidden(tokens, packed["positions"], packed["segments"], cross)
        logits = net.logits(hidden)
        target = jnp.minimum(tokens, net.config.vocab_size - 1)[:, 1:, None]
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), target, axis=-1)[..., 0]
        shown = [jnp.where(real[..., None], x, 0) for x in (hidden, logits)]
        return -jnp.where(real[:, 1:], logp, 0).mean(), shown

    return jax.value_and_grad(loss, has_aux=True)(params)


def graph_of(form):
    """Also recomputes layers, which runs the kernels once more in the backward pass."""
    return abstract(dataclasses.replace(test_glance.CONFIG, attention=form, remat=True))[0]


def agree(got, want, atol):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_a_model_with_pictures_learns_alike():
    params, packed = test_glance.weights()[1], test_glance.rows()
    got, want = (learned(graph_of(form), params, packed) for form in (SPLASH, PLAIN))
    agree(got, want, 2e-5)
    assert max(abs(leaf).max() for leaf in jax.tree.leaves(want[1])) > 0.1


EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from gp_virl.model.attention import attend_causal
from gp_virl.model.mllama import abstract
from gp_virl.sharding import mesh_of
from tests.model import test_glance
from tests.model.test_splash import PLAIN, QUICKLY, SPLASH, agree, graph_of, learned, qkv

mesh = mesh_of(data=2, fsdp=2, tensor=2)
# Heads of two key-value heads; three, which the mesh doesn't cut; and rows that it doesn't cut.
for rows, heads, kv_heads in ((4, 4, 2), (4, 3, 3), (3, 4, 2)):
    arrays = qkv(heads, kv_heads, 60, 60, 16, rows=rows)
    run = jax.jit(lambda *arrays: attend_causal(SPLASH, *arrays, None), compiler_options=QUICKLY)
    with jax.set_mesh(mesh):
        got = run(*arrays)
    agree(got, attend_causal(PLAIN, *arrays, None), 1e-5)
    cut = got.addressable_shards[0].data.shape
    assert cut[:2] == (rows // 4 if rows == 4 else rows, heads // 2 if heads == 4 else heads), cut

# One key-value head, which all devices need.
graph, packed, params = graph_of(SPLASH), test_glance.rows(), test_glance.weights()[1]
want = learned(graph_of(PLAIN), params, packed)
shapes = abstract(test_glance.CONFIG, mesh)[1]
params = jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), params, shapes)
with jax.set_mesh(mesh):
    got = learned(graph, params, packed)
agree(got, want, 2e-5)
print("same")
"""


def test_a_mesh_of_eight_attends_as_one_device_does():
    assert printed(EIGHT_DEVICES) == "same"

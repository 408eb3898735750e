import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.model.decoder import Cross
from gp_virl.model.mllama import Mllama, abstract
from tests.model import plain
from tests.model.models import CONFIG, two_groups

TOKENS = jax.random.randint(jax.random.key(5), (2, 12), 0, 48)  # rows behind the head's as well
POSITIONS = jnp.broadcast_to(jnp.arange(12), (2, 12))
SEGMENTS = jnp.array([[1] * 5 + [2] * 7, [7] * 12])


def image():
    states = jax.random.normal(jax.random.key(6), (2, 5, CONFIG.hidden_size))
    visible = jax.random.bernoulli(jax.random.key(7), 0.6, (2, 12, 5))
    return Cross(states=states, visible=visible.at[:, :3].set(False))  # three rows see no image


def hidden(config, *args, **kwargs):
    graph, _ = abstract(config)
    params = kwargs.pop("params", two_groups()[1])
    return jax.jit(lambda p: nnx.merge(graph, p).hidden(*args, **kwargs))(params)


def want(config, b, segments, cross=None):
    image = () if cross is None else (np.asarray(cross.states[b]), np.asarray(cross.visible[b]))
    rows = (np.asarray(x[b]) for x in (TOKENS, POSITIONS, segments))
    return plain.hidden(config, two_groups()[1], *rows, *image)


@pytest.mark.parametrize("attention", ["blocks", "plain", "dot_product"])
def test_text_agrees_with_the_plain_decoder(attention):
    config = dataclasses.replace(CONFIG, attention=attention)
    got = hidden(config, TOKENS, POSITIONS, SEGMENTS)
    for b in range(2):
        np.testing.assert_allclose(got[b], want(config, b, SEGMENTS), atol=2e-5)


@pytest.mark.parametrize("text_rows", ["mlp", "both"])
def test_images_agree_with_the_plain_decoder(text_rows):
    config = dataclasses.replace(CONFIG, text_rows=text_rows)
    cross = image()
    got = hidden(config, TOKENS, POSITIONS, SEGMENTS, cross=cross)
    for b in range(2):
        np.testing.assert_allclose(got[b], want(config, b, SEGMENTS, cross), atol=2e-5)
    assert abs(got - hidden(config, TOKENS, POSITIONS, SEGMENTS)).max() > 0.1


def test_closed_gates_leave_the_text_alone():
    """What HF's zero-initialised gates promise."""
    graph, params = two_groups()
    flat = nnx.to_flat_state(params)
    shut = [
        (path, jax.tree.map(jnp.zeros_like, leaf) if str(path[-1]).endswith("gate") else leaf)
        for path, leaf in flat
    ]
    params = nnx.from_flat_state(shut)
    with_image = hidden(CONFIG, TOKENS, POSITIONS, cross=image(), params=params)
    without = hidden(CONFIG, TOKENS, POSITIONS, params=params)
    np.testing.assert_array_equal(with_image, without)


def test_packed_rows_equal_separate_rows():
    packed = hidden(CONFIG, TOKENS[:1], jnp.array([[*range(5), *range(7)]]), SEGMENTS[:1])[0]
    first = hidden(CONFIG, TOKENS[:1, :5], POSITIONS[:1, :5])[0]
    second = hidden(CONFIG, TOKENS[:1, 5:], POSITIONS[:1, :7])[0]
    np.testing.assert_allclose(packed, jnp.concatenate([first, second]), atol=1e-5)


def test_padding_changes_nothing_and_stays_finite():
    padded = jnp.pad(TOKENS, ((0, 0), (0, 4)))
    places = jnp.pad(POSITIONS, ((0, 0), (0, 4)))
    segments = jnp.pad(SEGMENTS, ((0, 0), (0, 4)))
    got = hidden(CONFIG, padded, places, segments)
    np.testing.assert_allclose(got[:, :12], hidden(CONFIG, TOKENS, POSITIONS, SEGMENTS), atol=1e-5)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("attention", ["blocks", "dot_product"])
def test_no_earlier_output_depends_on_a_later_token(attention):
    """The Jacobian of outputs with respect to token embeddings is block lower triangular."""
    graph, _ = abstract(dataclasses.replace(CONFIG, attention=attention))
    _, params = two_groups()
    length = 70  # more than one causal block

    def output_at(table, where, probe):
        model = nnx.merge(graph, params)
        # One embedding row per position, so that a row's gradient is a position's gradient.
        model.language_model.embed_tokens = nnx.Param(table)
        hidden = model.hidden(jnp.arange(length)[None], jnp.arange(length)[None])
        return model.logits(hidden)[0, where] @ probe

    table = params["language_model"]["embed_tokens"][...][jnp.arange(length) % 48]
    probe = jax.random.normal(jax.random.key(0), (CONFIG.vocab_size,))
    gradient = jax.jit(jax.grad(output_at))
    for where in (0, 20, 63, 64, 69):
        moved = np.abs(np.asarray(gradient(table, where, probe))).max(-1)
        assert (moved[: where + 1] > 0).all()
        assert (moved[where + 1 :] == 0).all()


def test_remat_changes_memory_not_gradients():
    def gradient(remat):
        graph, _ = abstract(dataclasses.replace(CONFIG, remat=remat))

        def loss(params):
            model: Mllama = nnx.merge(graph, params)
            hidden = model.hidden(TOKENS, POSITIONS, SEGMENTS, cross=image())
            return jnp.square(model.logits(hidden)).mean()

        return jax.jit(jax.grad(loss))(two_groups()[1])

    plainly, again = gradient(False), gradient(True)
    for a, b in zip(jax.tree.leaves(plainly), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_computes_in_half_and_keeps_masters_whole():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    got = hidden(config, TOKENS, POSITIONS)
    assert got.dtype == jnp.bfloat16
    exact = hidden(CONFIG, TOKENS, POSITIONS)
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.3)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(abstract(config)[1]))

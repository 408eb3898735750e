"""Every module, the logits and cached generation against `transformers` in PyTorch, fp32."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.io.hf_names import entries, modern, named
from gp_virl.model.cache import empty
from gp_virl.model.config import preset
from gp_virl.model.decoder import Cross, Looks, Surroundings
from gp_virl.model.layers import rotary_angles
from gp_virl.model.mllama import abstract, tile_features
from gp_virl.rollout.generate import turn
from gp_virl.rollout.sampling import Sampling
from gp_virl.types import Context
from tests.model import torch_oracle as th
from tests.model.torch_oracle import ODD, USUAL

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CONFIGS = {"usual": USUAL, "odd": ODD}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
LOGITS = 1e-4  # absolute, of logits of about 5


def hidden(model, b, images=True, tiles=None):
    cross = None
    if images:
        states = model.encode_images(b.pixels, b.aspect_ratio_ids, b.real, tiles)
        looks = tile_features(b.looks[..., :tiles], model.config.vision.num_patches)
        cross = Cross(states=states, visible=looks)
    places = jnp.broadcast_to(jnp.arange(b.tokens.shape[1]), b.tokens.shape)
    return model.hidden(b.tokens, places, cross=cross)


@functools.cache
def logits_jitted(config, images):
    return jax.jit(lambda p, b: (m := th.merged(config, p)).logits(hidden(m, b, images)))


@both
@pytest.mark.parametrize("kind", ["text", "image", "mixed"])
def test_logits(config, kind):
    ids = {"text": [0, 0, 0], "image": [1, 4, 2], "mixed": [3, 0, 5]}[kind]
    b = th.batch(config, ids)
    with torch.no_grad():
        want = th.oracle(config)(**th.torch_inputs(b, kind != "text")).logits.numpy()
    got = logits_jitted(config, kind != "text")(th.ours(config)[1], b)
    for row, n in enumerate(b.length):
        np.testing.assert_allclose(got[row, :n], want[row, :n], atol=LOGITS)
    assert want.std() > 0.3


def recorded(config, b):
    """{module name: (its inputs, its output)} of one PyTorch pass, as numpy arrays."""
    model, seen, hooks = th.oracle(config), {}, []

    def plain(x):
        return x.numpy() if isinstance(x, torch.Tensor) else x

    def hook(name):
        def keep(_, args, kwargs, out):
            out = getattr(out, "last_hidden_state", out)
            out = out[0] if isinstance(out, tuple) else out
            given = [*args, *(kwargs.get(k) for k in ("hidden_states", "cross_attention_states"))]
            seen[name] = ([plain(x) for x in given if x is not None], plain(out))

        return keep

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(hook(name), with_kwargs=True))
    try:
        with torch.no_grad():
            model(**th.torch_inputs(b))
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def layer_of(stacked, index):
    graph, weights = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], weights))


def vision_modules(config, model, b, seen):
    """(name there, our output on PyTorch's input), for every module of the vision side."""
    tower, tiles = model.vision_model, b.real.shape[1]
    root = "model.vision_model"

    def given(name, i=0):
        x = jnp.asarray(seen[name][0][i])
        return x.reshape(len(b.tokens), tiles, -1, x.shape[-1])

    length = config.vision.num_patches
    padded = -(-length // 8) * 8
    real = jnp.asarray(b.real[:, :, None] & (np.arange(padded) < length))
    yield f"{root}.patch_embedding", jnp.swapaxes(tower.patches(jnp.asarray(b.pixels)), 2, 3)
    for name in ("pre_tile", "gated", "post_tile"):
        name += "_positional_embedding"
        x = given(f"{root}.{name}")
        yield f"{root}.{name}", getattr(tower, name)(x, jnp.asarray(b.aspect_ratio_ids))
    for name in ("layernorm_pre", "layernorm_post"):
        yield f"{root}.{name}", getattr(tower, name)(given(f"{root}.{name}"))
    for part in ("transformer", "global_transformer"):
        encoder, name = getattr(tower, part), f"{root}.{part}"
        yield name, encoder(given(name), real)[0]
        counts = {"transformer": "num_hidden_layers", "global_transformer": "num_global_layers"}
        for i in {0, getattr(config.vision, counts[part]) - 1}:
            layer, at = layer_of(encoder.layers, i), f"{name}.layers.{i}"
            yield at, layer(given(at), real)
            yield f"{at}.self_attn", layer.self_attn(given(f"{at}.self_attn"), real)
            for inner in ("mlp", "input_layernorm", "post_attention_layernorm"):
                yield f"{at}.{inner}", getattr(layer, inner)(given(f"{at}.{inner}"))
    yield root, tower(b.pixels, b.aspect_ratio_ids, b.real)
    projector = "model.multi_modal_projector"
    yield projector, model.multi_modal_projector(given(projector))


def text_modules(config, model, b, seen):
    """(name there, our output on PyTorch's input), for every module of the decoder."""
    decoder, root = model.language_model, "model.language_model"

    def given(name, i=0):
        return jnp.asarray(seen[name][0][i])

    places = jnp.broadcast_to(jnp.arange(b.tokens.shape[1]), b.tokens.shape)
    cos, sin = rotary_angles(config, places)
    visible = tile_features(b.looks, config.vision.num_patches)
    looks = Looks.of(visible)
    states = model.encode_images(b.pixels, b.aspect_ratio_ids, b.real)
    around = Surroundings(cos=cos, sin=sin, segments=None, memory=(),
                          cross=Cross(states, visible), looks=looks)  # fmt: skip
    layers = config.num_hidden_layers
    for index in range(layers - len(config.pattern), layers):  # the last group's
        group, slot = divmod(index, len(config.pattern))
        layer, at = layer_of(decoder.groups, group).layers[slot], f"{root}.layers.{index}"
        for inner in ("mlp", "input_layernorm", "post_attention_layernorm"):
            yield f"{at}.{inner}", getattr(layer, inner)(given(f"{at}.{inner}"))
        if config.pattern[slot] == "self":
            x = given(f"{at}.self_attn")
            yield f"{at}.self_attn", layer.self_attn(x, around, ())[0]
            yield at, layer(given(at), around, ())[0]
            continue
        attention, name = layer.cross_attn, f"{at}.cross_attn"
        seen_there = jnp.asarray(seen[name][0][1]).reshape(states.shape)
        yield name, attention(given(name), attention.keys_values(seen_there), looks.over)
        yield f"{name}.q_norm", attention.q_norm(given(f"{name}.q_norm"))
        yield f"{name}.k_norm", attention.k_norm(given(f"{name}.k_norm"))
        yield at, layer(given(at), around, None)
    yield f"{root}.norm", decoder.norm(given(f"{root}.norm"))
    yield root, hidden(model, b)
    yield "lm_head", model.logits(given("lm_head"))


@both
@pytest.mark.parametrize("part", [vision_modules, text_modules])
def test_every_module(config, part):
    b = th.batch(config, [4, 0, 2])
    b = dataclasses.replace(b, length=np.full_like(b.length, b.tokens.shape[1]))
    seen = recorded(config, b)
    outputs = jax.jit(lambda p, b: dict(part(config, th.merged(config, p), b, seen)))
    for name, got in outputs(th.ours(config)[1], b).items():
        want = seen[name][1]
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-4, err_msg=name)
        assert want.std() > 0.01, name


@both
def test_gradients(config):
    """Of every weight, through tower, projector and decoder."""
    b = th.batch(config, [2, 0, 5], seed=3)
    b = dataclasses.replace(b, length=np.full_like(b.length, b.tokens.shape[1]))
    probe = np.random.default_rng(0).normal(size=(*b.tokens.shape, config.vocab_size))
    probe = probe.astype(np.float32)
    reference = th.oracle(config)
    reference.zero_grad()
    logits = reference(**th.torch_inputs(b)).logits
    (logits * torch.from_numpy(probe)).mean().backward()
    want = th.params_of(config, {name: p.grad for name, p in reference.named_parameters()})

    def loss(params, b):
        graph, _ = abstract(dataclasses.replace(config, remat=config is USUAL))
        model = nnx.merge(graph, params)
        return (model.logits(hidden(model, b)) * probe).mean()

    got = named(jax.jit(jax.grad(loss))(th.ours(config)[1], b))
    for path, expected in named(want).items():
        scale = float(abs(expected).max())
        np.testing.assert_allclose(got[path], expected, atol=1e-4 * scale + 1e-8, err_msg=path)
        # Embeddings of padding tiles' aspect ratios aside, everything moves.
        assert scale > 0 or path.startswith("value_head"), path


@both
def test_cached_generation_with_images_of_several_sizes(config):
    """Greedy tokens of a batch of images with 1 to 4 tiles, and of a row without one."""
    size, new = 8, 16
    b = th.batch(config, [1, 4, 0, 3], seed=5, size=size)
    b = dataclasses.replace(b, length=np.full_like(b.length, size))
    with torch.no_grad():
        want = th.oracle(config).generate(
            **th.torch_inputs(b), max_new_tokens=new, do_sample=False
        ).numpy()[:, size:]  # fmt: skip
    room = size + new
    context = Context(
        tokens=jnp.asarray(np.pad(b.tokens, ((0, 0), (0, new)))), length=jnp.asarray(b.length)
    )

    @jax.jit
    def speak(params, b):
        model = th.merged(config, params)
        states = model.encode_images(b.pixels, b.aspect_ratio_ids, b.real)
        real = tile_features(b.real, config.vision.num_patches)
        images = model.look(states, real, jnp.asarray(b.since).at[2].set(room))
        lanes = len(b.tokens)
        return turn(
            model, empty(config, lanes, room), context, jax.random.split(jax.random.key(0), lanes),
            Sampling.of(greedy=True), jnp.array([-1]), new, 5, jnp.ones(lanes, bool),
            images=images,
        )[0].tokens  # fmt: skip

    np.testing.assert_array_equal(speak(th.ours(config)[1], b), want)


@pytest.mark.parametrize("size", ["11b", "90b"])
def test_parameter_count_of_the_released_models(size):
    """Abstract parameters here against PyTorch's on the meta device: count and every shape."""
    from transformers import MllamaForConditionalGeneration

    config = preset(size, images=True)
    with torch.device("meta"):
        reference = MllamaForConditionalGeneration(th.torch_config(config))
    theirs = {modern(name): tuple(p.shape) for name, p in reference.named_parameters()}
    leaves = {path: leaf.shape for path, leaf in named(abstract(config)[1]).items()}
    table = entries(config, leaves)
    assert {name: e.shape for e in table.values() for name in e.names} == theirs
    count = sum(math.prod(shape) for path, shape in leaves.items() if path in table)
    assert count == sum(math.prod(shape) for shape in theirs.values())
    assert count == {"11b": 10_670_220_835, "90b": 88_593_355_323}[size]

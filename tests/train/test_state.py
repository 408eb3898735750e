"""Frozen parts of a model that looks: they stay, cost no moments and no backward pass."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from configs import gp_vl
from gp_virl.config import FROZEN, FROZEN_CHOICES, build
from gp_virl.train import sft
from gp_virl.train.state import create, optimizer
from tests.model.test_glance import weights
from tests.train.test_images import batch

STUDY = build(gp_vl.get_config("tiny"))
SFT = dataclasses.replace(STUDY.sft, learning_rate=1e-2, weight_decay=0.1, warmup=0)
CHOICES = pytest.mark.parametrize("frozen", ["vision", "vision_and_projector"])


def trained(tree, frozen: str):
    """The parts that are not frozen."""
    return {name: part for name, part in tree.items() if name not in FROZEN[frozen]}


def size(tree) -> int:
    """Bytes of the arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@functools.cache
def gradients(frozen: str):
    """(compiled program, gradients) of the loss over a batch."""
    graph, params = weights()

    def run(params):
        return jax.grad(sft.loss, argnums=1, has_aux=True)(graph, params, batch(), frozen)[0]

    program = jax.jit(run).lower(params).compile()
    return program, program(params)


def test_the_choices_are_those_of_the_configuration() -> None:
    assert tuple(FROZEN) == FROZEN_CHOICES
    assert set().union(*FROZEN.values()) <= set(weights()[1])


@CHOICES
def test_frozen_parts_stay_bit_by_bit_and_the_others_move(frozen: str) -> None:
    graph, params = weights()
    rule = optimizer(dataclasses.replace(SFT, frozen=frozen), 3)
    update = jax.jit(functools.partial(sft.update, graph, rule, 2, frozen=frozen))
    state = jax.jit(lambda params: create(params, rule))(params)
    for _ in range(3):
        state, _ = update(state, batch())
    # The value head takes no part in the loss, but decays.
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(state.params), strict=True
    ):
        name = jax.tree_util.keystr(path)
        top = jax.tree_util.keystr(path[:1], simple=True)
        assert bool((before == after).all()) == (top in FROZEN[frozen]), name


@CHOICES
@pytest.mark.parametrize("run", [SFT, STUDY.ppo], ids=["sft", "ppo"])
def test_frozen_parts_have_no_moments(run, frozen: str) -> None:
    params = weights()[1]
    whole = jax.eval_shape(optimizer(run, 3).init, params)
    less = jax.eval_shape(optimizer(dataclasses.replace(run, frozen=frozen), 3).init, params)
    counters = size(whole) - 2 * size(params)
    assert 0 < counters < 64
    assert size(less) == 2 * size(trained(params, frozen)) + counters


@CHOICES
def test_the_others_gradients_are_those_without_freezing(frozen: str) -> None:
    whole, less = jax.device_get((gradients("none")[1], gradients(frozen)[1]))
    for name in whole:
        for want, got in zip(
            jax.tree.leaves(whole[name]), jax.tree.leaves(less[name]), strict=True
        ):
            if name in FROZEN[frozen]:
                assert not got.any() and want.any()
            else:
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * abs(want).max())


def test_the_backward_pass_of_frozen_parts_is_not_computed() -> None:
    graph, params = weights()
    images = batch().images.reshape(-1, *batch().images.shape[2:])
    see = jax.jit(lambda params: nnx.merge(graph, params).see(images))
    forward = flops(see.lower(params).compile())
    whole, less, least = (flops(gradients(frozen)[0]) for frozen in FROZEN)
    # A matrix's backward pass is two products as large as the forward one.
    assert whole - less > 1.5 * forward
    assert least < less


def flops(program) -> float:
    return program.cost_analysis()["flops"]

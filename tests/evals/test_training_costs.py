"""Training costs by formula against the FLOPs of the traced updates, exactly but where said."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from gp_virl import config as cfg
from gp_virl.config import FROZEN_CHOICES, PpoConfig
from gp_virl.envs.api import Task
from gp_virl.evals import costs
from gp_virl.evals.program_flops import program_flops
from gp_virl.evals.training_costs import (
    FROZEN,
    Rows,
    forward,
    gradient_flops,
    kept,
    ppo_update,
    sft_step,
)
from gp_virl.model.config import ATTENTIONS, ModelConfig, preset
from gp_virl.model.mllama import abstract
from gp_virl.train import ppo, rows, sft
from gp_virl.train.logp import BLOCK
from gp_virl.train.state import create
from tests.evals.test_costs import ODD, TINY, Spec
from tests.train.test_rows import made_up_rollout
from tests.train.test_update import PPO

RULE = optax.adamw(1e-5)
SLOTS = 5
# (rows, what they look at): pictures of one tile, and of four.
TEXT = Rows(count=4, length=70)
PICTURED = Rows(count=4, length=60, dialogues=2, tiles=1)
LARGE = Rows(count=1, length=4096, tiles=4, scored=4 * BLOCK)


class Blank(Task):
    """A task with pictures of `side` pixels that show nothing; nothing else of it is asked for."""

    stop_ids, image_token, outcomes = jnp.zeros(1, jnp.int32), jnp.int32(0), ("solved",)

    def __init__(self, side: int):
        self.side = side

    def picture(self, scene):
        """The same for every scene."""
        return jnp.zeros((self.side, self.side, 3), jnp.uint8)


def side(config: ModelConfig, shape: Rows) -> int:
    """Pixels along each side of a picture of so many tiles, 1 or 4."""
    return config.vision.image_size * {1: 1, 4: 2}[shape.tiles]


def batch(config: ModelConfig, shape: Rows) -> tuple:
    """Fields of a batch, as shapes."""
    whole = shape.count, shape.length
    numbers, flags = Spec(whole, jnp.int32), Spec(whole, jnp.bool_)
    if not shape.tiles:
        return numbers, numbers, numbers, flags
    size = (side(config, shape),) * 2
    images = Spec((shape.count, shape.dialogues, *size, 3), jnp.uint8)
    return numbers, numbers, numbers, flags, images, Spec(images.shape[:2], jnp.int32)


def blocks(shape: Rows) -> int:
    """Blocks in which the scored positions of a row lie, for trips of the program's loops."""
    return 1 if shape.scored is None else -(-shape.scored // BLOCK)


def loss_flops(config: ModelConfig, shape: Rows) -> int:
    """FLOPs of the traced loss."""
    graph, params = abstract(config)

    def loss(params, fields):
        return sft.loss(graph, params, sft.Batch(*fields))[0]

    return program_flops(jax.make_jaxpr(loss)(params, batch(config, shape))).total(blocks(shape))


def sft_flops(config: ModelConfig, shape: Rows, microbatch: int, frozen: str = "none") -> int:
    """FLOPs of the traced update."""
    graph, params = abstract(config)

    def update(params, fields):
        state = create(params, RULE)
        return sft.update(graph, RULE, microbatch, state, sft.Batch(*fields), frozen)

    traced = jax.make_jaxpr(update)(params, batch(config, shape))
    return program_flops(traced).total(blocks(shape))


def packed(shape: Rows) -> tuple:
    """Fields of training rows of PPO, as shapes."""
    whole, turns = (shape.count, shape.length), (shape.count, shape.valued)
    images = (shape.count, shape.dialogues)
    kinds = {"S": (whole, jnp.int32), "s": (whole, jnp.float32), "K": (turns, jnp.float32)}
    kinds |= {"k": (turns, jnp.int32), "?": (turns, jnp.bool_), "1": ((), jnp.int32)}
    seen = Spec(images, jnp.int32) if shape.tiles else None
    return *(Spec(*kinds[letter]) for letter in "SSSSssk?KKK1"), seen, seen


def ppo_gradient_flops(config: ModelConfig, shape: Rows, frozen: str = "none") -> int:
    """FLOPs of the traced loss and its gradient."""
    graph, params = abstract(config)
    task = Blank(side(config, shape)) if shape.tiles else None
    run = dataclasses.replace(PPO, frozen=frozen)

    def gradient(params, fields, init_logp):
        one, part = jnp.float32(1.0), rows.Rows(*fields)
        values = jax.value_and_grad(ppo.losses, argnums=1, has_aux=True)
        return values(graph, params, task, part, init_logp, one, one, one, run)

    logp = Spec((shape.count, shape.length), jnp.float32)
    traced = jax.make_jaxpr(gradient)(params, packed(shape), logp)
    return program_flops(traced).total(blocks(shape))


@pytest.mark.parametrize(
    ("config", "form", "remat", "shape"),
    [
        (TINY, "plain", True, TEXT),
        (ODD, "blocks", False, TEXT),
        (ODD, "plain", False, PICTURED),
        (ODD, "plain", True, PICTURED),
        (ODD, "dot_product", True, PICTURED),
        (TINY, "blocks", True, PICTURED),
    ],
)
def test_forward_and_sft_update(config: ModelConfig, form: str, remat: bool, shape: Rows) -> None:
    config = dataclasses.replace(config, attention=form, remat=remat)
    assert loss_flops(config, shape) == forward(config, shape, executed=True).total
    step = sft_step(config, shape, microbatch=2)
    assert sft_flops(config, shape, microbatch=2) == step.flops_executed


@pytest.mark.parametrize(
    ("frozen", "remat"),
    [("vision", False), ("vision", True), ("vision_and_projector", True)],
)
def test_frozen_parts(frozen: str, remat: bool) -> None:
    config = dataclasses.replace(ODD, remat=remat)
    step = sft_step(config, PICTURED, 4, frozen)
    assert sft_flops(config, PICTURED, 4, frozen) == step.flops_executed
    assert step.flops < sft_step(config, PICTURED, 4).flops


@pytest.mark.parametrize("frozen", FROZEN_CHOICES)
def test_frozen_parts_are_those_of_training(frozen: str) -> None:
    """As many parameters by formula as in the arrays that training leaves as they are."""
    assert FROZEN.keys() == cfg.FROZEN.keys() == set(FROZEN_CHOICES)
    params = abstract(ODD)[1]
    still = [params[part] for part in cfg.FROZEN[frozen]]
    count = sum(leaf.size for leaf in jax.tree.leaves(still))
    assert costs.parameters(ODD).named(*FROZEN[frozen]) == count


@pytest.mark.parametrize(("remat", "shape"), [(True, TEXT), (False, PICTURED)])
def test_ppo_gradient(remat: bool, shape: Rows) -> None:
    """Exactly but for sums over the tokens of a turn, which the program writes as products."""
    shape = dataclasses.replace(shape, valued=SLOTS)
    config = dataclasses.replace(ODD, remat=remat)
    sums = shape.count * shape.length * SLOTS * 2
    extra = ppo_gradient_flops(config, shape) - gradient_flops(config, shape)[2]
    assert 0 <= extra <= 6 * sums


def ppo_update_flops(config: ModelConfig, run: PpoConfig, trips: tuple[int, ...]) -> int:
    """FLOPs of the traced update on 4 turns of 2 lanes, with so many trips of its loops.

    Of the reference's loop and the one in it over scored positions; of that over microbatches and
    the two in it.
    """
    graph, params = abstract(config)

    def update(params):
        made = made_up_rollout(0, turns=4, lanes=2, size=TEXT.length)
        state, one = create(params, RULE), jnp.float32(1.0)
        key = jax.random.key(0)
        return ppo.update(
            graph, RULE, run, SLOTS, None, state, params, made, made.value, key, one, one
        )

    return program_flops(jax.make_jaxpr(update)(params)).total(trips)


def test_ppo_update() -> None:
    """Two epochs of two minibatches of two microbatches of two rows, after the reference's four."""
    run = dataclasses.replace(PPO, epochs=2, minibatches=2, microbatch=2)
    shape = Rows(count=8, length=TEXT.length, valued=SLOTS)
    for reference in (True, False):
        run = dataclasses.replace(run, kl_coef=0.0, kl_logged=reference)
        config = dataclasses.replace(ODD, vision=None, remat=True)
        cost = ppo_update(config, shape, 2, 2, 2, reference)
        done = ppo_update_flops(config, run, trips=(4, 1, 2, 1, 1) if reference else (2, 1, 1))
        assert cost.flops_executed <= done <= 1.01 * cost.flops_executed
    odd = ppo_update(config, dataclasses.replace(shape, count=7), 2, 2, 2, False)
    assert odd.flops_executed == cost.flops_executed and odd.flops < cost.flops


def test_recomputation_at_11b() -> None:
    """With full rematerialisation at most 1.35 times the model's FLOPs, as formed and as traced."""
    config = preset("11b", images=True, remat=True, attention="plain")
    step = sft_step(config, LARGE, 1)
    assert sft_flops(config, LARGE, 1) == step.flops_executed
    thrice = 3 * forward(config, LARGE, executed=True).total
    assert 1.2 < step.recomputation <= 1.35 and 1.2 < step.flops_executed / thrice <= 1.35
    shape = dataclasses.replace(LARGE, valued=SLOTS)
    done = ppo_gradient_flops(config, shape)
    assert done == pytest.approx(gradient_flops(config, shape)[2], rel=1e-4)
    assert done <= 1.35 * 3 * forward(config, shape, executed=True).total


@pytest.mark.parametrize("form", ATTENTIONS)
def test_recomputation_in_every_form(form: str) -> None:
    """Kernels recompute attention weights in any case."""
    config = preset("11b", images=True, remat=True, attention=form)
    for length in (1024, 4096):
        shape = dataclasses.replace(LARGE, length=length, scored=length // 2)
        step = sft_step(config, shape, 1)
        assert step.flops < step.flops_recomputed < step.flops_executed
        assert step.recomputation <= 1.35
        without = sft_step(dataclasses.replace(config, remat=False), shape, 1)
        assert without.flops == step.flops
        assert 1.2 * without.flops_executed < step.flops_executed <= 1.3 * without.flops_executed


def test_splash_attention_at_11b() -> None:
    """Exact but for causal blocks that the kernel skips, which the counter can't see.

    The backward kernel does five products where the mathematics ask for four.
    """
    config = preset("11b", images=True, remat=True, attention="splash")
    shape = dataclasses.replace(LARGE, length=1024, scored=BLOCK)
    pair = 4 * 32 * 128 * 32  # of a query and a key, in all heads and layers
    skipped = pair * (1024**2 - costs.causal_pairs(1024, 512))
    once = forward(config, shape, executed=True).total
    assert loss_flops(config, shape) - skipped == once
    done = sft_flops(config, shape, 1) - 4.5 * skipped
    assert done == pytest.approx(sft_step(config, shape, 1).flops_executed, rel=1e-4)


def test_the_models_flops_at_11b_by_hand() -> None:
    """6 a weight and token, 6 S a channel and token for half of the square of attention."""
    config = preset("11b", remat=True)
    shape = Rows(count=8, length=4096)
    whole = costs.parameters(config)
    tokens = shape.count * shape.length
    weights = 6 * whole.named("self_layers", "head") * tokens
    attention = 6 * 32 * 4096 * 4096 * tokens
    step = sft_step(config, shape, 1)
    assert step.flops == pytest.approx(weights + attention, rel=1e-3)
    assert step.overhead == pytest.approx(4 / 3, abs=0.1)


def test_bytes_by_hand() -> None:
    """Weights 9.8e9 x 4, read by three passes a microbatch; kept are the inputs of 32 layers."""
    config, shape = preset("11b", remat=True), Rows(count=8, length=1024)
    whole = costs.parameters(config)
    used, every = whole.total - whole.cross_layers - whole.cross_kv, whole.total
    moved = sft_step(config, shape, microbatch=2, moments="bfloat16").bytes
    assert moved.weights == 4 * 3 * used * 4
    assert moved.gradients == (2 * 4 + 2) * every * 4
    assert moved.update == every * (4 + 4 + 2 * 2 * 2)
    assert moved.activations == 2 * 8 * 1024 * 4096 * 32 * 2
    assert moved.caches == 0
    assert moved.total == moved.weights + moved.gradients + moved.update + moved.activations
    twice = ppo_update(config, shape, 2, epochs=3, minibatches=2, reference=False).bytes
    assert twice.weights == 3 * moved.weights
    assert twice.update == 3 * 2 * every * (4 + 4 + 4 * 4)
    read = ppo_update(config, shape, 2, epochs=3, minibatches=2, reference=True).bytes
    assert read.weights - twice.weights == 4 * used * 4


def test_what_is_kept_for_the_backward_pass() -> None:
    config = preset("11b", images=True)
    with_tower, frozen = kept(config, LARGE), kept(config, LARGE, "vision")
    assert frozen == 2 * (4096 * 4096 * 40 + 4 * 1601 * 4096)
    assert with_tower - frozen == 2 * 40 * 6432 * 1280
    assert kept(dataclasses.replace(config, remat=False), LARGE) > 20 * with_tower
    still = costs.parameters(config).vision
    moved = sft_step(config, LARGE, 1, "vision").bytes
    every = sft_step(config, LARGE, 1).bytes
    assert every.weights - moved.weights == 2 * still * 4  # one pass instead of three
    assert every.update - moved.update == still * (8 + 16)

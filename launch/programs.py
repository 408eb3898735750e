"""The jitted programs of a study: what each takes over, and where on the mesh its results lie.

Training, benchmarks and ahead-of-time compilation share these; evaluation's is `Lab.play`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from gp_virl.config import SftConfig
from gp_virl.model.mllama import for_decoding
from gp_virl.rollout import episodes
from gp_virl.sharding import along_batch, placed, whole
from gp_virl.train import ppo, sft
from gp_virl.train.state import TrainState, abstract, create, optimizer
from launch.lab import Lab

SHORTEST_TURN = 16  # tokens; a row of S tokens has slots for S / 16 turns


@dataclasses.dataclass(frozen=True)
class Sft:
    """One run of supervised fine-tuning."""

    shapes: TrainState  # ShapeDtypeStructs with shardings
    create: Callable  # params -> state, which owns its arrays
    update: Callable  # (state, batch) -> (state, metrics); the state given is used up


@dataclasses.dataclass(frozen=True)
class Ppo:
    """The parts of an iteration."""

    shapes: TrainState  # ShapeDtypeStructs with shardings
    lanes: episodes.Lanes  # so are these
    create: Callable  # params -> state, which owns its arrays
    start: Callable  # (game, deal) -> lanes
    rollout: Callable  # (params, game, lanes, ...) -> lanes, records, values; lanes are used up
    update: Callable  # (game, state, ...) -> (state, metrics); the state given is used up


def sft_programs(lab: Lab, run: SftConfig) -> Sft:
    """The programs of one of the configuration's SFT runs."""
    rule = optimizer(run, run.steps)
    shapes, make = _state(lab, rule)
    update = jax.jit(
        functools.partial(sft.update, lab.graph, rule, run.microbatch, frozen=run.frozen),
        donate_argnums=0,
        out_shardings=(_layout(shapes), whole(lab.mesh)),
    )
    return Sft(shapes, make, update)


def ppo_programs(lab: Lab) -> Ppo:
    """The programs of the RL branch."""
    config, roll, graph, mesh = lab.config, lab.config.rollout, lab.graph, lab.mesh
    rule = optimizer(config.ppo, config.ppo.updates * config.ppo.epochs * config.ppo.minibatches)
    shapes, make = _state(lab, rule)
    slots = max(roll.turns, config.env.max_turns, roll.context // SHORTEST_TURN)

    def start(game, deal):
        return episodes.start(game, deal, jnp.arange(roll.lanes), roll.context)

    def play(params, game, lanes, deal, draw, how):
        return episodes.rollout(
            nnx.merge(graph, for_decoding(params, lab.model)), game, lanes, deal, draw, how,
            roll.turns, roll.reply_length, roll.chunk, roll.images,
        )  # fmt: skip

    lanes = jax.eval_shape(lambda game: start(game, jax.random.key(0)), lab.games["train"])
    seats = along_batch(lanes, mesh)
    by_turn = along_batch(jax.ShapeDtypeStruct((roll.turns, roll.lanes), jnp.float32), mesh, 1)
    learn = functools.partial(ppo.update, graph, rule, config.ppo, slots)
    return Ppo(
        shapes=shapes,
        lanes=jax.tree.map(placed, lanes, seats),
        create=make,
        start=jax.jit(start, out_shardings=seats),
        rollout=jax.jit(play, donate_argnums=2, out_shardings=(seats, by_turn, by_turn)),
        update=jax.jit(learn, donate_argnums=1, out_shardings=(_layout(shapes), whole(mesh))),
    )


def _state(lab: Lab, rule: optax.GradientTransformation) -> tuple[TrainState, Callable]:
    """The state's shapes on the mesh, and the jitted function that makes it of parameters."""
    shapes = abstract(lab.shapes, rule, lab.mesh)
    make = functools.partial(create, optimizer=rule)
    return shapes, jax.jit(make, out_shardings=_layout(shapes))


def _layout(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)

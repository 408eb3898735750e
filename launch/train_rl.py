"""Multi-turn PPO from a checkpoint: python -m launch.train_rl --config=configs/gp_l.py:tiny
--init=runs/gp_l_tiny/seed0/base [--workdir=DIR]"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jaxtyping import PyTree
from tqdm import tqdm

from gp_virl.config import StudyConfig
from gp_virl.evals import flops
from gp_virl.metrics import RunWriter
from gp_virl.rollout import episodes
from gp_virl.train import ppo
from gp_virl.train.state import TrainState, create, optimizer
from launch import branches
from launch import lab as labs
from launch.branches import Branch
from launch.lab import Lab

SHORTEST_TURN = 16  # tokens; a row of S tokens has slots for S / 16 turns


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted parts of an iteration."""

    start: Callable
    rollout: Callable
    update: Callable


def compile_steps(lab: Lab) -> Steps:
    """Jitted start(game, deal), rollout(params, game, lanes, ...), update(game, state, ...)."""
    config, roll, graph = lab.config, lab.config.rollout, lab.graph
    updates = config.ppo.updates * config.ppo.epochs * config.ppo.minibatches
    slots = max(roll.turns, config.env.max_turns, roll.context // SHORTEST_TURN)

    def start(game, deal):
        return episodes.start(game, deal, jnp.arange(roll.lanes), roll.context)

    def play(params, game, lanes, deal, draw, how):
        return episodes.rollout(
            nnx.merge(graph, params), game, lanes, deal, draw, how,
            roll.turns, roll.reply_length, roll.chunk, roll.images,
        )  # fmt: skip

    learn = functools.partial(ppo.update, graph, optimizer(config.ppo, updates), config.ppo, slots)
    return Steps(jax.jit(start), jax.jit(play, donate_argnums=2), jax.jit(learn, donate_argnums=1))


def train(
    lab: Lab, branch: Branch, init: PyTree, writer: RunWriter, evaluate: Callable
) -> TrainState:
    """The trained state. `evaluate(params, updates, compute)` is called at each of eval.points.

    A branch that was interrupted goes on from its last checkpoint.
    """
    config = lab.config
    steps, how = compile_steps(lab), labs.sampling(config, "sampled")
    total = config.ppo.updates * config.ppo.epochs * config.ppo.minibatches
    state = create(init, optimizer(config.ppo, total))
    key = jax.random.key(branch.seed)
    deal, draw = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    game = lab.games["train"]
    lanes = steps.start(game, deal)
    tree = {"train": state, "lanes": lanes}
    tree, about = branches.resumed(branch, tree, {"tokens": 0, "generated": 0}, writer)
    state, lanes = tree["train"], tree["lanes"]
    trained, generated = about["tokens"], about["generated"]
    points = branches.points(config.ppo.updates, config.eval.points)
    bar = tqdm(
        range(about["step"], config.ppo.updates), initial=about["step"],
        total=config.ppo.updates, desc=branch.label, unit="update", **branches.bar_style(),
    )  # fmt: skip
    for step in bar:
        clock = time.perf_counter()
        lanes, roll, following = jax.block_until_ready(
            steps.rollout(state.params, game, lanes, deal, jax.random.fold_in(draw, step), how)
        )
        played = time.perf_counter()
        state, metrics = steps.update(
            game, state, init, roll, following, jax.random.fold_in(key, step), how.temperature,
            jnp.float32(step >= config.ppo.value_warmup),
        )  # fmt: skip
        metrics = jax.device_get(metrics) | play_metrics(roll)
        generated += int(metrics["generated"])
        trained += int(metrics["tokens"])
        seconds = {"rollout_s": played - clock, "update_s": time.perf_counter() - played}
        about = {"kind": "ppo", "branch": branch.name, "seed": branch.seed, "step": step + 1}
        writer.write(about | metrics | seconds | {"trained": trained, "generated_all": generated})
        bar.set_postfix_str(f"reward {metrics['reward']:.2f} right {metrics['right']:.2f}")
        if step + 1 in points:
            lam = generated / trained
            if config.eval.lam == "paper":
                lam = flops.PAPER_LAMBDA[lab.study.PAPER_LAMBDA]
            compute = flops.rl_flops(lab.parameters, branch.init_tokens, trained, lam)
            evaluate(state.params, step + 1, compute)
            extra = {"tokens": trained, "generated": generated}
            branches.keep(branch, step + 1, {"train": state, "lanes": lanes}, extra)
    return state


def play_metrics(roll: episodes.Rollout) -> dict[str, float]:
    """Means over the turns of a rollout, and the tokens its generations read and wrote."""
    right, solved, ended, closed, turn = (
        np.asarray(x)
        for x in (roll.outcome == 0, roll.solved, roll.terminated, roll.closed, roll.turn)
    )
    opens = np.concatenate([turn[:1] == 0, closed[:-1]])  # first replies of conversations
    return {
        "reward": float(roll.reward.mean()),
        "right": float(right.mean()),
        "episode_success": float(solved[ended].mean()) if ended.any() else 0.0,
        "first_try": float(right[opens].mean()) if opens.any() else 0.0,
        "reply_length": float(roll.reply.mean()),
        "turns": float(roll.played.sum()),
        "generated": float((roll.prompt + roll.reply).sum()),
        "prefilled": float(roll.prefilled.sum()),
        "recognized": float(roll.recognized.mean()),
        "encoded": float(roll.encoded.sum()),
    }


def main(
    config: StudyConfig,
    workdir: Path,
    init: str,
    seed: int = 0,
    shows: tuple[str, ...] = (),
) -> None:
    """Train one RL branch and evaluate it along the way."""
    labs.refuse_study(workdir)
    lab = labs.open_lab(config)
    params, about = branches.load_params(lab, Path(init))
    branch = Branch("rl", seed, workdir / "rl", workdir / "data", about["tokens_seen"])
    writer = labs.open_writer(workdir, shows)
    evaluate = branches.evaluator(lab, branch, writer, config.ppo.updates)
    with jax.set_mesh(lab.mesh):
        train(lab, branch, params, writer, evaluate)


if __name__ == "__main__":
    STUDY, PLACE, SHOWS = labs.define_config(), labs.define_workdir(), labs.define_shows()
    INIT = flags.DEFINE_string("init", None, "directory of the checkpoint to start from")
    SEED = flags.DEFINE_integer("branch_seed", 0, "seed of dealing and sampling")
    flags.mark_flag_as_required("init")

    def start():
        config = STUDY()
        main(config, PLACE(config, "rl"), INIT.value, SEED.value, SHOWS())

    labs.run(start)

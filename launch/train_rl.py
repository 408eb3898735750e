"""Multi-turn PPO from a checkpoint: python -m launch.train_rl --config=configs/gp_l.py:tiny
--init=runs/gp_l_tiny/seed0/base [--workdir=DIR]"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Bool, Float, PyTree, Shaped
from tqdm import tqdm

from gp_virl.config import StudyConfig
from gp_virl.evals import flops
from gp_virl.metrics import RunWriter
from gp_virl.places import Place, place
from gp_virl.rollout import episodes
from gp_virl.sharding import whole
from gp_virl.train.state import TrainState
from launch import branches, processes
from launch import lab as labs
from launch.branches import Branch
from launch.lab import Lab
from launch.programs import ppo_programs


def train(
    lab: Lab, branch: Branch, init: PyTree, writer: RunWriter, evaluate: Callable
) -> TrainState:
    """The trained state. `evaluate(params, updates, compute)` is called at each of eval.points.

    A branch that was interrupted goes on from its last checkpoint.
    """
    config = lab.config
    programs, how = ppo_programs(lab), labs.sampling(config, "sampled")
    measure = jax.jit(play_metrics, out_shardings=whole(lab.mesh))
    key = jax.random.key(branch.seed)
    deal, draw = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    game = lab.games["train"]
    tree, about = branches.resumed(
        branch, {"train": programs.shapes, "lanes": programs.lanes},
        lambda: {"train": programs.create(init), "lanes": programs.start(game, deal)},
        {"tokens": 0, "generated": 0}, writer,
    )  # fmt: skip
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
            programs.rollout(state.params, game, lanes, deal, jax.random.fold_in(draw, step), how)
        )
        played = time.perf_counter()
        state, metrics = programs.update(
            game, state, init, roll, following, jax.random.fold_in(key, step), how.temperature,
            jnp.float32(step >= config.ppo.value_warmup),
        )  # fmt: skip
        metrics = jax.device_get(metrics | measure(roll))
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
            writer.flush()
            branches.keep(branch, step + 1, {"train": state, "lanes": lanes}, extra)
    return state


def play_metrics(roll: episodes.Rollout) -> dict[str, Shaped[Array, ""]]:
    """Means over the turns of a rollout, and the tokens its generations read and wrote."""
    right = roll.outcome == 0
    opens = jnp.concatenate([roll.turn[:1] == 0, roll.closed[:-1]])  # a conversation's first reply
    return {
        "reward": roll.reward.mean(),
        "right": right.mean(),
        "episode_success": _share(roll.solved, roll.terminated),
        "first_try": _share(right, opens),
        "reply_length": roll.reply.mean(),
        "turns": roll.played.sum(),
        "generated": (roll.prompt + roll.reply).sum(),
        "prefilled": roll.prefilled.sum(),
        "recognized": roll.recognized.mean(),
        "encoded": roll.encoded.sum(),
    }


def _share(hit: Bool[Array, "R B"], among: Bool[Array, "R B"]) -> Float[Array, ""]:
    """The share of `hit` where `among` is True; 0 where it is nowhere."""
    return (hit & among).sum() / jnp.maximum(among.sum(), 1)


def main(
    config: StudyConfig,
    workdir: Place,
    init: str,
    seed: int = 0,
    shows: tuple[str, ...] = (),
) -> None:
    """Train one RL branch and evaluate it along the way."""
    labs.refuse_study(workdir)
    lab = labs.open_lab(config)
    params, about = branches.load_params(lab, place(init))
    branch = Branch("rl", seed, workdir / "rl", workdir / "data", about["tokens_seen"])
    writer = labs.open_writer(workdir, shows)
    evaluate = branches.evaluator(lab, branch, writer, config.ppo.updates)
    with jax.set_mesh(lab.mesh):
        train(lab, branch, params, writer, evaluate)


if __name__ == "__main__":
    STUDY, PLACE, SHOWS = labs.define_config(), labs.define_workdir(), labs.define_shows()
    INIT = flags.DEFINE_string("init", None, "directory of the checkpoint to start from")
    SEED = flags.DEFINE_integer("branch_seed", 0, "seed of dealing and sampling")
    JOIN = processes.define_flags()
    flags.mark_flag_as_required("init")

    def start():
        config = STUDY()
        main(config, PLACE(config, "rl"), INIT.value, SEED.value, SHOWS())

    labs.run(start, JOIN)

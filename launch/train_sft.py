"""Supervised fine-tuning, from scratch or from a checkpoint:
python -m launch.train_sft --config=configs/gp_l.py:tiny --run=base|sft|sft_matched [--init=DIR]"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import PyTree
from tqdm import tqdm

from gp_virl.config import SftConfig, StudyConfig
from gp_virl.evals import flops
from gp_virl.io import checkpoint
from gp_virl.metrics import RunWriter
from gp_virl.places import Place, place
from gp_virl.train import sft
from gp_virl.train.state import TrainState
from launch import branches, processes
from launch import lab as labs
from launch.branches import Branch
from launch.lab import Lab
from launch.programs import sft_programs

LOG_EVERY = 20


def train(
    lab: Lab,
    branch: Branch,
    run: SftConfig,
    init: Callable[[], PyTree],
    writer: RunWriter,
    evaluate: Callable,
) -> tuple[TrainState, int]:
    """The trained state and the tokens of this run, those before it not counted.

    init() gives the parameters to start from, if the run isn't on its way already.
    `evaluate(params, updates, compute)` is called at each of eval.points. A run that was
    interrupted goes on from its last checkpoint, with the next batch.
    """
    programs = sft_programs(lab, run)
    tree, about = branches.resumed(
        branch, {"train": programs.shapes}, lambda: {"train": programs.create(init())},
        {"tokens": 0, "data": None}, writer,
    )  # fmt: skip
    state, tokens = tree["train"], about["tokens"]
    if about["step"] == run.steps:
        return state, tokens
    batches = branches.batches(lab, branch, run)
    if about["data"] is not None:
        batches.set_state(about["data"])
    points = branches.points(run.steps, lab.config.eval.points)
    bar = tqdm(
        range(about["step"], run.steps), initial=about["step"], total=run.steps,
        desc=branch.label, unit="step", **branches.bar_style(),
    )  # fmt: skip
    waiting = []
    for step in bar:
        rows = branches.on_mesh(lab, next(batches), run.batch_size)
        state, metrics = programs.update(state, sft.Batch(**rows))
        waiting.append(metrics)
        if (step + 1) % LOG_EVERY == 0 or step + 1 in points:
            block = jax.tree.map(lambda *x: jnp.stack(x), *waiting)
            waiting = []
            tokens += int(block["tokens"].sum())
            means = {name: float(x.mean()) for name, x in block.items()}
            about = {"kind": "sft", "branch": branch.name, "seed": branch.seed, "step": step + 1}
            writer.write(about | means | {"trained": tokens})
            bar.set_postfix_str(f"loss {means['loss']:.3f}")
        if step + 1 in points:
            compute = flops.sft_flops(lab.parameters, branch.init_tokens, tokens)
            evaluate(state.params, step + 1, compute)
            extra = {"tokens": tokens, "tokens_seen": branch.init_tokens + tokens}
            extra["data"] = batches.get_state()
            writer.flush()
            branches.keep(branch, step + 1, {"train": state}, extra)
    return state, tokens


def main(
    config: StudyConfig,
    workdir: Place,
    name: str,
    init: str | None,
    seed: int = 0,
    shows: tuple[str, ...] = (),
) -> None:
    """Train the run of that name and evaluate it along the way."""
    labs.refuse_study(workdir)
    lab = labs.open_lab(config)
    seen = checkpoint.metadata(place(init))["tokens_seen"] if init else 0

    def begin() -> PyTree:
        if init:
            return branches.load_params(lab, place(init))[0]
        return branches.fresh_params(lab, seed)

    branch = Branch(name, seed, workdir / name, workdir / "data", seen)
    writer = labs.open_writer(workdir, shows)
    run = getattr(config, name)
    evaluate = branches.evaluator(lab, branch, writer, run.steps)
    with jax.set_mesh(lab.mesh):
        train(lab, branch, run, begin, writer, evaluate)


if __name__ == "__main__":
    STUDY, PLACE, SHOWS = labs.define_config(), labs.define_workdir(), labs.define_shows()
    INIT = flags.DEFINE_string("init", None, "directory of the checkpoint to start from")
    RUN = flags.DEFINE_enum("run", "sft", ["base", "sft", "sft_matched"], "section of the config")
    SEED = flags.DEFINE_integer("branch_seed", 0, "seed of the data order and the parameters")
    JOIN = processes.define_flags()

    def start():
        config = STUDY()
        main(config, PLACE(config, RUN.value), RUN.value, INIT.value, SEED.value, SHOWS())

    labs.run(start, JOIN)

"""A branch of a study: where it is kept, how it resumes, what it is evaluated on."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from tqdm import tqdm

from gp_virl.config import ConfigError, SftConfig
from gp_virl.data import expert, llava_json, pipeline
from gp_virl.io import checkpoint
from gp_virl.metrics import RunWriter
from gp_virl.model import mllama
from gp_virl.sharding import spec
from launch.lab import DECODINGS, Lab, evaluate, evaluated, shown


@dataclasses.dataclass(frozen=True)
class Branch:
    """One training run; checkpoints lie in `place`, data sets in `data`."""

    name: str  # base | sft | sft_matched | rl
    seed: int
    place: Path
    data: Path
    init_tokens: int  # that its initial parameters were trained on

    @property
    def label(self) -> str:
        """For progress bars."""
        return f"{self.name:<11} seed {self.seed}"


def points(steps: int, count: int) -> set[int]:
    """The steps after which a branch is evaluated and kept: `count` of them, the last included."""
    return {round(steps * (i + 1) / count) for i in range(count)} - {0}


def keep(branch: Branch, step: int, tree: dict[str, PyTree], about: dict[str, Any]) -> None:
    """Store a checkpoint; the last two stay."""
    checkpoint.save(branch.place, step, tree, about | {"branch": branch.name, "step": step})


def resumed(
    branch: Branch, tree: dict[str, PyTree], about: dict[str, Any], writer: RunWriter
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """The branch's last checkpoint and its metadata, or `tree` and `about` at step 0.

    Says so, and forgets metrics that were written after the checkpoint.
    """
    step = checkpoint.latest(branch.place)
    if step is not None:
        tree, about = checkpoint.restore(branch.place, tree, step)
        say(f"{branch.label}: continues after step {step}, from {branch.place}")
    writer.truncate(step or 0, branch=branch.name, seed=branch.seed)
    return tree, {"step": 0} | about


def load_params(lab: Lab, place: Path) -> tuple[PyTree, dict[str, Any]]:
    """Parameters of the last checkpoint in a directory, and its metadata."""
    shapes = mllama.abstract(lab.model, lab.mesh)[1]
    tree, about = checkpoint.restore(place, {"train": {"params": shapes}}, partial=True)
    return tree["train"]["params"], about


def fresh_params(lab: Lab, seed: int) -> PyTree:
    """Random parameters."""
    return mllama.build(lab.model, jax.random.key(seed), lab.mesh)[1]


def examples(lab: Lab, branch: Branch) -> Any:
    """The branch's dialogues: a released file's, or the expert's; ConfigError for a bad file."""
    if not lab.config.data.file:
        about = lab.study.expert(lab.config, branch.name == "base")
        builder = lab.study.BUILDER(
            config=about, data_dir=str(branch.data), file_format=expert.FORMAT
        )
        builder.download_and_prepare()
        return builder.source()
    try:
        found = llava_json.read(lab.config.data.file)
    except llava_json.LlavaError as wrong:
        raise ConfigError(f"config.data.file: {wrong}") from wrong
    if ("image" in found[0]) != lab.config.pictured:
        raise ConfigError(
            f"config.data.file: {lab.config.data.file} has dialogues "
            f"{'without' if lab.config.pictured else 'with'} images, allowed for task "
            f"{lab.config.task}: {'with' if lab.config.pictured else 'without'}"
        )
    return found


def batches(lab: Lab, branch: Branch, run: SftConfig):
    """An endless, resumable iterator of this process's batches."""
    talks = pipeline.tokenized(examples(lab, branch), lab.tokenizer)
    return iter(
        pipeline.batches(
            talks,
            length=run.length,
            batch_size=run.batch_size // jax.process_count(),
            seed=branch.seed,
            index=jax.process_index(),
            count=jax.process_count(),
            pictures=run.pictures,
        )
    )


def on_mesh(lab: Lab, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch with its rows spread over the mesh; each process gives its own rows."""
    rows = NamedSharding(lab.mesh, spec("batch", None))
    return {k: jax.make_array_from_process_local_data(rows, x) for k, x in batch.items()}


def evaluator(lab: Lab, branch: Branch, writer: RunWriter, last: int) -> Callable:
    """evaluate(params, updates, compute): curve points on few hands, step `last` on all."""

    def run(params: PyTree, updates: int, compute: float) -> None:
        about = {
            "branch": branch.name,
            "seed": branch.seed,
            "updates": updates,
            "compute_flops": compute,
        }
        splits = list(lab.config.splits)
        if updates == last:
            found = evaluate(lab, params, lab.config.eval.hands, about, evaluated(lab))
        else:
            found = evaluate(lab, params, lab.config.eval.curve_hands, about, splits, DECODINGS[:1])
        for record in found:
            writer.write(record)
        say(f"{branch.label}  after {updates:>5} updates: {shown(found)}")

    return run


def say(text: str) -> None:
    """A line above the progress bars, from process 0."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def bar_style() -> dict[str, Any]:
    """How progress bars look; only process 0 shows them."""
    return {"disable": jax.process_index() != 0, "leave": False, "dynamic_ncols": True}

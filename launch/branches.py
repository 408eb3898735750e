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
from gp_virl.places import Place, is_local
from gp_virl.sharding import fitting, spec
from launch import processes
from launch.lab import DECODINGS, Lab, evaluate, evaluated, shown


@dataclasses.dataclass(frozen=True)
class Branch:
    """One training run; checkpoints lie in `place`, data sets in `data`."""

    name: str  # base | sft | sft_matched | rl
    seed: int
    place: Place
    data: Place
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
    branch: Branch,
    shapes: dict[str, PyTree],
    begin: Callable[[], dict[str, PyTree]],
    about: dict[str, Any],
    writer: RunWriter,
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """The branch's last checkpoint and its metadata, or begin() and `about` at step 0.

    `shapes` are those of begin(), which isn't called where there is a checkpoint: memory has room
    for one state. Says so, and forgets metrics that were written after the checkpoint.
    """
    step = processes.agreed(checkpoint.latest(branch.place))
    if step is None:
        tree = begin()
    else:
        tree, about = checkpoint.restore(branch.place, shapes, step)
        say(f"{branch.label}: continues after step {step}, from {branch.place}")
    writer.truncate(step or 0, branch=branch.name, seed=branch.seed)
    return tree, {"step": 0} | about


def load_params(lab: Lab, place: Place) -> tuple[PyTree, dict[str, Any]]:
    """Parameters of the last checkpoint in a directory, and its metadata."""
    tree, about = checkpoint.restore(place, {"train": {"params": lab.shapes}}, partial=True)
    return tree["train"]["params"], about


def fresh_params(lab: Lab, seed: int) -> PyTree:
    """Random parameters."""
    return mllama.build(lab.model, jax.random.key(seed), lab.mesh)[1]


def examples(lab: Lab, branch: Branch) -> Any:
    """The branch's dialogues: a released file's, or the expert's; ConfigError for a bad file."""
    if not lab.config.data.file:
        about = lab.study.expert(lab.config, branch.name == "base")
        with processes.first_before("data", shared=is_local(branch.data)) as writes:
            builder = lab.study.BUILDER(
                config=about, data_dir=str(data_place(branch)), file_format=expert.FORMAT
            )
            if writes:
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


def data_place(branch: Branch) -> Path:
    """Where data sets lie, on this machine: their readers know no URLs.

    With a work directory in a bucket every process makes its own, all the same.
    """
    if isinstance(branch.data, Path):
        return branch.data
    return Path("runs") / "data" / f"process{jax.process_index()}"


def batches(lab: Lab, branch: Branch, run: SftConfig):
    """An endless, resumable iterator of batches, of which this process has its own rows.

    What comes and in which order doesn't depend on the number of processes, nor does its state.
    """
    talks = pipeline.tokenized(examples(lab, branch), lab.tokenizer)
    return iter(
        pipeline.batches(
            talks,
            length=run.length,
            batch_size=run.batch_size,
            seed=branch.seed,
            rows=own_rows(lab, run.batch_size),
            pictures=run.pictures,
        )
    )


def own_rows(lab: Lab, size: int) -> list[int]:
    """The rows of a batch of `size` that lie on this process's devices, ascending."""
    places = _row_layout(lab, size).addressable_devices_indices_map((size,)).values()
    return sorted({row for (rows,) in places for row in range(size)[rows]})


def on_mesh(
    lab: Lab, batch: dict[str, np.ndarray], size: int | None = None
) -> dict[str, jax.Array]:
    """A batch of `size` rows (None: those given) spread over the mesh; `batch` has `own_rows`."""
    size = size or len(batch["tokens"])
    rows = _row_layout(lab, size)

    def spread(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(rows, x, (size, *x.shape[1:]))

    return {name: spread(x) for name, x in batch.items()}


def _row_layout(lab: Lab, size: int) -> NamedSharding:
    return NamedSharding(lab.mesh, fitting(spec("batch"), (size,), lab.mesh))


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
        writer.flush()
        say(f"{branch.label}  after {updates:>5} updates: {shown(found)}")

    return run


def say(text: str) -> None:
    """A line above the progress bars, from process 0."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def bar_style() -> dict[str, Any]:
    """How progress bars look; only process 0 shows them."""
    return {"disable": jax.process_index() != 0, "leave": False, "dynamic_ncols": True}

"""Hugging Face Mllama checkpoints to Orbax checkpoints of this project and back.

    python -m launch.convert_hf --to=orbax --hf=DIR --checkpoint=DIR [--param_dtype=bfloat16]
    python -m launch.convert_hf --to=hf --checkpoint=DIR --hf=DIR [--like=DIR] [--dtype=float32]

A checkpoint made from Hugging Face's can be given to the training launchers as --init. For the
way back from a checkpoint that was trained here, --like names the directory it once came from:
it gives the config, tokenizer and processor files, and the vision tower if training had none.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from jaxtyping import PyTree

from gp_virl.config import ConfigError
from gp_virl.io import checkpoint, hf
from gp_virl.model import mllama
from gp_virl.model.config import DTYPES, ModelConfig, RopeScaling, VisionConfig
from gp_virl.places import Place, PlaceError, place
from gp_virl.sharding import mesh_of

TEXT_FILES = ("*token*", "*processor_config.json", "chat_template*")
VISION_PARTS = ("vision_model", "multi_modal_projector")
MISTAKES = (
    ConfigError,
    PlaceError,
    hf.HFCheckpointError,
    hf.ExistingDirectoryError,
    checkpoint.MissingCheckpointError,
    checkpoint.IncompatibleTreeError,
    checkpoint.ExistingStepError,
)


def to_orbax(source: Path, target: Place, param_dtype: str, fsdp: int, seed: int) -> None:
    """Store a Hugging Face directory as step 0 of a checkpoint; the value head is drawn anew."""
    found = hf.open_checkpoint(source, param_dtype=param_dtype)
    mesh = mesh_of(fsdp=fsdp) if fsdp > 1 else None
    _, params = hf.load(found, jax.random.key(seed), mesh)
    about = {"branch": "hf", "step": 0, "tokens_seen": 0}
    about |= {"model": dataclasses.asdict(found.config)}
    about |= {"hf": dataclasses.asdict(found.origin) | {"dtype": found.dtype}}
    checkpoint.save(target, 0, {"train": {"params": params}}, about)


def to_hf(source: Place, target: Path, like: Path | None, dtype: str | None, fsdp: int) -> None:
    """Write the last checkpoint of a directory as Hugging Face's; the value head stays behind."""
    whole = checkpoint.metadata(source, whole=True)
    about, example = whole["metadata"], None
    if like is not None:
        example = hf.open_checkpoint(like)
        config, origin, stored = example.config, example.origin, example.dtype
    elif "hf" in about:
        config = model_config(about["model"])
        stored = about["hf"]["dtype"]
        origin = hf.Origin(about["hf"]["config"], about["hf"]["generation"])
    else:
        raise ConfigError(
            f"{source} doesn't say which model it holds: give --like, the Hugging Face directory "
            "that its training started from"
        )
    params = restored(source, whole["leaves"], config, example, fsdp)
    dtype = dtype or ("float32" if stored == "float16" else stored)
    hf.export(target, params, config, origin, dtype)
    if like is not None and jax.process_index() == 0:
        for pattern in TEXT_FILES:
            for file in like.glob(pattern):
                shutil.copy(file, target)


def restored(
    source: Place,
    leaves: dict[str, list],
    config: ModelConfig,
    example: hf.HFCheckpoint | None,
    fsdp: int,
) -> PyTree:
    """Parameters of the last checkpoint but the value head; a missing tower is `example`'s."""
    prefix = "train/params/"
    dtypes = {entry[1] for path, entry in leaves.items() if path.startswith(prefix)}
    config = dataclasses.replace(
        config, param_dtype=dtypes.pop() if len(dtypes) == 1 else "float32"
    )
    shapes = mllama.abstract(config, mesh_of(fsdp=fsdp) if fsdp > 1 else None)[1]
    shapes = {name: shapes[name] for name in shapes if name != "value_head"}
    blind = not any(path.startswith(f"{prefix}{VISION_PARTS[0]}/") for path in leaves)
    borrowed: dict[str, Any] = {}
    if blind and example is not None:
        parts = {name: shapes.pop(name) for name in VISION_PARTS}
        borrowed = hf.read_weights(example, parts)
    tree, _ = checkpoint.restore(source, {"train": {"params": shapes}}, partial=True)
    return tree["train"]["params"] | borrowed


def model_config(stored: dict[str, Any]) -> ModelConfig:
    """ModelConfig from what JSON keeps of dataclasses.asdict."""

    def frozen(value):
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    fields = {name: frozen(value) for name, value in stored.items()}
    for name, kind in (("vision", VisionConfig), ("rope_scaling", RopeScaling)):
        if fields[name] is not None:
            fields[name] = kind(**{k: frozen(v) for k, v in fields[name].items()})
    return ModelConfig(**fields)


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)
    hugging = Path(HF.value)
    try:
        kept = place(CHECKPOINT.value)
        if TO.value == "orbax":
            to_orbax(hugging, kept, PARAM_DTYPE.value, FSDP.value, SEED.value)
        else:
            like = Path(LIKE.value) if LIKE.value else None
            to_hf(kept, hugging, like, DTYPE.value, FSDP.value)
    except MISTAKES as wrong:
        sys.exit(f"{type(wrong).__name__}: {wrong}")
    print(f"written: {kept if TO.value == 'orbax' else hugging}")


if __name__ == "__main__":
    TO = flags.DEFINE_enum("to", None, ["orbax", "hf"], "what is written", required=True)
    HF = flags.DEFINE_string("hf", None, "directory in Hugging Face's format", required=True)
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "directory of checkpoints", required=True)
    LIKE = flags.DEFINE_string("like", None, "with --to=hf: where the model once came from")
    DTYPE = flags.DEFINE_enum(
        "dtype", None, list(DTYPES), "with --to=hf: of the files; default as they once were"
    )
    PARAM_DTYPE = flags.DEFINE_enum(
        "param_dtype", "float32", list(DTYPES), "with --to=orbax: of the checkpoint"
    )
    FSDP = flags.DEFINE_integer("fsdp", 1, "devices that share the weights", lower_bound=1)
    SEED = flags.DEFINE_integer("seed", 0, "with --to=orbax: of the value head")
    app.run(main)

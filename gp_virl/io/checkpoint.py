"""Checkpoints with Orbax: any PyTree of arrays plus a little JSON, one directory a step.

A tree is stored as a flat table from path ("params/decoder/embed") to array, so that named tuples,
nnx.State and dicts are all alike and a difference can be named. Typed random keys are stored as
their data. On several hosts every process calls these functions with the same arguments.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree, Shaped

from gp_virl.places import Place, place

SHOWN_DIFFERENCES = 20


class MissingCheckpointError(FileNotFoundError):
    """There is no finished checkpoint where one was asked for."""


class IncompatibleTreeError(ValueError):
    """The stored tree is not the target's: the message lists the paths that differ."""


class CheckpointLeafError(TypeError):
    """A leaf is not an array and can't be stored."""


class ExistingStepError(FileExistsError):
    """The step is stored already; checkpoints are not overwritten."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which steps stay on disk: the `last` ones (None: all), and every multiple of `every`."""

    last: int | None = 2
    every: int | None = None


def save(
    directory: str | Place,
    step: int,
    tree: PyTree,
    metadata: Mapping[str, Any] | None = None,
    keep: Keep = Keep(),  # noqa: B008 - frozen
) -> None:
    """Stores `tree` and `metadata` under directory/step; a kill in between leaves no such step.

    Steps that `keep` lets go are deleted afterwards. Raises CheckpointLeafError if a leaf is not
    an array and ExistingStepError if the step is there already.
    """
    leaves = _named(tree)
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise CheckpointLeafError(
                f"leaf {name!r} is {type(leaf).__name__}; leaves are arrays, the rest is metadata"
            )
    index = {name: _entry(leaf) for name, leaf in leaves.items()}
    items = ocp.args.Composite(
        tree=ocp.args.PyTreeSave({name: _stored(leaf) for name, leaf in leaves.items()}),
        about=ocp.args.JsonSave({"leaves": index, "metadata": dict(metadata or {})}),
    )
    with _manager(directory, keep) as manager:
        if step in manager.all_steps():
            raise ExistingStepError(f"{directory} holds step {step} already; delete it first")
        manager.save(step, args=items, force=True)
        manager.wait_until_finished()


def restore(
    directory: str | Place, target: PyTree, step: int | None = None, partial: bool = False
) -> tuple[PyTree, dict[str, Any]]:
    """The tree stored at `step` in the structure of `target`, and its metadata.

    `target` holds arrays or jax.ShapeDtypeStruct; a leaf's sharding is used if it has one, else
    the leaf goes to this process's first device. It may have been saved by another number of
    processes, on another mesh. Without `step` the latest is taken. With `partial` the checkpoint
    may hold more than the target.
    Raises MissingCheckpointError, or IncompatibleTreeError if a path, a shape or a dtype differs.
    """
    step = _existing(directory, step)
    about = metadata(directory, step, whole=True)
    wanted = _named(target)
    _compare(about["leaves"], wanted, partial, f"{directory}, step {step}")
    abstract = {name: _abstract(leaf) for name, leaf in wanted.items()}
    request = ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,  # _compare has decided already
    )
    with _manager(directory, None) as manager:
        stored = manager.restore(step, args=ocp.args.Composite(tree=request))["tree"]
    leaves = [_unstored(stored[name], about["leaves"][name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(target), leaves), about["metadata"]


def metadata(
    directory: str | Place, step: int | None = None, whole: bool = False
) -> dict[str, Any]:
    """The metadata stored at `step` (default: the latest), without reading any array.

    With `whole`, {"leaves": path -> [shape, dtype, key implementation], "metadata": ...}. Raises
    MissingCheckpointError.
    """
    step = _existing(directory, step)
    with _manager(directory, None) as manager:
        about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
    return about["about"] if whole else about["about"]["metadata"]


def steps(directory: str | Place) -> list[int]:
    """The finished steps in ascending order; none if the directory is not there."""
    if not place(directory).is_dir():
        return []
    with _manager(directory, None) as manager:
        return sorted(manager.all_steps())


def latest(directory: str | Place) -> int | None:
    """The last finished step, or None. What an interrupted save left behind doesn't count."""
    return max(steps(directory), default=None)


def _manager(directory: str | Place, keep: Keep | None) -> ocp.CheckpointManager:
    """A manager that writes synchronously, or a read-only one if `keep` is None."""
    reads = keep is None
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if reads else keep.last,
        keep_period=None if reads else keep.every,
        create=not reads,
        read_only=reads,
        cleanup_tmp_directories=not reads,
        enable_async_checkpointing=False,
    )
    found = place(directory)
    found = found.absolute() if isinstance(found, Path) else found  # a URL is absolute
    return ocp.CheckpointManager(found, options=options)


def _existing(directory: str | Place, step: int | None) -> int:
    there = steps(directory)
    if not there:
        raise MissingCheckpointError(
            f"no checkpoint in {directory}; train first or correct the path"
        )
    if step is not None and step not in there:
        raise MissingCheckpointError(f"{directory} has no step {step}; its steps are {there}")
    return there[-1] if step is None else step


def _named(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, in the tree's order. Raises IncompatibleTreeError if two paths read alike."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    if len(named) < len(pairs):
        raise IncompatibleTreeError("two leaves have the same path; don't use '/' within a key")
    return named


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _entry(leaf: Shaped[Any, "..."]) -> list:
    """[shape, dtype, name of the key implementation or None], as JSON holds it."""
    kind = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
    return [list(leaf.shape), str(leaf.dtype), kind]


def _stored(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _unstored(stored: jax.Array, entry: list) -> jax.Array:
    kind = entry[2]
    return stored if kind is None else jax.random.wrap_key_data(stored, impl=kind)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    shape = jax.eval_shape(_stored, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    # A key's data has one more axis, which a named sharding leaves alone and others may not.
    if sharding is None or (_is_key(leaf) and not isinstance(sharding, jax.sharding.NamedSharding)):
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _compare(leaves: dict[str, list], wanted: dict[str, Any], partial: bool, place: str) -> None:
    """Raises IncompatibleTreeError that lists what is missing, left over or of another shape."""
    found = {name: f"{entry[1]}{entry[0]}" for name, entry in leaves.items()}
    asked = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
    lines = [
        f"{name}: stored {found.get(name, 'nothing')}, target {asked.get(name, 'nothing')}"
        for name in sorted(found | asked)
        if found.get(name) != asked.get(name) and not (partial and name not in asked)
    ]
    if lines:
        rest = [f"and {len(lines) - SHOWN_DIFFERENCES} more"] * (len(lines) > SHOWN_DIFFERENCES)
        raise IncompatibleTreeError(
            f"{place} is not of the target's structure; restore with the configuration it was "
            "saved with:\n" + "\n".join(lines[:SHOWN_DIFFERENCES] + rest)
        )

"""Hugging Face Mllama checkpoints, in and out, without a second copy of the weights in memory.

Reading looks at every file's header first and lists everything that is wrong in one error. Then
each device's part of each parameter is read in blocks, straight into the memory it stays in.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gp_virl.io import hf_config, hf_names
from gp_virl.io.hf_config import HFCheckpointError, Origin
from gp_virl.model import mllama
from gp_virl.model.config import DTYPES, ModelConfig
from gp_virl.model.value_head import ValueHead
from gp_virl.sharding import TRAINING

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = ("F32", "BF16", "F16")
BLOCK_BYTES = 32 << 20  # read at once; a file stays mapped, and counts as memory, no longer
ALIGNMENT = 64  # of host memory that JAX's CPU backend takes over without a copy
SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class HFCheckpoint:
    """A directory whose config and file headers fit together; no weight is read yet."""

    config: ModelConfig
    origin: Origin
    stored: Mapping[str, tuple[Path, str]]  # by name in the new style: file and name in it
    dtype: str  # of most weights in the files, a key of DTYPES or "float16"


class ExistingDirectoryError(FileExistsError):
    """The directory to write to holds something already."""


def open_checkpoint(directory: str | Path, **changes: Any) -> HFCheckpoint:
    """What a directory holds, after checking its config and all its headers against each other.

    `changes` are fields of ModelConfig that config.json doesn't have (dtype, remat, ...). Raises
    HFCheckpointError that lists whatever is missing, left over, misshapen or damaged.
    """
    headers, problems = _headers(Path(directory))
    try:
        config, origin = hf_config.read(directory, **changes)
    except HFCheckpointError as wrong:
        raise HFCheckpointError(directory, [*wrong.problems, *problems]) from None
    stored, found = {}, {}
    for file, tensors in headers.items():
        for name, (shape, dtype) in tensors.items():
            new = hf_names.modern(name)
            if new in stored:
                problems.append(f"{name}: also in {stored[new][0].name}")
            stored[new], found[new] = (file, name), (shape, dtype)
    problems += _differences(_wanted(config), found, {n: where[1] for n, where in stored.items()})
    if problems:
        raise HFCheckpointError(directory, problems)
    sizes = {}
    for shape, dtype in found.values():
        sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    return HFCheckpoint(config, origin, stored, names[max(sizes, key=sizes.__getitem__)])


def load(
    found: HFCheckpoint, key: Key[Array, ""], mesh: Mesh | None = None, rules: tuple = TRAINING
) -> tuple[Any, nnx.State]:
    """(graph, params) in config.param_dtype, laid out on `mesh` if one is given.

    Every process reads its own devices' parts only. The value head, which the files don't have,
    is drawn from `key`.
    """
    graph, shapes = mllama.abstract(found.config, mesh, rules)
    head = hf_names.named({"value_head": _value_head(found.config, key, shapes)})
    leaves = [
        head.get(path, leaf) for path, leaf in hf_names.named(read_weights(found, shapes)).items()
    ]
    return graph, jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def read_weights(found: HFCheckpoint, shapes: PyTree) -> PyTree:
    """`shapes`, a tree of some or all parameters as mllama.abstract gives it, with their weights.

    Parameters that the files don't have stay as they are.
    """
    flat = hf_names.named(shapes)
    whole = hf_names.named(mllama.abstract(found.config)[1])
    table = hf_names.entries(found.config, {path: leaf.shape for path, leaf in whole.items()})
    leaves = [
        _parameter(leaf, table[path], found.stored) if path in table else leaf
        for path, leaf in flat.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def export(
    directory: str | Path,
    params: PyTree,
    config: ModelConfig,
    origin: Origin,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a directory that transformers loads: sharded safetensors, configs, old-style names.

    The value head has no place in the format and is left out. On several hosts every process
    calls it and the first one writes; a host holds one file's tensors at a time. Raises
    ExistingDirectoryError if the directory isn't empty, ValueError for a model that the format
    has no place for or a dtype other than float32 and bfloat16.
    """
    place = Path(directory)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: allowed are {sorted(DTYPES)}")
    content = hf_config.content(config, origin, dtype)
    if place.exists() and any(place.iterdir()):
        raise ExistingDirectoryError(f"{place} is not empty; give another directory or clear it")
    plan = _plan(params, config, np.dtype(DTYPES[dtype]).itemsize, shard_bytes)
    writes = jax.process_index() == 0
    # Everything goes to a directory beside it, so that a kill leaves no half checkpoint.
    beside = place.with_name(place.name + ".tmp")
    if writes:
        beside.mkdir(parents=True, exist_ok=True)
    where = {}
    for file, tensors in plan.items():
        arrays = {name: _there(leaf, entry, g, dtype) for name, leaf, entry, g in tensors}
        where |= dict.fromkeys(arrays, file)
        if writes:
            save_file(arrays, beside / file, metadata={"format": "pt"})
    if writes:
        _write(beside / hf_config.CONFIG_FILE, content)
        _write(beside / hf_config.GENERATION_FILE, dict(origin.generation))
        if len(plan) > 1:
            total = sum((beside / file).stat().st_size for file in plan)
            _write(beside / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
        if place.exists():
            place.rmdir()
        os.replace(beside, place)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _headers(directory: Path) -> tuple[dict[Path, dict[str, tuple]], list[str]]:
    """By file, its tensors' (shape, dtype), and what is wrong with the files themselves."""
    listed, problems = _listed(directory)
    headers: dict[Path, dict[str, tuple]] = {}
    for file in sorted(set(listed.values()) if isinstance(listed, dict) else listed):
        path = directory / file
        if not path.is_file():
            problems.append(f"{file}: there is no such file")
            continue
        try:
            with safe_open(path, "np") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                headers[path] = {
                    name: (tuple(part.get_shape()), part.get_dtype())
                    for name, part in slices.items()
                }
        except (SafetensorError, OSError) as wrong:
            problems.append(f"{file}: truncated or damaged: {wrong}")
    if isinstance(listed, dict):
        for name, file in listed.items():
            held = headers.get(directory / file)
            if held is not None and name not in held:
                problems.append(f"{name}: {INDEX} says it is in {file}, which doesn't hold it")
    return headers, problems


def _listed(directory: Path) -> tuple[dict[str, str] | list[str], list[str]]:
    """The files of weights: those of the index by tensor, or the single one."""
    if (directory / SINGLE).is_file():
        return [SINGLE], []
    if not (directory / INDEX).is_file():
        return [], [f"{directory}: holds neither {SINGLE} nor {INDEX}"]
    try:
        listed = json.loads((directory / INDEX).read_text())["weight_map"]
        return {str(name): str(file) for name, file in listed.items()}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        return [], [f"{INDEX}: no readable weight_map: {type(wrong).__name__}: {wrong}"]


def _wanted(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, by name in the new style."""
    flat = hf_names.named(mllama.abstract(config)[1])
    table = hf_names.entries(config, {path: leaf.shape for path, leaf in flat.items()})
    return {name: entry.shape for entry in table.values() for name in entry.names}


def _differences(
    wanted: Mapping[str, tuple], found: Mapping[str, tuple], called: Mapping[str, str]
) -> Iterator[str]:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            yield f"{name}: missing, {list(wanted[name])} is needed"
        elif name not in wanted:
            yield f"{called[name]}: left over, {hf_config.CONFIG_FILE} has no place for it"
        else:
            shape, dtype = found[name]
            if shape != wanted[name]:
                yield (
                    f"{called[name]}: shape {list(shape)}, {list(wanted[name])} is needed by "
                    f"{hf_config.CONFIG_FILE}"
                )
            if dtype not in READABLE:
                yield f"{called[name]}: dtype {dtype}, allowed are {', '.join(READABLE)}"


def _value_head(config: ModelConfig, key: Key[Array, ""], shapes: PyTree) -> PyTree:
    shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), shapes["value_head"])

    def make(key):
        return nnx.state(ValueHead(config, nnx.Rngs(key)), nnx.Param)

    laid = None if None in jax.tree.leaves(shardings, is_leaf=lambda x: x is None) else shardings
    return jax.jit(make, out_shardings=laid)(key)


def _parameter(
    leaf: Any, entry: hf_names.Entry, stored: Mapping[str, tuple[Path, str]]
) -> Shaped[Array, "..."]:
    """The parameter that `leaf` describes, read from the tensors of its entry."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    read: dict[tuple, np.ndarray] = {}  # devices that hold the same part share it

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index, leaf.shape, strict=True))
        if bounds not in read:
            read[bounds] = _read(entry, bounds, leaf.shape, leaf.dtype, stored)
        return read[bounds]

    return jax.make_array_from_callback(leaf.shape, sharding, part)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory for an array that JAX can keep as it is, where devices use host memory."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def _read(
    entry: hf_names.Entry,
    bounds: tuple[tuple[int, int], ...],
    shape: tuple[int, ...],
    dtype: np.dtype,
    stored: Mapping[str, tuple[Path, str]],
) -> np.ndarray:
    """The part of a parameter within `bounds` (start and end along each axis)."""
    out = _empty(tuple(end - start for start, end in bounds), dtype)
    if not entry.stacked:
        _fill(out, entry, bounds, shape, stored[entry.names[0]])
        return out
    for row, name in zip(out, entry.names[slice(*bounds[0])], strict=True):
        _fill(row, entry, bounds[1:], shape[1:], stored[name])
    return out


def _fill(
    out: np.ndarray,
    entry: hf_names.Entry,
    bounds: tuple[tuple[int, int], ...],
    shape: tuple[int, ...],
    where: tuple[Path, str],
) -> None:
    """Read one tensor's part into `out`, some of the tensor's rows at a time."""
    if entry.turned:
        out, bounds, shape = out.T, bounds[::-1], shape[::-1]
    file, name = where
    start, end = bounds[0]
    inner = tuple(slice(*bound) for bound in bounds[1:])
    # Same axes there: only what is asked for is read. Else whole rows, and reshaped.
    alike = len(entry.shape) == len(shape)
    wide = math.prod(b - a for a, b in bounds[1:]) if alike else math.prod(shape[1:])
    rows = max(1, BLOCK_BYTES // (4 * max(1, wide)))
    for first in range(start, end, rows):
        last = min(first + rows, end)
        with safe_open(file, "np") as opened:
            tensor = opened.get_slice(name)
            if alike:
                block = tensor[(slice(first, last), *inner)]
            else:
                block = tensor[first:last].reshape(last - first, *shape[1:])
                block = block[(slice(None), *inner)]
        out[first - start : last - start] = block


def _plan(
    params: PyTree, config: ModelConfig, itemsize: int, shard_bytes: int
) -> dict[str, list[tuple]]:
    """By file, (name, parameter, entry, row of its leading axis or None) of its tensors."""
    flat = hf_names.named(params)
    table = hf_names.entries(config, {path: leaf.shape for path, leaf in flat.items()})
    shards, room = [[]], shard_bytes
    for path, entry in table.items():
        size = math.prod(entry.shape) * itemsize
        for g, name in enumerate(entry.names):
            if size > room and shards[-1]:
                shards.append([])
                room = shard_bytes
            room -= size
            row = g if entry.stacked else None
            shards[-1].append((hf_names.old(name), flat[path], entry, row))
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": s for i, s in enumerate(shards, 1)}


def _there(leaf: Any, entry: hf_names.Entry, row: int | None, dtype: str) -> np.ndarray:
    """One tensor as the files hold it, on the host."""
    array = leaf if row is None else leaf[row]
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    array = np.asarray(array)
    if entry.turned:
        array = array.T
    return np.ascontiguousarray(array.reshape(entry.shape), DTYPES[dtype])

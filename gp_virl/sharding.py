"""The mesh, and which mesh axis each logical axis of a weight or an activation lies on."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

AXES = ("data", "fsdp", "tensor")

# Activations carry "batch" and one of the widths below; their other axes stay whole.
_WIDTHS = (("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor"))
_WHOLE = (("layers", None), ("head_dim", None))

# Training: every weight is also cut along its model width ("embed"), so that parameters and
# moments take 1/fsdp of the memory; one all-gather per layer is hidden behind its matmuls.
TRAINING = (("batch", ("data", "fsdp")), ("embed", "fsdp"), *_WIDTHS, *_WHOLE)
# Rollout: decoding reads every weight once per token, and gathering them over fsdp each time
# would cost more than the matmuls; weights are cut by `tensor` only.
ROLLOUT = (("batch", ("data", "fsdp")), ("embed", None), *_WIDTHS, *_WHOLE)


def mesh_of(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with axes (data, fsdp, tensor) over the first data * fsdp * tensor devices.

    Devices are those of all processes unless given. Of several TPU slices, or machines with GPUs,
    each takes its share of `data` where that divides, so that only gradients cross the slower
    network between them. Raises ValueError when a size is below 1, there are fewer devices, or
    `data` is no multiple of the TPU slices.
    """
    sizes = (data, fsdp, tensor)
    named = dict(zip(AXES, sizes, strict=True))
    if min(sizes) < 1:
        raise ValueError(f"mesh sizes {named}: each must be at least 1")
    needed, devices = int(np.prod(sizes)), devices or jax.devices()
    if needed > len(devices):
        raise ValueError(
            f"mesh {named} needs {needed} devices, {len(devices)} are here; "
            "make the product of the three sizes at most that"
        )
    devices, types = devices[:needed], (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    if data % slices == 0:
        laid = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        raise ValueError(
            f"mesh {named} lies on {slices} slices; make data a multiple of {slices}, as only "
            "copies of the model should lie on different slices"
        )
    else:
        # Machines are slices to JAX; a fast network may well join several to one copy of a model.
        laid = np.array(sorted(devices, key=lambda device: device.id)).reshape(sizes)
    return Mesh(laid, AXES, axis_types=types)


def spec(*names: str | None, rules: tuple = TRAINING) -> PartitionSpec:
    """PartitionSpec of an array whose axes have these logical names; None is a whole axis.

    Raises KeyError for a name without a rule.
    """
    table = dict(rules)
    unknown = [name for name in names if name is not None and name not in table]
    if unknown:
        raise KeyError(f"logical axes {unknown} have no rule; known: {sorted(table)}")
    return PartitionSpec(*[None if name is None else table[name] for name in names])


def constrain(x: Array, *names: str | None, rules: tuple = TRAINING) -> Array:
    """`x`, told to lie on the current mesh by the logical names of its axes; `x` without a mesh.

    An axis whose length the mesh axes don't divide stays whole. Activation axes lie alike under
    both rule sets.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting(spec(*names, rules=rules), x.shape, mesh))


def fitting(
    spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | jax.sharding.AbstractMesh
) -> PartitionSpec:
    """`spec` without the axes of `shape` that the mesh axes named for them don't divide."""

    def cut(names: str | tuple[str, ...] | None, length: int) -> bool:
        names = (names,) if isinstance(names, str) else names or ()
        return length % math.prod(mesh.shape[name] for name in names) == 0

    pairs = zip(spec, shape, strict=False)
    return PartitionSpec(*[names if cut(names, length) else None for names, length in pairs])


def placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """The shape and dtype of `leaf`, laid out so."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def whole(mesh: Mesh) -> NamedSharding:
    """The layout of what every device holds a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(tree: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """For each array of `tree` the layout that spreads its axis number `axis` as a batch.

    Arrays without that axis, or whose axis the devices don't divide, are whole.
    """

    def layout(leaf: Any) -> NamedSharding:
        if leaf.ndim <= axis:
            return whole(mesh)
        return NamedSharding(mesh, fitting(spec(*[None] * axis, "batch"), leaf.shape, mesh))

    return jax.tree.map(layout, tree)

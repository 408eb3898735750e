"""The mesh, and which mesh axis each logical axis of a weight or an activation lies on."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array

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


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh with axes (data, fsdp, tensor) over the first data * fsdp * tensor devices.

    Raises ValueError when a size is below 1 or there are fewer devices.
    """
    sizes = (data, fsdp, tensor)
    named = dict(zip(AXES, sizes, strict=True))
    if min(sizes) < 1:
        raise ValueError(f"mesh sizes {named}: each must be at least 1")
    needed, devices = int(np.prod(sizes)), jax.devices()
    if needed > len(devices):
        raise ValueError(
            f"mesh {named} needs {needed} devices, {len(devices)} are here; "
            "make the product of the three sizes at most that"
        )
    return jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed]
    )


def spec(*names: str | None, rules: tuple = TRAINING) -> PartitionSpec:
    """PartitionSpec of an array whose axes have these logical names; None is a whole axis.

    Raises KeyError for a name without a rule.
    """
    table = dict(rules)
    unknown = [name for name in names if name is not None and name not in table]
    if unknown:
        raise KeyError(f"logical axes {unknown} have no rule; known: {sorted(table)}")
    return PartitionSpec(*[None if name is None else table[name] for name in names])


def constrain(x: Array, *names: str | None) -> Array:
    """`x`, told to lie on the current mesh by the logical names of its axes; `x` without a mesh.

    Activation axes lie alike under both rule sets, so no rules are asked for.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names))

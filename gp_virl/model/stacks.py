"""Layers stacked along a leading axis, to be scanned over."""

from typing import Any

import jax
from flax import nnx


def stack(count: int, make: Any, rngs: nnx.Rngs) -> nnx.Module:
    """`count` copies of make(rngs), differently initialised, stacked along a leading "layers"."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(
        in_axes=(0,),
        out_axes=0,
        axis_size=count,
        # Without it the layer axis would silently take the first weight axis's place on the mesh.
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    def build(rngs):
        return make(rngs)

    return build(rngs)


def recomputed(layer: nnx.Module, *inputs: Any) -> Any:
    """layer(*inputs), whose activations are recomputed in the backward pass instead of kept."""
    graph, weights = nnx.split(layer)
    call = jax.checkpoint(
        lambda weights, *inputs: nnx.merge(graph, weights)(*inputs), prevent_cse=False
    )
    return call(weights, *inputs)

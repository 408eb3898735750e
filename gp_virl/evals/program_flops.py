"""FLOPs of a traced program, counted product by product from the shapes in its jaxpr.

A multiply-add is two FLOPs. Only `dot_general` and `conv_general_dilated` count; what is done
element by element does not. XLA's own cost analysis counts the body of a loop once, however often
it runs, and knows nothing of kernels, so that it can't be used for programs that scan over layers.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

# Primitives whose work is not written in jaxpr; the second are cuDNN's attention.
OPAQUE = ("ffi_call", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")
Kernels = Callable[[JaxprEqn], int | None]


@dataclasses.dataclass(frozen=True)
class Count:
    """What a program does, on all devices together."""

    fixed: int = 0  # FLOPs outside of loops of unknown length
    loops: tuple["Loop", ...] = ()  # those of unknown length with products in them, in order
    kernels: tuple[str, ...] = ()  # Pallas kernels: their whole grid counts, skipped blocks too
    uncounted: tuple[str, ...] = ()  # calls out of the program whose work isn't known

    def total(self, trips: int | Sequence[int] = 1) -> int:
        """FLOPs with that many trips of every loop of unknown length, or of each in order.

        The order is that of the program's text, an outer loop before those in its body; each
        number is of one run of that loop. Raises ValueError when there aren't as many numbers as
        loops.
        """
        if isinstance(trips, int):
            return self._total(iter([trips] * self.depth))
        if len(trips) != self.depth:
            raise ValueError(
                f"trips of {len(trips)} loops are given, the program has {self.depth} of unknown "
                "length: give one number for each, or a single one for all"
            )
        return self._total(iter(trips))

    @property
    def depth(self) -> int:
        """Loops of unknown length, those in bodies of others included."""
        return sum(1 + loop.body.depth for loop in self.loops)

    def _total(self, trips: Iterator[int]) -> int:
        return self.fixed + sum(
            loop.runs * next(trips) * loop.body._total(trips) for loop in self.loops
        )

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.fixed + other.fixed,
            self.loops + other.loops,
            self.kernels + other.kernels,
            self.uncounted + other.uncounted,
        )

    def repeated(self, times: int) -> "Count":
        """The same, done that often."""
        loops = tuple(dataclasses.replace(loop, runs=loop.runs * times) for loop in self.loops)
        return dataclasses.replace(self, fixed=self.fixed * times, loops=loops)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop whose number of trips the program computes."""

    runs: int  # how often the program comes to it
    body: Count  # of one trip


def program_flops(jaxpr: ClosedJaxpr, kernels: Kernels | None = None) -> Count:
    """What the program does, less what no result needs, which XLA leaves out as well.

    Scans count as often as they run, of a conditional the dearest branch, and a `shard_map` once
    for each device that it maps over. Common subexpressions count each time they are written.
    `kernels` tells the FLOPs of an equation that calls a kernel, or None to have a Pallas kernel
    counted as its body times its grid, and any other one reported.
    """
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _counted(used, kernels)


def _counted(jaxpr: Jaxpr, kernels: Kernels | None) -> Count:
    return sum((_of_equation(eqn, kernels) for eqn in jaxpr.eqns), Count())


def _of_equation(eqn: JaxprEqn, kernels: Kernels | None) -> Count:
    name = eqn.primitive.name
    if name == "dot_general":
        return Count(_dot_flops(eqn))
    if name == "conv_general_dilated":
        return Count(_convolution_flops(eqn))
    if name == "pallas_call" or name in OPAQUE:
        known = kernels(eqn) if kernels else None
        if known is not None:
            return Count(known)
        return _of_kernel(eqn) if name == "pallas_call" else Count(uncounted=(name,))
    inner = [_counted(part, kernels) for part in jaxprs_in_params(eqn.params)]
    if name == "cond":
        return max(inner, key=lambda count: count.total())
    whole = sum(inner, Count())
    if name == "while":
        loops = (Loop(1, whole),) if whole.total() else ()
        return dataclasses.replace(whole, fixed=0, loops=loops)
    return whole.repeated(_times(eqn))


def _times(eqn: JaxprEqn) -> int:
    """How often the jaxprs of an equation run each time it does."""
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":
        mesh = eqn.params["mesh"]
        return math.prod(mesh.shape[axis] for axis in eqn.params["newly_manual_axes"])
    return 1


def _dot_flops(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(eqn: JaxprEqn) -> int:
    """Products with padding and with the zeros between dilated entries count as well."""
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // outputs


def _of_kernel(eqn: JaxprEqn) -> Count:
    grid: tuple[Any, ...] = eqn.params["grid_mapping"].grid
    name = str(eqn.params.get("name"))
    if not all(isinstance(size, int) for size in grid):
        return Count(uncounted=(name,))
    body = _counted(eqn.params["jaxpr"], None).repeated(math.prod(grid))
    return dataclasses.replace(body, kernels=(name, *body.kernels))

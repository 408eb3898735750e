"""The checker of annotations in tests: beartype, where an int passes for a float (PEP 484).

Trees of shapes, or of places on a mesh, hold those where others of their kind hold arrays.
"""

import functools
from collections.abc import Callable

import jax
from beartype import BeartypeConf, beartype

STAND_INS = (jax.ShapeDtypeStruct, jax.sharding.Sharding)
strict = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """`function`, whose arguments are checked unless one of them stands in for an array."""
    careful = strict(function)
    if not isinstance(function, type(checked)):
        return careful

    @functools.wraps(function)
    def call(*args, **named):
        given = (*args, *named.values())
        return (function if any(isinstance(x, STAND_INS) for x in given) else careful)(
            *args, **named
        )

    return call

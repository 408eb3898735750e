"""The counter against programs small enough to count by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gp_virl.evals.program_flops import program_flops

X, W = jnp.ones((4, 8)), jnp.ones((8, 16))
SQUARES = jnp.ones((5, 8, 8))


def count(fun, *arrays, kernels=None):
    return program_flops(jax.make_jaxpr(fun)(*arrays), kernels)


def test_products_by_hand() -> None:
    assert count(jnp.matmul, X, W).total() == 2 * 4 * 8 * 16
    batched = count(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), *[jnp.ones((2, 3, 5, 7))] * 2)
    assert batched.total() == 2 * 2 * 3 * 5 * 5 * 7
    assert count(lambda a, b: jnp.einsum("ij,ij->", a, b), X, X).total() == 2 * 4 * 8
    assert count(lambda a: jnp.tanh(a) * a + a.sum(), X).total() == 0


@pytest.mark.parametrize(("groups", "batches", "inputs"), [(1, 1, 6), (3, 1, 2), (1, 2, 6)])
def test_convolutions_by_hand(groups: int, batches: int, inputs: int) -> None:
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", feature_group_count=groups, batch_group_count=batches
        )

    done = count(convolve, jnp.ones((2, 6, 10, 10)), jnp.ones((12, inputs, 3, 3)))
    assert done.total() == 2 * (2 // batches * 12 * 8 * 8) * (inputs * 3 * 3)


def test_jit_vmap_and_scan_multiply() -> None:
    def through(x, squares):
        return jax.lax.scan(lambda x, w: (jax.jit(jnp.matmul)(x, w), None), x, squares)[0]

    assert count(through, X, SQUARES).total() == 5 * 2 * 4 * 8 * 8
    many = jax.vmap(through, in_axes=(0, None))
    assert count(many, jnp.ones((3, 4, 8)), SQUARES).total() == 3 * 5 * 2 * 4 * 8 * 8
    nested = count(lambda x, s: jax.lax.fori_loop(0, 7, lambda i, x: through(x, s), x), X, SQUARES)
    assert nested.total() == 7 * 5 * 2 * 4 * 8 * 8


@pytest.mark.parametrize(("remat", "times"), [(False, 3 * 2), (True, 3 * 2 + 1)])
def test_gradients_of_a_scan(remat: bool, times: int) -> None:
    """Of two products a layer, recomputation needs the first one only."""

    def layer(x, w):
        return jnp.tanh(x @ w) @ w.T

    if remat:
        layer = jax.checkpoint(layer, prevent_cse=False)

    def loss(x, squares):
        return jax.lax.scan(lambda x, w: (layer(x, w), None), x, squares)[0].sum()

    product = 2 * 4 * 8 * 8
    assert count(jax.grad(loss, argnums=(0, 1)), X, SQUARES).total() == 5 * times * product
    assert count(loss, X, SQUARES).total() == 5 * 2 * product


def test_what_no_result_needs_is_left_out() -> None:
    assert count(lambda x, w: (x @ w, x.sum())[1], X, W).total() == 0
    assert count(jax.grad(lambda x, w: (x @ w).sum()), X, W).total() == 2 * 4 * 8 * 16


def test_the_dearest_branch_counts() -> None:
    def either(flag, x, w):
        return jax.lax.cond(flag, lambda: x @ w, lambda: jnp.tanh(x @ w @ w.T) @ w)

    assert count(either, True, X, W).total() == 3 * 2 * 4 * 8 * 16


def test_loops_of_unknown_length() -> None:
    def program(n, m, x, squares):
        def inner(i, x):
            return x @ squares[0]

        def outer(i, x):
            return jax.lax.fori_loop(0, m, inner, x @ squares[1])

        x = jax.lax.scan(lambda x, w: (jax.lax.fori_loop(0, n, outer, x), None), x, squares)[0]
        x = jax.lax.fori_loop(0, n, lambda i, x: x + 1, x)  # no product, no number to be given
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: inner(0, x), x @ squares[2])

    done, product = count(program, 3, 4, X, SQUARES), 2 * 4 * 8 * 8
    assert done.depth == 3 and done.fixed == product
    assert done.total() == (1 + 5 * (1 + 1) + 1) * product
    assert done.total(2) == (1 + 5 * 2 * (1 + 2) + 2) * product
    assert done.total((3, 4, 6)) == (1 + 5 * 3 * (1 + 4) + 6) * product
    with pytest.raises(ValueError, match="trips of 2 loops are given, the program has 3"):
        done.total((3, 4))


def test_custom_derivatives() -> None:
    @jax.custom_vjp
    def times(x, w):
        return x @ w

    # a backward pass with one product more than it needs
    times.defvjp(
        lambda x, w: (times(x, w), (x, w)), lambda kept, g: (g @ kept[1].T @ W @ W.T, kept[0].T @ g)
    )
    product = 2 * 4 * 8 * 16
    assert count(times, X, W).total() == product
    gradient = jax.grad(lambda x, w: (times(x, w) ** 2).sum(), argnums=(0, 1))
    assert count(gradient, X, W).total() == 5 * product

    @jax.custom_jvp
    def softly(x):
        return x @ W

    softly.defjvp(lambda x, t: (softly(*x), t[0] @ W))
    assert count(jax.jit(softly), X).total() == product


def test_a_shard_map_counts_on_every_device() -> None:
    mesh = Mesh(jax.devices()[:1], ("x",), axis_types=(AxisType.Auto,))
    wide = jax.sharding.AbstractMesh((2, 3), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    for over, devices in ((mesh, 1), (wide, 2 * 3)):
        cut = jax.shard_map(jnp.matmul, mesh=over, in_specs=(P("x"), P()), out_specs=P("x"))
        shards = over.shape["x"]
        work = 2 * (4 // shards) * 8 * 16
        assert count(cut, X, W).total() == devices * work


def block_product(a, b, out):
    @pl.when(pl.program_id(0) > 0)
    def _():
        out[...] = a[...] @ b[...]


def blocked(a, b):
    return pl.pallas_call(
        block_product,
        out_shape=jax.ShapeDtypeStruct((16, 8), jnp.float32),
        grid=(4,),
        in_specs=[
            pl.BlockSpec((4, 8), lambda i: (i, 0)),
            pl.BlockSpec((8, 8), lambda i: (0, 0)),
        ],
        out_specs=pl.BlockSpec((4, 8), lambda i: (i, 0)),
        name="block_product",
    )(a, b)


def test_kernels_count_with_their_whole_grid_or_as_told() -> None:
    arrays = jnp.ones((16, 8)), jnp.ones((8, 8))
    done = count(blocked, *arrays)
    assert done.total() == 2 * 16 * 8 * 8 and done.kernels == ("block_product",)
    assert not done.uncounted
    told = count(blocked, *arrays, kernels=lambda eqn: 2 * 12 * 8 * 8)
    assert told.total() == 2 * 12 * 8 * 8 and not told.kernels
    twice = count(lambda a, b: jax.lax.fori_loop(0, 2, lambda i, a: blocked(a, b), a), *arrays)
    assert twice.total() == 2 * done.total()


def test_calls_out_of_the_program_are_reported() -> None:
    call = jax.ffi.ffi_call("somewhere", jax.ShapeDtypeStruct((4, 8), jnp.float32))
    done = count(lambda x, w: call(x) @ w, X, W)
    assert done.total() == 2 * 4 * 8 * 16 and done.uncounted == ("ffi_call",)

    def repeated(n, x):
        return jax.lax.fori_loop(0, n, lambda i, x: call(x), x)

    inside = count(repeated, 3, X)
    assert inside.uncounted == ("ffi_call",) and not inside.loops
    known = count(repeated, 3, X, kernels=functools.partial(lambda flops, eqn: flops, 10))
    assert known.total(3) == 30

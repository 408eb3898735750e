"""Optimizer state in bfloat16, and where the state of training lies on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import gp_l
from gp_virl.config import build
from gp_virl.sharding import mesh_of
from gp_virl.train.state import abstract, create, in_bfloat16, optimizer, rounded_at_random

STUDY = build(gp_l.get_config("tiny"))
RUNS = pytest.mark.parametrize("run", [STUDY.sft, STUDY.ppo], ids=["sft", "ppo"])


def made() -> dict[str, dict[str, jax.Array]]:
    """Parameters with the value head's apart."""
    keys = jax.random.split(jax.random.key(0))
    return {
        "model": {"kernel": jax.random.normal(keys[0], (8, 4))},
        "value_head": {"kernel": jax.random.normal(keys[1], (4, 1))},
    }


def test_rounding_is_to_a_neighbour_and_right_on_average() -> None:
    values = jnp.array([1.0, 1.002, -3.01, 1e-30, 0.0, 65_000.3], jnp.float32)
    keys = jax.random.split(jax.random.key(1), 4_000)
    drawn = jax.vmap(lambda key: rounded_at_random(values, key))(keys).astype(jnp.float32)
    drawn = np.asarray(drawn, np.float64)
    step = np.abs(np.asarray(values, np.float64)) * 2.0**-7  # of bfloat16, at most
    assert (np.abs(drawn - np.asarray(values)) <= step).all()
    assert all(len(np.unique(column)) <= 2 for column in drawn.T)
    error = drawn.mean(0) - np.asarray(values, np.float64)
    assert (np.abs(error) <= 5 * step / np.sqrt(len(keys)) + 1e-38).all()
    assert (drawn[:, 0] == 1).all() and (drawn[:, 4] == 0).all()  # exact ones stay


def test_what_is_not_finite_stays_so() -> None:
    values = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 3.4e38])
    got = np.asarray(rounded_at_random(values, jax.random.key(2)).astype(jnp.float32))
    assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2]) and got[3] > 3e38


def test_a_second_moment_follows_where_rounding_to_nearest_stands_still() -> None:
    rule = in_bfloat16(optax.scale_by_adam(b1=0.9, b2=0.999))
    params = {"w": jnp.zeros(512)}
    steps = 1_000

    def step(state, _):
        return rule.update({"w": jnp.ones(512)}, state, params)[1], None

    state = jax.jit(lambda: jax.lax.scan(step, rule.init(params), length=steps)[0])()
    moment = np.asarray(state[0].nu["w"], np.float32)
    want = 1 - 0.999**steps
    assert moment.mean() == pytest.approx(want, rel=0.02)

    def to_nearest(_, kept):
        return (0.999 * kept.astype(jnp.float32) + 0.001).astype(jnp.bfloat16)

    stuck = jax.lax.fori_loop(0, steps, to_nearest, jnp.zeros((), jnp.bfloat16))
    assert float(stuck) == 0.25 < 0.5 * want  # there 0.00075 is less than half a step


@RUNS
def test_moments_take_half_the_bytes_and_masters_stay_float32(run) -> None:
    params = made()
    narrow = optimizer(dataclasses.replace(run, moments="bfloat16"), 5)
    sizes = [
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rule.init(params)) if x.ndim)
        for rule in (optimizer(run, 5), narrow)
    ]
    assert sizes[0] == 2 * sizes[1] == 2 * 4 * (32 + 4)
    state = create(params, narrow)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = narrow.update(grads, state.opt_state, params)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_training_with_narrow_moments_ends_where_wide_ones_do() -> None:
    target = jax.random.normal(jax.random.key(3), (64,))

    def trained(moments: str) -> jax.Array:
        run = dataclasses.replace(
            STUDY.sft, moments=moments, learning_rate=0.02, warmup=0, weight_decay=0.0
        )
        rule = optimizer(run, 200)
        params = {"w": jnp.zeros(64)}

        def step(carry, _):
            params, state = carry
            grads = {"w": params["w"] - target}
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda: jax.lax.scan(step, (params, rule.init(params)), length=200)[0][0])()

    wide, narrow = trained("float32")["w"], trained("bfloat16")["w"]
    start = float(jnp.abs(target).mean())
    assert float(jnp.abs(wide - narrow).mean()) < 0.02 * start
    assert not bool((wide == narrow).all())


@RUNS
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_the_abstract_state_is_the_real_one_and_moments_lie_as_parameters(run, moments) -> None:
    mesh = mesh_of()
    rule = optimizer(dataclasses.replace(run, moments=moments), 5)
    layout = {
        "model": {"kernel": NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))},
        "value_head": {"kernel": NamedSharding(mesh, PartitionSpec(None, "tensor"))},
    }
    shapes = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), made(), layout
    )
    told, real = abstract(shapes, rule, mesh), create(made(), rule)
    assert jax.tree.structure(told) == jax.tree.structure(real)
    for shape, leaf in zip(jax.tree.leaves(told), jax.tree.leaves(real), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
        wanted = {(8, 4): ("fsdp", "tensor"), (4, 1): (None, "tensor"), (): ()}[leaf.shape]
        assert tuple(shape.sharding.spec) == wanted

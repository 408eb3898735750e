"""The state of training, and optimizers from the configuration."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, BFloat16, Float, Int, Key, PyTree

from gp_virl.config import FROZEN, PpoConfig, SftConfig
from gp_virl.sharding import placed, whole

VALUE_HEAD = "value_head"  # the parameters' top-level key


@struct.dataclass
class TrainState:
    """Parameters (float32 masters), optimizer state and the number of updates done."""

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


def create(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0 that owns a copy of `params`: updates may donate it."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def abstract(params: PyTree, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """What `create` returns, without memory, and where on the mesh each array of it lies.

    `params` are ShapeDtypeStructs with shardings; moments lie where their parameters do.
    """

    layouts = {
        path: leaf.sharding for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }

    def lain(path, leaf):
        # A moment's path ends with its parameter's.
        ends = [layouts[path[i:]] for i in range(len(path)) if path[i:] in layouts]
        return placed(leaf, (*ends, whole(mesh))[0])

    state = jax.eval_shape(lambda p: create(p, optimizer), params)
    return jax.tree_util.tree_map_with_path(lain, state)


def schedule(run: SftConfig | PpoConfig, steps: int, peak: float | None = None) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant, linear or cosine to `final_share`.

    `peak` is the run's learning rate unless given.
    """
    peak, left = peak or run.learning_rate, max(1, steps - run.warmup)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * run.final_share, left),
        "cosine": lambda: optax.cosine_decay_schedule(peak, left, run.final_share),
    }[run.schedule]()
    if not run.warmup:
        return after
    rise = optax.linear_schedule(peak / run.warmup, peak, run.warmup)
    return optax.join_schedules([rise, after], [run.warmup])


def optimizer(run: SftConfig | PpoConfig, steps: int) -> optax.GradientTransformation:
    """AdamW under global-norm clipping; frozen parts have no moments and never change.

    PPO has no weight decay, and clips and steps the value head apart from the policy.
    """

    def adam(peak: float, decay: float) -> optax.GradientTransformation:
        rate = schedule(run, steps, peak)
        rule = optax.adamw(rate, b2=run.beta2, eps=1e-6, weight_decay=decay)
        if run.moments == "bfloat16":
            rule = in_bfloat16(rule)
        return optax.chain(optax.clip_by_global_norm(run.clip_norm), rule)

    if isinstance(run, SftConfig):
        rule = adam(run.learning_rate, run.weight_decay)
    else:
        parts = {
            "policy": adam(run.learning_rate, 0.0),
            "value": adam(run.value_learning_rate, 0.0),
        }
        rule = optax.partition(parts, value_or_policy)
    if not FROZEN[run.frozen]:
        return rule
    parts = {"trained": rule, "frozen": optax.set_to_zero()}
    return optax.partition(
        parts, lambda params: _labelled(params, FROZEN[run.frozen], "frozen", "trained")
    )


def in_bfloat16(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """`rule` with its float32 state kept in bfloat16, rounded up or down at random.

    A moment moves by a hundredth of itself or less, where bfloat16 has steps of up to 1/128:
    rounded to the nearest it would stand still. At random it is right on average.
    """

    def init(params: PyTree) -> tuple[PyTree, Int[Array, ""]]:
        kept = jax.tree.map(lambda x: x.astype(_narrow(x.dtype)), rule.init(params))
        return kept, jnp.zeros((), jnp.int32)

    def update(grads: PyTree, state: tuple, params: PyTree | None = None) -> tuple[PyTree, tuple]:
        kept, count = state
        wide = jax.tree.map(lambda x: x.astype(_wide(x.dtype)), kept)
        updates, wide = rule.update(grads, wide, params)
        leaves, tree = jax.tree.flatten(wide)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), count), len(leaves))
        rounded = [
            rounded_at_random(x, key) if _narrow(x.dtype) != x.dtype else x
            for x, key in zip(leaves, keys, strict=True)
        ]
        return updates, (jax.tree.unflatten(tree, rounded), count + 1)

    return optax.GradientTransformation(init, update)


def rounded_at_random(x: Float[Array, "*a"], key: Key[Array, ""]) -> BFloat16[Array, "*a"]:
    """float32 `x` in bfloat16: one of its two neighbours, the nearer the likelier."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def _narrow(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.bfloat16) if dtype == jnp.float32 else dtype


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float32) if dtype == jnp.bfloat16 else dtype


def value_or_policy(params: PyTree) -> PyTree:
    """For each leaf 'value' or 'policy': whether it belongs to the value head."""
    return _labelled(params, (VALUE_HEAD,), "value", "policy")


def held(params: PyTree, frozen: str) -> PyTree:
    """`params`, those that FROZEN[frozen] names cut off from gradients, which then cost nothing."""
    labels = _labelled(params, FROZEN[frozen], True, False)
    return jax.tree.map(lambda x, cut: jax.lax.stop_gradient(x) if cut else x, params, labels)


def _labelled(params: PyTree, keys: tuple[str, ...], yes: Any, no: Any) -> PyTree:
    """For each leaf `yes` if its top-level key is among `keys`, else `no`."""

    def label(path, _):
        return yes if jax.tree_util.keystr(path[:1], simple=True) in keys else no

    return jax.tree_util.tree_map_with_path(label, params)


def apply_gradients(
    state: TrainState, grads: PyTree, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Float[Array, ""]]:
    """The next state and the gradients' global norm before clipping."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1), optax.tree.norm(grads)

"""PPO over turns: one reply is one action (paper, section 3; Schulman et al. 2017)."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key, PyTree

from gp_virl.config import PpoConfig
from gp_virl.envs.api import Task
from gp_virl.model.decoder import Cross
from gp_virl.model.mllama import laid
from gp_virl.rollout.episodes import Rollout
from gp_virl.sharding import constrain
from gp_virl.train.gae import gae, normalised
from gp_virl.train.logp import token_logp
from gp_virl.train.rows import Rows, pack
from gp_virl.train.state import TrainState, apply_gradients, held, value_or_policy


@struct.dataclass
class Sums:
    """Sums over the live turns (or reply tokens) of some rows, of m minibatches in a scan."""

    policy: Float[Array, "*m"]
    value: Float[Array, "*m"]
    entropy: Float[Array, "*m"]  # of reply tokens, nats
    kl_init: Float[Array, "*m"]  # of reply tokens, estimator k3 against the initial policy
    kl_old: Float[Array, "*m"]  # of actions, estimator k3 against the sampling policy
    clipped: Float[Array, "*m"]  # actions whose ratio left the clip range
    gap: Float[Array, "*m"]  # largest |log p - log p when sampled| of a reply token


def policy_loss(
    logp: Float[Array, "*n"],
    old_logp: Float[Array, "*n"],
    advantage: Float[Array, "*n"],
    clip: float,
) -> Float[Array, "*n"]:
    """-min(r A, clip(r, 1-c, 1+c) A) of each action (Schulman et al. 2017, eq. 7)."""
    ratio = jnp.exp(logp - old_logp)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_loss(
    value: Float[Array, "*n"],
    old_value: Float[Array, "*n"],
    target: Float[Array, "*n"],
    clip: float,
) -> Float[Array, "*n"]:
    """Half the larger of the squared errors of the value and of its clipped move."""
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2)


def kl_estimate(logp: Float[Array, "*n"], other: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Non-negative unbiased estimate of KL(p || other) at samples of p (k3, Schulman 2020)."""
    return jnp.expm1(other - logp) - (other - logp)


def sight(model, task: Task | None, rows: Rows) -> Cross | None:
    """What the rows look at, drawn from their scenes; None without images."""
    if rows.image_segments is None:
        return None
    images = jax.vmap(jax.vmap(task.picture))(rows.scene)
    return model.glance(rows.tokens, rows.segments, images, rows.image_segments)


def reply_logp(
    model,
    task: Task | None,
    rows: Rows,
    temperature: Float[Array, ""],
    value_shapes_decoder: bool = True,
) -> tuple[Float[Array, "N S"], Float[Array, "N S"], Float[Array, "N K"]]:
    """Log-probability and entropy at reply tokens (0 elsewhere), and the value of each turn."""
    hidden = model.hidden(rows.tokens, rows.positions, rows.segments, sight(model, task, rows))
    scores = token_logp(
        hidden[:, :-1], model.lm_head.kernel[...], rows.tokens[:, 1:], rows.slot[:, 1:] >= 0,
        temperature,
    )  # fmt: skip
    logp, entropy = (jnp.pad(score, ((0, 0), (1, 0))) for score in scores)
    seen = hidden if value_shapes_decoder else jax.lax.stop_gradient(hidden)
    at_end = jnp.take_along_axis(seen, rows.prompt_end[..., None], axis=1)
    return logp, entropy, model.value(at_end)


def losses(
    graph: nnx.GraphDef,
    params: PyTree,
    task: Task | None,
    rows: Rows,
    init_logp: Float[Array, "N S"],
    temperature: Float[Array, ""],
    turns: Float[Array, ""],
    replied: Float[Array, ""],
    config: PpoConfig,
) -> tuple[Float[Array, ""], Sums]:
    """Loss of some rows of a minibatch with `turns` turns and `replied` reply tokens in all."""
    model = nnx.merge(graph, held(params, config.frozen))
    logp, entropy, value = reply_logp(model, task, rows, temperature, config.value_shapes_decoder)
    token = rows.slot >= 0
    of_turn = rows.slot[..., None] == jnp.arange(rows.live.shape[1])  # N S K
    if config.ratio_level == "turn":
        now = jnp.einsum("ns,nsk->nk", logp * rows.weight, of_turn.astype(jnp.float32))
        old = jnp.einsum("ns,nsk->nk", rows.logp * rows.weight, of_turn.astype(jnp.float32))
        action, advantage, actions = rows.live, rows.advantage, turns
    else:
        now, old = logp, rows.logp
        spread = jnp.einsum("nk,nsk->ns", rows.advantage, of_turn.astype(jnp.float32))
        action, advantage, actions = token, spread * rows.weight, replied
    policy = jnp.where(action, policy_loss(now, old, advantage, config.clip), 0.0).sum()
    errors = value_loss(value, rows.value, rows.target, config.value_clip)
    errors = jnp.where(rows.live, errors, 0.0).sum()
    kl_init = jnp.where(token, kl_estimate(logp, init_logp), 0.0).sum()
    total = (
        policy / actions
        + config.value_coef * errors / turns
        - config.entropy_coef * entropy.sum() / replied
        + config.kl_coef * kl_init / replied
    )
    left = jnp.abs(jnp.exp(now - old) - 1) > config.clip
    sums = Sums(
        policy=policy / actions,
        value=errors / turns,
        entropy=entropy.sum() / replied,
        kl_init=kl_init / replied,
        kl_old=jnp.where(action, kl_estimate(old, now), 0.0).sum() / actions,
        clipped=jnp.where(action & left, 1.0, 0.0).sum() / actions,
        gap=jnp.where(token, jnp.abs(logp - rows.logp), 0.0).max(),
    )
    return total, jax.lax.stop_gradient(sums)


def update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: PpoConfig,
    slots: int,
    task: Task | None,
    state: TrainState,
    init_params: PyTree,
    roll: Rollout,
    next_value: Float[Array, "R B"],
    key: Key[Array, ""],
    temperature: Float[Array, ""],
    policy_on: Float[Array, ""],
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """All epochs of one PPO update; `policy_on` 0 trains the value head alone.

    `task` is the one that was played, which draws its images again (None: there are none). Rows
    are packed once, shuffled every epoch and cut into minibatches; each minibatch sums its
    gradients over microbatches, as many as its rows need.
    """
    reward = roll.reward * config.reward_scale
    advantage = gae(
        reward, roll.value, next_value, roll.terminated, roll.truncated, config.discount, config.lam
    )
    target = advantage + roll.value
    rows = pack(roll, normalised(advantage), target, config.thought_coef, slots, config.pictures)
    size = config.microbatch
    rows = jax.tree.map(lambda a: _spread(_padded(a, size)), rows)
    compared = config.kl_coef > 0 or config.kl_logged
    init_logp = rows.logp  # finite, as 0 times infinity is not 0
    if compared:
        init_logp = _reference(graph, init_params, task, rows, temperature, size)

    def minibatch(state, parts):
        order, first, last = parts
        grads, sums = _gradients(
            graph, state.params, task, rows, init_logp, temperature, order, first, last, config
        )
        grads = _policy_scaled(grads, policy_on)
        state, norm = apply_gradients(state, grads, optimizer)
        return state, (sums, norm)

    orders, firsts, lasts = _minibatches(key, rows, config)
    state, (sums, norms) = jax.lax.scan(minibatch, state, (orders, firsts, lasts))
    metrics = {name: getattr(sums, name).mean() for name in Sums.__dataclass_fields__}
    if not compared:
        del metrics["kl_init"]
    metrics["gap"] = sums.gap[0]  # before any update of the policy that sampled
    explained = 1 - jnp.var(target - roll.value) / jnp.maximum(jnp.var(target), 1e-8)
    metrics |= {"grad_norm": norms.mean(), "explained_variance": explained}
    trained = (rows.segments > 0).sum() * config.epochs
    return state, metrics | {"tokens": trained.astype(jnp.float32), "rows": rows.count * 1.0}


def _padded(a, size: int):
    if a.ndim == 0:
        return a
    return jnp.pad(a, ((0, -a.shape[0] % size + size),) + ((0, 0),) * (a.ndim - 1))


def _spread(a):
    """Rows over all devices."""
    return constrain(a, *(["batch"] + [None] * (a.ndim - 1))[: a.ndim])


def _minibatches(key, rows: Rows, config: PpoConfig):
    """Row orders Int[E*M, N] and each minibatch's first and last place in its order."""
    total = rows.tokens.shape[0]
    used = jnp.arange(total) < rows.count

    def epoch(key):
        # empty rows go last
        return jnp.argsort(jnp.where(used, jax.random.uniform(key, (total,)), 2.0))

    orders = jax.vmap(epoch)(jax.random.split(key, config.epochs))
    parts = jnp.arange(config.minibatches + 1) * rows.count // config.minibatches
    return (
        jnp.repeat(orders, config.minibatches, axis=0),
        jnp.tile(parts[:-1], config.epochs),
        jnp.tile(parts[1:], config.epochs),
    )


def _taken(rows: Rows, order, start, stop, size: int) -> tuple[Rows, Int[Array, "Q"]]:
    """Rows order[start : start + size], emptied from place `stop` on."""
    at = jax.lax.dynamic_slice_in_dim(order, start, size)
    kept = start + jnp.arange(size) < stop
    part = jax.tree.map(lambda a: a if a.ndim == 0 else _spread(a[at]), rows)
    hide = kept[:, None]
    part = part.replace(
        slot=jnp.where(hide, part.slot, -1),
        live=part.live & hide,
        segments=jnp.where(hide, part.segments, 0),
    )
    return part, at


def _gradients(graph, params, task, rows, init_logp, temperature, order, first, last, config):
    size = config.microbatch
    place = jnp.arange(order.shape[0])
    inside = ((place >= first) & (place < last))[:, None]
    turns = jnp.maximum((rows.live[order] & inside).sum(), 1).astype(jnp.float32)
    replied = jnp.maximum(((rows.slot[order] >= 0) & inside).sum(), 1).astype(jnp.float32)
    zero = laid(jax.tree.map(jnp.zeros_like, params))
    sums = Sums(*[jnp.zeros(())] * len(Sums.__dataclass_fields__))

    def add(index, carry):
        grads, sums = carry
        part, at = _taken(rows, order, first + index * size, last, size)
        (_, more), new = jax.value_and_grad(losses, argnums=1, has_aux=True)(
            graph, params, task, part, init_logp[at], temperature, turns, replied, config
        )
        total = jax.tree.map(jnp.add, sums, more)
        return jax.tree.map(jnp.add, grads, laid(new)), total.replace(
            gap=jnp.maximum(sums.gap, more.gap)
        )

    return jax.lax.fori_loop(0, -(-(last - first) // size), add, (zero, sums))


def _reference(graph, init_params, task, rows, temperature, size: int):
    """Log-probabilities of the reply tokens under the initial policy."""
    order = jnp.arange(rows.tokens.shape[0])
    model = nnx.merge(graph, init_params)

    def fill(index, logp):
        part, _ = _taken(rows, order, index * size, rows.count, size)
        new = reply_logp(model, task, part, temperature)[0]
        return jax.lax.dynamic_update_slice_in_dim(logp, new, index * size, axis=0)

    zero = jnp.zeros(rows.tokens.shape)
    return jax.lax.fori_loop(0, -(-rows.count // size), fill, zero)


def _policy_scaled(grads: PyTree, policy_on: Float[Array, ""]) -> PyTree:
    labels = value_or_policy(grads)
    return jax.tree.map(lambda g, part: g if part == "value" else g * policy_on, grads, labels)

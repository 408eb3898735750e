"""The jitted updates against plainly written ones: Python loops, one conversation at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gp_virl.config import PpoConfig, SftConfig
from gp_virl.rollout.episodes import Rollout
from gp_virl.train import ppo, sft
from gp_virl.train.rows import pack
from gp_virl.train.state import create, optimizer, schedule
from tests.model.models import CONFIG, two_groups
from tests.train.test_rows import made_up_rollout

SIZE, SLOTS = 64, 8
PPO = PpoConfig(
    updates=3,
    epochs=1,
    minibatches=1,
    microbatch=4,
    learning_rate=1e-2,
    schedule="constant",
    warmup=0,
    final_share=0.0,
    beta2=0.99,
    clip_norm=1.0,
    value_warmup=0,
    clip=0.2,
    value_clip=0.1,
    value_coef=0.5,
    entropy_coef=0.01,
    kl_coef=0.1,
    kl_logged=True,
    discount=0.9,
    lam=0.95,
    ratio_level="turn",
    thought_coef=0.5,
    reward_scale=0.2,
)
HEAT = 0.8


@functools.partial(jax.jit, static_argnums=1)
def forward(params, temperature: float, tokens):
    """Log-probabilities Float[S V] and values Float[S] of one conversation."""
    model = nnx.merge(two_groups()[0], params)
    hidden = model.hidden(tokens[None], jnp.arange(tokens.shape[0])[None])[0]
    return jax.nn.log_softmax(model.logits(hidden) / temperature), model.value(hidden)


def other(params, scale: float, seed: int):
    """Parameters a little away from these."""
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    moved = [x + scale * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, moved)


@functools.cache
def roll() -> Rollout:
    """A made-up rollout, its numbers near those of a policy near the one that is trained."""
    made = made_up_rollout(2, turns=6, lanes=4, size=SIZE)
    tokens = np.asarray(made.tokens) % CONFIG.vocab_size
    logp, value = np.zeros(made.logp.shape, np.float32), np.array(made.value)
    sampler = other(two_groups()[1], 0.02, seed=5)
    for r, b in np.ndindex(value.shape):
        found, values = forward(sampler, HEAT, jnp.asarray(tokens[r, b]))
        at, n = int(made.prompt[r, b]), int(made.reply[r, b])
        places = np.arange(at, at + n)
        logp[r, b, :n] = found[places - 1, tokens[r, b, places]]
        value[r, b] = values[at - 1]
    return made.replace(
        tokens=jnp.asarray(tokens), logp=jnp.asarray(logp), value=jnp.asarray(value)
    )


def next_value(made: Rollout) -> jnp.ndarray:
    return jnp.concatenate([made.value[1:], jnp.full((1, made.value.shape[1]), 0.3)])


@functools.cache
def updated(config: PpoConfig, policy_on: float = 1.0, init_seed: int | None = 9):
    """(state after, metrics) of the update under test."""
    graph, params = two_groups()
    init = params if init_seed is None else other(params, 0.02, init_seed)
    rule = optimizer(config, config.updates)
    run = jax.jit(functools.partial(ppo.update, graph, rule, config, SLOTS))
    made = roll()
    return run(
        create(params, rule), init, made, next_value(made), jax.random.key(1),
        jnp.float32(HEAT), jnp.float32(policy_on),
    )  # fmt: skip


def plain_advantages(made: Rollout, config: PpoConfig) -> tuple[np.ndarray, np.ndarray]:
    """(normalised advantage, value target) of every turn, backwards in a loop."""
    after, found = np.asarray(next_value(made)), np.zeros(made.value.shape)
    for b in range(found.shape[1]):
        later = 0.0
        for r in reversed(range(found.shape[0])):
            over = bool(made.terminated[r, b]) or bool(made.truncated[r, b])
            ahead = 0.0 if made.terminated[r, b] else after[r, b]
            reward = float(made.reward[r, b]) * config.reward_scale
            surprise = reward + config.discount * ahead - float(made.value[r, b])
            later = surprise + (0.0 if over else config.discount * config.lam * later)
            found[r, b] = later
    normal = (found - found.mean()) / (found.std(ddof=1) + 1e-5)
    return normal, found + np.asarray(made.value)


def plain_loss(params, init, made: Rollout, config: PpoConfig):
    """The loss over all turns of the rollout, each from a forward pass of its own."""
    advantage, target = plain_advantages(made, config)
    policy, value, entropy, kl = [], [], [], []
    for r, b in np.ndindex(advantage.shape):
        at, n = int(made.prompt[r, b]), int(made.reply[r, b])
        logp, values = forward(params, HEAT, made.tokens[r, b])
        first, _ = forward(init, HEAT, made.tokens[r, b])
        now, old, weights = [], [], []
        for i in range(n):
            token = made.tokens[r, b, at + i]
            now.append(logp[at + i - 1, token])
            old.append(made.logp[r, b, i])
            weights.append(config.thought_coef if i < int(made.answer[r, b]) else 1.0)
            entropy.append(-(jnp.exp(logp[at + i - 1]) * logp[at + i - 1]).sum())
            log_ratio = first[at + i - 1, token] - now[-1]
            kl.append(jnp.exp(log_ratio) - 1 - log_ratio)
        if config.ratio_level == "turn":
            whole = sum(w * (a - o) for w, a, o in zip(weights, now, old, strict=True))
            actions = [(jnp.exp(whole), advantage[r, b])]
        else:
            actions = [
                (jnp.exp(a - o), w * advantage[r, b])
                for w, a, o in zip(weights, now, old, strict=True)
            ]
        for ratio, worth in actions:
            near = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
            policy.append(-jnp.minimum(ratio * worth, near * worth))
        guess, before = values[at - 1], made.value[r, b]
        near = before + jnp.clip(guess - before, -config.value_clip, config.value_clip)
        value.append(jnp.maximum((guess - target[r, b]) ** 2, (near - target[r, b]) ** 2) / 2)
    parts = {"policy": policy, "value": value, "entropy": entropy, "kl_init": kl}
    mean = {name: jnp.stack(numbers).mean() for name, numbers in parts.items()}
    total = mean["policy"] + config.value_coef * mean["value"]
    total += config.kl_coef * mean["kl_init"] - config.entropy_coef * mean["entropy"]
    return total, mean


def plain_step(params, grads, run) -> tuple:
    """(parameters after the first AdamW step with clipping, the gradients' norm)."""
    norm = float(np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(grads))))
    shrink = min(1.0, run.clip_norm / norm)
    decay = getattr(run, "weight_decay", 0.0)

    def move(p, g):
        g = np.asarray(g, np.float64) * shrink
        return p - run.learning_rate * (g / (np.abs(g) + 1e-6) + decay * np.asarray(p))

    return jax.tree.map(move, params, grads), norm


def gradients_of(state, config) -> list[np.ndarray]:
    """Clipped gradients, read from Adam's first moments after one step."""
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    return [np.asarray(m) / 0.1 for m in jax.tree.leaves(moments)]


@pytest.mark.parametrize("level", ["turn", "token"])
def test_ppo_update_equals_the_plain_one(level: str) -> None:
    config = dataclasses.replace(PPO, ratio_level=level)
    state, metrics = updated(config)
    params, made = two_groups()[1], roll()
    init = other(params, 0.02, seed=9)
    with jax.disable_jit(False):
        run = jax.jit(jax.value_and_grad(functools.partial(plain_loss, made=made, config=config), has_aux=True))
        (_, mean), grads = run(params, init)
    for name, number in mean.items():
        np.testing.assert_allclose(metrics[name], number, rtol=2e-4, atol=2e-6, err_msg=name)
    _, norm = plain_step(params, grads, config)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    shrink = min(1.0, config.clip_norm / norm)
    for got, want in zip(gradients_of(state, config), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(got, want * shrink, rtol=2e-3, atol=2e-6)

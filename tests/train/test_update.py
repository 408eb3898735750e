"""The jitted updates against plainly written ones: Python loops, one conversation at a time."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import gp_l
from gp_virl.config import PpoConfig, build
from gp_virl.rollout.episodes import Rollout
from gp_virl.train import ppo, sft
from gp_virl.train.rows import pack
from gp_virl.train.state import apply_gradients, create, optimizer, schedule
from tests.model.models import CONFIG, two_groups
from tests.train.test_rows import made_up_rollout

SIZE, SLOTS = 64, 4
STUDY = build(gp_l.get_config("tiny"))
PPO = dataclasses.replace(
    STUDY.ppo,
    updates=3,
    epochs=1,
    minibatches=1,
    microbatch=2,
    learning_rate=1e-2,
    schedule="constant",
    warmup=0,
    clip_norm=1.0,
    clip=0.2,
    value_clip=0.1,
    value_coef=0.5,
    value_shapes_decoder=True,
    entropy_coef=0.01,
    kl_coef=0.1,
    kl_logged=True,
    ratio_level="turn",
    thought_coef=0.5,
    reward_scale=0.2,
)
HEAT = 0.8


@functools.partial(jax.jit, static_argnames="shapes")
def forward(params, tokens, heat=HEAT, shapes: bool = True):
    """Log-probabilities Float[n S V] and values Float[n S] of n conversations, each a row."""
    model = nnx.merge(two_groups()[0], params)
    hidden = model.hidden(tokens, jnp.broadcast_to(jnp.arange(SIZE), tokens.shape))
    seen = hidden if shapes else jax.lax.stop_gradient(hidden)
    return jax.nn.log_softmax(model.logits(hidden) / heat), model.value(seen)


def other(params, scale: float, seed: int):
    """Parameters a little away from these."""
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(seed)
    moved = [x + scale * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, moved)


@functools.cache
def roll() -> Rollout:
    """A made-up rollout, its numbers near those of a policy near the one that is trained."""
    made = made_up_rollout(2, turns=4, lanes=5, size=SIZE)
    tokens = np.asarray(made.tokens) % CONFIG.vocab_size
    logp, value = np.zeros(made.logp.shape, np.float32), np.array(made.value)
    sampler = other(two_groups()[1], 0.02, seed=5)
    for r in range(len(value)):
        found, values = jax.device_get(forward(sampler, tokens[r]))
        for b in range(len(value[r])):
            at, n = int(made.prompt[r, b]), int(made.reply[r, b])
            places = np.arange(at, at + n)
            logp[r, b, :n] = found[b, places - 1, tokens[r, b, places]]
            value[r, b] = values[b, at - 1]
    return made.replace(
        tokens=jnp.asarray(tokens), logp=jnp.asarray(logp), value=jnp.asarray(value)
    )


@functools.cache
def noted() -> SimpleNamespace:
    """The same rollout as NumPy arrays, and the values of the contexts that follow its turns."""
    made = {name: np.asarray(x) for name, x in vars(roll()).items()}
    last = np.full((1, made["value"].shape[1]), 0.3, np.float32)
    return SimpleNamespace(**made, next_value=np.concatenate([made["value"][1:], last]))


def descent(rate: float) -> optax.GradientTransformation:
    """Plain gradient descent that keeps the last gradients as its state."""

    def update(grads, _, params=None):
        return jax.tree.map(lambda g: -rate * g, grads), grads

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


RULE = descent(0.05)


@functools.cache
def jitted(config: PpoConfig):
    return jax.jit(functools.partial(ppo.update, two_groups()[0], RULE, config, SLOTS))


def updated(config: PpoConfig, state=None, init=None, policy_on: float = 1.0):
    """(state after, metrics) of the update under test, from the shared model's first state."""
    params = two_groups()[1]
    state = state or create(params, RULE)
    init = init or other(params, 0.02, seed=9)
    return jitted(config)(
        None, state, init, roll(), jnp.asarray(noted().next_value), jax.random.key(1),
        jnp.float32(HEAT), jnp.float32(policy_on),
    )  # fmt: skip


def plain_advantages(config: PpoConfig) -> tuple[np.ndarray, np.ndarray]:
    """(normalised advantage, value target) of every turn, backwards in a loop."""
    made = noted()
    found = np.zeros(made.value.shape)
    for b in range(found.shape[1]):
        later = 0.0
        for r in reversed(range(found.shape[0])):
            over = bool(made.terminated[r, b]) or bool(made.truncated[r, b])
            ahead = 0.0 if made.terminated[r, b] else made.next_value[r, b]
            reward = float(made.reward[r, b]) * config.reward_scale
            surprise = reward + config.discount * ahead - float(made.value[r, b])
            later = surprise + (0.0 if over else config.discount * config.lam * later)
            found[r, b] = later
    normal = (found - found.mean()) / (found.std(ddof=1) + 1e-5)
    return normal, found + made.value


def plain_loss(params, init, config: PpoConfig):
    """(loss over all turns of the rollout, its parts); each turn is a row of its own."""
    made = noted()
    advantage, target = plain_advantages(config)
    rows = made.tokens.reshape(-1, SIZE)
    all_logp, all_values = forward(params, rows, HEAT, config.value_shapes_decoder)
    all_first, _ = forward(init, rows)
    policy, value, entropy, kl_init, kl_old, clipped, gap = ([] for _ in range(7))
    for r, b in np.ndindex(advantage.shape):
        at, n = int(made.prompt[r, b]), int(made.reply[r, b])
        said, before = np.asarray(made.tokens[r, b, at : at + n]), np.arange(at - 1, at - 1 + n)
        row = r * advantage.shape[1] + b
        logp, values, first = all_logp[row], all_values[row], all_first[row]
        now, old = logp[before, said], made.logp[r, b, :n]
        weight = np.where(np.arange(n) < int(made.answer[r, b]), config.thought_coef, 1.0)
        if config.ratio_level == "turn":
            step, worth = (weight * (now - old)).sum(keepdims=True), advantage[r, b]
        else:
            step, worth = now - old, weight * advantage[r, b]
        ratio = jnp.exp(step)
        near = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        policy.append(-jnp.minimum(ratio * worth, near * worth))
        kl_old.append(ratio - 1 - step)
        clipped.append(jnp.where(jnp.abs(ratio - 1) > config.clip, 1.0, 0.0))
        gap.append(jnp.abs(now - old).max())
        guess, seen = values[at - 1], made.value[r, b]
        near = seen + jnp.clip(guess - seen, -config.value_clip, config.value_clip)
        error = jnp.maximum((guess - target[r, b]) ** 2, (near - target[r, b]) ** 2) / 2
        value.append(error[None])
        entropy.append(-(jnp.exp(logp[before]) * logp[before]).sum(-1))
        log_ratio = first[before, said] - now
        kl_init.append(jnp.exp(log_ratio) - 1 - log_ratio)
    parts = {"policy": policy, "value": value, "entropy": entropy, "clipped": clipped}
    parts |= {"kl_init": kl_init, "kl_old": kl_old}
    mean = {name: jnp.concatenate(numbers).mean() for name, numbers in parts.items()}
    mean["gap"] = jnp.stack(gap).max()
    total = mean["policy"] + config.value_coef * mean["value"]
    total += config.kl_coef * mean["kl_init"] - config.entropy_coef * mean["entropy"]
    return total, mean


def check_gradients(state, metrics, wanted) -> None:
    wanted = [np.asarray(g) for g in jax.tree.leaves(wanted)]
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in wanted))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    for got, want in zip(jax.tree.leaves(state.opt_state), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max() + 1e-7)


def check_same(one, two, atol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("level", "shapes", "kl"), [("turn", True, 0.1), ("token", False, 0.0)])
def test_ppo_update_equals_the_plain_one(level: str, shapes: bool, kl: float) -> None:
    config = dataclasses.replace(
        PPO, ratio_level=level, value_shapes_decoder=shapes, kl_coef=kl, kl_logged=kl > 0
    )
    state, metrics = updated(config)
    params = two_groups()[1]
    plain = jax.jit(jax.value_and_grad(plain_loss, has_aux=True), static_argnums=2)
    (_, mean), grads = plain(params, other(params, 0.02, seed=9), config)
    if not kl:  # then the initial policy is not asked
        assert "kl_init" not in metrics
        del mean["kl_init"]
    for name, number in mean.items():
        np.testing.assert_allclose(metrics[name], number, rtol=2e-4, atol=2e-6, err_msg=name)
    assert 0 < metrics["clipped"] < 1
    check_gradients(state, metrics, grads)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    check_same(state.params, moved)
    assert int(state.step) == 1


def test_ppo_counts_tokens_and_explained_variance() -> None:
    _, metrics = updated(PPO)
    made, (_, target) = noted(), plain_advantages(PPO)
    ends = made.terminated | made.truncated
    ends[-1] = True
    assert metrics["tokens"] == (made.prompt + made.reply)[ends].sum()
    want = 1 - np.var(target - made.value) / np.var(target)
    np.testing.assert_allclose(metrics["explained_variance"], want, rtol=1e-4)


def test_epochs_follow_each_other_whatever_the_microbatches() -> None:
    """Two epochs of one minibatch are two updates on the same rollout; the gap is the first's."""
    first, before = updated(PPO)
    second, after = updated(PPO, state=first)
    both, metrics = updated(dataclasses.replace(PPO, epochs=2, microbatch=16))
    assert before["rows"] > 2 * PPO.microbatch
    assert int(both.step) == 2
    check_same(both, second)
    np.testing.assert_allclose(metrics["gap"], before["gap"], rtol=1e-5)
    for name in ("policy", "value", "entropy", "kl_init", "kl_old", "clipped", "grad_norm"):
        mean = (before[name] + after[name]) / 2
        np.testing.assert_allclose(metrics[name], mean, rtol=1e-4, atol=1e-6, err_msg=name)
    assert after["gap"] != before["gap"] and metrics["tokens"] == 2 * before["tokens"]


def test_value_warm_up_moves_the_value_head_alone() -> None:
    start = two_groups()[1]
    state, _ = updated(PPO, policy_on=0.0)
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(state.params), strict=True
    ):
        head = "value_head" in jax.tree_util.keystr(path)
        assert bool((before == after).all()) != head, jax.tree_util.keystr(path)


def test_kl_to_init_is_nothing_as_long_as_the_policy_is_init() -> None:
    _, metrics = updated(PPO, init=two_groups()[1])
    assert abs(float(metrics["kl_init"])) < 1e-6
    assert updated(PPO)[1]["kl_init"] > 1e-3


def test_every_epoch_holds_every_row_once() -> None:
    config = dataclasses.replace(PPO, epochs=4, minibatches=3, microbatch=2)
    zero = jnp.zeros(roll().value.shape)
    rows = jax.tree.map(lambda a: ppo._padded(a, 2), pack(roll(), zero, zero, 1.0, SLOTS, 1))
    count = int(rows.count)
    orders, firsts, lasts = ppo._minibatches(jax.random.key(3), rows, config)
    assert orders.shape[0] == 12 and count % 3  # parts of different sizes
    epochs = []
    for epoch in range(4):
        seen = []
        for part in range(3 * epoch, 3 * epoch + 3):
            assert lasts[part] - firsts[part] in (count // 3, count // 3 + 1)
            taken, start = [], int(firsts[part])
            while start < lasts[part]:  # as the microbatches are taken
                some, at = ppo._taken(rows, orders[part], start, lasts[part], 2)
                taken += [int(row) for row, kept in zip(at, some.live.any(1), strict=True) if kept]
                start += 2
            seen += taken
        assert sorted(seen) == list(range(count))
        epochs.append(tuple(seen))
    assert len(set(epochs)) > 1


SFT = dataclasses.replace(
    STUDY.sft,
    steps=10,
    batch_size=4,
    microbatch=2,
    length=SIZE,
    learning_rate=1e-2,
    schedule="constant",
    warmup=0,
    weight_decay=0.1,
    clip_norm=1.0,
)


@functools.cache
def dialogues() -> tuple[list[tuple[list[int], int]], sft.Batch]:
    """Conversations with the length of their context, and the same packed in four rows."""
    draw = np.random.default_rng(3)
    talks, rows = (
        [],
        {n: np.zeros((4, SIZE), np.int32) for n in ("tokens", "positions", "segments")},
    )
    rows["replied"] = np.zeros((4, SIZE), bool)
    for row in range(4):
        at = 0
        for segment in range(1, row + 2):
            length = int(draw.integers(8, 16))
            prompt, tokens = int(draw.integers(2, 6)), draw.integers(0, CONFIG.vocab_size, length)
            here = slice(at, at + length)
            rows["tokens"][row, here], rows["segments"][row, here] = tokens, segment
            rows["positions"][row, here] = np.arange(length)
            rows["replied"][row, here] = np.arange(length) >= prompt
            talks.append((tokens, prompt))
            at += length
    return talks, sft.Batch(**{name: jnp.asarray(x) for name, x in rows.items()})


@functools.cache
def fine_tuned(microbatch: int):
    graph, params = two_groups()
    run = jax.jit(functools.partial(sft.update, graph, RULE, microbatch))
    return run(create(params, RULE), dialogues()[1])


def plain_sft_loss(params):
    """Mean of -log p over the replies' tokens; each conversation is a row of its own."""
    talks, _ = dialogues()
    rows = jnp.stack([jnp.pad(jnp.asarray(tokens), (0, SIZE - len(tokens))) for tokens, _ in talks])
    logp, _ = forward(params, rows, 1.0)
    lost = [
        -logp[row, at - 1, tokens[at]]
        for row, (tokens, prompt) in enumerate(talks)
        for at in range(prompt, len(tokens))
    ]
    return jnp.stack(lost).mean()


def test_sft_update_equals_the_plain_one() -> None:
    state, metrics = fine_tuned(SFT.microbatch)
    params = two_groups()[1]
    dialogues()
    loss, grads = jax.jit(jax.value_and_grad(plain_sft_loss))(params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    check_gradients(state, metrics, grads)
    talks, _ = dialogues()
    assert metrics["reply_tokens"] == sum(len(tokens) - prompt for tokens, prompt in talks)
    assert metrics["tokens"] == sum(len(tokens) for tokens, _ in talks)


def test_microbatches_do_not_change_the_sft_update() -> None:
    (state, metrics), (whole, at_once) = fine_tuned(2), fine_tuned(4)
    check_same(metrics, at_once)
    check_same(state, whole)


def plain_adamw(params, steps, rates, run, decay: float):
    """AdamW in NumPy under a clipped global norm, for a dict of arrays and a list of gradients."""
    first, second = (dict.fromkeys(params, 0.0) for _ in range(2))
    for t, (grads, rate) in enumerate(zip(steps, rates, strict=True), 1):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            g = g * min(1.0, run.clip_norm / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = run.beta2 * second[name] + (1 - run.beta2) * g**2
            mean, square = first[name] / (1 - 0.9**t), second[name] / (1 - run.beta2**t)
            step = mean / (np.sqrt(square) + 1e-6) + decay * params[name]
            params = params | {name: params[name] - rate * step}
    return params


def stepped(run, params, steps):
    rule = optimizer(run, 10)
    state = create(params, rule)
    for grads in steps:
        state, _ = apply_gradients(state, jax.tree.map(jnp.float32, grads), rule)
    return state.params


def drawn(draw, scale: float) -> dict[str, np.ndarray]:
    return {name: scale * draw.normal(size=(3, 2)) for name in ("a", "b")}


def test_sft_steps_by_adamw_with_decay_and_clipping() -> None:
    draw = np.random.default_rng(0)
    run = dataclasses.replace(SFT, warmup=2)
    params, steps = drawn(draw, 1.0), [drawn(draw, 3.0), drawn(draw, 0.1), drawn(draw, 1.0)]
    got = stepped(run, jax.tree.map(jnp.float32, params), steps)
    rates = [float(schedule(run, 10)(step)) for step in range(3)]
    want = plain_adamw(params, steps, rates, run, run.weight_decay)
    check_same(got, want, atol=1e-6)


def test_ppo_steps_the_value_head_at_its_own_rate_and_norm() -> None:
    draw = np.random.default_rng(1)
    run = dataclasses.replace(PPO, value_learning_rate=1e-3)
    params = {"decoder": drawn(draw, 1.0), "value_head": drawn(draw, 1.0)}
    steps = [{"decoder": drawn(draw, 0.1), "value_head": drawn(draw, 30.0)} for _ in range(3)]
    got = stepped(run, jax.tree.map(jnp.float32, params), steps)
    for part, rate in (("decoder", run.learning_rate), ("value_head", run.value_learning_rate)):
        grads = [step[part] for step in steps]
        want = plain_adamw(params[part], grads, [rate] * 3, run, 0.0)
        check_same(got[part], want, atol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_at_their_key_steps(kind: str, warmup: int) -> None:
    run = dataclasses.replace(
        SFT, schedule=kind, warmup=warmup, learning_rate=2.0, final_share=0.25
    )
    rate, steps = schedule(run, 24), 24
    middle = warmup + (steps - warmup) // 2
    if warmup:
        rise = [float(rate(step)) for step in range(warmup + 1)]
        assert rise[0] == 2.0 / warmup and rise[-1] == pytest.approx(2.0)
        assert np.diff(rise) == pytest.approx(np.diff(rise)[0])
    assert float(rate(warmup)) == pytest.approx(2.0)
    assert float(rate(middle)) == pytest.approx(2.0 if kind == "constant" else 2.0 * 1.25 / 2)
    end = 2.0 if kind == "constant" else 0.5
    assert float(rate(steps)) == pytest.approx(end) and float(rate(99)) == pytest.approx(end)
    if kind == "cosine":  # above the line at first, below it later
        quarter = warmup + (steps - warmup) // 4
        assert float(rate(quarter)) > 2.0 - 1.5 / 4

"""Training on rows that hold several pictures, against conversations on their own, one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gp_virl.envs.api import Task
from gp_virl.model.decoder import Cross
from gp_virl.rollout.episodes import Rollout
from gp_virl.train import ppo, sft
from gp_virl.train.gae import gae, normalised
from gp_virl.train.state import create
from tests.model.test_glance import CONFIG, IMAGE, images, on_its_own, rows, talks, weights
from tests.train.test_rows import made_up_rollout
from tests.train.test_update import PPO as STUDY
from tests.train.test_update import RULE, check_gradients, other

SIZE, SLOTS, HEAT = 48, 6, 0.8
# Without what rows without pictures are enough to test; the reference is read, and has no weight.
PPO = dataclasses.replace(STUDY, kl_coef=0.0, entropy_coef=0.0, value_clip=100.0, pictures=3)


def read(params, tokens, image, since, heat):
    """Log-probabilities Float[S V] and values Float[S] of a conversation that sees its picture."""
    net, places = nnx.merge(weights()[0], params), jnp.arange(len(tokens))
    states = net.see(image[None])
    visible = jnp.broadcast_to((places >= since)[:, None], (1, len(tokens), states.shape[1]))
    hidden = net.hidden(tokens[None], places[None], cross=Cross(states, visible))[0]
    return jax.nn.log_softmax(net.logits(hidden) / heat), net.value(hidden)


def chosen(logp, tokens):
    """Log-probability of each token but the first; an image token is never asked for."""
    following = jnp.minimum(tokens[1:], CONFIG.vocab_size - 1)
    return jnp.take_along_axis(logp[:-1], following[:, None], axis=1)[:, 0]


@jax.jit
@jax.value_and_grad
def plain_sft(params, tokens, replied, image, since):
    """Sum of -log p over one conversation's reply."""
    logp, _ = read(params, tokens, image, since, 1.0)
    return -jnp.where(replied[1:], chosen(logp, tokens), 0.0).sum()


@jax.jit
@jax.value_and_grad
def plain_blind_sft(params, tokens, replied):
    """The same of a conversation without a picture, read by a model that looks at nothing."""
    net, places = nnx.merge(weights()[0], params), jnp.arange(len(tokens))
    hidden = net.hidden(tokens[None], places[None])[0]
    logp = jax.nn.log_softmax(net.logits(hidden))
    return -jnp.where(replied[1:], chosen(logp, tokens), 0.0).sum()


@functools.cache
def batch() -> sft.Batch:
    """The rows of the model's test; of each conversation the last four tokens are the reply."""
    packed = rows()
    replied = np.zeros(packed["tokens"].shape, bool)
    for talk in talks():
        row, here = talk.here
        replied[row, here.stop - 4 : here.stop] = True
    replied &= packed["tokens"] != IMAGE  # never a target
    return sft.Batch(**{k: jnp.asarray(x) for k, x in packed.items()}, replied=jnp.asarray(replied))


@functools.cache
def plainly_fine_tuned():
    """(mean of -log p, its gradient, how many tokens it is over), one conversation at a time."""
    params, packed, replied = weights()[1], rows(), np.asarray(batch().replied)
    parts = []
    for talk in talks():
        tokens, count = on_its_own(talk), len(talk.tokens)
        said = np.pad(replied[talk.here], (0, len(tokens) - count))
        if talk.picture is None:
            parts.append(plain_blind_sft(params, tokens, said))
        else:
            image = packed["images"][talk.row, talk.picture]
            parts.append(plain_sft(params, tokens, said, image, talk.since))
    total, grads = jax.tree.map(lambda *x: sum(x) / replied.sum(), *jax.device_get(parts))
    return total, grads, replied.sum()


def test_sft_on_packed_pictures_equals_one_conversation_at_a_time() -> None:
    """Two microbatches of two rows each, with up to three pictures a row."""
    graph, params = weights()

    @jax.jit
    def update(params, batch):
        return sft.update(graph, RULE, 2, create(params, RULE), batch)

    state, metrics = update(params, batch())
    loss, grads, count = plainly_fine_tuned()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert metrics["reply_tokens"] == count
    check_gradients(state, metrics, grads)
    for part in ("vision_model", "multi_modal_projector"):
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[part]))


class Gallery(Task):
    """A task whose scenes are numbers of pictures; nothing else of it is asked for."""

    stop_ids, image_token, outcomes = jnp.array([IMAGE]), jnp.int32(IMAGE), ("solved",)

    def picture(self, scene):
        """The picture of that number."""
        return jnp.asarray(images(6, 8))[scene]


@functools.cache
def roll() -> Rollout:
    """A made-up rollout that shows each conversation a picture, sampled by a policy nearby.

    The picture comes into sight at the second token; in lane 0 it never does.
    """
    made = made_up_rollout(4, turns=4, lanes=4, size=SIZE)
    tokens = np.asarray(made.tokens) % CONFIG.vocab_size
    tokens[:, 1:, 1] = IMAGE
    closed = np.asarray(made.closed)
    number = np.cumsum(np.vstack([closed[:1] & False, closed[:-1]]), axis=0)
    scene = (3 * np.arange(4) + number) % 8
    made = made.replace(tokens=jnp.asarray(tokens), scene=jnp.asarray(scene))
    sampler = other(jax.device_get(weights()[1]), 0.002, seed=5)
    logp = np.zeros(made.logp.shape, np.float32)
    found, prompt, reply = jax.device_get(
        (plain_replies(sampler, made)[0], made.prompt, made.reply)
    )
    for r, b in np.ndindex(closed.shape):
        at, n = prompt[r, b], reply[r, b]
        logp[r, b, :n] = found[r, b, at - 1 : at - 1 + n]
    return made.replace(logp=jnp.asarray(logp))


@jax.jit
def plain_replies(params, made):
    """(log-probability of each token but the first, value after each token), turn by turn."""
    shown = jnp.asarray(images(6, 8))[made.scene]
    since = jnp.broadcast_to(jnp.where(jnp.arange(4) > 0, 1, SIZE), made.scene.shape)

    def turn(tokens, image, since):
        logp, value = read(params, tokens, image, since, HEAT)
        return chosen(logp, tokens), value

    return jax.vmap(jax.vmap(turn))(made.tokens, shown, since)


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def plain_ppo(params, made, next_value):
    """(loss over all turns, largest change of a log-probability since it was sampled)."""
    logp, values = plain_replies(params, made)
    ends = made.terminated, made.truncated
    advantage = gae(PPO.reward_scale * made.reward, made.value, next_value, *ends, 0.9, 0.95)
    worth, target = normalised(advantage), advantage + made.value
    said = jnp.arange(made.logp.shape[-1])
    at = jnp.minimum(made.prompt[..., None] - 1 + said, SIZE - 2)
    change = jnp.take_along_axis(logp, at, axis=-1) - made.logp
    change = jnp.where(said < made.reply[..., None], change, 0.0)
    weight = jnp.where(said < made.answer[..., None], PPO.thought_coef, 1.0)
    ratio = jnp.exp((weight * change).sum(-1))
    near = jnp.clip(ratio, 1 - PPO.clip, 1 + PPO.clip)
    guess = jnp.take_along_axis(values, made.prompt[..., None] - 1, axis=-1)[..., 0]
    policy = -jnp.minimum(ratio * worth, near * worth)
    total = policy.mean() + PPO.value_coef * (0.5 * (guess - target) ** 2).mean()
    return total, jnp.abs(change).max()


@functools.cache
def jitted():
    update = functools.partial(ppo.update, weights()[0], RULE, PPO, SLOTS, Gallery())
    return jax.jit(lambda params, *rest: update(create(params, RULE), params, *rest))


def played(made: Rollout):
    """(state, metrics) of the update under test."""
    heat, on = jnp.float32(HEAT), jnp.float32(1)
    return jitted()(weights()[1], made, following(made), jax.random.key(1), heat, on)


def following(made: Rollout):
    return jnp.concatenate([made.value[1:], jnp.full((1, made.value.shape[1]), 0.3)])


def test_ppo_on_packed_pictures_equals_one_conversation_at_a_time() -> None:
    made = roll()
    state, metrics = played(made)
    (_, gap), grads = plain_ppo(weights()[1], made, following(made))
    check_gradients(state, metrics, grads)
    np.testing.assert_allclose(metrics["gap"], gap, rtol=1e-3)
    assert abs(metrics["kl_init"]) < 1e-6  # the reference sees the same pictures
    conversations = np.asarray(made.closed)[:-1].sum() + made.closed.shape[1]
    assert -(-conversations // PPO.pictures) <= metrics["rows"] < conversations


def test_ppo_with_the_pictures_of_others_is_another_one() -> None:
    made = roll()
    _, told = played(made)
    _, mixed = played(made.replace(scene=jnp.roll(made.scene, 1, axis=1)))
    assert mixed["gap"] > 3 * told["gap"]

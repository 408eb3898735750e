"""Episodes in which every hand is a picture: encoded once, seen by its own conversation alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gp_virl.envs.card_game import CardGame
from gp_virl.model.config import ModelConfig, VisionConfig
from gp_virl.model.mllama import Mllama, build
from gp_virl.rollout import sight
from gp_virl.rollout.episodes import rollout, start
from gp_virl.rollout.sampling import Sampling
from gp_virl.text.prompts import BRIEF
from gp_virl.text.tokenizer import head_rows, tiny
from gp_virl.train import ppo
from gp_virl.train.rows import pack
from gp_virl.types import Context
from tests.rollout.test_episodes import BYTES, CHUNK, ENV

TOKENIZER = tiny()
T, LANES, TURNS = 8, 3, 6
CONFIG = ModelConfig(
    vocab_size=head_rows(TOKENIZER),
    hidden_size=16,
    groups=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
    value_widths=(8,),
    pattern=("self", "cross", "self"),
    vision=VisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=24,
        image_size=24,
        patch_size=8,
        intermediate_layers_indices=(0,),
    ),
)
DEAL, DRAW, WARM = jax.random.key(3), jax.random.key(4), Sampling.of(1.0)
ENCODED = []  # how many images each call of the vision tower was given


class Counting(Mllama):
    """The model, noting when its tower runs."""

    def see(self, images):
        jax.debug.callback(lambda: ENCODED.append(images.shape[0]))
        return super().see(images)


@functools.cache
def game() -> CardGame:
    """Two tries a hand, so that hands change often."""
    env = dataclasses.replace(ENV, modality="image", image_size=48, max_turns=2)
    return CardGame.build(env, TOKENIZER, BRIEF, T, BYTES)


@functools.cache
def weights():
    """(graph, params) of a model that looks: gates are away from the zeros of a new one."""
    with jax.ensure_compile_time_eval():  # kept as numbers also when first called inside a jit
        graph, params = build(CONFIG, jax.random.key(0))
        leaves, tree = jax.tree.flatten(params)
        draw = np.random.default_rng(1)
        moved = [x + 0.2 * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
        return graph, jax.tree.unflatten(tree, moved)


def model(counting: bool = False) -> Mllama:
    if not counting:
        return nnx.merge(*weights())
    graph = nnx.split(Counting(CONFIG, nnx.Rngs(0)))[0]
    return nnx.merge(graph, weights()[1])


@functools.cache
def played():
    """(rollout, next values, images that the tower was given), one image at a time."""

    @jax.jit
    def run(game):
        lanes = start(game, DEAL, jnp.arange(LANES), 3 * game.context_limit)
        return rollout(model(True), game, lanes, DEAL, DRAW, WARM, TURNS, T, CHUNK, 1)

    ENCODED.clear()
    _, roll, following = jax.block_until_ready(run(game()))
    jax.effects_barrier()
    return roll, following, list(ENCODED)


def test_each_hand_is_encoded_once() -> None:
    roll, _, encoded = played()
    np.testing.assert_array_equal(roll.encoded, roll.turn == 0)
    assert set(encoded) == {1}
    # And those of the hands that the value after the last turn is of.
    after = roll.closed[-1].sum()
    assert len(encoded) == (roll.turn == 0).sum() + after
    assert (roll.turn == 0).sum() == LANES * TURNS // 2


def test_scenes_are_those_of_the_hands_dealt() -> None:
    roll, _, _ = played()
    for r, lane in np.ndindex(*roll.turn.shape):
        state = game().reset(jax.random.fold_in(DEAL, int(roll.episode[r, lane])))
        np.testing.assert_array_equal(roll.scene.ranks[r, lane], state.ranks)
        np.testing.assert_array_equal(roll.scene.suits[r, lane], state.suits)


def test_a_new_picture_empties_the_prefix() -> None:
    """The same question about another picture is read anew, though its tokens are the same."""
    roll, _, _ = played()
    fresh = np.asarray(roll.turn) == 0
    prefilled, prompt = np.asarray(roll.prefilled), np.asarray(roll.prompt)
    np.testing.assert_array_equal(prefilled[fresh], prompt[fresh])
    assert (prefilled[~fresh] < prompt[~fresh]).all()


def test_training_rows_give_the_log_probabilities_of_the_rollout() -> None:
    """Several conversations in a row, each seeing its own picture: what lanes saw one by one."""
    roll, _, _ = played()
    zero = jnp.zeros(roll.prompt.shape)
    slots = TURNS

    @functools.partial(jax.jit, static_argnames="pictures")
    def gap(roll, task, pictures):
        rows = pack(roll, zero, zero, 1.0, slots, pictures)
        logp, _, value = ppo.reply_logp(model(), task, rows, jnp.float32(1))
        told = jnp.where(rows.slot >= 0, jnp.abs(logp - rows.logp), 0)
        worth = jnp.where(rows.live, jnp.abs(value - rows.value), 0)
        return told.max(), worth.max(), rows.count, (rows.slot >= 0).sum()

    many = gap(roll, game(), 3)
    one = gap(roll, game(), 1)
    assert many[2] < one[2] and many[3] == one[3] == roll.reply.sum()
    for told, worth, *_ in (many, one):
        assert 0 < told < 1e-4 and 0 < worth < 1e-4
    # With the pictures of other hands they are others.
    mixed = jax.tree.map(lambda x: jnp.roll(x, 1, axis=1), roll.scene)
    assert gap(dataclasses.replace(roll, scene=mixed), game(), 3)[0] > 1e-2


def test_lanes_encoded_together_or_one_by_one() -> None:
    net, task = model(), game()
    states = jax.vmap(lambda e: task.reset(jax.random.fold_in(DEAL, e)))(jnp.arange(5))
    scene = jax.vmap(task.scene)(states)
    blank = Context(jnp.zeros((5, 64), jnp.int32), jnp.zeros(5, jnp.int32))
    context = jax.vmap(task.observe)(states, blank)
    fresh = jnp.array([True, False, True, True, False])

    @functools.partial(jax.jit, static_argnums=0)
    def seen(together):
        room = sight.blank(net, task, scene)
        return sight.encoded(net, task, room, scene, context, fresh, together)

    one, two, many = seen(1), seen(2), seen(64)
    for other in (two, many):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert one.k[0].shape[3] == net.features(48, 48) == 4 * CONFIG.vision.num_patches
    at = np.argmax(np.asarray(context.tokens) == CONFIG.vocab_size, axis=1)
    np.testing.assert_array_equal(np.asarray(one.since)[fresh], at[fresh])
    assert one.real[0].all() and not one.real[1].any() and not one.k[0][:, 4].any()

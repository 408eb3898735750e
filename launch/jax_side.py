"""The JAX side of launch/compare_torch.py: this project's functions doing each of its jobs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gp_virl.config import PpoConfig, SftConfig
from gp_virl.model.cache import CrossCache, empty
from gp_virl.model.decoder import Cross
from gp_virl.model.mllama import Mllama, tile_features
from gp_virl.rollout import generate as generation
from gp_virl.rollout.episodes import Rollout
from gp_virl.rollout.sampling import Sampling
from gp_virl.train import ppo, sft
from gp_virl.train.logp import token_logp
from gp_virl.train.state import TrainState, apply_gradients
from gp_virl.types import Context
from launch.compare_inputs import Batch, Pictures, Sizes, tiles_seen

CHUNK = 128  # tokens of a prompt read at once
NO_STOPS = (-1,)  # no token ends a reply, so that both sides say equally much


def hidden(model: Mllama, batch: Batch) -> Float[Array, "B S D"]:
    """Final hidden states of every token; all tiles are kept, as in PyTorch."""
    size = batch.tokens.shape[1]
    cross = None
    if batch.pictures is not None:
        seen = tiles_seen(batch.pictures, size)
        seen = tile_features(seen, model.config.vision.num_patches)
        cross = Cross(states=states(model, batch.pictures), visible=seen)
    places = jnp.broadcast_to(jnp.arange(size), batch.tokens.shape)
    return model.hidden(batch.tokens, places, cross=cross)


def states(model: Mllama, pictures: Pictures) -> Float[Array, "B I D"]:
    """Projected features of the pictures."""
    return model.encode_images(pictures.pixels, pictures.aspect_ratio_ids, pictures.real)


def look(model: Mllama, pictures: Pictures | None, room: int) -> CrossCache | None:
    """What lanes keep of their pictures; None where no layer looks at them."""
    if pictures is None or not model.config.cross_attention_layers:
        return None
    real = tile_features(pictures.real, model.config.vision.num_patches)
    since = jnp.where(pictures.since < 0, room, pictures.since)
    return model.look(states(model, pictures), real, since)


@functools.partial(jax.jit, static_argnums=0)
def scores(
    graph: Any, params: PyTree, batch: Batch
) -> tuple[Float[Array, "B S V"], Float[Array, "B S-1"]]:
    """Logits, and the log-probability of each token but the first as training computes it."""
    model = nnx.merge(graph, params)
    states = hidden(model, batch)
    return model.logits(states), _token_logp(
        model, states, batch.tokens, jnp.ones_like(batch.replied)
    )


def _token_logp(
    model: Mllama,
    hidden: Float[Array, "B S D"],
    tokens: Int[Array, "B S"],
    replied: Bool[Array, "B S"],
) -> Float[Array, "B S-1"]:
    target = jnp.minimum(tokens[:, 1:], model.config.vocab_size - 1)
    return token_logp(hidden[:, :-1], model.lm_head.kernel[...], target, replied[:, 1:])[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def generate(graph: Any, params: PyTree, batch: Batch, count: int) -> Int[Array, "B n"]:
    """`count` greedy tokens after the batch's rows, all of one length, with the cache."""
    model = nnx.merge(graph, params)
    lanes, size = batch.tokens.shape
    room = size + count
    context = Context(jnp.pad(batch.tokens, ((0, 0), (0, count))), batch.length)
    keys = jax.random.split(jax.random.key(0), lanes)
    reply, _ = generation.turn(
        model, empty(model.config, lanes, room), context, keys, Sampling.of(greedy=True),
        jnp.array(NO_STOPS), count, min(CHUNK, size), jnp.ones(lanes, bool),
        images=look(model, batch.pictures, room),
    )  # fmt: skip
    return reply.tokens


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def sft_step(
    graph: Any, rule: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, Float[Array, ""], Float[Array, ""]]:
    """The next state, and loss and gradient norm of the step."""
    if batch.pictures is None:
        place = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]), batch.tokens.shape)
        segments = (place < batch.length[:, None]).astype(jnp.int32)
        rows = sft.Batch(batch.tokens, place, segments, batch.replied)
        state, metrics = sft.update(graph, rule, batch.tokens.shape[0], state, rows)
        return state, metrics["loss"], metrics["grad_norm"]

    def loss(params: PyTree) -> Float[Array, ""]:
        model = nnx.merge(graph, params)
        logp = _token_logp(model, hidden(model, batch), batch.tokens, batch.replied)
        return -logp.sum() / batch.replied[:, 1:].sum()

    value, grads = jax.value_and_grad(loss)(state.params)
    state, norm = apply_gradients(state, grads, rule)
    return state, value, norm


@struct.dataclass
class Played:
    """R turns of B conversations side by side."""

    tokens: Int[Array, "R B S"]  # each conversation up to its turn's reply
    prompt: Int[Array, "R B"]
    logp: Float[Array, "R B T"]
    value: Float[Array, "R B"]


@functools.partial(jax.jit, static_argnums=(0, 4))
def play(graph: Any, params: PyTree, batch: Batch, key: Key[Array, ""], sizes: Sizes) -> Played:
    """Conversations whose prompts and feedback are the batch's and whose replies are sampled."""
    model = nnx.merge(graph, params)
    lanes, room = batch.tokens.shape
    images = look(model, batch.pictures, room)
    length = sizes.turn_prompt
    context = Context(batch.tokens, jnp.full(lanes, length))

    def turn(carry, key):
        context, cache = carry
        reply, cache = generation.turn(
            model, cache, context, jax.random.split(key, lanes), Sampling.of(temperature=1.0),
            jnp.array(NO_STOPS), sizes.turn_reply, sizes.feedback + 1, jnp.ones(lanes, bool),
            images=images,
        )  # fmt: skip
        start = (0, context.length[0])
        tokens = jax.lax.dynamic_update_slice(context.tokens, reply.tokens, start)
        played = Played(tokens, context.length, reply.logp, reply.value)
        grown = context.length + sizes.turn_reply + sizes.feedback
        return (Context(tokens, grown), cache), played

    start = (context, empty(model.config, lanes, room))
    return jax.lax.scan(turn, start, jax.random.split(key, sizes.turns))[1]


def rollout_of(played: Played, sizes: Sizes) -> Rollout:
    """The turns as training takes them, with made-up rewards; the last turn ends the episode."""
    turns, lanes = played.prompt.shape
    whole = jnp.zeros((turns, lanes), jnp.int32)
    last = jnp.broadcast_to((jnp.arange(turns) == turns - 1)[:, None], (turns, lanes))
    return Rollout(
        tokens=played.tokens,
        prompt=played.prompt,
        reply=whole + sizes.turn_reply,
        logp=played.logp,
        answer=whole,
        value=played.value,
        reward=jnp.where(last, 5.0, -1.0),
        outcome=whole,
        recognized=jnp.zeros_like(last),
        solved=last,
        terminated=last,
        truncated=jnp.zeros_like(last),
        closed=last,
        played=jnp.ones_like(last),
        episode=whole + jnp.arange(lanes),
        turn=whole + jnp.arange(turns)[:, None],
        prefilled=whole,
        encoded=jnp.zeros_like(last),
        scene=None,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 6), donate_argnums=3)
def update(
    graph: Any,
    rule: optax.GradientTransformation,
    config: PpoConfig,
    state: TrainState,
    played: Played,
    pictures: Pictures | None,
    sizes: Sizes,
) -> TrainState:
    """One PPO step on all turns, a conversation being one row."""
    roll = rollout_of(played, sizes)
    if pictures is None:
        following = jnp.concatenate([roll.value[1:], jnp.zeros_like(roll.value[:1])])
        return ppo.update(
            graph, rule, config, sizes.turns, None, state, state.params, roll, following,
            jax.random.key(0), jnp.float32(1), jnp.float32(1),
        )[0]  # fmt: skip

    def loss(params: PyTree) -> Float[Array, ""]:
        model = nnx.merge(graph, params)
        tokens = played.tokens[-1]
        batch = Batch(tokens, jnp.full(len(tokens), tokens.shape[1]), tokens > 0, pictures)
        states = hidden(model, batch)
        column = (played.prompt[:, 0, None] + jnp.arange(sizes.turn_reply)).T
        replied = jnp.zeros_like(tokens, bool).at[:, column].set(True)
        logp = _token_logp(model, states, tokens, replied)
        now, old = logp[:, column - 1].sum(1), played.logp.sum(-1).T
        value = model.value(states[:, played.prompt[:, 0] - 1])
        policy = ppo.policy_loss(now, old, jnp.full_like(now, 0.3), config.clip)
        errors = ppo.value_loss(value, played.value.T, value * 0 + 0.1, config.value_clip)
        return (policy + config.value_coef * errors).mean()

    return apply_gradients(state, jax.grad(loss)(state.params), rule)[0]


def sft_settings(steps: int) -> SftConfig:
    """AdamW with clipping and weight decay, at a constant rate."""
    return SftConfig(
        steps=steps, batch_size=1, microbatch=1, length=8, learning_rate=1e-4,
        schedule="constant", warmup=0, final_share=0.0, weight_decay=0.01, beta2=0.99,
        clip_norm=1.0, moments="float32", pictures=1, frozen="none",
    )  # fmt: skip


def ppo_settings(microbatch: int) -> PpoConfig:
    """One epoch of one minibatch."""
    return PpoConfig(
        updates=1, epochs=1, minibatches=1, microbatch=microbatch, learning_rate=1e-4,
        schedule="constant", warmup=0, final_share=0.0, beta2=0.99, clip_norm=1.0,
        value_learning_rate=1e-4, value_warmup=0, clip=0.1, value_clip=0.2, value_coef=0.5,
        value_shapes_decoder=True, entropy_coef=0.0, kl_coef=0.0,
        kl_logged=False, discount=0.9, lam=0.95, ratio_level="turn", thought_coef=1.0,
        reward_scale=1.0, moments="float32", pictures=1, frozen="none",
    )  # fmt: skip

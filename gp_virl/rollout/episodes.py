"""Multi-turn episodes: lanes that play side by side and reset in place.

A lane holds one conversation. Each turn the environment says which context it wants, the model
replies, the verifier judges; a finished episode is replaced by the lane's next one, so that no
lane idles. Every random choice depends on the episode's number and turn alone: what lane plays
an episode, and beside whom, changes nothing.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from gp_virl.envs.api import Task
from gp_virl.model.cache import LaneCache, empty
from gp_virl.model.mllama import Mllama
from gp_virl.rollout import generate
from gp_virl.rollout.sampling import Sampling
from gp_virl.types import Context


@struct.dataclass
class Lanes:
    """What B lanes carry from turn to turn."""

    state: PyTree  # the environment's, leading axis B
    context: Context  # wanted at the next reply
    cache: LaneCache | None  # None between rollouts: other parameters will fill it
    episode: Int[Array, "B"]  # number of the episode being played
    next: Int[Array, ""]  # number of the episode that the next free lane takes


@struct.dataclass
class Rollout:
    """R turns of B lanes, time first; one record is one reply."""

    tokens: Int[Array, "*r B S"]  # the whole conversation, the reply at its end
    prompt: Int[Array, "*r B"]  # tokens before the reply
    reply: Int[Array, "*r B"]  # tokens of the reply, its end token included
    logp: Float[Array, "*r B T"]  # at the sampling temperature, when sampled
    answer: Int[Array, "*r B"]  # first reply token of the answer field; `reply` if there is none
    value: Float[Array, "*r B"]  # read at the last prompt token
    reward: Float[Array, "*r B"]
    outcome: Int[Array, "*r B"]
    terminated: Bool[Array, "*r B"]  # nothing follows
    truncated: Bool[Array, "*r B"]  # cut off from outside
    played: Bool[Array, "*r B"]  # False where the lane had no episode left
    episode: Int[Array, "*r B"]
    turn: Int[Array, "*r B"]  # 0 at the first reply of a conversation
    prefilled: Int[Array, "*r B"]  # context tokens that had to be run before the reply


def start(task: Task, key: Key[Array, ""], episode: Int[Array, "B"], size: int) -> Lanes:
    """Lanes at the first context of the given episodes, with room for `size` tokens."""
    state = jax.vmap(lambda e: task.reset(jax.random.fold_in(key, e)))(episode)
    lanes = episode.shape[0]
    blank = Context(jnp.zeros((lanes, size), jnp.int32), jnp.zeros(lanes, jnp.int32))
    context = jax.vmap(task.observe)(state, blank)
    return Lanes(state, context, None, episode, next=episode.max() + 1)


def _seated(model: Mllama, lanes: Lanes) -> Lanes:
    count, size = lanes.context.tokens.shape
    return lanes.replace(cache=empty(model.config, count, size))


def play_turn(
    model: Mllama,
    task: Task,
    lanes: Lanes,
    deal: Key[Array, ""],
    draw: Key[Array, ""],
    sampling: Sampling,
    reply_length: int,
    chunk: int,
    active: Bool[Array, "B"],
) -> tuple[Lanes, Rollout]:
    """One reply of every active lane, judged; returns the lanes after it and its record.

    `deal` is the key of the episodes, `draw` that of the sampled tokens.
    """
    turn = lanes.state.turn
    keys = jax.vmap(lambda e, t: jax.random.fold_in(jax.random.fold_in(draw, e), t))(
        lanes.episode, turn
    )
    reply, cache = generate.turn(
        model, lanes.cache, lanes.context, keys, sampling, task.stop_ids,
        reply_length, chunk, active,
    )  # fmt: skip
    state, verdict = jax.vmap(task.judge)(lanes.state, reply.tokens, reply.length)
    past = jax.vmap(_appended)(lanes.context, reply.tokens, reply.length)
    record = Rollout(
        tokens=past.tokens,
        prompt=lanes.context.length,
        reply=reply.length,
        logp=reply.logp,
        answer=jax.vmap(task.answer_start)(reply.tokens, reply.length),
        value=reply.value,
        reward=verdict.reward,
        outcome=verdict.outcome,
        terminated=verdict.terminated & active,
        truncated=verdict.truncated & active,
        played=active,
        episode=lanes.episode,
        turn=turn,
        prefilled=reply.prefilled,
    )
    over = record.terminated | record.truncated
    episode = jnp.where(over, lanes.next + jnp.cumsum(over) - 1, lanes.episode)
    fresh = jax.vmap(lambda e: task.reset(jax.random.fold_in(deal, e)))(episode)
    state = _chosen(over, fresh, state)
    context = jax.vmap(task.observe)(state, past)
    context = _chosen(active, context, lanes.context)
    state = _chosen(active, state, lanes.state)
    return Lanes(state, context, cache, episode, lanes.next + over.sum()), record


def rollout(
    model: Mllama,
    task: Task,
    lanes: Lanes,
    deal: Key[Array, ""],
    draw: Key[Array, ""],
    sampling: Sampling,
    turns: int,
    reply_length: int,
    chunk: int,
) -> tuple[Lanes, Rollout, Float[Array, "R B"]]:
    """`turns` replies per lane, and the value of the context that follows each reply.

    The lanes come and go without a cache, which would hold what other parameters made of the
    tokens. After the last turn the value is that of the next context. Where an episode was cut
    off from outside, the context that would have followed is never built; its value is taken as
    that of the last one.
    """
    lanes = _seated(model, lanes)
    active = jnp.ones(lanes.episode.shape, bool)

    def step(lanes, _):
        return play_turn(model, task, lanes, deal, draw, sampling, reply_length, chunk, active)

    lanes, roll = jax.lax.scan(step, lanes, length=turns)
    last, _ = generate.prefill(model, lanes.cache, lanes.context, chunk, active)
    following = jnp.concatenate([roll.value[1:], model.value(last)[None]])
    lanes = lanes.replace(cache=None)
    return lanes, roll, jnp.where(roll.truncated, roll.value, following)


def outcomes(
    model: Mllama,
    task: Task,
    deal: Key[Array, ""],
    draw: Key[Array, ""],
    sampling: Sampling,
    hands: int,
    lanes: int,
    max_turns: int,
    size: int,
    reply_length: int,
    chunk: int,
) -> tuple[Int[Array, "hands K"], PyTree]:
    """Outcome of every try at episodes 0 .. hands-1 (-1: no such try), and their first states.

    A lane that has ended an episode takes the next one that nobody has played.
    """
    states = jax.vmap(lambda e: task.reset(jax.random.fold_in(deal, e)))(jnp.arange(hands))
    seats = _seated(model, start(task, deal, jnp.arange(lanes), size))
    table = jnp.full((hands, max_turns), -1)

    def unfinished(carry):
        return (carry[0].episode < hands).any()

    def step(carry):
        seats, table = carry
        active = seats.episode < hands
        seats, record = play_turn(
            model, task, seats, deal, draw, sampling, reply_length, chunk, active
        )
        row = jnp.where(active, record.episode, hands)
        return seats, table.at[row, record.turn].set(record.outcome, mode="drop")

    return jax.lax.while_loop(unfinished, step, (seats, table))[1], states


def _appended(context: Context, tokens: Int[Array, "T"], length: Int[Array, ""]) -> Context:
    at = context.length + jnp.arange(tokens.shape[0])
    at = jnp.where(jnp.arange(tokens.shape[0]) < length, at, context.tokens.shape[0])
    return Context(context.tokens.at[at].set(tokens, mode="drop"), context.length + length)


def _chosen(mask: Bool[Array, "B"], yes: PyTree, no: PyTree) -> PyTree:
    def pick(a, b):
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)

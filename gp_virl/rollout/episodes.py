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
from gp_virl.model.cache import CrossCache, LaneCache, empty
from gp_virl.model.mllama import Mllama
from gp_virl.rollout import generate, sight
from gp_virl.rollout.sampling import Sampling
from gp_virl.types import Context


@struct.dataclass
class Lanes:
    """What B lanes carry from turn to turn."""

    state: PyTree  # the environment's, leading axis B
    context: Context  # wanted at the next reply
    cache: LaneCache | None  # None between rollouts: other parameters will fill it
    images: CrossCache | None  # in sight; None between rollouts, and without images
    fresh: Bool[Array, "B"]  # True where the image in sight is still to be encoded
    episode: Int[Array, "B"]  # number of the episode being played
    turn: Int[Array, "B"]  # replies of that episode so far
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
    recognized: Bool[Array, "*r B"]  # the reply names rightly what is to be seen
    solved: Bool[Array, "*r B"]  # the episode is won with this reply
    terminated: Bool[Array, "*r B"]  # nothing follows
    truncated: Bool[Array, "*r B"]  # cut off from outside
    closed: Bool[Array, "*r B"]  # the next reply opens another conversation
    played: Bool[Array, "*r B"]  # False where the lane had no episode left
    episode: Int[Array, "*r B"]
    turn: Int[Array, "*r B"]  # 0 at the first reply of an episode
    prefilled: Int[Array, "*r B"]  # context tokens that had to be run before the reply
    encoded: Bool[Array, "*r B"]  # True where an image had to be encoded before the reply
    scene: PyTree  # what the image in sight shows (see envs.api.Task), leading axes R B; or None


@struct.dataclass
class Tries:
    """Up to K replies of each episode of an evaluation."""

    outcome: Int[Array, "hands K"]  # -1: no such try
    recognized: Bool[Array, "hands K"]
    solved: Bool[Array, "hands K"]  # the episode ended with this reply, and well


def start(task: Task, key: Key[Array, ""], episode: Int[Array, "B"], size: int) -> Lanes:
    """Lanes at the first context of the given episodes, with room for `size` tokens."""
    state = jax.vmap(lambda e: task.reset(jax.random.fold_in(key, e)))(episode)
    lanes = episode.shape[0]
    blank = Context(jnp.zeros((lanes, size), jnp.int32), jnp.zeros(lanes, jnp.int32))
    context = jax.vmap(task.observe)(state, blank)
    return Lanes(
        state=state,
        context=context,
        cache=None,
        images=None,
        fresh=jnp.full(lanes, task.image_token is not None),
        episode=episode,
        turn=jnp.zeros(lanes, jnp.int32),
        next=episode.max() + 1,
    )


def _seated(model: Mllama, task: Task, lanes: Lanes) -> Lanes:
    """Lanes with room for tokens and images, and all images still to be encoded."""
    count, size = lanes.context.tokens.shape
    scene = jax.vmap(task.scene)(lanes.state)
    return lanes.replace(
        cache=empty(model.config, count, size),
        images=sight.blank(model, task, scene),
        fresh=jnp.full(count, task.image_token is not None),
    )


def play_turn(
    model: Mllama,
    task: Task,
    lanes: Lanes,
    deal: Key[Array, ""],
    draw: Key[Array, ""],
    sampling: Sampling,
    reply_length: int,
    chunk: int,
    together: int,
    active: Bool[Array, "B"],
) -> tuple[Lanes, Rollout]:
    """One reply of every active lane, judged; returns the lanes after it and its record.

    `deal` is the key of the episodes, `draw` that of the sampled tokens. Up to `chunk` tokens of
    a lane are read, and `together` images are encoded, at once.
    """
    keys = jax.vmap(lambda e, t: jax.random.fold_in(jax.random.fold_in(draw, e), t))(
        lanes.episode, lanes.turn
    )
    scene, fresh = jax.vmap(task.scene)(lanes.state), lanes.fresh & active
    images = sight.encoded(model, task, lanes.images, scene, lanes.context, fresh, together)
    reply, cache = generate.turn(
        model, lanes.cache, lanes.context, keys, sampling, task.stop_ids,
        reply_length, chunk, active, images=images, new_image=fresh,
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
        recognized=verdict.recognized & active,
        solved=verdict.solved & active,
        terminated=verdict.terminated & active,
        truncated=verdict.truncated & active,
        closed=(verdict.closed | verdict.terminated | verdict.truncated) & active,
        played=active,
        episode=lanes.episode,
        turn=lanes.turn,
        prefilled=reply.prefilled,
        encoded=fresh,
        scene=scene,
    )
    return _moved_on(task, lanes, deal, state, past, record).replace(
        cache=cache, images=images
    ), record


def _moved_on(
    task: Task,
    lanes: Lanes,
    deal: Key[Array, ""],
    state: PyTree,
    past: Context,
    record: Rollout,
) -> Lanes:
    """The lanes at their next replies: `state` after the last ones, other episodes where over."""
    active, over = record.played, record.terminated | record.truncated
    episode = jnp.where(over, lanes.next + jnp.cumsum(over) - 1, lanes.episode)
    another = jax.vmap(lambda e: task.reset(jax.random.fold_in(deal, e)))(episode)
    state = _chosen(over, another, state)
    context = jax.vmap(task.observe)(state, past)
    context = _chosen(active, context, lanes.context)
    state = _chosen(active, state, lanes.state)
    unseen = lanes.fresh & ~active
    if task.image_token is not None:
        unseen |= sight.changed(record.scene, jax.vmap(task.scene)(state))
    return lanes.replace(
        state=state,
        context=context,
        fresh=unseen,
        episode=episode,
        turn=jnp.where(over, 0, lanes.turn + active),
        next=lanes.next + over.sum(),
    )


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
    together: int,
) -> tuple[Lanes, Rollout, Float[Array, "R B"]]:
    """`turns` replies per lane, and the value of the context that follows each reply.

    The lanes come and go without caches, which would hold what other parameters made of tokens
    and images. After the last turn the value is that of the next context. Where an episode was cut
    off from outside, the context that would have followed is never built; its value is taken as
    that of the last one.
    """
    lanes = _seated(model, task, lanes)
    active = jnp.ones(lanes.episode.shape, bool)

    def step(lanes, _):
        return play_turn(
            model, task, lanes, deal, draw, sampling, reply_length, chunk, together, active
        )

    lanes, roll = jax.lax.scan(step, lanes, length=turns)
    scene = jax.vmap(task.scene)(lanes.state)
    images = sight.encoded(model, task, lanes.images, scene, lanes.context, lanes.fresh, together)
    last, _ = generate.prefill(
        model, lanes.cache, lanes.context, chunk, active, images, lanes.fresh
    )
    following = jnp.concatenate([roll.value[1:], model.value(last)[None]])
    lanes = lanes.replace(cache=None, images=None)
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
    together: int,
) -> tuple[Tries, PyTree]:
    """Every try at episodes 0 .. hands-1, at most K = max_turns each, and their first states.

    A lane that has ended an episode takes the next one that nobody has played.
    """
    states = jax.vmap(lambda e: task.reset(jax.random.fold_in(deal, e)))(jnp.arange(hands))
    seats = _seated(model, task, start(task, deal, jnp.arange(lanes), size))
    tries = Tries(
        outcome=jnp.full((hands, max_turns), -1),
        recognized=jnp.zeros((hands, max_turns), bool),
        solved=jnp.zeros((hands, max_turns), bool),
    )

    def unfinished(carry):
        return (carry[0].episode < hands).any()

    def step(carry):
        seats, tries = carry
        active = seats.episode < hands
        seats, record = play_turn(
            model, task, seats, deal, draw, sampling, reply_length, chunk, together, active
        )
        place = jnp.where(active, record.episode, hands), record.turn
        return seats, Tries(*[
            getattr(tries, name).at[place].set(getattr(record, name), mode="drop")
            for name in Tries.__dataclass_fields__
        ])  # fmt: skip

    return jax.lax.while_loop(unfinished, step, (seats, tries))[1], states


def _appended(context: Context, tokens: Int[Array, "T"], length: Int[Array, ""]) -> Context:
    at = context.length + jnp.arange(tokens.shape[0])
    at = jnp.where(jnp.arange(tokens.shape[0]) < length, at, context.tokens.shape[0])
    return Context(context.tokens.at[at].set(tokens, mode="drop"), context.length + length)


def _chosen(mask: Bool[Array, "B"], yes: PyTree, no: PyTree) -> PyTree:
    def pick(a, b):
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)

"""Navigation as the rollout plays it: tokens in, tokens out.

Everything that tells one split from another is an array, so that one compiled program plays them
all as long as their banks have the same shapes.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key, UInt8
from transformers import PreTrainedTokenizerBase

from gp_virl.config import RouteRewards
from gp_virl.envs.navigation import (
    ACTIONS,
    OUTCOMES,
    Journey,
    Navigation,
    Scene,
    State,
    along,
)
from gp_virl.envs.route_dialogue import RouteDialogue, RoutePieces
from gp_virl.envs.routes import RULES, RouteBank
from gp_virl.text import replies, route_replies, template
from gp_virl.text.route_prompts import RouteWording
from gp_virl.text.template import PieceBank
from gp_virl.types import Context, Verdict


@runtime_checkable
class Views(Protocol):
    """What the agent sees, a PyTree."""

    def picture(self, pano: Int[Array, ""], heading: Int[Array, ""]) -> UInt8[Array, "H W 3"]:
        """The picture of a panorama for who faces `heading` degrees."""
        ...


@struct.dataclass
class RouteGame:
    """A split's environment, its compiled texts and the reader of replies (a `Task`)."""

    env: Navigation
    pieces: RoutePieces
    spelling: PieceBank  # token id -> bytes
    actions: UInt8[Array, "actions w"]  # spellings of ACTIONS
    stop_ids: Int[Array, "n"]  # a reply ends with any of these
    eot: Int[Array, ""]  # the one that the chat template ends it with
    image_token: Int[Array, ""] | None  # where the prompt has the street view
    views: Views | None  # None where observations are told
    reply_bytes: int = struct.field(pytree_node=False)  # what lies behind is not read
    answer_field: bytes = struct.field(pytree_node=False)
    context_limit: int = struct.field(pytree_node=False)  # tokens of the longest conversation
    turn_limit: int = struct.field(pytree_node=False)  # replies of the longest episode

    @classmethod
    def build(
        cls,
        bank: RouteBank,
        names: Sequence[str],
        rule: str,
        max_turns: int,
        rewards: RouteRewards,
        tokenizer: PreTrainedTokenizerBase,
        wording: RouteWording,
        views: Views | None,
        reply_length: int,
        reply_bytes: int,
        allowed: Sequence[int] | None = None,
    ) -> "RouteGame":
        """Compiled and checked: TemplateError or ValueError if the parts don't fit together.

        With `views` the landmarks must be seen in them; without, observations are told. Only
        `allowed` routes of the bank are drawn; by default all are.
        """
        env = Navigation.build(bank, names, rule, max_turns, rewards, allowed)
        legs, waypoints = bank.leg_heading.shape[1], bank.kind.shape[1]
        dialogue = RouteDialogue.build(tokenizer, wording, names, legs, visual=views is not None)
        limit = dialogue.context_limit(_all_ways(env), reply_length, max_turns)
        return cls(
            env=env,
            pieces=dialogue.pieces,
            spelling=replies.byte_bank(tokenizer),
            actions=jnp.asarray(route_replies.byte_rows(ACTIONS)),
            stop_ids=jnp.array(dialogue.stops),
            eot=jnp.int32(dialogue.eot),
            image_token=jnp.int32(dialogue.image_token) if views is not None else None,
            views=views,
            reply_bytes=reply_bytes,
            answer_field=wording.answer_field.encode(),
            context_limit=limit,
            turn_limit=waypoints * max_turns,
        )

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the values of `Verdict.outcome`; the first is 'correct'."""
        return OUTCOMES

    def reset(self, key: Key[Array, ""]) -> State:
        """A drawn route's start."""
        return self.env.reset(key)

    def observe(self, state: State, past: Context) -> Context:
        """The whole context wanted: the prompt of a new waypoint, else `past` and the feedback.

        `past` ends with the last reply, whose tokens stay as they were sampled; the feedback
        starts with the end token if that reply was cut before it.
        """
        way, size = self.env.journey(state), past.tokens.shape[0]
        prompt = template.compose(self.pieces.bank, self.pieces.prompt(way, state.waypoint), size)
        ended = past.tokens[past.length - 1] == self.eot
        later = template.append(past, self.pieces.bank, self.pieces.feedback(state.fault, ended))
        fresh = state.tries == 0
        return jax.tree.map(lambda new, old: jnp.where(fresh, new, old), prompt, later)

    def scene(self, state: State) -> Scene | None:
        """What the street view in sight is taken of; None where observations are told."""
        return None if self.views is None else self.env.scene(state)

    def picture(self, scene: Scene | None) -> UInt8[Array, "H W 3"] | None:
        """The street view of a scene; None for None."""
        return None if scene is None else self.views.picture(scene.pano, scene.heading)

    def judge(
        self, state: State, tokens: Int[Array, "T"], length: Int[Array, ""]
    ) -> tuple[State, Verdict]:
        """The state after a reply of `length` tokens, and its verdict."""
        text, size = replies.read(self.spelling, tokens, length, self.reply_bytes)
        return self.env.step(state, route_replies.parse(text, size, self.actions))

    def answer_start(self, tokens: Int[Array, "T"], length: Int[Array, ""]) -> Int[Array, ""]:
        """How many reply tokens end before the last answer field; all of them if there is none."""
        return replies.field_start(
            self.spelling, tokens, length, self.reply_bytes, self.answer_field
        )


@jax.jit
def _all_ways(env: Navigation) -> Journey:
    """Every route's journeys under each rule, with a first turn in each relative direction.

    A start heading that is given stays. The rules' prompts then have one limit, and one program.
    """
    bank, rules = env.bank, jnp.arange(len(RULES))
    drawn = (bank.leg_heading[:, :1] - jnp.array([-90, -20, 20, 90])) % 360
    start = jnp.where(bank.start_heading[:, None] < 0, drawn, bank.start_heading[:, None])
    turned = jax.vmap(along, (None, 0, None))
    ways = jax.vmap(jax.vmap(turned, (0, 0, None)), (None, None, 0))(bank, start, rules)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), ways)

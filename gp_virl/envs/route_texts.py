"""What is said on a route, as text for people and data; `route_dialogue` compiles the same.

Where landmarks must be seen (`visual`), neither the present observation nor the history tells
them: of the places passed the history holds the intersections and the actions only.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gp_virl.envs.navigation import (
    ACTIONS,
    DIRECTIONS,
    NOT_DETECTED,
    OUTCOMES,
    Fault,
    Journey,
)
from gp_virl.envs.routes import SIDES
from gp_virl.text.route_prompts import RouteWording
from gp_virl.text.template import IMAGE
from gp_virl.text.wordings import put

Tree = TypeVar("Tree", Journey, Fault)

# Feedback texts of a wording, in the order of `RoutePieces.feedbacks`.
VARIANTS = (
    "correct",
    "wrong_action",
    "no_action",
    "missed_landmark",
    "missed_intersection",
    "missed_both",
)
# Rows of `RouteWording.sentence_rows` and of `RouteWording.present_rows`.
ONWARD, ONWARD_LANDMARK, ARRIVE = 2, 3, 4
AT_DESTINATION = 4


@dataclasses.dataclass(frozen=True)
class RouteTexts:
    """The wording with the landmarks' names; journeys are rows of NumPy or JAX arrays."""

    wording: RouteWording
    names: tuple[str, ...]
    visual: bool  # landmarks must be seen in the picture

    @property
    def image(self) -> str:
        """What stands for the picture at the start of a prompt."""
        return IMAGE if self.visual else ""

    def prompt_text(self, way: Journey, waypoint: int) -> str:
        """The user's first message at a waypoint."""
        words = self.wording
        items = words.sentence_rows()
        sentences = [self._sentence(items, way, index) for index in range(2 * int(way.legs))]
        steps = words.step_rows(self.visual)
        passed = [
            put(steps[seen_row(way, w)], **self._place(way, w), action=ACTIONS[int(way.action[w])])
            for w in range(waypoint)
        ]
        now = words.present_rows(self.visual)[seen_row(way, waypoint)]
        return self.image + put(
            words.prompt,
            rule=(words.absolute, words.relative)[int(way.rule)],
            instructions="".join(sentences),
            history="".join(passed),
            observation=put(now, **self._place(way, waypoint)),
        )

    def observation_text(self, way: Journey, waypoint: int) -> str:
        """What the expert sees at a waypoint."""
        seen = self.wording.observation_rows(visual=False)[seen_row(way, waypoint)]
        return put(seen, **self._place(way, waypoint))

    def instruction_text(self, way: Journey, waypoint: int) -> str:
        """The sentence that is carried out at a waypoint."""
        words = self.wording
        sentences = (
            words.turn_absolute, words.turn_relative, words.onward, words.onward_landmark,
            words.arrive,
        )  # fmt: skip
        return self._sentence(sentences, way, int(way.sentence[waypoint]))

    def expert_reply(self, way: Journey, waypoint: int) -> str:
        """A reply in the expert's form."""
        return put(
            self.wording.reply,
            observation=_escaped(self.observation_text(way, waypoint)),
            instruction=_escaped(self.instruction_text(way, waypoint)),
            action=ACTIONS[int(way.action[waypoint])],
        )

    def feedback_text(self, fault: Fault) -> str:
        """The user's message after a reply with this fault."""
        variant = getattr(self.wording, VARIANTS[int(feedback_row(fault))])
        return put(variant, action=ACTIONS[int(fault.action)])

    def _sentence(self, rows: Sequence[str], way: Journey, index: int) -> str:
        leg = index // 2
        landmark, last = int(way.leg_landmark[leg]), leg + 1 == int(way.legs)
        onward = ARRIVE if last else ONWARD_LANDMARK if landmark >= 0 else ONWARD
        return put(
            rows[onward if index % 2 else int(way.rule)],
            number=index + 1,
            direction=DIRECTIONS[int(way.direction[leg])],
            landmark=self.names[landmark],
            side=SIDES[int(way.leg_side[leg])],
        )

    def _place(self, way: Journey, waypoint: int) -> dict[str, str]:
        landmark, side = int(way.landmark[waypoint]), int(way.side[waypoint])
        return {"landmark": self.names[landmark], "side": SIDES[side]} if landmark >= 0 else {}


def fetched(tree: Tree, row: int | None = None) -> Tree:
    """A journey or a fault on the host, where texts are written; of several, one row."""
    return jax.tree.map(lambda x: np.asarray(x if row is None else x[row]), tree)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def seen_row(way: Journey, waypoint: int) -> int:
    """Row of `RouteWording.observation_rows`; those of steps and of the present begin like it."""
    if waypoint + 1 == int(way.length):
        return AT_DESTINATION
    return 2 * int(way.landmark[waypoint] >= 0) + int(way.intersection[waypoint])


def feedback_row(fault: Fault) -> Int[Array, ""]:
    """Index into VARIANTS."""
    action = jnp.where(fault.action < 0, 2, 1)
    missed = jnp.where(fault.landmark, jnp.where(fault.intersection, 5, 3), 4)
    wrong = jnp.where(fault.outcome == NOT_DETECTED, missed, action)
    return jnp.where(fault.outcome == OUTCOMES.index("correct"), 0, wrong)

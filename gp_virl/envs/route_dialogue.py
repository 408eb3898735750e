"""Navigation's texts as tokens on the device.

`RouteDialogue` compiles a wording and the landmarks' names for one tokenizer and proves that its
pieces compose to the tokens of the tokenizer's own chat template.
"""

import dataclasses
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int
from transformers import PreTrainedTokenizerBase

from gp_virl.envs.navigation import ACTIONS, DIRECTIONS, Fault, Journey
from gp_virl.envs.route_texts import (
    ARRIVE,
    AT_DESTINATION,
    ONWARD,
    ONWARD_LANDMARK,
    VARIANTS,
    RouteTexts,
    feedback_row,
    fetched,
)
from gp_virl.envs.routes import SIDES
from gp_virl.text import template
from gp_virl.text.route_prompts import RouteWording
from gp_virl.text.template import (
    Case,
    ChatGlue,
    Layout,
    ListTexts,
    PieceBank,
    Pieces,
    Slot,
    TemplateError,
)

_SLOTS = ("rule", "number", "direction", "landmark", "side", "action", "end")
# Where the slots stand in the values that fill a layout; 0 and 1 are a literal's and an absence.
PLACES = {(name, 0): 2 + place for place, name in enumerate(_SLOTS)}
_PROOF_WAYPOINTS, _PROOF_CASES, _PROOF_BARE = 6, 2 * len(VARIANTS) * len(ACTIONS), 32


@struct.dataclass
class RoutePieces:
    """The compiled texts. A layout has a row for each variant of its text."""

    bank: PieceBank
    opening: Layout
    sentences: Layout
    middle: Layout
    steps: Layout
    present: Layout
    feedbacks: Layout  # a row for each of VARIANTS

    def prompt(self, way: Journey, waypoint: Int[Array, ""]) -> Int[Array, "k"]:
        """Entries of a conversation up to where the first reply begins."""
        number = jnp.arange(2 * way.direction.shape[0])
        leg, passed = number // 2, jnp.arange(way.action.shape[0] - 1)
        landmark = way.leg_landmark[leg]
        onward = jnp.where(landmark >= 0, ONWARD_LANDMARK, ONWARD)
        onward = jnp.where(leg == way.legs - 1, ARRIVE, onward)
        sentences = _filled(
            self.sentences,
            jnp.where(number % 2 == 0, way.rule, onward),
            number < 2 * way.legs,
            number=number,
            direction=way.direction[leg],
            landmark=landmark,
            side=way.leg_side[leg],
        )
        seen = 2 * (way.landmark >= 0) + way.intersection
        steps = _filled(
            self.steps,
            seen[:-1],
            passed < waypoint,
            landmark=way.landmark[:-1],
            side=way.side[:-1],
            action=way.action[:-1],
        )
        yes = jnp.ones(1, bool)
        row = jnp.where(waypoint + 1 == way.length, AT_DESTINATION, seen[waypoint])[None]
        place = {"landmark": way.landmark[waypoint], "side": way.side[waypoint]}
        opening = _filled(self.opening, jnp.zeros(1, jnp.int32), yes, rule=way.rule)
        middle = _filled(self.middle, jnp.zeros(1, jnp.int32), yes)
        present = _filled(self.present, row, yes, **place)
        return jnp.concatenate([opening, sentences, middle, steps, present])

    def feedback(self, fault: Fault, ended: Bool[Array, ""]) -> Int[Array, "k"]:
        """Entries from the end of a reply up to where the next reply begins.

        `ended`: the reply's last token is the end token; if it isn't, these entries start with one.
        """
        end = jnp.where(ended, -1, 0)
        yes = jnp.ones(1, bool)
        return _filled(self.feedbacks, feedback_row(fault)[None], yes, action=fault.action, end=end)


@jax.jit
def _prompts(pieces: RoutePieces, ways: Journey, waypoints: Int[Array, "n"]) -> Int[Array, "n k"]:
    return jax.vmap(pieces.prompt)(ways, waypoints)


@jax.jit
def _feedbacks(pieces: RoutePieces, faults: Fault, ended: Bool[Array, "n"]) -> Int[Array, "n k"]:
    return jax.vmap(pieces.feedback)(faults, ended)


def _filled(
    layout: Layout, row: Int[Array, "n"], present: Bool[Array, "n"], **slots: Int[Array, "..."]
) -> Int[Array, "k"]:
    """Entries of n texts, one after the other: row[i] of the layout with its slots filled."""
    count = row.shape[0]
    columns = [jnp.zeros(count, jnp.int32), jnp.full(count, -1, jnp.int32)]
    columns += [jnp.broadcast_to(slots.get(name, jnp.int32(-1)), (count,)) for name in _SLOTS]
    rows = jax.tree.map(lambda part: part[row], layout)
    entries = jax.vmap(template.fill)(rows, jnp.stack(columns, axis=1))
    return jnp.where(present[:, None], entries, -1).reshape(-1)


class _SharedPieces(Pieces):
    """Equal tables share their entries, as there may be thousands of names."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        self._tables: dict[tuple[str, ...], int] = {}

    def table(self, texts: Sequence[str]) -> int:
        key = tuple(texts)
        if key not in self._tables:
            self._tables[key] = super().table(key)
        return self._tables[key]


@dataclasses.dataclass(frozen=True, eq=False)
class RouteDialogue(RouteTexts):
    """The texts compiled for one tokenizer; `build` makes it and proves it."""

    pieces: RoutePieces
    eot: int  # the token that ends a reply
    stops: tuple[int, ...]  # generation ends after any of these; eot is the first
    image_token: int | None  # stands at the start of the prompt; None where places are told
    present_limit: int  # tokens of the longest present observation
    feedback_limit: int  # tokens of the longest feedback, with the end token of a cut reply

    @classmethod
    def build(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        wording: RouteWording,
        names: Sequence[str],
        legs: int,
        visual: bool,
    ) -> "RouteDialogue":
        """Compiled for routes of up to `legs` legs past landmarks of these names, and proved.

        TemplateError if wording, names and tokenizer don't go together.
        """
        texts = RouteTexts(wording, tuple(names), visual)
        legs = max(legs, 2)  # a proof walks past a landmark before it arrives
        glue, pieces = ChatGlue.of(tokenizer, visual), _SharedPieces(tokenizer)
        image_token = template.image_token(tokenizer) if visual else None
        _refuse_special(tokenizer, names)
        groups = _compile(texts, glue, pieces, legs)
        layouts = {name: template.lay_out(rows, PLACES) for name, rows in groups.items()}
        compiled = RoutePieces(bank=pieces.bank(), **layouts)
        template.prove("navigation", pieces, _cases(texts, compiled, pieces, legs))
        return cls(
            wording,
            texts.names,
            visual,
            pieces=compiled,
            eot=glue.end_id,
            stops=template.stop_tokens(tokenizer, glue),
            image_token=image_token,
            present_limit=max(template.longest(row, pieces) for row in groups["present"]),
            feedback_limit=max(template.longest(row, pieces) for row in groups["feedbacks"]),
        )

    def context_limit(self, ways: Journey, reply_length: int, max_turns: int) -> int:
        """Tokens of the longest possible conversation on these journeys, last reply included."""
        entries = np.asarray(_prompts(self.pieces, ways, ways.length - 1))
        held = np.where(entries < 0, 0, np.asarray(self.pieces.bank.length)[entries]).sum(-1)
        replies = max_turns * reply_length + (max_turns - 1) * self.feedback_limit
        return int(held.max()) + self.present_limit + replies


Atoms = tuple[int | Slot, ...]


def _refuse_special(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> None:
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    for name, ids in zip(names, template.encode(tokenizer, list(names)), strict=True):
        if special & set(ids):
            raise TemplateError(f"landmark {name!r} spells a special token; leave its route out")


def _compile(
    texts: RouteTexts, glue: ChatGlue, pieces: Pieces, legs: int
) -> dict[str, list[Atoms]]:
    """Atoms of every text of `RoutePieces`, chat strings included."""
    words = texts.wording
    lists = {
        "rule": ListTexts((words.absolute, words.relative), "", 1),
        "number": ListTexts(tuple(str(n + 1) for n in range(2 * legs)), "", 1),
        "direction": ListTexts(DIRECTIONS, "", 1),
        "landmark": ListTexts(texts.names, "", 1),
        "side": ListTexts(SIDES, "", 1),
        "action": ListTexts(ACTIONS, "", 1),
    }

    def atoms(text: str) -> Atoms:
        return template.compile_parts(pieces, template.split(text, lists, "wording"), lists)

    head, rest = words.prompt.split("{instructions}")
    middle, rest = rest.split("{history}")
    before, after = rest.split("{observation}")
    end = pieces.add(glue.end)
    cut = Slot("end", 0, end, end)
    return {
        "opening": [atoms(glue.opening + texts.image + head)],
        "sentences": [atoms(row) for row in words.sentence_rows()],
        "middle": [atoms(middle)],
        "steps": [atoms(row) for row in words.step_rows(texts.visual)],
        "present": [
            atoms(before + row + after + glue.asking) for row in words.present_rows(texts.visual)
        ],
        "feedbacks": [
            (cut, *atoms(glue.next + getattr(words, name) + glue.asking)) for name in VARIANTS
        ],
    }


def _cases(texts: RouteTexts, compiled: RoutePieces, pieces: Pieces, legs: int) -> list[Case]:
    """Conversations in which every text occurs wherever it can, neighbours random."""
    ways, waypoints, faults = _made_up(len(texts.names), legs)
    asked = np.asarray(_prompts(compiled, ways, waypoints))
    told = np.asarray(_feedbacks(compiled, faults, jnp.zeros(len(asked), bool)))
    ways, faults = fetched(ways), fetched(faults)
    cases = []
    for row, waypoint in enumerate(waypoints.tolist()):
        way, fault = fetched(ways, row), fetched(faults, row)
        reply = texts.expert_reply(way, waypoint)
        contents = [texts.prompt_text(way, waypoint), reply, texts.feedback_text(fault)]
        text = template.render(pieces.tokenizer, template.chat(contents), True)
        parts = (*asked[row][asked[row] >= 0].tolist(), reply)
        parts += tuple(told[row][told[row] >= 0].tolist())
        cases.append(Case(f"conversation {row}", text, parts))
    return cases


def _made_up(names: int, legs: int) -> tuple[Journey, Int[Array, "n"], Fault]:
    """Journeys that no map has: each name is at a landmark and at a destination, told and seen.

    Even ones are at their destination, odd ones on the way (or, now and then, at the start); the
    last of these have nothing in sight.
    """
    draw, points = np.random.default_rng(random.Random(0).getrandbits(32)), _PROOF_WAYPOINTS
    count = max(2 * names, _PROOF_CASES) + _PROOF_BARE
    case, ahead = np.arange(count)[:, None], np.arange(points)
    leg_landmark = (case // 2 + np.arange(legs)) % names
    leg_landmark[:, 1:-1][draw.random((count, max(legs - 2, 0))) < 0.3] = -1
    leg_landmark[:, -1] = case[:, 0] // 2 % names
    landmark = (case // 2 + ahead) % names
    landmark[:, 3:-1][draw.random((count, points - 4)) < 0.8] = -1
    on_way = np.where(draw.random(count) < 0.1, 0, draw.integers(1, points - 1, count))
    waypoint = np.where(case[:, 0] % 2 == 0, points - 1, on_way)
    landmark[np.arange(count), waypoint] = case[:, 0] // 2 % names
    bare = np.arange(count - _PROOF_BARE + 1, count, 2)
    landmark[bare, waypoint[bare]] = -1
    intersection = draw.random((count, points)) < 0.5
    intersection[:, -1] = False
    way = _arrays(
        rule=case[:, 0] // 2 % 2,
        legs=np.full(count, legs),
        length=np.full(count, points),
        direction=(case + 5 * np.arange(legs)) % len(DIRECTIONS),
        leg_landmark=leg_landmark,
        leg_side=draw.integers(len(SIDES), size=(count, legs)),
        action=(case + 3 * ahead) % len(ACTIONS),
        landmark=landmark,
        side=draw.integers(len(SIDES), size=(count, points)),
        intersection=intersection,
        sentence=draw.integers(2 * legs, size=(count, points)),
        pano=landmark,
        heading=landmark,
    )
    variant = case[:, 0] % len(VARIANTS)
    fault = _arrays(
        outcome=np.array([0, 1, 1, 2, 2, 2])[variant],
        action=np.where(variant == 2, -1, case[:, 0] // len(VARIANTS) % len(ACTIONS)),
        landmark=np.isin(variant, (3, 5)),
        intersection=variant > 3,
    )
    return Journey(**way), jnp.asarray(waypoint, jnp.int32), Fault(**fault)


def _arrays(**fields: np.ndarray) -> dict[str, Array]:
    kinds = {name: bool if x.dtype == bool else jnp.int32 for name, x in fields.items()}
    return {name: jnp.asarray(x, kinds[name]) for name, x in fields.items()}

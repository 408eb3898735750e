"""The wording of navigation: data only. route_dialogue.py compiles it and speaks it.

Slots are {name} in lower case; any other brace is text. Which may stand in a text, and which
must, is in `SLOTS`. A prompt holds what stays the same on a route first and what is seen now last,
so that the prompts of one route share their beginnings.
"""

import dataclasses
from collections.abc import Mapping

from gp_virl.text import wordings
from gp_virl.text.template import IMAGE, split
from gp_virl.text.wordings import put

PROMPT_ORDER = ("rule", "instructions", "history", "observation")
PLACE = ("landmark", "side")
# Texts with slots: (slots that must occur, slots that may).
SLOTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompt": (PROMPT_ORDER, ()),
    "absolute": ((), ()),
    "relative": ((), ()),
    "item": (("sentence",), ("number",)),
    "turn_absolute": (("direction",), ()),
    "turn_relative": (("direction",), ()),
    "onward": ((), ()),
    "onward_landmark": (PLACE, ()),
    "arrive": (PLACE, ()),
    "step": (("observation", "action"), ()),
    "nothing": ((), ()),
    "landmark": (PLACE, ()),
    "destination": (PLACE, ()),
    "intersection": ((), ()),
    "no_intersection": ((), ()),
    "reply": (("observation", "action"), ("instruction",)),
    "correct": ((), ()),
    "wrong_action": ((), ("action",)),
    "no_action": ((), ()),
    "missed_landmark": ((), ()),
    "missed_intersection": ((), ()),
    "missed_both": ((), ()),
}
MESSAGES = ("prompt", "reply", *list(SLOTS)[-6:])  # a chat template trims these


@dataclasses.dataclass(frozen=True)
class RouteWording:
    """Everything that is said on a route, by the environment and by the expert."""

    prompt: str
    absolute: str  # {rule} where directions are compass words
    relative: str  # {rule} where they are left, right, slightly left, slightly right
    item: str  # one of the instructions; {number} from 1
    turn_absolute: str  # sentences: a turn before a leg,
    turn_relative: str
    onward: str  # a leg to an intersection without a landmark,
    onward_landmark: str  # to one with a landmark,
    arrive: str  # and to the destination
    step: str  # one entry of the history
    nothing: str  # observations: no landmark,
    landmark: str
    destination: str
    separator: str  # and between one of these and the next
    intersection: str
    no_intersection: str  # where landmarks must be seen: said for want of any other text
    reply: str  # of the expert
    answer_field: str  # where the answer starts in a reply; what is before it is thought
    correct: str
    wrong_action: str  # a known action, but not the right one: {action}
    no_action: str  # no known action
    missed_landmark: str  # the action is wrong too
    missed_intersection: str
    missed_both: str

    def __post_init__(self):
        for name, (required, optional) in SLOTS.items():
            text = getattr(self, name)
            parts = split(text, {*required, *optional}, f"wording {name!r}")
            found = [slot for kind, slot in parts if kind == "slot"]
            if sorted(found) != sorted(set(found)) or not set(required) <= set(found):
                slots = ", ".join(f"{{{slot}}}" for slot in required)
                raise ValueError(f"wording {name!r} must have once each {slots}: {text!r}")
            if name == "prompt" and tuple(found) != PROMPT_ORDER:
                raise ValueError(
                    f"wording 'prompt' has its slots in the order {found}, allowed: "
                    f"{list(PROMPT_ORDER)}, so that prompts of one route share their beginnings"
                )
            if name in MESSAGES and (text != text.strip() or not text):
                raise ValueError(
                    f"wording {name!r} is empty or starts or ends with a blank, which chat "
                    f"templates trim: {text!r}"
                )
            if IMAGE in text:
                raise ValueError(
                    f"wording {name!r}: {IMAGE} is put before the prompt where there is a "
                    f"picture, and must stand nowhere else: {text!r}"
                )
        if self.answer_field not in self.reply:
            raise ValueError(
                f"wording: answer_field {self.answer_field!r} doesn't occur in the reply "
                f"{self.reply!r}"
            )

    def sentence_rows(self) -> tuple[str, ...]:
        """The instructions' templates: turn (absolute, relative), onward, to a landmark, arrive."""
        sentences = (
            self.turn_absolute, self.turn_relative, self.onward, self.onward_landmark, self.arrive,
        )  # fmt: skip
        return tuple(put(self.item, sentence=sentence) for sentence in sentences)

    def observation_rows(self, visual: bool) -> tuple[str, ...]:
        """Observations: nothing, landmark, destination; each without and with an intersection.

        Where landmarks must be seen (`visual`) the text is about the intersection alone.
        """
        if visual:
            return (self.no_intersection, self.intersection) * 3
        with_crossing = self.separator + self.intersection
        seen = (self.nothing, self.landmark, self.destination)
        return tuple(text + more for text in seen for more in ("", with_crossing))

    def step_rows(self, visual: bool) -> tuple[str, ...]:
        """The history's templates; the destination is never in it."""
        seen = self.observation_rows(visual)[:4]
        return tuple(put(self.step, observation=text) for text in seen)

    def present_rows(self, visual: bool) -> tuple[str, ...]:
        """The present observation's templates; the destination is no intersection."""
        return self.observation_rows(visual)[:5]

    def text_literals(self) -> list[str]:
        """The texts between the slots, without the blank before a slot, in order."""
        whole = [*(getattr(self, name) for name in SLOTS), self.separator + self.intersection]
        literals, slots = [], {slot for must, may in SLOTS.values() for slot in (*must, *may)}
        for text in whole:
            parts = split(text, slots, "wording")
            literals += [part.removesuffix(" ") for kind, part in parts if kind == "literal"]
        return [text for text in dict.fromkeys(literals) if text]


REPLY = (
    '{"current observation": "{observation}", "current instruction": "{instruction}", '
    '"action": "{action}"}'
)

BRIEF = RouteWording(
    prompt="{rule}\n{instructions}done\n{history}now\n{observation}",
    absolute="compass",
    relative="relative",
    item="{number}.{sentence}\n",
    turn_absolute="turn:{direction}",
    turn_relative="turn:{direction}",
    onward="go",
    onward_landmark="go:{landmark} is on your {side}",
    arrive="end:{landmark} is on your {side}",
    step="{observation}>{action}\n",
    nothing="No landmarks nearby",
    landmark="{landmark} is on your {side}",
    destination="The destination {landmark} is on your {side}",
    separator="; ",
    intersection="You observe an intersection",
    no_intersection="No intersection",
    reply=REPLY,
    answer_field='"action"',
    correct="Correct",
    wrong_action="Wrong:{action}",
    no_action="No action",
    missed_landmark="Wrong landmark",
    missed_intersection="Wrong intersection",
    missed_both="Wrong landmark and intersection",
)

FULL = RouteWording(
    prompt="""\
You are walking through a city. You follow a list of instructions to a destination and decide at \
every stop what to do next.

Your actions:
- "forward()": walk straight on.
- "turn_direction(x)": turn, then walk on, where x is one of {rule}.
- "stop()": end the walk, because you have reached the destination.

Answer with a JSON object on one line that has three keys: "current observation", the landmark \
you see and on which side of you it is, or "No landmarks nearby", followed by "; You observe an \
intersection" where there is one; "current instruction", the instruction that you carry out now; \
and "action", one of your actions. For example:
{"current observation": "Old Mill is on your left front; You observe an intersection", \
"current instruction": "Turn to your next direction.", "action": "forward()"}

Instructions:
{instructions}Your walk so far:
{history}Your observation now:
{observation}""",
    absolute="north, northeast, east, southeast, south, southwest, west, northwest",
    relative="left, right, slightly left, slightly right",
    item="{number}. {sentence}\n",
    turn_absolute="Turn to face {direction}.",
    turn_relative="Turn {direction}.",
    onward="Move forward until the next intersection.",
    onward_landmark="Move forward until the next intersection where {landmark} is on your {side}.",
    arrive="Move forward until the destination where the destination {landmark} is on your {side}.",
    step="{observation}; you chose {action} there.\n",
    nothing="No landmarks nearby",
    landmark="{landmark} is on your {side}",
    destination="The destination {landmark} is on your {side}",
    separator="; ",
    intersection="You observe an intersection",
    no_intersection="You observe no intersection",
    reply=REPLY,
    answer_field='"action"',
    correct="Correct: you walk on.",
    wrong_action="Wrong action: {action} is not what the instructions ask for here. Try again.",
    no_action="No action: the answer needs one of the actions above, spelled as there. Try again.",
    missed_landmark="Wrong observation and wrong action: the landmark you name is not what is to "
    "be seen here. Look again.",
    missed_intersection="Wrong observation and wrong action: look again whether this is an "
    "intersection.",
    missed_both="Wrong observation and wrong action: look again for the landmark and whether this "
    "is an intersection.",
)

WORDINGS: Mapping[str, RouteWording] = {"full": FULL, "brief": BRIEF}


def load_wording(name_or_path: str) -> RouteWording:
    """The wording 'full' or 'brief', or a user's; ValueError as `wordings.load`."""
    return wordings.load(name_or_path, RouteWording, WORDINGS)

"""The wording of the card game: data only. template.py compiles it, card_dialogue.py speaks it.

Slots are {name} in lower case; any other brace is text. {jack}, {queen}, {king} (their values) and
{target} may stand in every text but the reply; which others may, and which must, is in `SLOTS`.
`prompt_image` is the prompt of the game in which the cards are a picture.
"""

import dataclasses
from collections.abc import Mapping

from gp_virl.text import wordings
from gp_virl.text.template import IMAGE, split

RULE_SLOTS = ("jack", "queen", "king", "target")
PICTURED = "prompt_image"
# Texts with slots: (slots that must occur, slots that may besides those of the rule).
SLOTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompt": (("cards", *RULE_SLOTS), ()),
    PICTURED: (RULE_SLOTS, ()),
    "reply": (("cards", "numbers", "formula", "target"), ()),
    "solved": ((), ()),
    "wrong_value": (("value",), ()),
    "other_value": ((), ()),
    "foreign": (("foreign",), ()),
    "unused": (("unused",), ()),
    "foreign_and_unused": ((), ("foreign", "unused")),
    "illegal": ((), ()),
    "unrecognized": ((), ()),
}
LARGEST = 999  # numbers up to here can be named; each is a piece


@dataclasses.dataclass(frozen=True)
class Wording:
    """Everything that is said in the card game, by the environment and by the expert."""

    prompt: str
    prompt_image: str  # starts with <|image|>
    cards_separator: str  # between the four cards of the prompt
    reply: str  # of the expert; {cards} {numbers} {formula} {target}
    reply_cards_separator: str
    reply_numbers_separator: str
    answer_field: str  # where the answer starts in a reply; what is before it is thought
    solved: str
    wrong_value: str  # the formula's value is a whole number that can be named: {value}
    other_value: str  # any other wrong value, division by zero included
    foreign: str  # numbers beyond the hand's: {foreign}
    unused: str  # numbers of the hand left over: {unused}
    foreign_and_unused: str
    illegal: str
    unrecognized: str
    numbers_separator: str  # in lists of foreign and unused numbers
    largest: int  # larger numbers are named by `overflow`
    overflow: str
    foreign_named: int  # so many foreign numbers are named, 1 to 8
    unused_named: int  # and so many unused ones, 1 to 4

    def __post_init__(self):
        for name, (required, optional) in SLOTS.items():
            self._check_text(name, required, optional)
        for name, top in (("largest", LARGEST), ("foreign_named", 8), ("unused_named", 4)):
            low = 24 if name == "largest" else 1
            if not low <= getattr(self, name) <= top:
                raise ValueError(
                    f"wording field {name!r} is {getattr(self, name)}, must be {low} to {top}"
                )
        if self.answer_field not in self.reply:
            raise ValueError(
                f"wording: answer_field {self.answer_field!r} doesn't occur in the reply "
                f"{self.reply!r}"
            )

    def _check_text(self, name: str, required: tuple[str, ...], optional: tuple[str, ...]):
        text = getattr(self, name)
        allowed = {*required, *optional, *(RULE_SLOTS if name != "reply" else ())}
        found = [part[1] for part in split(text, allowed, f"wording {name!r}") if part[0] == "slot"]
        absent = [f"{{{slot}}}" for slot in required if slot not in found]
        if absent:
            raise ValueError(f"wording {name!r} lacks {', '.join(absent)}: {text!r}")
        spoken = text.removeprefix(IMAGE) if name == PICTURED else text
        if IMAGE in spoken or (name == PICTURED and spoken == text):
            raise ValueError(
                f"wording {name!r}: {IMAGE} must stand at the start of {PICTURED!r} and nowhere "
                f"else: {text!r}"
            )
        if spoken != spoken.strip() or not spoken:
            raise ValueError(
                f"wording {name!r} is empty or starts or ends with a blank, which chat templates "
                f"trim: {text!r}"
            )

    def text_literals(self) -> list[str]:
        """The texts between the slots, without the blank before a slot, in order.

        Those of `prompt_image` are left out.
        """
        texts = []
        for name, (required, optional) in SLOTS.items():
            if name == PICTURED:
                continue
            parts = split(getattr(self, name), {*required, *optional, *RULE_SLOTS}, name)
            texts += [text.removesuffix(" ") for kind, text in parts if kind == "literal"]
        texts += [self.reply_cards_separator, self.reply_numbers_separator, self.overflow]
        return [text for text in dict.fromkeys(texts) if text.strip()]


REPLY = '{"cards": ["{cards}"], "number": [{numbers}], "formula": "{formula}={target}"}'

BRIEF = Wording(
    prompt="{cards} with J={jack}, Q={queen}, K={king}: make {target}",
    prompt_image=IMAGE + "cards with J={jack}, Q={queen}, K={king}: make {target}",
    cards_separator=" ",
    reply=REPLY,
    reply_cards_separator='", "',
    reply_numbers_separator=", ",
    answer_field='"formula"',
    solved="Solved",
    wrong_value="Value:{value}",
    other_value="Value:other",
    foreign="Foreign:{foreign}",
    unused="Unused:{unused}",
    foreign_and_unused="Foreign:{foreign}",
    illegal="Illegal",
    unrecognized="Unrecognized",
    numbers_separator=" ",
    largest=99,
    overflow="large",
    foreign_named=1,
    unused_named=1,
)

RULES = """\
Rules:
1. An ace (A) counts as 1 and the cards 2 to 10 count as their number. J counts as {jack}, \
Q counts as {queen} and K counts as {king}.
2. Each card is used exactly once, and no other number is used.
3. The operators are +, -, * and /, with parentheses ( and ) where needed."""

KEYS = """\
"number", the list of their values under the rules above, in the same order; and "formula", an \
equation whose left side uses these values and whose right side is the number to reach. \
For example, to reach 24 with the cards 4, A, 6, A, a good answer would be:
{"cards": ["4", "A", "6", "A"], "number": [4, 1, 6, 1], "formula": "4*6*1*1=24"}"""

FULL = Wording(
    prompt=f"""\
You are playing a card game with numbers. You are dealt four cards and must combine their values \
into a formula that equals {{target}}.

{RULES}

Your cards: {{cards}}.

Answer with a JSON object on one line that has three keys: "cards", the list of the four cards; \
{KEYS}""",
    prompt_image=f"""\
{IMAGE}You are playing a card game with numbers. The picture shows the four cards that you are \
dealt. First read them from the picture, then combine their values into a formula that equals \
{{target}}.

{RULES}

Answer with a JSON object on one line that has three keys: "cards", the list of the four cards in \
the picture, each as one of A, 2, 3, 4, 5, 6, 7, 8, 9, 10, J, Q, K; {KEYS}""",
    cards_separator=", ",
    reply=REPLY,
    reply_cards_separator='", "',
    reply_numbers_separator=", ",
    answer_field='"formula"',
    solved="Correct: the formula uses every card once and equals {target}.",
    wrong_value="Wrong value: the formula equals {value}, not {target}. Try again.",
    other_value="Wrong value: the formula does not equal {target}. Try again.",
    foreign="Wrong numbers: your cards do not give you {foreign}. Use the value of each card "
    "exactly once. Try again.",
    unused="Wrong numbers: you have not used {unused}. Use the value of each card exactly once. "
    "Try again.",
    foreign_and_unused="Wrong numbers: your cards do not give you {foreign}, and you have not "
    "used {unused}. Use the value of each card exactly once. Try again.",
    illegal="Illegal formula: the answer needs a formula made of whole numbers, +, -, *, / and "
    "balanced parentheses only. Try again.",
    unrecognized="Wrong cards: the cards you name are not the cards you were dealt. Look again.",
    numbers_separator=", ",
    largest=LARGEST,
    overflow="a number above 999",
    foreign_named=8,
    unused_named=4,
)

WORDINGS: Mapping[str, Wording] = {"full": FULL, "brief": BRIEF}


def load_wording(name_or_path: str) -> Wording:
    """The wording 'full' or 'brief', or a user's; ValueError as `wordings.load`."""
    return wordings.load(name_or_path, Wording, WORDINGS)

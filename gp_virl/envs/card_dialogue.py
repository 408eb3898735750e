"""What the card game and its players say: as text for people and data, as tokens on the device.

`CardTexts` writes the texts. `CardDialogue` compiles the same wording for one tokenizer and proves
that its pieces compose to the tokens of the tokenizer's own chat template.
"""

import dataclasses
import random
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int
from transformers import PreTrainedTokenizerBase

from gp_virl.envs.cards import RANKS, SYMBOLS, FaceRule
from gp_virl.text import template
from gp_virl.text.prompts import PICTURED, Wording
from gp_virl.text.template import (
    Case,
    ChatGlue,
    Layout,
    ListTexts,
    PieceBank,
    Pieces,
    Slot,
)
from gp_virl.text.wordings import put
from gp_virl.types import CARDS, KEPT_NUMBERS

# Feedback texts of a wording, in the order of `CardPieces.feedbacks`.
VARIANTS = (
    "solved",
    "wrong_value",
    "other_value",
    "foreign",
    "unused",
    "foreign_and_unused",
    "illegal",
    "unrecognized",
)
# Where the lists stand in the values that fill a layout; 0 and 1 are a literal's and an absence.
PLACES = {
    **{("cards", i): 2 + i for i in range(CARDS)},
    **{("foreign", i): 2 + i for i in range(KEPT_NUMBERS)},
    **{("unused", i): 2 + KEPT_NUMBERS + i for i in range(CARDS)},
    ("value", 0): 2 + KEPT_NUMBERS + CARDS,
    ("end", 0): 3 + KEPT_NUMBERS + CARDS,
}


@dataclasses.dataclass(frozen=True)
class CardTexts:
    """The wording with a face rule and a target put in."""

    wording: Wording
    rule: FaceRule
    target: int
    pictured: bool = dataclasses.field(default=False, kw_only=True)  # the cards are an image

    @property
    def asking(self) -> str:
        """The name of the wording's text that asks for a hand."""
        return PICTURED if self.pictured else "prompt"

    def written(self, name: str) -> str:
        """The wording's text of that name with the rule and the target put in."""
        rule = {"jack": self.rule.jack, "queen": self.rule.queen, "king": self.rule.king}
        return put(getattr(self.wording, name), target=self.target, **rule)

    def prompt_text(self, symbols: Sequence[str]) -> str:
        """The user's first message for a hand; it starts with <|image|> if that is a picture."""
        return put(self.written(self.asking), cards=self.wording.cards_separator.join(symbols))

    def feedback_text(
        self, outcome: str, foreign: Sequence[int], unused: Sequence[int], value: int
    ) -> str:
        """The user's message after a reply; `value` is -1 if it isn't an integer in 0..999.

        KeyError for an outcome that isn't one of GeneralPoints's.
        """
        words, variant = self.wording, _variant(outcome, foreign, unused, value)
        return put(
            self.written(variant),
            foreign=words.numbers_separator.join(self._named(foreign, words.foreign_named)),
            unused=words.numbers_separator.join(self._named(unused, words.unused_named)),
            value=self._named([value], 1)[0],
        )

    def expert_reply(
        self, symbols: Sequence[str], values: Sequence[int], formula: str, target: int
    ) -> str:
        """A reply in the expert's form; `formula` is without `=`, `target` is what it claims."""
        words = self.wording
        return put(
            words.reply,
            cards=words.reply_cards_separator.join(symbols),
            numbers=words.reply_numbers_separator.join(map(str, values)),
            formula=formula,
            target=target,
        )

    def _named(self, numbers: Sequence[int], most: int) -> list[str]:
        largest, overflow = self.wording.largest, self.wording.overflow
        return [overflow if n > largest else str(n) for n in numbers[:most]]


def _variant(outcome: str, foreign: Sequence[int], unused: Sequence[int], value: int) -> str:
    if outcome == "wrong_numbers":
        return ("foreign_and_unused" if unused else "foreign") if foreign else "unused"
    if outcome == "wrong_value":
        return "other_value" if value < 0 else "wrong_value"
    return {name: name for name in ("solved", "illegal", "unrecognized")}[outcome]


@struct.dataclass
class CardPieces:
    """The compiled texts. Those of two rules usually have equal shapes: pass them as arguments."""

    bank: PieceBank
    asked: Layout  # one row
    feedbacks: Layout  # a row for each of VARIANTS

    def prompt(self, ranks: Int[Array, "4"]) -> Int[Array, "k"]:
        """Entries of the conversation up to where the first reply begins; ranks are 0..12."""
        return template.fill(self.asked, jnp.concatenate([jnp.array([0, -1]), ranks]))

    def feedback(
        self,
        outcome: Int[Array, ""],
        foreign: Int[Array, "8"],
        unused: Int[Array, "4"],
        value: Int[Array, ""],
        ended: Bool[Array, ""],
    ) -> Int[Array, "k"]:
        """Entries from the end of a reply up to where the next reply begins.

        Numbers of -1 in the lists are none, wherever they stand; a `value` of -1 can't be named.
        `ended`: the reply's last token is the end token; if it isn't, these entries start with one.
        """
        foreign, unused = (x[jnp.argsort(x < 0, stable=True)] for x in (foreign, unused))
        wrong_numbers = jnp.where(foreign[0] < 0, 4, jnp.where(unused[0] < 0, 3, 5))
        wrong_value = jnp.where(value < 0, 2, 1)
        variant = jnp.stack([jnp.zeros_like(wrong_value), wrong_value, wrong_numbers, 6, 7])[
            outcome
        ]
        row = Layout(
            self.feedbacks.first[variant],
            self.feedbacks.last[variant],
            self.feedbacks.source[variant],
        )
        end = jnp.where(ended, -1, 0)
        known = [jnp.array([0, -1]), foreign, unused, value[None], end[None]]
        return template.fill(row, jnp.concatenate(known))


@dataclasses.dataclass(frozen=True, eq=False)
class CardDialogue(CardTexts):
    """The texts compiled for one tokenizer; `build` makes it and proves it."""

    pieces: CardPieces
    eot: int  # the token that ends a reply
    stops: tuple[int, ...]  # generation ends after any of these; eot is the first
    prompt_limit: int  # tokens of the longest prompt
    feedback_limit: int  # tokens of the longest feedback, with the end token of a cut reply
    image_token: int | None  # stands once in the prompt; None where the cards are listed

    @classmethod
    def build(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        wording: Wording,
        rule: FaceRule,
        target: int,
        pictured: bool = False,
    ) -> "CardDialogue":
        """Compiled and proved; TemplateError if wording and tokenizer don't go together."""
        texts = CardTexts(wording, rule, target, pictured=pictured)
        image_token = template.image_token(tokenizer) if pictured else None
        glue, pieces = ChatGlue.of(tokenizer, pictured), Pieces(tokenizer)
        asked, feedbacks = _compile(texts, glue, pieces)
        template.prove("the card game", pieces, _cases(texts, pieces, asked, feedbacks))
        one = template.lay_out([asked], PLACES)
        compiled = CardPieces(
            bank=pieces.bank(),
            asked=Layout(one.first[0], one.last[0], one.source[0]),
            feedbacks=template.lay_out(feedbacks, PLACES),
        )
        return cls(
            wording,
            rule,
            target,
            pictured=pictured,
            pieces=compiled,
            eot=glue.end_id,
            stops=template.stop_tokens(tokenizer, glue),
            prompt_limit=template.longest(asked, pieces),
            feedback_limit=max(template.longest(atoms, pieces) for atoms in feedbacks),
            image_token=image_token,
        )

    @property
    def bank(self) -> PieceBank:
        """The bank that the entries of `prompt` and `feedback` are of."""
        return self.pieces.bank

    def prompt(self, ranks: Int[Array, "4"]) -> Int[Array, "k"]:
        """As `CardPieces.prompt`."""
        return self.pieces.prompt(ranks)

    def feedback(
        self,
        outcome: Int[Array, ""],
        foreign: Int[Array, "8"],
        unused: Int[Array, "4"],
        value: Int[Array, ""],
        ended: Bool[Array, ""],
    ) -> Int[Array, "k"]:
        """As `CardPieces.feedback`."""
        return self.pieces.feedback(outcome, foreign, unused, value, ended)

    def context_limit(self, reply_length: int, max_turns: int) -> int:
        """Tokens of the longest possible conversation, its last reply included."""
        later = (max_turns - 1) * (self.feedback_limit + reply_length)
        return self.prompt_limit + reply_length + later


Atoms = tuple[int | Slot, ...]


def _compile(texts: CardTexts, glue: ChatGlue, pieces: Pieces) -> tuple[Atoms, list[Atoms]]:
    """Atoms of the prompt and of each feedback, chat strings included."""
    words = texts.wording
    numbers = (*map(str, range(words.largest + 1)), words.overflow)
    separator = words.numbers_separator
    lists = {
        "cards": ListTexts(SYMBOLS, words.cards_separator, CARDS),
        "foreign": ListTexts(numbers, separator, words.foreign_named),
        "unused": ListTexts(numbers, separator, words.unused_named),
        "value": ListTexts(numbers, "", 1),
    }

    def atoms(before: str, name: str) -> Atoms:
        parts = template.split(texts.written(name), lists, f"wording {name!r}")
        chat = [("literal", before), *parts, ("literal", glue.asking)]
        return template.compile_parts(pieces, chat, lists)

    end = pieces.add(glue.end)
    cut = Slot("end", 0, end, end)
    return atoms(glue.opening, texts.asking), [(cut, *atoms(glue.next, name)) for name in VARIANTS]


def _cases(texts: CardTexts, pieces: Pieces, asked: Atoms, feedbacks: list[Atoms]) -> list[Case]:
    """Conversations in which every card and number occurs wherever it can, neighbours random."""
    draw = random.Random(0)
    hands = list(zip(*(draw.sample(range(RANKS), RANKS) for _ in range(CARDS)), strict=True))
    reply = texts.expert_reply(["A", "2", "3", "4"], [1, 2, 3, 4], "1*2*3*4", 24)
    cases = []
    for number, (variant, foreign, unused, value) in enumerate(_faults(texts, feedbacks, draw)):
        ranks, name = hands[number % len(hands)], VARIANTS[variant]
        outcome = {"other_value": "wrong_value"}.get(name, name)
        outcome = "wrong_numbers" if foreign or unused else outcome
        symbols = [SYMBOLS[rank] for rank in ranks]
        told = texts.feedback_text(outcome, foreign, unused, value)
        chat = template.chat([texts.prompt_text(symbols), reply, told])
        values = {
            "end": [0],
            "cards": ranks,
            "foreign": [*foreign, *[-1] * KEPT_NUMBERS],
            "unused": [*unused, *[-1] * CARDS],
            "value": [value],
        }
        parts = [*template.entries_of(asked, values), reply]
        parts += template.entries_of(feedbacks[variant], values)
        text = template.render(pieces.tokenizer, chat, True)
        cases.append(Case(f"feedback {name!r}", text, tuple(parts)))
    return cases


def _faults(
    texts: CardTexts, feedbacks: list[Atoms], draw: random.Random
) -> Iterator[tuple[int, Sequence[int], Sequence[int], int]]:
    """(variant, foreign, unused, value) with every number, and one too large, in every place."""
    numbers = range(texts.wording.largest + 2)
    columns = KEPT_NUMBERS + CARDS + 1
    rows = list(zip(*(draw.sample(numbers, len(numbers)) for _ in range(columns)), strict=True))
    for variant, name in enumerate(VARIANTS):
        slots = any(isinstance(atom, Slot) for atom in feedbacks[variant][1:])
        for row in rows if slots else rows[:RANKS]:
            foreign = row[:KEPT_NUMBERS] if "foreign" in name else ()
            unused = row[KEPT_NUMBERS:-1] if "unused" in name else ()
            value = row[-1] if name == "wrong_value" else -1
            yield variant, foreign, unused, value
            if draw.random() < 0.1:  # lists of other lengths
                shorter = foreign[: draw.randint(1, KEPT_NUMBERS)], unused[: draw.randint(1, CARDS)]
                yield variant, *shorter, value

"""Text compiled to token pieces, and contexts composed from pieces on the device.

A template is literals and slots. Each literal and each text a slot can take becomes one *entry* of
a piece bank: token ids that never change. A context is then a list of entry ids, and composing it
is a gather, so that prompts and feedback are written inside a jitted program. `prove` shows, at
build time, that the composed tokens are those of the whole chat string.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int, Integer
from transformers import PreTrainedTokenizerBase

from gp_virl.types import Context

SLOT = re.compile(r"\{([a-z_]+)\}")
# Llama 3.2's template prints today's date unless it is given one; a study needs the same every day.
DATE = "26 Jul 2024"
PROOF_BATCH = 512
STOP_TOKENS = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")  # of Llama 3
IMAGE = "<|image|>"  # where a picture is; in contents only at the start


class TemplateError(ValueError):
    """A wording and a tokenizer that don't go together; the message says where and what to do."""


@struct.dataclass
class PieceBank:
    """E entries laid end to end; entry e is flat[start[e] : start[e] + length[e]]."""

    flat: Integer[Array, "F"]  # token ids, or bytes
    start: Int[Array, "E"]
    length: Int[Array, "E"]


def _at(
    bank: PieceBank, entries: Int[Array, "k"], first: int | Int[Array, ""], size: int
) -> tuple[Int[Array, "S"], Int[Array, ""]]:
    """A buffer of `size` with the joined entries from place `first` on, 0 elsewhere, and their
    whole length.
    """
    present = entries >= 0
    length = jnp.where(present, bank.length[entries], 0)
    start = jnp.where(present, bank.start[entries], 0)
    begin = first + jnp.cumsum(length) - length
    # Where a piece begins, the way from a place to its source in `flat` changes by a step. Summing
    # steps takes a tenth of the time of looking up each place's piece.
    step = jnp.diff(start - begin, prepend=0)
    place = jnp.arange(size)
    source = place + jnp.cumsum(jnp.zeros(size, jnp.int32).at[begin].add(step, mode="drop"))
    total = length.sum()
    inside = (place >= first) & (place < first + total)
    found = bank.flat[jnp.where(inside, source, 0)].astype(jnp.int32)
    return jnp.where(inside, found, 0), total


def compose(bank: PieceBank, entries: Int[Array, "k"], size: int) -> Context:
    """The entries joined in order, right-padded with 0; -1 is an absent entry.

    What goes beyond `size` is cut, and the length then says `size`.
    """
    tokens, total = _at(bank, entries, 0, size)
    return Context(tokens, jnp.minimum(total, size))


def append(context: Context, bank: PieceBank, entries: Int[Array, "k"]) -> Context:
    """`context` followed by the entries (-1 absent); 0 after them, cut at the buffer's end."""
    size = context.tokens.shape[-1]
    tokens, total = _at(bank, entries, context.length, size)
    before = jnp.arange(size) < context.length
    tokens = jnp.where(before, context.tokens, tokens.astype(context.tokens.dtype))
    return Context(tokens, jnp.minimum(context.length + total, size))


class Pieces:
    """Collects texts for a bank; equal texts share an entry only within `add`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.texts: list[str] = []
        self.tokens: list[list[int]] = []
        self._known: dict[str, int] = {}

    def add(self, text: str) -> int:
        """The entry id of `text`."""
        if text not in self._known:
            self._known[text] = self.table([text])
        return self._known[text]

    def table(self, texts: Sequence[str]) -> int:
        """The entry id of texts[0]; texts[i] has that id plus i."""
        first = len(self.texts)
        self.texts.extend(texts)
        self.tokens.extend(encode(self.tokenizer, list(texts)))
        return first

    def bank(self) -> PieceBank:
        """All entries so far, as arrays."""
        return bank_of(self.tokens)


def bank_of(pieces: Sequence[Sequence[int]], dtype: type = np.int32) -> PieceBank:
    """A bank whose entry e is pieces[e]."""
    length = np.array([len(piece) for piece in pieces], np.int32)
    start = (np.cumsum(length) - length).astype(np.int32)
    flat = np.array([token for piece in pieces for token in piece] or [0], dtype)
    return PieceBank(jnp.asarray(flat), jnp.asarray(start), jnp.asarray(length))


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, special tokens read where they are written and none added."""
    if not texts:
        return []
    return tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of IMAGE; TemplateError if the tokenizer doesn't keep it whole."""
    ids = encode(tokenizer, [IMAGE])[0]
    if len(ids) != 1 or ids[0] not in tokenizer.added_tokens_decoder:
        raise TemplateError(
            f"the tokenizer reads {IMAGE} as {tokenizer.convert_ids_to_tokens(ids)}, not as one "
            "special token; pictures need the tokenizer of a vision model, or a tiny one"
        )
    return ids[0]


def chat(contents: Sequence[str]) -> list[dict[str, str]]:
    """Chat messages with these contents; the user speaks first, then they take turns."""
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": text} for turn, text in enumerate(contents)]


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], generation: bool
) -> str:
    """The chat string of a conversation; with `generation` it ends where a reply begins.

    A content that starts with IMAGE reaches the chat template as an image part and a text part,
    as vision models' templates want it: Llama 3.2's has no system message then.
    """
    parted = [{**message, "content": _parted(message["content"])} for message in messages]
    return tokenizer.apply_chat_template(
        parted, tokenize=False, add_generation_prompt=generation, date_string=DATE
    )


def _parted(content: str) -> str | list[dict[str, str]]:
    if not content.startswith(IMAGE):
        return content
    return [{"type": "image"}, {"type": "text", "text": content.removeprefix(IMAGE)}]


@dataclasses.dataclass(frozen=True)
class ChatGlue:
    """The strings that a chat template puts around the contents of a conversation."""

    opening: str  # before the first user content
    asking: str  # after a user content, up to where the reply begins
    end: str  # the special token that ends a reply; the model writes it
    next: str  # between `end` and the next user content
    end_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pictured: bool = False) -> "ChatGlue":
        """Read off the tokenizer's chat template with sentinel contents; TemplateError if odd.

        `pictured`: the first content starts with IMAGE (which is of the content, not the glue).
        """
        marks = ["Sentinelzero", "Sentinelone", "Sentineltwo", "Sentinelthree", "Sentinelfour"]
        marks[0] = IMAGE + marks[0] if pictured else marks[0]
        try:
            whole = render(tokenizer, chat(marks), True)
        except TypeError as error:  # a text model's template joins texts and finds parts
            whole = str(error)
        pattern = "(.*)" + "(.*)".join(map(re.escape, marks)) + "(.*)"
        found = re.fullmatch(pattern, whole, re.DOTALL)
        if not found:
            raise TemplateError(
                f"the chat template doesn't print user and assistant contents once and in order: "
                f"{whole!r}; give the tokenizer a chat template that does"
                + (f", and that prints an image part as {IMAGE}" if pictured else "")
            )
        opening, asking, after, again, after_again, last = found.groups()
        if (asking, after, asking) != (again, after_again, last):
            raise TemplateError(
                f"the chat template prints later turns differently from the first: {whole!r}; "
                "composing contexts needs one that prints all turns alike"
            )
        ids = encode(tokenizer, [after])[0]
        end = tokenizer.convert_ids_to_tokens(ids[0]) if ids else ""
        if not ids or ids[0] not in tokenizer.added_tokens_decoder or not after.startswith(end):
            raise TemplateError(
                f"after a reply the chat template prints {after!r}, which doesn't start with a "
                "special token; the model needs one to end its reply with"
            )
        return cls(opening, asking, end, after[len(end) :], ids[0])


def stop_tokens(tokenizer: PreTrainedTokenizerBase, glue: ChatGlue) -> tuple[int, ...]:
    """Tokens after any of which a reply has ended; the one that the model should write is first."""
    known = [tokenizer.get_vocab().get(name) for name in STOP_TOKENS]
    stops = [glue.end_id, *known, tokenizer.eos_token_id]
    return tuple(dict.fromkeys(stop for stop in stops if stop is not None))


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where element `index` of the list called `name` goes, and the entries it can take."""

    name: str
    index: int
    first: int  # entry id of value 0
    last: int  # entry id of the largest value; larger values take it too


def split(text: str, allowed: Iterable[str], where: str) -> list[tuple[str, str]]:
    """[("literal", text) or ("slot", name)] in order; TemplateError names a slot not allowed."""
    parts, done = [], 0
    for match in SLOT.finditer(text):
        if match[1] not in allowed:
            raise TemplateError(
                f"{where}: unknown slot {match[0]}; allowed: "
                + (", ".join(f"{{{name}}}" for name in sorted(allowed)) or "none")
            )
        parts += [("literal", text[done : match.start()]), ("slot", match[1])]
        done = match.end()
    return [part for part in [*parts, ("literal", text[done:])] if part[1]]


@dataclasses.dataclass(frozen=True)
class ListTexts:
    """The texts of a list slot: `values` for each element, at most `named` of them, joined."""

    values: tuple[str, ...]
    separator: str
    named: int


def compile_parts(
    pieces: Pieces, parts: Sequence[tuple[str, str]], lists: Mapping[str, ListTexts]
) -> tuple[int | Slot, ...]:
    """Atoms of a template: entry ids of its literals, and its slots with their tables.

    A blank before a slot is part of the slot's entries (" 7", " K"), because most tokenizers join
    it to what follows; a separator is part of the entry after it for the same reason.
    """
    atoms: list[int | Slot] = []
    literal = ""
    for kind, content in parts:
        if kind == "literal":
            literal += content
            continue
        blank = " " if literal.endswith(" ") else ""
        literal = literal[: len(literal) - len(blank)]
        if literal:
            atoms.append(pieces.add(literal))
        literal = ""
        texts = lists[content]
        for index in range(texts.named):
            lead = texts.separator if index else blank
            if index < 2:  # the elements after the second share its table
                first = pieces.table([lead + value for value in texts.values])
            atoms.append(Slot(content, index, first, first + len(texts.values) - 1))
    if literal:
        atoms.append(pieces.add(literal))
    return tuple(atoms)


@struct.dataclass
class Layout:
    """Templates as arrays, so that wordings of one shape share a compiled program.

    Element k is the entry min(first + values[source], last), or absent where that value is -1.
    """

    first: Int[Array, "*v k"]
    last: Int[Array, "*v k"]
    source: Int[Array, "*v k"]


def lay_out(
    templates: Sequence[Sequence[int | Slot]], places: Mapping[tuple[str, int], int]
) -> Layout:
    """The templates, one a row; `places` says where in `values` each element of a list stands.

    values[0] is 0 (read by literals) and values[1] is -1 (read by the padding of short rows).
    """
    width = max(map(len, templates))
    rows = np.zeros((3, len(templates), width), np.int32)
    rows[2] = 1
    for row, atoms in enumerate(templates):
        for column, atom in enumerate(atoms):
            rows[:, row, column] = (
                (atom.first, atom.last, places[atom.name, atom.index])
                if isinstance(atom, Slot)
                else (atom, atom, 0)
            )
    return Layout(*map(jnp.asarray, rows))


def fill(layout: Layout, values: Int[Array, "_"]) -> Int[Array, "k"]:
    """Entries of one template (a row of a layout) with its slots filled; -1 is absent."""
    value = values[layout.source]
    return jnp.where(value < 0, -1, jnp.minimum(layout.first + value, layout.last))


def entries_of(atoms: Sequence[int | Slot], values: Mapping[str, Sequence[int]]) -> list[int]:
    """Entries of a template with its lists filled, in Python; absent ones are left out."""
    entries = []
    for atom in atoms:
        value = values[atom.name][atom.index] if isinstance(atom, Slot) else 0
        if value >= 0:
            entries.append(min(atom.first + value, atom.last) if isinstance(atom, Slot) else atom)
    return entries


def longest(atoms: Sequence[int | Slot], pieces: Pieces) -> int:
    """Tokens of the longest text that a template can become."""
    return sum(
        max(map(len, pieces.tokens[atom.first : atom.last + 1]))
        if isinstance(atom, Slot)
        else len(pieces.tokens[atom])
        for atom in atoms
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A chat string and what should compose it; `what` names it in errors.

    A part is an entry id, or a text that is no entry (a reply) and is tokenized alone.
    """

    what: str
    text: str
    parts: tuple[int | str, ...]


def prove(wording: str, pieces: Pieces, cases: Sequence[Case]) -> None:
    """Checks that every case's parts are the tokens of its whole text and that all entries occur.

    Otherwise TemplateError names the wording, the case, the entry and the differing tokens.
    """
    alone = sorted({part for case in cases for part in case.parts if isinstance(part, str)})
    tokens = dict(zip(alone, encode(pieces.tokenizer, alone), strict=True))
    tokens.update(enumerate(pieces.tokens))
    for first in range(0, len(cases), PROOF_BATCH):
        batch = cases[first : first + PROOF_BATCH]
        wholes = encode(pieces.tokenizer, [case.text for case in batch])
        for case, whole in zip(batch, wholes, strict=True):
            _check(wording, pieces, tokens, case, whole)
    missing = set(range(len(pieces.texts))) - {part for case in cases for part in case.parts}
    if missing:
        texts = [pieces.texts[entry] for entry in sorted(missing)][:5]
        raise TemplateError(f"wording of {wording}: the proof doesn't reach the pieces {texts}")


def _check(
    wording: str,
    pieces: Pieces,
    tokens: Mapping[int | str, list[int]],
    case: Case,
    whole: list[int],
) -> None:
    """TemplateError for the first place where the parts and the whole string differ."""
    at = 0
    for part in case.parts:
        piece = tokens[part]
        if whole[at : at + len(piece)] != piece:
            text = part if isinstance(part, str) else pieces.texts[part]
            show = pieces.tokenizer.convert_ids_to_tokens
            raise TemplateError(
                f"wording of {wording}, {case.what}, at {text!r}: alone it is the tokens "
                f"{show(piece)}, but inside the whole string {case.text!r} the tokens are "
                f"{show(whole[max(at - 1, 0) : at + len(piece) + 1])} there; put a blank before "
                "the slot, and punctuation or the end of the text after it"
            )
        at += len(piece)
    if at != len(whole):
        raise TemplateError(
            f"wording of {wording}, {case.what}: the pieces end {len(whole) - at} tokens before "
            f"the whole string {case.text!r}"
        )

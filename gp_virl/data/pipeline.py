"""Dialogues to training batches: tokenized in bulk, then shuffled, packed and batched by grain.

A row holds several conversations side by side, told apart by `segments`; `positions` start again
at 0 in each. `replied` marks the tokens of each conversation's last reply, its end token included:
those are the targets of the loss. An example whose field `trained` is "all" has all its replies
marked. An image token is in the prompt and never a target.

A conversation with a picture is packed as its tokens and its picture's number. Pictures are read
and decoded only for the batch that is given out, so that none is kept. That is done where the batch
is asked for, while the device still trains on the last one: grain's prefetching threads can end in
the middle of C++ code when Python exits, and abort it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset
from jaxtyping import Bool, Int, UInt8
from transformers import PreTrainedTokenizerBase

from gp_virl.data.pictures import UNREADABLE, decoded, shape_of
from gp_virl.text import template
from gp_virl.text.template import IMAGE, ChatGlue, TemplateError

T = TypeVar("T")

READ_TOGETHER = 1024  # examples read and tokenized in one go
PROVED = 128  # conversations compared with the chat template's whole string
TRAINED = ("last", "all")  # replies of a conversation


@dataclass(frozen=True, eq=False)
class Conversations:
    """N tokenized conversations, a random-access source for grain.

    Item i is its tokens and mask and, if conversations have pictures, the picture's number i.
    """

    flat: Int[np.ndarray, "tokens"]
    replied: Bool[np.ndarray, "tokens"]  # True for the replies that are trained
    start: Int[np.ndarray, "N"]
    end: Int[np.ndarray, "N"]
    source: Any = None  # whose example i has picture i, the bytes under `image`; None without

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        own = slice(self.start[index], self.end[index])
        item = {"tokens": self.flat[own], "replied": self.replied[own]}
        return item if self.source is None else item | {"picture": np.array([index], np.int64)}

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return int((self.end - self.start).max())


def tokenized(source: Any, tokenizer: PreTrainedTokenizerBase) -> Conversations:
    """The conversations of a data source of examples with `contents` (user first, in turns).

    Contexts and replies are tokenized apart, as in a rollout. Examples may have a picture, PNG or
    JPEG bytes under `image`; nothing is decoded here. They may say which replies are `trained`, one
    of TRAINED; by default the last. TemplateError if the tokens differ from those of the chat
    template's whole string, or unless the image token begins the prompt of each example with a
    picture and is nowhere else; ValueError if the source is empty, or `trained` is something else.
    """
    pictured = _has_pictures(source)
    if pictured and IMAGE not in tokenizer.get_vocab():
        raise TemplateError(
            f"the examples have pictures, but the tokenizer has no {IMAGE!r}; give the tokenizer "
            "of a vision model, or 'tiny'"
        )
    glue = ChatGlue.of(tokenizer, pictured)
    chunks, masks = [], []
    for first in range(0, len(source), READ_TOGETHER):
        rows = range(first, min(first + READ_TOGETHER, len(source)))
        examples = _examples(source, rows)
        contents = [[_text(text) for text in example["contents"]] for example in examples]
        parts = [_parts(texts, glue) for texts in contents]
        ids = iter(template.encode(tokenizer, [part for texts in parts for part in texts]))
        for row, texts, example in zip(rows, contents, examples, strict=True):
            _check_image_tokens(row, texts, pictured)
            tokens = [next(ids) for _ in texts]
            joined = np.array([token for part in tokens for token in part], np.int32)
            if row < PROVED:
                _prove(tokenizer, texts, joined)
            marked = _marked(row, len(texts), example.get("trained", TRAINED[0]))
            chunks.append(joined)
            masks.append(np.repeat(marked, [len(part) for part in tokens]))
    lengths = [len(joined) for joined in chunks]
    end = np.cumsum(lengths)
    return Conversations(
        np.concatenate(chunks), np.concatenate(masks), end - lengths, end,
        source if pictured else None,
    )  # fmt: skip


def _has_pictures(source: Any) -> bool:
    """Whether the examples have a picture; ValueError if it isn't bytes, or there is no example."""
    if not len(source):
        raise ValueError("the data source has no examples; prepare the dataset first")
    image = source[0].get("image")
    if image is not None and not isinstance(image, bytes):
        raise ValueError(
            f"the examples' image is given as {type(image).__name__}, allowed: PNG bytes or a "
            "JPEG's, so that no picture is decoded before it is needed; read the dataset with the "
            "`source` of its builder, or as_data_source(..., decoders={'image': "
            "tfds.decode.SkipDecoding()})"
        )
    return image is not None


def _check_image_tokens(row: int, contents: Sequence[str], pictured: bool) -> None:
    """TemplateError unless the image token begins the prompt of a picture and is nowhere else."""
    for turn, text in enumerate(contents):
        wanted = pictured and not turn
        if text.count(IMAGE) != wanted or text.startswith(IMAGE) != wanted:
            what = "reply" if turn % 2 else "feedback" if turn else "prompt"
            where = "must start with" if wanted else "must not contain"
            raise TemplateError(
                f"example {row}: the {what} {text!r} {where} {IMAGE}, which a tokenizer reads as a "
                "picture wherever it is written; allowed: once, at the start of the prompt of an "
                "example with a picture"
            )


def _examples(source: Any, rows: range) -> Sequence[Mapping[str, Any]]:
    """The examples of these rows; read together where the source can, which is 3 times faster."""
    together = getattr(source, "__getitems__", None)
    return together(list(rows)) if together else [source[row] for row in rows]


def _marked(row: int, count: int, trained: bytes | str) -> Bool[np.ndarray, "turns"]:
    """True for the turns of a conversation that are trained; ValueError for an unknown choice."""
    choice = _text(trained)
    if choice not in TRAINED:
        raise ValueError(f"example {row}: trained: given {choice!r}, allowed: {', '.join(TRAINED)}")
    turn = np.arange(count)
    return turn % 2 == 1 if choice == "all" else turn == count - 1


def _text(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text


def _parts(contents: Sequence[str], glue: ChatGlue) -> list[str]:
    """The chat string cut where replies begin and end."""
    parts = []
    for turn, text in enumerate(contents):
        if turn % 2:
            parts.append(text + glue.end)
        else:
            parts.append((glue.next if turn else glue.opening) + text + glue.asking)
    return parts


def _prove(
    tokenizer: PreTrainedTokenizerBase, contents: Sequence[str], tokens: Int[np.ndarray, "S"]
) -> None:
    """TemplateError unless the tokens are those of the whole chat string."""
    text = template.render(tokenizer, template.chat(contents), False)
    whole = template.encode(tokenizer, [text])[0]
    if whole[: len(tokens)] != tokens.tolist():
        raise TemplateError(
            f"replies of the data set don't tokenize apart from their context: the chat string "
            f"{text!r} has the tokens {tokenizer.convert_ids_to_tokens(whole)}, its parts have "
            f"{tokenizer.convert_ids_to_tokens(tokens.tolist())}; change the wording's reply"
        )


def batches(
    conversations: Conversations,
    *,
    length: int,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    pictures: int = 1,
) -> grain.IterDataset:
    """Endless batches of `batch_size` rows of `length` tokens, as dicts of numpy arrays [N S].

    `tokens`, `positions` and `segments` (1, 2, ... in a row; 0 is padding) are int32, `replied` is
    bool. Conversations with pictures add `images`, uint8 [N P H W 3], and `image_segments`, int32
    [N P]: the segment that sees the picture, or 0, and then the picture is all 0. A row then has
    at most P = `pictures` conversations.

    Every epoch is shuffled anew. With `rows`, in ascending order, only those rows of each batch are
    given out, and other rows' pictures aren't read: every process makes the same batches and takes
    its own rows, so that neither they nor the state of an iterator depend on how many processes
    there are. (Text is packed at some 15,000 conversations a second.) Iterators have `get_state`
    and `set_state`, and continue with the very next batch. ValueError if a conversation is longer
    than a row, for rows that are not in a batch, or P < 1; from an iterator, if pictures differ in
    size or can't be read.
    """
    if conversations.longest > length:
        raise ValueError(
            f"length: given {length}, but the longest conversation has {conversations.longest} "
            "tokens; give at least that, a shorter wording, or fewer errors per dialogue"
        )
    if rows is not None and list(rows) != sorted({*rows} & {*range(batch_size)}):
        raise ValueError(
            f"rows: given {list(rows)}, allowed: some of 0 to {batch_size - 1}, ascending"
        )
    if pictures < 1:
        raise ValueError(f"pictures: given {pictures}, allowed: >= 1, the most of a row")
    source = conversations.source
    shuffled = grain.MapDataset.source(conversations).seed(seed).shuffle()
    packed = FirstFitPackIterDataset(
        shuffled.repeat().to_iter_dataset(grain.ReadOptions(num_threads=0)),
        length_struct={"tokens": length, "replied": length}
        | ({} if source is None else {"picture": pictures}),
        num_packing_bins=batch_size,
        shuffle_bins=False,
    )
    made = packed.map(_row).batch(batch_size, drop_remainder=True)
    if rows is not None and len(rows) < batch_size:
        made = made.map(functools.partial(_taken, np.array(rows, np.int64)))
    if source is None:
        return made
    return made.map(_Shown(source, _looked_at(source, 0, shape_of)))


def _taken(rows: Int[np.ndarray, "n"], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in batch.items()}


def _row(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    row = {
        "tokens": packed["tokens"].astype(np.int32),
        "positions": packed["tokens_positions"].astype(np.int32),
        "segments": packed["tokens_segment_ids"].astype(np.int32),
        "replied": packed["replied"].astype(bool),
    }
    if "picture" in packed:
        row["picture"] = packed["picture"]
        row["image_segments"] = packed["picture_segment_ids"].astype(np.int32)
    return row


def _looked_at(source: Any, number: int, look: Callable[[bytes], T]) -> T:
    """What is seen in an example's picture; ValueError if it can't be read."""
    try:
        return look(source[number]["image"])
    except UNREADABLE as wrong:
        raise ValueError(f"example {number}: its picture can't be read ({wrong})") from wrong


@dataclass(frozen=True)
class _Shown:
    """Puts the pictures of a data source in the place of their numbers, several rows at a time."""

    source: Any
    shape: tuple[int, int, int]

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = dict(batch)
        numbers, segments = batch.pop("picture"), batch["image_segments"]
        images = np.zeros((*segments.shape, *self.shape), np.uint8)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._fill, images, numbers, segments > 0))
        return batch | {"images": images}

    def _fill(
        self,
        row: UInt8[np.ndarray, "P H W 3"],
        numbers: Int[np.ndarray, "P"],
        present: Bool[np.ndarray, "P"],
    ) -> None:
        """Writes a row's pictures into `row`.

        ValueError if one isn't as large as the first, or can't be read.
        """
        for slot in np.flatnonzero(present):
            number = int(numbers[slot])
            try:
                picture = decoded(self.source[number]["image"])
            except UNREADABLE as wrong:
                raise ValueError(
                    f"example {number}: its picture can't be read ({wrong})"
                ) from wrong
            if picture.shape != self.shape:
                raise ValueError(
                    f"example {number}: its picture has the shape {picture.shape}, allowed: "
                    f"{self.shape}, as example 0; pictures of a data set are equally large"
                )
            row[slot] = picture

import itertools
import json

import grain
import numpy as np
import pytest

from gp_virl.data import gp_sft, pipeline
from gp_virl.data.pictures import decoded, encoded
from gp_virl.data.pipeline import Conversations, batches, tokenized
from gp_virl.text import template
from gp_virl.text.template import IMAGE, TemplateError, encode, render
from gp_virl.text.tokenizer import tiny
from tests.text.bpe import llama_like

TINY = tiny()
FAULTY = {"suboptimal": 0.4, "max_errors": 2}
EXAMPLES = list(gp_sft.dialogues(gp_sft.GpSftConfig(examples=400, **FAULTY)))
SEEN = {"modality": "image", "image_size": 48, "jitter_shift": 0.1, "jitter_scale": 0.1}
PICTURED = list(gp_sft.dialogues(gp_sft.GpSftConfig(examples=300, **FAULTY, **SEEN)))
ROW = {"length": 256, "batch_size": 4, "seed": 0, "pictures": 3}


@pytest.fixture(scope="module")
def conversations() -> Conversations:
    return tokenized(EXAMPLES, TINY)


@pytest.fixture(scope="module")
def pictured() -> Conversations:
    return tokenized(PICTURED, TINY)


def iterator(conversations: Conversations, **changes) -> grain.DatasetIterator:
    given = {"length": 256, "batch_size": 4, "seed": 0} | changes
    return iter(batches(conversations, **given))


@pytest.mark.parametrize("tokenizer", [TINY, llama_like()], ids=["tiny", "llama_like"])
def test_conversations_are_the_chat_strings_tokens_and_mark_the_last_reply(tokenizer) -> None:
    known = tokenized(EXAMPLES, tokenizer)
    assert len(known) == len(EXAMPLES)
    for item, example in zip(known, EXAMPLES, strict=True):
        text = render(tokenizer, template.chat(example["contents"]), False)
        assert item["tokens"].tolist() == encode(tokenizer, [text])[0]
        marked = tokenizer.decode(item["tokens"][item["replied"]])
        assert marked == example["contents"][-1] + "<|eot_id|>"
    assert known.longest == max(len(item["tokens"]) for item in known)


def unpacked(batch: dict[str, np.ndarray]) -> list[tuple]:
    """(tokens, replied) of each conversation in a batch, row by row."""
    found = []
    for tokens, positions, segments, replied in zip(
        *(batch[name] for name in ("tokens", "positions", "segments", "replied")), strict=True
    ):
        count = segments.max()
        assert sorted(set(segments[segments > 0])) == list(range(1, count + 1))
        assert not replied[segments == 0].any() and not tokens[segments == 0].any()
        for segment in range(1, count + 1):
            inside = np.flatnonzero(segments == segment)
            assert (np.diff(inside) == 1).all()
            assert positions[inside].tolist() == list(range(len(inside)))
            found.append((tuple(tokens[inside]), tuple(replied[inside])))
    return found


def test_an_epoch_of_rows_holds_every_conversation_once(conversations: Conversations) -> None:
    wanted = sorted((tuple(c["tokens"]), tuple(c["replied"])) for c in conversations)
    rows, found = iterator(conversations), []
    while len(found) < 400:
        found += unpacked(next(rows))
    # A batch of bins may already hold the first conversations of the next epoch.
    counts = {item: wanted.count(item) for item in wanted}
    for item in wanted:
        assert found.count(item) >= counts[item]
    assert len(found) < 440


def test_batches_have_the_promised_arrays(conversations: Conversations) -> None:
    batch = next(iterator(conversations, batch_size=3, length=200))
    kinds = {"tokens": np.int32, "positions": np.int32, "segments": np.int32, "replied": np.bool_}
    assert {name: array.dtype.type for name, array in batch.items()} == kinds
    assert {array.shape for array in batch.values()} == {(3, 200)}


def test_rows_are_full(conversations: Conversations) -> None:
    made = [next(iterator(conversations, length=512)) for _ in range(4)]
    assert np.mean([batch["segments"] > 0 for batch in made]) > 0.85


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_order_follows_from_the_seed(conversations: Conversations) -> None:
    first, again, other = (iterator(conversations, seed=seed) for seed in (0, 0, 1))
    batch = next(first)
    assert same(batch, next(again)) and not same(batch, next(other))
    assert not same(batch, next(first))


@pytest.mark.parametrize("done", [1, 2, 7, 40])
def test_continues_with_the_very_next_batch(conversations: Conversations, done: int) -> None:
    rows = iterator(conversations)
    for _ in range(done):
        next(rows)
    state = json.loads(json.dumps(rows.get_state()))
    wanted = list(itertools.islice(rows, 30))
    resumed = iterator(conversations)
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(wanted, itertools.islice(resumed, 30), strict=True))


@pytest.mark.parametrize("rows", [[0, 1], [2], [1, 3], [0, 1, 2, 3]])
def test_a_process_has_its_rows_of_the_same_batches(
    conversations: Conversations, rows: list[int]
) -> None:
    whole, own = iterator(conversations), iterator(conversations, rows=rows)
    for _ in range(30):
        batch = next(whole)
        assert same({name: array[rows] for name, array in batch.items()}, next(own))


def test_other_rows_continue_from_the_same_state(conversations: Conversations) -> None:
    """Of a process, or of all: so a run goes on with another number of processes."""
    before, after = iterator(conversations, rows=[1, 2]), iterator(conversations)
    for _ in range(7):
        next(before)
    after.set_state(json.loads(json.dumps(before.get_state())))
    whole = list(itertools.islice(iterator(conversations), 20))
    assert all(same(a, b) for a, b in zip(whole[7:], after, strict=False))


def test_what_cannot_be_is_refused(conversations: Conversations) -> None:
    with pytest.raises(ValueError, match=f"longest conversation has {conversations.longest}"):
        batches(conversations, length=20, batch_size=2, seed=0)
    for rows in ([2], [1, 0], [0, 0], [-1]):
        with pytest.raises(ValueError, match="some of 0 to 1, ascending"):
            batches(conversations, length=256, batch_size=2, seed=0, rows=rows)
    with pytest.raises(ValueError, match="no examples"):
        tokenized([], TINY)


def test_replies_that_merge_with_their_context_are_refused() -> None:
    bracket = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|eot_id|>"
    tokenizer = llama_like(template=bracket + "{% else %} 1{% endif %}{% endfor %}")
    examples = [{"contents": ["K 7", "10"]}] * 3
    with pytest.raises(TemplateError, match="apart from their context"):
        tokenized(examples, tokenizer)


def test_reads_a_source_together_where_it_can() -> None:
    class Together(list):
        def __getitems__(self, rows):
            assert len(rows) <= pipeline.READ_TOGETHER
            return [self[row] for row in rows]

    together = tokenized(Together(EXAMPLES), TINY)
    assert (together.flat == tokenized(EXAMPLES, TINY).flat).all()


def plain_rows(items: list[dict], numbers: list[int]) -> list[list[int]]:
    """The numbers of the conversations in each row of the first batches, first fit."""
    rows, batch = [], [[] for _ in range(ROW["batch_size"])]
    for number in numbers:
        size = len(items[number]["tokens"])
        fits = [
            sum(len(items[n]["tokens"]) for n in row) + size <= ROW["length"]
            and len(row) < ROW["pictures"]
            for row in batch
        ]
        if not any(fits):
            rows += batch
            batch = [[] for _ in range(ROW["batch_size"])]
            fits = [True]
        batch[fits.index(True)].append(number)
    return rows


def plain_row(items: list[dict], numbers: list[int]) -> dict[str, np.ndarray]:
    """A row of a batch, written place by place."""
    size, most = ROW["length"], ROW["pictures"]
    row = {name: np.zeros(size, np.int32) for name in ("tokens", "positions", "segments")}
    row |= {"replied": np.zeros(size, bool), "images": np.zeros((most, 48, 48, 3), np.uint8)}
    row["image_segments"] = np.zeros(most, np.int32)
    at = 0
    for slot, number in enumerate(numbers):
        row["images"][slot] = decoded(PICTURED[number]["image"])
        row["image_segments"][slot] = slot + 1
        pairs = zip(items[number]["tokens"], items[number]["replied"], strict=True)
        for position, (token, replied) in enumerate(pairs):
            row["tokens"][at], row["replied"][at] = token, replied
            row["segments"][at], row["positions"][at] = slot + 1, position
            at += 1
    return row


def test_rows_with_pictures_are_those_of_plain_first_fit(pictured: Conversations) -> None:
    order = grain.MapDataset.source(pictured).seed(0).shuffle().repeat()
    numbers = [int(order[i]["picture"][0]) for i in range(700)]
    assert sorted(numbers[:300]) == list(range(300))
    items = list(itertools.islice(pictured, len(pictured)))
    rows = [plain_row(items, row) for row in plain_rows(items, numbers)]
    assert max(row["image_segments"].max() for row in rows) == ROW["pictures"]
    made = iter(batches(pictured, **ROW))
    for first in range(0, len(rows), ROW["batch_size"]):
        wanted = rows[first : first + ROW["batch_size"]]
        wanted = {name: np.stack([row[name] for row in wanted]) for name in wanted[0]}
        batch = next(made)
        assert same(wanted, batch)
        assert {n: x.dtype for n, x in batch.items()} == {n: x.dtype for n, x in wanted.items()}
    assert len(rows) > 200


def image_of(segment: int, segments: np.ndarray, images: np.ndarray) -> bytes:
    (slot,) = np.flatnonzero(segments == segment)
    return images[slot].tobytes()


def shown(batch: dict[str, np.ndarray]) -> list[tuple[bytes, tuple]]:
    """(picture, tokens) of each conversation of a batch."""
    pictures = [
        image_of(segment, *row)
        for *row, segments in zip(
            batch["image_segments"], batch["images"], batch["segments"], strict=True
        )
        for segment in range(1, segments.max() + 1)
    ]
    assert (batch["image_segments"].max(1) == batch["segments"].max(1)).all()
    return list(zip(pictures, (tokens for tokens, _ in unpacked(batch)), strict=True))


KNOWN = {decoded(example["image"]).tobytes(): i for i, example in enumerate(PICTURED)}


def test_every_conversation_travels_with_its_picture(pictured: Conversations) -> None:
    assert len(KNOWN) == len(PICTURED)  # jitter makes every picture another one
    made, seen = iter(batches(pictured, **ROW)), set()
    while len(seen) < len(PICTURED):
        for picture, tokens in shown(next(made)):
            seen.add(KNOWN[picture])
            assert tokens == tuple(pictured[KNOWN[picture]]["tokens"])


def test_a_process_decodes_the_pictures_of_its_own_rows_alone(
    pictured: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, own = iter(batches(pictured, **ROW)), iter(batches(pictured, **ROW, rows=[1, 2]))
    done = []
    monkeypatch.setattr(pipeline, "decoded", lambda png: done.append(png) or decoded(png))
    for batch in itertools.islice(whole, 10):
        done.clear()
        part = next(own)
        assert same({name: array[[1, 2]] for name, array in batch.items()}, part)
        assert len(done) == (part["image_segments"] > 0).sum()


@pytest.mark.parametrize("done", [0, 1, 5, 40])
def test_pictures_continue_with_the_very_next_batch(pictured: Conversations, done: int) -> None:
    made = iter(batches(pictured, **ROW))
    for _ in range(done):
        next(made)
    state = json.loads(json.dumps(made.get_state()))
    wanted = list(itertools.islice(made, 12))
    resumed = iter(batches(pictured, **ROW))
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(wanted, itertools.islice(resumed, 12), strict=True))


def test_pictures_are_decoded_only_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(pipeline, "decoded", lambda png: done.append(png) or decoded(png))
    made = iter(batches(tokenized(PICTURED, TINY), **ROW))
    assert not done
    for batch in itertools.islice(made, 3):
        assert len(done) == (batch["image_segments"] > 0).sum()
        done.clear()


def test_an_image_token_begins_each_conversation_and_is_never_replied(
    pictured: Conversations,
) -> None:
    (image,) = encode(TINY, [IMAGE])[0]
    for item, example in zip(pictured, PICTURED, strict=True):
        assert (item["tokens"] == image).sum() == 1
        assert not item["replied"][item["tokens"] == image].any()
        text = render(TINY, template.chat(example["contents"]), False)
        assert item["tokens"].tolist() == encode(TINY, [text])[0]


def test_texts_have_no_pictures(conversations: Conversations) -> None:
    plain, asked = iterator(conversations), iterator(conversations, pictures=1)
    for _ in range(5):
        batch = next(plain)
        assert same(batch, next(asked)) and "images" not in batch


def with_turn(turn: int, text: str, example: dict) -> dict:
    contents = [*example["contents"]]
    contents[turn] = text
    return example | {"contents": contents}


@pytest.mark.parametrize(
    ("turn", "text", "message"),
    [
        (-1, f'{{"cards": ["{IMAGE}"]}}', "example 3: the reply .* must not contain"),
        (-1, IMAGE, "example 3: the reply .* must not contain"),
        (0, "cards?", "example 3: the prompt 'cards.' must start with"),
        (0, f"cards? {IMAGE}", "example 3: the prompt .* must start with"),
        (0, f"{IMAGE}cards? {IMAGE}", "example 3: the prompt .* must start with"),
    ],
)
def test_image_tokens_out_of_place_are_refused(turn: int, text: str, message: str) -> None:
    examples = [*PICTURED[:3], with_turn(turn, text, PICTURED[3]), *PICTURED[4:9]]
    with pytest.raises(TemplateError, match=message):
        tokenized(examples, TINY)
    with pytest.raises(TemplateError, match="the prompt .* must not contain"):
        tokenized([EXAMPLES[0], {"contents": PICTURED[0]["contents"]}], TINY)
    told = with_turn(-2, f"No {IMAGE}", next(e for e in EXAMPLES if e["errors"]))
    with pytest.raises(TemplateError, match="example 1: the feedback .* must not contain"):
        tokenized([EXAMPLES[0], told], TINY)


def test_pictures_that_cannot_be_are_refused(pictured: Conversations) -> None:
    with pytest.raises(ValueError, match="pictures: given 0"):
        batches(pictured, **ROW | {"pictures": 0})
    with pytest.raises(TemplateError, match="no '<|image|>'"):
        tokenized(PICTURED, llama_like())
    drawn = [e | {"image": decoded(e["image"])} for e in PICTURED[:5]]
    with pytest.raises(ValueError, match="given as ndarray, allowed: PNG bytes"):
        tokenized(drawn, TINY)
    other = PICTURED[4] | {"image": encoded(np.zeros((48, 50, 3), np.uint8))}
    mixed = tokenized([*PICTURED[:4], other], TINY)
    with pytest.raises(ValueError, match=r"example 4: .* \(48, 50, 3\), allowed: \(48, 48, 3\)"):
        next(iter(batches(mixed, **ROW)))

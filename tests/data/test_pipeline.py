import itertools
import json

import grain
import numpy as np
import pytest

from gp_virl.data import gp_sft, pipeline
from gp_virl.data.pipeline import Conversations, batches, tokenized
from gp_virl.text import template
from gp_virl.text.template import TemplateError, encode, render
from gp_virl.text.tokenizer import tiny
from tests.text.bpe import llama_like

TINY = tiny()
EXAMPLES = list(gp_sft.dialogues(gp_sft.GpSftConfig(examples=400, suboptimal=0.4, max_errors=2)))


@pytest.fixture(scope="module")
def conversations() -> Conversations:
    return tokenized(EXAMPLES, TINY)


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
    return all((a[name] == b[name]).all() for name in a)


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


def test_processes_share_the_conversations(conversations: Conversations) -> None:
    shares = []
    for index in range(2):
        rows, found = iterator(conversations, index=index, count=2), []
        while len(found) < 200:
            found += unpacked(next(rows))
        shares.append({tokens for tokens, _ in found})
    by_index = [
        {tuple(c["tokens"]) for c in itertools.islice(conversations, i, None, 2)} for i in (0, 1)
    ]
    assert shares == by_index


def test_what_cannot_be_is_refused(conversations: Conversations) -> None:
    with pytest.raises(ValueError, match=f"longest conversation has {conversations.longest}"):
        batches(conversations, length=20, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="index 2 of 2"):
        batches(conversations, length=256, batch_size=2, seed=0, index=2, count=2)
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

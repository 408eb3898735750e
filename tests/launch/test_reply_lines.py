"""Lines are read with their numbers, and laid in few shapes without losing one."""

import random

import pytest

from launch import reply_lines

GOOD = b'{"reply": "a", "more": 1}'


def read(content: bytes) -> list[tuple[int, dict]]:
    def line(number: int, row: bytes) -> tuple[int, dict]:
        return number, reply_lines.fields_of(row, ("reply", "more"), "reply, more")

    return reply_lines.read_lines(content, line)


def test_blank_lines_count_but_are_left_out() -> None:
    assert read(b"\n".join([GOOD, b"", b"  ", GOOD, b""])) == [
        (1, {"reply": "a", "more": 1}),
        (4, {"reply": "a", "more": 1}),
    ]
    assert read(b"") == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{", "line 2: given b'{', not JSON"),
        (b"\xff\xfe", "line 2: .*not JSON"),
        (b"[" * 100_000, "line 2: .*not JSON"),
        (b"[]", "line 2: .*an object with reply"),
        (b'{"reply": ""}', "line 2: missing: more; fields: reply, more"),
        (b'{"reply": 3, "more": 1}', "line 2: reply: given 3, allowed: a text"),
    ],
)
def test_bad_lines_are_named(row: bytes, message: str) -> None:
    with pytest.raises(reply_lines.BadLines, match=message) as caught:
        read(GOOD + b"\n" + row + b"\n\n" + row)
    assert "line 4: " in str(caught.value) and "line 1: " not in str(caught.value)


def test_of_many_bad_lines_a_few_are_named() -> None:
    with pytest.raises(reply_lines.BadLines, match="line 20: .*\n  and 10 more$"):
        read(b"{\n" * 30)


def test_batches_hold_every_reply_once_in_few_shapes() -> None:
    draw = random.Random(0)
    lengths = [0, 1, 255, 256, 257, 1024, 1025, 70_000]
    lengths += [draw.randrange(300) for _ in range(5000)]
    replies = [reply_lines.spelled(chr(draw.randint(97, 122))) * n for n in lengths]
    seen, shapes = [], set()
    for batch in reply_lines.batches(replies):
        assert len(batch.lanes) == len(batch.reply) == len(batch.length)
        for lane, row in enumerate(batch.lanes):
            text = batch.reply[lane].tobytes()
            assert text[: batch.length[lane]] == replies[row]
            assert not text[batch.length[lane] :].strip(b"\0")
        seen += batch.lanes[: batch.kept]
        shapes.add(batch.reply.shape)
        assert batch.reply.size <= max(reply_lines.BATCH_BYTES, batch.reply.shape[1])
    assert sorted(seen) == list(range(len(replies))) and len(shapes) == 4
    assert list(reply_lines.batches([])) == []
    assert reply_lines.spelled("\ud83e") == b"\xed\xa0\xbe"

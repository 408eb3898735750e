"""Replies at waypoints are read as the plain oracle reads them, whatever the characters."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gp_virl.envs.navigation import ACTIONS
from gp_virl.text import route_replies
from tests import route_oracle

SIZE, BATCH = 256, 16
TABLE = jnp.asarray(route_replies.byte_rows(ACTIONS))
parse = jax.jit(jax.vmap(lambda reply, length: route_replies.parse(reply, length, TABLE)))


def parsed(texts: list[bytes]) -> list[dict]:
    rows = np.zeros((max(len(texts), BATCH), SIZE), np.uint8)
    length = np.zeros(len(rows), np.int32)
    for lane, text in enumerate(texts):
        rows[lane, : len(text)], length[lane] = np.frombuffer(text, np.uint8), len(text)
    answer = parse(rows, length)
    fields = {name: np.asarray(field) for name, field in vars(answer).items()}
    found = [{name: field[lane] for name, field in fields.items()} for lane in range(len(texts))]
    return [one | {"name": bytes(one["name"][: one["name_length"]])} for one in found]


def plainly(text: str) -> dict:
    said = (route_oracle.value(text, "action") or "").strip(route_oracle.BLANKS)
    seen = route_oracle.value(text, "current observation")
    name, claimed = route_oracle.observation(seen) if seen is not None else ("", False)
    spelled = name.replace("\u00a0", " ").encode("utf-16", "surrogatepass")
    spelled = spelled.decode("utf-16", "surrogatepass").encode("utf-8", "surrogatepass")
    return {
        "action": ACTIONS.index(said) if said in ACTIONS else -1,
        "observed": seen is not None,
        "name": spelled,
        "name_length": len(spelled),
        "intersection": claimed,
    }


keys = ['"current observation"', "'action'", '"action"', ":", ': "', ": '", '"', "'", "action"]
words = ["forward()", "turn_direction(slightly left)", "stop()", "\\n", "\\t", "\u00a0", " ", "; "]
words += [" is on your ", "left", "The destination ", "the Destination ", "No landmarks nearby"]
words += ["no landmark", "You observe an intersection", "YOU OBSERVE AN INTERSECTION", "An", ";"]
words += ["\\\\", '\\"', "\\'", "\\/", "\\", "\\u00e9", "\\u00A0", "\\u20aC", "\\ud83d\\ude00"]
words += ["\\ud83d", "\\u12", "\\u0022", "é", "東", "\U0001f600", "Café 7", "x", "\r"]
words += ["\f", "\v", "; You observe an intersection; ", "You observe an intersection;"]
soup = st.lists(st.sampled_from(keys + words), max_size=12).map("".join)
inside = st.lists(st.sampled_from(words), max_size=6).map("".join)
whole = st.tuples(inside, inside).map(
    lambda two: f'{{"current observation": "{two[0]}", "action": "{two[1]}"}}'
)
batches = st.lists(st.one_of(soup, whole, whole), min_size=BATCH, max_size=BATCH)


def cut(text: str) -> str:
    return text.encode()[:SIZE].decode("utf-8", "ignore")


@settings(max_examples=200)
@given(batches.map(lambda texts: [cut(text) for text in texts]))
def test_parse_agrees_with_the_oracle(texts: list[str]) -> None:
    for text, found in zip(texts, parsed([text.encode() for text in texts]), strict=True):
        assert found == plainly(text), text


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=SIZE), min_size=BATCH, max_size=BATCH))
def test_no_bytes_are_too_strange(texts: list[bytes]) -> None:
    assert len(parsed(texts)) == BATCH


@pytest.mark.parametrize(
    ("value", "action"),
    [
        ('"forward()"', "forward()"),
        ("'stop()'", "stop()"),
        ('" turn_direction(slightly left)\\n\\t"', "turn_direction(slightly left)"),
        ('"\u00a0stop()\\u00a0"', "stop()"),
        ('"turn_direction(\\u006eorth)"', "turn_direction(north)"),
        ('"\f\v stop()\\f\v"', "stop()"),
        ('"stop()", "why": "the \'action\': is right"', "stop()"),
        ('"stop()", "why": "the\\n\'action\': is right"', "stop()"),
        ('"stop()" \n"action": "forward()"', "forward()"),
        ('"turn_direction( north)"', None),
        ('"turn_direction(\\"north\\")"', None),
        ('"turn_directionnorth"', None),
        ('"turn_direction(north"', None),
        ('"Forward()"', None),
        ('"forward"', None),
        ('"forward() and stop()"', None),
        ('"forward()\\u0000"', None),
        ('""', None),
        ("null", None),
        ('"forward()', None),
        ("\"forward()'", None),
        ('"stop()", "action": "forward()"', "forward()"),
        ('"stop()", "action": null', None),
        ('"stop()", "x": "\\"action\\": \\"forward()\\""', "stop()"),
    ],
)
def test_reading_of_actions(value: str, action: str | None) -> None:
    found = parsed([f'{{"action": {value}}}'.encode()])[0]
    assert found["action"] == (-1 if action is None else ACTIONS.index(action))
    assert not found["observed"]


@pytest.mark.parametrize(
    ("text", "name", "intersection"),
    [
        ("No landmarks nearby; ", "", False),
        ("No landmark nearby; You observe an intersection", "", True),
        ("You observe an intersection", "", True),
        ("", "", False),
        ("Prince St is on your front; You observe an intersection", "Prince St", True),
        ("The destination Shuka is on your right; ", "Shuka", False),
        ("Intersection Cafe is on your right", "Intersection Cafe", False),
        ("You observe an intersection is on your left", "You observe an intersection", False),
        ("No landmark Bar is on your left; ", "No landmark Bar", False),
        ("A; B is on your left; you observe an intersection.", "A; B", True),
        ("Prince St; You observe an intersection", "Prince St", True),
        ("Prince St", "Prince St", False),
        ("You observe an intersection; Prince St is on your front", "Prince St", True),
        ("You observe an intersection; No landmarks nearby", "", True),
        ("You observe an intersection; ", "", True),
        ("A is on your left; You observe an intersection; B is on your left", "A", True),
        ("A; You observe an intersection; B is on your left", "A", True),
        ("The Destination Bar is on your left", "Bar", False),
        ("The destination The Destination Bar is on your left", "Bar", False),
        ("You do not observe an intersection", "You do not observe an intersection", False),
        ('Joe\'s "Big" \\ Pizza is on your left front', 'Joe\'s "Big" \\ Pizza', False),
        ("東京 \U0001f600 is on your left", "東京 \U0001f600", False),
    ],
)
def test_reading_of_observations(text: str, name: str, intersection: bool) -> None:
    for spelled in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        found = parsed([b'{"current observation": ' + spelled.encode() + b"}"])[0]
        assert found["observed"]
        assert (found["name"].decode(), found["intersection"]) == (name, intersection)


def test_long_names_and_what_lies_behind_the_length() -> None:
    name = "n" * (route_replies.NAME_BYTES + 1)
    text = f'"current observation": "{name} is on your left", "action": "stop()"'.encode()
    found = parsed([text])[0]
    assert found["name_length"] == len(name) and found["name"].decode() == name[:-1]
    row = np.zeros((BATCH, SIZE), np.uint8)
    row[:, : len(text)] = np.frombuffer(text, np.uint8)
    answer = parse(row, len(text) - np.arange(BATCH, dtype=np.int32))
    assert answer.action.tolist() == [1] + [-1] * (BATCH - 1)


def test_bare_names() -> None:
    for prefix in ("", " The Destination ", "the destination  THE DESTINATION "):
        assert route_replies.bare_name(prefix + "Caf\u00e9\u00a0") == "Caf\u00e9"
    assert route_replies.bare_name("The Destinations") == "The Destinations"


def test_byte_rows() -> None:
    rows = route_replies.byte_rows(["é", "abc\u00a0"], 5)
    assert bytes(rows[0]) == b"\xc3\xa9\0\0\0" and bytes(rows[1]) == b"abc \0"
    assert route_replies.byte_rows(["a", "bcd"]).shape == (2, 3)
    with pytest.raises(ValueError, match="'abcdef', allowed: at most 5 bytes"):
        route_replies.byte_rows(["abcdef"], 5)


def test_mutated_replies_agree_with_the_oracle() -> None:
    draw, texts = random.Random(0), []
    good = [
        '{"current observation": "Prince St is on your front; You observe an intersection", '
        '"current instruction": "go", "action": "forward()"}',
        "{'current observation': 'No landmarks nearby; ', 'action': 'turn_direction(left)',}",
    ]
    for _ in range(2000):
        text = draw.choice(good)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice(["", '"', "'", "\\", " ", ";", ":"]) + text[at + 1 :]
        texts.append(cut(text))
    for text, found in zip(texts, parsed([text.encode() for text in texts]), strict=True):
        assert found == plainly(text), text

"""Replies made from a random source: right, wrong, broken in many ways, and plain noise."""

import random

ALPHABET = b"0123456789+-*/()= \t\n\r\\\"':,{}.abflmnortuxAJQK%^[]\xc2\xa0\xef\xbc\x91\xd9\xa1\x00"
KEYS = [b'"formula": "%b"'] * 6 + [
    b"'formula': '%b'",
    b'"formula":"%b"',
    b'"formula" \n:\t "%b"',
    b"\"formula\": '%b'",
    b"'formula\": '%b'",
    b'"Formula": "%b"',
    b'"formula": %b',
    b'"formula": "%b',
    b'"formula": "1+1", "formula": "%b"',
    b'"formula": "%b", "formula": null',
    b'"formula": "%b", "formula" "1"',
    b'"formula"formula": "%b"',
    b'\\"formula\\": \\"%b\\"',
    b"%b",
]
BLANKS = [b" ", b"\n", b"\t", b"\r", b"  ", b"\\n", b"\\t", b"\\r", b"\xc2\xa0"]


def card_list(rng: random.Random, symbols: list[str]) -> bytes:
    """The start of a reply, with a list of these cards that is sometimes another or broken."""
    named = rng.sample(symbols, len(symbols))
    if rng.random() < 0.1:
        named[rng.randrange(4)] = rng.choice(["A", "2", "10", "K", "1", "k", "11"])
    quote = rng.choice(['"', "'", ""])
    text = rng.choice(['{"cards": [%s], ', "{'cards':[%s],", '"cards" : [ %s,\n],'])
    text %= rng.choice([", ", ","]).join(f"{quote}{symbol}{quote}" for symbol in named)
    made = text.encode()
    return mutated(rng, made) if rng.random() < 0.1 else made


def expression(rng: random.Random, numbers: list[int]) -> bytes:
    """A legal expression over the numbers, with needless parentheses now and then."""
    if len(numbers) == 1:
        zeros = b"0" * rng.randrange(1, 3) if rng.random() < 0.05 else b""
        text = zeros + str(numbers[0]).encode()
    else:
        middle = rng.randrange(1, len(numbers))
        operator = rng.choice([b"+", b"-", b"*", b"/", b"\\/" if rng.random() < 0.3 else b"/"])
        parts = [expression(rng, numbers[:middle]), operator, expression(rng, numbers[middle:])]
        blank = rng.choice(BLANKS) if rng.random() < 0.1 else b""
        text = blank.join(parts)
    while rng.random() < 0.3:
        text = b"(" + text + b")"
    return text


def mutated(rng: random.Random, text: bytes) -> bytes:
    """One byte removed, put in, replaced or moved."""
    at, other = rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)
    new = bytes([rng.choice(ALPHABET)])
    return rng.choice(
        [
            text[:at] + text[at + 1 :],
            text[:at] + new + text[at:],
            text[:at] + new + text[at + 1 :],
            text[: min(at, other)] + text[max(at, other) :],
            text[:at] + text[at : at + 2] + text[at:],
        ]
    )


def numbers_used(rng: random.Random, values: list[int]) -> list[int]:
    """The hand's values in some order; sometimes one too many, one too few or a foreign one."""
    used = rng.sample(values, len(values))
    fate = rng.random()
    if fate < 0.08:
        used[rng.randrange(4)] = rng.choice([0, 1, 7, 10, 24, 99, 10**9])
    elif fate < 0.14:
        used += [rng.choice([*values, rng.randrange(30)]) for _ in range(rng.randrange(1, 8))]
    elif fate < 0.2:
        used = used[: rng.randrange(1, 4)]
    return used


def reply(rng: random.Random, values: list[int], size: int) -> bytes:
    """One reply of at most `size` bytes."""
    if rng.random() < 0.03:
        return bytes(rng.choice(ALPHABET) for _ in range(rng.randrange(size)))
    text = expression(rng, numbers_used(rng, values))
    if rng.random() < 0.7:
        text += rng.choice([b"=24", b" = 24", b"=", b"=24=24", b"=(%", b'=\\"24', b"=24\\\\"])
    while rng.random() < 0.2:
        text = mutated(rng, text)
    text = rng.choice([b"", b"{", b'{"cards": [1], ']) + rng.choice(KEYS) % text
    text += rng.choice([b"", b"}", b"\n}\xe4\xbd\xa0"])
    while rng.random() < 0.1:
        text = mutated(rng, text)
    return text[:size]

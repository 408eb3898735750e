"""Replies are read as the plain oracle reads them, whatever the bytes and the tokenizer."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gp_virl.envs import cards
from gp_virl.text import card_list, replies
from tests import oracle

SIZE, BATCH = 96, 16
parse = jax.jit(jax.vmap(replies.parse))


def parsed(texts: list[bytes], size: int = SIZE) -> SimpleNamespace:
    rows = np.zeros((len(texts), size), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    lengths = np.array([len(text) for text in texts], np.int32)
    answer = parse(rows, lengths)
    return SimpleNamespace(**{name: np.asarray(field) for name, field in vars(answer).items()})


def plainly(text: bytes) -> list[int] | None:
    """The numbers of a legal formula, None for an illegal one."""
    try:
        return oracle.Parser(text).numbers
    except oracle.Illegal:
        return None


def counted(symbols: list[str]) -> list[int]:
    return [symbols.count(symbol) for symbol in cards.SYMBOLS]


bits = [b"1", b"24", b"007", b"+", b"-", b"*", b"/", b"\\/", b"(", b")", b"=", b" ", b"\\n", b"\\"]
bits += [b"\xc2", b"\xa0", b"\xc2\xa0", b'"', b"'", b"f", b"x", b"1+2", b"(3)"]
bits += [b'"formula"', b"'formula'", b":", b'"formula":"', b"'formula' : '", b"formula"]
bits += [b"\\u002b", b"\\u0022", b"\\u00A0", b"\\u0037", b"\\u12", b"u", b"Q", b"good "]
soup = st.lists(st.sampled_from(bits), max_size=16).map(b"".join)
inside = soup.map(lambda text: b'"formula": "' + text + b'"')
noise = st.binary(max_size=SIZE)
batches = st.lists(st.one_of(soup, inside, noise), min_size=BATCH, max_size=BATCH)


@settings(max_examples=400)
@given(batches.map(lambda texts: [text[:SIZE] for text in texts]))
def test_parse_agrees_with_the_oracle(texts: list[bytes]) -> None:
    answer = parsed(texts)
    for lane, text in enumerate(texts):
        numbers = plainly(text)
        assert answer.legal[lane] == (numbers is not None), text
        if numbers is not None:
            assert answer.count[lane] == len(numbers), text
            kept = [min(number, 9999) for number in numbers[:8]]
            assert answer.numbers[lane].tolist() == kept + [0] * (8 - len(kept)), text


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [
        ('"formula": "1+2"', [1, 2]),
        ("'formula' : '1+2=3'", [1, 2]),
        ('"formula": "1"', [1]),
        ('"formula": "1+2", "formula": "3*4"', [3, 4]),
        ('"formula": "1+2", "formula": null', None),
        ('"formula": "1+2', None),
        ('"formula": "1+2\'', None),
        ('"formula": "1+2=\\""', [1, 2]),
        ('"formula": "1+2=\\"', None),
        ('"formula\': "1+2"', None),
        ('"formula "  : "1+2"', None),
        ('"formula": "1 3"', None),
        ('"formula": "1+\\n2\\/3"', [1, 2, 3]),
        ('"formula": "1\\u002b2"', [1, 2]),
        ('"formula": "1+\u00a02"', [1, 2]),
        ('"formula": "1\u00d72"', None),
        ('"formula": "007"', [7]),
        ('"formula": "12345+1"', [9999, 1]),
        ('"formula": "-1+2"', None),
        ('"formula": "2**3"', None),
        ('"formula": "2//3"', None),
        ('"formula": "(2)(3)"', None),
        ('"formula": "2(3)"', None),
        ('"formula": "()"', None),
        ('"formula": ")1+2("', None),
        ('"formula": "(1+2"', None),
        ('"formula": "1)+(2"', None),
        ('"formula": "1.5"', None),
        ('"formula": "=3"', None),
        ('"formula": ""', None),
        ('"f\\u006Frmula": "(10-4)\\u002A(8-4)\\u003d24"', [10, 4, 8, 4]),
        ('"formula": "1\\u00a0+\\u00202"', [1, 2]),
        ('"formula": "1+2\\u0022', None),
        ('"formula": "1+2\\u0022"', None),
        ('"formula": "1+2=\\u0022\\u005c"', [1, 2]),
        ('"formula": "1+2=\\\\"', [1, 2]),
        ('"formula": "1+2\\\\u002b3"', None),
        ('"formula": "1\\u00d72"', None),
        ('"formula": "1\\u002"', None),
        ('"formula": "1\\+2"', None),
        ('"formula": "1+2", "note": "my \'formula\': good"', [1, 2]),
        ('"formula": "1+2", "note": "my\\n\'formula\': good"', [1, 2]),
        ('"formula": "1+2", "note": "4 \'formula\': good"', None),
        ('"cards": [1] "formula": "1+2"', [1, 2]),
        ('"cards": [1],\\n"formula": "1+2"', [1, 2]),
        ("1+2", None),
        ("", None),
    ],
)
def test_reading_rules(reply: str, numbers: list[int] | None) -> None:
    answer = parsed([reply.encode()])
    assert answer.legal[0] == (numbers is not None)
    if numbers is not None:
        assert answer.count[0] == len(numbers)
        assert answer.numbers[0, : len(numbers)].tolist() == numbers


card_bits = [symbol.encode() for symbol in cards.SYMBOLS] * 2
card_bits += [
    b"1",
    b"0",
    b"T",
    b"k",
    b"11",
    b"\\",
    b"\\n",
    b"\xc2\xa0",
    b"\xe2\x99\xa0",
    b"c",
    b"\x00",
]
card_bits += [b",", b", "] * 6 + [b'"', b"'", b'"', b"'", b" ", b"\n", b"[", b"]", b'"]', b"null"]
card_bits += [b'"cards"', b"'cards'", b":", b'"cards": ["', b"'cards':['", b'"cards":', b'"cards']
card_bits += [b"\\u0038", b"\\u0022", b"my "]
card_soup = st.lists(st.sampled_from(card_bits), max_size=24).map(b"".join)


FAULTS = [
    b"1 0",
    b"1",
    b"11",
    b"102",
    b"T",
    b"k",
    b"2A",
    b"'2\"",
    b"\"'2'",
    b"''2",
    b"2 3",
    b"'2",
    b"2'",
]
FAULTS += [b"", b"'", b"''", b"]", b"']", b"[2]", b"\\n2", b"\xe2\x99\xa02", b"null", b"\"'2'\""]


@st.composite
def card_lists(draw) -> bytes:
    """A list of cards, after another perhaps, with one element broken or one byte changed."""
    blank = st.sampled_from([b""] * 5 + [b" ", b"\n\t", b"\r "])
    elements = []
    for symbol in draw(st.lists(st.sampled_from(cards.SYMBOLS), max_size=5)):
        quote = draw(st.sampled_from([b'"', b"'", b""]))
        inner = [draw(blank) if quote else b"" for _ in range(2)]
        element = quote + inner[0] + symbol.encode() + inner[1] + quote
        elements.append(draw(blank) + element + draw(blank))
    fate = draw(st.sampled_from(["sound", "sound", "element", "byte"]))
    if fate == "element":
        at = draw(st.integers(0, len(elements)))
        elements[at : at + draw(st.integers(0, 1))] = [draw(st.sampled_from(FAULTS))]
    text = b",".join(elements) + draw(st.sampled_from([b"", b"", b",", b", ", b" "]))
    key = draw(st.sampled_from([b'"cards"', b"'cards'"])) + draw(blank) + b":" + draw(blank)
    text = key + b"[" + text + b"]" + draw(st.sampled_from([b"", b"}", b"x]"]))
    if fate == "byte":
        at, new = draw(st.integers(0, len(text) - 1)), draw(st.sampled_from([b"", *card_bits]))
        text = text[:at] + new + text[at + draw(st.integers(0, 1)) :]
    before = [b"", b"", b'"cards": ["2", "3"], ', b"'cards': ['Q", b'"cards": ["J"', b'["K"], ']
    return draw(st.sampled_from(before)) + text


card_batches = st.lists(
    st.one_of(card_lists(), card_soup, card_soup.map(lambda text: b'"cards": [' + text + b"]")),
    min_size=BATCH,
    max_size=BATCH,
)


@settings(max_examples=400)
@given(card_batches.map(lambda texts: [text[:SIZE] for text in texts]))
def test_the_named_cards_agree_with_the_oracle(texts: list[bytes]) -> None:
    answer = parsed(texts)
    for lane, text in enumerate(texts):
        assert answer.named[lane].tolist() == counted(oracle.named_cards(text)), text


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ('"cards": ["K", "10", "2", "A"]', ["K", "10", "2", "A"]),
        ("'cards':['K','10','2','A']", ["K", "10", "2", "A"]),
        ('"cards": [K, 10, 2, A]', ["K", "10", "2", "A"]),
        ('"cards" :\n[ "K ",\t10 , \' 2\',A,\r]', ["K", "10", "2", "A"]),
        ('"cards": ["J", "J", "J"]', ["J", "J", "J"]),
        ('"cards": ["2", "3"], "cards": ["Q"]', ["Q"]),
        ('"cards": ["2", "3"], "cards": null', []),
        ('"cards": ["2", "3"], "cards" ["Q"]', ["2", "3"]),
        ('"cards": ["2", "3", "x"]', []),
        ('"cards": ["2", "3", null]', []),
        ('"cards": ["2", "3"', []),
        ('"cards": ["2", "3\']', []),
        ('"cards": ["2" "3"]', []),
        ('"cards": ["2",, "3"]', []),
        ('"cards": [,]', []),
        ('"cards": []', []),
        ('"cards": [["2", "3"]]', []),
        ('"cards": "2, 3"', []),
        ('"cards": ["k"]', []),
        ('"cards": ["T"]', []),
        ('"cards": ["1"]', []),
        ('"cards": ["11"]', []),
        ('"cards": ["100"]', []),
        ('"cards": ["1 0"]', []),
        ('"cards": ["02"]', []),
        ('"cards": ["\u2660K"]', []),
        ('"Cards": ["K"]', []),
        ('"cards": ["\\u0038", "\\u0031\\u0030", "\\u004b"]', ["8", "10", "K"]),
        ('"cards": ["8\\u0022]', []),
        ('"cards": ["8", "K"], "note": "the \'cards\': two"', ["8", "K"]),
        ('["K"]', []),
        ("", []),
    ],
)
def test_reading_rules_of_cards(reply: str, named: list[str]) -> None:
    assert parsed([reply.encode()]).named[0].tolist() == counted(named)
    assert oracle.named_cards(reply.encode()) == named


def test_the_ranks_of_a_list_are_the_decks() -> None:
    assert len(cards.SYMBOLS) == card_list.RANKS
    for rank, symbol in enumerate(cards.SYMBOLS):
        answer = parsed([f'"cards": ["{symbol}"]'.encode()])
        assert np.flatnonzero(answer.named[0]).tolist() == [rank]


def test_a_reply_is_read_for_cards_and_formula_at_once() -> None:
    text = b'{"cards": ["4", "A"], "formula": "4*1", "cards": ["5"]}'
    answer = parsed([text, text[:37]])
    assert answer.legal.tolist() == [True, False]
    assert answer.named.tolist() == [counted(["5"]), counted(["4", "A"])]


def test_operators_and_depths() -> None:
    answer = parsed([b'"formula": "((1+2)*3)-(4/5)"', b'"formula": "1*2"'])
    assert answer.operators.tolist() == [[0, 2, 1], [2, 0, 0]]
    assert answer.depths.tolist() == [[2, 1, 0], [0, 0, 0]]


def test_depth_has_no_limit_and_length_cuts() -> None:
    deep = b'"formula": "' + b"(" * 2000 + b"7" + b")" * 2000 + b'"'
    assert parsed([deep, deep[:-2] + b'"'], 8192).legal.tolist() == [True, False]
    row = np.frombuffer(b'"formula": "1+2"', np.uint8)[None]
    assert [bool(parse(row, np.array([n])).legal[0]) for n in (16, 15)] == [True, False]


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(['{"formula": "(10-4)*(8-4)=24"}'] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot|>")
    fast.add_tokens(["\u00e9t\u00e9"])
    return fast


def sentencepiece() -> PreTrainedTokenizerFast:
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += ["\u2581", "f", "o", "\u2581fo", "\u00d7", "=", "fo"]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [("f", "o"), ("\u2581", "fo")]
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_tokens_become_the_text_they_came_from(make) -> None:
    tokenizer = make()
    bank = replies.byte_bank(tokenizer)
    assert bank.length.shape == (len(tokenizer),)
    text = 'fo fo=\u00d7 \u00e9t\u00e9\n"formula": \U0001f914  fo'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = jnp.asarray([*ids, tokenizer.eos_token_id, ids[0]])
    read = jax.jit(replies.read, static_argnums=3)
    said, length = read(bank, tokens, jnp.int32(len(ids) + 1), 128)
    assert bytes(np.asarray(said)[: int(length)]) == text.encode()
    cut, length = replies.read(bank, tokens, jnp.int32(len(ids)), 7)
    assert bytes(np.asarray(cut)) == text.encode()[:7] and int(length) == 7


def test_the_last_field_is_found_by_its_tokens() -> None:
    tokenizer = byte_level()
    bank, field = replies.byte_bank(tokenizer), b"fo="
    find = jax.jit(replies.field_start, static_argnums=(3, 4))
    for text in ("fo=", "", "fo fo", "fo=fo=", "ab fo=\u00e9 fo=7 fo", "\u00e9fo= fo=" + "x" * 99):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = jnp.zeros(128, jnp.int32).at[: len(ids)].set(jnp.array(ids, jnp.int32))
        ends = np.cumsum([int(bank.length[token]) for token in ids])
        for size in (4, 10, 200):
            place = text.encode()[:size].rfind(field)
            want = len(ids) if place < 0 else int((ends <= place).sum())
            assert int(find(bank, tokens, jnp.int32(len(ids)), size, field)) == want, (text, size)


def test_a_vocabulary_of_another_kind_is_named() -> None:
    model = models.WordLevel({"caf\u20ac": 0, "[UNK]": 1}, unk_token="[UNK]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="[UNK]")
    with pytest.raises(ValueError, match="caf\u20ac.*byte-level"):
        replies.byte_bank(tokenizer)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gp_virl.text import template
from gp_virl.text.template import Case, ChatGlue, ListTexts, Pieces, Slot, TemplateError
from gp_virl.text.tokenizer import tiny
from gp_virl.types import Context
from tests.text.bpe import LLAMA_TEMPLATE, llama_like, llama_vision_like

TINY = tiny()
PIECES = [[5, 6, 7], [], [8], [9, 10], [], [11, 12, 13, 14]]
BANK = template.bank_of(PIECES)
ENTRIES = st.lists(st.integers(-1, len(PIECES) - 1), min_size=6, max_size=6)
compose = jax.jit(template.compose, static_argnames="size")
append = jax.jit(template.append)


def joined(entries: list[int]) -> list[int]:
    return [token for entry in entries if entry >= 0 for token in PIECES[entry]]


@given(ENTRIES, st.sampled_from([1, 4, 12, 30]))
def test_compose_joins_pads_and_cuts(entries: list[int], size: int) -> None:
    context = compose(BANK, jnp.array(entries, jnp.int32), size)
    wanted = joined(entries)[:size]
    assert context.length == len(wanted)
    assert context.tokens.tolist() == wanted + [0] * (size - len(wanted))


@given(ENTRIES, st.integers(0, 20))
def test_append_writes_after_the_length(entries: list[int], length: int) -> None:
    held = list(range(100, 120))
    context = append(Context(jnp.array(held), jnp.int32(length)), BANK, jnp.array(entries))
    wanted = (held[:length] + joined(entries))[:20]
    assert context.length == len(wanted)
    assert context.tokens.tolist() == wanted + [0] * (20 - len(wanted))


def test_compose_and_append_work_in_lanes_and_on_bytes() -> None:
    entries = np.random.default_rng(0).integers(-1, len(PIECES), (7, 6))
    bank = template.bank_of(PIECES, np.uint8)
    lanes = jax.vmap(lambda e: template.compose(bank, e, 16))(jnp.array(entries))
    assert bank.flat.dtype == jnp.uint8 and lanes.tokens.dtype == jnp.int32
    more = jax.vmap(template.append, in_axes=(0, None, 0))(lanes, bank, jnp.array(entries))
    for lane in range(7):
        wanted = joined(entries[lane].tolist())
        assert lanes.tokens[lane, : lanes.length[lane]].tolist() == wanted[:16]
        assert more.tokens[lane, : more.length[lane]].tolist() == (2 * wanted)[:16]


def test_pieces_keep_a_text_once_and_a_table_in_order() -> None:
    pieces = Pieces(TINY)
    assert pieces.add("K 7") == pieces.add("K 7") == 0
    assert pieces.table([" 7", " K"]) == 1 and pieces.add(" K") == 3
    bank = pieces.bank()
    for entry, text in enumerate(pieces.texts):
        tokens = bank.flat[bank.start[entry] : bank.start[entry] + bank.length[entry]]
        assert TINY.decode(tokens.tolist()) == text


def test_chat_takes_turns() -> None:
    assert template.chat(["a", "b", "c"]) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_chat_glue_of_llama_3_2_has_its_system_header() -> None:
    glue = ChatGlue.of(llama_like())
    assert glue.opening.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>")
    assert "Today Date: 26 Jul 2024\n\n<|eot_id|>" in glue.opening
    assert glue.end == "<|eot_id|>" and glue.next == "<|start_header_id|>user<|end_header_id|>\n\n"
    assert glue.asking == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


def test_an_image_at_the_start_of_a_content_reaches_the_template_as_a_part() -> None:
    contents = ["<|image|>a", "<|imagine|>", "b <|image|>"]
    text = template.render(llama_vision_like(), template.chat(contents), True)
    head = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    assert text.startswith(head + "<|image|>a<|eot_id|>") and "b <|image|><|eot_id|>" in text
    plain = template.render(llama_vision_like(), template.chat(["a"]), True)
    assert plain.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>")


def test_chat_glue_beside_an_image_is_read_beside_an_image() -> None:
    tokenizer = llama_vision_like()
    glue, plain = ChatGlue.of(tokenizer, pictured=True), ChatGlue.of(tokenizer)
    assert glue.opening == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    assert "Today Date: 26 Jul 2024" in plain.opening
    assert (glue.asking, glue.end, glue.next) == (plain.asking, plain.end, plain.next)
    assert ChatGlue.of(TINY, pictured=True) == ChatGlue.of(TINY)


@pytest.mark.parametrize(
    "chat", [LLAMA_TEMPLATE, LLAMA_TEMPLATE.replace("message['content'] | trim", "message.content")]
)
def test_a_chat_template_without_images_is_named(chat: str) -> None:
    with pytest.raises(TemplateError, match=r"prints an image part as <\|image\|>"):
        ChatGlue.of(llama_like(template=chat), pictured=True)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_chat_glue_of_other_families() -> None:
    tokenizer = llama_like(template=CHATML, special=("<|im_start|>", "<|im_end|>"))
    glue = ChatGlue.of(tokenizer)
    assert (glue.end, glue.next) == ("<|im_end|>", "\n<|im_start|>user\n")
    assert glue.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("{{ messages[0]['content'] }}", "once and in order"),
        (LLAMA_TEMPLATE.replace("['content']", "['content'] | upper"), "once and in order"),
        (CHATML.replace("{{ m['role'] }}", "{{ m['role'] }}{{ loop.index }}"), "differently"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "special"),
    ],
)
def test_an_odd_chat_template_is_an_error(chat: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatGlue.of(llama_like(template=chat))


def test_split_finds_slots_and_leaves_other_braces() -> None:
    parts = template.split('{"a": {cards}} {K} {value}.', ["cards", "value"], "here")
    assert parts == [
        ("literal", '{"a": '),
        ("slot", "cards"),
        ("literal", "} {K} "),
        ("slot", "value"),
        ("literal", "."),
    ]
    with pytest.raises(TemplateError, match=r"here: unknown slot \{cards\}; allowed: \{value\}"):
        template.split("{cards}", ["value"], "here")


LISTS = {"n": ListTexts(tuple(map(str, range(30))), ", ", 3)}
PLACES = {("n", 0): 2, ("n", 1): 3, ("n", 2): 4}


def compiled(text: str) -> tuple[Pieces, tuple[int | Slot, ...]]:
    pieces = Pieces(TINY)
    return pieces, template.compile_parts(pieces, template.split(text, LISTS, "here"), LISTS)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 40), max_size=3))
def test_filled_on_the_device_is_filled_in_python(numbers: list[int]) -> None:
    pieces, atoms = compiled("Not {n}, no.")
    padded = numbers + [-1] * (3 - len(numbers))
    rows = template.lay_out([atoms, atoms[:1]], PLACES)
    row = jax.tree.map(lambda leaf: leaf[0], rows)
    entries = template.fill(row, jnp.array([0, -1, *padded])).tolist()
    assert [e for e in entries if e >= 0] == template.entries_of(atoms, {"n": padded})
    text = "".join(pieces.texts[entry] for entry in entries if entry >= 0)
    named = ", ".join(str(min(n, 29)) for n in numbers)
    assert text == f"Not {named}, no." if numbers else text == "Not, no."
    assert len([t for e in entries if e >= 0 for t in pieces.tokens[e]]) <= template.longest(
        atoms, pieces
    )
    short = jax.tree.map(lambda leaf: leaf[1], rows)
    filled = template.fill(short, jnp.array([0, -1, *padded])).tolist()
    assert filled == [atoms[0]] + [-1] * (len(atoms) - 1)


def cases(pieces: Pieces, atoms: tuple, text: str) -> list[Case]:
    rows = [[n, (n + 7) % 30, (n + 11) % 30] for n in range(30)]
    return [
        Case(
            "n",
            text.replace("{n}", ", ".join(map(str, r))),
            (*template.entries_of(atoms, {"n": r}),),
        )
        for r in rows
    ]


def test_the_proof_accepts_what_is_true() -> None:
    pieces, atoms = compiled("Not {n}, no.")
    template.prove("mine", pieces, cases(pieces, atoms, "Not {n}, no."))


def test_the_proof_finds_pieces_that_merge() -> None:
    pieces, atoms = compiled("Not 1{n}.")  # "10" is one token, "1" and "0" are two
    with pytest.raises(TemplateError, match=r"wording of mine, n, at .*alone it is.*put a blank"):
        template.prove("mine", pieces, cases(pieces, atoms, "Not 1{n}."))


def test_the_proof_finds_what_is_left_over_and_what_is_left_out() -> None:
    pieces, atoms = compiled("Not {n}.")
    good = cases(pieces, atoms, "Not {n}.")
    with pytest.raises(TemplateError, match="end 2 tokens before"):
        template.prove("mine", pieces, [Case("n", good[0].text + " 7", good[0].parts)])
    with pytest.raises(TemplateError, match="doesn't reach the pieces"):
        template.prove("mine", pieces, good[:-1])

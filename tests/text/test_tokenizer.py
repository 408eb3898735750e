import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.text import tokenizer as tokenizers
from gp_virl.text.prompts import BRIEF, FULL
from gp_virl.text.template import encode, render
from tests.text.bpe import llama_like

ROOT = Path(__file__).parent.parent.parent
TINY = tokenizers.tiny()


def pieces(text: str) -> list[str]:
    return [TINY.decode([token]) for token in encode(TINY, [text])[0]]


def test_has_at_most_512_entries_and_llamas_special_tokens() -> None:
    assert len(TINY) <= 512
    assert max(TINY.get_vocab().values()) == len(TINY) - 1
    assert TINY.convert_tokens_to_ids(tokenizers.IMAGE) == len(TINY) - 1
    for name in (*tokenizers.SPECIAL, tokenizers.IMAGE):
        token = TINY.convert_tokens_to_ids(name)
        assert encode(TINY, [f"a{name}b"])[0][1] == token
        assert token in TINY.all_special_ids or token in TINY.added_tokens_decoder
    assert TINY.bos_token == "<|begin_of_text|>" and TINY.eos_token == "<|eot_id|>"


def test_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from gp_virl.text.tokenizer import tiny; "
        "print(hashlib.sha256(tiny().backend_tokenizer.to_str().encode()).hexdigest())"
    )
    here = hashlib.sha256(TINY.backend_tokenizer.to_str().encode()).hexdigest()
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.split()[-1] == here


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    assert TINY.decode(encode(TINY, [text])[0]) == text


def test_every_byte_has_a_token() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(ByteLevel.alphabet()) <= set(TINY.get_vocab())
    for text in (FULL.prompt, "\n\n\n \t é 漢字 🤔 \x00\x7f <|nothing|>", " 7  K\u00a0", "  a  "):
        assert TINY.decode(encode(TINY, [text])[0]) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("(10-4)*13/2=24", ["(", "10", "-", "4", ")", "*", "13", "/", "2", "=", "24"]),
        ("14 124 2024 07", ["1", "4", " ", "1", "2", "4", " ", *"2024", " ", *"07"]),
        ("1 2 11 12 24", ["1", " ", "2", " ", "11", " ", "12", " ", "24"]),
        ("K A, Q", ["K", " ", "A", ", ", "Q"]),
        ("<|image|>cards with J=11", ["<|image|>", "cards", " with J=", "11"]),
        (
            '{"cards": ["K", "10"], "number": [10, 10], "formula": "2*7=24"}',
            ['{"cards": ["', "K", '", "', "10", '"], "number": [', "10", ", ", "10"]
            + ['], "formula": "', "2", "*", "7", "=", "24", '"}'],
        ),
    ],
)
def test_cards_numbers_operators_and_boilerplate_are_tokens(text: str, wanted: list[str]) -> None:
    assert pieces(text) == wanted


def test_a_card_letter_inside_a_word_is_no_card() -> None:
    split = TINY.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [text for text, _ in split("Kings Ace J?")] == ["Kings", "ĠAce", "Ġ", "J", "?"]


def test_chat_has_llama_3s_form() -> None:
    messages = [{"role": "user", "content": " hi \n"}, {"role": "assistant", "content": "yo"}]
    assert render(TINY, messages, True) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    header = pieces("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert header == ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"]


def test_a_first_turn_in_brief_is_at_most_70_tokens() -> None:
    prompt = BRIEF.prompt.replace("{cards}", "10 10 K K").replace("{target}", "24")
    for name, value in (("jack", 11), ("queen", 12), ("king", 13)):
        prompt = prompt.replace(f"{{{name}}}", str(value))
    reply = BRIEF.reply.replace("{cards}", '", "'.join(["10", "10", "K", "K"]))
    reply = reply.replace("{numbers}", "10, 10, 13, 13").replace("{target}", "24")
    reply = reply.replace("{formula}", "((10-10)-(13-13))*((1))")  # as many tokens as can be
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    assert len(encode(TINY, [render(TINY, messages, False)])[0]) <= 70


def test_load_reads_a_directory(tmp_path: Path) -> None:
    llama_like().save_pretrained(tmp_path)
    loaded = tokenizers.load(str(tmp_path))
    assert encode(loaded, ["K 10<|eot_id|>"]) == encode(llama_like(), ["K 10<|eot_id|>"])
    TINY.save_pretrained(tmp_path / "tiny")
    again = tokenizers.load(str(tmp_path / "tiny"))
    assert again.backend_tokenizer.to_str() == TINY.backend_tokenizer.to_str()
    assert again.chat_template == TINY.chat_template
    assert tokenizers.load("tiny").get_vocab() == TINY.get_vocab()


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tiny' or a directory"):
        tokenizers.load(str(tmp_path / "nothing_here"))
    llama_like(template=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="chat_template.jinja"):
        tokenizers.load(str(tmp_path))

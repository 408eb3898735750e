import dataclasses
import json

import pytest

from gp_virl.text.prompts import BRIEF, FULL, SLOTS, Wording, load_wording
from gp_virl.text.template import TemplateError
from gp_virl.text.wordings import from_fields

FIELDS = dataclasses.asdict(BRIEF)


def test_the_two_wordings_are_known_by_name() -> None:
    assert load_wording("full") is FULL and load_wording("brief") is BRIEF


@pytest.mark.parametrize("wording", [FULL, BRIEF])
def test_the_reply_is_json_on_one_line(wording: Wording) -> None:
    reply = wording.reply.replace("{cards}", wording.reply_cards_separator.join("KQJA"))
    reply = reply.replace("{numbers}", wording.reply_numbers_separator.join("1234"))
    reply = reply.replace("{formula}", "1+2").replace("{target}", "3")
    assert "\n" not in reply and wording.answer_field in reply
    assert json.loads(reply) == {"cards": [*"KQJA"], "number": [1, 2, 3, 4], "formula": "1+2=3"}


def test_beside_a_picture_the_rule_is_told_and_no_card() -> None:
    for wording in (FULL, BRIEF):
        assert (
            wording.prompt_image.startswith("<|image|>") and "{cards}" not in wording.prompt_image
        )
    shared = FULL.prompt[FULL.prompt.index("Rules:") : FULL.prompt.index("\n\nYour cards")]
    assert shared in FULL.prompt_image and "read them from the picture" in FULL.prompt_image
    assert FULL.prompt_image.endswith(FULL.prompt[FULL.prompt.index('"number", the list') :])


def test_full_tells_the_rule_the_format_and_an_example() -> None:
    for said in ("{jack}", "{queen}", "{king}", "{target}", "{cards}", "exactly once"):
        assert said in FULL.prompt
    example = json.loads(FULL.prompt[FULL.prompt.index('{"cards"') :])
    assert list(example) == ["cards", "number", "formula"] and 4 * 6 * 1 * 1 == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{cards} {jack} {queen} {king}"}, r"'prompt' lacks \{target\}"),
        ({"prompt": FIELDS["prompt"] + " {joker}"}, r"unknown slot \{joker\}; allowed: \{cards\}"),
        ({"wrong_value": "It is wrong"}, r"lacks \{value\}"),
        ({"prompt_image": FIELDS["prompt_image"][9:]}, r"<\|image\|> must stand at the start of"),
        ({"prompt_image": "<|image|> {jack}{queen}{king}{target}"}, "starts or ends with a blank"),
        ({"prompt_image": FIELDS["prompt_image"] * 2}, "and nowhere else"),
        ({"prompt_image": "<|image|>{cards}"}, r"unknown slot \{cards\}"),
        ({"solved": "<|image|>Solved"}, "'solved': .* and nowhere else"),
        ({"illegal": "{value}?"}, r"unknown slot \{value\}; allowed: \{jack\}"),
        ({"illegal": " Illegal"}, "starts or ends with a blank"),
        ({"illegal": ""}, "empty"),
        ({"largest": "99"}, "'largest' is '99', must be int"),
        ({"largest": 10}, "24 to 999"),
        ({"foreign_named": 9}, "1 to 8"),
        ({"unused_named": 0}, "1 to 4"),
        ({"answer_field": "answer"}, "doesn't occur in the reply"),
        ({"hello": "x"}, r"unknown fields \['hello'\].*a wording has exactly the fields prompt"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_fields({**FIELDS, **change}, "mine.json", Wording)
    assert str(caught.value).startswith("mine.json")


def test_text_literals_are_what_stands_between_slots() -> None:
    found = BRIEF.text_literals()
    for text in (" with J=", ", Q=", ", K=", ": make", "Illegal", "Value:", '", "', ", "):
        assert text in found
    assert not any("{" + slot + "}" in text for text in found for slot in ("cards", "target"))
    assert all(isinstance(getattr(FULL, name), str) for name in SLOTS)


def test_a_wrong_slot_is_a_template_error() -> None:
    with pytest.raises(TemplateError):
        dataclasses.replace(BRIEF, solved="{cards}")

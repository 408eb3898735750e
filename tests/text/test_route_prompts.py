import dataclasses
import json

import pytest

from gp_virl.text.route_prompts import BRIEF, FULL, RouteWording, load_wording
from gp_virl.text.template import TemplateError
from gp_virl.text.wordings import put

FIELDS = dataclasses.asdict(BRIEF)


@pytest.mark.parametrize("wording", [FULL, BRIEF])
def test_the_reply_is_json_on_one_line(wording: RouteWording) -> None:
    reply = put(wording.reply, observation="a", instruction="b", action="stop()")
    expected = {"current observation": "a", "current instruction": "b", "action": "stop()"}
    assert "\n" not in reply and json.loads(reply) == expected


def test_full_tells_the_actions_and_the_format() -> None:
    for said in ("forward()", "turn_direction(x)", "stop()", '"current observation"', '"action"'):
        assert said in FULL.prompt
    assert "northwest" in FULL.absolute and "slightly left" in FULL.relative


def test_rows_hold_the_slots_of_their_parts() -> None:
    assert BRIEF.sentence_rows()[3] == "{number}.go:{landmark} is on your {side}\n"
    told, seen = BRIEF.observation_rows(False), BRIEF.observation_rows(True)
    assert told[3] == "{landmark} is on your {side}; You observe an intersection"
    assert told[4] == "The destination {landmark} is on your {side}" and len(told) == len(seen) == 6
    assert not any("{" in text for text in seen) and seen[0] != seen[1]
    assert BRIEF.step_rows(True)[1] == "You observe an intersection>{action}\n"
    assert BRIEF.present_rows(False) == told[:5]


def test_wordings_go_by_their_names() -> None:
    assert load_wording("full") is FULL and load_wording("brief") is BRIEF


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{rule} {instructions} {history}"}, r"'prompt' must have once each .*observa"),
        ({"prompt": "{rule}{history}{instructions}{observation}"}, "in the order"),
        ({"prompt": FIELDS["prompt"] + "{rule}"}, "once each"),
        ({"arrive": "to {landmark}"}, r"\{landmark\}, \{side\}"),
        ({"step": "{observation} {action} {joker}"}, r"unknown slot \{joker\}"),
        ({"correct": " yes"}, "starts or ends with a blank"),
        ({"nothing": "<|image|>"}, r"<\|image\|> is put before the prompt"),
        ({"answer_field": "answer"}, "doesn't occur in the reply"),
    ],
)
def test_a_wrong_text_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RouteWording(**FIELDS | change)


def test_a_wrong_slot_is_a_template_error() -> None:
    with pytest.raises(TemplateError):
        dataclasses.replace(BRIEF, correct="{landmark}")

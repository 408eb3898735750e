import pytest

from gp_virl.envs import routes
from gp_virl.text import route_tokenizer
from gp_virl.text.template import IMAGE, encode
from gp_virl.text.tokenizer import SPECIAL, head_rows, tiny

WORDS = ("Harbor", "Mango", " Tea House", " Bakery")
TINY = route_tokenizer.tiny_routes(WORDS)


def pieces(text: str) -> list[str]:
    return [TINY.decode([token]) for token in encode(TINY, [text])[0]]


def test_has_llamas_special_tokens_and_the_image_last() -> None:
    ids = TINY.get_vocab()
    assert len(TINY) <= 512 and max(ids.values()) == len(TINY) - 1 == ids[IMAGE]
    assert [ids[name] for name in SPECIAL] == list(range(len(SPECIAL)))
    assert head_rows(TINY) == len(TINY) - 1
    assert TINY.chat_template == tiny().chat_template


def test_is_the_same_every_time_and_for_the_same_words_only() -> None:
    again = route_tokenizer.tiny_routes(WORDS).backend_tokenizer.to_str()
    assert again == TINY.backend_tokenizer.to_str()
    assert again != route_tokenizer.tiny_routes().backend_tokenizer.to_str()


def test_its_words_are_those_of_the_environment() -> None:
    assert (*routes.COMPASS, *routes.RELATIVE) == route_tokenizer.DIRECTIONS
    assert routes.SIDES == route_tokenizer.SIDES


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10.turn:slightly left\n", ["1", "0", ".", "turn:", "slightly left", "\n"]),
        (
            "2.go:Harbor Tea House is on your left front\n",
            ["2", ".", "go:", "Harbor", " Tea House", " is on your", " left front", "\n"],
        ),
        ("go:Mango Bakery", ["go:", "Mango", " Bakery"]),
        (
            'nearby; You observe an intersection", "action": "',
            ["; You observe an intersection", '", "action": "'],
        ),
        ('"turn_direction(northwest)"}', ["turn_direction(", "northwest", ")", '"}']),
        ("forward()\n>stop()", ["forward()", "\n", ">", "stop()"]),
    ],
)
def test_boilerplate_words_and_directions_are_tokens(text: str, wanted: list[str]) -> None:
    found = pieces(text)
    assert found[-len(wanted) :] == wanted


def test_any_text_survives_the_round_trip() -> None:
    for text in ("Joe's “Pizza”\n\n\n \t 東京 🤔 \x00", "northern eastward turning 1234", ""):
        assert TINY.decode(encode(TINY, [text])[0]) == text

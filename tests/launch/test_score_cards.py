"""Verdicts on replies to hands, and words for lines that can't be scored."""

import json

import pytest

from launch import reply_lines, score_cards

GOOD = {"reply": '"formula": "10*2+4*1"', "cards": ["K", "2", "4", "A"], "rule": "face_ten"}
GOOD |= {"target": 24}


def scored(*changes: dict, task: str = "gp_l") -> list[dict]:
    content = "\n".join(json.dumps(GOOD | change) for change in changes)
    lines = reply_lines.read_lines(content.encode(), score_cards.read_line)
    return score_cards.score(lines, task)


def test_feedback_names_what_was_wrong() -> None:
    results = scored(
        {"id": "a"},
        {"reply": '"formula": "10+2+4+1"'},
        {"reply": '"formula": "10+97+4+2"'},
        {"reply": "no"},
        {"target": 17, "reply": '"formula": "10+2+4+1"'},
        {"rule": "face_rank"},
    )
    assert [result["id"] for result in results] == ["a", 2, 3, 4, 5, 6]
    outcomes = ["solved", "wrong_value", "wrong_numbers", "illegal", "solved", "wrong_numbers"]
    assert [result["outcome"] for result in results] == outcomes
    assert [result["reward"] for result in results] == [5, -1, -2, -3, 5, -2]
    assert "17" in results[1]["feedback"]
    assert "97" in results[2]["feedback"]
    assert "13" in results[5]["feedback"]


def test_cards_count_only_where_they_are_seen() -> None:
    said = [{"reply": '"cards": ["K", "4", 2, "A"], ' + GOOD["reply"]}, {}]
    said += [{"reply": '"cards": ["K", "4", "A"]'}]
    results = scored(*said, task="gp_vl")
    assert [result["outcome"] for result in results] == ["solved", *["unrecognized"] * 2]
    assert [result["reward"] for result in results] == [5, -1.5, -1.5]
    assert "not the cards" in results[1]["feedback"]
    assert [result["outcome"] for result in scored(*said)] == ["solved", "solved", "illegal"]


def test_a_lines_modality_counts_whatever_the_task() -> None:
    lines = [{"modality": modality} for modality in ("language", "vision")]
    for task in ("gp_l", "gp_vl"):
        results = scored(*lines, task=task)
        assert [result["reward"] for result in results] == [5, -1.5]


def test_replies_of_any_length_and_any_characters() -> None:
    solution = GOOD["reply"]
    texts = [
        "",
        "\ud83e" + solution,
        "x" * 5000 + "{" + solution,
        "\x00\n\u2028" + solution,
        solution + " " * (1 << 20),
        solution.replace("+", "\ud800"),
    ]
    outcomes = [result["outcome"] for result in scored(*({"reply": text} for text in texts))]
    assert outcomes == ["illegal", "solved", "solved", "solved", "solved", "illegal"]
    assert scored() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reply": None}, "reply: given None, allowed: a text"),
        ({"cards": ["A", "2", "3"]}, r"cards: given \['A', '2', '3'\].*list of 4"),
        ({"cards": ["A", "2", "3", "11"]}, r"cards: given \['11'\], allowed: A, 2"),
        ({"cards": ["A", "2", "3", {}]}, r"cards: given \[\{\}\]"),
        ({"rule": "face"}, "rule: given 'face', allowed: face_ten, face_rank"),
        ({"rule": [1]}, "rule: given.*allowed: face_ten, face_rank"),
        ({"target": 0}, "target: given 0, allowed: an integer"),
        ({"target": 24.0}, "target: given 24.0"),
        ({"target": True}, "target: given True"),
        ({"modality": "Vision"}, "modality: given 'Vision', allowed: language, vision"),
        ({"modality": None}, "modality: given None"),
        ({"target": 2**40}, "target: given 1099511627776"),
    ],
)
def test_bad_fields_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_cards.read_line(2, json.dumps(GOOD | change).encode())
    with pytest.raises(ValueError, match="missing: cards, rule, target; fields: reply"):
        score_cards.read_line(2, b'{"reply": ""}')

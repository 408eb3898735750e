"""Verdicts on golden replies at waypoints, and words for lines that can't be scored."""

import json
from pathlib import Path

import pytest

from launch import score_routes

GOLDEN = Path(__file__).parent.parent / "data" / "virl_replies.jsonl"
GOOD = {
    "reply": '{"current observation": "The Dutch is on your right", "action": "forward()"}',
    "expert_action": "forward()",
    "observation": "The Dutch is on your right",
    "intersection": False,
}


def scored(*changes: dict) -> list[dict]:
    rows = [json.dumps(GOOD | change).encode() for change in changes]
    lines = [score_routes.read_line(number, row) for number, row in enumerate(rows, start=1)]
    return score_routes.score(lines)


def test_golden_cases() -> None:
    rows = GOLDEN.read_bytes().splitlines()
    cases = [json.loads(row) for row in rows]
    results = score_routes.score([score_routes.read_line(n, row) for n, row in enumerate(rows)])
    assert [result["id"] for result in results] == [case["id"] for case in cases]
    assert {tuple(result) for result in results} == {("id", "outcome", "reward", "feedback")}
    for case, result in zip(cases, results, strict=True):
        assert result["reward"] in (case["reward"], *case.get("also_accepted", ())), case
    assert {result["outcome"] for result in results} == set(score_routes.OUTCOMES)
    assert len(cases) == 92


def test_what_counts_as_detected() -> None:
    def reply(observation: str) -> dict:
        return {"reply": json.dumps({"current observation": observation, "action": "stop()"})}

    crossing = "; You observe an intersection"
    results = scored(
        {"id": "right"},
        reply("The Dutch is on your left"),  # of a landmark only the name counts
        reply("The Dutch Inn is on your right"),
        reply("The Dutch is on your right" + crossing),
        reply("No landmarks nearby"),
        reply("No landmarks nearby" + crossing) | {"observation": "No landmark nearby"},
        reply("No landmarks nearby" + crossing)
        | {"observation": "No landmark nearby", "intersection": True},
        {"reply": '{"action": "stop()"}', "observation": "No landmarks nearby"},
        {"reply": reply("The Dutch is on your right")["reply"], "expert_action": "stop()"}
        | {"observation": "The destination The Dutch is on your right", "intersection": True},
    )
    assert [result["id"] for result in results] == ["right", *range(2, 10)]
    rewards = [1.0, -1.0, -1.5, -1.5, -1.5, -1.5, -1.0, -1.5, 1.0]
    assert [result["reward"] for result in results] == rewards
    assert "stop()" in results[1]["feedback"]
    assert "landmark" in results[2]["feedback"] and "intersection" not in results[2]["feedback"]
    assert "intersection" in results[3]["feedback"] and "landmark" not in results[3]["feedback"]


def test_no_observation_is_no_landmark() -> None:
    seen = json.dumps({"current observation": "No landmarks nearby", "action": "stop()"})
    texts = ["", None, " \n", "\tNo landmarks nearby ", " The Dutch is on your left"]
    results = scored(*({"reply": seen, "observation": text} for text in texts))
    assert [result["reward"] for result in results] == [-1.0] * 4 + [-1.5]


def test_replies_of_any_length_and_any_characters() -> None:
    good = GOOD["reply"]
    texts = ["", "\ud83e" + good, "x" * 5000 + good, "\x00\n\u2028" + good, good + " " * (1 << 16)]
    outcomes = [result["outcome"] for result in scored(*({"reply": text} for text in texts))]
    assert outcomes == ["not_detected", "correct", "correct", "correct", "correct"]
    assert score_routes.score([]) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "allowed: an object with reply"),
        (json.dumps({"reply": ""}).encode(), "missing: expert_action, observation, intersection"),
        (json.dumps(GOOD | {"reply": None}).encode(), "reply: given None, allowed: a text"),
        (json.dumps(GOOD | {"expert_action": "jump()"}).encode(), r"'jump\(\)', allowed: forward"),
        (json.dumps(GOOD | {"expert_action": [1]}).encode(), r"given \[1\], allowed: forward"),
        (json.dumps(GOOD | {"intersection": 1}).encode(), "given 1, allowed: true or false"),
        (json.dumps(GOOD | {"observation": "The Dutch"}).encode(), "NAME is on your SIDE"),
        (json.dumps(GOOD | {"observation": 5}).encode(), "observation: given 5"),
        (json.dumps(GOOD | {"observation": "n" * 129 + " is on your left"}).encode(), "128 bytes"),
    ],
)
def test_a_line_that_cannot_be_scored(row: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_routes.read_line(1, row)

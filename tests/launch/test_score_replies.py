"""The launcher's verdicts on golden replies, and its words for files that can't be scored."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import score_replies

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "data" / "gp_replies.jsonl"
GOOD = {"reply": '"formula": "10*2+4*1"', "cards": ["K", "2", "4", "A"], "rule": "face_ten"}
GOOD |= {"target": 24}


def launched(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.score_replies", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def scored(*changes: dict, task: str = "gp_l") -> list[dict]:
    content = "\n".join(json.dumps(GOOD | change) for change in changes)
    return score_replies.score(score_replies.read_lines(content.encode()), task)


@pytest.mark.parametrize(
    ("task", "modality", "count"), [("gp_l", "language", 311), ("gp_vl", "vision", 289)]
)
def test_golden_cases_through_the_command(
    tmp_path: Path, task: str, modality: str, count: int
) -> None:
    out = tmp_path / "out.jsonl"
    done = launched(f"--task={task}", GOLDEN, out)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["id"] for result in results] == [case["id"] for case in cases]
    assert {tuple(result) for result in results} == {("id", "outcome", "reward", "feedback")}
    assert os.listdir(tmp_path) == ["out.jsonl"]
    judged = 0
    for case, result in zip(cases, results, strict=True):
        if case["modality"] == modality:
            judged += 1
            assert result["reward"] in (case["reward"], *case.get("also_accepted", ())), case
    assert judged == count


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


def test_replies_of_any_length_and_any_characters() -> None:
    solution = GOOD["reply"]
    texts = [
        "",
        "\ud83e" + solution,
        "x" * 5000 + solution,
        "\x00\n\u2028" + solution,
        solution + " " * (1 << 20),
        solution.replace("+", "\ud800"),
    ]
    outcomes = [result["outcome"] for result in scored(*({"reply": text} for text in texts))]
    assert outcomes == ["illegal", "solved", "solved", "solved", "solved", "illegal"]
    assert scored() == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: given b'{', not JSON"),
        (b"\xff\xfe", "line 2: .*not JSON"),
        (b"[" * 100_000, "line 2: .*not JSON"),
        (b"[]", "line 2: .*an object with reply"),
        (b'{"reply": ""}', "line 2: missing: cards, rule, target"),
        ({"reply": None}, "line 2: reply: given None, allowed: a text"),
        ({"cards": ["A", "2", "3"]}, r"line 2: cards: given \['A', '2', '3'\].*list of 4"),
        ({"cards": ["A", "2", "3", "11"]}, r"line 2: cards: given \['11'\], allowed: A, 2"),
        ({"cards": ["A", "2", "3", {}]}, r"line 2: cards: given \[\{\}\]"),
        ({"rule": "face"}, "line 2: rule: given 'face', allowed: face_ten, face_rank"),
        ({"rule": [1]}, "line 2: rule: given.*allowed: face_ten, face_rank"),
        ({"target": 0}, "line 2: target: given 0, allowed: an integer"),
        ({"target": 24.0}, "line 2: target: given 24.0"),
        ({"target": True}, "line 2: target: given True"),
        ({"target": 2**40}, "line 2: target: given 1099511627776"),
    ],
)
def test_bad_lines_are_named(line: bytes | dict, message: str) -> None:
    bad = line if isinstance(line, bytes) else json.dumps(GOOD | line).encode()
    content = json.dumps(GOOD).encode() + b"\n" + bad + b"\n\n" + bad
    with pytest.raises(score_replies.BadLines, match=message) as caught:
        score_replies.read_lines(content)
    assert "line 4: " in str(caught.value) and "line 1: " not in str(caught.value)


def test_nothing_is_written_for_a_bad_file(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(GOOD | {"target": "x"}) + "\n")
    done = launched("--task=gp_l", source, out)
    assert done.returncode != 0 and "line 1: target: given 'x'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert "gp_l" in launched("--task=gp", source, out).stderr

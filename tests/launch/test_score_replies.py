"""The command's verdicts on golden replies, and its words for files that can't be scored."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import app

from launch import score_replies

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "data"


def launched(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.score_replies", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("task", "file", "count"),
    [
        ("gp_l", "gp_replies.jsonl", 600),
        ("gp_vl", "gp_replies.jsonl", 600),
        ("virl_l", "virl_replies.jsonl", 92),
        ("virl_vl", "virl_replies.jsonl", 92),
    ],
)
def test_golden_cases_through_the_command(tmp_path: Path, task: str, file: str, count: int) -> None:
    out = tmp_path / "out.jsonl"
    done = launched(f"--task={task}", GOLDEN / file, out)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in (GOLDEN / file).read_text().splitlines()]
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["id"] for result in results] == [case["id"] for case in cases]
    assert {tuple(result) for result in results} == {("id", "outcome", "reward", "feedback")}
    assert os.listdir(tmp_path) == ["out.jsonl"]
    for case, result in zip(cases, results, strict=True):
        assert result["reward"] in (case["reward"], *case.get("also_accepted", ())), case
    assert len(cases) == count


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        (
            "gp_l",
            {"reply": "", "cards": ["A"] * 4, "rule": "face_ten", "target": "x"},
            "line 1: target: given 'x'",
        ),
        ("virl_l", {"reply": ""}, "line 1: missing: expert_action, observation, intersection"),
    ],
)
def test_nothing_is_written_for_a_bad_file(
    tmp_path: Path, task: str, line: dict, message: str
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(line) + "\n")
    done = launched(f"--task={task}", source, out)
    assert done.returncode != 0 and message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        ("", "out.jsonl", "in.jsonl: no line to score is there, allowed: at least one"),
        ("\n  \n", "out.jsonl", "in.jsonl: no line to score is there, allowed: at least one"),
        (
            "{}",
            "absent/out.jsonl",
            "a file in a folder that is not there; allowed: a file in an ex",
        ),
        ("{}", ".", "a folder; allowed: a file in an existing folder"),
    ],
)
def test_refused_before_scoring(
    tmp_path: Path, monkeypatch, content: str, out: str, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    monkeypatch.setattr(score_replies, "_TASK", SimpleNamespace(value="gp_l"))
    with pytest.raises(app.UsageError) as caught:  # which absl prints, and exits with 1
        score_replies.main(["", str(source), str(tmp_path / out)])
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_wrong_arguments(tmp_path: Path) -> None:
    wrong = launched("--task=gp", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert wrong.returncode != 0 and "virl_vl" in wrong.stderr
    (tmp_path / "in.jsonl").touch()
    empty = launched("--task=gp_l", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert empty.returncode != 0 and "no line to score" in empty.stdout + empty.stderr

"""Records read back from files; malformed files are refused with their place and reason."""

import dataclasses
import json
from pathlib import Path

import pytest

from gp_virl.metrics import jsonl_writer
from gp_virl.plots.results import (
    Record,
    ResultsError,
    json_lines,
    read_metrics,
    read_runs,
    read_summary,
    record,
)
from tests.plots.synthetic import measured

ONE = measured("rl", "id", 0.75, 2e13, 40, 0)
ENTRY = dataclasses.asdict(ONE)


def write(path: Path, *entries: dict) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_records_come_back_from_the_metrics_writer(tmp_path: Path) -> None:
    writer = jsonl_writer(tmp_path / "metrics.jsonl")
    writer.write({"kind": "sft", "branch": "sft", "step": 1, "loss": 0.5})
    writer.write({"kind": "eval", **ENTRY, "turn_shares": [0.1, 0.9]})
    assert read_metrics(tmp_path / "metrics.jsonl") == [ONE]
    assert read_runs([tmp_path, tmp_path]) == [ONE]


def test_a_cut_last_line_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", {"kind": "eval", **ENTRY})
    path.write_text(path.read_text() + '{"kind": "ev')
    assert read_metrics(path) == [ONE]


def test_lines_end_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "a\u2028b\x0bc"}\n'.replace("\x0b", "\\u000b"))
    assert [entry["text"] for _, entry in json_lines(path)] == ["a\u2028b\x0bc"]


def test_summary_holds_the_same_records(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"results": [ENTRY]}))
    assert read_summary(path) == [ONE]


@pytest.mark.parametrize(
    ("text", "named"),
    [("{", "not JSON"), ("[]", "'results'"), ('{"results": 3}', "'results'")],
)
def test_a_malformed_summary_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=named):
        read_summary(path)
    with pytest.raises(ResultsError, match="not there"):
        read_summary(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"branch": "ppo"}, "branch must be one of init, sft, sft_matched, rl, not 'ppo'"),
        ({"split": "ood"}, "split must be one of"),
        ({"decoding": "beam"}, "decoding must be one of"),
        ({"value": 75.0}, r"value must be a share in \[0, 1\], not 75.0"),
        ({"value": None}, "value must be float"),
        ({"low": float("nan")}, "low must be a share"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 3.5}, "n must be int"),
        ({"seed": True}, "seed must be int"),
        ({"compute_flops": -1.0}, "compute_flops must be at least 0"),
        ({"updates": "3"}, "updates must be int"),
    ],
)
def test_an_impossible_field_is_named(change: dict, named: str) -> None:
    with pytest.raises(ResultsError, match=f"here: {named}"):
        record(ENTRY | change, "here")


def test_all_missing_fields_are_named_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", {"kind": "eval", **ENTRY}, {"kind": "eval", "n": 1})
    with pytest.raises(ResultsError) as refused:
        read_metrics(path)
    assert f"{path}, line 2" in str(refused.value)
    for field in dataclasses.fields(Record):
        assert (f"{field.name} is missing" in str(refused.value)) is (field.name != "n")


@pytest.mark.parametrize(
    ("line", "named"), [("nonsense", "not JSON"), ("[1]", "not a JSON object"), ("{}", "'kind'")]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ResultsError, match=f"line 1: .*{named}"):
        read_metrics(path)


def test_runs_without_results_or_with_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not there"):
        read_runs([tmp_path / "none"])
    write(tmp_path / "metrics.jsonl", {"kind": "sft", "step": 1})
    with pytest.raises(ResultsError, match="no line of kind 'eval'"):
        read_runs([tmp_path])
    other = ENTRY | {"value": 0.5}
    write(tmp_path / "metrics.jsonl", {"kind": "eval", **ENTRY}, {"kind": "eval", **other})
    with pytest.raises(ResultsError, match=r"two results for .*0\.75 and 0\.5"):
        read_runs([tmp_path])

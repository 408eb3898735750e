"""Evaluation records against plain counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gp_virl.evals.evaluate import NOT_PLAYED, records
from gp_virl.evals.scores import wilson

NAMES = ("solved", "wrong_value", "illegal")
COMMON = {"branch": "rl", "seed": 3, "updates": 7}


def plain(table: list[list[int]], members: list[bool], suffix: str) -> list[dict]:
    """The same records, counted hand by hand."""
    hands = [row for row, member in zip(table, members, strict=True) if member]
    turns = len(table[0])
    counts = []
    for tries in sorted({1, turns}):
        hits = sum(any(outcome == 0 for outcome in row[:tries]) for row in hands)
        counts.append((f"success{suffix}", tries, hits, len(hands)))
    for turn in range(turns):
        said = [row[turn] for row in hands if row[turn] != NOT_PLAYED]
        for index, name in enumerate(NAMES):
            counts.append((f"outcome_{name}{suffix}", turn + 1, said.count(index), len(said)))
    found = []
    for metric, tries, hits, n in counts:
        if n:
            low, high = wilson(hits, n)
            about = {"metric": metric, "tries": tries, "value": hits / n, "n": n}
            found.append(COMMON | about | {"low": low, "high": high})
    return found


@st.composite
def tables(draw) -> tuple[list[list[int]], list[bool]]:
    """Outcomes of some hands, which end when solved, and which of them a group holds."""
    turns, hands = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    rows = []
    for _ in range(hands):
        row = draw(st.lists(st.integers(0, 2), min_size=turns, max_size=turns))
        end = row.index(0) + 1 if 0 in row else turns
        rows.append(row[:end] + [NOT_PLAYED] * (turns - end))
    return rows, draw(st.lists(st.booleans(), min_size=hands, max_size=hands))


def of_game(table, common, groups):
    """Records of a game in which the right reply ends the episode."""
    outcome = np.array(table)
    return list(records(outcome, outcome == 2, outcome == 0, NAMES, common, groups))


@given(tables())
def test_records_against_plain_counting(case) -> None:
    rows, members = case
    groups = {"": np.ones(len(rows), bool), "_seen": np.array(members)}
    got = of_game(rows, COMMON, groups)
    want = plain(rows, [True] * len(rows), "") + plain(rows, members, "_seen")
    assert got == want


def test_by_hand() -> None:
    found = of_game([[0, -1], [1, 0], [2, 2], [1, 1]], COMMON, {"": np.ones(4, bool)})
    shares = {(r["metric"], r["tries"]): (r["value"], r["n"]) for r in found}
    assert shares == {
        ("success", 1): (0.25, 4),
        ("success", 2): (0.5, 4),
        ("outcome_solved", 1): (0.25, 4),
        ("outcome_wrong_value", 1): (0.5, 4),
        ("outcome_illegal", 1): (0.25, 4),
        ("outcome_solved", 2): (pytest.approx(1 / 3), 3),
        ("outcome_wrong_value", 2): (pytest.approx(1 / 3), 3),
        ("outcome_illegal", 2): (pytest.approx(1 / 3), 3),
    }
    assert all(r["branch"] == "rl" and r["low"] <= r["value"] <= r["high"] for r in found)


def test_one_try_is_recorded_once_and_empty_groups_not_at_all() -> None:
    groups = {"": np.ones(2, bool), "_none": np.zeros(2, bool)}
    found = of_game([[0], [2]], {}, groups)
    assert [(r["metric"], r["tries"]) for r in found].count(("success", 1)) == 1
    assert not any(r["metric"].endswith("_none") for r in found)


def test_steps_and_recognition_by_hand() -> None:
    """Three routes of two or more steps; a right reply leads on, a wrong one may be revised."""
    outcome = np.array([[0, 0, -1, -1], [1, 0, 0, -1], [0, 1, 2, -1]])
    solved = np.zeros((3, 4), bool)
    solved[0, 1] = solved[1, 2] = True
    seen = np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]], bool)
    everyone = {"": np.ones(3, bool)}
    metrics = ("per_step", "recognition")
    found = records(outcome, seen, solved, NAMES, COMMON, everyone, metrics, tries_a_step=2)
    shares = {(r["metric"], r["tries"]): (r["value"] * r["n"], r["n"]) for r in found}
    assert shares == {
        ("success", 1): (1, 3),
        ("success", 2): (2, 3),
        ("per_step", 1): (pytest.approx(4), 6),  # of which replies 1:0 and 2:1 are wrong
        ("per_step", 2): (5, 8),
        ("recognition", 1): (4, 6),
        ("recognition", 2): (5, 8),
        ("outcome_solved", 2): (5, 8),
        ("outcome_wrong_value", 2): (2, 8),
        ("outcome_illegal", 2): (1, 8),
    }

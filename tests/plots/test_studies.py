"""Run directories become studies by the task they tell."""

import json
from pathlib import Path

import pytest

from gp_virl.plots.results import ResultsError
from gp_virl.plots.studies import Study, column, columns, read_studies
from tests.plots.synthetic import task_study, write_study


def seed_of(study: Study, seed: int) -> Study:
    return Study(study.task, study.scale, [r for r in study.records if r.seed == seed])


def test_studies_come_back_in_the_papers_order_with_seeds_together(tmp_path: Path) -> None:
    cards, streets = task_study("gp_l", seeds=2), task_study("virl_l")
    runs = [write_study(streets, tmp_path / "v")]
    runs += [write_study(seed_of(cards, seed), tmp_path / f"g{seed}") for seed in (0, 1)]
    read = read_studies(runs)
    assert [(one.task, one.scale) for one in read] == [("gp_l", "imagined"), ("virl_l", "imagined")]
    assert sorted(map(repr, read[0].records)) == sorted(map(repr, cards.records))
    assert read[1].records == streets.records


def test_an_unfinished_study_is_told_by_its_configuration(tmp_path: Path) -> None:
    run = write_study(task_study("gp_vl"), tmp_path)
    (run / "summary.json").rename(run / "config.json")
    assert [one.title for one in read_studies([run])] == ["GP-VL, imagined"]


def test_a_run_that_tells_nothing_is_nameless_or_of_the_task_given(tmp_path: Path) -> None:
    run = write_study(task_study("gp_l"), tmp_path / "a")
    (run / "summary.json").unlink()
    assert [(one.task, one.title) for one in read_studies([run])] == [("", "")]
    assert [one.title for one in read_studies([run], "virl_l")] == ["V-IRL-L"]
    other = write_study(task_study("virl_l"), tmp_path / "b")
    with pytest.raises(ResultsError, match=r"a: neither summary.json nor config.json tells"):
        read_studies([run, other])


def test_contradictions_are_named(tmp_path: Path) -> None:
    study = task_study("gp_l")
    run = write_study(study, tmp_path / "a")
    with pytest.raises(ResultsError, match="a is a study of gp_l, not of gp_vl"):
        read_studies([run], "gp_vl")
    small = write_study(Study("gp_l", "small", study.records), tmp_path / "b")
    with pytest.raises(ResultsError, match="runs of gp_l in scales imagined, small"):
        read_studies([run, small])
    (run / "summary.json").write_text("{")
    with pytest.raises(ResultsError, match=r"summary.json is not JSON"):
        read_studies([run])


def test_a_summary_of_another_kind_tells_nothing(tmp_path: Path) -> None:
    run = write_study(task_study("gp_l"), tmp_path)
    for text in ("[]", json.dumps({"task": "chess"})):
        (run / "summary.json").write_text(text)
        assert read_studies([run])[0].task == ""


def test_a_column_needs_init_rl_and_sft_on_every_split() -> None:
    study = task_study("gp_vl", control=True)
    whole = column(study, ("id", "visual_ood"), "recognition", None)
    assert (whole.tries, sorted(whole.fits)) == (2, ["id", "visual_ood"])
    assert {r.metric for fit in whole.fits.values() for r in fit} == {"recognition"}
    for branch in ("init", "rl", "sft"):
        less = Study("gp_vl", "", [r for r in study.records if r.branch != branch])
        with pytest.raises(ResultsError, match=f"GP-VL: no success on id of {branch}"):
            column(less, ("id",), "success")
    less = Study("gp_vl", "", [r for r in study.records if r.branch != "sft_matched"])
    assert column(less, ("id",), "success")


def test_columns_keep_what_others_lack() -> None:
    studies = [task_study("gp_l"), task_study("gp_vl"), task_study("virl_l")]
    wanted = {"gp_l": "success", "gp_vl": "success"}
    found, lacking = columns(studies, wanted, ("visual_ood",))
    assert [one.study.task for one in found] == ["gp_vl"]
    assert len(lacking) == 1 and lacking[0].startswith("GP-L: no result for split=visual_ood")
    with pytest.raises(ResultsError, match="given: no study. Run"):
        columns([], wanted, ("id",))

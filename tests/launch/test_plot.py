"""The command writes the file it was asked for, from what lies in the run directories alone."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from gp_virl.metrics import jsonl_writer
from gp_virl.plots.paper import TASKS
from launch.plot import main
from tests.envs.route_examples import changed, two_legs, write
from tests.plots.synthetic import study, task_study, write_study
from tests.plots.test_transcripts import entry


def run(directory: Path, seeds: tuple[int, ...] = (0,)) -> Path:
    writer = jsonl_writer(directory / "metrics.jsonl")
    writer.write({"kind": "sft", "branch": "sft", "step": 1, "seed": 0, "loss": 1.0})
    for one in study(seeds=max(seeds) + 1):
        if one.seed in seeds:
            writer.write({"kind": "eval", **dataclasses.asdict(one)})
    return directory


@pytest.mark.parametrize(
    ("out", "magic"), [("a.png", b"\x89PNG"), ("deep/a.pdf", b"%PDF"), ("a.svg", b"<?xml")]
)
@pytest.mark.parametrize("kind", ["fig5", "fig6"])
def test_figures_are_written_in_the_format_of_the_name(
    tmp_path: Path, capsys, kind: str, out: str, magic: bytes
) -> None:
    path = tmp_path / out
    assert main([kind, str(run(tmp_path / "run")), "--out", str(path)]) == 0
    assert path.read_bytes().startswith(magic)
    assert capsys.readouterr().out.strip() == str(path)


def test_runs_of_several_seeds_are_drawn_together(tmp_path: Path) -> None:
    runs = [str(run(tmp_path / str(seed), (seed,))) for seed in range(2)]
    out = tmp_path / "a.svg"
    assert main(["fig5", *runs, "--out", str(out)]) == 0
    assert "deviation of 2 seeds" in out.read_text()


@pytest.mark.parametrize("kind", ["fig1", "fig5", "fig6", "fig7", "fig8", "fig18"])
def test_every_figure_is_drawn_from_studies_of_several_tasks(tmp_path: Path, kind: str) -> None:
    tasks = ("virl_vl", "gp_vl", "gp_l")
    runs = [str(write_study(task_study(task), tmp_path / task)) for task in tasks]
    out = tmp_path / "a.svg"
    assert main([kind, *runs, "--out", str(out), "--tries", "all", "--title", "Imagined"]) == 0
    drawn, both = out.read_text(), {"GP-VL", "V-IRL-VL"}
    shown = {"fig7": both, "fig8": {"GP-VL"}, "fig18": set()}.get(kind, both | {"GP-L"})
    assert "Imagined" in drawn and "2 tries" in drawn
    assert {name for name in TASKS.values() if f"{name}, imagined: " in drawn} == shown


def test_the_task_of_a_run_that_tells_none_can_be_given(tmp_path: Path) -> None:
    out = tmp_path / "a.svg"
    path = str(run(tmp_path / "run"))
    assert main(["fig6", path, "--out", str(out), "--task", "gp_l"]) == 0
    assert "GP-L" in out.read_text()


def test_a_page_of_transcripts_is_written(tmp_path: Path) -> None:
    (tmp_path / "transcripts.jsonl").write_text(json.dumps(entry()) + "\n")
    out = tmp_path / "page.html"
    assert main(["transcripts", str(tmp_path), "--out", str(out)]) == 0
    assert "(10-4)*(8-4)=24" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fig5", "none", "--out", "a.png"], "none/metrics.jsonl is not there"),
        (["fig5", "run", "--out", "a.docx"], "must be one of .png, .pdf, .svg"),
        (["fig5", "run", "--out", "a.png", "--ood", "visual_ood"], "split=visual_ood"),
        (["fig6", "run", "--out", "a.png", "--tries", "5"], "tries=5"),
        (["fig6", "run", "--out", "a.png", "--task", "virl_l"], "metric=per_step"),
        (["fig1", "run", "--out", "a.png"], "this run: not in this figure"),
        (["fig7", "run", "--out", "a.png"], "python -m launch.study --config=configs/gp_vl.py"),
        (["fig8", "run", "--out", "a.png"], "needed: recognition and success of GP-VL"),
        (["fig18", "run", "--out", "a.png"], "python -m launch.study --config=configs/virl_vl"),
        (["transcripts", "run", "--out", "a.html"], "transcripts.jsonl is not there"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    tmp_path: Path, capsys, monkeypatch, arguments: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not Path(arguments[3]).exists()


def test_a_route_is_drawn_from_files(tmp_path: Path, capsys) -> None:
    folder = write(tmp_path, [[two_legs(), changed("init_heading", 9)], 2])
    out = tmp_path / "a.svg"
    asked = ["route", str(folder), "--index=1", "--rule=relative", "--out", str(out)]
    assert main(asked) == 0 and capsys.readouterr().out.strip() == str(out)
    assert "Turn slightly left." in out.read_text() and "1 to Hall" in out.read_text()
    for arguments, named in (
        (["--index=2"], "--index: given 2, allowed: 0..1"),
        (["--style=lagos"], "leave them out with ROUTES"),
        (["--seed=0"], "leave them out with ROUTES"),
    ):
        assert main(["route", str(folder), *arguments, "--out", "b.svg"]) == 1
        assert named in capsys.readouterr().err
    assert main(["route", str(tmp_path / "none"), "--out", "b.svg"]) == 1
    assert "no routes are there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["route", "--index=-1", "--out", "b.svg"])
    assert "given '-1', allowed: an integer >= 0" in capsys.readouterr().err


def test_a_route_of_a_city_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    asked = ["route", "--style=lagos", "--seed=1", "--index=1", "--title=Mine", "--max-straight=1"]
    assert main([*asked, "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width == 1650 and picture.height > 1650


def test_the_command_line_names_what_it_takes(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["fig99", "run", "--out", "a.png"])
    assert "fig5" in capsys.readouterr().err
    for tries in ("0", "-1", "some"):
        with pytest.raises(SystemExit):
            main(["fig5", "run", "--out", "a.png", "--tries", tries])
        assert "all" in capsys.readouterr().err

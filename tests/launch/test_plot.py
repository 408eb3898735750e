"""The command writes the file it was asked for, from what lies in the run directories alone."""

import dataclasses
import json
from pathlib import Path

import pytest

from gp_virl.metrics import jsonl_writer
from launch.plot import main
from tests.plots.synthetic import study
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


def test_the_command_line_names_what_it_takes(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["fig99", "run", "--out", "a.png"])
    assert "fig5" in capsys.readouterr().err

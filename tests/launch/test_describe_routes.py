"""What people see of their routes, and what they are told about files that can't be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import describe_routes
from tests.envs.route_examples import GOLDEN, changed, two_legs, write

ROOT = Path(__file__).parent.parent.parent
TURNS = json.loads((GOLDEN.parent / "route_turns.json").read_text())
FIELDS = {"heading", "position", "observation", "intersection", "sentence", "action"}


def launched(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.describe_routes", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def described(path: Path, out: Path, *flags: str) -> list[dict]:
    assert describe_routes.main([str(path), *flags, "--json", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", TURNS, ids=lambda c: f"{c['route']}-from-{c['start_heading']}")
@pytest.mark.parametrize("rule", ["absolute", "relative"])
def test_golden_turns(rule: str, case: dict, tmp_path: Path) -> None:
    flags = f"--rule={rule}", f"--start-heading={case['start_heading']}"
    route = described(GOLDEN, tmp_path / "out.json", *flags)[case["route"]]
    assert (route["rule"], route["start_heading"]) == (rule, case["start_heading"])
    assert all(set(point) > FIELDS for point in route["waypoints"])
    turns = [point for point in route["waypoints"] if point["action"].startswith("turn")]
    told = [(turn["heading_before"], turn[rule]) for turn in case["turns"]]
    assert [(point["heading"], point["action"]) for point in turns] == told
    assert [point["intersection"] for point in turns] == [False] + [True] * (len(turns) - 1)
    marks = [mark.replace("No landmark ", "No landmarks ") for mark in case["landmarks"]]
    assert [point["observation"] for point in turns[1:]] == marks[:-1]
    last = route["waypoints"][-1]
    assert last["action"] == "stop()" and last["observation"] == "No landmarks nearby"
    assert f"The destination{last['sentence'].split(' where')[1]}" == f"{marks[-1]}."
    assert all(p["action"] == "forward()" for p in route["waypoints"][:-1] if p not in turns)
    assert route["instructions"][last["sentence_number"] - 1] == last["sentence"]


def test_the_command(tmp_path: Path) -> None:
    folder = write(tmp_path, [[two_legs(), changed("init_heading", 300)], 2])
    out = tmp_path / "out.json"
    flags = ("--rule=relative", "--start-heading=90", "--max-straight=1")
    done = launched(folder, *flags, "--json", out)
    assert done.returncode == 0, done.stderr
    assert [len(route["waypoints"]) for route in json.loads(out.read_text())] == [5, 5]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:8] == [
        "route 0 to Hall, Old_Town, relative actions",
        "start heading 90",
        "# heading position intersection observation action sentence",
        "0 90 (east) 40.000000, -74.000000 no No landmarks nearby turn_direction(left) "
        "1. Turn left.",
        "1 0 (north) 40.000450, -74.000000 no No landmarks nearby forward() "
        "2. Move forward until the next intersection where Cafe: A is on your left.",
        "2 0 (north) 40.000899, -74.000000 yes Cafe: A is on your left turn_direction(right) "
        "3. Turn right.",
        "3 90 (east) 40.000899, -73.999765 no No landmarks nearby forward() "
        "4. Move forward until the destination where Hall is on your front.",
        "4 90 (east) 40.000899, -73.999530 no No landmarks nearby stop() "
        "4. Move forward until the destination where Hall is on your front.",
    ]


def test_the_start_heading(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write(tmp_path, [[two_legs(), changed("init_heading", 300)], 2])
    routes = described(folder, tmp_path / "out.json", "--rule=relative")
    assert [route["start_heading"] for route in routes] == [0, 300]
    assert [route["start_heading_given"] for route in routes] == [False, True]
    actions = [route["waypoints"][0]["action"] for route in routes]
    assert actions == ["turn_direction(slightly left)", "turn_direction(right)"]
    printed = capsys.readouterr().out
    assert "start heading 0, assumed: the file gives none; choose one with" in printed
    assert "start heading 300\n" in printed


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path, [[changed("init_heading", "x"), changed("milestone_info", "")], 2])
    out = tmp_path / "out.json"
    done = launched(folder, "--rule=absolute", "--json", out)
    assert done.returncode == 1 and done.stdout == "" and not out.exists()
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"describe_routes: {folder}: no route was read\n")
    assert "route '0 to Hall': init_heading: given 'x'" in done.stderr
    assert "route '1 to Hall': milestone_info: given 0 blocks, allowed: 2" in done.stderr


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for flag, told in (
        ("--rule=north", "choose from"),
        ("--start-heading=360", "given '360', allowed: an integer in 0..359"),
        ("--start-heading=-5", "given '-5'"),
        ("--start-heading=north", "given 'north'"),
        ("--max-straight=few", "given 'few', allowed: an integer >= 0"),
    ):
        with pytest.raises(SystemExit) as caught:
            describe_routes.main([str(GOLDEN), flag])
        assert caught.value.code == 2 and told in capsys.readouterr().err
    assert describe_routes.main([str(GOLDEN), "--json", str(tmp_path / "no" / "out.json")]) == 1
    assert "No such file" in capsys.readouterr().err

"""A minuscule study from end to end, in processes of its own: run, run again, killed, staged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gp_virl.plots import results

ROOT = Path(__file__).parents[2]
# The three fine-tuning runs are alike, so that one compiled program serves them all.
SFT = {"steps": 4, "batch_size": 4, "microbatch": 4, "length": 128, "learning_rate": 1e-3}
SFT |= {"schedule": "constant", "warmup": 1}
SMALL = {
    "env.max_turns": 2,
    "data.examples": 64,
    "data.max_errors": 1,
    **{f"{run}.{key}": value for run in ("base", "sft", "sft_matched")
       for key, value in SFT.items()},
    "rollout.lanes": 4,
    "rollout.turns": 3,
    "rollout.reply_length": 16,
    "rollout.reply_bytes": 96,
    "rollout.context": 128,
    "rollout.chunk": 16,
    "ppo.updates": 4,
    "ppo.epochs": 1,
    "ppo.minibatches": 1,
    "ppo.microbatch": 4,
    "ppo.value_warmup": 1,
    "eval.hands": 16,
    "eval.curve_hands": 16,
    "eval.lanes": 8,
    "eval.points": 2,
    "eval.transcripts": 2,
}  # fmt: skip
OVERRIDES = [f"--config.{name}={value}" for name, value in SMALL.items()]
BRANCHES = ("base", "sft", "sft_matched", "rl")
pytestmark = pytest.mark.slow

# Fails when the base would keep its second checkpoint, begins again, and dies when the RL branch
# would keep its second: each time all since the first one is lost.
KILLED = """
import os, runpy, sys
from launch import branches, lab

keep, run, failed = branches.keep, lab.run, []

def keep_or_die(branch, step, *rest):
    if (branch.name, step) == ("rl", 4):
        os._exit(9)
    if (branch.name, step) == ("base", 4) and not failed:
        failed.append(step)
        raise InterruptedError
    keep(branch, step, *rest)

def run_again(main, *rest):
    def both():
        try:
            main()
        except InterruptedError:
            main()
    run(both, *rest)

branches.keep, lab.run = keep_or_die, run_again
sys.argv = ["study", *sys.argv[1:]]
runpy.run_module("launch.study", run_name="__main__")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def launched(place: Path):
    """Runs a launcher with the minuscule configuration; the runs share compiled programs."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run(program: list[str], *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, *program, *arguments, *OVERRIDES],
            cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | cache,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="module")
def whole(place: Path, launched) -> Path:
    """The work directory of a study that nothing interrupted."""
    launched(["-m", "launch.study"], f"--workdir={place / 'whole'}")
    return place / "whole"


def lines(workdir: Path, **match) -> list[dict]:
    """The metrics in order, without what a clock measured."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in record.items() if not name.endswith("_s")}
        for record in found
        if all(record[name] == value for name, value in match.items())
    ]


def test_a_study_leaves_its_summary_figures_and_transcripts(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    for record in summary["results"]:
        assert list(record) == list(results.FIELDS)
        assert 0 <= record["low"] <= record["value"] <= record["high"] <= 1
        assert record["n"] <= 16
    found = {
        (r["branch"], r["split"], r["metric"], r["tries"], r["decoding"])
        for r in summary["results"]
    }
    for branch in ("init", *BRANCHES[1:]):
        for decoding in ("greedy", "sampled"):
            for tries in (1, 2):
                for split, metric in (
                    ("id", "success"), ("id", "success_seen"), ("id", "success_held_out"),
                    ("rule_ood", "success"),
                ):  # fmt: skip
                    assert (branch, split, metric, tries, decoding) in found
    compute = {
        branch: sorted({r["compute_flops"] for r in summary["results"] if r["branch"] == branch})
        for branch in ("init", "sft", "rl")
    }
    assert len(compute["init"]) == 1 and len(compute["sft"]) == len(compute["rl"]) == 2
    assert compute["init"][0] < min(compute["sft"][0], compute["rl"][0])
    assert {one["branch"] for one in summary["findings"]} == {"sft", "sft_matched", "rl"}
    for name in ("fig5.png", "fig6.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    talks = (whole / "seed0" / "transcripts.jsonl").read_text().splitlines()
    assert len(talks) == 4 * 2 * 2  # branches, splits, conversations
    assert "make 24" in (whole / "transcripts.html").read_text()
    for branch in BRANCHES:
        steps = {int(one.name) for one in (whole / "seed0" / branch).iterdir() if one.is_dir()}
        assert steps == {2, 4}
        assert {one["step"] for one in lines(whole, branch=branch) if "step" in one} >= steps


def test_a_study_that_is_done_trains_nothing_again(whole: Path, launched) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    done = launched(["-m", "launch.study"], f"--workdir={whole}")
    assert (whole / "metrics.jsonl").read_bytes() == before
    for branch in BRANCHES:
        assert f"{branch:<11} seed 0: continues after step 4" in done.stderr


def test_a_killed_study_ends_with_the_same_numbers(whole: Path, place: Path, launched) -> None:
    workdir = f"--workdir={place / 'killed'}"
    done = launched(["-c", KILLED], workdir, code=9)
    assert "base        seed 0: continues after step 2" in done.stderr
    done = launched(["-m", "launch.study"], workdir)
    assert "rl          seed 0: continues after step 2" in done.stderr
    assert lines(place / "killed") == lines(whole)
    one, other = (json.loads((w / "summary.json").read_text()) for w in (whole, place / "killed"))
    assert one["results"] == other["results"] and one["findings"] == other["findings"]
    for name in ("transcripts.html", "seed0/transcripts.jsonl"):
        assert (whole / name).read_bytes() == (place / "killed" / name).read_bytes()


@pytest.mark.parametrize(("program", "branch"), [("train_sft", "sft"), ("train_rl", "rl")])
def test_a_single_stage_is_the_studys_branch(
    whole: Path, place: Path, launched, program: str, branch: str
) -> None:
    alone, init = place / program, whole / "seed0" / "base"
    launched(["-m", f"launch.{program}"], f"--workdir={alone}", f"--init={init}")
    assert lines(alone) == lines(whole, branch=branch)


def test_evaluate_finds_what_the_study_found(whole: Path, place: Path, launched) -> None:
    file = place / "found.json"
    checkpoint = whole / "seed0" / "rl"
    done = launched(["-m", "launch.evaluate"], f"--checkpoint={checkpoint}", f"--json={file}")
    found = json.loads(file.read_text())
    told = {"metric", "tries", "split", "decoding", "value", "n", "low", "high", "updates"}
    wanted = lines(whole, kind="eval", branch="rl", updates=4)
    assert [{k: r[k] for k in told} for r in found] == [{k: r[k] for k in told} for r in wanted]
    assert "rule_ood" in done.stdout and "held_out" in done.stdout


def test_another_configuration_is_refused_by_name(whole: Path, launched) -> None:
    before = (whole / "config.json").read_bytes()
    done = launched(["-m", "launch.study"], f"--workdir={whole}", "--config.ppo.clip=0.3", code=1)
    assert "ConfigError" in done.stderr and "differs in ppo" in done.stderr
    assert "Traceback" not in done.stderr and (whole / "config.json").read_bytes() == before


def test_a_study_that_cannot_start_leaves_nothing(place: Path, launched) -> None:
    work = place / "impossible"
    done = launched(
        ["-m", "launch.study", "--config.text.wording=none"], f"--workdir={work}", code=1
    )
    assert "'full', 'brief'" in done.stderr and not work.exists()

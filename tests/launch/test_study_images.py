"""A minuscule study of hands that are seen, from end to end in one process, and once more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.test_study import BRANCHES, ROOT, SMALL, lines

CHANGES = {"env.image_size": 48, "data.examples": 32, "rollout.images": 4, "ppo.pictures": 1}
CHANGES |= {"eval.hands": 8, "eval.curve_hands": 8, "eval.transcripts": 1}
CHANGES |= {f"{run}.pictures": 1 for run in ("base", "sft", "sft_matched")}
FLAGS = ["--config=configs/gp_vl.py:tiny"]
FLAGS += [f"--config.{name}={value}" for name, value in (SMALL | CHANGES).items()]
SPLITS = ("id", "rule_ood", "visual_ood")
FIGURES = ("fig5", "fig6", "fig7", "fig8")
pytestmark = pytest.mark.slow

# The second time nothing is left to do; what it says is told apart by the line between.
TWICE = """
import runpy, sys
from launch import lab

run = lab.run

def again(main, *rest):
    def both():
        main()
        print("again", file=sys.stderr)
        main()
    run(both, *rest)

lab.run = again
sys.argv = ["study", *sys.argv[1:]]
runpy.run_module("launch.study", run_name="__main__")
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, list[str]]:
    """The work directory, and what was said at the first and at the second time."""
    place = tmp_path_factory.mktemp("seen")
    quick = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled")}
    quick["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    quick["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # most of the time is compilation
    quick["XLA_FLAGS"] += " --xla_llvm_disable_expensive_passes=true"
    done = subprocess.run(
        [sys.executable, "-c", TWICE, f"--workdir={place / 'study'}", *FLAGS],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | quick,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return place / "study", done.stderr.split("again\n")


def test_recognition_and_success_are_told_for_every_split(study) -> None:
    summary = json.loads((study[0] / "summary.json").read_text())
    assert summary["task"] == "gp_vl"
    found = {
        (r["branch"], r["split"], r["metric"], r["tries"], r["decoding"])
        for r in summary["results"]
    }
    for branch in ("init", *BRANCHES[1:]):
        for split in SPLITS:
            for metric in ("success", "recognition"):
                for decoding in ("greedy", "sampled"):
                    assert (branch, split, metric, 1, decoding) in found
    ends = {(one["branch"], one["split"]) for one in summary["findings"]}
    assert ends == {(branch, split) for branch in BRANCHES[1:] for split in SPLITS}


def test_a_solved_hand_was_recognized(study) -> None:
    """On a first try, as one that is not read right earns no success."""
    tries = {}
    for record in lines(study[0], kind="eval"):
        about = tuple(record[k] for k in ("branch", "updates", "split", "decoding"))
        tries.setdefault((*about, record["tries"]), {})[record["metric"]] = record["value"]
    first = [found for about, found in tries.items() if about[-1] == 1 and "success" in found]
    assert len(first) >= 3 * 7  # the splits, of init and two points of three branches
    assert all(0 <= found["success"] <= found["recognition"] <= 1 for found in first)


def test_an_image_is_encoded_once_a_hand(study) -> None:
    updates = lines(study[0], kind="ppo")
    assert len(updates) == 4
    for one in updates:
        assert 0 < one["encoded"] < one["turns"] == 12
        assert one["gap"] < 1e-3  # what the update sees is what the rollout saw


def test_figures_and_transcripts_show_what_was_seen(study) -> None:
    for name in FIGURES:
        assert (study[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    talks = (study[0] / "seed0" / "transcripts.jsonl").read_text().splitlines()
    assert len(talks) == 4 * len(SPLITS)
    page = (study[0] / "transcripts.html").read_text()
    assert page.count("data:image/png") >= 1


def test_the_second_time_trains_nothing(study) -> None:
    first, second = study[1]
    for branch in BRANCHES:
        told = f"{branch:<11} seed 0: continues after step 4"
        assert told not in first and told in second
    steps = [(r["branch"], r["step"]) for r in lines(study[0]) if "step" in r]
    assert len(steps) == len(set(steps)) == 2 * 3 + 4

"""A run whose work directory is a URL: the same as one on this machine, also when it goes on."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.gp_l import get_config
from gp_virl import config as cfg
from gp_virl.io import checkpoint
from gp_virl.places import Place, place
from gp_virl.plots import results
from launch import branches
from launch import lab as labs
from tests.launch.test_study import OVERRIDES, ROOT
from tests.object_store import Store, opened, store  # noqa: F401 - a fixture

# A stage on this machine; and in a bucket, where it fails when it would keep its second checkpoint,
# begins again and is evaluated.
PROGRAM = """
import sys
from pathlib import Path

from tests.object_store import opened
from launch import branches, evaluate, lab, train_sft
from gp_virl.places import place

opened(Path("store").absolute())
STUDY, keep = lab.define_config(), branches.keep

def fail(branch, step, *rest):
    if step == 4:
        raise InterruptedError
    keep(branch, step, *rest)

def main():
    config, home = STUDY(), place("gs://bucket/run")
    train_sft.main(config, Path("local"), "sft", None)
    branches.keep = fail
    try:
        train_sft.main(config, home, "sft", None)
    except InterruptedError:
        branches.keep = keep
        train_sft.main(config, home, "sft", None)
    evaluate.main(config, home / "sft", None, "gs://bucket/run/end.json")

lab.run(main)
"""


def lines(home: Place) -> list[dict]:
    return [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stage_in_a_bucket_equals_a_local_one(tmp_path: Path, monkeypatch) -> None:
    config = f"--config={ROOT / 'configs/gp_l.py'}:tiny"
    told = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    told |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    told |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, config, *OVERRIDES],
        cwd=tmp_path, env=os.environ | told, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "continues after step 2, from gs://bucket/run/sft" in done.stderr
    opened(tmp_path / "store", monkeypatch.setattr)
    local, remote = tmp_path / "local", place("gs://bucket/run")
    assert lines(remote) == lines(local)
    assert results.read_runs(["gs://bucket/run"]) == results.read_runs([local])
    kept = checkpoint.metadata(local / "sft", whole=True)["leaves"]
    assert kept == checkpoint.metadata(remote / "sft", whole=True)["leaves"]
    lab = labs.open_lab(cfg.build(get_config("tiny")))
    ends = [branches.load_params(lab, home / "sft")[0] for home in (local, remote)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert json.loads((remote / "end.json").read_text())[0]["updates"] == 4
    # Readers of data sets know no URLs.
    assert {one.name for one in tmp_path.iterdir()} == {"local", "store", "runs", "compiled"}
    assert any((tmp_path / "runs/data/process0").rglob("*.array_record*"))


def test_a_study_settles_in_a_bucket_and_is_refused(store: Store) -> None:  # noqa: F811
    home, config = place("gs://bucket/study"), cfg.build(get_config("tiny"))
    labs.refuse_study(home)
    labs.settle(home, config)
    labs.settle(home, config)
    with pytest.raises(cfg.ConfigError, match="differs in seed"):
        labs.settle(home, dataclasses.replace(config, seed=1))
    with pytest.raises(cfg.ConfigError, match="gs://bucket/study holds a study"):
        labs.refuse_study(home)
    assert set(store.written) == {"gs://bucket/study/config.json"}

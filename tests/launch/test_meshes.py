"""A mesh changes where numbers lie and not what they are: SFT, rollout and PPO, with images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MESHES = ("1,1,1", "8,1,1", "1,8,1", "2,2,2")
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def numbers() -> dict[str, dict]:
    """What tests.launch.mesh_numbers computes on each mesh."""
    flags = f"--xla_force_host_platform_device_count=8 {QUICK}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.mesh_numbers", *MESHES],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(MESHES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_sft_losses_and_weights_are_those_of_one_device(numbers, mesh: str) -> None:
    one, many = numbers["1,1,1"], numbers[mesh]
    for before, after in zip(one["sft"], many["sft"], strict=True):
        assert after == pytest.approx(before, rel=1e-5, abs=1e-5)
    assert one["sft"][1]["loss"] < one["sft"][0]["loss"]
    assert many["weights"] == pytest.approx(one["weights"], abs=1e-6)
    assert many["sft_weights"] == pytest.approx(one["sft_weights"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_the_same_seeds_give_the_same_rollouts(numbers, mesh: str) -> None:
    for before, after in zip(numbers["1,1,1"]["ppo"], numbers[mesh]["ppo"], strict=True):
        for name, seen in before["seen"].items():
            np.testing.assert_array_equal(after["seen"][name], seen, err_msg=name)
        for name, told in before["told"].items():
            np.testing.assert_allclose(after["told"][name], told, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_ppo_losses_and_weights_are_those_of_one_device(numbers, mesh: str) -> None:
    """The value head's among them."""
    one, many = numbers["1,1,1"], numbers[mesh]
    for before, after in zip(one["ppo"], many["ppo"], strict=True):
        for name in ("policy", "value", "entropy", "kl_init", "explained_variance"):
            assert after[name] == pytest.approx(before[name], abs=1e-5), name
        assert after["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-4)
        assert after["gap"] < 1e-4  # sampling and training see the same policy
        assert (after["tokens"], after["rows"]) == (before["tokens"], before["rows"])
    assert many["ppo_weights"] == pytest.approx(one["ppo_weights"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_the_tower_learns(numbers, stage: str) -> None:
    """Otherwise the numbers above would say nothing about images."""
    one = numbers["1,1,1"]
    tower = {name for name in one["weights"] if "vision" in name or "projector" in name}
    still = {name for name in tower if one[f"{stage}_weights"][name] == one["weights"][name]}
    assert len(tower) > 20 and not still

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gp_virl.config import ConfigError
from gp_virl.io import checkpoint, hf
from gp_virl.model.mllama import abstract
from launch import convert_hf
from tests.io.test_hf import ORIGIN, assert_same_bits, random_params, written
from tests.model.torch_oracle import ODD, USUAL


def tensors(place):
    return {k: x for file in place.glob("*.safetensors") for k, x in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_exact(tmp_path, dtype):
    written(tmp_path / "a", dtype=dtype)
    convert_hf.to_orbax(tmp_path / "a", tmp_path / "orbax", dtype, fsdp=1, seed=0)
    convert_hf.to_hf(tmp_path / "orbax", tmp_path / "b", None, None, fsdp=1)
    assert_same_bits(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "a" / name).read_text()) == json.loads(
            (tmp_path / "b" / name).read_text()
        )


def test_training_can_start_from_it(tmp_path):
    params = written(tmp_path / "hf")
    convert_hf.to_orbax(tmp_path / "hf", tmp_path / "orbax", "float32", fsdp=1, seed=0)
    # as launch.branches restores a checkpoint for a model of text only
    blind = dataclasses.replace(USUAL, vision=None, value_widths=(12, 6))
    target = {"train": {"params": abstract(blind)[1]}}
    tree, about = checkpoint.restore(tmp_path / "orbax", target, partial=True)
    assert about["tokens_seen"] == 0 and about["branch"] == "hf"
    head = tree["train"]["params"]["lm_head"]["kernel"][...]
    np.testing.assert_array_equal(head, params["lm_head"]["kernel"][...])


def test_a_tower_that_training_had_not_is_taken_from_its_origin(tmp_path):
    written(tmp_path / "origin")
    (tmp_path / "origin" / "tokenizer.json").write_text("{}")
    blind = dataclasses.replace(USUAL, vision=None)
    trained = random_params(blind, seed=7)
    checkpoint.save(tmp_path / "rl", 20, {"train": {"params": trained}}, {"branch": "rl"})
    with pytest.raises(ConfigError, match="--like"):
        convert_hf.to_hf(tmp_path / "rl", tmp_path / "out", None, None, fsdp=1)
    convert_hf.to_hf(tmp_path / "rl", tmp_path / "out", tmp_path / "origin", "float32", fsdp=1)
    before, after = tensors(tmp_path / "origin"), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("vision", "multi_modal"))}
    assert (tmp_path / "out" / "tokenizer.json").exists()
    head = np.asarray(trained["lm_head"]["kernel"][...])
    np.testing.assert_array_equal(after["language_model.lm_head.weight"], head.T)


def test_the_stored_config_is_the_model(tmp_path):
    hf.export(tmp_path / "hf", random_params(ODD), ODD, ORIGIN, "float32")
    convert_hf.to_orbax(tmp_path / "hf", tmp_path / "orbax", "float32", fsdp=1, seed=0)
    about = checkpoint.metadata(tmp_path / "orbax")
    assert dataclasses.replace(convert_hf.model_config(about["model"]), value_widths=(4,)) == ODD


def test_mistakes_are_one_message(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "launch.convert_hf", "--to=orbax", f"--hf={tmp_path}"]
    done = subprocess.run(
        [*command, f"--checkpoint={tmp_path / 'orbax'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "HFCheckpointError" in done.stderr and "Traceback" not in done.stderr
    assert "text_config is None" in done.stderr and "holds neither" in done.stderr

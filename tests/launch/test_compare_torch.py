"""The comparison on a checkpoint that transformers wrote, with odd sizes everywhere."""

import dataclasses
import json

import numpy as np
import pytest

from gp_virl.io import hf
from gp_virl.model.config import preset
from launch import compare_inputs
from launch.compare_inputs import KINDS, Sizes, random_batch, tiles_seen
from tests.model.torch_oracle import ODD

# Few layers, as the time goes into compiling them; nothing is a power of two.
CONFIG = dataclasses.replace(
    ODD,
    pattern=("self", "cross", "self"),
    vision=dataclasses.replace(
        ODD.vision, num_hidden_layers=2, intermediate_layers_indices=(1, -2)
    ),
)
# Equal sizes of the parity's and the jobs' batches, so that less is compiled.
SMALL = Sizes(
    rows=2, length=12, prompt=12, reply=8, turns=2, turn_prompt=10, turn_reply=4, feedback=3,
    parity_rows=2, steps=2, repeats=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("torch")
    from launch import compare_torch
    from tests.model.torch_oracle import oracle

    place = tmp_path_factory.mktemp("odd") / "hf"
    oracle(CONFIG).save_pretrained(place)
    return compare_torch.run(place, SMALL, times=True)


@pytest.mark.slow
@pytest.mark.torch
def test_logits_losses_and_tokens_agree(found):
    for kind in KINDS:
        assert 0 < found[f"logits_max_abs_{kind}"] < 2e-4
        assert found[f"logits_mean_abs_{kind}"] <= found[f"logits_max_abs_{kind}"]
    assert found["greedy_equal_tokens"] == found["greedy_tokens"] == SMALL.reply
    assert found["sft_loss_max_abs"] < 1e-4
    assert found["sft_grad_norm_max_rel"] < 1e-4
    assert found["reply_logp_max_abs"] < 1e-4


@pytest.mark.slow
@pytest.mark.torch
def test_every_module_agrees(found):
    modules = found["modules"]
    assert all(row["max_rel"] < 1e-4 for row in modules.values())
    layers = modules["model.language_model.layers.*"]["count"]
    assert layers == CONFIG.num_hidden_layers == 3
    assert modules["model.language_model.layers.*.cross_attn"]["count"] == 1
    assert modules["model.vision_model.transformer.layers.*.mlp.fc1"]["count"] == 2
    assert {"model.vision_model", "model.multi_modal_projector", "lm_head"} <= modules.keys()


@pytest.mark.slow
@pytest.mark.torch
def test_every_job_is_timed(found):
    names = {"sft_step", "generate_1", "generate_2", "rollout", "update", "rollout_and_update"}
    assert found["jobs"].keys() == names | {f"{name}_images" for name in names}
    for row in found["jobs"].values():
        assert row["torch_s"] > 0 and row["ratio"] == row["torch_s"] / row["jax_s"]
    json.dumps(found)


@pytest.mark.slow
@pytest.mark.torch
def test_the_tables_name_everything(found):
    from launch import compare_torch

    text = compare_torch.shown(found)
    for name in [*found["jobs"], *found["modules"], "greedy_equal_tokens"]:
        assert name in text


@pytest.mark.torch
def test_a_difference_is_seen(tmp_path):
    """A weight changed on one side only shows in the numbers."""
    pytest.importorskip("torch")
    from launch import compare_torch

    compare_inputs.write_random(tmp_path / "hf")
    pair = compare_torch.Pair(tmp_path / "hf", SMALL)
    state = pair.torch.state_dict()
    state["lm_head.weight"][3] += 1.0
    batch = pair.batch("text", 2, 12)
    theirs = pair.there.scores(pair.torch, pair.there.inputs(pair.torch, batch))[0]
    from launch import jax_side

    ours = np.asarray(jax_side.scores(pair.graph, pair.params, batch)[0])
    error = np.abs(ours - theirs).max((0, 1))
    assert error[3] > 0.1 and np.delete(error, 3).max() < 1e-4


def test_a_random_checkpoint_is_a_checkpoint(tmp_path):
    compare_inputs.write_random(tmp_path / "hf")
    found = hf.open_checkpoint(tmp_path / "hf", value_widths=preset("tiny").value_widths)
    assert found.config == preset("tiny", images=True)
    with pytest.raises(hf.ExistingDirectoryError):
        compare_inputs.write_random(tmp_path / "hf")


@pytest.mark.parametrize("kind", KINDS)
def test_random_batches(kind):
    batch = random_batch(ODD, kind, 4, 20, seed=0, pad=0, ragged=True)
    tokens, length = np.asarray(batch.tokens), np.asarray(batch.length)
    assert (tokens != 0).all() and length[0] == 20 and (length >= 10).all()
    images = {"text": 0, "image": 4, "mixed": 2}[kind]
    assert ((tokens == ODD.vocab_size).sum(1) > 0).sum() == images
    assert not batch.replied[tokens == ODD.vocab_size].any()
    if kind == "text":
        assert batch.pictures is None
        return
    seen = np.asarray(tiles_seen(batch.pictures, 20))
    ratios = ((0, 0), *ODD.vision.supported_aspect_ratios)
    for row, ratio in enumerate(np.asarray(batch.pictures.aspect_ratio_ids)):
        tiles = np.prod(ratios[ratio])
        assert seen[row].sum(1).max() == tiles
        blank = np.asarray(batch.pictures.pixels)[row, tiles:]
        assert not blank.any()
        if tiles:
            first = np.flatnonzero(seen[row].any(1))[0]
            assert tokens[row, first] == ODD.vocab_size and seen[row, first:, 0].all()

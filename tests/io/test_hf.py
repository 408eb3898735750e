import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gp_virl.io import hf
from gp_virl.io.hf_config import HFCheckpointError, Origin, content, layer_pattern, read
from gp_virl.io.hf_names import modern, named
from gp_virl.model.config import preset
from gp_virl.model.mllama import abstract
from tests.model.torch_oracle import ODD, USUAL

ORIGIN = Origin(
    config={
        "image_token_index": USUAL.vocab_size,
        "text_config": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    },
    generation={"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0},
)
SHARD = 60_000  # bytes, so that the tiny model takes several files


def random_params(config, seed=0):
    shapes = abstract(config)[1]
    leaves, tree = jax.tree.flatten(shapes)
    draw = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    )


def written(place, config=USUAL, dtype="float32", shard_bytes=SHARD):
    params = random_params(config)
    hf.export(place, params, config, ORIGIN, dtype, shard_bytes)
    return params


def reread(place, seed=0, **changes):
    found = hf.open_checkpoint(place, value_widths=USUAL.value_widths, **changes)
    return found, hf.load(found, jax.random.key(seed))[1]


def weights(params):
    return {path: x for path, x in named(params).items() if not path.startswith("value_head")}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for path, x in left.items():
        assert x.dtype == right[path].dtype, path
        assert np.asarray(x).tobytes() == np.asarray(right[path]).tobytes(), path


@pytest.mark.parametrize("config", [USUAL, ODD], ids=["usual", "odd"])
def test_round_trip_is_exact(tmp_path, config):
    params = written(tmp_path / "hf", config)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    found, again = reread(tmp_path / "hf")
    assert found.config == config
    assert found.dtype == "float32"
    assert_same_bits(weights(again), weights(params))


def test_bfloat16_round_trip_is_exact_through_float32(tmp_path):
    written(tmp_path / "a", dtype="bfloat16")
    found, half = reread(tmp_path / "a", param_dtype="bfloat16")
    assert found.dtype == "bfloat16"
    assert {x.dtype for x in weights(half).values()} == {np.dtype("bfloat16")}
    found, master = reread(tmp_path / "a")
    hf.export(tmp_path / "b", master, found.config, found.origin, "bfloat16")
    _, again = reread(tmp_path / "b", param_dtype="bfloat16")
    assert_same_bits(weights(again), weights(half))
    for name in ("config.json", "generation_config.json"):
        contents = [json.loads((tmp_path / side / name).read_text()) for side in "ab"]
        assert contents[0] == contents[1]
    assert contents[0]["eos_token_id"] == [2, 3]


def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch):
    params = written(tmp_path / "hf")
    monkeypatch.setattr(hf, "BLOCK_BYTES", 700)  # a few rows at a time
    assert_same_bits(weights(reread(tmp_path / "hf")[1]), weights(params))


def test_new_names_are_read_as_well(tmp_path):
    params = written(tmp_path / "hf", shard_bytes=10**9)
    file = tmp_path / "hf" / hf.SINGLE
    tensors = load_file(file)
    assert "language_model.lm_head.weight" in tensors and "vision_model.class_embedding" in tensors
    save_file({modern(name): x for name, x in tensors.items()}, file)
    assert_same_bits(weights(reread(tmp_path / "hf")[1]), weights(params))


def test_float16_files_are_read(tmp_path):
    written(tmp_path / "hf", shard_bytes=10**9)
    file = tmp_path / "hf" / hf.SINGLE
    tensors = {name: x.astype(np.float16) for name, x in load_file(file).items()}
    save_file(tensors, file)
    found, params = reread(tmp_path / "hf")
    assert found.dtype == "float16"
    norm = np.asarray(named(params)["language_model/norm/weight"])
    np.testing.assert_array_equal(norm, tensors["language_model.model.norm.weight"])


def test_the_value_head_is_drawn_from_the_key(tmp_path):
    written(tmp_path / "hf")
    heads = [
        named(reread(tmp_path / "hf", seed)[1])["value_head/layers/0/kernel"] for seed in (0, 1)
    ]
    again = named(reread(tmp_path / "hf", 1)[1])["value_head/layers/0/kernel"]
    assert (heads[1] == again).all() and not (heads[0] == heads[1]).any()


def test_every_flaw_is_listed_at_once(tmp_path):
    place = tmp_path / "hf"
    written(place)
    files = sorted(place.glob("model-*"))
    missing, cut, spoiled = files[0], files[1], files[2]
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-10])
    tensors = load_file(spoiled)
    shaped, typed, gone = sorted(tensors)[:3]
    tensors[shaped] = np.zeros((3, 5), np.float32)
    tensors[typed] = tensors[typed].astype(np.int32)
    del tensors[gone]
    tensors["vision_model.extra"] = np.zeros(2, np.float32)
    save_file(tensors, spoiled)
    with pytest.raises(HFCheckpointError) as wrong:
        hf.open_checkpoint(place)
    text = str(wrong.value)
    assert f"{missing.name}: there is no such file" in text
    assert f"{cut.name}: truncated or damaged" in text
    assert f"{shaped}: shape [3, 5]" in text
    assert f"{typed}: dtype I32, allowed are F32, BF16, F16" in text
    assert f"{gone}: {hf.INDEX} says it is in {spoiled.name}" in text
    assert f"{modern(gone)}: missing" in text
    assert "vision_model.extra: left over" in text


def test_a_wrong_config_lists_every_field_and_the_files(tmp_path):
    place = tmp_path / "hf"
    written(place)
    sorted(place.glob("model-*"))[0].unlink()
    given = json.loads((place / "config.json").read_text())
    given["model_type"] = "llama"
    given["text_config"] |= {"hidden_act": "gelu", "cross_attention_layers": list(range(10))}
    given["text_config"] |= {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    given["vision_config"] |= {"vision_output_dim": 5, "hidden_act": "relu"}
    (place / "config.json").write_text(json.dumps(given))
    with pytest.raises(HFCheckpointError) as wrong:
        hf.open_checkpoint(place)
    for part in (
        "model_type is 'llama'",
        "hidden_act is 'gelu', allowed is 'silu'",
        "cross_attention_layers is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]",
        "'yarn'",
        "vision_output_dim is 5, allowed is 96",
        "hidden_act is 'relu'",
        "there is no such file",
    ):
        assert part in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not readable as JSON"),
        ("[]", "holds list"),
        ("{}", "text_config is None, needed is a section"),
        (None, "there is no such file"),
    ],
)
def test_a_config_that_is_none(tmp_path, text, part):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(HFCheckpointError, match=part) as wrong:
        hf.open_checkpoint(tmp_path)
    assert "holds neither model.safetensors nor model.safetensors.index.json" in str(wrong.value)


def test_a_config_of_another_model_lists_the_shapes(tmp_path):
    written(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    given = json.loads(path.read_text())
    given["text_config"] |= {"intermediate_size": 96, "num_hidden_layers": 5}
    given["text_config"] |= {"cross_attention_layers": [3]}
    given["vision_config"]["num_global_layers"] = "2"
    path.write_text(json.dumps(given))
    with pytest.raises(HFCheckpointError, match="num_global_layers"):
        hf.open_checkpoint(tmp_path / "hf")
    given["vision_config"]["num_global_layers"] = 3
    path.write_text(json.dumps(given))
    with pytest.raises(HFCheckpointError) as wrong:
        hf.open_checkpoint(tmp_path / "hf")
    text = str(wrong.value)
    assert "layers.0.mlp.up_proj.weight: shape [80, 48], [96, 48] is needed" in text
    assert "language_model.model.layers.9.input_layernorm.weight: left over" in text
    assert "global_transformer.layers.2.gate_attn: missing" in text


def test_patterns_of_layers():
    assert layer_pattern(40, range(3, 40, 5)) == preset("11b").pattern
    assert layer_pattern(4, ()) == ("self",)
    assert layer_pattern(5, (3, 8, 13)) == preset("tiny").pattern
    assert layer_pattern(6, (1, 3, 5)) == ("self", "cross")
    assert layer_pattern(5, (1, 2)) == ("self", "cross", "cross", "self", "self")


def test_released_configs_are_read(tmp_path):
    # as the released 11B model's config.json has it: old rope fields, what is default left out
    rope = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
    text = {"rope_scaling": rope, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}
    given = {"model_type": "mllama", "text_config": text, "vision_config": {"image_size": 560}}
    (tmp_path / "config.json").write_text(json.dumps(given))
    config, origin = read(tmp_path, dtype="bfloat16", remat=True)
    assert config == preset("11b", images=True)
    assert origin.config == given


def test_what_the_format_has_no_place_for_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no vision tower.*extra_rows=1.*pad_token_id=99"):
        odd = dataclasses.replace(USUAL, vision=None, extra_rows=1)
        content(odd, Origin(config={"text_config": {"pad_token_id": 99}}), "float32")
    with pytest.raises(ValueError, match="head_dim"):
        content(dataclasses.replace(USUAL, head_dim=8), ORIGIN, "float32")
    with pytest.raises(ValueError, match="float64.*bfloat16"):
        hf.export(tmp_path / "hf", {}, USUAL, ORIGIN, "float64")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(hf.ExistingDirectoryError):
        hf.export(tmp_path / "full", {}, USUAL, ORIGIN)


STREAMED = """
import sys, jax
from gp_virl.io import hf
def amount(field):  # of this program alone: getrusage would count what it was forked from
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0]) * 1024
jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(3))())
found = hf.open_checkpoint(sys.argv[1])
hf._value_head(found.config, jax.random.key(0), hf.mllama.abstract(found.config)[1])
before = amount("VmRSS")
_, params = hf.load(found, jax.random.key(0))
jax.block_until_ready(params)
peak = amount("VmHWM")
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print((peak - before - sum(sizes)) / max(sizes))
"""


def run(source, *arguments, devices=1):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(Path(hf.__file__).parents[2]),
    }
    command = [sys.executable, "-c", source, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_reading_takes_little_more_memory_than_the_weights(tmp_path):
    config = dataclasses.replace(USUAL, vocab_size=700_000)  # 134 MB of embedding in float32
    written(tmp_path / "hf", config, "bfloat16", 10**9)
    assert float(run(STREAMED, tmp_path / "hf")) < 1.2


SHARDED = """
import sys, jax, numpy as np
from gp_virl.io import hf
from gp_virl.io.hf_names import named
from gp_virl.model.mllama import abstract
from gp_virl.sharding import ROLLOUT, TRAINING, mesh_of
found = hf.open_checkpoint(sys.argv[1], value_widths=(4,))
whole = named(hf.load(found, jax.random.key(0))[1])
mesh = mesh_of(data=1, fsdp=2, tensor=2)
for rules in (TRAINING, ROLLOUT):
    cut = named(hf.load(found, jax.random.key(0), mesh, rules)[1])
    shapes = named(abstract(found.config, mesh, rules)[1])
    for path, x in cut.items():
        assert x.sharding == shapes[path].sharding, path
        np.testing.assert_array_equal(x, whole[path], err_msg=path)
kernel = hf.load(found, jax.random.key(0), mesh)[1]["lm_head"]["kernel"][...]
assert kernel.addressable_shards[0].data.size * 4 == kernel.size
params = hf.load(found, jax.random.key(0), mesh)[1]
hf.export(sys.argv[2], params, found.config, found.origin, "float32", 10**9)
"""


def test_each_device_reads_its_own_part(tmp_path):
    written(tmp_path / "hf", shard_bytes=10**9)
    run(SHARDED, tmp_path / "hf", tmp_path / "again", devices=4)
    left, right = (load_file(tmp_path / side / hf.SINGLE) for side in ("hf", "again"))
    assert_same_bits(left, right)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_the_export_and_reads_back_what_it_saved(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from transformers import MllamaForConditionalGeneration

    params = written(tmp_path / "ours", dtype=dtype)
    model, report = MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    assert model.generation_config.eos_token_id == [2, 3]
    tensor = model.state_dict()["model.language_model.layers.8.cross_attn.q_proj.weight"]
    kernel = named(params)["language_model/groups/layers/3/cross_attn/q_proj/kernel"][1]
    want = np.asarray(kernel).T.astype(dtype if dtype == "float32" else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(tensor.float().numpy(), want.astype(np.float32))
    model.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD)
    changes = {"param_dtype": dtype}
    assert_same_bits(
        weights(reread(tmp_path / "theirs", **changes)[1]),
        weights(reread(tmp_path / "ours", **changes)[1]),
    )

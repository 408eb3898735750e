"""Programs compiled for TPUs that are not here, by libtpu's compiler."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import gp_l, virl_l
from gp_virl import config as cfg
from gp_virl.sharding import mesh_of

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"model.remat": True, "env.image_size": 48, "rollout.lanes": 32, "rollout.turns": 2}
SMALL |= {"rollout.images": 8, "mesh.fsdp": 2, "mesh.tensor": 2}

pytestmark = [pytest.mark.tpu_aot, pytest.mark.slow]


def compiled(
    place: Path, *flags: str, topology: str = "v5e:2x4", task: str = "gp_vl"
) -> subprocess.CompletedProcess:
    """launch.aot on a minuscule study, its table in `place`."""
    changes = [f"--config.{name}={value}" for name, value in SMALL.items()]
    return subprocess.run(
        [sys.executable, "-m", "launch.aot", f"--config=configs/{task}.py:tiny", *changes,
         f"--topology={topology}", f"--json={place}", *flags],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def rows(place: Path, *flags: str, task: str = "gp_vl") -> list[dict]:
    done = compiled(place, *flags, task=task)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(place.read_text())["steps"]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> list[dict]:
    """Every step on eight chips of v5e."""
    return rows(tmp_path_factory.mktemp("aot") / "table.json")


def test_every_step_is_compiled_and_fits(table) -> None:
    assert [row["step"] for row in table] == ["sft", "rollout", "ppo"]
    for row in table:
        assert row["topology"] == "v5e:2x4" and row["chips"] == 8 and row["hbm_gib"] == 15.75
        assert row["level"] == "O1" and row["tokenizer"] == "tiny"
        assert row["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
        assert row["fits"] and 0 < row["gib_per_chip"] < 1 and row["compile_s"] > 0
        assert row["gib_per_chip"] == pytest.approx(sum(row["gib_by_kind"].values()), abs=0.03)
        assert row["flops_executed"] > row["flops_per_step"] > 1e9
        assert row["collectives"]["all-gather"] > 0 and row["collectives"]["all-reduce"] > 0


def test_one_cache_is_kept_while_replies_are_decoded(tmp_path) -> None:
    """More room costs the bytes of one more cache, not of two (which it once did)."""
    # Heads of 128 channels; narrower ones are padded, and fill no tile of memory.
    wide = ("--config.model.size=11b", "--config.model.dtype=bfloat16", "--step=rollout",
            "--config.rollout.lanes=8", "--config.rollout.chunk=32",
            "--config.mesh.fsdp=1", "--config.mesh.tensor=8")  # fmt: skip
    less, more = (
        rows(tmp_path / f"{room}.json", *wide, f"--config.rollout.context={room}", task="gp_l")[0]
        for room in (8_192, 16_384)
    )
    # tokens x lanes x layers x (keys and values) x channels of a chip's one head x bytes
    cache = 8_192 * 8 * 32 * 2 * 128 * 2 / 2**30
    grown = more["gib_by_kind"]["temporaries"] - less["gib_by_kind"]["temporaries"]
    assert cache * 0.95 < grown < cache * 1.3


def test_what_does_not_fit_is_told_with_its_largest_tensors(tmp_path) -> None:
    row = rows(tmp_path / "large.json", "--step=rollout", "--config.rollout.context=400000")[0]
    assert not row["fits"] and row["gib_per_chip"] > 15.75
    assert row["collectives"] is None
    assert row["largest"] and "400000" in " ".join(row["largest"])


def test_an_unknown_topology_is_refused(tmp_path) -> None:
    done = compiled(tmp_path / "none.json", topology="v5e:3x5x7")
    assert done.returncode == 1 and "ConfigError: --topology: given 'v5e:3x5x7'" in done.stderr
    assert "v6e:4x4" in done.stderr and not (tmp_path / "none.json").exists()


def test_bytes_are_those_of_a_chips_share() -> None:
    from launch import aot

    mesh = mesh_of()
    layout = NamedSharding(mesh, PartitionSpec("fsdp"))
    shapes = [
        jax.ShapeDtypeStruct((4, 3), "float32", sharding=layout),
        jax.ShapeDtypeStruct((5,), "bfloat16", sharding=NamedSharding(mesh, PartitionSpec())),
    ]
    assert aot.bytes_per_chip(shapes) == 4 * 3 * 4 + 5 * 2
    assert aot.bytes_per_chip(None) == 0


class Refused:
    """A program that the compiler refuses with a message."""

    def __init__(self, message: str):
        self.message = message
        self.jaxpr = jax.make_jaxpr(lambda x: jnp.sin(jnp.zeros((4, 1024)) + x))(1.0)

    def trace(self):
        return self

    def lower(self):
        return self

    def compile(self):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {self.message}")


def test_only_too_little_hbm_is_a_verdict() -> None:
    from launch import aot

    def told(message: str) -> dict:
        return aot.compiled(aot.Step("ppo", Refused(message), (), None), 15.75)

    row = told("Ran out of memory in memory space hbm. Used 19.48G of 15.75G hbm.")
    assert (row["fits"], row["gib_per_chip"], row["collectives"]) == (False, 19.48, None)
    assert told("memory space hbm. Used 1.50T of 15.75G hbm.")["gib_per_chip"] == 1536
    unsaid = told("Ran out of memory in memory space hbm.")
    assert not unsaid["fits"] and unsaid["gib_per_chip"] is None
    assert any("[4,1024] of sin" in tensor for tensor in unsaid["largest"])
    spoken = "CompileTimeHbmOom: the total memory required for HLO temporaries (16.08G) exceeds"
    assert told(spoken)["gib_per_chip"] == 16.08
    about = {"step": "ppo", "topology": "v5e:4x8", "slices": 1, "mesh": {"data": 1, "fsdp": 4}}
    about |= {"flops_per_step": 1e15, "flops_executed": 2e15, "bytes_per_step": 3e15}
    cells = aot.line(about | {"hbm_gib": 15.75} | unsaid).strip("| ").split(" | ")
    assert len(cells) == len(aot.HEAD) and cells[8:11] == ["not told", "15.75", "no"]
    assert cells[14] == "not told"
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        told("Ran out of memory in memory space vmem. Used 20M of 16M hbm or so.")


def on_one_device(config: cfg.StudyConfig, tokenizer: str) -> cfg.StudyConfig:
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, fsdp=1, tensor=1),
        text=dataclasses.replace(config.text, tokenizer=tokenizer),
    )


def test_only_a_missing_tokenizer_is_replaced() -> None:
    from launch import aot

    config = on_one_device(cfg.build(gp_l.get_config("tiny")), "/no/such/place")
    assert aot.opened(config, jax.devices()[:1]).config.text.tokenizer == "tiny"
    roll = dataclasses.replace(config.rollout, context=64)
    with pytest.raises(cfg.ConfigError, match="given 64"):
        aot.opened(dataclasses.replace(config, rollout=roll), jax.devices()[:1])
    text = dataclasses.replace(config.text, wording="/no/wording")
    with pytest.raises(cfg.ConfigError, match="wording"):
        aot.opened(dataclasses.replace(config, text=text), jax.devices()[:1])


def test_the_work_of_the_papers_setting() -> None:
    """Prompts of 1,024 tokens and five replies of 512 fill a context of 4,096."""
    from launch import aot

    config = on_one_device(cfg.build(gp_l.get_config("11b")), "tiny")
    lab = aot.opened(config, jax.devices()[:1])
    assert lab.parameters == pytest.approx(7.5e9, rel=0.02)  # those that text alone passes
    sft, rollout, ppo = (aot.told(lab, step) for step in aot.STEPS)
    tokens = config.sft.batch_size * config.sft.length
    assert sft["flops_per_step"] == pytest.approx(6 * lab.parameters * tokens, rel=0.05)
    assert sft["recomputation"] <= 1.35 and ppo["recomputation"] <= 1.35
    talks = config.rollout.lanes * config.rollout.turns / 5
    # Logits where it speaks; prompts of the next conversations; pairs of queries and keys.
    head = 4096 * 128_256
    read = talks * (4096 * (lab.parameters - head) + 5 * 512 * head)
    read += config.rollout.lanes * 1024 * (lab.parameters - head)
    pairs = (talks * 4096**2 + config.rollout.lanes * 1024**2) / 2
    assert rollout["flops_per_step"] == pytest.approx(2 * read + 4 * 4096 * 32 * pairs, rel=0.01)
    assert rollout["flops_per_step"] == pytest.approx(2 * lab.parameters * 4096 * talks, rel=0.1)
    learnt = talks * 4096 * lab.parameters * (6 * config.ppo.epochs + 2)
    assert ppo["flops_per_step"] == pytest.approx(learnt, rel=0.2)
    assert np.isfinite([one["bytes_per_step"] for one in (sft, rollout, ppo)]).all()


def test_routes_are_as_long_as_the_longest() -> None:
    """The model reads conversations, the program rows of the whole context."""
    from launch import aot

    config = on_one_device(cfg.build(virl_l.get_config("tiny")), "tiny_routes")
    lab = aot.opened(config, jax.devices()[:1])
    length, context = lab.games["train"].context_limit, config.rollout.context
    assert aot.spoken(lab) == length < context
    room = dataclasses.replace(config.rollout, context=2 * length)
    wide = dataclasses.replace(lab, config=dataclasses.replace(config, rollout=room))
    for step in ("rollout", "ppo"):
        few, many = aot.told(lab, step), aot.told(wide, step)
        assert few["flops_per_step"] == many["flops_per_step"] < few["flops_executed"]
    # A row of twice the room holds two: as many tokens, and more hidden pairs of attention.
    shorter = dataclasses.replace(config.rollout, context=length)
    exact = dataclasses.replace(lab, config=dataclasses.replace(config, rollout=shorter))
    ratio = many["flops_executed"] / aot.told(exact, "ppo")["flops_executed"]
    assert 1 < ratio < 2

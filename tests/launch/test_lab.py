"""What the launchers share: refusals before anything starts, and the compute axis' N."""

import json

import jax
import pytest

from configs.gp_l import get_config
from gp_virl import config as cfg
from gp_virl.metrics import MetricsError
from gp_virl.model import mllama
from gp_virl.model.config import preset
from launch import lab as labs


def changed(path: str, value):
    config = get_config("tiny").copy_and_resolve_references()
    section, name = path.split(".")
    config[section][name] = value
    return cfg.build(config)


@pytest.mark.parametrize(
    "override, said",
    [
        ("--config.sft.stepz=3", "did you mean steps?"),
        ("--config.nothing=3", "allowed: task, scale, seed, env, ood"),
        ("--config.sft.steps.more=3", "config.sft.steps is a value"),
        ("--config.ood.rule.targit=3", "did you mean target?"),
    ],
)
def test_a_misspelt_override_is_refused_with_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said.replace("?", r"\?")):
        labs.refuse_unknown(["study", "--workdir=x", override])


def test_overrides_that_exist_pass() -> None:
    for override in ("--config.sft.steps=3", "--config.ood.rule.target=20", "--config=file.py:x"):
        labs.refuse_unknown(["study", override])


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("env.rule", "all_eleven", "face_ten, face_rank"),
        ("env.target", 10**6, "no hand can be dealt"),
        ("model.size", "huge", "11b"),
        ("text.wording", "nowhere.toml", "full"),
        ("text.tokenizer", "no/such/directory", "tiny"),
        ("rollout.context", 100, "allowed: at least 253"),
        ("mesh.fsdp", 4096, "4096"),
    ],
)
def test_what_does_not_fit_is_one_configuration_error(path: str, value, said: str) -> None:
    with pytest.raises(cfg.ConfigError, match=said):
        labs.open_lab(changed(path, value))


def test_another_configuration_in_the_same_directory_is_refused(tmp_path) -> None:
    labs.settle(tmp_path, cfg.build(get_config("tiny")))
    labs.settle(tmp_path, cfg.build(get_config("tiny")))
    with pytest.raises(cfg.ConfigError, match="differs in sft"):
        labs.settle(tmp_path, changed("sft.steps", 7))
    labs.settle(tmp_path, changed("mesh.fsdp", 2))
    assert json.loads((tmp_path / "config.json").read_text())["sft"]["steps"] == 800


def test_a_single_stage_keeps_off_a_studys_directory(tmp_path) -> None:
    labs.refuse_study(tmp_path)
    labs.settle(tmp_path, cfg.build(get_config("tiny")))
    with pytest.raises(cfg.ConfigError, match="workdir of its own"):
        labs.refuse_study(tmp_path)


def test_an_unknown_show_is_refused(tmp_path) -> None:
    with pytest.raises(MetricsError, match="tensorboard, wandb"):
        labs.open_writer(tmp_path, ("tensorbord",))


def test_parameters_that_are_counted() -> None:
    """Four self-attention layers, two norms each, the last norm and the head; with images more."""
    config = preset("tiny")
    wide, deep = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    layer = 2 * wide * heads + 2 * wide * kv + 3 * wide * deep + 2 * wide
    want = 4 * layer + wide + wide * config.vocab_size
    assert labs.counted_parameters(mllama.abstract(config)[1], config) == want
    seeing = preset("tiny", images=True)
    shapes = mllama.abstract(seeing)[1]
    cross = layer + 2 * config.head_dim + 2
    tower = sum(x.size for x in jax.tree.leaves(shapes["vision_model"]))
    projector = sum(x.size for x in jax.tree.leaves(shapes["multi_modal_projector"]))
    assert labs.counted_parameters(shapes, seeing) == want + cross + tower + projector

"""The configuration: what is accepted, what every refusal names, and that no field is idle."""

import ast
import dataclasses
import functools
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import gp_l, gp_vl, virl_l, virl_vl
from gp_virl import config as cfg
from gp_virl import config_fields

ROOT = Path(__file__).parents[1]


def changed(**changes) -> ConfigDict:
    """The tiny configuration; `sft__steps=3` changes config.sft.steps."""
    config = gp_l.get_config("tiny").unlock()
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        place.update({key: value}) if key in place else place.__setitem__(key, value)
    return config


def replaced(name: str, value) -> dict:
    """The tiny configuration as plain dicts, where a value may be of any type."""
    config = gp_l.get_config("tiny").to_dict()
    *sections, key = name.split("__")
    place = config
    for section in sections:
        place = place[section]
    place[key] = value
    return config


def refusal(config) -> str:
    with pytest.raises(cfg.ConfigError) as caught:
        cfg.build(config)
    return str(caught.value)


@pytest.mark.parametrize("task", [gp_l, gp_vl, virl_l, virl_vl])
@pytest.mark.parametrize("scale", ["tiny", "small", "11b"])
def test_every_scale_is_accepted(task, scale: str) -> None:
    given = task.get_config(scale)
    study = cfg.build(given)
    assert study.scale == scale and task.__name__ == f"configs.{study.task}"
    assert dataclasses.asdict(study) == given.to_dict()
    assert study.splits["id"] == study.env
    changed = {"gp": {"rule": "face_rank", "require_face": True}, "virl": {"rule": "relative"}}
    ood = dataclasses.replace(study.env, **changed[study.task.split("_")[0]])
    assert study.splits["rule_ood"] == ood
    assert ("visual_ood" in study.splits) == study.pictured == study.task.endswith("_vl")


def test_an_unknown_scale_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="given 'huge', allowed: tiny, small, 11b"):
        gp_l.get_config("huge")


def test_a_whole_number_passes_for_a_real_one() -> None:
    study = cfg.build(replaced("ppo__discount", 1))
    assert study.ppo.discount == 1.0 and type(study.ppo.discount) is float


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", -1, "config.seed: given -1, allowed: a number >= 0"),
        ("seed", True, "config.seed: given True, allowed: a number >= 0"),
        ("task", "chess", "config.task: given 'chess', allowed: one of gp_l"),
        ("env__suits", "green", "config.env.suits: given 'green', allowed: one of all, black, red"),
        ("env__max_turns", 0, "config.env.max_turns: given 0, allowed: a number >= 1"),
        ("env__held_out", 0.95, r"config.env.held_out: given 0.95, allowed: in \[0, 0.9\]"),
        ("env__require_face", 1, "config.env.require_face: given 1, allowed: True or False"),
        ("env__rule", 7, "config.env.rule: given 7, allowed: a text"),
        ("env__rewards__solved", "5", "config.env.rewards.solved: given '5', allowed: a number"),
        ("sft__steps", 2.5, "config.sft.steps: given 2.5, allowed: a number >= 0"),
        ("sft__learning_rate", 0, "config.sft.learning_rate: given 0.0, allowed: a number > 0"),
        ("ppo__schedule", "step", "ppo.schedule: given 'step', allowed: one of constant, linear,"),
        ("ppo__lam", 1.5, r"config.ppo.lam: given 1.5, allowed: in \[0, 1\]"),
        ("rollout__temperature", 0.0, "config.rollout.temperature: given 0.0, allowed: a number"),
        ("ood", 3, "config.ood: given 3, allowed"),
        ("eval", 3, "config.eval: given 3, allowed: a section with hands, curve_hands, lanes"),
        ("ppo", None, "config.ppo: given None, allowed: a section with updates, epochs"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(name: str, value, message: str) -> None:
    assert re.search(message, refusal(replaced(name, value)))


def test_an_unknown_key_is_named_with_the_nearest_and_all_others() -> None:
    said = refusal(replaced("sft__stepz", 3))
    assert "config.sft.stepz: unknown (did you mean steps?)" in said
    for field in dataclasses.fields(cfg.SftConfig):
        assert field.name in said


def test_a_missing_key_is_named_with_what_it_is() -> None:
    config = gp_l.get_config("tiny").to_dict()
    del config["ppo"]["clip"], config["mesh"]
    said = refusal(config)
    assert "config.ppo.clip: missing; it is a number > 0" in said
    assert "config.mesh: missing; it is a section with data, fsdp, tensor" in said


def test_all_problems_are_told_at_once() -> None:
    config = replaced("sft__stepz", 3)
    config["env"]["suits"] = "green"
    config["ppo"]["lam"] = 2.0
    del config["eval"]["points"]
    said = refusal(config).splitlines()
    assert len(said) == 5 and said[0].startswith("the configuration is not usable")
    for named in ("config.sft.stepz", "config.env.suits", "config.ppo.lam", "config.eval.points"):
        assert sum(named in line for line in said) == 1


@pytest.mark.parametrize("run", ["base", "sft", "sft_matched"])
def test_microbatches_divide_the_batch(run: str) -> None:
    said = refusal(changed(**{f"{run}__microbatch": 5, f"{run}__batch_size": 32}))
    assert f"config.{run}.microbatch: given 5, allowed: a divisor of batch_size 32" in said


def test_a_mixture_of_rules_needs_the_other_rule() -> None:
    said = refusal(replaced("ood", {}))
    assert "config.data.ood_share: given > 0, allowed only with config.ood.rule" in said
    alone = replaced("ood", {})
    alone["data"]["ood_share"] = 0.0
    assert list(cfg.build(alone).splits) == ["id"]


def test_wrong_changes_of_an_ood_split_are_named() -> None:
    changes = {"rule": {"rulez": "face_rank"}, "visual": {"suits": "green"}, "look": {}}
    said = refusal(replaced("ood", changes))
    assert "config.ood.rule.rulez: unknown (did you mean rule?)" in said
    assert "config.ood.visual.suits: given 'green'" in said
    assert "config.ood.look: unknown; allowed: rule, visual" in said


def test_other_cities_are_not_those_trained_in() -> None:
    """Where routes are read, a style changes nothing; a visual split needs data of its own."""
    config = virl_vl.get_config("tiny").copy_and_resolve_references().to_dict()
    config["env"]["source"] = config["ood"]["visual"]["source"] = "routes"
    config["ood"]["rule"]["source"] = "routes"
    assert "config.ood.visual.source: given routes, the same as" in refusal(config)
    config["ood"]["visual"]["source"] = "elsewhere"
    assert cfg.build(config).splits["visual_ood"].source == "elsewhere"


def sections() -> list[type]:
    found = [one for _, one in inspect.getmembers(cfg, dataclasses.is_dataclass)]
    assert len(found) >= 10
    return found


@functools.cache
def attributes_read() -> set[str]:
    """Attributes that gp_virl and launch read, config.py itself left out."""
    paths = [*(ROOT / "gp_virl").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    found = set()
    for path in paths:
        nodes = ast.walk(ast.parse(path.read_text())) if path != Path(cfg.__file__) else ()
        for node in nodes:
            match node:
                case ast.Attribute(attr=name, ctx=ast.Load()):
                    found.add(name)
                case ast.Call(func=ast.Name("getattr"), args=[_, ast.Constant(name), *_]):
                    found.add(name)
    return found


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_has_a_reader(section: type) -> None:
    idle = {field.name for field in dataclasses.fields(section)} - attributes_read()
    if section is cfg.Rewards:  # read by the names of the outcomes
        idle -= {"solved", "wrong_value", "wrong_numbers", "illegal", "unrecognized"}
    if section is cfg.StudyConfig:  # train_sft takes the section that --run names
        idle -= {"sft", "sft_matched"}
    assert not idle, f"{section.__name__}: nothing in gp_virl or launch reads {sorted(idle)}"


def test_every_field_says_what_is_allowed() -> None:
    for section in sections():
        for name, kind in typing.get_type_hints(section).items():
            told = config_fields.expected(section.__dataclass_fields__[name], kind)
            assert isinstance(told, str) and told


def launched(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.study", *arguments],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.sft.stepz=3", ("sft.stepz", "steps", "batch_size", "learning_rate")),
        ("--config.sftt.steps=3", ("sftt", "sft", "rollout", "ppo")),
        ("--config.ppo.schedule=step", ("ppo.schedule", "constant, linear, cosine")),
        ("--config.sft.steps=abc", ("sft.steps", "abc")),
    ],
)
def test_a_wrong_override_stops_the_study_at_once(
    tmp_path: Path, override: str, named: tuple[str, ...]
) -> None:
    work = tmp_path / "work"
    done = launched("--config=configs/gp_l.py:tiny", override, f"--workdir={work}")
    assert done.returncode != 0 and not work.exists()
    for part in named:
        assert part in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr

"""The study's configuration: frozen dataclasses built from ml_collections, checked once.

`configs/*.py` hold ConfigDicts that a user overrides on the command line; `build` turns one into
a `StudyConfig` or raises `ConfigError` with every wrong key and value and what is allowed.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from ml_collections import ConfigDict

from gp_virl.config_fields import above, at_least, between, built, choice, unknown

OOD = ("rule", "visual")  # kinds of out-of-distribution splits
# What each choice of `frozen` leaves as it is, by the parameters' top-level keys.
FROZEN = {
    "none": (),
    "vision": ("vision_model",),
    "vision_and_projector": ("vision_model", "multi_modal_projector"),
}
FROZEN_CHOICES = tuple(FROZEN)


class ConfigError(ValueError):
    """One or more configuration fields are wrong; the message lists them all."""


@dataclass(frozen=True)
class Rewards:
    """Reward of each outcome (paper, appendix A.3); `exceeded` is added to the last failed try."""

    solved: float
    wrong_value: float
    wrong_numbers: float
    illegal: float
    unrecognized: float
    exceeded: float


@dataclass(frozen=True)
class EnvConfig:
    """One split of GeneralPoints.

    With modality image the cards are a picture of `image_size` pixels along each side, in which
    they are moved by up to `jitter_shift` of their places and their size changes by up to the
    share `jitter_scale`. The reward of `unrecognized` replaces the formula's or is added to it.
    """

    rule: str
    target: int = at_least(1)
    suits: str = choice("all", "black", "red")
    require_face: bool
    max_turns: int = at_least(1)
    hands: str = choice("all", "seen", "held_out")
    held_out: float = between(0, 0.9)
    seed: int = at_least(0)
    modality: str = choice("text", "image")
    image_size: int = at_least(1)
    jitter_shift: float = between(0, 1)
    jitter_scale: float = between(0, 0.9)
    recognition: str = choice("replaces", "added")
    rewards: Rewards


@dataclass(frozen=True)
class RouteRewards:
    """Reward of each outcome (paper, appendix B.3); `exceeded` is added to the last failed try."""

    correct: float
    wrong_action: float
    not_detected: float
    exceeded: float


@dataclass(frozen=True)
class RouteConfig:
    """One split of V-IRL navigation.

    Routes are of a drawn city of `style` ('mini': the small benchmark's nine) from `seed`, or of
    released data if `source` is a path; the share `held_out` is kept from training. With modality
    image, landmarks must be seen in pictures of `image_size` pixels along each side; panoramas
    lie on the device if they take at most `panorama_bytes` there, else in the host's memory.
    """

    rule: str = choice("absolute", "relative")
    source: str
    style: str
    routes: int = at_least(1)
    max_straight: int = at_least(0)
    max_turns: int = at_least(1)
    part: str = choice("all", "seen", "held_out")
    held_out: float = between(0, 0.9)
    seed: int = at_least(0)
    modality: str = choice("text", "image")
    image_size: int = at_least(1)
    layout: str = choice("front_right_back_left", "diagonal")
    panorama_bytes: int = at_least(0)
    rewards: RouteRewards


DRAWN = "city"  # a source: nothing is read
ENVIRONMENTS = dict(gp_l=EnvConfig, gp_vl=EnvConfig, virl_l=RouteConfig, virl_vl=RouteConfig)


@dataclass(frozen=True)
class TextConfig:
    """`tokenizer`: tiny, tiny_routes or one for AutoTokenizer; `wording`: full, brief or a file."""

    tokenizer: str
    wording: str


@dataclass(frozen=True)
class ModelChoice:
    """A preset of gp_virl/model/config.py and how it computes."""

    size: str
    dtype: str = choice("float32", "bfloat16")
    remat: bool
    attention: str = choice("auto", "blocks", "plain", "dot_product", "splash", "cudnn")


@dataclass(frozen=True)
class DataConfig:
    """Expert dialogues for SFT.

    `ood_share` of the base's hands follow the rule-OOD split; in pictures they have `base_suits`.
    With the path of a `file` its dialogues (data/llava_json.py) take the place of the expert's.
    """

    file: str
    examples: int = at_least(1)
    max_solutions: int = at_least(1)
    ood_share: float = between(0, 1)
    suboptimal: float = between(0, 1)
    max_errors: int = at_least(1)
    base_suits: str = choice("all", "black", "red")
    seed: int = at_least(0)


@dataclass(frozen=True)
class SftConfig:
    """One run of supervised fine-tuning; a row of `length` tokens has at most `pictures` images.

    `moments` is the dtype in which the optimizer keeps its two moments.
    """

    steps: int = at_least(0)
    batch_size: int = at_least(1)
    microbatch: int = at_least(1)
    length: int = at_least(8)
    learning_rate: float = above(0)
    schedule: str = choice("constant", "linear", "cosine")
    warmup: int = at_least(0)
    final_share: float = between(0, 1)
    weight_decay: float = at_least(0)
    beta2: float = between(0, 1)
    clip_norm: float = above(0)
    moments: str = choice("float32", "bfloat16")
    pictures: int = at_least(1)
    frozen: str = choice(*FROZEN_CHOICES)


@dataclass(frozen=True)
class RolloutConfig:
    """Lanes play side by side; `context` tokens hold a whole conversation of a lane.

    A reply has at most `reply_length` tokens, of which the verifier reads `reply_bytes` bytes.
    Contexts are read `chunk` tokens, and new images encoded `images` lanes at a time.
    """

    lanes: int = at_least(1)
    turns: int = at_least(1)
    reply_length: int = at_least(1)
    reply_bytes: int = at_least(1)
    context: int = at_least(8)
    chunk: int = at_least(1)
    images: int = at_least(1)
    temperature: float = above(0)
    top_p: float = between(0.01, 1)


@dataclass(frozen=True)
class PpoConfig:
    """Multi-turn PPO (paper, section 3); one reply is one action at `ratio_level` turn.

    The value head has its own learning rate, as it starts from nothing, and trains alone in the
    first `value_warmup` updates. `value_shapes_decoder`: its loss trains the decoder too. A row
    of training has at most `pictures` conversations with an image. `moments` is the dtype in
    which the optimizer keeps its two moments.
    """

    updates: int = at_least(0)
    epochs: int = at_least(1)
    minibatches: int = at_least(1)
    microbatch: int = at_least(1)
    learning_rate: float = above(0)
    schedule: str = choice("constant", "linear", "cosine")
    warmup: int = at_least(0)
    final_share: float = between(0, 1)
    beta2: float = between(0, 1)
    clip_norm: float = above(0)
    value_learning_rate: float = above(0)
    value_warmup: int = at_least(0)
    clip: float = above(0)
    value_clip: float = above(0)
    value_coef: float = at_least(0)
    value_shapes_decoder: bool
    entropy_coef: float = at_least(0)
    kl_coef: float = at_least(0)
    kl_logged: bool
    discount: float = between(0, 1)
    lam: float = between(0, 1)
    ratio_level: str = choice("turn", "token")
    thought_coef: float = between(0, 1)
    reward_scale: float = above(0)
    moments: str = choice("float32", "bfloat16")
    pictures: int = at_least(1)
    frozen: str = choice(*FROZEN_CHOICES)


@dataclass(frozen=True)
class EvalConfig:
    """`hands` for the table's rows, `curve_hands` for each of `points` along a branch."""

    hands: int = at_least(1)
    curve_hands: int = at_least(1)
    lanes: int = at_least(1)
    points: int = at_least(1)
    seed: int = at_least(0)
    transcripts: int = at_least(0)
    lam: str = choice("measured", "paper")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along (data, fsdp, tensor); data = 0 takes what the other two leave."""

    data: int = at_least(0)
    fsdp: int = at_least(1)
    tensor: int = at_least(1)


@dataclass(frozen=True)
class StudyConfig:
    """Everything `launch/study.py` needs; `ood` maps a split's name to changes of `env`."""

    task: str = choice(*ENVIRONMENTS)
    scale: str
    seed: int = at_least(0)
    env: EnvConfig | RouteConfig  # by ENVIRONMENTS[task]
    ood: dict
    text: TextConfig
    model: ModelChoice
    data: DataConfig
    base: SftConfig
    sft: SftConfig
    sft_matched: SftConfig
    rollout: RolloutConfig
    ppo: PpoConfig
    eval: EvalConfig
    mesh: MeshConfig

    @property
    def pictured(self) -> bool:
        """True where the model looks at images."""
        return self.env.modality == "image"

    @property
    def splits(self) -> dict[str, EnvConfig | RouteConfig]:
        """Evaluation splits by name: `id`, and each entry K of `ood` as `K_ood`."""
        splits = {"id": self.env}
        for name, changes in self.ood.items():
            whole = dataclasses.asdict(self.env) | dict(changes)
            splits[f"{name}_ood"] = built(type(self.env), whole, f"config.ood.{name}", [])
        return splits


def build(config: Mapping | ConfigDict) -> StudyConfig:
    """Return the checked study; raises `ConfigError` listing every wrong field."""
    problems: list[str] = []
    sections = config if hasattr(config, "get") else {}
    env = ENVIRONMENTS.get(sections.get("task"), EnvConfig)  # an unknown task is refused below
    study = built(StudyConfig, config, "config", problems, {"env": env})
    if not problems:
        problems = list(_ood_problems(study)) + list(_joint_problems(study))
    if problems:
        raise ConfigError("the configuration is not usable:\n  " + "\n  ".join(problems))
    return study


def path_problem(path: str) -> str | None:
    """What is wrong with a dotted path such as 'sft.steps' or 'ood.rule.target', or None."""
    kinds, seen = {StudyConfig}, "config"
    for name in path.split("."):
        if kinds == {dict}:  # `ood`: any name, then fields of an environment
            kinds, seen = set(ENVIRONMENTS.values()), f"{seen}.{name}"
            continue
        fields: dict[str, set] = {}
        for kind in filter(dataclasses.is_dataclass, kinds):
            for known, its in typing.get_type_hints(kind).items():
                fields.setdefault(known, set()).update(typing.get_args(its) or {its})
        if not fields:
            return f"config.{path}: {seen} is a value and has no parts"
        if name not in fields:
            return unknown(f"{seen}.{name}", name, fields)
        kinds, seen = fields[name], f"{seen}.{name}"
    return None


def _ood_problems(study: StudyConfig):
    for name, changes in study.ood.items():
        if name not in OOD:
            yield f"config.ood.{name}: unknown; allowed: {', '.join(OOD)}"
            continue
        whole = dataclasses.asdict(study.env) | dict(changes)
        found: list[str] = []
        built(type(study.env), whole, f"config.ood.{name}", found)
        yield from found


def _joint_problems(study: StudyConfig):
    for name in ("base", "sft", "sft_matched"):
        run = getattr(study, name)
        if run.batch_size % run.microbatch:
            allowed = f"a divisor of batch_size {run.batch_size}"
            yield f"config.{name}.microbatch: given {run.microbatch}, allowed: {allowed}"
    if study.pictured != study.task.endswith("_vl"):
        yield (
            f"config.env.modality: given {study.env.modality} for task {study.task}, allowed: "
            f"{'text' if study.pictured else 'image'}"
        )
    for name, split in study.splits.items():
        read = isinstance(split, RouteConfig) and split.source != DRAWN
        if read and split.source == study.env.source and split.style != study.env.style:
            yield (
                f"config.ood.{name.removesuffix('_ood')}.source: given {split.source}, the same as "
                "in-distribution, where styles are not looked at; allowed: a folder of other cities"
            )
    if study.data.ood_share and "rule" not in study.ood:
        yield "config.data.ood_share: given > 0, allowed only with config.ood.rule"

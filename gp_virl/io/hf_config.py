"""config.json of a Hugging Face Mllama checkpoint against ModelConfig, both ways."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from gp_virl.model.config import ModelConfig, RopeScaling, VisionConfig

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
SHOWN_PROBLEMS = 100
EXTRA_ROWS = 8  # of the embedding table beyond the vocabulary, for <|image|> and its like
# What the released models say beyond ModelConfig.
RELEASED = {
    "image_token_index": 128_256,
    "text_config": {"bos_token_id": 128_000, "eos_token_id": 128_001, "pad_token_id": 128_004},
}
RELEASED_GENERATION = {
    "bos_token_id": 128_000,
    "eos_token_id": [128_001, 128_008, 128_009],
    "pad_token_id": 128_004,
}


class HFCheckpointError(ValueError):
    """A directory is not a Mllama checkpoint that can be read; the message lists every reason."""

    def __init__(self, place: str | Path, problems: Sequence[str]):
        shown = list(problems[:SHOWN_PROBLEMS])
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        super().__init__(f"{place} is not usable:\n  " + "\n  ".join(shown))
        self.problems = tuple(problems)


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a checkpoint says beyond its weights and ModelConfig; an export repeats it."""

    config: Mapping[str, Any] = dataclasses.field(default_factory=lambda: RELEASED)
    generation: Mapping[str, Any] = dataclasses.field(default_factory=lambda: RELEASED_GENERATION)


def layer_pattern(layers: int, crosses: Sequence[int]) -> tuple[str, ...]:
    """The shortest pattern whose repetition gives `layers` layers, those in `crosses` "cross".

    Numbers in `crosses` beyond the layers mean nothing, as in transformers.
    Where nothing repeats it is as long as the decoder, which is then one group: right, but slower
    to compile.
    """
    kinds = tuple("cross" if i in crosses else "self" for i in range(layers))
    for period in range(1, layers + 1):
        if layers % period == 0 and kinds == kinds[:period] * (layers // period):
            return kinds[:period]
    return kinds


def read(directory: str | Path, **changes: Any) -> tuple[ModelConfig, Origin]:
    """The model a directory's config.json describes, and the rest of what it says.

    `changes` are fields of ModelConfig that the file has none for (dtype, remat, ...); the value
    head gets widths of hidden_size / 4 and / 8 unless said otherwise. Fields that the file leaves
    out have transformers' defaults. Raises HFCheckpointError.
    """
    place = Path(directory) / CONFIG_FILE
    content, problems = _json(place)
    if problems:
        raise HFCheckpointError(directory, problems)
    parts = {}
    for name, kind in (("text_config", MllamaTextConfig), ("vision_config", MllamaVisionConfig)):
        given = content.get(name)
        if not isinstance(given, dict):
            problems.append(f"{CONFIG_FILE}: {name} is {given!r}, needed is a section")
            continue
        try:
            parts[name] = kind(**copy.deepcopy(given))  # it changes what it is given
        except (StrictDataclassError, TypeError, ValueError, KeyError) as wrong:
            problems.append(f"{CONFIG_FILE}: {name}: {' '.join(str(wrong).split())}")
    if content.get("model_type") != "mllama":
        problems.append(
            f"{CONFIG_FILE}: model_type is {content.get('model_type')!r}, allowed is 'mllama'"
        )
    if "text_config" in parts:
        problems += _text_problems(parts["text_config"])
    if "vision_config" in parts:
        problems += _vision_problems(parts["vision_config"])
    model = None
    if not problems:
        try:
            model = _model(parts["text_config"], parts["vision_config"], changes)
        except ValueError as wrong:
            problems.append(f"{CONFIG_FILE}: {wrong}")
    if model is None:
        raise HFCheckpointError(directory, problems)
    generation, _ = _json(Path(directory) / GENERATION_FILE)
    return model, Origin(content, generation or {})


def _json(place: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        content = json.loads(place.read_text())
    except FileNotFoundError:
        return {}, [f"{place.name}: there is no such file"]
    except (OSError, ValueError) as wrong:
        return {}, [f"{place.name}: not readable as JSON: {wrong}"]
    if not isinstance(content, dict):
        return {}, [f"{place.name}: holds {type(content).__name__}, needed is an object"]
    return content, []


def _expect(fields: Sequence[tuple[str, bool, Any, str]]) -> list[str]:
    return [
        f"{CONFIG_FILE}: {name} is {given!r}, allowed is {allowed}"
        for name, fine, given, allowed in fields
        if not fine
    ]


def _text_problems(text: MllamaTextConfig) -> list[str]:
    rope = text.rope_parameters or {}
    crosses, layers = text.cross_attention_layers, text.num_hidden_layers
    heads, width = text.num_attention_heads, text.hidden_size
    counts = (layers, heads, width, text.num_key_value_heads, text.vocab_size)
    if min(*counts, text.intermediate_size) < 1:
        return [f"{CONFIG_FILE}: text_config: sizes must be at least 1"]
    missing = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    missing -= set(rope)
    kind = rope.get("rope_type", "default")
    return _expect(
        [
            ("text_config.hidden_act", text.hidden_act == "silu", text.hidden_act, "'silu'"),
            ("text_config.dropout", text.dropout == 0, text.dropout, "0"),
            (
                "text_config.tie_word_embeddings",
                not text.tie_word_embeddings,
                text.tie_word_embeddings,
                "false (the embedding has more rows than the head)",
            ),
            (
                "text_config.hidden_size",
                width % heads == 0 and width // heads % 2 == 0,
                width,
                f"an even multiple of num_attention_heads={heads}",
            ),
            (
                "text_config.head_dim",
                getattr(text, "head_dim", None) in (None, width // heads),
                getattr(text, "head_dim", None),
                "hidden_size / num_attention_heads, which needs no mention",
            ),
            (
                "text_config.num_key_value_heads",
                heads % text.num_key_value_heads == 0,
                text.num_key_value_heads,
                f"a divisor of num_attention_heads={heads}",
            ),
            (
                "text_config.cross_attention_layers",
                not set(range(layers)) <= set(crosses),
                crosses,
                f"some of the num_hidden_layers={layers} layers, not all",
            ),
            (
                "text_config.rope_parameters",
                kind == "default" or (kind == "llama3" and not missing),
                rope,
                "rope_type 'default', or 'llama3' with factor, low_freq_factor, "
                "high_freq_factor and original_max_position_embeddings",
            ),
        ]
    )


def _vision_problems(vision: MllamaVisionConfig) -> list[str]:
    size = vision.hidden_size * (1 + len(vision.intermediate_layers_indices))
    counts = ("num_hidden_layers", "num_global_layers", "attention_heads", "num_channels")
    small = [name for name in counts if getattr(vision, name) < 1]
    plain = isinstance(vision.image_size, int) and isinstance(vision.patch_size, int)
    return _expect(
        [
            ("vision_config.hidden_act", vision.hidden_act == "gelu", vision.hidden_act, "'gelu'"),
            ("vision_config sizes", not small, small, "at least 1 each"),
            (
                "vision_config.vision_output_dim",
                vision.vision_output_dim == size,
                vision.vision_output_dim,
                f"{size} = hidden_size * (1 + intermediate layers)",
            ),
            (
                "vision_config.image_size and patch_size",
                plain,
                (vision.image_size, vision.patch_size),
                "one number each (tiles and patches are square)",
            ),
        ]
    )


def _model(
    text: MllamaTextConfig, vision: MllamaVisionConfig, changes: Mapping[str, Any]
) -> ModelConfig:
    pattern = layer_pattern(text.num_hidden_layers, text.cross_attention_layers)
    rope, scaling = text.rope_parameters, None
    if rope["rope_type"] == "llama3":
        names = [field.name for field in dataclasses.fields(RopeScaling)]
        scaling = RopeScaling(**{name: rope[name] for name in names})
    tower = {field.name: getattr(vision, field.name) for field in dataclasses.fields(VisionConfig)}
    ratios = tuple(tuple(pair) for pair in vision.supported_aspect_ratios)
    tower["supported_aspect_ratios"] = ratios
    tower["intermediate_layers_indices"] = tuple(vision.intermediate_layers_indices)
    fields = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "groups": text.num_hidden_layers // len(pattern),
        "pattern": pattern,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_dim": text.hidden_size // text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
        "value_widths": (max(text.hidden_size // 4, 1), max(text.hidden_size // 8, 1)),
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": float(rope["rope_theta"]),
        "rope_scaling": scaling,
        "vision": VisionConfig(**tower),
    }
    return ModelConfig(**(fields | dict(changes)))


def content(config: ModelConfig, origin: Origin, dtype: str) -> dict[str, Any]:
    """config.json of a model, as transformers 4.45 and later read it.

    Raises ValueError, listing them all, where the format has no place for the model.
    """
    rows = config.vocab_size + config.extra_rows
    text = dict(origin.config.get("text_config", {}))
    problems = []
    if config.vision is None:
        problems.append("the model has no vision tower, which the format demands")
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        problems.append(
            f"head_dim={config.head_dim} * num_attention_heads={config.num_attention_heads} "
            f"is not hidden_size={config.hidden_size}"
        )
    if config.extra_rows != EXTRA_ROWS:
        problems.append(f"extra_rows={config.extra_rows}, the format has {EXTRA_ROWS}")
    if (pad := text.get("pad_token_id")) is not None and not -rows <= pad < rows:
        problems.append(
            f"pad_token_id={pad} of the origin has no row among {rows}; give the Origin "
            "that belongs to this model's tokenizer"
        )
    if problems:
        raise ValueError("; ".join(problems))
    text.pop("rope_parameters", None)
    scaling = config.rope_scaling
    text |= {
        name: getattr(config, name)
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "intermediate_size", "rms_norm_eps", "rope_theta",
        )
    } | {
        "cross_attention_layers": list(config.cross_attention_layers),
        "rope_scaling": scaling and {"rope_type": "llama3"} | dataclasses.asdict(scaling),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "model_type": "mllama_text_model",
    }  # fmt: skip
    vision = dict(origin.config.get("vision_config", {})) | dataclasses.asdict(config.vision)
    vision |= {
        "hidden_act": "gelu",
        "vision_output_dim": config.vision.output_size,
        "model_type": "mllama_vision_model",
    }
    beyond = {k: v for k, v in origin.config.items() if k not in ("dtype", "torch_dtype")}
    return beyond | {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "torch_dtype": dtype,
        "text_config": text,
        "vision_config": vision,
    }

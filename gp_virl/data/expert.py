"""What the expert data sets of both games share: the TFDS builder, and the checks of its config."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow_datasets as tfds

FORMAT = "array_record"  # written and read without TensorFlow


class ExpertDialogues(tfds.core.GeneratorBasedBuilder):
    """Dialogues of a game, the same for every tokenizer; its config says if they are `pictured`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS's own way)

    def source(self) -> Any:
        """The prepared examples, for random access; a picture is PNG bytes under `image`."""
        kept = {"image": tfds.decode.SkipDecoding()} if self.builder_config.pictured else None
        return self.as_data_source("train", decoders=kept)

    def _described(self, description: str, features: Mapping[str, Any]) -> tfds.core.DatasetInfo:
        """The info of conversations that have these fields besides their contents."""
        contents = tfds.features.Sequence(tfds.features.Text())  # user, assistant, ...
        return self.dataset_info_from_configs(
            description=description,
            features=tfds.features.FeaturesDict({"contents": contents, **features}),
            disable_shuffling=True,  # examples are drawn independently
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}


def picture_feature(size: int) -> tfds.features.Image:
    """A square picture of `size` pixels, kept as PNG."""
    return tfds.features.Image(shape=(size, size, 3), encoding_format="png")


def own_fields(config: tfds.core.BuilderConfig) -> dict[str, Any]:
    """The fields of a config that every config of TFDS doesn't have."""
    inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names if name not in inherited}


def check(config: tfds.core.BuilderConfig, found: Iterable[tuple[str, bool, str]]) -> None:
    """ValueError for the first (field, whether it is good, what is allowed) that isn't good."""
    for field, good, allowed in found:
        if not good:
            raise ValueError(
                f"{type(config).__name__}.{field}: given {getattr(config, field)!r}, allowed: "
                f"{allowed}"
            )


def are_shares(rules: Mapping[str, float]) -> bool:
    """Whether every rule has a share, and together they are the whole."""
    shares = rules.values()
    return bool(rules) and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6


def digest_name(rules: Iterable[str], fields: Mapping[str, Any]) -> str:
    """The rules' names, and a digest of the fields, which are data of JSON."""
    text = json.dumps(fields, sort_keys=True)
    return f"{'-'.join(rules)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

"""Parameters and FLOPs of the model's parts, by formula.

A multiply-add is two FLOPs, so that a token costs 2 for each weight that it meets, and attention
4 d for each head and each pair of a query and a key, once for their product and once for the
weighted value (Chowdhery et al. 2022, appendix B: 2N + 4 L H Q T a token). Only products count.
What is done element by element, the look-up of embeddings, norms, softmax, rotations and the
rescaling of images, is a per cent or less of it at the sizes where cost matters.
"""

import dataclasses
from dataclasses import dataclass

from gp_virl.model.config import ModelConfig
from gp_virl.model.vision import PAD_TO

SIZES = {"float32": 4, "bfloat16": 2}  # bytes


@dataclass(frozen=True)
class Bytes:
    """What passes at least between the chips' memories and their cores.

    Each weight once for every pass that uses it, what is kept for the backward pass once out and
    once in, caches whenever they are read. What stays inside of a layer isn't counted, nor what
    chips tell each other.
    """

    weights: int = 0  # parameters read by forward and backward passes, or by decoding
    gradients: int = 0  # sums over microbatches, and their reading by the optimizer
    update: int = 0  # parameters and moments read and written by the optimizer
    activations: int = 0  # kept from the forward pass to the backward pass
    caches: int = 0  # keys and values of tokens and of image features

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __add__(self, other: "Bytes") -> "Bytes":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Bytes(*map(sum, pairs))


@dataclass(frozen=True)
class StepCost:
    """What a step costs on all devices together, if it is spread over them without waste.

    The model's FLOPs are what the mathematics need. A program has to compute some of it again in
    the backward pass, and executes besides what its form of attention wastes: pairs of a query
    and a key that a mask hides, room in caches that is empty, padding of kernels.
    """

    flops: int  # the model's
    flops_recomputed: int  # the model's with what is computed again
    flops_executed: int  # the program's
    bytes: Bytes

    @property
    def recomputation(self) -> float:
        """FLOPs with what is computed again, for each one of the model's."""
        return self.flops_recomputed / self.flops

    @property
    def overhead(self) -> float:
        """Executed FLOPs for each one of the model's."""
        return self.flops_executed / self.flops


@dataclass(frozen=True)
class Parameters:
    """How many parameters there are, by part; `cross_kv` are the projections of features."""

    embedding: int
    self_layers: int
    cross_layers: int  # without `cross_kv`
    cross_kv: int
    final_norm: int
    head: int
    value_head: int
    vision: int = 0
    projector: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def named(self, *parts: str) -> int:
        """Those of some parts together."""
        return sum(getattr(self, part) for part in parts)


def parameters(config: ModelConfig) -> Parameters:
    """The numbers of parameters of a model with that configuration."""
    width, group = config.hidden_size, config.groups
    norms = 2 * width
    crosses = len(config.cross_attention_layers)
    widths = (width, *config.value_widths, 1)
    values = sum(a * b + b for a, b in zip(widths[:-1], widths[1:], strict=True))
    return Parameters(
        embedding=(config.vocab_size + config.extra_rows) * width,
        self_layers=group
        * config.self_layers
        * (_query(config) + _kv(config) + _mlp(config) + norms),
        # two gates, and a norm of queries and one of keys
        cross_layers=crosses * (_query(config) + _mlp(config) + norms + 2 + 2 * config.head_dim),
        cross_kv=crosses * _kv(config),
        final_norm=width,
        head=width * config.vocab_size,
        value_head=values,
        **_vision_parameters(config),
    )


def _query(config: ModelConfig) -> int:
    return 2 * config.hidden_size * config.num_attention_heads * config.head_dim


def _kv(config: ModelConfig) -> int:
    return 2 * config.hidden_size * config.num_key_value_heads * config.head_dim


def _mlp(config: ModelConfig) -> int:
    return 3 * config.hidden_size * config.intermediate_size


def _vision_parameters(config: ModelConfig) -> dict[str, int]:
    vision = config.vision
    if vision is None:
        return {}
    width, inner = vision.hidden_size, vision.intermediate_size
    layers = vision.num_hidden_layers + vision.num_global_layers
    layer = 4 * width**2 + 2 * width * inner + inner + width + 4 * width  # MLP's biases, two norms
    places = (len(vision.supported_aspect_ratios) + 1) * vision.max_num_tiles
    embeddings = (
        _patch(config) * width
        + width  # the class token
        + 2 * (places * width + 1)  # a tile's place, before and after
        + (1 + places) * vision.num_patches * width + 1  # a patch's place
    )  # fmt: skip
    return {
        "vision": layers * layer + 2 * vision.num_global_layers + embeddings + 2 * 2 * width,
        "projector": vision.output_size * config.hidden_size + config.hidden_size,
    }


def _patch(config: ModelConfig) -> int:
    """Numbers in a patch of pixels."""
    return config.vision.num_channels * config.vision.patch_size**2


@dataclass(frozen=True)
class Work:
    """FLOPs by what they are spent on; the parts that a backward pass treats differently."""

    self_weights: int = 0  # projections and MLPs of self-attention layers, without the next
    self_down: int = 0  # the last projection of their MLPs, which recomputation needn't repeat
    self_scores: int = 0  # attention among tokens
    cross_weights: int = 0  # queries, outputs and MLPs of cross-attention layers
    cross_features: int = 0  # keys and values of image features
    cross_scores: int = 0  # attention of tokens to features
    head: int = 0
    value_head: int = 0
    patches: int = 0  # pixels to patch embeddings, and their places
    tower_weights: int = 0  # as self_weights, of the vision tower
    tower_down: int = 0  # of the local layers; the global ones' outputs are gated
    tower_scores: int = 0
    projector: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    def __add__(self, other: "Work") -> "Work":
        return Work(
            *map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )

    def repeated(self, times: float) -> "Work":
        """The same, done that often on average."""
        return Work(*(round(times * flops) for flops in dataclasses.astuple(self)))

    def weighted(self, **times: float) -> int:
        """Total with each part as often as `times` says, once where it says nothing."""
        parts = dataclasses.asdict(self)
        return round(sum(flops * times.get(name, 1) for name, flops in parts.items()))


def causal_pairs(length: int, block: int = 1) -> int:
    """Pairs of a query and a key of a row where each token attends to itself and earlier ones.

    Programs take queries in blocks, each against all keys up to its block's end: half the square
    with `block` 1, which is what is needed, and the whole square with `block` = `length`.
    """
    ends = (min(start + block, length) for start in range(0, length, block))
    return sum(
        (end - start) * end for start, end in zip(range(0, length, block), ends, strict=True)
    )


def text(config: ModelConfig, tokens: int, pairs: int, looks: int | None = None) -> Work:
    """The decoder reading `tokens` in which `pairs` of a query and a key meet.

    `looks` are pairs of a token and an image feature; None skips the cross-attention layers.
    """
    selves = config.groups * config.self_layers
    down = config.hidden_size * config.intermediate_size
    channels = 4 * config.num_attention_heads * config.head_dim
    crosses = 0 if looks is None else len(config.cross_attention_layers)
    weights = _query(config) + _kv(config) + _mlp(config) - down
    return Work(
        self_weights=2 * tokens * selves * weights,
        self_down=2 * tokens * selves * down,
        self_scores=channels * selves * pairs,
        cross_weights=2 * tokens * crosses * (_query(config) + _mlp(config)),
        cross_scores=channels * crosses * (looks or 0),
    )


def heads(config: ModelConfig, scored: int, valued: int = 0) -> Work:
    """Logits of `scored` tokens and values of `valued` ones."""
    widths = (config.hidden_size, *config.value_widths, 1)
    values = sum(a * b for a, b in zip(widths[:-1], widths[1:], strict=True))
    return Work(
        head=2 * scored * config.hidden_size * config.vocab_size, value_head=2 * valued * values
    )


def features(config: ModelConfig, tiles: int) -> int:
    """Features of an image of so many tiles."""
    return tiles * config.vision.num_patches


def tower_tokens(config: ModelConfig) -> int:
    """Tokens of an image in the tower: all its tiles, padded to a multiple of eight each."""
    return config.vision.max_num_tiles * -(-config.vision.num_patches // PAD_TO) * PAD_TO


def looked_at(config: ModelConfig, count: int) -> Work:
    """Keys and values of `count` features, in every cross-attention layer."""
    return Work(cross_features=2 * count * len(config.cross_attention_layers) * _kv(config))


def images(config: ModelConfig, count: int, tiles: int) -> Work:
    """The vision tower and the projector on `count` images of `tiles` tiles.

    As in HF, the tower computes all `max_num_tiles` tiles of an image, padded to a multiple of
    eight tokens each, and in all its layers they attend to each other; the projector is given
    the image's own tiles only.
    """
    if not count:
        return Work()
    vision = config.vision
    width, inner = vision.hidden_size, vision.intermediate_size
    total = vision.num_hidden_layers + vision.num_global_layers
    tokens = tower_tokens(config)
    down = 2 * tokens * vision.num_hidden_layers * width * inner
    # Rows of tables picked by products: a patch's place, and a tile's before and after the layers.
    picked = (len(vision.supported_aspect_ratios) + 1) * (vision.num_patches + 2)
    patches = (vision.num_patches - 1) * _patch(config) + picked
    work = Work(
        patches=2 * vision.max_num_tiles * patches * width,
        tower_weights=2 * tokens * total * (4 * width**2 + 2 * width * inner) - down,
        tower_down=down,
        tower_scores=4 * width * total * tokens**2,
        projector=2 * features(config, tiles) * vision.output_size * config.hidden_size,
    )
    return work.repeated(count)

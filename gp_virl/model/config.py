"""Sizes of the model and how it computes."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

GROUP = ("self", "self", "self", "cross", "self")
# Arrangements (rows, columns) of at most four tiles, in the order of HF's aspect ratio ids 1 to 8.
ASPECT_RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
ATTENTIONS = ("auto", "blocks", "plain", "dot_product", "splash", "cudnn", "splash_interpret")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 scaling of the rotary frequencies (HF rope_type "llama3")."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower; fields are named as in HF's MllamaVisionConfig.

    An image is cut into at most `max_num_tiles` square tiles of `image_size` pixels, arranged as
    one of `supported_aspect_ratios` (rows, columns).
    """

    hidden_size: int
    num_hidden_layers: int
    num_global_layers: int
    attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    intermediate_layers_indices: tuple[int, ...]
    max_num_tiles: int = 4
    supported_aspect_ratios: tuple[tuple[int, int], ...] = ASPECT_RATIOS
    num_channels: int = 3
    norm_eps: float = 1e-5

    def __post_init__(self):
        if self.hidden_size % self.attention_heads:
            raise ValueError(
                f"vision hidden_size={self.hidden_size} must be a multiple of "
                f"attention_heads={self.attention_heads}"
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} must be at least patch_size={self.patch_size}"
            )
        layers = self.num_hidden_layers
        outside = [i for i in self.intermediate_layers_indices if not -layers <= i < layers]
        if outside:
            raise ValueError(
                f"intermediate_layers_indices {outside}: there are {layers} local layers"
            )
        large = [(h, w) for h, w in self.supported_aspect_ratios if h * w > self.max_num_tiles]
        if large:
            raise ValueError(
                f"supported_aspect_ratios {large}: an image has at most max_num_tiles="
                f"{self.max_num_tiles} tiles"
            )

    @property
    def num_patches(self) -> int:
        """Features of one tile: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def output_size(self) -> int:
        """Channels of a feature: the last layer's and those of the intermediate layers."""
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))


@dataclass(frozen=True)
class ModelConfig:
    """A member of the Llama-3.2-Vision family; fields are named as in HF's MllamaTextConfig.

    The decoder has `groups` equal groups of layers, each self-attention or gated cross-attention
    as `pattern` says; released models have self x3, cross, self. The embedding table has
    `extra_rows` rows more than the output head has columns.
    """

    vocab_size: int
    hidden_size: int
    groups: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    value_widths: tuple[int, ...]
    pattern: tuple[str, ...] = GROUP
    extra_rows: int = 8
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = RopeScaling()
    # Rows of text that see no image tile: HF zeroes the cross layer's MLP only ("mlp"), Meta's
    # code its attention as well ("both").
    text_rows: str = "mlp"
    dtype: str = "float32"  # of activations
    param_dtype: str = "float32"  # of master weights
    remat: bool = False  # recompute each layer in the backward pass
    attention: str = "auto"
    vision: VisionConfig | None = None  # None: a model of text only

    def __post_init__(self):
        allowed = {
            "dtype": tuple(DTYPES),
            "param_dtype": tuple(DTYPES),
            "attention": ATTENTIONS,
            "text_rows": ("mlp", "both"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}: allowed are {list(values)}")
        if not set(self.pattern) <= {"self", "cross"} or "self" not in self.pattern:
            raise ValueError(
                f"pattern={self.pattern!r}: layers are 'self' or 'cross', at least one is 'self'"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions")

    @property
    def num_hidden_layers(self) -> int:
        return self.groups * len(self.pattern)

    @property
    def cross_attention_layers(self) -> tuple[int, ...]:
        """Indices of the gated cross-attention layers, as in HF's config."""
        kinds = self.pattern * self.groups
        return tuple(i for i, kind in enumerate(kinds) if kind == "cross")

    @property
    def self_layers(self) -> int:
        """Self-attention layers of one group."""
        return self.pattern.count("self")

    @property
    def attention_form(self) -> str:
        """`attention` with "auto" settled by the backend that runs now.

        blocks: written out, causal blocks (CPU); plain: the same without blocks; dot_product:
        JAX's fused attention; cudnn: that in cuDNN's kernel where it applies, in bfloat16 with
        heads of at most 128 channels, a multiple of 8 (GPU); splash: kernels of gp_virl/model/
        splash.py (TPU), also to compile for a TPU elsewhere; splash_interpret: those run slowly
        on any backend, for tests.
        """
        if self.attention != "auto":
            return self.attention
        return {"cpu": "blocks", "tpu": "splash"}.get(jax.default_backend(), "cudnn")


PRESETS = {
    # 0.25M parameters in use without images; trains from scratch on two CPU cores.
    "tiny": ModelConfig(
        vocab_size=512,
        hidden_size=64,
        groups=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=176,
        value_widths=(64, 32),
    ),
    # 45M, from scratch on one GPU.
    "small": ModelConfig(
        vocab_size=512,
        hidden_size=512,
        groups=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1408,
        value_widths=(256, 128),
    ),
    # Llama-3.2-11B-Vision's text decoder.
    "11b": ModelConfig(
        vocab_size=128_256,
        hidden_size=4096,
        groups=8,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=14_336,
        value_widths=(1024, 512),
        dtype="bfloat16",
        remat=True,
    ),
    # Llama-3.2-90B-Vision's text decoder.
    "90b": ModelConfig(
        vocab_size=128_256,
        hidden_size=8192,
        groups=20,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=28_672,
        value_widths=(1024, 512),
        dtype="bfloat16",
        remat=True,
    ),
}

# Llama-3.2-Vision's tower, the same at 11B and 90B.
LLAMA_VISION = VisionConfig(
    hidden_size=1280,
    num_hidden_layers=32,
    num_global_layers=8,
    attention_heads=16,
    intermediate_size=5120,
    image_size=560,
    patch_size=14,
    intermediate_layers_indices=(3, 7, 15, 23, 30),
)
VISION = {
    "tiny": VisionConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=4,
        intermediate_size=128,
        image_size=48,
        patch_size=8,
        intermediate_layers_indices=(0,),
    ),
    "small": VisionConfig(
        hidden_size=256,
        num_hidden_layers=6,
        num_global_layers=2,
        attention_heads=8,
        intermediate_size=1024,
        image_size=112,
        patch_size=14,
        intermediate_layers_indices=(1, 3, 4),
    ),
    "11b": LLAMA_VISION,
    "90b": LLAMA_VISION,
}


def preset(size: str, images: bool = False, **changes) -> ModelConfig:
    """The named ModelConfig with some fields changed; KeyError lists the names there are.

    Without `images` the model has no vision tower, and its cross-attention layers stay idle.
    """
    if size not in PRESETS:
        raise KeyError(f"model size {size!r}: allowed are {sorted(PRESETS)}")
    if images:
        changes = {"vision": VISION[size], **changes}
    return dataclasses.replace(PRESETS[size], **changes)

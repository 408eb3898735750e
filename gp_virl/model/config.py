"""Sizes of the model and how it computes."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp

GROUP = ("self", "self", "self", "cross", "self")
SELF_LAYERS = GROUP.count("self")
ATTENTIONS = ("auto", "blocks", "plain", "dot_product")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 scaling of the rotary frequencies (HF rope_type "llama3")."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A member of the Llama-3.2-Vision family; fields are named as in HF's MllamaTextConfig.

    The decoder has `groups` groups of five layers (self x3, gated cross, self). The embedding
    table has `extra_rows` rows more than the output head has columns.
    """

    vocab_size: int
    hidden_size: int
    groups: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    value_widths: tuple[int, ...]
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
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions")

    @property
    def num_hidden_layers(self) -> int:
        return self.groups * len(GROUP)

    @property
    def cross_attention_layers(self) -> tuple[int, ...]:
        """Indices of the gated cross-attention layers, as in HF's config."""
        starts = range(0, self.num_hidden_layers, len(GROUP))
        return tuple(s + j for s in starts for j, kind in enumerate(GROUP) if kind == "cross")

    @property
    def attention_form(self) -> str:
        """`attention` with "auto" settled: causal blocks on CPU, else JAX's fused attention."""
        if self.attention != "auto":
            return self.attention
        return "blocks" if jax.default_backend() == "cpu" else "dot_product"


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
}


def preset(size: str, **changes) -> ModelConfig:
    """The named ModelConfig with some fields changed; KeyError lists the names there are."""
    if size not in PRESETS:
        raise KeyError(f"model size {size!r}: allowed are {sorted(PRESETS)}")
    return dataclasses.replace(PRESETS[size], **changes)

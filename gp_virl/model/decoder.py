"""The text decoder: a scan over equal groups of layers (HF MllamaTextModel)."""

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from gp_virl.model.attention import Segments, attend, attend_causal, attend_features
from gp_virl.model.cache import CrossKeyValues, KeyValues
from gp_virl.model.config import DTYPES, ModelConfig
from gp_virl.model.layers import MLP, Linear, RMSNorm, rotary_angles, rotate
from gp_virl.model.stacks import recomputed, stack
from gp_virl.sharding import constrain


@struct.dataclass
class Looks:
    """How text tokens look at image features."""

    sees: Bool[Array, "B S"]  # False: the token is attended over features that it doesn't see
    over: Bool[Array, "B S I"] | Segments  # what it is attended over, nothing in segment 0

    @classmethod
    def of(cls, visible: Bool[Array, "B S I"]) -> "Looks":
        """As HF does: a token that sees no feature is attended over all of them."""
        sees = visible.any(-1)
        return cls(sees=sees, over=visible | ~sees[:, :, None])


@struct.dataclass
class Cross:
    """Projected image features and which of them each text token may look at."""

    states: Float[Array, "B I D"]
    visible: Bool[Array, "B S I"] | Looks


@struct.dataclass
class CrossMemory:
    """Image features already turned into keys and values of every cross-attention layer."""

    k: CrossKeyValues
    v: CrossKeyValues
    visible: Bool[Array, "B S I"]


@struct.dataclass
class Memory:
    """Earlier tokens' keys and values in every self-attention layer."""

    k: KeyValues
    v: KeyValues
    visible: Bool[Array, "#B q s"]  # one row for all queries, or a row each


@struct.dataclass
class Surroundings:
    """What every layer of one forward pass shares."""

    cos: Float[Array, "B S 1 h"]
    sin: Float[Array, "B S 1 h"]
    segments: Int[Array, "B S"] | None  # conversation of each token, 0 is padding; None: all one
    memory: tuple[Memory, ...]
    cross: Cross | None  # None where a layer's keys and values are given with it
    looks: Looks | None  # None without images


class Attention(nnx.Module):
    """The projections that self- and cross-attention have in common."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        width = config.hidden_size
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear((width, q_width), ("embed", "heads"), config, rngs)
        self.k_proj = Linear((width, kv_width), ("embed", "kv_heads"), config, rngs)
        self.v_proj = Linear((width, kv_width), ("embed", "kv_heads"), config, rngs)
        self.o_proj = Linear((q_width, width), ("heads", "embed"), config, rngs)

    def heads_of(self, x: Float[Array, "B S w"]) -> Float[Array, "B S H d"]:
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)

    def out(self, heads: Float[Array, "B H S d"]) -> Float[Array, "B S D"]:
        joined = jnp.swapaxes(heads, 1, 2)
        return self.o_proj(joined.reshape(*joined.shape[:2], -1))


def head_major(x: Float[Array, "B S H d"], name: str) -> Float[Array, "B H S d"]:
    return constrain(jnp.swapaxes(x, 1, 2), "batch", name, None, None)


class SelfAttention(Attention):
    """HF MllamaTextSelfAttention."""

    def __call__(
        self, x: Float[Array, "B S D"], around: Surroundings, memory: tuple
    ) -> tuple[Float[Array, "B S D"], tuple]:
        q = rotate(self.heads_of(self.q_proj(x)), around.cos, around.sin)
        k = rotate(self.heads_of(self.k_proj(x)), around.cos, around.sin)
        q, k = head_major(q, "heads"), head_major(k, "kv_heads")
        v = head_major(self.heads_of(self.v_proj(x)), "kv_heads")
        if memory:
            length = x.shape[1]
            own = jnp.tril(jnp.ones((1, length, length), bool))
            pairs = zip(memory, around.memory, strict=True)
            stretches = tuple((*kv, whole.visible) for kv, whole in pairs)
            # In every form: for so few queries all time goes into reading the cache.
            heads = attend(q, (*stretches, (k, v, own)))
        else:
            heads = attend_causal(self.config.attention_form, q, k, v, around.segments)
        return self.out(heads), (k, v)


class SelfLayer(nnx.Module):
    """HF MllamaSelfAttentionDecoderLayer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.self_attn = SelfAttention(config, rngs)
        self.mlp = MLP(config, rngs)
        self.input_layernorm = RMSNorm(config.hidden_size, "embed", config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, "embed", config)

    def __call__(
        self, x: Float[Array, "B S D"], around: Surroundings, memory: tuple
    ) -> tuple[Float[Array, "B S D"], tuple]:
        attended, kv = self.self_attn(self.input_layernorm(x), around, memory)
        x = x + attended
        x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", None, None), kv


class CrossAttention(Attention):
    """HF MllamaTextCrossAttention: queries from text, keys and values from image features."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.q_norm = RMSNorm(config.head_dim, "head_dim", config)
        self.k_norm = RMSNorm(config.head_dim, "head_dim", config)

    def keys_values(
        self, states: Float[Array, "B I D"]
    ) -> tuple[Float[Array, "B Kh I d"], Float[Array, "B Kh I d"]]:
        """What text attends to; computed once per image where a cache keeps it."""
        k = head_major(self.k_norm(self.heads_of(self.k_proj(states))), "kv_heads")
        return k, head_major(self.heads_of(self.v_proj(states)), "kv_heads")

    def __call__(
        self,
        x: Float[Array, "B S D"],
        kv: tuple,
        over: Bool[Array, "B S I"] | Segments,
    ) -> Float[Array, "B S D"]:
        """What each token gets from the features that it is attended over (Looks.over)."""
        q = head_major(self.q_norm(self.heads_of(self.q_proj(x))), "heads")
        out = self.out(attend_features(self.config.attention_form, q, *kv, over))
        return jnp.where((over.q != 0)[:, :, None], out, 0) if isinstance(over, Segments) else out


class CrossLayer(nnx.Module):
    """HF MllamaCrossAttentionDecoderLayer: both branches gated by tanh, closed at the start."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.text_rows = config.text_rows
        self.cross_attn = CrossAttention(config, rngs)
        self.mlp = MLP(config, rngs)
        self.input_layernorm = RMSNorm(config.hidden_size, "embed", config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, "embed", config)
        gate = jnp.zeros(1, DTYPES[config.param_dtype])
        self.cross_attn_attn_gate = nnx.Param(gate, out_sharding=(None,))
        self.cross_attn_mlp_gate = nnx.Param(gate, out_sharding=(None,))

    def __call__(
        self, x: Float[Array, "B S D"], around: Surroundings, kv: tuple | None
    ) -> Float[Array, "B S D"]:
        if kv is None:
            kv = self.cross_attn.keys_values(around.cross.states.astype(x.dtype))
        sighted = around.looks.sees[:, :, None].astype(x.dtype)
        attended = self.cross_attn(self.input_layernorm(x), kv, around.looks.over)
        if self.text_rows == "both":
            attended = sighted * attended
        x = x + jnp.tanh(self.cross_attn_attn_gate[...].astype(x.dtype)) * attended
        # HF zeroes the rows that see no image after the MLP, not before.
        fed = sighted * self.mlp(self.post_attention_layernorm(x))
        x = x + jnp.tanh(self.cross_attn_mlp_gate[...].astype(x.dtype)) * fed
        return constrain(x, "batch", None, None)


class Group(nnx.Module):
    """One group of layers, by default self x3, gated cross, self."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.remat = config.remat
        kinds = {"self": SelfLayer, "cross": CrossLayer}
        self.layers = nnx.List([kinds[kind](config, rngs) for kind in config.pattern])

    def __call__(
        self, x: Float[Array, "B S D"], around: Surroundings, memory: tuple, seen: tuple | None
    ) -> tuple[Float[Array, "B S D"], tuple]:
        """`memory`: (k, v) per stretch, each a [B Kh s d] per layer; `seen`: those of images.

        Returns x and the tokens' own (k, v).
        """
        kept, j, images = [], 0, 0
        for layer in self.layers:
            if isinstance(layer, CrossLayer):
                if around.looks is None:
                    continue
                inputs = (x, around, seen and tuple(part[images] for part in seen))
                x = recomputed(layer, *inputs) if self.remat else layer(*inputs)
                images += 1
                continue
            inputs = (x, around, tuple((k[j], v[j]) for k, v in memory))
            x, kv = recomputed(layer, *inputs) if self.remat else layer(*inputs)
            kept.append(kv)
            j += 1
        return x, tuple(zip(*kept, strict=True))


class TextDecoder(nnx.Module):
    """HF MllamaTextModel; its layer `len(pattern) * g + j` is `groups.layers[j]` at g."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        rows = (config.vocab_size + config.extra_rows, config.hidden_size)
        table = jax.random.normal(rngs.params(), rows, DTYPES[config.param_dtype])
        self.embed_tokens = nnx.Param(
            table / jnp.sqrt(config.hidden_size), out_sharding=("vocab", "embed")
        )
        self.groups = stack(config.groups, lambda rngs: Group(config, rngs), rngs)
        self.norm = RMSNorm(config.hidden_size, "embed", config)

    @property
    def dtype(self) -> jnp.dtype:
        """Of activations and caches."""
        return jnp.dtype(DTYPES[self.config.dtype])

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        segments: Int[Array, "B S"] | None = None,
        memory: tuple[Memory, ...] = (),
        cross: Cross | CrossMemory | None = None,
        keep: bool = False,
    ) -> tuple[Float[Array, "B S D"], tuple[KeyValues, KeyValues] | None]:
        """Normed hidden states and, if `keep`, the tokens' keys and values.

        With `memory`, the tokens attend to it and causally to each other; `segments` is then
        not looked at. Cross-attention layers are skipped without `cross`.
        """
        # The whole width on every device before the look-up, or the partitioner recomputes it.
        table = constrain(self.embed_tokens[...].astype(self.dtype), "vocab", None)
        x = constrain(jnp.take(table, tokens, axis=0, mode="clip"), "batch", None, None)
        cos, sin = rotary_angles(self.config, positions)
        looks = None if cross is None else cross.visible
        around = Surroundings(
            cos=cos,
            sin=sin,
            segments=segments,
            memory=memory,
            cross=cross if isinstance(cross, Cross) else None,
            looks=looks if looks is None or isinstance(looks, Looks) else Looks.of(looks),
        )
        graph, weights = nnx.split(self.groups)

        def group(x, slices):
            weights, memory, seen = slices
            x, kv = nnx.merge(graph, weights)(x, around, memory, seen)
            return x, kv if keep else None

        stretches = tuple((m.k, m.v) for m in memory)
        seen = (cross.k, cross.v) if isinstance(cross, CrossMemory) else None
        x, kv = jax.lax.scan(group, x, (weights, stretches, seen))
        return self.norm(x), kv

    def look(self, states: Float[Array, "B I D"]) -> tuple[CrossKeyValues, CrossKeyValues]:
        """Keys and values of image features in every cross-attention layer."""
        graph, weights = nnx.split(self.groups)
        states = states.astype(self.dtype)
        slots = [j for j, kind in enumerate(self.config.pattern) if kind == "cross"]
        if not slots:
            raise ValueError(f"pattern={self.config.pattern}: no layer looks at images")

        def group(_, weights):
            layers = nnx.merge(graph, weights).layers
            pairs = [layers[j].cross_attn.keys_values(states) for j in slots]
            return None, tuple(zip(*pairs, strict=True))

        return jax.lax.scan(group, None, weights)[1]

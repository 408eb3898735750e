import math

import jax
import pytest

from gp_virl.model.config import PRESETS, ModelConfig, preset
from gp_virl.model.mllama import abstract


def parameters(config: ModelConfig, part: str) -> int:
    _, params = abstract(config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params[part]))


def expected_text(c: ModelConfig) -> int:
    """HF MllamaTextModel's parameters, module by module."""
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = c.hidden_size * (2 * q + 2 * kv)
    mlp = 3 * c.hidden_size * c.intermediate_size
    self_layer = attention + mlp + 2 * c.hidden_size
    cross_layer = self_layer + 2 * c.head_dim + 2
    crosses = len(c.cross_attention_layers)
    layers = (c.num_hidden_layers - crosses) * self_layer + crosses * cross_layer
    return (c.vocab_size + 8) * c.hidden_size + layers + c.hidden_size


@pytest.mark.parametrize("size", sorted(PRESETS))
def test_parameter_count(size):
    config = preset(size)
    assert parameters(config, "language_model") == expected_text(config)
    assert parameters(config, "lm_head") == config.vocab_size * config.hidden_size


def test_11b_is_llama_3_2_vision():
    config = preset("11b")
    assert config.num_hidden_layers == 40
    assert config.cross_attention_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    # Decoder with its 32 self- and 8 cross-attention layers, embedding table and output head.
    text = parameters(config, "language_model") + parameters(config, "lm_head")
    assert text == 9_775_192_080


def test_tiny_is_tiny():
    config = preset("tiny")
    cross = expected_text(config) - 4 * (expected_text(config) // 5)
    active = expected_text(config) + config.vocab_size * config.hidden_size - cross
    assert 200_000 < active < 300_000
    assert 30e6 < expected_text(preset("small")) < 60e6


def test_mistakes_name_what_is_allowed():
    with pytest.raises(KeyError, match=r"'huge'.*11b.*small.*tiny"):
        preset("huge")
    with pytest.raises(ValueError, match=r"dtype='float16'.*float32.*bfloat16"):
        preset("tiny", dtype="float16")
    with pytest.raises(ValueError, match=r"attention='flash'.*blocks"):
        preset("tiny", attention="flash")
    with pytest.raises(ValueError, match="multiple"):
        preset("tiny", num_key_value_heads=3)
    with pytest.raises(ValueError, match="even"):
        preset("tiny", head_dim=15)


@pytest.mark.parametrize(
    ("pattern", "groups", "crosses"),
    [
        (("cross", "self"), 3, (0, 2, 4)),
        (("self",), 4, ()),
        (("self", "cross", "self", "self", "cross"), 1, (1, 4)),
    ],
)
def test_other_patterns_of_layers(pattern, groups, crosses):
    config = preset("tiny", pattern=pattern, groups=groups)
    assert config.cross_attention_layers == crosses
    assert config.num_hidden_layers == len(pattern) * groups
    assert parameters(config, "language_model") == expected_text(config)


@pytest.mark.parametrize(
    ("backend", "form"), [("cpu", "blocks"), ("gpu", "cudnn"), ("tpu", "splash")]
)
def test_the_backend_settles_the_form_of_attention(monkeypatch, backend, form):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert preset("tiny").attention_form == form
    for chosen in ("plain", "splash", "splash_interpret"):
        assert preset("tiny", attention=chosen).attention_form == chosen


def test_a_pattern_needs_self_attention():
    with pytest.raises(ValueError, match="at least one is 'self'"):
        preset("tiny", pattern=("cross",))
    with pytest.raises(ValueError, match="'self' or 'cross'"):
        preset("tiny", pattern=("self", "local"))

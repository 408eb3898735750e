"""A model without weights that says prepared replies: which one depends on the whole context."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from gp_virl.model.config import ModelConfig
from gp_virl.model.mllama import Mllama

SHARPNESS = 10.0  # logit of the prepared token above all others: about one in 45 is another one


class Parrot(Mllama):
    """Hidden states are one-hot in the token to be said next; the lane's cache tells the context.

    So what it says is right only if the cache holds the lane's own conversation.
    """

    language_model = SimpleNamespace(dtype=jnp.float32)

    def __init__(self, scripts: jax.Array, vocabulary: int):
        self.config = ModelConfig(
            vocab_size=vocabulary,
            hidden_size=vocabulary,
            groups=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=2,
            intermediate_size=2,
            value_widths=(2,),
        )
        self.scripts = scripts

    def logits(self, hidden):
        return SHARPNESS * hidden

    def value(self, hidden):
        return hidden @ jnp.sin(jnp.arange(hidden.shape[-1]))

    def extend(self, tokens, count, cache, images=None):
        nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :, : tokens.shape[1]]), cache.k)
        cache = cache.append(tokens, nothing, nothing, count)
        said = self._hidden(cache, jnp.int32(0))
        return jnp.broadcast_to(said[:, None], (*tokens.shape, said.shape[-1])), cache

    def step(self, token, column, cache, reply, images=None):
        return self._hidden(cache, column + 1), reply

    def _hidden(self, cache, column):
        """One-hot of column `column` of the script that the lane's context chooses."""
        held = jnp.arange(cache.size) < cache.length[:, None]
        weights = 1 + jnp.arange(cache.size) % 7
        script = jnp.where(held, cache.tokens * weights, 0).sum(1) % self.scripts.shape[0]
        return jax.nn.one_hot(self.scripts[script, column], self.config.vocab_size)

"""One turn of every lane: prefill what is new in its context, then decode a reply."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from gp_virl.model.cache import CrossCache, LaneCache, ReplyCache, empty_reply
from gp_virl.model.mllama import Mllama
from gp_virl.rollout.sampling import Sampling, sample
from gp_virl.types import Context


@struct.dataclass
class Reply:
    """What each lane said in one turn; zeros in lanes that were not active."""

    tokens: Int[Array, "B T"]  # 0 after the reply's end
    length: Int[Array, "B"]  # tokens sampled, the stop token included
    logp: Float[Array, "B T"]  # at the sampling temperature; 0 after the reply's end
    value: Float[Array, "B"]  # read at the context's last token
    ended: Bool[Array, "B"]  # True where a stop token was sampled, not where room ran out
    prefilled: Int[Array, "B"]  # context tokens that had to be run


@struct.dataclass
class _Speech:
    """State of the decoding loop."""

    spoken: Int[Array, ""]  # tokens sampled so far, the same number in all lanes
    tokens: Int[Array, "B T"]
    logp: Float[Array, "B T"]
    length: Int[Array, "B"]
    open: Bool[Array, "B"]  # True where the reply goes on
    cache: ReplyCache


def common_prefix(
    cache: LaneCache, context: Context, new_image: Bool[Array, "B"] | None = None
) -> Int[Array, "B"]:
    """Leading tokens of the wanted context that each lane already holds.

    None where `new_image`: what a lane holds was read with another image in sight.
    """
    place = jnp.arange(cache.size)
    differs = cache.tokens != context.tokens
    differs |= place >= jnp.minimum(cache.length, context.length)[:, None]
    if new_image is not None:
        differs |= new_image[:, None]
    return jnp.where(differs.any(-1), jnp.argmax(differs, axis=-1), cache.size).astype(jnp.int32)


def kept_prefix(
    cache: LaneCache, context: Context, new_image: Bool[Array, "B"] | None = None
) -> Int[Array, "B"]:
    """Leading tokens that need not be run; the last one always is, for its hidden state."""
    held = common_prefix(cache, context, new_image)
    return jnp.clip(held, 0, jnp.maximum(context.length - 1, 0))


def prefill(
    model: Mllama,
    cache: LaneCache,
    context: Context,
    chunk: int,
    active: Bool[Array, "B"],
    images: CrossCache | None = None,
    new_image: Bool[Array, "B"] | None = None,
) -> tuple[Float[Array, "B D"], LaneCache]:
    """Hidden state at the context's last token of every active lane, and the caches that hold it.

    Lanes advance together, `chunk` tokens at a time, until the one with most to read is done.
    """
    start = kept_prefix(cache, context, new_image)
    cache = cache.replace(length=jnp.where(active, start, cache.length))
    lanes = jnp.arange(context.tokens.shape[0])

    def missing(cache):
        return jnp.where(active, context.length - cache.length, 0)

    def read(state):
        last, cache = state
        count = jnp.minimum(missing(cache), chunk)
        places = cache.length[:, None] + jnp.arange(chunk)
        tokens = jnp.take_along_axis(context.tokens, places, axis=1, mode="clip")
        hidden, cache = model.extend(tokens, count, cache, images)
        final = hidden[lanes, jnp.maximum(count - 1, 0)]
        return jnp.where((count > 0)[:, None], final, last), cache

    width = model.config.hidden_size
    last = jnp.zeros((len(lanes), width), model.language_model.dtype)
    return jax.lax.while_loop(lambda s: (missing(s[1]) > 0).any(), read, (last, cache))


def decode(
    model: Mllama,
    cache: LaneCache,
    last: Float[Array, "B D"],
    keys: Key[Array, "B"],
    sampling: Sampling,
    stops: Int[Array, "n"],
    size: int,
    active: Bool[Array, "B"],
    forbidden: Bool[Array, "V"] | None,
    images: CrossCache | None = None,
) -> _Speech:
    """Replies of at most `size` tokens after the hidden states `last`; ends when all have ended."""
    lanes = active.shape[0]

    def speak(speech: _Speech, hidden: Float[Array, "B D"]) -> _Speech:
        column = speech.spoken
        places = cache.length + column
        token, logp = sample(model.logits(hidden), keys, places, sampling, forbidden)
        token = jnp.where(speech.open, token, 0)
        stopped = (token[:, None] == stops).any(-1)
        return speech.replace(
            spoken=column + 1,
            tokens=speech.tokens.at[:, column].set(token),
            logp=speech.logp.at[:, column].set(jnp.where(speech.open, logp, 0.0)),
            length=speech.length + speech.open,
            open=speech.open & ~stopped,
        )

    def go_on(speech: _Speech) -> _Speech:
        column = speech.spoken - 1
        said = speech.tokens[:, column]
        hidden, reply = model.step(said, column, cache, speech.cache, images)
        return speak(speech.replace(cache=reply), hidden)

    silent = _Speech(
        spoken=jnp.int32(0),
        tokens=jnp.zeros((lanes, size), jnp.int32),
        logp=jnp.zeros((lanes, size), jnp.float32),
        length=jnp.zeros(lanes, jnp.int32),
        open=active,
        cache=empty_reply(model.config, lanes, size),
    )
    return jax.lax.while_loop(
        lambda s: (s.spoken < size) & s.open.any(), go_on, speak(silent, last)
    )


def turn(
    model: Mllama,
    cache: LaneCache,
    context: Context,
    keys: Key[Array, "B"],
    sampling: Sampling,
    stops: Int[Array, "n"],
    size: int,
    chunk: int,
    active: Bool[Array, "B"],
    forbidden: Bool[Array, "V"] | None = None,
    images: CrossCache | None = None,
    new_image: Bool[Array, "B"] | None = None,
) -> tuple[Reply, LaneCache]:
    """Every active lane's reply of at most `size` tokens to its context, and the caches after it.

    A lane keeps the keys and values of the longest common prefix of what it holds and its
    context, and runs the rest. Afterwards it holds context and reply except the reply's last
    token, whose keys and values were never needed. What doesn't fit the lane's room is said, but
    not held. `images` is what the lanes look at, and `new_image` is True where it changed since
    the lane's last turn. Raises ValueError when context and cache differ in room.
    """
    if context.tokens.shape[1] != cache.size:
        raise ValueError(
            f"context has {context.tokens.shape[1]} columns, the cache room for {cache.size} "
            "tokens: make both the same"
        )
    prefilled = context.length - kept_prefix(cache, context, new_image)
    last, cache = prefill(model, cache, context, chunk, active, images, new_image)
    speech = decode(model, cache, last, keys, sampling, stops, size, active, forbidden, images)
    reply = Reply(
        tokens=speech.tokens,
        length=speech.length,
        logp=speech.logp,
        value=jnp.where(active, model.value(last), 0.0),
        ended=active & ~speech.open,
        prefilled=jnp.where(active, prefilled, 0),
    )
    held = jnp.maximum(speech.length - 1, 0)
    return reply, cache.append(speech.tokens, speech.cache.k, speech.cache.v, held)

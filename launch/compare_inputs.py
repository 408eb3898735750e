"""What both sides of launch/compare_torch.py are given: a random checkpoint, random batches."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gp_virl.io import hf
from gp_virl.io.hf_names import named
from gp_virl.model import mllama
from gp_virl.model.config import ModelConfig, preset

KINDS = ("text", "image", "mixed")  # no row with an image, every row, every other row


@struct.dataclass
class Pictures:
    """One image per row as tiles; rows without one hold zeros, as HF's processor pads them."""

    pixels: Float[Array, "B M C h w"]
    aspect_ratio_ids: Int[Array, "B"]  # 0 where there is none
    real: Bool[Array, "B M"]
    since: Int[Array, "B"]  # position of the image token, from which on tiles are seen; -1 none


@struct.dataclass
class Batch:
    """B rows of random tokens of which the first `length` count."""

    tokens: Int[Array, "B S"]
    length: Int[Array, "B"]
    replied: Bool[Array, "B S"]  # True for tokens to be predicted
    pictures: Pictures | None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is compared and timed; lengths in tokens."""

    rows: int = 16  # of batches, and conversations played side by side
    length: int = 256  # of a row of supervised fine-tuning
    prompt: int = 128
    reply: int = 64
    turns: int = 5
    turn_prompt: int = 179  # of a conversation's first turn
    turn_reply: int = 51
    feedback: int = 33
    parity_rows: int = 4
    steps: int = 5
    repeats: int = 5

    @property
    def conversation(self) -> int:
        """Tokens of a whole conversation."""
        return self.turn_prompt + self.turns * (self.turn_reply + self.feedback) - self.feedback


def write_random(directory: Path, seed: int = 0) -> None:
    """Write a tiny model with images in Hugging Face's format, all of its weights random.

    Gates, norms and biases are away from the zeros and ones that training starts with and that
    would hide mistakes.
    """
    config = preset("tiny", images=True)
    shapes, draw = mllama.abstract(config)[1], np.random.default_rng(seed)

    def drawn(path: str, leaf: jax.ShapeDtypeStruct) -> Float[Array, "..."]:
        name = path.split("/")[-1]
        values = draw.normal(size=leaf.shape)
        if name == "kernel":
            values /= leaf.shape[-2] ** 0.5
        elif name in ("weight", "bias") or "gate" in name:
            values = 0.3 * values + (name == "weight")
        else:
            values /= leaf.shape[-1] ** 0.5
        return jnp.asarray(values, leaf.dtype)

    leaves = [drawn(path, leaf) for path, leaf in named(shapes).items()]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    origin = hf.Origin(
        config={"image_token_index": config.vocab_size, "text_config": ids}, generation=ids
    )
    hf.export(directory, params, config, origin, "float32")


def random_batch(
    config: ModelConfig, kind: str, rows: int, size: int, seed: int, pad: int | None, ragged: bool
) -> Batch:
    """A batch of KINDS; `ragged` rows end anywhere in their second half, the first one at `size`.

    The id `pad` is never drawn: PyTorch gives its embedding no gradient.
    """
    draw = np.random.default_rng(seed)
    ids = np.setdiff1d(np.arange(config.vocab_size), [] if pad is None else [pad])
    tokens = draw.choice(ids, (rows, size))
    length = np.full(rows, size)
    if ragged:
        length[1:] = draw.integers(size // 2, size + 1, rows - 1)
    pictures = None
    if kind != "text":
        with_image = np.ones(rows, bool) if kind == "image" else np.arange(rows) % 2 == 0
        pictures = _pictures(config, with_image, draw)
        at = np.asarray(pictures.since)[with_image]
        tokens[np.flatnonzero(with_image), at] = config.vocab_size
    place = np.arange(size)
    replied = (place >= size // 4) & (place < length[:, None]) & (tokens < config.vocab_size)
    return Batch(
        tokens=jnp.asarray(tokens, jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        replied=jnp.asarray(replied),
        pictures=pictures,
    )


def _pictures(config: ModelConfig, with_image: np.ndarray, draw: np.random.Generator) -> Pictures:
    vision, rows = config.vision, len(with_image)
    ratios = ((1, 1), *vision.supported_aspect_ratios)
    ids = np.where(with_image, draw.integers(1, len(ratios), rows), 0)
    count = np.array([np.prod(ratios[i]) for i in ids])
    real = np.arange(vision.max_num_tiles) < count[:, None]
    shape = (rows, vision.max_num_tiles, vision.num_channels, vision.image_size, vision.image_size)
    pixels = draw.standard_normal(shape, np.float32)
    pixels *= (real & with_image[:, None])[:, :, None, None, None]
    since = np.where(with_image, draw.integers(1, 4, rows), -1)
    return Pictures(
        pixels=jnp.asarray(pixels),
        aspect_ratio_ids=jnp.asarray(ids, jnp.int32),
        real=jnp.asarray(real),
        since=jnp.asarray(since, jnp.int32),
    )


def tiles_seen(pictures: Pictures, size: int) -> Bool[Array, "B S M"]:
    """True where a token of a row of `size` tokens may look at a tile."""
    since = pictures.since[:, None]
    after = (jnp.arange(size) >= since) & (since >= 0)
    return after[:, :, None] & pictures.real[:, None]

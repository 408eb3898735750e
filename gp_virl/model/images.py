"""Images as the vision tower takes them, equal to HF's MllamaImageProcessor.

An image keeps its proportions: it is resized to fit the best canvas of at most `max_tiles` square
tiles, padded with black at the right and below, normalised, and cut into tiles row by row.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

PRECISION = 22  # bits after the point of Pillow's resize weights


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How images become tiles; the defaults are those of the released Llama-3.2-Vision."""

    size: int = 560  # pixels along each side of a tile
    max_tiles: int = 4
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def arrangements(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every canvas; the aspect ratio id is the place in it, from 1."""
        sides = range(1, self.max_tiles + 1)
        return tuple((h, w) for h in sides for w in sides if h * w <= self.max_tiles)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tiles for an image: the one that enlarges it least.

        If each would shrink it, the one that shrinks it least; on ties the smaller area.
        """
        tiles = np.array(self.arrangements)
        scales = (tiles * self.size / np.array([height, width])).min(axis=1)
        enlarging = scales[scales >= 1]
        scale = enlarging.min() if len(enlarging) else scales.max()
        best = tiles[scales == scale]
        rows, columns = best[best.prod(axis=1).argmin()]
        return int(rows), int(columns)

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that an image has on its canvas."""
        rows, columns = self.canvas(height, width)
        tall = min(max(height, self.size), rows * self.size)
        wide = min(max(width, self.size), columns * self.size)
        if wide / width < tall / height:
            return min(math.floor(height * (wide / width)) or 1, tall), wide
        return tall, min(math.floor(width * (tall / height)) or 1, wide)


@struct.dataclass
class Tiles:
    """Images in the form of HF's processor, one image a row."""

    pixels: Float[Array, "*b M C h w"]  # normalised; 0 in tiles that are padding
    aspect_ratio_ids: Int[Array, "*b"]
    real: Bool[Array, "*b M"]  # True for tiles of the image, False for padding tiles


@functools.cache
def _weights(size: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each new pixel, the old pixels it is made of and their fixed-point weights [new taps].

    Pillow's bilinear filter, a triangle that widens when an image shrinks.
    """
    scale = size / new
    support = max(scale, 1.0)
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(int), 0)
    last = np.minimum((center + support + 0.5).astype(int), size)
    places = first[:, None] + np.arange((last - first).max())
    weights = np.maximum(1 - abs((places - center[:, None] + 0.5) / support), 0.0)
    weights = np.where(places < last[:, None], weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.floor(weights * 2**PRECISION + 0.5).astype(np.int32)
    return np.minimum(places, size - 1), fixed


def _resized_along(image: Int[Array, "*b"], axis: int, new: int) -> Int[Array, "*c"]:
    if image.shape[axis] == new:
        return image
    places, weights = _weights(image.shape[axis], new)
    shape = [1] * image.ndim
    shape[axis] = new
    total = jnp.int32(1 << (PRECISION - 1))
    for tap in range(places.shape[1]):
        part = jnp.take(image, places[:, tap], axis=axis)
        total += part * weights[:, tap].reshape(shape)
    return jnp.clip(total >> PRECISION, 0, 255)


def resized(image: UInt8[Array, "*b H W C"], height: int, width: int) -> UInt8[Array, "*b h w C"]:
    """The image at another size, bit by bit as the antialiased bilinear resize of Pillow 13.

    Pillow rounds to whole grey values between its two passes, so no product of float matrices
    gives the same, and their order matters: earlier versions never begin with the columns, and
    differ by one grey value in a tenth of the pixels of an image that loses mainly height.
    """
    lost = image.shape[-3] - height, image.shape[-2] - width
    passes = [(image.ndim - 2, width), (image.ndim - 3, height)]
    if lost[0] > 0 and lost[0] > 2 * lost[1]:
        passes.reverse()
    whole = image.astype(jnp.int32)
    for axis, new in passes:
        whole = _resized_along(whole, axis, new)
    return whole.astype(jnp.uint8)


def tiled(image: UInt8[Array, "*b H W C"], tiling: Tiling) -> Tiles:
    """Images of one size as tiles; jittable, and the same for every image of a batch.

    Equal to HF's MllamaImageProcessor, exactly up to the rounding of the normalisation.
    """
    *batch, height, width, channels = image.shape
    rows, columns = tiling.canvas(height, width)
    tall, wide = tiling.fitted(height, width)
    below, right = rows * tiling.size - tall, columns * tiling.size - wide
    image = resized(image, tall, wide)
    image = jnp.pad(image, [(0, 0)] * len(batch) + [(0, below), (0, right), (0, 0)])
    mean, std = (jnp.array(x, jnp.float32) for x in (tiling.mean, tiling.std))
    pixels = (image.astype(jnp.float32) / 255 - mean) / std
    pixels = pixels.reshape(-1, rows, tiling.size, columns, tiling.size, channels)
    pixels = pixels.transpose(0, 1, 3, 5, 2, 4)
    count = rows * columns
    pixels = pixels.reshape(*batch, count, channels, tiling.size, tiling.size)
    padding = [(0, tiling.max_tiles - count), (0, 0), (0, 0), (0, 0)]
    number = tiling.arrangements.index((rows, columns)) + 1
    return Tiles(
        pixels=jnp.pad(pixels, [(0, 0)] * len(batch) + padding),
        aspect_ratio_ids=jnp.full(batch, number, jnp.int32),
        real=jnp.broadcast_to(jnp.arange(tiling.max_tiles) < count, (*batch, tiling.max_tiles)),
    )


def tiling_of(processor: Any) -> Tiling:
    """The Tiling of a HF MllamaImageProcessor, or of the MllamaProcessor that holds one.

    Raises ValueError for settings that `tiled` has no counterpart for.
    """
    processor = getattr(processor, "image_processor", processor)
    wanted = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True}
    wanted |= {"resample": 2, "rescale_factor": 1 / 255}
    for name, value in wanted.items():
        given = getattr(processor, name)
        if given != value:
            raise ValueError(f"image processor has {name}={given}: allowed is {value}")
    return Tiling(
        size=processor.size["height"],
        max_tiles=processor.max_image_tiles,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


def prepared(processor: Any, images: Sequence[Any]) -> Tiles:
    """Images of any sizes (Pillow or arrays) through a HF image processor or processor."""
    processor = getattr(processor, "image_processor", processor)
    out = processor([[image] for image in images], return_tensors="np")
    return Tiles(
        pixels=jnp.asarray(out["pixel_values"][:, 0]),
        aspect_ratio_ids=jnp.asarray(out["aspect_ratio_ids"][:, 0], jnp.int32),
        real=jnp.asarray(out["aspect_ratio_mask"][:, 0] > 0),
    )

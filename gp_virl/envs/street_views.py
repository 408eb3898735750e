"""Four views of a panorama in one picture, computed on the device from a bank of panoramas.

A view at heading h is a pinhole picture of 90 degrees, centred at column ((h + rotation) mod 360)
/ 360 of the panorama's width, which wraps around. Four of them fill a 2 x 2 grid with a line
between: views of 640 pixels and a line of 5 at the released size, 1285; the same share at any
other, at least a pixel. A grid is sampled at its own size, so its panoramas should have about
`panorama_width(size)` columns; files are reduced to any width while they are read.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num, UInt8
from PIL import Image

from gp_virl.envs.foreign import shown

RELEASED_SIZE, RELEASED_LINE = 1285, 5
FIELD_OF_VIEW = math.radians(90)
# Degrees from the agent's heading, [[first, second], [third, fourth]]. The published code lays out
# the second, although its prompt says front, right, back, left.
LAYOUTS = {"front_right_back_left": (0, 90, -90, 180), "diagonal": (-135, -45, 45, 135)}
SMALLEST = 8
FORMATS = ("JPEG", "PNG")  # others aren't tried: of an EPS, Pillow would run Ghostscript
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # Pillow's errors
LARGEST_TURN = 1e6  # degrees, of a panorama's metadata
Seen = TypeVar("Seen")


class StreetViewError(ValueError):
    """Street views that can't be read; the message lists every file and field."""


@struct.dataclass
class StreetViews:
    """A bank of P panoramas."""

    panoramas: UInt8[Array, "P h w 3"]
    rotation: Float[Array, "P"]  # degrees, of the panoramas' metadata
    size: int = struct.field(pytree_node=False)  # of the whole grid, in pixels
    layout: str = struct.field(pytree_node=False)  # one of LAYOUTS

    @classmethod
    def build(
        cls,
        panoramas: UInt8[np.ndarray, "P h w 3"],
        rotation: Num[np.ndarray, "P"],
        size: int,
        layout: str = "front_right_back_left",
    ) -> "StreetViews":
        """The bank on the device.

        Raises ValueError for an unknown layout, a tiny size, or panoramas that are not 2:1.
        """
        check_grid(size, layout)
        if panoramas.shape[2] != 2 * panoramas.shape[1]:
            raise ValueError(
                f"panoramas: given {panoramas.shape[2]} x {panoramas.shape[1]} pixels, allowed: "
                "twice as wide as high"
            )
        return cls(jnp.asarray(panoramas), jnp.asarray(rotation, jnp.float32), size, layout)

    def picture(
        self, pano: Int[Array, ""], heading: Num[Array, ""] | float
    ) -> UInt8[Array, "size size 3"]:
        """The four views of panorama `pano` for who faces `heading` degrees; the line is black."""
        panorama, rotation = self.panoramas[pano], self.rotation[pano]
        return views_of(panorama, rotation, heading, self.size, self.layout)


def check_grid(size: int, layout: str) -> None:
    """ValueError for an unknown layout, or pictures too small for four views."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: given {layout!r}, allowed: {', '.join(LAYOUTS)}")
    if size < SMALLEST:
        raise ValueError(f"size: given {size}, allowed: at least {SMALLEST} pixels")


def views_of(
    panorama: UInt8[Array, "h w 3"],
    rotation: Float[Array, ""],
    heading: Num[Array, ""] | float,
    size: int,
    layout: str,
) -> UInt8[Array, "size size 3"]:
    """The four views of one panorama for who faces `heading` degrees; the line is black."""
    rows, turns, seen = grid(size, layout)
    height, width = panorama.shape[:2]
    row = jnp.asarray(np.clip(rows * height - 0.5, 0, height - 1))
    centre = jnp.mod(heading + rotation, 360) / 360
    column = jnp.mod(centre + jnp.asarray(turns), 1) * width - 0.5
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom = jnp.minimum(top + 1, height - 1)
    left, after = jnp.mod(left, width), jnp.mod(left + 1, width)

    def blend(row):
        return panorama[row, left] * (1 - right) + panorama[row, after] * right

    colour = blend(top) * (1 - down) + blend(bottom) * down
    return jnp.where(jnp.asarray(seen)[..., None], jnp.round(colour), 0).astype(jnp.uint8)


def panorama_width(size: int) -> int:
    """Columns at which a pixel in the middle of a view is as wide as one of the panorama."""
    return 2 * round(math.pi * (size - line_width(size)) / 4)


def line_width(size: int) -> int:
    """Pixels between the views of a grid; odd sizes have odd lines, so that all views are equal."""
    line = max(1, round(size * RELEASED_LINE / RELEASED_SIZE))
    return line + (size - line) % 2


def grid(
    size: int, layout: str
) -> tuple[
    Float[np.ndarray, "size size"], Float[np.ndarray, "size size"], Bool[np.ndarray, "size size"]
]:
    """(row, turn, seen) of a grid's pixels, the same at every heading.

    `row` is a share of the panorama's height, `turn` the share of a whole turn from the heading
    to the pixel, and `seen` is False on the line.
    """
    line = line_width(size)
    side = (size - line) // 2
    focal = 0.5 * side / math.tan(FIELD_OF_VIEW / 2)
    place = np.arange(side) + 0.5 - side / 2
    right, down = np.meshgrid(place, place)
    row = 0.5 + np.arctan2(down, np.hypot(right, focal)) / math.pi
    turn = np.arctan2(right, focal) / (2 * math.pi)
    rows, turns, seen = (np.zeros((size, size), np.float32) for _ in range(3))
    for cell, degrees in enumerate(LAYOUTS[layout]):
        top, left = ((side + line) * (cell // 2), (side + line) * (cell % 2))
        there = np.s_[top : top + side, left : left + side]
        rows[there], turns[there], seen[there] = row, turn + degrees / 360, 1
    return rows, turns, seen != 0


def read_panoramas(
    folder: Path | str, ids: Sequence[str], width: int
) -> tuple[UInt8[np.ndarray, "P h w 3"], Float[np.ndarray, "P"]]:
    """(panoramas, rotations) of <id>.jpg and <id>.metadata.json, reduced to `width` x width/2.

    Raises StreetViewError with every file that is missing, no picture, not 2:1, or whose metadata
    have no number as `rotation`. Rotations are degrees in 0..360.
    """
    return read_files([Path(folder) / f"{name}.jpg" for name in ids], width)


def read_files(
    files: Sequence[Path], width: int
) -> tuple[UInt8[np.ndarray, "P h w 3"], Float[np.ndarray, "P"]]:
    """The same of pictures that need not lie in one folder, but beside their metadata."""
    pictures = np.zeros((len(files), width // 2, width, 3), np.uint8)

    def read(index: int) -> None:
        pictures[index] = read_panorama(files[index], width)

    return pictures, _rotations(files, read)


def read_rotations(files: Sequence[Path]) -> Float[np.ndarray, "P"]:
    """The rotations of panoramas <id>.jpg, by the <id>.metadata.json beside each.

    Of the pictures only headers are read. Raises as `read_panoramas`, but a picture that breaks
    off behind its header is found by `read_panorama` alone.
    """
    return _rotations(files, lambda index: _looked_at(files[index], lambda picture: None))


def read_panorama(path: Path, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A panorama's picture, reduced to `width` x width/2; StreetViewError as `read_panoramas`."""
    size = (width, width // 2)

    def reduced(picture: Image.Image) -> np.ndarray:
        picture.draft("RGB", size)
        return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX))

    return _looked_at(path, reduced)


def _rotations(files: Sequence[Path], look: Callable[[int], None]) -> Float[np.ndarray, "P"]:
    """The rotations, once `look` has seen each picture; StreetViewError with all that is wrong."""
    rotation, problems = np.zeros(len(files), np.float32), []
    for index, path in enumerate(files):
        try:
            look(index)
        except (OSError, ValueError) as wrong:
            problems.append(str(wrong))
        try:
            rotation[index] = _read_rotation(path.with_name(f"{path.stem}.metadata.json"))
        except (OSError, ValueError) as wrong:
            problems.append(str(wrong))
    if problems:
        raise StreetViewError("street views can't be read:\n  " + "\n  ".join(problems))
    return rotation


def _looked_at(path: Path, look: Callable[[Image.Image], Seen]) -> Seen:
    """What `look` makes of a picture; StreetViewError if that is none, or not twice as wide."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            wide, high = picture.size
            if wide == 2 * high:
                return look(picture)
    except FileNotFoundError as wrong:
        raise StreetViewError(f"{path}: no such file; download the street views") from wrong
    except UNREADABLE as wrong:
        raise StreetViewError(f"{path}: not a readable picture ({wrong})") from wrong
    raise StreetViewError(f"{path}: given {wide} x {high} pixels, allowed: twice as wide as high")


def _read_rotation(path: Path) -> float:
    if not path.exists():
        raise ValueError(f"{path}: no such file; download the street views")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as wrong:
        raise ValueError(f"{path}: not JSON ({wrong})") from wrong
    turn = data.get("rotation") if isinstance(data, dict) else None
    if type(turn) not in (int, float) or not abs(turn) <= LARGEST_TURN:  # NaN is not
        raise ValueError(
            f"{path}: field rotation: given {shown(turn)}, allowed: a number of degrees of at most "
            f"{LARGEST_TURN:g} either way"
        )
    return float(turn % 360)

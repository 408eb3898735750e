"""Pictures of hands: cards drawn once with Pillow, composed on the device.

A picture is a square green table with one card in each quadrant, in reading order: an even number
of tiles along each side then cuts no card. The whole deck is drawn once for each picture size;
large cards look like playing cards, small ones bear one big rank above one suit. Composing a hand
copies four cards out of the deck, moved and scaled if the table allows it.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key, UInt8
from PIL import Image, ImageDraw, ImageFont

from gp_virl.envs.cards import JACK, RANKS, SUIT_CHOICES, SUITS, SYMBOLS

SMALLEST = 48  # pixels along a picture's side; below, a 10 is no longer readable
FULL_FACE = 150  # card height in pixels from which there is room for pips and court figures
MARGINS = (24, 7)  # a quadrant's side over the least room above a card, and beside it
TALL, WIDE = (1 - 2 / margin for margin in MARGINS)  # the most that a card takes of its quadrant
LARGEST_SCALE = 1 / TALL  # at which it still fits
TABLE, PAPER, EDGE = (24, 104, 58), (255, 255, 255), (120, 124, 120)
BLACK, RED = (16, 16, 22), (208, 16, 36)
GOLD, SKIN, CREAM = (236, 184, 52), (250, 222, 192), (255, 248, 226)
FINE = 256  # steps of a pixel in which cards are moved
GRADES = 1024  # steps of 1 in which they are scaled

INKS = tuple(RED if suit in SUIT_CHOICES["red"] else BLACK for suit in range(len(SUITS)))

Colour = tuple[int, int, int]
Polygon = np.ndarray  # float [n, 2] of (x, y), y down, in the unit square


@struct.dataclass
class Scene:
    """What a picture shows; cards 0..3 lie upper left, upper right, lower left, lower right."""

    ranks: Int[Array, "*b 4"]  # 0..12 for A, 2..10, J, Q, K
    suits: Int[Array, "*b 4"]  # 0..3 for spades, hearts, clubs, diamonds
    shift: Float[Array, "*b 4 2"]  # down and right from the quadrant's centre, in quadrants
    scale: Float[Array, "*b 4"]  # 1 is the usual size


def still(ranks: Int[Array, "*b 4"], suits: Int[Array, "*b 4"]) -> Scene:
    """Every card in the middle of its quadrant, at its usual size."""
    return Scene(ranks, suits, jnp.zeros((*ranks.shape, 2)), jnp.ones(ranks.shape))


def jittered(
    key: Key[Array, ""],
    ranks: Int[Array, "*b 4"],
    suits: Int[Array, "*b 4"],
    shift: float | Float[Array, ""],
    scale: float | Float[Array, ""],
) -> Scene:
    """Each card's scale drawn evenly from 1 ± `scale`, its shift from ± `shift` quadrants.

    Both ranges are cut to what keeps the whole card in its quadrant; amounts of 0 give `still`.
    """
    size_key, place_key = jax.random.split(key)
    largest = jnp.minimum(1 + scale, LARGEST_SCALE)
    scales = jax.random.uniform(size_key, ranks.shape, minval=1 - scale, maxval=largest)
    room = (1 - jnp.array([TALL, WIDE]) * scales[..., None]) / 2
    reach = jnp.clip(room, 0, shift)
    share = jax.random.uniform(place_key, (*ranks.shape, 2), minval=-1)
    return Scene(ranks, suits, share * reach, scales)


@struct.dataclass
class CardTable:
    """The deck at one picture size, and how hands are laid out on the table."""

    atlas: UInt8[Array, "52 h w 3"]  # card rank * 4 + suit, with one pixel of table all around
    size: int = struct.field(pytree_node=False)  # pixels along each side of the picture
    moving: bool = struct.field(pytree_node=False)  # False: every scene is drawn as if still

    @classmethod
    def build(cls, size: int, moving: bool = True) -> "CardTable":
        """The table for pictures of `size` x `size` pixels.

        With `moving` a scene's shift and scale count; without, composing only copies cards, which
        is about a hundred times faster. Raises ValueError for a size that is too small to read.
        """
        if size < SMALLEST:
            raise ValueError(
                f"picture size: given {size} pixels, allowed: {SMALLEST} and more; choose a "
                "larger picture, or the task that lists the cards as text"
            )
        return cls(jnp.asarray(_deck(*card_size(size // 2))), size, moving)

    def compose(self, scene: Scene) -> UInt8[Array, "H W 3"]:
        """The picture of one hand. What a scene moves beyond its quadrant is cut off."""
        half = self.size // 2
        corners = [(y, x) for y in (0, self.size - half) for x in (0, self.size - half)]
        picture = jnp.broadcast_to(jnp.array(TABLE, jnp.uint8), (self.size, self.size, 3))
        for i, (y, x) in enumerate(corners):
            place = scene.ranks[i] * len(SUITS) + scene.suits[i]
            card = jnp.take(self.atlas, place, axis=0, mode="clip")
            if self.moving:
                card = moved(card, scene.shift[i], scene.scale[i], half)
            else:
                y += (half - card.shape[0]) // 2
                x += (half - card.shape[1]) // 2
            picture = jax.lax.dynamic_update_slice(picture, card, (y, x, 0))
        return picture


def moved(
    card: UInt8[Array, "h w 3"], shift: Float[Array, "2"], scale: Float[Array, ""], side: int
) -> UInt8[Array, "side side 3"]:
    """The card in its quadrant, bilinear; beyond the card its outermost pixels, the table, go on.

    Once shift and scale are rounded, to 1/256 pixel and 1/1024, all is integers: no fused or
    reordered operation changes a byte, and a hand looks the same in every program.
    """
    grade = jnp.round(scale * GRADES).astype(jnp.int32)
    for axis in (0, 1):
        length = card.shape[axis]
        steps = (2 * jnp.arange(side) - (side - 1)) * (FINE // 2)
        steps -= jnp.round(shift[axis] * side * FINE).astype(jnp.int32)
        place = (steps * GRADES + grade // 2) // grade + (length - 1) * FINE // 2
        first, part = jnp.divmod(jnp.clip(place, 0, (length - 1) * FINE), FINE)
        part = jnp.expand_dims(part, [i for i in range(3) if i != axis])
        near = jnp.take(card, first, axis=axis, mode="clip").astype(jnp.int32)
        far = jnp.take(card, first + 1, axis=axis, mode="clip").astype(jnp.int32)
        card = ((near * (FINE - part) + far * part + FINE // 2) // FINE).astype(jnp.uint8)
    return card


def card_size(side: int) -> tuple[int, int]:
    """Height and width in pixels of a card whose quadrant has that side, centred exactly."""
    return tuple(side - 2 * math.ceil(side / margin) for margin in MARGINS)


@functools.lru_cache(1)
def _deck(height: int, width: int) -> UInt8[np.ndarray, "52 h w 3"]:
    """All cards, each with one pixel of table around it."""
    deck = np.empty((RANKS * len(SUITS), height + 2, width + 2, 3), np.uint8)
    deck[:] = TABLE
    for card, sprite in enumerate(deck):
        sprite[1:-1, 1:-1] = drawn(*divmod(card, len(SUITS)), height, width)
    deck.flags.writeable = False
    return deck


def drawn(rank: int, suit: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """One card that fills the picture except for its round corners, where the table shows."""
    fine = 4 if height >= FULL_FACE else 8
    face = _Face.blank(height * fine, width * fine)
    if height < FULL_FACE:
        _draw_small(face, rank, suit)
    elif rank < JACK:
        _draw_pips(face, rank, suit)
    else:
        _draw_court(face, rank, suit)
    return np.asarray(face.image.reduce(fine))


@functools.cache
def _letters(symbol: str) -> Image.Image:
    """A rank in bold, cut to its ink: a mask of about 400 pixels' height."""
    font, bold = ImageFont.load_default(540), 16
    masks = []
    for letter in symbol:
        mask = Image.new("L", (700, 900))
        ImageDraw.Draw(mask).text((100, 100), letter, 255, font, stroke_width=bold)
        masks.append(mask.crop(mask.getbbox()))
    gap = 40
    width = sum(mask.width for mask in masks) + gap * (len(masks) - 1)
    whole = Image.new("L", (width, max(mask.height for mask in masks)))
    left = 0
    for mask in masks:
        whole.paste(mask, (left, 0))
        left += mask.width + gap
    return whole


@dataclass(frozen=True)
class _Face:
    """A card being drawn. Places are shares of its width and height, sizes of its height."""

    image: Image.Image

    @classmethod
    def blank(cls, height: int, width: int) -> "_Face":
        image = Image.new("RGB", (width, height), TABLE)
        line = max(height / 150, 4)
        ImageDraw.Draw(image).rounded_rectangle(
            (0, 0, width - 1, height - 1), height * 0.055, PAPER, EDGE, round(line)
        )
        return cls(image)

    def shape(self, polygons: list[Polygon], x: float, y: float, tall: float, ink: Colour) -> None:
        """Polygons of the unit square, centred at (x, y) in a square as tall as `tall`."""
        pen, side = ImageDraw.Draw(self.image), tall * self.image.height
        corner = np.array([x * self.image.width, y * self.image.height]) - side / 2
        for polygon in polygons:
            pen.polygon([tuple(point) for point in polygon * side + corner], ink)

    def rank(
        self, symbol: str, x: float, y: float, tall: float, wide: float, ink: Colour, stretch=1.0
    ) -> None:
        """A rank `tall` high, stretched sideways, but to at most `wide` (of the card's width)."""
        mask = _letters(symbol)
        high = round(tall * self.image.height)
        room = round(min(stretch * mask.width * high / mask.height, wide * self.image.width))
        mask = mask.resize((room, high), Image.Resampling.LANCZOS)
        left, top = x * self.image.width - room / 2, y * self.image.height - high / 2
        self.image.paste(ink, (round(left), round(top)), mask)

    def frame(self, x: float, y: float, ink: Colour) -> None:
        """The outline of a rectangle as far from all sides as its upper left corner says."""
        width, height = self.image.size
        left, top = round(x * width), round(y * height)
        box = (left, top, width - 1 - left, height - 1 - top)
        ImageDraw.Draw(self.image).rectangle(box, None, ink, max(round(height / 200), 2))

    def mirror(self) -> None:
        """The lower half becomes the upper half, turned upside down."""
        width, height = self.image.size
        upper = self.image.crop((0, 0, width, height // 2)).transpose(Image.Transpose.ROTATE_180)
        self.image.paste(upper, (0, height - height // 2))


def _ellipse(x: float, y: float, wide: float, tall: float) -> Polygon:
    """Centre and half axes; 64 corners."""
    angle = np.arange(64) * (2 * math.pi / 64)
    return np.stack([x + wide * np.cos(angle), y + tall * np.sin(angle)], axis=1)


def _suit_shapes() -> tuple[list[Polygon], ...]:
    """Spade, heart, club and diamond, each filling the unit square from top to bottom."""
    t = np.linspace(0, 2 * math.pi, 129)
    x = 0.5 + 0.46 * np.sin(t) ** 3
    y = 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t) - 13 * np.cos(t)
    heart = np.stack([x, (y - y.min()) / np.ptp(y)], axis=1)
    blade = heart * (1, -0.84) + (0, 0.84)
    u = np.linspace(0, 1, 24)
    flare = np.stack([0.035 + 0.2 * u**3, 0.55 + 0.45 * u], axis=1)  # the right side of a stem
    stem = np.concatenate([flare, flare[::-1] * (-1, 1)]) + (0.5, 0)
    club = [_ellipse(x, y, 0.24, 0.24) for x, y in ((0.5, 0.24), (0.25, 0.58), (0.75, 0.58))]
    club += [_ellipse(0.5, 0.48, 0.12, 0.12), stem]
    side = np.abs(np.linspace(-1, 1, 49))  # a diamond's edges bend inwards
    right = np.stack([0.5 + 0.4 * (1 - side) ** 1.12, np.linspace(0, 1, 49)], axis=1)
    diamond = np.concatenate([right, right[::-1] * (-1, 1) + (1, 0)])
    return [blade, stem], [heart], club, [diamond]


SUIT_SHAPES = _suit_shapes()


def _draw_small(face: _Face, rank: int, suit: int) -> None:
    """One big rank above one suit."""
    face.rank(SYMBOLS[rank], 0.5, 0.305, 0.5, 0.84, INKS[suit], stretch=1.2)
    face.shape(SUIT_SHAPES[suit], 0.5, 0.775, 0.34, INKS[suit])


# Pips of A, 2..10: those with a mirror image below, then those without.
_LEFT, _RIGHT = 0.335, 0.665
_SIDES = [(_LEFT, 0.16), (_RIGHT, 0.16)]
_FOUR = [*_SIDES, (_LEFT, 0.387), (_RIGHT, 0.387)]
_MIDDLE = [(_LEFT, 0.5), (_RIGHT, 0.5)]
PIPS = (
    ([], []),
    ([(0.5, 0.16)], []),
    ([(0.5, 0.16)], [(0.5, 0.5)]),
    (_SIDES, []),
    (_SIDES, [(0.5, 0.5)]),
    (_SIDES, _MIDDLE),
    (_SIDES, [*_MIDDLE, (0.5, 0.33)]),
    ([*_SIDES, (0.5, 0.33)], _MIDDLE),
    (_FOUR, [(0.5, 0.5)]),
    ([*_FOUR, (0.5, 0.274)], []),
)


def _draw_index(face: _Face, rank: int, suit: int) -> None:
    """Rank and suit in the upper left corner."""
    face.rank(SYMBOLS[rank], 0.125, 0.105, 0.125, 0.165, INKS[suit])
    face.shape(SUIT_SHAPES[suit], 0.125, 0.235, 0.095, INKS[suit])


def _draw_pips(face: _Face, rank: int, suit: int) -> None:
    """As many suits as the rank says, the lower ones upside down."""
    mirrored, single = PIPS[rank]
    tall = 0.16 if len(mirrored) < 4 else 0.14  # a 9 and a 10 are crowded
    _draw_index(face, rank, suit)
    for x, y in mirrored:
        face.shape(SUIT_SHAPES[suit], x, y, tall, INKS[suit])
    face.mirror()
    for x, y in single:
        face.shape(SUIT_SHAPES[suit], x, y, tall, INKS[suit])
    if rank == 0:
        face.shape(SUIT_SHAPES[suit], 0.5, 0.5, 0.4, INKS[suit])


def _draw_court(face: _Face, rank: int, suit: int) -> None:
    """A bust in a frame, and its mirror image."""
    ink = INKS[suit]
    cloth, hair = ((132, 10, 30), (128, 80, 36)) if ink == RED else ((58, 84, 150), (84, 84, 96))
    colours = dict(ink=ink, cloth=cloth, hair=hair, gold=GOLD, skin=SKIN, cream=CREAM)
    for name, polygon in [*_ROBE, *_HEADS[rank - JACK]]:
        face.shape([polygon], 0.5, 0.285, 0.43, colours[name])
    face.shape(SUIT_SHAPES[suit], 0.285, 0.125, 0.075, ink)
    face.frame(0.224, 0.07, ink)
    _draw_index(face, rank, suit)
    face.mirror()


def _mirrored(*points: tuple[float, float]) -> Polygon:
    """A closed outline from its right half, top to bottom."""
    right = np.array(points)
    return np.concatenate([right, right[::-1] * (-1, 1) + (1, 0)])


# What courts wear, back to front: the name of a colour and a polygon in the upper half's square.
_ROBE = [
    ("cream", _mirrored((1, 0), (1, 1))),
    ("ink", _mirrored((0.62, 0.66), (0.86, 0.74), (1, 0.9), (1, 1))),
    ("gold", _mirrored((0.64, 0.66), (0.72, 0.69), (0.6, 1))),
    ("cloth", _mirrored((0.6, 0.66), (0.66, 0.68), (0.54, 1))),
    *(("gold", _ellipse(x, 0.9, 0.035, 0.035)) for x in (0.2, 0.8)),
]
_FACE = [
    ("skin", _mirrored((0.57, 0.5), (0.57, 0.7), (0.5, 0.76))),
    ("skin", _ellipse(0.5, 0.46, 0.135, 0.185)),
    *(("hair", _ellipse(x, 0.43, 0.018, 0.022)) for x in (0.445, 0.555)),
    *(("hair", _ellipse(x, 0.39, 0.035, 0.01)) for x in (0.445, 0.555)),
    ("hair", _mirrored((0.506, 0.44), (0.52, 0.515))),
]
_MOUTH = ("ink", _ellipse(0.5, 0.565, 0.035, 0.014))
_JACK = [
    ("hair", _mirrored((0.6, 0.27), (0.7, 0.4), (0.71, 0.62), (0.63, 0.65), (0.6, 0.4))),
    *_FACE,
    _MOUTH,
    ("hair", _mirrored((0.6, 0.28), (0.63, 0.36), (0.56, 0.335))),
    ("cloth", np.array([(0.27, 0.27), (0.3, 0.17), (0.5, 0.11), (0.7, 0.15), (0.74, 0.27)])),
    ("gold", _mirrored((0.75, 0.25), (0.75, 0.31))),
    ("gold", np.array([(0.68, 0.25), (0.72, 0.12), (0.82, 0.03), (0.97, 0.05), (0.84, 0.14)])),
]
_QUEEN = [
    ("hair", _mirrored((0.56, 0.24), (0.7, 0.3), (0.75, 0.5), (0.8, 0.74), (0.62, 0.72))),
    *_FACE,
    _MOUTH,
    ("hair", _mirrored((0.5, 0.27), (0.6, 0.28), (0.66, 0.44), (0.59, 0.36), (0.5, 0.315))),
    ("gold", _mirrored((0.56, 0.2), (0.6, 0.17), (0.64, 0.21), (0.69, 0.14), (0.66, 0.3))),
    ("gold", _mirrored((0.5, 0.1), (0.55, 0.19), (0.6, 0.29))),
    *(("ink", _ellipse(x, y, 0.026, 0.026)) for x, y in ((0.5, 0.09), (0.31, 0.13), (0.69, 0.13))),
    *(("gold", _ellipse(x, y, 0.018, 0.018)) for x, y in ((0.44, 0.7), (0.5, 0.725), (0.56, 0.7))),
]
_KING = [
    ("hair", _mirrored((0.6, 0.28), (0.68, 0.36), (0.7, 0.6), (0.6, 0.66))),
    *_FACE,
    ("hair", _mirrored((0.64, 0.44), (0.635, 0.62), (0.57, 0.76), (0.5, 0.82))),
    ("skin", _mirrored((0.605, 0.42), (0.6, 0.53), (0.5, 0.54))),
    ("hair", _mirrored((0.5, 0.525), (0.59, 0.55), (0.62, 0.6), (0.5, 0.565))),
    (
        "gold",
        _mirrored((0.5, 0.06), (0.56, 0.2), (0.64, 0.1), (0.68, 0.2), (0.76, 0.09), (0.7, 0.31)),
    ),
    ("cloth", _mirrored((0.69, 0.25), (0.685, 0.285))),
    *(("ink", _ellipse(x, 0.09, 0.024, 0.024)) for x in (0.24, 0.36, 0.64, 0.76)),
    ("ink", _mirrored((0.515, 0), (0.515, 0.1))),
    ("ink", _mirrored((0.55, 0.033), (0.55, 0.063))),
]
_HEADS = (_JACK, _QUEEN, _KING)

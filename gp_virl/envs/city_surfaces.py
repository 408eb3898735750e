"""A city's surfaces, drawn with Pillow: the ground from above, facades, signs, trees.

Sizes are metres in the city; `scale` is pixels per metre.
"""

import math

import numpy as np
from jaxtyping import Float64
from PIL import Image, ImageDraw, ImageFont

from gp_virl.envs.city_names import Colour, sign_of
from gp_virl.envs.city_plan import FLOOR, ROAD, STREET, Plan
from gp_virl.envs.city_styles import Style

TILE = FLOOR  # width of a facade tile: one bay
FACADE_SCALE = 32
SIGN_WIDTH, SIGN_HEIGHT, SIGN_SCALE = 5.0, 7.4, 48  # the board is square, the rest is its post
TREE_WIDTH, TREE_HEIGHT, TREE_SCALE = 5.0, 7.0, 24
ZEBRA = (6.5, 9.0)  # a crossing's stripes, from the middle of the crossing


def shaded(colour: Colour, share: float) -> Colour:
    """The colour made darker (share < 1) or lighter."""
    return tuple(min(255, round(part * share)) for part in colour)


def ground(plan: Plan, style: Style, scale: float) -> tuple[Image.Image, Float64[np.ndarray, "2"]]:
    """The city from above, north up, and the position of its top left corner."""
    low, high = plan.crossings.min(0) - 3 * STREET, plan.crossings.max(0) + 3 * STREET
    size = tuple(int(part * scale) + 1 for part in high - low)
    corner = np.array([low[0], high[1]])
    picture = Image.new("RGB", size, style.pavement)
    draw = ImageDraw.Draw(picture)
    ends = [(plan.crossings[a], plan.crossings[b]) for a, b in plan.streets]

    def shape(start, ahead, left, right, near, far, colour) -> None:
        across = np.array([ahead[1], -ahead[0]])
        corners = [
            start + ahead * s + across * t
            for s, t in ((near, left), (far, left), (far, right), (near, right))
        ]
        pixels = [tuple(((xy - corner) * (scale, -scale)).tolist()) for xy in corners]
        draw.polygon(pixels, fill=colour)

    for grow, colour in ((0.35, shaded(style.pavement, 0.8)), (0.0, style.asphalt)):
        for start, end in ends:
            length = float(np.hypot(*(end - start)))
            half = ROAD + grow
            shape(start, (end - start) / length, -half, half, 0, length, colour)
        for node in plan.crossings:
            x, y = (node - corner) * (scale, -scale)
            r = (ROAD + grow) * scale
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    for start, end in ends:
        length = float(np.hypot(*(end - start)))
        ahead = (end - start) / length
        for near, far, left, right, colour in _markings(style, length):
            shape(start, ahead, left, right, near, far, colour)
    return picture, corner


def _markings(style: Style, length: float):
    """(near, far, left, right, colour) of what is painted on a street, in metres along it."""
    stop = ZEBRA[1] + 1.5
    if style.middle == "double":
        yield stop, length - stop, -0.35, -0.1, style.paint
        yield stop, length - stop, 0.1, 0.35, style.paint
    elif style.middle == "solid":
        yield stop, length - stop, -0.15, 0.15, style.paint
    elif style.middle == "dashed":
        for near in np.arange(stop, length - stop - 2, 5.0):
            yield near, near + 2.5, -0.15, 0.15, style.paint
    white = (240, 240, 236)
    for near, far in (ZEBRA, (length - ZEBRA[1], length - ZEBRA[0])):
        if style.crossing == "zebra":
            for left in np.arange(-ROAD + 0.3, ROAD - 0.5, 1.1):
                yield near, far, left, left + 0.55, white
        elif style.crossing == "lines":
            yield near, near + 0.35, -ROAD, ROAD, white
            yield far - 0.35, far, -ROAD, ROAD, white


def facades(style: Style) -> list[Image.Image]:
    """Tiles of one bay: an upper floor, to be repeated, above the ground floor."""
    return [
        _facade(style, wall, style.shops[(row + column) % len(style.shops)])
        for row, wall in enumerate(style.walls)
        for column in range(2)
    ]


def _facade(style: Style, wall: Colour, shop: Colour) -> Image.Image:
    side = round(TILE * FACADE_SCALE)
    picture = Image.new("RGB", (side, 2 * side), wall)
    draw = ImageDraw.Draw(picture)
    _masonry(draw, style.masonry, wall, side)

    def box(left, top, right, bottom, colour) -> None:
        draw.rectangle([round(part * FACADE_SCALE) for part in (left, top, right, bottom)], colour)

    WINDOWS[style.windows](box, draw, style)
    dark = (36, 36, 38)
    if style.extra == "escapes":
        box(0.2, 3.15, 3.8, 3.3, dark)
        for post in np.arange(0.3, 3.9, 0.5):
            box(post, 2.5, post + 0.06, 3.2, dark)
        box(0.2, 2.5, 3.8, 2.58, dark)
        ends = [round(part * FACADE_SCALE) for part in (0.6, 3.9, 2.4, 3.2)]
        draw.line(ends, fill=dark, width=4)
    elif style.extra == "balconies":
        box(0.2, 3.2, 3.8, 3.4, style.trim)
        for post in np.arange(0.3, 3.8, 0.35):
            box(post, 2.4, post + 0.08, 3.2, dark)
    elif style.extra == "coolers":
        for left in (0.6, 2.5):
            box(left, 2.9, left + 0.9, 3.5, (216, 216, 212))
            box(left + 0.2, 3.0, left + 0.65, 3.4, (120, 120, 120))
    box(0, 4.0, 4, 4.25, style.trim)
    box(0, 4.25, 4, 8, shop)
    box(0.3, 5.2, 2.5, 7.4, shaded(style.glass, 1.25))
    box(0.45, 5.35, 1.35, 7.25, shaded(style.glass, 0.8))
    box(2.8, 5.2, 3.7, 8, shaded(shop, 0.55))
    box(2.95, 5.35, 3.55, 6.6, shaded(style.glass, 1.1))
    if style.extra == "awnings" or style.masonry == "brick":
        for stripe in range(8):
            colour = shop if stripe % 2 else (240, 236, 224)
            box(0.1 + stripe * 0.32, 4.7, 0.42 + stripe * 0.32, 5.4, shaded(colour, 1.1))
    return picture


def _masonry(draw: ImageDraw.ImageDraw, kind: str, wall: Colour, side: int) -> None:
    """Joints: brick and boards every quarter of a metre, blocks and grid wider."""
    joint = shaded(wall, 0.86 if sum(wall) > 330 else 1.18)
    step = {"brick": 8, "boards": 10, "blocks": 26, "grid": 64}.get(kind)
    if step is None:
        return
    for row, y in enumerate(range(0, 2 * side, step)):
        draw.line([0, y, side, y], fill=joint, width=2 if step > 10 else 1)
        if kind == "boards":
            continue
        for x in range((row % 2) * step if kind != "grid" else 0, side + step, 2 * step):
            draw.line([x, y, x, y + step], fill=joint)


def _sash(box, draw, style: Style) -> None:
    for left in (0.5, 2.4):
        box(left - 0.12, 0.75, left + 1.22, 3.0, style.trim)
        box(left, 0.9, left + 1.1, 2.85, style.glass)
        box(left, 1.8, left + 1.1, 1.92, style.trim)


def _shutters(box, draw, style: Style) -> None:
    leaf = shaded(style.leaves, 0.75)
    for left in (0.65, 2.55):
        box(left - 0.45, 0.8, left + 1.25, 3.1, leaf)
        box(left - 0.05, 0.7, left + 0.85, 3.15, style.trim)
        box(left, 0.85, left + 0.8, 3.1, style.glass)


def _arches(box, draw, style: Style) -> None:
    for left in (0.45, 2.35):
        for grow, colour in ((0.14, style.trim), (0.0, style.glass)):
            box(left - grow, 1.4, left + 1.2 + grow, 3.1 + grow, colour)
            ends = (left - grow, 0.8 - grow, left + 1.2 + grow, 2.0 + grow)
            draw.pieslice([round(end * FACADE_SCALE) for end in ends], 180, 360, colour)


def _strips(box, draw, style: Style) -> None:
    box(0, 0.9, 4, 2.7, style.trim)
    box(0.1, 1.05, 3.9, 2.55, style.glass)
    for post in (1.0, 2.0, 3.0):
        box(post - 0.06, 1.05, post + 0.06, 2.55, style.trim)


def _bay(box, draw, style: Style) -> None:
    box(0.5, 0.5, 3.5, 3.7, style.trim)
    for left, right in ((0.65, 1.25), (1.4, 2.6), (2.75, 3.35)):
        box(left, 0.8, right, 2.8, style.glass)
    box(0.35, 0.35, 3.65, 0.55, shaded(style.trim, 0.85))


def _panes(box, draw, style: Style) -> None:
    inset = 0.1 if style.masonry == "plain" else 0.7
    box(inset, inset, 4 - inset, 4 - inset, style.trim)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        wide = (4 - 2 * inset) / 2
        left, top = inset + column * wide + 0.08, inset + row * wide + 0.08
        colour = shaded(style.glass, 0.85 + 0.15 * (row + column))
        box(left, top, left + wide - 0.16, top + wide - 0.16, colour)


WINDOWS = {
    "sash": _sash,
    "shutters": _shutters,
    "arches": _arches,
    "strips": _strips,
    "bay": _bay,
    "panes": _panes,
}


def sign(name: str, style: Style) -> Image.Image:
    """The sign of a place, RGBA: a board with icon and name on a post."""
    look = sign_of(name)
    wide, tall = round(SIGN_WIDTH * SIGN_SCALE), round(SIGN_HEIGHT * SIGN_SCALE)
    picture = Image.new("RGBA", (wide, tall), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([wide * 0.46, wide - 8, wide * 0.54, tall], shaded(style.frame, 0.7))
    for inset, colour in ((0, style.frame), (10, look.board)):
        ends = [inset, inset, wide - 1 - inset, wide - 1 - inset]
        if style.board == "square":
            draw.rectangle(ends, colour)
        elif style.board == "pennant":
            low, middle = wide - 1 - inset, wide / 2
            draw.polygon(
                [
                    (inset, inset),
                    (low, inset),
                    (low, wide * 0.86 - inset / 2),
                    (middle, low),
                    (inset, wide * 0.86 - inset / 2),
                ],
                colour,
            )
        else:
            corners = (True, True, style.board == "rounded", style.board == "rounded")
            radius = wide * (0.3 if style.board == "arched" else 0.16)
            draw.rounded_rectangle(ends, radius, colour, corners=corners)
    _icon(draw, look.icon, look.ink, wide / 2, wide * 0.34, wide * 0.25)
    first, _, rest = (name.upper() if style.capitals else name).partition(" ")
    for line, middle in ((first, 0.69), (rest, 0.83)):
        _fit(draw, line, (wide / 2, wide * middle), wide * 0.84, wide * 0.15, look.ink)
    return picture


def _fit(draw, text: str, middle: tuple[float, float], width: float, height: float, ink) -> None:
    """Writes a line as large as the box allows."""
    if not text:
        return
    left, _, right, _ = draw.textbbox((0, 0), text, font=ImageFont.load_default(100))
    size = min(height * 1.05, 100 * width / max(1, right - left))
    draw.text(middle, text, fill=ink, font=ImageFont.load_default(size), anchor="mm")


def _icon(draw, icon: str, ink: Colour, x: float, y: float, r: float) -> None:
    """A shape within r of (x, y)."""

    def around(count: int, start: float, *reach: float) -> list[tuple[float, float]]:
        angles = [start + 2 * math.pi * i / count for i in range(count)]
        radii = [r * reach[i % len(reach)] for i in range(count)]
        return [
            (x + s * math.sin(a), y - s * math.cos(a)) for a, s in zip(angles, radii, strict=True)
        ]

    whole = (x - r, y - r, x + r, y + r)
    if icon == "disc":
        draw.ellipse(whole, ink)
    elif icon == "ring":
        draw.ellipse(whole, outline=ink, width=round(r * 0.42))
    elif icon == "bars":
        for top in (-1.0, -0.28, 0.44):
            draw.rectangle((x - r, y + top * r, x + r, y + (top + 0.46) * r), ink)
    elif icon == "columns":
        for left in (-1.0, -0.28, 0.44):
            draw.rectangle((x + left * r, y - r, x + (left + 0.46) * r, y + r), ink)
    elif icon == "plus":
        draw.rectangle((x - r, y - r * 0.34, x + r, y + r * 0.34), ink)
        draw.rectangle((x - r * 0.34, y - r, x + r * 0.34, y + r), ink)
    elif icon == "saltire":
        for sense in (-1, 1):
            draw.line((x - r, y - sense * r, x + r, y + sense * r), ink, round(r * 0.55))
    elif icon == "square":
        draw.rectangle(whole, ink)
    elif icon == "half":
        draw.pieslice((x - r, y - r * 1.5, x + r, y + r * 0.5), 0, 180, ink)
        draw.rectangle((x - r, y + r * 0.65, x + r, y + r * 0.95), ink)
    elif icon == "petals":
        for px, py in around(4, math.pi / 4, 0.72):
            draw.ellipse((px - r * 0.42, py - r * 0.42, px + r * 0.42, py + r * 0.42), ink)
    else:
        shapes = {
            "triangle": (3, 0.0, 1.15),
            "diamond": (4, 0.0, 1.1),
            "star": (10, 0.0, 1.15, 0.46),
        }
        draw.polygon(around(*shapes[icon]), ink)


def tree(style: Style) -> Image.Image:
    """A tree of the city, RGBA."""
    wide, tall = round(TREE_WIDTH * TREE_SCALE), round(TREE_HEIGHT * TREE_SCALE)
    picture = Image.new("RGBA", (wide, tall), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    rng = np.random.default_rng(0)
    trunk, leaf = (92, 70, 50), style.leaves
    draw.rectangle([wide * 0.47, tall * 0.3, wide * 0.53, tall], trunk)
    if style.trees == "cone":
        draw.polygon(
            [(wide * 0.5, 0), (wide * 0.22, tall * 0.86), (wide * 0.78, tall * 0.86)], leaf
        )
        draw.polygon(
            [(wide * 0.5, 0), (wide * 0.5, tall * 0.86), (wide * 0.78, tall * 0.86)],
            shaded(leaf, 0.75),
        )
        return picture
    if style.trees == "palm":
        for angle in np.linspace(-2.6, 2.6, 9):
            tip = (wide * (0.5 + 0.48 * math.sin(angle)), tall * (0.24 - 0.2 * math.cos(angle)))
            knee = (wide * (0.5 + 0.3 * math.sin(angle)), tall * (0.14 - 0.12 * math.cos(angle)))
            draw.line([(wide * 0.5, tall * 0.26), knee, tip], shaded(leaf, 0.8 + 0.05 * angle), 9)
        return picture
    reach = 0.22 if style.trees == "round" else 0.3
    for _ in range(40):
        angle, away = rng.uniform(0, 2 * math.pi), rng.uniform(0, reach)
        x, y = wide * (0.5 + away * math.cos(angle)), tall * (0.32 + 0.8 * away * math.sin(angle))
        r = wide * rng.uniform(0.1, 0.18)
        light = shaded(leaf, 1.1 - 0.6 * (y / tall) + rng.uniform(-0.12, 0.12))
        draw.ellipse((x - r, y - r, x + r, y + r), light)
    return picture

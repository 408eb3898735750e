"""Names of places, and how a place's sign looks: its colours come from the name's first word and
its icon from the kind of place, so that a sign can be told apart where its text is too small to
read, and one never seen before can be known from signs that share a word with it."""

import zlib
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

RED, BLUE, GREEN = (204, 32, 40), (28, 70, 190), (16, 130, 60)
WHITE, BLACK, YELLOW = (250, 250, 246), (24, 24, 28), (252, 208, 30)
PURPLE, ORANGE, TEAL = (120, 40, 160), (240, 120, 20), (0, 140, 150)
PINK, BROWN, SKY = (245, 130, 180), (110, 66, 36), (120, 200, 245)

# First word of a name: colours of the board and of what is drawn on it.
PAINT: dict[str, tuple[Colour, Colour]] = {
    "Harbor": (BLUE, WHITE),
    "Maple": (RED, WHITE),
    "Willow": (GREEN, WHITE),
    "Velvet": (PURPLE, WHITE),
    "Copper": (ORANGE, BLACK),
    "Juniper": (TEAL, WHITE),
    "Blossom": (PINK, BLACK),
    "Walnut": (BROWN, WHITE),
    "Silver": (WHITE, BLACK),
    "Raven": (BLACK, WHITE),
    "Amber": (YELLOW, BLACK),
    "Cherry": (WHITE, RED),
    "Summit": (WHITE, BLUE),
    "Meadow": (YELLOW, GREEN),
    "Lantern": (RED, YELLOW),
    "Starlight": (BLUE, YELLOW),
    "Orchid": (WHITE, PURPLE),
    "Breeze": (SKY, BLACK),
    "Tiger": (BLACK, ORANGE),
    "Clover": (GREEN, YELLOW),
}


@dataclass(frozen=True)
class Category:
    """A kind of place: the words that end its names, its icon, and its type in the data."""

    name: str
    words: tuple[str, ...]
    icon: str


CATEGORIES = (
    Category("cafe", ("Tea House", "Coffee Bar", "Espresso"), "disc"),
    Category("bakery", ("Bakery", "Patisserie", "Bread Oven"), "ring"),
    Category("book_store", ("Books", "Library", "Paper Shop"), "bars"),
    Category("pharmacy", ("Pharmacy", "Apothecary", "Drugstore"), "plus"),
    Category("lodging", ("Hotel", "Inn", "Guest House"), "square"),
    Category("movie_theater", ("Theatre", "Cinema", "Playhouse"), "star"),
    Category("supermarket", ("Market", "Grocery", "Pantry"), "triangle"),
    Category("museum", ("Museum", "Gallery", "Archive"), "columns"),
    Category("gym", ("Gym", "Boxing Club", "Yoga Room"), "saltire"),
    Category("florist", ("Flowers", "Garden Shop", "Seed Store"), "petals"),
    Category("jewelry_store", ("Jewels", "Goldsmith", "Watches"), "diamond"),
    Category("restaurant", ("Grill", "Noodle Bar", "Kitchen"), "half"),
)
ICONS = tuple(category.icon for category in CATEGORIES)


@dataclass(frozen=True)
class Sign:
    """What a sign board shows beside the name."""

    board: Colour
    ink: Colour
    icon: str


def draw_names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(name, category) of `count` places; no two share both the first word and the category.

    Raises ValueError when there are not that many.
    """
    most = len(PAINT) * len(CATEGORIES)
    if count > most:
        raise ValueError(f"names: given {count} places, allowed: at most {most}; use fewer blocks")
    words = list(PAINT)
    names = []
    for drawn in rng.permutation(most)[:count]:
        category = CATEGORIES[drawn % len(CATEGORIES)]
        last = category.words[rng.integers(len(category.words))]
        names.append((f"{words[drawn // len(CATEGORIES)]} {last}", category.name))
    return names


def sign_of(name: str) -> Sign:
    """The look of a name's sign; names that are not of this module get one by checksum."""
    first, _, last = name.partition(" ")
    checksum = zlib.crc32(name.encode())
    board, ink = PAINT.get(first) or list(PAINT.values())[checksum % len(PAINT)]
    icons = (category.icon for category in CATEGORIES if last in category.words)
    return Sign(board, ink, next(icons, ICONS[checksum // 64 % len(ICONS)]))

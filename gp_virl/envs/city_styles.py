"""How cities look and how their streets lie: New York to train in, and nine others that stand for
the cities of the VLN mini benchmark (paper, section B.1), which share no style with it."""

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """One city's look; lengths in metres, angles in degrees."""

    name: str
    title: str
    region: str  # as the released data names regions
    centre: tuple[float, float]  # latitude, longitude
    walls: tuple[Colour, ...]
    masonry: str  # plain, brick, boards, grid, blocks
    windows: str  # sash, shutters, arches, strips, bay, panes
    extra: str  # none, escapes, balconies, coolers, awnings
    trim: Colour
    glass: Colour
    shops: tuple[Colour, ...]  # ground floors
    floors: tuple[int, int]
    roof: str  # flat, gable
    roofing: Colour
    sky: tuple[Colour, Colour]  # zenith, horizon
    clouds: float  # share of the sky, 0 to 1
    asphalt: Colour
    pavement: Colour
    paint: Colour  # of the road's middle line
    middle: str  # double, dashed, solid, none
    crossing: str  # zebra, lines, none
    trees: str  # round, palm, cone, plane
    leaves: Colour
    spacing: float  # between trees
    board: str  # square, rounded, arched, pennant
    frame: Colour  # of sign boards
    capitals: bool  # lettering of sign boards
    fan: float = 30.0  # how much headings change across the city
    diagonals: float = 0.3  # share of blocks cut by one


STYLES = {
    style.name: style
    for style in (
        Style(
            name="new_york", title="New York", region="Manhattan_North_America",
            centre=(40.7233, -73.9985), walls=((150, 78, 62), (128, 62, 50), (176, 128, 98),
            (112, 86, 74)), masonry="brick", windows="sash", extra="escapes",
            trim=(222, 214, 196), glass=(62, 80, 100), shops=((44, 66, 58), (120, 36, 36),
            (40, 40, 46)), floors=(4, 9), roof="flat", roofing=(86, 70, 62),
            sky=((74, 134, 214), (196, 220, 242)), clouds=0.25, asphalt=(74, 76, 80),
            pavement=(172, 170, 164), paint=(244, 196, 40), middle="double", crossing="lines",
            trees="round", leaves=(64, 118, 52), spacing=22, board="square", frame=(30, 30, 30),
            capitals=True,
        ),
        Style(
            name="milan", title="Milan", region="Milan_Europe", centre=(45.4655, 9.1900),
            walls=((236, 190, 112), (226, 160, 96), (240, 214, 160), (214, 138, 90)),
            masonry="plain", windows="shutters", extra="balconies", trim=(250, 240, 214),
            glass=(70, 84, 88), shops=((110, 80, 54), (150, 120, 84)), floors=(3, 5),
            roof="gable", roofing=(176, 84, 52), sky=((92, 160, 226), (250, 226, 190)),
            clouds=0.1, asphalt=(128, 120, 112), pavement=(196, 184, 166), paint=(240, 240, 236),
            middle="none", crossing="zebra", trees="cone", leaves=(44, 92, 50), spacing=30,
            board="arched", frame=(120, 84, 40), capitals=False, fan=40, diagonals=0.4,
        ),
        Style(
            name="new_delhi", title="New Delhi", region="NewDelhi_Asia", centre=(28.6315, 77.2190),
            walls=((240, 222, 190), (222, 120, 84), (236, 170, 150), (206, 196, 120)),
            masonry="plain", windows="arches", extra="awnings", trim=(250, 246, 236),
            glass=(80, 60, 56), shops=((196, 70, 40), (36, 130, 120), (222, 160, 30)),
            floors=(2, 4), roof="flat", roofing=(200, 150, 110),
            sky=((196, 190, 170), (240, 222, 186)), clouds=0.0, asphalt=(142, 128, 112),
            pavement=(206, 170, 128), paint=(250, 250, 250), middle="dashed", crossing="none",
            trees="round", leaves=(104, 132, 48), spacing=16, board="square",
            frame=(250, 160, 20), capitals=False, fan=40,
        ),
        Style(
            name="buenos_aires", title="Buenos Aires", region="BuenosAires_South_America",
            centre=(-34.6037, -58.3816), walls=((222, 218, 206), (198, 196, 190),
            (236, 226, 196), (180, 188, 196)), masonry="blocks", windows="shutters",
            extra="balconies", trim=(130, 138, 140), glass=(48, 62, 72), shops=((60, 74, 110),
            (90, 90, 96)), floors=(5, 8), roof="gable", roofing=(84, 96, 108),
            sky=((58, 118, 206), (180, 206, 240)), clouds=0.35, asphalt=(96, 96, 100),
            pavement=(206, 196, 150), paint=(250, 250, 250), middle="dashed", crossing="zebra",
            trees="plane", leaves=(148, 96, 186), spacing=13, board="rounded",
            frame=(90, 140, 210), capitals=False,
        ),
        Style(
            name="london", title="London", region="London_Europe", centre=(51.5150, -0.1420),
            walls=((206, 190, 150), (186, 168, 128), (240, 238, 230), (146, 92, 70)),
            masonry="brick", windows="sash", extra="none", trim=(252, 252, 250),
            glass=(70, 84, 94), shops=((20, 40, 84), (120, 20, 30), (24, 74, 48)), floors=(3, 4),
            roof="gable", roofing=(74, 78, 88), sky=((150, 160, 172), (214, 218, 222)),
            clouds=0.9, asphalt=(62, 64, 68), pavement=(150, 152, 152), paint=(250, 250, 250),
            middle="dashed", crossing="zebra", trees="plane", leaves=(80, 116, 62), spacing=26,
            board="pennant", frame=(196, 160, 60), capitals=True, fan=40, diagonals=0.4,
        ),
        Style(
            name="hong_kong", title="Hong Kong", region="HongKong_Asia", centre=(22.2793, 114.1628),
            walls=((190, 200, 206), (214, 190, 196), (176, 204, 190), (222, 214, 184)),
            masonry="grid", windows="strips", extra="coolers", trim=(128, 136, 140),
            glass=(50, 80, 90), shops=((180, 30, 40), (210, 160, 20), (20, 110, 90)),
            floors=(11, 20), roof="flat", roofing=(120, 124, 128),
            sky=((150, 186, 196), (222, 232, 228)), clouds=0.5, asphalt=(86, 84, 88),
            pavement=(160, 150, 150), paint=(250, 250, 250), middle="solid", crossing="lines",
            trees="round", leaves=(40, 104, 70), spacing=60, board="rounded",
            frame=(226, 40, 60), capitals=True,
        ),
        Style(
            name="brooklyn", title="Brooklyn", region="Brooklyn_North_America",
            centre=(40.6782, -73.9442), walls=((110, 70, 58), (90, 58, 52), (140, 92, 72)),
            masonry="blocks", windows="arches", extra="none", trim=(74, 50, 44),
            glass=(150, 160, 150), shops=((70, 48, 42), (100, 76, 60)), floors=(3, 4),
            roof="flat", roofing=(60, 44, 40), sky=((236, 160, 110), (252, 222, 176)),
            clouds=0.4, asphalt=(92, 84, 84), pavement=(186, 160, 140), paint=(244, 196, 40),
            middle="dashed", crossing="lines", trees="round", leaves=(206, 112, 36), spacing=11,
            board="arched", frame=(40, 30, 26), capitals=False,
        ),
        Style(
            name="melbourne", title="Melbourne", region="Melbourne_Australia",
            centre=(-37.8136, 144.9631), walls=((90, 140, 170), (70, 112, 150), (130, 170, 180),
            (60, 74, 92)), masonry="plain", windows="panes", extra="none", trim=(210, 226, 232),
            glass=(120, 180, 214), shops=((50, 56, 64), (90, 104, 112)), floors=(8, 16),
            roof="flat", roofing=(60, 70, 80), sky=((30, 110, 220), (150, 208, 250)), clouds=0.15,
            asphalt=(70, 80, 92), pavement=(140, 150, 160), paint=(250, 250, 250), middle="double",
            crossing="lines", trees="cone", leaves=(90, 140, 96), spacing=18, board="square",
            frame=(240, 240, 240), capitals=False,
        ),
        Style(
            name="lagos", title="Lagos", region="Lagos_Africa", centre=(6.4541, 3.3947),
            walls=((250, 206, 70), (90, 180, 130), (240, 140, 110), (110, 170, 220)),
            masonry="boards", windows="panes", extra="awnings", trim=(244, 244, 240),
            glass=(60, 66, 70), shops=((30, 130, 70), (240, 180, 20), (210, 60, 50)),
            floors=(1, 3), roof="gable", roofing=(160, 96, 70),
            sky=((120, 190, 236), (236, 240, 230)), clouds=0.6, asphalt=(150, 110, 84),
            pavement=(196, 136, 92), paint=(250, 230, 120), middle="none", crossing="none",
            trees="palm", leaves=(70, 150, 50), spacing=14, board="square", frame=(20, 110, 60),
            capitals=True, fan=40,
        ),
        Style(
            name="san_francisco", title="San Francisco", region="SanFrancisco_North_America",
            centre=(37.7879, -122.4075), walls=((190, 214, 232), (246, 206, 214), (214, 236, 206),
            (248, 236, 190), (216, 204, 238)), masonry="boards", windows="bay", extra="none",
            trim=(255, 255, 255), glass=(86, 104, 124), shops=((96, 120, 150), (170, 120, 130)),
            floors=(2, 4), roof="gable", roofing=(110, 110, 124),
            sky=((166, 196, 224), (236, 238, 242)), clouds=0.7, asphalt=(110, 112, 118),
            pavement=(206, 206, 202), paint=(244, 196, 40), middle="double", crossing="zebra",
            trees="palm", leaves=(76, 130, 84), spacing=28, board="rounded", frame=(160, 60, 40),
            capitals=False,
        ),
    )
}  # fmt: skip
TRAINING = "new_york"
MINI = tuple(name for name in STYLES if name != TRAINING)


def style_of(name: str) -> Style:
    """The style of that name; raises ValueError with the known names."""
    if name not in STYLES:
        raise ValueError(f"style: given {name!r}, allowed: {', '.join(STYLES)}")
    return STYLES[name]

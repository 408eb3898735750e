"""Street views of a procedural city: equirectangular panoramas, cast column by column.

A column of a panorama is one heading. Along it the nearest facade is found on the plan; pixels
above its foot show the facade, those below the ground at the distance where they meet it. Signs
and trees are boards that face the camera, at their true distance. Column c of W shows the heading
(c + 1/2) 360 / W - rotation; row r of H the elevation 90 - (r + 1/2) 180 / H, in degrees.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt8
from PIL import Image

from gp_virl.envs import city_surfaces as surfaces
from gp_virl.envs.city import City
from gp_virl.envs.city_plan import FLOOR
from gp_virl.envs.city_styles import Style

CAMERA = 2.5  # metres above the ground
SIGHT = 230.0  # facades farther away are not looked for
HAZE = 300.0  # metres in which about two thirds of a colour are lost
BOARDS = 80.0  # trees and signs farther away are not drawn
UPRIGHT = 0.85  # a board is seen before a facade that is nearer by less: it stands askew
NARROWEST = 64
FINE = 1024  # from this width on, the ground is drawn in more detail
GABLE = 3.0
CORNICE = 0.7


def panorama(city: City, pano: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The street view of that id, width x width/2; the same on every call.

    Raises KeyError for an id of another city and ValueError for an odd or tiny width.
    """
    return painter(city, width).picture(city.index(pano))


def panoramas(city: City, ids: Sequence[str], width: int) -> UInt8[np.ndarray, "P h w 3"]:
    """The street views of those ids."""
    return np.stack([panorama(city, pano, width) for pano in ids])


@dataclass(frozen=True, eq=False)
class Mips:
    """Pictures of one size, each halved again and again, as one list of texels."""

    texels: UInt8[np.ndarray, "n 3"]
    first: Int32[np.ndarray, "levels"]  # texel of a level's first picture
    height: Int32[np.ndarray, "levels"]
    width: Int32[np.ndarray, "levels"]

    @classmethod
    def build(cls, pictures: Sequence[Image.Image], levels: int) -> "Mips":
        """`levels` sizes, the whole one first."""
        sizes = [[np.asarray(p.reduce(2**level)) for p in pictures] for level in range(levels)]
        stacks = [np.stack(size) for size in sizes]
        counts = np.cumsum([0, *(stack[..., 0].size for stack in stacks)])
        return cls(
            texels=np.concatenate([stack.reshape(-1, 3) for stack in stacks]),
            first=counts[:-1].astype(np.int32),
            height=np.array([stack.shape[1] for stack in stacks], np.int32),
            width=np.array([stack.shape[2] for stack in stacks], np.int32),
        )

    def level(self, texels_per_pixel: Float32[np.ndarray, "..."]) -> Int32[np.ndarray, "..."]:
        """The size at which a pixel is about a texel."""
        level = np.log2(np.maximum(texels_per_pixel, 1)).round()
        return np.minimum(level, len(self.first) - 1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Walls:
    """The facade that each column of a panorama meets first."""

    distance: Float32[np.ndarray, "w"]  # metres; SIGHT where there is none
    along: Float32[np.ndarray, "w"]  # metres from the facade's beginning
    eaves: Float32[np.ndarray, "w"]  # metres above the ground
    top: Float32[np.ndarray, "w"]  # with the gable
    tile: Int32[np.ndarray, "w"]
    light: Float32[np.ndarray, "w"]  # 1 where the sun stands before it


@dataclass(frozen=True, eq=False)
class Painter:
    """A city's surfaces, made ready for panoramas of one width."""

    city: City
    width: int
    ground: Mips
    scale: float  # texels per metre of the ground
    corner: tuple[float, float]  # of the ground's picture
    facades: Mips  # its last two texels are the cornice's and the roof's
    sky: UInt8[np.ndarray, "h w 3"]
    tree: Image.Image  # colours of trees and signs are multiplied by their cover
    signs: tuple[Image.Image, ...]
    tangent: Float32[np.ndarray, "h"]  # of each row's elevation

    def picture(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The panorama of one point of the plan."""
        plan, rotation = self.city.plan, float(self.city.rotations[index])
        here = plan.points[index]
        headings = (np.arange(self.width) + 0.5) * (2 * math.pi / self.width)
        headings -= math.radians(rotation)
        ray = np.stack([np.sin(headings), np.cos(headings)]).astype(np.float32)
        walls = self.walls(here, ray)
        image = np.roll(self.sky, round(rotation * self.width / 360), axis=1)
        self._paint_ground(image, here, ray, walls)
        self._paint_walls(image, walls)
        offset = np.concatenate([plan.trees, [place.sign for place in plan.places]]) - here
        away = np.hypot(*offset.T)
        near = np.flatnonzero(away < BOARDS)
        for i in near[np.argsort(-away[near])]:
            heading = math.degrees(math.atan2(*offset[i]))
            middle = (heading + rotation) % 360 * self.width / 360
            board = (self.tree, surfaces.TREE_WIDTH, surfaces.TREE_HEIGHT)
            if i >= len(plan.trees):
                sign = self.signs[i - len(plan.trees)]
                board = (sign, surfaces.SIGN_WIDTH, surfaces.SIGN_HEIGHT)
            self._paint_board(image, walls, float(away[i]), middle, *board)
        return image

    def walls(self, here: Float64[np.ndarray, "2"], ray: Float32[np.ndarray, "2 w"]) -> Walls:
        """What rays from `here` with those directions, (east, north) of length 1, meet first."""
        plan, style = self.city.plan, self.city.style
        start, end = plan.facades[:, :2] - here, plan.facades[:, 2:] - here
        along = end - start
        # Those near enough whose street side is turned to the camera.
        facing = along[:, 0] * start[:, 1] - along[:, 1] * start[:, 0]
        near = np.minimum(np.hypot(*start.T), np.hypot(*end.T)) < SIGHT
        kept = np.flatnonzero(near & (facing > 0))
        (sx, sy), (ex, ey) = start[kept].T.astype(np.float32), along[kept].T.astype(np.float32)
        east, north = ray[0, :, None], ray[1, :, None]
        across = east * ey - north * ex
        across = np.where(np.abs(across) < 1e-6, np.float32(1e-6), across)
        share = (sx * north - sy * east) / across
        distance = (sx * ey - sy * ex) / across
        met = (distance > 0) & (share >= -1e-4) & (share <= 1 + 1e-4)
        distance = np.where(met, distance, np.float32(SIGHT))
        best = distance.argmin(1)
        column = np.arange(len(best))
        distance, share = distance[column, best], np.clip(share[column, best], 0, 1)
        facade = kept[best]
        length = np.hypot(ex, ey)[best]
        eaves = plan.heights[facade].astype(np.float32)
        gable = GABLE * (1 - np.abs(2 * share - 1)) if style.roof == "gable" else 0 * share
        seen = distance < SIGHT
        sun = (0.72 + 0.28 * (ey - 0.5 * ex)[best] / length).clip(0.55, 1)
        return Walls(
            distance=distance,
            along=share * np.maximum(1, np.round(length / surfaces.TILE)) * surfaces.TILE,
            eaves=np.where(seen, eaves, -1).astype(np.float32),
            top=np.where(seen, eaves + gable, -1).astype(np.float32),
            tile=((facade * 7 + facade // 5) % (2 * len(style.walls))).astype(np.int32),
            light=sun.astype(np.float32),
        )

    def _paint_ground(self, image, here, ray, walls: Walls) -> None:
        rows = np.flatnonzero(self.tangent < 0)
        reach = (-CAMERA / self.tangent[rows]).astype(np.float32)
        row, column = np.nonzero(reach[:, None] < walls.distance)
        away = reach[row]
        # A pixel is longer than wide on the ground; its size is between the two.
        level = self.ground.level(reach**1.4 * np.float32(self._pixel * self.scale / 2))[row]
        shrink = np.float32(self.scale) / (1 << level)
        x = (np.float32(here[0] - self.corner[0]) + away * ray[0, column]) * shrink - 0.5
        y = (np.float32(self.corner[1] - here[1]) - away * ray[1, column]) * shrink - 0.5
        x, y = x.astype(np.float32), y.astype(np.float32)
        wide, tall = self.ground.width[level], self.ground.height[level]
        left = np.clip(x.astype(np.int32), 0, wide - 2)
        top = np.clip(y.astype(np.int32), 0, tall - 2)
        right, down = np.clip(x - left, 0, 1)[:, None], np.clip(y - top, 0, 1)[:, None]
        at, texels = self.ground.first[level] + top * wide + left, self.ground.texels
        above = texels[at] * (1 - right) + texels[at + 1] * right
        below = texels[at + wide] * (1 - right) + texels[at + wide + 1] * right
        seen = above * (1 - down) + below * down
        image[rows[row], column] = self._hazed(seen, np.float32(1), away)

    def _paint_walls(self, image, walls: Walls) -> None:
        height = CAMERA + walls.distance * self.tangent[:, None]
        row, column = np.nonzero((height >= 0) & (height <= walls.top))
        height, mips = height[row, column], self.facades
        level = mips.level(walls.distance * np.float32(self._pixel * surfaces.FACADE_SCALE))
        wide, tall = mips.width[level], mips.height[level]
        x = (walls.along / np.float32(surfaces.TILE) % 1 * wide).astype(np.int32)
        base = mips.first[level] + walls.tile * wide * tall + x
        floor = np.where(height < FLOOR, 2 - height / FLOOR, 1 - height / FLOOR % 1)
        y = np.minimum((floor / 2 * tall[column]).astype(np.int32), tall[column] - 1)
        texel = base[column] + y * wide[column]
        eaves = walls.eaves[column]
        texel = np.where(height > eaves - CORNICE, len(mips.texels) - 2, texel)
        texel = np.where(height > eaves, len(mips.texels) - 1, texel)
        away, light = walls.distance[column], walls.light[column]
        image[row, column] = self._hazed(mips.texels[texel], light[:, None], away)

    def _paint_board(self, image, walls: Walls, away, middle, picture, wide, tall) -> None:
        """A picture that faces the camera and stands on the ground around column `middle`."""
        half = math.atan(wide / 2 / away) / (2 * math.pi) * self.width
        left, right = math.ceil(middle - half - 0.5), math.floor(middle + half - 0.5)
        rows = len(self.tangent)
        top, foot = (rows * (0.5 - math.atan((z - CAMERA) / away) / math.pi) for z in (tall, 0.0))
        up, down = math.ceil(top - 0.5), math.floor(foot - 0.5)
        columns = np.arange(left, right + 1) % self.width
        visible = away * UPRIGHT < walls.distance[columns]
        if down < up or not visible.any():
            return
        across, along = picture.width / (2 * half), picture.height / (foot - top)
        box = (
            max(0.0, (left - middle + half) * across),
            max(0.0, (up - top) * along),
            min(picture.width, (right + 1 - middle + half) * across),
            min(picture.height, (down + 1 - top) * along),
        )
        size = (right - left + 1, down - up + 1)
        drawn = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=1.5))
        drawn = drawn * visible[:, None].astype(np.float32)
        behind = image[up : down + 1, columns] * (1 - drawn[..., 3:] / 255)
        image[up : down + 1, columns] = (behind + drawn[..., :3] + 0.5).astype(np.uint8)

    @property
    def _pixel(self) -> float:
        """Angle of a pixel, in radians."""
        return 2 * math.pi / self.width

    def _hazed(self, colours, light, away) -> UInt8[np.ndarray, "n 3"]:
        clear = np.exp(away * np.float32(-1 / HAZE))[:, None]
        horizon = np.array(self.city.style.sky[1], np.float32)
        return (colours * (clear * light) + (1 - clear) * horizon).astype(np.uint8)


@functools.lru_cache(12)
def painter(city: City, width: int) -> Painter:
    """The city's painter; kept for the cities last asked for. Raises as `panorama`."""
    if width < NARROWEST or width % 2:
        raise ValueError(f"width: given {width}, allowed: an even number of at least {NARROWEST}")
    scale = 10.0 if width >= FINE else 4.0
    picture, corner = surfaces.ground(city.plan, city.style, scale)
    tiles = Mips.build(surfaces.facades(city.style), 6)
    ends = np.array([city.style.trim, city.style.roofing], np.uint8)
    rows = width // 2
    elevation = (0.5 - (np.arange(rows) + 0.5) / rows) * math.pi
    return Painter(
        city=city,
        width=width,
        ground=Mips.build([picture], 6),
        scale=scale,
        corner=(float(corner[0]), float(corner[1])),
        facades=Mips(np.concatenate([tiles.texels, ends]), tiles.first, tiles.height, tiles.width),
        sky=_sky(city.style, width),
        tree=surfaces.tree(city.style).convert("RGBa"),
        signs=tuple(
            surfaces.sign(place.name, city.style).convert("RGBa") for place in city.plan.places
        ),
        tangent=np.tan(elevation).astype(np.float32),
    )


def _sky(style: Style, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """From zenith to horizon, with clouds; below the horizon its haze."""
    high = np.clip(1 - 2 * (np.arange(width // 2) + 0.5) / (width // 2), 0, 1)[:, None]
    around = (np.arange(width) + 0.5)[None] * (2 * math.pi / width)
    zenith, horizon = (np.array(colour, float) for colour in style.sky)
    colour = horizon + (zenith - horizon) * high[..., None] ** 0.7
    bumps = sum(
        np.sin(k * around + 3 * k * k + 9 * math.pi * high / k) * np.cos(k * 7 * high + k) / k**0.5
        for k in (2, 3, 5, 8, 13)
    )
    cloud = np.clip(bumps / 2 + 2 * style.clouds - 1.1, 0, 0.8) * np.clip(high * 6, 0, 1)
    white = 0.4 * horizon + 0.6 * 250
    whole = colour + cloud[..., None] * (white - colour)
    return np.broadcast_to(whole, (width // 2, width, 3)).astype(np.uint8)

"""The four views against rays computed pixel by pixel, and the files of panoramas."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from gp_virl.envs import street_views as views
from gp_virl.envs.street_views import (
    LAYOUTS,
    StreetViewError,
    StreetViews,
    read_panoramas,
    read_rotations,
)

SIZE = 34


@pytest.fixture(scope="module")
def panoramas() -> np.ndarray:
    """Two panoramas of smooth colours that don't repeat, and a sharp post where they wrap."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 16, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((128, 64), 1)) for c in coarse])


def plain(panorama: np.ndarray, rotation: float, heading: float, size: int, layout) -> np.ndarray:
    """The grid, one ray and four neighbours at a time."""
    high, wide = panorama.shape[:2]
    line = max(1, round(size * 5 / 1285))
    line += (size - line) % 2
    side = (size - line) // 2
    picture = np.zeros((size, size, 3), np.uint8)
    for cell, offset in enumerate(layout):
        for r in range(side):
            for c in range(side):
                # Right, down, ahead of the view; then turned by its heading.
                x, y, z = c + 0.5 - side / 2, r + 0.5 - side / 2, side / 2
                azimuth = math.degrees(math.atan2(x, z)) + heading + offset + rotation
                elevation = -math.degrees(math.asin(y / math.sqrt(x * x + y * y + z * z)))
                u = (azimuth % 360) / 360 * wide - 0.5
                v = (90 - elevation) / 180 * high - 0.5
                v = min(max(v, 0), high - 1)
                u0, v0 = math.floor(u), math.floor(v)
                colour = np.zeros(3)
                for du in (0, 1):
                    for dv in (0, 1):
                        share = (1 - abs(u - u0 - du)) * (1 - abs(v - v0 - dv))
                        colour += share * panorama[min(v0 + dv, high - 1), (u0 + du) % wide]
                top = cell // 2 * (side + line) + r
                left = cell % 2 * (side + line) + c
                picture[top, left] = np.round(colour)
    return picture


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("heading", "rotation"), [(350, 0.0), (10, 0.0), (350, 237.5), (123, 301.2)]
)
def test_views_are_pinhole_pictures(panoramas, layout, heading, rotation) -> None:
    bank = StreetViews.build(panoramas, np.array([17.0, rotation]), SIZE, layout)
    got = np.asarray(bank.picture(jnp.int32(1), jnp.int32(heading))).astype(int)
    expected = plain(panoramas[1], rotation, heading, SIZE, LAYOUTS[layout]).astype(int)
    assert np.abs(got - expected).max() <= 1


def test_front_right_back_left() -> None:
    """A panorama whose colour tells the heading: north red, east green, south blue, west grey."""
    headings = (np.arange(360) + 0.5) % 360
    colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]], np.uint8)
    panorama = np.broadcast_to(colours[((headings + 45) // 90 % 4).astype(int)], (1, 180, 360, 3))
    bank = StreetViews.build(np.roll(panorama, 120, 2), np.array([120]), 100)
    north = np.asarray(bank.picture(jnp.int32(0), 0.0))
    middles = north[[25, 25, 75, 75], [25, 75, 75, 25]]
    assert (middles == colours).all()  # front, right; back below right, left below front
    east = np.asarray(bank.picture(jnp.int32(0), 90.0))
    assert (east[[25, 25, 75, 75], [25, 75, 75, 25]] == np.roll(colours, -1, 0)).all()


def test_wrap_leaves_no_seam(panoramas) -> None:
    """At headings 350 and 10 a panorama gives the same grid as one rolled so that nothing wraps."""
    for heading in (350.0, 10.0):
        whole = StreetViews.build(panoramas, np.zeros(2), SIZE)
        rolled = StreetViews.build(np.roll(panoramas, 64, 2), np.full(2, 180.0), SIZE)
        first, second = (
            np.asarray(b.picture(jnp.int32(0), heading)).astype(int) for b in (whole, rolled)
        )
        assert np.abs(first - second).max() <= 1


def test_line() -> None:
    assert views.line_width(1285) == 5
    assert all((size - views.line_width(size)) % 2 == 0 for size in range(8, 1300))
    bank = StreetViews.build(np.full((1, 32, 64, 3), 255, np.uint8), np.zeros(1), 128)
    picture = np.asarray(bank.picture(jnp.int32(0), 0.0))
    black = (picture == 0).all(-1)
    assert black[63:65].all() and black[:, 63:65].all() and black.sum() == 4 * 128 - 4
    assert views.panorama_width(1285) == 2010


def test_lanes_are_compiled_once(panoramas) -> None:
    bank, traced = StreetViews.build(panoramas, np.zeros(2), SIZE), []

    @jax.jit
    def draw(bank, panos, headings):
        traced.append(1)
        return jax.vmap(bank.picture)(panos, headings)

    for turn in (0, 45, 90):
        lanes = draw(bank, jnp.array([0, 1, 1]), jnp.array([turn, 0, turn]))
        alone = bank.picture(jnp.int32(1), jnp.int32(turn))
        assert np.abs(np.asarray(lanes[2], int) - np.asarray(alone, int)).max() <= 1
    assert len(traced) == 1


def test_wrong_banks(panoramas) -> None:
    with pytest.raises(ValueError, match="spiral.*front_right_back_left, diagonal"):
        StreetViews.build(panoramas, np.zeros(2), SIZE, "spiral")
    with pytest.raises(ValueError, match="given 4"):
        StreetViews.build(panoramas, np.zeros(2), 4)
    with pytest.raises(ValueError, match="64 x 64"):
        StreetViews.build(panoramas[:, :, :64], np.zeros(2), SIZE)


def write(folder, name: str, picture: np.ndarray, about: object) -> None:
    Image.fromarray(picture).save(folder / f"{name}.jpg", quality=98)
    (folder / f"{name}.metadata.json").write_text(json.dumps(about))


def test_files(tmp_path, panoramas) -> None:
    write(tmp_path, "a", panoramas[0], {"rotation": 12.5, "other": 1})
    write(tmp_path, "b", panoramas[1], {"rotation": 300})
    pictures, rotation = read_panoramas(tmp_path, ["b", "a", "b"], 64)
    assert pictures.shape == (3, 32, 64, 3) and rotation.tolist() == [300.0, 12.5, 300.0]
    halved = panoramas[0].reshape(32, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(pictures[1] - halved).mean() < 4


def test_wrong_files_are_all_named(tmp_path, panoramas) -> None:
    write(tmp_path, "square", panoramas[0][:, :64], {"rotation": 0})
    write(tmp_path, "text", panoramas[0], {"rotation": "north"})
    write(tmp_path, "truth", panoramas[0], {"rotation": True})
    write(tmp_path, "infinite", panoramas[0], {"rotation": math.inf})
    write(tmp_path, "list", panoramas[0], [1])
    write(tmp_path, "broken", panoramas[0], {})
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "broken.metadata.json").write_text("{")
    with pytest.raises(StreetViewError) as caught:
        names = ["square", "text", "truth", "infinite", "list", "broken", "absent"]
        read_panoramas(tmp_path, names, 64)
    told = str(caught.value)
    for part in (
        "square.jpg: given 64 x 64", "text.metadata.json: field rotation: given 'north'",
        "truth.metadata.json: field rotation: given True", "infinite.metadata.json: field rotation",
        "list.metadata.json: field rotation", "broken.jpg: not a readable picture",
        "broken.metadata.json: not JSON", "absent.jpg: no such file",
        "absent.metadata.json: no such file",
    ):  # fmt: skip
        assert part in told
    assert told.count("\n") == 9


def told_of(folder, name: str) -> str:
    with pytest.raises(StreetViewError) as caught:
        read_panoramas(folder, [name], 64)
    assert str(caught.value).count("\n") == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ('{"rotation": 1' + "0" * 400 + "}", "field rotation: given an integer of 1329 bits, allo"),
        ('{"rotation": 1' + "0" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"rotation": ' + "[" * 500 + "]" * 500 + "}", "field rotation: given [[[[...]]]], allow"),
        ('{"rotation": 1e300}', "field rotation: given 1e+300, allowed: a number of degrees"),
        ('{"rotation": -1000001}', "field rotation: given -1000001, allowed: a number of degrees"),
        ('{"rotation": NaN}', "field rotation: given nan, allowed: a number of degrees"),
        ('{"rotation": "' + "x" * 10**6 + '"}', "field rotation: given 'xx"),
    ],
)
def test_metadata_that_are_none(tmp_path, panoramas, about: str, message: str) -> None:
    write(tmp_path, "a", panoramas[0], 0)
    (tmp_path / "a.metadata.json").write_text(about)
    told = told_of(tmp_path, "a")
    assert f"a.metadata.json: {message}" in told and len(told) < 500


def test_rotations_are_within_a_turn(tmp_path, panoramas) -> None:
    for given, expected in ((370, 10), (-90.5, 269.5), (10**6, 280), (-0.0, 0), (360.0, 0)):
        write(tmp_path, "a", panoramas[0], {"rotation": given})
        assert read_panoramas(tmp_path, ["a"], 64)[1].tolist() == [expected]


def test_only_jpeg_and_png_are_pictures(tmp_path, panoramas, monkeypatch) -> None:
    """Above all no EPS, for which Pillow starts Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: started.append(given))
    picture = Image.fromarray(panoramas[0])
    write(tmp_path, "a", panoramas[0], {"rotation": 0})
    for form in ("EPS", "GIF", "TIFF", "BMP"):
        picture.save(tmp_path / "a.jpg", form)
        assert "a.jpg: not a readable picture" in told_of(tmp_path, "a")
    assert not started
    picture.save(tmp_path / "a.jpg", "PNG")
    assert (read_panoramas(tmp_path, ["a"], 128)[0][0] == panoramas[0]).all()
    whole = (tmp_path / "a.jpg").read_bytes()
    for end in (40, len(whole) // 2):
        (tmp_path / "a.jpg").write_bytes(whole[:end])
        assert "a.jpg: not a readable picture" in told_of(tmp_path, "a")
    for kind in (SyntaxError, ValueError, Image.DecompressionBombError):

        def fails(*given, kind=kind, **more):
            raise kind("broken")

        monkeypatch.setattr(Image, "open", fails)
        assert "a.jpg: not a readable picture (broken)" in told_of(tmp_path, "a")


def test_rotations_and_headers_are_checked_before_any_picture(tmp_path, panoramas) -> None:
    """One list of all problems; a picture that breaks off is named when it is read."""
    write(tmp_path, "a.1", panoramas[0], {"rotation": 370})
    write(tmp_path, "b", panoramas[1], {"rotation": 20})
    files = [tmp_path / "a.1.jpg", tmp_path / "b.jpg"]
    broken = files[1].read_bytes()
    files[1].write_bytes(broken[: len(broken) // 2])
    assert read_rotations(files).tolist() == [10, 20]
    whole = read_panoramas(tmp_path, ["a.1"], 64)[0][0]
    assert (views.read_panorama(files[0], 64) == whole).all()
    with pytest.raises(StreetViewError, match="b.jpg: not a readable picture"):
        views.read_panorama(files[1], 64)
    write(tmp_path, "square", panoramas[0][:, :64], {"rotation": "north"})
    files += [tmp_path / "square.jpg", tmp_path / "absent.jpg"]
    with pytest.raises(StreetViewError) as caught:
        read_rotations(files)
    told = str(caught.value).split("\n")
    assert len(told) == 5 and "square.jpg: given 64 x 64" in told[1]
    assert "square.metadata.json: field rotation: given 'north'" in told[2]
    assert "absent.jpg: no such file" in told[3] and "absent.metadata.json: no such" in told[4]

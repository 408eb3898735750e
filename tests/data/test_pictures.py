import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gp_virl.data import pictures
from gp_virl.data.pictures import decoded, encoded, of_hands, shape_of
from gp_virl.envs.card_images import CardTable, jittered, still

SIZE, GREY = 48, (102, 102, 102)  # of Pillow's usual palette
DRAW = np.random.default_rng(0)
RANKS = DRAW.integers(0, 13, (23, 4), np.int32)
SUITS = DRAW.integers(0, 4, (23, 4), np.int32)


@pytest.mark.parametrize("jitter", [(0.0, 0.0), (0.05, 0.3)])
def test_pictures_are_those_of_single_hands(jitter: tuple[float, float]) -> None:
    table = CardTable.build(SIZE)
    made = list(of_hands(SIZE, 5, RANKS, SUITS, *jitter))
    assert len(made) == len(RANKS)
    for i in range(0, len(RANKS), 4):
        key = jax.random.fold_in(jax.random.key(5), i)
        hand = jnp.asarray(RANKS[i]), jnp.asarray(SUITS[i])
        scene = jittered(key, *hand, *jitter) if any(jitter) else still(*hand)
        assert (decoded(made[i]) == table.compose(scene)).all()


def test_pictures_do_not_depend_on_how_many_are_made_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = list(of_hands(SIZE, 1, RANKS, SUITS, 0.1, 0.1))
    assert list(of_hands(SIZE, 2, RANKS, SUITS, 0.1, 0.1)) != wanted
    for together in (1, 7):
        monkeypatch.setattr(pictures, "PIXELS_TOGETHER", together * SIZE**2)
        assert list(of_hands(SIZE, 1, RANKS, SUITS, 0.1, 0.1)) == wanted


def test_few_pictures_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, composed = [], pictures._composed
    monkeypatch.setattr(pictures, "PIXELS_TOGETHER", 4 * SIZE**2)
    monkeypatch.setattr(pictures, "_composed", lambda *a: calls.append(a[2]) or composed(*a))
    made = of_hands(SIZE, 0, RANKS, SUITS)
    list(itertools.islice(made, 4))
    assert len(calls) == 2 and all(len(rows) == 4 for rows in calls)
    next(made)
    assert len(calls) == 3
    list(made)
    assert len(calls) == 6


def test_encoding_loses_nothing() -> None:
    picture = DRAW.integers(0, 256, (20, 31, 3), np.uint8)
    png = encoded(picture)
    assert png.startswith(b"\x89PNG") and (decoded(png) == picture).all()
    assert shape_of(png) == (20, 31, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_other_kinds_are_read_as_rgb(mode: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), GREY).convert(mode).save(stream, "PNG")
    picture = decoded(stream.getvalue())
    assert picture.shape == (4, 5, 3) and (picture == GREY).all()

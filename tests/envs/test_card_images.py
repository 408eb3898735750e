"""Drawn cards looked at by numbers; composed pictures against slow plain copies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gp_virl.envs import card_images, cards
from gp_virl.envs.card_images import TABLE, CardTable, Scene

SIZES = (48, 96, 97, 224, 360, 1200)
SMALL, LARGE = card_images.card_size(48), card_images.card_size(600)  # pictures of 96 and 1200
DECK = list(itertools.product(range(cards.RANKS), range(len(cards.SUITS))))


def hands(count: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Ranks and suits of different cards, [count 4]."""
    deck = np.tile(np.arange(52), (count, 1))
    dealt = np.random.default_rng(seed).permuted(deck, axis=1)[:, :4]
    return jnp.asarray(dealt // 4), jnp.asarray(dealt % 4)


def laid_out(size: int, ranks, suits) -> np.ndarray:
    """The picture of four resting cards, drawn one by one on an empty table."""
    half = size // 2
    height, width = card_images.card_size(half)
    picture = np.zeros((size, size, 3), np.uint8) + np.array(TABLE, np.uint8)
    for i in range(4):
        top = (i // 2) * (size - half) + (half - height) // 2
        left = (i % 2) * (size - half) + (half - width) // 2
        card = card_images.drawn(int(ranks[i]), int(suits[i]), height, width)
        picture[top : top + height, left : left + width] = card
    return picture


def resampled(card: np.ndarray, shift, scale: float, side: int) -> np.ndarray:
    """A card in its quadrant, pixel by pixel, with the table around it, in float64."""
    height, width, _ = card.shape
    table = np.array(TABLE, float)

    def colour(row: int, column: int) -> np.ndarray:
        inside = 0 <= row < height and 0 <= column < width
        return card[row, column].astype(float) if inside else table

    picture = np.zeros((side, side, 3))
    for i in range(side):
        for j in range(side):
            row = (i + 0.5 - side * (0.5 + shift[0])) / scale + height / 2 - 0.5
            column = (j + 0.5 - side * (0.5 + shift[1])) / scale + width / 2 - 0.5
            (y, dy), (x, dx) = divmod(row, 1), divmod(column, 1)
            for a, b in itertools.product((0, 1), (0, 1)):
                weight = (dy if a else 1 - dy) * (dx if b else 1 - dx)
                picture[i, j] += weight * colour(int(y) + a, int(x) + b)
    return picture


@pytest.fixture(scope="module")
def table() -> CardTable:
    return CardTable.build(96)


@pytest.mark.parametrize("size", SIZES)
def test_the_deck(size: int) -> None:
    atlas = np.asarray(CardTable.build(size).atlas)
    assert atlas.shape[0] == 52 and len({card.tobytes() for card in atlas}) == 52
    height, width = card_images.card_size(size // 2)
    assert atlas.shape[1:] == (height + 2, width + 2, 3)
    inside = np.zeros(atlas.shape[1:3], bool)
    inside[1:-1, 1:-1] = True
    assert (atlas[:, ~inside] == TABLE).all()
    again = card_images.drawn(12, 1, height, width)
    assert (again == atlas[12 * 4 + 1, 1:-1, 1:-1]).all()
    assert 0.85 < height / (size // 2) <= 11 / 12 and 0.6 < width / height < 0.85


@pytest.mark.parametrize("size", [SMALL, card_images.card_size(112), LARGE])
@pytest.mark.parametrize("suit", range(4))
def test_colours_of_suits(size: tuple[int, int], suit: int) -> None:
    for rank in range(cards.RANKS):
        card = card_images.drawn(rank, suit, *size)[3:-3, 3:-3].astype(int)
        red = (card[..., 0] - card[..., 1:].max(-1) > 90).mean()
        black = (card.max(-1) < 60).mean()
        pale = (card.min(-1) > 200).mean()
        seen, unseen = (red, black) if suit in cards.SUIT_CHOICES["red"] else (black, red)
        assert seen > 0.02 and unseen == 0 and pale > 0.3, (rank, suit)


@pytest.mark.parametrize("suit", range(4))
def test_large_cards_show_as_many_pips_as_they_count(suit: int) -> None:
    height, width = LARGE
    for rank in range(cards.JACK):
        card = card_images.drawn(rank, suit, height, width).astype(int)
        middle = card[10:-10, round(0.22 * width) : round(0.78 * width)]
        pips, count = ndimage.label(middle[..., 1] < 128)
        assert count == rank + 1
        sizes = np.bincount(pips.ravel())[1:]
        assert sizes.min() > 0.85 * sizes.max()


def test_large_cards_read_the_same_upside_down() -> None:
    height, width = LARGE
    for rank, suit in DECK:
        card = card_images.drawn(rank, suit, height, width).astype(int)
        corner = card[: height // 3, : width // 5]
        assert (corner[20:-20, 20:] < 128).any()
        assert abs(corner - card[::-1, ::-1][: height // 3, : width // 5]).max() == 0
        if rank >= cards.JACK:
            assert (card == card[::-1, ::-1]).all()
            middle = card[height // 8 : -height // 8, width // 3 : -width // 3]
            assert len(np.unique(middle.reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize("side", [24, 48, 112])
def test_small_ranks_are_told_apart_in_any_colour(side: int) -> None:
    """The nearest black rank to every red one, by brightness, is the same rank by far."""
    size = card_images.card_size(side)
    rank_part = slice(1, round(0.56 * size[0]))
    deck = np.stack([card_images.drawn(*card, *size)[rank_part, 1:-1, 1] for card in DECK])
    deck = (deck.reshape(13, 4, -1) < 128).astype(float)
    for suit in range(4):
        unlike = abs(deck[:, suit, None] - deck[None, :, 0]).mean(-1)
        assert (unlike.argmin(axis=1) == np.arange(13)).all()
        assert unlike.diagonal().max() < 0.01
        assert unlike[~np.eye(13, dtype=bool)].min() > 0.04
    assert (deck.mean(-1) > 0.15).all()


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_still_pictures(size: int, moving: bool) -> None:
    ranks, suits = hands(3 if size < 1000 else 1, seed=size)
    built = CardTable.build(size, moving)
    compose = jax.jit(built.compose)
    for rank, suit in zip(ranks, suits, strict=True):
        picture = np.asarray(compose(card_images.still(rank, suit)))
        assert picture.dtype == np.uint8 and picture.shape == (size, size, 3)
        assert (picture == laid_out(size, rank, suit)).all()


def test_every_card_in_every_place(table: CardTable) -> None:
    ranks, suits = (np.array(x) for x in zip(*DECK, strict=True))
    place = (np.arange(52)[:, None] + np.array([0, 13, 26, 39])) % 52
    scene = card_images.still(jnp.asarray(ranks[place]), jnp.asarray(suits[place]))
    pictures = np.asarray(jax.jit(jax.vmap(table.compose))(scene))
    for picture, cells in zip(pictures, place, strict=True):
        assert (picture == laid_out(96, ranks[cells], suits[cells])).all()


@pytest.mark.parametrize("scale", [819 / 1024, 1.0, 1.0625, 1.1875])
def test_moved_cards(scale: float) -> None:
    side, shift = 48, np.array([[0.031, -0.05], [0.0, 0.125], [-0.3, 0.4], [1 / 48, 0.0]])
    built = CardTable.build(2 * side)
    ranks, suits = hands(1, seed=3)
    scene = Scene(ranks[0], suits[0], jnp.asarray(shift, jnp.float32), jnp.full(4, scale))
    picture = np.asarray(jax.jit(built.compose)(scene)).astype(float)
    for i in range(4):
        y, x = (i // 2) * side, (i % 2) * side
        card = card_images.drawn(int(ranks[0, i]), int(suits[0, i]), *SMALL)
        wanted = resampled(card, shift[i], scale, side)
        assert abs(picture[y : y + side, x : x + side] - wanted).max() < 2.5


def test_jitter_keeps_cards_whole(table: CardTable) -> None:
    ranks, suits = hands(64)
    height, width = SMALL
    compose = jax.jit(jax.vmap(table.compose))
    for shift, scale in ((0.5, 0.2), (0.02, 0.2), (0.5, 0.0)):
        scene = card_images.jittered(jax.random.key(1), ranks, suits, shift, scale)
        tall = np.array([11 / 12, 5 / 7]) * np.asarray(scene.scale)[..., None]
        assert (abs(scene.shift) + tall / 2).max() < 0.5 + 1e-6
        cells = np.asarray(compose(scene)).reshape(64, 2, 48, 2, 48, 3).swapaxes(2, 3)
        card = (cells.reshape(256, 48, 48, 3) != TABLE).any(-1)
        for axis, length in ((1, height), (2, width)):
            extent = card.any(3 - axis).sum(1) - length * np.asarray(scene.scale).reshape(-1)
            # Blending reaches one card pixel out, unless the quadrant ends there.
            assert extent.min() > -1 and extent.max() < 3.5


def test_jitter_is_as_large_as_asked() -> None:
    ranks, suits = hands(4000)
    draw = jax.jit(card_images.jittered, static_argnums=(3, 4))
    scene = draw(jax.random.key(2), ranks, suits, 0.03, 0.05)
    assert (scene.ranks == ranks).all() and (scene.suits == suits).all()
    shift, scale = np.asarray(scene.shift), np.asarray(scene.scale)
    for drawn, low, high in ((shift[..., 1], -0.03, 0.03), (scale, 0.95, 1.05)):
        inner = (drawn - low) / (high - low)
        assert inner.min() >= -1e-5 and inner.max() <= 1 + 1e-5
        assert abs(np.sort(inner.reshape(-1)) - np.linspace(0, 1, inner.size)).max() < 0.02
    assert abs(np.corrcoef(shift.reshape(-1, 8), rowvar=False) - np.eye(8)).max() < 0.1
    other = draw(jax.random.key(3), ranks, suits, 0.03, 0.05)
    again = draw(jax.random.key(2), ranks, suits, 0.03, 0.05)
    assert (scene.shift == again.shift).all() and (scene.scale == again.scale).all()
    assert (scene.shift != other.shift).mean() > 0.99
    wide = draw(jax.random.key(2), ranks, suits, 0.0, 0.2).scale
    assert 0.8 <= wide.min() < 0.81 and 1.08 < wide.max() <= card_images.LARGEST_SCALE


def test_no_jitter_is_still() -> None:
    ranks, suits = hands(50)
    drawn = card_images.jittered(jax.random.key(0), ranks, suits, 0.0, 0.0)
    leaves = (jax.tree.leaves(scene) for scene in (drawn, card_images.still(ranks, suits)))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("moving", [False, True])
def test_batched_equals_one_by_one_and_traces_once(moving: bool) -> None:
    built = CardTable.build(96, moving)
    traces = []

    def compose(table: CardTable, scene: Scene) -> jax.Array:
        traces.append(None)
        return table.compose(scene)

    one, many = jax.jit(compose), jax.jit(jax.vmap(compose, in_axes=(None, 0)))
    for seed in range(3):
        scene = card_images.jittered(jax.random.key(seed), *hands(8, seed), 0.05, 0.1)
        pictures = np.asarray(many(built, scene))
        for i, picture in enumerate(pictures):
            alone = jax.tree.map(lambda x, i=i: x[i], scene)
            assert (picture == np.asarray(one(built, alone))).all()
    assert len(traces) == 2
    unmoved = many(built, card_images.still(scene.ranks, scene.suits))
    assert bool((pictures == unmoved).all()) != moving


def test_cards_beyond_the_deck_are_no_crash(table: CardTable) -> None:
    scene = card_images.still(jnp.array([0, 99, -5, 12]), jnp.array([0, 0, 0, 3]))
    edges = laid_out(96, [0, 12, 0, 12], [0, 3, 0, 3])
    assert (np.asarray(table.compose(scene)) == edges).all()


@pytest.mark.parametrize("size", [-1, 0, 47])
def test_too_small_to_read(size: int) -> None:
    with pytest.raises(ValueError, match=rf"given {size} pixels, allowed: 48 and more"):
        CardTable.build(size)

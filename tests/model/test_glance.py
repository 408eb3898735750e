"""Packed rows whose conversations look at pictures, against each conversation on its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.model.cache import empty, empty_cross
from gp_virl.model.config import ModelConfig, VisionConfig
from gp_virl.model.decoder import Cross
from gp_virl.model.mllama import abstract

CONFIG = ModelConfig(
    vocab_size=24,
    hidden_size=16,
    groups=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
    value_widths=(8,),
    pattern=("self", "cross"),
    vision=VisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        intermediate_layers_indices=(0,),
    ),
)
IMAGE = CONFIG.vocab_size  # the image token: the first without a column in the head
SHAPE = (24, 16, 3)  # on two tiles, so that two of the four that the tower reads are padding
SIZE, ROOM = 32, 12  # tokens of a row, and of a conversation on its own
BOTH = pytest.mark.parametrize("text_rows", ["mlp", "both"])


@dataclasses.dataclass(frozen=True, eq=False)
class Talk:
    """A conversation of a packed row, `picture` its place among the row's; None without one."""

    row: int
    segment: int
    start: int
    tokens: np.ndarray
    picture: int | None

    @property
    def here(self) -> tuple[int, slice]:
        """Where it stands among the rows' tokens."""
        return self.row, slice(self.start, self.start + len(self.tokens))

    @property
    def since(self) -> int:
        """Its first token that sees the picture; its length if none does."""
        places = np.flatnonzero(self.tokens == IMAGE)
        return len(self.tokens) if self.picture is None or not len(places) else int(places[0])


@functools.cache
def weights(text_rows: str = "mlp"):
    """(graph, params) away from a new model's, whose gates are closed; nothing is compiled."""
    graph, shapes = abstract(dataclasses.replace(CONFIG, text_rows=text_rows))
    draw = np.random.default_rng(1)

    def leaf(path, x):
        middle = float("norm" in jax.tree_util.keystr(path))
        return jnp.asarray(middle + 0.25 * draw.normal(size=x.shape), x.dtype)

    return graph, jax.tree_util.tree_map_with_path(leaf, shapes)


def images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, *SHAPE), dtype=np.uint8)


@functools.cache
def talks() -> list[Talk]:
    """Four rows: (length, places of image tokens, place of the picture) of each conversation."""
    made = [
        [(9, [2], 0), (8, [0], 2), (7, [], None)],
        [(6, [3], None), (10, [1, 4], 2), (7, [3], 0)],  # an image token, but no picture
        [(8, [], None), (9, [4], None)],
        [(9, [], 1), (11, [9], 0), (12, [2], 2)],  # a picture, but no image token; a full row
    ]
    draw, found = np.random.default_rng(2), []
    for row, sizes in enumerate(made):
        start = 0
        for segment, (length, marks, picture) in enumerate(sizes, 1):
            tokens = draw.integers(0, CONFIG.vocab_size, length).astype(np.int32)
            tokens[marks] = IMAGE
            found.append(Talk(row, segment, start, tokens, picture))
            start += length
    return found


@functools.cache
def rows() -> dict[str, np.ndarray]:
    """The conversations packed; pictures in no conversation's slot are there, and nobody's."""
    packed = {name: np.zeros((4, SIZE), np.int32) for name in ("tokens", "positions", "segments")}
    packed["image_segments"] = np.zeros((4, 3), np.int32)
    for talk in talks():
        packed["tokens"][talk.here] = talk.tokens
        packed["positions"][talk.here] = np.arange(len(talk.tokens))
        packed["segments"][talk.here] = talk.segment
        if talk.picture is not None:
            packed["image_segments"][talk.row, talk.picture] = talk.segment
    return packed | {"images": images(3, 4, 3)}


@functools.partial(jax.jit, static_argnums=0)
def read_together(graph, params, tokens, positions, segments, image_segments, images):
    net = nnx.merge(graph, params)
    cross = net.glance(tokens, segments, images, image_segments)
    return net.hidden(tokens, positions, segments, cross)


@functools.partial(jax.jit, static_argnums=0)
def read_alone(graph, params, tokens, image, since):
    """One conversation that sees its picture from `since` on."""
    net, places = nnx.merge(graph, params), jnp.arange(ROOM)
    states = net.see(image[None])
    visible = jnp.broadcast_to((places >= since)[:, None], (1, ROOM, states.shape[1]))
    return net.hidden(tokens[None], places[None], cross=Cross(states, visible))[0]


@functools.partial(jax.jit, static_argnums=0)
def read_blindly(graph, params, tokens):
    """One conversation as a lane that holds no image, and as a model without images reads it."""
    net, count = nnx.merge(graph, params), jnp.array([ROOM])
    nothing = empty_cross(CONFIG, 1, net.features(*SHAPE[:2]))
    lane, _ = net.extend(tokens[None], count, empty(CONFIG, 1, ROOM), nothing)
    return lane[0], net.hidden(tokens[None], jnp.arange(ROOM)[None])[0]


def on_its_own(talk: Talk) -> np.ndarray:
    return np.pad(talk.tokens, (0, ROOM - len(talk.tokens)))


@BOTH
def test_each_conversation_reads_as_on_its_own(text_rows: str) -> None:
    packed = rows()
    hidden = np.asarray(read_together(*weights(text_rows), **packed))
    assert np.isfinite(hidden).all()
    for talk in talks():
        tokens, wanted = on_its_own(talk), []
        if talk.picture is None:
            wanted += read_blindly(*weights(text_rows), tokens)
        else:
            image = packed["images"][talk.row, talk.picture]
            wanted.append(read_alone(*weights(text_rows), tokens, image, talk.since))
        for want in wanted:
            np.testing.assert_allclose(hidden[talk.here], want[: len(talk.tokens)], atol=1e-5)


@BOTH
def test_a_picture_changes_its_own_conversation_alone(text_rows: str) -> None:
    packed = rows()
    before = np.asarray(read_together(*weights(text_rows), **packed))
    for changed in talks():
        if changed.picture is None:
            continue
        other = packed["images"].copy()
        other[changed.row, changed.picture] = images(4)
        after = np.asarray(read_together(*weights(text_rows), **packed | {"images": other}))
        moved = np.abs(after - before).max(-1)
        for talk in talks():
            if talk is not changed:
                assert (moved[talk.here] == 0).all()
        # Tokens before it attend to all of the picture in HF's order, to nothing in Meta's.
        unseen, seen = np.split(moved[changed.here], [changed.since])
        assert (seen > 1e-3).all()
        assert (unseen > 1e-4).all() if text_rows == "mlp" else (unseen == 0).all()


@BOTH
def test_a_slot_without_a_conversation_shows_nothing(text_rows: str) -> None:
    packed = rows()
    empty_slots = packed["image_segments"] == 0
    assert 0 < empty_slots.sum() < empty_slots.size
    other = np.where(empty_slots[..., None, None, None], images(5, 4, 3), packed["images"])
    one = read_together(*weights(text_rows), **packed)
    two = read_together(*weights(text_rows), **packed | {"images": other})
    np.testing.assert_array_equal(one, two)

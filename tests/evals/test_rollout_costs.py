"""Rollout costs by formula against the FLOPs of the traced programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gp_virl.envs.api import Task
from gp_virl.evals import costs
from gp_virl.evals.rollout_costs import (
    Play,
    cache_bytes,
    decode_step,
    executed,
    needed,
    prefill_chunk,
    rollout,
    traffic,
)
from gp_virl.model.cache import empty, empty_cross, empty_reply
from gp_virl.model.config import ModelConfig, preset
from gp_virl.rollout import episodes
from gp_virl.rollout.sampling import Sampling
from gp_virl.types import Context, Verdict
from tests.evals.test_costs import ODD, count_of, flops_of

LANES, ROOM, REPLY = 3, 40, 6
PLAY = Play(lanes=4, turns=3, prompt=20, reply=8, feedback=5, room=64, chunk=6)
# The paper's setting on 512 lanes: five turns of replies of 512 tokens to prompts of 1,024.
PAPER = Play(
    lanes=512, turns=5, prompt=1024, reply=512, feedback=64, room=4096, chunk=256, tiles=4,
    together=32,
)  # fmt: skip


def images_of(config: ModelConfig, tiles: int):
    return empty_cross(config, LANES, costs.features(config, tiles)) if tiles else None


@pytest.mark.parametrize("tiles", [0, 1, 4])
def test_a_chunk(tiles: int) -> None:
    def extend(model, tokens, count):
        return model.extend(tokens, count, empty(ODD, LANES, ROOM), images_of(ODD, tiles))

    tokens, count = jnp.zeros((LANES, 7), jnp.int32), jnp.zeros(LANES, jnp.int32)
    want = prefill_chunk(ODD, LANES, 7, ROOM, tiles).total
    assert flops_of(ODD, extend, tokens, count) == want


@pytest.mark.parametrize("tiles", [0, 1, 4])
def test_a_token(tiles: int) -> None:
    def speak(model, token, column):
        cache, reply = empty(ODD, LANES, ROOM), empty_reply(ODD, LANES, REPLY)
        hidden, reply = model.step(token, column, cache, reply, images_of(ODD, tiles))
        return model.logits(hidden), reply

    want = decode_step(ODD, LANES, ROOM, REPLY, tiles).total
    assert flops_of(ODD, speak, jnp.zeros(LANES, jnp.int32), jnp.int32(0)) == want


class Mute(Task):
    """A task that judges nothing, with pictures of `side` pixels where that isn't 0."""

    stop_ids, outcomes = jnp.zeros(1, jnp.int32), ("solved",)

    def __init__(self, side: int):
        self.side, self.image_token = side, jnp.int32(0) if side else None

    def reset(self, key):
        return jnp.int32(0)

    def scene(self, state):
        return state if self.side else None

    def picture(self, scene):
        return jnp.zeros((self.side, self.side, 3), jnp.uint8) if self.side else None

    def observe(self, state, past):
        return Context(past.tokens, jnp.int32(5))

    def judge(self, state, tokens, length):
        no = jnp.bool_(False)
        return state, Verdict(jnp.int32(0), jnp.float32(0), no, no, no, no, no)

    def answer_start(self, tokens, length):
        return length


def traced(play: Play, trips: tuple[int, ...]) -> int:
    """FLOPs of the program that plays, with so many trips of its loops."""
    game, key = Mute(play.tiles and 2 * ODD.vision.image_size), jax.random.key(0)

    def played(model):
        lanes = episodes.start(game, key, jnp.arange(play.lanes), play.room)
        return episodes.rollout(
            model, game, lanes, key, key, Sampling.of(1.0), round(play.replies), play.reply,
            play.chunk, play.together,
        )  # fmt: skip

    return count_of(ODD, played).total(trips)


def test_a_rollout_of_text() -> None:
    """Loops: in each turn one to read and one to speak, then one to read the next prompt."""
    play = dataclasses.replace(PLAY, turns=1)
    assert play.chunks == 4 + 4
    assert traced(play, (4, play.reply - 1, 4)) == executed(ODD, play).total
    # In several turns each reads as many chunks if prompt and feedback fit one.
    play = dataclasses.replace(PLAY, chunk=20)
    assert traced(play, (1, play.reply - 1, 1)) == executed(ODD, play).total


def test_a_rollout_with_images() -> None:
    """Before each reading is a loop that encodes; of five lanes two at a time take three trips."""
    play = dataclasses.replace(PLAY, lanes=5, turns=1, tiles=4, together=2)
    trips = (3, 4, play.reply - 1, 3, 4)
    assert traced(play, trips) == executed(ODD, play).total
    assert play.encodings == 3 + 3


@pytest.mark.parametrize("tiles", [0, 4])
def test_a_rollout_of_several_conversations(tiles: int) -> None:
    """Each is read, seen and answered; the prompt behind the last one is read and seen once."""
    play = dataclasses.replace(PLAY, lanes=5, turns=1, tiles=tiles, together=2, talks=3)
    look = (3,) if tiles else ()
    trips = (*look, 4, play.reply - 1, *look, 4)
    assert traced(play, trips) == executed(ODD, play).total
    assert play.encodings == (3 * 3 + 3 if tiles else 0)
    one, part = (dataclasses.replace(play, talks=talks) for talks in (1, 1.5))
    next_prompt = needed(ODD, dataclasses.replace(play, talks=0)).total
    talk = needed(ODD, one).total - next_prompt
    assert needed(ODD, play).total == 3 * talk + next_prompt
    assert needed(ODD, part).total == 1.5 * talk + next_prompt
    words = costs.text(ODD, 20, costs.causal_pairs(20), 20 * 148 if tiles else None)
    seen = costs.images(ODD, 1, 4) + costs.looked_at(ODD, 148) if tiles else costs.Work()
    assert next_prompt == 5 * (words + seen + costs.heads(ODD, 0, 1)).total


def test_needed_is_one_pass_over_the_conversations() -> None:
    """A short one, token by token."""
    play, config = Play(2, 2, prompt=5, reply=3, feedback=2, room=20, chunk=4), ODD
    read = 5 + 3 + 2 + 3 - 1
    lane = [costs.text(config, 1, place + 1).total for place in (*range(read), *range(5))]
    said = 2 * 3 * costs.heads(config, 1).total + 3 * costs.heads(config, 0, 1).total
    assert needed(config, play).total == 2 * (sum(lane) + said)
    seen = dataclasses.replace(play, tiles=2)
    features = 2 * 37
    looks = (read + 5) * features
    more = costs.text(config, read + 5, 0, looks).total - costs.text(config, read + 5, 0).total
    more += costs.looked_at(config, 2 * features).total + costs.images(config, 2, 2).total
    assert needed(config, seen).total == needed(config, play).total + 2 * more


def test_a_conversation_must_fit_the_room() -> None:
    with pytest.raises(ValueError, match="5 turns make a conversation of 3840 tokens"):
        dataclasses.replace(PAPER, room=3839)


def test_the_papers_rollout() -> None:
    """About 2N a token and as much for images; decoding reads the weights once for each token."""
    config = preset("11b", images=True)
    whole, cost = costs.parameters(config), rollout(config, PAPER)
    tokens = PAPER.lanes * (PAPER.spoken - 1 + PAPER.prompt)
    read = 2 * whole.named("self_layers", "cross_layers") * tokens
    spoken = 2 * whole.head * PAPER.lanes * 5 * 512
    seen = costs.images(config, 2 * PAPER.lanes, 4).total
    assert cost.flops == pytest.approx(read + spoken + seen, rel=0.1)
    assert cost.flops == cost.flops_recomputed < cost.flops_executed < 1.5 * cost.flops
    steps = 5 * 511 + PAPER.chunks
    weights = steps * whole.named("self_layers", "cross_layers") * 2
    assert cost.bytes.weights == pytest.approx(weights, rel=0.15)
    assert cost.bytes.caches > 2 * cost.bytes.weights


def test_cache_bytes_are_those_of_the_arrays() -> None:
    for tiles in (0, 2):
        play = dataclasses.replace(PLAY, lanes=LANES, room=ROOM + 20, tiles=tiles)
        tokens, reply = empty(ODD, LANES, play.room), empty_reply(ODD, LANES, play.reply)
        made = tokens, reply, images_of(ODD, tiles)
        numbers = [x for x in jax.tree.leaves(made) if x.dtype == jnp.float32]
        assert cache_bytes(ODD, play) == sum(4 * x.size for x in numbers)


def test_traffic_by_hand() -> None:
    """Weights for each chunk, step and logit; rooms for each chunk and step."""
    config = preset("11b")
    whole, moved = costs.parameters(config), traffic(config, PLAY)
    passes = PLAY.chunks + PLAY.steps
    assert PLAY.chunks == 2 * 4 + 2 * 1 and PLAY.steps == 3 * 7
    weights = passes * whole.self_layers + 3 * 8 * whole.head
    assert moved.weights == 2 * weights + (4 + 2) * whole.total
    token = 2 * 32 * 8 * 128 * 2  # bytes of keys and values
    held = 4 * token * (passes * 64 + PLAY.steps * 8)
    new = 4 * token * (10 * 6 + PLAY.steps + 2 * 3 * 8)
    assert moved.caches == held + new
    assert moved.total == moved.weights + moved.caches
    # Of two conversations the weights are cast once, and one prompt is read behind them.
    both = traffic(config, dataclasses.replace(PLAY, talks=2))
    more = (passes - 4) * whole.self_layers + 3 * 8 * whole.head
    assert both.weights - moved.weights == 2 * more
    assert both.caches - moved.caches == held + new - 4 * token * 4 * (64 + 6)

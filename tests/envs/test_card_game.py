"""The card game in tokens against the chat template and the slow verifier."""

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.config import EnvConfig, Rewards
from gp_virl.envs import cards
from gp_virl.envs.api import Task
from gp_virl.envs.card_dialogue import CardTexts
from gp_virl.envs.card_game import CardGame
from gp_virl.envs.card_images import CardTable
from gp_virl.envs.formulas import solve
from gp_virl.envs.general_points import OUTCOMES, new_state
from gp_virl.text.prompts import BRIEF, FULL
from gp_virl.text.replies import byte_bank
from gp_virl.text.template import encode
from gp_virl.text.tokenizer import tiny
from gp_virl.types import Context
from tests import made_replies
from tests.chat import feedback, spliced
from tests.text.bpe import llama_like

REWARDS = {"solved": 5.0, "wrong_value": -1.0, "wrong_numbers": -2.0, "illegal": -3.0}
CONFIG = EnvConfig(
    rule="face_rank",
    target=24,
    suits="all",
    require_face=False,
    max_turns=3,
    hands="all",
    held_out=0.1,
    seed=0,
    modality="text",
    image_size=48,
    jitter_shift=0.0,
    jitter_scale=0.0,
    recognition="replaces",
    rewards=Rewards(**REWARDS, unrecognized=-1.5, exceeded=-0.75),
)
T, BYTES = 64, 160
TINY = tiny()
GAMES = {
    "brief": (TINY, BRIEF, CardGame.build(CONFIG, TINY, BRIEF, T, BYTES)),
    "full, other tokenizer": (
        llama_like(),
        FULL,
        CardGame.build(dataclasses.replace(CONFIG, rule="face_ten"), llama_like(), FULL, T, BYTES),
    ),
}
RULES = {"brief": "face_rank", "full, other tokenizer": "face_ten"}


@jax.jit
@jax.vmap
def start_of(ranks):
    return new_state(ranks, jnp.zeros_like(ranks))


observe = jax.jit(lambda game, state, past: jax.vmap(game.observe)(state, past))
judge = jax.jit(lambda game, state, tokens, n: jax.vmap(game.judge)(state, tokens, n))
answer_start = jax.jit(lambda game, tokens, n: jax.vmap(game.answer_start)(tokens, n))


def said(tokenizer, texts: list[str], ended: list[bool]) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Token rows of replies, with the end token where they ended, cut at T."""
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    rows, length = np.zeros((len(texts), T), np.int32), np.zeros(len(texts), np.int32)
    for row, (ids, whole) in enumerate(zip(encode(tokenizer, texts), ended, strict=True)):
        ids = (ids[: T - 1] + [end]) if whole else ids[:T]
        rows[row, : len(ids)], length[row] = ids, len(ids)
    return jnp.asarray(rows), jnp.asarray(length)


def spelled(tokenizer, tokens) -> bytes:
    return tokenizer.decode(tokens, skip_special_tokens=True).encode()


def made_up(draw: random.Random, values: list[int]) -> str:
    text = made_replies.reply(draw, values, 120).decode("utf-8", "ignore")
    return text.replace("<|", "<")  # no special tokens by their names


def with_replies(context: Context, tokens, length) -> Context:
    rows = np.array(context.tokens)
    for row, (at, n) in enumerate(zip(context.length, length, strict=True)):
        rows[row, at : at + n] = tokens[row, :n]
    return Context(jnp.asarray(rows), context.length + length)


def test_it_is_a_task() -> None:
    assert all(isinstance(game, Task) for _, _, game in GAMES.values())
    assert GAMES["brief"][2].outcomes == OUTCOMES


@pytest.mark.parametrize("name", GAMES)
def test_episodes_against_the_chat_template_and_the_slow_verifier(name: str) -> None:
    """Whole conversations: contexts, outcomes, rewards and ends of 48 lanes at each of 3 tries."""
    tokenizer, wording, game = GAMES[name]
    texts = CardTexts(wording, cards.face_rule(RULES[name]), CONFIG.target)
    draw, lanes = random.Random(name), 48
    ranks = [[draw.randrange(13) for _ in range(4)] for _ in range(lanes)]
    values = [[texts.rule.values[rank] for rank in hand] for hand in ranks]
    asked = [[texts.prompt_text([cards.SYMBOLS[rank] for rank in hand])] for hand in ranks]
    replies: list[list[list[int]]] = [[] for _ in ranks]
    state = start_of(jnp.array(ranks, jnp.int32))
    noise = jnp.full((lanes, game.context_limit), 5, jnp.int32)  # of the lane's last episode
    past = Context(noise, jnp.full(lanes, 9, jnp.int32))
    seen = set()
    for turn in range(CONFIG.max_turns):
        context = observe(game, state, past)
        for lane in range(lanes):
            whole = np.asarray(context.tokens[lane, : context.length[lane]]).tolist()
            assert whole == spliced(tokenizer, asked[lane], replies[lane])
        new = [made_up(draw, hand) for hand in values]
        for lane, hand in enumerate(ranks):
            known = solve(texts.rule, CONFIG.target).solutions(np.array(hand))
            if known and draw.random() < 0.2:
                new[lane] = f'"formula": "{draw.choice(known)}"'
        tokens, length = said(tokenizer, new, [draw.random() < 0.7 for _ in new])
        past = with_replies(context, tokens, length)
        state, verdict = judge(game, state, tokens, length)
        for lane in range(lanes):
            replies[lane].append(np.asarray(tokens[lane, : length[lane]]).tolist())
            text = spelled(tokenizer, replies[lane][-1])[:BYTES]
            outcome, told = feedback(texts, text, values[lane])
            asked[lane].append(told)
            seen.add(outcome)
            assert game.outcomes[verdict.outcome[lane]] == outcome, text
            last = outcome != "solved" and turn + 1 == CONFIG.max_turns
            reward = REWARDS[outcome] + last * CONFIG.rewards.exceeded
            assert float(verdict.reward[lane]) == reward
            assert bool(verdict.solved[lane]) == (outcome == "solved")
            assert bool(verdict.terminated[lane]) == (outcome == "solved" or last)
            assert not verdict.truncated[lane]
    assert seen == set(REWARDS)


@pytest.mark.parametrize("name", GAMES)
def test_answer_start_counts_the_tokens_before_the_last_answer_field(name: str) -> None:
    tokenizer, wording, game = GAMES[name]
    draw = random.Random(3)
    texts = CardTexts(wording, cards.face_rule(RULES[name]), 24)
    field, replies = wording.answer_field, []
    for _ in range(100):
        hand = [draw.randint(1, 10) for _ in range(4)]
        expert = texts.expert_reply(list(map(str, hand)), hand, "1+2*3-4", 24)
        replies.append(draw.choice((expert, made_up(draw, hand), expert + expert, expert[:70])))
    replies += ["", field, field * 2, "7" + field, field[:-1], f"é1{field}"]
    tokens, length = said(tokenizer, replies, [draw.random() < 0.5 for _ in replies])
    got = answer_start(game, tokens, length)
    bytes_of = np.asarray(byte_bank(tokenizer).length)
    for row, n, found in zip(np.asarray(tokens), length, got, strict=True):
        row = row[:n].tolist()
        ends = np.cumsum([bytes_of[token] for token in row])
        place = spelled(tokenizer, row)[:BYTES].rfind(field.encode())
        want = len(row) if place < 0 else int((ends <= place).sum())
        assert found == want, (row, place)


def test_an_answer_field_is_not_found_around_the_ends_of_what_is_read() -> None:
    game = CardGame.build(CONFIG, TINY, BRIEF, T, reply_bytes=12)
    field = BRIEF.answer_field
    text = field[5:] + "7" * (12 - len(field)) + field[:5]
    tokens, length = said(TINY, [text, "7" * (12 - len(field)) + field], [False, False])
    got = answer_start(game, tokens, length)
    assert got[0] == length[0]
    assert got[1] < length[1]


PICTURED = dataclasses.replace(CONFIG, modality="image", suits="black", jitter_shift=0.05)


def test_a_picture_of_the_hand_stands_in_for_its_names() -> None:
    game = CardGame.build(PICTURED, TINY, BRIEF, T, BYTES)
    assert isinstance(game, Task)
    state = jax.vmap(game.reset)(jax.random.split(jax.random.key(5), 4))
    blank = Context(jnp.zeros((4, game.context_limit), jnp.int32), jnp.zeros(4, jnp.int32))
    context = observe(game, state, blank)
    text = CardTexts(BRIEF, cards.face_rule("face_rank"), 24, pictured=True).prompt_text([])
    for lane in range(4):
        whole = np.asarray(context.tokens[lane, : context.length[lane]]).tolist()
        assert whole == spliced(TINY, [text], [])
        assert whole.count(int(game.image_token)) == 1
    pictures = jax.jit(jax.vmap(lambda s: game.picture(game.scene(s))))(state)
    assert pictures.shape == (4, 48, 48, 3) and pictures.dtype == jnp.uint8
    compose = jax.jit(CardTable.build(48).compose)
    for lane in range(4):
        scene = jax.tree.map(lambda leaf, lane=lane: leaf[lane], state.scene)
        assert (pictures[lane] == compose(scene)).all()
        assert (scene.ranks == state.ranks[lane]).all()
        assert float(jnp.abs(scene.shift).max()) > 0


def test_a_text_game_has_no_pictures() -> None:
    game = GAMES["brief"][2]
    state = game.reset(jax.random.key(0))
    assert game.scene(state) is None and game.picture(None) is None and game.image_token is None


def test_the_named_cards_are_judged_and_told_wrong() -> None:
    game = CardGame.build(PICTURED, TINY, BRIEF, T, BYTES)
    texts = CardTexts(BRIEF, cards.face_rule("face_rank"), 24, pictured=True)
    state = start_of(jnp.array([[0, 1, 2, 3]] * 3, jnp.int32))
    sayings = [(["3", "2", "A", "4"], True), (["A", "2", "3", "K"], True), (["A"] * 4, False)]
    replies = [texts.expert_reply(s, [1, 2, 3, 4], "1*2*3*4", 24) for s, _ in sayings]
    tokens, length = said(TINY, replies, [ended for _, ended in sayings])
    context = Context(jnp.zeros((3, game.context_limit), jnp.int32), jnp.zeros(3, jnp.int32))
    context = with_replies(observe(game, state, context), tokens, length)
    state, verdict = judge(game, state, tokens, length)
    assert verdict.recognized.tolist() == [True, False, False]
    assert verdict.reward.tolist() == [5.0, -1.5, -1.5]
    assert verdict.solved.tolist() == verdict.terminated.tolist() == [True, False, False]
    context = observe(game, state, context)
    for lane in (1, 2):
        whole = np.asarray(context.tokens[lane, : context.length[lane]]).tolist()
        reply = np.asarray(tokens[lane, : length[lane]]).tolist()
        assert whole == spliced(TINY, [texts.prompt_text([]), "Unrecognized"], [reply])


def test_a_picture_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="picture size: given 8 pixels"):
        CardGame.build(dataclasses.replace(PICTURED, image_size=8), TINY, BRIEF, T, BYTES)


def test_what_lies_behind_the_bytes_read_does_not_count() -> None:
    state = start_of(jnp.array([[0, 1, 2, 3]] * 2, jnp.int32))
    good = '"formula": "1*2*3*4"'
    tokens, length = said(TINY, [good, "7" * 40 + good], [True, True])
    for size, solved in ((160, [True, True]), (50, [True, False])):
        game = CardGame.build(CONFIG, TINY, BRIEF, T, reply_bytes=size)
        assert judge(game, state, tokens, length)[1].solved.tolist() == solved

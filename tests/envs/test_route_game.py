"""Navigation in tokens against the chat template and the slow reader of replies."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jaxtyping import Array, UInt8

from gp_virl.envs import routes
from gp_virl.envs.api import Task
from gp_virl.envs.navigation import ACTIONS, OUTCOMES, PAPER_REWARDS, new_state
from gp_virl.envs.route_dialogue import RouteDialogue
from gp_virl.envs.route_game import RouteGame
from gp_virl.envs.route_texts import RouteTexts, fetched
from gp_virl.text.route_prompts import BRIEF, FULL
from gp_virl.text.route_tokenizer import tiny_routes
from gp_virl.text.template import TemplateError, encode
from gp_virl.types import Context
from tests import route_oracle
from tests.chat import spliced
from tests.envs.made_routes import ROUTES
from tests.text.bpe import llama_like

BANK, NAMES, _ = routes.bank(ROUTES)
T, BYTES = 160, 300
TINY, LLAMA = tiny_routes(("Prince", " St", "Intersection", " Cafe")), llama_like()
REWARD = {"correct": 1.0, "wrong_action": -1.0, "not_detected": -1.5}


@struct.dataclass
class Greys:
    """Pictures of one grey: the panorama and the heading."""

    def picture(self, pano: Array, heading: Array) -> UInt8[Array, "H W 3"]:
        return jnp.broadcast_to((pano * 7 + heading % 7).astype(jnp.uint8), (2, 2, 3))


def made(rule: str, tokenizer, wording, views) -> RouteGame:
    return RouteGame.build(
        BANK, NAMES, rule, 2, PAPER_REWARDS, tokenizer, wording, views, T, BYTES
    )  # fmt: skip


GAMES = {
    "told, absolute, brief": (TINY, BRIEF, made("absolute", TINY, BRIEF, None)),
    "told, relative, brief": (TINY, BRIEF, made("relative", TINY, BRIEF, None)),
    "told, relative, full": (LLAMA, FULL, made("relative", LLAMA, FULL, None)),
    "seen, absolute, brief": (TINY, BRIEF, made("absolute", TINY, BRIEF, Greys())),
}
observe = jax.jit(lambda game, state, past: jax.vmap(game.observe)(state, past))
judge = jax.jit(lambda game, state, tokens, n: jax.vmap(game.judge)(state, tokens, n))


def plain_observation(route: routes.Route, waypoint: int, words) -> tuple[str, str, bool]:
    """(what the expert says it sees, the landmark's name or "", intersection)."""
    here = route.waypoints[waypoint]
    if here.kind == "stop":
        leg = route.legs[-1]
        return f"The destination {leg.landmark} is on your {leg.side}", leg.landmark, False
    text = "No landmarks nearby"
    if here.landmark:
        text = f"{here.landmark} is on your {here.side}"
    text += "; " + words.intersection if here.intersection else ""
    return text, here.landmark or "", here.intersection


def plain_prompt(route, waypoint: int, rule: str, start: int, words, seen: bool) -> str:
    """The prompt put together by hand from the route."""
    lines, before = [], start
    for index, leg in enumerate(route.legs):
        turn = words.turn_absolute if rule == "absolute" else words.turn_relative
        word = routes.turn_word(rule, before, leg.heading)
        last = index + 1 == len(route.legs)
        walk = words.arrive if last else words.onward_landmark if leg.landmark else words.onward
        lines.append(turn.replace("{direction}", word))
        place = walk.replace("{landmark}", leg.landmark or "").replace("{side}", leg.side or "")
        lines.append(place)
        before = leg.heading
    numbered = [
        words.item.replace("{number}", str(n + 1)).replace("{sentence}", line)
        for n, line in enumerate(lines)
    ]

    def observed(w: int) -> str:
        text, _, crossing = plain_observation(route, w, words)
        return (words.intersection if crossing else words.no_intersection) if seen else text

    steps = ""
    for w in range(waypoint):
        here = route.waypoints[w]
        action = routes.action(here, rule, start if here.heading is None else here.heading)
        steps += words.step.replace("{action}", action).replace("{observation}", observed(w))
    parts = {"{rule}": getattr(words, rule), "{instructions}": "".join(numbered)}
    parts |= {"{history}": steps, "{observation}": observed(waypoint)}
    prompt = words.prompt
    for slot, text in parts.items():
        prompt = prompt.replace(slot, text)
    return "<|image|>" * seen + prompt


def plain_feedback(words, found: dict) -> str:
    known = found["action"] in ACTIONS
    if found["outcome"] == "correct":
        return words.correct
    if found["outcome"] == "wrong_action":
        return words.wrong_action.replace("{action}", found["action"]) if known else words.no_action
    missed = found["landmark"], found["intersection"]
    texts = {(True, True): words.missed_both, (True, False): words.missed_landmark}
    return texts.get(missed, words.missed_intersection)


def said(tokenizer, texts: list[str], ended: list[bool]) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Token rows of replies, with the end token where they ended, cut at T."""
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    rows, length = np.zeros((len(texts), T), np.int32), np.zeros(len(texts), np.int32)
    for row, (ids, whole) in enumerate(zip(encode(tokenizer, texts), ended, strict=True)):
        ids = (ids[: T - 1] + [end]) if whole else ids[:T]
        rows[row, : len(ids)], length[row] = ids, len(ids)
    return jnp.asarray(rows), jnp.asarray(length)


def with_replies(context: Context, tokens, length) -> Context:
    rows = np.array(context.tokens)
    for row, (at, n) in enumerate(zip(context.length, length, strict=True)):
        rows[row, at : at + n] = tokens[row, :n]
    return Context(jnp.asarray(rows), context.length + length)


def start_of(pairs: list[tuple[int, int]]):
    return jax.vmap(new_state)(*(jnp.array(x, jnp.int32) for x in zip(*pairs, strict=True)))


def made_up(draw: random.Random, text: str, action: str) -> str:
    """A reply that sees `text` and does `action`, often with something wrong."""
    if draw.random() < 0.3:
        action = draw.choice([*ACTIONS, "jump()", action[:-1]])
    if draw.random() < 0.3:
        text = draw.choice(["No landmarks nearby", "Prince St is on your left", text + "; ", ""])
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    reply = f'{{"current observation": "{text}", "current instruction": "x", "action": "{action}"}}'
    if draw.random() < 0.15:
        at = draw.randrange(len(reply))
        reply = reply[:at] + draw.choice(["", '"', "'", "\\", "é"]) + reply[at + 1 :]
    return reply


def test_it_is_a_task() -> None:
    assert all(isinstance(game, Task) for _, _, game in GAMES.values())
    assert all(game.outcomes == OUTCOMES for _, _, game in GAMES.values())
    assert GAMES["told, absolute, brief"][2].turn_limit == 2 * BANK.kind.shape[1]


@pytest.mark.parametrize("name", GAMES)
def test_walks_against_the_chat_template_and_the_slow_reader(name: str) -> None:
    """Whole walks of 20 lanes: every context, verdict and end, at new waypoints and new tries."""
    tokenizer, words, game = GAMES[name]
    rule = "absolute" if "absolute" in name else "relative"
    draw, lanes = random.Random(name), 20
    # A given start heading is part of the route; others are drawn.
    pairs = [
        (
            lane % 5,
            draw.randrange(360) if (given := ROUTES[lane % 5].start_heading) is None else given,
        )
        for lane in range(lanes)
    ]
    state = start_of(pairs)
    past = Context(jnp.full((lanes, game.context_limit), 5, jnp.int32), jnp.full(lanes, 9))
    at, over = [0] * lanes, [False] * lanes
    asked: list[list[str]] = [[] for _ in pairs]
    replies: list[list[list[int]]] = [[] for _ in pairs]
    seen: set[str] = set()
    ends: set[tuple[bool, bool]] = set()
    for _ in range(14):
        context = observe(game, state, past)
        new, truths = [], []
        for lane, (index, start) in enumerate(pairs):
            route = ROUTES[index]
            if not over[lane]:
                if not replies[lane]:
                    asked[lane] = [
                        plain_prompt(route, at[lane], rule, start, words, "seen" in name)
                    ]
                whole = np.asarray(context.tokens[lane, : context.length[lane]]).tolist()
                assert whole == spliced(tokenizer, asked[lane], replies[lane])
            here = route.waypoints[at[lane]]
            text, landmark, crossing = plain_observation(route, at[lane], words)
            action = routes.action(here, rule, start if here.heading is None else here.heading)
            truths.append((action, landmark, crossing))
            new.append(made_up(draw, text, action))
        tokens, length = said(tokenizer, new, [draw.random() < 0.7 for _ in new])
        past = with_replies(context, tokens, length)
        state, verdict = judge(game, state, tokens, length)
        for lane in range(lanes):
            if over[lane]:
                continue
            replies[lane].append(np.asarray(tokens[lane, : length[lane]]).tolist())
            text = tokenizer.decode(replies[lane][-1], skip_special_tokens=True)
            assert len(text.encode()) <= BYTES
            found = route_oracle.judged(text, *truths[lane])
            seen.add(found["outcome"])
            assert game.outcomes[verdict.outcome[lane]] == found["outcome"], text
            correct = found["outcome"] == "correct"
            failed = not correct and len(replies[lane]) == 2
            done = correct and at[lane] + 1 == len(ROUTES[pairs[lane][0]].waypoints)
            assert float(verdict.reward[lane]) == REWARD[found["outcome"]] - failed
            assert bool(verdict.solved[lane]) == done
            assert bool(verdict.terminated[lane]) == (done or failed)
            asked[lane].append(plain_feedback(words, found))
            if correct and not done:
                at[lane], replies[lane] = at[lane] + 1, []
            over[lane] = done or failed
            ends.add((done, failed))
        state = state.replace(tries=jnp.where(jnp.array(over), 0, state.tries))  # as if reset
    assert seen == set(REWARD) and ends == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize("name", GAMES)
def test_expert_replies_reach_the_destination(name: str) -> None:
    """The replies that data are made of are read, right, and as the compiled prompt says."""
    tokenizer, words, game = GAMES[name]
    texts = RouteTexts(words, NAMES, "seen" in name)
    pairs = [(index, 77) for index in range(len(ROUTES))]
    state = start_of(pairs)
    ways = fetched(jax.vmap(game.env.journey)(state))
    longest = max(len(route.waypoints) for route in ROUTES)
    solved = np.zeros(len(pairs), bool)
    for turn in range(longest):
        told = [
            texts.expert_reply(fetched(ways, lane), min(turn, int(ways.length[lane]) - 1))
            for lane in range(len(pairs))
        ]
        tokens, length = said(tokenizer, told, [True] * len(told))
        state, verdict = judge(game, state, tokens, length)
        playing = turn < ways.length
        assert (np.asarray(verdict.outcome)[playing] == 0).all()
        assert not np.asarray(state.fault.landmark | state.fault.intersection)[playing].any()
        solved |= np.asarray(verdict.solved)
    assert solved.all()


def test_prompts_of_one_route_share_their_beginnings_and_are_short() -> None:
    _, _, game = GAMES["told, absolute, brief"]
    state = start_of([(4, 10)] * 6).replace(waypoint=jnp.arange(6), tries=jnp.zeros(6, jnp.int32))
    blank = Context(jnp.zeros((6, game.context_limit), jnp.int32), jnp.zeros(6, jnp.int32))
    context = observe(game, state, blank)
    rows = [np.asarray(t[:n]).tolist() for t, n in zip(context.tokens, context.length, strict=True)]
    for early, late in itertools.pairwise(rows):
        shared = next(i for i, (a, b) in enumerate(zip(early, late, strict=False)) if a != b)
        assert shared > 0.5 * len(early)
    assert game.context_limit >= max(map(len, rows)) + 2 * T


def test_the_visual_prompt_gives_no_landmark_away() -> None:
    tokenizer, words, game = GAMES["seen, absolute, brief"]
    route = ROUTES[0]
    state = start_of([(0, 5)]).replace(waypoint=jnp.array([3]))
    blank = Context(jnp.zeros((1, game.context_limit), jnp.int32), jnp.zeros(1, jnp.int32))
    context = observe(game, state, blank)
    text = tokenizer.decode(context.tokens[0, : context.length[0]])
    story = text.split("done\n")[1]
    assert not any(name in story for name in NAMES) and "is on your" not in story
    assert text.count("<|image|>") == 1 and words.intersection in story
    assert int(game.image_token) == tokenizer.convert_tokens_to_ids("<|image|>")
    scene = game.scene(jax.tree.map(lambda x: x[0], state))
    assert int(scene.heading) == route.waypoints[3].heading
    assert int(game.picture(scene)[0, 0, 0]) == int(scene.pano) * 7 + int(scene.heading) % 7
    told = GAMES["told, absolute, brief"][2]
    assert told.scene(state) is None and told.picture(None) is None and told.image_token is None


def test_answer_start_counts_the_tokens_before_the_last_answer_field() -> None:
    tokenizer, words, game = GAMES["told, absolute, brief"]
    field = '{"current observation": "x", "action": "stop()"}'
    tokens, length = said(tokenizer, [field, "nothing", field * 2], [True] * 3)
    got = jax.vmap(game.answer_start)(tokens, length)
    for row, n, found in zip(np.asarray(tokens), length, got, strict=True):
        before = [tokenizer.decode(row[:k], skip_special_tokens=True) for k in range(int(n) + 1)]
        place = before[-1].rfind(words.answer_field)
        want = (
            int(n) if place < 0 else max(k for k, text in enumerate(before) if len(text) <= place)
        )
        assert int(found) == want


def test_both_rules_are_one_program() -> None:
    traced = []

    @jax.jit
    def turn(game, state, past, tokens, length):
        traced.append(1)
        return jax.vmap(game.judge)(state, tokens, length), jax.vmap(game.observe)(state, past)

    for name in ("told, absolute, brief", "told, relative, brief"):
        game = GAMES[name][2]
        past = Context(jnp.zeros((2, game.context_limit), jnp.int32), jnp.zeros(2, jnp.int32))
        turn(game, start_of([(0, 1), (1, 2)]), past, *said(TINY, ["a", "b"], [True, True]))
    assert len(traced) == 1


def test_a_game_on_some_routes_is_the_same_program_and_limit() -> None:
    _, _, whole = GAMES["told, absolute, brief"]
    game = RouteGame.build(
        BANK, NAMES, "absolute", 2, PAPER_REWARDS, TINY, BRIEF, None, T, BYTES, [3, 1]
    )  # fmt: skip
    state = jax.vmap(game.reset)(jax.random.split(jax.random.key(1), 200))
    assert set(state.route.tolist()) == {1, 3}
    assert jax.tree.structure(game) == jax.tree.structure(whole)
    pairs = zip(jax.tree.leaves(game), jax.tree.leaves(whole), strict=True)
    assert all(one.shape == other.shape for one, other in pairs)


def test_a_wording_that_does_not_compose_is_refused() -> None:
    words = dataclasses.replace(BRIEF, landmark="{landmark}side is on your {side}")
    with pytest.raises(TemplateError, match="inside the whole string"):
        RouteDialogue.build(TINY, words, NAMES, 3, False)
    with pytest.raises(TemplateError, match="spells a special token"):
        RouteDialogue.build(TINY, BRIEF, ("A", "<|eot_id|>"), 3, False)

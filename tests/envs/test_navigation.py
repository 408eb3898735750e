"""Navigation against routes told plainly: whole walks, every verdict, every kind of end."""

import json
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.envs import navigation, routes
from gp_virl.envs.navigation import ACTIONS, OUTCOMES, PAPER_REWARDS, Navigation, new_state
from gp_virl.envs.route_files import read_routes
from gp_virl.text.route_replies import NAME_BYTES, RouteAnswer, byte_rows
from tests.envs.made_routes import ROUTES, route

DATA = Path(__file__).parent.parent / "data"
BANK, NAMES, PANOS = routes.bank(ROUTES)
ENVS = {rule: Navigation.build(BANK, NAMES, rule, 2, PAPER_REWARDS) for rule in routes.RULES}
step = jax.jit(lambda env, state, answer: jax.vmap(env.step)(state, answer))
journey = jax.jit(lambda env, state: jax.vmap(env.journey)(state))
REWARD = {"correct": 1.0, "wrong_action": -1.0, "not_detected": -1.5}


def start_of(pairs: list[tuple[int, int]]) -> navigation.State:
    return jax.vmap(new_state)(*(jnp.array(x, jnp.int32) for x in zip(*pairs, strict=True)))


def answers(said: list[tuple[str, str | None, bool]]) -> RouteAnswer:
    """Replies (action, landmark's name or None for no observation, intersection claimed)."""
    names = byte_rows([name or "" for _, name, _ in said], NAME_BYTES)
    return RouteAnswer(
        action=jnp.array([ACTIONS.index(a) if a in ACTIONS else -1 for a, _, _ in said]),
        observed=jnp.array([name is not None for _, name, _ in said]),
        name=jnp.asarray(names),
        name_length=jnp.asarray((names != 0).sum(1).astype(np.int32)),
        intersection=jnp.array([crossing for _, _, crossing in said]),
    )


def expert(route: routes.Route, waypoint: int, rule: str, start: int) -> tuple[str, str, bool]:
    """(action, landmark's name or "", intersection) at a waypoint, from the route itself."""
    here = route.waypoints[waypoint]
    before = start if here.heading is None else here.heading
    arrived = here.kind == "stop"
    landmark = route.legs[-1].landmark if arrived else here.landmark
    crossing = here.intersection and not arrived
    return routes.action(here, rule, before), landmark or "", crossing


@pytest.mark.parametrize("rule", routes.RULES)
def test_walks_with_wrong_and_right_replies(rule: str) -> None:
    """64 lanes, all routes, any start heading: verdicts, states and ends against plain Python."""
    env, draw, lanes = ENVS[rule], random.Random(rule), 64
    pairs = [(lane % len(ROUTES), draw.randrange(360)) for lane in range(lanes)]
    state = start_of(pairs)
    at, tries, over = [0] * lanes, [0] * lanes, [False] * lanes
    ends, seen = set(), set()
    for turn in range(30):
        truths = [
            expert(ROUTES[index], at[lane], rule, start)
            for lane, (index, start) in enumerate(pairs)
        ]
        said = []
        for action, name, crossing in truths:
            action = action if draw.random() < 0.7 else draw.choice([*ACTIONS, "jump()"])
            name = name if draw.random() < 0.6 else draw.choice(["", None, *NAMES])
            said.append((action, name, crossing if draw.random() < 0.8 else not crossing))
        state, verdict = step(env, state, answers(said))
        for lane, (truth, reply) in enumerate(zip(truths, said, strict=True)):
            if over[lane]:
                continue
            correct, seeing = reply[0] == truth[0], reply[1:] == truth[1:]
            outcome = "correct" if correct else "wrong_action" if seeing else "not_detected"
            tries[lane] += 1
            done = correct and at[lane] + 1 == len(ROUTES[pairs[lane][0]].waypoints)
            exceeded = not correct and tries[lane] == 2
            assert OUTCOMES[verdict.outcome[lane]] == outcome
            assert float(verdict.reward[lane]) == REWARD[outcome] - exceeded
            assert bool(verdict.solved[lane]) == done
            assert bool(verdict.terminated[lane]) == (done or exceeded)
            assert not verdict.truncated[lane]
            assert bool(verdict.recognized[lane]) == seeing
            assert bool(verdict.closed[lane]) == (correct or exceeded)
            assert int(state.turn[lane]) == turn + 1
            assert bool(state.fault.landmark[lane]) == (reply[1] != truth[1])
            assert bool(state.fault.intersection[lane]) == (reply[2] != truth[2])
            if correct and not done:
                at[lane], tries[lane] = at[lane] + 1, 0
            if not over[lane] and not done and not exceeded:
                assert int(state.waypoint[lane]) == at[lane]
                assert int(state.tries[lane]) == tries[lane]
            over[lane] = done or exceeded
            ends.add((done, exceeded))
            seen.add((outcome, tries[lane]))
    assert ends == {(False, False), (True, False), (False, True)}
    assert {("wrong_action", 1), ("not_detected", 1), ("correct", 0)} <= seen


@pytest.mark.parametrize("rule", routes.RULES)
def test_the_experts_replies_reach_every_destination(rule: str) -> None:
    env = ENVS[rule]
    pairs = [(index, start) for index in range(len(ROUTES)) for start in range(0, 360, 7)]
    state, way = start_of(pairs), journey(env, start_of(pairs))
    for turn in range(BANK.kind.shape[1]):
        lengths = [len(ROUTES[index].waypoints) for index, _ in pairs]
        at = [min(turn, length - 1) for length in lengths]
        truths = [
            expert(ROUTES[index], w, rule, start)
            for (index, start), w in zip(pairs, at, strict=True)
        ]
        for lane, w in enumerate(at):
            assert ACTIONS[way.action[lane, w]] == truths[lane][0], (pairs[lane], w)
        state, verdict = step(env, state, answers(truths))
        playing = np.array(lengths) > turn
        last = np.array(lengths) == turn + 1
        assert (np.asarray(verdict.reward)[playing] == 1).all()
        assert (np.asarray(verdict.solved)[playing] == last[playing]).all()
        assert (np.asarray(verdict.terminated)[playing] == last[playing]).all()


def test_sentences_scenes_and_headings_are_the_routes() -> None:
    pairs = [(index, 33) for index in range(len(ROUTES))]
    way = journey(ENVS["relative"], start_of(pairs))
    for lane, (index, start) in enumerate(pairs):
        for w, here in enumerate(ROUTES[index].waypoints):
            assert int(way.sentence[lane, w]) == here.sentence
            assert PANOS[way.pano[lane, w]] == here.pano
            state = new_state(jnp.int32(index), jnp.int32(start)).replace(waypoint=jnp.int32(w))
            scene = ENVS["relative"].scene(state)
            assert PANOS[scene.pano] == here.pano
            assert int(scene.heading) == (start if here.heading is None else here.heading)


def test_turns_are_those_of_the_golden_routes() -> None:
    bank, names, _ = routes.bank(read_routes(DATA / "route_infos.json", 0))
    checked = 0
    for case in json.loads((DATA / "route_turns.json").read_text()):
        if case["route"] >= len(bank.length):
            continue
        state = new_state(jnp.int32(case["route"]), jnp.int32(case["start_heading"]))
        for rule in routes.RULES:
            env = Navigation.build(bank, names, rule, 2, PAPER_REWARDS)
            said = [ACTIONS[action] for action in env.journey(state).action]
            wanted = [turn[rule] for turn in case["turns"]]
            assert said[: len(wanted) + 1] == [*wanted, "stop()"]
            checked += len(wanted)
    assert checked >= 50


def test_a_given_start_heading_stays_and_others_are_drawn_evenly() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    state = jax.vmap(ENVS["absolute"].reset)(keys)
    route, start = np.asarray(state.route), np.asarray(state.start)
    assert (np.bincount(route) > 700).all()
    given = np.asarray(BANK.start_heading)[route]
    assert (start[given >= 0] == given[given >= 0]).all()
    drawn = start[given < 0]
    assert drawn.min() < 4 and drawn.max() > 355
    assert (np.bincount(drawn // 45, minlength=8) > drawn.size / 8 * 0.75).all()
    assert (state.turn == 0).all() and (state.fault.outcome == -1).all()


def test_only_allowed_routes_are_drawn_each_as_often() -> None:
    keys = jax.random.split(jax.random.key(0), 3000)
    reset = jax.jit(lambda env, keys: jax.vmap(env.reset)(keys))
    last = len(ROUTES) - 1
    for allowed in ([1, last], [0], list(range(len(ROUTES)))):
        env = Navigation.build(BANK, NAMES, "absolute", 2, PAPER_REWARDS, allowed)
        drawn = np.bincount(np.asarray(reset(env, keys).route), minlength=len(ROUTES))
        assert (drawn[allowed] > 0.8 * 3000 / len(allowed)).all() and drawn.sum() == 3000
        assert drawn[allowed].sum() == 3000
        pairs = zip(jax.tree.leaves(env), jax.tree.leaves(ENVS["relative"]), strict=True)
        assert all(one.shape == other.shape for one, other in pairs)
    whole = reset(ENVS["absolute"], keys)
    assert (reset(env, keys).route == whole.route).all()


def test_one_program_plays_both_rules() -> None:
    traced = []

    @jax.jit
    def play(env, state, answer):
        traced.append(1)
        return jax.vmap(env.step)(state, answer)

    pairs = [(0, 10), (1, 20)]
    for env in ENVS.values():
        play(env, start_of(pairs), answers([("stop()", "A", False)] * 2))
    assert len(traced) == 1


def test_turns_wrap_around_north() -> None:
    made = [route("w", [(10, "A", "left"), (350, "B", "left")], [0, 0])]
    bank, names, _ = routes.bank(made)
    env = Navigation.build(bank, names, "relative", 2, PAPER_REWARDS)
    way = env.journey(new_state(jnp.int32(0), jnp.int32(350)))
    said = [ACTIONS[index] for index in way.action]
    assert said[0] == "turn_direction(slightly right)"
    assert said[1] == "turn_direction(slightly left)" and said[2] == "stop()"


def test_build_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="'clockwise', allowed: absolute, relative"):
        Navigation.build(BANK, NAMES, "clockwise", 2, PAPER_REWARDS)
    with pytest.raises(ValueError, match="at most 128 bytes"):
        Navigation.build(BANK, (*NAMES[1:], "n" * 129), "absolute", 2, PAPER_REWARDS)
    for allowed in ([], [len(ROUTES)], [0, -1], [0, 0]):
        with pytest.raises(ValueError, match=f"routes to draw from: given .*0..{len(ROUTES) - 1}"):
            Navigation.build(BANK, NAMES, "absolute", 2, PAPER_REWARDS, allowed)
    bank, names, _ = routes.bank([ROUTES[0], route("x", [(10, None, None)], [0])])
    with pytest.raises(ValueError, match="the destination of route 1"):
        Navigation.build(bank, names, "absolute", 2, PAPER_REWARDS)

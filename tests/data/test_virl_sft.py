import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.data import pipeline, virl_sft
from gp_virl.data.pictures import decoded
from gp_virl.data.virl_sft import FORMAT, VirlSft, VirlSftConfig
from gp_virl.envs import routes
from gp_virl.envs.navigation import ACTIONS, OUTCOMES, PAPER_REWARDS, new_state
from gp_virl.envs.route_game import RouteGame
from gp_virl.envs.street_views import StreetViews
from gp_virl.text.route_prompts import BRIEF
from gp_virl.text.route_tokenizer import tiny_routes
from gp_virl.text.template import encode
from gp_virl.types import Context
from tests import route_oracle
from tests.envs.made_routes import ROUTES, route

BANK, NAMES, PANOS = routes.bank(ROUTES)
TINY = tiny_routes(("Prince", " St", " Cafe"))
T, ERRORS, LANES = 120, 2, 30
DRAW = np.random.default_rng(0)
SEEN = DRAW.integers(0, 256, (len(PANOS), 32, 64, 3), np.uint8)
TURNS = DRAW.uniform(0, 360, len(PANOS))
VIEWS = StreetViews.build(SEEN, TURNS, 24)
GIVEN = {
    "bank": BANK,
    "names": NAMES,
    "rules": {"relative": 0.3, "absolute": 0.7},
    "examples": 600,
    "suboptimal": 0.5,
    "max_errors": ERRORS,
}
TOLD, SHOWN = VirlSftConfig(**GIVEN), VirlSftConfig(**GIVEN, views=VIEWS)
observe = jax.jit(lambda game, state, past: jax.vmap(game.observe)(state, past))
judge = jax.jit(lambda game, state, tokens, n: jax.vmap(game.judge)(state, tokens, n))


@pytest.fixture(scope="module", params=[TOLD, SHOWN], ids=["told", "shown"])
def config(request: pytest.FixtureRequest) -> VirlSftConfig:
    return request.param


@pytest.fixture(scope="module")
def made(config: VirlSftConfig) -> list[dict]:
    return list(virl_sft.dialogues(config))


def game_of(config: VirlSftConfig, rule: str) -> RouteGame:
    return RouteGame.build(
        BANK, NAMES, rule, ERRORS + 1, PAPER_REWARDS, TINY, BRIEF, config.views, T, 400
    )


def put(rows: np.ndarray, at: np.ndarray, texts: list[str]) -> tuple[np.ndarray, ...]:
    """(rows with the replies' tokens at these places, those tokens [n T], their counts)."""
    end = TINY.convert_tokens_to_ids("<|eot_id|>")
    rows, said, count = rows.copy(), np.zeros((len(rows), T), np.int32), []
    for row, ids in enumerate(encode(TINY, texts)):
        said[row, : len(ids) + 1] = [*ids, end]
        count.append(len(ids) + 1)
        rows[row, at[row] : at[row] + count[-1]] = said[row, : count[-1]]
    return rows, said, np.array(count)


@pytest.mark.parametrize("rule", routes.RULES)
def test_conversations_are_those_of_the_game(
    config: VirlSftConfig, made: list[dict], rule: str
) -> None:
    """Played in tokens: same contexts, failed tries fail, the feedback is the game's, experts are
    right."""
    talks = pipeline.tokenized(made, TINY)
    pairs = [(e, talks[i]) for i, e in enumerate(made) if e["rule"] == rule]
    game = game_of(config, rule)
    for errors in range(ERRORS + 1):
        some = [(e, item) for e, item in pairs if e["errors"] == errors][:LANES]
        assert len(some) == LANES
        names = ("route", "start", "waypoint")
        where = [jnp.array([e[name] for e, _ in some]) for name in names]
        state = jax.vmap(new_state)(*where[:2]).replace(waypoint=where[2])
        blank = np.zeros((len(some), game.context_limit), np.int32)
        past = Context(jnp.asarray(blank), jnp.zeros(len(some), jnp.int32))
        for turn in range(errors + 1):
            context = observe(game, state, past)
            replies = [e["contents"][2 * turn + 1] for e, _ in some]
            tokens, length = np.asarray(context.tokens), np.asarray(context.length)
            rows, said, count = put(tokens, length, replies)
            state, verdict = judge(game, state, jnp.asarray(said), jnp.asarray(count))
            right = np.array(OUTCOMES)[verdict.outcome] == "correct"
            assert right.all() if turn == errors else not right.any()
            past = Context(jnp.asarray(rows), jnp.asarray(length + count))
        assert not (state.fault.landmark | state.fault.intersection).any()
        for (_, item), row, at, n in zip(some, rows, length, count, strict=True):
            assert item["tokens"].tolist() == row[: at + n].tolist()
            assert item["replied"].tolist() == [False] * at + [True] * n


def truth(example: dict) -> tuple[str, str, bool]:
    """The expert's action, the landmark's name or "", and whether there is an intersection."""
    way = ROUTES[example["route"]]
    here = way.waypoints[example["waypoint"]]
    before = example["start"] if here.heading is None else here.heading
    action = routes.action(here, example["rule"], int(before))
    if here.kind == "stop":
        return action, way.legs[-1].landmark, False
    return action, here.landmark or "", here.intersection


def plain_feedback(found: dict) -> str:
    if found["outcome"] == "wrong_action":
        return BRIEF.wrong_action.replace("{action}", found["action"])
    missed = found["landmark"], found["intersection"]
    texts = {(True, True): BRIEF.missed_both, (True, False): BRIEF.missed_landmark}
    return texts.get(missed, BRIEF.missed_intersection)


def test_replies_and_feedback_against_the_slow_reader(made: list[dict]) -> None:
    seen = Counter()
    for example in made:
        _, *tries, last = example["contents"]
        found = route_oracle.judged(last, *truth(example))
        assert found["outcome"] == "correct" and not found["landmark"] | found["intersection"]
        assert len(tries) == 2 * example["errors"] <= 2 * ERRORS
        for reply, feedback in zip(tries[::2], tries[1::2], strict=True):
            found = route_oracle.judged(reply, *truth(example))
            assert found["outcome"] != "correct" and found["action"] in ACTIONS
            assert feedback == plain_feedback(found)
            seen[feedback.split(":")[0]] += 1
            instruction = json.loads(reply)["current instruction"]
            assert instruction == json.loads(last)["current instruction"]
    kinds = ("Wrong", BRIEF.missed_landmark, BRIEF.missed_intersection)
    assert set(seen) == set(kinds) and min(seen.values()) > 80


@pytest.mark.parametrize("kind", virl_sft.KINDS)
def test_failed_tries_do_what_the_rule_knows(made: list[dict], kind: str) -> None:
    other = {"absolute": routes.RELATIVE, "relative": routes.COMPASS}
    told = {"action": "Wrong:", "landmark": "Wrong landmark", "intersection": "Wrong intersection"}
    actions = Counter()
    for example in made:
        for reply, feedback in zip(*(example["contents"][k:-1:2] for k in (1, 2)), strict=True):
            if feedback.startswith(told[kind]):
                actions[example["rule"], json.loads(reply)["action"]] += 1
    for rule, words in other.items():
        assert not any((rule, f"turn_direction({word})") in actions for word in words)
    assert len({action for _, action in actions}) > 10


def test_shares_of_rules_routes_headings_and_waypoints() -> None:
    config = VirlSftConfig(**GIVEN | {"examples": 4000, "suboptimal": 0.2}, allowed=(3, 0, 1))
    made = list(virl_sft.dialogues(config))
    rules = Counter(example["rule"] for example in made)
    assert abs(rules["absolute"] / 4000 - 0.7) < 0.03
    assert abs(np.mean([example["errors"] > 0 for example in made]) - 0.2) < 0.02
    known = Counter(int(example["route"]) for example in made)
    assert set(known) == {0, 1, 3} and min(known.values()) > 1220
    for number in known:
        mine = [example for example in made if example["route"] == number]
        at = Counter(int(example["waypoint"]) for example in mine)
        count = len(ROUTES[number].waypoints)
        assert sorted(at) == list(range(count))
        assert min(at.values()) > 0.75 * len(mine) / count
        starts = {int(example["start"]) for example in mine}
        assert starts == {355} if number == 1 else len(starts) > 320 and max(starts) == 359


def comparable(examples: list[dict]) -> list[tuple]:
    return [tuple(map(repr, example.values())) for example in examples]


def test_examples_follow_from_the_config_alone(
    config: VirlSftConfig, made: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    views = config.views and StreetViews.build(SEEN.copy(), TURNS, 24)
    again = VirlSftConfig(**GIVEN | {"bank": routes.bank(ROUTES)[0]}, views=views)
    assert again.name == config.name
    monkeypatch.setattr(virl_sft, "MADE_TOGETHER", 100)
    assert comparable(list(virl_sft.dialogues(again))) == comparable(made)
    reseeded = VirlSftConfig(**GIVEN, views=views, seed=1)
    other = comparable(list(virl_sft.dialogues(reseeded)))
    assert sum(a == b for a, b in zip(other, comparable(made), strict=True)) < 60


def test_names_differ_where_contents_do() -> None:
    turned = BANK.replace(leg_heading=BANK.leg_heading.at[0, 0].add(1))
    changes = [{}, {"bank": turned}, {"names": ("B", *NAMES[1:])}, {"allowed": (0, 1)}]
    changes += [{"allowed": (1, 0)}, {"rules": {"absolute": 1.0}}, {"rules": {"relative": 1.0}}]
    changes += [{"seed": 1}, {"examples": 599}, {"suboptimal": 0.4}, {"max_errors": 1}]
    changes += [{"wording": "full"}, {"views": VIEWS}]
    pixel, turns = SEEN.copy(), TURNS.copy()
    pixel[-1, -1, -1, -1] ^= 1
    turns[0] += 1
    for panoramas, rotation, *size in (
        (pixel, TURNS, 24),
        (SEEN, turns, 24),
        (SEEN, TURNS, 32),
        (SEEN, TURNS, 24, "diagonal"),
    ):
        changes.append({"views": StreetViews.build(panoramas, rotation, *size)})
    names = {VirlSftConfig(**GIVEN | change).name for change in changes}
    assert len(names) == len(changes)
    assert TOLD.name.startswith("relative-absolute-") and len(repr(SHOWN)) < 500


def test_pictures_are_the_street_views() -> None:
    picture = jax.jit(VIEWS.picture)
    for example in itertools.islice(virl_sft.dialogues(SHOWN), 150):
        here = ROUTES[example["route"]].waypoints[example["waypoint"]]
        heading = example["start"] if here.heading is None else here.heading
        wanted = picture(jnp.int32(PANOS.index(here.pano)), jnp.int32(heading))
        assert (decoded(example["image"]) == wanted).all()


def test_what_is_seen_is_not_told() -> None:
    """Texts and pictures differ in their prompts only."""
    pairs = zip(virl_sft.dialogues(SHOWN), virl_sft.dialogues(TOLD), strict=True)
    for shown, told in itertools.islice(pairs, 150):
        assert shown["contents"][1:] == told["contents"][1:]
        image, story = shown["contents"][0].split("compass" if shown["rule"] == "absolute" else
                                                  "relative", 1)  # fmt: skip
        assert image == "<|image|>" and "is on your" not in story.split("done\n")[1]
        assert "image" not in told


def test_the_builder_writes_and_reads(config: VirlSftConfig, tmp_path: Path) -> None:
    few = dataclasses.replace(config, name="", examples=40)
    builder = VirlSft(config=few, data_dir=str(tmp_path), file_format=FORMAT)
    builder.download_and_prepare()
    again = VirlSft(config=few, data_dir=str(tmp_path), file_format=FORMAT)
    for read, example in zip(again.source(), virl_sft.dialogues(few), strict=True):
        assert [text.decode() for text in read["contents"]] == example["contents"]
        assert read["rule"].decode() == example["rule"]
        for name in ("route", "start", "waypoint", "errors"):
            assert read[name] == example[name]
        assert read.get("image") == example.get("image")
    assert config.pictured == ("image" in read)
    if config.pictured:
        drawn = again.as_data_source("train")[39]["image"]
        assert (drawn == decoded(example["image"])).all()


BARE = routes.bank([*ROUTES, route("x", [(10, None, None)], [0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": {"absolute": 0.5}}, "shares of absolute, relative that sum to 1"),
        ({"rules": {"clockwise": 1.0}}, "shares of absolute, relative that sum to 1"),
        ({"rules": {}}, "shares of absolute, relative that sum to 1"),
        ({"examples": 0}, ">= 1"),
        ({"suboptimal": 1.5}, "0 to 1"),
        ({"max_errors": 0}, ">= 1"),
        ({"wording": "brieff"}, "no wording"),
        ({"allowed": ()}, "at least one of 0..4"),
        ({"allowed": (5,)}, "at least one of 0..4"),
        ({"names": NAMES[:-1]}, f"names: given {len(NAMES) - 1}, allowed: at least {len(NAMES)}"),
        ({"bank": BARE[0], "names": BARE[1]}, "the destination of route 5"),
        (
            {"views": StreetViews.build(SEEN[:-1], TURNS[:-1], 24), "allowed": (1, 4)},
            rf"waypoint 6 of route 4 \(from 0\) has panorama .* allowed: 0..{len(PANOS) - 2}",
        ),
    ],
)
def test_an_impossible_config_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirlSftConfig(**GIVEN | change)

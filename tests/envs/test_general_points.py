"""Verdicts against golden data and the oracle; episodes; settings that can't be played."""

import dataclasses
import json
import random
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gp_virl.config import EnvConfig, Rewards
from gp_virl.envs import cards, general_points
from gp_virl.envs.general_points import OUTCOMES, GeneralPoints
from gp_virl.text import replies
from tests import made_replies, oracle

GOLDEN = Path(__file__).parent.parent / "data" / "gp_replies.jsonl"
PAPER = Rewards(5.0, -1.0, -2.0, -3.0, -1.5, -1.0)
SIZE, BATCH, EXAMPLES = 160, 512, 80


def config(**changes) -> EnvConfig:
    plain = {
        "rule": "face_ten",
        "target": 24,
        "suits": "all",
        "require_face": False,
        "max_turns": 5,
    }
    plain |= {"hands": "all", "held_out": 0.1, "seed": 0, "rewards": PAPER}
    plain |= {"modality": "text", "image_size": 48, "jitter_shift": 0.0, "jitter_scale": 0.0}
    plain |= {"recognition": "replaces"}
    return EnvConfig(**(plain | changes))


def rows_of(texts: list[bytes], size: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((len(texts), size), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return rows, np.array([len(text) for text in texts], np.int32)


@jax.jit
@jax.vmap
def judged(row, length, values, target, ranks, pictured):
    answer = replies.parse(row, length)
    recognized = general_points.recognizes(answer, ranks) | ~pictured
    return general_points.judge(answer, values, target, recognized)


@pytest.mark.parametrize(("modality", "count"), [("language", 311), ("vision", 289)])
def test_golden_cases(modality: str, count: int) -> None:
    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    cases = [case for case in cases if case["modality"] == modality]
    assert len(cases) == count
    rewards = dataclasses.astuple(PAPER)
    rows, lengths = rows_of([case["reply"].encode() for case in cases], 8192)
    ranks = np.array([[cards.SYMBOLS.index(card) for card in case["cards"]] for case in cases])
    rules = np.array([cards.face_rule(case["rule"]).values for case in cases])
    values = np.take_along_axis(rules, ranks, axis=1)
    targets = np.array([case["target"] for case in cases])
    pictured = np.full(count, modality == "vision")
    outcomes = judged(rows, lengths, values, targets, ranks, pictured).outcome
    for case, outcome in zip(cases, np.asarray(outcomes), strict=True):
        reward = rewards[outcome]
        assert reward in (case["reward"], *case.get("also_accepted", ())), case


seen = dict.fromkeys(OUTCOMES, 0)


def check(
    text: bytes, values: list[int], target: int, fault: SimpleNamespace, symbols: list[str] | None
) -> None:
    """One lane against the oracle: outcome and all that the feedback names."""
    said = oracle.judge(text, values, target, symbols)
    assert OUTCOMES[fault.outcome] == said["outcome"], (text, values, target)
    seen[said["outcome"]] += 1
    foreign = [int(number) for number in fault.foreign if number >= 0]
    unused = sorted(int(value) for value in fault.unused if value >= 0)
    if said["outcome"] == "wrong_numbers" and len(oracle.Parser(text).numbers) > 8:
        assert foreign == [min(n, 9999) for n in said["foreign"]][: len(foreign)] and foreign, text
        assert unused == []
    else:
        assert foreign == [min(number, 9999) for number in said["foreign"]], text
        assert unused == said["unused"], text
    value = said["value"]
    named = value is not None and value.denominator == 1 and 0 <= value <= 999
    assert fault.value == (int(value) if named else -1), (text, value)


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**32 - 1))
def judge_as_the_oracle_does(seed: int) -> None:
    rng = random.Random(seed)
    hands, targets, texts = [], [], []
    ranks = np.array([[rng.randrange(13) for _ in range(4)] for _ in range(BATCH)])
    pictured = np.array([rng.random() < 0.3 for _ in range(BATCH)])
    for hand in ranks:
        values = [rng.choice([rng.randrange(1, 14), 10]) for _ in range(4)]
        text = made_replies.card_list(rng, [cards.SYMBOLS[rank] for rank in hand])
        text += made_replies.reply(rng, values, SIZE - len(text))
        value = oracle.judge(text, values, 24)["value"]
        wanted = value is not None and value.denominator == 1 and value > 0 and rng.random() < 0.5
        hands.append(values)
        targets.append(int(value) if wanted else rng.choice([24, rng.randrange(1, 100)]))
        texts.append(text)
    rows, lengths = rows_of(texts, SIZE)
    values, wanted = np.array(hands, np.int32), np.array(targets, np.int32)
    faults = judged(rows, lengths, values, wanted, ranks, pictured)
    faults = {name: np.asarray(field) for name, field in vars(faults).items()}
    for lane in range(BATCH):
        fault = SimpleNamespace(**{name: field[lane] for name, field in faults.items()})
        shown = [cards.SYMBOLS[rank] for rank in ranks[lane]] if pictured[lane] else None
        check(texts[lane], hands[lane], targets[lane], fault, shown)


def test_verdicts_agree_with_the_oracle() -> None:
    seen.update(dict.fromkeys(seen, 0))
    judge_as_the_oracle_does()
    assert sum(seen.values()) >= 20_000
    for outcome in OUTCOMES:
        assert seen[outcome] > 0.05 * sum(seen.values()), seen


def answer_to(text: str):
    row, length = rows_of([text.encode()], SIZE)
    return replies.parse(jnp.asarray(row[0]), jnp.asarray(length[0]))


def hand_of(*symbols: str) -> general_points.State:
    ranks = jnp.array([cards.SYMBOLS.index(symbol) for symbol in symbols])
    return general_points.new_state(ranks, jnp.arange(4))


def test_an_episode_ends_when_solved_or_at_the_last_try() -> None:
    env = GeneralPoints.build(config(max_turns=3))
    right, wrong = answer_to('"formula": "10*2+4*1"'), answer_to('"formula": "10+2+4+1"')
    traces = []

    def play(state, answer):
        traces.append(None)
        return env.step(state, answer)

    play = jax.jit(play)
    state = hand_of("K", "2", "4", "A")
    verdicts = []
    for answer in (wrong, wrong, wrong):
        state, verdict = play(state, answer)
        verdicts.append(verdict)
    assert [float(v.reward) for v in verdicts] == [-1.0, -1.0, -2.0]
    assert [bool(v.terminated) for v in verdicts] == [False, False, True]
    assert not any(bool(v.truncated) or bool(v.solved) for v in verdicts)
    assert int(state.turn) == 3 and int(state.fault.value) == 17
    state = hand_of("K", "2", "4", "A")
    for answer in (wrong, wrong, right):
        state, verdict = play(state, answer)
    assert float(verdict.reward) == 5.0 and bool(verdict.terminated) and bool(verdict.solved)
    assert len(traces) == 1


def test_rewards_come_from_the_settings() -> None:
    env = GeneralPoints.build(config(rewards=Rewards(1.0, 2.0, 3.0, 4.0, 5.0, 60.0), max_turns=1))
    wrong = {"1+2+4+10": 62.0, "1+2+4": 63.0, "1+": 64.0, "4*(10-2*(1+1)))": 64.0}
    for text, reward in wrong.items():
        _, verdict = env.step(hand_of("K", "2", "4", "A"), answer_to(f'"formula": "{text}"'))
        assert float(verdict.reward) == reward
    _, verdict = env.step(hand_of("K", "2", "4", "A"), answer_to('"formula": "10*2+4*1"'))
    assert float(verdict.reward) == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rule": "face_rank", "require_face": True},
        {"suits": "red", "hands": "held_out"},
        {"suits": "black", "hands": "seen", "target": 7},
    ],
)
def test_dealt_hands_are_admissible(changes: dict) -> None:
    variant = config(**changes)
    env = GeneralPoints.build(variant)
    keys = jax.random.split(jax.random.key(0), 3000)
    state = jax.jit(jax.vmap(env.reset))(keys)
    ranks, suits = np.asarray(state.ranks), np.asarray(state.suits)
    hands = ranks * 4 + suits
    assert (np.diff(np.sort(hands, axis=1)) > 0).all()  # no card twice
    assert general_points.admissible(variant)[cards.multiset_index(ranks)].all()
    allowed = set(cards.SUIT_CHOICES[variant.suits])
    assert set(np.unique(suits).tolist()) == allowed
    if variant.require_face:
        assert (ranks >= cards.JACK).any(axis=1).all()
    assert (state.turn == 0).all() and (state.fault.outcome == -1).all()


PICTURED = {"modality": "image", "suits": "black"}
SOLVED, WRONG = '"formula": "10*2+4*1"', '"formula": "10+2+4+1"'
RIGHT_CARDS, WRONG_CARDS = '"cards": [2, "A", "K", 4], ', '"cards": ["K", "2", "4", "2"], '


@pytest.mark.parametrize(
    ("recognition", "said", "outcome", "reward", "recognized"),
    [
        ("replaces", RIGHT_CARDS + SOLVED, "solved", 5.0, True),
        ("replaces", RIGHT_CARDS + WRONG, "wrong_value", -1.0, True),
        ("replaces", WRONG_CARDS + SOLVED, "unrecognized", -1.5, False),
        ("replaces", WRONG_CARDS + WRONG, "unrecognized", -1.5, False),
        ("replaces", SOLVED, "unrecognized", -1.5, False),
        ("replaces", RIGHT_CARDS, "illegal", -3.0, True),
        ("replaces", "", "unrecognized", -1.5, False),
        ("added", RIGHT_CARDS + SOLVED, "solved", 5.0, True),
        ("added", WRONG_CARDS + SOLVED, "solved", 3.5, False),
        ("added", WRONG_CARDS + WRONG, "wrong_value", -2.5, False),
        ("added", WRONG_CARDS, "illegal", -4.5, False),
        ("text", SOLVED, "solved", 5.0, True),
        ("text", WRONG_CARDS + WRONG, "wrong_value", -1.0, True),
    ],
)
def test_cards_must_be_named_in_pictures(
    recognition: str, said: str, outcome: str, reward: float, recognized: bool
) -> None:
    changes = PICTURED | {"recognition": recognition} if recognition != "text" else {}
    env = GeneralPoints.build(config(**changes))
    state, verdict = env.step(hand_of("K", "2", "4", "A"), answer_to(said))
    assert OUTCOMES[verdict.outcome] == outcome == OUTCOMES[state.fault.outcome]
    assert float(verdict.reward) == reward and bool(verdict.recognized) == recognized
    assert bool(verdict.solved) == bool(verdict.terminated) == (outcome == "solved")
    value = {"solved": 24, "wrong_value": 17}.get(outcome, -1)
    assert int(state.fault.value) == value
    _, last = env.step(state.replace(turn=jnp.int32(4)), answer_to(said))
    assert bool(last.terminated)
    assert float(last.reward) == reward - (outcome != "solved")


def test_a_misread_hand_is_told_nothing_of_its_numbers() -> None:
    env = GeneralPoints.build(config(**PICTURED))
    state, _ = env.step(hand_of("K", "2", "4", "A"), answer_to(WRONG_CARDS + '"formula": "7+7"'))
    assert (state.fault.foreign == -1).all() and (state.fault.unused == -1).all()


def test_splits_with_pictures_share_a_compiled_program() -> None:
    traces = []

    @jax.jit
    def play(env, key, answer):
        traces.append(None)
        return env.step(env.reset(key), answer)

    answer = answer_to(SOLVED)
    for changes in ({}, {"suits": "red", "recognition": "added"}, {"jitter_shift": 0.1}):
        env = GeneralPoints.build(config(**(PICTURED | changes)))
        play(env, jax.random.key(0), answer)
    assert len(traces) == 1


def test_a_key_deals_the_same_hand_with_and_without_a_picture() -> None:
    keys = jax.random.split(jax.random.key(3), 200)
    changes = {"suits": "red"}
    plain = jax.vmap(GeneralPoints.build(config(**changes)).reset)(keys)
    changes |= {"modality": "image"}
    still = jax.vmap(GeneralPoints.build(config(**changes)).reset)(keys)
    changes |= {"jitter_shift": 0.02, "jitter_scale": 0.05}
    moved = jax.vmap(GeneralPoints.build(config(**changes)).reset)(keys)
    assert plain.scene is None
    for state in (still, moved):
        for hand in (state, state.scene):
            assert (hand.ranks == plain.ranks).all() and (hand.suits == plain.suits).all()
    assert (still.scene.shift == 0).all() and (still.scene.scale == 1).all()
    shift, scale = np.asarray(moved.scene.shift), np.asarray(moved.scene.scale)
    assert 0.01 < np.abs(shift).max() <= 0.02 and 0.03 < np.abs(scale - 1).max() <= 0.05 + 1e-6
    assert len(np.unique(shift)) > 0.9 * shift.size


def test_the_hands_of_text_stay_as_they_were() -> None:
    """Committed results rest on these draws."""
    state = jax.vmap(GeneralPoints.build(config()).reset)(jax.random.split(jax.random.key(0), 3))
    cards_dealt = np.asarray(state.ranks * 4 + state.suits).tolist()
    assert cards_dealt == [[30, 5, 49, 42], [23, 15, 7, 10], [16, 20, 19, 13]]


def test_seen_and_held_out_hands_share_all_between_them() -> None:
    every, seen_ones, held_out = (
        general_points.admissible(config(hands=hands)) for hands in cards.HAND_CHOICES
    )
    assert not (seen_ones & held_out).any()
    assert ((seen_ones | held_out) == every).all()
    assert 0.05 < held_out.sum() / every.sum() < 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "face_nine"}, "face_nine.*face_ten, face_rank"),
        ({"target": 999_983}, "rule=face_ten, target=999983.*choose a target"),
        ({"hands": "held_out", "held_out": 0.0}, "hands=held_out, held_out=0.0"),
        ({"suits": "pink"}, "pink.*all, black, red"),
        ({"hands": "some"}, "some.*all, seen, held_out"),
    ],
)
def test_settings_without_a_game_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneralPoints.build(config(**changes))

"""Expert dialogues of navigation: a TFDS builder, deterministic from its config.

An example is the conversation at one waypoint of a route: the prompt, and the expert's reply. With
`suboptimal` > 0 some have failed tries and the verifier's feedback in between (paper, Fig. 15).
With `views` the street view is a picture, kept as PNG, and the prompt doesn't tell what is seen.

    config = VirlSftConfig(bank=bank, names=names, rules={"absolute": 1.0})
    builder = VirlSft(config=config, data_dir=..., file_format=FORMAT)
    builder.download_and_prepare()
    source = builder.source()
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from flax import struct
from jaxtyping import Int, PyTree, UInt8

from gp_virl.data import expert, pictures
from gp_virl.envs.host_views import HostViews
from gp_virl.envs.navigation import (
    ACTIONS,
    CORRECT,
    FIRST_TURN,
    PAPER_REWARDS,
    AnyArray,
    Fault,
    Journey,
    Navigation,
    Scene,
    State,
    new_state,
)
from gp_virl.envs.route_texts import RouteTexts, fetched
from gp_virl.envs.routes import COMPASS, RULES, SIDES, RouteBank
from gp_virl.envs.street_views import StreetViews
from gp_virl.sharding import constrain
from gp_virl.text import route_replies
from gp_virl.text.route_prompts import load_wording

FORMAT = expert.FORMAT
MADE_TOGETHER = 2048  # examples whose journeys are computed, and replies judged, in one call
WIDTH = 256  # replies' bytes are padded to a multiple of it: few programs are compiled
KINDS = ("action", "landmark", "intersection")  # what a failed try is meant to get wrong
# Actions that are ever right under a rule, by RULES.
ACTIONS_OF = (
    tuple(range(FIRST_TURN + len(COMPASS))),
    (*range(FIRST_TURN), *range(FIRST_TURN + len(COMPASS), len(ACTIONS))),
)


@dataclasses.dataclass(eq=False, kw_only=True)
class VirlSftConfig(tfds.core.BuilderConfig):
    """What the dialogues are about. The name is made of the contents; leave it out."""

    name: str = ""
    bank: RouteBank = dataclasses.field(repr=False)
    names: tuple[str, ...] = dataclasses.field(repr=False)  # of the bank's landmarks
    allowed: tuple[int, ...] | None = None  # routes of the bank to draw from; None: all
    # None: told in words
    views: StreetViews | HostViews | None = dataclasses.field(default=None, repr=False)
    rules: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"absolute": 1.0})
    seed: int = 0
    examples: int = 50_000
    suboptimal: float = 0.0  # share of dialogues with failed tries
    max_errors: int = 1  # failed tries of such a dialogue: 1 to this, evenly
    wording: str = "brief"

    def __post_init__(self):
        expert.check(self, (
            ("rules", expert.are_shares(self.rules) and set(self.rules) <= set(RULES),
             f"shares of {', '.join(RULES)} that sum to 1"),
            ("examples", self.examples >= 1, ">= 1"),
            ("suboptimal", 0 <= self.suboptimal <= 1, "0 to 1"),
            ("max_errors", self.max_errors >= 1, ">= 1"),
        ))  # fmt: skip
        environment(self)
        _check_indices(self)
        self.name = self.name or self._digest()

    @property
    def pictured(self) -> bool:
        """True where examples have a picture."""
        return self.views is not None

    def _digest(self) -> str:
        """A name that differs where the examples do: routes and panoramas count, not objects."""
        fields = expert.own_fields(self) | {
            "rules": list(self.rules.items()),
            "allowed": None if self.allowed is None else [int(route) for route in self.allowed],
            "bank": content_digest(self.bank),
            "wording": dataclasses.asdict(load_wording(self.wording)),
        }
        if self.views is not None:
            fields["views"] = [content_digest(self.views), self.views.size, self.views.layout]
        if isinstance(self.views, HostViews):  # what isn't loaded has no digest
            fields["views"].append(self.views.store.about)
        return expert.digest_name(self.rules, fields)


@struct.dataclass
class Stop:
    """Where an example takes place."""

    rule: Int[AnyArray, "*b"]  # index into RULES
    route: Int[AnyArray, "*b"]  # of the bank
    start: Int[AnyArray, "*b"]  # heading, degrees
    waypoint: Int[AnyArray, "*b"]

    def __getitem__(self, rows: Any) -> "Stop":
        return jax.tree.map(lambda x: np.asarray(x[rows]), self)

    def on(self, env: Navigation) -> tuple[Navigation, State]:
        """The environment with this rule, and its state here before the first reply."""
        state = new_state(jnp.asarray(self.route), jnp.asarray(self.start))
        return env.replace(rule=self.rule), state.replace(waypoint=self.waypoint)


class VirlSft(expert.ExpertDialogues):
    """Navigation dialogues."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "rule": tfds.features.Text(),
            "route": np.int32,  # of the config's bank
            "start": np.int32,  # heading, degrees
            "waypoint": np.int32,
            "errors": np.int32,
        }
        if self.builder_config.pictured:
            features["image"] = expert.picture_feature(self.builder_config.views.size)
        about = "Expert dialogues at the waypoints of routes through a city."
        return self._described(about, features)

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate(dialogues(self.builder_config))


def dialogues(config: VirlSftConfig) -> Iterator[dict[str, Any]]:
    """The examples of a config, in order, with the fields of `VirlSft`'s features."""
    env, draw = environment(config), random.Random(config.seed)
    texts = RouteTexts(load_wording(config.wording), config.names, config.pictured)
    stops = _drawn(config)
    shown = _pictures(config, env, stops) if config.pictured else itertools.repeat(b"")
    for first in range(0, config.examples, MADE_TOGETHER):
        rows = np.arange(first, min(first + MADE_TOGETHER, config.examples))
        some = stops[rows]
        ways = fetched(_journeys(env, some))
        ways = [fetched(ways, row) for row in range(len(rows))]
        tries = failed_tries(config, env, texts, some, ways, draw)
        for row, (way, tried) in enumerate(zip(ways, tries, strict=True)):
            stop = some[row]
            example = {
                "contents": [
                    texts.prompt_text(way, int(stop.waypoint)),
                    *(text for pair in tried for text in pair),
                    texts.expert_reply(way, int(stop.waypoint)),
                ],
                "rule": RULES[stop.rule],
                "route": int(stop.route),
                "start": int(stop.start),
                "waypoint": int(stop.waypoint),
                "errors": len(tried),
            }
            yield example | ({"image": next(shown)} if config.pictured else {})


def environment(config: VirlSftConfig) -> Navigation:
    """What journeys and verdicts are made with; its rule is replaced by each example's.

    Raises as `Navigation.build`.
    """
    turns = config.max_errors + 1
    return Navigation.build(
        config.bank, config.names, RULES[0], turns, PAPER_REWARDS, config.allowed
    )


def content_digest(tree: PyTree) -> str:
    """A digest of every array's name, shape, kind and numbers."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        values = np.ascontiguousarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {values.shape} {values.dtype}".encode())
        whole.update(values)
    return whole.hexdigest()


def _check_indices(config: VirlSftConfig) -> None:
    """ValueError where the bank's landmarks or the allowed routes' panoramas are not there."""
    named = int(max(config.bank.leg_landmark.max(), config.bank.landmark.max())) + 1
    if named > len(config.names):
        raise ValueError(
            f"VirlSftConfig.names: given {len(config.names)}, allowed: at least {named}, the names "
            "that come with the bank"
        )
    if config.views is None:
        return
    chosen = np.arange(len(config.bank.length)) if config.allowed is None else config.allowed
    panos, length = np.asarray(config.bank.pano), np.asarray(config.bank.length)
    held = config.views.rotation.shape[0]
    inside = np.arange(panos.shape[1]) < length[:, None]
    bare = (inside & ((panos < 0) | (panos >= held)))[np.asarray(chosen)]
    if bare.any():
        row, waypoint = np.argwhere(bare)[0]
        route = chosen[row]
        raise ValueError(
            f"VirlSftConfig.views: waypoint {waypoint} of route {route} (from 0) has panorama "
            f"{panos[route, waypoint]}, allowed: 0..{held - 1}; give the street views of the "
            "bank's panoramas, or leave the route out"
        )


def _drawn(config: VirlSftConfig) -> Stop:
    """The place of each example: rules by their shares, routes and waypoints evenly."""
    draws, count = np.random.default_rng(config.seed), config.examples
    kinds = np.array([RULES.index(name) for name in config.rules], np.int32)
    rules = kinds[draws.choice(len(kinds), count, p=list(config.rules.values()))]
    given, length = np.asarray(config.bank.start_heading), np.asarray(config.bank.length)
    known = np.arange(len(length)) if config.allowed is None else np.array(config.allowed)
    route = known[draws.integers(0, len(known), count)].astype(np.int32)
    heading = draws.integers(0, 360, count, np.int32)
    start = np.where(given[route] < 0, heading, given[route]).astype(np.int32)
    waypoint = draws.integers(0, length[route], dtype=np.int32)
    return Stop(rules, route, start, waypoint)


@jax.jit
def _journeys(env: Navigation, stops: Stop) -> Journey:
    """The expert's way of each example."""

    def one(stop: Stop) -> Journey:
        env_here, state = stop.on(env)
        return env_here.journey(state)

    return jax.vmap(one)(stops)


@jax.jit
def _scenes(env: Navigation, stops: Stop) -> Scene:
    """What each example's street view is taken of."""
    return jax.vmap(lambda stop: env.scene(stop.on(env)[1]))(stops)


@jax.jit
def _composed(
    views: StreetViews | HostViews, panos: Int[jax.Array, "n"], headings: Int[jax.Array, "n"]
) -> UInt8[jax.Array, "n H W 3"]:
    """The pictures of some scenes, whole on every device: each process encodes them all."""
    return constrain(jax.vmap(views.picture)(panos, headings), None, None, None, None)


def _pictures(config: VirlSftConfig, env: Navigation, stops: Stop) -> Iterator[bytes]:
    """Each example's street view as PNG."""
    seen = _scenes(env, stops)

    def composed(rows: Int[np.ndarray, "n"]) -> UInt8[jax.Array, "n H W 3"]:
        return _composed(config.views, seen.pano[rows], seen.heading[rows])

    return pictures.streamed(composed, config.examples, config.views.size)


def failed_tries(
    config: VirlSftConfig,
    env: Navigation,
    texts: RouteTexts,
    stops: Stop,
    ways: Sequence[Journey],
    draw: random.Random,
) -> list[list[tuple[str, str]]]:
    """(reply, feedback) of each dialogue's failed tries; none for most.

    The tries are what the expert would say who errs; the environment's own verifier judges them,
    so that the feedback is what it would say, and those that happen to be right are left out.
    """
    tries: list[list[tuple[str, str]]] = [[] for _ in ways]
    owners, said = [], []
    for row, way in enumerate(ways):
        if draw.random() < config.suboptimal:
            for _ in range(draw.randint(1, config.max_errors)):
                here = int(stops.waypoint[row])
                wrong = spoilt(way, here, draw.choice(KINDS), draw)
                owners.append(row)
                said.append(texts.expert_reply(wrong, here))
    theirs = stops[np.array(owners, int)]
    for row, reply, fault in zip(owners, said, judged(env, theirs, said), strict=True):
        if fault.outcome != CORRECT:
            tries[row].append((reply, texts.feedback_text(fault)))
    return tries


def spoilt(way: Journey, waypoint: int, kind: str, draw: random.Random) -> Journey:
    """A journey as who errs at a waypoint takes it to be; the action there is always wrong.

    'landmark' also sees another landmark of the route, one where there is none, or none where
    there is one; 'intersection' also misses or invents one. Who errs doesn't see a destination.
    """
    known = [action for action in ACTIONS_OF[int(way.rule)] if action != way.action[waypoint]]
    wrong = way.replace(action=_with(way.action, waypoint, draw.choice(known)))
    if kind == "action":
        return wrong
    unarrived = wrong.replace(length=np.asarray(way.length + 1))
    if kind == "intersection":
        crossing = not way.intersection[waypoint]
        return unarrived.replace(intersection=_with(way.intersection, waypoint, crossing))
    landmarks = {*way.leg_landmark[: way.legs].tolist(), -1} - {int(way.landmark[waypoint])}
    return unarrived.replace(
        landmark=_with(way.landmark, waypoint, draw.choice(sorted(landmarks))),
        side=_with(way.side, waypoint, draw.randrange(len(SIDES))),
    )


def _with(values: np.ndarray, index: int, value: int | bool) -> np.ndarray:
    changed = values.copy()
    changed[index] = value
    return changed


def judged(env: Navigation, stops: Stop, said: Sequence[str]) -> Iterator[Fault]:
    """What each reply at its stop missed, by the environment's verifier."""
    encoded = [text.encode() for text in said]
    width = -(-max(map(len, encoded), default=1) // WIDTH) * WIDTH
    for first in range(0, len(said), MADE_TOGETHER):
        batch = encoded[first : first + MADE_TOGETHER]
        lanes = np.minimum(np.arange(first, first + MADE_TOGETHER), len(said) - 1)
        rows = np.zeros((MADE_TOGETHER, width), np.uint8)
        length = np.zeros(MADE_TOGETHER, np.int32)
        for row, text in enumerate(batch):
            rows[row, : len(text)] = np.frombuffer(text, np.uint8)
            length[row] = len(text)
        faults = fetched(_judge(env, stops[lanes], rows, length))
        yield from (fetched(faults, row) for row in range(len(batch)))


@jax.jit
def _judge(env: Navigation, stops: Stop, replies: jax.Array, length: jax.Array) -> Fault:
    """The verifier's finding about each reply."""
    actions = jnp.asarray(route_replies.byte_rows(ACTIONS))

    def one(stop: Stop, reply: jax.Array, size: jax.Array) -> Fault:
        env_here, state = stop.on(env)
        return env_here.step(state, route_replies.parse(reply, size, actions))[0].fault

    return jax.vmap(one)(stops, replies, length)

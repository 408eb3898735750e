"""V-IRL navigation: along a route waypoint by waypoint, up to `max_turns` tries at each.

The agent stays on the expert's way: a right action takes it to the next waypoint, where a new
conversation opens, and a wrong one leaves it where it is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from gp_virl.config import RouteRewards
from gp_virl.envs import routes
from gp_virl.envs.routes import COMPASS, KINDS, RELATIVE, RULES, RouteBank
from gp_virl.text.route_replies import NAME_BYTES, RouteAnswer, bare_name, byte_rows
from gp_virl.types import Verdict

OUTCOMES = ("correct", "wrong_action", "not_detected")
CORRECT, WRONG_ACTION, NOT_DETECTED = range(len(OUTCOMES))
DIRECTIONS = (*COMPASS, *RELATIVE)
ACTIONS = ("forward()", "stop()", *(f"turn_direction({word})" for word in DIRECTIONS))
FIRST_TURN = 2  # actions before those of DIRECTIONS

AnyArray = Array | np.ndarray  # on the device, or fetched from it to write texts

# Index into DIRECTIONS of each heading, and of each turn from -180 to 179 degrees.
_COMPASS_OF = np.array([COMPASS.index(routes.compass_word(h)) for h in range(360)], np.int32)
_RELATIVE_OF = len(COMPASS) + np.array(
    [RELATIVE.index(routes.relative_word(turn)) for turn in range(-180, 180)], np.int32
)


PAPER_REWARDS = RouteRewards(correct=1.0, wrong_action=-1.0, not_detected=-1.5, exceeded=-1.0)


@struct.dataclass
class Fault:
    """What one reply said and missed, for the feedback."""

    outcome: Int[AnyArray, "*b"]  # index into OUTCOMES, -1 before the first reply
    action: Int[AnyArray, "*b"]  # index into ACTIONS, -1 for anything else
    landmark: Bool[AnyArray, "*b"]  # True where the landmark named is not the one in sight
    intersection: Bool[AnyArray, "*b"]  # True where the intersection was missed or invented


@struct.dataclass
class State:
    """One episode: a route, how far the agent is, and what became of the last reply."""

    route: Int[Array, "*b"]
    start: Int[Array, "*b"]  # heading at the start, degrees
    waypoint: Int[Array, "*b"]
    tries: Int[Array, "*b"]  # replies judged at this waypoint: 0 opens a conversation
    turn: Int[Array, "*b"]  # replies judged so far
    fault: Fault  # of the last reply


@struct.dataclass
class Scene:
    """What a street view is taken of."""

    pano: Int[Array, "*b"]  # index into the panoramas' ids; -1: none
    heading: Int[Array, "*b"]  # degrees; the middle of the front view


@struct.dataclass
class Journey:
    """The expert's way along one route under a rule: G legs, W waypoints; -1 is none."""

    rule: Int[AnyArray, "*b"]  # index into RULES
    legs: Int[AnyArray, "*b"]
    length: Int[AnyArray, "*b"]  # waypoints
    direction: Int[AnyArray, "*b G"]  # index into DIRECTIONS, of the turn before each leg
    leg_landmark: Int[AnyArray, "*b G"]
    leg_side: Int[AnyArray, "*b G"]
    action: Int[AnyArray, "*b W"]  # index into ACTIONS
    landmark: Int[AnyArray, "*b W"]  # in sight; at the last waypoint it is the destination
    side: Int[AnyArray, "*b W"]
    intersection: Bool[AnyArray, "*b W"]
    sentence: Int[AnyArray, "*b W"]  # that is carried out here; two for each leg
    pano: Int[AnyArray, "*b W"]
    heading: Int[AnyArray, "*b W"]  # degrees, on arriving


@struct.dataclass
class Navigation:
    """One split: routes and a rule. All of it is arrays, so that one compiled program plays every
    rule, and every set of routes padded alike."""

    bank: RouteBank
    names: UInt8[Array, "names 128"]  # of the landmarks, as replies are read; 0 behind each
    rule: Int[Array, ""]  # index into RULES
    max_turns: Int[Array, ""]  # at one waypoint
    rewards: Float[Array, "3"]  # by OUTCOMES
    exceeded: Float[Array, ""]  # added to the last failed try's reward
    allowed: Int[Array, "routes"]  # routes to draw from; those from `choices` on mean nothing
    choices: Int[Array, ""]

    @classmethod
    def build(
        cls,
        bank: RouteBank,
        names: Sequence[str],
        rule: str,
        max_turns: int,
        rewards: RouteRewards,
        allowed: Sequence[int] | None = None,
    ) -> "Navigation":
        """The split of these routes, or of the `allowed` ones of them, under a rule.

        Raises ValueError for an unknown rule, a name that is too long, a route whose destination
        has no landmark, and allowed routes that are none, not of the bank, or twice the same.
        """
        if rule not in RULES:
            raise ValueError(f"rule: given {rule!r}, allowed: {', '.join(RULES)}")
        last = np.asarray(bank.legs)[:, None] - 1
        bare = np.take_along_axis(np.asarray(bank.leg_landmark), last, 1)[:, 0] < 0
        if bare.any():
            raise ValueError(
                f"routes: the destination of route {int(np.argmax(bare))} (from 0) has no "
                "landmark, allowed: a name and a side; leave the route out"
            )
        drawn = _choices(allowed, bank.length.shape[0])
        return cls(
            bank=bank,
            names=jnp.asarray(byte_rows([bare_name(name) for name in names], NAME_BYTES)),
            rule=jnp.int32(RULES.index(rule)),
            max_turns=jnp.int32(max_turns),
            rewards=jnp.array(
                [rewards.correct, rewards.wrong_action, rewards.not_detected], jnp.float32
            ),
            exceeded=jnp.float32(rewards.exceeded),
            allowed=jnp.asarray(np.pad(drawn, (0, bank.length.shape[0] - len(drawn)))),
            choices=jnp.int32(len(drawn)),
        )

    def reset(self, key: Key[Array, ""]) -> State:
        """One of the allowed routes, from its start heading or a drawn one."""
        route_key, heading_key = jax.random.split(key)
        route = self.allowed[jax.random.randint(route_key, (), 0, self.choices)]
        given = self.bank.start_heading[route]
        drawn = jax.random.randint(heading_key, (), 0, 360)
        return new_state(route, jnp.where(given < 0, drawn, given))

    def step(self, state: State, answer: RouteAnswer) -> tuple[State, Verdict]:
        """The state after one reply, and its verdict.

        The episode terminates at the destination, or at the `max_turns`th failed reply at one
        waypoint, whose reward includes `exceeded`; a conversation also closes with a right action.
        """
        way, here = self.journey(state), state.waypoint
        name = jnp.where(way.landmark[here] < 0, 0, self.names[way.landmark[here]])
        fault = judge(answer, way.action[here], name, way.intersection[here])
        correct = fault.outcome == CORRECT
        arrived = correct & (here + 1 >= way.length)
        exceeded = ~correct & (state.tries + 1 >= self.max_turns)
        verdict = Verdict(
            outcome=fault.outcome,
            reward=self.rewards[fault.outcome] + jnp.where(exceeded, self.exceeded, 0.0),
            solved=arrived,
            recognized=~(fault.landmark | fault.intersection),
            terminated=arrived | exceeded,
            truncated=jnp.zeros_like(arrived),
            closed=correct | exceeded,
        )
        after = state.replace(
            waypoint=jnp.where(correct & ~arrived, here + 1, here),
            tries=jnp.where(correct, 0, state.tries + 1),
            turn=state.turn + 1,
            fault=fault,
        )
        return after, verdict

    def journey(self, state: State) -> Journey:
        """The expert's way along the state's route."""
        row = jax.tree.map(lambda values: values[state.route], self.bank)
        return along(row, state.start, self.rule)

    def scene(self, state: State) -> Scene:
        """What the agent looks at."""
        way = self.journey(state)
        return Scene(way.pano[state.waypoint], way.heading[state.waypoint])


def _choices(allowed: Sequence[int] | None, routes: int) -> Int[np.ndarray, "n"]:
    """Indices of the routes to draw from, of this many; None stands for all."""
    chosen = np.arange(routes) if allowed is None else np.asarray(allowed, np.int64).reshape(-1)
    inside = len(chosen) > 0 and chosen.min() >= 0 and chosen.max() < routes
    if not inside or len(set(chosen.tolist())) != len(chosen):
        raise ValueError(
            f"routes to draw from: given {chosen.tolist()}, allowed: at least one of "
            f"0..{routes - 1}, each once"
        )
    return chosen.astype(np.int32)


def new_state(route: Int[Array, ""], start: Int[Array, ""]) -> State:
    """A given route from a given heading, before the first reply."""
    zero, nothing, no = jnp.int32(0), jnp.int32(-1), jnp.bool_(False)
    fault = Fault(outcome=nothing, action=nothing, landmark=no, intersection=no)
    return State(route=route, start=start, waypoint=zero, tries=zero, turn=zero, fault=fault)


def along(row: RouteBank, start: Int[Array, ""], rule: Int[Array, ""]) -> Journey:
    """The expert's way along one route (a row of a bank) from a start heading."""
    heading = jnp.where(row.heading < 0, start, row.heading)
    before = jnp.concatenate([start[None], row.leg_heading[:-1]])
    turn = FIRST_TURN + _direction(heading, row.next_heading, rule)
    stops = row.kind == KINDS.index("stop")
    unturned = jnp.where(stops, ACTIONS.index("stop()"), ACTIONS.index("forward()"))
    # The bank has no landmark at the destination, but its last leg says what is seen there.
    seen = row.leg_landmark[row.legs - 1], row.leg_side[row.legs - 1]
    return Journey(
        rule=rule,
        legs=row.legs,
        length=row.length,
        direction=_direction(before, row.leg_heading, rule),
        leg_landmark=row.leg_landmark,
        leg_side=row.leg_side,
        action=jnp.where(row.kind == KINDS.index("turn"), turn, unturned),
        landmark=jnp.where(stops, seen[0], row.landmark),
        side=jnp.where(stops, seen[1], row.side),
        intersection=row.intersection & ~stops,
        sentence=row.sentence,
        pano=row.pano,
        heading=heading,
    )


def _direction(
    before: Int[Array, "n"], after: Int[Array, "n"], rule: Int[Array, ""]
) -> Int[Array, "n"]:
    """Index into DIRECTIONS of the turn from one heading to another, both in degrees."""
    turn = (after - before + 180) % 360  # 180 is straight on
    absolute = jnp.asarray(_COMPASS_OF)[after % 360]
    return jnp.where(rule == RULES.index("absolute"), absolute, jnp.asarray(_RELATIVE_OF)[turn])


def judge(
    answer: RouteAnswer,
    action: Int[Array, ""],
    name: UInt8[Array, "128"],
    intersection: Bool[Array, ""],
) -> Fault:
    """The outcome of a reply where this is the expert's action, and what the reply missed.

    `name` is that of the landmark in sight, all 0 where there is none. Of a landmark only the
    name counts, not the side.
    """
    same = (answer.name == name).all(-1) & (answer.name_length == (name != 0).sum(-1))
    landmark = ~(answer.observed & same)
    crossing = answer.intersection != intersection
    missed = jnp.where(landmark | crossing, NOT_DETECTED, WRONG_ACTION)
    outcome = jnp.where(answer.action == action, CORRECT, missed)
    return Fault(outcome.astype(jnp.int32), answer.action, landmark, crossing)

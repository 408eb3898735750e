"""How fast the parts of a study run on this machine:
python -m launch.bench --config=configs/gp_l.py:tiny [--json=FILE] [--repeats=5] [--checkpoint=DIR]
[--part=world|sft|policy|evaluation]

Every program is compiled afresh, run once, then timed; a row is the median, least and most of the
repeats. Without a checkpoint the policy is random: no reply ends before `rollout.reply_length`
tokens and no hand is solved, which is the dearest rollout there is.
"""

import dataclasses
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jaxtyping import PyTree

from gp_virl.config import StudyConfig
from gp_virl.data import pipeline
from gp_virl.envs import navigation
from gp_virl.envs.general_points import new_state
from gp_virl.text import replies, template
from gp_virl.train import sft
from gp_virl.types import Context
from launch import branches, card_study
from launch import lab as labs
from launch.lab import Lab
from launch.programs import ppo_programs, sft_programs

DEALT, JUDGED, STEPPED, DIALOGUES = 65_536, 16_384, 8_192, 4_096
HEAD = f"{'what':<28} {'median':>12} {'least':>12} {'most':>12}  {'unit':<16} batch"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured quantity: a rate, or seconds; low and high are the extremes of the repeats."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    repeats: int
    batch: str

    def __str__(self) -> str:
        shown = [f"{x:>12,.0f}" if x >= 100 else f"{x:>12.4g}" for x in (self.value, self.low)]
        last = f"{self.high:>12,.0f}" if self.high >= 100 else f"{self.high:>12.4g}"
        return f"{self.name:<28} {' '.join(shown)} {last}  {self.unit:<16} {self.batch}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program and the seconds its tracing and compilation took."""

    name: str
    seconds: float
    run: Callable


def compiled(name: str, program: Callable, *arguments: Any, **static: Any) -> Compiled:
    """The jitted program for these arguments."""
    clock = time.perf_counter()
    run = program.lower(*arguments, **static).compile()
    return Compiled(name, time.perf_counter() - clock, run)


def seconds(run: Callable, repeats: int) -> list[float]:
    """Wall-clock seconds of each of `repeats` runs, after one that isn't counted."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - clock)
    return times


def row(name: str, unit: str, values: Sequence[float], batch: str) -> Row:
    """Median and extremes of the values."""
    return Row(name, unit, statistics.median(values), min(values), max(values), len(values), batch)


def rate(name: str, unit: str, count: float, times: Sequence[float], batch: str) -> Row:
    """`count` things a run, as things per second."""
    return row(name, unit, [count / t for t in times], batch)


def deals(lab: Lab, repeats: int) -> Iterator[Row | Compiled]:
    """Hands dealt: a key of its own, the exact table and a random order for each."""

    @jax.jit
    def deal(game, key):
        keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(jnp.arange(DEALT))
        return jax.vmap(game.reset)(keys)

    game, key = lab.games["train"], jax.random.key(0)
    yield (program := compiled("deal", deal, game, key))
    times = seconds(lambda: program.run(game, key), repeats)
    yield rate("hands dealt", "hands/s", DEALT, times, f"{DEALT} hands")


def verdicts(lab: Lab, repeats: int) -> Iterator[Row | Compiled]:
    """Replies judged, right and wrong ones: from tokens, as in a rollout, and from bytes."""
    game, size = lab.games["train"], lab.config.rollout.reply_length
    talks = dialogues(lab, suboptimal=0.5)
    said = [(text, talk["ranks"]) for talk in talks for text in talk["contents"][1::2]]
    said = [said[i % len(said)] for i in range(JUDGED)]
    ids = template.encode(lab.tokenizer, [text for text, _ in said])
    tokens, length = _rows([[*one, int(game.eot)] for one in ids], size, np.int32)
    text, count = _rows([one.encode() for one, _ in said], game.reply_bytes, np.uint8)
    ranks = jnp.asarray(np.stack([hand for _, hand in said]))
    state = jax.vmap(new_state)(ranks, jnp.zeros_like(ranks))

    @jax.jit
    def of_tokens(game, state, tokens, length):
        return jax.vmap(game.judge)(state, tokens, length)

    @jax.jit
    def of_bytes(game, state, text, count):
        return jax.vmap(game.env.step)(state, jax.vmap(replies.parse)(text, count))

    for name, judge, given, wide in (
        ("tokens", of_tokens, (tokens, length), f"{size} tokens"),
        ("bytes", of_bytes, (text, count), f"{game.reply_bytes} bytes"),
    ):
        yield (program := compiled(f"judge {name}", judge, game, state, *given))
        times = seconds(functools.partial(program.run, game, state, *given), repeats)
        batch = f"{JUDGED} replies x {wide}"
        yield rate(f"replies judged, from {name}", "replies/s", JUDGED, times, batch)


def steps(lab: Lab, repeats: int) -> Iterator[Row | Compiled]:
    """Waypoints stepped: the expert's replies judged, from tokens, and the next context asked."""
    game, size = lab.games["train"], lab.config.rollout.reply_length
    talks = dialogues(lab, suboptimal=0.5)
    talks = [talks[i % len(talks)] for i in range(STEPPED)]
    ids = template.encode(lab.tokenizer, [talk["contents"][-1] for talk in talks])
    tokens, length = _rows([[*one, int(game.eot)] for one in ids], size, np.int32)
    route, start, waypoint = (
        jnp.asarray([talk[name] for talk in talks]) for name in ("route", "start", "waypoint")
    )
    state = jax.vmap(navigation.new_state)(route, start).replace(waypoint=waypoint)
    blank = Context(
        jnp.zeros((STEPPED, lab.config.rollout.context), jnp.int32), jnp.ones(STEPPED, jnp.int32)
    )

    @jax.jit
    def step(game, state, tokens, length, past):
        state, verdict = jax.vmap(game.judge)(state, tokens, length)
        return verdict, jax.vmap(game.observe)(state, past)

    given = (game, state, tokens, length, blank)
    yield (program := compiled("step", step, *given))
    times = seconds(functools.partial(program.run, *given), repeats)
    batch = f"{STEPPED} replies x {size} tokens"
    yield rate("waypoints stepped", "waypoints/s", STEPPED, times, batch)


def sights(lab: Lab, params: PyTree, repeats: int) -> Iterator[Row | Compiled]:
    """Hands or street views drawn as pictures, and pictures through tower and projector."""
    game, roll = lab.games["train"], lab.config.rollout
    count = -(-roll.lanes // roll.images) * roll.images
    states = jax.vmap(lambda e: game.reset(jax.random.fold_in(jax.random.key(0), e)))

    @jax.jit
    def draw(game, scene):
        return jax.vmap(game.picture)(scene)

    @jax.jit
    def encode(params, pictures):
        chunks = pictures.reshape(-1, roll.images, *pictures.shape[1:])
        return jax.lax.map(nnx.merge(lab.graph, params).see, chunks)

    scene = jax.vmap(game.scene)(states(jnp.arange(count)))
    yield (program := compiled("draw", draw, game, scene))
    times = seconds(lambda: program.run(game, scene), repeats)
    batch = f"{count} x {lab.config.env.image_size} pixels square"
    name = "hands" if lab.study is card_study else "views"
    yield rate(f"{name} rendered", f"{name}/s", count, times, batch)
    pictures = program.run(game, scene)
    yield (program := compiled("encode", encode, params, pictures))
    times = seconds(lambda: program.run(params, pictures), repeats)
    yield rate("images encoded", "images/s", count, times, batch)


def fine_tuning(lab: Lab, params: PyTree, repeats: int) -> Iterator[Row | Compiled]:
    """The base's update on packed dialogues."""
    run = lab.config.base
    made = dialogues(lab, lab.config.data.suboptimal)
    talks = pipeline.tokenized(made, lab.tokenizer)
    shape = {"length": run.length, "batch_size": run.batch_size, "pictures": run.pictures}
    rows = next(iter(pipeline.batches(talks, **shape, seed=0)))
    batch = sft.Batch(**branches.on_mesh(lab, rows))
    programs = sft_programs(lab, run)
    state = programs.create(params)
    yield (program := compiled("sft update", programs.update, state, batch))

    def step() -> PyTree:
        nonlocal state
        state, metrics = program.run(state, batch)
        return state, metrics

    tokens = int((batch.segments > 0).sum())
    batch_text = f"{run.batch_size} x {run.length}, microbatch {run.microbatch}"
    yield rate("sft update", "tokens/s", tokens, seconds(step, repeats), batch_text)


def policy(lab: Lab, params: PyTree, repeats: int) -> Iterator[Row | Compiled]:
    """PPO's two halves as train_rl runs them, each repeat a whole iteration."""
    config, key = lab.config, jax.random.key(0)
    game, how = lab.games["train"], labs.sampling(config, "sampled")
    programs = ppo_programs(lab)
    yield (start := compiled("ppo start", programs.start, game, key))
    lanes = start.run(game, key)
    yield (play := compiled("ppo rollout", programs.rollout, params, game, lanes, key, key, how))
    state = programs.create(params)
    heat, on = how.temperature, jnp.float32(1)
    shapes = jax.eval_shape(programs.rollout, params, game, lanes, key, key, how)[1:]
    given = (game, state, params, *shapes, key, heat, on)
    yield (learn := compiled("ppo update", programs.update, *given))
    halves, said, trained = [], [], []
    for step in range(repeats + 1):
        draw, clock = jax.random.fold_in(key, step), time.perf_counter()
        lanes, roll, following = jax.block_until_ready(
            play.run(state.params, game, lanes, key, draw, how)
        )
        played = time.perf_counter()
        state, metrics = jax.block_until_ready(
            learn.run(game, state, params, roll, following, draw, heat, on)
        )
        halves.append((played - clock, time.perf_counter() - played))
        said.append(int(roll.reply.sum()))
        trained.append(float(metrics["tokens"]))
    halves, said, trained = halves[1:], said[1:], trained[1:]
    turns = config.rollout.lanes * config.rollout.turns
    batch = f"{config.rollout.lanes} lanes x {config.rollout.turns} turns"
    plays, learns = zip(*halves, strict=True)
    new = [n / t for n, t in zip(said, plays, strict=True)]
    yield row("rollout, new tokens", "tokens/s", new, batch)
    yield rate("rollout, replies", "replies/s", turns, plays, batch)
    learnt = [n / t for n, t in zip(trained, learns, strict=True)]
    yield row("ppo update, tokens", "tokens/s", learnt, f"{batch}, {config.ppo.epochs} epochs")
    yield row("ppo iteration, rollout", "s", plays, batch)
    yield row("ppo iteration, update", "s", learns, batch)
    yield row("ppo iteration, whole", "s", [a + b for a, b in halves], batch)


def evaluation(lab: Lab, params: PyTree, repeats: int) -> Iterator[Row | Compiled]:
    """Greedy evaluation on the ID split."""
    hands, key = lab.config.eval.curve_hands, jax.random.key(0)
    given = (params, lab.games["id"], key, key, labs.sampling(lab.config, "greedy"))
    yield (program := compiled("evaluation", lab.play, *given, hands=hands))
    times = seconds(functools.partial(program.run, *given), repeats)
    yield rate("evaluation", "episodes/s", hands, times, f"{hands} episodes")


def dialogues(lab: Lab, suboptimal: float) -> list[dict[str, Any]]:
    """The expert's dialogues for the branches, made in memory."""
    about = lab.study.expert(lab.config, base=False)
    about = dataclasses.replace(about, name="", examples=DIALOGUES, suboptimal=suboptimal)
    return list(lab.study.DIALOGUES(about))


def _rows(pieces: Sequence[Sequence[int]], width: int, dtype: type) -> tuple[jax.Array, jax.Array]:
    """The pieces as rows of `width`, cut or padded with 0, and their lengths."""
    rows = np.zeros((len(pieces), width), dtype)
    for index, piece in enumerate(pieces):
        rows[index, : len(piece)] = list(piece[:width])
    return jnp.asarray(rows), jnp.asarray([min(len(piece), width) for piece in pieces])


def world(lab: Lab, params: PyTree, repeats: int) -> Iterator[Row | Compiled]:
    """The environment, and its pictures."""
    if lab.study is card_study:
        yield from deals(lab, repeats)
        yield from verdicts(lab, repeats)
    else:
        yield from steps(lab, repeats)
    if lab.config.pictured:
        yield from sights(lab, params, repeats)


PARTS = {"world": world, "sft": fine_tuning, "policy": policy, "evaluation": evaluation}


def main(
    config: StudyConfig,
    repeats: int,
    file: str | None,
    checkpoint: str | None,
    parts: Sequence[str] = tuple(PARTS),
) -> None:
    """Print the table as it is measured, then the seconds of compilation; write both to `file`."""
    jax.config.update("jax_enable_compilation_cache", False)
    lab = labs.open_lab(config)
    if checkpoint:
        params = branches.load_params(lab, Path(checkpoint))[0]
    else:
        params = branches.fresh_params(lab, config.seed)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    machine = {"device": device, "processors": os.cpu_count(), "jax": jax.__version__}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(HEAD)
    rows, programs = [], {}
    with jax.set_mesh(lab.mesh):
        for found in itertools.chain(*(PARTS[part](lab, params, repeats) for part in parts)):
            if isinstance(found, Compiled):
                programs[found.name] = round(found.seconds, 2)
            else:
                rows.append(dataclasses.asdict(found))
                print(found, flush=True)
    print("seconds to compile: " + ", ".join(f"{name} {s:.1f}" for name, s in programs.items()))
    if file:
        about = {"task": config.task, "scale": config.scale, "policy": checkpoint or "random"}
        labs.write_json(Path(file), machine | about | {"rows": rows, "compile_s": programs})


if __name__ == "__main__":
    STUDY = labs.define_config()
    REPEATS = flags.DEFINE_integer("repeats", 5, "timed runs of each program", lower_bound=1)
    FILE = flags.DEFINE_string("json", None, "where the table is written")
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "directory of a policy's checkpoints")
    SOME = flags.DEFINE_multi_enum("part", list(PARTS), list(PARTS), "what is measured")
    labs.run(lambda: main(STUDY(), REPEATS.value, FILE.value, CHECKPOINT.value, SOME.value))

"""The programs of a study compiled for TPUs that are not here, with their memory and their work:
python -m launch.aot --config=configs/gp_vl.py:11b --topology=v5e:4x8 --step=all [--json=FILE]

The compiler is the real one, of libtpu (the extra `tpu`), and needs no TPU. It works at the level
that rows tell (`level`), for a fraction of the time; launchers leave it at XLA's default.
Evaluation isn't compiled: it decodes in the layout of a rollout. Memory is of one chip; `resident`
is what lies there beside a program that doesn't take it: the moments during a rollout, Init's
parameters. FLOPs and bytes are those of formulas (gp_virl.evals), of all chips together, for
conversations that use every try and fill every reply. Those about cards fill `rollout.context`, as
in the paper; those about routes are as long as the longest of the task, in tokens of the tokenizer
that rows tell. `executed` counts what is computed again and hidden pairs of attention as well.
Collectives are those in the program's text, where the compiler gives it; one in a loop counts once.
"""

import collections
import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu compiles; arrays, if any, are on the host
# No metadata server is asked what this machine is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # each compiles, none uses a chip
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a tokenizer is taken from the disk or not at all

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params
from jaxtyping import PyTree

from gp_virl import config as cfg
from gp_virl.evals import rollout_costs, training_costs
from gp_virl.evals.costs import StepCost
from gp_virl.model import mllama
from gp_virl.model.config import preset
from gp_virl.model.images import Tiling
from gp_virl.sharding import along_batch, placed, whole
from gp_virl.text.route_tokenizer import TINY_ROUTES
from gp_virl.text.tokenizer import TINY
from gp_virl.train import sft
from launch import card_study
from launch import lab as labs
from launch.lab import Lab
from launch.programs import ppo_programs, sft_programs

STEPS = ("sft", "rollout", "ppo")
# GiB of a chip's high-bandwidth memory that a program can have, as libtpu tells when one doesn't
# fit ("Used 19.48G of 15.75G hbm"). Of v4 it is what Google Cloud's pages say, a little too much.
HBM = {"v4": 32.0, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send"
)  # fmt: skip
GIB = 2.0**30
LARGEST = 12  # tensors told of a program that doesn't fit
FEEDBACK = 128  # tokens, as a rollout of full conversations has them between replies
HEAD = (
    "step", "topology", "mesh", "arguments", "results", "temporaries", "code", "resident",
    "GiB a chip", "of", "fits", "PFLOP", "executed", "PB", "collectives", "compile s",
)  # fmt: skip
LEVEL = "O1"  # of the compiler's efforts: memory as at O2, in a fraction of the time


@dataclasses.dataclass(frozen=True)
class Step:
    """A program and shapes of what it is called with; `resident` lies beside them."""

    name: str
    program: Callable
    arguments: tuple
    resident: PyTree


def described(topology: str, slices: int) -> list[jax.Device]:
    """The devices of `slices` slices of a topology such as v5e:4x8; ConfigError for no such one."""
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as wrong:
        raise cfg.ConfigError(
            f"--topology: given {topology!r}, allowed: what libtpu knows, such as v5e:4x8, "
            f"v5p:2x2x4 or v6e:4x4, of {', '.join(HBM)}; it needs pip install -e '.[tpu]' "
            f"({str(wrong).splitlines()[0]})"
        ) from wrong
    return list(found.devices)


def opened(config: cfg.StudyConfig, devices: Sequence[jax.Device]) -> Lab:
    """The lab on a mesh of these devices, with the model's own vocabulary.

    Where the tokenizer can't be had, texts are those of a tiny one, which changes no array that
    matters.
    """
    study = labs.STUDIES[config.task]
    try:
        study.load_texts(config)
    except ValueError as wrong:  # of the wording too, but that is open_lab's to tell
        tiny = TINY if study is card_study else TINY_ROUTES
        print(f"texts in the tokens of {tiny!r}: {wrong}", file=sys.stderr)
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer=tiny))
    lab = labs.open_lab(config, devices)
    choice = config.model
    form = "splash" if choice.attention == "auto" else choice.attention
    model = preset(
        choice.size, images=config.pictured, dtype=choice.dtype, remat=choice.remat, attention=form
    )
    graph, shapes = mllama.abstract(model, lab.mesh)
    count = labs.counted_parameters(shapes, model)
    return dataclasses.replace(lab, model=model, graph=graph, shapes=shapes, parameters=count)


def steps(lab: Lab, names: Sequence[str]) -> Iterator[Step]:
    """The named programs with shapes of their arguments."""
    mesh = lab.mesh
    if "sft" in names:
        programs = sft_programs(lab, lab.config.sft)
        state = programs.shapes
        yield Step("sft", programs.update, (state, _batch(lab)), state.params)  # and Init's
    if not {"rollout", "ppo"} & set(names):
        return
    programs = ppo_programs(lab)
    key, how, number = _everywhere(
        jax.eval_shape(
            lambda: (jax.random.key(0), labs.sampling(lab.config, "sampled"), jnp.float32(0))
        ),
        mesh,
    )
    game = _everywhere(lab.games["train"], mesh)
    params, moments = programs.shapes.params, programs.shapes.opt_state
    played = (params, game, programs.lanes, key, key, how)
    if "rollout" in names:
        yield Step("rollout", programs.rollout, played, (moments, params))  # the latter Init's
    if "ppo" in names:
        records = jax.eval_shape(programs.rollout, *played)[1:]
        records = jax.tree.map(placed, records, along_batch(records, mesh, 1))
        learnt = (game, programs.shapes, params, *records, key, number, number)
        compared = lab.config.ppo.kl_coef > 0 or lab.config.ppo.kl_logged  # else Init's are unread
        yield Step("ppo", programs.update, learnt, (programs.lanes, None if compared else params))


def _batch(lab: Lab) -> sft.Batch:
    """Shapes of a batch of the run `sft`."""
    run, config = lab.config.sft, lab.config
    rows = (run.batch_size, run.length)
    tokens = jax.ShapeDtypeStruct(rows, jnp.int32)
    batch = sft.Batch(tokens, tokens, tokens, jax.ShapeDtypeStruct(rows, jnp.bool_))
    if config.pictured:
        size, slots = config.env.image_size, (run.batch_size, run.pictures)
        batch = batch.replace(
            images=jax.ShapeDtypeStruct((*slots, size, size, 3), jnp.uint8),
            image_segments=jax.ShapeDtypeStruct(slots, jnp.int32),
        )
    return jax.tree.map(placed, batch, along_batch(batch, lab.mesh))


def _everywhere(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Shapes of arrays that every device has a copy of."""
    return jax.tree.map(lambda leaf: placed(leaf, whole(mesh)), tree)


def bytes_per_chip(tree: PyTree) -> int:
    """Bytes that the arrays of these shapes take on a device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def compiled(step: Step, hbm: float) -> dict[str, Any]:
    """What the compiler says of a step: memory by kind, whether it fits, collectives, seconds.

    Only too little high-bandwidth memory is a verdict; other errors of the compiler are raised.
    """
    resident = bytes_per_chip(step.resident) / GIB
    clock = time.perf_counter()
    traced = step.program.trace(*step.arguments)
    lowered = traced.lower()
    found: dict[str, Any] = {"lower_s": round(time.perf_counter() - clock, 1)}
    clock = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as wrong:
        if not any(words in str(wrong) for words in ("memory space hbm", "HbmOom")):
            raise
        return (
            found
            | _refused(str(wrong), resident, largest(traced.jaxpr))
            | {"compile_s": round(time.perf_counter() - clock, 1)}
        )
    found["compile_s"] = round(time.perf_counter() - clock, 1)
    memory = program.memory_analysis()
    kinds = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    kinds = {kind: size / GIB for kind, size in kinds.items()} | {"resident": resident}
    total = sum(kinds.values())
    return found | {
        "gib_per_chip": round(total, 2),
        "gib_by_kind": {kind: round(size, 2) for kind, size in kinds.items()},
        "fits": total <= hbm,
        "collectives": _collectives(program),
    }


def _refused(message: str, resident: float, tensors: list[str]) -> dict[str, Any]:
    """What the compiler says of a program that doesn't fit; `tensors` where it names none itself.

    The size is None where the message has none.
    """
    used = re.search(r"(?:Used |temporaries \()([\d.]+)([TGM])", message)
    size = float(used[1]) * {"T": 1024, "G": 1, "M": 1 / 1024}[used[2]] if used else None
    named = re.findall(r"Size: ([\d.]+[GMK]).*?Shape: (\S+)", message, re.S)
    return {
        "gib_per_chip": None if size is None else round(size + resident, 2),
        "gib_by_kind": {"resident": round(resident, 2)},
        "fits": False,
        "largest": [f"{size}iB {shape}" for size, shape in named[:LARGEST]] or tensors,
        "collectives": None,
    }


def largest(jaxpr: ClosedJaxpr) -> list[str]:
    """The largest arrays that a traced program writes, with their bytes on all chips together."""
    sizes: dict[str, int] = {}

    def look(jaxpr: Jaxpr) -> None:
        for equation in jaxpr.eqns:
            for value in equation.outvars:
                shape = getattr(value.aval, "shape", None)
                if shape is not None and not jax.dtypes.issubdtype(
                    value.aval.dtype, jax.dtypes.extended
                ):
                    size = math.prod(shape) * value.aval.dtype.itemsize
                    sizes[f"{value.aval.str_short()} of {equation.primitive.name}"] = size
            for inner in jaxprs_in_params(equation.params):
                look(inner)

    look(jaxpr.jaxpr)
    ordered = sorted(sizes, key=sizes.get, reverse=True)[:LARGEST]
    return [f"{sizes[name] / GIB:.2f} GiB in all {name}" for name in ordered]


def _collectives(program: Any) -> dict[str, int] | None:
    """How many of each kind the program's text has; one in a loop counts once.

    None where the compiler doesn't give the text, as for v6e.
    """
    try:
        text = program.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    counts = collections.Counter(
        kind for kind in COLLECTIVES for _ in re.findall(rf" {kind}(?:-start)?\(", text)
    )
    return dict(counts)


def work(lab: Lab, name: str) -> StepCost:
    """FLOPs and bytes of a step with conversations of `spoken` tokens and the longest replies.

    An SFT row has one of them, a conversation one for each try.
    """
    if name == "ppo":
        return _learnt(lab)
    if name == "rollout":
        return rollout_costs.rollout(lab.model, _played(lab))
    run = lab.config.sft
    reply = min(lab.config.rollout.reply_length, run.length - 1)
    rows = training_costs.Rows(run.batch_size, run.length, tiles=_tiles(lab), scored=reply)
    return training_costs.sft_step(lab.model, rows, run.microbatch, run.frozen, run.moments)


def spoken(lab: Lab) -> int:
    """Tokens of a conversation: about cards the whole context, of routes the longest there is."""
    cards = lab.study is card_study
    return lab.config.rollout.context if cards else lab.games["train"].context_limit


def _played(lab: Lab) -> rollout_costs.Play:
    """A rollout of conversations of `spoken` tokens."""
    roll, tries = lab.config.rollout, lab.config.env.max_turns
    left = spoken(lab) - tries * roll.reply_length
    feedback = min(FEEDBACK, left // (2 * tries))
    return rollout_costs.Play(
        lanes=roll.lanes, turns=tries, prompt=left - (tries - 1) * feedback,
        reply=roll.reply_length, feedback=feedback, room=roll.context, chunk=roll.chunk,
        tiles=_tiles(lab), together=roll.images, talks=roll.turns / tries,
    )  # fmt: skip


def _learnt(lab: Lab) -> StepCost:
    """A PPO update: the model's FLOPs are of conversations, the program's of rows of them."""
    config, roll, ppo = lab.config, lab.config.rollout, lab.config.ppo
    tries, tiles, length = config.env.max_turns, _tiles(lab), spoken(lab)
    talks = -(-roll.lanes * roll.turns // tries)
    shared = roll.context // length  # conversations in a row, which has slots for so many images
    shared = min(shared, ppo.pictures) if tiles else shared

    def update(rows: training_costs.Rows) -> StepCost:
        return training_costs.ppo_update(
            lab.model, rows, ppo.microbatch, ppo.epochs, ppo.minibatches,
            ppo.kl_coef > 0 or ppo.kl_logged, ppo.frozen, ppo.moments,
        )  # fmt: skip

    replies = tries * roll.reply_length
    alone = training_costs.Rows(talks, length, tiles=tiles, scored=replies, valued=tries)
    slots = ppo.pictures if tiles else shared  # empty ones are computed too
    rows = training_costs.Rows(
        -(-talks // shared), roll.context, slots, tiles, shared * replies, shared * tries
    )
    needed, done = update(alone), update(rows)
    return dataclasses.replace(done, flops=needed.flops, flops_recomputed=needed.flops_recomputed)


def _tiles(lab: Lab) -> int:
    """Tiles of the task's images; 0 if it has none."""
    if not lab.config.pictured:
        return 0
    vision, size = lab.model.vision, lab.config.env.image_size
    return math.prod(Tiling(vision.image_size, vision.max_num_tiles).canvas(size, size))


def told(lab: Lab, name: str) -> dict[str, float]:
    """The same as numbers of a row."""
    cost = work(lab, name)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(lab.shapes)),
        "flops_per_step": cost.flops,
        "flops_executed": cost.flops_executed,
        "recomputation": round(cost.recomputation, 3),
        "bytes_per_step": cost.bytes.total,
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    kinds, total, collectives = row["gib_by_kind"], row["gib_per_chip"], row["collectives"]
    shown = [row["step"], row["topology"] + f" x {row['slices']}" * (row["slices"] > 1)]
    shown.append(" x ".join(str(size) for size in row["mesh"].values()))
    shown += [f"{kinds[kind]:.2f}" if kind in kinds else "" for kind in HEAD[3:8]]
    shown.append("not told" if total is None else f"**{total:.2f}**")
    shown += [str(row["hbm_gib"]), "yes" if row["fits"] else "no"]
    shown += [f"{row[name] / 1e15:.4g}" for name in ("flops_per_step", "flops_executed")]
    shown.append(f"{row['bytes_per_step'] / 1e15:.3g}")
    if collectives is None:
        shown.append("not told")
    else:
        shown.append(", ".join(f"{count} {kind}" for kind, count in collectives.items()))
    return f"| {' | '.join(shown)} | {row['compile_s']:.0f} |"


def main(
    config: cfg.StudyConfig, topology: str, slices: int, names: Sequence[str], file: str | None
) -> None:
    """Print a row for each step as it is compiled, and write them to `file`."""
    jax.config.update("jax_optimization_level", LEVEL)
    devices = described(topology, slices)
    lab = opened(config, devices)
    mesh = dict(zip(lab.mesh.axis_names, lab.mesh.devices.shape, strict=True))
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    rows = []
    with jax.set_mesh(lab.mesh):
        for step in steps(lab, names):
            about = {"step": step.name, "topology": topology, "slices": slices}
            about |= {"chips": lab.mesh.size, "mesh": mesh, "hbm_gib": HBM[topology.split(":")[0]]}
            about |= {"level": LEVEL, "tokenizer": lab.config.text.tokenizer}
            row = about | told(lab, step.name) | compiled(step, about["hbm_gib"])
            rows.append(row)
            print(line(row), flush=True)
            for tensor in row.get("largest", ()):
                print(f"    {tensor}")
    if file:
        labs.write_json(Path(file), {"steps": rows})


if __name__ == "__main__":
    STUDY = labs.define_config("configs/gp_vl.py:11b")
    TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x8", "TPUs to compile for")
    SLICES = flags.DEFINE_integer("slices", 1, "how many such slices", lower_bound=1)
    STEP = flags.DEFINE_enum("step", "all", [*STEPS, "all"], "which program")
    FILE = flags.DEFINE_string("json", None, "where the table is written")

    def start():
        names = STEPS if STEP.value == "all" else (STEP.value,)
        main(STUDY(), TOPOLOGY.value, SLICES.value, names, FILE.value)

    labs.run(start)

"""What the launchers share: a study's configuration turned into models, games and jitted steps."""

import contextlib
import dataclasses
import functools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict, config_flags
from transformers import PreTrainedTokenizerBase

from gp_virl import config as cfg
from gp_virl.envs.api import Task
from gp_virl.evals.evaluate import records
from gp_virl.metrics import SHOWS, MetricsError, RunWriter, run_writer
from gp_virl.model import mllama
from gp_virl.model.config import ModelConfig, preset
from gp_virl.places import Place, PlaceError, place, write_whole
from gp_virl.rollout import episodes
from gp_virl.rollout.sampling import Sampling
from gp_virl.sharding import mesh_of, whole
from gp_virl.text import template, tokenizer
from launch import card_study, processes, route_study

DECODINGS = ("greedy", "sampled")
WRONG = (
    cfg.ConfigError, template.TemplateError, MetricsError, PlaceError, processes.ProcessesError
)  # fmt: skip
STUDIES = {
    "gp_l": card_study, "gp_vl": card_study, "virl_l": route_study, "virl_vl": route_study
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lab:
    """A study ready to run; games by name: every split, 'train' and 'held_out'."""

    config: cfg.StudyConfig
    study: ModuleType  # what the task needs: one of STUDIES
    tokenizer: PreTrainedTokenizerBase
    model: ModelConfig
    graph: nnx.GraphDef
    shapes: PyTree  # of the parameters, with their layout on the mesh
    games: dict[str, Task]
    parameters: int  # N of the compute axis
    mesh: Mesh  # enter it with jax.set_mesh before anything is traced
    play: Callable  # jitted episodes.outcomes: (params, game, deal, draw, sampling, hands)


def evaluated(lab: Lab) -> list[str]:
    """The games of an evaluation at a branch's end: all splits, and what is held out."""
    return [name for name in lab.games if name != "train"]


def open_lab(config: cfg.StudyConfig, devices: Sequence[jax.Device] | None = None) -> Lab:
    """Check and build everything that costs little; ConfigError before any training starts.

    The mesh is of `devices`, by default of all that are here.
    """
    study, choice = STUDIES[config.task], config.model
    try:
        tokens, words = study.load_texts(config)
        games = study.build_games(config, tokens, words)
        check_room(config, games)
        model = preset(
            choice.size,
            images=config.pictured,
            vocab_size=tokenizer.head_rows(tokens),
            dtype=choice.dtype,
            remat=choice.remat,
            attention=choice.attention,
        )
        fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
        among = devices or jax.devices()
        data = config.mesh.data or max(1, len(among) // (fsdp * tensor))
        mesh = mesh_of(data, fsdp, tensor, among)
    except (ValueError, KeyError) as wrong:
        raise cfg.ConfigError(wrong.args[0]) from wrong
    if devices is None:
        check_processes(config, mesh)
        spread = processes.replicated([*games.values()], mesh)  # together: they share arrays
        games = dict(zip(games, spread, strict=True))
    graph, shapes = mllama.abstract(model, mesh)
    play = jax.jit(
        functools.partial(_play, graph, model, config),
        static_argnames="hands",
        out_shardings=whole(mesh),
    )
    count = counted_parameters(shapes, model)
    return Lab(config, study, tokens, model, graph, shapes, games, count, mesh, play)


def check_room(config: cfg.StudyConfig, games: Mapping[str, Task]) -> None:
    """ConfigError unless the longest conversation of every game fits a lane's context."""
    for name, game in games.items():
        needed = game.context_limit
        if needed > config.rollout.context:
            raise cfg.ConfigError(
                f"config.rollout.context: given {config.rollout.context}, but conversations of "
                f"{name} take up to {needed} tokens; allowed: at least {needed}"
            )


def check_processes(config: cfg.StudyConfig, mesh: Mesh) -> None:
    """ConfigError unless all processes have the same study and a part of the mesh."""
    if jax.process_count() == 1:
        return
    if mesh.size != jax.device_count():
        raise cfg.ConfigError(
            f"config.mesh: given {mesh.size} devices, but {jax.process_count()} processes have "
            f"{jax.device_count()}; allowed: all of them, as with config.mesh.data=0"
        )
    mine = zlib.crc32(repr(config).encode()) >> 1
    if processes.agreed(mine) != mine:
        raise cfg.ConfigError(
            f"process {jax.process_index()} has another configuration than process 0; start all "
            "with the same files and flags"
        )


def counted_parameters(shapes: PyTree, model: ModelConfig) -> int:
    """N of the compute axis: all parameters but the value head and the embedding table.

    A token reads one row of the table. Without images the cross-attention layers are skipped by
    every token and aren't counted either.
    """
    skipped = ["value_head", "embed_tokens"]
    if model.vision is None:
        skipped += [f"['layers'][{i}]" for i, kind in enumerate(model.pattern) if kind == "cross"]
    named = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return sum(
        leaf.size
        for path, leaf in named
        if not any(part in jax.tree_util.keystr(path) for part in skipped)
    )


def _play(graph, model, config: cfg.StudyConfig, params, game, deal, draw, sampling, hands: int):
    roll = config.rollout
    return episodes.outcomes(
        nnx.merge(graph, mllama.for_decoding(params, model)), game, deal, draw, sampling,
        hands=hands, lanes=config.eval.lanes, max_turns=game.turn_limit,
        size=roll.context, reply_length=roll.reply_length, chunk=roll.chunk, together=roll.images,
    )  # fmt: skip


def sampling(config: cfg.StudyConfig, decoding: str) -> Sampling:
    """How replies are drawn: as in training, or the most likely token."""
    roll = config.rollout
    return Sampling(
        temperature=jnp.float32(roll.temperature),
        top_p=jnp.float32(roll.top_p),
        greedy=jnp.asarray(decoding == "greedy"),
    )


def evaluate(
    lab: Lab,
    params: PyTree,
    hands: int,
    common: Mapping[str, Any],
    splits: Iterable[str],
    decodings: Iterable[str] = DECODINGS,
) -> list[dict[str, Any]]:
    """Tidy records of the splits; the hands depend on `eval.seed` alone, not on the branch.

    A game that is no split counts as split id.
    """
    found = []
    key = jax.random.key(lab.config.eval.seed)
    for split in splits:
        game = lab.games[split]
        for decoding in decodings:
            tries, states = lab.play(
                params, game, key, jax.random.fold_in(key, 1),
                sampling(lab.config, decoding), hands=hands,
            )  # fmt: skip
            about = dict(common) | {
                "kind": "eval",
                "split": split if split in lab.config.splits else "id",
                "decoding": decoding,
            }
            groups = lab.study.groups(lab.config, split, states)
            seen = jax.device_get((tries.outcome, tries.recognized, tries.solved))
            found += records(
                *seen, game.outcomes, about, groups, lab.study.metrics(lab.config),
                lab.config.env.max_turns,
            )  # fmt: skip
    return found


def shown(found: Iterable[Mapping[str, Any]]) -> str:
    """One line of the rates among some records."""
    parts = [
        f"{r['split']} {r['metric']} {100 * r['value']:.1f}%".replace(" success", "")
        for r in found
        if r["metric"].startswith(("success", "recognition", "per_step"))
        and (r["decoding"], r["tries"] > 1) == ("greedy", True)
    ]
    return ", ".join(parts)


def run(main: Callable[[], None], join: processes.Joined | None = None) -> None:
    """Parse the flags and call `main`; a wrong configuration is one message, no traceback.

    With `join`, of `processes.define_flags`, several processes may run it together.
    """

    def start(_) -> None:
        logging.set_verbosity(logging.ERROR)  # TFDS and orbax tell every step they take
        try:
            with join(WRONG) if join else contextlib.nullcontext():
                main()
        except WRONG as wrong:
            sys.exit(f"{type(wrong).__name__}: {wrong}")

    app.run(start)


def define_shows() -> Callable[[], tuple[str, ...]]:
    """Define --shows; the returned function gives the names once flags are parsed."""
    holder = flags.DEFINE_list("shows", [], f"where metrics go as well: {', '.join(SHOWS)}")
    return lambda: tuple(holder.value)


def open_writer(workdir: Place, shows: tuple[str, ...]) -> RunWriter:
    """The writer of workdir/metrics.jsonl and of `shows`.

    Every process calls this at once; ProcessesError if they don't share the directory.
    """
    processes.check_shared(workdir)
    return run_writer(workdir, shows, jax.process_index())


def define_config(default: str = "configs/gp_l.py:tiny") -> Callable[[], cfg.StudyConfig]:
    """Define --config; the returned function gives the checked study once flags are parsed."""
    refuse_unknown(sys.argv)  # ml_collections looks at the names while it defines the flag
    holder = config_flags.DEFINE_config_file("config", default, "experiment configuration")

    def study() -> cfg.StudyConfig:
        given: ConfigDict = holder.value
        return cfg.build(given)

    return study


def refuse_unknown(argv: list[str]) -> None:
    """Exit, naming what is allowed, if a --config.NAME is not a field of the configuration."""
    names = [a.removeprefix("--config.").split("=")[0] for a in argv if a.startswith("--config.")]
    problems = [problem for name in names if (problem := cfg.path_problem(name))]
    if problems:
        sys.exit("\n".join(problems))


def define_workdir() -> Callable[[cfg.StudyConfig, str], Place]:
    """Define --workdir; by default runs/TASK_SCALE, for a single stage runs/TASK_SCALE_STAGE."""
    holder = flags.DEFINE_string(
        "workdir",
        None,
        "where everything is written: a directory, or gs://BUCKET/DIRECTORY",
    )

    def chosen(config: cfg.StudyConfig, stage: str = "") -> Place:
        parts = [config.task, config.scale, stage]
        return place(holder.value or f"runs/{'_'.join(filter(None, parts))}")

    return chosen


def refuse_study(workdir: Place) -> None:
    """ConfigError if the directory is a study's: a single stage would write over its branch."""
    if (workdir / "config.json").exists():
        raise cfg.ConfigError(
            f"{workdir} holds a study; give the single stage a --workdir of its own"
        )


def settle(workdir: Place, config: cfg.StudyConfig) -> None:
    """Make the work directory this study's, and keep compiled programs between runs.

    All processes share the directory. Raises ConfigError if it holds a study of another
    configuration; only the mesh may be another than before.
    """
    path, given = workdir / "config.json", dataclasses.asdict(config)
    kept = json.loads(path.read_text()) if path.exists() else given
    differ = {key for key in kept | given if kept.get(key) != given.get(key)} - {"mesh"}
    if differ:
        raise cfg.ConfigError(
            f"{workdir} holds a study of another configuration (it differs in "
            f"{', '.join(sorted(differ))}); give another --workdir, or delete it"
        )
    if jax.process_index() == 0:
        write_json(path, given)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(".jax_cache").absolute()))


def write_json(path: Place, content: Any) -> None:
    """Write a JSON file: it is there whole or not at all."""
    write_whole(path, json.dumps(content, indent=1) + "\n")

"""A whole study: base, then SFT and RL from it, evaluations along compute, summary and figures.

python -m launch.study --config=configs/gp_l.py:tiny [--seeds=3] [--workdir=DIR]

What is done already in the work directory is not done again.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import flags
from jaxtyping import PyTree

from gp_virl.config import StudyConfig
from gp_virl.evals import flops
from gp_virl.evals.scores import difference_in_errors
from gp_virl.io import checkpoint
from gp_virl.metrics import RunWriter
from gp_virl.places import Place, write_whole
from gp_virl.plots import results, tasks, transcripts, visual
from gp_virl.plots.studies import Study
from launch import branches, dialogues, processes, train_rl, train_sft
from launch import lab as labs
from launch.branches import Branch, say
from launch.lab import Lab

SECONDS = "seconds.json"


def main(config: StudyConfig, workdir: Place, seeds: int = 1, shows: tuple[str, ...] = ()) -> None:
    """Run everything that is not done yet, `seeds` times over."""
    lab = labs.open_lab(config)
    labs.settle(workdir, config)
    writer = labs.open_writer(workdir, shows)
    with jax.set_mesh(lab.mesh), counted(workdir):
        for seed in range(config.seed, config.seed + seeds):
            run_seed(lab, seed, workdir, writer)
    if jax.process_index() == 0:
        report(lab, workdir, seconds_of(workdir))


def seconds_of(workdir: Place) -> float:
    """Wall-clock seconds of all runs of a study so far, those that were killed left out."""
    path = workdir / SECONDS
    return json.loads(path.read_text()) if path.exists() else 0.0


@contextlib.contextmanager
def counted(workdir: Place) -> Iterator[None]:
    """Adds the seconds of its body to those of the study, also where that is interrupted."""
    before, clock = seconds_of(workdir), time.perf_counter()
    try:
        yield
    finally:
        if jax.process_index() == 0:
            labs.write_json(workdir / SECONDS, before + time.perf_counter() - clock)


def run_seed(lab: Lab, seed: int, workdir: Place, writer: RunWriter) -> None:
    """One base and its three branches."""
    config = lab.config

    def branch(name: str, tokens: int) -> Branch:
        return Branch(name, seed, workdir / f"seed{seed}" / name, workdir / "data", tokens)

    base = branch("base", 0)
    fresh = functools.partial(branches.fresh_params, lab, seed)
    state, seen = train_sft.train(lab, base, config.base, fresh, writer, lambda *_: None)
    init = state.params
    del state  # and its moments
    evaluate_init(lab, seed, init, seen, workdir, writer)
    ends: dict[str, Callable[[], PyTree]] = {"init": lambda: init}
    for name in ("sft", "sft_matched"):
        one, run = branch(name, seen), getattr(config, name)
        evaluate = branches.evaluator(lab, one, writer, run.steps)
        train_sft.train(lab, one, run, lambda: init, writer, evaluate)
        ends[name] = functools.partial(last_params, lab, one, init)
    one = branch("rl", seen)
    evaluate = branches.evaluator(lab, one, writer, config.ppo.updates)
    train_rl.train(lab, one, init, writer, evaluate)
    ends["rl"] = functools.partial(last_params, lab, one, init)
    dialogues.write(lab, ends, seed, workdir / f"seed{seed}" / "transcripts.jsonl")


def last_params(lab: Lab, branch: Branch, init: PyTree) -> PyTree:
    """The parameters at the branch's end, read anew: memory has room for few sets of them."""
    if checkpoint.latest(branch.place) is None:  # it had no steps
        return init
    return branches.load_params(lab, branch.place)[0]


def evaluate_init(
    lab: Lab, seed: int, params: PyTree, tokens: int, workdir: Place, writer: RunWriter
) -> None:
    """The shared first point of all branches, once."""
    first = jax.process_index() == 0  # which alone writes what is read here
    if processes.agreed(int(first and _evaluated(lab, seed, workdir))):
        return
    writer.truncate(-1, branch="init", seed=seed)
    branch = Branch("init", seed, workdir, workdir / "data", tokens)
    evaluate = branches.evaluator(lab, branch, writer, last=0)
    evaluate(params, 0, flops.sft_flops(lab.parameters, tokens, 0))


def _evaluated(lab: Lab, seed: int, workdir: Place) -> bool:
    done = results.read_metrics(workdir / "metrics.jsonl")
    game = labs.evaluated(lab)[-1]  # whose records come last; without them all is redone
    held = game == lab.study.HELD_OUT
    last = ("id" if held else game, "success" + "_held_out" * held, "sampled")
    of_init = [r for r in done if (r.branch, r.seed) == ("init", seed)]
    return any((r.split, r.metric, r.decoding) == last for r in of_init)


def report(lab: Lab, workdir: Place, seconds: float) -> None:
    """summary.json, the figures and the page of transcripts."""
    records = results.read_runs([workdir])
    findings = list(compare(records, lab))
    labs.write_json(
        workdir / "summary.json",
        {
            "task": lab.config.task,
            "scale": lab.config.scale,
            "parameters": lab.parameters,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
            f"{os.cpu_count()} processors, {platform.machine()}",
            "seconds": round(seconds, 1),
            "findings": findings,
            "results": [dataclasses.asdict(record) for record in records],
        },
    )
    study = Study(lab.config.task, lab.config.scale, records)
    drawn = figures(lab.config)
    for draw in drawn:
        figure = draw([study], tries=lab.study.tries(lab.config))
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_whole(workdir / f"{draw.__name__}.png", picture.getvalue())
    talks = [
        one
        for path in sorted(workdir.glob("seed*/transcripts.jsonl"))
        for one in transcripts.read_transcripts(path)
    ]
    page = transcripts.page(talks, f"Transcripts: {study.title}")
    write_whole(workdir / "transcripts.html", page)
    for finding in findings:
        say(
            f"{finding['split']:<10} {finding['metric']:<11} {finding['branch']:<11} "
            f"seed {finding['seed']}: "
            f"{100 * finding['init']:.1f}% -> {100 * finding['value']:.1f}% "
            f"({finding['standard_errors']:+.1f} standard errors, N = {finding['n']})"
        )
    names = ", ".join(f"{draw.__name__}.png" for draw in drawn)
    say(f"{workdir}: summary.json, {names}, transcripts.html")


def figures(config: StudyConfig) -> list[Callable]:
    """The paper's figures that one study of this task has."""
    drawn = [tasks.fig5, tasks.fig6]
    if "visual" in config.ood:
        drawn.append(visual.fig7)
    if config.task == "gp_vl":
        drawn.append(visual.fig8)
    if config.task == "virl_vl":
        drawn.append(tasks.fig18)
    return drawn


def compare(records: list[results.Record], lab: Lab) -> Iterator[dict[str, Any]]:
    """Each branch's end against Init, greedy, in standard errors of the difference.

    First tries, or where the study says so, all of them.
    """
    tries = lab.study.tries(lab.config) or lab.config.env.max_turns

    def end(metric: str, branch: str, split: str, seed: int) -> results.Record | None:
        found = [
            r for r in records
            if (r.branch, r.split, r.seed) == (branch, split, seed)
            and (r.metric, r.tries, r.decoding) == (metric, tries, "greedy")
        ]  # fmt: skip
        return max(found, key=lambda r: r.updates, default=None)

    metrics = ("success", *lab.study.metrics(lab.config))
    for seed in sorted({r.seed for r in records}):
        for metric, split in itertools.product(metrics, lab.config.splits):
            init = end(metric, "init", split, seed)
            for branch in ("sft", "sft_matched", "rl"):
                last = end(metric, branch, split, seed)
                if init is None or last is None:
                    continue
                found: dict[str, Any] = {"metric": metric, "split": split, "branch": branch}
                found |= {"seed": seed, "tries": tries}
                errors = difference_in_errors(init.value, init.n, last.value, last.n)
                yield found | {
                    "init": init.value,
                    "value": last.value,
                    "n": last.n,
                    "standard_errors": errors,
                }


if __name__ == "__main__":
    STUDY, PLACE, SHOWS = labs.define_config(), labs.define_workdir(), labs.define_shows()
    SEEDS = flags.DEFINE_integer("seeds", 1, "how often the study is repeated", lower_bound=1)
    JOIN = processes.define_flags()

    def start():
        config = STUDY()
        main(config, PLACE(config), SEEDS.value, SHOWS())

    labs.run(start, JOIN)

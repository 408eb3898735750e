"""Studies of several tasks for one figure: whose records are where, and which can be drawn."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gp_virl.plots.curves import Curve, chosen, curve
from gp_virl.plots.look import branches, counts, protocol, seeds
from gp_virl.plots.paper import TASKS
from gp_virl.plots.results import Record, ResultsError, read_runs

SAY_SO = ("summary.json", "config.json")  # the second is there from a study's first second on


@dataclasses.dataclass(frozen=True)
class Study:
    """All records of one task, of one or several seeds; `task` is '' if no file told it."""

    task: str
    scale: str
    records: Sequence[Record]

    @property
    def name(self) -> str:
        """The task as the paper writes it."""
        return TASKS.get(self.task, "this run")

    @property
    def title(self) -> str:
        """Task and scale; '' if the task is not known."""
        return ", ".join(filter(None, (self.name, self.scale))) if self.task else ""


@dataclasses.dataclass(frozen=True)
class Column:
    """What a figure shows of one study: records of one metric by split, Init, RL and SFT in all."""

    study: Study
    metric: str
    tries: int
    fits: dict[str, list[Record]]

    def along(self, split: str, branch: str) -> Curve:
        """The curve of a branch on a split."""
        return curve(self.fits[split], branch)


def read_studies(directories: Iterable[str | Path], task: str | None = None) -> list[Study]:
    """One Study a task, in the paper's order; directories of one task are its seeds.

    The task is told by summary.json or config.json of a directory, else it is `task`. Raises
    ResultsError if several tasks are given and one directory's is unknown, if one task comes in
    two scales, or if `task` is given and a directory is of another.
    """
    groups: dict[str, list[Path]] = {}
    scales: dict[str, set[str]] = {}
    for directory in map(Path, directories):
        told, scale = _told(directory)
        if told and task and told != task:
            raise ResultsError(f"{directory} is a study of {told}, not of {task}")
        groups.setdefault(told or task or "", []).append(directory)
        scales.setdefault(told or task or "", set()).update({scale} - {""})
    for name, found in scales.items():
        if len(found) > 1:
            raise ResultsError(
                f"runs of {name} in scales {', '.join(sorted(found))}; give those of one scale"
            )
    if "" in groups and len(groups) > 1:
        raise ResultsError(
            f"{', '.join(map(str, groups['']))}: neither {' nor '.join(SAY_SO)} tells the task; "
            "leave it out or finish the study"
        )
    order = sorted(groups, key=[*TASKS, ""].index)
    return [Study(name, "".join(scales[name]), read_runs(groups[name])) for name in order]


def column(
    study: Study,
    splits: Sequence[str],
    metric: str,
    tries: int | None = 1,
    decoding: str = "greedy",
) -> Column:
    """The Column of a study; `tries` None means as many as its episodes allow.

    Raises ResultsError, naming the study, if a split, Init, RL or SFT is missing.
    """
    if tries is None:
        tries = max((r.tries for r in study.records if r.metric == metric), default=1)
    try:
        fits = {split: chosen(study.records, split, tries, decoding, metric) for split in splits}
        for split, fit in fits.items():
            missing = {"init", "rl", "sft"} - {one.branch for one in fit}
            if missing:
                raise ResultsError(f"no {metric} on {split} of {', '.join(sorted(missing))}")
            for branch in branches(fit):
                curve(fit, branch)
    except ResultsError as lacking:
        raise ResultsError(f"{study.name}: {lacking}") from lacking
    return Column(study, metric, tries, fits)


def columns(
    studies: Sequence[Study],
    metrics: Mapping[str, str],
    splits: Sequence[str],
    tries: int | None = 1,
    decoding: str = "greedy",
) -> tuple[list[Column], list[str]]:
    """Columns of the studies whose task is in `metrics` (task -> metric), and what others lack.

    Raises ResultsError, with all that is missing and what to run, if there is no column.
    """
    found, lacking = [], []
    for study in studies:
        if study.task not in metrics:
            continue
        try:
            found.append(column(study, splits, metrics[study.task], tries, decoding))
        except ResultsError as missing:
            lacking.append(str(missing))
    if not found:
        raise nothing(studies, metrics, splits, lacking)
    return found, lacking


def nothing(
    studies: Sequence[Study],
    metrics: Mapping[str, str],
    splits: Sequence[str],
    lacking: Sequence[str],
) -> ResultsError:
    """The error of a figure without data: what it needs, what was given, and what to run."""
    needs = ", ".join(f"{metric} of {TASKS[task]}" for task, metric in metrics.items())
    runs = " or ".join(
        f"python -m launch.study --config=configs/{task}.py:tiny" for task in metrics
    )
    strange = [f"{one.name}: not in this figure" for one in studies if one.task not in metrics]
    given = "; ".join([*strange, *lacking]) or "no study"
    return ResultsError(
        f"nothing to draw; needed: {needs}, on {' and '.join(splits)}, for init, rl and sft; "
        f"given: {given}. Run {runs}, and give its run directory"
    )


def sizes(found: Sequence[Column], decoding: str) -> str:
    """Of every column: protocol, N and number of seeds, two to a line."""
    told = []
    for one in found:
        fit = [record for fit in one.fits.values() for record in fit]
        many = f", {seeds(fit)} seeds" if seeds(fit) > 1 else ""
        how = protocol(one.tries, decoding, one.metric)
        told.append(f"{one.study.title}: {how}, N = {counts(fit)}{many}.")
    return "\n".join("  ".join(told[i : i + 2]) for i in range(0, len(told), 2))


def absent(lacking: Sequence[str]) -> str:
    """A line for every study that could not be drawn, cut where it gets long."""
    return "\n".join(f"Not drawn, {one[:110]}" for one in lacking)


def _told(directory: Path) -> tuple[str, str]:
    """(task, scale) that the directory's files tell; empty where they don't."""
    for name in SAY_SO:
        path = directory / name
        if not path.is_file():
            continue
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as broken:
            raise ResultsError(f"{path} is not JSON: {broken}") from broken
        if isinstance(told, dict) and told.get("task") in TASKS:
            return told["task"], str(told.get("scale", ""))
    return "", ""

"""Records of imagined studies, for the tests of plots; none of their numbers were measured."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from gp_virl.evals.scores import wilson
from gp_virl.metrics import jsonl_writer
from gp_virl.plots.results import Record
from gp_virl.plots.studies import Study

INIT_FLOPS = 1.2e13
# (value at the end of training, share of it that comes with the first tenth), by branch and split
ENDS = {
    ("rl", "id"): 0.93,
    ("rl", "rule_ood"): 0.41,
    ("sft", "id"): 0.985,
    ("sft", "rule_ood"): 0.005,
    ("sft_matched", "id"): 0.97,
    ("sft_matched", "rule_ood"): 0.22,
}
STARTS = {"id": 0.72, "rule_ood": 0.35}


def measured(branch: str, split: str, value: float, flops: float, updates: int, seed: int, n=2048):
    successes = round(value * n)
    low, high = wilson(successes, n)
    return Record(
        branch=branch,
        split=split,
        metric="success",
        tries=1,
        decoding="greedy",
        value=successes / n,
        n=n,
        low=low,
        high=high,
        compute_flops=flops,
        updates=updates,
        seed=seed,
    )


def study(seeds: int = 1, points: int = 9, control: bool = True, held_out: bool = True):
    """Init, RL, SFT and the control on ID, its held-out hands and rule OOD, with noise."""
    noise = np.random.default_rng(0)
    splits = ("id", "rule_ood", "id_held_out") if held_out else ("id", "rule_ood")
    records = []
    for seed in range(seeds):
        for split in splits:
            base = "rule_ood" if split == "rule_ood" else "id"
            start = STARTS[base] + noise.normal(0, 0.01)
            records.append(measured("init", split, start, INIT_FLOPS, 0, seed))
            for branch in ("sft", "sft_matched", "rl") if control else ("sft", "rl"):
                length = {"rl": 2.2e13, "sft": 2.6e13, "sft_matched": 2.6e13}[branch]
                for point in range(1, points + 1):
                    t = point / points
                    grown = 1 - math.exp(-4 * t)
                    value = start + (ENDS[branch, base] - start) * grown + noise.normal(0, 0.012)
                    value = min(max(value, 0.0), 1.0)
                    flops = INIT_FLOPS + length * t * (1 + 0.01 * seed)
                    records.append(measured(branch, split, value, flops, 20 * point, seed))
    return records


def task_study(task: str, seeds: int = 1, points: int = 6, control: bool = False) -> Study:
    """A study that writes what this task's does: also seeing, single steps and the other look."""
    noise = np.random.default_rng(len(task))
    picture, route = task.endswith("_vl"), task.startswith("virl")
    metrics = ["success", *["per_step"] * route, *["recognition"] * (task == "gp_vl")]
    records = []
    for one in study(seeds, points, control, held_out=False):
        splits = [one.split, *["visual_ood"] * (picture and one.split == "rule_ood")]
        for split in splits:
            for metric in metrics:
                level = {"success": 0.8, "per_step": 1.0, "recognition": 0.9}[metric]
                shift = 0.05 * (split == "visual_ood") + noise.normal(0, 0.01)
                value = min(max(level * one.value + shift, 0.0), 1.0)
                for tries, gain in ((1, 0.0), (2, 0.3)):
                    better = value + gain * (1 - value)
                    about = (one.branch, split, better, one.compute_flops, one.updates, one.seed)
                    n = 2048 if metric == "success" else 7000 + one.updates
                    record = measured(*about, n)
                    records.append(dataclasses.replace(record, metric=metric, tries=tries))
    return Study(task, "imagined", records)


def write_study(study: Study, directory: Path) -> Path:
    """The study's run directory."""
    writer = jsonl_writer(directory / "metrics.jsonl")
    for one in study.records:
        writer.write({"kind": "eval", **dataclasses.asdict(one)})
    about = {"task": study.task, "scale": study.scale}
    (directory / "summary.json").write_text(json.dumps(about))
    return directory

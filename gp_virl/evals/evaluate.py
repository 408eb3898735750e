"""Evaluation: tidy records from the outcomes of every try."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from gp_virl.evals.scores import wilson

NOT_PLAYED = -1
METRICS = ("recognition", "per_step")  # that a task may have besides success and outcomes


def records(
    outcome: Int[np.ndarray, "hands K"],
    recognized: Bool[np.ndarray, "hands K"],
    solved: Bool[np.ndarray, "hands K"],
    names: Sequence[str],
    common: Mapping[str, Any],
    groups: Mapping[str, Bool[np.ndarray, "hands"]],
    metrics: Collection[str] = (),
    tries_a_step: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Tidy records of one evaluation, each with its N and Wilson interval.

    `outcome[h, t]` of an episode's reply t indexes `names` (names[0] is the right one) or is
    NOT_PLAYED. `groups` maps a suffix ('' for all episodes, '_held_out', ...) to those it holds.

    `success`: share of episodes solved; with `tries` 1, without any failed reply. With "per_step"
    among `metrics`, an episode has many steps of up to `tries_a_step` tries: `per_step` is the
    share of right replies, and `outcome_X` that of X, among all; else an episode is one step of K
    tries, and `outcome_X` is the share among replies at try t (`tries`: t + 1). With
    "recognition", `recognition` is the share of replies that name rightly what is to be seen.
    Both are given for the first try at each step (`tries` 1) and for all.
    """
    turns, stepwise = outcome.shape[1], "per_step" in metrics
    most = tries_a_step if stepwise and tries_a_step else turns
    played, right = outcome != NOT_PLAYED, outcome == 0
    first = played & np.pad(right, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    kinds = {"recognition": recognized, "per_step": right}
    for suffix, members in groups.items():
        won, failed = solved[members].any(axis=1), (played & ~right)[members].any(axis=1)
        wins = {1: won & ~failed, most: won}
        for tries, hits in wins.items():
            yield from _record(common, f"success{suffix}", tries, hits.sum(), hits.size)
        for name in sorted(metrics):
            for tries, counted in {1: first, most: played}.items():
                counted = counted[members]
                hits = (kinds[name][members] & counted).sum()
                yield from _record(common, f"{name}{suffix}", tries, hits, counted.sum())
        together = {most: range(turns)} if stepwise else {t + 1: [t] for t in range(turns)}
        for tries, columns in together.items():
            tried = outcome[members][:, columns]
            for index, name in enumerate(names):
                hits, n = (tried == index).sum(), (tried != NOT_PLAYED).sum()
                yield from _record(common, f"outcome_{name}{suffix}", tries, hits, n)


def _record(common: Mapping[str, Any], metric: str, tries: int, hits, n) -> list[dict[str, Any]]:
    """One record, or none if nothing was counted."""
    hits, n = int(hits), int(n)
    if not n:
        return []
    low, high = wilson(hits, n)
    about = {"metric": metric, "tries": tries, "value": hits / n, "n": n, "low": low, "high": high}
    return [dict(common) | about]

"""Evaluation: tidy records from the outcomes of every try."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from gp_virl.evals.scores import wilson

NOT_PLAYED = -1


def records(
    outcome: Int[np.ndarray, "hands K"],
    names: Sequence[str],
    common: Mapping[str, Any],
    groups: Mapping[str, Bool[np.ndarray, "hands"]],
) -> Iterator[dict[str, Any]]:
    """Tidy records of one evaluation, each with its N and Wilson interval.

    `outcome[h, t]` indexes `names` (names[0] is 'solved') or is NOT_PLAYED. `groups` maps a
    suffix ('' for all hands, '_held_out', ...) to the hands it holds. Metrics: `success` after
    1 and after K tries, and `outcome_X`, the share of X among replies at try t (`tries`: t + 1).
    """
    turns = outcome.shape[1]
    solved = outcome == 0
    for suffix, members in groups.items():
        for tries in dict.fromkeys((1, turns)):
            hits = solved[members, :tries].any(axis=1)
            yield from _record(common, f"success{suffix}", tries, hits.sum(), hits.size)
        for turn in range(turns):
            tried = outcome[members, turn]
            for index, name in enumerate(names):
                hits, played = (tried == index).sum(), (tried != NOT_PLAYED).sum()
                yield from _record(common, f"outcome_{name}{suffix}", turn + 1, hits, played)


def _record(common: Mapping[str, Any], metric: str, tries: int, hits, n) -> list[dict[str, Any]]:
    """One record, or none if nothing was counted."""
    hits, n = int(hits), int(n)
    if not n:
        return []
    low, high = wilson(hits, n)
    about = {"metric": metric, "tries": tries, "value": hits / n, "n": n, "low": low, "high": high}
    return [dict(common) | about]

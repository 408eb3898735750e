"""This model against transformers' PyTorch model on the same weights, in float32:

    python -m launch.compare_torch --checkpoint=DIR [--json=FILE] [--random] [--notime]

DIR is in Hugging Face's format; neither tokenizer nor processor is needed, as tokens, tiles and
masks are random. With --random a tiny model is written there first. Needs the [torch] extra.

JSON: `logits_max_abs_text|image|mixed` (and `logits_mean_abs_`, `_max_rel_`, `_mean_rel_`),
`reply_logp_max_abs`, `greedy_equal_tokens` (leading tokens equal in every row of every batch) of
`greedy_tokens`, `sft_loss_max_abs` and `sft_grad_norm_max_rel` over the steps, `modules` by name,
and `jobs` by name with `torch_s`, `jax_s` (medians of interleaved repeats after warm-up) and
`ratio`. Rollout and update are those of as many conversations as a batch has rows; PyTorch plays
one at a time, so its time for one is counted that many times.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from gp_virl.io import hf
from gp_virl.train import state as training
from launch import compare_inputs, compare_modules, jax_side, lab
from launch.compare_inputs import KINDS, Batch, Sizes

WARM_UP = 2
SHORT = 1.0  # seconds: a job is repeated until it has taken so long, `repeats` times at least
MOST = 40
JOB, MODULE = "{:<28}{:>12}{:>12}{:>9}", "{:<62}{:>7}{:>11}{:>11}{:>11}{:>11}"


class Pair:
    """Both models with the same weights, and batches in the shapes both take."""

    def __init__(self, directory: Path, sizes: Sizes):
        from launch import torch_side

        found = hf.open_checkpoint(directory, param_dtype="float32")
        self.there, self.sizes, self.config = torch_side, sizes, found.config
        self.graph, self.params = hf.load(found, jax.random.key(0))
        self.directory = directory
        self.torch = torch_side.load(directory)
        self.pad = self.torch.config.text_config.pad_token_id
        self.kinds = KINDS if found.config.cross_attention_layers else KINDS[:1]
        # One for all jobs: compiled functions are kept by it.
        self.run = jax_side.sft_settings(sizes.steps)
        self.rule = training.optimizer(self.run, sizes.steps)

    def batch(self, kind: str, rows: int, size: int, ragged: bool = False) -> Batch:
        """The same batch for the same arguments."""
        return compare_inputs.random_batch(self.config, kind, rows, size, 0, self.pad, ragged)

    def state(self) -> training.TrainState:
        """A state of its own, all of it bound to a device, as the one after a step is.

        A state that is bound in part would have the step compiled twice.
        """
        return jax.device_put(training.create(self.params, self.rule), jax.devices()[0])

    def trainer(self) -> Any:
        """PyTorch's optimizer on a model of its own."""
        return self.there.Trainer(self.there.load(self.directory).train(), self.run)


def compare(pair: Pair) -> dict[str, Any]:
    """All differences; see the module's text for the names."""
    found: dict[str, Any] = {}
    equal, loss, norm, logp = [], 0.0, 0.0, 0.0
    for kind in pair.kinds:
        batch = pair.batch(kind, pair.sizes.parity_rows, pair.sizes.prompt, ragged=True)
        given = pair.there.inputs(pair.torch, batch)
        valid = np.arange(batch.tokens.shape[1]) < np.asarray(batch.length)[:, None]
        ours = jax_side.scores(pair.graph, pair.params, batch)
        theirs = pair.there.scores(pair.torch, given)
        for name, value in difference(np.asarray(ours[0])[valid], theirs[0][valid]).items():
            found[f"logits_{name}_{kind}"] = value
        replied = np.asarray(batch.replied)[:, 1:]
        logp = max(logp, float(np.abs(np.asarray(ours[1]) - theirs[1])[replied].max()))
        equal.append(equal_tokens(pair, kind))
        errors = trajectories(pair, kind)
        loss, norm = max(loss, errors[0]), max(norm, errors[1])
    found |= {"reply_logp_max_abs": logp, "greedy_tokens": pair.sizes.reply}
    found |= {"greedy_equal_tokens": min(equal)}
    found |= {"sft_loss_max_abs": loss, "sft_grad_norm_max_rel": norm}
    if "mixed" in pair.kinds:
        batch = pair.batch("mixed", pair.sizes.parity_rows, pair.sizes.prompt)
        seen = compare_modules.recorded(pair.torch, pair.there.inputs(pair.torch, batch))
        found["modules"] = compare_modules.differences(pair.graph, pair.params, batch, seen)
    return found


def difference(got: np.ndarray, want: np.ndarray) -> dict[str, float]:
    """Absolute, and as a share of the largest and of the mean absolute value."""
    error, scale = np.abs(got - want), np.abs(want)
    return {
        "max_abs": float(error.max()),
        "mean_abs": float(error.mean()),
        "max_rel": float(error.max() / scale.max()),
        "mean_rel": float(error.mean() / scale.mean()),
    }


def equal_tokens(pair: Pair, kind: str) -> int:
    """Greedy tokens that are equal from the first one on, in the row with fewest."""
    sizes = pair.sizes
    batch = pair.batch(kind, sizes.parity_rows, sizes.prompt)
    want = pair.there.generate(pair.torch, pair.there.inputs(pair.torch, batch), sizes.reply)
    got = np.asarray(jax_side.generate(pair.graph, pair.params, batch, sizes.reply))
    same = np.cumprod(got == want.cpu().numpy(), axis=1)
    return int(same.sum(1).min())


def trajectories(pair: Pair, kind: str) -> tuple[float, float]:
    """Largest difference of loss, and of gradient norm as a share of it, over some SFT steps."""
    sizes, state, trainer = pair.sizes, pair.state(), pair.trainer()
    losses, norms = [], []
    batch = pair.batch(kind, sizes.parity_rows, sizes.prompt, ragged=True)
    given = pair.there.inputs(trainer.model, batch)
    labels = pair.there.labels(trainer.model, batch)
    for _ in range(sizes.steps):
        loss, norm = trainer.sft_step(given, labels)
        state, ours, our_norm = jax_side.sft_step(pair.graph, pair.rule, state, batch)
        losses.append(abs(float(ours) - loss))
        norms.append(abs(float(our_norm) - norm) / norm)
    return max(losses), max(norms)


def jobs(pair: Pair, images: bool) -> dict[str, tuple[Callable, Callable, float]]:
    """By name: PyTorch's job, JAX's, and how many times PyTorch's is counted."""
    sizes, there, graph, rule = pair.sizes, pair.there, pair.graph, pair.rule
    kind, suffix = ("image", "_images") if images else ("text", "")
    trainer, box = pair.trainer(), {"state": pair.state()}
    rows = pair.batch(kind, sizes.rows, sizes.length)
    given, labels = there.inputs(trainer.model, rows), there.labels(trainer.model, rows)

    def sft_step() -> None:
        box["state"] = jax.block_until_ready(jax_side.sft_step(graph, rule, box["state"], rows)[0])

    found = {f"sft_step{suffix}": (lambda: trainer.sft_step(given, labels), sft_step, 1.0)}
    for count in sorted({1, sizes.rows}):
        found[f"generate_{count}{suffix}"] = (*generating(pair, kind, count), 1.0)
    talks = pair.batch(kind, sizes.rows, sizes.conversation)
    head = there.value_head(pair.torch)
    each = [there.inputs(pair.torch, talks, slice(i, i + 1)) for i in range(sizes.rows)]

    def play() -> jax_side.Played:
        key = jax.random.key(0)
        return jax.block_until_ready(jax_side.play(graph, pair.params, talks, key, sizes))

    played = play()
    settings = jax_side.ppo_settings(min(4, sizes.rows))

    def update() -> None:
        box["state"] = jax.block_until_ready(
            jax_side.update(graph, rule, settings, box["state"], played, talks.pictures, sizes)
        )

    return found | {
        f"rollout{suffix}": (
            lambda: there.play(pair.torch, head, each[0], sizes), play, float(sizes.rows)
        ),
        f"update{suffix}": (lambda: there.update(trainer, head, each, sizes), update, 1.0),
    }  # fmt: skip


def generating(pair: Pair, kind: str, rows: int) -> tuple[Callable, Callable]:
    """Greedy generation on both sides."""
    batch = pair.batch(kind, rows, pair.sizes.prompt)
    given, count = pair.there.inputs(pair.torch, batch), pair.sizes.reply

    def ours() -> None:
        jax.block_until_ready(jax_side.generate(pair.graph, pair.params, batch, count))

    return lambda: pair.there.generate(pair.torch, given, count), ours


def timed(pair: Pair) -> dict[str, dict[str, float]]:
    """Seconds of each job on both sides, and PyTorch's over ours."""
    table: dict[str, dict[str, float]] = {}
    for images in (False, True)[: 2 if len(pair.kinds) > 1 else 1]:
        todo = jobs(pair, images)
        for name, (theirs, ours, times) in todo.items():
            seconds = interleaved(theirs, ours, pair.sizes.repeats)
            table[name] = _row(seconds[0] * times, seconds[1])
            print(_line(name, table[name]), file=sys.stderr, flush=True)
        suffix = "_images" if images else ""
        parts = [table[f"{name}{suffix}"] for name in ("rollout", "update")]
        table[f"rollout_and_update{suffix}"] = _row(
            sum(part["torch_s"] for part in parts), sum(part["jax_s"] for part in parts)
        )
    return table


def _row(torch_s: float, jax_s: float) -> dict[str, float]:
    return {"torch_s": torch_s, "jax_s": jax_s, "ratio": torch_s / jax_s}


def interleaved(theirs: Callable, ours: Callable, repeats: int) -> tuple[float, float]:
    """Medians of their turns about, after some runs of each that aren't counted."""
    for _ in range(WARM_UP):
        first = _seconds(theirs), _seconds(ours)
    count = max(repeats, min(MOST, int(SHORT / sum(first))))
    turns = [(_seconds(theirs), _seconds(ours)) for _ in range(count)]
    return statistics.median(t for t, _ in turns), statistics.median(o for _, o in turns)


def _seconds(job: Callable) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _line(name: str, row: dict[str, float]) -> str:
    numbers = (f"{row['torch_s']:.4f}", f"{row['jax_s']:.4f}", f"{row['ratio']:.2f}")
    return JOB.format(name, *numbers)


def shown(found: dict[str, Any]) -> str:
    """The tables as text."""
    lines = [f"{name:<32}{value:>12.3g}" for name, value in found.items() if np.isscalar(value)]
    if "modules" in found:
        lines += ["", MODULE.format("module", "layers", *compare_modules.NAMES)]
        for name, row in found["modules"].items():
            numbers = [f"{row[key]:.1e}" for key in compare_modules.NAMES]
            lines.append(MODULE.format(name, row["count"], *numbers))
    if "jobs" in found:
        lines += ["", JOB.format("job", "PyTorch, s", "JAX, s", "ratio")]
        lines += [_line(name, row) for name, row in found["jobs"].items()]
    return "\n".join(lines)


def run(directory: Path, sizes: Sizes, times: bool) -> dict[str, Any]:
    """Everything the JSON holds."""
    # Other backends would multiply float32 in fewer bits.
    with jax.default_matmul_precision("highest"):
        pair = Pair(directory, sizes)
        found = compare(pair)
        if times:
            found["jobs"] = timed(pair)
    return found


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)
    place = Path(CHECKPOINT.value)
    names = ("rows", "length", "prompt", "reply", "turns", "repeats")
    sizes = Sizes(**{name: flags.FLAGS[name].value for name in names})
    try:
        if RANDOM.value:
            compare_inputs.write_random(place)
        found = run(place, sizes, TIME.value)
    except (hf.HFCheckpointError, hf.ExistingDirectoryError) as wrong:
        sys.exit(f"{type(wrong).__name__}: {wrong}")
    except ModuleNotFoundError as wrong:
        if wrong.name != "torch":
            raise
        sys.exit("PyTorch is missing: pip install -e '.[torch]'")
    print(shown(found))
    if JSON.value:
        lab.write_json(Path(JSON.value), found)


if __name__ == "__main__":
    CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face directory", required=True)
    JSON = flags.DEFINE_string("json", None, "where the numbers are written")
    RANDOM = flags.DEFINE_bool("random", False, "write a tiny random model there first")
    TIME = flags.DEFINE_bool("time", True, "time the jobs as well")
    for NAME in ("rows", "length", "prompt", "reply", "turns", "repeats"):
        flags.DEFINE_integer(NAME, getattr(Sizes, NAME), f"see launch.compare_inputs.Sizes.{NAME}")
    app.run(main)

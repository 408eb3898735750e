"""Conversations played for people to read, as the records of gp_virl/plots/transcripts.py."""

import base64
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree, UInt8

from gp_virl.data.pictures import encoded
from gp_virl.model.mllama import for_decoding
from gp_virl.places import Place, write_whole
from gp_virl.rollout import episodes
from gp_virl.sharding import whole
from gp_virl.text.template import ChatGlue
from launch import processes
from launch.lab import Lab, sampling


def write(lab: Lab, ends: Mapping[str, Callable[[], PyTree]], seed: int, path: Place) -> None:
    """Greedy conversations of every branch on every split; the same episodes for all branches.

    `ends` gives the parameters of a branch when they are asked for.
    """
    if not lab.config.eval.transcripts or processes.agreed(int(path.exists())):
        return
    play = jax.jit(functools.partial(_play, lab), out_shardings=whole(lab.mesh))
    lines = []
    for branch, load in ends.items():
        params = load()
        for split, env in lab.config.splits.items():
            about = {"branch": branch, "split": split, "seed": seed, "rule": env.rule}
            lines += [about | one for one in conversations(lab, play, params, split)]
    if jax.process_index():
        return
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def conversations(lab: Lab, play, params: PyTree, split: str) -> Iterator[dict[str, Any]]:
    """`eval.transcripts` first episodes of a split, played to their end."""
    game, key = lab.games[split], jax.random.key(lab.config.eval.seed)
    episode = jnp.arange(lab.config.eval.transcripts)
    states = jax.vmap(lambda e: game.reset(jax.random.fold_in(key, e)))(episode)
    roll = jax.device_get(play(params, game, episode, key))
    glue = ChatGlue.of(lab.tokenizer, lab.config.pictured)
    draw = jax.jit(_drawn, out_shardings=whole(lab.mesh))
    for lane in range(len(episode)):
        turns = np.flatnonzero(roll.episode[:, lane] == lane)
        messages, images = [], []
        opens = True
        for turn in turns:
            record = jax.tree.map(lambda x, turn=turn, lane=lane: x[turn, lane], roll)
            messages += exchange(lab, glue, game, record, opens)
            images += [_picture(draw, game, record) if opens else None, None]
            opens = bool(record.closed)
        shown = {"image": images} if any(images) else {}
        yield (
            lab.study.described(states, lane)
            | shown
            | {
                "solved": bool(roll.solved[turns, lane].any()),
                "messages": messages,
            }
        )


def exchange(
    lab: Lab, glue: ChatGlue, game: Any, record: episodes.Rollout, opens: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was asked last and the reply; the record is one turn of one lane."""
    prompt, reply = int(record.prompt), int(record.reply)
    asked = lab.tokenizer.decode(record.tokens[:prompt]).removesuffix(glue.asking)
    # A later prompt holds the whole conversation, of which the last message is new.
    asked = asked.removeprefix(glue.opening) if opens else asked.split(glue.next)[-1]
    answer = lab.tokenizer.decode(record.tokens[prompt : prompt + reply]).removesuffix(glue.end)
    judged = {"outcome": game.outcomes[record.outcome], "reward": float(record.reward)}
    if lab.config.pictured:
        judged["recognized"] = bool(record.recognized)
    return (
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answer, **judged},
    )


def _picture(draw, game: Any, record: episodes.Rollout) -> str | None:
    """The image in sight as PNG in base64; None for a task without images."""
    if game.image_token is None:
        return None
    return base64.b64encode(encoded(np.asarray(draw(game, record.scene)))).decode()


def _drawn(game, scene) -> UInt8[Array, "h w 3"]:
    return game.picture(scene)


def _play(lab: Lab, params: PyTree, game, episode, key) -> episodes.Rollout:
    roll, model = lab.config.rollout, nnx.merge(lab.graph, for_decoding(params, lab.model))
    lanes = episodes.start(game, key, episode, roll.context)
    return episodes.rollout(
        model, game, lanes, key, key, sampling(lab.config, "greedy"),
        game.turn_limit, roll.reply_length, roll.chunk, roll.images,
    )[1]  # fmt: skip

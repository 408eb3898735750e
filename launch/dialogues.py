"""Conversations played for people to read, as the records of gp_virl/plots/transcripts.py."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from gp_virl.envs.cards import SYMBOLS
from gp_virl.rollout import episodes
from gp_virl.text.template import ChatGlue
from launch.lab import Lab, sampling


def write(lab: Lab, ends: Mapping[str, PyTree], seed: int, path: Path) -> None:
    """Greedy conversations of every branch on every split; the same hands for all branches."""
    if path.exists() or not lab.config.eval.transcripts or jax.process_index():
        return
    play = jax.jit(lambda params, game, lanes, key: _play(lab, params, game, lanes, key))
    lines = []
    for branch, params in ends.items():
        for split, env in lab.config.splits.items():
            about = {"branch": branch, "split": split, "seed": seed, "rule": env.rule}
            lines += [about | one for one in conversations(lab, play, params, split)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def conversations(lab: Lab, play, params: PyTree, split: str) -> Iterator[dict[str, Any]]:
    """`eval.transcripts` first episodes of a split, played to their end."""
    game, key = lab.games[split], jax.random.key(lab.config.eval.seed)
    episode = jnp.arange(lab.config.eval.transcripts)
    hands = jax.vmap(lambda e: game.reset(jax.random.fold_in(key, e)))(episode).ranks
    roll = jax.device_get(play(params, game, episode, key))
    glue = ChatGlue.of(lab.tokenizer)
    for lane, ranks in enumerate(np.asarray(hands)):
        turns = np.flatnonzero(roll.episode[:, lane] == lane)
        messages, said = [], 0
        for turn in turns:
            prompt, reply = int(roll.prompt[turn, lane]), int(roll.reply[turn, lane])
            tokens = roll.tokens[turn, lane]
            asked = lab.tokenizer.decode(tokens[said:prompt]).removeprefix(glue.end)
            asked = asked.removeprefix(glue.opening if turn == turns[0] else glue.next)
            said = prompt + reply
            answer = lab.tokenizer.decode(tokens[prompt:said]).removesuffix(glue.end)
            messages += [
                {"role": "user", "content": asked.removesuffix(glue.asking)},
                {
                    "role": "assistant",
                    "content": answer,
                    "outcome": game.outcomes[roll.outcome[turn, lane]],
                    "reward": float(roll.reward[turn, lane]),
                },
            ]
        yield {
            "hand": [SYMBOLS[rank] for rank in ranks],
            "solved": bool((roll.outcome[turns, lane] == 0).any()),
            "messages": messages,
        }


def _play(lab: Lab, params: PyTree, game, episode, key) -> episodes.Rollout:
    roll, model = lab.config.rollout, nnx.merge(lab.graph, params)
    lanes = episodes.start(game, key, episode, roll.context)
    return episodes.rollout(
        model, game, lanes, key, key, sampling(lab.config, "greedy"),
        lab.config.env.max_turns, roll.reply_length, roll.chunk,
    )[1]  # fmt: skip

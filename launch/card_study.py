"""What a study of GeneralPoints is made of; launch/lab.py chooses it by the task's name."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PyTree
from transformers import PreTrainedTokenizerBase

from gp_virl import config as cfg
from gp_virl.data import gp_sft
from gp_virl.envs import cards
from gp_virl.envs.card_game import CardGame
from gp_virl.text import prompts, tokenizer

BUILDER, DIALOGUES = gp_sft.GpSft, gp_sft.dialogues  # of the expert
PAPER_LAMBDA = "general_points"  # its name in evals.flops
HELD_OUT = "held_out"  # the game of the hands kept from all training


def load_texts(config: cfg.StudyConfig) -> tuple[PreTrainedTokenizerBase, prompts.Wording]:
    """The tokenizer and the wording; ValueError if there are none."""
    return tokenizer.load(config.text.tokenizer), prompts.load_wording(config.text.wording)


def build_games(
    config: cfg.StudyConfig, tokens: PreTrainedTokenizerBase, words: prompts.Wording
) -> dict[str, CardGame]:
    """The game of every split, of training hands ('train') and of held-out ones."""
    roll = config.rollout
    envs = dict(config.splits)
    envs["train"] = dataclasses.replace(config.env, hands="seen")
    if cards.held_out_multisets(config.env.held_out, config.env.seed).any():
        envs[HELD_OUT] = dataclasses.replace(config.env, hands="held_out")
    return {
        name: CardGame.build(env, tokens, words, roll.reply_length, roll.reply_bytes)
        for name, env in envs.items()
    }


def tries(config: cfg.StudyConfig) -> int | None:
    """What figures and findings count: first tries."""
    return 1


def metrics(config: cfg.StudyConfig) -> tuple[str, ...]:
    """What is measured besides success and outcomes."""
    return ("recognition",) if config.pictured else ()


def groups(
    config: cfg.StudyConfig, split: str, states: PyTree
) -> dict[str, Bool[np.ndarray, "hands"]]:
    """Hands of an evaluation that are counted together, by the suffix of the metric's name."""
    env, everyone = config.env, np.ones(len(states.ranks), bool)
    if split == HELD_OUT:
        return {"_held_out": everyone}
    if split != "id":
        return {"": everyone}
    held_out = cards.held_out_multisets(env.held_out, env.seed)
    return {"": everyone, "_seen": ~held_out[cards.multiset_index(np.asarray(states.ranks))]}


def expert(config: cfg.StudyConfig, base: bool) -> gp_sft.GpSftConfig:
    """What the expert's dialogues are about: both rules for the base, ID for the branches."""
    env, data = config.env, config.data
    share = data.ood_share if base else 0.0
    rules, faces = {env.rule: 1.0 - share}, [env.rule] if env.require_face else []
    if share:
        ood = config.splits["rule_ood"]
        rules[ood.rule] = share
        faces += [ood.rule] if ood.require_face else []
    return gp_sft.GpSftConfig(
        rules=rules,
        require_face=tuple(faces),
        target=env.target,
        hands="seen",
        held_out=env.held_out,
        held_out_seed=env.seed,
        seed=data.seed + (0 if base else 1),
        examples=data.examples,
        max_solutions=data.max_solutions,
        suboptimal=data.suboptimal if base else 0.0,
        max_errors=data.max_errors,
        wording=config.text.wording,
        modality=env.modality,
        suits=data.base_suits if base else env.suits,
        image_size=env.image_size,
        jitter_shift=env.jitter_shift,
        jitter_scale=env.jitter_scale,
    )


def described(states: PyTree, episode: int) -> dict[str, Any]:
    """What a transcript tells about an episode."""
    return {"hand": [cards.SYMBOLS[rank] for rank in jax.device_get(states.ranks[episode])]}

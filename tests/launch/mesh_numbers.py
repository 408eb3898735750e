"""What the programs of a minuscule GP-VL study compute on each of some meshes, as a JSON line each.

python -m tests.launch.mesh_numbers 1,1,1 8,1,1 ...
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from configs.gp_vl import get_config
from gp_virl import config as cfg
from gp_virl.data import pipeline
from gp_virl.train import sft
from launch import branches
from launch import lab as labs
from launch.programs import ppo_programs, sft_programs

CHANGES = {"env.image_size": 48, "model.remat": True, "ppo.value_shapes_decoder": True}
CHANGES |= {"sft.batch_size": 16, "sft.microbatch": 8, "sft.pictures": 2}
CHANGES |= {"rollout.lanes": 8, "rollout.turns": 3, "rollout.images": 8, "rollout.reply_length": 20}
CHANGES |= {"ppo.epochs": 2, "ppo.minibatches": 1, "ppo.microbatch": 8, "ppo.learning_rate": 1e-3}
CHANGES |= {"eval.lanes": 8, "sft.weight_decay": 0.0, "sft.moments": "bfloat16"}


def changed(mesh: list[int]) -> cfg.StudyConfig:
    """The study on a mesh."""
    config = get_config("tiny").copy_and_resolve_references()
    for name, value in CHANGES.items():
        section, field = name.split(".")
        config[section][field] = value
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)))
    return cfg.build(config)


def plain(x) -> list:
    """Numbers as JSON has them, rounded no further than float32 is."""
    return np.asarray(x, np.float64).tolist()


def prints_of(params) -> dict[str, float]:
    """Of every array a sum with random signs and sizes: another order gives another number."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        weights = np.random.default_rng(leaf.size).standard_normal(leaf.shape)
        found[jax.tree_util.keystr(path)] = float((np.asarray(leaf, np.float64) * weights).sum())
    return found


def opened(params):
    """Parameters whose gates let text see images: at the start they are closed."""

    def gate(path, leaf):
        return jnp.full_like(leaf, 0.7) if "gate'" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(gate, params)


def fine_tuned(lab, params) -> dict:
    """Two SFT steps on the same rows."""
    run = lab.config.sft
    about = lab.study.expert(lab.config, base=False)
    about = dataclasses.replace(about, name="", examples=64)
    talks = pipeline.tokenized(list(lab.study.DIALOGUES(about)), lab.tokenizer)
    shape = {"length": run.length, "batch_size": run.batch_size, "pictures": run.pictures}
    rows = next(iter(pipeline.batches(talks, **shape, seed=0)))
    batch = sft.Batch(**branches.on_mesh(lab, rows))
    programs, found = sft_programs(lab, run), []
    state = programs.create(params)
    for _ in range(2):
        state, metrics = programs.update(state, batch)
        found.append({name: float(x) for name, x in metrics.items()})
    return {"sft": found, "sft_weights": prints_of(state.params)}


def reinforced(lab, params) -> dict:
    """Two iterations of rollout and update."""
    game, key = lab.games["train"], jax.random.key(3)
    programs, how = ppo_programs(lab), labs.sampling(lab.config, "sampled")
    state, lanes, found = programs.create(params), programs.start(game, key), []
    for step in range(2):
        draw = jax.random.fold_in(key, step)
        lanes, roll, following = programs.rollout(state.params, game, lanes, key, draw, how)
        seen = {name: plain(getattr(roll, name)) for name in ("tokens", "reward", "episode")}
        told = {name: plain(getattr(roll, name)) for name in ("logp", "value")}
        state, metrics = programs.update(
            game, state, params, roll, following, draw, how.temperature, jnp.float32(1)
        )
        numbers = {name: float(x) for name, x in metrics.items()}
        found.append({"seen": seen, "told": told | {"following": plain(following)}} | numbers)
    for laid, shape in zip(jax.tree.leaves(state), jax.tree.leaves(programs.shapes), strict=True):
        assert laid.sharding.is_equivalent_to(shape.sharding, laid.ndim), (laid.sharding, shape)
    return {"ppo": found, "ppo_weights": prints_of(state.params)}


def main(meshes: list[str]) -> None:
    """Each mesh on a line."""
    for text in meshes:
        lab = labs.open_lab(changed([int(size) for size in text.split(",")]))
        with jax.set_mesh(lab.mesh):
            params = opened(branches.fresh_params(lab, 0))
            found = {"weights": prints_of(params)}
            found |= fine_tuned(lab, params) | reinforced(lab, params)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

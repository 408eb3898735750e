"""What a study of V-IRL navigation is made of; launch/lab.py chooses it by the task's name."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PyTree
from transformers import PreTrainedTokenizerBase

from gp_virl import config as cfg
from gp_virl.config import DRAWN
from gp_virl.data import virl_sft
from gp_virl.envs import city, panoramas, route_files, routes, street_views
from gp_virl.envs.city_names import CATEGORIES, PAINT
from gp_virl.envs.route_game import RouteGame
from gp_virl.envs.routes import Route, RouteBank
from gp_virl.envs.street_views import StreetViews
from gp_virl.text import route_prompts, tokenizer
from gp_virl.text.route_tokenizer import TINY_ROUTES, tiny_routes

BUILDER, DIALOGUES = virl_sft.VirlSft, virl_sft.dialogues  # of the expert
PAPER_LAMBDA = "virl"  # its name in evals.flops
HELD_OUT = "held_out"  # the game of the routes kept from all training
MINI = "mini"  # a style: the nine cities of the small benchmark
PANORAMA_BYTES = 8 << 30  # on each device, at most


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Routes and, for the visual task, what is seen along them."""

    bank: RouteBank
    names: tuple[str, ...]  # of landmarks
    views: StreetViews | None

    @property
    def routes(self) -> int:
        """How many there are."""
        return self.bank.length.shape[0]


def load_texts(
    config: cfg.StudyConfig,
) -> tuple[PreTrainedTokenizerBase, route_prompts.RouteWording]:
    """The tokenizer and the wording; ValueError if there are none."""
    words = (*PAINT, *(f" {word}" for category in CATEGORIES for word in category.words))
    name = config.text.tokenizer
    tokens = tiny_routes(words) if name == TINY_ROUTES else tokenizer.load(name)
    return tokens, route_prompts.load_wording(config.text.wording)


def world_of(env: cfg.RouteConfig) -> World:
    """The world of a split; splits that differ in rule and routes alone share one."""
    pictured = (env.image_size, env.layout) if env.modality == "image" else None
    source = (env.source, env.style, env.routes, env.seed)
    if env.source != DRAWN:
        source = (env.source, "", 0, 0)
    return _world(*source, env.max_straight, pictured)


@functools.lru_cache(8)
def _world(
    source: str, style: str, count: int, seed: int, max_straight: int,
    pictured: tuple[int, str] | None,
) -> World:  # fmt: skip
    if source != DRAWN:
        found = route_files.read_routes(source, max_straight, need_views=pictured is not None)
        made, names, panos = routes.bank(found)
        views = None
        if pictured:
            folders = route_files.street_view_folders(source)
            _check_memory(len(panos), pictured[0])
            views = _read(folders, panos, pictured)
        return World(made, names, views)
    if style == MINI:
        cities, objects = city.mini(seed)
    else:
        one, objects = city.training(count, seed, style)
        cities = [one]
    each = len(objects) // len(cities)
    found: list[Route] = []
    for index, place in enumerate(cities):
        some = objects[index * each : (index + 1) * each]
        found += route_files.routes_of(some, place.mapping, max_straight, place.style.name)
    made, names, panos = routes.bank(found)
    if pictured:
        _check_memory(len(panos), pictured[0])
    return World(made, names, _drawn(cities, panos, pictured) if pictured else None)


def _check_memory(count: int, size: int) -> None:
    """ValueError for more panoramas than a device should hold."""
    width = street_views.panorama_width(size)
    needed = count * width * width // 2 * 3
    if needed > PANORAMA_BYTES:
        raise ValueError(
            f"config.env.image_size: given {size}, at which the {count} panoramas of these routes "
            f"take {needed / 2**30:.1f} GiB on each device, allowed: {PANORAMA_BYTES >> 30}; give "
            "smaller pictures or fewer routes"
        )


def _drawn(
    cities: Sequence[city.City], panos: Sequence[str], pictured: tuple[int, str]
) -> StreetViews:
    """The panoramas in the bank's order, drawn at the width that the pictures ask for."""
    width = street_views.panorama_width(pictured[0])
    of_city = {name: place for place in cities for name in place.ids}
    pictures = np.stack([panoramas.panorama(of_city[name], name, width) for name in panos])
    turned = np.array([of_city[name].rotations[of_city[name].index(name)] for name in panos])
    return StreetViews.build(pictures, turned, *pictured)


def _read(folders: Sequence[Path], panos: Sequence[str], pictured: tuple[int, str]) -> StreetViews:
    """The panoramas of released data, which may lie in several folders."""
    width = street_views.panorama_width(pictured[0])
    found: dict[str, tuple[np.ndarray, float]] = {}
    for folder in folders:
        here = [name for name in panos if (folder / f"{name}.jpg").is_file() and name not in found]
        if here:
            pictures, turned = street_views.read_panoramas(folder, here, width)
            found |= {n: (p, r) for n, p, r in zip(here, pictures, turned, strict=True)}
    pictures, turned = zip(*(found[name] for name in panos), strict=True)
    return StreetViews.build(np.stack(pictures), np.array(turned), *pictured)


def held_out(env: cfg.RouteConfig, count: int) -> Bool[np.ndarray, "routes"]:
    """True for the routes kept from training: round(held_out * routes) of them, by seed."""
    chosen = np.zeros(count, bool)
    order = np.argsort(np.random.default_rng(env.seed).random(count))
    chosen[order[: round(env.held_out * count)]] = True
    return chosen


def allowed(env: cfg.RouteConfig, count: int) -> list[int]:
    """The routes of a split."""
    kept = held_out(env, count)
    part = {"all": np.ones(count, bool), "seen": ~kept, "held_out": kept}[env.part]
    return np.flatnonzero(part).tolist()


def build_games(
    config: cfg.StudyConfig, tokens: PreTrainedTokenizerBase, words: route_prompts.RouteWording
) -> dict[str, RouteGame]:
    """The game of every split, of training routes ('train') and of held-out ones."""
    roll = config.rollout
    envs = dict(config.splits)
    envs["train"] = dataclasses.replace(config.env, part="seen")
    if held_out(config.env, world_of(config.env).routes).any():
        envs[HELD_OUT] = dataclasses.replace(config.env, part="held_out")
    games = {}
    for name, env in envs.items():
        world = world_of(env)
        games[name] = RouteGame.build(
            world.bank, world.names, env.rule, env.max_turns, env.rewards, tokens, words,
            world.views, roll.reply_length, roll.reply_bytes,
            allowed=allowed(env, world.routes),
        )  # fmt: skip
    return games


def tries(config: cfg.StudyConfig) -> int | None:
    """What figures and findings count: None for all tries, as the paper does on routes."""
    return None


def metrics(config: cfg.StudyConfig) -> tuple[str, ...]:
    """What is measured besides success and outcomes."""
    return ("per_step", "recognition") if config.pictured else ("per_step",)


def groups(
    config: cfg.StudyConfig, split: str, states: PyTree
) -> dict[str, Bool[np.ndarray, "episodes"]]:
    """Episodes of an evaluation that are counted together, by the suffix of the metric's name."""
    route = np.asarray(states.route)
    everyone = np.ones(len(route), bool)
    if split == HELD_OUT:
        return {"_held_out": everyone}
    if split != "id":
        return {"": everyone}
    kept = held_out(config.env, world_of(config.env).routes)
    return {"": everyone, "_seen": ~kept[route]}


def expert(config: cfg.StudyConfig, base: bool) -> virl_sft.VirlSftConfig:
    """What the expert's dialogues are about: both rules for the base, ID for the branches."""
    env, data = config.env, config.data
    share = data.ood_share if base else 0.0
    rules = {env.rule: 1.0 - share}
    if share:
        rules[config.splits["rule_ood"].rule] = share
    world = world_of(env)
    return virl_sft.VirlSftConfig(
        bank=world.bank,
        names=world.names,
        views=world.views,
        allowed=tuple(allowed(dataclasses.replace(env, part="seen"), world.routes)),
        rules=rules,
        examples=data.examples,
        seed=data.seed + (0 if base else 1),
        suboptimal=data.suboptimal if base else 0.0,
        max_errors=data.max_errors,
        wording=config.text.wording,
    )


def described(states: PyTree, episode: int) -> dict[str, Any]:
    """What a transcript tells about an episode."""
    return {"hand": [], "route": int(jax.device_get(states.route[episode]))}

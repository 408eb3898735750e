"""What a study of V-IRL navigation is made of; launch/lab.py chooses it by the task's name."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree, UInt8
from transformers import PreTrainedTokenizerBase

from gp_virl import config as cfg
from gp_virl.config import DRAWN
from gp_virl.data import virl_sft
from gp_virl.envs import city, panoramas, route_files, routes, street_views
from gp_virl.envs.city_names import CATEGORIES, PAINT
from gp_virl.envs.host_views import HostViews, PanoramaStore, following
from gp_virl.envs.route_game import RouteGame
from gp_virl.envs.routes import Route, RouteBank
from gp_virl.envs.street_views import StreetViews
from gp_virl.text import route_prompts, tokenizer
from gp_virl.text.route_tokenizer import TINY_ROUTES, tiny_routes

BUILDER, DIALOGUES = virl_sft.VirlSft, virl_sft.dialogues  # of the expert
PAPER_LAMBDA = "virl"  # its name in evals.flops
HELD_OUT = "held_out"  # the game of the routes kept from all training
MINI = "mini"  # a style: the nine cities of the small benchmark
HOST_SHARE = 4  # of the host's memory, panoramas that it keeps take one part in so many
ON_THIS_HOST = ("SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE")  # of Slurm and Open MPI


@dataclasses.dataclass(frozen=True)
class Pictured:
    """How street views are shown."""

    size: int
    layout: str
    on_device: int  # bytes that a device's panoramas take at most; the host keeps others

    @property
    def width(self) -> int:
        """Of the panoramas, in pixels."""
        return street_views.panorama_width(self.size)

    def fits(self, count: int) -> bool:
        """Whether that many panoramas lie on the device."""
        return count * self.width * self.width // 2 * 3 <= self.on_device


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Routes and, for the visual task, what is seen along them."""

    bank: RouteBank
    names: tuple[str, ...]  # of landmarks
    views: StreetViews | HostViews | None

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
    pictured = None
    if env.modality == "image":
        pictured = Pictured(env.image_size, env.layout, env.panorama_bytes)
    source = (env.source, env.style, env.routes, env.seed)
    if env.source != DRAWN:
        source = (env.source, "", 0, 0)
    return _world(*source, env.max_straight, pictured)


@functools.lru_cache(8)
def _world(
    source: str, style: str, count: int, seed: int, max_straight: int, pictured: Pictured | None
) -> World:
    if source != DRAWN:
        found = route_files.read_routes(source, max_straight, need_views=pictured is not None)
        made, names, panos = routes.bank(found)
        folders = route_files.street_view_folders(source) if pictured else ()
        return World(made, names, _read(folders, panos, pictured, made) if pictured else None)
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
    return World(made, names, _drawn(cities, panos, pictured, made) if pictured else None)


def _drawn(
    cities: Sequence[city.City], panos: Sequence[str], pictured: Pictured, bank: RouteBank
) -> StreetViews | HostViews:
    """The panoramas in the bank's order, drawn at the width that the pictures ask for."""
    of_city = {name: place for place in cities for name in place.ids}
    turned = np.array([of_city[name].rotations[of_city[name].index(name)] for name in panos])

    def draw(index: int) -> UInt8[np.ndarray, "h w 3"]:
        name = panos[index]
        return panoramas.panorama(of_city[name], name, pictured.width)

    if pictured.fits(len(panos)):
        whole = np.stack([draw(index) for index in range(len(panos))])
        return StreetViews.build(whole, turned, pictured.size, pictured.layout)
    for place in cities:
        panoramas.painter(place, pictured.width)  # made once, not by every thread at first
    about = f"drawn in {', '.join(place.style.name for place in cities)}"
    return _kept_by_host(draw, turned, pictured, bank, about)


def _read(
    folders: Sequence[Path], panos: Sequence[str], pictured: Pictured, bank: RouteBank
) -> StreetViews | HostViews:
    """The panoramas of released data, which may lie in several folders."""
    homes = {}
    for folder in folders:
        here = [name for name in panos if name not in homes and (folder / f"{name}.jpg").is_file()]
        homes |= dict.fromkeys(here, folder)
    files = [homes[name] / f"{name}.jpg" for name in panos]
    if pictured.fits(len(panos)):
        whole, turned = street_views.read_files(files, pictured.width)
        return StreetViews.build(whole, turned, pictured.size, pictured.layout)
    turned = street_views.read_rotations(files)
    about = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)

    def read_one(index: int) -> UInt8[np.ndarray, "h w 3"]:
        return street_views.read_panorama(files[index], pictured.width)

    return _kept_by_host(read_one, turned, pictured, bank, about)


def _kept_by_host(
    load: Callable[[int], UInt8[np.ndarray, "h w 3"]],
    turned: Float[np.ndarray, "P"],
    pictured: Pictured,
    bank: RouteBank,
    about: str,
) -> HostViews:
    """The views of panoramas that are loaded along the routes, not before."""
    most = host_memory() // processes_here(os.environ) // HOST_SHARE
    store = PanoramaStore(load, following(bank, len(turned)), pictured.width, most, about)
    return HostViews.build(store, turned, pictured.size, pictured.layout)


def host_memory(
    groups: Path = Path("/proc/self/cgroup"), limits: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes that this host's processes may use: its memory, or what control groups leave of it.

    `groups` names the groups of this process, whose folders lie in `limits`: those of Linux, of
    version 2 or 1; without them nothing is limited.
    """
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        home, name = limits, "memory.max"
        if controllers:  # version 1
            home, name = limits / "memory", "memory.limit_in_bytes"
        if controllers and "memory" not in controllers.split(","):
            continue
        inner = home / path.lstrip("/")  # every group around it limits it too
        for file in (folder / name for folder in (inner, *inner.parents)):
            if file.is_relative_to(home) and file.is_file():
                said = file.read_text().strip()
                least = min(least, int(said)) if said.isdigit() else least
    return least


def processes_here(environment: Mapping[str, str]) -> int:
    """How many processes share this host: what started them says so, or all that JAX knows of."""
    said = (environment.get(name, "") for name in ON_THIS_HOST)
    return next((int(some) for some in said if some.isdigit() and int(some)), jax.process_count())


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

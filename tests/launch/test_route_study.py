"""Street views on the device or with the host: the same worlds, data, conversations, training."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import virl_vl
from gp_virl import config as cfg
from gp_virl.data import virl_sft
from gp_virl.envs import city as cities
from gp_virl.envs.host_views import HostViews
from gp_virl.envs.route_game import RouteGame
from gp_virl.envs.street_views import StreetViewError, StreetViews
from gp_virl.model.config import ModelConfig, VisionConfig
from gp_virl.model.mllama import build
from gp_virl.rollout import episodes
from gp_virl.rollout.sampling import Sampling
from gp_virl.text.tokenizer import head_rows
from gp_virl.train import ppo
from gp_virl.train.state import create
from launch import make_city, route_study

LANES, TURNS, REPLY, SLOTS = 3, 4, 8, 8
VISION = VisionConfig(
    hidden_size=16,
    num_hidden_layers=1,
    num_global_layers=1,
    attention_heads=2,
    intermediate_size=24,
    image_size=24,
    patch_size=8,
    intermediate_layers_indices=(0,),
)
MODEL = ModelConfig(
    vocab_size=1,  # the tokenizer's, below
    hidden_size=16,
    groups=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=24,
    value_widths=(8,),
    pattern=("self", "cross"),
    vision=VISION,
)


def study(on_device: int = 8 << 30, source: str = "city") -> cfg.StudyConfig:
    """The tiny study on few routes; beyond so many bytes of panoramas the host has them."""
    config = virl_vl.get_config("tiny").unlock()
    config.env.update(routes=6, image_size=48, max_turns=2, panorama_bytes=on_device)
    config = config.copy_and_resolve_references()
    config.env.source = source  # the other splits stay in drawn cities
    config.rollout.update(reply_length=REPLY, reply_bytes=32)
    config.data.update(examples=40)
    return cfg.build(config)


@functools.cache
def games(on_device: int) -> dict[str, RouteGame]:
    config = study(on_device)
    return route_study.build_games(config, *route_study.load_texts(config))


def check_same(one, other, **near: float) -> None:
    """Equal leaf by leaf, or near each other."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0} | near)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two folders of routes with street views, as released data has."""
    out = tmp_path_factory.mktemp("released")
    for seed, style in enumerate(("lagos", "new_york")):
        city, routes = cities.training(3, seed, style)
        make_city.write(out / style, [city], routes, 64)
    return out


def everything_seen(env: cfg.RouteConfig) -> np.ndarray:
    """Every panorama's picture, each from a heading of its own."""
    views = route_study.world_of(env).views
    panos = jnp.arange(len(views.rotation))
    return np.asarray(jax.jit(jax.vmap(views.picture))(panos, panos * 77 % 360))


@pytest.mark.parametrize("released", [False, True])
def test_the_host_has_what_the_device_has_no_room_for(written: Path, released: bool) -> None:
    source = str(written) if released else "city"
    env = study(source=source).env
    whole = route_study.world_of(env)
    count = len(whole.views.rotation)
    needed = whole.views.panoramas.size
    fits = dataclasses.replace(env, panorama_bytes=needed)
    short = dataclasses.replace(env, panorama_bytes=needed - 1)
    assert type(route_study.world_of(fits).views) is StreetViews
    kept = route_study.world_of(short)
    assert type(kept.views) is HostViews and count == len(kept.views.rotation) > 10
    assert kept.names == whole.names
    check_same(kept.bank, whole.bank)
    np.testing.assert_array_equal(everything_seen(short), everything_seen(env))
    assert kept is route_study.world_of(dataclasses.replace(short, rule="relative"))


def test_released_pictures_are_looked_at_before_anything_starts(written: Path) -> None:
    views = sorted((written / "lagos" / "street_views").glob("*.jpg"))
    whole, config = [view.read_bytes() for view in views], study(0, str(written))
    try:
        for view in views:
            view.write_bytes(b"no picture")
        route_study._world.cache_clear()
        with pytest.raises(StreetViewError, match="not a readable picture") as caught:
            route_study.world_of(config.env)
        assert str(caught.value).count("\n") > 5
    finally:
        for view, data in zip(views, whole, strict=True):
            view.write_bytes(data)
        route_study._world.cache_clear()


@pytest.mark.parametrize(
    ("groups", "limits", "want"),
    [
        ("0::/\n", {"memory.max": "4096\n"}, 4096),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": str(1 << 62)}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "8192"}, 8192),
        ("0::/a/b\n", {"a/b/memory.max": "4096", "a/memory.max": "8192"}, 4096),
        ("0::/a\n", {"b/memory.max": "4096", "../memory.max": "4096"}, None),
        ("5:cpu:/c\n4:memory,x:/a\n", {"memory/a/memory.limit_in_bytes": "4096"}, 4096),
        ("4:memory:/docker/a\n0::/\n", {"memory/memory.limit_in_bytes": "4096"}, 4096),
        ("5:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "4096"}, None),
    ],
)
def test_control_groups_limit_memory(
    tmp_path: Path, groups: str, limits: dict[str, str], want: int | None
) -> None:
    home = tmp_path / "limits"
    for name, text in limits.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (tmp_path / "groups").write_text(groups)
    whole = route_study.host_memory(tmp_path / "none", home)
    assert whole > 1 << 28
    found = route_study.host_memory(tmp_path / "groups", home)
    assert found == (want or whole)


def test_processes_share_the_memory(monkeypatch) -> None:
    slurm, mpi = route_study.ON_THIS_HOST
    for environment, count in (
        ({}, 1),
        ({slurm: "4"}, 4),
        ({mpi: "2"}, 2),
        ({slurm: "", mpi: "2"}, 2),
        ({slurm: "0"}, 1),
    ):
        assert route_study.processes_here(environment) == count
    monkeypatch.setattr(jax, "process_count", lambda: 16)
    assert route_study.processes_here({}) == 16 and route_study.processes_here({slurm: "4"}) == 4
    monkeypatch.setattr(route_study, "host_memory", lambda: 64 << 20)
    monkeypatch.setenv(slurm, "4")
    route_study._world.cache_clear()
    store = route_study.world_of(study(0).env).views.store
    route_study._world.cache_clear()
    assert store.room == (4 << 20) // np.prod(store.shape)


def test_splits_are_the_same() -> None:
    device, host = games(8 << 30), games(0)
    names = ["id", "rule_ood", "visual_ood", "train", "held_out"]
    assert list(device) == list(host) == names
    for name in names:
        assert type(device[name].views) is StreetViews and type(host[name].views) is HostViews
        check_same(device[name].env, host[name].env)
        check_same(device[name].pieces, host[name].pieces)
    # One program plays the splits of a city.
    assert jax.tree.structure(host["train"]) == jax.tree.structure(host["rule_ood"])


def test_expert_data_are_the_same() -> None:
    """With a name of their own, as it can't tell what isn't loaded."""
    about = [route_study.expert(study(most), base=True) for most in (8 << 30, 0)]
    assert about[0].name != about[1].name
    again = route_study.expert(study(0), base=True)
    assert again.name == about[1].name
    made = [list(virl_sft.dialogues(one)) for one in about]
    assert made[0] == made[1] and len(made[0]) == 40


def test_names_of_expert_data_follow_the_files(written: Path) -> None:
    config = study(0, str(written))
    before = route_study.expert(config, base=True).name
    view = next((written / "lagos" / "street_views").glob("*.jpg"))
    view.write_bytes(view.read_bytes() + b"\0")
    route_study._world.cache_clear()
    assert route_study.expert(config, base=True).name != before


@functools.cache
def model() -> tuple:
    """(graph, params) of a small model that looks: its gates are away from a new one's zeros."""
    tokens, _ = route_study.load_texts(study())
    graph, params = build(
        dataclasses.replace(MODEL, vocab_size=head_rows(tokens)), jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(params)
    draw = np.random.default_rng(1)
    moved = [x + 0.2 * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    return graph, jax.tree.unflatten(tree, moved)


# Most of the time is compilation.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def trained(game: RouteGame, params) -> dict:
    """A rollout, an update from it, and an evaluation of what came out."""
    config, graph, how = study(), model()[0], Sampling.of(1.0)
    size, deal, draw = config.rollout.context, jax.random.key(3), jax.random.key(4)
    learner = dataclasses.replace(
        config.ppo, microbatch=2, pictures=2, minibatches=1, epochs=1, kl_coef=0.0, kl_logged=False
    )
    lanes = episodes.start(game, deal, jnp.arange(LANES), size)
    _, roll, following = episodes.rollout(
        nnx.merge(graph, params), game, lanes, deal, draw, how, TURNS, REPLY, 64, 2
    )
    rule, on = optax.sgd(0.1), jnp.float32(1)
    state = create(params, rule)
    state, metrics = ppo.update(
        graph, rule, learner, SLOTS, game, state, params, roll, following, deal, on, on
    )
    tries, _ = episodes.outcomes(
        nnx.merge(graph, state.params), game, deal, draw, how,
        4, 2, game.turn_limit, size, REPLY, 64, 2,
    )  # fmt: skip
    return {"roll": roll, "params": state.params, "metrics": metrics, "tries": tries}


@pytest.mark.slow
def test_what_is_played_and_learned_is_the_same() -> None:
    params, host_game = model()[1], games(0)["train"]
    device, host = (trained(game, params) for game in (games(8 << 30)["train"], host_game))
    for name in ("tokens", "scene", "outcome", "encoded"):
        check_same(*(getattr(one["roll"], name) for one in (device, host)))
    assert device["roll"].encoded.sum() > LANES
    check_same(device["tries"], host["tries"])
    for name in ("params", "metrics"):
        check_same(device[name], host[name], rtol=1e-4, atol=1e-6)
    assert host["metrics"]["grad_norm"] > 1e-3
    views = host_game.views.replace(rotation=host_game.views.rotation + 90)
    other = trained(host_game.replace(views=views), params)  # the same program, other pictures
    with pytest.raises(AssertionError):
        check_same(host["params"], other["params"], rtol=1e-4, atol=1e-6)

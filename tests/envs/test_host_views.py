"""Panoramas that the host keeps: the same pictures as a bank's, loaded once, and before need."""

import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.envs import routes
from gp_virl.envs.host_views import HostViews, PanoramaStore, following
from gp_virl.envs.street_views import LAYOUTS, StreetViewError, StreetViews
from tests.eight_devices import printed
from tests.envs.made_routes import ROUTES

SIZE, WIDTH, COUNT = 24, 64, 12
BYTES = WIDTH * WIDTH // 2 * 3  # of a panorama
SECONDS = 20  # that a thread is waited for before the test fails
CHAIN = [[index + 1] for index in range(COUNT - 1)] + [[]]
PANORAMAS = np.random.default_rng(0).integers(0, 256, (COUNT, WIDTH // 2, WIDTH, 3), np.uint8)
TURNS = np.linspace(0, 330, COUNT)

EIGHT_DEVICES = """
import threading
import jax, jax.numpy as jnp, numpy as np
from gp_virl.sharding import mesh_of, spec
from tests.envs.test_host_views import COUNT, Loads, host, device

panos = jnp.arange(16) * 5 % COUNT
headings = jnp.arange(16) * 50
want = jax.jit(jax.vmap(device().picture))(panos, headings)
loads, asked = Loads(), []
views = host(loads)
fetch = views.store.fetch

def noted(panos):
    asked.append(np.asarray(panos).tolist())
    return fetch(panos)

views.store.fetch = noted
with jax.set_mesh(mesh_of(data=4, fsdp=2)):
    rows = jax.sharding.NamedSharding(mesh_of(data=4, fsdp=2), spec("batch"))
    draw = jax.jit(jax.vmap(views.picture))
    got = draw(jax.device_put(panos, rows), jax.device_put(headings, rows))
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(rows, 4), got.sharding
    # Each device asks for its own rows.
    assert sorted(asked) == sorted(np.asarray(panos).reshape(8, 2).tolist()), asked
    for count in (1, 5):  # what eight devices don't divide
        np.testing.assert_array_equal(draw(panos[:count], headings[:count]), want[:count])
    nested = jax.jit(jax.vmap(jax.vmap(views.picture)))
    got = nested(panos.reshape(2, 8), headings.reshape(2, 8))
    np.testing.assert_array_equal(got.reshape(want.shape), want)
    np.testing.assert_array_equal(views.picture(panos[3], headings[3]), want[3])
assert sorted(loads.numbers) == list(range(COUNT))
print("same")
"""

ENDS_EARLY = """
import sys, time
import numpy as np
from tests.envs.test_host_views import BYTES, PANORAMAS, WIDTH
from gp_virl.envs.host_views import PanoramaStore

def load(index):
    if index:
        time.sleep(1)
    return PANORAMAS[0]

after = [range(1, 300)] + [[]] * 299
store = PanoramaStore(load, after, WIDTH, 300 * BYTES, "slow", 2)
store.fetch(np.array([0]))
if sys.argv[1] == "interrupted":
    raise KeyboardInterrupt
print("over")
"""


class Loads:
    """Loads panoramas, notes which, and waits before those that `gates` has, until it is open."""

    def __init__(self, gates: tuple[int, ...] = ()) -> None:
        self.numbers: list[int] = []
        self.gates = {index: threading.Event() for index in gates}
        self.begun = {index: threading.Event() for index in range(COUNT)}

    def __call__(self, index: int) -> np.ndarray:
        self.numbers.append(index)
        self.begun[index].set()
        assert index not in self.gates or self.gates[index].wait(SECONDS)
        return PANORAMAS[index]


def host(load, room: int = COUNT, threads: int = 2, layout: str = "diagonal") -> HostViews:
    store = PanoramaStore(load, CHAIN, WIDTH, room * BYTES, "noise", threads)
    return HostViews.build(store, TURNS, SIZE, layout)


def device(layout: str = "diagonal") -> StreetViews:
    return StreetViews.build(PANORAMAS, TURNS, SIZE, layout)


def settled(store: PanoramaStore) -> None:
    """All that was asked for or expected is loaded."""
    for future in list(store._kept.values()):
        future.result(SECONDS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_are_those_of_a_bank(layout: str) -> None:
    """Bit for bit: alone, in batches of batches, and where an index isn't one."""
    banks = device(layout), host(Loads(), layout=layout)
    panos = jnp.array([[0, 3, 11], [3, -1, COUNT + 5]])
    headings = jnp.array([[350, 10, 77], [0, 123, 271]])
    every = [jax.jit(jax.vmap(jax.vmap(bank.picture)))(panos, headings) for bank in banks]
    np.testing.assert_array_equal(*every)
    turned = [
        jax.jit(jax.vmap(bank.picture, (None, 0)))(panos[0, 1], headings[1]) for bank in banks
    ]
    np.testing.assert_array_equal(*turned)
    alone = [bank.picture(jnp.int32(5), jnp.int32(45)) for bank in banks]
    np.testing.assert_array_equal(*alone)


def test_a_batch_is_one_question_and_a_panorama_is_loaded_once() -> None:
    loads = Loads()
    views, asked = host(loads), []
    fetch = views.store.fetch
    views.store.fetch = lambda panos: asked.append(panos.shape) or fetch(panos)
    draw = jax.jit(lambda views, panos: jax.vmap(jax.vmap(views.picture))(panos, panos))
    panos = jnp.array([[1, 4, 4], [9, 1, 4]])
    for _ in range(3):
        draw(views, panos).block_until_ready()
    settled(views.store)
    assert asked == [(2, 3)] * 3
    assert sorted(loads.numbers) == [1, 2, 4, 5, 9, 10]  # each once; with those that follow


def test_what_follows_is_loaded_before_anyone_asks() -> None:
    loads = Loads()
    views = host(loads)
    views.store.fetch(np.array([3, 7]))
    for index in (4, 8):
        assert loads.begun[index].wait(SECONDS)
    settled(views.store)
    assert sorted(loads.numbers) == [3, 4, 7, 8]
    found = views.store.fetch(np.array([4, 8]))
    np.testing.assert_array_equal(found, PANORAMAS[[4, 8]])
    settled(views.store)
    assert sorted(loads.numbers) == [3, 4, 5, 7, 8, 9]


def test_what_is_asked_for_does_not_wait_behind_what_is_expected() -> None:
    """Panorama 1 keeps the thread for what follows; 6 waits behind it until somebody wants it."""
    loads = Loads(gates=(1,))
    store = host(loads, threads=1).store
    store.fetch(np.array([0, 5]))
    assert loads.begun[1].wait(SECONDS)
    assert not loads.begun[6].is_set()
    np.testing.assert_array_equal(store.fetch(np.array([6])), PANORAMAS[[6]])
    assert loads.numbers.count(6) == 1 and not loads.gates[1].is_set()
    loads.gates[1].set()
    settled(store)
    store.fetch(np.array([1, 6]))
    settled(store)
    assert sorted(loads.numbers) == [0, 1, 2, 5, 6, 7]


def test_panoramas_being_loaded_are_shared() -> None:
    """Two that ask at once, and one that asks for what is expected and under way."""
    loads = Loads(gates=(2, 3))
    store = host(loads).store
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(store.fetch, np.array([2])) for _ in range(2)]
        assert loads.begun[3].wait(SECONDS)
        later = pool.submit(store.fetch, np.array([3]))
        for gate in loads.gates.values():
            gate.set()
        for future, index in ((first[0], 2), (first[1], 2), (later, 3)):
            np.testing.assert_array_equal(future.result(SECONDS)[0], PANORAMAS[index])
    settled(store)
    assert sorted(loads.numbers) == [2, 3, 4]


def test_those_wanted_longest_ago_go_first() -> None:
    loads = Loads()
    store = host(loads, room=4).store
    for panos, kept in (
        ([0], [0, 1]),
        ([6], [0, 1, 6, 7]),
        ([0], [6, 7, 0, 1]),
        ([9], [0, 1, 9, 10]),
        ([2, 4, 8], [2, 4, 8, 3]),  # room for one that follows
        ([0, 1, 5, 6, 7, 11], [6, 7, 11, 8]),  # more than there is room for: four, then two
    ):
        np.testing.assert_array_equal(store.fetch(np.array(panos)), PANORAMAS[panos])
        assert list(store._kept)[-len(kept) :] == kept and len(store._kept) <= store.room
        settled(store)
    assert loads.numbers.count(0) == 2 and loads.numbers.count(6) == 2
    assert host(Loads(), room=0).store.room == 1


def test_what_nobody_asked_for_is_not_loaded_when_it_has_to_go() -> None:
    loads = Loads(gates=(1,))
    store = host(loads, room=4, threads=1).store
    store.fetch(np.array([0, 5]))
    assert loads.begun[1].wait(SECONDS)  # 6 waits behind it
    store.fetch(np.array([8, 2, 10]))
    loads.gates[1].set()
    settled(store)
    assert 6 not in loads.numbers and set(loads.numbers) >= {0, 1, 2, 5, 8, 10}


def test_many_threads_ask_in_little_room() -> None:
    store = host(Loads(), room=3).store
    draw = np.random.default_rng(1)
    panos = [draw.integers(0, COUNT, 5) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        for index, found in zip(panos, pool.map(store.fetch, panos), strict=True):
            np.testing.assert_array_equal(found, PANORAMAS[index])
    assert len(store._kept) <= 3


def test_what_cannot_be_loaded_is_named_when_it_is_asked_for() -> None:
    def load(index: int) -> np.ndarray:
        if index == 3:
            raise StreetViewError("views/n3.jpg: not a readable picture")
        return PANORAMAS[index]

    views = host(load)
    draw = jax.jit(lambda views, panos: jax.vmap(views.picture)(panos, panos))
    draw(views, jnp.array([1, 2])).block_until_ready()  # 3 follows, and nobody looks at it
    told = "StreetViewError: views/n3.jpg: not a readable"
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=told):
        draw(views, jnp.array([3, 0])).block_until_ready()
    with pytest.raises(StreetViewError, match="views/n3.jpg"):
        views.store.fetch(np.array([3]))
    np.testing.assert_array_equal(views.store.fetch(np.array([4])), PANORAMAS[[4]])


def test_what_could_not_be_loaded_once_is_tried_again() -> None:
    loads, broken = Loads(), [1, 4]

    def load(index: int) -> np.ndarray:
        found = loads(index)
        if index in broken:
            broken.remove(index)
            raise OSError("stale file handle")
        return found

    store = host(load).store
    store.fetch(np.array([0]))
    with pytest.raises(OSError, match="stale"):
        store._kept[1].result(SECONDS)  # ahead of need
    np.testing.assert_array_equal(store.fetch(np.array([1])), PANORAMAS[[1]])
    with pytest.raises(OSError, match="stale"):
        store.fetch(np.array([4]))
    np.testing.assert_array_equal(store.fetch(np.array([4, 1])), PANORAMAS[[4, 1]])
    assert loads.numbers.count(1) == loads.numbers.count(4) == 2


def test_threads_end_with_their_store() -> None:
    before = set(threading.enumerate())
    store = host(Loads()).store
    store.fetch(np.array([0, 4, 8]))
    settled(store)
    started = set(threading.enumerate()) - before
    assert len(started) == 4
    del store
    for thread in started:
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["finished", "interrupted"])
def test_a_program_that_ends_does_not_wait_for_what_is_read_ahead(how: str) -> None:
    """299 panoramas of a second each, two at a time."""
    run = subprocess.run(
        [sys.executable, "-c", ENDS_EARLY, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * SECONDS,
    )
    if how == "finished":
        assert (run.stdout, run.returncode) == ("over\n", 0), run.stderr[-3000:]
    else:
        assert run.stderr.strip().endswith("KeyboardInterrupt"), run.stderr[-3000:]


def test_views_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="spiral.*front_right_back_left, diagonal"):
        host(Loads(), layout="spiral")
    with pytest.raises(ValueError, match="given 4"):
        HostViews.build(host(Loads()).store, TURNS, 4)


def test_following_are_the_next_along_the_routes() -> None:
    bank, _, ids = routes.bank([*ROUTES, ROUTES[0]])
    found = following(bank, len(ids))
    for route in ROUTES:
        points = [ids.index(point.pano) for point in route.waypoints]
        for here, there in zip(points, points[1:], strict=False):
            assert found[here] == [there]
        assert found[points[-1]] == []
    shared = np.full(bank.pano.shape, -1)
    shared[0, :4], shared[1, :4] = [0, 0, 2, -1], [0, 3, 2, 0]
    assert following(bank.replace(pano=jnp.asarray(shared)), 4) == [[2, 3], [], [0], [2]]


@functools.partial(jax.jit, static_argnames="kept")
def weighed(views, weight, panos, kept: bool):
    """Value and gradient of a loss that looks at pictures, in a loop."""

    def loss(weight, panos):
        seen = jax.vmap(jax.vmap(views.picture))(panos, panos * 30).astype(jnp.float32)
        return jnp.sum(jnp.sin(weight * seen / 255))

    loss = jax.checkpoint(loss) if kept else loss

    def add(index, sums):
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(weight, panos + index))

    return jax.lax.fori_loop(0, 3, add, (jnp.float32(0), jnp.float32(0)))


@pytest.mark.parametrize("kept", [False, True])
def test_losses_that_look_have_gradients(kept: bool) -> None:
    panos = jnp.array([[0, 1, 2], [4, 5, 6]])
    want, got = (
        weighed(views, jnp.float32(0.7), panos, kept) for views in (device(), host(Loads()))
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(want[1]) > 1


def test_eight_devices_draw_what_one_does() -> None:
    assert printed(EIGHT_DEVICES) == "same"

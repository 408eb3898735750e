"""Street views of panoramas that don't fit the device: the host keeps them and reads ahead.

A program asks its host for panoramas in the middle of its run, wherever a picture is drawn, and
draws it on the device as a bank there would. Whoever asks for panoramas asks next for those that
follow them on their routes, so these are loaded meanwhile.
"""

import math
import os
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int, Num, UInt8

from gp_virl.envs.routes import RouteBank
from gp_virl.envs.street_views import check_grid, views_of
from gp_virl.sharding import spec

Load = Callable[[int], UInt8[np.ndarray, "h w 3"]]


class PanoramaStore:
    """P panoramas of one size, loaded by threads and kept in the host's memory.

    About `most_bytes` stay, at least one panorama: those asked for last, or about to be. Each is
    loaded once while it stays, whoever asks; any number of threads may.
    """

    def __init__(
        self,
        load: Load,
        following: Sequence[Sequence[int]],
        width: int,
        most_bytes: int,
        about: str,
        threads: int | None = None,
    ) -> None:
        """`load(index)` reads or draws a panorama of width x width/2, in a thread of its own.

        `following[index]` are those that come after it. `about` is a text that differs where the
        panoramas do. `threads` load what is asked for, as many more what follows; None: some
        more than there are processors, at most 32. A program that ends doesn't wait for them.
        """
        self.shape, self.about = (width // 2, width, 3), about
        self.room = max(1, most_bytes // math.prod(self.shape))
        self._following = following
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future] = OrderedDict()  # wanted longest ago first
        self._early: set[int] = set()  # those of them that nobody has asked for yet
        threads = threads or min(32, (os.cpu_count() or 1) + 4)
        self._now, self._later = _Threads(load, threads), _Threads(load, threads)

    def fetch(self, panos: Int[Array | np.ndarray, "*b"]) -> UInt8[np.ndarray, "*b h w 3"]:
        """The panoramas of these indices, as soon as all are loaded.

        Indices outside 0..P-1 mean what they mean to an array on the device. Raises what `load`
        raises for one of them. What couldn't be loaded is tried anew when it is asked for again.
        """
        count, panos = len(self._following), np.asarray(panos)
        within = np.clip(np.where(panos < 0, panos + count, panos), 0, count - 1)
        wanted, place = np.unique(within, return_inverse=True)
        found = np.empty((*panos.shape, *self.shape), np.uint8)
        for first in range(0, len(wanted), self.room):
            some = wanted[first : first + self.room].tolist()
            for number, future in enumerate(self._asked(some), first):
                found[place.reshape(panos.shape) == number] = future.result()
        return found

    def _asked(self, wanted: Sequence[int]) -> list[Future]:
        """The panoramas, being loaded; those that follow too, as far as there is room."""
        after = {later for index in wanted for later in self._following[index]} - {*wanted}
        with self._lock:
            futures = [self._needed(index) for index in wanted]
            for index in sorted(after)[: self.room - len(wanted)]:
                if index not in self._kept:
                    self._kept[index] = self._later.submit(index)
                    self._early.add(index)
                self._kept.move_to_end(index)
            while len(self._kept) > self.room:
                index, future = self._kept.popitem(last=False)
                if index in self._early:  # nobody waits for it
                    self._early.remove(index)
                    future.cancel()
        return futures

    def _needed(self, index: int) -> Future:
        """The panorama, loaded before all that is only expected."""
        kept = self._kept.get(index)
        waits = index in self._early and self._kept[index].cancel()
        self._early.discard(index)
        if kept is None or waits or (kept.done() and kept.exception()):
            self._kept[index] = self._now.submit(index)
        self._kept.move_to_end(index)
        return self._kept[index]


class _Threads:
    """Threads that load, first come first served.

    Daemons: at its end a program would wait for all that an executor's threads have yet to do.
    """

    def __init__(self, load: Load, most: int) -> None:
        self._load, self._most, self._started = load, most, 0
        self._waiting: queue.SimpleQueue[tuple[int, Future] | None] = queue.SimpleQueue()
        weakref.finalize(self, self._waiting.put, None)

    def submit(self, index: int) -> Future:
        """The panorama, as soon as a thread has loaded it. Not for several threads at once."""
        future: Future = Future()
        self._waiting.put((index, future))
        if self._started < self._most:
            self._started += 1
            args = self._load, self._waiting
            threading.Thread(target=_serve, args=args, daemon=True).start()
        return future


def _serve(load: Load, waiting: queue.SimpleQueue[tuple[int, Future] | None]) -> None:
    """Loads what waits until there comes None, which is left for the other threads."""
    while (asked := waiting.get()) is not None:
        index, future = asked
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(load(index))
            except BaseException as error:
                future.set_exception(error)
        del asked, future  # a waiting thread keeps no panorama
    waiting.put(None)


@struct.dataclass
class HostViews:
    """Pictures of a host's panoramas, the same as those of a bank on the device.

    Programs with these views ask the host while they run, and JAX doesn't keep such programs
    between processes.
    """

    rotation: Float[Array, "P"]  # degrees, of the panoramas' metadata
    size: int = struct.field(pytree_node=False)  # of the whole grid, in pixels
    layout: str = struct.field(pytree_node=False)  # one of street_views.LAYOUTS
    store: PanoramaStore = struct.field(pytree_node=False)  # another store is another program

    @classmethod
    def build(
        cls,
        store: PanoramaStore,
        rotation: Num[np.ndarray, "P"],
        size: int,
        layout: str = "front_right_back_left",
    ) -> "HostViews":
        """The views of the store's panoramas. ValueError for an unknown layout or a tiny size."""
        check_grid(size, layout)
        return cls(jnp.asarray(rotation, jnp.float32), size, layout, store)

    def picture(
        self, pano: Int[Array, ""], heading: Num[Array, ""] | float
    ) -> UInt8[Array, "size size 3"]:
        """The four views of panorama `pano` for who faces `heading` degrees; the line is black."""
        panorama = fetched(self.store, pano)
        return views_of(panorama, self.rotation[pano], heading, self.size, self.layout)


def fetched(store: PanoramaStore, panos: Int[Array, "*b"]) -> UInt8[Array, "*b h w 3"]:
    """The panoramas on the device; a vmapped batch is one question to the host.

    On a mesh each device asks its own host, for its own rows of the batch.
    """

    @custom_vmap
    def fetch(panos):
        return _shared_out(store, panos)

    @fetch.def_vmap
    def _(size, batched, panos):
        return fetch(panos), True

    return fetch(panos)


def _shared_out(store: PanoramaStore, panos: Int[Array, "*b"]) -> UInt8[Array, "*b h w 3"]:
    def ask(panos):
        shape = jax.ShapeDtypeStruct((*panos.shape, *store.shape), jnp.uint8)
        return jax.pure_callback(store.fetch, shape, panos)

    mesh, rows = jax.sharding.get_abstract_mesh(), spec("batch")
    if mesh.empty:
        return ask(panos)
    flat, parts = panos.reshape(-1), math.prod(mesh.shape[axis] for axis in rows[0])
    even = jnp.pad(flat, (0, -flat.size % parts), mode="edge")  # a panorama more than once is free
    found = jax.shard_map(ask, in_specs=rows, out_specs=rows, check_vma=False)(even)
    return found[: flat.size].reshape(*panos.shape, *store.shape)


def following(bank: RouteBank, count: int) -> list[list[int]]:
    """For each of `count` panoramas, those that come right after it on the bank's routes."""
    after: list[set[int]] = [set() for _ in range(count)]
    panos = np.asarray(bank.pano)
    for here, there in np.stack([panos[:, :-1], panos[:, 1:]], -1).reshape(-1, 2).tolist():
        if min(here, there) >= 0 and here != there:
            after[here].add(there)
    return [sorted(some) for some in after]

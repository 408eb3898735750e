"""Several processes as one program: how they find each other, agree, and end together.

Each runs the same launcher with the same flags on its own devices; together they are one program
over all devices, whose work directory they share. On a TPU pod, under Slurm (srun) and under Open
MPI (mpirun) they find each other; elsewhere each is told --coordinator, --processes, --process.
"""

import contextlib
import dataclasses
import inspect
import os
import secrets
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from gp_virl.places import Place, read_text, write_whole
from gp_virl.sharding import mesh_of, whole
from launch import watch

HEARTBEAT = 50  # seconds; JAX's own 100 would let a lost machine hold the others for longer
FINISHING = 3600  # seconds; others wait so long for process 0, which draws the figures
NUDGE = 30.0  # seconds until a process says that it still waits for others
PATIENCE = 5.0  # seconds in which another process's end explains an error here that is expected
LONG_PATIENCE = 35.0  # and one that isn't; the watch takes 30 to find that a machine is lost
SHARING = 40.0  # seconds in which a file must show everywhere: NFS may take half a minute
WATCH = "gp_virl/watch"  # where process 0 tells the others its watch's port and secret
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


class ProcessesError(ValueError):
    """The processes of a run can't be brought together as asked."""


@dataclasses.dataclass(frozen=True)
class Member:
    """Where process 0 is, and which of how many processes this is."""

    coordinator: str
    count: int
    index: int


Joined = Callable[[tuple[type[Exception], ...]], contextlib.AbstractContextManager[None]]


def define_flags() -> Joined:
    """Define the flags of several processes; the returned function is `joined` as they say."""
    where = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT, a free port of process 0's machine"
    )
    count = flags.DEFINE_integer(
        "processes", None, "how many processes run this; 1: this one alone"
    )
    index = flags.DEFINE_integer("process", None, "which of them this is, from 0")
    beat = flags.DEFINE_integer(
        "heartbeat", HEARTBEAT, "seconds without a sign after which a machine is lost", 5
    )

    def join(expected: tuple[type[Exception], ...]) -> contextlib.AbstractContextManager[None]:
        place = placed(where.value, count.value, index.value)
        several = place is not None or (count.value is None and surrounded())
        return joined(place, beat.value, expected) if several else contextlib.nullcontext()

    return join


def placed(coordinator: str | None, count: int | None, index: int | None) -> Member | None:
    """The place that flags tell; None without them, or for one process.

    Raises ProcessesError if some are missing or they don't fit together.
    """
    given = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [name for name, value in given.items() if value is None]
    if count == 1 and not index:
        return None
    if len(missing) == len(given):
        return None
    if missing:
        have = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise ProcessesError(
            f"given {have} without {', '.join(missing)}; give all three to every process, or none "
            "where a TPU pod, Slurm or Open MPI tells them"
        )
    if not 0 <= index < count:
        raise ProcessesError(
            f"given --process={index} of --processes={count}; allowed: 0 to {count - 1}"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal()):
        raise ProcessesError(
            f"given --coordinator={coordinator}; allowed: HOST:PORT, a free port of the machine "
            "on which --process=0 runs"
        )
    return Member(coordinator, count, index)


def surrounded() -> bool:
    """Whether this is one of several processes that JAX brings together by itself.

    JAX asks the same variables, and on a Google Cloud TPU the same metadata, for addresses and
    numbers. ProcessesError for an Open MPI that doesn't tell where process 0 is.
    """
    told = os.environ
    if int(told.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in told:
            raise ProcessesError(
                "this Open MPI (5 or newer) doesn't tell where process 0 is; give --coordinator="
                "HOST:PORT --processes=$OMPI_COMM_WORLD_SIZE --process=$OMPI_COMM_WORLD_RANK, read "
                "by a shell in every process"
            )
        return True
    if all(name in told for name in SLURM):
        return int(told.get("SLURM_STEP_NUM_TASKS", told["SLURM_NTASKS"])) > 1
    return _has_tpu() and _in_pod()


def _has_tpu() -> bool:
    platforms = jax.config.jax_platforms
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips and find_spec("libtpu") and (not platforms or "tpu" in platforms))


def _in_pod() -> bool:
    """Whether a machine with TPUs is one of several."""
    told = os.environ
    if int(told.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    hosts = told.get("TPU_PROCESS_ADDRESSES") or told.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in told:
        hosts = _metadata("worker-network-endpoints")
        slices = [row for row in _metadata("tpu-env").splitlines() if "MEGASCALE_NUM_SL" in row]
        if any(row.partition(":")[2].strip(" '\"") not in ("", "1") for row in slices):
            return True
    return "," in (hosts or "")


def _metadata(name: str) -> str:
    """What Google Cloud tells about this machine; '' elsewhere."""
    asked = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


@contextlib.contextmanager
def joined(
    place: Member | None, heartbeat: int, expected: tuple[type[Exception], ...]
) -> Iterator[None]:
    """Joins the others, and sees to it that if one of them ends early, all end, and say why.

    An error of the body is printed and ends this process: one of the `expected` kinds as a line, by
    process 0 alone if all have it; any other with its traceback, unless another process turns out
    to be gone, of which it then comes.
    """
    try:
        _initialize(place, heartbeat)
    except RuntimeError as wrong:
        where = "" if place is None else f" as {place}"
        told = str(wrong).splitlines()[0]
        raise ProcessesError(f"the processes don't find each other{where}: {told}") from wrong
    watched = _watched()
    try:
        # At once, by all: JAX's exchange of devices and its first collective wait for nobody long.
        devices = jax.device_count()
        together("joined")
        if watched.index == 0:
            watch.said(f"{watched.count} processes with {devices} devices; if one ends, all end")
        yield
    except expected as wrong:
        watched.fail(f"{type(wrong).__name__}: {wrong}", PATIENCE if watched.index else 0)
    except BaseException as wrong:
        patience = LONG_PATIENCE if isinstance(wrong, Exception) else PATIENCE
        watched.fail(f"process {watched.index}: {traceback.format_exc()}", patience)
    watched.finish()


def _initialize(place: Member | None, heartbeat: int) -> None:
    given: dict[str, Any] = {"heartbeat_timeout_seconds": heartbeat}
    given["shutdown_timeout_seconds"] = FINISHING
    if place is not None:
        given |= {"coordinator_address": place.coordinator, "num_processes": place.count}
        given |= {"process_id": place.index, "cluster_detection_method": "deactivate"}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if hasattr(jax.config, "jax_enable_preemption_service"):
        # It would take SIGTERM for a wish to be told of; nobody asks, and the signal should end us.
        jax.config.update("jax_enable_preemption_service", False)
    known = inspect.signature(jax.distributed.initialize).parameters
    nudge = threading.Timer(NUDGE, watch.said, [f"still waiting for other processes ({place})"])
    nudge.daemon = True
    nudge.start()
    jax.distributed.initialize(**{name: value for name, value in given.items() if name in known})
    nudge.cancel()


def _watched() -> watch.Watch:
    """The watch of this process, before any device is asked; every process calls this at once."""
    # JAX has no public names for the address that its detection found, and for what it shares.
    from jax._src.distributed import global_state as found

    index, count = found.process_id, found.num_processes
    if index == 0:
        server, secret = watch.listening()
        found.client.key_value_set(WATCH, f"{server.getsockname()[1]} {secret}")
        return watch.Watch(index, count, watch.met(server, secret, count))
    port, secret = map(int, found.client.blocking_key_value_get(WATCH, 60_000).split())
    host = found.coordinator_address.rpartition(":")[0].strip("[]")
    return watch.Watch(index, count, watch.reached(host, port, secret, index))


def _broadcast(numbers: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(numbers))


def agreed(number: int | None) -> int | None:
    """Process 0's number, which is not negative, or its None; every process calls this at once."""
    if jax.process_count() == 1:
        return number
    found = int(_broadcast(np.array(-1 if number is None else number, np.int32)))
    return None if found < 0 else found


def together(name: str) -> None:
    """Returns once every process has come to this point, which has a name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_before(name: str, shared: bool = True) -> Iterator[bool]:
    """A body that every process runs on its first device alone; it is told whether to make things.

    If what is made is `shared`, process 0 makes it before any other enters its own body; else each
    makes its own, all at once.
    """
    makes = jax.process_index() == 0 or not shared
    if jax.process_count() == 1:
        yield True
        return
    if not makes:
        together(name)
    own = mesh_of(devices=jax.local_devices()[:1])
    with jax.set_mesh(own):
        yield makes
    if makes:
        together(name)


def check_shared(workdir: Place, patience: float = SHARING) -> None:
    """ProcessesError, in all processes, unless what process 0 writes to `workdir` is there for all.

    Every process calls this at once. `patience`: seconds in which the others must find it.
    """
    if jax.process_count() == 1:
        return
    number = agreed(secrets.randbits(31))
    path = workdir / f"shared-{number}.tmp"
    if jax.process_index() == 0:
        write_whole(path, str(number))
    together("written")
    end = time.monotonic() + patience
    while not (found := path.exists() and read_text(path) == str(number)):
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    seen = np.asarray(multihost_utils.process_allgather(np.array(found, np.int32))).reshape(-1)
    if jax.process_index() == 0:
        path.unlink()
    if not seen.all():
        lost = ", ".join(map(str, np.flatnonzero(seen == 0)))
        raise ProcessesError(
            f"--workdir {workdir} is not shared by all processes: process 0 wrote a file there, "
            f"and it isn't there for process {lost}; give a directory that all machines mount, or "
            "gs://BUCKET/DIRECTORY"
        )


def replicated(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """The arrays of `tree`, which every process has, whole on every device of the mesh.

    An array that comes several times in the tree is put there once.
    """
    if mesh.size == 1:
        return tree
    done: dict[int, jax.Array] = {}

    def put(leaf: Any) -> jax.Array:
        if id(leaf) not in done:
            value = np.asarray(leaf)
            done[id(leaf)] = jax.make_array_from_callback(
                value.shape, whole(mesh), lambda index: value[index]
            )
        return done[id(leaf)]

    return jax.tree.map(put, tree)

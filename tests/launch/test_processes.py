"""Several processes give one process's numbers, end together, and go on with other processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gp_virl.io import checkpoint
from gp_virl.plots.transcripts import read_transcripts
from launch import processes, watch
from launch.processes import Member, ProcessesError, placed, surrounded
from tests.launch.test_study import ROOT, SMALL, lines

CHANGES = {"eval.transcripts": 1, "env.held_out": 0.0}
FLAGS = [f"--config.{name}={value}" for name, value in (SMALL | CHANGES).items()]
MESSAGE = "is gone, and this one ends as well. Start all processes again"

# A study's base, what it says, and the RL branch with an evaluation. KILL=BRANCH,STEP,PROCESS kills
# one process when it would keep that checkpoint.
PROGRAM = """
import os, signal, sys

sys.modules["torch"] = None  # others would import it, for half of all the time that imports take

import jax
from launch import branches, dialogues, lab, processes, train_rl, train_sft

keep, kill = branches.keep, os.environ.get("KILL", "none,0,0").split(",")

def keep_or_die(branch, step, *rest):
    if [branch.name, str(step), str(jax.process_index())] == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(branch, step, *rest)

branches.keep = keep_or_die
STUDY, PLACE, JOIN = lab.define_config(), lab.define_workdir(), processes.define_flags()

def main():
    config = STUDY()
    place, opened = PLACE(config), lab.open_lab(config)
    lab.settle(place, config)
    writer, fresh = lab.open_writer(place, ()), branches.fresh_params(opened, 0)
    base = branches.Branch("base", 0, place / "base", place / "data", 0)
    with jax.set_mesh(opened.mesh):
        state, seen = train_sft.train(opened, base, config.base, fresh, writer, lambda *_: None)
        dialogues.write(opened, {"base": lambda: state.params}, 0, place / "transcripts.jsonl")
        rl = branches.Branch("rl", 0, place / "rl", place / "data", seen)

        def evaluate(params, updates, compute):
            about = {"branch": "rl", "seed": 0, "updates": updates, "compute_flops": compute}
            for record in lab.evaluate(opened, params, 8, about, ["rule_ood"]):
                writer.write(record)

        train_rl.train(opened, rl, state.params, writer, evaluate)

lab.run(main, JOIN)
"""

# One process of a watch: what it does is its last argument.
WATCHED = """
import os, signal, sys, time
from launch import watch

index, count, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[-1]
if index:
    peers = watch.reached("localhost", int(sys.argv[3]), int(sys.argv[4]), index)
else:
    server, secret = watch.listening()
    print(server.getsockname()[1], secret, flush=True)
    peers = watch.met(server, secret, count)
one = watch.Watch(index, count, peers)
time.sleep(0.5)
if what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "fails":
    one.fail("the error itself")
if what == "errs":
    one.fail("an error that comes of another's end", patience=30)
if what == "ends":
    one.finish()
else:
    time.sleep(30)
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


# Flags and environments.


def test_flags_tell_the_place_of_a_process() -> None:
    assert placed("10.0.0.1:1234", 4, 3) == Member("10.0.0.1:1234", 4, 3)
    assert placed(None, None, None) is None
    assert placed(None, 1, None) is None and placed("localhost:1", 1, 0) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1", None, None), "without --processes, --process; give all three"),
        ((None, 4, 0), "given --processes=4, --process=0 without --coordinator"),
        ((None, None, 2), "without --coordinator, --processes"),
        (("host:1", 4, 4), "allowed: 0 to 3"),
        (("host:1", 0, 0), "allowed: 0 to -1"),
        (("host", 4, 0), "given --coordinator=host; allowed: HOST:PORT"),
        (("host:port", 4, 0), "HOST:PORT"),
    ],
)
def test_half_given_flags_are_refused_with_what_is_missing(given: tuple, said: str) -> None:
    with pytest.raises(ProcessesError, match=said):
        placed(*given)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0"}
SLURM |= {"SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
TPU = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "0"}


@pytest.mark.parametrize(
    ("told", "chips", "several"),
    [
        ({}, False, False),
        (SLURM, False, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False, False),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False, False),  # sbatch without srun
        (MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3"}, False, True),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False, False),
        (TPU, True, True),
        (TPU, False, False),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, True, False),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True, True),
    ],
)
def test_environments_of_several_processes_are_known(
    monkeypatch: pytest.MonkeyPatch, told: dict, chips: bool, several: bool
) -> None:
    for name in [*os.environ]:
        if name.startswith(("SLURM", "OMPI", "TPU", "MEGASCALE")):
            monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_has_tpu", lambda: chips)
    assert surrounded() is several


@pytest.mark.parametrize(
    ("endpoints", "slices", "several"),
    [
        ("unused:w0:10.0.0.1", "", False),
        ("unused:w0:10.0.0.1,unused:w1:10.0.0.2", "", True),
        ("unused:w0:10.0.0.1", "ZONE: 'x'\nMEGASCALE_NUM_SLICES: '2'", True),
        ("", "", False),
    ],
)
def test_a_tpu_machine_asks_its_cloud(
    monkeypatch: pytest.MonkeyPatch, endpoints: str, slices: str, several: bool
) -> None:
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    answers = {"worker-network-endpoints": endpoints, "tpu-env": slices}
    monkeypatch.setattr(processes, "_metadata", answers.get)
    monkeypatch.setattr(processes, "_has_tpu", lambda: True)
    assert surrounded() is several


def test_an_open_mpi_that_tells_no_address_says_what_to_do(monkeypatch) -> None:
    monkeypatch.delenv("OMPI_MCA_orte_hnp_uri", raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ProcessesError, match=r"--process=\$OMPI_COMM_WORLD_RANK"):
        surrounded()


def test_one_process_agrees_with_itself_and_waits_for_nobody() -> None:
    assert processes.agreed(3) == 3 and processes.agreed(None) is None
    processes.together("here")
    with processes.first_before("there") as first:
        assert first


def test_replicated_arrays_keep_their_values() -> None:
    tree = {"a": np.arange(6).reshape(2, 3), "b": jnp.float32(0.5)}
    mesh = jax.make_mesh((1,), ("data",))
    assert processes.replicated(tree, mesh) is tree


# The watch.


def watched(*what: str) -> list[subprocess.CompletedProcess]:
    """Processes that watch each other, as they ended."""

    def start(index: int, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", WATCHED, str(index), str(len(what)), *more, what[index]],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    first = start(0)
    meeting = first.stdout.readline().split()
    with socket.create_connection(("localhost", int(meeting[0]))) as stranger:
        stranger.sendall(watch.GREETING.pack(int(meeting[1]) ^ 1, 1))
    started = [first] + [start(index, *meeting) for index in range(1, len(what))]
    ends = [one.communicate(timeout=25) for one in started]
    return [
        subprocess.CompletedProcess(one.args, one.returncode, *end)
        for one, end in zip(started, ends, strict=True)
    ]


@pytest.mark.parametrize("gone", [0, 2])
def test_a_killed_process_ends_the_others_and_they_say_what_to_do(gone: int) -> None:
    ended = watched(*["dies" if index == gone else "works" for index in range(3)])
    for index, one in enumerate(ended):
        assert one.returncode == (-signal.SIGKILL if index == gone else watch.GONE)
        if index != gone:
            assert f"process {index}: process {gone} of 3 {MESSAGE}" in one.stderr


def test_an_error_is_told_once_and_ends_the_others() -> None:
    ended = watched("works", "fails", "errs")
    assert [one.returncode for one in ended] == [watch.FAILED] * 3
    assert ended[1].stderr == "the error itself\n"
    for index in (0, 2):
        assert ended[index].stderr.startswith(f"process {index}: process 1 of 3 stopped with an")
        assert ended[index].stderr.count("\n") == 1


def test_processes_that_are_done_end_nobody() -> None:
    ended = watched("ends", "ends", "ends")
    assert [(one.returncode, one.stderr) for one in ended] == [(0, "")] * 3


def test_process_0_that_is_out_of_reach_is_told(capfd: pytest.CaptureFixture) -> None:
    assert watch.reached("localhost", free_port(), 1, 3) == {}
    assert "process 3 doesn't reach process 0" in capfd.readouterr().err


# A minuscule study: its base by four processes until one is killed, then by two, which do its RL
# until one is killed, then by one on another mesh; beside one process that is never interrupted.


def started(place: Path, count: int, devices: int, kill: str = "", *more: str) -> list:
    """The running processes."""
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "KILL": kill or "none,0,0"}
    quick |= {"JAX_COMPILATION_CACHE_DIR": str(place.parent / "compiled")}
    quick |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    together = ["--coordinator", f"localhost:{free_port()}", f"--processes={count}"]
    together.append("--heartbeat=600")  # a slow machine isn't lost, and the watch needs none
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"--workdir={place}", *FLAGS, *more]
            + (together + [f"--process={index}"] if count > 1 else []),
            cwd=ROOT, env=os.environ | quick,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index in range(count)
    ]  # fmt: skip


def ended(running: list, kill: str = "") -> list[str]:
    """What the processes said; one that is to be killed is, and the others end of it."""
    said = [one.communicate()[1] for one in running]
    for index, (one, text) in enumerate(zip(running, said, strict=True)):
        killed = kill.endswith(f",{index}")
        wanted = -signal.SIGKILL if killed else watch.GONE if kill else 0
        assert one.returncode == wanted, text[:2000] + text[-2000:]
    return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, list[list[str]], list[list[dict]]]:
    """The work directory of one process with four devices; that of the others, and of each of
    their runs what was said and the metrics at its end."""
    place, said, found = tmp_path_factory.mktemp("several"), [], []
    alone = started(place / "whole", 1, 4)
    for run in (
        (4, 1, "base,4,0"),
        (2, 2, "rl,4,1"),
        (1, 2, "", "--config.mesh.data=1", "--config.mesh.fsdp=2"),
    ):
        said.append(ended(started(place / "others", *run), run[2]))
        found.append(lines(place / "others"))
    ended(alone)
    return place / "whole", place / "others", said, found


def compare(found: list[dict], wanted: list[dict], most: float) -> None:
    """Numbers may differ by `most` of their size or of 1, all else not at all."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=most, abs=most)
            assert one[name] == value, (name, one)


@pytest.mark.slow
def test_several_processes_give_the_numbers_of_one(runs) -> None:
    wanted, found = lines(runs[0]), runs[3]
    assert [one["step"] for one in wanted if one["kind"] == "sft"] == [2, 4]
    assert [one["step"] for one in wanted if one["kind"] == "ppo"] == [1, 2, 3, 4]
    assert {one["branch"] for one in wanted if one["kind"] == "eval"} == {"rl"}
    compare(found[0], wanted[: len(found[0])], 1e-5)
    compare(found[1], wanted[: len(found[1])], 1e-5)
    assert found[0][-1]["branch"] == "base" and found[1][-1]["branch"] == "rl"


@pytest.mark.slow
def test_a_killed_process_is_told_by_the_others(runs) -> None:
    for said, gone in zip(runs[2][:2], (0, 1), strict=True):
        for index, text in enumerate(said):
            told = f"process {index}: process {gone} of {len(said)} {MESSAGE}" in text
            assert told == (index != gone), text[-4000:]


@pytest.mark.slow
def test_only_process_0_tells_what_is_done(runs) -> None:
    four, two, one = runs[2]
    assert "4 processes with 4 devices" in four[0] and "2 processes with 4 devices" in two[0]
    assert "base        seed 0: continues after step 2" in two[0]
    assert "rl          seed 0: continues after step 2" in one[0]
    for text in (*four[1:], *two[1:]):
        assert "seed 0" not in text and "devices" not in text


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_on_another_mesh(runs) -> None:
    """To the same end: numbers, parameters, what was played, and what is seen in transcripts."""
    compare(lines(runs[1]), lines(runs[0]), 1e-4)
    ends = []
    for path in runs[:2]:
        about = checkpoint.metadata(path / "rl", whole=True)["leaves"]
        shapes = {
            name: jax.ShapeDtypeStruct(shape, kind)
            for name, (shape, kind, key) in about.items()
            if key is None
        }
        tree = checkpoint.restore(path / "rl", shapes, partial=True)[0]
        ends.append({name: np.asarray(leaf) for name, leaf in tree.items()})
    assert ends[0].keys() == ends[1].keys() and any("lanes/" in name for name in ends[0])
    for name, wanted in ends[0].items():
        exact = np.issubdtype(wanted.dtype, np.integer) or "lanes/" in name
        np.testing.assert_allclose(ends[1][name], wanted, rtol=0, atol=0 if exact else 1e-4)
    talks = [read_transcripts(path / "transcripts.jsonl") for path in runs[:2]]
    assert talks[0] == talks[1] and len(talks[0]) == 2  # splits
    assert json.loads((runs[1] / "config.json").read_text())["mesh"]["fsdp"] == 2

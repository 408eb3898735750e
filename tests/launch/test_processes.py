"""Several processes give one process's numbers, end together, and go on with other processes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from gp_virl.io import checkpoint
from gp_virl.plots.transcripts import read_transcripts
from launch import processes, watch
from launch.processes import Member, ProcessesError, placed, surrounded
from tests.launch.running import MESSAGE, Running, free_port, stopped_at_end
from tests.launch.test_study import SMALL, lines

CHANGES = {"eval.transcripts": 1, "env.held_out": 0.0}
FLAGS = [f"--config.{name}={value}" for name, value in (SMALL | CHANGES).items()]

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
        state, seen = train_sft.train(
            opened, base, config.base, lambda: fresh, writer, lambda *_: None
        )
        dialogues.write(opened, {"base": lambda: state.params}, 0, place / "transcripts.jsonl")
        rl = branches.Branch("rl", 0, place / "rl", place / "data", seen)

        def evaluate(params, updates, compute):
            about = {"branch": "rl", "seed": 0, "updates": updates, "compute_flops": compute}
            for record in lab.evaluate(opened, params, 8, about, ["rule_ood"]):
                writer.write(record)

        train_rl.train(opened, rl, state.params, writer, evaluate)

lab.run(main, JOIN)
"""

# What two processes of two devices each do with a work directory that isn't shared, and with one
# that is, with data and with arrays; then one has an error that isn't expected.
PAIR = """
import json, sys
from pathlib import Path

import jax
import numpy as np

from gp_virl.sharding import mesh_of
from launch import processes

index, shared, told = int(sys.argv[2]), Path(sys.argv[3]), []
processes.LONG_PATIENCE = 0.5
member = processes.Member(f"localhost:{sys.argv[1]}", 2, index)
with processes.joined(member, 100, (processes.ProcessesError,)):
    for place in (shared, shared / str(index)):
        try:
            processes.check_shared(place, patience=0.1)
            told.append("shared")
        except processes.ProcessesError as wrong:
            told.append(str(wrong).replace(str(shared), "DIR"))
    assert index or not [*shared.rglob("shared-*")]  # process 0 removes what it wrote
    with processes.first_before("mine", shared=False) as makes:
        told.append(makes)
    with processes.first_before("ours") as makes:
        told.append(makes)
    same = np.arange(6).reshape(2, 3)
    games = [{"a": same, "b": np.float32(0.5)}, {"a": same}]
    spread = processes.replicated(games, mesh_of(2, 2))
    told.append(spread[0]["a"] is spread[1]["a"])
    for leaf, value in zip(jax.tree.leaves(spread), jax.tree.leaves(games), strict=True):
        assert leaf.is_fully_replicated and len(leaf.sharding.device_set) == 4
        assert len(leaf.addressable_shards) == 2
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, value)
    (shared / f"{index}.json").write_text(json.dumps(told))
    if index:
        raise KeyError("unexpected")
    processes.together("never")
"""


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


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[list[subprocess.CompletedProcess], list[list]]:
    """Two processes that ran PAIR, as they ended, and what each found."""
    port, place = str(free_port()), tmp_path_factory.mktemp("pair")
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    with stopped_at_end() as running:
        for index in range(2):
            running.append(Running(PAIR, port, str(index), str(place), env=quick))
        ends = [one.ended(120) for one in running]
    found = [place / f"{index}.json" for index in range(2)]
    assert all(path.exists() for path in found), [one.stderr for one in ends]
    return ends, [json.loads(path.read_text()) for path in found]


def test_a_work_directory_that_is_not_shared_is_refused_by_all(pair) -> None:
    for index, (shared, own, *_) in enumerate(pair[1]):
        assert shared == "shared"
        assert own.startswith(f"--workdir DIR/{index} is not shared by all processes: process 0")
        assert "isn't there for process 1; give a directory that all machines mount" in own


def test_what_is_not_shared_is_made_by_all(pair) -> None:
    assert [found[2:4] for found in pair[1]] == [[True, True], [True, False]]


def test_replicated_arrays_keep_their_values_and_lie_there_once(pair) -> None:
    assert [found[4:] for found in pair[1]] == [[True], [True]]


def test_an_unexpected_error_is_told_after_a_while(pair) -> None:
    assert [one.returncode for one in pair[0]] == [watch.FAILED] * 2
    zero, one = (each.stderr for each in pair[0])
    assert "process 1: Traceback" in one and "KeyError: 'unexpected'" in one
    assert "process 0: process 1 of 2 stopped with an error that it told" in zero
    assert "Traceback" not in zero


@pytest.mark.parametrize(
    ("error", "patience"),
    [(RuntimeError, processes.LONG_PATIENCE), (ProcessesError, 5.0), (KeyboardInterrupt, 5.0)],
)
def test_an_error_waits_for_the_watch_to_find_a_lost_machine(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], patience: float
) -> None:
    """Its silence takes 30 seconds to be sure of, but what is expected comes of no lost machine."""
    told = []

    class Seen:
        index, count = 1, 2

        def fail(self, text: str, seconds: float) -> None:
            told.append((text.strip().splitlines()[-1], seconds))

        def finish(self) -> None:
            pass

    monkeypatch.setattr(processes, "_initialize", lambda *_: None)
    monkeypatch.setattr(processes, "_watched", Seen)
    with processes.joined(None, 50, (ProcessesError,)):
        raise error("of itself")
    assert [(text.split(".")[-1], seconds) for text, seconds in told] == [
        (f"{error.__name__}: of itself", patience)
    ]
    silence = watch.KEEPALIVE["TCP_KEEPINTVL"] * watch.KEEPALIVE["TCP_KEEPCNT"]
    assert watch.KEEPALIVE["TCP_KEEPIDLE"] + silence < processes.LONG_PATIENCE


# A minuscule study: its base by four processes until one is killed, then by two, which do its RL
# until one is killed, then by one on another mesh; beside one process that is never interrupted.


def started(place: Path, count: int, devices: int, kill: str = "", *more: str) -> list[Running]:
    """The running processes."""
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags), "KILL": kill or "none,0,0"}
    quick |= {"JAX_COMPILATION_CACHE_DIR": str(place.parent / "compiled")}
    quick |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    together = ["--coordinator", f"localhost:{free_port()}", f"--processes={count}"]
    together.append("--heartbeat=600")  # a slow machine isn't lost, and the watch needs none
    return [
        Running(
            PROGRAM, f"--workdir={place}", *FLAGS, *more,
            *(together + [f"--process={index}"] if count > 1 else []), env=quick,
        )
        for index in range(count)
    ]  # fmt: skip


def ended(running: list[Running], kill: str = "") -> list[str]:
    """What the processes said; one that is to be killed is, and the others end of it."""
    ends = [one.ended(1500) for one in running]
    for index, one in enumerate(ends):
        killed = kill.endswith(f",{index}")
        wanted = -signal.SIGKILL if killed else watch.GONE if kill else 0
        assert one.returncode == wanted, one.stderr[:2000] + one.stderr[-2000:]
    return [one.stderr for one in ends]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, list[list[str]], list[list[dict]]]:
    """The work directory of one process with four devices; that of the others, and of each of
    their runs what was said and the metrics at its end."""
    place, said, found = tmp_path_factory.mktemp("several"), [], []
    with stopped_at_end() as running:
        running += (alone := started(place / "whole", 1, 4))
        for run in (
            (4, 1, "base,4,0"),
            (2, 2, "rl,4,1"),
            (1, 2, "", "--config.mesh.data=1", "--config.mesh.fsdp=2"),
        ):
            running += (several := started(place / "others", *run))
            said.append(ended(several, run[2]))
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

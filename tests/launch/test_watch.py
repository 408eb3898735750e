"""Processes that watch each other end together, and say why."""

import signal
import socket
import subprocess
import threading
import time

import pytest

from launch import watch
from tests.launch.running import MESSAGE, Running, free_port, stopped_at_end

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


def watched(*what: str) -> list[subprocess.CompletedProcess]:
    """Processes that watch each other, as they ended."""

    def start(index: int, *more: str) -> Running:
        return Running(WATCHED, str(index), str(len(what)), *more, what[index])

    with stopped_at_end() as running:
        running.append(start(0))
        end = time.monotonic() + 30
        while not (told := running[0].said()[0]).endswith("\n"):
            assert time.monotonic() < end, running[0].said()
            time.sleep(0.02)
        meeting = told.split()
        with socket.create_connection(("localhost", int(meeting[0]))) as stranger:
            stranger.sendall(watch.GREETING.pack(int(meeting[1]) ^ 1, 1))
        running += [start(index, *meeting) for index in range(1, len(what))]
        return [one.ended(60) for one in running]


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


def test_who_is_missing_is_told_by_process_0(capfd: pytest.CaptureFixture) -> None:
    server, secret = watch.listening()
    found: dict[int, socket.socket] = {}
    port = server.getsockname()[1]
    peer = threading.Thread(
        target=lambda: found.update(watch.reached("localhost", port, secret, 2))
    )
    peer.start()
    peers = watch.met(server, secret, 4, meeting=1.0)
    peer.join()
    assert peers.keys() == {2} and found.keys() == {0}
    assert "process 0 isn't reached by process 1, 3 of 4 within 1 s" in capfd.readouterr().err
    for connection in (*peers.values(), *found.values()):
        connection.close()


def test_who_comes_late_is_not_watched(capfd: pytest.CaptureFixture) -> None:
    """A connection may wait to be taken when process 0 has stopped to."""
    server, secret = watch.listening()
    found: list[dict] = []
    port = server.getsockname()[1]
    late = threading.Thread(
        target=lambda: found.append(watch.reached("localhost", port, secret, 1))
    )
    late.start()
    time.sleep(0.3)
    assert not found  # it waits for an answer
    server.close()
    late.join()
    assert found == [{}]
    assert "process 1 doesn't reach process 0" in capfd.readouterr().err

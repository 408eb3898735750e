"""Ends every process of a run when one of them ends early, and says what to do.

Left alone, the others would hang in the next collective until JAX misses the heartbeats, and then
abort with a stack trace. Here each keeps a connection to process 0. The kernel closes those of a
process that ends, however it ends, and gives up on a machine that is silent for half a minute; no
message has to be sent in time, so a process that is merely busy is never taken for dead.
"""

import contextlib
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping

GONE = os.EX_TEMPFAIL  # exit status of those that end because another is gone: start all again
FAILED = 1
GREETING = struct.Struct("!II")  # the run's secret number, the process
WELCOME = b"!"  # process 0's answer
ROOM = 65  # processes that may be connecting at once
MEETING = 60.0  # seconds in which all must have connected
LEAD = 1.0  # seconds by which others end before process 0, on whose service their JAX depends
UNWATCHED = "should one of them end early, the other is ended by JAX when heartbeats are missing"
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds, seconds, times


class Watch:
    """This process's connections to the others, read by a thread of its own."""

    def __init__(self, index: int, count: int, peers: Mapping[int, socket.socket]) -> None:
        """`peers`: to process 0; at process 0, to every other one. It starts to watch at once."""
        self.index, self.count = index, count
        self._peers, self._left = dict(peers), set()  # those that ended as they should
        self._over = threading.Event()  # set once another process ended early
        self._word = threading.Lock()  # held by who tells why this process ends: one reason will do
        threading.Thread(target=self._listen, daemon=True).start()

    def finish(self) -> None:
        """Tells the others that nothing more comes from here, and that all is well."""
        self._tell("done")

    def fail(self, text: str, patience: float = 0.0) -> None:
        """Prints `text` and ends this process; the others end as well. Doesn't return.

        An error within `patience` seconds of another process's end is taken to come of that: then
        the thread says that the process is gone, and the error isn't told.
        """
        if self._over.wait(patience) or not self._word.acquire(blocking=False):
            threading.Event().wait()  # the thread ends this process
        said(text)
        self._tell("failed")
        self._exit(FAILED)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as ready:
            for peer, connection in self._peers.items():
                ready.register(connection, selectors.EVENT_READ, peer)
            while ready.get_map():
                for key, _ in ready.select():
                    if not self._heard(key.data, _received(key.fileobj)):
                        ready.unregister(key.fileobj)

    def _heard(self, peer: int, message: str) -> bool:
        """Takes in what a peer sends, '' at the connection's end; whether more may come."""
        for word in message.split():
            kind, _, about = word.partition(":")
            if kind == "done":
                self._left.add(peer)
            else:
                self._end(int(about or peer), kind)
        if not message and peer not in self._left:
            self._end(peer, "gone")
        return bool(message)

    def _end(self, who: int, kind: str) -> None:
        """Ends this process, after another one did; unless it is ending by itself."""
        self._over.set()
        if not self._word.acquire(blocking=False):
            return
        about = f"process {self.index}: process {who} of {self.count}"
        if kind == "failed":
            said(f"{about} stopped with an error that it told; this one ends as well")
        else:
            said(
                f"{about} is gone, and this one ends as well. Start all processes again, on as "
                "many as you like: the run goes on from its last checkpoint."
            )
        if self.index == 0:
            self._tell(f"{kind}:{who}")
        self._exit(FAILED if kind == "failed" else GONE)

    def _exit(self, status: int) -> None:
        """Ends this process at once: JAX's own end would wait for all others."""
        if self.index == 0:
            time.sleep(LEAD)
        os._exit(status)

    def _tell(self, word: str) -> None:
        for connection in self._peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(f"{word}\n".encode())


def said(text: str) -> None:
    """Writes lines of text to stderr in one call, past Python's buffers."""
    sys.stderr.flush()
    os.write(sys.stderr.fileno(), f"{text}\n".encode())


def listening() -> tuple[socket.socket, int]:
    """Process 0's server, on any free port, and a secret number that tells peers from strangers."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", 0), family=family, backlog=ROOM, dualstack_ipv6=both)
    return server, secrets.randbits(31)


def met(
    server: socket.socket, secret: int, count: int, meeting: float = MEETING
) -> dict[int, socket.socket]:
    """Process 0's connections, by process; says which don't come within `meeting` seconds."""
    peers: dict[int, socket.socket] = {}
    end = time.monotonic() + meeting
    with contextlib.suppress(TimeoutError), server:
        while len(peers) < count - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            connection, _ = server.accept()
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                greeting = connection.recv(GREETING.size, socket.MSG_WAITALL)
                if len(greeting) == GREETING.size:
                    number, peer = GREETING.unpack(greeting)
                    if number == secret and 0 < peer < count:
                        connection.sendall(WELCOME)
                        peers[peer] = _kept_alive(connection)
    if missing := [str(peer) for peer in range(1, count) if peer not in peers]:
        said(
            f"process 0 isn't reached by process {', '.join(missing)} of {count} within "
            f"{meeting:.0f} s: {UNWATCHED}"
        )
    return peers


def reached(host: str, port: int, secret: int, index: int) -> dict[int, socket.socket]:
    """The connection to process 0; none, and a line, if it can't be reached or is no longer met."""
    try:
        connection = socket.create_connection((host, port), timeout=MEETING / 2)
        connection.sendall(GREETING.pack(secret, index))
        connection.settimeout(MEETING)  # longer than process 0 takes any in
        if connection.recv(len(WELCOME)) != WELCOME:
            raise ConnectionAbortedError("it closed the connection")
    except OSError as wrong:
        said(f"process {index} doesn't reach process 0 at {host}:{port} ({wrong}): {UNWATCHED}")
        return {}
    return {0: _kept_alive(connection)}


def _kept_alive(connection: socket.socket) -> socket.socket:
    """The connection, which the kernel tries out while nothing is sent."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _received(connection: socket.socket) -> str:
    try:
        return connection.recv(4096).decode()
    except OSError:
        return ""

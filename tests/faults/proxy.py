"""A TCP address between onecount and Kafka or Redis, on which a test decides what becomes of what passes: it is delayed,
swallowed, or cut off. Of Kafka's protocol it knows as much as it takes to hold back one EndTxn, or the answer to it.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from threading import Event, Thread
from typing import Final, NamedTuple

from app.local.processes import HOST

END_TXN: Final = 26
_CONNECT_TIMEOUT_S = 5.0
_HELD_S_MAX = 300.0
_Read = Callable[[socket.socket], Iterator[bytes]]
_Look = Callable[["_Connection", bytes], None]


class Link(Enum):
    """What becomes of connections: they pass; they break and none is made; they stand, and nothing comes of them."""

    OPEN = "open"
    CUT = "cut"
    SILENT = "silent"


class EndTxn(NamedTuple):
    """The head of such a request, in the versions before the flexible ones (librdkafka 2.16 sends 1)."""

    correlation_id: int
    transactional_id: str

    @classmethod
    def decode(cls, request: bytes) -> "EndTxn | None":
        """From a request with its size; None if it is another one."""
        _, api, version, correlation_id, client_bytes = struct.unpack_from(">ihhih", request)
        if api != END_TXN:
            return None
        if version > 2:
            raise NotImplementedError(f"EndTxn version {version} has a flexible header")
        at = 14 + max(client_bytes, 0)
        (id_bytes,) = struct.unpack_from(">h", request, at)
        return cls(correlation_id, request[at + 2 : at + 2 + id_bytes].decode())


class Hold:
    """The next EndTxn of a transactional id: the request is held back (nothing is committed), or the answer (all is)."""

    def __init__(self, transactional_id: str, is_answer: bool) -> None:
        self.transactional_id = transactional_id
        self.is_answer = is_answer
        self.caught = Event()
        self.answered = Event()
        self.error_code: int | None = None  # what the broker has answered
        self._client: socket.socket | None = None
        self._free = Event()

    def wait(self, timeout_s: float = 60.0) -> None:
        """Until it is in the proxy's hands."""
        assert self.caught.wait(timeout_s), f"no EndTxn of {self.transactional_id} within {timeout_s} s"

    def release(self) -> None:
        """Sends it on, on the connection it came by; whether its sender still waits for it or not."""
        self._free.set()

    def answer(self, timeout_s: float = 20.0) -> int:
        """The error code with which the broker has answered."""
        assert self.answered.wait(timeout_s), f"the broker did not answer within {timeout_s} s"
        assert self.error_code is not None
        return self.error_code

    def hang_up(self) -> None:
        """Breaks the connection to the sender; the broker is told nothing."""
        assert self._client is not None
        _shut(self._client)

    def keep(self, client: socket.socket) -> None:
        """In the proxy's threads: waits for `release`."""
        self._client = client
        self.caught.set()
        self._free.wait(_HELD_S_MAX)


class _Connection:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket | None) -> None:
        self.client, self.server = client, server
        self.is_silent = server is None  # once something is missing in it, nothing of it may pass any more
        self.awaited: tuple[int, Hold] | None = None  # the correlation id by which the answer is known

    def shut(self) -> None:
        for each in self.sockets():
            _shut(each)

    def close(self) -> None:
        for each in self.sockets():
            each.close()

    def sockets(self) -> list[socket.socket]:
        return [each for each in (self.client, self.server) if each is not None]


class Proxy:
    """Passes connections at `port` on to `target_port`. Made by `proxy`."""

    def __init__(self, port: int, target_port: int, read: _Read) -> None:
        self.delay_s = 0.0  # of each piece, in each direction
        self._link = Link.OPEN
        self._target_port = target_port
        self._read = read
        self._holds: list[Hold] = []
        self._connections: list[_Connection] = []
        self._serving: list[Thread] = []
        self._ended = Event()
        self._listener = socket.create_server((HOST, port))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def address(self) -> str:
        """For a client of Kafka."""
        return f"{HOST}:{self.port}"

    @property
    def redis_url(self) -> str:
        """For a client of Redis."""
        return f"redis://{HOST}:{self.port}/0"

    def cut(self) -> None:
        """Breaks all connections, and lets no new one through."""
        self._link = Link.CUT
        for connection in list(self._connections):
            connection.shut()

    def swallow(self) -> None:
        """Half-open: connections stand and new ones are accepted, but nothing passes, not even that one side has closed."""
        self._link = Link.SILENT

    def restore(self) -> None:
        """New connections pass. Those in which something was swallowed stay dead, and nobody is told."""
        self._link = Link.OPEN

    def hold_request(self, transactional_id: str) -> Hold:
        """Holds the next EndTxn of a transactional id back from the broker."""
        return self._hold(Hold(transactional_id, is_answer=False))

    def hold_answer(self, transactional_id: str) -> Hold:
        """Lets the next EndTxn of a transactional id through, and holds the answer back."""
        return self._hold(Hold(transactional_id, is_answer=True))

    def close(self) -> None:
        """Ends it."""
        self._ended.set()
        _shut(self._listener)
        self._listener.close()
        self._accepting.join(_CONNECT_TIMEOUT_S)
        for hold in self._holds:
            hold.release()
        self.cut()
        for thread in self._serving:
            thread.join(_CONNECT_TIMEOUT_S)

    def _hold(self, hold: Hold) -> Hold:
        self._holds.append(hold)
        return hold

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = None
            if self._link is not Link.SILENT:
                try:
                    if self._link is Link.CUT:
                        raise ConnectionRefusedError
                    server = socket.create_connection((HOST, self._target_port), _CONNECT_TIMEOUT_S)
                    server.settimeout(None)
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError:
                    client.close()
                    continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(client, server)
            self._connections.append(connection)
            self._serving.append(Thread(target=self._serve, args=(connection,), daemon=True))
            self._serving[-1].start()

    def _serve(self, connection: _Connection) -> None:
        answers = Thread(target=self._pass_answers, args=(connection,), daemon=True)
        answers.start()
        self._pass_requests(connection)
        answers.join()
        if connection.is_silent:
            self._ended.wait()
        connection.close()
        self._connections.remove(connection)

    def _pass_requests(self, connection: _Connection) -> None:
        self._pump(connection, connection.client, connection.server, self._look_at_request)
        if connection.awaited is not None:  # the client is gone, but what it asked for has come to the broker
            connection.awaited[1].answered.wait(_CONNECT_TIMEOUT_S)
        self._end(connection)

    def _pass_answers(self, connection: _Connection) -> None:
        if connection.server is not None:
            self._pump(connection, connection.server, connection.client, self._look_at_answer)
            self._end(connection)

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket | None, look: _Look) -> None:
        with suppress(OSError):
            for piece in self._read(source):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self._holds:
                    look(connection, piece)
                connection.is_silent |= self._link is Link.SILENT
                if sink is not None and not connection.is_silent:
                    sink.sendall(piece)

    def _end(self, connection: _Connection) -> None:
        connection.is_silent |= self._link is Link.SILENT
        if not connection.is_silent:
            connection.shut()

    def _look_at_request(self, connection: _Connection, request: bytes) -> None:
        ends = EndTxn.decode(request)
        for hold in self._holds:
            if ends is not None and not hold.caught.is_set() and hold.transactional_id == ends.transactional_id:
                connection.awaited = ends.correlation_id, hold
                if not hold.is_answer:
                    hold.keep(connection.client)

    def _look_at_answer(self, connection: _Connection, answer: bytes) -> None:
        correlation_id, _, error_code = struct.unpack_from(">iih", answer, 4) if len(answer) >= 14 else (None, 0, 0)
        if connection.awaited is None or connection.awaited[0] != correlation_id:
            return
        hold, connection.awaited = connection.awaited[1], None
        hold.error_code = error_code
        hold.answered.set()
        if hold.is_answer:
            hold.keep(connection.client)


def pieces(source: socket.socket) -> Iterator[bytes]:
    """What comes, as it comes."""
    while piece := source.recv(65_536):
        yield piece


def messages(source: socket.socket) -> Iterator[bytes]:
    """Whole requests or answers of Kafka, each with its size before it."""
    with source.makefile("rb") as stream:
        while len(size := stream.read(4)) == 4:
            yield size + stream.read(int.from_bytes(size, "big"))


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target_port: int, port: int = 0, read: _Read = pieces) -> Iterator[Proxy]:
    """A proxy for as long as the block lasts; for Kafka with `read=messages`, and at the port that the broker advertises."""
    made = Proxy(port, target_port, read)
    try:
        yield made
    finally:
        made.close()

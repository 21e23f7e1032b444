"""A TCP address that leads to a server of the test's choice, as a service name or a virtual IP does."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

from app.local.processes import HOST

_CONNECT_TIMEOUT_S = 5.0


class Forwarder:
    """Passes connections on to `target_port`; can be cut, and made to lead elsewhere. Made by `forwarder`."""

    def __init__(self, target_port: int) -> None:
        self.before: Callable[[bytes], None] | None = None  # is shown what clients send before that is passed on
        self._target_port: int | None = target_port
        self._sockets: set[socket.socket] = set()
        self._lock = Lock()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    @property
    def redis_url(self) -> str:
        """The address for a Redis client."""
        return f"redis://{HOST}:{self.port}/0"

    def cut(self) -> None:
        """Breaks all connections, with what is on its way in them, and lets no new one through."""
        self._target_port = None
        self._break_all()

    def refuse(self) -> None:
        """Lets no new connection through; what is on its way in the present ones arrives."""
        self._target_port = None

    def lead_to(self, port: int) -> None:
        """Breaks all connections; new ones go to this port."""
        self._target_port = port
        self._break_all()

    def close(self) -> None:
        """Ends it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _break_all(self) -> None:
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._target_port is None:
                    raise ConnectionRefusedError
                server = socket.create_connection((HOST, self._target_port), _CONNECT_TIMEOUT_S)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        back = Thread(target=_pass_back, args=(server, client), daemon=True)
        back.start()
        with suppress(OSError):
            while chunk := client.recv(65_536):
                if self.before is not None:
                    self.before(chunk)
                server.sendall(chunk)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)  # after all that the client sent, even if nobody waits for answers any more
        back.join()
        with self._lock:
            self._sockets -= {client, server}
            client.close()
            server.close()


def _pass_back(server: socket.socket, client: socket.socket) -> None:
    """The server's answers; those that the client does not take any more are thrown away, or the server would notice."""
    with suppress(OSError):
        while chunk := server.recv(65_536):
            with suppress(OSError):
                client.sendall(chunk)
    for each in (server, client):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def forwarder(target_port: int) -> Iterator[Forwarder]:
    """A forwarder for as long as the block lasts."""
    made = Forwarder(target_port)
    try:
        yield made
    finally:
        made.close()

"""The socket that the page listens on."""

import socket
from typing import Final

STALLED_MS: Final = 20_000  # a browser that takes nothing for so long is dropped by the kernel


class PageError(RuntimeError):
    """The page can't be served; the message says why and what to do."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises `PageError`."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise PageError(
            f"the page can't listen on {host}:{port} ({error.strerror or error}): "
            "set ONECOUNT_PAGE_HOST and ONECOUNT_PAGE_PORT to what is free"
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted inherits it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    return listener

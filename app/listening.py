"""The sockets that the page, the gateway and the desk listen on."""

import socket
from typing import Final

STALLED_MS: Final = 20_000  # a client that takes nothing for so long is dropped by the kernel


def listen(
    who: str, host: str, port: int, refused: type[Exception], backlog: int | None = None, is_shared: bool = False
) -> socket.socket:
    """A socket that listens there; port 0 is any free one, `is_shared` lets other processes listen there too. Raises `refused`, which
    says whose (page, gateway, desk) address it is and what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=backlog, reuse_port=is_shared)
    except (OSError, ValueError) as error:  # ValueError: the system can't share a port
        raise refused(
            f"the {who} can't listen on {host}:{port} ({getattr(error, 'strerror', None) or error}): "
            f"set ONECOUNT_{who.upper()}_HOST and ONECOUNT_{who.upper()}_PORT to what is free"
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted inherits it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """Where to find what listens on this host."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

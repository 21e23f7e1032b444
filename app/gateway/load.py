"""How many requests are answered at once, and how many bytes of bodies they hold; more are told to come again."""

from app.gateway.answers import RETRY_AFTER_S
from app.gateway.body import Problem


class Load:
    """What is under way, and how much may be. On the event loop only, so nothing needs a lock."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests, self.max_bytes = max_requests, max_bytes
        self.requests = self.bytes = 0


class Share:
    """What one request has of it, while it is answered (`with Share(load) as share`). Raises `Problem` 503 where there is none."""

    __slots__ = ("_bytes", "_load")

    def __init__(self, load: Load) -> None:
        self._load, self._bytes = load, 0

    def __enter__(self) -> "Share":
        if self._load.requests >= self._load.max_requests:
            raise _too_much("requests")
        self._load.requests += 1
        return self

    def hold(self, size: int) -> None:
        """So many more bytes are kept until the answer. Raises `Problem` 503."""
        if self._load.bytes + size > self._load.max_bytes:
            raise _too_much("bytes")
        self._load.bytes += size
        self._bytes += size

    def __exit__(self, *_: object) -> None:
        self._load.requests -= 1
        self._load.bytes -= self._bytes


def _too_much(what: str) -> Problem:
    return Problem(503, f"too many {what} at once at the moment; nothing was taken", RETRY_AFTER_S)

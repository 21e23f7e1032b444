"""The same bytes for every browser: the newest version of each part of the page, and nothing queued.

A browser is sent the parts that have changed since its last turn. One that is slow has its next turn later, and skips what
came between; what it costs is one part of a page in a socket's buffer.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import NamedTuple


class _Part(NamedTuple):
    version: int
    data: bytes


class Broadcast:
    """Belongs to one event loop; `publish` is called in it."""

    def __init__(self) -> None:
        self.listeners = 0
        self._parts: dict[str, _Part] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._closed = False

    def publish(self, parts: Mapping[str, bytes]) -> None:
        """Replaces parts by newer ones (JSON, one line each), as server-sent events. What is the same stays."""
        self._version += 1
        for name, data in parts.items():
            event = b"event: %s\ndata: %s\n\n" % (name.encode(), data)
            if name not in self._parts or self._parts[name].data != event:
                self._parts[name] = _Part(self._version, event)
        self._wake()

    def close(self) -> None:
        """Ends every stream."""
        self._closed = True
        self._wake()

    async def stream(self, names: Iterable[str]) -> AsyncIterator[bytes]:
        """The newest of these parts, and again whenever they have changed, until `close`."""
        names, seen = tuple(names), 0
        self.listeners += 1
        try:
            while not self._closed:
                changed, version = self._changed, self._version
                fresh = [
                    part.data for name in names if (part := self._parts.get(name)) is not None and part.version > seen
                ]
                seen = version
                if fresh:
                    yield b"".join(fresh)
                await changed.wait()
        finally:
            self.listeners -= 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

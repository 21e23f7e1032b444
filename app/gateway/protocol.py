"""uvicorn's HTTP protocol with what it leaves open: how long a request's head may take, and how large it may be."""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 32_768
HEAD_S: Final = 10.0
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class GuardedProtocol(HttpToolsProtocol):
    """A connection that has sent no whole head within `HEAD_S` is closed, and one whose head is too large is refused. A body
    is bounded by who reads it.
    """

    _reading: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_whole = False  # the head of the request that is being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came: from now on its first head is waited for."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        super().data_received(data)
        if self._reading is not None and not self._is_whole:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_whole = False
        if self._reading is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """A head is here."""
        self._is_whole = True
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._reading = self.loop.call_later(HEAD_S, self._give_up)

    def _forget_head(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _give_up(self) -> None:
        self._reading = None
        self.transport.close()

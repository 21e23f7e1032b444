"""uvicorn's HTTP protocol with what it leaves open: how long a request's head may take, how large head and trailers may be, and
how long a client may send on when it has its answer.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 32_768
HEAD_S: Final = 10.0
_BESIDE: Final = len(": \r\n")  # of a header's name and value
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _TooLarge(Exception):
    """Ends the parser: nothing of this request is looked at."""


class GuardedProtocol(HttpToolsProtocol):
    """A connection on which nothing is being answered is closed where no whole head is there `HEAD_S` after its first byte, or
    after any byte that is none of a head's, such as a body that nobody reads. A request whose head and trailers are too large
    is refused. A body is bounded by who reads it.
    """

    _waiting: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of this request: address, headers and trailers as far as the parser has told them
    _untold_bytes = 0  # that came since it told anything

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came: from now on its first head is waited for."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        self._untold_bytes += len(data)
        super().data_received(data)
        if self._untold_bytes > MAX_HEAD_BYTES:
            self._refuse()
        if self._waiting is None and self._is_idle() and not self.transport.is_closing():
            self._expect_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = self._untold_bytes = 0
        if self._waiting is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        self._count(len(name) + len(value) + _BESIDE)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head is here."""
        self._untold_bytes = 0
        self._forget_head()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        self._untold_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or too much of it."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._forget_head()
        super().connection_lost(exc)

    def _count(self, size: int) -> None:
        self._untold_bytes = 0
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _TooLarge

    def _refuse(self) -> None:
        # while an answer is waited for it would be taken for that
        if self._is_idle() and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
        self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_S, self._give_up)

    def _forget_head(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        self.transport.close()

"""The guard of connections, in process: over sockets, with an application that answers at once or reads the body first."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.gateway import protocol
from app.gateway.protocol import MAX_HEAD_BYTES, GuardedProtocol

HEAD_S = 0.4
POST = b"POST /reads HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
Case = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answers(scope: Any, receive: Any, send: Any) -> None:
    """/reads: once the body is here. /waits: once others have had their turn. Everything else at once."""
    if scope["path"] == "/waits":
        await asyncio.sleep(0.1)
    while scope["path"] == "/reads" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], None]:
    """Runs a case with a connection to a server of its own."""
    monkeypatch.setattr(protocol, "HEAD_S", HEAD_S)

    def run_case(case: Case) -> None:
        async def within() -> None:
            config = uvicorn.Config(answers, http=GuardedProtocol, log_config=None, lifespan="off")
            config.load()
            state = ServerState()
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: GuardedProtocol(config, state, {}), "127.0.0.1", 0)
            async with server, asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
                try:
                    await case(reader, writer)
                finally:
                    writer.transport.abort()
                    while state.connections:
                        await asyncio.sleep(0.01)

        asyncio.run(within())

    return run_case


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes; what it cut off counts too."""
    found = b""
    try:
        while part := await reader.read(65_536):
            found += part
    except ConnectionError:
        pass
    return found


async def answer(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\nok")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nx: " + b"y" * 60_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"GET /?" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 400_000,
    ],
    ids=["long", "many", "address", "unfinished"],
)
def test_a_large_head_is_refused_whether_it_comes_at_once_or_not(run: Callable[[Case], None], head: bytes) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 431 ")

    run(case)


def test_a_head_just_below_the_limit_is_taken(run: Callable[[Case], None]) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nx: " + b"y" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n")
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")

    run(case)


@pytest.mark.parametrize("begin", [b"x: ", b""], ids=["one trailer", "many trailers"])
def test_trailers_without_an_end_are_cut_off(run: Callable[[Case], None], begin: bytes) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + begin)
        sent = 0
        more = b"y" * 10_000 if begin else b"a: b\r\n" * 2_000
        while not reader.at_eof() and not writer.is_closing() and sent < 5_000_000:
            writer.write(more)
            sent += len(more)
            await asyncio.sleep(0)
        assert sent < 5_000_000, "it reads on without an end"

    run(case)


def test_a_trailer_and_many_small_chunks_are_taken(run: Callable[[Case], None]) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000 + b"0\r\nx: y\r\n\r\n")
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")

    run(case)


@pytest.mark.parametrize(
    ("request_", "drop"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n", b"x"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),
    ],
    ids=["body of a GET", "body answered early", "empty lines"],
)
def test_who_was_answered_has_so_long_for_the_next_head(
    run: Callable[[Case], None], request_: bytes, drop: bytes
) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request_)
        await answer(reader)
        begun_s = time.monotonic()
        while not reader.at_eof() and time.monotonic() < begun_s + 10 * HEAD_S:
            writer.write(drop)  # a byte now and then
            await asyncio.sleep(HEAD_S / 10)
        assert HEAD_S * 0.8 < time.monotonic() - begun_s < 10 * HEAD_S, "it is held for ever"

    run(case)


def test_a_body_that_comes_after_its_answer_leaves_the_connection_as_it_is(run: Callable[[Case], None]) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
            assert (await answer(reader)).startswith(b"HTTP/1.1 200 ")
            writer.write(b"0123456789")
            await asyncio.sleep(HEAD_S / 4)

    run(case)


def test_a_refusal_is_not_taken_for_the_answer_to_the_request_before_it(run: Callable[[Case], None]) -> None:
    async def case(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /waits HTTP/1.1\r\nhost: x\r\n\r\nGET /?" + b"x" * 40_000)
        assert not (await until_closed(reader)).startswith(b"HTTP/1.1 431 ")

    run(case)

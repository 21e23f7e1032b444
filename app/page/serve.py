"""`onecount serve`: the reader's thread and the web server, from start to a clean stop."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event
from types import FrameType
from typing import Final

import orjson
import structlog
import uvicorn
from pydantic import SecretStr
from starlette.applications import Starlette

from app.listening import listen, url_of
from app.observe.logs import configure_logs
from app.page import PageError
from app.page.broadcast import Broadcast
from app.page.reader import Reader, beat
from app.page.site import site
from app.settings import Settings

BEAT_S: Final = 1.0
STOP_S: Final = 5
ANSWER_TIMEOUT_MS: Final = 3_000  # for one answer of Kafka; the page has nothing to lose by asking again
FAILED: Final = 1
_log = structlog.get_logger()


def serve(settings: Settings) -> int:
    """Serves the page until SIGTERM or SIGINT; the exit code. Raises `PageError` where it can't listen."""
    configure_logs()
    listener = listen("page", settings.page_host, settings.page_port, PageError)
    page = _Page(settings.model_copy(update=_patience(settings)))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more when it has stopped
        signal.signal(number, page.stop)
    _log.info("page", url=f"{url_of(settings.page_host, listener)}/", answers_to=list(settings.page_hosts))
    page.server.run(sockets=[listener])
    _log.info("stopped")
    return page.code


def _patience(settings: Settings) -> dict[str, object]:
    """What differs from a worker: shorter waits, and the clients don't log each try to connect, of which the page tells."""
    return {
        "request_timeout_ms": min(settings.request_timeout_ms, ANSWER_TIMEOUT_MS),
        "kafka": {"log_level": SecretStr("2")} | settings.kafka,
    }


class _Page:
    """The reader, the streams and uvicorn's server, which live and end together."""

    def __init__(self, settings: Settings) -> None:
        self.code = 0
        self._settings = settings
        self._broadcast = Broadcast()
        self.server = uvicorn.Server(
            uvicorn.Config(
                site(self._broadcast, settings.page_hosts, self._lifespan),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_S,
            )
        )

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        self.server.should_exit = True

    @asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        loop, stop = asyncio.get_running_loop(), Event()
        reader = Reader(
            self._settings, lambda parts: loop.call_soon_threadsafe(self._broadcast.publish, parts) and None
        )
        reading = asyncio.create_task(asyncio.to_thread(reader.run, stop))
        beating = asyncio.create_task(self._beat(reader, reading))
        yield
        stop.set()
        await asyncio.gather(reading, beating, return_exceptions=True)

    async def _beat(self, reader: Reader, reading: asyncio.Task[None]) -> None:
        """Tells the browsers every second how things stand, and ends their streams, for which uvicorn waits, when it stops."""
        was_silent = False
        while not self.server.should_exit:
            now_ms = time.time_ns() // 1_000_000
            is_silent = reader.pulse.answered_ms > 0 and reader.pulse.is_silent(now_ms)
            if is_silent != was_silent:
                was_silent = is_silent
                (_log.warning if is_silent else _log.info)(
                    "no answer from Kafka" if is_silent else "Kafka answers again"
                )
            if reading.done():
                _log.error("reading ended by itself", exc_info=reading.exception())
                self.code, self.server.should_exit = FAILED, True
                break
            self._broadcast.publish({"beat": orjson.dumps(beat(reader, now_ms))})
            await asyncio.sleep(BEAT_S)
        self._broadcast.close()

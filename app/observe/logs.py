"""Logs: readable on a terminal, JSON lines elsewhere; quiet when healthy."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import structlog

_log = structlog.get_logger()
REPEAT_S: Final = 30.0  # a line that says the same again is not logged for so long
_LINES_MAX: Final = 200


def configure_logs() -> None:
    """Sets structlog up for this process, and sends through it what would reach standard error as plain text: warnings of
    libraries, and the traceback of an error that nobody caught.
    """
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forwarded()], level=logging.WARNING, force=True)
    sys.excepthook = _crashed
    threading.excepthook = lambda crash: _crashed(crash.exc_type, crash.exc_value, crash.exc_traceback, crash.thread)


class _Forwarded(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _log.log(record.levelno, record.getMessage(), logger=record.name)


def _crashed(
    kind: type[BaseException],
    error: BaseException | None,
    traceback: TracebackType | None,
    thread: threading.Thread | None = None,
) -> None:
    if not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        exc_info = (kind, error or kind(), traceback)
        _log.critical("crashed", thread=(thread or threading.main_thread()).name, exc_info=exc_info)


class KafkaLog:
    """What librdkafka logs, as log lines of ours. `logger(client)` is what confluent-kafka is given as `logger`; `count` is
    told of each line's client and level, also of those that only repeat what was logged a moment ago.
    """

    def __init__(
        self, count: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic, **names: str
    ) -> None:
        self._count = count
        self._clock = clock
        self._names = names
        self._logged: dict[tuple[str, str, str], float] = {}  # when each line was logged last
        self._repeats: dict[tuple[str, str, str], int] = {}

    def logger(self, client: str) -> "_ClientLogger":
        """The logger of a kind of client."""
        return _ClientLogger(self, client)

    def line(self, client: str, level: int, facility: str, text: str) -> None:
        """One line of librdkafka: its level as in `logging`, what it is about (FAIL, SESSTMOUT, ...), and its text."""
        name = "error" if level >= logging.ERROR else "warning" if level >= logging.WARNING else "info"
        self._count(client, name)
        said = client, facility, re.sub(r"\d+ms", "", text)  # how long it took makes no new line
        now_s = self._clock()
        if now_s - self._logged.get(said, -REPEAT_S) < REPEAT_S:
            self._repeats[said] = self._repeats.get(said, 0) + 1
            return
        if len(self._logged) >= _LINES_MAX:
            self._logged.clear()
            self._repeats.clear()
        self._logged[said] = now_s
        repeats = {"repeats": count} if (count := self._repeats.pop(said, 0)) else {}
        _log.log(level, "librdkafka", client=client, facility=facility, text=text, **repeats, **self._names)


class _ClientLogger:
    def __init__(self, to: KafkaLog, client: str) -> None:
        self._to = to
        self._client = client

    def log(self, level: int, form: str, *parts: Any) -> None:
        """As `logging.Logger.log`; confluent-kafka gives the facility, the client's name and the text."""
        facility, _, text = parts if len(parts) == 3 else ("", "", form % parts if parts else form)
        self._to.line(self._client, level, str(facility), str(text))

"""How far a replay is: one moving line on a terminal, a plain line now and then off it."""

import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_PLAIN_EVERY_S: Final = 10.0
_MOVING_EVERY_S: Final = 0.2


class Progress:
    """Tells a console; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = Status("", console=console) if console.is_terminal else None
        self._told = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)
        self._told = time.monotonic()

    def doing(self, what: str) -> None:
        """What has no measure of its own; seen on a terminal only."""
        if self._status is not None:
            self._status.update(escape(what))

    def at(self, what: str, done: int, total: int) -> None:
        """How much of something is done; told as often as somebody would look."""
        if time.monotonic() - self._told < (_PLAIN_EVERY_S if self._status is None else _MOVING_EVERY_S):
            return
        self._told = time.monotonic()
        share = f" ({min(done / total, 1):.0%})" if total > 0 else ""
        text = f"{what}: {done:,} of {total:,}{share}"
        if self._status is None:
            self.console.print(escape(text), highlight=False, soft_wrap=True)
        else:
            self._status.update(escape(text))

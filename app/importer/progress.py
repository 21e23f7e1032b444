"""How far an import is: a bar on a terminal, a line now and then where there is none."""

import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_EVERY_S: Final = 10.0  # a line in a log
_LOOK_EVERY: Final = 1_000  # rows between two looks at the clock


class Told:
    """Progress of one task after the other: `begin`, then `reached` as often as one likes. Without a console it is silent."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        is_terminal = console is not None and console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True, disable=not is_terminal)
        self._lines = console is not None and not is_terminal
        self._task: TaskID | None = None
        self._what, self._total, self._told_s, self._calls = "", 0, 0.0, 0

    def __enter__(self) -> "Told":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A task of so many bytes, rows or events, some of which may be done."""
        self._what, self._total, self._told_s = what, total, time.monotonic()
        self._task = self._bar.add_task(what, total=total, completed=done)

    def reached(self, done: int) -> None:
        """So much of the task is done."""
        assert self._task is not None
        self._bar.update(self._task, completed=done)
        if self._lines and self._console is not None and time.monotonic() - self._told_s > _EVERY_S:
            self._told_s = time.monotonic()
            share = 100 * done // max(self._total, 1)
            self._console.print(f"{self._what}: {done:,} of {self._total:,} ({share} %)", highlight=False)

    def is_time(self) -> bool:
        """Whether a row is one of the few at which it is worth to look; for what happens for every row."""
        self._calls += 1
        return self._calls % _LOOK_EVERY == 0

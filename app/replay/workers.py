"""The replay's workers: the ordinary ones, by other names, as children that die with this process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from app.local.processes import ChildProcess, tail
from app.replay.names import environment_of
from app.replay.refusal import ReplayRefused
from app.run import STOP_TIMEOUT_S
from app.settings import Settings


class Workers:
    """Counters and one aggregator, each a process with its log in `folder`."""

    def __init__(self, shadow: Settings, counters: int, folder: Path) -> None:
        self._children = [
            _child(shadow, role, slot, folder)
            for role, count in (("counter", counters), ("aggregator", 1))
            for slot in range(count)
        ]

    def start(self) -> None:
        """Starts all of them."""
        for child in self._children:
            child.start()

    def check(self) -> None:
        """Raises `ReplayRefused`, with the reason that it logged, if one has ended."""
        for child in self._children:
            if not child.is_running:
                raise ReplayRefused(f"{child.name} ended by itself: {last_words(child.log_path)}")

    def troubles(self) -> str:
        """What the workers said last, where that is a trouble; empty where all is well."""
        found = [last_words(child.log_path) for child in self._children]
        return "; ".join(words for words in found if "session ended" in words)

    def stop(self) -> None:
        """Asks all to end, and ends at once those that do not."""
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.stop(STOP_TIMEOUT_S)


def _child(shadow: Settings, role: str, slot: int, folder: Path) -> ChildProcess:
    told = [f"{name}={value}" for name, value in environment_of(shadow).items()]
    run = [sys.executable, "-m", "app", "run", role, "--slot", str(slot)]
    command = ["env", "-u", "ONECOUNT_METRICS_PORT", *told, *run]
    return ChildProcess(f"the replay's {role} {slot}", command, folder / f"{role}-{slot}.log")


@contextmanager
def running(shadow: Settings, counters: int, folder: Path) -> Iterator[Workers]:
    """Workers, as long as the block runs."""
    workers = Workers(shadow, counters, folder)
    try:
        workers.start()
        yield workers
    finally:
        workers.stop()


def last_words(log: Path) -> str:
    """The last line of a worker's log: its event and why, or the line itself."""
    lines = tail(log, 1).splitlines()
    if not lines:
        return "it said nothing"
    try:
        said = orjson.loads(lines[-1])
        return ": ".join(str(said[name]) for name in ("event", "why") if name in said)
    except (orjson.JSONDecodeError, TypeError):
        return lines[-1]

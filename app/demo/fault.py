"""The planned fault: kill -9 for one counter worker, in the middle of the run."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from app.demo.figures import REPLAYS, Figures
from app.demo.workers import Workers

SLOT: Final = 1
AT_SHARE: Final = 0.5


@dataclass
class Fault:
    """Where the fault stands. `killed_s` and `back_s` are points of time.monotonic(); None before they come."""

    killed_pid: int | None = None
    killed_s: float | None = None
    back_s: float | None = None
    replays_before: int = 0

    @property
    def over(self) -> bool:
        """Whether the worker was killed and is back."""
        return self.back_s is not None


def advance(fault: Fault, workers: Workers, figures: Figures, share: float, clock: str) -> str | None:
    """Kills when it is time, and sees when the worker counts again; the words for the screen if one of them happened."""
    if fault.over:
        return None
    pid = workers.pid_of(SLOT)
    port = workers.ports[SLOT]
    if fault.killed_s is None:
        if share < AT_SHARE or pid is None:
            return None
        fault.replays_before = figures.workers[REPLAYS]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        fault.killed_pid, fault.killed_s = pid, time.monotonic()
        figures.ready[port] = False
        return f"[bold red]{clock} kill -9[/] for counter worker {SLOT + 1} (process {pid}): its partitions wait"
    if pid in (None, fault.killed_pid) or not figures.ready[port]:
        return None
    fault.back_s = time.monotonic()
    replayed = figures.workers[REPLAYS] > fault.replays_before
    how = "first redid the batch left in the air" if replayed else "goes on at the very next event"
    return f"[bold green]{clock} back[/] after {fault.back_s - fault.killed_s:.1f} s: the supervisor's new one {how}"

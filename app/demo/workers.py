"""The workers as child processes: `onecount run` with its supervisor, told apart by role, killed by slot."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from app.local import LocalServiceError
from app.local.processes import HOST, ChildProcess, pick_ports, tail

_GONE_WITHIN_S: Final = 5.0
_PORT_TRIES: Final = 50


class Workers:
    """One supervisor and its workers; slot n answers on `ports[n]`."""

    def __init__(self, role: str, count: int, folder: Path) -> None:
        self.role = role
        self.ports = pick_neighbours(count)
        self.log_path = folder / f"{role}.log"
        self.child = ChildProcess(f"onecount run {role}", _command(role, count, self.ports[0]), self.log_path)
        self._group: int | None = None

    def start(self) -> None:
        """Starts the supervisor, which starts the workers."""
        self.child.start()
        self._group = self.child.pid  # it leads a process group of its own, with its workers in it

    def check(self) -> None:
        """Raises `LocalServiceError`, with the end of the log, if the supervisor gave up."""
        if not self.child.is_running:
            raise LocalServiceError(
                f"onecount run {self.role} ended by itself.\n--- end of {self.log_path}\n{tail(self.log_path)}"
            )

    def pid_of(self, slot: int) -> int | None:
        """The process id of the worker in a slot; None while it has none."""
        return next((pid for pid in children_of(self.child.pid) if slot_of(pid) == slot), None)

    def end(self) -> None:
        """Ends the supervisor and the workers at once, and returns when they are gone."""
        if self._group is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._group, signal.SIGKILL)
        self.child.kill()  # dead by now; this waits for it
        deadline_s = time.monotonic() + _GONE_WITHIN_S
        while time.monotonic() < deadline_s and _lives(self._group):
            time.sleep(0.02)


def _command(role: str, count: int, first_port: int) -> list[str]:
    run = [sys.executable, "-m", "app", "run", role, "--workers", str(count)]
    # members learn of a rebalance by their heartbeats, every three seconds by default; here a person is waiting
    kafka = json.dumps({"heartbeat.interval.ms": "500"})
    return ["env", f"ONECOUNT_METRICS_PORT={first_port}", f"ONECOUNT_KAFKA={kafka}", *run]


@contextmanager
def running(role: str, count: int, folder: Path) -> Iterator[Workers]:
    """Workers of a role, as long as the block runs."""
    workers = Workers(role, count, folder)
    try:
        workers.start()
        yield workers
    finally:
        workers.end()


def children_of(pid: int) -> list[int]:
    """The processes that have this parent, oldest first."""
    if Path("/proc/self/stat").exists():
        return sorted(child for child in _processes() if _parent_of(child) == pid)
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return sorted(int(line) for line in found.stdout.split())


def slot_of(pid: int) -> int | None:
    """Which slot of its supervisor a worker fills."""
    if Path("/proc/self/stat").exists():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            return _slot(words)
        return None
    return _slot(
        subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    )


def _slot(words: str) -> int | None:
    found = re.search(r"--slot (\d+)", words)
    return int(found[1]) if found else None


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _parent_of(pid: int) -> int | None:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _lives(group: int) -> bool:
    """Whether a process of the group is more than an entry that nobody has collected."""
    if not Path("/proc/self/stat").exists():
        with suppress(ProcessLookupError):
            os.killpg(group, 0)
            return True
        return False
    for pid in _processes():
        with suppress(OSError, IndexError):
            state, _, found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state not in "ZX":
                return True
    return False


def pick_neighbours(count: int) -> range:
    """So many free ports in a row, since a supervisor's workers count up from the first one's."""
    for _ in range(_PORT_TRIES):
        first = pick_ports(1)[0]
        if all(_is_free(port) for port in range(first, first + count)):
            return range(first, first + count)
    raise LocalServiceError(f"no {count} free ports in a row found on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("0.0.0.0", port))  # as the workers do
        except (OSError, OverflowError):
            return False
        return True

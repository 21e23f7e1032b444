"""What processes use, from /proc: CPU seconds and page faults over an interval, and the most memory they ever held."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_UTIME: Final = 11  # the first of utime, stime, cutime, cstime in what follows the program's name in /proc/PID/stat
_PARENT: Final = 1
_MINOR_FAULTS: Final = 7


class Meter:
    """CPU seconds (user + system) of named parts, each some processes and their children, from `start` to `read`."""

    def __init__(self, pids: dict[str, list[int]]) -> None:
        self.pids = pids
        self._begun: dict[str, float] = {}
        self._faults: dict[str, int] = {}
        self._machine = 0.0

    def start(self) -> None:
        """The interval begins."""
        self._begun = self._sums(cpu_s)
        self._faults = self._sums(page_faults)
        self._machine = machine_cpu_s()

    def read(self) -> dict[str, float]:
        """CPU seconds of each part so far; `others` is what every other process of the machine used meanwhile."""
        used = {name: total - self._begun[name] for name, total in self._sums(cpu_s).items()}
        used["others"] = machine_cpu_s() - self._machine - sum(used.values())
        return used

    def faults(self) -> dict[str, int]:
        """Pages that each part was given anew so far; unlike CPU, hardly touched by other work."""
        return {name: total - self._faults[name] for name, total in self._sums(page_faults).items()}

    def peak_rss_mb(self) -> dict[str, float]:
        """The largest resident memory (MB) that one process of each part has had since its start."""
        return {name: max(peak_rss_mb(each) for pid in pids for each in tree(pid)) for name, pids in self.pids.items()}

    def _sums(self, of: Callable[[int], float]) -> dict[str, Any]:
        return {name: sum(map(of, pids)) for name, pids in self.pids.items()}


def cpu_s(pid: int) -> float:
    """User and system seconds of a process, its children, and the children that have ended."""
    ticks = 0
    for each in tree(pid):
        fields = _stat(each)
        if fields:
            ticks += sum(map(int, fields[_UTIME : _UTIME + 4]))
    return ticks / TICKS_A_SECOND


def page_faults(pid: int) -> int:
    """Minor page faults of a process and its children since their start."""
    return sum(int(fields[_MINOR_FAULTS]) for each in tree(pid) if (fields := _stat(each)))


def peak_rss_mb(pid: int) -> float:
    """The kernel's own high-water mark of a process's resident memory."""
    with suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def machine_cpu_s() -> float:
    """CPU seconds that all processes together have used since the machine's start."""
    user, nice, system, _idle, _iowait, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS_A_SECOND


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has ended
        return []


def tree(root: int) -> Iterable[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[_PARENT]), []).append(int(name))
    left = [root]
    while left:
        pid = left.pop()
        yield pid
        left += children.get(pid, [])

"""Child processes that die with this one, ports for them, and waiting until they answer."""

import atexit
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
PROJECT_ROOT = Path(__file__).resolve().parents[2]

_CHILD = Path(__file__).with_name("child.py")
_POLL_INTERVAL_S = 0.02
_FIRST_UNPRIVILEGED_PORT = 10_000  # below it live the ports that people know by heart
_PORT_TRIES = 200


class LocalServiceError(RuntimeError):
    """A local Kafka or Redis did not start or stopped by itself; the message shows the end of its log."""


class NotInstalledError(LocalServiceError):
    """A program or jar that the local services need is not on this machine; the message says what to run."""


class ChildProcess:
    """One program run as a child, which can be stopped, killed and started again.

    It gets its own process group, so that a Ctrl-C reaches only the parent and the parent decides what ends when.
    What it prints is appended to `log_path`.
    """

    def __init__(self, name: str, argv: list[str], log_path: Path) -> None:
        self.name = name
        self.argv = argv
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. LocalServiceError if it is not running."""
        if not self.is_running:
            raise LocalServiceError(f"{self.name} is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program. Returns at once: wait for its answer with `wait_until`."""
        if self.is_running:
            raise LocalServiceError(f"{self.name} runs already")
        self._process = _spawn(self.argv, self.log_path)

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM) and don't wait. Fine if it has ended."""
        if self.is_running:
            self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """Ask the process to end and wait; after `timeout_s` seconds it is killed. Fine if it has ended."""
        if not self.is_running:
            return
        self.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once, as `kill -9` does. Fine if it has ended."""
        if self.is_running:
            self._process.kill()
            self._process.wait()

    def wait_until(self, answers: Callable[[], bool], deadline_s: float, logs: tuple[Path, ...] = ()) -> None:
        """Return when `answers()` is true.

        `deadline_s` is a point of time.monotonic(). LocalServiceError, with the end of the logs, if the process ends
        first or has not answered by then.
        """
        while not answers():
            if not self.is_running:
                raise self._failure(f"ended by itself (exit code {self._process.poll()})", logs)
            if time.monotonic() > deadline_s:
                raise self._failure("did not answer in time", logs)
            time.sleep(_POLL_INTERVAL_S)

    def _failure(self, what_happened: str, logs: tuple[Path, ...]) -> LocalServiceError:
        parts = [f"{self.name} {what_happened}."]
        parts += [f"--- end of {path}\n{text}" for path in (*logs, self.log_path) if (text := tail(path))]
        parts.append(
            "What to do: read the log above; check memory (`free -m`) and disk (`df -h`);"
            " if programs or jars are incomplete, run: make setup"
        )
        return LocalServiceError("\n".join(parts))


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a text file; empty if there is none."""
    with suppress(FileNotFoundError), path.open(errors="replace") as file:
        return "".join(deque(file, maxlen=lines)).rstrip()
    return ""


def pick_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that were free a moment ago, all different.

    The obvious way, bind to port 0, gives a port of the range that outgoing connections get theirs from. While a broker
    is down, a client that keeps reconnecting could then be given the broker's own port and hold it (it even connects
    to itself), and the broker could not come back. So ports are tried at random below that range.
    """
    sockets: list[socket.socket] = []
    try:
        for _ in range(_PORT_TRIES):
            if len(sockets) == count:
                break
            candidate = socket.socket()
            try:
                candidate.bind((HOST, random.randrange(_FIRST_UNPRIVILEGED_PORT, _first_ephemeral_port())))
                sockets.append(candidate)
            except OSError:
                candidate.close()
        if len(sockets) < count:
            raise LocalServiceError(f"no {count} free ports found on {HOST}")
        return [bound.getsockname()[1] for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def _first_ephemeral_port() -> int:
    with suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > 2 * _FIRST_UNPRIVILEGED_PORT:
            return first
    return 32_768


# --- Starting children -------------------------------------------------------------------------------------------
# The kernel ties a child's parent-death signal to the *thread* that forked it. A broker that a test restarts from
# a short-lived thread would so be killed when that thread ends. One thread that lives as long as the process forks all.

_jobs: queue.SimpleQueue[tuple[Future, list[str], Path]] = queue.SimpleQueue()
_spawner: threading.Thread | None = None
_spawner_lock = threading.Lock()
_started: set[subprocess.Popen[bytes]] = set()


def _spawn(argv: list[str], log_path: Path) -> subprocess.Popen[bytes]:
    global _spawner
    with _spawner_lock:
        if _spawner is None or not _spawner.is_alive():  # not alive: also in a fork of this process
            _spawner = threading.Thread(target=_fork_children, name="onecount-local-spawner", daemon=True)
            _spawner.start()
    result: Future[subprocess.Popen[bytes]] = Future()
    _jobs.put((result, argv, log_path))
    return result.result()


def _fork_children() -> None:
    while True:
        result, argv, log_path = _jobs.get()
        try:
            with log_path.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
            _started.difference_update([ended for ended in _started if ended.poll() is not None])
            _started.add(process)
            result.set_result(process)
        except Exception as error:  # noqa: BLE001 - handed to the caller, who waits for it
            result.set_exception(error)


@atexit.register
def _kill_what_is_left() -> None:
    """Where the kernel has no parent-death signal (macOS), at least an ordinary end leaves nothing running."""
    for process in _started:
        with suppress(ProcessLookupError):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)

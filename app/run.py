"""`onecount run`: one worker in this process, or a supervisor over several worker processes."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Event, Thread
from types import FrameType

import structlog

from app.engine.clients import KafkaClients
from app.engine.loop import Worker
from app.engine.state import StateRefused
from app.engine.store import StoreRefused
from app.observe.logs import KafkaLog, configure_logs
from app.observe.metrics import Metrics, live_s
from app.policy.load import PolicyError
from app.settings import Settings

FAILED = 1
REFUSED = 3  # the exit code of a worker that must not go on: restarting it changes nothing
GRACE_S = 45.0
STOP_TIMEOUT_S = 30.0  # a client that hangs while it closes must not outlive this; an end at once loses nothing
_RESTART_S = (0.5, 1.0, 2.0, 5.0, 10.0)
# A worker that nobody can watch does not count; one that was just stopped may still have the port, so it is tried again.
_PORTS = "workers of one host take ONECOUNT_METRICS_PORT and the ports after it, so give each role a range of its own"
_log = structlog.get_logger()


def run_worker(settings: Settings, role: str, slot: int, supervisor: int | None = None) -> int:
    """Counts in this process until SIGTERM or SIGINT; the exit code. `supervisor`: the parent's process id, without
    which it stops too."""
    configure_logs()
    if settings.pin_workers:
        pin(slot)
    name = f"{settings.worker_id}-{slot}"
    metrics = Metrics(role, name, settings.dead_letter_ratio_limit, live_s(settings.request_timeout_ms))
    kafka_log = KafkaLog(metrics.kafka_line, role=role, worker=name)
    worker = Worker(settings, role, name, metrics, KafkaClients(settings, kafka_log.logger))
    _on_stop(worker.stop.set)
    Thread(target=_end_at_last, args=(worker.stop, role, name), name="end", daemon=True).start()
    if supervisor is not None:
        Thread(target=_stop_without_parent, args=(worker.stop, supervisor), name="parent", daemon=True).start()
    if settings.metrics_port is not None:
        port = settings.metrics_port + slot if settings.metrics_port else 0
        try:
            port = metrics.serve(port)
        except OSError as error:
            _log.error("no metrics", role=role, worker=name, port=port, why=f"{error}; {_PORTS}")
            return FAILED
        _log.info("metrics", role=role, worker=name, port=port)
    _log.info("started", role=role, worker=name, **settings.model_dump(mode="json", exclude={"kafka"}))
    # the long-lived state must not be walked by every collection; batches make few cycles
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        worker.run()
    except (StateRefused, StoreRefused, PolicyError) as error:
        _log.error("refused", role=role, worker=name, why=str(error))
        return REFUSED
    _log.info("stopped", role=role, worker=name)
    return 0


def pin(slot: int) -> int:
    """Keeps this process and its threads on one of the cores that it may use, the next one for each slot; which one."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[slot % len(cores)]
    os.sched_setaffinity(0, {core})
    return core


def supervise(settings: Settings, role: str, workers: int) -> int:
    """Runs so many worker processes, restarts those that die, and stops them together; the exit code. A refused one
    ends all.
    """
    configure_logs()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True

    _on_stop(stop)
    children = {slot: _spawn(role, slot) for slot in range(workers)}
    deaths = dict.fromkeys(children, 0)
    due: dict[int, float] = {}
    code = 0
    while not stopping:
        time.sleep(0.2)
        for slot, child in children.items():
            if slot in due:
                if time.monotonic() >= due[slot]:
                    children[slot] = _spawn(role, slot)
                    del due[slot]
            elif child.poll() is not None:
                if child.returncode == REFUSED:
                    code, stopping = REFUSED, True
                    break
                wait_s = _RESTART_S[min(deaths[slot], len(_RESTART_S) - 1)]
                deaths[slot] += 1
                due[slot] = time.monotonic() + wait_s
                _log.warning("worker died, restarting", role=role, slot=slot, exit_code=child.returncode, in_s=wait_s)
    return _stop_all(list(children.values())) or code


def _spawn(role: str, slot: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app", "run", role, "--slot", str(slot), "--supervisor", str(os.getpid())]
    )


def _stop_all(children: list[subprocess.Popen[bytes]]) -> int:
    """SIGTERM to each, SIGKILL to those that do not end within the grace period; 1 if one had to be killed."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + GRACE_S
    killed = 0
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed = 1
    return killed


def _stop_without_parent(stop: Event, parent: int) -> None:
    """A worker whose supervisor was killed would go on under nobody's eyes, beside the one that replaces it."""
    while os.getppid() == parent and not stop.wait(1.0):
        pass
    stop.set()


def _end_at_last(stop: Event, role: str, name: str) -> None:
    """Ends the process where stopping takes too long, as a kill would, which every step of the engine withstands."""
    stop.wait()
    time.sleep(STOP_TIMEOUT_S)
    _log.error("stopping took too long, ended at once", role=role, worker=name, after_s=STOP_TIMEOUT_S)
    os._exit(1)


def _on_stop(stop: Callable[[], None]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)

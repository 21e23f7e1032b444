"""Worker processes and the cores that they run on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from app.run import FAILED, pin


def pinned(slot: int) -> tuple[int, set[int]]:
    return pin(slot), os.sched_getaffinity(0)


def test_each_slot_stays_on_the_next_core_that_it_may_use() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(pinned, range(len(cores) + 1), chunksize=1)
    assert found == [(cores[slot % len(cores)], {cores[slot % len(cores)]}) for slot in range(len(cores) + 1)]


def test_a_worker_whose_metrics_port_is_taken_says_so_and_does_not_count_unseen() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        first = taken.getsockname()[1] - 2  # slot 2 takes the second port after it
        ran = subprocess.run(
            [sys.executable, "-m", "app", "run", "aggregator", "--slot", "2"],
            env=os.environ | {"ONECOUNT_METRICS_PORT": str(first), "ONECOUNT_BOOTSTRAP": "127.0.0.1:1"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    (line,) = [json.loads(line) for line in ran.stderr.splitlines()]
    assert ran.returncode == FAILED
    assert (line["event"], line["port"]) == ("no metrics", first + 2)
    assert "ONECOUNT_METRICS_PORT" in line["why"]


@pytest.mark.parametrize("service", ["run", "desk"])
def test_a_service_that_is_told_to_stop_while_it_loads_ends_well(service: str) -> None:
    argv = [sys.executable, "-m", "app", service, *(["counter"] if service == "run" else [])]
    with subprocess.Popen(argv, env=os.environ | {"ONECOUNT_BOOTSTRAP": "127.0.0.1:1"}) as process:
        status = Path(f"/proc/{process.pid}/status")
        deadline_s = time.monotonic() + 20
        while not handles(status.read_text(), signal.SIGTERM):
            assert time.monotonic() < deadline_s
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def handles(status: str, number: int) -> bool:
    """Whether a process has a handler for a signal, as /proc tells."""
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)

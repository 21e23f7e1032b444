"""Worker processes and the cores that they run on."""

import json
import os
import socket
import subprocess
import sys
from multiprocessing import get_context

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

"""Worker processes and the cores that they run on."""

import os
from multiprocessing import get_context

from app.run import pin


def pinned(slot: int) -> tuple[int, set[int]]:
    return pin(slot), os.sched_getaffinity(0)


def test_each_slot_stays_on_the_next_core_that_it_may_use() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(pinned, range(len(cores) + 1), chunksize=1)
    assert found == [(cores[slot % len(cores)], {cores[slot % len(cores)]}) for slot in range(len(cores) + 1)]

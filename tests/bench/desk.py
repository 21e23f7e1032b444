"""What the desk's folds take: `python -m tests.bench.desk [LEADS] [COUNTS]` prints rows a second and bytes of memory for each.

Made-up rows, one conversion a lead and one window a count, as they lie on their topics; decoding is in the time, Kafka is not.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from app.contract.journeys import JourneyRow
from app.desk.fold import DeskFold, Input
from app.desk.leads import LeadsFold
from app.desk.published import Published
from app.desk.rollups import RollupsFold
from app.policy.model import Bounds, Policy
from tests.desk.made import (
    COUNTS,
    DESK,
    FOLLOWUPS,
    JOURNEYS,
    LEADS,
    ORDERS,
    OVERDUE,
    REFUSED,
    ROLLUPS,
    as_input,
    count,
    journey,
    key_of,
)  # fmt: skip

START_MS = 1_764_000_000_000
LATER_MS = START_MS + 30 * 86_400_000


def memory_bytes() -> int:
    """Resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def journeys(leads: int) -> Iterator[Input]:
    for number in range(leads):
        row: JourneyRow = journey(
            f"user-{number:08}-with-a-long-id", "demo_booked", f"event-{number:08}", START_MS + number
        )
        yield as_input(JOURNEYS, number, key_of(row), row)


def counts(rows: int) -> Iterator[Input]:
    """A hundred campaigns a minute: touches in half of the rows, conversions in the others."""
    for number in range(rows):
        names = (
            {"action": "purchase", "currency": "EUR", "conversions": 1, "value": 9.99}
            if number % 2
            else {"views": 900, "clicks": 20, "cost": 1.5}
        )
        key, row = count(START_MS + number // 100 * 60_000, f"campaign-{number % 100 // 2}", **names)  # type: ignore[arg-type]
        yield as_input(COUNTS, number, key, row)


def measure(name: str, fold: DeskFold, records: Iterator[Input], topics: tuple[str, ...]) -> None:
    """Takes all records in parts, so that they are not in the memory that is measured, then asks for the rows."""
    before, taken, taking_s = memory_bytes(), 0, 0.0
    while part := list(islice(records, 20_000)):
        begun_s = time.perf_counter()
        for record in part:
            fold.take(record)
        taking_s += time.perf_counter() - begun_s
        taken += len(part)
    del part
    held = memory_bytes() - before
    published, given, begun_s = Published(topics, {}), 0, time.perf_counter()
    for output in fold.rows(LATER_MS):
        value = output.value and bytes(memoryview(output.value))  # as it comes from Kafka
        published.take(Input(output.topic, 0, given, 0, output.key, value))
        given += 1
    giving_s = time.perf_counter() - begun_s
    whole = memory_bytes() - before
    print(
        f"{name}: {taken:,} rows taken at {taken / taking_s:,.0f}/s, {held / taken:,.0f} bytes each; "
        f"{given:,} rows given at {given / giving_s:,.0f}/s; with what is published {whole / taken:,.0f} bytes a row taken"
    )


def main() -> None:
    leads, rows = (int(text) for text in (sys.argv[1:] + ["200000", "1000000"][len(sys.argv) - 1 :]))
    measure(
        "leads",
        LeadsFold(JOURNEYS, FOLLOWUPS, LEADS, OVERDUE, REFUSED, DESK, ORDERS, 300_000),
        journeys(leads),
        (LEADS, OVERDUE, REFUSED),
    )
    measure("rollups", RollupsFold(COUNTS, ROLLUPS, DESK, Policy(Bounds(), ())), counts(rows), (ROLLUPS,))


if __name__ == "__main__":
    main()

"""What the desk's folds take: `python -m tests.bench.desk [LEADS] [COUNTS] [ORDERS]` prints records a second and bytes of memory
for each.

Made-up records, one conversion a lead, one window a count, and an order with two rows of its conversion, as they lie on their
topics; decoding is in the time, Kafka is not. Orders: of one day, so that all can change, and of a month under a policy by which
all but the last days can hardly change any more.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from app.contract.journeys import JourneyRow
from app.desk.fold import DeskFold, Input
from app.desk.leads import LeadsFold
from app.desk.published import Published
from app.desk.reconciliation import Reconciliation
from app.desk.returns import Returns
from app.desk.rollups import RollupsFold
from app.policy.load import parse_policy
from app.policy.model import Bounds, Policy
from tests.desk import money
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
DAY_MS = 86_400_000
YEARS_MS = 3 * 365 * DAY_MS
LATER_MS = START_MS + YEARS_MS + 30 * DAY_MS


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


def closed(leads: int) -> Iterator[Input]:
    """A lead and the purchase that closes it, evenly over three years."""
    for number in range(leads):
        for each, action in enumerate(("demo_booked", "purchase")):
            time_ms = START_MS + number * (YEARS_MS // leads) + each
            row = journey(f"user-{number:08}-with-a-long-id", action, f"event-{number:08}-{each}", time_ms)
            yield as_input(JOURNEYS, 2 * number + each, key_of(row), row)


def orders(count: int, within_ms: int) -> Iterator[Input]:
    """Orders of new and of returning customers that one platform counts, with their conversions, evenly over a time."""
    for number in range(count):
        time_ms = START_MS + number * within_ms // count
        order_id, platform = f"order-{number:010}", ("meta", "google_ads")[number % 2]
        names = (f"event-{number:08}", f"user-{number // 2:08}-with-a-long-id")
        touched = {"campaign_id": f"campaign-{number % 20}"}
        credited = money.touch(platform, touched["campaign_id"], source=f"source-{number % 5}")
        for entry in (
            money.attributed(time_ms, *names, platform, order_id=order_id, **touched),
            money.journey(
                time_ms, *names, order_id=order_id, credited=credited, customer=("new", "returning")[number % 2]
            ),
            money.order(order_id, time_ms),
        ):
            yield money.record(entry[0], number, entry[1], entry[2])


def measure_orders(make: type[Reconciliation] | type[Returns], count: int, when: str, within_ms: int) -> None:
    """What an order takes with its conversion."""
    policy, _ = parse_policy(money.DOCUMENT | {"correction_horizon": "1d", "adjustment_window": "1d"})
    fold, before = make(money.SETTINGS, policy, money.DESK), memory_bytes()
    taken, taking_s = take_all(fold, (each for each in orders(count, within_ms) if each.topic in fold.inputs))
    begun_s = time.perf_counter()
    given = sum(1 for _ in fold.rows(LATER_MS))
    giving_s = time.perf_counter() - begun_s
    print(
        f"{make.__name__}, {count:,} orders of {when}: {(memory_bytes() - before) / count:,.0f} bytes an order; "
        f"{taken:,} records taken at {taken / taking_s:,.0f}/s; {given:,} rows given in {giving_s:.1f} s"
    )


def apart(function: Callable[..., None], *arguments: object) -> None:
    """In a process of its own, whose memory holds nothing else."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()


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


def take_all(fold: DeskFold | Reconciliation | Returns, records: Iterator[Input]) -> tuple[int, float]:
    """Takes all records in parts, so that they are not in the memory that is measured; how many, and the seconds of taking them."""
    taken, taking_s = 0, 0.0
    while part := list(islice(records, 1_000)):
        begun_s = time.perf_counter()
        for record in part:
            fold.take(record)
        taking_s += time.perf_counter() - begun_s
        taken += len(part)
    return taken, taking_s


def measure(name: str, fold: DeskFold, records: Iterator[Input], topics: tuple[str, ...]) -> None:
    """Takes all records, then asks for the rows."""
    before = memory_bytes()
    taken, taking_s = take_all(fold, records)
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


def measure_leads(name: str, records: Iterator[Input]) -> None:
    """What a lead takes, with its rows."""
    fold = LeadsFold(JOURNEYS, FOLLOWUPS, LEADS, OVERDUE, REFUSED, DESK, ORDERS, 300_000, 180 * DAY_MS)
    measure(name, fold, records, (LEADS, OVERDUE, REFUSED))
    print(f"{name}: {len(fold):,} users are held")


def main() -> None:
    leads, rows, paid = (int(text) for text in (sys.argv[1:] + ["200000", "1000000", "100000"][len(sys.argv) - 1 :]))
    apart(measure_leads, "open leads", journeys(leads))
    apart(measure_leads, "closed leads of three years", closed(leads))
    fold = RollupsFold(COUNTS, ROLLUPS, DESK, Policy(Bounds(), ()), 1)
    apart(measure, "rollups", fold, counts(rows), (ROLLUPS,))
    for when, within_ms in (("a day", DAY_MS), ("a month", 30 * DAY_MS)):
        apart(measure_orders, Reconciliation, paid, when, within_ms)
        apart(measure_orders, Returns, paid, when, within_ms)


if __name__ == "__main__":
    main()

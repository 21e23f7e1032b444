"""Rollups: exact sums after any correction, in any order; where hours, days and weeks begin; what is let go."""

import random
from datetime import UTC, datetime
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.rows import CountRow
from app.desk.periods import periods_of
from app.desk.rollups import RollupsFold
from app.policy.desk import Desk
from app.policy.model import Bounds, Policy
from tests.desk import oracle
from tests.desk.made import COUNTS, DESK, ROLLUPS, Reader, as_input, count

DAY_MS = 86_400_000
POLICY = Policy(Bounds(), ())
SHORT = Policy(Bounds(correction_horizon_ms=DAY_MS, adjustment_window_ms=DAY_MS), ())
START_MS = 1_761_436_800_000  # 2025-10-26T00:00Z: the night in which Berlin's clocks go back


def desk_of(*rows: tuple[bytes, CountRow], policy: Policy = POLICY, desk: Desk = DESK) -> Reader:
    fold, reader = RollupsFold(COUNTS, ROLLUPS, desk, policy, 1), Reader((ROLLUPS,))
    for offset, (key, row) in enumerate(rows):
        fold.take(as_input(COUNTS, offset, key, row))
    assert not fold.refused
    reader.begin([fold], 0)
    return reader


def test_windows_add_up_by_hour_day_and_week_of_the_advertisers_zone() -> None:
    late = START_MS + 23 * 3_600_000 + 30 * 60_000  # 00:30 of Monday in Berlin
    rows = desk_of(
        count(START_MS, views=3, cost=0.1), count(START_MS + 60_000, views=4, cost=0.2), count(late, views=5)
    ).rows(ROLLUPS)
    found = {(row["period"], row["label"]): (row["views"], row["cost"], row["time_zone"]) for row in rows.values()}
    assert found == {
        ("hour", "2025-10-26T00Z"): (7, 0.3, "UTC"),
        ("hour", "2025-10-26T23Z"): (5, 0.0, "UTC"),
        ("day", "2025-10-26"): (7, 0.3, "Europe/Berlin"),
        ("day", "2025-10-27"): (5, 0.0, "Europe/Berlin"),
        ("week", "2025-W43"): (7, 0.3, "Europe/Berlin"),
        ("week", "2025-W44"): (5, 0.0, "Europe/Berlin"),
    }
    (day,) = [row for row in rows.values() if row["label"] == "2025-10-26"]
    assert day["period_end"] - day["period_start"] == 25 * 3_600_000


def test_a_correction_replaces_what_the_window_had_added_and_a_repeat_changes_nothing() -> None:
    key, first = count(START_MS, action="purchase", currency="EUR", conversions=2, value=99.99)
    _, second = count(START_MS, action="purchase", currency="EUR", conversions=1, value=49.5, revision=2)
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, POLICY, 1), Reader((ROLLUPS,))
    fold.take(as_input(COUNTS, 5, key, second))
    fold.take(as_input(COUNTS, 1, key, first))
    reader.read(fold.rows(0))
    assert {(row["conversions"], row["value"]) for row in reader.rows(ROLLUPS).values()} == {(1, 49.5)}
    fold.take(as_input(COUNTS, 5, key, second))
    assert list(fold.rows(0)) == []


def test_the_two_scopes_stay_apart() -> None:
    both = [count(START_MS, platform=each, action="signup", conversions=1) for each in ("meta", "all")]
    assert sorted((row["scope"], row["conversions"]) for row in desk_of(*both).rows(ROLLUPS).values()) == [
        *[("all", 1)] * 3,
        *[("platform", 1)] * 3,
    ]


def test_a_period_is_final_when_it_is_over_and_all_its_windows_are() -> None:
    key, row = count(START_MS, views=1, final=False)
    _, final = count(START_MS, views=1, final=True)
    _, elsewhere = count(START_MS + 3_600_000, "other", views=1, final=True)
    assert hour_of(desk_of((key, final))) == [False]  # others may still come
    assert hour_of(desk_of((key, final), count(START_MS + 59 * 60_000, "other", final=True))) == [True, True]
    assert hour_of(desk_of((key, row), (count(START_MS + 3_600_000, "other")[0], elsewhere))) == [False, False]
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, POLICY, 1), Reader((ROLLUPS,))
    fold.take(as_input(COUNTS, 0, key, final))
    reader.read(fold.rows(0))
    fold.take(as_input(COUNTS, 1, count(START_MS + 3_600_000, "other")[0], elsewhere))
    reader.read(fold.rows(0))  # that time has passed is told of the hour before too
    assert hour_of(reader) == [True, False]


def test_a_period_is_final_once_every_partition_has_passed_it() -> None:
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, POLICY, 3), Reader((ROLLUPS,))

    def take(partition: int, offset: int, *row: Any) -> list[bool]:
        fold.take(as_input(COUNTS, offset, *row, partition=partition))
        reader.read(fold.rows(0))
        return hour_of(reader)

    later = START_MS + 59 * 60_000
    take(0, 0, *count(START_MS, clicks=3, final=True))
    assert take(0, 1, *count(later, clicks=1, final=True)) == [False], "the others were not heard of"
    assert take(1, 0, *count(START_MS + 60_000, clicks=1, final=True)) == [False]
    assert take(1, 1, *count(START_MS + 3_600_000, final=True)) == [False, False], "the third may lack anything"
    assert take(2, 0, *count(START_MS + 120_000, clicks=1)) == [False, False]
    assert take(2, 1, *count(START_MS + 120_000, clicks=5, final=True)) == [False, False]
    assert take(2, 2, *count(START_MS + 7_200_000, final=True)) == [True, False, False]
    (row,) = [row for row in reader.rows(ROLLUPS).values() if row["period"] == "hour" and row["clicks"]]
    assert row["clicks"] == 10


def test_a_partition_that_is_months_behind_the_others_loses_no_window() -> None:
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, SHORT, 2), Reader((ROLLUPS,))
    log = [
        (0, count(START_MS, clicks=1, final=True)),
        (0, count(START_MS + 30 * DAY_MS, clicks=1, final=True)),
        (1, count(START_MS + 60_000, clicks=2, final=True)),
    ]
    for offset, (partition, row) in enumerate(log):
        fold.take(as_input(COUNTS, offset, *row, partition=partition))
        reader.read(fold.rows(0))
    assert [row["clicks"] for row in reader.rows(ROLLUPS).values() if row["label"] == "2025-10-26"] == [3]


def hour_of(reader: Reader) -> list[bool]:
    return [
        row["final"]
        for row in sorted(reader.rows(ROLLUPS).values(), key=lambda row: row["period_start"])
        if row["period"] == "hour"
    ]


def test_what_can_change_no_more_is_let_go_and_stays_published() -> None:
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, SHORT, 1), Reader((ROLLUPS,))
    fold.take(as_input(COUNTS, 0, *count(START_MS, views=1)))
    reader.begin([fold], 0)
    before = reader.rows(ROLLUPS)
    fold.take(as_input(COUNTS, 1, *count(START_MS + 30 * DAY_MS, views=1, final=True)))
    fold.take(as_input(COUNTS, 2, *count(START_MS, views=9, revision=2)))  # beyond any correction
    reader.read(fold.rows(0))
    assert set(fold._windows) == {START_MS + 30 * DAY_MS}
    assert len(fold._sums) == 3
    assert before.items() <= reader.rows(ROLLUPS).items()
    anew = RollupsFold(COUNTS, ROLLUPS, DESK, SHORT, 1)
    anew.take(as_input(COUNTS, 1, *count(START_MS + 30 * DAY_MS, views=1, final=True)))
    after = reader.rows(ROLLUPS)
    reader.begin([anew], 0)
    assert reader.rows(ROLLUPS) == after


def test_another_time_zone_takes_the_place_of_the_former_one() -> None:
    late = START_MS + 22 * 3_600_000 + 30 * 60_000  # Sunday in UTC; 22:30 in Berlin, whose day ended at 23:00 UTC
    rows = [count(START_MS - 20 * DAY_MS, clicks=1), count(late + 3_600_000, clicks=7, final=True)]
    reader = desk_of(*rows, policy=SHORT, desk=Desk())
    old = reader.rows(ROLLUPS)
    assert {row["label"] for row in old.values()} >= {"2025-10-26", "2025-W43"}
    anew = RollupsFold(COUNTS, ROLLUPS, DESK, SHORT, 1)
    for offset, (key, row) in enumerate(rows):
        anew.take(as_input(COUNTS, offset, key, row))
    reader.begin([anew], 0)
    found = {(row["period"], row["label"]): (row["time_zone"], row["clicks"]) for row in reader.rows(ROLLUPS).values()}
    assert found == {
        ("hour", "2025-10-26T23Z"): ("UTC", 7),
        ("day", "2025-10-27"): ("Europe/Berlin", 7),
        ("week", "2025-W44"): ("Europe/Berlin", 7),
    }


def test_while_one_counter_is_months_behind_another_its_windows_add_up() -> None:
    """As in a replay: of the windows that some have passed nothing is let go before all have."""
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, SHORT, 1), Reader((ROLLUPS,))
    log = [
        count(START_MS, clicks=3),
        count(START_MS + 30 * DAY_MS, clicks=1),
        count(START_MS, clicks=5, revision=2),
        count(START_MS + 60_000, clicks=1),
    ]
    for offset, (key, row) in enumerate(log):
        fold.take(as_input(COUNTS, offset, key, row))
        reader.read(fold.rows(0))
    assert [row["clicks"] for row in reader.rows(ROLLUPS).values() if row["label"] == "2025-10-26"] == [6]
    compacted = desk_of(*log[1:], policy=SHORT)
    assert compacted.rows(ROLLUPS) == reader.rows(ROLLUPS)


def test_a_desk_that_reads_old_windows_before_newer_ones_leaves_old_periods_as_they_are() -> None:
    old, other, new = (
        count(START_MS, views=1),
        count(START_MS, "other", views=2),
        count(START_MS + 30 * DAY_MS, views=3, final=True),
    )
    again = count(START_MS + 60_000, views=4)
    reader = desk_of(old, again, other, policy=SHORT)
    before = reader.rows(ROLLUPS)
    anew = RollupsFold(COUNTS, ROLLUPS, DESK, SHORT, 1)
    for offset, (key, row) in enumerate((old, new, again, other)):  # as partitions may be read one after the other
        anew.take(as_input(COUNTS, offset, key, row))
    reader.begin([anew], 0)
    assert before.items() <= reader.rows(ROLLUPS).items()
    assert len(reader.rows(ROLLUPS)) == len(before) + 3


def test_a_window_longer_than_an_hour_is_in_no_hour() -> None:
    policy = Policy(Bounds(window_ms=DAY_MS), ())
    kinds = {row["period"] for row in desk_of(count(START_MS, views=1), policy=policy).rows(ROLLUPS).values()}
    assert kinds == {"day", "week"}


def test_what_is_no_count_is_refused_and_never_raised() -> None:
    fold = RollupsFold(COUNTS, ROLLUPS, DESK, POLICY, 1)
    key, row = count(START_MS)
    two_dimensions = key.replace(b'"spring"', b'"spring","more"')
    for offset, (bad, value) in enumerate(
        [(None, row), (b"[1]", row), (b"[x,1]", row), (key, b"{}"), (key, b"no"), (two_dimensions, row), (b"[1,2]", row),
         (key.replace(b"1761436800000", b"9" * 25), row), (b'[1,"meta",["shop"],null,"",""]', row)]
    ):  # fmt: skip
        fold.take(as_input(COUNTS, offset, bad, value))
    assert sum(fold.refused.values()) == 9
    assert list(fold.rows(0)) == []


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo", "Australia/Lord_Howe", "Africa/Cairo"]
)
def test_days_and_weeks_meet_without_a_gap(zone: str) -> None:
    begin = round(
        datetime(2018, 1, 1, tzinfo=ZoneInfo(zone)).timestamp() * 1000
    )  # Sao Paulo still skips midnights then
    for step in range(0, 400 * 24 * 60, 467):
        for period, wanted in zip(
            periods_of(begin + step * 60_000, zone), oracle.periods(begin + step * 60_000, ZoneInfo(zone)), strict=True
        ):
            assert period == wanted
            assert period.start_ms <= begin + step * 60_000 < period.end_ms


steps = st.lists(
    st.tuples(
        st.integers(0, 400).map(lambda each: START_MS + each * 47 * 60_000),  # two weeks
        st.sampled_from(["spring", None]),
        st.sampled_from([("meta", "shop"), ("all", "shop"), ("meta", "far")]),
        st.sampled_from([("", ""), ("purchase", "EUR")]),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=25,
)


@given(steps, st.randoms(use_true_random=False), st.sampled_from([POLICY, SHORT]), st.sampled_from([1, 1, 2, 3]))
def test_any_order_any_repeat_and_any_cut_end_in_the_oracles_rows(
    steps: list[Any], random: random.Random, policy: Policy, partitions: int
) -> None:
    latest: dict[bytes, CountRow] = {}

    def partition_of(key: bytes) -> int:
        return crc32(key) % partitions

    records = []
    for offset, (start_ms, campaign, (platform, advertiser), (action, currency), number, final) in enumerate(steps):
        measures = {"clicks": number, "value": number / 3, "cost": number * 0.1, "final": final, "revision": offset}
        key, row = count(
            start_ms, campaign, platform=platform, advertiser=advertiser, action=action, currency=currency, **measures
        )
        row = as_final(row, latest.get(key))
        records.append(as_input(COUNTS, offset, key, row, partition_of(key)))
        latest[key] = row
    records += random.choices(records, k=5) if records else []
    random.shuffle(records)
    fold, reader = RollupsFold(COUNTS, ROLLUPS, DESK, policy, partitions), Reader((ROLLUPS,))
    reader.begin([fold], 0)
    for index, record in enumerate(records):
        fold.take(record)
        if random.random() < 0.3:
            reader.read(fold.rows(0))
        if random.random() < 0.1:
            fold = RollupsFold(COUNTS, ROLLUPS, DESK, policy, partitions)
            for again in random.sample(records[: index + 1], index + 1):
                fold.take(again)
            reader.begin([fold], 0)
    reader.read(fold.rows(0))
    placed = [(partition_of(key), row) for key, row in latest.items()]
    wanted = oracle.rollups(placed, DESK, fold._held_ms, partitions)
    found = reader.rows(ROLLUPS)
    assert {key: row for key, row in found.items() if key in wanted} == wanted
    horizon_ms = fold._horizon_ms
    assert all(row["period_start"] < horizon_ms for key, row in found.items() if key not in wanted)


def as_final(row: CountRow, before: CountRow | None) -> CountRow:
    """A row that was final once stays so."""
    return msgspec.structs.replace(row, final=row.final or (before is not None and before.final))


def test_the_oracles_calendar_is_that_of_the_standard_library() -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert oracle.periods(round(moment.timestamp() * 1000), ZoneInfo("UTC"))[2][1] == "2026-W01"

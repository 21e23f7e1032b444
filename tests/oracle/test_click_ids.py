"""The oracle finds out whatever a matcher or a counter does wrong with events that name only a click."""

import json
from typing import Any

import msgspec
import pytest

from app.contract import reasons
from app.contract.click_ids import ClickRow, UserlessRow, click_key, encode
from app.policy.model import Action, Bounds, ClickIds, Platform, Policy, Version
from app.verify.click_ids import ClickLog
from app.verify.oracle import Answer, answer
from app.verify.partition import owner_of
from app.verify.records import Record

HOUR_MS = 3_600_000
NOW_MS = 1_764_000_000_000
POLICY = Policy(
    Bounds(click_ids=ClickIds(24 * HOUR_MS, 30 * 24 * HOUR_MS)),
    (
        Version(
            1,
            0,
            {"meta": Platform("click", {"click": 7 * 24 * HOUR_MS}, {})},
            {"purchase": Action("macro", "hard", "revenue", "every", None)},
        ),
    ),
)
PARTITIONS = 2
CLICK = {"event_id": "e1", "event_type": "click", "event_time": NOW_MS, "advertiser_id": "shop", "user_id": "ann"}
CLICK |= {"platform": "meta", "campaign_id": "c", "click_id": "k1"}
LEAD: dict[str, Any] = {"event_id": "c1", "event_type": "conversion", "event_time": NOW_MS + HOUR_MS}
LEAD |= {"advertiser_id": "shop", "click_id": "k1", "conversion_name": "purchase"}
ANN = owner_of("ann", PARTITIONS, "murmur2")
KEY = click_key("shop", "k1")
HOME = owner_of(KEY.decode(), PARTITIONS, "murmur2")


def raw(event: dict[str, Any], partition: int, offset: int, **changes: Any) -> Record:
    value = json.dumps(event).encode()
    record = Record("raw", partition, offset, event["event_time"], None, value)
    return msgspec.structs.replace(record, **changes)


def told(offset: int, row: ClickRow | UserlessRow, key: bytes = KEY, partition: int = HOME) -> Record:
    return Record("clicks", partition, offset, NOW_MS, key, encode(row))


class Site:
    """What lies on the topics after one click and one conversion of it; a test changes it."""

    def __init__(self) -> None:
        self.click = raw(CLICK, ANN, 0)
        self.lead = raw(LEAD, 1 - ANN, 0)
        self.owned = ClickRow("meta", "ann", NOW_MS, "e1")
        value = (self.lead.value or b"").decode()
        self.asks = UserlessRow("", LEAD["event_time"], "raw", 1 - ANN, 0, self.lead.timestamp_ms, None, value)
        self.rows = [told(0, self.owned), told(1, self.asks)]
        with_ann = json.dumps(LEAD | {"user_id": "ann"}).encode()
        self.copy = Record("rekeyed", ANN, 0, self.lead.timestamp_ms, b"ann", with_ann, self.lead.coordinates)
        self.copies = [self.copy]
        self.more: list[Record] = []

    def answer(self) -> Answer:
        records = [self.click, self.lead, *self.copies, *self.more]
        return answer(records, POLICY, PARTITIONS, None, "rekeyed", clicks=ClickLog(self.rows, PARTITIONS))


def test_all_is_well_where_each_has_its_row_and_its_copy() -> None:
    found = Site().answer()
    assert found.faults == []
    assert (found.matched, found.waiting, found.accepted, found.produced) == (1, 0, 2, 2)
    (row,) = found.attributed.values()
    assert (row.user_id, row.status, row.touch_event_id) == ("ann", "counted", "e1")


def test_a_copy_that_is_missing_twice_of_another_user_or_elsewhere_is_told() -> None:
    def changed(**changes: Any) -> list[Record]:
        return [msgspec.structs.replace(Site().copy, **changes)]

    of_bob = json.dumps(LEAD | {"user_id": "bob"}).encode()
    worth_more = json.dumps(LEAD | {"user_id": "ann", "value": 5}).encode()
    for copies, why in (
        ([], "has no copy in rekeyed"),
        ([*changed(), *changed(offset=1)], "was copied before"),
        (changed(value=of_bob), "is not raw/"),
        (changed(value=worth_more), "is not raw/"),
        (changed(value=Site().lead.value), "is not raw/"),
        (changed(partition=1 - ANN), "or not on its owner's partition"),
        (changed(timestamp_ms=NOW_MS), "is not raw/"),
        (changed(key=b"bob"), "is not raw/"),
        (changed(source=("raw", 0, 99)), "copies raw/0/99, which is not"),
    ):
        site = Site()
        site.copies = copies
        assert any(why in fault for fault in site.answer().faults), (copies, why)


def test_a_row_that_is_missing_twice_or_of_something_else_is_told() -> None:
    site = Site()
    other = msgspec.structs.replace
    for rows, why in (
        ([told(0, site.asks)], "has 0 rows that tell whose it is, and must have 1"),
        ([told(0, site.owned), told(1, site.owned), told(2, site.asks)], "has 2 rows"),
        ([told(0, other(site.owned, user_id="bob")), told(1, site.asks)], "has 0 rows"),
        ([told(0, other(site.owned, time_ms=NOW_MS + 1)), told(1, site.asks)], "has 0 rows"),
        ([told(0, site.owned, click_key("shop", "k2")), told(1, site.asks)], "has 0 rows"),
        ([told(0, site.owned)], "names a click id and no user, and no row asks for its user"),
        ([told(0, site.owned), told(1, site.asks), told(2, site.asks)], "2 rows ask for its user"),
        ([told(0, site.owned), told(1, other(site.asks, value="{}"))], "is not the event raw/"),
        ([told(0, site.owned), told(1, site.asks, click_key("shop", "k2"))], "is not the event raw/"),
        ([told(0, site.owned), told(1, other(site.asks, offset=7))], "asks for raw/"),
        ([told(0, site.owned, partition=1 - HOME), told(1, site.asks)], "lies on another partition"),
        ([told(0, site.owned), told(1, site.asks), Record("clicks", HOME, 2, 0, KEY, b"no row")], "is no row"),
    ):
        site.rows = rows
        assert any(why in fault for fault in site.answer().faults), (rows, why, site.answer().faults)


def test_the_order_of_the_rows_decides_whose_it_is() -> None:
    site = Site()
    rival = raw(CLICK | {"event_id": "e2", "user_id": "bob"}, owner_of("bob", PARTITIONS, "murmur2"), 1)
    site.more = [rival]
    first = told(0, ClickRow("meta", "bob", NOW_MS, "e2"))
    site.rows = [first, told(1, site.owned), told(2, site.asks)]
    assert any("is not raw/" in fault for fault in site.answer().faults), "bob's click was told first"
    site.rows = [told(0, site.owned), msgspec.structs.replace(first, offset=1), told(2, site.asks)]
    assert site.answer().faults == []


@pytest.mark.parametrize(("late_ms", "reason"), [(-1, None), (0, reasons.CLICK_NOT_FOUND)])
def test_what_waited_until_park_for_has_its_letter(late_ms: int, reason: str | None) -> None:
    site = Site()
    at_ms = LEAD["event_time"] + 24 * HOUR_MS + late_ms
    other = raw(CLICK | {"event_id": "e3", "event_time": at_ms, "click_id": "k9"}, ANN, 1)
    key = next(
        key for n in range(99) if owner_of((key := click_key("shop", f"x{n}")).decode(), PARTITIONS, "murmur2") == HOME
    )
    other = raw(json.loads(other.value or b"") | {"click_id": json.loads(key)[1]}, ANN, 1)
    site.more, site.copies = [other], []
    site.click = raw({**CLICK, "click_id": None}, ANN, 0)
    site.rows = [told(0, site.asks), told(1, ClickRow("meta", "ann", at_ms, "e3"), key)]
    found = site.answer()
    assert found.faults == []
    assert found.rejected.get(site.lead.coordinates) == reason
    assert found.waiting == (reason is None)

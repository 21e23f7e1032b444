"""The desk's rows about money: whatever the order in which records come, however often they come again and wherever the desk
begins anew, the rows are those that a slow computation over all records has.
"""

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.desk.fold import DeskFold, Input
from app.desk.reconciliation import Reconciliation
from app.desk.returns import Returns
from app.policy.load import parse_policy
from app.policy.model import DAY_MS
from tests.desk.made import holds
from tests.desk.money import (
    DESK,
    DOCUMENT,
    POLICY,
    SETTINGS,
    Entry,
    at,
    attributed,
    journey,
    letter,
    numbered,
    order,
    record,
    report,
    spend,
    touch,
    touches,
)
from tests.desk.money_oracle import Rows, reconciliation, returns

# Around the end of a week in Berlin, which is not that in UTC; the end of summer time; New Year in a year with 53 weeks.
MOMENTS = [*["2026-10-25T00:30"] * 3, "2026-10-25T22:59:59", "2026-10-25T23:00", "2026-12-31T23:00", "2027-01-03T22:59"]
DAYS = [*["2026-10-25"] * 3, "2026-10-26", "2027-01-01", "2027-01-03"]
moments = st.sampled_from([at(text) for text in MOMENTS])
days = st.sampled_from(DAYS)
users = st.sampled_from(["u1", "u1", "u2"])
events = st.sampled_from(["c1", "c2"])
platforms = st.sampled_from(["meta", "meta", "google_ads"])
campaigns = st.sampled_from([None, "spring"])
actions = st.sampled_from(["purchase", "purchase", "purchase", "signup"])
orders = st.sampled_from([None, "", "o1", "o1", "o1", "o2"])
currencies = st.sampled_from(["EUR", "EUR", "USD", None])
statuses = st.sampled_from(["counted", "counted", "unattributed", "uncounted", "duplicate", "retracted"])
amounts = st.sampled_from([0.0, 0.1, 0.2, 10.0, 1e9])
advertisers = st.sampled_from([*["shop"] * 7, "other"])
conversions = {
    "event_id": events, "user": users, "status": statuses, "conversion_name": actions, "order_id": orders,
    "value": amounts, "currency": currencies, "advertiser_id": advertisers,
}  # fmt: skip


def entries(make: Callable[..., Entry], *positional: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]) -> Any:
    """Records that the function makes; one in eight deletes its key, or is no record of its topic."""

    def spoilt(entry: Entry, spoil: int) -> Entry:
        topic, key, _value = entry
        spoilt_values = [None, b'{"broken": true}', b"no json"]
        return (topic, key, spoilt_values[spoil]) if spoil < len(spoilt_values) else entry

    return st.builds(spoilt, st.builds(make, *positional, **named), st.integers(0, 23))


claims = entries(
    attributed,
    moments,
    platform=st.sampled_from(["meta", "meta", "google_ads", ""]),
    campaign_id=campaigns,
    **conversions,
)
origins = st.builds(
    touch,
    platforms,
    campaigns,
    source=st.sampled_from([None, "news", "search"]),
    landing_page=st.sampled_from([None, "/a", "/b"]),
)
kinds = st.builds(touch, platforms, campaigns, touch_type=st.sampled_from(["click", "view", "engaged_view"]))
truths = entries(
    journey,
    moments,
    credited=st.one_of(st.none(), origins),
    first_touch=st.one_of(st.none(), kinds, kinds),
    touches=st.one_of(st.just([]), st.just([]), st.lists(kinds, max_size=2)),
    customer=st.sampled_from([None, "new", "returning"]),
    action_class=st.sampled_from(["macro", "micro"]),
    **conversions,
)
paid = entries(
    order,
    st.sampled_from(["o1", "o1", "o2", "o3"]),
    moments,
    amounts,
    amounts,
    user_id=st.sampled_from([None, "u2"]),
    currency=st.sampled_from(["EUR", "USD"]),
    advertiser_id=advertisers,
)
reports = entries(
    report,
    days,
    st.sampled_from([0, 1, 2, 2.5]),
    st.sampled_from(["meta", "meta", "google_ads", "metta"]),
    campaigns,
    value=amounts,
    currency=st.sampled_from(["EUR", "USD"]),
    conversion_name=st.sampled_from([None, "purchase", "scroll"]),
)
valueless = entries(report, days, st.sampled_from([0, 1, 2]), platforms, campaigns)
letters = st.builds(
    letter, st.sampled_from(["too_old", "beyond_correction_horizon", "unknown_platform"]), moments, event_id=events,
    user=users, conversion_name=st.sampled_from(["purchase", "scroll"]), order_id=orders, platform=st.sampled_from(["meta", "meta", None, "metta", "all"]),
)  # fmt: skip
spent = entries(
    spend,
    days,
    amounts,
    platforms,
    campaigns,
    source=st.sampled_from([None, None, "news"]),
    currency=st.sampled_from(["EUR", "USD"]),
)
seen = entries(
    touches,
    moments,
    st.sampled_from(["meta", "meta", "google_ads", "all"]),
    campaigns,
    clicks=st.integers(0, 3),
    views=st.integers(0, 3),
    cost=amounts,
    dimensions=st.fixed_dictionaries(
        {"source": st.sampled_from([None, "news", "search"]), "landing_page": st.sampled_from([None, "/a"])}
    ),
    conversion_name=st.sampled_from(["", "", "", "purchase"]),
)
FOLDS: dict[str, tuple[Callable[[], DeskFold], Callable[[list[Input]], Rows], Any]] = {
    "reconciliation": (
        lambda: Reconciliation(SETTINGS, POLICY, DESK),
        reconciliation,
        st.one_of(claims, claims, truths, truths, paid, reports, valueless, letters),
    ),
    "returns": (lambda: Returns(SETTINGS, POLICY, DESK), returns, st.one_of(truths, spent, seen, seen)),
}


def published(fold: DeskFold, records: list[Input], pauses: set[int]) -> dict[bytes, Any]:
    """What lies on the output topic after the records, rows being given out at the pauses and at the end."""
    there: dict[bytes, Any] = {}
    for number, each in enumerate([*records, None]):
        if number in pauses or each is None:
            for row in fold.rows(number):
                if row.topic != fold.outputs[0]:
                    continue
                if row.value is None:
                    del there[row.key]  # nothing is deleted that is not there
                else:
                    assert there.get(row.key) != row.value, "nothing is given out twice"
                    there[row.key] = row.value
        if each is not None:
            fold.take(each)
    return {key: json.loads(value) for key, value in there.items()}


def compacted(records: list[Input]) -> list[Input]:
    """What Kafka's compaction leaves of the upsert topics: of each key the last record, and no deletions."""
    last = {
        (each.topic, each.offset if each.topic == SETTINGS.dlq_topic else each.key): each
        for each in sorted(records, key=lambda each: each.offset)
    }
    return sorted((each for each in last.values() if each.value is not None), key=lambda each: each.offset)


@pytest.mark.parametrize("name", FOLDS)
def test_rows_are_those_of_the_oracle_whatever_the_order_the_repeats_and_the_restarts(name: str) -> None:
    make, oracle, one = FOLDS[name]

    @settings(max_examples=settings.default.max_examples // 2)
    @given(
        st.lists(one, min_size=4, max_size=18),
        st.randoms(use_true_random=False),
        st.sets(st.integers(0, 30), max_size=4),
    )
    def check(made: list[Entry], chance: random.Random, pauses: set[int]) -> None:
        records = numbered(made)
        expected = oracle(records)
        assert published(make(), records, set()) == expected
        shuffled = [*records, *(chance.choice(records) for _ in records[::2])]
        chance.shuffle(shuffled)
        assert published(make(), shuffled, pauses) == expected
        assert published(make(), compacted(records), set()) == expected

    check()


# --- What is over is packed, and nothing is lost by it

LOG_POLICY, _ = parse_policy(
    {key: value for key, value in DOCUMENT.items() if key != "desk"}
    | {"correction_horizon": "1d", "adjustment_window": "1d"}
)
BEGIN_MS = at("2026-10-01T12:00")
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["convert", "convert", "convert", "change", "order", "refund", "forget", "again", "again", "letter", "rows"]
        ),
        st.integers(0, 3),  # the user
        st.sampled_from([None, "o1", "o2"]),
        st.sampled_from(["purchase", "signup"]),
        st.sampled_from(["counted", "unattributed", "retracted"]),
        st.sampled_from([0, 5, 30, 100]),  # hours until the next step
        st.integers(0, 50),
    ),
    min_size=6,
    max_size=30,
)


def log_of(made: list[Any]) -> tuple[list[Input], set[int]]:
    """What counters, a shop and platforms write: times go on, a row changes within two days, an order and a forget come at any
    time, and so does an event id that was used before. And after which records rows are asked for.
    """
    records: list[Input] = []
    pauses: set[int] = set()
    now_ms = BEGIN_MS
    rows: list[tuple[int, dict[str, Any]]] = []  # conversions and their times
    used: list[dict[str, Any]] = []  # what was ever written of conversions

    def write(*entries: Entry) -> None:
        records.extend(
            record(topic, len(records) + number, key, value) for number, (topic, key, value) in enumerate(entries)
        )

    def rows_of(time_ms: int, fields: dict[str, Any]) -> list[Entry]:
        platform = fields["platform"]
        common = {name: fields[name] for name in ("status", "order_id", "conversion_name", "value")}
        claim = attributed(time_ms, fields["event_id"], fields["user"], platform, **common)
        near = touch("meta", "fall") if fields["number"] % 3 == 0 else None
        return [
            claim,
            journey(
                time_ms, fields["event_id"], fields["user"], first_touch=near, customer=fields["customer"], **common
            ),
        ]

    for number, (what, user, order_id, action, status, hours, chance) in enumerate(made):
        if what == "convert":
            fields = {
                "user": f"u{user}", "event_id": f"c{number}", "order_id": order_id, "conversion_name": action, "status": status,
                "value": float(number), "platform": ("meta", "google_ads")[chance % 2], "number": number,
                "customer": "new" if action == "purchase" else None,
            }  # fmt: skip
            used.append(fields)
            rows.append((now_ms, fields))
            write(*rows_of(now_ms, fields))
        elif what == "again":
            if used:
                former = used[chance % len(used)]
                rows = [each for each in rows if each[1] is not former]
                fields = former | {"order_id": order_id, "status": status, "value": float(number)}
                used[chance % len(used)] = fields
                rows.append((now_ms, fields))
                write(*rows_of(now_ms, fields))
        elif what == "change":
            able = [each for each in rows if now_ms - each[0] <= 2 * DAY_MS]
            if able:
                time_ms, fields = able[chance % len(able)]
                fields |= {"status": status, "value": 100.0 + number}
                write(*rows_of(time_ms, fields))
        elif what in ("order", "refund"):
            write(order(order_id or "o3", BEGIN_MS + 3_600_000 * (chance % 30), 20.0, 5.0 if what == "refund" else 0.0))
        elif what == "letter":
            write(letter("too_old", now_ms - 3_600_000 * chance, f"c{chance % 12}", f"u{user}", order_id=order_id))
        elif what == "forget":
            for time_ms, fields in [each for each in rows if each[1]["user"] == f"u{user}"]:
                rows.remove((time_ms, fields))
                write(*((topic, key, None) for topic, key, _ in rows_of(time_ms, fields)))
        else:
            pauses.add(len(records))
        now_ms += 3_600_000 * hours
    return records, pauses


@pytest.mark.parametrize("name", FOLDS)
def test_what_is_packed_changes_no_row_whatever_comes_later(name: str) -> None:
    _, oracle, _ = FOLDS[name]
    make: Callable[[], Any] = {
        "reconciliation": lambda: Reconciliation(SETTINGS, LOG_POLICY, DESK),
        "returns": lambda: Returns(SETTINGS, LOG_POLICY, DESK),
    }[name]
    most_packed = 0

    @settings(max_examples=settings.default.max_examples // 4)
    @given(steps)
    def check(made: list[Any]) -> None:
        nonlocal most_packed
        log, pauses = log_of(made)
        records = [each for each in log if each.topic in make().inputs]
        expected = oracle(records)
        fold = make()
        assert published(fold, records, pauses) == expected
        most_packed = max(most_packed, len(fold._packed))
        for order_of in (lambda each: each.topic, lambda each: each.topic != SETTINGS.attributed_topic):
            again = make()  # a desk that begins: topics come one after the other, each in its order
            assert published(again, sorted(records, key=order_of), set()) == expected

    check()
    assert most_packed > 1, "so much is tried that something is packed"


@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([0, 7, 40, 400]), st.integers(0, 48), st.integers(0, 9)),
        min_size=4,
        max_size=30,
    ),
    st.sets(st.integers(0, 30), max_size=4),
)
def test_windows_add_up_however_far_apart_two_counters_are(made: list[Any], pauses: set[int]) -> None:
    """Each changes windows of up to two days behind its own time; once both have passed a window it is written as final, the
    oldest ones first.
    """
    times_ms = [BEGIN_MS, BEGIN_MS]
    latest: dict[bytes | None, Any] = {}
    log: list[Entry] = []
    for counter, hours, behind, clicks in made:
        times_ms[counter] += hours * 3_600_000
        topic, key, row = touches(
            times_ms[counter] - behind * 3_600_000, clicks=clicks, cost=float(clicks), final=False
        )
        latest[key] = row
        for each, held in sorted(latest.items(), key=lambda item: item[1].window_start):
            if not held.final and held.window_end <= min(times_ms):
                latest[each] = msgspec.structs.replace(held, final=True)
                log.append((topic, each, latest[each]))
            elif each == key:
                log.append((topic, key, row))
    records = numbered(log)
    expected = returns(records)
    assert published(Returns(SETTINGS, LOG_POLICY, DESK), records, pauses) == expected
    assert published(Returns(SETTINGS, LOG_POLICY, DESK), compacted(records), set()) == expected


def test_of_a_person_who_is_forgotten_nothing_is_held_any_more() -> None:
    for make in (Reconciliation, Returns):
        for is_active in (True, False):
            fold = make(SETTINGS, LOG_POLICY, DESK)
            somebodys = [
                each
                for number, order_id in enumerate((None, "o1"))
                for each in (
                    attributed(BEGIN_MS + number, f"private{number}", "somebody", order_id=order_id),
                    journey(BEGIN_MS + number, f"private{number}", "somebody", order_id=order_id),
                )
            ]
            later = [
                each
                for day in range(1, 12)
                for each in (
                    attributed(BEGIN_MS + day * DAY_MS, f"c{day}", "other"),
                    journey(BEGIN_MS + day * DAY_MS, f"c{day}", "other"),
                )
            ]
            gone = [(topic, key, None) for topic, key, _ in somebodys]
            end = [entry(BEGIN_MS + 30 * DAY_MS, "last", "other") for entry in (attributed, journey)]
            for recent in ([], later):  # forgotten while it could change, and once it is packed
                for each in numbered([*somebodys, *recent]):
                    if each.topic in fold.inputs:
                        fold.take(each)
                        if is_active:
                            list(fold.rows(0))
                assert holds(fold.__dict__, "somebody")
                for number, (topic, key, value) in enumerate([*gone, *end]):
                    if topic in fold.inputs:
                        fold.take(record(topic, 1000 + number, key, value))
                if is_active:
                    list(fold.rows(0))
                assert not holds(fold.__dict__, "somebody"), (make, is_active, recent)
                assert not holds(fold.__dict__, "private")
                assert holds(fold.__dict__, "other")
                fold = make(SETTINGS, LOG_POLICY, DESK)

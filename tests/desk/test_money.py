"""The desk's rows about money: whatever the order in which records come, however often they come again and wherever the desk
begins anew, the rows are those that a slow computation over all records has.
"""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.desk.fold import DeskFold, Input
from app.desk.reconciliation import Reconciliation
from app.desk.returns import Returns
from tests.desk.money import (
    DESK,
    POLICY,
    SETTINGS,
    Entry,
    at,
    attributed,
    journey,
    letter,
    numbered,
    order,
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
truths = entries(
    journey,
    moments,
    credited=st.one_of(st.none(), origins),
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
    user=users, conversion_name=st.sampled_from(["purchase", "scroll"]), order_id=orders, platform=st.sampled_from(["meta", None]),
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
    for number, record in enumerate([*records, None]):
        if number in pauses or record is None:
            for row in fold.rows(number):
                if row.topic != fold.outputs[0]:
                    continue
                if row.value is None:
                    del there[row.key]  # nothing is deleted that is not there
                else:
                    assert there.get(row.key) != row.value, "nothing is given out twice"
                    there[row.key] = row.value
        if record is not None:
            fold.take(record)
    return {key: json.loads(value) for key, value in there.items()}


def compacted(records: list[Input]) -> list[Input]:
    """What Kafka's compaction leaves of the upsert topics: of each key the last record, and no deletions."""
    last = {
        (each.topic, each.offset if each.topic == SETTINGS.dlq_topic else each.key): each
        for each in sorted(records, key=lambda each: each.offset)
    }
    return [each for each in last.values() if each.value is not None]


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

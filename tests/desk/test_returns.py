"""What came back for what was spent, case by case."""

from typing import Any

import orjson
import pytest

from app.contract.money import ReturnMoney, ReturnRow, decode_return
from app.desk.earnings import NOWHERE, shared
from app.desk.returns import Returns
from app.policy.model import Policy
from tests.desk.money import (
    DESK,
    DOCUMENT,
    POLICY,
    SETTINGS,
    Entry,
    at,
    followed_by,
    journey,
    numbered,
    spend,
    touch,
    touches,
)

Found = dict[tuple[str, str, str | None, str | None], ReturnRow]
DAY = "2026-11-16"
NOON = "2026-11-16T12:00"


class Books:
    """A fold, and what lies on its output topic."""

    def __init__(self, *entries: Entry, policy: Policy = POLICY) -> None:
        self.fold = Returns(SETTINGS, policy, DESK)
        self.there: dict[bytes, bytes] = {}
        self.letters: list[Any] = []
        self.count = 0
        self.add(*entries)

    def add(self, *entries: Entry) -> Found:
        """Takes further records; the rows after them by period, level, platform and value."""
        for each in numbered(entries):
            self.fold.take(each._replace(offset=each.offset + self.count))
        self.count += len(entries)
        for output in self.fold.rows(0):
            if output.topic == SETTINGS.desk_dlq_topic:
                self.letters.append(orjson.loads(output.value or b"null"))
            elif output.value is None:
                del self.there[output.key]
            else:
                self.there[output.key] = output.value
        return self.rows

    @property
    def rows(self) -> Found:
        """All rows."""
        found = [decode_return(value) for value in self.there.values()]
        return {(row.period, row.level, row.platform, row.value): row for row in found}


TOTAL = (DAY, "total", None, None)


def money(row: ReturnRow, currency: str = "EUR") -> ReturnMoney:
    """The amounts in one currency."""
    return next(each for each in row.money if each.currency == currency)


def test_what_a_conversion_costs_is_what_its_touches_cost_where_nobody_told_of_spend() -> None:
    rows = Books(
        touches("2026-11-16T10:00", clicks=4, cost=8.0),
        touches("2026-11-16T11:00", clicks=1, cost=2.0, dimensions={"source": "news"}),
        journey(NOON, "c1", value=30.0),
        journey(NOON, "c2", "u2", value=20.0),
    ).rows
    row = rows[DAY, "campaign", "meta", "spring"]
    assert (row.clicks, row.conversions, money(row).cost, money(row).spend, money(row).value) == (5, 2, 10, 0, 50)
    assert (money(row).cost_per_conversion, money(row).roas) == (5, 5)
    assert {period for period, *_ in rows} == {DAY, "2026-W47", "to_date"}
    assert money(rows[DAY, "source", None, "news"]).cost == 2


def test_spend_takes_the_place_of_what_the_touches_of_its_campaign_say() -> None:
    books = Books(
        touches("2026-11-16T10:00", clicks=1, cost=8.0),
        touches("2026-11-16T10:00", campaign="fall", clicks=1, cost=5.0),
        touches("2026-11-17T10:00", clicks=1, cost=1.0),
        spend(DAY, 12.5),
    )
    rows = books.rows
    assert money(rows[DAY, "campaign", "meta", "spring"]).cost == 12.5
    assert money(rows[DAY, "campaign", "meta", "fall"]).cost == 5
    assert (money(rows["2026-W47", "total", None, None]).cost, money(rows["2026-W47", "total", None, None]).spend) == (
        18.5,
        12.5,
    )
    rows = books.add(spend(DAY, 30.0, campaign=None))  # the platform's whole day, besides
    assert money(rows[DAY, "platform", "meta", None]).cost == 42.5
    books.add(*((SETTINGS.spend_topic, entry[1], None) for entry in (spend(DAY, 0), spend(DAY, 0, campaign=None))))
    assert money(books.rows[TOTAL]).cost == 13, "the touches' own again"


def test_spend_is_shared_among_its_touches_by_clicks_and_adds_up_at_every_level() -> None:
    rows = Books(
        touches("2026-11-16T10:00", clicks=2, dimensions={"source": "news", "landing_page": "/a"}),
        touches("2026-11-16T10:01", clicks=1, dimensions={"source": "search", "landing_page": "/a"}),
        touches("2026-11-16T10:02", clicks=0, views=9, dimensions={"source": "search", "landing_page": "/b"}),
        spend(DAY, 10.0),
        spend(DAY, 6.0, source="search"),
    ).rows
    assert money(rows[DAY, "source", None, "news"]).cost == 6.666667
    assert money(rows[DAY, "source", None, "search"]).cost == 9.333333
    assert money(rows[DAY, "landing_page", None, "/a"]).cost == 16
    assert rows[DAY, "landing_page", None, "/b"].money == []
    assert money(rows[TOTAL]).cost == 16
    assert (rows[DAY, "source", None, "search"].views, money(rows[DAY, "source", None, "search"]).share_of_cost) == (
        9,
        9.333333 / 16,
    )


def test_spend_without_a_click_is_told_under_what_it_names() -> None:
    rows = Books(spend(DAY, 10.0, source="news")).rows
    assert money(rows[DAY, "campaign", "meta", "spring"]).cost == 10
    assert money(rows[DAY, "source", None, "news"]).cost == 10
    assert money(rows[DAY, "creative", None, None]).cost == 10


def test_what_was_spent_on_a_platform_stays_when_the_policy_drops_it() -> None:
    without = followed_by(DOCUMENT | {"platforms": {"meta": DOCUMENT["platforms"]["meta"]}}, at("2026-12-01T00:00"))
    books = Books(spend(DAY, 10.0, platform="google_ads", campaign="brand"), policy=without)
    assert (money(books.rows[TOTAL]).cost, books.letters) == (10, [])


def test_of_equal_remainders_the_first_in_order_has_the_last_millionth() -> None:
    first, second, third = (NOWHERE._replace(source=name) for name in (None, "a", "b"))
    assert shared(100, {third: 1, second: 1, first: 1}) == {first: 34, second: 33, third: 33}
    assert shared(100, {third: 2, second: 1, first: 3}) == {first: 50, second: 17, third: 33}
    assert shared(0, {first: 1, second: 2}) == {first: 0, second: 0}


def test_first_orders_are_told_from_repeats_and_leads_from_both() -> None:
    rows = Books(
        spend(DAY, 30.0),
        journey(NOON, "c1", "u1", customer="new", value=40.0),
        journey(NOON, "c2", "u1", customer="returning", value=10.0),
        journey(NOON, "c3", "u2", customer="new", value=50.0, status="unattributed", credited=None),
        journey(NOON, "s1", "u3", conversion_name="signup", action_class="micro", value=0.0),
        journey(NOON, "s2", "u3", conversion_name="signup", action_class="micro", value=0.0, status="uncounted"),
        journey(NOON, "s3", "u4", conversion_name="signup", action_class="micro", value=0.0, status="retracted"),
    ).rows
    row = rows[TOTAL]
    assert (row.conversions, row.macro, row.micro, row.leads, row.new_customers, row.returning_orders) == (
        3,
        2,
        1,
        1,
        2,
        1,
    )
    assert (money(row).value, money(row).new_value) == (50, 40), "what no touch earns is no return on any"
    assert (money(row).cost_per_conversion, money(row).cost_per_lead, money(row).cost_per_new_customer) == (10, 30, 15)
    assert rows[DAY, "platform", None, None].new_customers == 1


def test_micro_actions_that_led_to_a_macro_one_are_told_where_they_were_earned() -> None:
    news, search = touch(source="news"), touch(source="search")
    micro = {"conversion_name": "signup", "action_class": "micro"}
    books = Books(
        journey("2026-11-16T10:00", "s1", "u1", credited=news, **micro),
        journey("2026-11-16T10:00", "s2", "u2", credited=news, **micro),
        journey("2026-12-24T10:00", "c1", "u1", credited=search),
        journey("2026-11-15T10:00", "c2", "u2", credited=search),  # before the signup
    )
    row = books.rows[DAY, "source", None, "news"]
    assert (row.micro_users, row.micro_to_macro_users, row.micro_to_macro) == (2, 1, 0.5)
    assert books.rows["2026-12-24", "source", None, "search"].micro_to_macro is None
    row = books.add(journey("2026-12-24T10:00", "c1", "u1", status="retracted"))[DAY, "source", None, "news"]
    assert row.micro_to_macro == 0


def test_the_shares_of_sources_are_of_the_whole_and_follow_it() -> None:
    news, lead = touch(source="news"), {"conversion_name": "signup", "action_class": "micro"}
    books = Books(
        journey(NOON, "s1", "u1", credited=news, **lead),
        journey(NOON, "c1", "u1", customer="new", credited=news),
    )
    row = books.rows[DAY, "source", None, "news"]
    assert (row.share_of_leads, row.share_of_new_customers) == (1, 1)
    rows = books.add(*(journey(NOON, f"s{number}", f"u{number}", credited=None, **lead) for number in (2, 3, 4)))
    assert rows[DAY, "source", None, "news"].share_of_leads == 0.25
    assert rows[DAY, "source", None, None].share_of_leads == 0.75, "nobody's ads"
    assert rows[TOTAL].share_of_leads is None
    assert rows["to_date", "source", None, "news"].share_of_leads == 0.25


def test_two_currencies_are_never_added_up() -> None:
    row = Books(
        spend(DAY, 10.0),
        spend(DAY, 30.0, campaign="fall", currency="USD"),
        journey(NOON, "c1", value=20.0),
        journey(NOON, "c2", "u2", value=90.0, currency="USD", credited=touch(campaign="fall")),
    ).rows[TOTAL]
    assert {each.currency: (each.cost, each.value, each.roas) for each in row.money} == {
        "EUR": (10, 20, 2),
        "USD": (30, 90, 3),
    }
    assert {each.cost_per_conversion for each in row.money} == {None}


def test_what_touches_cost_has_the_currency_that_the_policy_says_or_none() -> None:
    rows = Books(
        touches(NOON, cost=2.0),
        touches(NOON, cost=3.0, advertiser_id="other"),
        journey(NOON, value=6.0, advertiser_id="other"),
    )
    found = {
        orjson.loads(key)[0]: decode_return(value)
        for key, value in rows.there.items()
        if b'"total"' in key and b"W47" in key
    }
    assert money(found["shop"]).cost == 2
    assert (money(found["other"], "").cost, money(found["other"], "").roas) == (3, None)
    assert money(found["other"]).roas is None


def test_counts_of_conversions_cost_nothing() -> None:
    books = Books(touches(NOON, conversion_name="purchase", currency="EUR"), touches(NOON, platform="all"))
    assert (books.rows, books.fold.refused) == ({}, {})


def test_windows_that_cannot_change_any_more_are_held_no_longer_and_count_once() -> None:
    day_ms, held = 86_400_000, POLICY.count_retention_ms() // 86_400_000 + 1
    many = [touches(number * day_ms, clicks=1, cost=1.0) for number in range(1, 400)]
    books = Books(*many)
    assert len(books.fold._windows) == held + 1
    assert money(books.rows["to_date", "total", None, None]).cost == 399
    books.count = 0
    assert books.add(*many)["to_date", "total", None, None].clicks == 399, "the whole topic once more"
    books.count = 400
    assert books.add(touches(350 * day_ms, clicks=5))["to_date", "total", None, None].clicks == 399 + 4, "a late click"


def test_a_window_that_a_slow_counter_corrects_after_months_counts_once() -> None:
    """As in a replay: one counter has come to November while another one is in July."""
    july, november = (
        touches(f"2026-{month:02}-01T12:00", clicks=clicks, cost=float(clicks), revision=clicks, final=False)
        for month, clicks in ((7, 3), (11, 1))
    )
    again = touches("2026-07-01T12:00", clicks=5, cost=5.0, revision=2, final=False)
    assert POLICY.count_retention_ms() < at("2026-11-01T12:00") - at("2026-07-01T12:00")
    live = Books(july, november)
    live.add(again)
    compacted = Books(november, again)
    assert live.there == compacted.there
    total = live.rows["to_date", "total", None, None]
    assert (total.clicks, money(total).cost) == (6, 6)


def test_nonsense_from_the_far_future_settles_nothing() -> None:
    books = Books(touches("2026-07-01T12:00", clicks=3), touches(10**18, clicks=1))
    assert books.add(touches("2026-07-01T12:00", clicks=5))["to_date", "total", None, None].clicks == 5


@pytest.mark.parametrize(
    ("entry", "reason", "field"),
    [
        (spend(DAY, -1), "invalid_field", "amount"),
        (spend("2026-13-01", 1), "invalid_field", "day"),
        (spend(DAY, 1, platform="metta"), "unknown_platform", "platform"),
        (spend(DAY, 1, source="a\nb"), "invalid_field", "source"),
        ((SETTINGS.spend_topic, None, b"{}"), "key_mismatch", ""),
        ((SETTINGS.spend_topic, b"[]", spend(DAY, 1)[2]), "key_mismatch", ""),
        ((SETTINGS.counts_topic, touches(NOON)[1], b"{}"), "invalid_field", ""),
        ((SETTINGS.counts_topic, b"k", touches(NOON)[2]), "key_mismatch", ""),
        (touches(NOON, cost=1e300), "invalid_field", "cost"),
        (touches(10**18), "invalid_time", "event_time"),
        (journey(-(10**12)), "invalid_time", "event_time"),
        (journey(NOON, value=1e200), "invalid_field", "value"),
        (journey(NOON, status="half"), "invalid_field", "status"),
    ],
)
def test_a_record_that_breaks_its_contract_is_counted_and_named_and_stops_nothing(
    entry: Entry, reason: str, field: str
) -> None:
    books = Books(entry, journey(NOON, "c9"))
    assert books.fold.refused == {(entry[0], reason): 1}
    (named,) = books.letters
    assert (named["reason"], named["field"], named["topic"], named["offset"]) == (reason, field, entry[0], 0)
    assert books.rows[TOTAL].conversions == 1

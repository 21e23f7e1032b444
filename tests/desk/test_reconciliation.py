"""The revenue check, case by case, as the books would have it."""

import base64
from typing import Any

import orjson
import pytest

from app.contract.money import ReconciliationRow, decode_reconciliation
from app.desk.reconciliation import Reconciliation
from app.policy.load import parse_desk
from app.policy.model import Policy
from tests.desk.money import (
    DESK,
    DOCUMENT,
    POLICY,
    SETTINGS,
    Entry,
    at,
    attributed,
    conversion,
    followed_by,
    journey,
    letter,
    numbered,
    order,
    record,
    report,
    touch,
)

Found = dict[tuple[str, str, str | None], ReconciliationRow]
WHOLE_WEEK = [f"2026-11-{day}" for day in range(16, 23)]


class Books:
    """A fold, and what lies on its output topic."""

    def __init__(self, *entries: Entry, desk: Any = DESK, policy: Policy = POLICY) -> None:
        self.fold = Reconciliation(SETTINGS, policy, desk)
        self.there: dict[bytes, bytes] = {}
        self.letters: dict[bytes, Any] = {}
        self.count = 0
        self.add(*entries)

    def add(self, *entries: Entry) -> Found:
        """Takes further records; the rows after them by period, platform and campaign."""
        for each in numbered(entries):
            self.fold.take(each._replace(offset=each.offset + self.count))
        self.count += len(entries)
        for output in self.fold.rows(0):
            if output.topic == SETTINGS.desk_dlq_topic:
                self.letters[output.key] = orjson.loads(output.value or b"null")
            elif output.value is None:
                del self.there[output.key]
            else:
                self.there[output.key] = output.value
        return self.rows

    @property
    def rows(self) -> Found:
        """All rows."""
        found = [decode_reconciliation(value) for value in self.there.values()]
        return {(row.period, row.platform, row.campaign_id): row for row in found}


def claims(day: str, count: float, **fields: Any) -> Entry:
    """What meta claims of a day, worth 10 EUR each."""
    return report(day, count, **({"value": count * 10.0, "currency": "EUR"} | fields))


def amounts(row: ReconciliationRow, *names: str) -> dict[str, tuple[float | None, ...]]:
    """Some amounts by currency."""
    return {each.currency: tuple(getattr(each, name) for name in names) for each in row.money}


# --- A week as it should be


def test_a_week_in_which_all_agree() -> None:
    books = Books(
        *conversion("2026-11-16T12:00", "c1", "u1", order_id="o1"),
        *conversion("2026-11-18T12:00", "c2", "u2", order_id="o2"),
        order("o1", "2026-11-16T12:00"),
        order("o2", "2026-11-18T12:00"),
        *(claims(day, int(day in ("2026-11-16", "2026-11-18"))) for day in WHOLE_WEEK),
    )
    row = books.rows["2026-W47", "meta", "spring"]
    assert (row.from_day, row.to_day, row.time_zone) == ("2026-11-16", "2026-11-22", "Europe/Berlin")
    assert (row.reported, row.counted, row.compared, row.deduplicated, row.orders) == (2, 2, 2, 2, 2)
    assert (row.difference, row.ratio, row.unexplained, row.complete, row.within_tolerance) == (0, 1, 0, True, True)
    assert amounts(row, "reported", "counted", "paid", "net") == {"EUR": (20, 20, 20, 20)}
    whole = books.rows["2026-W47", "all", None]
    assert (whole.reported, whole.deduplicated, whole.orders, whole.orders_without_conversion) == (2, 2, 2, 0)
    assert (whole.scope, whole.tolerance, whole.within_tolerance, whole.complete) == ("all", None, None, True)
    assert books.rows["to_date", "meta", None].reported == 2
    assert books.fold.differences() == {"meta": (0.0, 0.1), "google_ads": (0.0, 0.05)}


def test_an_order_that_two_platforms_claim_is_one_real_one() -> None:
    books = Books(
        *conversion("2026-11-16T12:00", order_id="o1", counted_by=["google_ads", "meta"]),
        attributed("2026-11-16T12:00", platform="google_ads", order_id="o1", campaign_id="brand"),
        order("o1", "2026-11-16T12:00"),
    )
    whole = books.rows["2026-W47", "all", None]
    assert (whole.counted, whole.deduplicated, whole.orders) == (2, 1, 1)
    assert amounts(whole, "counted", "deduplicated", "paid") == {"EUR": (20, 10, 10)}
    assert books.rows["2026-W47", "google_ads", None].deduplicated == 0


# --- Why a platform claims more


def test_each_cause_explains_its_part_of_a_difference() -> None:
    causes = [
        attributed("2026-11-16T12:00", "d1", status="duplicate"),
        attributed("2026-11-16T12:00", "d2", status="duplicate"),
        attributed("2026-11-16T12:00", "d3", status="unattributed", campaign_id=None),
        attributed("2026-11-16T12:00", "d4", status="uncounted"),
        attributed("2026-11-16T12:00", "d5", status="retracted"),
        letter("too_old", "2026-11-16T12:00", "d6"),
        letter("unknown_platform", "2026-11-16T12:00", "d7"),
        report("2026-11-16", 3, conversion_name="scroll", campaign="fall"),
    ]
    books = Books(*conversion("2026-11-16T12:00"), claims("2026-11-16", 13), *causes)
    row = books.rows["2026-W47", "meta", None]
    assert (row.duplicates, row.unattributed, row.uncounted, row.retracted, row.late, row.refused, row.noise) == (
        2, 1, 1, 1, 1, 1, 3,
    )  # fmt: skip
    assert (row.reported, row.compared, row.difference, row.unexplained) == (16, 1, 15, 5)
    assert (row.complete, row.within_tolerance) == (False, False)


OLD = touch("meta", "fall", time=at("2026-11-01T12:00"))


def outside(*entries: Entry) -> tuple[int, int, int]:
    """What of meta's week is explained by a touch that is too old, by none, and by nothing."""
    row = Books(claims("2026-11-16", 1), *entries).rows["2026-W47", "meta", None]
    return row.outside_window, row.unattributed, int(row.unexplained or 0)


def test_a_touch_that_is_too_old_is_told_from_none() -> None:
    nobody = {"status": "unattributed", "campaign_id": None, "credited": None}
    day = "2026-11-16T12:00"
    assert outside(*conversion(day, **nobody)) == (0, 1, 0)
    assert outside(*conversion(day, first_touch=OLD, **nobody)) == (1, 0, 0)
    both = [*conversion(day, first_touch=OLD, order_id="o1", **nobody)]
    assert outside(*both, attributed(day, "c2", order_id="o1", status="duplicate")) == (1, 0, 0)


def test_it_explains_a_claim_for_an_order_that_names_no_platform_too() -> None:
    day = "2026-11-16T12:00"
    nobodys = attributed(day, platform="", status="unattributed", campaign_id=None)
    assert outside(nobodys, journey(day, status="unattributed", credited=None, first_touch=OLD)) == (1, 0, 0)
    googles = attributed(day, platform="google_ads", campaign_id="brand")
    credited = touch("google_ads", "brand")
    assert outside(googles, journey(day, credited=credited, touches=[credited], first_touch=OLD)) == (1, 0, 0)


def test_a_conversion_of_no_platform_and_without_a_touch_is_before_no_window() -> None:
    day = "2026-11-16T12:00"
    nobodys = attributed(day, platform="", status="unattributed", campaign_id=None)
    row = Books(nobodys, journey(day, status="unattributed", credited=None)).rows["2026-W47", "", None]
    assert (row.outside_window, row.unattributed) == (0, 1)


def test_what_the_row_cannot_tell_is_not_told() -> None:
    nobody = {"status": "unattributed", "campaign_id": None, "credited": None}
    day = "2026-11-16T12:00"
    other = touch("google_ads", "brand")
    assert outside(*conversion(day, first_touch=other, clicks=2, **nobody)) == (0, 1, 0), "the second may be meta's"
    engaged = touch("meta", touch_type="engaged_view")
    assert outside(*conversion(day, first_touch=engaged, **nobody)) == (0, 1, 0), (
        "a kind that meta's method never credits"
    )
    full = [touch("google_ads", event_id=f"t{number}") for number in range(50)]
    googles = attributed(day, platform="google_ads", campaign_id="brand")
    assert outside(googles, journey(day, credited=other, touches=full, first_touch=OLD)) == (0, 0, 1), (
        "some may be left out"
    )


def test_a_touch_that_is_creditable_is_not_too_old() -> None:
    day, near = "2026-11-16T12:00", touch("meta", "spring", event_id="t2")
    found = [attributed(day, platform="google_ads"), journey(day, touches=[near], credited=near, first_touch=OLD)]
    assert outside(*found) == (0, 0, 1)


# --- Later versions of the policy


def test_what_a_platform_claimed_stays_when_the_policy_drops_it() -> None:
    without = followed_by(DOCUMENT | {"platforms": {"meta": DOCUMENT["platforms"]["meta"]}}, at("2026-11-20T00:00"))
    books = Books(
        *conversion("2026-11-16T12:00", platform="google_ads", campaign_id="brand"),
        claims("2026-11-16", 3, platform="google_ads", campaign="brand"),
        policy=without,
    )
    row = books.rows["2026-W47", "google_ads", None]
    assert (row.reported, row.counted, row.within_tolerance, books.fold.refused) == (3, 1, False, {})
    assert set(books.fold.differences()) == {"meta", "google_ads"}


def test_a_touch_is_outside_the_window_that_held_at_the_time_of_its_conversion() -> None:
    none = {"method": "click", "windows": {"click": "30d"}}
    later = DOCUMENT | {"platforms": DOCUMENT["platforms"] | {"meta": none}}  # views are credited no more
    view = touch("meta", touch_type="view")
    for day, is_outside in (("2026-11-16T12:00", True), ("2026-11-18T12:00", False)):
        rows = Books(
            attributed(day, status="unattributed"),
            journey(day, status="unattributed", credited=None, first_touch=view),
            policy=followed_by(later, at("2026-11-17T00:00")),
        ).rows
        assert rows["2026-W47", "meta", None].outside_window == is_outside, day


def test_an_action_that_the_policy_counted_once_is_no_noise() -> None:
    actions = {name: action for name, action in DOCUMENT["actions"].items() if name != "signup"}
    books = Books(
        claims("2026-11-16", 2, conversion_name="signup"),
        claims("2026-11-16", 3, conversion_name="scroll"),
        letter("too_old", "2026-11-16T12:00", conversion_name="signup"),
        policy=followed_by(DOCUMENT | {"actions": actions}, at("2026-11-20T00:00")),
    )
    row = books.rows["2026-W47", "meta", None]
    assert (row.noise, row.late) == (3, 1)


def test_causes_explain_no_claim_that_is_missing() -> None:
    books = Books(
        *conversion("2026-11-16T12:00"),
        attributed("2026-11-16T12:00", "d1", status="duplicate"),
        claims("2026-11-16", 0),
    )
    row = books.rows["2026-W47", "meta", None]
    assert (row.difference, row.duplicates, row.unexplained, row.within_tolerance) == (-1, 1, -1, False)


def test_a_refused_conversion_that_is_accepted_later_was_not_late() -> None:
    late = letter("too_old", "2026-11-16T12:00", "c1")
    books = Books(claims("2026-11-16", 1), late, late)  # sent again, and refused again
    assert books.rows["2026-W47", "meta", None].late == 1
    assert books.add(*conversion("2026-11-16T12:00", "c1"))["2026-W47", "meta", None].late == 0


@pytest.mark.parametrize("unknown", ["metta", "all", "x" * 5000, "", None])
def test_a_refused_conversion_that_names_no_platform_of_the_policy_is_of_none(unknown: str | None) -> None:
    books = Books(
        *conversion("2026-11-16T12:00"),
        claims("2026-11-16", 1),
        letter("unknown_platform", "2026-11-16T12:00", platform=unknown),
        letter("unknown_platform", "2026-11-16T12:00", "l2", platform="meta"),
    )
    week = {each[1]: row.refused for each, row in books.rows.items() if (each[0], each[2]) == ("2026-W47", None)}
    assert week == {"meta": 1, "": 1, "all": 1}, "the sum is of what platforms that report may claim"


def test_letters_without_a_conversion_in_them_tell_nothing() -> None:
    def holding(raw: bytes) -> Entry:
        row = {
            "reason": "too_old", "field": "", "detail": "", "topic": "t", "partition": 0, "offset": 0, "timestamp_ms": 0,
            "key_base64": None, "size_bytes": 0, "sha256": "", "truncated": False,
            "value_base64": base64.b64encode(raw).decode(),
        }  # fmt: skip
        return SETTINGS.dlq_topic, b"k", row

    deep = b"[" * 100_000
    books = Books(
        holding(b"{"), holding(b"\xff"), holding(deep), holding(b'{"event_type": "click"}'),
        letter("too_old", 10**15), letter("too_old", "2026-11-16T12:00", conversion_name="scroll"),
    )  # fmt: skip
    assert (books.rows, books.fold.refused) == ({}, {})


# --- What can be compared


def test_only_the_days_that_reports_reach_over_are_compared() -> None:
    books = Books(
        *conversion("2026-11-16T12:00", "c1"),
        *conversion("2026-11-18T12:00", "c2"),
        *conversion("2026-11-20T12:00", "c3"),  # the report of that day comes tomorrow
        claims("2026-11-16", 1),
        claims("2026-11-19", 0),  # so the 17th and 18th had nothing
    )
    row = books.rows["2026-W47", "meta", "spring"]
    assert (row.counted, row.compared, row.reported, row.difference) == (3, 2, 1, -1)
    assert (row.reported_from, row.reported_to, row.complete) == ("2026-11-16", "2026-11-19", False)
    row = books.add(claims("2026-11-20", 1))["2026-W47", "meta", "spring"]
    assert (row.compared, row.reported, row.difference) == (3, 2, -1)


def test_only_the_actions_that_reports_name_are_compared() -> None:
    books = Books(
        *conversion("2026-11-16T12:00", "c1"),
        *conversion("2026-11-16T12:00", "c2", conversion_name="signup"),
        claims("2026-11-16", 1, conversion_name="purchase"),
    )
    assert books.rows["2026-W47", "meta", "spring"].compared == 1
    assert books.add(report("2026-11-17", 1))["2026-W47", "meta", "spring"].compared == 2


def test_a_platform_that_reports_nothing_is_not_judged() -> None:
    row = Books(*conversion("2026-11-16T12:00")).rows["2026-W47", "meta", None]
    assert (row.reported, row.difference, row.ratio, row.within_tolerance, row.compared) == (None, None, None, None, 0)


def test_the_tolerance_is_exact_at_its_edge() -> None:
    desk = parse_desk(DOCUMENT | {"desk": {"tolerances": {"meta": 0.07}}}, POLICY.versions[0])
    many = [each for number in range(100) for each in conversion("2026-11-16T12:00", f"c{number}")]
    for reported, is_within in ((107, True), (93, True), (107.000001, False), (92.999999, False)):
        row = Books(*many, report("2026-11-16", reported), desk=desk).rows["2026-W47", "meta", None]
        assert row.within_tolerance is is_within, reported


def test_amounts_are_judged_too() -> None:
    row = Books(*conversion("2026-11-16T12:00"), claims("2026-11-16", 1, value=11.01)).rows["2026-W47", "meta", None]
    assert (row.difference, row.within_tolerance) == (0, False)
    row = Books(*conversion("2026-11-16T12:00"), claims("2026-11-16", 1, value=0.0)).rows["2026-W47", "meta", None]
    assert row.within_tolerance is False, "a platform that says that they were worth nothing"
    row = Books(*conversion("2026-11-16T12:00"), report("2026-11-16", 1)).rows["2026-W47", "meta", None]
    assert row.within_tolerance is True, "a platform that does not say what they were worth"


def test_two_currencies_are_never_added_up_nor_compared() -> None:
    books = Books(
        *conversion("2026-11-16T12:00", "c1", order_id="o1"),
        *conversion("2026-11-16T12:00", "c2", order_id="o2", currency="USD", value=7.0),
        order("o1", "2026-11-16T12:00"),
        order("o2", "2026-11-16T12:00", 7.0, currency="USD"),
        report("2026-11-16", 2, value=25.0, currency="CHF"),
    )
    row = books.rows["2026-W47", "meta", None]
    assert amounts(row, "reported", "compared", "difference", "paid") == {
        "CHF": (25, 0, 25, 0),
        "EUR": (None, 10, None, 10),
        "USD": (None, 7, None, 7),
    }
    assert row.within_tolerance is True, "as far as can be told: two of two"


def test_a_fraction_of_a_cent_is_not_lost_in_sums() -> None:
    many = [each for number in range(1000) for each in conversion("2026-11-16T12:00", f"c{number}", value=0.1)]
    row = Books(*many, report("2026-11-16", 1000, value=100.0, currency="EUR")).rows["2026-W47", "meta", None]
    assert amounts(row, "counted", "difference") == {"EUR": (100.0, 0.0)}


# --- Weeks


@pytest.mark.parametrize(
    ("utc", "week"),
    [
        ("2026-03-29T21:59:59", "2026-W13"),  # Sunday 23:59:59 in Berlin, on the day on which summer time begins
        ("2026-03-29T22:00", "2026-W14"),
        ("2026-10-25T22:59:59", "2026-W43"),  # and on the one on which it ends
        ("2026-10-25T23:00", "2026-W44"),
        ("2026-12-31T12:00", "2026-W53"),
        ("2027-01-03T22:59:59", "2026-W53"),  # Sunday, in another year than its week
        ("2027-01-03T23:00", "2027-W01"),
        ("2025-12-29T12:00", "2026-W01"),  # Monday, likewise
        ("2020-12-31T12:00", "2020-W53"),
    ],
)
def test_a_week_is_the_iso_week_of_the_advertisers_day(utc: str, week: str) -> None:
    assert {period for period, _, _ in Books(*conversion(utc)).rows} == {week, "to_date"}


def test_the_weeks_of_two_advertisers_begin_when_their_days_do() -> None:
    late = "2026-11-22T23:30"  # Monday in Berlin, Sunday where nothing is said
    books = Books(*conversion(late), *conversion(late, user="u2", advertiser_id="other"))
    found = {
        orjson.loads(key)[0]: decode_reconciliation(value) for key, value in books.there.items() if b'"2026-W' in key
    }
    assert {name: (row.period, row.time_zone) for name, row in found.items()} == {
        "shop": ("2026-W48", "Europe/Berlin"),
        "other": ("2026-W47", "UTC"),
    }


def test_a_claim_of_a_day_is_of_the_advertisers_day() -> None:
    books = Books(*conversion("2026-11-15T23:30"), claims("2026-11-16", 1))
    assert books.rows["2026-W47", "meta", None].difference == 0


# --- Orders


def test_a_refund_after_weeks_corrects_the_week_of_its_conversion() -> None:
    books = Books(*conversion("2026-09-01T12:00", order_id="o1"), order("o1", "2026-09-01T12:00"))
    assert amounts(books.rows["2026-W36", "meta", None], "paid", "net") == {"EUR": (10, 10)}
    rows = books.add(order("o1", "2026-09-01T12:00", refunded=4.0))
    assert amounts(rows["2026-W36", "meta", None], "paid", "refunded", "net") == {"EUR": (10, 4, 6)}
    assert (rows["2026-W36", "all", None].orders_refunded, rows["2026-W36", "all", None].counted_refunded) == (0, 0)
    rows = books.add(order("o1", "2026-09-01T12:00", refunded=10.0))
    assert (rows["2026-W36", "all", None].orders_refunded, rows["2026-W36", "all", None].counted_refunded) == (1, 1)
    retracted = conversion("2026-09-01T12:00", order_id="o1", status="retracted", value=0.0, conversions=0)
    row = books.add(*retracted)["2026-W36", "meta", None]
    assert (row.counted, row.retracted, row.counted_refunded) == (0, 1, 0)


def test_an_order_and_its_conversion_may_come_in_either_order_and_weeks_apart() -> None:
    books = Books(order("o1", "2026-11-15T22:00"))  # Sunday
    row = books.rows["2026-W46", "all", None]
    assert (row.orders, row.orders_without_conversion) == (1, 1)
    assert amounts(row, "orders_without_conversion") == {"EUR": (10,)}
    rows = books.add(*conversion("2026-11-16T00:30", order_id="o1"))  # Monday
    assert ("2026-W46", "all", None) not in rows, "the order lies on the day of its conversion"
    assert (rows["2026-W47", "all", None].orders, rows["2026-W47", "all", None].orders_without_conversion) == (1, 0)
    rows = books.add((SETTINGS.attributed_topic, attributed("2026-11-16T00:30")[1], None))
    rows = books.add((SETTINGS.journeys_topic, journey("2026-11-16T00:30")[1], None))
    assert rows["2026-W46", "all", None].orders_without_conversion == 1


def test_an_order_that_is_deleted_was_none() -> None:
    books = Books(*conversion("2026-11-16T12:00", order_id="o1"), order("o1", "2026-11-16T12:00"))
    books.add(order("o2", "2026-11-16T12:00"))
    row = books.add((SETTINGS.orders_topic, order("o1", 0)[1], None))["2026-W47", "all", None]
    assert (row.orders, row.without_order) == (1, 1)


def test_an_order_id_that_another_user_used_again_was_paid_once() -> None:
    both = [
        *conversion("2026-11-16T12:00", "c1", "u1", order_id="o1"),
        *conversion("2026-11-17T12:00", "c2", "u2", order_id="o1", value=30.0),
    ]
    row = Books(*both, order("o1", "2026-11-16T12:00")).rows["2026-W47", "all", None]
    assert (row.orders, row.deduplicated, row.without_order) == (1, 2, 0), (
        "the 17th is after the last order that is known"
    )
    known = order("o0", "2026-11-16T00:00")
    row = Books(*both, known, order("o1", "2026-11-17T12:00")).rows["2026-W47", "all", None]
    assert (row.without_order, amounts(row, "without_order")) == (1, {"EUR": (30,)}), "the earliest one's, by default"
    row = Books(*both, known, order("o1", "2026-11-17T12:00", user_id="u2")).rows["2026-W47", "all", None]
    assert amounts(row, "without_order") == {"EUR": (10,)}, "whose the order says that it is"


def test_a_checkout_that_names_the_order_is_not_the_order() -> None:
    books = Books(
        *conversion("2026-11-16T11:00", "c0", order_id="o1", conversion_name="signup"),
        *conversion("2026-11-16T12:00", "c1", order_id="o1"),
        order("o1", "2026-11-16T12:00"),
    )
    row = books.rows["2026-W47", "all", None]
    assert (row.orders, row.orders_without_conversion, row.without_order) == (1, 0, 0)


@pytest.mark.parametrize("empty", [None, ""])
def test_conversions_without_an_order_id_are_never_one_order(empty: str | None) -> None:
    books = Books(
        *conversion("2026-11-16T12:00", "c1", order_id=empty),
        *conversion("2026-11-16T12:00", "c2", order_id=empty),
        *conversion("2026-11-16T12:00", "c3", order_id=empty, conversion_name="signup"),  # which needs none
        order("o1", "2026-11-16T12:00"),
    )
    row = books.rows["2026-W47", "all", None]
    assert (row.deduplicated, row.without_order_id, row.orders_without_conversion) == (3, 2, 1)


def test_the_money_of_an_order_lies_where_it_is_credited_over_all_platforms() -> None:
    books = Books(
        attributed("2026-11-16T12:00", platform="google_ads", order_id="o1", campaign_id="brand"),
        journey("2026-11-16T12:00", order_id="o1", credited=touch("meta", "fall")),
        order("o1", "2026-11-16T12:00", 25.0),
    )
    assert amounts(books.rows["2026-W47", "meta", "fall"], "paid") == {"EUR": (25,)}
    assert amounts(books.rows["2026-W47", "google_ads", "brand"], "paid", "counted") == {"EUR": (0, 10)}


def test_who_is_forgotten_is_counted_no_more_and_what_others_told_of_him_stays() -> None:
    """As docs/money.md says it."""
    somebodys = conversion("2026-11-16T12:00", order_id="o1")
    books = Books(
        *somebodys,
        *conversion("2026-11-17T12:00", "c2", "u2", order_id="o2"),
        order("o1", "2026-11-16T12:00", user_id="u1"),
        order("o2", "2026-11-17T12:00"),
        claims("2026-11-16", 1),
        claims("2026-11-17", 1),
    )
    books.add(*((topic, key, None) for topic, key, _ in somebodys))
    row = books.rows["2026-W47", "meta", None]
    assert (row.reported, row.counted, row.unexplained, row.within_tolerance) == (2, 1, 1, False)
    assert books.rows["2026-W47", "all", None].orders_without_conversion == 1
    row = books.add((SETTINGS.orders_topic, order("o1", 0)[1], None))["2026-W47", "all", None]
    assert (row.orders, row.orders_without_conversion) == (1, 0)


# --- An event id that is used again, once the first conversion is packed

LONG_AGO, MEANWHILE, NOW = "2026-01-05T12:00", "2026-11-16T12:00", "2026-11-17T12:00"


def gone(*entries: Entry) -> list[Entry]:
    return [(topic, key, None) for topic, key, _ in entries]


@pytest.mark.parametrize(("before", "after"), [(None, None), ("o1", "o1"), ("o1", "o2"), (None, "o2"), ("o1", None)])
@pytest.mark.parametrize("is_forgotten", [True, False])
def test_an_event_id_that_is_used_again_is_one_conversion(
    before: str | None, after: str | None, is_forgotten: bool
) -> None:
    first, again = (
        conversion(time, "sub-1", order_id=order_id) for time, order_id in ((LONG_AGO, before), (NOW, after))
    )
    log = [*first, *conversion(MEANWHILE, "c2", "u2"), *(gone(*first) if is_forgotten else []), *again]
    books = Books(*log)
    compacted = Books(*conversion(MEANWHILE, "c2", "u2"), *again)
    assert books.rows == compacted.rows
    assert books.rows["to_date", "all", None].deduplicated == 2
    books.add(*gone(*again))
    assert books.rows == Books(*conversion(MEANWHILE, "c2", "u2")).rows
    books.add(*conversion("2027-11-17T12:00", "last", "u2"))  # and it is packed once more
    assert books.rows["to_date", "all", None].deduplicated == 2
    assert len(books.fold._packed) == 1


def test_a_record_of_before_does_not_undo_one_that_used_its_event_id_again() -> None:
    first, again = (
        conversion(time, "sub-1", order_id=order_id) for time, order_id in ((LONG_AGO, "o1"), (MEANWHILE, "o2"))
    )
    books = Books(*first, *again, *conversion("2027-11-16T12:00", "c2", "u2"))
    before = books.rows
    books.count = 0
    books.add(*first)  # read once more
    assert books.rows == before


# --- Bad records


@pytest.mark.parametrize(
    ("entry", "reason", "field"),
    [
        (order("", "2026-11-16T12:00"), "invalid_field", "order_id"),
        (order("o1", "2026-11-16T12:00", -1), "invalid_field", "paid"),
        (order("o1", "2026-11-16T12:00", currency="euro"), "invalid_field", "currency"),
        (order("o1", "2026-11-16T12:00", 10.0, 10.000001), "invalid_field", "refunded"),
        (order("o1", "yesterdayZ"), "invalid_time", "time"),
        (order("o1", 253_402_300_799_000), "invalid_time", "time"),
        ((SETTINGS.orders_topic, b'["shop", "o1"]', order("o1", 1)[2]), "key_mismatch", ""),
        ((SETTINGS.orders_topic, None, order("o1", 1)[2]), "key_mismatch", ""),
        ((SETTINGS.orders_topic, b"k", b"{"), "invalid_json", ""),
        ((SETTINGS.orders_topic, b"k", b"[" * 200_000), "too_deep", ""),
        (claims("2026-02-30", 1), "invalid_field", "day"),
        (claims("0001-01-01", 1), "invalid_field", "day"),
        (claims("2026-11-16", 1, platform="metta"), "unknown_platform", "platform"),
        (claims("2026-11-16", 1, currency=None), "missing_field", "currency"),
        (report("2026-11-16", float("1e99")), "invalid_field", "conversions"),
        ((SETTINGS.attributed_topic, b"k", b"{}"), "invalid_field", ""),
        (attributed(-(10**18)), "invalid_time", "event_time"),
        (attributed(1, status="counted twice"), "invalid_field", "status"),
        (attributed(1, value=1e300), "invalid_field", "value"),
        ((SETTINGS.dlq_topic, b"k", None), "null_record", ""),
    ],
)
def test_a_record_that_breaks_its_contract_is_counted_and_named_and_stops_nothing(
    entry: Entry, reason: str, field: str
) -> None:
    books = Books(entry, *conversion("2026-11-16T12:00"))
    assert books.fold.refused == {(entry[0], reason): 1}
    ((key, named),) = books.letters.items()
    assert orjson.loads(key) == [entry[0], 0, 0]
    assert (named["reason"], named["field"], named["topic"], named["offset"]) == (reason, field, entry[0], 0)
    assert named["detail"]
    assert books.rows["2026-W47", "meta", None].counted == 1


def test_a_refused_record_takes_the_place_of_what_its_key_held() -> None:
    good = order("o1", "2026-11-16T12:00")
    books = Books(good)
    assert books.add((good[0], good[1], b"{}")) == {}, "as after Kafka's compaction"
    assert books.add(good)["2026-W47", "all", None].orders == 1


def test_the_last_whole_week_is_what_is_watched() -> None:
    books = Books(
        *(each for day in WHOLE_WEEK for each in conversion(f"{day}T12:00", day)),
        *(claims(day, 1.5) for day in WHOLE_WEEK),
        *conversion("2026-11-23T12:00", "next"),
        claims("2026-11-23", 9),  # that week is not over
    )
    assert books.fold.differences()["meta"] == (0.5, 0.1)
    books.add(*(claims(day, 1) for day in WHOLE_WEEK))
    assert books.fold.differences()["meta"] == (0.0, 0.1)


def test_a_record_of_before_does_not_undo_a_later_one() -> None:
    fold = Reconciliation(SETTINGS, POLICY, DESK)
    topic, key, late = order("o1", "2026-11-16T12:00", 20.0)
    fold.take(record(topic, 7, key, late))
    fold.take(record(topic, 3, key, order("o1", "2026-11-16T12:00", 10.0)[2]))
    rows = [decode_reconciliation(output.value) for output in fold.rows(0) if output.value is not None]
    assert {amounts(row, "paid")["EUR"] for row in rows} == {(20,)}

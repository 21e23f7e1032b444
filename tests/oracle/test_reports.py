"""docs/counting.md, section 14, on cases small enough to be computed by hand. In their policy reports of one conversion that are
at most five minutes apart are merged.
"""

from typing import Any

import pytest

from tests.oracle.cases import (
    DAY,
    HOUR,
    MINUTE,
    T0,
    Fields,
    answer_to,
    click,
    conversion,
    conversions_in,
    counts_of,
    event,
    meta_statuses,
    policy,
    restate,
    retract,
    rows_of,
    two_versions,
)

MERGING = policy(merge_reports="5m")
BROWSER: Fields = {"reported_by": "browser"}


def told(*events: Fields, platform: str = "meta", rules: Any = MERGING) -> tuple[Any, ...]:
    """Value, currency and order_id of the row of `x`, after a click."""
    row = rows_of(answer_to(click("k", -HOUR), *events, rules=rules))[platform, "x"]
    return row.value, row.currency, row.order_id


# --- What is filled, and whose word stands


def test_the_servers_report_fills_what_the_browsers_left_out_and_it_counts_once():
    browsers = conversion("x", 0, value=99.5, currency="EUR", **BROWSER)
    servers = conversion("x", 2 * MINUTE, value=99.5, currency="EUR", order_id="o1")
    result = answer_to(click("k", -HOUR), browsers, servers, rules=MERGING)
    row = rows_of(result)["meta", "x"]
    assert (row.status, row.event_time, row.value, row.currency) == ("counted", T0, 99.5, "EUR")
    assert row.order_id == "o1"
    assert conversions_in(result) == (1, 99.5)
    assert len(result.duplicates) == 1


@pytest.mark.parametrize("first", ["browser", "server"])
def test_where_they_differ_the_browsers_word_stands_whichever_came_first(first):
    browsers = conversion("x", 0, value=10, currency="EUR", order_id="b", **BROWSER)
    servers = conversion("x", MINUTE, value=12, currency="USD", order_id="s", reported_by="server")
    pair = [browsers, servers] if first == "browser" else [servers, browsers]
    assert told(*pair) == (10, "EUR", "b")


def test_the_time_is_that_of_the_report_that_was_accepted_first():
    servers, browsers = conversion("x", MINUTE, value=1), conversion("x", 0, value=2, **BROWSER)
    row = rows_of(answer_to(servers, browsers, rules=MERGING))["meta", "x"]
    assert (row.event_time, row.value) == (T0 + MINUTE, 2)


def test_of_two_reports_that_do_not_say_who_made_them_the_first_stands_and_the_other_fills():
    assert told(conversion("x", 0, value=1), conversion("x", 1, value=2, currency="EUR", order_id="o")) == (
        1,
        None,
        "o",
    )


def test_an_empty_order_id_is_none_and_a_value_of_0_is_a_value():
    assert told(conversion("x", 0, order_id="", value=0), conversion("x", 1, order_id="o", value=3)) == (0, None, "o")


def test_a_currency_goes_with_its_value():
    without, dollars = conversion("x", 0, value=10, **BROWSER), {"value": 12, "currency": "USD"}
    assert told(without, conversion("x", 1, **dollars)) == (10, None, None)
    assert told(without, conversion("x", 1, **dollars | {"value": 10})) == (10, "USD", None)
    assert told(without, conversion("x", 1, currency="USD")) == (10, "USD", None)
    # a currency without a value says less than a value with its own
    assert told(conversion("x", 0, currency="EUR", **BROWSER), conversion("x", 1, **dollars)) == (12, "USD", None)
    assert told(conversion("x", 0, currency="EUR", **BROWSER), conversion("x", 1, value=12)) == (12, "EUR", None)


def test_the_actions_default_stands_only_where_no_report_has_a_value():
    first = conversion("x", 0, "demo", **BROWSER)
    assert told(first)[0] == 50
    assert told(first, conversion("x", 1, "demo", value=8))[0] == 8


# --- How near


@pytest.mark.parametrize("away", [5 * MINUTE, -5 * MINUTE])
def test_five_minutes_are_near_and_a_millisecond_more_is_not(away):
    first = conversion("x", 0, value=1)
    assert told(first, conversion("x", away, order_id="o")) == (1, None, "o")
    further = away + (1 if away > 0 else -1)
    assert told(first, conversion("x", further, order_id="o")) == (1, None, None)


def test_every_report_is_measured_from_the_first_accepted_one():
    chain = [conversion("x", 0), conversion("x", 4 * MINUTE, value=1), conversion("x", 8 * MINUTE, order_id="o")]
    assert told(*chain) == (1, None, None)


def test_a_report_that_comes_days_later_is_merged_if_its_own_time_is_near():
    later = event("visit", "v", 6 * DAY, page="/")
    assert told(conversion("x", 0), later, conversion("x", MINUTE, value=3)) == (3, None, None)


def test_without_the_policys_word_a_repeat_changes_nothing():
    pair = conversion("x", 0), conversion("x", 1, value=3, order_id="o", **BROWSER)
    assert told(*pair, rules=policy()) == (0, None, None)
    assert told(*pair, rules=policy(merge_reports="0m")) == (0, None, None)


def test_the_version_in_force_at_the_first_reports_time_decides():
    rules = two_versions(T0, merge_reports="5m")
    assert told(conversion("x", -1), conversion("x", 1, value=3), rules=rules) == (0, None, None)
    assert told(conversion("x", 0), conversion("x", -1, value=3), rules=rules) == (3, None, None)


# --- Third reports


def test_a_third_report_fills_what_two_left_out():
    reports = conversion("x", 0), conversion("x", 1, value=3), conversion("x", 2, order_id="o")
    assert told(*reports) == (3, None, "o")


def test_of_several_browsers_reports_the_earliest_stands():
    reports = [conversion("x", at, value=value, **BROWSER) for at, value in ((3, 30), (2, 20), (4, 40))]
    assert told(conversion("x", 0, value=1), *reports) == (20, None, None)


def test_the_first_accepted_one_stands_before_others_of_its_kind():
    assert told(conversion("x", 2, value=1), conversion("x", 1, value=2)) == (1, None, None)
    assert told(conversion("x", 2, value=1, **BROWSER), conversion("x", 1, value=2, **BROWSER)) == (1, None, None)


def test_of_equal_times_the_smaller_value_stands():
    reports = conversion("x", 1, value=9, **BROWSER), conversion("x", 1, value=8, **BROWSER)
    assert told(conversion("x", 0), *reports) == (8, None, None)


def test_eight_different_reports_are_kept_browsers_first():
    servers = [conversion("x", at, value=at) for at in range(1, 9)]
    assert told(conversion("x", 0), *servers, conversion("x", 9, order_id="o")) == (1, None, None)
    browsers = conversion("x", 9, order_id="o", **BROWSER)
    assert told(conversion("x", 0), *servers, browsers) == (1, None, "o")
    assert told(conversion("x", 0), *servers * 2, conversion("x", 0, order_id="o")) == (1, None, "o")


# --- Platforms


def test_a_report_with_a_platform_and_one_without_tell_of_each_other_and_keep_their_platforms():
    browsers = conversion("x", 0, platform=None, value=9, currency="EUR", **BROWSER)
    servers = conversion("x", 1, value=8, order_id="o")
    touches = click("k", -HOUR), click("g", -HOUR, platform="google_ads")
    rows = rows_of(answer_to(*touches, browsers, servers, rules=MERGING))
    told = {where: (row.value, row.currency, row.order_id) for where, row in rows.items()}
    assert told == {("meta", "x"): (9, "EUR", "o"), ("google_ads", "x"): (9, "EUR", "o")}


def test_each_platforms_own_report_fills_the_others():
    meta = conversion("x", 0, value=9, currency="EUR")
    google = conversion("x", 1, platform="google_ads", order_id="o")
    assert told(meta, google) == (9, "EUR", "o")
    assert told(meta, google, platform="google_ads") == (9, "EUR", "o")


def test_another_name_event_id_user_or_advertiser_is_another_conversion():
    first, others = conversion("x", 0), ({"name": "signup"}, {"user_id": "w"}, {"advertiser_id": "b"})
    for other in (conversion("y", 1, value=5), *(conversion("x", 1, value=5, **each) for each in others)):
        rows = answer_to(first, other, rules=MERGING).attributed.values()
        assert [row.value for row in rows if row.event_time == T0] == [0]


# --- Orders and adjustments


def test_an_order_id_that_comes_with_the_second_report_makes_a_duplicate_of_an_order():
    order = conversion("first", -HOUR, order_id="o", value=3)
    browsers, servers = conversion("x", 0, value=3, **BROWSER), conversion("x", 1, order_id="o")
    events = click("k", -2 * HOUR), order, browsers
    assert meta_statuses(*events, rules=MERGING) == {"first": "counted", "x": "counted"}
    assert meta_statuses(*events, servers, rules=MERGING) == {"first": "counted", "x": "duplicate"}


def test_another_order_id_of_the_browsers_takes_it_out_of_an_order():
    order = conversion("first", -HOUR, order_id="o")
    servers, browsers = conversion("x", 0, order_id="o"), conversion("x", 1, order_id="p", **BROWSER)
    events = click("k", -2 * HOUR), order, servers
    assert meta_statuses(*events, rules=MERGING) == {"first": "counted", "x": "duplicate"}
    assert meta_statuses(*events, browsers, rules=MERGING) == {"first": "counted", "x": "counted"}


def test_an_adjustment_finds_the_order_by_the_order_id_that_came_with_the_second_report():
    first, second = conversion("x", 0, value=3, **BROWSER), conversion("x", 2, order_id="o")
    taken_back = retract("a", 1, order_id="o")
    assert told(first, taken_back, second) == (0, None, "o")
    assert told(first, second, taken_back) == (0, None, "o")


def test_a_restatement_between_stands_over_every_report():
    first, second = conversion("x", 0, value=3), conversion("x", 2, value=4, **BROWSER)
    between = restate("a", 1, 9, conversion_event_id="x")
    assert told(first, between, second) == (9, None, None)
    assert told(first, second, between) == (9, None, None)


def test_what_was_counted_before_leaves_its_row_of_the_counts():
    first = conversion("x", 0, value=3, currency="EUR")
    browsers = conversion("x", 2, value=4, currency="USD", **BROWSER)
    counts = counts_of(answer_to(click("k", -HOUR), first, browsers, rules=MERGING))
    assert {key[-1]: amounts for key, amounts in counts.items() if key[-2]} == {"USD": {"conversions": 1, "value": 4}}


# --- Over all platforms, and forgetting


def test_over_all_platforms_the_order_has_what_its_reports_say_together():
    rules = policy(merge_reports="5m", journeys={})
    browsers = conversion("x", 0, platform=None, value=9, **BROWSER)
    servers = conversion("x", 1, currency="EUR", order_id="o")
    result = answer_to(click("k", -HOUR), browsers, servers, rules=rules)
    (row,) = result.journeys.values()
    assert (row.status, row.value, row.currency, row.order_id) == ("counted", 9, "EUR", "o")
    assert {(model.value, model.currency) for model in result.models.values()} == {(9, "EUR")}
    assert conversions_in(result, "all") == (1, 9)


def test_what_a_forgotten_report_said_goes_with_it():
    servers, browsers = conversion("x", 2, value=1), conversion("x", 1, value=2, order_id="o", **BROWSER)
    forget = event("forget", "f", 1)
    assert told(servers, browsers) == (2, None, "o")
    assert told(servers, browsers, forget) == (1, None, None)
    assert told(servers, forget, browsers) == (1, None, None)


def test_reports_go_with_their_conversion():
    forget = event("forget", "f", 0)
    result = answer_to(conversion("x", 0), conversion("x", 1, value=2), forget, rules=MERGING)
    assert result.attributed == {}
    again = conversion("x", 2, value=3, platform=None)
    result = answer_to(conversion("x", 0), conversion("x", 1, value=2, order_id="o"), forget, again, rules=MERGING)
    assert [(row.platform, row.value, row.order_id) for row in result.attributed.values()] == [("", 3, None)]


@pytest.mark.parametrize("noise", ["scroll", "unheard_of"])
def test_reports_of_noise_are_noise(noise):
    assert answer_to(conversion("x", 0, noise), conversion("x", 1, noise, value=2), rules=MERGING).attributed == {}

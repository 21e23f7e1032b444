"""docs/counting.md, section 4, on cases small enough to be computed by hand.

In the tests' policy meta credits clicks of 7 d, then views of 1 d; google_ads clicks of 30 d and engaged views of 3 d; tiktok
views of 1 d, one purchase each; linkedin clicks of 30 d, every action. A purchase counts every time, a demo and a signup once.
"""

import pytest

from tests.oracle.cases import (
    DAY,
    DOCUMENT,
    HOUR,
    MINUTE,
    T0,
    answer_to,
    click,
    conversion,
    conversions_in,
    counts_of,
    credited,
    meta_statuses,
    policy,
    restate,
    rows_of,
    statuses,
    touch,
    two_versions,
    view,
)

# --- The credited touch -----------------------------------------------------------------------------------------------


def test_a_touch_at_the_conversions_own_millisecond_is_not_before_it():
    assert credited(click("k", 0), conversion("x", 0)) is None
    assert credited(click("k", 0), conversion("x", 1)) == "k"


def test_a_touch_after_the_conversion_is_not_credited():
    assert credited(click("k", 1), conversion("x", 0)) is None


def test_a_late_touch_is_credited_as_if_it_had_come_in_time():
    assert credited(conversion("x", MINUTE), click("k", 0)) == "k"


@pytest.mark.parametrize(("kind", "window"), [("click", 7 * DAY), ("view", DAY)])
def test_a_touch_exactly_its_kinds_window_before_the_conversion_is_credited_and_one_millisecond_more_not(kind, window):
    assert credited(touch(kind, "t", 0), conversion("x", window)) == "t"
    assert credited(touch(kind, "t", 0), conversion("x", window + 1)) is None


def test_a_click_beats_any_newer_view():
    assert credited(click("k", 0), view("v", 6 * DAY), conversion("x", 6 * DAY + 1)) == "k"


def test_a_view_is_credited_when_the_click_is_out_of_its_window():
    assert credited(click("k", 0), view("v", 7 * DAY), conversion("x", 7 * DAY + 1)) == "v"


def test_a_click_beats_a_newer_engaged_view_within_its_own_window():
    google = {"platform": "google_ads"}
    engaged = touch("engaged_view", "e", DAY, **google)
    assert credited(click("k", 0, **google), engaged, conversion("x", 2 * DAY, **google), platform="google_ads") == "k"
    assert credited(engaged, conversion("x", 2 * DAY, **google), platform="google_ads") == "e"


def test_a_kind_that_the_method_does_not_credit_is_never_credited():
    google, tiktok = {"platform": "google_ads"}, {"platform": "tiktok"}
    assert credited(view("v", 0, **google), conversion("x", 1, **google), platform="google_ads") is None
    assert credited(click("k", 0, **tiktok), conversion("x", 1, **tiktok), platform="tiktok") is None
    assert credited(touch("engaged_view", "e", 0), conversion("x", 1)) is None


def test_of_one_kind_the_latest_is_credited():
    assert credited(click("z", 0), click("a", 1), conversion("x", 2)) == "a"


def test_of_one_kind_and_time_the_larger_id_by_code_point_is_credited():
    assert credited(click("k10", 0), click("k9", 0), conversion("x", 1)) == "k9"
    assert credited(click("\uffff", 0), click("\U0001f600", 0), conversion("x", 1)) == "\U0001f600"
    assert credited(click("Z", 0), click("a", 0), conversion("x", 1)) == "a"


@pytest.mark.parametrize("other", [{"user_id": "other"}, {"advertiser_id": "b"}, {"platform": "google_ads"}])
def test_a_touch_of_another_user_advertiser_or_platform_is_not_credited(other):
    assert credited(click("k", 0, **other), conversion("x", 1)) is None


# --- Judged platforms -------------------------------------------------------------------------------------------------


def test_a_conversion_without_a_platform_is_judged_by_every_platform_with_an_eligible_touch():
    touches = [click("m", 0), click("g", 0, platform="google_ads"), click("t", 0, platform="tiktok")]
    result = answer_to(*touches, conversion("x", 1, platform=None))
    assert statuses(result) == {("meta", "x"): "counted", ("google_ads", "x"): "counted"}
    assert conversions_in(result)[0] == 2


def test_a_conversion_without_a_platform_and_a_touch_has_one_row_without_a_platform():
    row = rows_of(answer_to(conversion("x", 0, platform=None, value=3)))["", "x"]
    assert (row.status, row.method, row.conversions, row.value) == ("unattributed", "", 0, 3)


def test_the_row_without_a_platform_goes_when_a_late_touch_is_found():
    assert statuses(answer_to(conversion("x", 1, platform=None), click("k", 0))) == {("meta", "x"): "counted"}


def test_a_conversion_that_names_its_platform_is_not_judged_by_others():
    result = answer_to(click("g", 0, platform="google_ads"), conversion("x", 1))
    assert statuses(result) == {("meta", "x"): "unattributed"}


def test_an_event_sent_with_and_without_its_platform_is_one_conversion_the_first_of_them():
    touches = [click("m", 0), click("g", 0, platform="google_ads")]
    named, bare = conversion("x", 2, value=2), conversion("x", 1, platform=None, value=1)
    rows = rows_of(answer_to(*touches, named, bare))
    assert {where: row.value for where, row in rows.items()} == {("meta", "x"): 1, ("google_ads", "x"): 1}
    rows = rows_of(answer_to(*touches, named | {"event_time": T0 + 1}, bare | {"event_time": T0 + 2}))
    assert {where: row.value for where, row in rows.items()} == {("meta", "x"): 2, ("google_ads", "x"): 1}


def test_an_event_sent_with_and_without_its_platform_at_one_time_is_the_one_without():
    rows = rows_of(answer_to(click("m", 0), conversion("x", 1, value=2), conversion("x", 1, platform=None, value=1)))
    assert rows["meta", "x"].value == 1


# --- Noise, value, currency, versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scroll", "unheard_of"])
def test_a_conversion_of_an_action_without_an_outcome_or_unknown_is_noise(name):
    result = answer_to(click("k", 0), conversion("x", 1, name))
    assert (result.noise, result.accepted, result.attributed) == (1, 2, {})
    assert conversions_in(result) == (0, 0)


def test_the_value_is_the_restated_else_the_conversions_else_the_actions_default_else_nothing():
    result = answer_to(
        click("k", 0),
        conversion("default", 1, "demo"),
        conversion("own", 2, "demo", platform="google_ads", value=0),
        conversion("none", 3, "signup"),
        conversion("restated", 4, value=9),
        restate("r", 5, 8, conversion_event_id="restated"),
    )
    values = {event_id: row.value for (_, event_id), row in rows_of(result).items()}
    assert values == {"default": 50, "own": 0, "none": 0, "restated": 8}


def test_unattributed_and_uncounted_rows_keep_their_value_and_are_in_no_count():
    result = answer_to(
        conversion("before", 0, value=1),
        click("k", 0),
        conversion("first", 1, "demo", value=2),
        conversion("second", 2, "demo", value=3),
    )
    rows = {event_id: (row.status, row.conversions, row.value) for (_, event_id), row in rows_of(result).items()}
    assert rows == {"before": ("unattributed", 0, 1), "first": ("counted", 1, 2), "second": ("uncounted", 0, 3)}
    assert conversions_in(result) == (1, 2)


def test_a_counted_conversion_counts_in_its_own_window_under_the_touchs_dimensions_by_name_and_currency():
    result = answer_to(
        click("k", 0, campaign_id="clicked", ad_id="1"),
        conversion("x", HOUR, value=2, currency="EUR"),
        conversion("y", HOUR + 1, value=3, currency="EUR"),
        conversion("z", HOUR, value=4),
    )
    assert counts_of(result) == {
        (0, "meta", "clicked", "1", "", ""): {"clicks": 1},
        (HOUR, "meta", "clicked", "1", "purchase", "EUR"): {"conversions": 2, "value": 5},
        (HOUR, "meta", "clicked", "1", "purchase", ""): {"conversions": 1, "value": 4},
    }


CHANGE = T0 + HOUR


def test_the_version_in_force_is_that_of_the_conversions_own_time():
    shorter = DOCUMENT["platforms"] | {"meta": {"method": "view", "windows": {"view": "1d"}}}
    rules = two_versions(CHANGE, platforms=shorter)
    result = answer_to(click("k", 0), conversion("old", HOUR - 1), conversion("new", HOUR), rules=rules)
    rows = rows_of(result)
    assert statuses(result) == {("meta", "old"): "counted", ("meta", "new"): "unattributed"}
    assert [(rows["meta", each].method, rows["meta", each].policy_version) for each in ("old", "new")] == [
        ("click_then_view", 1),
        ("view", 2),
    ]


def test_an_action_can_be_noise_in_one_version_only():
    named = {"scroll": {"class": "micro", "intent": "soft", "outcome": "retention", "count": "every"}}
    rules = two_versions(CHANGE, actions=DOCUMENT["actions"] | named)
    result = answer_to(conversion("old", HOUR - 1, "scroll"), conversion("new", HOUR, "scroll"), rules=rules)
    assert (result.noise, statuses(result)) == (1, {("meta", "new"): "unattributed"})


def test_a_platform_that_a_version_lacks_credits_nothing_and_has_no_method_there():
    rules = two_versions(CHANGE, platforms={"google_ads": DOCUMENT["platforms"]["google_ads"]})
    result = answer_to(click("k", 0), conversion("x", HOUR), conversion("y", HOUR, platform=None), rules=rules)
    assert statuses(result) == {("meta", "x"): "unattributed", ("", "y"): "unattributed"}
    assert rows_of(result)["meta", "x"].method == ""


# --- One and every ----------------------------------------------------------------------------------------------------


def test_where_every_counts_each_conversion_of_a_touch_is_counted():
    assert meta_statuses(click("k", 0), conversion("x", 1), conversion("y", 2)) == {"x": "counted", "y": "counted"}


def test_where_one_counts_the_earliest_conversion_of_a_touch_is_counted_whenever_it_came():
    assert meta_statuses(click("k", 0), conversion("late", 2, "demo"), conversion("early", 1, "demo")) == {
        "early": "counted",
        "late": "uncounted",
    }


def test_of_equal_times_the_smaller_event_id_is_counted():
    assert meta_statuses(click("k", 0), conversion("y", 1, "demo"), conversion("x", 1, "demo")) == {
        "x": "counted",
        "y": "uncounted",
    }


def test_one_is_per_touch_action_and_platform():
    result = answer_to(
        click("k1", 0),
        conversion("x", 1, "demo"),
        conversion("other_action", 2, "signup"),
        click("k2", 3),
        conversion("other_touch", 4, "demo"),
        click("g", 5, platform="google_ads"),
        conversion("other_platform", 6, "demo", platform="google_ads"),
    )
    assert set(statuses(result).values()) == {"counted"}


def test_a_click_and_a_view_with_one_id_are_two_touches():
    touches = [view("t", 0), click("t", HOUR)]
    conversions = [conversion("x", 1, "demo"), conversion("y", HOUR + 1, "demo")]
    assert meta_statuses(*touches, *conversions) == {"x": "counted", "y": "counted"}


@pytest.mark.parametrize("past", [0, 1])
def test_a_click_id_that_comes_again_has_its_place_back_beyond_an_orders_window(past: int) -> None:
    again = 90 * DAY + past  # of the first one that is counted
    events = [click("k", 0), conversion("x", HOUR, "demo"), click("k", 60 * DAY, campaign_id="again")]
    events += [conversion("y", 61 * DAY, "demo"), click("k", 89 * DAY), conversion("z", HOUR + again, "demo")]
    found = meta_statuses(*events, conversion("w", HOUR + again + 1, "demo"))
    assert found == {
        "x": "counted",
        "y": "uncounted",
        "z": ["uncounted", "counted"][past],
        "w": ["counted", "uncounted"][past],
    }


def test_one_click_has_one_place_however_short_an_orders_window_is():
    events = [click("k", 0), conversion("x", 1, "demo"), conversion("y", 6 * DAY, "demo"), click("k", 6 * DAY + 1)]
    found = meta_statuses(*events, conversion("z", 6 * DAY + 2, "demo"), rules=policy(order_window="1h"))
    assert found == {"x": "counted", "y": "uncounted", "z": "counted"}


def test_a_platforms_word_on_an_action_beats_the_actions_own_and_its_word_on_all_too():
    tiktok = [conversion(each, 1, platform="tiktok") for each in ("t1", "t2")]  # one purchase each
    linkedin = [conversion(each, 1, "demo", platform="linkedin") for each in ("l1", "l2")]  # every action
    result = answer_to(view("v", 0, platform="tiktok"), click("k", 0, platform="linkedin"), *tiktok, *linkedin)
    assert {event_id: status for (_, event_id), status in statuses(result).items()} == {
        "t1": "counted",
        "t2": "uncounted",
        "l1": "counted",
        "l2": "counted",
    }


def test_a_conversion_counted_under_every_takes_no_place_under_one():
    rules = two_versions(CHANGE, actions=DOCUMENT["actions"] | {"purchase": DOCUMENT["actions"]["demo"]})
    events = [click("k", 0), conversion("every", 1), conversion("one", HOUR), conversion("no", HOUR + 1)]
    assert meta_statuses(*events, rules=rules) == {"every": "counted", "one": "counted", "no": "uncounted"}


# --- Order groups -----------------------------------------------------------------------------------------------------


def test_the_pixels_and_the_servers_report_of_one_order_count_once():
    result = answer_to(
        click("k", 0),
        conversion("server", MINUTE + 300, order_id="o", value=5),
        conversion("pixel", MINUTE, order_id="o", value=5),
    )
    assert statuses(result) == {("meta", "pixel"): "counted", ("meta", "server"): "duplicate"}
    row = rows_of(result)["meta", "server"]
    assert (row.duplicate_of, row.conversions, row.value, row.touch_event_id) == ("pixel", 0, 0, "k")
    assert conversions_in(result) == (1, 5)


def test_of_two_reports_at_one_time_the_smaller_event_id_is_the_order():
    events = [conversion("b", 0, order_id="o"), conversion("a", 0, order_id="o")]
    assert rows_of(answer_to(*events))["meta", "b"].duplicate_of == "a"


@pytest.mark.parametrize(
    "other", [{"order_id": "p"}, {"name": "demo"}, {"user_id": "other"}, {"advertiser_id": "b"}, {"platform": "tiktok"}]
)
def test_reports_that_differ_in_order_name_user_advertiser_or_platform_are_two_orders(other):
    second = conversion("y", 1, **({"order_id": "o"} | other))
    assert "duplicate" not in statuses(answer_to(conversion("x", 0, order_id="o"), second)).values()


@pytest.mark.parametrize("order_id", [None, ""])
def test_conversions_without_an_order_id_are_each_an_order(order_id):
    events = [click("k", 0), conversion("x", 1, order_id=order_id), conversion("y", 2, order_id=order_id)]
    assert meta_statuses(*events) == {"x": "counted", "y": "counted"}


def test_a_report_exactly_the_order_window_later_is_a_duplicate_and_one_millisecond_later_a_new_order():
    first = conversion("x", 0, order_id="o")
    assert meta_statuses(first, conversion("y", 90 * DAY, order_id="o"))["y"] == "duplicate"
    assert meta_statuses(first, conversion("y", 90 * DAY + 1, order_id="o"))["y"] == "unattributed"


def test_the_order_window_runs_from_the_order_not_from_its_latest_report():
    reports = [conversion(name, day * DAY, order_id="o") for name, day in (("a", 0), ("b", 80), ("c", 95), ("d", 180))]
    rows = rows_of(answer_to(*reports))
    assert {event_id: row.duplicate_of for (_, event_id), row in rows.items()} == {
        "a": None,
        "b": "a",
        "c": None,
        "d": "c",
    }


def test_a_duplicate_takes_no_place_where_one_counts():
    reports = [conversion("a", 1, "demo", order_id="o"), conversion("b", 2, "demo", order_id="o")]
    result = answer_to(click("k", 0), *reports, click("k2", 3), conversion("c", 4, "demo"))
    assert statuses(result) == {("meta", "a"): "counted", ("meta", "b"): "duplicate", ("meta", "c"): "counted"}


def test_an_earlier_report_that_comes_late_becomes_the_order():
    rows = rows_of(answer_to(click("k", 0), conversion("y", 2, order_id="o"), conversion("x", 1, order_id="o")))
    assert (rows["meta", "x"].status, rows["meta", "y"].duplicate_of) == ("counted", "x")


def test_a_report_without_a_platform_joins_the_order_on_each_platform_that_judges_it():
    touches = [click("m", 0), click("g", 0, platform="google_ads")]
    result = answer_to(
        *touches, conversion("pixel", 1, order_id="o"), conversion("shop", 2, platform=None, order_id="o")
    )
    assert statuses(result) == {
        ("meta", "pixel"): "counted",
        ("meta", "shop"): "duplicate",
        ("google_ads", "shop"): "counted",
    }

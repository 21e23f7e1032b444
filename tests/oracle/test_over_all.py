"""docs/counting.md, section 9: each order once over all platforms, whichever of them claim it."""

import msgspec
import pytest

from tests.oracle.cases import (
    CART,
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
    following,
    journey_of,
    journeys_of,
    policy,
    restate,
    retract,
    statuses,
    touch,
    view,
)

GOOGLE, TIKTOK, LINKEDIN = {"platform": "google_ads"}, {"platform": "tiktok"}, {"platform": "linkedin"}


def outcomes(*events, **changes):
    """The statuses over all platforms by event_id."""
    return {event_id: row.status for event_id, row in journeys_of(*events, **changes).items()}


def credited(*events, credit="last_click"):
    """(event_id, platform) of the touch that earns the conversion `x`."""
    touched = journey_of(*events, conversion("x", DAY, platform=None), credit=credit).credited
    return None if touched is None else (touched.event_id, touched.platform)


# --- One order ----------------------------------------------------------------------------------------------------------


def test_an_order_that_many_platforms_claim_is_counted_once():
    touches = [click("m", 0), click("g", 1, **GOOGLE), view("t", 2, **TIKTOK), click("l", 3, **LINKEDIN)]
    result = answer_to(*touches, conversion("x", MINUTE, platform=None, value=10), rules=following())
    assert conversions_in(result) == (4, 40)
    assert conversions_in(result, "all") == (1, 10)
    (row,) = result.journeys.values()
    assert row.counted_by == ["google_ads", "linkedin", "meta", "tiktok"]


def test_an_order_that_each_platform_reports_by_itself_is_counted_once_and_has_one_row():
    events = [click("m", 0), click("g", 1, **GOOGLE)]
    events += [conversion("from google", 3, order_id="o", value=9, **GOOGLE)]
    events += [conversion("from meta", 2, order_id="o", value=10)]
    result = answer_to(*events, rules=following())
    assert set(statuses(result).values()) == {"counted"}
    (row,) = result.journeys.values()
    assert (row.event_id, row.value, row.counted_by) == ("from meta", 10, ["google_ads", "meta"])
    assert (row.credited.event_id, row.credited.platform) == ("g", "google_ads")
    assert conversions_in(result, "all") == (1, 10)


def test_reports_without_an_order_id_are_orders_by_their_event_ids():
    events = [click("m", 0), click("g", 1, **GOOGLE), conversion("x", 2), conversion("y", 2, **GOOGLE)]
    assert outcomes(*events) == {"x": "counted", "y": "counted"}


def test_an_event_sent_with_and_without_its_platform_is_one_order_the_first_by_time_and_then_the_one_without():
    named, bare = conversion("x", 2, value=2), conversion("x", 3, platform=None, value=3)
    assert journey_of(click("k", 0), bare, named).value == 2
    assert journey_of(click("k", 0), named, bare | {"event_time": T0 + 2}).value == 3
    assert journey_of(click("k", 0), named, conversion("x", 2, value=4, **GOOGLE)).value == 4


def test_an_event_that_is_left_out_has_no_order_of_its_own():
    twin = conversion("x", 2, order_id="other", **GOOGLE)
    rows = journeys_of(click("k", 0), conversion("x", 1, order_id="o"), twin, conversion("y", 3, order_id="other"))
    assert {event_id: row.order_id for event_id, row in rows.items()} == {"x": "o", "y": "other"}


def test_a_platform_that_counts_the_twin_of_a_report_counts_the_order():
    events = [conversion("x", 1, platform=None), click("g", 2, **GOOGLE), conversion("x", 3, **GOOGLE)]
    result = answer_to(*events, rules=following())
    assert statuses(result) == {("", "x"): "unattributed", ("google_ads", "x"): "counted"}
    (row,) = result.journeys.values()
    assert (row.status, row.event_time, row.counted_by) == ("unattributed", T0 + 1, ["google_ads"])


def test_a_conversion_that_names_its_platform_may_be_earned_by_another_one():
    row = journey_of(click("g", 0, **GOOGLE), conversion("x", 1))
    assert (row.status, row.credited.platform, row.counted_by) == ("counted", "google_ads", [])


@pytest.mark.parametrize(("gap", "expected"), [(0, ["x"]), (1, ["x", "y"])])
def test_a_report_on_another_platform_is_of_the_order_within_the_order_window(gap, expected):
    later = conversion("y", 90 * DAY + gap, order_id="o", **GOOGLE)
    assert sorted(journeys_of(conversion("x", 0, order_id="o"), later)) == expected


@pytest.mark.parametrize("other", [{"order_id": "p"}, {"name": "demo"}, {"user_id": "v"}, {"advertiser_id": "b"}])
def test_reports_that_differ_in_order_name_user_or_advertiser_are_two_orders(other):
    second = conversion("y", 1, **({"order_id": "o"} | other))
    assert sorted(journeys_of(conversion("x", 0, order_id="o"), second)) == ["x", "y"]


def test_an_empty_order_id_is_none():
    rows = journeys_of(conversion("x", 0, order_id=""), conversion("y", 1, order_id="", **GOOGLE))
    assert [row.order_id for row in rows.values()] == [None, None]


def test_an_earlier_report_that_comes_late_becomes_the_conversion():
    events = [conversion("y", 2, order_id="o"), click("k", 1), conversion("x", 1, order_id="o", **GOOGLE)]
    assert outcomes(*events) == {"x": "unattributed"}


@pytest.mark.parametrize("name", ["scroll", "unheard_of"])
def test_noise_is_in_no_journey_row(name):
    assert outcomes(click("k", 0), conversion("x", 1, name)) == {}


def test_a_report_that_was_noise_at_its_time_does_not_stand_for_the_one_after_it():
    one = following()
    silent = policy(actions=DOCUMENT["actions"] | {"purchase": DOCUMENT["actions"]["scroll"]}).versions[0]
    rules = msgspec.structs.replace(
        one,
        versions=(silent, msgspec.structs.replace(one.versions[0], number=2, effective_from_ms=T0 + HOUR)),
    )
    events = [click("k", 0), conversion("x", 1, order_id="o"), conversion("x", HOUR, order_id="o", **GOOGLE)]
    (row,) = answer_to(*events, rules=rules).journeys.values()
    assert (row.event_time, row.status) == (T0 + HOUR, "counted")


# --- The credited touch -------------------------------------------------------------------------------------------------


def test_the_last_click_beats_any_newer_view():
    touches = [click("old", 0), click("k", HOUR, **GOOGLE), touch("engaged_view", "e", 2 * HOUR, **GOOGLE)]
    assert credited(*touches, view("v", 3 * HOUR)) == ("k", "google_ads")
    assert credited(touches[2], view("v", 3 * HOUR)) == ("e", "google_ads")
    assert credited(view("w", 2), view("v", 3 * HOUR, **TIKTOK)) == ("v", "tiktok")


def test_the_last_touch_is_the_newest_of_any_kind():
    touches = [click("k", HOUR), view("v", 3 * HOUR), touch("engaged_view", "e", 2 * HOUR, **GOOGLE)]
    assert credited(*touches, credit="last_touch") == ("v", "meta")


def test_of_one_time_the_last_touch_is_the_click_then_the_larger_id_then_the_larger_platform():
    at_once = [click("a", 0), view("b", 0), touch("engaged_view", "z", 0, **GOOGLE)]
    assert credited(*at_once, credit="last_touch") == ("a", "meta")
    same = [click("b", 0), click("b", 0, **GOOGLE), click("a", 0, **LINKEDIN)]
    assert credited(*same, credit="last_touch") == ("b", "meta")
    assert credited(*same, credit="last_click") == ("b", "meta")


def test_the_first_touch_is_the_first_creditable_one_whatever_its_kind():
    touches = [view("not google's", 0, **GOOGLE), view("v", 1), click("k", 2)]
    assert credited(*touches, credit="first_touch") == ("v", "meta")
    same = [click("b", 1), view("b", 1), click("b", 1, **GOOGLE), click("a", 1, **LINKEDIN)]
    assert credited(*same, credit="first_touch") == ("a", "linkedin")
    assert credited(*same[:3], credit="first_touch") == ("b", "google_ads")


@pytest.mark.parametrize("credit", ["last_click", "last_touch", "first_touch"])
def test_of_one_touch_that_was_counted_twice_the_first_processed_earns(credit):
    events = [click("k", 0, campaign_id="first"), view("later", 5 * DAY, **GOOGLE), click("k", 0, campaign_id="second")]
    row = journey_of(*events, conversion("x", 5 * DAY + 1), credit=credit)
    assert (row.credit, row.credited.campaign_id) == (credit, "first")


def test_a_late_better_touch_takes_the_order_over():
    late = click("k", HOUR, **GOOGLE)
    assert journey_of(click("m", 0), conversion("x", DAY), late).credited.event_id == "k"


# --- Status, value, counts ----------------------------------------------------------------------------------------------


def test_a_retraction_takes_the_order_back_and_a_restatement_replaces_its_value():
    events = [click("k", 0), conversion("x", MINUTE, order_id="o", value=5)]
    second = conversion("y", 2 * MINUTE, order_id="o", value=5, **GOOGLE)
    taken = journey_of(*events, second, retract("r", HOUR, conversion_event_id="y"))
    assert (taken.status, taken.conversions, taken.value, taken.credited.event_id) == ("retracted", 0, 0, "k")
    restated = answer_to(*events, restate("r", HOUR, 3.5, order_id="o"), rules=following())
    assert conversions_in(restated, "all") == (1, 3.5)
    assert {row.value for row in restated.journeys.values()} == {3.5}
    assert {row.value for row in restated.models.values()} == {3.5}


def test_an_adjustment_is_judged_against_the_order_over_all_platforms():
    first = conversion("x", 0, order_id="o", value=5, **GOOGLE)
    second = conversion("y", 2 * DAY, order_id="o", value=5)
    late = retract("r", 56 * DAY, order_id="o")  # in time for meta's order of its own, too late for the one over all
    result = answer_to(first, click("k", DAY), second, late, rules=following())
    assert statuses(result) == {("google_ads", "x"): "unattributed", ("meta", "y"): "retracted"}
    (row,) = result.journeys.values()
    assert (row.event_id, row.status, row.value) == ("x", "unattributed", 5)


def test_an_adjustment_that_applies_on_no_platform_has_one_letter_and_none_of_the_order_over_all():
    events = [click("k", 0), conversion("x", MINUTE, order_id="o"), retract("r", 0, order_id="o")]
    with_journeys = answer_to(*events, rules=following())
    assert with_journeys.refused_adjustments == answer_to(*events).refused_adjustments
    assert len(with_journeys.refused_adjustments) == 1


def test_where_the_action_counts_one_the_first_conversion_of_a_touch_is_counted_whichever_platform_reports_it():
    events = [click("k", 0, **GOOGLE), conversion("late", 2, "demo", **TIKTOK), conversion("early", 1, "demo")]
    assert outcomes(*events) == {"early": "counted", "late": "uncounted"}
    assert outcomes(*events, retract("r", 3, conversion_event_id="early")) == {"early": "retracted", "late": "counted"}


def test_of_equal_times_the_smaller_event_id_is_counted():
    assert outcomes(click("k", 0), conversion("y", 1, "demo"), conversion("x", 1, "demo")) == {
        "x": "counted",
        "y": "uncounted",
    }


def test_a_place_is_one_actions_and_one_touchs_of_one_kind_and_platform():
    events = [
        view("t", 0),
        conversion("by view", 1, "demo"),
        click("t", 2),
        conversion("by click", 3, "demo"),
        conversion("other action", 4, "signup"),
        click("t", 5, **GOOGLE),
        conversion("other platform", 6, "demo"),
        conversion("no", 7, "demo"),
    ]
    found = outcomes(*events)
    assert {event_id for event_id, status in found.items() if status == "uncounted"} == {"no"}


@pytest.mark.parametrize("past", [0, 1])
def test_a_click_id_that_comes_again_has_its_place_back_beyond_an_orders_window(past: int) -> None:
    events = [
        click("k", 0),
        conversion("x", 1, "demo"),
        click("k", 90 * DAY),
        conversion("y", 90 * DAY + 1 + past, "demo"),
    ]
    assert outcomes(*events) == {"x": "counted", "y": ["uncounted", "counted"][past]}


def test_one_click_has_one_place_however_short_an_orders_window_is():
    rules = following()
    short = msgspec.structs.replace(rules, bounds=msgspec.structs.replace(rules.bounds, order_window_ms=HOUR))
    events = [click("k", 0), conversion("x", 1, "demo"), conversion("y", 6 * DAY, "demo"), click("k", 6 * DAY + 1)]
    result = answer_to(*events, conversion("z", 6 * DAY + 2, "demo"), rules=short)
    found = {row.event_id: row.status for row in result.journeys.values()}
    assert found == {"x": "counted", "y": "uncounted", "z": "counted"}


def test_the_actions_own_count_holds_whatever_platforms_say():
    linkedin = [click("k", 0, **LINKEDIN), *(conversion(each, 1, "demo", **LINKEDIN) for each in ("d1", "d2"))]
    assert outcomes(*linkedin) == {"d1": "counted", "d2": "uncounted"}  # linkedin counts every one
    tiktok = [view("v", 0, **TIKTOK), *(conversion(each, 1, **TIKTOK) for each in ("t1", "t2"))]
    assert outcomes(*tiktok) == {"t1": "counted", "t2": "counted"}  # tiktok counts one purchase a touch
    assert [row.counted_by for row in journeys_of(*tiktok).values()] == [["tiktok"], []]


def test_unattributed_and_uncounted_orders_keep_their_value_and_are_in_no_count():
    events = [conversion("before", 0, value=1), click("k", 0), conversion("first", 1, "demo", value=2)]
    result = answer_to(*events, conversion("second", 2, "demo"), rules=following())
    rows = {row.event_id: (row.status, row.conversions, row.value) for row in result.journeys.values()}
    assert rows == {"before": ("unattributed", 0, 1), "first": ("counted", 1, 2), "second": ("uncounted", 0, 50)}
    assert conversions_in(result, "all") == (1, 2)


def test_count_rows_of_scope_all_stand_under_the_touchs_dimensions_by_window_action_and_currency():
    result = answer_to(
        click("k", 0, campaign_id="clicked", ad_id="1", cost=2),
        view("v", 1, campaign_id="seen", **TIKTOK),
        conversion("x", HOUR, platform=None, value=2, currency="EUR"),
        conversion("y", HOUR + 1, value=3, currency="EUR"),
        conversion("z", HOUR, value=4),
        conversion("w", HOUR + MINUTE, value=5),
        rules=following(),
    )
    counts = {where: measures for where, measures in counts_of(result).items() if where[1] == "all"}
    assert counts == {
        (HOUR, "all", "clicked", "1", "purchase", "EUR"): {"conversions": 2, "value": 5},
        (HOUR, "all", "clicked", "1", "purchase", ""): {"conversions": 1, "value": 4},
        (HOUR + MINUTE, "all", "clicked", "1", "purchase", ""): {"conversions": 1, "value": 5},
    }
    assert {row.platform == "all" for row in result.counts.values() if row.scope == "all"} == {True}
    assert {row.platform == "all" for row in result.counts.values() if row.scope == "platform"} == {False}


def test_the_order_says_what_its_action_means_by_the_version_of_its_time():
    one = following()
    worth = policy(actions=DOCUMENT["actions"] | {"demo": CART | {"value": 7, "count": "one"}}).versions[0]
    later = msgspec.structs.replace(worth, number=2, effective_from_ms=T0 + HOUR)
    rules = msgspec.structs.replace(one, versions=(*one.versions, later))
    events = [conversion("old", HOUR - 1, "demo"), conversion("new", HOUR, "demo")]
    rows = answer_to(*events, rules=rules).journeys.values()
    said = {row.event_id: (row.policy_version, row.action_class, row.intent, row.outcome, row.value) for row in rows}
    assert said == {"old": (1, "macro", "hard", "revenue", 50), "new": (2, "micro", "soft", "revenue", 7)}

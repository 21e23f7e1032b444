"""docs/counting.md, section 5, on cases small enough to be computed by hand."""

import pytest

from tests.oracle.cases import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    T0,
    TOPIC,
    answer_to,
    click,
    conversion,
    conversions_in,
    meta_statuses,
    policy,
    restate,
    retract,
    rows_of,
    statuses,
)

# --- Adjustments ------------------------------------------------------------------------------------------------------

ORDER = [click("k", 0), conversion("x", MINUTE, order_id="o", value=5)]
AT = (TOPIC, 0)


def refused(*events):
    """The reasons of the refused adjustments by their place in the topic."""
    return {offset: reason for (_, _, offset), reason in answer_to(*events).refused_adjustments.items()}


@pytest.mark.parametrize("name", [{"order_id": "o"}, {"conversion_event_id": "x"}])
def test_a_retraction_takes_the_order_and_its_value_back(name):
    result = answer_to(*ORDER, retract("r", 2 * MINUTE, **name))
    row = rows_of(result)["meta", "x"]
    assert (row.status, row.conversions, row.value, row.touch_event_id) == ("retracted", 0, 0, "k")
    assert conversions_in(result) == (0, 0)
    assert not result.refused_adjustments


def test_an_adjustment_may_name_any_report_of_an_order():
    second = conversion("y", 2 * MINUTE, order_id="o", value=5)
    assert meta_statuses(*ORDER, second, retract("r", 3 * MINUTE, conversion_event_id="y")) == {
        "x": "retracted",
        "y": "duplicate",
    }


def test_an_order_retracted_without_a_touch_is_retracted_not_unattributed():
    assert meta_statuses(ORDER[1], retract("r", 2 * MINUTE, order_id="o")) == {"x": "retracted"}


def test_a_restatement_replaces_the_value_and_keeps_the_count():
    assert conversions_in(answer_to(*ORDER, restate("r", 2 * MINUTE, 3.5, order_id="o"))) == (1, 3.5)


def test_a_retraction_frees_its_place_for_the_next_in_line():
    demos = [conversion(each, at, "demo") for at, each in enumerate("xyz", 1)]
    events = [click("k", 0), *demos, retract("r", 9, conversion_event_id="x")]
    assert meta_statuses(*events) == {"x": "retracted", "y": "counted", "z": "uncounted"}


def test_an_adjustment_concerns_its_order_on_every_platform():
    touches = [click("m", 0), click("g", 0, platform="google_ads")]
    result = answer_to(*touches, conversion("x", 1, platform=None), retract("r", 2, conversion_event_id="x"))
    assert statuses(result) == {("meta", "x"): "retracted", ("google_ads", "x"): "retracted"}


def test_an_adjustment_at_the_orders_own_time_applies_and_one_before_it_is_refused():
    assert refused(*ORDER, retract("r", MINUTE, order_id="o")) == {}
    assert refused(*ORDER, retract("r", MINUTE - 1, order_id="o")) == {2: "adjustment_precedes_conversion"}


def test_an_adjustment_exactly_its_window_after_the_order_applies_and_one_millisecond_more_is_too_old():
    assert refused(*ORDER, retract("r", MINUTE + 55 * DAY, order_id="o")) == {}
    assert refused(*ORDER, retract("r", MINUTE + 55 * DAY + 1, order_id="o")) == {2: "adjustment_too_old"}


@pytest.mark.parametrize("kind", ["retract", "restate"])
def test_of_two_adjustments_of_one_kind_the_earlier_applies_and_the_later_is_twice(kind):
    def adjustment(event_id, at, value):
        return restate(event_id, at, value, order_id="o") | {"adjustment": kind}

    events = [*ORDER, adjustment("late", 3 * MINUTE, 2), adjustment("early", 2 * MINUTE, 1)]
    assert refused(*events) == {2: "adjustment_twice"}
    assert rows_of(answer_to(*events))["meta", "x"].value == (0 if kind == "retract" else 1)


def test_of_two_adjustments_at_one_time_the_smaller_event_id_applies():
    events = [*ORDER, restate("b", 2 * MINUTE, 2, order_id="o"), restate("a", 2 * MINUTE, 1, order_id="o")]
    assert refused(*events) == {2: "adjustment_twice"}


def test_a_restatement_after_a_retraction_is_twice_and_a_retraction_after_a_restatement_applies():
    early, late = 2 * MINUTE, 3 * MINUTE
    after = [*ORDER, retract("r", early, order_id="o"), restate("s", late, 2, order_id="o")]
    before = [*ORDER, restate("s", early, 2, order_id="o"), retract("r", late, order_id="o")]
    assert refused(*after) == {3: "adjustment_twice"}
    assert refused(*before) == {}
    assert meta_statuses(*before) == {"x": "retracted"}


def test_a_refused_adjustment_does_not_stand_in_the_way_of_a_later_one():
    events = [*ORDER, retract("early", 0, order_id="o"), retract("right", 2 * MINUTE, order_id="o")]
    assert refused(*events) == {2: "adjustment_precedes_conversion"}
    assert meta_statuses(*events) == {"x": "retracted"}


def test_an_adjustment_that_applies_to_one_of_its_orders_is_not_refused():
    other = conversion("y", 3 * MINUTE, "demo", order_id="o")
    events = [*ORDER, other, retract("r", 2 * MINUTE, order_id="o")]
    assert refused(*events) == {}
    assert statuses(answer_to(*events)) == {("meta", "x"): "retracted", ("meta", "y"): "counted"}


def test_an_adjustment_refused_by_all_its_orders_has_the_reason_of_the_first_platforms_earliest():
    old = conversion("old", 0, platform="google_ads", order_id="o")
    new = conversion("new", 60 * DAY, order_id="o")
    assert refused(new, old | {"event_time": T0 + 54 * DAY}, retract("r", 53 * DAY + 1, order_id="o")) == {
        2: "adjustment_precedes_conversion"
    }
    result = refused(old, new, retract("r", 56 * DAY, order_id="o"))
    assert result == {2: "adjustment_too_old"}  # google_ads comes before meta, whose order it precedes
    result = refused(old | {"platform": "meta"}, new | {"platform": "google_ads"}, retract("r", 56 * DAY, order_id="o"))
    assert result == {2: "adjustment_precedes_conversion"}


@pytest.mark.parametrize("name", [{"order_id": "o"}, {"conversion_event_id": "x"}])
def test_an_adjustment_that_says_of_which_action_concerns_orders_of_that_one_alone(name):
    demo = conversion("x", MINUTE, "demo", order_id="o", value=5)
    both = answer_to(*ORDER, demo, retract("r", 2 * MINUTE, conversion_name="demo", **name))
    statuses_by_name = {row.conversion_name: row.status for row in both.attributed.values()}
    assert statuses_by_name == {"purchase": "counted", "demo": "retracted"}
    restated = answer_to(*ORDER, demo, restate("s", 2 * MINUTE, 3, conversion_name="purchase", **name))
    assert {row.conversion_name: row.value for row in restated.attributed.values()} == {"purchase": 3, "demo": 5}


def test_an_adjustment_of_another_action_than_its_order_waits_without_a_letter():
    early = retract("r", 0, order_id="o", conversion_name="demo")
    assert refused(*ORDER, early) == {}
    assert meta_statuses(*ORDER, early) == {"x": "counted"}


EUROS = [ORDER[0], ORDER[1] | {"currency": "EUR"}]


def test_a_restatement_in_another_currency_is_refused_and_does_not_stand():
    dollars = restate("s", 2 * MINUTE, 450, order_id="o", currency="USD")
    euros = restate("t", 3 * MINUTE, 400, order_id="o", currency="EUR")
    assert refused(*EUROS, dollars) == {2: "adjustment_in_another_currency"}
    assert refused(*EUROS, dollars, euros) == {2: "adjustment_in_another_currency"}
    assert conversions_in(answer_to(*EUROS, dollars, euros)) == (1, 400)
    assert refused(*EUROS, euros, dollars | {"event_time": T0 + HOUR}) == {3: "adjustment_in_another_currency"}


@pytest.mark.parametrize(("order", "currency"), [(EUROS, None), (EUROS, "EUR"), (ORDER, "USD"), (ORDER, None)])
def test_a_restatement_applies_where_one_of_the_two_says_no_currency_or_both_the_same(order, currency):
    restatement = restate("s", 2 * MINUTE, 4, order_id="o", currency=currency)
    assert conversions_in(answer_to(*order, restatement)) == (1, 4)


def test_a_retraction_takes_back_whatever_currency_it_names():
    assert meta_statuses(*EUROS, retract("r", 2 * MINUTE, order_id="o", currency="USD")) == {"x": "retracted"}


@pytest.mark.parametrize(("at", "reason"), [(0, "adjustment_precedes_conversion"), (56 * DAY, "adjustment_too_old")])
def test_a_restatement_at_the_wrong_time_is_refused_for_that_first(at, reason):
    assert refused(*EUROS, restate("s", at, 4, order_id="o", currency="USD")) == {2: reason}


def test_the_currency_of_an_order_is_that_of_all_its_reports_together():
    later = ORDER[1] | {"currency": "EUR", "event_time": T0 + MINUTE + 1}
    rules = policy(merge_reports="5m")
    dollars = restate("s", 2 * MINUTE, 450, order_id="o", currency="USD")
    found = answer_to(*ORDER, later, dollars, rules=rules)
    assert set(found.refused_adjustments.values()) == {"adjustment_in_another_currency"}


def test_an_adjustment_of_an_order_not_known_so_far_waits():
    waiting = retract("r", 2 * MINUTE, order_id="o")
    assert refused(click("k", 0), waiting) == {}
    assert meta_statuses(click("k", 0), waiting, ORDER[1]) == {"x": "retracted"}


@pytest.mark.parametrize("other", [{"user_id": "other"}, {"advertiser_id": "b"}, {"order_id": "p"}])
def test_an_adjustment_of_another_user_advertiser_or_order_changes_nothing(other):
    result = answer_to(*ORDER, retract("r", 2 * MINUTE, **({"order_id": "o"} | other)))
    assert statuses(result)["meta", "x"] == "counted"


def test_an_adjustment_without_an_order_id_does_not_name_conversions_without_one():
    events = [click("k", 0), conversion("x", 1), conversion("y", 1), retract("r", 2, conversion_event_id="y")]
    assert meta_statuses(*events) == {"x": "counted", "y": "retracted"}


def test_an_earlier_report_that_comes_late_can_make_an_adjustment_apply_after_all():
    early = conversion("w", 0, order_id="o", value=5)
    adjustment = retract("r", SECOND, order_id="o")
    assert refused(*ORDER, adjustment) == {2: "adjustment_precedes_conversion"}
    assert refused(*ORDER, adjustment, early) == {}


def test_noise_is_no_order_so_an_adjustment_of_it_waits():
    assert refused(conversion("x", 0, "scroll"), retract("r", 1, conversion_event_id="x")) == {}


def test_a_refused_adjustment_is_an_accepted_event():
    result = answer_to(*ORDER, retract("r", 0, order_id="o"))
    assert (result.accepted, result.rejected) == (3, {})


def test_windows_of_orders_and_adjustments_are_the_policys():
    rules = policy(order_window="1h", adjustment_window="1h")
    events = [conversion("x", 0, order_id="o"), conversion("y", HOUR + 1, order_id="o")]
    assert meta_statuses(*events, rules=rules)["y"] == "unattributed"
    result = answer_to(events[0], retract("r", HOUR + 1, order_id="o"), rules=rules)
    assert result.refused_adjustments == {(*AT, 1): "adjustment_too_old"}

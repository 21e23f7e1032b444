"""docs/counting.md, section 11: customers and abandonment. Purchases are paid orders; a cart or a checkout is left after 1 h."""

import pytest

from tests.oracle.cases import (
    DAY,
    HOUR,
    MINUTE,
    T0,
    answer_to,
    click,
    conversion,
    following,
    journey_of,
    journeys_of,
    retract,
    view,
)

GOOGLE = {"platform": "google_ads"}


def customers(*events, **changes):
    """Who each order is by, by event_id."""
    return {event_id: row.customer for event_id, row in journeys_of(*events, **changes).items()}


def cart(event_id, at_ms, **fields):
    return conversion(event_id, at_ms, "cart", **({"platform": None} | fields))


def checkout(event_id, at_ms, **fields):
    return conversion(event_id, at_ms, "checkout", **({"platform": None} | fields))


def taken_up(*events, event_id="x", **changes):
    """(action, T0-relative time, the touch that brought the person back) of what an order completes; None of nothing."""
    row = journey_of(*events, event_id=event_id, **changes)
    if row.abandoned_action is None:
        assert (row.abandoned_time, row.returned_by) == (None, None)
        return None
    return row.abandoned_action, row.abandoned_time - T0, row.returned_by and row.returned_by.event_id


# --- Customers ----------------------------------------------------------------------------------------------------------


def test_the_first_paid_order_is_a_new_customers_and_the_next_a_returning_ones():
    assert customers(conversion("y", 2), conversion("x", 1)) == {"x": "new", "y": "returning"}


def test_an_order_is_a_customers_whether_it_counts_or_not():
    one_each = following(orders=["demo"])
    events = [click("k", 1), conversion("counted", 2, "demo"), conversion("uncounted", 3, "demo")]
    rows = answer_to(conversion("unattributed", 0, "demo"), *events, rules=one_each).journeys.values()
    assert {row.event_id: (row.status, row.customer) for row in rows} == {
        "unattributed": ("unattributed", "new"),
        "counted": ("counted", "returning"),
        "uncounted": ("uncounted", "returning"),
    }


def test_other_actions_make_no_customer_and_are_none():
    events = [conversion("s", 0, "signup"), cart("c", 1), conversion("x", 2), conversion("d", 3, "demo")]
    assert customers(*events) == {"s": None, "c": None, "x": "new", "d": None}


def test_any_of_the_paid_actions_makes_a_customer_for_the_others():
    events = [conversion("d", 0, "demo"), conversion("x", 1)]
    assert customers(*events, orders=["purchase", "demo"]) == {"d": "new", "x": "returning"}


def test_a_retracted_order_is_nobodys_and_the_next_one_becomes_the_first():
    events = [conversion("x", 1, order_id="o"), conversion("y", 2), conversion("z", 3)]
    assert customers(*events, retract("r", 4, order_id="o")) == {"x": None, "y": "new", "z": "returning"}


@pytest.mark.parametrize(("gap", "expected"), [(0, "returning"), (1, "new")])
def test_a_customer_is_one_for_the_customer_window_to_the_millisecond(gap, expected):
    events = [conversion("x", 0), conversion("y", 10 * DAY + gap)]
    assert customers(*events, customer_window="10d")["y"] == expected


def test_the_customer_window_is_730_days_unless_the_policy_says_otherwise():
    events = [conversion("x", 0), conversion("y", 730 * DAY), conversion("z", 1461 * DAY)]
    assert customers(*events) == {"x": "new", "y": "returning", "z": "new"}


def test_a_customer_stays_one_by_any_order_within_the_window_not_just_the_first():
    events = [conversion("x", 0), conversion("y", 10 * DAY), conversion("z", 20 * DAY)]
    assert customers(*events, customer_window="10d") == {"x": "new", "y": "returning", "z": "returning"}


def test_of_one_time_the_order_with_the_smaller_event_id_is_first_and_of_one_id_the_one_of_the_smaller_name():
    assert customers(conversion("b", 0), conversion("a", 0)) == {"a": "new", "b": "returning"}
    twins = [conversion("x", 0), conversion("x", 0, "demo")]
    rows = answer_to(*twins, rules=following(orders=["purchase", "demo"])).journeys.values()
    assert {row.conversion_name: row.customer for row in rows} == {"demo": "new", "purchase": "returning"}


def test_reports_of_one_order_make_nobody_return():
    events = [conversion("x", 0, order_id="o"), conversion("y", 1, order_id="o", **GOOGLE)]
    assert customers(*events) == {"x": "new"}


def test_an_earlier_order_that_comes_late_makes_the_later_one_a_repeat():
    assert customers(conversion("y", DAY), conversion("x", 0)) == {"x": "new", "y": "returning"}


def test_customers_are_one_advertisers():
    assert customers(conversion("x", 0), conversion("y", 1, advertiser_id="b")) == {"x": "new", "y": "new"}


# --- Abandonment --------------------------------------------------------------------------------------------------------


def test_an_order_completes_what_was_left_and_says_who_brought_the_person_back():
    events = [cart("c", 0), click("k", 2 * HOUR), view("v", 3 * HOUR)]
    assert taken_up(*events, conversion("x", 4 * HOUR)) == ("cart", 0, "v")


@pytest.mark.parametrize(("at", "expected"), [(HOUR, ("cart", 0, None)), (HOUR - 1, None)])
def test_it_is_left_after_an_hour_to_the_millisecond(at, expected):
    assert taken_up(cart("c", 0), conversion("x", at)) == expected


def test_how_long_is_the_policys():
    abandonment = {"actions": ["cart"], "after": "10m"}
    assert taken_up(cart("c", 0), conversion("x", 10 * MINUTE), abandonment=abandonment) == ("cart", 0, None)
    assert taken_up(cart("c", 0), conversion("x", 10 * MINUTE - 1), abandonment=abandonment) is None
    assert taken_up(checkout("c", 0), conversion("x", DAY), abandonment=abandonment) is None


def test_the_last_one_decides_so_what_goes_on_was_not_left():
    assert taken_up(cart("c", 0), checkout("d", 3 * HOUR), conversion("x", 4 * HOUR)) == ("checkout", 3 * HOUR, None)
    assert taken_up(cart("c", 0), checkout("d", 4 * HOUR - MINUTE), conversion("x", 4 * HOUR)) is None


@pytest.mark.parametrize(("at", "expected"), [(0, ("cart", 0, None)), (-1, None)])
def test_it_reaches_back_over_the_journeys_window_to_the_millisecond(at, expected):
    assert taken_up(cart("c", at), conversion("x", 30 * DAY)) == expected


def test_what_an_order_in_between_completed_is_not_completed_again():
    events = [cart("c", 0), conversion("w", 2 * HOUR), conversion("x", 4 * HOUR)]
    assert taken_up(*events) is None
    assert taken_up(*events, event_id="w") == ("cart", 0, None)
    assert taken_up(*events, cart("d", 2 * HOUR + 1)) == ("cart", 2 * HOUR + 1, None)


def test_a_retracted_order_in_between_completed_nothing():
    events = [cart("c", 0), conversion("w", 2 * HOUR), conversion("x", 4 * HOUR)]
    assert taken_up(*events, retract("r", 5 * HOUR, conversion_event_id="w")) == ("cart", 0, None)


def test_an_order_of_another_action_in_between_completes_nothing():
    assert taken_up(cart("c", 0), conversion("s", HOUR, "signup"), conversion("x", 2 * HOUR)) == ("cart", 0, None)


def test_an_order_in_between_completes_however_long_ago_somebody_was_a_customer():
    events = [cart("c", 0), conversion("w", 2 * DAY), conversion("x", 20 * DAY)]
    row = journey_of(*events, customer_window="1d")
    assert (row.customer, row.abandoned_action) == ("new", None)


def test_a_cart_counts_by_each_event_whatever_its_status():
    reports = [cart("c", 0, order_id="o"), cart("d", HOUR, order_id="o", platform="meta")]
    taken_back = retract("r", 2 * HOUR, order_id="o")
    assert taken_up(*reports, taken_back, conversion("x", 3 * HOUR)) == ("cart", HOUR, None)
    twins = [cart("c", 0), cart("c", 2 * HOUR, platform="meta")]
    assert taken_up(*twins, conversion("x", 4 * HOUR)) == ("cart", 2 * HOUR, None)


def test_of_one_time_the_larger_event_id_is_the_last_and_of_one_id_the_larger_name():
    assert taken_up(checkout("c", 0), cart("d", 0), conversion("x", 2 * HOUR))[0] == "cart"
    assert taken_up(checkout("c", 0), cart("c", 0), conversion("x", 2 * HOUR))[0] == "checkout"


def test_of_one_time_a_cart_with_a_smaller_id_stands_before_the_order_and_hides_the_older_one():
    events = [cart("c", 0), conversion("x", 2 * HOUR)]
    assert taken_up(*events, cart("w", 2 * HOUR)) is None
    assert taken_up(*events, cart("y", 2 * HOUR)) == ("cart", 0, None)


def test_of_one_time_a_cart_stands_after_the_order_before_it_by_its_id():
    events = [conversion("m", 0), conversion("x", 2 * HOUR)]
    assert taken_up(*events, cart("n", 0)) == ("cart", 0, None)
    assert taken_up(*events, cart("l", 0)) is None


def test_a_touch_at_the_carts_own_millisecond_brought_nobody_back():
    events = [cart("c", HOUR), conversion("x", 3 * HOUR)]
    assert taken_up(*events, click("k", HOUR)) == ("cart", HOUR, None)
    assert taken_up(*events, click("k", HOUR + 1)) == ("cart", HOUR, "k")


def test_only_a_creditable_touch_brings_somebody_back():
    events = [cart("c", 0), view("not google's", HOUR, **GOOGLE), conversion("x", 2 * HOUR)]
    assert taken_up(*events) == ("cart", 0, None)


def test_the_touch_that_brought_somebody_back_need_not_be_the_credited_one():
    row = journey_of(cart("c", HOUR), click("k", 0), view("v", 2 * HOUR), conversion("x", 3 * HOUR))
    assert (row.credited.event_id, row.returned_by.event_id) == ("k", "v")


def test_a_retracted_order_and_other_actions_complete_nothing():
    events = [cart("c", 0), conversion("x", 2 * HOUR), conversion("s", 3 * HOUR, "signup")]
    assert taken_up(*events, retract("r", 4 * HOUR, conversion_event_id="x")) is None
    assert taken_up(*events, event_id="s") is None


def test_an_order_completes_a_cart_whether_it_is_attributed_or_not():
    row = journey_of(cart("c", 0), conversion("x", 2 * HOUR))
    assert (row.status, row.abandoned_action) == ("unattributed", "cart")


def test_a_late_cart_is_completed_by_the_order_that_was_there_before():
    assert taken_up(conversion("x", 2 * HOUR), cart("c", 0)) == ("cart", 0, None)

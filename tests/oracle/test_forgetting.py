"""docs/counting.md, section 12: what a forget leaves of a person, computed by hand."""

from typing import Any

import pytest

from app.contract import reasons
from app.verify.differences import Upsert, fold_log
from app.verify.oracle import answer
from tests.oracle.cases import (
    DAY,
    HOUR,
    MINUTE,
    T0,
    TOPIC,
    Fields,
    answer_to,
    click,
    conversion,
    conversions_in,
    counts_of,
    event,
    following,
    policy,
    record,
    restate,
    retract,
    rows_of,
    statuses,
    view,
    visit,
)


def forget(event_id: str, at_ms: int, **fields: Any) -> Fields:
    """A forget of user `u` of advertiser `a`, up to T0 + `at_ms`."""
    return event("forget", event_id, at_ms, **fields)


def in_batches(*batches: list[Fields], journeys: bool = False) -> Any:
    """The answer to events of one partition that were counted in these batches."""
    events = [each for batch in batches for each in batch]
    ends = [sum(map(len, batches[: number + 1])) for number in range(len(batches))]
    order = {0: [{TOPIC: (end - len(batch), end)} for end, batch in zip(ends, batches, strict=True)]}
    records = [record(each, offset, timestamp_ms=T0 + 3 * HOUR) for offset, each in enumerate(events)]
    rules = following() if journeys else policy()
    return answer(records, rules, 1, order)


# --- What was before it


def test_rows_go_and_counts_stay():
    result = answer_to(click("k", 0), conversion("x", HOUR, value=9.5, currency="EUR"), forget("f", 2 * HOUR))
    assert result.attributed == {}
    counts = counts_of(result)
    assert counts[0, "meta", "c", None, "", ""] == {"clicks": 1}
    assert counts[HOUR, "meta", "c", None, "purchase", "EUR"] == {"conversions": 1, "value": 9.5}
    assert (result.accepted, result.forgets, result.forgotten) == (3, 1, 0)


def test_journeys_and_models_go_and_their_counts_stay():
    events = [click("k", 0), visit("v", MINUTE), conversion("x", HOUR, value=10)]
    before = answer_to(*events, rules=following())
    result = answer_to(*events, forget("f", 2 * HOUR), rules=following())
    assert len(before.journeys) == 1
    assert len(before.models) == 5
    assert (result.journeys, result.models) == ({}, {})
    assert conversions_in(result, "all") == conversions_in(before, "all") == (1, 10)


@pytest.mark.parametrize(("at_ms", "left"), [(HOUR - 1, 1), (HOUR, 0)])
def test_the_very_time_of_the_forget_is_forgotten(at_ms, left):
    assert len(answer_to(click("k", 0), conversion("x", HOUR), forget("f", at_ms)).attributed) == left


def test_only_the_user_of_the_advertiser_is_forgotten():
    others = [{"user_id": "w"}, {"advertiser_id": "b"}, {}]
    events = [conversion(f"x{at}", HOUR, **other) for at, other in enumerate(others)]
    result = answer_to(*events, forget("f", HOUR))
    assert set(rows_of(result)) == {("meta", "x0"), ("meta", "x1")}


def test_a_counted_conversion_that_a_retraction_of_before_took_back_stays_so():
    events = [click("k", 0), conversion("x", HOUR, order_id="o"), retract("r", 2 * HOUR, order_id="o")]
    assert conversions_in(answer_to(*events, forget("f", 3 * HOUR))) == (0, 0)
    # one that comes later changes nothing any more
    assert conversions_in(answer_to(*events[:2], forget("f", 3 * HOUR), retract("r", 2 * HOUR, order_id="o"))) == (1, 0)
    assert conversions_in(answer_to(*events[:2], forget("f", 3 * HOUR), retract("r", 4 * HOUR, order_id="o"))) == (1, 0)


# --- What is later than it


def test_a_later_conversion_is_credited_anew_from_later_touches():
    events = [click("k1", 0), view("v", 2 * HOUR, campaign_id="later"), conversion("x", 3 * HOUR, value=4)]
    assert rows_of(answer_to(*events))["meta", "x"].touch_event_id == "k1"
    result = answer_to(*events, forget("f", HOUR))
    assert rows_of(result)["meta", "x"].touch_event_id == "v"
    assert counts_of(result)[3 * HOUR, "meta", "later", None, "purchase", ""] == {"conversions": 1, "value": 4}
    assert conversions_in(result) == (1, 4)


def test_a_later_conversion_without_a_later_touch_is_unattributed():
    result = answer_to(click("k", 0), conversion("x", 3 * HOUR), forget("f", HOUR))
    assert statuses(result) == {("meta", "x"): "unattributed"}
    assert conversions_in(result) == (0, 0)


def test_a_journey_begins_after_it():
    events = [click("k", 0), visit("v1", 1), visit("v2", 2 * HOUR, "/late"), conversion("x", 3 * HOUR)]
    (row,) = answer_to(*events, forget("f", HOUR), rules=following()).journeys.values()
    assert (row.clicks, row.visits, row.first_touch, row.first_page, row.pages) == (0, 1, None, "/late", ["/late"])


def test_a_later_report_of_a_forgotten_order_is_an_order():
    events = [
        click("k1", 0),
        conversion("x1", HOUR, order_id="o", value=5),
        click("k2", 3 * HOUR),
        conversion("x2", 4 * HOUR, order_id="o", value=5),
    ]
    assert conversions_in(answer_to(*events)) == (1, 5)
    for at in range(2, 5):  # whether the forget stands before the later report or behind it
        story = [*events[:at], forget("f", 2 * HOUR), *events[at:]]
        result = answer_to(*story)
        assert statuses(result) == {("meta", "x2"): "counted"}
        assert conversions_in(result) == (2, 10)


def test_a_customer_is_new_again():
    events = [conversion("x1", HOUR), conversion("x2", 3 * HOUR)]
    (row,) = answer_to(*events, forget("f", 2 * HOUR), rules=following()).journeys.values()
    assert (row.event_id, row.customer) == ("x2", "new")


# --- What comes after it, of before


def test_what_comes_late_is_counted_as_a_touch_and_nothing_else():
    late = [click("k", 0), conversion("x1", HOUR), restate("r", HOUR, 7, order_id="o")]
    result = answer_to(forget("f", 2 * HOUR), *late, conversion("x2", 3 * HOUR))
    assert counts_of(result) == {(0, "meta", "c", None, "", ""): {"clicks": 1}}
    assert statuses(result) == {("meta", "x2"): "unattributed"}
    assert (result.accepted, result.forgotten, result.rejected) == (5, 2, {})


def test_noise_that_comes_late_is_noise():
    result = answer_to(forget("f", 2 * HOUR), conversion("x", HOUR, "scroll"))
    assert (result.noise, result.forgotten) == (1, 0)


def test_a_repeat_within_the_dedup_window_is_one_still():
    events = [click("k", 0), conversion("x", HOUR), forget("f", 2 * HOUR), conversion("x", 3 * HOUR)]
    result = answer_to(*events)
    assert len(result.duplicates) == 1
    assert result.attributed == {}


def test_a_repeat_beyond_the_dedup_window_is_no_duplicate_of_what_is_gone():
    first, again = conversion("x", HOUR), conversion("x", 4 * DAY)
    apart = visit("v", 3 * DAY)
    assert len(answer_to(first, apart, again).duplicates) == 1
    result = answer_to(first, apart, forget("f", 2 * HOUR), again)
    assert result.duplicates == set()
    assert rows_of(result)["meta", "x"].event_time == T0 + 4 * DAY
    # the duplicate stood before the forget: it is gone for good
    result = answer_to(first, apart, again, forget("f", 2 * HOUR))
    assert len(result.duplicates) == 1
    assert result.attributed == {}


# --- Several


# of the first order the first forget takes x's touch, so that nothing of x counts when it is forgotten itself
@pytest.mark.parametrize(("order", "counted"), [((1, 3), 1), ((3, 1), 2), ((3, 3), 2)])
def test_of_several_the_latest_time_holds(order, counted):
    forgets = [forget(f"f{at}", hours * HOUR) for at, hours in enumerate(order)]
    events = [click("k", 0), conversion("x", 2 * HOUR), click("k2", 3 * HOUR + 1), conversion("y", 4 * HOUR)]
    result = answer_to(*events, *forgets)
    assert {event_id: row.touch_event_id for (_, event_id), row in rows_of(result).items()} == {"y": "k2"}
    assert conversions_in(result)[0] == counted
    result = answer_to(events[0], forgets[0], *events[1:], forgets[1])
    assert set(rows_of(result)) == {("meta", "y")}


def test_a_forget_of_somebody_unknown_holds_for_what_comes():
    result = answer_to(forget("f", HOUR), click("k", 0), conversion("x", 2 * HOUR))
    assert statuses(result) == {("meta", "x"): "unattributed"}


def test_a_forget_is_refused_as_any_event_and_moves_no_stream_time():
    ahead = [view("v1", 0), forget("f", 30 * DAY), view("v2", -DAY)]
    records = [record(each, offset, timestamp_ms=T0 + 30 * DAY) for offset, each in enumerate(ahead)]
    result = answer(records, policy(max_event_age="99d"), 1)
    assert result.rejected == {}
    assert counts_of(result)[-DAY, "meta", "c", None, "", ""] == {"views": 1}
    late = answer_to(conversion("x", 0), view("v", 8 * DAY), {**forget("f", 0)}, rules=policy(max_event_age="99d"))
    assert set(late.rejected.values()) == {reasons.BEYOND_CORRECTION_HORIZON}
    assert len(late.attributed) == 1


# --- Batches


def test_a_touch_in_the_batch_of_the_forget_still_earns_and_one_of_the_next_does_not():
    story = [conversion("x", HOUR), forget("f", 2 * HOUR), click("k", 0)]
    assert conversions_in(in_batches(story))[0] == 1
    assert conversions_in(in_batches(story[:2], story[2:]))[0] == 0
    assert conversions_in(in_batches(story, journeys=True), "all")[0] == 1


def test_a_conversion_goes_by_its_place_and_not_by_its_batch():
    story = [click("k", 0), forget("f", 2 * HOUR), conversion("x", HOUR)]
    for cut in range(1, 3):
        assert conversions_in(in_batches(story[:cut], story[cut:]))[0] == 0
    assert conversions_in(in_batches(story)) == (0, 0)
    assert in_batches(story).forgotten == 1


def test_an_adjustment_that_was_refused_before_may_have_its_letter():
    story = [conversion("x", 2 * HOUR, order_id="o"), retract("r", HOUR, order_id="o"), forget("f", 3 * HOUR)]
    result = answer_to(*story)
    assert result.refused_adjustments == {(TOPIC, 0, 1): reasons.ADJUSTMENT_PRECEDES_CONVERSION}


# --- The log


def test_a_row_may_begin_anew_after_the_deletion_of_somebody_forgotten():
    log = [Upsert(0, offset, b"[]", value) for offset, value in enumerate([b"3", None, b"1"])]

    class Row:
        def __init__(self, value: bytes) -> None:
            self.revision = int(value)

    assert len(fold_log("rows", log, Row).faults) == 1
    assert fold_log("rows", log, Row, lambda key: True).faults == []
    assert len(fold_log("rows", [log[0], log[2]], Row, lambda key: True).faults) == 1

"""docs/counting.md, sections 1, 2, 3 and 7, on cases small enough to be computed by hand."""

import pytest

from app.contract.rows import attributed_key, count_key
from app.verify.partition import owner_of
from tests.oracle.cases import (
    DAY,
    HOUR,
    MINUTE,
    T0,
    TOO_LARGE,
    TOPIC,
    answer_in_order,
    answer_to,
    click,
    conversion,
    conversions_in,
    counts_of,
    event,
    meta_statuses,
    policy,
    record,
    restate,
    retract,
    rows_of,
    touch,
    view,
)

# --- Section 1: from record to event ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null_record"),
        (b"", "empty"),
        (b" " * TOO_LARGE, "too_large"),
        (b"\xff{}", "invalid_utf8"),
        (b"{", "invalid_json"),
        (b"[1]", "not_an_object"),
        (b'{"a": 1}', "missing_field"),
        (event("click", "k", 0, platform="meta"), "missing_field"),
        (click("k" * 129, 0), "invalid_field"),
        (click("k", 0) | {"event_time": "yesterday"}, "invalid_time"),
        (event("nap", "n", 0), "unknown_event_type"),
        (click("k", 0, platform="myspace"), "unknown_platform"),
    ],
)
def test_a_refused_record_keeps_the_contracts_reason_and_changes_nothing_else(value, reason):
    result = answer_in_order([record(value, 7, timestamp_ms=T0)], None)
    assert result.rejected == {(TOPIC, 0, 7): reason}
    assert (result.produced, result.accepted, result.duplicates) == (1, 0, set())
    assert not result.counts
    assert not result.attributed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": b"somebody"}, "key_mismatch"),
        ({"timestamp_ms": T0 + 7 * DAY + 1}, "too_old"),
        ({"timestamp_ms": T0 - 5 * MINUTE - 1}, "in_the_future"),
    ],
)
def test_an_event_is_judged_against_its_records_key_and_timestamp(changes, reason):
    assert answer_in_order([record(view("v", 0), 0, **changes)], None).rejected == {(TOPIC, 0, 0): reason}


@pytest.mark.parametrize("changes", [{"key": b"u"}, {"timestamp_ms": T0 + 7 * DAY}, {"timestamp_ms": T0 - 5 * MINUTE}])
def test_an_event_exactly_at_the_limits_is_accepted(changes):
    assert answer_in_order([record(view("v", 0), 0, **changes)], None).accepted == 1


def test_an_event_exactly_at_the_correction_horizon_is_accepted_and_one_millisecond_older_refused():
    late, latest = view("late", -7 * DAY), view("latest", -7 * DAY - 1)
    records = [record(view("now", 0), 0), record(late, 1), record(latest, 2)]
    result = answer_in_order(records, None)
    assert result.rejected == {(TOPIC, 0, 2): "beyond_correction_horizon"}
    assert result.accepted == 2


def test_a_repeat_beyond_the_correction_horizon_is_refused_not_a_duplicate():
    result = answer_to(view("v", 0), view("now", 7 * DAY + 1), view("v", 0))
    assert result.rejected == {(TOPIC, 0, 2): "beyond_correction_horizon"}
    assert result.duplicates == set()


def test_a_duplicate_moves_the_stream_time():
    repeat = view("v", 7 * DAY + 1)
    assert answer_to(view("v", 7 * DAY), repeat, view("w", 0)).rejected == {(TOPIC, 0, 2): "beyond_correction_horizon"}


def test_a_refused_record_does_not_move_the_stream_time():
    ahead = record(view("ahead", 8 * DAY), 0, timestamp_ms=T0)
    assert answer_in_order([ahead, record(view("v", 0), 1)], None).rejected == {(TOPIC, 0, 0): "in_the_future"}


def test_every_owner_partition_has_a_stream_time_of_its_own():
    users = ["u0", "u1", "u2", "u3", "u4", "u5"]
    far, near = next(
        (a, b) for a in users for b in users if (owner_of(a, 2, "murmur2"), owner_of(b, 2, "murmur2")) == (0, 1)
    )
    ahead, behind = view("v", 8 * DAY, user_id=far), view("w", 0, user_id=near)
    result = answer_in_order([record(ahead, 0), record(behind, 0, partition=1)], None, partitions=2)
    assert (result.accepted, result.rejected) == (2, {})


# --- Section 2: seen before? ------------------------------------------------------------------------------------------


def test_the_first_of_an_identity_counts_and_a_repeat_does_not_whatever_else_it_says():
    result = answer_to(view("v", 0, campaign_id="first"), view("v", MINUTE, campaign_id="second", cost=3))
    assert result.duplicates == {(TOPIC, 0, 1)}
    assert counts_of(result) == {(0, "meta", "first", None, "", ""): {"views": 1}}


def test_an_identity_is_advertiser_platform_type_name_and_id():
    original = view("v", 0)
    others = [
        original | {"advertiser_id": "b"},
        original | {"platform": "tiktok"},
        original | {"event_type": "click"},
        original | {"conversion_name": "purchase"},
        original | {"event_id": "V"},
    ]
    assert answer_to(original, *others).accepted == 6


def test_two_users_of_one_partition_share_an_identity():
    assert answer_to(view("v", 0), view("v", 0, user_id="other")).duplicates == {(TOPIC, 0, 1)}


# T0 is 8 h before the end of a generation of 12 h (48 h / 4), so an id accepted at T0 is forgotten at T0 + 8 h + 48 h.
FORGOTTEN = 56 * HOUR


def test_an_id_is_remembered_until_one_millisecond_before_its_generation_is_forgotten():
    result = answer_to(view("v", 0), view("clock", FORGOTTEN - 1), view("v", 0))
    assert result.duplicates == {(TOPIC, 0, 2)}


def test_an_id_is_forgotten_when_stream_time_reaches_its_generations_end_and_counts_anew():
    result = answer_to(view("v", 0), view("clock", FORGOTTEN), view("v", 0))
    assert result.duplicates == set()
    assert counts_of(result)[0, "meta", "c", None, "", ""] == {"views": 2}


def test_the_repeats_own_time_moves_the_stream_time_that_decides_on_it():
    assert answer_to(view("v", 0), view("v", FORGOTTEN)).accepted == 2
    assert answer_to(view("v", 0), view("v", FORGOTTEN - 1)).accepted == 1


def test_a_generation_is_chosen_by_stream_time_not_by_the_events_own_time():
    late = view("late", -4 * HOUR - 1)  # its own time lies in the generation before
    assert answer_to(view("now", 0), late, view("clock", FORGOTTEN - 1), late).accepted == 3


def test_a_repeat_does_not_refresh_the_memory():
    repeated = [view("v", 0), view("v", FORGOTTEN - 1), view("v", FORGOTTEN)]
    assert answer_to(*repeated).duplicates == {(TOPIC, 0, 1)}


def test_an_id_that_counts_anew_is_remembered_anew():
    # Accepted again at T0 + 56 h, the first moment of a generation, so forgotten 12 h + 48 h later.
    again = [view("v", 0), view("v", FORGOTTEN), view("v", FORGOTTEN + 60 * HOUR - 1), view("v", FORGOTTEN + 60 * HOUR)]
    assert answer_to(*again).duplicates == {(TOPIC, 0, 2)}


def test_a_conversion_stays_a_duplicate_of_a_held_one_long_after_its_id_is_forgotten():
    result = answer_to(click("k", 0), conversion("x", 1), conversion("x", 5 * DAY))
    assert result.duplicates == {(TOPIC, 0, 2)}
    assert conversions_in(result)[0] == 1


def test_an_adjustment_stays_a_duplicate_of_a_held_one():
    assert answer_to(retract("r", 0, order_id="o"), retract("r", 5 * DAY, order_id="o")).accepted == 1


def test_another_users_conversion_with_a_forgotten_id_is_new():
    assert answer_to(conversion("x", 0), conversion("x", FORGOTTEN, user_id="other")).accepted == 2


def test_accepted_duplicates_and_rejected_add_up_to_what_was_produced():
    result = answer_to(view("v", 0), view("v", 1), b"{", conversion("x", 2, "scroll"), event("visit", "p", 3, page="/"))
    assert (result.produced, result.accepted, len(result.duplicates), len(result.rejected)) == (5, 3, 1, 1)


# --- Section 3: touches -----------------------------------------------------------------------------------------------


def test_touches_count_in_the_window_of_their_own_time_under_their_own_dimensions():
    result = answer_to(
        view("v1", 0, ad_id="1", cost=0.25),
        view("v2", MINUTE - 1, ad_id="1", cost=0.5),
        view("v3", MINUTE, ad_id="1"),
        click("k", 0, ad_id="1", cost=1),
        click("k2", 0, ad_id="2"),
        touch("engaged_view", "e", 0, platform="google_ads", ad_id="1"),
    )
    assert counts_of(result) == {
        (0, "meta", "c", "1", "", ""): {"views": 2, "clicks": 1, "cost": 1.75},
        (MINUTE, "meta", "c", "1", "", ""): {"views": 1},
        (0, "meta", "c", "2", "", ""): {"clicks": 1},
        (0, "google_ads", "c", "1", "", ""): {"engaged_views": 1},
    }


def test_a_touch_that_its_platform_can_never_credit_is_counted_all_the_same():
    assert counts_of(answer_to(click("k", 0, platform="tiktok"))) == {(0, "tiktok", "c", None, "", ""): {"clicks": 1}}


def test_a_visit_is_accepted_and_deduplicated_but_in_no_row():
    result = answer_to(event("visit", "p", 0, page="/"), event("visit", "p", 0, page="/"))
    assert (result.accepted, len(result.duplicates), result.counts) == (1, 1, {})


def test_a_count_row_names_its_window_and_its_key_holds_the_dimensions_in_the_policys_order():
    result = answer_to(view("v", 1, ad_id="1"))
    key = count_key(T0, "meta", "a", ["c", "1"], "", "")
    row = result.counts[key]
    assert (row.window_start, row.window_end) == (T0, T0 + MINUTE)
    assert row.dimensions == {"campaign_id": "c", "ad_id": "1"}
    (tally,) = result.tallies.values()
    assert tally.behind == [(TOPIC, 0, 0)]


# --- Section 7 and the rows themselves --------------------------------------------------------------------------------


def test_money_is_rounded_to_millionths_of_each_event_and_its_sums_are_exact():
    result = answer_to(*(view(f"v{number}", 0, cost=0.1) for number in range(10)), view("w", MINUTE, cost=0.0000004))
    assert counts_of(result)[0, "meta", "c", None, "", ""]["cost"] == 1.0
    assert counts_of(result)[MINUTE, "meta", "c", None, "", ""] == {"views": 1}


def test_an_attributed_row_holds_the_conversion_its_rules_and_its_touch():
    kept = policy(keep=["campaign_id", "ad_id", "source"])
    result = answer_to(
        click("k", 0, ad_id="1", source="feed", medium="cpc"),
        conversion("x", MINUTE, value=12.5, currency="EUR", order_id=""),
        rules=kept,
    )
    row = result.attributed[attributed_key("a", "u", "meta", "purchase", "x")]
    assert (row.event_time, row.order_id, row.status, row.conversions) == (T0 + MINUTE, None, "counted", 1)
    assert (row.value, row.currency, row.duplicate_of) == (12.5, "EUR", None)
    assert (row.action_class, row.intent, row.outcome) == ("macro", "hard", "revenue")
    assert (row.method, row.policy_version) == ("click_then_view", 1)
    assert (row.touch_type, row.touch_event_id, row.touch_time, row.time_to_convert_ms) == ("click", "k", T0, MINUTE)
    assert (row.campaign_id, row.ad_id, row.source, row.medium) == ("c", "1", "feed", None)


def test_the_answer_is_the_same_in_whatever_order_the_events_came():
    events = [
        click("k", 0),
        view("v", MINUTE),
        conversion("x", 2 * MINUTE, order_id="o", value=5),
        conversion("y", 3 * MINUTE, order_id="o", value=6),
        restate("r", 4 * MINUTE, 7, order_id="o"),
        conversion("z", 5 * MINUTE, "demo"),
        conversion("w", 6 * MINUTE, "demo"),
        retract("t", 7 * MINUTE, conversion_event_id="z"),
    ]
    forth, back = answer_to(*events), answer_to(*reversed(events))
    assert forth.attributed == back.attributed
    assert forth.counts == back.counts
    assert meta_statuses(*events) == {"x": "counted", "y": "duplicate", "z": "retracted", "w": "counted"}
    assert rows_of(forth)["meta", "x"].value == 7

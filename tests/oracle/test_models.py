"""docs/counting.md, section 10, computed by hand: how models share a conversion."""

import pytest

from app.contract.journeys import ModelRow, PathTouch, Share, decode_model, model_key
from app.contract.rows import encode
from app.policy.model import MODELS
from app.verify.models import share_out, shares
from tests.oracle.cases import (
    DAY,
    HOUR,
    T0,
    answer_to,
    click,
    conversion,
    following,
    restate,
    retract,
    shares_by,
    touch,
    view,
)

GOOGLE = {"platform": "google_ads"}


def clicks(*at_ms):
    """Clicks k0, k1, ... at these times, and the conversion x right after the last."""
    return [*(click(f"k{number}", each) for number, each in enumerate(at_ms)), conversion("x", max(at_ms) + 1, value=1)]


def test_a_row_in_full():
    events = [click("k", 0, campaign_id="m"), click("g", 1, campaign_id="g", **GOOGLE), view("v", 2, campaign_id="m")]
    result = answer_to(*events, conversion("x", HOUR, value=10, currency="EUR"), rules=following())
    row = result.models[model_key("a", "u", "purchase", "x", "linear")]
    blank = dict.fromkeys(["ad_id", "creative_id", "landing_page", "offer_id", "source", "medium"])
    assert row == ModelRow(
        advertiser_id="a",
        user_id="u",
        conversion_name="purchase",
        event_id="x",
        event_time=T0 + HOUR,
        model="linear",
        value=10,
        currency="EUR",
        credits=[
            Share(PathTouch("meta", "click", "k", T0, campaign_id="m", **blank), 0.333334, 3.33334),
            Share(PathTouch("google_ads", "click", "g", T0 + 1, campaign_id="g", **blank), 0.333333, 3.33333),
            Share(PathTouch("meta", "view", "v", T0 + 2, campaign_id="m", **blank), 0.333333, 3.33333),
        ],
        revision=0,
    )
    assert decode_model(encode(row)) == row


def test_each_model_of_the_policy_has_a_row_and_no_other():
    result = answer_to(*clicks(0), rules=following())
    assert sorted(row.model for row in result.models.values()) == sorted(MODELS)
    some = answer_to(*clicks(0), rules=following(models=["position", "linear"]))
    assert sorted(row.model for row in some.models.values()) == ["linear", "position"]


@pytest.mark.parametrize("model", MODELS)
def test_one_touch_has_everything(model):
    assert shares_by(model, *clicks(0)) == {"k0": 1_000_000}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("first_touch", {"k0": 1_000_000}),
        ("last_touch", {"k2": 1_000_000}),
        ("linear", {"k0": 333_334, "k1": 333_333, "k2": 333_333}),
        ("position", {"k0": 400_000, "k1": 200_000, "k2": 400_000}),
    ],
)
def test_three_touches(model, expected):
    assert shares_by(model, *clicks(0, 1, 2)) == expected


def test_position_gives_two_touches_half_each():
    assert shares_by("position", *clicks(0, 1)) == {"k0": 500_000, "k1": 500_000}


def test_position_shares_the_fifth_among_those_between():
    between = {"k1": 66_667, "k2": 66_667, "k3": 66_666}
    assert shares_by("position", *clicks(0, 1, 2, 3, 4)) == {"k0": 400_000} | between | {"k4": 400_000}


def test_a_touch_one_half_life_older_has_half_the_share_of_time_decay():
    week = [click("k0", 0, **GOOGLE), click("k1", 7 * DAY, **GOOGLE), conversion("x", 7 * DAY + 1)]
    assert shares_by("time_decay", *week) == {"k0": 333_333, "k1": 666_667}
    assert shares_by("time_decay", *clicks(0, 5 * HOUR), half_life="5h") == {"k0": 333_333, "k1": 666_667}


def test_time_decay_is_by_the_time_between_touches_whatever_the_time_to_the_conversion():
    touches = [click("a", 0, **GOOGLE), click("b", 7 * DAY, **GOOGLE)]
    for at in (7 * DAY + 1, 29 * DAY):
        assert shares_by("time_decay", *touches, conversion("x", at)) == {"a": 333_333, "b": 666_667}


def test_time_decay_of_touches_that_are_ever_so_many_half_lives_old_still_sums_to_one():
    touches = [click("a", 0, **GOOGLE), click("b", DAY, **GOOGLE), click("c", DAY, **GOOGLE)]
    found = shares_by("time_decay", *touches, conversion("x", 29 * DAY), half_life="1s")
    assert found == {"b": 500_000, "c": 500_000}


def test_equal_remainders_go_to_the_earlier_touch_though_it_weighs_less():
    # Weights 1/4, 1/4 and 1 of 3/2 are 166,666 2/3, 166,666 2/3 and 666,666 2/3: two are missing.
    found = shares_by("time_decay", *clicks(0, 1, 2 * HOUR), half_life="1h")
    assert found == {"k0": 166_667, "k1": 166_667, "k2": 666_666}


def test_the_largest_remainder_goes_first():
    # Weights 1/2, 1/2 and 1 of 2, then 1/8 and 1 of 9/8: 111,111 1/9 and 888,888 8/9.
    assert shares_by("time_decay", *clicks(0, 3 * HOUR), half_life="1h") == {"k0": 111_111, "k1": 888_889}


def test_time_decay_of_an_odd_time_to_the_millionth():
    # 2 ** -(1/3) = 0.793700526...: 0.793700526 / 1.793700526 = 0.4424933 (rounded down 442,493, remainder .33)
    assert shares_by("time_decay", *clicks(0, HOUR), half_life="3h") == {"k0": 442_493, "k1": 557_507}


def test_touches_of_one_time_stand_by_event_id():
    events = [click("b", 0), click("a", 0), click("c", 0), conversion("x", 1)]
    assert shares_by("linear", *events) == {"a": 333_334, "b": 333_333, "c": 333_333}
    assert list(shares_by("linear", *events)) == ["a", "b", "c"]
    assert shares_by("first_touch", *events) == {"a": 1_000_000}
    assert shares_by("last_touch", *events) == {"c": 1_000_000}


def test_only_creditable_touches_share():
    events = [view("not google's", 0, **GOOGLE), click("k", 1), touch("engaged_view", "not meta's", 2)]
    assert shares_by("linear", *events, conversion("x", 3)) == {"k": 1_000_000}


def test_of_more_than_max_touches_the_listed_ones_share():
    events = clicks(*range(6))
    assert shares_by("linear", *events, max_touches=3) == {"k0": 333_334, "k4": 333_333, "k5": 333_333}
    assert shares_by("position", *events, max_touches=2) == {"k0": 500_000, "k5": 500_000}


def test_the_value_is_shared_by_the_shares_and_sums_to_exactly_itself():
    events = [click("k0", 0), click("k1", 1), click("k2", 2), conversion("x", 3, value=0.000_005)]
    (row,) = [row for row in answer_to(*events, rules=following()).models.values() if row.model == "linear"]
    # 5 millionths by 333,334, 333,333 and 333,333: 1.66667, 1.666665 and 1.666665, so 1 each and the two missing to the first two.
    assert [credit.value for credit in row.credits] == [0.000_002, 0.000_002, 0.000_001]
    assert row.value == 0.000_005


def test_a_share_may_have_no_value_and_stands_all_the_same():
    events = [click("k0", 0), click("k1", 1), conversion("x", 3)]
    (row,) = [row for row in answer_to(*events, rules=following()).models.values() if row.model == "linear"]
    assert [(credit.share, credit.value) for credit in row.credits] == [(0.5, 0), (0.5, 0)]


def models_of(*events):
    """The event_ids that have model rows."""
    return {row.event_id for row in answer_to(*events, rules=following()).models.values()}


def test_conversions_that_are_not_counted_have_no_row():
    events = [
        conversion("unattributed", 0),
        click("k", 1),
        conversion("counted", 2, "demo"),
        conversion("uncounted", 3, "demo"),
        conversion("retracted", 4),
        retract("r", 5, conversion_event_id="retracted"),
        conversion("first", 6, order_id="o"),
        conversion("second", 7, order_id="o", **GOOGLE),
        conversion("noise", 8, "scroll"),
    ]
    assert models_of(*events) == {"counted", "first"}


def test_one_touch_may_earn_any_number_of_conversions():
    assert models_of(click("k", 0), conversion("x", 1), conversion("y", 2)) == {"x", "y"}


def test_a_restated_value_is_what_is_shared():
    events = [*clicks(0, 1), restate("r", HOUR, 3, conversion_event_id="x")]
    (row,) = [row for row in answer_to(*events, rules=following()).models.values() if row.model == "position"]
    assert (row.value, [credit.value for credit in row.credits]) == (3, [1.5, 1.5])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50, 99])
def test_shares_sum_to_exactly_one_and_values_to_exactly_the_value(model, count):
    found = shares(model, [number * 12_345_678 for number in range(count)], 3_600_000)
    assert sum(found) == 1_000_000
    assert min(found) >= 0
    for value in (0, 1, 999_999, 19_990_000, 10**16 - 1):
        assert sum(share_out(value, found)) == value

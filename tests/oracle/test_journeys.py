"""docs/counting.md, section 8: what a journey holds. The policy is `following()`: journeys of 30 d."""

import msgspec
import pytest

from app.contract.journeys import JourneyRow, PathTouch, decode_journey, journey_key
from app.contract.rows import encode
from tests.oracle.cases import (
    DAY,
    DOCUMENT,
    HOUR,
    MINUTE,
    T0,
    answer_to,
    click,
    conversion,
    following,
    ids,
    journey_of,
    policy,
    touch,
    view,
    visit,
)

WINDOW = 30 * DAY
GOOGLE = {"platform": "google_ads"}


def test_a_row_in_full():
    events = [
        visit("s1", 0, "/mattress", referrer="https://search.example/", platform="google_ads"),
        touch("engaged_view", "e", MINUTE, platform="meta", campaign_id="seen"),
        click("g", 2 * MINUTE, campaign_id="spring", ad_id="a7", landing_page="/mattress", source="google", **GOOGLE),
        visit("s2", 2 * MINUTE + 1, "/cart"),
        view("m", 3 * MINUTE, campaign_id="again"),
        conversion("x", HOUR, platform=None, value=99.5, currency="EUR", order_id="o-1"),
    ]
    row = answer_to(*events, rules=following()).journeys[journey_key("a", "u", "purchase", "x")]
    blank = dict.fromkeys(["ad_id", "creative_id", "landing_page", "offer_id", "source", "medium"])
    seen = PathTouch("meta", "engaged_view", "e", T0 + MINUTE, campaign_id="seen", **blank)
    spring = blank | {"campaign_id": "spring", "ad_id": "a7", "landing_page": "/mattress", "source": "google"}
    clicked = PathTouch("google_ads", "click", "g", T0 + 2 * MINUTE, **spring)
    viewed = PathTouch("meta", "view", "m", T0 + 3 * MINUTE, campaign_id="again", **blank)
    assert row == JourneyRow(
        advertiser_id="a",
        user_id="u",
        conversion_name="purchase",
        event_id="x",
        event_time=T0 + HOUR,
        order_id="o-1",
        scope="all",
        status="counted",
        conversions=1,
        value=99.5,
        currency="EUR",
        action_class="macro",
        intent="hard",
        outcome="revenue",
        policy_version=1,
        credit="last_click",
        credited=clicked,
        time_to_convert_ms=58 * MINUTE,
        counted_by=["google_ads", "meta"],
        first_touch=seen,
        touches=[clicked, viewed],
        views=1,
        engaged_views=1,
        clicks=1,
        visits=2,
        pages=["/mattress", "/cart"],
        first_visit_time=T0,
        first_page="/mattress",
        first_referrer="https://search.example/",
        time_from_first_touch_ms=59 * MINUTE,
        time_from_first_visit_ms=60 * MINUTE,
        customer="new",
        abandoned_action=None,
        abandoned_time=None,
        returned_by=None,
        revision=0,
    )
    assert decode_journey(encode(row)) == row


def test_a_conversion_with_nothing_before_it_has_an_empty_journey():
    row = journey_of(conversion("x", 0))
    nothing = ["credited", "time_to_convert_ms", "first_touch", "first_visit_time", "first_page", "first_referrer"]
    nothing += ["time_from_first_touch_ms", "time_from_first_visit_ms", "order_id", "currency"]
    assert [getattr(row, name) for name in nothing] == [None] * len(nothing)
    assert (row.views, row.engaged_views, row.clicks, row.visits) == (0, 0, 0, 0)
    assert (row.touches, row.pages, row.counted_by) == ([], [], [])
    assert (row.status, row.conversions, row.value) == ("unattributed", 0, 0)


def test_without_journeys_in_the_policy_nothing_of_it_is_there():
    result = answer_to(visit("s", 0), click("k", 0), conversion("x", 1))
    assert (result.journeys, result.models) == ({}, {})
    assert {row.scope for row in result.counts.values()} == {"platform"}


@pytest.mark.parametrize(("at", "there"), [(0, 1), (-1, 0), (WINDOW - 1, 1), (WINDOW, 0)])
def test_a_journey_reaches_from_the_conversion_back_over_the_window_to_the_millisecond(at, there):
    row = journey_of(view("v", at), visit("s", at), conversion("x", WINDOW))
    assert (row.views, row.visits) == (there, there)


def test_a_journey_may_be_longer_than_any_window_and_then_shows_touches_that_are_not_creditable():
    row = journey_of(click("k", 0, **GOOGLE), conversion("x", 31 * DAY), window="31d")
    assert (row.clicks, ids([row.first_touch]), row.touches, row.status) == (1, ["k"], [], "unattributed")


def test_a_touch_of_any_platform_and_kind_is_counted_and_only_creditable_ones_are_listed():
    row = journey_of(
        touch("engaged_view", "not meta's", 0),
        view("not google's", 1, **GOOGLE),
        click("not tiktok's", 2, platform="tiktok"),
        view("too old for meta", 3),
        view("m", 2 * DAY),
        click("l", 2 * DAY + 1, platform="linkedin"),
        conversion("x", 2 * DAY + 2, platform="tiktok"),
    )
    assert (row.views, row.engaged_views, row.clicks) == (3, 1, 2)
    assert ids([row.first_touch]) == ["not meta's"]
    assert ids(row.touches) == ["m", "l"]


def test_a_touch_is_creditable_by_the_version_in_force_at_the_conversion():
    one = following()
    views_only = policy(platforms=DOCUMENT["platforms"] | {"meta": {"method": "view", "windows": {"view": "1d"}}})
    later = msgspec.structs.replace(views_only.versions[0], number=2, effective_from_ms=T0 + HOUR)
    rules = msgspec.structs.replace(one, versions=(*one.versions, later))
    result = answer_to(click("k", 0), conversion("old", HOUR - 1), conversion("new", HOUR), rules=rules)
    rows = {row.event_id: (row.policy_version, ids(row.touches), row.status) for row in result.journeys.values()}
    assert rows == {"old": (1, ["k"], "counted"), "new": (2, [], "unattributed")}


def test_touches_and_visits_of_another_user_or_advertiser_are_not_in_the_journey():
    strangers = [{"user_id": "other"}, {"advertiser_id": "b"}]
    events = [make("e", 0, **other) for other in strangers for make in (click, visit)]
    row = journey_of(*events, conversion("x", 1))
    assert (row.clicks, row.visits) == (0, 0)


def test_a_late_touch_and_a_late_visit_stand_in_the_journey_as_if_they_had_come_in_time():
    conversions = [conversion("x", HOUR), conversion("y", 2 * HOUR)]
    row = journey_of(*conversions, click("k", MINUTE), visit("s", 1, "/late"), click("l", HOUR + 1))
    assert (row.status, ids(row.touches), row.clicks, row.pages) == ("counted", ["k"], 1, ["/late"])


def test_of_one_time_touches_stand_by_event_id_then_platform_then_kind_by_code_point():
    events = [
        view("b", 0, platform="tiktok"),
        view("b", 0),
        click("b", 0),
        touch("engaged_view", "b", 0, **GOOGLE),
        click("b", 0, **GOOGLE),
        click("Z", 0, platform="linkedin"),
        click("\U0001f600", 0),
        click("\uffff", 0),
        conversion("x", 1),
    ]
    row = journey_of(*events)
    assert [(each.event_id, each.platform, each.touch_type) for each in row.touches] == [
        ("Z", "linkedin", "click"),
        ("b", "google_ads", "click"),
        ("b", "google_ads", "engaged_view"),
        ("b", "meta", "click"),
        ("b", "meta", "view"),
        ("b", "tiktok", "view"),
        ("\uffff", "meta", "click"),
        ("\U0001f600", "meta", "click"),
    ]
    assert row.first_touch == row.touches[0]


def test_of_one_time_visits_stand_by_event_id_and_equal_ones_as_they_were_processed():
    events = [
        visit("b", 0, "/3"),
        visit("a", 0, "/2", platform="meta"),
        visit("a", 0, "/1", referrer="r"),
        conversion("x", 1),
    ]
    row = journey_of(*events)
    assert (row.pages, row.first_page, row.first_referrer) == (["/2", "/1", "/3"], "/2", None)


def test_a_touch_and_a_visit_that_came_again_after_their_ids_were_forgotten_stand_in_it_twice():
    again = [click("k", 0, campaign_id="second"), visit("s", 0, "/second")]
    events = [click("k", 0, campaign_id="first"), visit("s", 0, "/first"), visit("later", 5 * DAY), *again]
    row = journey_of(*events, conversion("x", 5 * DAY + 1))
    assert (row.clicks, row.visits) == (2, 3)
    assert [each.campaign_id for each in row.touches] == ["first", "second"]
    assert row.first_touch.campaign_id == "first"


def test_of_more_than_max_touches_the_first_and_the_last_are_listed_and_all_are_counted():
    touches = [click(f"k{number}", number) for number in range(6)]
    row = journey_of(*touches, conversion("x", 9), max_touches=3)
    assert (ids(row.touches), row.clicks) == (["k0", "k4", "k5"], 6)
    assert ids(journey_of(*touches[:3], conversion("x", 9), max_touches=3).touches) == ["k0", "k1", "k2"]
    assert ids(journey_of(*touches, conversion("x", 9), max_touches=2).touches) == ["k0", "k5"]


def test_the_credited_touch_need_not_be_among_the_listed_ones():
    touches = [view("v0", 0), click("k", 1), view("v1", 2), view("v2", 3)]
    row = journey_of(*touches, conversion("x", 9), max_touches=2)
    assert (ids(row.touches), row.credited.event_id) == (["v0", "v2"], "k")


def test_of_more_than_max_pages_the_last_are_listed_and_all_visits_are_counted():
    visits = [visit(f"s{number}", number, f"/{number}") for number in range(4)]
    row = journey_of(*visits, visit("s4", 4, "/3"), conversion("x", 9), max_pages=2)
    assert (row.pages, row.visits, row.first_page) == (["/3", "/3"], 5, "/0")


def test_attributes_that_the_policy_does_not_keep_are_null_everywhere():
    rules = policy(keep=["campaign_id", "ad_id"], journeys={})
    click_with_all = click("k", 0, ad_id="a", creative_id="c", landing_page="/", offer_id="f", source="s", medium="m")
    result = answer_to(click_with_all, conversion("x", 1), rules=rules)
    (row,), models = result.journeys.values(), result.models.values()
    shown = [row.credited, row.first_touch, *row.touches, *(each.touch for model in models for each in model.credits)]
    assert {(each.campaign_id, each.ad_id) for each in shown} == {("c", "a")}
    assert {(each.creative_id, each.landing_page, each.offer_id, each.source, each.medium) for each in shown} == {
        (None,) * 5
    }

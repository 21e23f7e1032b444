"""What a rebuild takes over from the published rows where the log was cut, by hand: one user's whole state, its rows, what a cut
log tells of it, and what is to come out.

Times are small numbers: before DOUBT the log may lack records or take a repeat for the first, rows of before STANDS are right.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from app.attribution.state import NEVER_MS, NO_PATH, Adjustment, Conversion, Path, Touch, UserState, pack, unpack
from app.attribution.takeover import WHOLE, Cut, cut_at, lookback_ms, reach_ms, take_over
from app.attribution.users import answer, attributed_row, journey_row
from app.policy.model import Action, Bounds, Journeys, Platform, Policy, Version

DOUBT, STANDS = 1000, 1200
BOUNDS = Bounds(
    keep=("campaign_id",),
    correction_horizon_ms=20,
    max_clock_skew_ms=3,
    dedup_window_ms=40,
    order_window_ms=100,
    adjustment_window_ms=80,
)
ACTIONS = {
    "purchase": Action("macro", "hard", "revenue", "every", None),
    "signup": Action("micro", "soft", "retention", "one", None),
}
PLATFORMS = {"meta": Platform("click", {"click": 50}, {}), "tiktok": Platform("click", {"click": 50}, {})}
POLICY = Policy(BOUNDS, (Version(1, 0, PLATFORMS, ACTIONS),))
FOLLOWED = Policy(msgspec.structs.replace(BOUNDS, journeys=Journeys(window_ms=60)), POLICY.versions)
WIDE = Policy(msgspec.structs.replace(BOUNDS, journeys=Journeys(window_ms=300)), POLICY.versions)
META, TIKTOK = {"platform": "meta"}, {"platform": "tiktok"}


def click(event_id: str, at: int) -> Touch:
    """A click at a time."""
    return Touch("click", at, event_id, ("c1",))


def conversion(event_id: str, at: int, *, platform: str = "", name: str = "purchase", **fields: Any) -> Conversion:
    """A conversion that names no platform unless told so; `meta`, `tiktok`: the clicks that these credit."""
    credits = {where: fields.pop(where) for where in PLATFORMS if where in fields}
    plain = {"value_micros": None, "currency": None, "order_id": None}
    return Conversion(event_id, name, platform, at, **plain | fields, credits=credits, revisions={})


def signup(event_id: str, at: int, **fields: Any) -> Conversion:
    """A conversion of an action that counts one a touch."""
    return conversion(event_id, at, name="signup", **fields)


def retraction(event_id: str, at: int, of: str) -> Adjustment:
    """Takes back the conversion with this event id."""
    return Adjustment(event_id, "", "retract", at, None, None, of, ("ads.events", 0, 0, at), None, b"")


def on_path(touch: Touch, views: int = 0) -> Path:
    """A path whose one creditable touch is a click on meta."""
    placed = "meta", touch
    return msgspec.structs.replace(NO_PATH, views=views, clicks=1, first=placed, touches=[placed], credited=placed)


def user(
    conversions: Iterable[Conversion], adjustments: Iterable[Adjustment] = (), forgotten: int = NEVER_MS
) -> UserState:
    """A user's state, with copies."""
    return unpack(pack(UserState(list(conversions), list(adjustments), None, forgotten)))


def taken_over(whole: UserState, cut: UserState, policy: Policy = POLICY, since: int = 0) -> UserState:
    """The state that `cut`, what a log that was cut tells of a user, becomes by the rows that `whole` has since a time."""
    found = answer(whole, policy)
    rows = [attributed_row("a", "u", key[2], each, 1, policy) for key, each in found.settlement.decisions.items()]
    orders = [journey_row("a", "u", journey, 1, policy) for journey in found.journeys.values()]
    take_over(
        cut,
        [row for row in rows if row.event_time >= since],
        [row for row in orders if row.event_time >= since],
        Cut(DOUBT, STANDS, max(DOUBT + lookback_ms(policy), STANDS)),
        policy,
    )
    return cut


def statuses(state: UserState, policy: Policy = POLICY) -> dict[tuple[str, str], str]:
    """What becomes of each conversion on each platform, by (event id, platform)."""
    decisions = answer(state, policy).settlement.decisions
    return {(event_id, platform): each.status for (_, event_id, platform), each in decisions.items()}


def held(state: UserState) -> set[tuple[str, str, int]]:
    """The conversions of a state: platform, event id, time."""
    return {(each.platform, each.event_id, each.time_ms) for each in state.conversions}


def of_all_reports(conversion: Conversion) -> Conversion:
    """As its row tells it, which stands before what any single report says."""
    return msgspec.structs.replace(conversion, is_browser=True)


# --- How far the doubt goes, and how far back rows are read -------------------------------------------------------------------


def test_the_doubt_ends_a_dedup_window_and_a_quarter_after_the_latest_event_of_the_first_record() -> None:
    assert cut_at(1000, 0, POLICY) == Cut(1054, 1054, 1054 + 50)  # 3 + 50 + 1; the log tells all touches a window later


def test_rows_stand_up_to_what_is_held_where_that_is_later() -> None:
    assert cut_at(1000, 2000, POLICY) == Cut(1054, 2000, 2000)


def test_a_log_from_its_beginning_is_whole() -> None:
    assert cut_at(0, 2000, POLICY) == WHOLE


@pytest.mark.parametrize(
    ("changes", "reach"),
    [
        ({}, 100 + 100),  # an order's first report, and of that one's another's
        ({"journeys": Journeys(window_ms=150)}, 100 + 150),  # its journey
        ({"order_window_ms": 10}, 100),  # what is held for adjustments, 80, and the correction horizon
        ({"order_window_ms": 30, "adjustment_window_ms": 30}, 30 + 50),  # its touch
    ],
)
def test_rows_are_read_as_far_back_as_something_held_may_hang_on_them(changes: dict[str, Any], reach: int) -> None:
    assert reach_ms(Policy(msgspec.structs.replace(BOUNDS, **changes), POLICY.versions)) == reach


# --- What is put back ---------------------------------------------------------------------------------------------------------


def test_what_the_log_lacks_is_put_back_with_all_that_its_row_says() -> None:
    whole = conversion("x", 900, meta=click("k", 890), value_micros=5_000_000, currency="EUR", order_id="o")
    (found,) = taken_over(user([whole]), user([])).conversions
    assert found == of_all_reports(whole)


def test_what_named_no_platform_names_none_so_that_its_repeat_is_known() -> None:
    both = conversion("x", 900, meta=click("k", 890), tiktok=click("t", 880), value_micros=5)
    assert taken_over(user([both]), user([])).conversions == [of_all_reports(both)]


def test_what_has_no_touch_stays_with_its_platform() -> None:
    found = taken_over(user([conversion("x", 900, **META), conversion("y", 900)]), user([]))
    assert held(found) == {("meta", "x", 900), ("", "y", 900)}


def test_the_value_is_that_of_a_row_that_shows_it() -> None:
    first = conversion("first", 890, **META, meta=click("k", 880), order_id="o")
    report = conversion("x", 900, meta=click("k", 880), tiktok=click("t", 880), order_id="o", value_micros=7_000_000)
    found = taken_over(user([first, report]), user([]))
    assert statuses(found) == {("first", "meta"): "counted", ("x", "meta"): "duplicate", ("x", "tiktok"): "counted"}
    assert {each.event_id: each.value_micros for each in found.conversions}["x"] == 7_000_000


def test_nothing_of_a_forgotten_time_is_put_back() -> None:
    found = taken_over(user([conversion("x", 900), conversion("y", 901)]), user([], forgotten=900))
    assert held(found) == {("", "y", 901)}


def test_what_the_log_must_tell_is_not_put_back_where_it_does_not() -> None:
    assert held(taken_over(user([conversion("x", STANDS - 1), conversion("y", STANDS)]), user([]))) == {("", "x", 1199)}


def test_a_repeat_that_was_taken_for_the_first_report_goes() -> None:
    whole = user([conversion("x", 900, **META, value_micros=1)])
    found = taken_over(whole, user([conversion("x", 1300, **META, value_micros=2)]))
    assert held(found) == {("meta", "x", 900)}
    whole = user([conversion("x", 900, **META, meta=click("k", 890))])
    assert held(taken_over(whole, user([conversion("x", 1300, **META)]))) == {("", "x", 900)}
    assert held(taken_over(whole, user([conversion("x", 880, **META)]))) == {("", "x", 900)}
    whole = user([conversion("x", 900, meta=click("k", 890))])
    assert held(taken_over(whole, user([conversion("x", 1300)]))) == {("", "x", 900)}


def test_two_events_with_one_row_are_two_still() -> None:
    first, second = conversion("x", 900, **META, meta=click("k", 890)), conversion("x", 1010, tiktok=click("t", 1005))
    found = taken_over(user([first, second]), user([second]))
    assert statuses(found) == {("x", "meta"): "counted", ("x", "tiktok"): "counted"}
    assert held(found) == {("meta", "x", 900), ("", "x", 1010)}


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_that_the_log_lacks_the_one_with_rows_on_several_platforms_named_none(is_first: bool) -> None:
    named, plain = (900, 910) if is_first else (910, 900)
    google = {"google": Platform("click", {"click": 50}, {})}
    policy = Policy(BOUNDS, (Version(1, 0, PLATFORMS | google, ACTIONS),))
    several = conversion("x", plain, meta=click("k", 890), tiktok=click("t", 890))
    one = conversion("x", named, platform="google")
    one.credits["google"] = click("g", 890)
    found = taken_over(user([several, one]), user([]), policy)
    assert held(found) == {("google", "x", named), ("", "x", plain)}
    assert set(statuses(found, policy).values()) == {"counted"}


def test_of_two_that_the_log_lacks_the_one_that_no_platform_judged_named_none() -> None:
    whole = [conversion("x", 900, **META, meta=click("k", 890)), conversion("x", 990)]
    assert held(taken_over(user(whole), user([]))) == {("meta", "x", 900), ("", "x", 990)}


def test_what_was_never_published_goes_where_the_log_is_in_doubt_and_stays_elsewhere() -> None:
    accepted = [conversion("repeat", DOUBT - 1), conversion("new", DOUBT)]
    assert held(taken_over(user([]), user(accepted))) == {("", "new", DOUBT)}


# --- Orders whose first report lies too far back ------------------------------------------------------------------------------


def test_a_report_whose_order_is_not_known_is_not_put_back_as_an_order_of_its_own() -> None:
    order = {"order_id": "o", "platform": "meta"}
    whole = [conversion("first", 700, **order), conversion("second", 800, **order), conversion("x", 805, **order)]
    found = taken_over(user(whole), user([conversion("x", 805, **order)]), since=750)
    assert statuses(found) == {("x", "meta"): "unattributed"}


def test_its_repeat_goes_too() -> None:
    order = {"order_id": "o", "platform": "meta"}
    whole = [conversion("first", 700, **order), conversion("second", 800, **order)]
    assert held(taken_over(user(whole), user([conversion("second", 1300, **order)]), since=750)) == set()


def test_another_event_with_its_name_and_id_stays() -> None:
    order = {"order_id": "o"}
    first, second = conversion("first", 700, **order, **META), conversion("second", 800, **order, **META)
    other = conversion("second", 1300, **order, tiktok=click("t", 1299))
    assert held(taken_over(user([first, second, other]), user([other]), since=750)) == {("", "second", 1300)}


@pytest.mark.parametrize("since", [0, 750])
def test_a_report_of_an_order_over_all_platforms_is_put_back_only_with_the_order(since: int) -> None:
    first = conversion("first", 700, **TIKTOK, order_id="o")
    second = conversion("second", 800, **META, meta=click("k", 790), order_id="o")
    found = taken_over(user([first, second]), user([]), FOLLOWED, since)
    assert held(found) == ({("tiktok", "first", 700), ("", "second", 800)} if not since else set())


# --- Places of touches whose conversion lies too far back ---------------------------------------------------------------------


def test_what_did_not_count_takes_no_place_where_what_had_it_is_not_known() -> None:
    again = [signup(f"s{at}", at, meta=click("k", at - 5)) for at in (700, 790, 805, 902)]
    whole = user(again)
    must = {("s700", "meta"): "counted", ("s790", "meta"): "uncounted", ("s805", "meta"): "counted"}
    assert statuses(whole) == must | {("s902", "meta"): "uncounted"}
    found = statuses(taken_over(whole, user([again[-1]]), since=750))
    assert found == {("s790", "meta"): "unattributed", ("s805", "meta"): "counted", ("s902", "meta"): "uncounted"}


def test_over_all_platforms_neither() -> None:
    again = [signup(f"s{at}", at, **META, path=on_path(click("k", at - 5))) for at in (700, 790, 805, 902)]
    found = taken_over(user(again), user(again[-1:]), FOLLOWED, since=750)
    journeys = answer(found, FOLLOWED).journeys
    assert {event_id: each.decision.status for (_, event_id), each in journeys.items()} == {
        "s790": "unattributed",
        "s805": "counted",
        "s902": "uncounted",
    }


def test_what_counted_while_its_action_counted_every_has_no_place() -> None:
    every = {"signup": Action("micro", "soft", "retention", "every", None)}
    versions = [(0, ACTIONS), (780, ACTIONS | every), (785, ACTIONS)]
    policy = Policy(BOUNDS, tuple(Version(at + 1, *each[:1], PLATFORMS, each[1]) for at, each in enumerate(versions)))
    again = [signup(f"s{at}", at, meta=click("k", at - 5)) for at in (700, 782, 790)]
    assert list(statuses(user(again), policy).values()) == ["counted", "counted", "uncounted"]
    found = taken_over(user(again), user([]), policy, since=750)
    assert statuses(found, policy) == {("s782", "meta"): "counted", ("s790", "meta"): "unattributed"}


def test_what_is_not_put_back_has_no_place_either() -> None:
    first = conversion("first", 700, name="signup", **TIKTOK, order_id="o")
    second = signup("second", 795, meta=click("k", 790), tiktok=click("t", 790), order_id="o")
    third, last = (signup(f"s{at}", at, meta=click("k", at - 5)) for at in (850, 899))
    whole = user([first, second, third, last])
    assert statuses(whole)["second", "tiktok"] == "duplicate"
    assert statuses(whole)["s850", "meta"] == "uncounted"
    found = statuses(taken_over(whole, user([]), since=750))
    assert found == {("s850", "meta"): "unattributed", ("s899", "meta"): "counted"} | {}


# --- What the log tells of conversions whose touches it may lack ----------------------------------------------------------------


def test_a_touch_that_the_log_lacks_or_accepted_by_mistake_is_that_of_the_row() -> None:
    whole = [conversion("x", 1010, meta=click("k", 990)), conversion("y", 1010)]
    found = taken_over(user(whole), user([conversion("x", 1010), conversion("y", 1010, meta=click("late", 1005))]))
    assert {each.event_id: each.credits for each in found.conversions} == {"x": {"meta": click("k", 990)}, "y": {}}


@pytest.mark.parametrize(("policy", "told"), [(FOLLOWED, STANDS), (WIDE, DOUBT + 300)])
def test_of_what_the_log_tells_all_touches_the_row_says_nothing(policy: Policy, told: int) -> None:
    for at, credits in ((told - 1, {}), (told, {"meta": click("k", 1150)})):
        found = taken_over(user([conversion("x", at)]), user([conversion("x", at, meta=click("k", 1150))]), policy)
        assert found.conversions[0].credits == credits


def test_where_another_event_has_the_row_the_log_says_what_is_credited() -> None:
    first = conversion("x", 1005, **META, meta=click("k", 990))
    second = conversion("x", 1010, meta=click("k", 990), tiktok=click("t", 990))
    told = conversion("x", 1010, meta=click("m", 1001))
    found = taken_over(user([first, second]), user([first, told]))
    assert {each.time_ms: each.credits for each in found.conversions} == {
        1005: {"meta": click("k", 990)},
        1010: {"meta": click("m", 1001), "tiktok": click("t", 990)},
    }


def test_what_names_its_platform_is_given_no_other_one_s_touch() -> None:
    named = conversion("x", 1010, **META)
    whole = [named, conversion("x", 1010, tiktok=click("t", 990))]
    found = taken_over(user(whole), user([named, conversion("x", 1010)]))
    assert {each.platform: each.credits for each in found.conversions} == {"meta": {}, "": {"tiktok": click("t", 990)}}


# --- Paths ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "told"), [(FOLLOWED, STANDS), (WIDE, DOUBT + 300)])
def test_a_path_is_the_row_s_where_the_log_may_lack_some_of_it_or_the_row_stands(policy: Policy, told: int) -> None:
    for at, views in ((1010, 3), (told - 1, 3), (told, 1)):
        published, own = (conversion("x", at, path=on_path(click("k", at - 5), views)) for views in (3, 1))
        (found,) = taken_over(user([published]), user([own]), policy).conversions
        assert found.path.views == views


def test_a_path_is_that_of_the_event_and_not_of_another_one_with_its_name_and_id() -> None:
    first = conversion("x", 1005, **META, path=on_path(click("k", 990), 3))
    second = conversion("x", 1010, path=on_path(click("k", 990), 1))
    found = taken_over(user([first, second]), user([first, second]), FOLLOWED)
    assert {each.time_ms: each.path.views for each in found.conversions} == {1005: 3, 1010: 1}


# --- Adjustments ----------------------------------------------------------------------------------------------------------------


def test_what_a_retraction_took_back_that_the_log_lacks_is_retracted_again_without_a_letter() -> None:
    whole = user(
        [conversion(each, 900, meta=click("k", 890)) for each in ("x", "y")],
        [retraction("r", 910, "x"), retraction("q", 910, "y")],
    )
    found = taken_over(whole, user([]))
    assert statuses(found) == {("x", "meta"): "retracted", ("y", "meta"): "retracted"}
    assert all(each.is_refused for each in found.adjustments)
    assert len({each.identity() for each in found.adjustments}) == 2


def test_a_retraction_that_is_taken_over_takes_back_the_conversion_of_its_own_action_alone() -> None:
    both = [conversion("x", 900), signup("x", 900)]
    whole = user(both, [msgspec.structs.replace(retraction("r", 910, "x"), name="signup")])
    found = answer(taken_over(whole, user([])), POLICY).settlement.decisions
    assert {name: each.status for (name, _, _), each in found.items()} == {
        "purchase": "unattributed",
        "signup": "retracted",
    }


def test_a_retraction_that_the_log_holds_is_not_made_twice() -> None:
    own = [retraction("r", 1005, "x")]
    assert taken_over(user([conversion("x", 990)], own), user([], own)).adjustments == own


def test_a_retraction_that_came_too_late_takes_nothing_back_though_the_log_accepts_it() -> None:
    found = taken_over(user([conversion("x", 990)]), user([conversion("x", 990)], [retraction("r", 999, "x")]))
    assert (statuses(found), found.adjustments) == ({("x", ""): "unattributed"}, [])


def test_a_restatement_that_may_have_come_too_late_has_no_second_letter() -> None:
    restatement = msgspec.structs.replace(retraction("r", 999, "later"), kind="restate", value_micros=1)
    assert [each.is_refused for each in taken_over(user([]), user([], [restatement])).adjustments] == [True]


def test_what_is_not_retracted_by_what_the_log_tells_is_so_no_more() -> None:
    told = conversion("x", STANDS, meta=click("k", 1190))
    found = taken_over(user([told], [retraction("r", STANDS + 1, "x")]), user([told]))
    assert statuses(found) == {("x", "meta"): "counted"}


def test_what_was_refused_by_then_has_its_letter() -> None:
    early, good = retraction("early", 1001, "x"), retraction("good", 1015, "y")
    orders = [conversion("x", 1010), conversion("y", 1011)]
    found = taken_over(user(orders, [early, good]), user(orders[1:], [early, good]))
    assert {each.event_id: each.is_refused for each in found.adjustments} == {"early": True, "good": False}

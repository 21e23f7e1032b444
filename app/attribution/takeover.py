"""What a log that retention has cut no longer tells of a user, taken over from the published rows into the rebuilt state.

At C what is published is exactly what the whole log says (docs/architecture.md, "One loop, two stages"). A conversion is held
together with what it hangs on: its credited touches, its order's first report, the one that has its touch's place, its journey.
Those may lie before the log's begin; without them a rebuild would take back what was rightly counted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from app.attribution.journeys import Key
from app.attribution.merging import merged
from app.attribution.settle import Taken, is_taken, settle
from app.attribution.state import TAKEN_OVER, Adjustment, Conversion, Path, Touch, UserState
from app.contract import rows
from app.contract.events import TOUCH_TYPES, to_micros
from app.contract.journeys import JourneyRow, PathTouch
from app.contract.rows import AttributedRow
from app.policy.model import Policy

_VALUELESS: Final = frozenset((rows.DUPLICATE, rows.RETRACTED))  # their rows show no value, whatever the event said


class Cut(NamedTuple):
    """Where the log was cut (epoch ms). Of events before `doubt_ms` the records may be gone, or a repeat was taken for the first.
    Rows of before `stands_ms` are right as they are: the rebuilt state may lack what they hang on. Of conversions of `told_ms` and
    later, which is no earlier, the log tells all touches and visits. 0 where the log is whole.
    """

    doubt_ms: int
    stands_ms: int
    told_ms: int


WHOLE: Final = Cut(0, 0, 0)
# A row that shows a credited touch; where its place is, but for the action; and the touch's time (epoch ms).
_Placed = tuple[AttributedRow | JourneyRow, tuple[str, ...], int]


def cut_at(begins_ms: int, floor_ms: int, policy: Policy) -> Cut:
    """The cut of a log whose oldest record has this Kafka timestamp, where older conversions than `floor_ms` are let go (epoch
    ms); 0 for a whole log.
    """
    if not begins_ms:
        return WHOLE
    # An event may be that much later than its record; an id is remembered for at most a window and a quarter.
    doubt_ms = begins_ms + policy.bounds.max_clock_skew_ms + policy.bounds.dedup_window_ms * 5 // 4 + 1
    stands_ms = max(doubt_ms, floor_ms)
    return Cut(doubt_ms, stands_ms, max(doubt_ms + lookback_ms(policy), stands_ms))


def reach_ms(policy: Policy) -> int:
    """How much older (ms) than a conversion that is held another one may be that it hangs on, with the order that this one is a
    report of; or that it may be a repeat of.
    """
    bounds = policy.bounds
    journey_ms = bounds.journeys.window_ms if bounds.journeys else 0
    hangs_on_ms = bounds.order_window_ms + max(bounds.order_window_ms, lookback_ms(policy), journey_ms)
    return max(hangs_on_ms, policy.conversion_retention_ms())


def lookback_ms(policy: Policy) -> int:
    """How much older (ms) than a conversion a touch may be that it is credited to."""
    return max(policy.lookback_ms(kind) for kind in TOUCH_TYPES)


def take_over(
    state: UserState, published: list[AttributedRow], orders: list[JourneyRow], cut: Cut, policy: Policy
) -> None:
    """Gives `state`, in place, what the cut log lacks. `published`, `orders`: the user's rows of before `cut.stands_ms` as far
    back as `reach_ms`, and all of the conversions that the state has.
    """
    found: dict[Key, list[AttributedRow]] = defaultdict(list)
    for row in published:
        if row.event_time > state.forgotten_ms:
            found[row.conversion_name, row.event_id].append(row)
    _drop_unpublished(state, found, cut)
    lone = _lone_reports(found, orders, policy)
    away = _lone_places(found, orders, lone, policy)
    told: dict[Key, list[Conversion]] = defaultdict(list)
    for conversion in state.conversions:
        told[conversion.name, conversion.event_id].append(conversion)
    for key, reports in found.items():
        held = told.get(key, [])
        times_ms = {row.event_time for row in reports}
        for time_ms in times_ms:
            same = [conversion for conversion in held if conversion.time_ms == time_ms]
            if same and time_ms < cut.told_ms:
                for conversion in same:
                    conversion.credits = _credits_of(conversion, reports, policy)
                    if time_ms < cut.doubt_ms and policy.at(time_ms).merge_reports_ms:
                        _take_fields(conversion, reports)
            elif not same and time_ms < cut.stands_ms:
                # what has no row of its own is a repeat that was taken for the first, or judged nowhere
                repeats = [conversion for conversion in held if conversion.time_ms not in times_ms]
                if repeats:
                    state.conversions = [each for each in state.conversions if each not in repeats]
                if key not in lone:
                    own = [row for row in reports if row.event_time == time_ms]
                    state.conversions += _of_rows(own, time_ms == _nameless_ms(reports, held), away, policy)
    _take_paths(state, orders, away, cut, policy)
    _retract(state, found, cut, policy)


def _drop_unpublished(state: UserState, found: dict[Key, list[AttributedRow]], cut: Cut) -> None:
    """Lets go of what was accepted only as the log no longer holds its first report, what moved the stream time past it, or that
    its user was forgotten: a conversion that was accepted at first has a row, and what a retraction took back does, too.
    """
    state.conversions = [
        conversion
        for conversion in state.conversions
        if conversion.time_ms >= cut.doubt_ms or (conversion.name, conversion.event_id) in found
    ]
    state.adjustments = [each for each in state.adjustments if each.kind != "retract" or each.time_ms >= cut.doubt_ms]


def _lone_reports(found: dict[Key, list[AttributedRow]], orders: list[JourneyRow], policy: Policy) -> set[Key]:
    """Further reports of orders that lie too far back to be known, on a platform or over all of them. Without the order they would
    stand for one of their own; nothing that is held hangs on them.
    """
    lone = {
        key
        for key, reports in found.items()
        if any(row.status == rows.DUPLICATE and (key[0], row.duplicate_of or "") not in found for row in reports)
    }
    if policy.bounds.journeys is None:
        return lone
    firsts: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for order in orders:
        firsts[order.conversion_name, order.order_id].append(order.event_time)
    own = {(order.conversion_name, order.event_id) for order in orders}
    for key, reports in found.items():
        row, window_ms = reports[0], policy.bounds.order_window_ms
        times = firsts.get((row.conversion_name, row.order_id), ()) if row.order_id else ()
        if key not in own and not any(row.event_time - window_ms <= time_ms <= row.event_time for time_ms in times):
            lone.add(key)
    return lone


def _lone_places(
    found: dict[Key, list[AttributedRow]], orders: list[JourneyRow], lone: set[Key], policy: Policy
) -> set[tuple[str, str, str]]:
    """The rows, by (conversion_name, event_id, platform), whose touch's place is taken by a conversion that lies too far back to be
    known. Without that one they would take the place themselves.
    """
    known = found.keys() - lone
    placed: list[_Placed] = [
        (row, (row.platform, row.touch_type, row.touch_event_id or ""), row.touch_time or 0)
        for key in known
        for row in found[key]
        if row.touch_type is not None
    ]
    placed += [
        (order, (rows.ALL, touch.platform, touch.touch_type, touch.event_id), touch.time)
        for order in orders
        if (touch := order.credited) is not None and (order.conversion_name, order.event_id) in known
    ]
    taken: Taken = {}
    away: set[tuple[str, str, str]] = set()
    for row, where, touch_ms in sorted(placed, key=lambda each: (each[0].event_time, each[0].event_id)):
        place, order_window_ms = (row.conversion_name, *where), policy.bounds.order_window_ms
        if row.status == rows.COUNTED and _counts_one(row, where[0], policy):
            taken[place] = row.event_time
        elif row.status == rows.UNCOUNTED and not is_taken(taken.get(place), touch_ms, row.event_time, order_window_ms):
            away.add((row.conversion_name, row.event_id, where[0]))
    return away


def _counts_one(row: AttributedRow | JourneyRow, platform: str, policy: Policy) -> bool:
    version = policy.at(row.event_time)
    action, rule = version.actions[row.conversion_name], version.platforms.get(platform)
    return (rule.count(row.conversion_name, action) if rule else action.count) == "one"


def _nameless_ms(reports: list[AttributedRow], held: list[Conversion]) -> int:
    """When the one was, of all with a name and an id, that named no platform, or may have named none (epoch ms)."""
    shown = Counter(row.event_time for row in reports)
    known = [conversion.time_ms for conversion in held if not conversion.platform and conversion.time_ms in shown]
    told = [row.event_time for row in reports if not row.platform or shown[row.event_time] > 1]
    return min(known or told or shown)


def _of_rows(
    reports: list[AttributedRow], is_nameless: bool, away: set[tuple[str, str, str]], policy: Policy
) -> list[Conversion]:
    """The conversion that some rows are of. Where it may have named no platform it names none if it has touches: so its repeat is
    known, and nothing that is still accepted can stand before it, so that no other platform can claim it any more. Those `away`
    have no touch.
    """
    placed = [row for row in reports if (row.conversion_name, row.event_id, row.platform) not in away]
    credits = _touches_of(placed, policy)
    new = [_conversion(row.platform, reports, {}) for row in reports if row.platform not in credits]
    if credits and is_nameless:
        return [*new, _conversion("", reports, credits)]
    return new + [_conversion(platform, reports, {platform: touch}) for platform, touch in credits.items()]


def _conversion(platform: str, reports: list[AttributedRow], credits: dict[str, Touch]) -> Conversion:
    row = next((row for row in reports if row.status not in _VALUELESS), reports[0])
    return Conversion(
        row.event_id,
        row.conversion_name,
        platform,
        row.event_time,
        to_micros(row.value),
        row.currency,
        row.order_id,
        credits,
        {},
        is_browser=True,  # the row is made of all reports, and stands before what any of them says
    )


def _touches_of(reports: list[AttributedRow], policy: Policy) -> dict[str, Touch]:
    keep = policy.bounds.keep
    return {
        row.platform: Touch(
            row.touch_type, row.touch_time or 0, row.touch_event_id or "", tuple(getattr(row, name) for name in keep)
        )
        for row in reports
        if row.touch_type is not None
    }


def _credits_of(conversion: Conversion, reports: list[AttributedRow], policy: Policy) -> dict[str, Touch]:
    """What the rows say; on platforms that judge another event with its name and id, what the log says."""
    own = [row for row in reports if row.event_time == conversion.time_ms]
    others = {row.platform for row in reports} - {row.platform for row in own}
    told = _touches_of([row for row in own if conversion.platform in ("", row.platform)], policy)
    return {platform: touch for platform, touch in conversion.credits.items() if platform in others} | told


def _take_fields(conversion: Conversion, reports: list[AttributedRow]) -> None:
    """Gives a conversion what its rows show: they are made of all reports of it, of which the log may lack some. That stands
    before what any report says, as a browser's word does.
    """
    own = [row for row in reports if row.event_time == conversion.time_ms and conversion.platform in ("", row.platform)]
    if not own:
        return
    row = next((row for row in own if row.status not in _VALUELESS), own[0])
    conversion.currency, conversion.order_id = row.currency, row.order_id
    conversion.is_browser, conversion.reports = True, []
    if row.status not in _VALUELESS:
        conversion.value_micros = to_micros(row.value)


def _take_paths(
    state: UserState, orders: Iterable[JourneyRow], away: set[tuple[str, str, str]], cut: Cut, policy: Policy
) -> None:
    paths = {(row.conversion_name, row.event_id, row.event_time): row for row in orders}
    for conversion in state.conversions:
        row = paths.get((conversion.name, conversion.event_id, conversion.time_ms))
        if row is not None and conversion.time_ms < cut.told_ms:
            path = _path(row, policy)
            is_away = (row.conversion_name, row.event_id, rows.ALL) in away
            conversion.path = msgspec.structs.replace(path, credited=None) if is_away else path


def _path(row: JourneyRow, policy: Policy) -> Path:
    def placed(touch: PathTouch) -> tuple[str, Touch]:
        kept = tuple(getattr(touch, name) for name in policy.bounds.keep)
        return touch.platform, Touch(touch.touch_type, touch.time, touch.event_id, kept)

    visit = None
    if row.first_visit_time is not None:
        visit = row.first_visit_time, row.first_page or "", row.first_referrer
    return Path(
        row.views,
        row.engaged_views,
        row.clicks,
        row.visits,
        placed(row.first_touch) if row.first_touch else None,
        [placed(touch) for touch in row.touches],
        placed(row.credited) if row.credited else None,
        visit,
        row.pages,
    )


def _retract(state: UserState, found: dict[Key, list[AttributedRow]], cut: Cut, policy: Policy) -> None:
    """Retracts again what a retraction took back that the log does not tell for certain. What an adjustment was refused for by
    then has its dead letter, and so may one of which it is not known whether it came too late.
    """
    retracted = [
        (key, row)
        for key, reports in found.items()
        for row in reports
        if row.status == rows.RETRACTED and row.event_time < cut.stands_ms
    ]
    decisions = settle(merged(state.conversions, policy), state.adjustments, policy).decisions if retracted else {}
    gone: dict[Key, int] = {}
    for key, row in retracted:
        decision = decisions.get((*key, row.platform))
        if decision is not None and decision.status != rows.RETRACTED:
            gone[key] = row.event_time
    for (name, event_id), time_ms in gone.items():
        # no event has an empty id
        nowhere = ("", 0, 0, 0)
        identity = f"{name}{TAKEN_OVER}{event_id}"
        state.adjustments.append(
            Adjustment("", "", "retract", time_ms, None, None, event_id, nowhere, None, b"", identity, is_refused=True)
        )
    refusals = (
        settle(merged(state.conversions, policy), state.adjustments, policy).refusals if state.adjustments else {}
    )
    for adjustment in state.adjustments:
        is_refused = adjustment.time_ms < cut.doubt_ms or adjustment.identity() in refusals
        adjustment.is_refused = adjustment.is_refused or is_refused

"""Orders counted once over all platforms, how their people came to them, and how models share them: docs/counting.md,
sections 9 to 11.

Pure, as `settle` is: of the user's whole set of conversions, each with its path, so no arrival order matters.
"""

from bisect import bisect_left
from collections import defaultdict
from typing import Final, NamedTuple

from app.attribution.settle import Decision, Settlement, Taken, adjust, distinct, group_orders, in_order, judge
from app.attribution.state import Conversion, Path, Touch, UserState
from app.contract import rows
from app.contract.events import MICROS, to_micros
from app.contract.journeys import NEW, RETURNING, JourneyRow, ModelRow, PathTouch, Share
from app.policy.model import Journeys, Policy

DECAY_ONE: Final = 2**40  # what the last touch weighs in time_decay
Key = tuple[str, str]  # conversion_name, event_id


class Journey(NamedTuple):
    """One order over all platforms. `abandoned`: the action that it takes up again, and when that was (ms)."""

    decision: Decision
    path: Path
    counted_by: tuple[str, ...]
    customer: str | None
    abandoned: tuple[str, int] | None

    def is_counted(self) -> bool:
        """Whether it is in the counts of scope `all`."""
        return self.decision.status == rows.COUNTED

    def content(self) -> tuple[object, ...]:
        """What of it its row shows."""
        decision, conversion = self.decision, self.decision.conversion
        shown = decision.status, decision.value_micros, decision.version.number
        return (*shown, conversion.time_ms, conversion.currency, conversion.order_id, *self[1:])


def follow(state: UserState, settlement: Settlement, policy: Policy) -> dict[Key, Journey]:
    """The orders of one (advertiser, user) by their first report; none where the policy follows no journeys.
    `settlement`: what the platforms make of them.
    """
    journeys = policy.bounds.journeys
    if journeys is None or not state.conversions:
        return {}
    claims: dict[Key, list[str]] = defaultdict(list)
    for (name, event_id, platform), decision in settlement.decisions.items():
        if decision.status == rows.COUNTED:
            claims[name, event_id].append(platform)
    adjustments = in_order(state.adjustments)
    taken: Taken = {}
    found: dict[Key, Journey] = {}
    order_window_ms = policy.bounds.order_window_ms
    for order in group_orders(distinct(state.conversions), order_window_ms):
        first = order[0]
        version, path = policy.at(first.time_ms), first.path
        platform, touch = path.credited or ("", None)
        count = version.actions[first.name].count
        adjusted = adjust(order, adjustments, policy.bounds.adjustment_window_ms, defaultdict(list))
        decision = judge(first, touch, count, version, taken, order_window_ms, adjusted, (platform,))
        counted_by = {name for report in order for name in claims.get((report.name, report.event_id), ())}
        found[first.name, first.event_id] = Journey(decision, path, tuple(sorted(counted_by)), None, None)
    return _with_customers(found, state, journeys) if journeys.orders else found


def _is_paid(journey: Journey, journeys: Journeys) -> bool:
    return journey.decision.conversion.name in journeys.orders and journey.decision.status != rows.RETRACTED


def _with_customers(found: dict[Key, Journey], state: UserState, journeys: Journeys) -> dict[Key, Journey]:
    """With the paid orders' customers, and what they complete (section 11)."""
    left = sorted(
        (conversion.time_ms, conversion.event_id, conversion.name)
        for conversion in state.conversions
        if conversion.name in journeys.abandoned_actions
    )
    before = state.last_order or (-1, "", "")
    paid = sorted(
        (journey.decision.conversion.time_ms, key[1], key[0])
        for key, journey in found.items()
        if _is_paid(journey, journeys)
    )
    for now in paid:
        key = now[2], now[1]
        journey = found[key]
        is_back = 0 <= before[0] <= now[0] <= before[0] + journeys.customer_window_ms
        last = left[max(bisect_left(left, now) - 1, 0)] if left else None
        abandoned = None
        if (
            last is not None
            and before < last < now
            and journeys.abandon_after_ms <= now[0] - last[0] <= journeys.window_ms
        ):
            abandoned = last[2], last[0]
        found[key] = journey._replace(customer=RETURNING if is_back else NEW, abandoned=abandoned)
        before = max(before, now)
    return found


def latest_order(gone: list[Conversion], found: dict[Key, Journey], journeys: Journeys) -> tuple[int, str, str] | None:
    """The last paid order among conversions that are about to be forgotten: its time (ms), event_id and name."""
    keys = {(conversion.name, conversion.event_id) for conversion in gone}
    orders = [
        (journey.decision.conversion.time_ms, event_id, name)
        for (name, event_id), journey in found.items()
        if (name, event_id) in keys and _is_paid(journey, journeys)
    ]
    return max(orders, default=None)


def journey_row(advertiser_id: str, user_id: str, journey: Journey, revision: int, policy: Policy) -> JourneyRow:
    """The row that publishes an order."""
    decision, path, conversion = journey.decision, journey.path, journey.decision.conversion
    action, journeys = decision.version.actions[conversion.name], policy.bounds.journeys
    assert journeys is not None
    first_time, first_page, first_referrer = path.first_visit or (None, None, None)
    abandoned_action, abandoned_time = journey.abandoned or (None, None)
    last = path.touches[-1] if path.touches else None
    is_return = last is not None and abandoned_time is not None and last[1].time_ms > abandoned_time
    return JourneyRow(
        advertiser_id=advertiser_id,
        user_id=user_id,
        conversion_name=conversion.name,
        event_id=conversion.event_id,
        event_time=conversion.time_ms,
        order_id=conversion.order_id,
        scope=rows.ALL,
        status=decision.status,
        conversions=int(journey.is_counted()),
        value=decision.value_micros / MICROS,
        currency=conversion.currency,
        action_class=action.action_class,
        intent=action.intent,
        outcome=action.outcome or "",
        policy_version=decision.version.number,
        credit=journeys.credit,
        credited=_shown(path.credited, policy),
        time_to_convert_ms=conversion.time_ms - path.credited[1].time_ms if path.credited else None,
        counted_by=list(journey.counted_by),
        first_touch=_shown(path.first, policy),
        touches=[_path_touch(platform, touch, policy) for platform, touch in path.touches],
        views=path.views,
        engaged_views=path.engaged_views,
        clicks=path.clicks,
        visits=path.visits,
        pages=path.pages,
        first_visit_time=first_time,
        first_page=first_page,
        first_referrer=first_referrer,
        time_from_first_touch_ms=conversion.time_ms - path.first[1].time_ms if path.first else None,
        time_from_first_visit_ms=conversion.time_ms - first_time if first_time is not None else None,
        customer=journey.customer,
        abandoned_action=abandoned_action,
        abandoned_time=abandoned_time,
        returned_by=_shown(last, policy) if is_return else None,
        revision=revision,
    )


def _shown(placed: tuple[str, Touch] | None, policy: Policy) -> PathTouch | None:
    return _path_touch(*placed, policy) if placed else None


def _path_touch(platform: str, touch: Touch, policy: Policy) -> PathTouch:
    return PathTouch(platform, touch.kind, touch.event_id, touch.time_ms, *policy.shown(touch.attributes))


def model_rows(row: JourneyRow, journeys: Journeys) -> list[ModelRow]:
    """How each model shares a counted order; a function of its row, so that both are published as one."""
    found = []
    value_micros = to_micros(row.value)
    for model in journeys.models:
        shares = apportion(weights(model, [touch.time for touch in row.touches], journeys.half_life_ms), MICROS)
        values = apportion(shares, value_micros)
        credits = [
            Share(touch, share / MICROS, value / MICROS)
            for touch, share, value in zip(row.touches, shares, values, strict=True)
            if share
        ]
        found.append(
            ModelRow(
                advertiser_id=row.advertiser_id,
                user_id=row.user_id,
                conversion_name=row.conversion_name,
                event_id=row.event_id,
                event_time=row.event_time,
                model=model,
                value=row.value,
                currency=row.currency,
                credits=credits,
                revision=row.revision,
            )
        )
    return found


def weights(model: str, times_ms: list[int], half_life_ms: int) -> list[int]:
    """What each touch weighs in a model, the earliest first."""
    count = len(times_ms)
    if model == "first_touch":
        return [int(at == 0) for at in range(count)]
    if model == "last_touch":
        return [int(at == count - 1) for at in range(count)]
    if model == "time_decay":
        # whole numbers, so that the last bit of a power, in which machines differ, decides nothing
        return [int(DECAY_ONE * 2.0 ** ((time_ms - times_ms[-1]) / half_life_ms)) for time_ms in times_ms]
    if model == "linear" or count < 3:
        return [1] * count
    ends = 2 * (count - 2)  # 0.4 each, to 0.2 for all between
    return [ends, *[1] * (count - 2), ends]


def apportion(weights: list[int], whole: int) -> list[int]:
    """A whole number in parts by weight that sum to exactly it: rounded down, and the rest to the largest remainders, of
    equal ones to the earlier (the method of Hamilton).
    """
    total = sum(weights)
    parts = [weight * whole // total for weight in weights]
    order = sorted(range(len(parts)), key=lambda at: -(weights[at] * whole % total))
    for at in order[: whole - sum(parts)]:
        parts[at] += 1
    return parts

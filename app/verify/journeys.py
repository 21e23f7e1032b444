"""Each order once over all platforms, and the way to it: docs/counting.md, sections 8, 9 and 11."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from app.contract import rows
from app.contract.events import TOUCH_TYPES
from app.contract.journeys import NEW, RETURNING
from app.policy.model import Action, Journeys, Policy, Version
from app.verify.records import Arrival, Person
from app.verify.settlement import (
    STRENGTH,
    Decision,
    Order,
    counted_action,
    eligible_touches,
    judge_adjustments,
    split_into_orders,
    stands_in_the_way,
    value_of,
    version_at,
)


class Journey(NamedTuple):
    """What stands before one conversion, earliest first. `eligible`: the touches that their own platforms may credit."""

    touches: list[Arrival]
    visits: list[Arrival]
    eligible: list[Arrival]


class RealOrder(NamedTuple):
    """One order as it counts over all platforms: a row of `conversions.journeys` in the making. `touches`: of `eligible`
    those that the row has room for.
    """

    reports: list[Arrival]
    version: Version
    action: Action
    status: str
    value_micros: int
    journey: Journey
    touches: list[Arrival]
    credited: Arrival | None
    counted_by: list[str]
    customer: str | None = None
    abandoned: Arrival | None = None
    returned_by: Arrival | None = None

    @property
    def conversion(self) -> Arrival:
        """The order's first report."""
        return self.reports[0]


def follow(person: Person, decisions: Sequence[Decision], policy: Policy) -> list[RealOrder]:
    """Every order of one user over all platforms. `decisions`: what section 4 says of the same person.

    Only for a policy that has `journeys`.
    """
    journeys = policy.bounds.journeys
    assert journeys is not None
    found = [judge(order, person, decisions, policy, journeys) for order in orders_over_all(person, policy)]
    placed = give_places_over_all(found, policy.bounds.order_window_ms)
    return [with_customer(order, placed, person, policy, journeys) for order in placed]


# --- Section 8: journeys ----------------------------------------------------------------------------------------------


def touch_order(touch: Arrival) -> tuple[int, str, str, str]:
    """(event_time, event_id, platform, kind); of equal ones the first processed goes first."""
    return (*touch.time_and_id, touch.event.platform or "", touch.event.event_type)


def visit_order(visit: Arrival) -> tuple[int, str]:
    """(event_time, event_id); of equal ones the first processed goes first."""
    return visit.time_and_id


def journey_of(conversion: Arrival, person: Person, policy: Policy, journeys: Journeys) -> Journey:
    """The touches of any platform and the visits that are strictly before a conversion, and at most `window` before."""

    def within(events: list[Arrival]) -> list[Arrival]:
        return [each for each in events if 0 < conversion.time_ms - each.time_ms <= journeys.window_ms]

    touches = sorted(within(person.touches), key=touch_order)
    visits = sorted(within(person.visits), key=visit_order)
    eligible = [touch for touch in touches if eligible_touches(conversion, touch.event.platform or "", [touch], policy)]
    return Journey(touches, visits, eligible)


def shorten(touches: list[Arrival], at_most: int) -> list[Arrival]:
    """Of more than `at_most` touches "the first one and the last `max_touches - 1`"."""
    return touches if len(touches) <= at_most else [touches[0], *touches[len(touches) - (at_most - 1) :]]


def how_many(touches: list[Arrival]) -> dict[str, int]:
    """The touches of each kind."""
    return {kind: sum(touch.event.event_type == kind for touch in touches) for kind in TOUCH_TYPES}


# --- Section 9: over all platforms ------------------------------------------------------------------------------------


def orders_over_all(person: Person, policy: Policy) -> list[Order]:
    """All conversions as orders, noise left out: of one (conversion_name, event_id) the first by (event_time, platform)."""
    first: dict[tuple[str | None, str], Arrival] = {}
    for conversion in sorted(person.conversions, key=lambda each: (each.time_ms, each.event.platform or "")):
        if counted_action(policy, conversion) is not None:
            first.setdefault((conversion.event.conversion_name, conversion.event.event_id), conversion)
    conversions = sorted(first.values(), key=lambda each: each.time_and_id)
    return split_into_orders(rows.ALL, conversions, policy.bounds.order_window_ms)


def judge(order: Order, person: Person, decisions: Sequence[Decision], policy: Policy, journeys: Journeys) -> RealOrder:
    """An order with its journey, its credited touch, and its status but for `one`, which hangs on the other orders."""
    conversion = order.reports[0]
    version, action = version_at(policy, conversion.time_ms), counted_action(policy, conversion)
    assert action is not None  # noise is in no order
    verdict = judge_adjustments(order, person.adjustments, policy.bounds.adjustment_window_ms)
    journey = journey_of(conversion, person, policy, journeys)
    credited = credited_over_all(journey.eligible, journeys.credit)
    status = rows.RETRACTED if verdict.retracted else rows.UNATTRIBUTED if credited is None else rows.COUNTED
    return RealOrder(
        reports=order.reports,
        version=version,
        action=action,
        status=status,
        value_micros=0 if verdict.retracted else value_of(conversion, action, verdict.restated_micros),
        journey=journey,
        touches=shorten(journey.eligible, journeys.max_touches),
        credited=credited,
        counted_by=platforms_that_count(order, decisions),
    )


def credited_over_all(eligible: list[Arrival], credit: str) -> Arrival | None:
    """The touch that earns an order by `credit`, of its eligible ones in order; None of none. Of equal ones the first."""
    if not eligible or credit == "first_touch":
        return next(iter(eligible), None)

    def rank(touch: Arrival) -> tuple[int | str, ...]:
        event, strength = touch.event, STRENGTH[touch.event.event_type]
        if credit == "last_click":
            return (strength, touch.time_ms, event.event_id, event.platform or "")
        return (touch.time_ms, strength, event.event_id, event.platform or "")

    return max(eligible, key=rank)


def platforms_that_count(order: Order, decisions: Sequence[Decision]) -> list[str]:
    """Where some report of the order counts by section 4. An event that is left out here, since an earlier one has its
    (conversion_name, event_id), may be judged on its own platform there, and is a report of the same order.
    """
    reports = {(report.event.conversion_name, report.event.event_id) for report in order.reports}
    return sorted(
        {
            decision.platform
            for decision in decisions
            if decision.status == rows.COUNTED
            and (decision.conversion.event.conversion_name, decision.conversion.event.event_id) in reports
        }
    )


def give_places_over_all(orders: list[RealOrder], order_window_ms: int) -> list[RealOrder]:
    """Where the action counts `one`: of each (conversion_name, touch) the first keeps `counted`."""
    taken: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
    placed = []
    for order in sorted(orders, key=lambda each: each.conversion.time_and_id):
        if order.status == rows.COUNTED and order.action.count == "one":
            assert order.credited is not None
            touch = order.credited.event
            place = (order.conversion.event.conversion_name, touch.platform, touch.event_type, touch.event_id)
            if stands_in_the_way(taken[place], order.credited, order.conversion, order_window_ms):
                order = order._replace(status=rows.UNCOUNTED)
            else:
                taken[place].append(order.conversion.time_ms)
        placed.append(order)
    return placed


# --- Section 11: customers and abandonment ----------------------------------------------------------------------------


def standing(conversion: Arrival) -> tuple[int, str, str]:
    """(event_time, event_id, conversion_name): which conversion stands before which."""
    return (*conversion.time_and_id, conversion.event.conversion_name or "")


def is_paid(order: RealOrder, journeys: Journeys) -> bool:
    """Whether it is a paid order, and stands."""
    return order.conversion.event.conversion_name in journeys.orders and order.status != rows.RETRACTED


def with_customer(
    order: RealOrder, orders: list[RealOrder], person: Person, policy: Policy, journeys: Journeys
) -> RealOrder:
    """A paid order with its customer and with what it takes up again; any other order as it is."""
    if not is_paid(order, journeys):
        return order
    conversion = order.conversion
    before = [
        other.conversion
        for other in orders
        if is_paid(other, journeys) and standing(other.conversion) < standing(conversion)
    ]
    returns = any(conversion.time_ms - other.time_ms <= journeys.customer_window_ms for other in before)
    abandoned = abandoned_before(conversion, before, person, policy, journeys)
    later = [touch for touch in order.touches if abandoned is not None and touch.time_ms > abandoned.time_ms]
    return order._replace(
        customer=RETURNING if returns else NEW, abandoned=abandoned, returned_by=later[-1] if later else None
    )


def abandoned_before(
    order: Arrival, paid_before: list[Arrival], person: Person, policy: Policy, journeys: Journeys
) -> Arrival | None:
    """The cart (or what else the policy says) that a paid order completes: the last one since the paid order before it,
    if that was left for `after` at the least. A later one that was not left so long hides it.
    """
    begun = [
        conversion
        for conversion in person.conversions
        if conversion.event.conversion_name in journeys.abandoned_actions
        and counted_action(policy, conversion) is not None
        and standing(conversion) < standing(order)
        and order.time_ms - conversion.time_ms <= journeys.window_ms
        and all(standing(conversion) > standing(paid) for paid in paid_before)
    ]
    last = max(begun, key=standing, default=None)
    return last if last is not None and order.time_ms - last.time_ms >= journeys.abandon_after_ms else None

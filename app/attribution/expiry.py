"""What is let go of one user: conversions and adjustments that can no longer change a judgement (docs/counting.md, section 6)."""

from math import inf

from app.attribution.journeys import latest_order
from app.attribution.state import Adjustment, Conversion, UserState
from app.attribution.users import answer
from app.policy.model import Journeys, Policy


def expire(state: UserState, stream_ms: int, policy: Policy) -> None:
    """Lets go, in place, of what can no longer matter at this stream time (ms). Of the paid orders among it the last one's time
    and id stay, for as long as it makes a later one that of a returning customer.
    """
    floor_ms = stream_ms - policy.conversion_retention_ms()
    journeys = policy.bounds.journeys
    held = state.conversions
    if journeys is None or not journeys.orders or all(conversion.time_ms >= floor_ms for conversion in held):
        prune(state, floor_ms, journeys)
    else:
        found = answer(state, policy).journeys
        prune(state, floor_ms, journeys)
        kept = {conversion.identity() for conversion in state.conversions}
        gone = [conversion for conversion in held if conversion.identity() not in kept]
        orders = [latest_order(gone, found, journeys), state.last_order]
        state.last_order = max((order for order in orders if order is not None), default=None)
    if (
        journeys is not None
        and state.last_order is not None
        and state.last_order[0] < floor_ms - journeys.customer_window_ms
    ):
        state.last_order = None


def prune(state: UserState, floor_ms: int, journeys: Journeys | None = None) -> None:
    """Lets go, in place, of the conversions and adjustments that are older than `floor_ms` (epoch ms) and so can no longer
    matter.

    A conversion stays while any other one that it is judged with (its order, its touch's place, its adjustment; a paid order
    before it, a cart that it takes up again) stays, since forgetting it earlier would change their judgement.
    """
    for item in state.conversions:
        if item.time_ms < floor_ms:
            break
    else:
        if all(item.time_ms >= floor_ms for item in state.adjustments):
            return
    if all(item.time_ms < floor_ms for item in (*state.conversions, *state.adjustments)):
        state.conversions, state.adjustments = [], []
        return
    kept = {conversion.identity() for conversion in state.conversions if conversion.time_ms >= floor_ms}
    ties = {conversion.identity(): _ties(conversion) for conversion in state.conversions}
    live: set[tuple[str, ...]] = set().union(*(ties[identity] for identity in kept)) if kept else set()
    for adjustment in state.adjustments:
        if adjustment.time_ms >= floor_ms:
            live |= _adjustment_ties(adjustment)
    grown = True
    while grown:
        grown = False
        since_ms = _needed_since(state, kept, journeys) if journeys is not None else {}
        for conversion in state.conversions:
            identity = conversion.identity()
            if identity not in kept and (
                ties[identity] & live or conversion.time_ms >= since_ms.get(conversion.name, inf)
            ):
                kept.add(identity)
                live |= ties[identity]
                grown = True
        for adjustment in state.adjustments:
            tied = _adjustment_ties(adjustment)
            if tied & live and not tied <= live:
                live |= tied
                grown = True
    state.conversions = [conversion for conversion in state.conversions if conversion.identity() in kept]
    state.adjustments = [
        item for item in state.adjustments if item.time_ms >= floor_ms or _adjustment_ties(item) & live
    ]


def _needed_since(state: UserState, kept: set[tuple[str, str, str]], journeys: Journeys) -> dict[str, int]:
    """By action: since when (ms) those that are kept may hang on its conversions. What is forgotten of paid orders stands
    before all that are kept, so that the last one tells all of it.
    """
    paid = [each.time_ms for each in state.conversions if each.name in journeys.orders and each.identity() in kept]
    if not paid:
        return {}
    first_ms = min(paid)
    left = dict.fromkeys(journeys.abandoned_actions, first_ms - journeys.window_ms)
    return dict.fromkeys(journeys.orders, first_ms) | left


def _ties(conversion: Conversion) -> set[tuple[str, ...]]:
    ties: set[tuple[str, ...]] = {("event", conversion.event_id)}
    for order_id in (conversion.order_id, *(report.order_id for report in conversion.reports)):
        if order_id:
            ties.add(("order", order_id))
    for platform, touch in conversion.credits.items():
        ties.add(("touch", platform, conversion.name, touch.kind, touch.event_id))
    if conversion.path.credited is not None:
        platform, touch = conversion.path.credited
        ties.add(("touch", platform, conversion.name, touch.kind, touch.event_id))
    return ties


def _adjustment_ties(adjustment: Adjustment) -> set[tuple[str, ...]]:
    ties: set[tuple[str, ...]] = set()
    if adjustment.order_id:
        ties.add(("order", adjustment.order_id))
    if adjustment.conversion_event_id:
        ties.add(("event", adjustment.conversion_event_id))
    return ties

"""Conversions, orders and adjustments of one (advertiser, user): docs/counting.md, sections 4 and 5."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from app.contract import reasons, rows
from app.policy.model import Action, Platform, Policy, Version
from app.verify.records import Arrival, Coordinates, Person

# Section 4, "a kind that the platform's method credits", and "click > engaged view > view".
CREDITED_KINDS: Final = {
    "click": {"click"},
    "view": {"view"},
    "click_then_view": {"click", "view"},
    "click_engaged_view": {"click", "engaged_view"},
}
STRENGTH: Final = {"view": 1, "engaged_view": 2, "click": 3}
NO_PLATFORM: Final = ""


class Order(NamedTuple):
    """The reports of one order on one platform, by (event_time, event_id); the first is the order."""

    platform: str
    reports: list[Arrival]


class Verdict(NamedTuple):
    """What the adjustments make of one order. `found`: by coordinates, why one is refused, or None."""

    retracted: bool
    restated_micros: int | None
    found: dict[Coordinates, str | None]


class Decision(NamedTuple):
    """One conversion as one judged platform sees it: a row of `conversions.attributed` in the making."""

    conversion: Arrival
    platform: str
    version: Version
    action: Action
    status: str
    value_micros: int
    touch: Arrival | None
    duplicate_of: str | None


def settle(person: Person, policy: Policy) -> tuple[list[Decision], dict[Coordinates, str]]:
    """Every decision on one user's conversions, and why an adjustment that names orders applies to none."""
    orders = [
        order
        for platform, conversions in judged_conversions(person, policy).items()
        for order in split_into_orders(platform, conversions, policy.bounds.order_window_ms)
    ]
    verdicts = [judge_adjustments(order, person.adjustments, policy.bounds.adjustment_window_ms) for order in orders]
    decisions = decide(orders, verdicts, person.touches, policy)
    return decisions, refused_adjustments(orders, verdicts)


def version_at(policy: Policy, time_ms: int) -> Version:
    """The last version whose `effective_from` is not after a conversion's event time."""
    in_force = policy.versions[0]
    for version in policy.versions:
        if version.effective_from_ms <= time_ms:
            in_force = version
    return in_force


def counted_action(policy: Policy, conversion: Arrival) -> Action | None:
    """The conversion's action in the version in force at its time; None for noise: unknown, or without an outcome."""
    action = version_at(policy, conversion.time_ms).actions.get(conversion.event.conversion_name or "")
    return None if action is None or action.outcome is None else action


def eligible_touches(conversion: Arrival, platform: str, touches: list[Arrival], policy: Policy) -> list[Arrival]:
    """The touches (of the conversion's advertiser and user) that `platform` may credit for it."""
    version = version_at(policy, conversion.time_ms)
    rule = version.platforms.get(platform)
    if rule is None:
        return []
    return [
        touch
        for touch in touches
        if touch.event.platform == platform
        and is_eligible(touch, conversion, rule)
        and touch.time_ms >= reach_ms(policy, version, platform, touch.event.event_type)
    ]


def is_eligible(touch: Arrival, conversion: Arrival, rule: Platform) -> bool:
    """A kind that the method credits, strictly before the conversion, and at most its kind's window before it."""
    kind = touch.event.event_type
    if kind not in CREDITED_KINDS[rule.method]:
        return False
    return touch.time_ms < conversion.time_ms and conversion.time_ms - touch.time_ms <= rule.windows_ms[kind]


def reach_ms(policy: Policy, version: Version, platform: str, kind: str) -> int:
    """Section 4, "a longer window acts forward only": the latest limit that any version up to this one set to itself."""
    limits = [0]
    for place in range(1, policy.versions.index(version) + 1):
        before = [
            each.platforms[platform].windows_ms.get(kind, 0)
            for each in policy.versions[:place]
            if platform in each.platforms
        ]
        rule = policy.versions[place].platforms.get(platform)
        if rule is not None and rule.windows_ms.get(kind, 0) > max(before, default=0):
            limits.append(policy.versions[place].effective_from_ms - max(before, default=0))
    return limits[-1]


def credited_touch(conversion: Arrival, platform: str, touches: list[Arrival], policy: Policy) -> Arrival | None:
    """The eligible touch with the largest (rank of kind, event_time, event_id); of equal ones the first accepted."""
    eligible = eligible_touches(conversion, platform, touches, policy)
    return max(eligible, key=lambda touch: (STRENGTH[touch.event.event_type], *touch.time_and_id), default=None)


def judged_platforms(conversion: Arrival, touches: list[Arrival], policy: Policy) -> list[str]:
    """The event's platform if it names one; else every platform of the version that has an eligible touch; else ""."""
    if conversion.event.platform is not None:
        return [conversion.event.platform]
    platforms = version_at(policy, conversion.time_ms).platforms
    found = [platform for platform in platforms if eligible_touches(conversion, platform, touches, policy)]
    return found or [NO_PLATFORM]


def judged_conversions(person: Person, policy: Policy) -> dict[str, list[Arrival]]:
    """The conversions that each platform judges, by (event_time, event_id), noise left out.

    An event sent both with and without its platform is one conversion: on a platform, of those with the same
    (conversion_name, event_id) only the first by (event_time, platform or "") is judged.
    """
    judged: dict[str, list[Arrival]] = defaultdict(list)
    standing: set[tuple[str, str | None, str]] = set()
    for conversion in sorted(person.conversions, key=lambda each: (*each.time_and_id, each.event.platform or "")):
        if counted_action(policy, conversion) is None:
            continue
        for platform in judged_platforms(conversion, person.touches, policy):
            row = (platform, conversion.event.conversion_name, conversion.event.event_id)
            if row not in standing:
                standing.add(row)
                judged[platform].append(conversion)
    return judged


def split_into_orders(platform: str, conversions: list[Arrival], order_window_ms: int) -> list[Order]:
    """Conversions of one platform, sorted by (event_time, event_id), as orders with their duplicate reports."""
    orders: list[Order] = []
    latest: dict[tuple[str | None, str], Order] = {}
    for conversion in conversions:
        order_id = conversion.event.order_id
        if order_id:
            group = (conversion.event.conversion_name, order_id)
            order = latest.get(group)
            # "each later one at most `order_window` after it is a duplicate; the next one beyond starts a new order"
            if order is not None and conversion.time_ms - order.reports[0].time_ms <= order_window_ms:
                order.reports.append(conversion)
                continue
            latest[group] = Order(platform, [conversion])
            orders.append(latest[group])
        else:  # "a conversion without an order_id is its own order"
            orders.append(Order(platform, [conversion]))
    return orders


def names(adjustment: Arrival, order: Order) -> bool:
    """Whether an adjustment names an order: by its order_id, or by the event_id of any report in it; if it says of which
    action, only an order of that one.
    """
    event, first = adjustment.event, order.reports[0].event
    if event.conversion_name is not None and event.conversion_name != first.conversion_name:
        return False
    by_order = bool(event.order_id) and event.order_id == first.order_id
    return by_order or any(report.event.event_id == event.conversion_event_id for report in order.reports)


def disagree(adjustment: Arrival, order: Order) -> bool:
    """Whether an adjustment and an order both name a currency, and not the same."""
    currencies = {adjustment.event.currency, order.reports[0].event.currency}
    return len(currencies - {None}) > 1


def judge_adjustments(order: Order, adjustments: list[Arrival], adjustment_window_ms: int) -> Verdict:
    """Section 5 for one order: every adjustment that names it, in order of (event_time, event_id)."""
    ordered_ms = order.reports[0].time_ms
    retracted, restated_micros = False, None
    found: dict[Coordinates, str | None] = {}
    for adjustment in sorted(adjustments, key=lambda each: each.time_and_id):
        if not names(adjustment, order):
            continue
        kind = adjustment.event.adjustment
        reason = None
        if adjustment.time_ms < ordered_ms:
            reason = reasons.ADJUSTMENT_PRECEDES_CONVERSION
        elif adjustment.time_ms - ordered_ms > adjustment_window_ms:
            reason = reasons.ADJUSTMENT_TOO_OLD
        elif kind == "restate" and disagree(adjustment, order):
            reason = reasons.ADJUSTMENT_IN_ANOTHER_CURRENCY
        elif retracted or (kind == "restate" and restated_micros is not None):
            # An earlier one of the same kind, or, for a restatement, an earlier retraction.
            reason = reasons.ADJUSTMENT_TWICE
        elif kind == "retract":
            retracted = True
        else:
            restated_micros = to_micros(adjustment.event.value)
        found[adjustment.found] = reason
    return Verdict(retracted, restated_micros, found)


def refused_adjustments(orders: Sequence[Order], verdicts: Sequence[Verdict]) -> dict[Coordinates, str]:
    """The adjustments that apply to no order although they name some, with the reason found for the first of those."""
    applied = {found for verdict in verdicts for found, reason in verdict.found.items() if reason is None}
    refused: dict[Coordinates, str] = {}
    # "by platform, then event_time, event_id of the order"; the action's name only where those are all equal.
    pairs = sorted(
        zip(orders, verdicts, strict=True),
        key=lambda pair: (pair[0].platform, *pair[0].reports[0].time_and_id, pair[0].reports[0].event.conversion_name),
    )
    for _, verdict in pairs:
        for found, reason in verdict.found.items():
            if found not in applied and reason is not None:
                refused.setdefault(found, reason)
    return refused


def decide(orders: list[Order], verdicts: list[Verdict], touches: list[Arrival], policy: Policy) -> list[Decision]:
    """The status and the value of every report of every order."""
    decisions: list[Decision] = []
    for order, verdict in zip(orders, verdicts, strict=True):
        event_id_of_first = order.reports[0].event.event_id
        for report in order.reports:
            version, action = version_at(policy, report.time_ms), counted_action(policy, report)
            assert action is not None  # noise is in no order
            # "the touch's fields are filled wherever there is a credited touch, whatever the status"
            touch = credited_touch(report, order.platform, touches, policy)
            status, value_micros, duplicate_of = rows.DUPLICATE, 0, event_id_of_first
            if report is order.reports[0]:
                duplicate_of = None
                status = rows.RETRACTED if verdict.retracted else rows.UNATTRIBUTED if touch is None else rows.COUNTED
                value_micros = 0 if verdict.retracted else value_of(report, action, verdict.restated_micros)
            decisions.append(
                Decision(report, order.platform, version, action, status, value_micros, touch, duplicate_of)
            )
    return give_places(decisions, policy.bounds.order_window_ms)


def value_of(first: Arrival, action: Action, restated_micros: int | None) -> int:
    """In millionths: the restated value, else the conversion's, else the action's default, else 0."""
    if restated_micros is not None:
        return restated_micros
    if first.event.value is not None:
        return to_micros(first.event.value)
    return action.value_micros or 0


def give_places(decisions: list[Decision], order_window_ms: int) -> list[Decision]:
    """Where the action counts `one`, the first conversion of a touch keeps `counted`, the others become `uncounted`."""
    given: dict[tuple[str, str | None, str, str], list[int]] = defaultdict(list)
    settled = []
    for decision in sorted(decisions, key=lambda each: each.conversion.time_and_id):
        if decision.status == rows.COUNTED and counts_one(decision):
            assert decision.touch is not None
            touch = decision.touch.event
            place = (decision.platform, decision.conversion.event.conversion_name, touch.event_type, touch.event_id)
            if stands_in_the_way(given[place], decision.touch, decision.conversion, order_window_ms):
                decision = decision._replace(status=rows.UNCOUNTED)
            else:
                given[place].append(decision.conversion.time_ms)
        settled.append(decision)
    return settled


def stands_in_the_way(counted_ms: list[int], touch: Arrival, conversion: Arrival, order_window_ms: int) -> bool:
    """Whether a conversion that was counted for a touch of the same kind and id, at one of these times, leaves no place for
    another one: "later than the touch, or at most `order_window` before the conversion".
    """
    return any(time_ms > touch.time_ms or conversion.time_ms - time_ms <= order_window_ms for time_ms in counted_ms)


def counts_one(decision: Decision) -> bool:
    """Whether the action counts `one` there: by the platform for the action, else for all, else by the action itself."""
    own_counts = decision.version.platforms[decision.platform].counts
    name = decision.conversion.event.conversion_name or ""
    return own_counts.get(name, own_counts.get("*", decision.action.count)) == "one"


def to_micros(amount: float | None) -> int:
    """Section 7: integer millionths of an amount; 0 for none."""
    return 0 if amount is None else round(amount * 1_000_000)

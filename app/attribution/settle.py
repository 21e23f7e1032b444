"""The canonical answer for one user: which conversions count, for which touch, with what value.

Both functions are pure and know no arrival order, so any order, any repeat and any cut into batches ends in the same
answer: `credit` keeps a maximum over the touches seen so far, `settle` judges the whole set of conversions and
adjustments. The rules are those of docs/counting.md; the numbers behind the comments are its sections.
"""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from app.attribution.state import Adjustment, Conversion, Touch
from app.contract import reasons, rows
from app.policy.model import Policy, Version

# By place (action, kind and id of a touch, and where): when (epoch ms) the last one that is counted there was.
Taken = dict[tuple[str, ...], int]


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The judgement of one conversion on one platform. `value_micros` is what its row shows; it is counted only where
    `status` is counted.
    """

    status: str
    value_micros: int
    touch: Touch | None
    duplicate_of: str | None
    version: Version
    conversion: Conversion


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """Decisions by what names their row, (conversion_name, event_id, platform), and the reason for each adjustment that
    is refused, by its identity.
    """

    decisions: dict[tuple[str, str, str], Decision]
    refusals: dict[tuple[str, str, str], str]


def is_eligible(conversion: Conversion, platform: str, touch: Touch, version: Version, policy: Policy) -> bool:
    """Whether the platform's method may credit this touch: strictly before the conversion, inside its kind's window, and
    within the version's reach (section 4).
    """
    rule = version.platforms.get(platform)
    if rule is None:
        return False
    window_ms = rule.windows_ms.get(touch.kind)
    if window_ms is None or not touch.time_ms < conversion.time_ms <= touch.time_ms + window_ms:
        return False
    return version.number == 1 or touch.time_ms >= policy.reach_ms(version, platform, touch.kind)


def credit(conversion: Conversion, touches: Iterable[tuple[str, Touch]], policy: Policy) -> bool:
    """Takes (platform, touch) pairs into account; True if some platform's best touch changed.

    A maximum over what was seen, so touches may come in any order, in any number of calls, and more than once.
    """
    version = policy.at(conversion.time_ms)
    changed = False
    for platform, touch in touches:
        if conversion.platform and conversion.platform != platform:
            continue
        if not is_eligible(conversion, platform, touch, version, policy):
            continue
        best = conversion.credits.get(platform)
        if best is None or touch.strength() > best.strength():
            conversion.credits[platform] = touch
            changed = True
    return changed


def judged_platforms(conversion: Conversion) -> Iterable[str]:
    """The platforms that judge a conversion: the one it names, else each that has an eligible touch, else "" (section
    4).
    """
    if conversion.platform:
        return (conversion.platform,)
    return conversion.credits.keys() or ("",)


def settle(conversions: Iterable[Conversion], adjustments: list[Adjustment], policy: Policy) -> Settlement:
    """Judges all conversions of one (advertiser, user) with its adjustments."""
    by_platform: dict[str, list[Conversion]] = {}
    for conversion in conversions:
        for platform in judged_platforms(conversion):
            by_platform.setdefault(platform, []).append(conversion)
    ordered = in_order(adjustments)
    decisions: dict[tuple[str, str, str], Decision] = {}
    named: dict[tuple[str, str, str], list[str | None]] = defaultdict(list)
    for platform in sorted(by_platform):
        members = distinct(by_platform[platform])
        taken: Taken = {}
        for order in group_orders(members, policy.bounds.order_window_ms):
            first = order[0]
            version = policy.at(first.time_ms)
            retracted, restated = (
                adjust(order, ordered, policy.bounds.adjustment_window_ms, named) if ordered else (False, None)
            )
            rule = version.platforms.get(platform)
            decisions[first.name, first.event_id, platform] = judge(
                first,
                first.credits.get(platform),
                rule.count(first.name, version.actions[first.name]) if rule else "every",
                version,
                taken,
                policy.bounds.order_window_ms,
                (retracted, restated),
            )
            for report in order[1:]:
                decisions[report.name, report.event_id, platform] = Decision(
                    rows.DUPLICATE, 0, report.credits.get(platform), first.event_id, policy.at(report.time_ms), report
                )
    return Settlement(decisions, {key: found[0] for key, found in named.items() if found and all(found) and found[0]})


def in_order(adjustments: list[Adjustment]) -> list[Adjustment]:
    """By (time, event_id): the earliest of a kind wins."""
    return sorted(adjustments, key=lambda adjustment: (adjustment.time_ms, adjustment.event_id)) if adjustments else []


def distinct(conversions: list[Conversion]) -> list[Conversion]:
    """In order of (time, event_id); an event that was sent both with and without its platform is one conversion, the
    earlier report of it.
    """
    if len(conversions) == 1:
        return conversions
    ordered = sorted(conversions, key=lambda conversion: (conversion.time_ms, conversion.event_id, conversion.platform))
    kept = {(conversion.name, conversion.event_id): conversion for conversion in reversed(ordered)}
    return (
        ordered
        if len(kept) == len(ordered)
        else [conversion for conversion in ordered if kept[conversion.name, conversion.event_id] is conversion]
    )


def group_orders(members: list[Conversion], order_window_ms: int) -> list[list[Conversion]]:
    """Groups the reports of one order, each group's first being the order itself; in order of the first's (time,
    event_id).
    """
    orders: list[list[Conversion]] = []
    latest: dict[tuple[str, str], list[Conversion]] = {}
    for conversion in members:
        if conversion.order_id:
            key = (conversion.name, conversion.order_id)
            group = latest.get(key)
            if group is not None and conversion.time_ms - group[0].time_ms <= order_window_ms:
                group.append(conversion)
                continue
            latest[key] = group = [conversion]
            orders.append(group)
        else:
            orders.append([conversion])
    return orders


def adjust(
    order: list[Conversion],
    adjustments: list[Adjustment],
    window_ms: int,
    named: dict[tuple[str, str, str], list[str | None]],
) -> tuple[bool, int | None]:
    """Whether the order is retracted, and its restated value; notes in `named` what became of each adjustment that
    names it (section 5).
    """
    first = order[0]
    retracted, restated = False, None
    for adjustment in adjustments:  # by (time, event_id): the earliest of a kind wins
        if adjustment.action() not in ("", first.name):
            continue
        by_order = bool(adjustment.order_id) and adjustment.order_id == first.order_id
        if not by_order and not any(report.event_id == adjustment.conversion_event_id for report in order):
            continue
        reason = None
        if adjustment.time_ms < first.time_ms:
            reason = reasons.ADJUSTMENT_PRECEDES_CONVERSION
        elif adjustment.time_ms - first.time_ms > window_ms:
            reason = reasons.ADJUSTMENT_TOO_OLD
        elif adjustment.kind == "restate" and adjustment.currency and first.currency not in (None, adjustment.currency):
            reason = reasons.ADJUSTMENT_IN_ANOTHER_CURRENCY
        elif retracted or (adjustment.kind == "restate" and restated is not None):
            reason = reasons.ADJUSTMENT_TWICE
        elif adjustment.kind == "retract":
            retracted = True
        else:
            restated = adjustment.value_micros
        named[adjustment.identity()].append(reason)
    return retracted, restated


def judge(
    conversion: Conversion,
    touch: Touch | None,
    count: str,
    version: Version,
    taken: Taken,
    order_window_ms: int,
    adjusted: tuple[bool, int | None],
    where: tuple[str, ...] = (),
) -> Decision:
    """Judges an order by its first report. `taken`: the places that earlier ones have; `where` a place is beside its action and
    touch; `adjusted`: whether the order is retracted, and its restated value.
    """
    retracted, restated = adjusted
    if retracted:
        return Decision(rows.RETRACTED, 0, touch, None, version, conversion)
    value_micros = restated if restated is not None else conversion.value_micros
    if value_micros is None:
        value_micros = version.actions[conversion.name].value_micros or 0
    if touch is None:
        return Decision(rows.UNATTRIBUTED, value_micros, None, None, version, conversion)
    if count == "one":
        place = (conversion.name, touch.kind, touch.event_id, *where)
        if is_taken(taken.get(place), touch.time_ms, conversion.time_ms, order_window_ms):
            return Decision(rows.UNCOUNTED, value_micros, touch, None, version, conversion)
        taken[place] = conversion.time_ms
    return Decision(rows.COUNTED, value_micros, touch, None, version, conversion)


def is_taken(last_ms: int | None, touch_ms: int, time_ms: int, order_window_ms: int) -> bool:
    """Whether a touch's place is taken for a conversion, by their times (epoch ms), where the last one that is counted there was
    at `last_ms`: since the touch, or at most `order_window` before. A touch's id may come again at any time, and what was counted
    for it is not kept for ever (section 6).
    """
    return last_ms is not None and (last_ms > touch_ms or time_ms - last_ms <= order_window_ms)

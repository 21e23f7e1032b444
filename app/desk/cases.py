"""An order and all that is known of it: what each platform's method made of it, what it was over all platforms, whether it was
paid, which reports of it were refused. What a case adds to the reconciliation follows from it alone.
"""

import base64
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from app.contract import reasons
from app.contract.events import parse_time_ms
from app.contract.money import Order
from app.contract.rows import ALL, COUNTED, DUPLICATE, RETRACTED, UNATTRIBUTED, UNCOUNTED, DeadLetter
from app.desk.totals import Measure, Measures

LATE: Final = frozenset((reasons.TOO_OLD, reasons.BEYOND_CORRECTION_HORIZON))
_CAUSES: Final = {
    DUPLICATE: "duplicates",
    UNATTRIBUTED: "unattributed",
    UNCOUNTED: "uncounted",
    RETRACTED: "retracted",
}


class Claim(NamedTuple):
    """A conversion as one platform's method judges it (`conversions.attributed`); `value` in millionths."""

    advertiser_id: str
    user_id: str
    conversion_name: str
    event_id: str
    order_id: str
    platform: str
    campaign_id: str
    time_ms: int
    day: int
    status: str
    value: int
    currency: str


class Truth(NamedTuple):
    """A conversion once over all platforms (`conversions.journeys`); platform and campaign are those of its credited touch.
    `outside`: a platform that has a touch before it, older than its window; "" where none is known.
    """

    advertiser_id: str
    user_id: str
    conversion_name: str
    event_id: str
    order_id: str
    platform: str
    campaign_id: str
    time_ms: int
    day: int
    status: str
    value: int
    currency: str
    outside: str


class Refused(NamedTuple):
    """A conversion that was refused before it could be judged (`ads.events.dlq`)."""

    advertiser_id: str
    user_id: str
    conversion_name: str
    event_id: str
    order_id: str
    platform: str
    day: int
    is_late: bool


class Paid(NamedTuple):
    """An order of `revenue.orders` and the day of its own time."""

    order: Order
    day: int


Part: TypeAlias = Claim | Truth | Refused | Paid


class Place(NamedTuple):
    """Where a measure belongs: a platform ("" for none, `all`), its campaign ("" for none), a day, an action ("" for none)."""

    platform: str
    campaign_id: str
    day: int
    conversion_name: str


class _LetterEvent(msgspec.Struct, frozen=True, gc=False):
    event_type: str
    event_id: str
    event_time: int | str
    advertiser_id: str
    user_id: str
    conversion_name: str
    platform: str | None = None
    order_id: str | None = None


_decode_letter_event = msgspec.json.Decoder(_LetterEvent).decode


def refused_conversion(letter: DeadLetter) -> tuple[_LetterEvent, int] | None:
    """The conversion in a dead letter and its time (epoch ms); None where the letter holds none that can be read."""
    try:
        event = _decode_letter_event(base64.b64decode(letter.value_base64 or "", validate=True))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    time_ms = parse_time_ms(event.event_time)
    return None if event.event_type != "conversion" or time_ms is None else (event, time_ms)


def contributions(parts: Iterable[Part], paid_actions: frozenset[str]) -> dict[Place, Measures]:
    """What a case adds, by place. Measures of platform `all` are of the order itself, however many platforms claim it.

    `paid_actions`: the actions that are paid orders; empty: those are that name an order.
    """
    claims, truths, refused, orders = _sorted_out(parts)
    order = orders[0] if orders else None  # one key, one order
    owner = _owner(order, [each for each in (*claims, *truths) if _is_paid_for(each, paid_actions)])
    found: dict[Place, Measures] = defaultdict(dict)

    def add(platform: str, campaign_id: str, day: int, name: str, measure: Measure, amount: int = 1) -> None:
        measures = found[Place(platform, campaign_id, day, name)]
        measures[measure] = measures.get(measure, 0) + amount

    for claim in claims:
        where = (claim.platform, claim.campaign_id, claim.day, claim.conversion_name)
        if claim.status != COUNTED:
            add(*where, "outside_window" if _is_outside(claim, truths) else _CAUSES[claim.status])
            continue
        add(*where, "counted")
        add(*where, ("counted", claim.currency), claim.value)
        for measure, amount in _payment(claim, order, owner, paid_actions):
            add(*where, measure, amount)
    for truth in truths:
        if truth.outside and not any(_is_of(claim, truth) for claim in claims if claim.platform == truth.outside):
            add(truth.outside, "", truth.day, truth.conversion_name, "outside_window")
        if truth.status != COUNTED:
            continue
        for platform, campaign_id in ((truth.platform, truth.campaign_id), (ALL, "")):
            where = (platform, campaign_id, truth.day, truth.conversion_name)
            add(*where, "deduplicated")
            add(*where, ("deduplicated", truth.currency), truth.value)
        for measure, amount in _payment(truth, order, owner, paid_actions):
            add(ALL, "", truth.day, truth.conversion_name, measure, amount)
    for platform, day, name, is_late in _refusals(refused, claims):
        add(platform, "", day, name, "late" if is_late else "refused")
    if order is not None:
        for platform, campaign_id, day, name in _places(order, owner, claims, truths):
            for measure, amount in _money(order.order, owner):
                add(platform, campaign_id, day, name, measure, amount)
    return found


def _is_of(claim: Claim, truth: Truth) -> bool:
    """Whether it is a platform's judgement of this order, or of another report of it."""
    return (claim.user_id, claim.conversion_name) == (truth.user_id, truth.conversion_name)


def _is_outside(claim: Claim, truths: list[Truth]) -> bool:
    """Whether what a platform's method credits nothing for has a touch of the platform before it: then the touch is too old."""
    return (
        claim.status == UNATTRIBUTED
        and claim.platform != ""
        and any(
            truth.outside == claim.platform and _is_of(claim, truth) and truth.time_ms <= claim.time_ms
            for truth in truths
        )
    )


def _sorted_out(parts: Iterable[Part]) -> tuple[list[Claim], list[Truth], list[Refused], list[Paid]]:
    kinds: dict[type, list[Part]] = {Claim: [], Truth: [], Refused: [], Paid: []}
    for part in parts:
        kinds[type(part)].append(part)
    return kinds[Claim], kinds[Truth], kinds[Refused], kinds[Paid]  # type: ignore[return-value]


def _is_paid_for(conversion: Claim | Truth, paid_actions: frozenset[str]) -> bool:
    """Whether an order may be this conversion's: a checkout may name an order too, and is none."""
    return conversion.conversion_name in paid_actions if paid_actions else bool(conversion.order_id)


def _owner(order: Paid | None, conversions: list[Claim | Truth]) -> tuple[str, str] | None:
    """Whose conversion the order is, as (user, action): its own user's before another one's that reused the id, then the
    earliest. None where none has arrived.
    """
    if order is None or not conversions:
        return None
    user_id = order.order.user_id
    first = min((each.user_id != user_id, each.time_ms, each.user_id, each.conversion_name) for each in conversions)
    return first[2], first[3]


def _payment(
    conversion: Claim | Truth, order: Paid | None, owner: tuple[str, str] | None, paid_actions: frozenset[str]
) -> list[tuple[Measure, int]]:
    """Whether a counted conversion's order was paid, if it is one."""
    if not _is_paid_for(conversion, paid_actions):
        return []
    if not conversion.order_id:
        return [("without_order_id", 1)]
    if order is None or owner != (conversion.user_id, conversion.conversion_name):
        return [("without_order", 1), (("without_order", conversion.currency), conversion.value)]
    return [("counted_refunded", 1)] if _is_refunded(order.order) else []


def _is_refunded(order: Order) -> bool:
    return order.refunded > 0 and order.refunded >= order.paid


def _refusals(refused: list[Refused], claims: list[Claim]) -> list[tuple[str, int, str, bool]]:
    """Each conversion that was refused and never accepted, once: the same event, with the same order, may have been sent and
    refused again.
    """
    accepted = {(each.user_id, each.conversion_name, each.event_id) for each in claims}
    first: dict[tuple[str, str, str, str], Refused] = {}
    for each in sorted(refused, reverse=True):  # so that the smallest one stands
        if (each.user_id, each.conversion_name, each.event_id) not in accepted:
            first[each.user_id, each.conversion_name, each.event_id, each.platform] = each
    return [(each.platform, each.day, each.conversion_name, each.is_late) for each in first.values()]


def _places(
    order: Paid, owner: tuple[str, str] | None, claims: list[Claim], truths: list[Truth]
) -> list[tuple[str, str, int, str]]:
    """Where an order's money belongs: to the touch that is credited over all platforms, on the day of its conversion; without
    a conversion to none, on the day of the order.
    """
    if owner is None:
        return [("", "", order.day, ""), (ALL, "", order.day, "")]
    own = [each for each in truths if (each.user_id, each.conversion_name) == owner]
    own = own or [each for each in claims if (each.user_id, each.conversion_name) == owner]
    first = min(own, key=lambda each: (each.time_ms, each.event_id, each.platform))
    credited = (first.platform, first.campaign_id) if isinstance(first, Truth) else ("", "")
    return [(*credited, first.day, first.conversion_name), (ALL, "", first.day, first.conversion_name)]


def _money(order: Order, owner: tuple[str, str] | None) -> list[tuple[Measure, int]]:
    found: list[tuple[Measure, int]] = [
        ("orders", 1),
        (("paid", order.currency), order.paid),
        (("refunded", order.currency), order.refunded),
    ]
    if _is_refunded(order):
        found.append(("orders_refunded", 1))
    if owner is None:
        found += [("orders_without_conversion", 1), (("orders_without_conversion", order.currency), order.paid)]
    return found

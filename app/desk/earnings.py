"""What one user brought and what one platform's day cost, by every level: source, campaign, creative, landing page, offer."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from app.contract.journeys import NEW, RETURNING, PathTouch
from app.contract.money import CAMPAIGN, PLATFORM, SOURCE, TOTAL, Spend
from app.contract.rows import COUNTED, RETRACTED
from app.desk.totals import Measure, Measures, add

MICRO: Final = "micro"


class Origin(NamedTuple):
    """Where a touch was; None where it did not say, all None for a conversion that no touch is credited for."""

    platform: str | None
    campaign_id: str | None
    creative_id: str | None
    landing_page: str | None
    offer_id: str | None
    source: str | None


NOWHERE: Final = Origin(None, None, None, None, None, None)


class Unit(NamedTuple):
    """What a row of returns is about: a level, and its platform and value where it has them."""

    level: str
    platform: str | None
    value: str | None


class Won(NamedTuple):
    """A conversion once over all platforms; `value` in millionths."""

    time_ms: int
    event_id: str
    conversion_name: str
    day: int
    status: str
    action_class: str
    customer: str | None
    value: int
    currency: str
    origin: Origin


class Touched(NamedTuple):
    """Views, clicks and their cost (in millionths) of one row of counts."""

    origin: Origin
    views: int
    clicks: int
    cost: int


Found: TypeAlias = dict[tuple[Unit, int], Measures]  # by unit and day


def origin_of(touch: PathTouch | None) -> Origin:
    """Where a credited touch was."""
    return NOWHERE if touch is None else Origin(*(getattr(touch, name) for name in Origin._fields))


def units_of(origin: Origin) -> tuple[Unit, ...]:
    """The unit of each level that something of this origin belongs to."""
    return (
        Unit(TOTAL, None, None),
        Unit(PLATFORM, origin.platform, None),
        Unit(SOURCE, None, origin.source),
        Unit(CAMPAIGN, origin.platform, origin.campaign_id),
        Unit("creative", None, origin.creative_id),
        Unit("landing_page", None, origin.landing_page),
        Unit("offer", None, origin.offer_id),
    )


def _spread(found: Found, origin: Origin, day: int, measures: Measures) -> None:
    for unit in units_of(origin):
        add(found[unit, day], measures)


def user_brings(conversions: Iterable[Won], paid_actions: frozenset[str]) -> Found:
    """What one user's conversions bring, each where its touch is credited, on its day. A lead is the first conversion of each
    action that is no paid order, a retracted one left out; so is a micro conversion that may lead to a macro one.
    """
    found: Found = defaultdict(dict)
    real = sorted(each for each in conversions if each.status != RETRACTED)
    leads: set[str] = set()
    for each in real:
        measures: Measures = {}
        if each.status == COUNTED:
            measures |= {"conversions": 1, "micro" if each.action_class == MICRO else "macro": 1}
            measures["value", each.currency] = each.value
        if each.customer == NEW:
            measures["new_customers"] = 1
            if each.status == COUNTED:
                measures["new_value", each.currency] = each.value
        if each.customer == RETURNING:
            measures["returning_orders"] = 1
        if each.conversion_name not in paid_actions and each.conversion_name not in leads:
            leads.add(each.conversion_name)
            measures["leads"] = 1
        _spread(found, each.origin, each.day, measures)
    micro = next((each for each in real if each.action_class == MICRO), None)
    if micro is not None:
        has_macro = any(each.action_class != MICRO and each > micro for each in real)
        _spread(found, micro.origin, micro.day, {"micro_users": 1, "micro_to_macro_users": int(has_macro)})
    return found


def day_costs(
    platform: str, day: int, touched: dict[Origin, list[int]], spends: Iterable[Spend], cost_currency: str
) -> Found:
    """What a platform's day cost. `touched`: views, clicks and cost by origin. Spend holds where there is any: for its campaign,
    or for the whole day where it names none; the cost of the touches themselves holds elsewhere. Spend is shared among the
    touches that it may be for, by their clicks.
    """
    found: Found = defaultdict(dict)
    held = list(spends)
    invoiced = {each.campaign_id for each in held}
    for origin, (views, clicks, cost) in touched.items():
        measures: Measures = {"views": views, "clicks": clicks}
        if cost and None not in invoiced and origin.campaign_id not in invoiced:
            measures["cost", cost_currency] = cost
        _spread(found, origin, day, measures)
    for each in held:
        weights = {origin: clicks for origin, (_, clicks, _) in touched.items() if clicks and _may_be_for(each, origin)}
        if not weights:
            weights = {NOWHERE._replace(platform=platform, campaign_id=each.campaign_id, source=each.source): 1}
        for origin, amount in shared(each.amount, weights).items():
            cost_of: Measure = ("cost", each.currency)
            _spread(found, origin, day, {cost_of: amount, ("spend", each.currency): amount})
    return found


def _may_be_for(spend: Spend, origin: Origin) -> bool:
    return spend.campaign_id in (None, origin.campaign_id) and spend.source in (None, origin.source)


def shared(amount: int, weights: dict[Origin, int]) -> dict[Origin, int]:
    """An amount by weights, whole millionths that sum to exactly the amount: what is missing goes one each to the largest
    remainders, of equal ones to the first in order.
    """
    whole = sum(weights.values())
    parts = {origin: divmod(amount * weight, whole) for origin, weight in weights.items()}
    missing = amount - sum(quotient for quotient, _ in parts.values())
    order = sorted(parts, key=lambda origin: (-parts[origin][1], _in_order(origin)))
    return {origin: parts[origin][0] + (place < missing) for place, origin in enumerate(order)}


def _in_order(origin: Origin) -> tuple[tuple[bool, str], ...]:
    return tuple((name is not None, name or "") for name in origin)

"""Rows of `conversions.journeys` and `conversions.models`, field by field (docs/counting.md, sections 8 to 11)."""

from typing import Final

from app.contract import rows
from app.contract.events import TOUCH_ATTRIBUTES
from app.contract.journeys import JourneyRow, ModelRow, PathTouch, Share
from app.policy.model import Journeys, Policy
from app.verify.journeys import RealOrder, how_many
from app.verify.models import share_out, shares
from app.verify.records import Arrival

MICROS: Final = 1_000_000


def path_touch(touch: Arrival, policy: Policy) -> PathTouch:
    """A touch as rows show it; attributes that the policy does not keep are null."""
    attributes = {name: getattr(touch.event, name) if name in policy.bounds.keep else None for name in TOUCH_ATTRIBUTES}
    return PathTouch(
        platform=touch.event.platform or "",
        touch_type=touch.event.event_type,
        event_id=touch.event.event_id,
        time=touch.time_ms,
        **attributes,
    )


def journey_row(order: RealOrder, policy: Policy, journeys: Journeys) -> JourneyRow:
    """The row of one order."""

    def shown(touch: Arrival | None) -> PathTouch | None:
        return None if touch is None else path_touch(touch, policy)

    conversion, credited, abandoned = order.conversion, order.credited, order.abandoned
    event, at_ms = conversion.event, conversion.time_ms
    first_touch = order.journey.touches[0] if order.journey.touches else None
    visits = order.journey.visits
    first_visit = visits[0] if visits else None
    kinds = how_many(order.journey.touches)
    return JourneyRow(
        advertiser_id=event.advertiser_id,
        user_id=event.user_id,
        conversion_name=event.conversion_name or "",
        event_id=event.event_id,
        event_time=at_ms,
        order_id=event.order_id or None,  # an empty order_id is no order_id
        scope=rows.ALL,
        status=order.status,
        conversions=1 if order.status == rows.COUNTED else 0,
        value=order.value_micros / MICROS,
        currency=event.currency,
        action_class=order.action.action_class,
        intent=order.action.intent,
        outcome=order.action.outcome or "",
        policy_version=order.version.number,
        credit=journeys.credit,
        credited=shown(credited),
        time_to_convert_ms=None if credited is None else at_ms - credited.time_ms,
        counted_by=order.counted_by,
        first_touch=shown(first_touch),
        touches=[path_touch(touch, policy) for touch in order.touches],
        views=kinds["view"],
        engaged_views=kinds["engaged_view"],
        clicks=kinds["click"],
        visits=len(visits),
        pages=[visit.event.page or "" for visit in visits][-journeys.max_pages :],
        first_visit_time=None if first_visit is None else first_visit.time_ms,
        first_page=None if first_visit is None else first_visit.event.page,
        first_referrer=None if first_visit is None else first_visit.event.referrer,
        time_from_first_touch_ms=None if first_touch is None else at_ms - first_touch.time_ms,
        time_from_first_visit_ms=None if first_visit is None else at_ms - first_visit.time_ms,
        customer=order.customer,
        abandoned_action=None if abandoned is None else abandoned.event.conversion_name,
        abandoned_time=None if abandoned is None else abandoned.time_ms,
        returned_by=shown(order.returned_by),
        revision=0,
    )


def model_rows(order: RealOrder, policy: Policy, journeys: Journeys) -> list[ModelRow]:
    """A row for each model that the policy names; none for an order that is not counted."""
    if order.status != rows.COUNTED:
        return []
    return [_model_row(order, model, policy, journeys) for model in journeys.models]


def _model_row(order: RealOrder, model: str, policy: Policy, journeys: Journeys) -> ModelRow:
    event = order.conversion.event
    parts = shares(model, [touch.time_ms for touch in order.touches], journeys.half_life_ms)
    values = share_out(order.value_micros, parts)
    return ModelRow(
        advertiser_id=event.advertiser_id,
        user_id=event.user_id,
        conversion_name=event.conversion_name or "",
        event_id=event.event_id,
        event_time=order.conversion.time_ms,
        model=model,
        value=order.value_micros / MICROS,
        currency=event.currency,
        credits=[
            Share(path_touch(touch, policy), part / MICROS, value / MICROS)
            for touch, part, value in zip(order.touches, parts, values, strict=True)
            if part  # "touches without a share are left out"
        ],
        revision=0,
    )

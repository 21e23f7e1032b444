"""What goes out about whole journeys: one row a real conversion over all platforms, and how models share it.

Written only where the policy has `journeys`. Keys are JSON arrays, times epoch milliseconds, amounts in the row's currency.
"""

from typing import Final

import msgspec

NEW: Final = "new"  # the customer's first paid order
RETURNING: Final = "returning"


class PathTouch(msgspec.Struct, frozen=True, gc=False):
    """A touch of a journey."""

    platform: str
    touch_type: str
    event_id: str
    time: int
    campaign_id: str | None
    ad_id: str | None
    creative_id: str | None
    landing_page: str | None
    offer_id: str | None
    source: str | None
    medium: str | None


class JourneyRow(msgspec.Struct, frozen=True, gc=False):
    """One real conversion, counted once over all platforms, and how the person came to it (topic `conversions.journeys`, an
    upsert by `journey_key`; a null value deletes).

    Another report of the same order has no row of its own. The journey reaches back over the policy's `journeys.window`.
    """

    advertiser_id: str
    user_id: str
    conversion_name: str
    event_id: str
    event_time: int
    order_id: str | None
    scope: str
    status: str
    conversions: int
    value: float
    currency: str | None
    action_class: str
    intent: str
    outcome: str
    policy_version: int
    credit: str
    credited: PathTouch | None
    time_to_convert_ms: int | None
    counted_by: list[str]
    first_touch: PathTouch | None
    touches: list[PathTouch]
    views: int
    engaged_views: int
    clicks: int
    visits: int
    pages: list[str]
    first_visit_time: int | None
    first_page: str | None
    first_referrer: str | None
    time_from_first_touch_ms: int | None
    time_from_first_visit_ms: int | None
    customer: str | None
    abandoned_action: str | None
    abandoned_time: int | None
    returned_by: PathTouch | None
    revision: int


class Share(msgspec.Struct, frozen=True, gc=False):
    """A touch's part of one conversion."""

    touch: PathTouch
    share: float
    value: float


class ModelRow(msgspec.Struct, frozen=True, gc=False):
    """How one model shares a counted conversion among its eligible touches (topic `conversions.models`, an upsert by
    `model_key`; a null value deletes). A report beside the method: no count is made of it.

    Shares are millionths and sum to exactly 1, their values to exactly `value`.
    """

    advertiser_id: str
    user_id: str
    conversion_name: str
    event_id: str
    event_time: int
    model: str
    value: float
    currency: str | None
    credits: list[Share]
    revision: int


decode_journey = msgspec.json.Decoder(JourneyRow).decode
decode_model = msgspec.json.Decoder(ModelRow).decode


def journey_key(advertiser_id: str, user_id: str, conversion_name: str, event_id: str) -> bytes:
    """The Kafka key of a `JourneyRow`; the record lies on the partition that owns the user."""
    return msgspec.json.encode([advertiser_id, user_id, conversion_name, event_id])


def model_key(advertiser_id: str, user_id: str, conversion_name: str, event_id: str, model: str) -> bytes:
    """The Kafka key of a `ModelRow`; the record lies on the partition that owns the user."""
    return msgspec.json.encode([advertiser_id, user_id, conversion_name, event_id, model])

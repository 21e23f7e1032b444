"""What goes out: rows of the output topics, their keys, and the dead letter's envelope.

Keys are JSON arrays, since ids may hold any separator. msgspec writes them: bytes of orjson take 4 KiB for as long as
they are kept. Amounts are numbers in the row's currency. Times are epoch milliseconds.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from app.contract.events import Rejection

KEPT_BYTES: Final = 16 * 1024  # of a dead letter's value, so that a 10 MB poison can't make a transaction fail for ever
KEPT_KEY_BYTES: Final = 1024
KEPT_HEADER_BYTES: Final = 4 * 1024

# The statuses of a conversion. Only `counted` is in the counts; the others say why not.
COUNTED: Final = "counted"
UNCOUNTED: Final = "uncounted"  # its action counts one per touch, and an earlier one has the touch
UNATTRIBUTED: Final = "unattributed"  # no eligible touch
DUPLICATE: Final = "duplicate"  # another report of the same order
RETRACTED: Final = "retracted"
STATUSES: Final = (COUNTED, UNCOUNTED, UNATTRIBUTED, DUPLICATE, RETRACTED)

ALL: Final = "all"  # the platform of what is counted once over all platforms; none of the policy's may be called so
SCOPES: Final = ("platform", ALL)
MEASURES: Final = ("views", "engaged_views", "clicks", "conversions", "value", "cost")
MONEY_MEASURES: Final = ("value", "cost")


class AttributedRow(msgspec.Struct, frozen=True, gc=False):
    """One conversion as one platform's method judges it (topic `conversions.attributed`, an upsert by
    `attributed_key`).

    `revision` grows by one with every correction. `platform` is "" for a conversion that names no platform
    and has no eligible touch on any; that row is deleted (a null value) once a platform has one.
    The touch's fields are null unless the conversion has an eligible touch.
    """

    advertiser_id: str
    user_id: str
    platform: str
    conversion_name: str
    event_id: str
    event_time: int
    order_id: str | None
    status: str
    conversions: int
    value: float
    currency: str | None
    action_class: str
    intent: str
    outcome: str
    method: str
    policy_version: int
    duplicate_of: str | None
    touch_type: str | None
    touch_event_id: str | None
    touch_time: int | None
    time_to_convert_ms: int | None
    campaign_id: str | None
    ad_id: str | None
    creative_id: str | None
    landing_page: str | None
    offer_id: str | None
    source: str | None
    medium: str | None
    revision: int


class _Timed(msgspec.Struct, frozen=True, gc=False):
    event_time: int


class CountRow(msgspec.Struct, frozen=True, gc=False):
    """Absolute counts of one window and its dimensions (topic `conversions.counts`, an upsert by `count_key`).

    Touches stand in the row with an empty `conversion_name` and `currency`; conversions under the CREDITED touch's
    dimensions in the row of their action and currency. `window_start` and `window_end` are epoch ms, the end is
    exclusive. `final`: every partition's watermark has passed the end plus the allowed lateness; a later correction
    has a higher revision.
    """

    window_start: int
    window_end: int
    platform: str
    advertiser_id: str
    dimensions: dict[str, str | None]
    conversion_name: str
    currency: str
    views: int
    engaged_views: int
    clicks: int
    conversions: int
    value: float
    cost: float
    revision: int
    final: bool
    scope: str = "platform"


class DeadLetter(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A refused event (topic `ads.events.dlq`): why, where it came from, and its first 16 KiB.

    `topic`, `partition`, `offset` and `timestamp_ms` are the record's first coordinates, before any re-keying.
    `sha256` (hex) and `size_bytes` are of the whole value; `value_base64` holds its first `KEPT_BYTES` bytes, null for
    a null record. `headers_base64`: the headers that are part of a CloudEvent, by name; left out where there are none, or
    where they are more than `KEPT_HEADER_BYTES` or one stands twice, which `truncated` tells then.
    """

    reason: str
    field: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key_base64: str | None
    size_bytes: int
    sha256: str
    truncated: bool
    value_base64: str | None
    headers_base64: dict[str, str] = {}


encode = msgspec.json.Encoder().encode
decode_attributed = msgspec.json.Decoder(AttributedRow).decode
_decode_timed = msgspec.json.Decoder(_Timed).decode
decode_count = msgspec.json.Decoder(CountRow).decode
decode_dead_letter = msgspec.json.Decoder(DeadLetter).decode


def scope_of(platform: str) -> str:
    """The scope of a count row: `all` where conversions are counted once over all platforms."""
    return ALL if platform == ALL else "platform"


def attributed_time_ms(value: bytes) -> int:
    """The `event_time` of an encoded `AttributedRow`."""
    return _decode_timed(value).event_time


def attributed_key(advertiser_id: str, user_id: str, platform: str, conversion_name: str, event_id: str) -> bytes:
    """The Kafka key of an `AttributedRow`; the record lies on the partition that owns the user."""
    return msgspec.json.encode([advertiser_id, user_id, platform, conversion_name, event_id])


def count_key(
    window_start: int,
    platform: str,
    advertiser_id: str,
    dimensions: list[str | None],
    conversion_name: str,
    currency: str,
) -> bytes:
    """The Kafka key of a `CountRow`; the dimensions' values stand in the policy's order."""
    return msgspec.json.encode([window_start, platform, advertiser_id, *dimensions, conversion_name, currency])


def dead_letter(
    rejection: Rejection,
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]] = (),
) -> DeadLetter:
    """The bounded envelope of a refused record. `headers`: those that are part of the event."""
    raw = value or b""
    said = list(headers)
    kept = {name: base64.b64encode(text or b"").decode() for name, text in said}
    fits = len(kept) == len(said) and sum(map(len, (*kept, *kept.values()))) <= KEPT_HEADER_BYTES
    return DeadLetter(
        reason=rejection.reason,
        field=rejection.field,
        detail=rejection.detail,
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp_ms=timestamp_ms,
        key_base64=None if key is None else base64.b64encode(key[:KEPT_KEY_BYTES]).decode(),
        size_bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        truncated=len(raw) > KEPT_BYTES or not fits,
        value_base64=None if value is None else base64.b64encode(raw[:KEPT_BYTES]).decode(),
        headers_base64=kept if fits else {},
    )

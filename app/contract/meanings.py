"""What each field of a row means, and its unit: the words of the JSON Schemas and of docs/contract.md."""

from typing import Final

from app.contract.rows import AttributedRow, CountRow, DeadLetter

MEANINGS: Final = {
    AttributedRow: {
        "advertiser_id": "Whose conversion.",
        "user_id": "Who converted; as the producer named the user.",
        "platform": (
            'The platform whose method judged it; "" for a conversion that names no platform and has an eligible '
            "touch on none."
        ),
        "conversion_name": "The action, one of the policy's catalogue.",
        "event_id": "The conversion's own id.",
        "event_time": "When it happened, epoch ms.",
        "order_id": 'The order, as the event said it; null or "" where it named none.',
        "status": (
            "`counted`, or why it is not: `uncounted` (the action counts one a touch, and an earlier one has the "
            "touch), `unattributed` (no eligible touch), `duplicate` (another report of the same order), "
            "`retracted`."
        ),
        "conversions": "1 if `counted`, else 0: the sum is what the platform has earned.",
        "value": (
            "The worth of it in `currency`: restated, else as sent, else the action's default, else 0; 0 for "
            "`duplicate` and `retracted`. Add it up over `counted` rows only."
        ),
        "currency": "ISO 4217, as the event said it; null where it said none.",
        "action_class": "The action's class in the policy: `macro` or `micro`.",
        "intent": "The action's intent in the policy: `hard` or `soft`.",
        "outcome": "The action's business outcome in the policy: `revenue` or `retention`.",
        "method": 'The platform\'s counting method in force at `event_time`; "" where `platform` is.',
        "policy_version": "The version of the policy in force at `event_time`, 1 for the first.",
        "duplicate_of": "The event_id of the order's first report, if `duplicate`; else null.",
        "touch_type": (
            "The credited touch: `click`, `engaged_view` or `view`; null, as all fields of the touch, where there "
            "is none."
        ),
        "touch_event_id": "The credited touch's event_id.",
        "touch_time": "When the credited touch happened, epoch ms.",
        "time_to_convert_ms": "`event_time` - `touch_time`, ms.",
        "campaign_id": (
            "Of the credited touch, as the six fields below; null where the touch did not say, or the policy's "
            "`keep` leaves the field out."
        ),
        "ad_id": "The ad.",
        "creative_id": "The creative.",
        "landing_page": "The landing page.",
        "offer_id": "The offer.",
        "source": "The traffic's source.",
        "medium": "The traffic's medium.",
        "revision": "1 at first, one more with every correction of the row.",
    },
    CountRow: {
        "window_start": (
            "The window's first millisecond, epoch ms; windows are as long as the policy's `window` and begin at "
            "multiples of it."
        ),
        "window_end": "The first millisecond after the window, epoch ms.",
        "platform": "The platform of the touches, or whose method counted the conversions.",
        "advertiser_id": "Whose.",
        "dimensions": (
            "The policy's `dimensions`, by name: of the touches themselves, or of the touches that the "
            "conversions are credited to. null: the touch did not say."
        ),
        "conversion_name": 'The action of the conversions; "" in the rows of touches.',
        "currency": 'ISO 4217, of `value`; "" in the rows of touches and for conversions without a currency.',
        "views": "Views in the window; 0 in the rows of conversions.",
        "engaged_views": "Engaged views in the window; 0 in the rows of conversions.",
        "clicks": "Clicks in the window; 0 in the rows of conversions.",
        "conversions": "Counted conversions that happened in the window; 0 in the rows of touches.",
        "value": "What the counted conversions are worth, in `currency`; exact to a millionth.",
        "cost": (
            "What the touches cost, in the unit that their producer sends: a touch names no currency. 0 in the "
            "rows of conversions."
        ),
        "revision": "1 at first, one more each time the row is written.",
        "final": (
            "Whether every partition had passed the window's end plus the allowed lateness when the row was "
            "written. A correction may still come, with a higher revision."
        ),
    },
    DeadLetter: {
        "reason": "Why the event was refused, of a closed list.",
        "field": 'The field at fault; "" for the whole.',
        "detail": "Words for a person; they may change between releases.",
        "topic": "Where the refused record was found first: its topic,",
        "partition": "its partition,",
        "offset": "its offset,",
        "timestamp_ms": "and its Kafka timestamp, epoch ms.",
        "key_base64": "The record's key, its first 1,024 bytes; null for none.",
        "size_bytes": "The length of the whole value, bytes.",
        "sha256": "SHA-256 of the whole value, hex.",
        "truncated": "Whether `value_base64` is not all of the value.",
        "value_base64": "The value's first 16 KiB; null for a record without a value.",
    },
}

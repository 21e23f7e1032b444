"""What each field of a row means, and its unit: the words of the JSON Schemas and of docs/contract.md."""

from typing import Final

from app.contract.journeys import JourneyRow, ModelRow, PathTouch, Share
from app.contract.leads import FollowUpEvent, LeadRow, OverdueRow
from app.contract.money_meanings import MONEY_MEANINGS
from app.contract.rollups import RollupRow
from app.contract.rows import AttributedRow, CountRow, DeadLetter

_FOUND_BY: Final = {
    "platform": (
        "Where the opening conversion came from, as the four fields below: its credited touch's, else its first touch's; "
        "null where it has neither."
    ),
    "campaign_id": "The campaign.",
    "source": "The traffic's source.",
    "medium": "The traffic's medium.",
    "landing_page": "The landing page.",
}

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
        "platform": (
            "The platform of the touches, or whose method counted the conversions; `all` in the rows of scope `all`."
        ),
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
        "scope": (
            "`platform`: what one platform's method counts. `all`: conversions counted once over all platforms, where the "
            "policy has `journeys`; never add the two."
        ),
    },
    JourneyRow: {
        "advertiser_id": "Whose conversion.",
        "user_id": "Who converted; as the producer named the user.",
        "conversion_name": "The action, one of the policy's catalogue.",
        "event_id": "The conversion's own id: of the order's first report.",
        "event_time": "When it happened, epoch ms.",
        "order_id": 'The order, as the event said it; null or "" where it named none.',
        "scope": "`all`: each order is counted once over all platforms.",
        "status": "As in `conversions.attributed`, judged over all platforms; never `duplicate`.",
        "conversions": "1 if `counted`, else 0: the sum is how many there really were.",
        "value": (
            "The worth of it in `currency`, as in `conversions.attributed`. Over `counted` rows it adds up to what touches have "
            "earned, as in `conversions.counts` of scope `all`; over rows with a `customer` to what all paid orders brought, "
            "earned by a touch or not."
        ),
        "currency": "ISO 4217, as the event said it; null where it said none.",
        "action_class": "The action's class in the policy: `macro` or `micro`.",
        "intent": "The action's intent in the policy: `hard` or `soft`.",
        "outcome": "The action's business outcome in the policy: `revenue` or `retention`.",
        "policy_version": "The version of the policy in force at `event_time`, 1 for the first.",
        "credit": "The policy's `journeys.credit`, by which `credited` is chosen.",
        "credited": "The one touch that earns it over all platforms; null: no platform's method may credit any.",
        "time_to_convert_ms": "`event_time` - the credited touch's time, ms; null where there is none.",
        "counted_by": "The platforms whose own methods count the order, in order of their names: as many claims as names.",
        "first_touch": "The earliest touch of any kind in the journey; null where there is none.",
        "touches": (
            "The touches that some platform's method may credit, the earliest first; of more than "
            "`journeys.max_touches` the first and the last ones."
        ),
        "views": "Views in the journey, creditable or not.",
        "engaged_views": "Engaged views in the journey, creditable or not.",
        "clicks": "Clicks in the journey, creditable or not.",
        "visits": "Page views on the advertiser's site in the journey.",
        "pages": "The pages of the last `journeys.max_pages` visits, the latest last.",
        "first_visit_time": "When the first visit of the journey was, epoch ms; null where there is none.",
        "first_page": "Its page.",
        "first_referrer": "Its referrer.",
        "time_from_first_touch_ms": "`event_time` - the first touch's time, ms.",
        "time_from_first_visit_ms": "`event_time` - `first_visit_time`, ms.",
        "customer": (
            "Of a paid order (`journeys.orders`): `new` for the customer's first, `returning` where another one stands "
            "before it within `journeys.customer_window`; null for other actions and retracted orders."
        ),
        "abandoned_action": (
            "The action that a paid order takes up again (a cart, a checkout) after it was left for `journeys.abandonment.after`; else null."
        ),
        "abandoned_time": "When that was, epoch ms.",
        "returned_by": "The last creditable touch since then: what brought the person back; null where none did.",
        "revision": "1 at first, one more with every correction of the row.",
    },
    PathTouch: {
        "platform": "Where the touch was.",
        "touch_type": "`click`, `engaged_view` or `view`.",
        "event_id": "The touch's event_id.",
        "time": "When it happened, epoch ms.",
        "campaign_id": "Null, as the six fields below, where the touch did not say, or the policy's `keep` leaves the field out.",
        "ad_id": "The ad.",
        "creative_id": "The creative.",
        "landing_page": "The landing page.",
        "offer_id": "The offer.",
        "source": "The traffic's source.",
        "medium": "The traffic's medium.",
    },
    ModelRow: {
        "advertiser_id": "Whose conversion.",
        "user_id": "Who converted.",
        "conversion_name": "The action.",
        "event_id": "The conversion's own id.",
        "event_time": "When it happened, epoch ms.",
        "model": "`first_touch`, `last_touch`, `linear`, `position` or `time_decay`.",
        "value": "The conversion's value in `currency`, all of it.",
        "currency": "ISO 4217; null where the event said none.",
        "credits": "The touches that have a share, the earliest first.",
        "revision": "That of the conversion's row in `conversions.journeys`.",
    },
    Share: {
        "touch": "The touch.",
        "share": "Its part of the conversion, in millionths: all parts sum to exactly 1.",
        "value": "Its part of the value, in millionths: all parts sum to exactly `value`.",
    },
    FollowUpEvent: {
        "kind": (
            "`contacted` (somebody spoke or wrote to the person) or `sent` (the next issue went out): the lead is answered; "
            "`won` or `lost`: it is closed."
        ),
        "event_time": (
            "When it was done: epoch ms, or RFC 3339 with a zone. Of any age; at most `max_clock_skew` (5 min) ahead of its "
            "record's Kafka timestamp."
        ),
        "advertiser_id": "Whose lead.",
        "user_id": "Who the lead is; as in the conversion.",
        "conversion_name": "The action of the lead; null or left out: all leads of the user.",
    },
    LeadRow: {
        "advertiser_id": "Whose lead.",
        "user_id": "Who the lead is; as the producer of the conversion named the user.",
        "conversion_name": "What was asked for: the action, one of the policy's catalogue, and none of `journeys.orders`.",
        "state": (
            "`waiting` (a conversion that nobody has followed up), `answered` (followed up, and nothing new since), `won` (a "
            "purchase, or the CRM's word) or `lost` (the CRM's word)."
        ),
        "temperature": "`hot`: an action of hard intent since it was opened, its own or another one of the user; else `cool`.",
        "outcome": "The action's business outcome in the policy: `revenue` or `retention`.",
        "opened_time": "When its first conversion since it was last closed was, epoch ms.",
        "opened_by": "That conversion's event_id: with the action the key of its row in `conversions.journeys`.",
        "conversions": "How many conversions of the action since then, retracted ones left out.",
        "last_time": "When the last of them was, epoch ms.",
        "follow_up": "What the policy's `desk.follow_ups` says that it needs; null where it says nothing.",
        "waiting_since": ("When the first conversion after the last follow-up was, epoch ms; null unless `waiting`."),
        "due_time": "Until when `follow_up` must be done, epoch ms; null unless `waiting` for one.",
        "answered_time": "When it was last `contacted` or `sent` to since it was opened, epoch ms; null: never.",
        "closed_time": "When it was won or lost, epoch ms; else null.",
        "closed_by": "`won` or `lost` where the CRM said so, else the action of the purchase; null while it is open.",
        **_FOUND_BY,
    },
    OverdueRow: {
        "advertiser_id": "Whose lead.",
        "user_id": "Who the lead is.",
        "conversion_name": "What was asked for.",
        "temperature": "`hot` or `cool`, as in `leads`.",
        "outcome": "The action's business outcome in the policy: `revenue` or `retention`.",
        "follow_up": "What should have been done.",
        "waiting_since": "When the first conversion that nobody has followed up was, epoch ms.",
        "due_time": "Until when it should have been done, epoch ms.",
        **_FOUND_BY,
    },
    RollupRow: {
        "period": "`hour` (UTC), `day` or `week` (ISO 8601, begins on Monday), both in the advertiser's time zone.",
        "label": "Its name: `2026-07-01T13Z`, `2026-07-01` or `2026-W27`.",
        "period_start": "The period's first millisecond, epoch ms.",
        "period_end": "The first millisecond after the period, epoch ms. A day has 23 or 25 hours where clocks change.",
        "time_zone": "The advertiser's, of the policy's `desk.advertisers`; `UTC` for hours.",
        "platform": "As in `conversions.counts`.",
        "advertiser_id": "Whose.",
        "dimensions": "As in `conversions.counts`.",
        "conversion_name": 'The action of the conversions; "" in the rows of touches.',
        "currency": 'ISO 4217, of `value`; "" where there is none.',
        "views": "Views of the windows that begin in the period.",
        "engaged_views": "Engaged views of these windows.",
        "clicks": "Clicks of these windows.",
        "conversions": "Counted conversions of these windows.",
        "value": "What they are worth, in `currency`; exact to a millionth.",
        "cost": "What the touches cost, in the unit that their producer sends.",
        "final": (
            "Whether the period is over on every partition of conversions.counts and every window of it was final when the row was "
            "written. A correction may still come."
        ),
        "scope": "`platform` or `all`, as in `conversions.counts`; never add the two.",
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
        "truncated": "Whether `value_base64` is not all of the value, or `headers_base64` lacks headers of the event.",
        "value_base64": "The value's first 16 KiB; null for a record without a value.",
        "headers_base64": "The headers that are part of a CloudEvent (`content-type`, `ce_...`), by name; left out where there are none, "
        "where they are more than 4 KiB, or one stands twice.",
    },
} | MONEY_MEANINGS

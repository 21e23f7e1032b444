"""Leads: what the desk is told of them (topic `leads.followups`), and what it publishes (`leads`, `leads.overdue`).

Keys are JSON arrays, times epoch milliseconds. Rows carry no revision: each is a function of the conversions and follow-ups
that are known, so the same input always ends in the same rows.
"""

import re
from typing import Final, Literal, NamedTuple

import msgspec

from app.contract import reasons
from app.contract.events import Id, Rejection, judge_age, judge_bytes, parse_time_ms
from app.contract.rows import encode

CONTACTED: Final = "contacted"
SENT: Final = "sent"
WON: Final = "won"
LOST: Final = "lost"
KINDS: Final = (CONTACTED, SENT, WON, LOST)

# The states of a lead; docs/desk.md has them as a table.
WAITING: Final = "waiting"  # a conversion that nobody has followed up
ANSWERED: Final = "answered"  # followed up, and nothing new since
STATES: Final = (WAITING, ANSWERED, WON, LOST)

HOT: Final = "hot"
COOL: Final = "cool"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class FollowUpEvent(msgspec.Struct, frozen=True, gc=False):
    """What somebody or something did about a lead, as a CRM or a marketing automation says it (topic `leads.followups`).

    The same follow-up may be sent any number of times. Fields that are not named here are ignored.
    """

    kind: Literal["contacted", "sent", "won", "lost"]
    event_time: int | str
    advertiser_id: Id
    user_id: Id
    conversion_name: Id | None = None


class FollowedUp(NamedTuple):
    """A follow-up that keeps the contract, with its time in epoch milliseconds."""

    event: FollowUpEvent
    time_ms: int


class LeadRow(msgspec.Struct, frozen=True, gc=False):
    """Where one lead stands (topic `leads`, an upsert by `lead_key`; a null value deletes: it was taken back, or closed for so
    long that it was let go).

    A lead is what one user asked of one advertiser by one action. It begins with the first conversion since it was last
    closed, and is never `waiting` without a conversion that nobody has followed up.
    """

    advertiser_id: str
    user_id: str
    conversion_name: str
    state: str
    temperature: str
    outcome: str
    opened_time: int
    opened_by: str
    conversions: int
    last_time: int
    follow_up: str | None
    waiting_since: int | None
    due_time: int | None
    answered_time: int | None
    closed_time: int | None
    closed_by: str | None
    platform: str | None
    campaign_id: str | None
    source: str | None
    medium: str | None
    landing_page: str | None


class OverdueRow(msgspec.Struct, frozen=True, gc=False):
    """A lead that waits for longer than the policy allows (topic `leads.overdue`, an upsert by `lead_key`; a null value
    deletes: it was followed up, closed, or taken back).
    """

    advertiser_id: str
    user_id: str
    conversion_name: str
    temperature: str
    outcome: str
    follow_up: str
    waiting_since: int
    due_time: int
    platform: str | None
    campaign_id: str | None
    source: str | None
    medium: str | None
    landing_page: str | None


decode_lead = msgspec.json.Decoder(LeadRow).decode
decode_overdue = msgspec.json.Decoder(OverdueRow).decode
_decode_follow_up = msgspec.json.Decoder(FollowUpEvent).decode


def lead_key(advertiser_id: str, user_id: str, conversion_name: str) -> bytes:
    """The Kafka key of a `LeadRow` and of its `OverdueRow`. Not by orjson, whose bytes take 4 KiB for as long as they are kept."""
    return encode([advertiser_id, user_id, conversion_name])


def decode_follow_up(raw: bytes | None, record_time_ms: int, max_clock_skew_ms: int) -> FollowedUp | Rejection:
    """The whole contract for one record of `leads.followups`: its value and its Kafka timestamp (epoch ms), against which its
    time is judged, so that a replay decides the same. A follow-up may be of any age.
    """
    event = judge_bytes(raw, _decode_follow_up)
    if isinstance(event, Rejection):
        return event
    for name in ("advertiser_id", "user_id", "conversion_name"):
        text = getattr(event, name)
        if text is not None and _CONTROL.search(text):
            return Rejection(reasons.INVALID_FIELD, name, "control characters are not allowed in an id")
    time_ms = parse_time_ms(event.event_time)
    if time_ms is None:
        return Rejection(reasons.INVALID_TIME, "event_time", "neither epoch milliseconds nor RFC 3339 with a zone")
    too_early = judge_age(time_ms, record_time_ms, record_time_ms, max_clock_skew_ms)
    return too_early or FollowedUp(event, time_ms)

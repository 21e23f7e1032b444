"""From what somebody sent to a record for Kafka, or to why not: a pure function of the bytes, the door and the time."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from app.contract import reasons
from app.contract.events import (
    BROWSER,
    Event,
    Rejection,
    Userless,
    judge_age,
    judge_bytes,
    judge_event,
    judge_fields,
    key_of,
)
from app.formats.cloudevents import with_fields
from app.gateway import privacy
from app.gateway.config import Site
from app.policy.model import Policy

GRANTED: Final = "granted"
DENIED: Final = "denied"
NOT_ALLOWED: Final = "not_allowed"
GATEWAY_REASONS: Final = (NOT_ALLOWED, privacy.PERSONAL_DATA)


class Rules(NamedTuple):
    """What events are judged by: the policy's platforms (with the time from which each may be named) and bounds, what the
    advertisers want for their users, and the gateway's secrets. `click_ids`: whether a conversion may name a click instead of a
    user.
    """

    platforms: Mapping[str, int]
    max_event_age_ms: int
    max_clock_skew_ms: int
    sites: Mapping[str, Site]
    secret: str
    salt: str
    click_ids: bool = False


class Door(NamedTuple):
    """By which way events come in, and so what is filled in for them and what they may say.

    `fills`: fields (as JSON) that an event gets where it does not name them. `sets`: fields that it gets whatever it names.
    `check`: refuses what this sender may not send. `is_denied`: no event has consent. `takes_age`: an event without a time may
    say how old it is (`age_ms`), else it is of now. `is_browser`: its conversions are reported by a browser, whatever they say.
    """

    check: Callable[[Event], Rejection | None]
    fills: Mapping[str, bytes] = {}
    sets: Mapping[str, str] = {}
    is_denied: bool = False
    takes_age: bool = False
    is_browser: bool = False


class Record(NamedTuple):
    """An admitted event, as it is produced. `event_id`: the sender's own, which the record may not hold."""

    key: bytes
    value: bytes
    time_ms: int
    event_id: str


class Refused(NamedTuple):
    """An event that was not admitted; `event_id` as far as it could be read."""

    event_id: str | None
    rejection: Rejection


class _Given(msgspec.Struct, gc=False):
    """Which fields an event names at all, and what it says beside the contract."""

    event_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_time: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    advertiser_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    user_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    consent: Any = None
    age_ms: Any = None


class _Written(Event, omit_defaults=True, gc=False, frozen=True):
    """An event without what it does not say, as most producers write it."""


class _WrittenUserless(Userless, omit_defaults=True, gc=False, frozen=True):
    """As `_Written`, of an event that names no user."""


_EMAIL_NEEDS: Final = re.compile(rb"[@%\\]")  # without any of these, as it came, it holds no address
_decode_given: Final = msgspec.json.Decoder(_Given).decode
_encode: Final = msgspec.json.Encoder().encode


def rules_of(policy: Policy, sites: Mapping[str, Site], secret: str, salt: str) -> Rules:
    """The rules of a policy and of the gateway's file."""
    bounds = policy.bounds
    times_ms = bounds.max_event_age_ms, bounds.max_clock_skew_ms
    return Rules(policy.platforms(), *times_ms, sites, secret, salt, bounds.click_ids is not None)


def admit(raw: bytes, door: Door, rules: Rules, now_ms: int) -> Record | Refused:
    """Judges one event by the contract, as the counter will judge its record, and takes out what must not be stored.

    `now_ms` becomes the record's time, so the counter's verdict is this one; only the partition's stream time
    (`beyond_correction_horizon`) and what adjustments find are known to the counter alone.
    """
    try:
        given = _decode_given(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        judged = judge_bytes(raw)
        refusal = judged if isinstance(judged, Rejection) else Rejection(reasons.INVALID_JSON, "", "not decodable")
        return Refused(None, refusal)
    event_id = _text(given.event_id)
    event = _complete(raw, given, door, rules, now_ms)
    if isinstance(event, Rejection):
        return Refused(event_id, event)
    filled = b"".join(door.fills.values())
    may_hold_email = _EMAIL_NEEDS.search(raw) or (filled and _EMAIL_NEEDS.search(filled))
    refusal = door.check(event) or (privacy.find_email(event) if may_hold_email else None)
    if refusal is not None:
        return Refused(event_id, refusal)
    judged = judge_fields(event, rules.platforms, now_ms)
    if isinstance(judged, Rejection):
        return Refused(event_id, judged)
    refusal = judge_age(judged.time_ms, now_ms, rules.max_event_age_ms, rules.max_clock_skew_ms)
    if refusal is not None:
        return Refused(event_id, refusal)
    stored = _disguised(_reported(event) if door.is_browser else event, given, door, rules)
    if isinstance(stored, Rejection):
        return Refused(event_id, stored)
    written = _Written if stored.user_id is not None else _WrittenUserless
    return Record(key_of(stored), _encode(written(*msgspec.structs.astuple(stored))), now_ms, event.event_id)


def _complete(raw: bytes, given: _Given, door: Door, rules: Rules, now_ms: int) -> Event | Rejection:
    """The event with what its door fills in; it is judged as bytes, so that a key that stands twice is found."""
    if given.consent not in (None, GRANTED, DENIED):
        return Rejection(reasons.INVALID_FIELD, "consent", f"{GRANTED} or {DENIED}")
    fills = {name: value for name, value in door.fills.items() if getattr(given, name) is msgspec.UNSET}
    if door.takes_age and given.event_time is msgspec.UNSET:
        age_ms = given.age_ms or 0
        if type(age_ms) is not int or not 0 <= age_ms <= rules.max_event_age_ms:
            return Rejection(reasons.INVALID_FIELD, "age_ms", f"whole milliseconds up to {rules.max_event_age_ms}")
        fills["event_time"] = b"%d" % (now_ms - age_ms)
    event = judge_event(with_fields(raw, fills), rules.click_ids)
    if isinstance(event, Event) and door.sets:
        event = msgspec.structs.replace(event, **door.sets)
    return event


def _disguised(event: Event, given: _Given, door: Door, rules: Rules) -> Event | Rejection:
    """The event with the user that may be known of it. Who is to be forgotten must be named, whatever they consent to."""
    site = rules.sites.get(event.advertiser_id)
    has_consent = given.consent == GRANTED or (given.consent is None and not (site and site.is_consent_asked))
    if event.event_type == "forget" or (has_consent and not door.is_denied):
        is_hashed = (
            site is not None and site.hashes_users and event.user_id is not None
        )  # a click's user is hashed already
        return privacy.with_hashed_user(event, rules.salt) if is_hashed else event
    if event.event_type == "adjustment" and event.conversion_event_id is None:
        return Rejection(
            reasons.MISSING_FIELD,
            "conversion_event_id",
            "without consent no order is kept by its order_id; name the conversion by its event id",
        )
    return privacy.without_user(event, rules.secret)


def _reported(event: Event) -> Event:
    """A browser's event: of conversions it matters who reports them, and no other one need say so."""
    reporter = BROWSER if event.event_type == "conversion" else None
    return event if event.reported_by == reporter else msgspec.structs.replace(event, reported_by=reporter)


def _text(raw: msgspec.Raw | msgspec.UnsetType) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)[:128] if isinstance(raw, msgspec.Raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def only(event_type: str) -> Callable[[Event], Rejection | None]:
    """A check that lets one type of event in."""

    def check(event: Event) -> Rejection | None:
        if event.event_type == event_type:
            return None
        return Rejection(NOT_ALLOWED, "event_type", f"only {event_type}s are taken here; /v1/events takes every type")

    return check

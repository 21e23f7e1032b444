"""What comes in: one JSON object an event, decoded and judged by one strict function.

`decode_event` is the contract. The fast path of the intake uses the same struct and falls back to this
function for every row that it cannot vouch for, so both accept and reject the same events.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec

from app.contract import reasons

MAX_EVENT_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 64
MICROS: Final = 1_000_000  # money is counted in integer millionths, so that a sum never depends on its order
MAX_AMOUNT: Final = 1e10
MAX_TIME_MS: Final = 253_402_300_799_999  # the last millisecond of the year 9999

NEVER_MS: Final = 2**63 - 1  # after any record's time

TOUCH_TYPES: Final = ("view", "click", "engaged_view")
# An event's identity holds its type's place here: new ones come at the end.
EVENT_TYPES: Final = (*TOUCH_TYPES, "visit", "conversion", "adjustment", "forget")
# What a touch may say about itself, in the order in which it is stored and published.
TOUCH_ATTRIBUTES: Final = ("campaign_id", "ad_id", "creative_id", "landing_page", "offer_id", "source", "medium")

BROWSER: Final = "browser"  # who reports a conversion; whoever does not say is a server
SERVER: Final = "server"

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text = Annotated[str, msgspec.Meta(max_length=2048)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=MAX_AMOUNT)]


class Event(msgspec.Struct, gc=False, frozen=True):
    """One event as its producer wrote it; which fields belong to which type is checked by `judge_fields`."""

    event_id: Id
    event_type: str
    event_time: int | str
    advertiser_id: Id
    user_id: Id
    platform: Id | None = None
    campaign_id: Id | None = None
    ad_id: Id | None = None
    creative_id: Id | None = None
    landing_page: Text | None = None
    offer_id: Id | None = None
    source: Id | None = None
    medium: Id | None = None
    click_id: Annotated[str, msgspec.Meta(max_length=512)] | None = None
    cost: Amount | None = None
    page: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)] | None = None
    referrer: Text | None = None
    conversion_name: Id | None = None
    value: Amount | None = None
    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")] | None = None
    order_id: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    adjustment: str | None = None
    conversion_event_id: Id | None = None
    reported_by: Literal["browser", "server"] | None = None


class Userless(Event, gc=False, frozen=True):
    """A conversion or an adjustment whose sender knows a click id and no user: a call centre's, a CRM's. Whose click it was is
    found by `onecount run matcher`, where the policy has `click_ids`.
    """

    user_id: Id | None = None  # type: ignore[assignment] - what an Event has by the time that anything is counted of it


class Rejection(NamedTuple):
    """Why an event is refused: a reason of `app.contract.reasons`, the field at fault ("" for the whole), and words
    for a person.
    """

    reason: str
    field: str
    detail: str


class Accepted(NamedTuple):
    """An event that keeps the contract, with its time in epoch milliseconds."""

    event: Event
    time_ms: int


Struct = TypeVar("Struct", bound=msgspec.Struct)
decode_struct = msgspec.json.Decoder(Event).decode
decode_userless = msgspec.json.Decoder(Userless).decode

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_FIELD = re.compile(r"`\$\.([A-Za-z_]+)")
_MISSING = re.compile(r"missing required field `([A-Za-z_]+)`")
_RFC3339 = re.compile(r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
REQUIRED: Final = {
    "view": ("platform", "campaign_id"),
    "click": ("platform", "campaign_id"),
    "engaged_view": ("platform", "campaign_id"),
    "visit": ("page",),
    "conversion": ("conversion_name",),
    "adjustment": ("adjustment",),
    "forget": (),
}


USERLESS: Final = ("conversion", "adjustment")


class _DuplicateKey(Exception):
    pass


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return seen


def parse_time_ms(value: int | str) -> int | None:
    """Epoch milliseconds of an integer or an RFC 3339 string with a zone; None where it is neither."""
    if isinstance(value, int):
        return value if 0 <= value <= MAX_TIME_MS else None
    if not _RFC3339.match(value):
        return None
    try:
        moment = datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
        base = int(moment.replace(microsecond=0).timestamp())
    except (ValueError, OverflowError):
        return None
    time_ms = base * 1000 + moment.microsecond // 1000
    return time_ms if 0 <= time_ms <= MAX_TIME_MS else None


def to_micros(amount: float) -> int:
    """An amount of money as the nearest integer of millionths of its unit; the same rounding as NumPy's `rint` over a
    column.
    """
    return round(amount * MICROS)


def from_micros(micros: int) -> float:
    """The amount in its own unit, for output."""
    return micros / MICROS


def judge_bytes(raw: bytes | None, decode: Callable[[bytes], Struct] = decode_struct) -> Struct | Rejection:
    """Decodes one record's value; a `Rejection` where it is no JSON object with the contract's types and bounds."""
    if raw is None:
        return Rejection(reasons.NULL_RECORD, "", "the record has no value")
    if not raw:
        return Rejection(reasons.EMPTY, "", "the value is empty")
    if len(raw) > MAX_EVENT_BYTES:
        return Rejection(reasons.TOO_LARGE, "", f"{len(raw)} bytes, the limit is {MAX_EVENT_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejection(reasons.INVALID_UTF8, "", f"byte {error.start}: {error.reason}")
    if _depth(text) > MAX_DEPTH:
        return Rejection(reasons.TOO_DEEP, "", f"nested deeper than {MAX_DEPTH} levels")
    try:
        event = decode(raw)
        json.loads(text, object_pairs_hook=_refuse_duplicates)
    except _DuplicateKey as error:
        return Rejection(
            reasons.DUPLICATE_KEY, str(error)[:128], "the key stands twice, so which value is meant is unknown"
        )
    except msgspec.ValidationError as error:
        return _field_rejection(str(error))
    except (msgspec.DecodeError, ValueError) as error:
        return Rejection(reasons.INVALID_JSON, "", str(error)[:200])
    return event


def judge_event(raw: bytes | None, click_ids: bool) -> Event | Rejection:
    """As `judge_bytes`, of an event; where the policy has `click_ids` also a `Userless` one."""
    event = judge_bytes(raw)
    if not click_ids or not isinstance(event, Rejection) or event.field != "user_id":
        return event
    userless = judge_bytes(raw, decode_userless)
    if isinstance(userless, Rejection):
        return userless
    is_sound = userless.user_id is None and userless.event_type in USERLESS and userless.click_id
    return userless if is_sound else event


def key_of(event: Event) -> bytes:
    """The Kafka key of an event: its user, or for one that names none the click id, so that its repeats stay together."""
    return (event.user_id or event.click_id or "").encode()


def _depth(text: str) -> int:
    """How deep arrays and objects nest; a limit of our own, since the decoders' depends on the interpreter and its stack."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return 1
    depth = deepest = 0
    for character in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if character in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _field_rejection(message: str) -> Rejection:
    missing = _MISSING.search(message)
    if missing:
        return Rejection(reasons.MISSING_FIELD, missing.group(1), message[:200])
    field = _FIELD.search(message)
    if field is None:
        return Rejection(reasons.NOT_AN_OBJECT, "", message[:200])
    reason = reasons.INVALID_TIME if field.group(1) == "event_time" else reasons.INVALID_FIELD
    return Rejection(reason, field.group(1), message[:200])


def judge_fields(event: Event, platforms: Mapping[str, int], record_time_ms: int) -> Accepted | Rejection:
    """The rules that the types alone do not say: fields by event type, ids without control characters, the platform,
    the time. `platforms`: each with the record time (epoch ms) from which on events may name it, so that a platform which
    was refused before the policy had it is refused in every replay.
    """
    if event.event_type not in REQUIRED:
        return Rejection(
            reasons.UNKNOWN_EVENT_TYPE, "event_type", f"{event.event_type[:64]!r}; one of {', '.join(EVENT_TYPES)}"
        )
    for name in (
        "event_id",
        "advertiser_id",
        "user_id",
        "platform",
        *TOUCH_ATTRIBUTES,
        "conversion_name",
        "order_id",
        "conversion_event_id",
    ):
        text = getattr(event, name)
        if text is not None and _CONTROL.search(text):
            return Rejection(reasons.INVALID_FIELD, name, "control characters are not allowed in an id")
    for name in REQUIRED[event.event_type]:
        if getattr(event, name) is None:
            return Rejection(reasons.MISSING_FIELD, name, f"a {event.event_type} needs {name}")
    if (
        event.platform is not None
        and event.event_type not in ("visit", "adjustment", "forget")
        and platforms.get(event.platform, NEVER_MS) > record_time_ms
    ):
        return Rejection(reasons.UNKNOWN_PLATFORM, "platform", f"{event.platform[:64]!r} is not in the policy in force")
    if event.event_type == "adjustment":
        refused = _judge_adjustment(event)
        if refused:
            return refused
    time_ms = parse_time_ms(event.event_time)
    if time_ms is None:
        return Rejection(reasons.INVALID_TIME, "event_time", "neither epoch milliseconds nor RFC 3339 with a zone")
    return Accepted(event, time_ms)


def _judge_adjustment(event: Event) -> Rejection | None:
    if event.adjustment not in ("retract", "restate"):
        return Rejection(reasons.INVALID_FIELD, "adjustment", "retract or restate")
    if not event.order_id and event.conversion_event_id is None:
        return Rejection(reasons.MISSING_FIELD, "order_id", "an adjustment names an order_id or a conversion_event_id")
    if event.adjustment == "restate" and event.value is None:
        return Rejection(reasons.MISSING_FIELD, "value", "a restatement needs its new value")
    return None


def judge_age(time_ms: int, record_time_ms: int, max_event_age_ms: int, max_clock_skew_ms: int) -> Rejection | None:
    """Judges the event's time against its record's Kafka timestamp (ms), so that a replay decides the same."""
    if time_ms < record_time_ms - max_event_age_ms:
        return Rejection(
            reasons.TOO_OLD,
            "event_time",
            f"{record_time_ms - time_ms} ms before its record, the limit is {max_event_age_ms}",
        )
    if time_ms > record_time_ms + max_clock_skew_ms:
        return Rejection(
            reasons.IN_THE_FUTURE,
            "event_time",
            f"{time_ms - record_time_ms} ms after its record, the limit is {max_clock_skew_ms}",
        )
    return None


def decode_event(
    raw: bytes | None,
    key: bytes | None,
    record_time_ms: int,
    platforms: Mapping[str, int],
    max_event_age_ms: int,
    max_clock_skew_ms: int,
    click_ids: bool = False,
) -> Accepted | Rejection:
    """The whole contract for one record: its value, its Kafka key and its Kafka timestamp (epoch ms). `platforms` as in
    `judge_fields`. `click_ids`: whether an event may be `Userless`, which may have any key.
    """
    event = judge_event(raw, click_ids)
    if isinstance(event, Rejection):
        return event
    judged = judge_fields(event, platforms, record_time_ms)
    if isinstance(judged, Rejection):
        return judged
    if key is not None and event.user_id is not None and key != event.user_id.encode():
        return Rejection(reasons.KEY_MISMATCH, "user_id", "the record's key is not its user_id")
    return judge_age(judged.time_ms, record_time_ms, max_event_age_ms, max_clock_skew_ms) or judged

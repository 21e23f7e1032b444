"""Every reason for which an event is refused, with bytes that cause it, and what the contract lets through."""

import json

import pytest

from app.contract import reasons
from app.contract.events import MAX_EVENT_BYTES, Accepted, Rejection, decode_event, parse_time_ms, to_micros
from app.contract.rows import KEPT_BYTES, dead_letter

NOW_MS = 1_764_000_000_000
# by the record time from which on they are known: the last one is not known yet
PLATFORMS = {"meta": 0, "google_ads": NOW_MS, "tomorrow": NOW_MS + 1}
DAY_MS = 86_400_000


def view(**fields: object) -> dict[str, object]:
    return {
        "event_id": "e1",
        "event_type": "view",
        "event_time": NOW_MS,
        "advertiser_id": "a1",
        "user_id": "u1",
        "platform": "meta",
        "campaign_id": "c1",
    } | fields


def without(event: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in event.items() if name not in names}


def encoded(event: dict[str, object]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")


def conversion(**fields: object) -> dict[str, object]:
    return without(view(event_type="conversion", conversion_name="purchase"), "campaign_id") | fields


def adjustment(**fields: object) -> dict[str, object]:
    return (
        without(view(event_type="adjustment", adjustment="retract", order_id="o1"), "platform", "campaign_id") | fields
    )


def judge(raw: bytes | None, key: bytes | None = b"u1") -> Accepted | Rejection:
    return decode_event(raw, key, NOW_MS, PLATFORMS, 7 * DAY_MS, 300_000)


REFUSED = [
    ("a null record", None, reasons.NULL_RECORD, ""),
    ("an empty value", b"", reasons.EMPTY, ""),
    ("blanks only", b"  \n", reasons.INVALID_JSON, ""),
    ("10 MB", b'{"event_id":"' + b"x" * 10_000_000 + b'"}', reasons.TOO_LARGE, ""),
    ("one byte too many", b" " * (MAX_EVENT_BYTES + 1), reasons.TOO_LARGE, ""),
    ("invalid UTF-8", encoded(view()).replace(b"c1", b"c\xff"), reasons.INVALID_UTF8, ""),
    (
        "invalid UTF-8 in a field that nobody reads",
        encoded(view(other="?")).replace(b"?", b"\xc3\x28"),
        reasons.INVALID_UTF8,
        "",
    ),
    ("UTF-16", json.dumps(view()).encode("utf-16"), reasons.INVALID_UTF8, ""),
    ("a surrogate in UTF-8", encoded(view(campaign_id="\ud800")), reasons.INVALID_UTF8, ""),
    ("a byte order mark", b"\xef\xbb\xbf" + encoded(view()), reasons.INVALID_JSON, ""),
    ("NaN", encoded(conversion()).replace(b"}", b',"value":NaN}'), reasons.INVALID_JSON, ""),
    ("Infinity", encoded(conversion()).replace(b"}", b',"value":Infinity}'), reasons.INVALID_JSON, ""),
    ("1e400", encoded(conversion()).replace(b"}", b',"value":1e400}'), reasons.INVALID_FIELD, "value"),
    ("two objects", encoded(view()) * 2, reasons.INVALID_JSON, ""),
    ("a cut object", encoded(view())[:-5], reasons.INVALID_JSON, ""),
    ("a newline inside a string", encoded(view()).replace(b"c1", b"c\n1"), reasons.INVALID_JSON, ""),
    ("a lone surrogate escape", encoded(view()).replace(b"c1", rb"\ud800"), reasons.INVALID_JSON, ""),
    ("a trailing NUL", encoded(view()) + b"\0", reasons.INVALID_JSON, ""),
    ("1,500 levels", encoded(view()).replace(b"}", b',"x":' + b"[" * 1500 + b"]" * 1500 + b"}"), reasons.TOO_DEEP, ""),
    ("1,500 levels in a field that is read", b'{"event_id":' + b"[" * 1500 + b"]" * 1500 + b"}", reasons.TOO_DEEP, ""),
    ("an array", b"[" + encoded(view()) + b"]", reasons.NOT_AN_OBJECT, ""),
    ("null", b"null", reasons.NOT_AN_OBJECT, ""),
    ("a number", b"7", reasons.NOT_AN_OBJECT, ""),
    ("a key twice", encoded(view()).replace(b"}", b',"user_id":"u1"}'), reasons.DUPLICATE_KEY, "user_id"),
    (
        "a key twice, once escaped",
        encoded(view()).replace(b"}", rb',"user\u005fid":"u2"}'),
        reasons.DUPLICATE_KEY,
        "user_id",
    ),
    ("an unread key twice", encoded(view(other=1)).replace(b"}", b',"other":1}'), reasons.DUPLICATE_KEY, "other"),
    ("no event_id", encoded(without(view(), "event_id")), reasons.MISSING_FIELD, "event_id"),
    ("no user_id", encoded(without(view(), "user_id")), reasons.MISSING_FIELD, "user_id"),
    ("a view without campaign", encoded(without(view(), "campaign_id")), reasons.MISSING_FIELD, "campaign_id"),
    (
        "a click without platform",
        encoded(without(view(event_type="click"), "platform")),
        reasons.MISSING_FIELD,
        "platform",
    ),
    ("a visit without page", encoded(view(event_type="visit")), reasons.MISSING_FIELD, "page"),
    (
        "a conversion without action",
        encoded(without(conversion(), "conversion_name")),
        reasons.MISSING_FIELD,
        "conversion_name",
    ),
    ("an adjustment of nothing", encoded(without(adjustment(), "order_id")), reasons.MISSING_FIELD, "order_id"),
    ("an adjustment of an empty order", encoded(adjustment(order_id="")), reasons.MISSING_FIELD, "order_id"),
    ("a restatement without value", encoded(adjustment(adjustment="restate")), reasons.MISSING_FIELD, "value"),
    ("an unknown adjustment", encoded(adjustment(adjustment="double")), reasons.INVALID_FIELD, "adjustment"),
    ("an empty event_id", encoded(view(event_id="")), reasons.INVALID_FIELD, "event_id"),
    ("an event_id of 129 characters", encoded(view(event_id="e" * 129)), reasons.INVALID_FIELD, "event_id"),
    ("an order_id of 65 characters", encoded(conversion(order_id="o" * 65)), reasons.INVALID_FIELD, "order_id"),
    ("a platform that is known later", encoded(view(platform="tomorrow")), reasons.UNKNOWN_PLATFORM, "platform"),
    ("a control character in an id", encoded(view(user_id="u\x001")), reasons.INVALID_FIELD, "user_id"),
    ("a delete character in an id", encoded(view(campaign_id="c\x7f")), reasons.INVALID_FIELD, "campaign_id"),
    ("a number for an id", encoded(view(user_id=1)), reasons.INVALID_FIELD, "user_id"),
    ("a negative value", encoded(conversion(value=-0.01)), reasons.INVALID_FIELD, "value"),
    ("a value as a string", encoded(conversion(value="1")), reasons.INVALID_FIELD, "value"),
    ("true for a value", encoded(conversion(value=True)), reasons.INVALID_FIELD, "value"),
    ("a currency that is no code", encoded(conversion(currency="usd")), reasons.INVALID_FIELD, "currency"),
    ("a reporter that is none", encoded(conversion(reported_by="app")), reasons.INVALID_FIELD, "reported_by"),
    ("a touch's reporter that is none", encoded(view(reported_by="")), reasons.INVALID_FIELD, "reported_by"),
    ("true for a time", encoded(view(event_time=True)), reasons.INVALID_TIME, "event_time"),
    ("2**64 for a time", encoded(view(event_time=2**64)), reasons.INVALID_TIME, "event_time"),
    ("10**20 for a time", encoded(view(event_time=10**20)), reasons.INVALID_TIME, "event_time"),
    ("a negative time", encoded(view(event_time=-1)), reasons.INVALID_TIME, "event_time"),
    ("a float for a time", encoded(view(event_time=float(NOW_MS))), reasons.INVALID_TIME, "event_time"),
    ("a time without zone", encoded(view(event_time="2025-11-24T16:00:00")), reasons.INVALID_TIME, "event_time"),
    ("a date", encoded(view(event_time="2025-11-24")), reasons.INVALID_TIME, "event_time"),
    ("the 31st of February", encoded(view(event_time="2025-02-31T00:00:00Z")), reasons.INVALID_TIME, "event_time"),
    ("an unknown type", encoded(view(event_type="tick")), reasons.UNKNOWN_EVENT_TYPE, "event_type"),
    ("an unknown platform", encoded(view(platform="myspace")), reasons.UNKNOWN_PLATFORM, "platform"),
    (
        "a conversion of an unknown platform",
        encoded(conversion(platform="myspace")),
        reasons.UNKNOWN_PLATFORM,
        "platform",
    ),
    ("another user's key", encoded(view(user_id="u2")), reasons.KEY_MISMATCH, "user_id"),
    ("a time 7 days and 1 ms ago", encoded(view(event_time=NOW_MS - 7 * DAY_MS - 1)), reasons.TOO_OLD, "event_time"),
    ("the year 1970", encoded(view(event_time=0)), reasons.TOO_OLD, "event_time"),
    ("a time 5 min and 1 ms ahead", encoded(view(event_time=NOW_MS + 300_001)), reasons.IN_THE_FUTURE, "event_time"),
]


@pytest.mark.parametrize(("raw", "reason", "field"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_breaks_the_contract_is_refused_with_its_reason(raw: bytes | None, reason: str, field: str) -> None:
    judged = judge(raw)
    assert isinstance(judged, Rejection)
    assert (judged.reason, judged.field) == (reason, field)
    assert judged.detail


def test_every_reason_that_an_event_alone_can_cause_has_a_case() -> None:
    # the last reason depends on the stream: see the tests of the counter; those of schemas on their registry: tests/formats
    others = {reasons.BEYOND_CORRECTION_HORIZON, *reasons.SCHEMA_REASONS}
    assert {case[2] for case in REFUSED} == set(reasons.EVENT_REASONS) - others


@pytest.mark.parametrize(
    "event",
    [
        view(),
        view(event_type="click", click_id="x" * 512, cost=0.25),
        view(event_time=NOW_MS - 7 * DAY_MS),
        view(event_time=NOW_MS + 300_000),
        view(landing_page="https://example.org/a:b?c=d", other={"nested": [1, 2]}),
        view(campaign_id="ü" * 128),
        view(landing_page="[{" * 100),
        without(view(event_type="visit", page="/"), "campaign_id", "platform"),
        conversion(value=12.5, currency="EUR", order_id=""),
        conversion(reported_by="browser"),
        conversion(reported_by="server"),
        view(reported_by=None),
        without(conversion(), "platform"),
        conversion(conversion_name="an unknown action is noise, not an error"),
        adjustment(),
        adjustment(adjustment="restate", value=0, conversion_event_id="e9", order_id=None),
        without(view(event_type="forget"), "platform", "campaign_id"),
        view(event_type="forget", platform="a forget is of all platforms, whatever it names"),
    ],
)
def test_what_keeps_the_contract_is_accepted(event: dict[str, object]) -> None:
    judged = judge(encoded(event))
    assert isinstance(judged, Accepted), judged
    assert judged.time_ms == event["event_time"]


def test_a_record_without_key_is_accepted() -> None:
    assert isinstance(judge(encoded(view()), key=None), Accepted)


def test_rfc_3339_times_are_read_to_the_millisecond() -> None:
    assert parse_time_ms("2025-11-24T16:00:00Z") == NOW_MS
    assert parse_time_ms("2025-11-24T17:00:00.1239+01:00") == NOW_MS + 123
    assert parse_time_ms("2025-11-24t16:00:00.5z") == NOW_MS + 500
    assert parse_time_ms("1969-12-31T23:59:59Z") is None


def test_amounts_are_the_nearest_millionth() -> None:
    assert to_micros(0.1) + to_micros(0.2) == to_micros(0.3) == 300_000
    assert to_micros(19.99) == 19_990_000


def test_a_dead_letter_is_bounded_and_names_the_whole_value_by_its_hash() -> None:
    letter = dead_letter(Rejection("too_large", "", "x"), "ads.events", 3, 9, NOW_MS, b"k" * 5000, b"v" * 10_000_000)
    assert letter.size_bytes == 10_000_000
    assert letter.truncated
    assert letter.value_base64 is not None
    assert len(letter.value_base64) <= KEPT_BYTES * 4 // 3 + 4
    assert len(letter.sha256) == 64
    assert (letter.topic, letter.partition, letter.offset) == ("ads.events", 3, 9)

"""CloudEvents as Kafka's protocol binding has them."""

import json

import pytest

from app.contract import reasons
from app.contract.events import Accepted, Rejection
from app.formats.cloudevents import Headers, Opened, opened_by
from app.formats.opening import Formats
from tests.formats.test_formats import judge
from tests.formats.written import binary, structured
from tests.unit.test_contract import NOW_MS, conversion, encoded, view, without

ENVELOPES = Formats({"cloudevents": 0}, None)


def test_the_envelope_fills_in_what_its_data_leaves_out_and_nothing_else() -> None:
    data = without(conversion(), "event_id", "event_type", "event_time")
    headers = [
        ("ce_specversion", b"1.0"), ("ce_id", b"order-1"), ("ce_source", b"/crm"), ("ce_type", b"com.example.conversion"),
        ("ce_time", b"2025-11-24T16:00:00.250Z"), ("ce_subject", b"ignored"), ("traceparent", b"\xff"),
    ]  # fmt: skip
    judged = judge(ENVELOPES, encoded(data), headers)
    assert isinstance(judged, Accepted)
    assert (judged.event.event_id, judged.event.event_type, judged.time_ms) == ("order-1", "conversion", NOW_MS + 250)
    own = judge(ENVELOPES, encoded(data | {"event_id": "own", "event_time": NOW_MS}), headers)
    assert isinstance(own, Accepted)
    assert (own.event.event_id, own.time_ms) == ("own", NOW_MS)


def changed(headers: Headers, **values: bytes | None) -> Headers:
    return [(name, values.get(name.replace("-", "_"), value)) for name, value in headers or ()]


BINARY, HEADERS = binary(view())
STRUCTURED, KIND = structured(view())
ENVELOPE = json.loads(STRUCTURED)


@pytest.mark.parametrize(
    ("value", "headers", "reason", "field"),
    [
        (BINARY, changed(HEADERS, ce_specversion=b"0.3"), reasons.INVALID_FIELD, "specversion"),
        (BINARY, [each for each in HEADERS if each[0] != "ce_source"], reasons.MISSING_FIELD, ""),
        (BINARY, [*HEADERS, ("ce_id", b"again")], reasons.DUPLICATE_KEY, "ce_id"),
        (BINARY, changed(HEADERS, ce_id=b"\xff"), reasons.INVALID_UTF8, "ce_id"),
        (BINARY, changed(HEADERS, ce_id=b""), reasons.INVALID_FIELD, "event_id"),
        (BINARY, changed(HEADERS, ce_type=None), reasons.UNKNOWN_EVENT_TYPE, "event_type"),
        (BINARY, changed(HEADERS, content_type=b"text/xml"), reasons.INVALID_FIELD, "content-type"),
        (BINARY[:-1], HEADERS, reasons.INVALID_JSON, ""),
        (b"[1]", HEADERS, reasons.NOT_AN_OBJECT, ""),
        (None, HEADERS, reasons.NULL_RECORD, ""),
        (BINARY, [*HEADERS, ("ce_data", b"no attribute")], None, ""),
        (STRUCTURED[:-1], KIND, reasons.INVALID_JSON, ""),
        (STRUCTURED.replace(b"{", b'{"id":"again",', 1), KIND, reasons.DUPLICATE_KEY, "id"),
        (STRUCTURED.replace(b"{", b'{"subject":1,"subject":2,', 1), KIND, reasons.DUPLICATE_KEY, "subject"),
        (STRUCTURED.replace(b"{", b'{"subject":"\xff",', 1), KIND, reasons.INVALID_UTF8, ""),
        (STRUCTURED.replace(b"{", b'{"subject":%s,' % (b"[" * 65 + b"]" * 65), 1), KIND, reasons.TOO_DEEP, ""),
        (b"[1]", KIND, reasons.NOT_AN_OBJECT, ""),
        (encoded(without(ENVELOPE, "source")), KIND, reasons.MISSING_FIELD, "source"),
        (encoded({**ENVELOPE, "id": 1}), KIND, reasons.INVALID_FIELD, "id"),
        (encoded({**ENVELOPE, "specversion": "2.0"}), KIND, reasons.INVALID_FIELD, "specversion"),
        (encoded(without(ENVELOPE, "data")), KIND, reasons.MISSING_FIELD, "data"),
        (encoded({**ENVELOPE, "datacontenttype": "text/plain"}), KIND, reasons.INVALID_FIELD, "datacontenttype"),
        (encoded({**ENVELOPE, "datacontenttype": "application/vnd.shop+json"}), KIND, None, ""),
        (STRUCTURED, [("content-type", b"application/cloudevents+avro")], reasons.INVALID_FIELD, "content-type"),
        (b"[" + STRUCTURED + b"]", [("content-type", b"application/cloudevents-batch+json")], reasons.INVALID_FIELD, "content-type"),
        (STRUCTURED, [("content-type", b"application/json")], reasons.MISSING_FIELD, ""),
        (STRUCTURED, [("content-type", b"APPLICATION/CloudEvents+JSON")], None, ""),
    ],
)  # fmt: skip
def test_an_envelope_is_refused_by_what_is_wrong_with_it(
    value: bytes | None, headers: Headers, reason: str | None, field: str
) -> None:
    judged = judge(ENVELOPES, value, headers)
    if reason is None:
        assert isinstance(judged, Accepted)
    else:
        assert isinstance(judged, Rejection), judged
        assert judged.reason == reason
        assert judged.field == field or not field


def test_a_field_that_stands_twice_stays_so_though_the_envelope_fills_in_others() -> None:
    raw = BINARY.replace(b"{", b'{"user_id":"u1",', 1)
    assert judge(ENVELOPES, raw, HEADERS).reason == reasons.DUPLICATE_KEY  # type: ignore[union-attr]


HTTP = [(name.replace("ce_", "ce-"), (value or b"").decode()) for name, value in HEADERS or ()]


@pytest.mark.parametrize(
    ("more", "reason", "field"),
    [
        ([("ce-id", "again")], reasons.DUPLICATE_KEY, "ce-id"),
        ([("ce-subject", "a"), ("ce-subject", "a")], reasons.DUPLICATE_KEY, "ce-subject"),
        ([("ce-subject", "%ff")], reasons.INVALID_UTF8, "ce-subject"),
        ([("ce-subject", "%C3%A9"), ("x-ce-id", "1"), ("accept", "*/*"), ("accept", "a/b")], None, ""),
    ],
)
def test_over_http_each_attribute_stands_once_too(more: list[tuple[str, str]], reason: str | None, field: str) -> None:
    found = opened_by([*HTTP, *more], BINARY)
    if reason is None:
        assert isinstance(found, Opened)
    else:
        assert isinstance(found, Rejection)
        assert found[:2] == (reason, field)

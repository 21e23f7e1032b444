"""An event means the same in every format: the same struct where it is sound, the same refusal where it is not."""

import json
import math
from collections.abc import Callable
from typing import Any

import fastavro.schema
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.contract import reasons
from app.contract.events import MAX_EVENT_BYTES, Accepted, Event, Rejection, decode_event
from app.formats.cloudevents import Headers
from app.formats.fields import written
from app.formats.opening import FORMATS, Formats
from app.policy.load import schema
from tests.formats.registry import Registry as Held
from tests.formats.written import AVSC, PROTO, Writers, binary, compiled, structured
from tests.unit.test_contract import DAY_MS, NOW_MS, PLATFORMS, REFUSED, adjustment, conversion, encoded, view, without

Made = Callable[..., Formats]


def judge(formats: Formats, value: bytes | None, headers: Headers = None) -> Accepted | Rejection:
    """As counter, verify and dead letters do, of a record of now."""
    body = formats.open(value, headers, NOW_MS)
    if isinstance(body, Rejection):
        return body
    return decode_event(body, b"u1", NOW_MS, PLATFORMS, 7 * DAY_MS, 300_000)


ids = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
amounts = st.floats(0, 1e9, allow_subnormal=False)
fields = st.fixed_dictionaries(
    {},
    optional={
        "creative_id": ids,
        "source": ids,
        "medium": ids,
        "landing_page": st.text(st.characters(codec="utf-8"), max_size=20),
        "click_id": st.text(st.characters(codec="utf-8"), max_size=20),
        "referrer": st.text(st.characters(codec="utf-8"), max_size=20),
    },
)
times = st.integers(NOW_MS - 8 * DAY_MS, NOW_MS + 400_000)
events = st.one_of(
    st.builds(lambda more, cost, at: view(event_time=at, event_type="click", cost=cost) | more, fields, amounts, times),
    st.builds(
        lambda more, value, name: conversion(value=value, currency="EUR", event_id=name, order_id="o1") | more,
        fields, amounts, ids,
    ),
    st.builds(lambda page: without(view(event_type="visit", page=page), "platform", "campaign_id"), ids),
    st.builds(lambda value: adjustment(adjustment="restate", value=value), amounts),
)  # fmt: skip


@given(events)
@example(view())
@example(conversion(value=0.0))
@example(view(user_id="somebody else"))
@example(view(platform="nowhere"))
@example(view(event_type="tick"))
@example(view(event_id="a\nb"))
@example(without(adjustment(), "order_id"))
@settings(deadline=None, max_examples=60)
def test_an_event_means_the_same_in_every_format(
    shared_formats: Formats, shared_writers: Writers, event: dict[str, Any]
) -> None:
    formats = shared_formats
    raw = encoded(event)
    plain = decode_event(raw, b"u1", NOW_MS, PLATFORMS, 7 * DAY_MS, 300_000)
    avro, protobuf = shared_writers.avro(event), shared_writers.protobuf(event)
    assert judge(formats, raw) == plain
    assert judge(formats, avro) == plain
    assert judge(formats, protobuf) == plain
    for fills in (False, True):
        assert judge(formats, *structured(event, fills)) == plain
        value, headers = binary(event, fills)
        assert judge(formats, value, headers) == plain
        # an envelope around what a schema tells
        assert judge(formats, avro, headers) == plain
        assert judge(formats, protobuf, headers) == plain


@pytest.mark.parametrize(("name", "raw", "reason"), [case[:3] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_json_is_refused_as_ever_where_all_formats_are_taken(
    name: str, raw: bytes | None, reason: str, shared_formats: Formats
) -> None:
    judged = judge(shared_formats, raw)
    assert isinstance(judged, Rejection)
    assert judged.reason == reason


def test_the_published_schemas_have_the_contract_s_fields() -> None:
    names = set(Event.__struct_fields__)
    assert {field["name"] for field in json.loads(AVSC)["fields"]} == names
    fastavro.schema.parse_schema(json.loads(AVSC))
    (message,) = compiled(PROTO).message_type
    assert {field.name for field in message.field} == names
    # numbers are for ever: a new field gets a new one, at the end
    assert [field.number for field in message.field] == list(range(1, len(names) + 1))


def test_the_policy_knows_the_formats_that_are_read() -> None:
    assert tuple(schema()["properties"]["formats"]["items"]["enum"]) == FORMATS


def test_a_record_of_before_its_format_was_taken_is_refused_in_every_replay(
    shared: Held, shared_writers: Writers, formats_of: Made
) -> None:
    records = [
        (shared_writers.avro(view()), None),
        (shared_writers.protobuf(view()), None),
        structured(view()),
        binary(view()),
    ]
    later = formats_of(shared, dict.fromkeys(FORMATS, NOW_MS + 1))
    for value, headers in records:
        assert later.open(value, headers, NOW_MS) == value, "as it is: the contract refuses it"
        assert isinstance(judge(later, value, headers), Rejection)
        assert later.open(value, headers, NOW_MS + 1) != value


def test_a_format_that_is_not_taken_is_no_format(shared: Held, shared_writers: Writers, formats_of: Made) -> None:
    only_avro = formats_of(shared, {"avro": 0})
    assert isinstance(judge(only_avro, shared_writers.avro(view())), Accepted)
    refused = judge(only_avro, shared_writers.protobuf(view()))
    assert isinstance(refused, Rejection)
    assert (refused.reason, "PROTOBUF" in refused.detail) == (reasons.UNDECODABLE, True)
    only_envelopes = Formats({"cloudevents": 0}, None)
    refused = judge(only_envelopes, shared_writers.avro(view()))
    assert isinstance(refused, Rejection)
    assert refused.reason == reasons.INVALID_UTF8, "as bytes of nobody's format ever were"


@pytest.mark.parametrize(
    ("given", "reason", "field"),
    [
        ({"value": math.nan}, reasons.INVALID_FIELD, "value"),
        ({"cost": math.inf}, reasons.INVALID_FIELD, "cost"),
        ({"event_id": b"bytes"}, reasons.INVALID_FIELD, "event_id"),
        ({"user_id": True}, reasons.INVALID_FIELD, "user_id"),
        ({"platform": ["meta"]}, reasons.INVALID_FIELD, "platform"),
        ({"event_time": b"\0"}, reasons.INVALID_TIME, "event_time"),
    ],
    ids=str,
)
def test_what_json_has_no_word_for_is_refused(given: dict[str, Any], reason: str, field: str) -> None:
    refused = written(view() | given)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.field) == (reason, field)


def test_a_large_event_is_refused_before_it_is_read(shared: Held, shared_writers: Writers, formats_of: Made) -> None:
    held_back = formats_of(shared)
    large = shared_writers.avro(view(landing_page="x" * MAX_EVENT_BYTES))
    asked = len(shared.asked)
    assert judge(held_back, large).reason == reasons.TOO_LARGE  # type: ignore[union-attr]
    assert len(shared.asked) == asked


def test_columns_stay_aligned(shared: Held, shared_writers: Writers, formats_of: Made) -> None:
    records: list[tuple[bytes | None, Headers]] = [
        (None, None), (encoded(view()), None), (b"\0\0\0\xff\xff~", None), (shared_writers.avro(view(event_id="a")), None),
        structured(view(event_id="c")), (b"\0", None), (shared_writers.protobuf(view(event_id="p")), [("other", None)]), (b"", None),
    ]  # fmt: skip
    bodies = formats_of(shared).open_all(
        [value for value, _ in records], [said for _, said in records], [NOW_MS] * len(records)
    )
    told = [
        body.reason if isinstance(body, Rejection) else msgspec.json.decode(body)["event_id"] if body else body
        for body in bodies
    ]
    assert told == [None, "e1", reasons.UNKNOWN_SCHEMA, "a", "c", reasons.UNDECODABLE, "p", b""]

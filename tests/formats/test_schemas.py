"""Avro and Protobuf by what a registry has: other schemas than ours, bytes that follow none, and a registry in trouble."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP
from google.protobuf.wrappers_pb2 import DESCRIPTOR as WRAPPERS
from hypothesis import given, settings
from hypothesis import strategies as st

from app.contract import reasons
from app.contract.events import Accepted, Rejection
from app.formats import protoc
from app.formats import registry as registry_module
from app.formats.opening import Formats, open_formats
from app.formats.protoc import OWN
from app.formats.registry import MAX_SCHEMAS, Registry
from app.formats.schemas import RegistryRefused, RegistryUnavailable
from tests.formats.conftest import ALL
from tests.formats.registry import OTHERWISE
from tests.formats.registry import Registry as Held
from tests.formats.test_formats import judge
from tests.formats.written import AVSC, PROTO, Writers, compiled, serialized
from tests.unit.test_contract import NOW_MS, conversion, encoded, view

Made = Callable[..., Formats]
TIME = {"type": "long", "logicalType": "timestamp-millis"}


def framed(number: int, data: bytes) -> bytes:
    return b"\0" + struct.pack(">i", number) + data


def avro_event(held: Held, schema: dict[str, Any], event: dict[str, Any], **more: Any) -> bytes:
    """An event in a schema of somebody's own."""
    import io

    stream = io.BytesIO()
    named: dict[str, Any] = {}
    for each in more.pop("named", ()):
        fastavro.parse_schema(each, named)
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema, named), event)
    return framed(held.add("AVRO", json.dumps(schema), **more), stream.getvalue())


def record(*fields: tuple[str, Any], name: str = "Click") -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "namespace": "shop",
        "fields": [{"name": at, "type": kind} for at, kind in fields],
    }


def varint(number: int) -> bytes:
    head = number & 0x7F
    return bytes([head]) if number < 0x80 else bytes([head | 0x80]) + varint(number >> 7)


def refusal(formats: Formats, value: bytes) -> Rejection:
    judged = judge(formats, value)
    assert isinstance(judged, Rejection), judged
    return judged


# --- Schemas of others


def test_an_avro_schema_of_somebody_s_own(held: Held, formats_of: Made) -> None:
    kinds = {"type": "enum", "name": "Kind", "symbols": ["view", "click"]}
    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    place = record(("city", "string"), name="Place")
    schema = record(
        ("event_type", kinds), ("user_id", "string"), ("event_id", {"type": "string", "logicalType": "uuid"}),
        ("event_time", {"type": "long", "logicalType": "timestamp-micros"}), ("advertiser_id", {"type": "string", "avro.java.string": "String"}),
        ("platform", ["null", "string"]), ("campaign_id", "string"), ("cost", money), ("place", place), ("tags", {"type": "array", "items": "string"}),
        ("more", {"type": "map", "values": ["null", "long", "shop.Place"]}),
    )  # fmt: skip
    from datetime import UTC, datetime
    from decimal import Decimal
    from uuid import UUID

    at = datetime(2025, 11, 24, 16, 0, 0, 123_999, UTC)
    event = view(event_type="click") | {
        "event_id": UUID(int=7), "event_time": at, "cost": Decimal("1.25"), "place": {"city": "Bonn"}, "tags": ["a"],
        "more": {"a": None, "b": 1, "c": {"city": "Ulm"}},
    }  # fmt: skip
    judged = judge(formats_of(held), avro_event(held, schema, event))
    assert isinstance(judged, Accepted), judged
    assert (judged.event.event_type, judged.event.event_id, judged.event.cost) == ("click", str(UUID(int=7)), 1.25)
    assert judged.time_ms == NOW_MS + 123


def test_an_avro_schema_that_refers_to_others(held: Held, formats_of: Made) -> None:
    who = record(("name", "string"), name="Who")
    owner = record(("who", "shop.Who"), name="Owner")
    held.add("AVRO", json.dumps(who), "who")
    held.add("AVRO", json.dumps(owner), "owner", [{"name": "shop.Who", "subject": "who", "version": 1}])
    schema = record(
        *(
            (name, "string")
            for name in ("event_id", "event_type", "advertiser_id", "user_id", "platform", "campaign_id")
        ),
        ("event_time", TIME),
        ("owner", "shop.Owner"),
    )
    value = avro_event(
        held, schema, view() | {"owner": {"who": {"name": "x"}}}, named=[who, owner],
        references=[{"name": "shop.Owner", "subject": "owner", "version": 1}],
    )  # fmt: skip
    assert isinstance(judge(formats_of(held), value), Accepted)
    del held.versions["who", 1]
    with pytest.raises(RegistryUnavailable, match="does not tell its schemas: HTTP 404: Version not found"):
        judge(formats_of(held), value)


PROTO_OF_OTHERS = """
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
import "kinds.proto";
message Envelope {
  message Unused { string event_id = 1; }
  message Event {
    string event_id = 3;
    shop.kinds.Kind event_type = 9;
    google.protobuf.Timestamp event_time = 5;
    string advertiser_id = 6;
    string user_id = 7;
    google.protobuf.StringValue platform = 10;
    oneof what { string campaign_id = 11; string nothing = 12; }
    google.protobuf.DoubleValue cost = 13;
    repeated string tags = 14;
    map<string, int64> more = 15;
  }
}
"""
KINDS = 'syntax = "proto3"; package shop.kinds; enum Kind { unset = 0; view = 1; click = 2; }'


def test_a_protobuf_schema_of_somebody_s_own(held: Held, formats_of: Made) -> None:
    kinds = compiled(KINDS)
    kinds.name = "kinds.proto"
    file = compiled(PROTO_OF_OTHERS, ("kinds.proto", KINDS))
    pool = DescriptorPool()
    for each in (TIMESTAMP, WRAPPERS):
        pool.AddSerializedFile(each.serialized_pb)
    pool.Add(kinds)
    pool.Add(file)
    event = GetMessageClass(pool.FindMessageTypeByName("shop.Envelope.Event"))(
        event_id="e1", event_type=2, advertiser_id="a1", user_id="u1", campaign_id="c1", tags=["a"], more={"a": 1}
    )
    event.event_time.FromMilliseconds(NOW_MS + 7)  # type: ignore[attr-defined]
    event.platform.value = "meta"  # type: ignore[attr-defined]
    event.cost.value = 0.0  # type: ignore[attr-defined]
    held.add("PROTOBUF", serialized(kinds), "kinds")
    references = [{"name": "kinds.proto", "subject": "kinds", "version": 1}]
    number = held.add("PROTOBUF", serialized(file), references=references)
    path = bytes([4, 0, 2])  # two indexes, [0, 1], zigzag: Envelope.Event
    judged = judge(formats_of(held), framed(number, path + event.SerializeToString()))
    assert isinstance(judged, Accepted), judged
    assert (judged.event.event_type, judged.time_ms) == ("click", NOW_MS + 7)
    assert (judged.event.platform, judged.event.cost) == ("meta", 0.0)

    for said, why in (
        (bytes([4, 0, 4]), "no message at [0, 2]"),
        (bytes([2, 1]), "no message at [-1]"),
        (b"\x80" * 6, "end early"),
        (bytes([66, 0]), "33 message indexes, the limit is 16"),
    ):
        refused = refusal(formats_of(held), framed(number, said + event.SerializeToString()))
        assert (refused.reason, why in refused.detail) == (reasons.UNDECODABLE, True), refused


def test_fields_without_presence_are_left_out_where_they_are_zero(held: Held, formats_of: Made) -> None:
    text = PROTO.replace("optional ", "")
    pool = DescriptorPool()
    pool.Add(compiled(text))
    made = GetMessageClass(pool.FindMessageTypeByName("onecount.Event"))
    number = held.add("PROTOBUF", serialized(compiled(text)))
    judged = judge(formats_of(held), framed(number, b"\0" + made(**conversion(value=0.0)).SerializeToString()))
    assert isinstance(judged, Accepted)
    assert judged.event.value is None


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array", "items": "string"}, "an event is a record"),
        (record(("event_id", "string"), ("parent", ["null", "shop.Click"])), "shop.Click holds itself"),
        (record(("event_id", "string"), ("many", {"type": "array", "items": "null"})), "could have any length"),
        (record(("event_id", "string"), ("many", {"type": "array", "items": record(("a", "null"), name="Empty")})), "could have any length"),
        (record(("event_id", "shop.Nothing")), "fastavro does not read it"),
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_by_which_no_event_can_be_read_safely(held: Held, formats_of: Made, schema: Any, why: str) -> None:
    refused = refusal(formats_of(held), framed(held.add("AVRO", json.dumps(schema)), b"\2a\0"))
    assert refused.reason == reasons.UNDECODABLE
    assert why in refused.detail


def test_a_schema_that_grows_without_bytes(held: Held, formats_of: Made) -> None:
    part: Any = "null"
    for level in range(8):
        again = part if part == "null" else part["namespace"] + "." + part["name"]
        kinds = [part, *[again] * 9]
        part = record(*((f"f{number}", kind) for number, kind in enumerate(kinds)), name=f"L{level}")
    schema = record(("event_id", "string"), ("bomb", part))
    refused = refusal(formats_of(held), framed(held.add("AVRO", json.dumps(schema)), b"\2a"))
    assert "more than 10000 parts" in refused.detail


def test_another_kind_of_schema(held: Held, formats_of: Made) -> None:
    refused = refusal(formats_of(held), framed(held.add("JSON", "{}"), b"{}"))
    assert (refused.reason, "of type JSON" in refused.detail) == (reasons.UNDECODABLE, True)


# --- Protobuf schemas whose registry gives their text


def proto_event(number: int, writers: Writers, event: dict[str, Any]) -> bytes:
    """An event by the published schema, which the registry has under this id."""
    return framed(number, writers.protobuf(event)[5:])


@pytest.mark.parametrize("manner", sorted(OTHERWISE.keys() - {"busy"}))
def test_a_protobuf_schema_that_the_registry_gives_as_text(
    held: Held, shared_writers: Writers, formats_of: Made, manner: str
) -> None:
    number = held.add("PROTOBUF", PROTO)
    held.serialized = manner
    formats = formats_of(held)
    for event in (view(cost=1.5), conversion(value=0.0, currency="EUR")):
        must = judge(formats, json.dumps(event).encode())
        assert isinstance(must, Accepted)
        assert judge(formats, proto_event(number, shared_writers, event)) == must
    assert held.asked == ["/schemas/ids/1", "/schemas/ids/1?format=serialized"]


def test_texts_that_import_others(held: Held, formats_of: Made) -> None:
    marks = """
        syntax = "proto3"; package shop.marks; import "google/protobuf/descriptor.proto";
        extend google.protobuf.FieldOptions { bool secret = 50001; } // no message
    """
    kinds = (
        'syntax = "proto3"; package shop.kinds; import "shop/a b/marks"; enum Kind { unset = 0; view = 1; click = 2; }'
    )
    text = """
        syntax = "proto3"; package shop;
        import "google/protobuf/timestamp.proto"; import "shop/kinds.proto"; import "shop/a b/marks";
        message Unused { string event_id = 1; }
        message Event {
          string event_id = 1; shop.kinds.Kind event_type = 2; google.protobuf.Timestamp event_time = 3;
          string advertiser_id = 4; string user_id = 5 [(shop.marks.secret) = true]; string platform = 6; string campaign_id = 7;
        }
    """
    held.add("PROTOBUF", marks, "marks")
    held.add("PROTOBUF", kinds, "kinds", [{"name": "shop/a b/marks", "subject": "marks", "version": 1}])
    held.add("PROTOBUF", "// message: well-known, and no matter", "stamp")
    names = {"google/protobuf/timestamp.proto": "stamp", "shop/kinds.proto": "kinds", "shop/a b/marks": "marks"}
    references = [{"name": name, "subject": subject, "version": 1} for name, subject in names.items()]
    number = held.add("PROTOBUF", text, references=references)
    held.serialized = "failed"
    data = b"\x0a\x02e1\x10\x02\x1a\x06\x08" + varint(NOW_MS // 1000) + b"\x22\x01a\x2a\x02u1\x32\x04meta\x3a\x01c"
    judged = judge(formats_of(held), framed(number, b"\x02\x02" + data))
    assert isinstance(judged, Accepted), judged
    event = judged.event
    assert (event.event_id, event.event_type, event.user_id, event.platform) == ("e1", "click", "u1", "meta")
    assert judged.time_ms == NOW_MS // 1000 * 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            'syntax = "proto3"; message Event { string event_id = ; }',
            "protoc does not read it: 1:54: Expected field number.",
        ),
        ('syntax = "proto3"; import "other.proto"; message Event {}', "other.proto: File not found"),
        ('syntax = "proto3"; message Event { Other event_id = 1; }', '"Other" is not defined'),
        ('syntax = "proto3"; enum Kind { message = 0; }', "the file has no message at [0]"),
    ],
)
def test_a_text_that_is_no_schema_is_told(held: Held, formats_of: Made, text: str, why: str) -> None:
    held.serialized = "failed"
    refused = refusal(formats_of(held), framed(held.add("PROTOBUF", text), b"\0"))
    assert (refused.reason, why in refused.detail) == (reasons.UNDECODABLE, True), refused


@pytest.mark.parametrize(
    "name",
    ["", ".", "/x.proto", "../x.proto", "a/../../x", "a//b", "a\\b", "a\0", "x" * 256, "a/" * 300 + "a", OWN, "\ud800"],
)
def test_a_file_that_cannot_lie_beside_the_schema(held: Held, formats_of: Made, name: str) -> None:
    held.serialized = "failed"
    held.add("PROTOBUF", "message Other {}", "other")
    references = [{"name": name, "subject": "other", "version": 1}]
    refused = refusal(formats_of(held), framed(held.add("PROTOBUF", "message Event {}", references=references), b"\0"))
    assert (refused.reason, "it refers to" in refused.detail) == (reasons.UNDECODABLE, True), refused


def test_a_serialized_file_without_a_usable_name(held: Held, formats_of: Made) -> None:
    held.add("PROTOBUF", serialized(compiled(KINDS)), "kinds")
    references = [{"name": "\ud800", "subject": "kinds", "version": 1}]
    number = held.add("PROTOBUF", serialized(compiled(PROTO)), references=references)
    assert "which is no name" in refusal(formats_of(held), framed(number, b"\0")).detail


def test_a_file_that_is_a_folder_too(held: Held, formats_of: Made) -> None:
    held.serialized = "failed"
    held.add("PROTOBUF", "message Other {}", "other")
    references = [{"name": name, "subject": "other", "version": 1} for name in ("a", "a/b")]
    number = held.add("PROTOBUF", "message Event {}", references=references)
    assert "a/b cannot be a file beside it" in refusal(formats_of(held), framed(number, b"\0")).detail


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ("find_spec", lambda _: None, r"as text only, .*pip install 'onecount\[registry\]'"),
        ("LONGEST_S", 0.001, "could not be compiled: it took more than 0.001 s"),
        ("_PROTOC", "import os; os.abort()", "could not be compiled: exit code -6"),
        ("_PROTOC", "import nothing.of_that_name", "exit code 1: .*No module named 'nothing'"),
        ("_PROTOC", "", "could not be compiled: FileNotFoundError"),
        ("_PROTOC", "import sys; sys.stderr.write(sys.argv[3][21:] + ': No space left on device'); sys.exit(70)", "No space left"),
        ("_PROTOC", "import sys; open(sys.argv[3][21:], 'w')", "could not be compiled: protoc wrote nothing"),
        ("_PROTOC", "import sys; open(sys.argv[3][21:], 'w').write('x')", "could not be compiled: DecodeError"),
        ("TemporaryDirectory", lambda **_: Path("/nothing/here").read_text(), "could not be compiled: .*Error"),
    ],
)  # fmt: skip
def test_where_no_text_can_be_compiled_nothing_is_refused(
    held: Held,
    shared_writers: Writers,
    formats_of: Made,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    value: Any,
    why: str,
) -> None:
    held.serialized = "pressed"
    formats = formats_of(held)
    event = proto_event(held.add("PROTOBUF", PROTO), shared_writers, view())
    with monkeypatch.context() as patch:
        patch.setattr(protoc, place, value)
        with pytest.raises(RegistryUnavailable, match=why):
            judge(formats, event)
    assert isinstance(judge(formats, event), Accepted)


def test_a_registry_that_is_busy_is_waited_for(held: Held, shared_writers: Writers, formats_of: Made) -> None:
    held.serialized = "busy"
    number = held.add("PROTOBUF", PROTO)
    with pytest.raises(RegistryUnavailable, match="does not tell its schemas: HTTP 503"):
        judge(formats_of(held), proto_event(number, shared_writers, view()))


def test_many_texts_take_a_bounded_time_and_get_on(
    held: Held, shared_writers: Writers, formats_of: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MOST_S", 0)
    held.serialized = "text"
    formats = formats_of(held)
    numbers = [held.add("PROTOBUF", PROTO + f"// {number}\n") for number in range(3)]
    events: list[bytes | None] = [proto_event(number, shared_writers, view()) for number in numbers]
    for _ in numbers[1:]:
        with pytest.raises(RegistryUnavailable, match="took more than 0 s to compile"):
            formats.open_all(events, [None] * 3, [NOW_MS] * 3)
    assert all(isinstance(body, bytes) for body in formats.open_all(events, [None] * 3, [NOW_MS] * 3))


def test_a_protobuf_schema_in_base64_whose_type_is_not_told(held: Held, writers: Writers, formats_of: Made) -> None:
    held.tells_base64 = False
    plain = judge(formats_of(held), encoded(view()))
    assert judge(formats_of(held), writers.protobuf(view())) == plain


def test_a_schema_that_has_no_type_and_is_no_avro_refuses_nothing(
    held: Held, writers: Writers, formats_of: Made
) -> None:
    formats = formats_of(held)
    value = writers.protobuf(view())
    held.schemas[1] = {"schema": "neither JSON nor Base64"}
    formats.probe()  # events of it may never come
    with pytest.raises(RegistryUnavailable, match=r"no type of schema 1, or Avro, but gives no JSON"):
        judge(formats, value)
    held.schemas[1] = {"schema": PROTO, "schemaType": "PROTOBUF"}
    held.serialized = "pressed"
    assert isinstance(judge(formats, value), Accepted)


@pytest.mark.parametrize("text", ["", "Cghhbi5wcm90bw=="])
def test_a_reference_without_a_text_refuses_nothing(held: Held, formats_of: Made, text: str) -> None:
    held.serialized = "failed"
    held.schemas[7] = {"schema": text}
    held.versions["other", 1] = 7
    references = [{"name": "other.proto", "subject": "other", "version": 1}]
    with pytest.raises(RegistryUnavailable, match=r"does not give the \.proto text of other\.proto"):
        judge(formats_of(held), framed(held.add("PROTOBUF", "message Event {}", references=references), b"\0"))
    number = held.add("AVRO", json.dumps(record(("event_id", "string"))), references=references)
    with pytest.raises(RegistryUnavailable, match=f"no type of schema {number}"):
        judge(formats_of(held), framed(number, b"\2a"))


# --- Bytes


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_broken_bytes_are_refused_and_never_end_a_worker(
    shared_formats: Formats, shared_writers: Writers, data: st.DataObject
) -> None:
    formats = shared_formats
    value = bytearray(
        data.draw(
            st.sampled_from([shared_writers.avro(view(cost=1.5)), shared_writers.protobuf(conversion(value=2.5))])
        )
    )
    for at in data.draw(st.lists(st.integers(5, len(value) - 1), max_size=4)):
        value[at] = data.draw(st.integers(0, 255))
    begin, cut = 5, data.draw(st.integers(5, len(value)))
    inserted = data.draw(st.binary(max_size=8))
    judge(formats, bytes(value[:cut]) + inserted + bytes(value[cut:]))
    judge(formats, bytes(value[:cut]))
    judge(formats, bytes(value[:begin]) + data.draw(st.binary(max_size=64)))


@pytest.mark.parametrize("extra", [b"\0", b"ab"])
def test_bytes_behind_an_avro_record_are_not_ignored(
    shared: Held, shared_writers: Writers, formats_of: Made, extra: bytes
) -> None:
    refused = refusal(formats_of(shared), shared_writers.avro(view()) + extra)
    assert f"{len(extra)} bytes are left" in refused.detail


# --- The registry


def test_a_schema_is_asked_for_once(held: Held, writers: Writers, formats_of: Made) -> None:
    formats = formats_of(held)
    values = [writers.avro(view()), writers.protobuf(view())]
    held.asked.clear()
    for _ in range(3):
        assert all(isinstance(judge(formats, value), Accepted) for value in values)
    assert held.asked == ["/schemas/ids/1", "/schemas/ids/2", "/schemas/ids/2?format=serialized"]


def test_an_unknown_schema_is_asked_for_twice_and_again_with_the_next_batch(
    held: Held, writers: Writers, formats_of: Made
) -> None:
    formats = formats_of(held)
    stray = framed(41, b"x")
    refused = refusal(formats, stray)
    assert (refused.reason, refused.detail) == (reasons.UNKNOWN_SCHEMA, "schema 41 is not in the schema registry")
    assert held.asked == ["/schemas/ids/41"] * 2
    value = writers.avro(view())
    held.schemas[41] = held.schemas[1]
    assert isinstance(judge(formats, framed(41, value[5:])), Accepted)


@pytest.mark.parametrize("number", [0, -1, -(2**31)])
def test_what_can_be_no_id_is_not_asked_for(held: Held, formats_of: Made, number: int) -> None:
    assert refusal(formats_of(held), framed(number, b"x")).reason == reasons.UNKNOWN_SCHEMA
    assert held.asked == []


def test_a_replica_that_lags_refuses_nothing(held: Held, writers: Writers, formats_of: Made) -> None:
    value = writers.avro(view())
    held.lags.add(1)
    assert isinstance(judge(formats_of(held), value), Accepted)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, '{"error_code": 50001, "message": "store"}'), (503, "<html>"), (401, "{}"), (403, '{"error_code": 40301}'),
        (404, "<html>no such path</html>"), (404, '{"error_code": 404, "message": "HTTP 404 Not Found"}'),
        (200, "<html>a login page</html>"), (200, "{}"), (200, "[]"), (200, ""), (200, '{"schema": 5}'), (429, "{}"),
    ],
)  # fmt: skip
def test_a_registry_in_trouble_stops_and_refuses_nothing(
    held: Held, writers: Writers, formats_of: Made, status: int, body: str
) -> None:
    value = writers.avro(view())
    formats = formats_of(held)
    held.broken = status, body
    with pytest.raises(RegistryUnavailable, match=held.url):
        judge(formats, value)
    with pytest.raises(RegistryUnavailable):
        formats.probe()
    held.broken = None
    formats.probe()
    assert isinstance(judge(formats, value), Accepted)
    held.broken = status, body
    assert isinstance(judge(formats, value), Accepted), "what is known needs no registry"


def test_a_registry_that_is_gone(writers: Writers, asking: Callable[..., Registry]) -> None:
    formats = Formats(ALL, asking("http://127.0.0.1:9", 2.0))
    with pytest.raises(RegistryUnavailable, match=r"127\.0\.0\.1:9 does not tell its schemas: ConnectError"):
        judge(formats, writers.avro(view()))
    assert isinstance(judge(formats, json.dumps(view()).encode()), Accepted), "JSON needs none"


def test_a_flood_of_ids_takes_a_bounded_time_and_gets_on(
    held: Held, formats_of: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "STRETCH", 10)
    monkeypatch.setattr(registry_module, "MOST_S", 0.1)
    formats = formats_of(held)
    flood = [framed(number, b"x") for number in range(1, 101)]
    columns = flood, [None] * len(flood), [NOW_MS] * len(flood)
    refused: list[Any] = []
    stops = 0
    while not refused:
        try:
            refused = formats.open_all(*columns)
        except RegistryUnavailable:
            stops += 1
    assert 0 < stops < 20
    assert {body.reason for body in refused} == {reasons.UNKNOWN_SCHEMA}
    assert sorted(held.asked) == sorted(f"/schemas/ids/{number}" for number in range(1, 101) for _ in range(2))


def test_so_many_schemas_are_kept(held: Held, asking: Callable[..., Registry], monkeypatch: pytest.MonkeyPatch) -> None:
    found = asking(held.url)
    ids = [held.add("AVRO", AVSC.replace("An ad event", f"An ad event {number}")) for number in range(5)]
    monkeypatch.setattr(registry_module, "MAX_SCHEMAS", 3)
    assert MAX_SCHEMAS == 1_000
    for number in ids:
        assert found.find([number])[number] is not None
    assert len(found._schemas) == 3
    assert all(schema is not None for schema in found.find(ids).values()), "a batch has all that it needs"
    found.find(ids[:1])
    assert len(found._schemas) <= 5


# --- Settings


def test_formats_without_what_they_need_are_refused() -> None:
    assert open_formats({}, {}, 1.0) is None
    assert open_formats({"cloudevents": 0}, {}, 1.0) is not None
    with pytest.raises(RegistryRefused, match="set ONECOUNT_SCHEMA_REGISTRY"):
        open_formats({"avro": 0}, {}, 1.0)
    with pytest.raises(RegistryRefused, match="ONECOUNT_SCHEMA_REGISTRY: Unrecognized properties: user"):
        open_formats({"avro": 0}, {"url": "http://127.0.0.1:9", "user": "x"}, 1.0)


def test_a_password_is_not_told(writers: Writers, asking: Callable[..., Registry]) -> None:
    formats = Formats(ALL, asking("http://user:geheim@127.0.0.1:9", 2.0))
    with pytest.raises(RegistryUnavailable) as told:
        judge(formats, writers.avro(view()))
    assert "geheim" not in str(told.value)

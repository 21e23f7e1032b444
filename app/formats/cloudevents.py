"""CloudEvents 1.0: the event is their `data`, the envelope fills in what it leaves out.

`id` is its event_id, `time` its event_time, the last part of `type` its event_type (com.example.conversion). Of the CloudEvents
specification, its JSON format and its HTTP and Kafka protocol bindings, version 1.0.2.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from app.contract import reasons
from app.contract.events import Rejection, judge_bytes

# A record's headers as Kafka's client gives them: a name may stand twice.
Headers: TypeAlias = Iterable[tuple[str, bytes | None]] | None

ONE: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
CONTENT_TYPE: Final = "content-type"
PREFIX: Final = "ce_"  # of Kafka's headers
HTTP_PREFIX: Final = "ce-"
_ENVELOPED: Final = b"application/cloudevents"
_VERSION: Final = "1.0"


class CloudEvent(msgspec.Struct):
    """An event in an envelope. `data` is the event, whose event_id, event_time and event_type may be left to the envelope."""

    specversion: str
    id: str
    source: str
    type: str
    time: str | None = None
    datacontenttype: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Opened(NamedTuple):
    """An event without its envelope: its bytes, and what the envelope says for fields that it lacks (as JSON)."""

    data: bytes
    fills: Mapping[str, bytes]


class _Named(msgspec.Struct, gc=False):
    """Which of the fields that an envelope can fill in an event names itself."""

    event_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_time: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode: Final = msgspec.json.Decoder(CloudEvent).decode
_decode_named: Final = msgspec.json.Decoder(_Named).decode
_encode: Final = msgspec.json.Encoder().encode


def opened(raw: bytes) -> Opened | Rejection:
    """The event in a structured envelope, which is judged as strictly as the event."""
    envelope = judge_bytes(raw, _decode)
    if isinstance(envelope, Rejection):
        return envelope
    if not isinstance(envelope.data, msgspec.Raw):
        return Rejection(reasons.MISSING_FIELD, "data", "a CloudEvent's data is the event, as a JSON object")
    if not _is_json(envelope.datacontenttype):
        return Rejection(reasons.INVALID_FIELD, "datacontenttype", "application/json")
    return _with_fills(bytes(envelope.data), envelope)


def opened_by(headers: Iterable[tuple[str, str]], body: bytes) -> Opened | Rejection:
    """The event of a binary CloudEvent over HTTP: the body, with the envelope in headers that begin with `ce-`."""
    said = _said((name, unquote_to_bytes(text)) for name, text in headers if name.startswith(HTTP_PREFIX))
    return said if isinstance(said, Rejection) else _opened_by(said, HTTP_PREFIX, body)


def is_of_event(header: str) -> bool:
    """Whether a header of this name may be part of an event."""
    return header == CONTENT_TYPE or header.startswith(PREFIX)


def is_cloud_event(headers: Headers) -> bool:
    """Whether a Kafka record says that it is one: its envelope is in its headers (binary), or its value is one (structured)."""
    return any(
        name == "ce_specversion" or (name == CONTENT_TYPE and (value or b"").lower().startswith(_ENVELOPED))
        for name, value in headers or ()
    )


def opened_record(headers: Headers, value: bytes, is_framed: bool) -> Opened | Rejection:
    """The event of a Kafka record that is a CloudEvent. `is_framed`: the value names a schema of a registry, which tells what
    it is whatever the content type says.
    """
    said = _said((name, text or b"") for name, text in headers or () if is_of_event(name))
    if isinstance(said, Rejection):
        return said
    kind = said.pop(CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if kind == ONE:
        return opened(value)
    if kind.startswith(_ENVELOPED.decode()):
        return Rejection(
            reasons.INVALID_FIELD, CONTENT_TYPE, f"{kind[:64]!r}: of structured CloudEvents {ONE} is taken"
        )
    if not is_framed and not _is_json(kind):
        return Rejection(reasons.INVALID_FIELD, CONTENT_TYPE, f"{kind[:64]!r}: the data is JSON, application/json")
    return _opened_by(said, PREFIX, value)


def _is_json(kind: str | None) -> bool:
    kind = (kind or "application/json").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _said(headers: Iterable[tuple[str, bytes]]) -> dict[str, str] | Rejection:
    """An envelope's headers, each of which stands once."""
    said: dict[str, str] = {}
    for name, text in headers:
        if name in said:
            return Rejection(reasons.DUPLICATE_KEY, name, "the header stands twice, so which one is meant is unknown")
        try:
            said[name] = text.decode()
        except UnicodeDecodeError as error:
            return Rejection(reasons.INVALID_UTF8, name, f"byte {error.start}: {error.reason}")
    return said


def _opened_by(said: Mapping[str, str], prefix: str, data: bytes) -> Opened | Rejection:
    """`data` is no attribute of an envelope in headers, whatever a header of that name says."""
    names = [name for name in CloudEvent.__struct_fields__ if name != "data" and prefix + name in said]
    attributes = {name: said[prefix + name] for name in names}
    try:
        return _with_fills(data, msgspec.convert(attributes, CloudEvent))
    except msgspec.ValidationError as error:
        return Rejection(reasons.MISSING_FIELD, "", f"no CloudEvent: {str(error)[:200]}")


def _with_fills(data: bytes, envelope: CloudEvent) -> Opened | Rejection:
    if envelope.specversion != _VERSION:
        return Rejection(reasons.INVALID_FIELD, "specversion", f"CloudEvents {_VERSION} are taken")
    fills = {"event_id": _encode(envelope.id), "event_type": _encode(envelope.type.rpartition(".")[2])}
    if envelope.time is not None:
        fills["event_time"] = _encode(envelope.time)
    return Opened(data, fills)


def filled(event: Opened) -> bytes:
    """The event as one JSON object. What is none stays as it is: the contract refuses it."""
    try:
        named = _decode_named(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return event.data
    fills = {name: value for name, value in event.fills.items() if getattr(named, name) is msgspec.UNSET}
    return with_fields(event.data, fills)


def with_fields(raw: bytes, fields: Mapping[str, bytes]) -> bytes:
    """A JSON object with more fields (as JSON) before its own."""
    if not fields:
        return raw
    begin = raw.index(b"{") + 1
    separator = b"" if raw[begin:].lstrip().startswith(b"}") else b","
    return (
        b"{"
        + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items())
        + separator
        + raw[begin:]
    )

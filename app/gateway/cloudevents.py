"""CloudEvents 1.0 over HTTP (structured, batched, binary): the event is their `data`, the envelope fills in what it leaves out.

`id` is its event_id, `time` its event_time, the last part of `type` its event_type (com.example.conversion). Of the CloudEvents
specification and its HTTP and JSON formats, version 1.0.2.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

import msgspec

from app.contract import reasons
from app.contract.events import Rejection

ONE: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
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
    fills: dict[str, bytes]


_decode: Final = msgspec.json.Decoder(CloudEvent).decode
_encode: Final = msgspec.json.Encoder().encode


def opened(raw: bytes) -> Opened | Rejection:
    """The event in a structured envelope."""
    try:
        envelope = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Rejection(reasons.INVALID_JSON, "", f"no CloudEvent: {str(error)[:200]}")
    if not isinstance(envelope.data, msgspec.Raw):
        return Rejection(reasons.MISSING_FIELD, "data", "a CloudEvent's data is the event, as a JSON object")
    kind = envelope.datacontenttype or "application/json"
    if kind.partition(";")[0].strip().lower() != "application/json":
        return Rejection(reasons.INVALID_FIELD, "datacontenttype", "application/json")
    return _with_fills(bytes(envelope.data), envelope)


def opened_by(headers: Mapping[str, str], body: bytes) -> Opened | Rejection:
    """The event of a binary CloudEvent: the body, with the envelope in headers that begin with `ce-`."""
    names = CloudEvent.__struct_fields__
    said = {name: unquote(headers[f"ce-{name}"]) for name in names if f"ce-{name}" in headers}
    try:
        return _with_fills(body, msgspec.convert(said, CloudEvent))
    except msgspec.ValidationError as error:
        return Rejection(reasons.MISSING_FIELD, "", f"no CloudEvent: {str(error)[:200]}")


def _with_fills(data: bytes, envelope: CloudEvent) -> Opened | Rejection:
    if envelope.specversion != _VERSION:
        return Rejection(reasons.INVALID_FIELD, "specversion", f"CloudEvents {_VERSION} are taken")
    fills = {"event_id": _encode(envelope.id), "event_type": _encode(envelope.type.rpartition(".")[2])}
    if envelope.time is not None:
        fills["event_time"] = _encode(envelope.time)
    return Opened(data, fills)

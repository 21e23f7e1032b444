"""The contract as documents: JSON Schema per kind of record, and AsyncAPI 3 over the topics.

`python -m app.contract.document docs/contract` writes them; a test compares what is committed with the code.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from app.contract.events import EVENT_TYPES, REQUIRED, Event
from app.contract.reasons import ALL_REASONS
from app.contract.rows import STATUSES, AttributedRow, CountRow, DeadLetter

_TOPICS = {
    "event": (
        "ads.events",
        "receive",
        Event,
        "Raw events from ad platforms, sites and servers. Kafka key: user_id.",
        "user_id",
    ),
    "attributed": (
        "conversions.attributed",
        "send",
        AttributedRow,
        "Upserts, a row a conversion and platform; a null value deletes. Read committed records only.",
        "[advertiser_id, user_id, platform, conversion_name, event_id]",
    ),
    "count": (
        "conversions.counts",
        "send",
        CountRow,
        "Upserts, absolute counts of a window and its dimensions. Read committed records only; the last revision holds.",
        "[window_start, platform, advertiser_id, ...dimensions, conversion_name, currency]",
    ),
    "dead_letter": (
        "ads.events.dlq",
        "send",
        DeadLetter,
        "Refused events with their reason.",
        "the refused record's key",
    ),
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one kind of record."""
    struct = _TOPICS[name][2]
    (found,), definitions = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    body = definitions.pop(found["$ref"].rsplit("/", 1)[1])
    if struct is Event:
        body["properties"]["event_type"]["enum"] = list(EVENT_TYPES)
        body["properties"]["adjustment"] = {"enum": ["retract", "restate", None], "default": None}
        body["allOf"] = [
            {"if": {"properties": {"event_type": {"const": kind}}}, "then": {"required": list(fields)}}
            for kind, fields in REQUIRED.items()
        ]
    if struct is AttributedRow:
        body["properties"]["status"]["enum"] = list(STATUSES)
    if struct is DeadLetter:
        body["properties"]["reason"]["enum"] = list(ALL_REASONS)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **body,
        **({"$defs": definitions} if definitions else {}),
    }


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document of the topics that others write or read."""
    channels, operations, messages = {}, {}, {}
    for name, (topic, action, _, description, key) in _TOPICS.items():
        channels[name] = {
            "address": topic,
            "description": description,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        }
        operations[f"{action}_{name}"] = {"action": action, "channel": {"$ref": f"#/channels/{name}"}}
        messages[name] = {
            "contentType": "application/json",
            "payload": {"$ref": f"./{name}.schema.json"},
            "bindings": {"kafka": {"key": {"type": "string", "description": key}}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "onecount", "version": "0.1.0", "description": "Ad events in, exact conversion counts out."},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def documents() -> dict[str, str]:
    """Every document's text by its file name."""
    found = {f"{name}.schema.json": json.dumps(schema_of(name), indent=2) + "\n" for name in _TOPICS}
    return found | {"asyncapi.yaml": yaml.safe_dump(asyncapi(), sort_keys=False, width=120)}


def write_documents(folder: Path) -> None:
    """Writes every document into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write_documents(Path(sys.argv[1]))

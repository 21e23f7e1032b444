"""The contract as documents: JSON Schema per kind of record, AsyncAPI 3 over the topics, and the tables of contract.md.

`python -m app.contract.document docs` writes them; a test compares what is committed with the code.
"""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import yaml

from app.contract.events import EVENT_TYPES, REQUIRED, USERLESS, Event
from app.contract.journeys import JourneyRow, ModelRow
from app.contract.leads import STATES, FollowUpEvent, LeadRow, OverdueRow
from app.contract.meanings import MEANINGS
from app.contract.money import LEVELS, OrderEvent, ReconciliationRow, ReportEvent, ReturnRow, SpendEvent
from app.contract.reasons import ALL_REASONS
from app.contract.rollups import PERIODS, RollupRow
from app.contract.rows import STATUSES, AttributedRow, CountRow, DeadLetter
from app.contract.topics import DAY_MS, TopicSpec, desk_specs, topic_specs

PAGE: Final = "contract.md"
_PARTITIONS: Final = 4  # the default of ONECOUNT_PARTITIONS
_REBUILD_MS: Final = 97 * DAY_MS  # of deploy/policy.yaml: order_window and correction_horizon
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-07"  # the latest that AsyncAPI 3.0 names
_TOPICS: Final = {
    spec.name: spec
    for spec in topic_specs(
        ("ads.events",),
        "ads.events.dlq",
        "ads.events.dlq.handled",
        "onecount.rekeyed",
        "onecount.deltas",
        "onecount.policy",
        "conversions.attributed",
        "conversions.counts",
        ("conversions.journeys", "conversions.models"),
        _REBUILD_MS,
    )
    + desk_specs(
        ("leads.followups",),
        (
            "leads",
            "leads.overdue",
            "leads.followups.dlq",
            "conversions.rollups",
            "revenue.orders",
            "platforms.reported",
            "spend",
            "conversions.reconciliation",
            "conversions.return",
            "desk.dlq",
        ),
    )
}


class Kind(NamedTuple):
    """One kind of record that others write or read: its topic, and what its Kafka key is (as a JSON Schema)."""

    topic: str
    action: str
    struct: type[msgspec.Struct]
    description: str
    key: dict[str, Any]


def _key_array(names: str, example: list[Any]) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"type": ["string", "integer", "null"]},
        "description": f"JSON: [{names}]",
        "examples": [example],
    }


_KINDS: Final = {
    "event": Kind(
        "ads.events",
        "receive",
        Event,
        "Raw events from ad platforms, sites and servers. Partitioned by murmur2 of the key, or as the policy's `partitioner` says.",
        {"type": "string", "description": "user_id"},
    ),
    "attributed": Kind(
        "conversions.attributed",
        "send",
        AttributedRow,
        "Upserts, a row a conversion and platform; a null value deletes. All rows of a user lie on one partition. Read committed records only.",
        _key_array(
            "advertiser_id, user_id, platform, conversion_name, event_id", ["shop", "u1", "meta", "purchase", "c1"]
        ),
    ),
    "count": Kind(
        "conversions.counts",
        "send",
        CountRow,
        "Upserts, absolute counts of a window and its dimensions; never deleted. Read committed records only; the last record of a key holds.",
        _key_array(
            "window_start, platform, advertiser_id, ...dimensions, conversion_name, currency",
            [1764000360000, "meta", "shop", "spring", "purchase", "EUR"],
        ),
    ),
    "journey": Kind(
        "conversions.journeys",
        "send",
        JourneyRow,
        "Upserts, a row a real conversion over all platforms; a null value deletes. Where the policy has `journeys`. Read committed records only.",
        _key_array("advertiser_id, user_id, conversion_name, event_id", ["shop", "u1", "purchase", "c1"]),
    ),
    "model": Kind(
        "conversions.models",
        "send",
        ModelRow,
        "Upserts, a row a counted conversion and model; a null value deletes. Where the policy has `journeys`. Read committed records only.",
        _key_array(
            "advertiser_id, user_id, conversion_name, event_id, model", ["shop", "u1", "purchase", "c1", "linear"]
        ),
    ),
    "rollup": Kind(
        "conversions.rollups",
        "send",
        RollupRow,
        "Upserts, absolute counts of an hour, a day or a week and its dimensions; never deleted. Written by `onecount desk`. Read committed records only.",
        _key_array(
            "period, period_start, platform, advertiser_id, ...dimensions, conversion_name, currency",
            ["day", 1763938800000, "meta", "shop", "spring", "purchase", "EUR"],
        ),
    ),
    "lead": Kind(
        "leads",
        "send",
        LeadRow,
        "Upserts, a row a lead; a null value deletes. Written by `onecount desk`. Read committed records only.",
        _key_array("advertiser_id, user_id, conversion_name", ["shop", "u1", "demo_booked"]),
    ),
    "overdue_lead": Kind(
        "leads.overdue",
        "send",
        OverdueRow,
        "Upserts, a row a lead that waits for longer than the policy allows; a null value deletes. Written by `onecount desk`. Read committed records only.",
        _key_array("advertiser_id, user_id, conversion_name", ["shop", "u1", "demo_booked"]),
    ),
    "follow_up": Kind(
        "leads.followups",
        "receive",
        FollowUpEvent,
        "What a CRM or a marketing automation did about leads; a log. Any key: user_id spreads them well.",
        {"type": "string", "description": "any"},
    ),
    "refused_follow_up": Kind(
        "leads.followups.dlq",
        "send",
        DeadLetter,
        "Refused follow-ups with their reason. Upserts, so that a desk that begins anew writes none twice. Read committed records only.",
        _key_array("topic, partition, offset", ["leads.followups", 0, 17]),
    ),
    "order": Kind(
        "revenue.orders",
        "receive",
        OrderEvent,
        "Upserts, a record an order, as the shop's books have it now; a null value deletes. The key must be just this one.",
        _key_array("advertiser_id, order_id", ["shop", "o-1"]),
    ),
    "report": Kind(
        "platforms.reported",
        "receive",
        ReportEvent,
        "Upserts, what a platform claims for a campaign and day; a null value deletes. The key must be just this one.",
        _key_array(
            "advertiser_id, platform, campaign_id, conversion_name, day", ["shop", "meta", "spring", None, "2026-11-26"]
        ),
    ),
    "spend": Kind(
        "spend",
        "receive",
        SpendEvent,
        "Upserts, what a campaign cost on a day; a null value deletes. The key must be just this one.",
        _key_array("advertiser_id, platform, campaign_id, source, day", ["shop", "meta", "spring", None, "2026-11-26"]),
    ),
    "reconciliation": Kind(
        "conversions.reconciliation",
        "send",
        ReconciliationRow,
        "Upserts, a row a period, platform and campaign; a null value deletes. Written by `onecount desk`. Read committed records only.",
        _key_array("advertiser_id, period, platform, campaign_id", ["shop", "2026-W47", "meta", "spring"]),
    ),
    "return": Kind(
        "conversions.return",
        "send",
        ReturnRow,
        "Upserts, a row a period and value of a level; a null value deletes. Written by `onecount desk`. Read committed records only.",
        _key_array("advertiser_id, period, level, platform, value", ["shop", "2026-W47", "campaign", "meta", "spring"]),
    ),
    "refused_money": Kind(
        "desk.dlq",
        "send",
        DeadLetter,
        "Refused orders, claims and spend with their reason. Upserts, so that a desk that begins anew writes none twice. Read committed records only.",
        _key_array("topic, partition, offset", ["revenue.orders", 0, 17]),
    ),
    "dead_letter": Kind(
        "ads.events.dlq",
        "send",
        DeadLetter,
        "Refused events with their reason; a log, no upserts. Read committed records only.",
        {"type": "string", "description": "the refused record's key, its first 1,024 bytes"},
    ),
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one kind of record."""
    struct = _KINDS[name].struct
    (found,), definitions = msgspec.json.schema_components([struct], ref_template="#/definitions/{name}")
    body = definitions.pop(found["$ref"].rsplit("/", 1)[1])
    body["description"] = inspect.getdoc(struct)
    bodies = {struct: body} | {part: definitions[part.__name__] for part in MEANINGS if part.__name__ in definitions}
    for part, each in bodies.items():
        for field, meaning in MEANINGS.get(part, {}).items():
            each["properties"][field]["description"] = meaning
    if struct is Event:
        body["properties"]["event_type"]["enum"] = list(EVENT_TYPES)
        body["properties"]["adjustment"] = {"enum": ["retract", "restate", None], "default": None}
        body["allOf"] = [
            {"if": {"properties": {"event_type": {"const": kind}}}, "then": {"required": list(fields)}}
            for kind, fields in REQUIRED.items()
            if fields
        ]
        body["required"].remove("user_id")
        body["properties"]["user_id"]["description"] = (
            "May be missing from a conversion or an adjustment that names a click_id, where the policy has click_ids."
        )
        body["properties"]["conversion_name"]["description"] = (
            "The action. An adjustment that names one concerns orders of that action alone, else those of any."
        )
        body["properties"]["currency"]["description"] = (
            "ISO 4217, of `value`. A restatement that names one is refused for an order in another one."
        )
        found_by_click = {"required": ["click_id"], "properties": {"event_type": {"enum": list(USERLESS)}}}
        body["allOf"].append({"anyOf": [{"required": ["user_id"]}, found_by_click]})
    if struct is AttributedRow:
        body["properties"]["status"]["enum"] = list(STATUSES)
    if struct is LeadRow:
        body["properties"]["state"]["enum"] = list(STATES)
    if struct is RollupRow:
        body["properties"]["period"]["enum"] = list(PERIODS)
    if struct is ReturnRow:
        body["properties"]["level"]["enum"] = list(LEVELS)
    if struct is DeadLetter:
        body["properties"]["reason"]["enum"] = list(ALL_REASONS)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **body,
        **({"definitions": definitions} if definitions else {}),
    }


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document of the topics that others write or read, as `topics create` makes them by default."""
    channels, operations, messages = {}, {}, {}
    for name, kind in _KINDS.items():
        channels[name] = {
            "address": kind.topic,
            "description": kind.description,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "bindings": {"kafka": _channel_binding(_TOPICS[kind.topic])},
        }
        operations[f"{kind.action}_{name}"] = {
            "action": kind.action,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }
        messages[name] = {
            "contentType": "application/json",
            "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": {"$ref": f"./{name}.schema.json"}},
            "bindings": {"kafka": {"key": kind.key, "bindingVersion": "0.5.0"}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "onecount", "version": "0.1.0", "description": "Ad events in, exact conversion counts out."},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def _channel_binding(spec: TopicSpec) -> dict[str, Any]:
    config: dict[str, Any] = {"cleanup.policy": spec.config["cleanup.policy"].split(",")}
    for name, value in spec.config.items():
        if name != "cleanup.policy":
            config[name] = int(value) if value.lstrip("-").isdigit() else value
    return {
        "topic": spec.name,
        "partitions": spec.partitions or _PARTITIONS,
        "topicConfiguration": config,
        "bindingVersion": "0.5.0",
    }


# --- The tables of contract.md


def field_table(struct: type[msgspec.Struct]) -> str:
    """Every field of a row with its JSON type and meaning, as a Markdown table."""
    (found,), definitions = msgspec.json.schema_components([struct], ref_template="{name}")
    properties = definitions[found["$ref"]]["properties"]
    lines = ["| field | type | meaning |", "| --- | --- | --- |"]
    for field, meaning in MEANINGS[struct].items():
        lines.append(f"| `{field}` | {_type_of(properties[field])} | {meaning} |")
    return "\n".join(lines)


def _type_of(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type_of(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return schema["$ref"]
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"array of {_type_of(schema['items'])}"
    if schema["type"] == "object":
        return f"object of {_type_of(schema['additionalProperties'])}"
    return schema["type"]


def topic_table() -> str:
    """Key, partitions, cleanup and retention of the topics that others read, as a Markdown table."""
    lines = ["| topic | key | partitions | cleanup | kept for |", "| --- | --- | --- | --- | --- |"]
    for kind in _KINDS.values():
        spec, key = _TOPICS[kind.topic], kind.key["description"].removeprefix("JSON: ")
        policy = spec.config["cleanup.policy"]
        kept_ms = int(spec.config.get("retention.ms") or spec.config["delete.retention.ms"])
        days = f"{kept_ms // DAY_MS} days" if kept_ms >= 0 else "ever"
        kept = days if policy == "delete" else f"ever, a key's last record; deletions {days}"
        lines.append(f"| `{spec.name}` | {key} | {spec.partitions or '`ONECOUNT_PARTITIONS`'} | {policy} | {kept} |")
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """contract.md with its tables made anew: each stands between `<!-- table: NAME -->` and `<!-- end -->`."""
    tables = {"topics": topic_table()} | {struct.__name__: field_table(struct) for struct in MEANINGS}

    def table(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{tables[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def documents() -> dict[str, str]:
    """The text of every document that is generated as a whole, by its file name."""
    found = {f"{name}.schema.json": json.dumps(schema_of(name), indent=2) + "\n" for name in _KINDS}
    return found | {"asyncapi.yaml": yaml.safe_dump(asyncapi(), sort_keys=False, width=120)}


def write_documents(folder: Path) -> None:
    """Writes every document below `folder`, and the tables of its page."""
    target = folder / "contract"
    target.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (target / name).write_text(text)
    page = folder / PAGE
    page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    write_documents(Path(sys.argv[1]))

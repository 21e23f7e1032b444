"""The part of the chart's values.schema.json that says what a setting may be, made from app/settings.py:
`python -m tests.chart.values_schema` writes it.
"""

import json
from pathlib import Path
from typing import Any, Final

from app.settings import Settings

FILE: Final = Path(__file__).resolve().parents[2] / "deploy/helm/onecount/values.schema.json"
# The chart sets these itself, secrets come as files, and in a pod of one process every worker has slot 0: all that are
# pinned would sit on one core of the node.
NOT_IN_VALUES: Final = {"policy", "secrets_dir", "worker_id", "metrics_port", "pin_workers"} | {
    "page_host",
    "page_port",
    "desk_host",
    "desk_port",
    "gateway_host",
    "gateway_port",
    "gateway_share_port",
    "gateway_config",
    "gateway_secret",
    "gateway_user_salt",
    "kafka_password",
    "kafka_key_password",
    "kafka_client_secret",
    "redis_password",
}
# What all pods must agree on; the others a role may have for itself.
SHARED_ONLY: Final = {"bootstrap", "partitions", "replication", "namespace"} | {
    name
    for name in Settings.model_fields
    if name.endswith(("_topic", "_topics", "_group")) and name != "gateway_topic"  # which nobody else asks for
}
_KEPT: Final = ("description", "type", "minimum", "maximum", "pattern")


def settings_definitions() -> dict[str, Any]:
    """`settings` (the shared ones) and `ownSettings` (of one role) as JSON Schemas that know no other names."""
    found = {
        name: _plain(schema)
        for name, schema in Settings.model_json_schema()["properties"].items()
        if name not in NOT_IN_VALUES
    }
    own = {name: schema for name, schema in found.items() if name not in SHARED_ONLY}
    return {
        "settings": {"type": "object", "properties": found, "additionalProperties": False},
        "ownSettings": {"type": "object", "properties": own, "additionalProperties": False},
    }


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """What judges a value, without the defaults, which are the image's."""
    plain = {name: schema[name] for name in _KEPT if name in schema}
    if schema["type"] == "array":
        plain |= {"items": {"type": schema["items"]["type"]}, "minItems": 1}
    if schema["type"] == "object":
        plain["additionalProperties"] = {"type": schema["additionalProperties"]["type"]}
    return plain


if __name__ == "__main__":
    document = json.loads(FILE.read_text())
    document["definitions"] |= settings_definitions()
    FILE.write_text(json.dumps(document, indent=2) + "\n")

"""A report and an export find the clicks whatever format these are written in."""

import msgspec
import pytest

from app.offline import raw as room
from app.offline.raw import raw_touches
from app.policy.load import load_policy
from app.settings import Settings
from tests.formats.registry import Registry, fresh
from tests.formats.written import Headers, Writers, binary
from tests.integration.deployment import POLICY
from tests.memory.log import MemoryMessage
from tests.unit.test_contract import NOW_MS, view

ALL = load_policy(POLICY)[0]
ALL = msgspec.structs.replace(
    ALL, versions=(msgspec.structs.replace(ALL.versions[0], formats=("avro", "cloudevents", "protobuf")),)
)


def click(name: str) -> dict[str, object]:
    return view(event_type="click", event_id=name, click_id=f"G-{name}")


def test_a_click_is_found_in_every_format_and_what_cannot_be_read_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, shared: Registry, shared_writers: Writers
) -> None:
    written: list[tuple[bytes | None, Headers | None]] = [
        (msgspec.json.encode(click("json")), None),
        binary(click("cloud")),
        (shared_writers.avro(click("avro")), None),
        (shared_writers.protobuf(click("proto")), None),
        (b"\x00\x00\x00\xff\xff'click'", None),
        (b'"click"', None),
        (None, None),
    ]
    messages = [
        MemoryMessage(("ads.events", 0), place, b"u1", value, NOW_MS, list(headers or ()))  # type: ignore[arg-type]
        for place, (value, headers) in enumerate(written)
    ]
    monkeypatch.setattr(room, "KafkaClients", lambda _: None)
    monkeypatch.setattr(room, "committed_spans", lambda *_: None)
    monkeypatch.setattr(room, "read_committed", lambda *_: iter(messages))
    settings = Settings(schema_registry={"url": shared.url})
    with fresh(shared.url, settings.request_timeout_ms / 1000):
        found = [touch.click_id for touch in raw_touches(settings, ALL, 0)]
    assert found == ["G-json", "G-cloud", "G-avro", "G-proto"]

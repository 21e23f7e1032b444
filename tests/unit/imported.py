"""What the importer's tests share: a topic in memory, and files as text."""

import csv
import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from app.importer.topic import TopicState
from app.settings import Settings

FOREVER = 9_223_372_036_854_775_807
HOUR_MS = 3_600_000


class FakeKafka:
    """A topic that takes records, until it is told to die at the `dies_at`-th flush."""

    def __init__(self, dies_at: int = 0, **state: object) -> None:
        self.records: list[tuple[bytes, bytes, int]] = []
        self.dies_at = dies_at
        self.flushes = 0
        self.state = TopicState("CreateTime", -1, FOREVER, HOUR_MS, None)
        self.state = TopicState(**(self.state.__dict__ | state))

    def open(self, settings: Settings, partitioner: str, on_failure: Callable) -> "FakeKafka":
        self.on_failure = on_failure
        return self

    def look_up(self, settings: Settings, topic: str) -> TopicState:
        return self.state

    def produce(self, topic, value, key, partition, on_delivery, _, timestamp_ms) -> None:
        assert partition == -1
        self.records.append((key, value, timestamp_ms))

    def poll(self, timeout: float) -> int:
        return 0

    def flush(self, timeout: float) -> int:
        self.flushes += 1
        if self.flushes == self.dies_at:
            self.on_failure(SimpleNamespace(str=lambda: "the broker is gone"), None)
        return 0

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(value) for _, value, _ in self.records]


def table(rows: list[tuple[object, ...]], header: str = "id,user,at") -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header.split(","), *rows])
    return text.getvalue()

"""Numbers that stand in no output row: events produced and counted, from Kafka; repeats and the like, from the workers."""

import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from prometheus_client.parser import text_string_to_metric_families

from app.local.processes import HOST
from app.settings import Settings

DUPLICATES: Final = "duplicates"
LATE: Final = "late"
REKEYED: Final = "rekeyed"
NOISE: Final = "noise"
REPLAYS: Final = "replays"
_SUMMED: Final = {
    "onecount_late_events_total": LATE,
    "onecount_rekeyed_events_total": REKEYED,
    "onecount_noise_conversions_total": NOISE,
}
_SCRAPE_TIMEOUT_S: Final = 1.0
_RATE_OVER_S: Final = 3.0


def read_metrics(text: str) -> tuple[Counter[str], bool]:
    """A worker's /metrics page: its counters, by the names above, and whether it is ready."""
    found: Counter[str] = Counter()
    ready = False
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            number = int(sample.value) if sample.value == sample.value else 0
            if sample.name in _SUMMED:
                found[_SUMMED[sample.name]] += number
            elif sample.name == "onecount_events_total" and sample.labels["outcome"] == "duplicate":
                found[DUPLICATES] += number
            elif sample.name == "onecount_reopenings_total" and sample.labels["cause"] == "replay":
                found[REPLAYS] += number
            elif sample.name == "onecount_ready":
                ready = number > 0
    return found, ready


@dataclass
class Totals:
    """Counters of workers that may die: one that starts anew begins at 0, so what it had counted before is kept."""

    before: Counter[str] = field(default_factory=Counter)
    latest: dict[int, Counter[str]] = field(default_factory=dict)  # by port

    def take(self, port: int, sample: Counter[str]) -> None:
        """Takes a worker's counters in."""
        latest = self.latest.get(port, Counter())
        if any(sample[name] < number for name, number in latest.items()):
            self.before.update(latest)
        self.latest[port] = sample

    def sums(self) -> Counter[str]:
        """What all workers have counted, in all their lives."""
        return sum(self.latest.values(), self.before.copy())


@dataclass
class Figures:
    """The latest numbers. `counted`: events whose outcome is committed, the only kind of counted there is here."""

    produced: int = 0
    counted: int = 0
    per_second: float = 0.0
    workers: Counter[str] = field(default_factory=Counter)
    ready: dict[int, bool] = field(default_factory=dict)  # by port

    @property
    def lag(self) -> int:
        """Events produced whose outcome is not committed yet."""
        return max(self.produced - self.counted, 0)


class Gauge:
    """Asks Kafka and the workers, when told to look."""

    def __init__(self, settings: Settings, ports: Iterable[int]) -> None:
        self._settings = settings
        self._admin = AdminClient(settings.client())
        self._ports = tuple(ports)
        self._totals = Totals()
        self._seen: deque[tuple[float, int]] = deque()
        self.figures = Figures()

    def look(self) -> Figures:
        """The numbers as they are now. What does not answer keeps its last number."""
        figures = self.figures
        try:
            figures.produced, figures.counted = self._offsets()
        except KafkaException:
            return figures
        self.scrape()
        now_s = time.monotonic()
        self._seen.append((now_s, figures.counted))
        while self._seen[-1][0] - self._seen[0][0] > _RATE_OVER_S:
            self._seen.popleft()
        then_s, counted = self._seen[0]
        figures.per_second = (figures.counted - counted) / (now_s - then_s) if now_s > then_s else 0.0
        return figures

    def scrape(self) -> None:
        """Reads every worker's counters, and whether it is ready."""
        for port in self._ports:
            try:
                with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=_SCRAPE_TIMEOUT_S) as answer:
                    sample, self.figures.ready[port] = read_metrics(answer.read().decode())
            except (OSError, urllib.error.URLError):  # it is being started, or was killed
                self.figures.ready[port] = False
                continue
            self._totals.take(port, sample)
        self.figures.workers = self._totals.sums()

    def _offsets(self) -> tuple[int, int]:
        """Where the raw topics end, and how far the counters' group has committed: both exact, since no transaction
        writes to a raw topic.
        """
        timeout_s = self._settings.request_timeout_ms / 1000
        places = [
            TopicPartition(topic, partition)
            for topic in self._settings.events_topics
            for partition in range(self._settings.partitions)
        ]
        ends = self._admin.list_offsets(dict.fromkeys(places, OffsetSpec.latest()), request_timeout=timeout_s)
        group = self._settings.counter_group
        asked = self._admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, places)], request_timeout=timeout_s
        )
        committed = asked[group].result(timeout_s).topic_partitions
        produced = sum(future.result(timeout_s).offset for future in ends.values())
        return produced, sum(max(place.offset, 0) for place in committed)

"""What the gateway tells Prometheus of itself; docs/gateway.md lists it."""

from collections.abc import Iterable
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from app.contract.reasons import EVENT_REASONS
from app.gateway.admission import GATEWAY_REASONS

OUTCOMES: Final = ("accepted", "rejected", "unavailable")
PIXEL_OUTCOMES: Final = ("taken", "rejected", "limited", "lost")
BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Waits(Protocol):
    waiting: int
    lost: int


class _Fails(Protocol):
    failures: int


class Metrics:
    """One instance a process."""

    def __init__(self, doors: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._events = Counter(
            "onecount_gateway_events", "Events by door and outcome.", ("door", "outcome"), registry=self.registry
        )
        self._rejected = Counter(
            "onecount_gateway_rejected_events", "Events refused, by reason.", ("reason",), registry=self.registry
        )
        self._pixels = Counter("onecount_gateway_pixels", "Pixels by outcome.", ("outcome",), registry=self.registry)
        self._refused = Counter(
            "onecount_gateway_refused_requests",
            "Requests refused as a whole, by status.",
            ("status",),
            registry=self.registry,
        )
        self._acknowledged = Histogram(
            "onecount_gateway_kafka_seconds",
            "How long Kafka took for a request.",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._lines = Counter(
            "onecount_gateway_kafka_log_lines", "Lines of librdkafka.", ("client", "level"), registry=self.registry
        )
        for door in doors:
            for outcome in OUTCOMES:
                self._events.labels(door, outcome)
        for reason in (*EVENT_REASONS, *GATEWAY_REASONS):
            self._rejected.labels(reason)
        self._by_outcome = {outcome: self._pixels.labels(outcome) for outcome in PIXEL_OUTCOMES}

    def events(self, door: str, *, accepted: int, unavailable: int, refused: Iterable[str]) -> None:
        """What became of a request's events."""
        reasons = list(refused)
        for outcome, count in zip(OUTCOMES, (accepted, len(reasons), unavailable), strict=True):
            self._events.labels(door, outcome).inc(count)
        for reason in reasons:
            self._rejected.labels(reason).inc()

    def pixel(self, outcome: str, reason: str | None = None) -> None:
        """What became of a pixel."""
        self._by_outcome[outcome].inc()
        if reason is not None:
            self._rejected.labels(reason).inc()

    def refused(self, status: int) -> None:
        """A request was refused as a whole."""
        self._refused.labels(str(status)).inc()

    def acknowledged(self, seconds: float) -> None:
        """Kafka acknowledged a request's events."""
        self._acknowledged.observe(seconds)

    def kafka_line(self, client: str, level: str) -> None:
        """librdkafka logged a line."""
        self._lines.labels(client, level).inc()

    def watch(self, broker: _Waits, pixels: _Waits, limiter: _Fails) -> None:
        """Shows what these hold whenever it is asked for."""
        waiting = Gauge(
            "onecount_gateway_waiting_events", "Events that wait for Kafka.", ("way",), registry=self.registry
        )
        waiting.labels("answered").set_function(lambda: broker.waiting)
        waiting.labels("pixels").set_function(lambda: pixels.waiting)
        lost = Gauge("onecount_gateway_lost_pixels", "Pixels that Kafka never took.", registry=self.registry)
        lost.set_function(lambda: pixels.lost)
        failures = Gauge("onecount_gateway_limiter_failures", "Looks at Redis that failed.", registry=self.registry)
        failures.set_function(lambda: limiter.failures)

    def serve(self, port: int) -> int:
        """Answers /metrics on the port (0: any free one), which it returns."""
        server, _ = start_http_server(port, registry=self.registry)
        return server.server_port

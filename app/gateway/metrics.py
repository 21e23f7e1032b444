"""What the gateway tells Prometheus of itself, by the catalogue."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from threading import Lock
from typing import Final, Protocol

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from app import __version__
from app.contract.reasons import EVENT_REASONS, SCHEMA_REASONS
from app.gateway.admission import GATEWAY_REASONS
from app.observe.catalogue import CATALOGUE, KAFKA_CLIENTS, LEVELS
from app.observe.dead_letters import DeadLetterRatio
from app.observe.metric import GATEWAYS, Metric
from app.observe.metrics import family

OUTCOMES: Final = ("accepted", "rejected", "unavailable")
PIXEL_OUTCOMES: Final = ("taken", "rejected", "limited", "lost")
STATUSES: Final = ("400", "401", "403", "408", "413", "415", "429", "503")
_REASONS: Final = (*(reason for reason in EVENT_REASONS if reason not in SCHEMA_REASONS), *GATEWAY_REASONS)
# What others count anyway: it is asked for when it is shown.
_TOLD: Final = ("onecount_gateway_lost_pixels_total", "onecount_gateway_limiter_failures_total")


class _Waits(Protocol):
    waiting: int
    lost: int


class _Fails(Protocol):
    failures: int


class Metrics:
    """One instance a process. `limit`: the share of refused events above which there is an alarm."""

    def __init__(self, doors: Iterable[str], limit: float, worker: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        mine = {metric.name: metric for metric in CATALOGUE if GATEWAYS[0] in metric.roles}
        self._told = _Told([mine.pop(name) for name in _TOLD])
        self.registry.register(self._told)
        self._families = {name: family(metric, self.registry) for name, metric in mine.items()}
        self._refused, self._lock = DeadLetterRatio(limit), Lock()  # it is shown by another thread
        for name, values in {
            "onecount_gateway_events_total": (tuple(doors), OUTCOMES),
            "onecount_gateway_rejected_events_total": (_REASONS,),
            "onecount_gateway_refused_requests_total": (STATUSES,),
            "onecount_gateway_waiting_events": (("answered", "pixels"),),
            "onecount_kafka_log_lines_total": (KAFKA_CLIENTS, LEVELS),
        }.items():
            for labels in product(*values):
                self._families[name].labels(*labels)
        pixels = self._families["onecount_gateway_pixels_total"]
        self._by_outcome = {outcome: pixels.labels(outcome) for outcome in PIXEL_OUTCOMES}
        self._families["onecount_worker_info"].labels(GATEWAYS[0], worker, __version__).set(1)
        self._families["onecount_dead_letter_ratio_limit"].set(limit)
        self._families["onecount_dead_letter_ratio"].set_function(self._ratio)

    def events(self, door: str, *, accepted: int, unavailable: int, refused: Iterable[str]) -> None:
        """What became of a request's events."""
        reasons = list(refused)
        counted = self._families["onecount_gateway_events_total"]
        for outcome, count in zip(OUTCOMES, (accepted, len(reasons), unavailable), strict=True):
            counted.labels(door, outcome).inc(count)
        self._judged(accepted + unavailable + len(reasons), reasons)

    def pixel(self, outcome: str, reason: str | None = None) -> None:
        """What became of a pixel."""
        self._by_outcome[outcome].inc()
        self._judged(1, () if reason is None else (reason,))

    def _judged(self, judged: int, reasons: Iterable[str]) -> None:
        refused = 0
        for reason in reasons:
            self._families["onecount_gateway_rejected_events_total"].labels(reason).inc()
            refused += 1
        with self._lock:
            self._refused.add(judged, refused)

    def _ratio(self) -> float:
        with self._lock:
            return self._refused.ratio()

    def refused(self, status: int) -> None:
        """A request was refused as a whole."""
        self._families["onecount_gateway_refused_requests_total"].labels(str(status)).inc()

    def acknowledged(self, seconds: float) -> None:
        """Kafka acknowledged a request's events."""
        self._families["onecount_gateway_kafka_seconds"].observe(np.array([seconds]))

    def kafka_line(self, client: str, level: str) -> None:
        """librdkafka logged a line."""
        self._families["onecount_kafka_log_lines_total"].labels(client, level).inc()

    def policy(self, version: int) -> None:
        """The newest version of the policy that is known."""
        self._families["onecount_policy_version"].set(version)

    def watch(self, broker: _Waits, pixels: _Waits, limiter: _Fails, is_fit: Callable[[], bool]) -> None:
        """Shows what these hold whenever it is asked for. `is_fit`: whether events would be taken now."""
        waiting = self._families["onecount_gateway_waiting_events"]
        waiting.labels("answered").set_function(lambda: broker.waiting)
        waiting.labels("pixels").set_function(lambda: pixels.waiting)
        self._families["onecount_ready"].set_function(lambda: float(is_fit()))
        self._told.ask = (lambda: pixels.lost, lambda: limiter.failures)

    def serve(self, port: int) -> int:
        """Answers /metrics on the port (0: any free one), which it returns."""
        server, _ = start_http_server(port, registry=self.registry)
        return server.server_port


class _Told(Collector):
    """Counters that are somebody else's attributes; 0 until it is known whose."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics
        self.ask: tuple[Callable[[], int], ...] = tuple(int for _ in metrics)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What prometheus-client asks for."""
        for metric, ask in zip(self._metrics, self.ask, strict=True):
            yield CounterMetricFamily(metric.name, metric.help, value=ask())

"""The observer of a worker: metrics by the catalogue, health, and quiet logs."""

import time
from collections.abc import Iterable, Mapping
from itertools import product
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import orjson
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)

from app import __version__
from app.contract.events import BROWSER, EVENT_TYPES, SERVER, TOUCH_TYPES
from app.contract.leads import COOL, HOT, STATES
from app.contract.reasons import ALL_REASONS
from app.contract.rows import STATUSES, UNATTRIBUTED
from app.observe.catalogue import (
    CATALOGUE,
    KAFKA_CLIENTS,
    LEVELS,
    MODES,
    RESULTS,
    SESSION_CAUSES,
    STEPS,
    TABLES,
    Metric,
)
from app.observe.dead_letters import DeadLetterRatio
from app.observe.latencies import Latencies

_KINDS: Final[dict[str, Any]] = {"counter": Counter, "gauge": Gauge}
LIVE_S: Final = 60.0  # without a beat for this long the loop hangs; see `live_s`
_REQUEST_S: Final = 10.0  # how long a request to the worker's port may take to arrive
# What there is to be shown as 0 from the start; platforms and methods come with the policy.
_ZEROS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "onecount_rejected_events_total": (ALL_REASONS,),
    "onecount_transactions_total": (RESULTS,),
    "onecount_session_ends_total": (SESSION_CAUSES,),
    "onecount_reopenings_total": (MODES,),
    "onecount_owned_partitions": (MODES,),
    "onecount_batch_seconds": (STEPS,),
    "onecount_kafka_log_lines_total": (KAFKA_CLIENTS, LEVELS),
    "onecount_merged_reports_total": ((BROWSER, SERVER),),
}
_NAMED: Final = {  # what a batch counts, by the first part of its key; the rest are the labels
    "rejected": "onecount_rejected_events_total",
    "conversion": "onecount_conversions_total",
    "noise": "onecount_noise_conversions_total",
    "merged": "onecount_merged_reports_total",
    "forgotten": "onecount_forgotten_events_total",
    "late": "onecount_late_events_total",
    "corrected": "onecount_corrections_total",
    "rekeyed": "onecount_rekeyed_events_total",
    "userless": "onecount_userless_events_total",
    "matched": "onecount_matched_events_total",
    "rows": "onecount_count_rows_total",
}
_JUDGED: Final = ("accepted", "duplicate", "matched", "rejected")
_log = structlog.get_logger()
disable_created_metrics()  # a second series for each counter, which nothing asks for


def live_s(request_timeout_ms: int) -> float:
    """How long the loop may be silent before it counts as hanging: longer than any chain of unanswered calls without a beat
    between them, so that an outage of Kafka or Redis makes no worker dead.
    """
    return max(LIVE_S, 6 * request_timeout_ms / 1000)


class Metrics:
    """What a worker's loop tells of itself. One instance a process."""

    def __init__(
        self, role: str, worker: str, dead_letter_ratio_limit: float = 1.0, silent_s_max: float = LIVE_S
    ) -> None:
        self.registry = CollectorRegistry()
        self.role, self.worker = role, worker
        self.families = {metric.name: family(metric, self.registry) for metric in CATALOGUE if role in metric.roles}
        ProcessCollector(registry=self.registry)
        for name, values in _ZEROS.items():
            for labels in product(*values) if name in self.families else ():
                self.families[name].labels(*labels)
        for table in TABLES.get(role, ()):
            self.families["onecount_state_records"].labels(table)
        self.families["onecount_worker_info"].labels(role, worker, __version__).set(1)
        self.dead_letters = DeadLetterRatio(dead_letter_ratio_limit)
        self._set("onecount_dead_letter_ratio_limit", dead_letter_ratio_limit)
        self.silent_s_max = silent_s_max
        self.beat_at = time.monotonic()
        self.looked_at = 0.0
        self.open: dict[int, str] = {}
        self.policy_version = 0
        self.actions: set[str] = set()  # whose leads may be overdue
        self.stream_ms = 0
        self.waiting_since_ms: int | None = None
        # asked for when they are shown, so that they go on growing while the loop waits for Kafka or Redis
        self.families["onecount_watermark_delay_seconds"].set_function(lambda: _age_s(self.stream_ms))
        self.families["onecount_lag_seconds"].set_function(lambda: _age_s(self.waiting_since_ms))

    def _set(self, name: str, value: float) -> None:
        """Sets a gauge, where this role has it."""
        if name in self.families:
            self.families[name].set(value)

    def beat(self) -> None:
        """The loop turned once more."""
        self.beat_at = time.monotonic()

    def step(self, name: str, seconds: float) -> None:
        """How long a step of a batch took."""
        self.families["onecount_batch_seconds"].labels(name).observe(seconds)

    def batch(self, fold: Any, published_ms: float) -> None:
        """A batch went through all its steps; what it published could be read from `published_ms` (epoch ms) on."""
        self.families["onecount_latency_seconds"].observe((published_ms - fold.stamps_ms) / 1000)
        self.dead_letters.add(
            judged=sum(count for key, count in fold.counted.items() if key[0] in _JUDGED),
            refused=sum(count for key, count in fold.counted.items() if key[0] == "rejected"),
        )
        for (what, *labels), count in fold.counted.items():
            if what in ("accepted", "duplicate"):
                self.families["onecount_events_total"].labels(*labels, what).inc(count)
            else:
                family = self.families[_NAMED[what]]
                (family.labels(*labels) if labels else family).inc(count)
        series: dict[tuple[str, str], Any] = {}  # to look up a series takes as long as to observe
        for platform, action, time_ms in fold.converted:
            labels = platform, action
            if labels not in series:
                series[labels] = self.families["onecount_time_to_convert_seconds"].labels(*labels)
            series[labels].observe(time_ms / 1000)

    def transaction(self, result: str) -> None:
        """A transaction was committed, given up, or nobody knows yet."""
        self.families["onecount_transactions_total"].labels(result).inc()

    def session(self, cause: str, why: str) -> None:
        """A session ended in doubt; a new one begins."""
        self.families["onecount_session_ends_total"].labels(cause).inc()
        self._opened({}, {})
        _log.warning("session ended, beginning anew", role=self.role, worker=self.worker, cause=cause, why=why)

    def policy(self, policy: Any) -> None:
        """The policy that this worker judges by; its platforms' series begin with 0."""
        self.policy_version = policy.versions[-1].number
        self.families["onecount_policy_version"].set(self.policy_version)
        if self.role != "counter":
            return
        methods = {(name, rule.method) for version in policy.versions for name, rule in version.platforms.items()}
        events, conversions = self.families["onecount_events_total"], self.families["onecount_conversions_total"]
        kinds = [(name, kind) for name, _ in methods for kind in (*TOUCH_TYPES, "conversion")]
        for (platform, kind), outcome in product(
            [*kinds, *(("", kind) for kind in EVENT_TYPES if kind not in TOUCH_TYPES)], ("accepted", "duplicate")
        ):
            events.labels(platform, kind, outcome)
        for (platform, method), status in product(methods, STATUSES):
            conversions.labels(platform, method, status)
        conversions.labels("", "", UNATTRIBUTED)
        for platform, _ in methods:
            self.families["onecount_late_events_total"].labels(platform)
            self.families["onecount_corrections_total"].labels(platform)
        actions = {name for version in policy.versions for name in version.actions if version.counted_action(name)}
        for (platform, _), action in product(methods, actions):
            self.families["onecount_time_to_convert_seconds"].labels(platform, action)

    def leads_of(self, actions: Iterable[str]) -> None:
        """The actions whose leads may be overdue; their series begin with 0."""
        self.families["onecount_topic_partitions"].set(1)  # that of the lease
        self.actions = set(actions)
        self.leads({}, {})

    def leads(self, leads: Mapping[tuple[str, str], int], overdue: Mapping[str, int]) -> None:
        """How many leads there are by state and temperature, and how many are overdue by action."""
        for labels in product(STATES, (HOT, COOL)):
            self.families["onecount_leads"].labels(*labels).set(leads.get(labels, 0))
        self.actions |= overdue.keys()
        for action in self.actions:
            self.families["onecount_leads_overdue"].labels(action).set(overdue.get(action, 0))

    def lease(self, is_held: bool, behind: int) -> None:
        """Whether this desk is the one that publishes, and how many records it has still to read."""
        opened = {0: "live"} if is_held else {}
        self._opened(opened, opened)
        self.families["onecount_lag_records"].set(behind)
        if not behind:
            self.waiting_since_ms = None
        elif self.waiting_since_ms is None:
            self.waiting_since_ms = time.time_ns() // 1_000_000

    def claims(self, differences: Mapping[str, tuple[float, float]]) -> None:
        """How far each platform's claims are from what is counted, and how far they may be, as shares."""
        for platform, (difference, tolerance) in differences.items():
            self.families["onecount_reported_difference_ratio"].labels(platform).set(difference)
            self.families["onecount_reported_tolerance_ratio"].labels(platform).set(tolerance)

    def desk_rows(self, count: int) -> None:
        """So many rows were published."""
        self.families["onecount_desk_rows_total"].inc(count)

    def refused(self, refused: Mapping[tuple[str, str], int]) -> None:
        """How many records the desk refused, by topic and reason."""
        for labels, count in refused.items():
            self.families["onecount_desk_refused_records"].labels(*labels).set(count)

    def redis(self, servers: list[Any]) -> None:
        """What Redis's servers say of themselves."""
        used = [server.number("used_memory") for server in servers]
        limits = [server.number("maxmemory") for server in servers]
        ratios = [each / limit for each, limit in zip(used, limits, strict=True) if limit]
        self._set("onecount_redis_latency_seconds", max(server.latency_s for server in servers))
        self._set("onecount_redis_memory_bytes", sum(used))
        self._set("onecount_redis_memory_limit_bytes", sum(limits) if all(limits) else 0)
        self._set("onecount_redis_memory_ratio", max(ratios, default=0))

    def kafka_line(self, client: str, level: str) -> None:
        """librdkafka logged a line."""
        self.families["onecount_kafka_log_lines_total"].labels(client, level).inc()

    def owned(self, session: Any) -> None:
        """Which partitions are open, and once a second how far behind they are."""
        self._discarded(
            {
                partition: owned.discarded
                for partition, owned in session.owned.items()
                if owned.discarded is not None and partition not in self.open
            }
        )
        self._opened(
            {partition: owned.mode.value for partition, owned in session.owned.items()},
            {partition: owned.opened_as.value for partition, owned in session.owned.items()},
        )
        now = time.monotonic()
        if now - self.looked_at < 1:
            return
        self.looked_at = now
        self._look_at_lag(session)
        self._look_at_dead_letters()
        for table, count in session.stage.held().items():
            self.families["onecount_state_records"].labels(table).set(count)

    def _look_at_lag(self, session: Any) -> None:
        lag = session.lag()
        self.families["onecount_lag_records"].set(lag.records)
        self.families["onecount_lag_retention_ratio"].set(lag.retention_ratio)
        self.families["onecount_topic_partitions"].set(session.partitions)
        self.waiting_since_ms = lag.oldest_ms
        self.stream_ms = session.stage.slowest_stream_ms()

    def _discarded(self, found: dict[int, Any]) -> None:
        """Says whose state was found to be of an older release, or damaged, and is rebuilt."""
        older = {partition: why.version for partition, why in found.items() if hasattr(why, "version")}
        damaged = {partition: str(why) for partition, why in found.items() if partition not in older}
        if older:
            _log.info(
                "state of an older release, rebuilding it", role=self.role, worker=self.worker, partitions=sorted(older), versions=sorted(set(older.values()))
            )  # fmt: skip
        if damaged:
            _log.warning(
                "damaged state, rebuilding it", role=self.role, worker=self.worker, partitions=sorted(damaged), why=damaged[min(damaged)]
            )  # fmt: skip

    def _look_at_dead_letters(self) -> None:
        letters = self.dead_letters
        if letters.changed():
            log = _log.warning if letters.raised else _log.info
            log(
                "too many dead letters" if letters.raised else "few dead letters again",
                role=self.role, worker=self.worker, ratio=round(letters.ratio(), 4), limit=letters.limit,
                judged=letters.judged, refused=letters.refused,
            )  # fmt: skip
        self._set("onecount_dead_letter_ratio", letters.ratio())

    def _opened(self, opened: dict[int, str], causes: dict[int, str]) -> None:
        """Counts and logs what changed: `opened` is each partition's mode now, `causes` the one it was opened with."""
        if opened == self.open:
            return
        fresh = opened.keys() - self.open.keys()
        for partition in fresh:
            self.families["onecount_reopenings_total"].labels(causes[partition]).inc()
        if opened.keys() != self.open.keys():
            behind = {
                name: found
                for cause, name in (("replay", "replaying"), ("rebuild", "rebuilding"))
                if (found := sorted(partition for partition in fresh if causes[partition] == cause))
            }
            _log.info("partitions", role=self.role, worker=self.worker, owned=sorted(opened), **behind)
        rebuilt = sorted(
            partition
            for partition, mode in opened.items()
            if mode == "live" and causes[partition] == "rebuild" and self.open.get(partition) != "live"
        )
        if rebuilt:
            _log.info("rebuilt", role=self.role, worker=self.worker, partitions=rebuilt)
        self.open = opened
        self.families["onecount_ready"].set(int(bool(opened)))
        for mode in MODES:
            self.families["onecount_owned_partitions"].labels(mode).set(list(opened.values()).count(mode))

    def serve(self, port: int) -> int:
        """Answers /metrics, /live, /ready and /info on `port` (0: the system picks one); the port. Raises OSError if it is
        taken.
        """
        server = make_server("0.0.0.0", port, self._answer, _Server, _Quiet)
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return server.server_port

    def _answer(self, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return make_wsgi_app(self.registry)(environ, start_response)
        live = time.monotonic() - self.beat_at < self.silent_s_max
        healthy = {"/live": live, "/ready": live and bool(self.open), "/info": True}.get(path)
        status = "404 Not Found" if healthy is None else "200 OK" if healthy else "503 Service Unavailable"
        info = {
            "version": __version__, "role": self.role, "worker": self.worker, "policy_version": self.policy_version,
            "partitions": {str(partition): mode for partition, mode in sorted(self.open.items())},
        }  # fmt: skip
        start_response(status, [("Content-Type", "application/json")])
        return [orjson.dumps(info)]


def family(metric: Metric, registry: CollectorRegistry) -> Any:
    """The family of a catalogue's entry."""
    if metric.kind != "histogram":
        return _KINDS[metric.kind](metric.name.removesuffix("_total"), metric.help, metric.labels, registry=registry)
    if metric.labels:
        return Histogram(metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
    return Latencies(metric.name, metric.help, metric.buckets, registry)


def _age_s(time_ms: int | None) -> float:
    """How long ago a time (epoch ms) was; 0 where there is none."""
    return max(time.time() - time_ms / 1000, 0.0) if time_ms is not None and time_ms > 0 else 0.0


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: one that asks slowly must not keep a probe of /live from its answer."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = _REQUEST_S

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not worth a log line."""
